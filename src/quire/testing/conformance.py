"""The promises of `quire.storage.base`, as tests for any backend.

    class TestMine(BackendConformance):
        async def open(self, namespace: str = "default"):
            return await open_mine(self.place, namespace=namespace)

`self.place` is a fresh folder for each test; several handles may be open at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quire.errors import Closed, Unsupported
from quire.model import GENESIS, Keyframe, Record
from quire.storage.base import Backend, CellWrite, Committed, Expect, Item, Refused

Opener = Callable[..., Awaitable[Backend]]


def chain(stream: str, version: int) -> bytes:
    """Return a stand-in for a chain: a backend stores it and compares it, nothing more."""
    return GENESIS if version == 0 else f"{stream}|{version}".encode()[-32:].rjust(32, b"#")


def entry(stream: str, version: int, body: bytes = b"[]", kind: str = "change") -> Record:
    """Return a record that follows `chain(stream, version - 1)`."""
    return Record(stream, version, 1_700_000_000_000 + version, "ann", f"m{version}", kind, body, chain(stream, version))


def writing(stream: str, after: int, count: int = 1, body: bytes = b"[]") -> Item:
    """Return an item that appends `count` records after version `after`."""
    records = tuple(entry(stream, after + 1 + i, body) for i in range(count))
    return Item((Expect(stream, after, chain(stream, after)),), records)


def bare(records: list[Record]) -> list[tuple[Any, ...]]:
    """Return records without their positions, which belong to the store."""
    return [(r.stream, r.version, r.time, r.author, r.message, r.kind, r.body, r.chain) for r in records]


class BackendConformance:
    """Subclass it and give `open`."""

    place: Path

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.place = tmp_path

    @pytest.fixture
    async def db(self) -> AsyncIterator[Backend]:
        """One open handle."""
        backend = await self.open()
        yield backend
        await backend.close()

    async def open(self, namespace: str = "default") -> Backend:
        """Open a handle on this test's place."""
        raise NotImplementedError

    # log

    async def test_what_is_committed_is_read_back(self, db: Backend) -> None:
        (outcome,) = await db.commit([writing("w/a", 0, 3)])
        assert isinstance(outcome, Committed)
        found = await db.read("w/a")
        assert bare(found) == bare(list(writing("w/a", 0, 3).records))
        assert [r.position for r in found] == [outcome.first, outcome.first + 1, outcome.last]

    async def test_reading_honours_its_bounds(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 9)])

        async def versions(**bounds: Any) -> list[int]:
            return [r.version for r in await db.read("w/a", **bounds)]

        assert await versions(after=7) == [8, 9]
        assert await versions(upto=2) == [1, 2]
        assert await versions(after=2, upto=5) == [3, 4, 5]
        assert await versions(after=2, limit=2) == [3, 4]
        assert await versions(after=9) == []
        assert await versions(after=5, upto=3) == []
        assert await db.read("w/none") == []

    async def test_a_stale_item_is_refused_and_told_the_head(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 2)])
        (outcome,) = await db.commit([writing("w/a", 1)])
        assert isinstance(outcome, Refused)
        assert [(h.stream, h.version, h.chain) for h in outcome.heads] == [("w/a", 2, chain("w/a", 2))]
        assert len(await db.read("w/a")) == 2

    async def test_another_chain_is_another_head(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0)])
        (outcome,) = await db.commit([Item((Expect("w/a", 1, b"x" * 32),), (entry("w/a", 2),))])
        assert isinstance(outcome, Refused)
        assert len(await db.read("w/a")) == 1

    async def test_an_item_over_several_streams_is_all_or_nothing(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0)])
        both = (Expect("w/a", 0, GENESIS), Expect("w/b", 0, GENESIS))
        cell = CellWrite("c", None, b"1")
        (outcome,) = await db.commit([Item(both, (entry("w/a", 1), entry("w/b", 1)), (cell,))])
        assert isinstance(outcome, Refused)
        assert await db.read("w/b") == []
        assert await db.cell("c") is None
        good = (Expect("w/a", 1, chain("w/a", 1)), Expect("w/b", 0, GENESIS))
        (outcome,) = await db.commit([Item(good, (entry("w/a", 2), entry("w/b", 1), entry("w/b", 2)), (cell,))])
        assert isinstance(outcome, Committed)
        assert outcome.last - outcome.first == 2
        assert [r.version for r in await db.read("w/b")] == [1, 2]

    async def test_a_refused_item_does_not_stop_the_others(self, db: Backend) -> None:
        outcomes = await db.commit([writing("w/a", 0), writing("w/a", 0), writing("w/a", 1), writing("w/b", 0)])
        assert [type(o) for o in outcomes] == [Committed, Refused, Committed, Committed]
        assert [r.version for r in await db.read("w/a")] == [1, 2]

    async def test_an_expectation_alone_can_refuse(self, db: Backend) -> None:
        item = Item((Expect("w/a", 1, chain("w/a", 1)), Expect("w/b", 0, GENESIS)), (entry("w/b", 1),))
        (outcome,) = await db.commit([item])
        assert isinstance(outcome, Refused)
        assert outcome.heads[0].version == 0

    async def test_positions_are_the_order_of_commits(self, db: Backend) -> None:
        for version in range(3):
            await db.commit([writing("w/a", version), writing("w/b", version)])
        feed = await db.feed()
        assert [(r.stream, r.version) for r in feed] == [(s, v) for v in (1, 2, 3) for s in ("w/a", "w/b")]
        assert [r.position for r in feed] == sorted({r.position for r in feed})
        assert [r.position for r in await db.feed(feed[1].position, limit=2)] == [r.position for r in feed[2:4]]
        assert await db.latest() >= feed[-1].position
        assert await db.feed(feed[-1].position) == []

    async def test_concurrent_commits_all_count(self, db: Backend) -> None:
        outcomes = await asyncio.gather(*(db.commit([writing(f"w/{i}", 0, 3)]) for i in range(40)))
        assert all(isinstance(o[0], Committed) for o in outcomes)
        assert len(await db.feed()) == 120

    async def test_one_of_many_wins_the_same_version(self, db: Backend) -> None:
        outcomes = await asyncio.gather(*(db.commit([writing("w/a", 0)]) for _ in range(20)))
        assert sum(isinstance(o[0], Committed) for o in outcomes) == 1

    async def test_heads(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 2), Item((Expect("w/b", 0, GENESIS),), (entry("w/b", 1, kind="end"),))])
        heads = await db.heads(["w/b", "w/none", "w/a"])
        assert [(h.stream, h.version, h.chain, h.kind) for h in heads] == [
            ("w/b", 1, chain("w/b", 1), "end"),
            ("w/none", 0, GENESIS, ""),
            ("w/a", 2, chain("w/a", 2), "change"),
        ]

    async def test_streams_are_listed_by_prefix_in_order(self, db: Backend) -> None:
        names = ["a/1", "a/10", "a/2", "a/%", "a/_", "a/'", "a/é", "a%/x", "b/1", "a/\U0001f600"]
        await db.commit([writing(n, 0) for n in names])
        assert await db.streams() == sorted(names)
        under = sorted(n for n in names if n.startswith("a/"))
        assert await db.streams("a/") == under
        assert await db.streams("a/", limit=3) == under[:3]
        assert await db.streams("a/", after=under[2]) == under[3:]
        assert await db.streams("a/%") == ["a/%"]
        assert await db.streams("zz") == []

    async def test_odd_bodies_come_back_as_they_were(self, db: Backend) -> None:
        bodies = [b"", b"[]", b"\x00", b"a\x00b", b"\xff\xfe", "☃😀".encode(), b"x" * 5_000_000, bytes(range(256)) * 20]
        for i, body in enumerate(bodies):
            await db.commit([writing(f"w/{i}", 0, body=body)])
        for i, body in enumerate(bodies):
            assert (await db.read(f"w/{i}"))[0].body == body

    async def test_changed_wakes_and_times_out(self, db: Backend) -> None:
        before = await db.latest()
        assert await db.changed(before, timeout_s=0.01) == before
        waiting = asyncio.ensure_future(db.changed(before, timeout_s=30))
        await asyncio.sleep(0)
        await db.commit([writing("w/a", 0)])
        assert await waiting > before

    async def test_another_handle_is_seen(self, db: Backend) -> None:
        before = await db.latest()
        other = await self.open()
        try:
            if not await self._shared(db, other):
                return
            waiting = asyncio.ensure_future(db.changed(before, timeout_s=30))
            await other.commit([writing("w/a", 0)])
            assert await waiting > before
            assert len(await db.read("w/a")) == 1
            (outcome,) = await db.commit([writing("w/a", 0)])
            assert isinstance(outcome, Refused)
            (outcome,) = await db.commit([writing("w/a", 1)])
            assert isinstance(outcome, Committed)
            assert [r.version for r in await other.feed()] == [1, 2]
        finally:
            await other.close()

    async def _shared(self, db: Backend, other: Backend) -> bool:
        await db.commit([writing("probe", 0)])
        shared = bool(await other.read("probe"))
        assert shared or db.capabilities.durability == "none"
        await db.drop("probe")
        return shared

    async def test_trimming_spares_the_head_and_reuses_nothing(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 5), writing("w/b", 0)])
        top = await db.latest()
        assert await db.trim("w/a", 3) == 3
        assert [r.version for r in await db.read("w/a")] == [4, 5]
        assert await db.trim("w/a", 99) == 1
        assert await db.trim("w/none", 5) == 0
        assert (await db.heads(["w/a"]))[0].version == 5
        (outcome,) = await db.commit([writing("w/a", 5)])
        assert isinstance(outcome, Committed)
        assert outcome.first > top
        assert await db.check() == []

    async def test_dropping_reuses_no_position(self, db: Backend) -> None:
        await db.commit([writing("w/b", 0), writing("w/a", 0, 2)])
        await db.put_keyframe(Keyframe("w/a", 2, chain("w/a", 2), 1, b"d", b"f"))
        top = await db.latest()
        await db.drop("w/a")
        await db.drop("w/none")
        assert await db.read("w/a") == []
        assert await db.streams() == ["w/b"]
        assert await db.keyframe("w/a") is None
        (outcome,) = await db.commit([writing("w/a", 0)])
        assert isinstance(outcome, Committed)
        assert outcome.first > top
        assert await db.keyframe("w/a") is None
        assert [r.stream for r in await db.feed(top)] == ["w/a"]
        assert await db.check() == []

    # keyframes, blobs

    async def test_keyframes(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 9)])
        frames = {v: Keyframe("w/a", v, chain("w/a", v), v, b"d" * 32, bytes([v])) for v in (2, 5, 8)}
        for frame in frames.values():
            await db.put_keyframe(frame)
        assert await db.keyframe("w/a") == frames[8]
        assert await db.keyframe("w/a", 7) == frames[5]
        assert await db.keyframe("w/a", 5) == frames[5]
        assert await db.keyframe("w/a", 1) is None
        assert await db.keyframe("w/none") is None
        again = Keyframe("w/a", 5, chain("w/a", 5), 1, b"e" * 32, b"new")
        await db.put_keyframe(again)
        assert await db.keyframe("w/a", 5) == again
        assert await db.keyframes("w/a") == [2, 5, 8]
        await db.drop_keyframes("w/a", [2, 8, 99])
        assert await db.keyframes("w/a") == [5]

    async def test_blobs(self, db: Backend) -> None:
        await db.put_blob("b", b"\x00data")
        await db.put_blob("b", b"\x00data")
        await db.put_blob("a", b"")
        assert await db.blob("b") == b"\x00data"
        assert await db.blob("a") == b""
        assert await db.blob("none") is None
        assert await db.blobs() == ["a", "b"]
        assert await db.blobs(after="a", limit=1) == ["b"]
        await db.drop_blob("b")
        await db.drop_blob("b")
        assert await db.blobs() == ["a"]

    # cells

    async def set(self, db: Backend, name: str, expected: bytes | None, value: bytes | None, ttl: int | None = None) -> bool:
        """Write one cell; return whether it was accepted."""
        (outcome,) = await db.commit([Item(cells=(CellWrite(name, expected, value, ttl),))])
        if isinstance(outcome, Refused):
            assert outcome.cells == (name,)
        return isinstance(outcome, Committed)

    async def test_cells_compare_and_set(self, db: Backend) -> None:
        assert await self.set(db, "c", None, b"1")
        assert not await self.set(db, "c", None, b"2")
        assert not await self.set(db, "c", b"0", b"2")
        assert await self.set(db, "c", b"1", b"2")
        cell = await db.cell("c")
        assert cell is not None
        assert (cell.value, cell.expires) == (b"2", None)
        assert await self.set(db, "c", b"2", None)
        assert await db.cell("c") is None
        assert await self.set(db, "c", None, b"")
        assert not await self.set(db, "c", None, b"x")

    async def test_only_one_takes_a_cell(self, db: Backend) -> None:
        taken = await asyncio.gather(*(self.set(db, "lease", None, str(i).encode()) for i in range(20)))
        assert sum(taken) == 1

    async def test_cells_expire(self, db: Backend) -> None:
        assert await self.set(db, "c", None, b"1", 3_600_000)
        assert await self.set(db, "gone", None, b"1", -1)
        assert await db.cell("gone") is None
        assert [c.name for c in await db.cells()] == ["c"]
        assert await self.set(db, "gone", None, b"2")

    async def test_cells_are_listed_by_prefix(self, db: Backend) -> None:
        names = ["a/1", "a/%", "a/_x", "a%1", "b"]
        await db.commit([Item(cells=tuple(CellWrite(n, None, b"v") for n in names))])
        assert [c.name for c in await db.cells()] == sorted(names)
        assert [c.name for c in await db.cells("a/")] == sorted(n for n in names if n.startswith("a/"))
        assert [c.name for c in await db.cells("a/", after="a/%", limit=1)] == ["a/1"]

    # namespaces, care

    async def test_namespaces_see_nothing_of_each_other(self, db: Backend) -> None:
        other = await self.open("other")
        try:
            await db.commit([Item((Expect("w/a", 0, GENESIS),), (entry("w/a", 1),), (CellWrite("c", None, b"1"),))])
            await db.put_blob("b", b"1")
            await db.put_keyframe(Keyframe("w/a", 1, chain("w/a", 1), 1, b"d", b"f"))
            assert await other.read("w/a") == []
            assert await other.feed() == []
            assert await other.streams() == []
            assert await other.keyframe("w/a") is None
            assert await other.blob("b") is None
            assert await other.blobs() == []
            assert await other.cell("c") is None
            assert await other.cells() == []
            assert (await other.stats()).records == 0
            (outcome,) = await other.commit([writing("w/a", 0)])
            assert isinstance(outcome, Committed)
            assert len(await db.read("w/a")) == 1
        finally:
            await other.close()

    async def test_what_is_closed_stays_what_it_was(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 3), Item(cells=(CellWrite("c", None, b"1"),))])
        await db.put_blob("b", b"1")
        await db.close()
        await db.close()
        again = await self.open()
        try:
            if again.capabilities.durability == "none":
                assert await again.read("w/a") in ([], list(await again.read("w/a")))
                return
            assert len(await again.read("w/a")) == 3
            assert await again.blob("b") == b"1"
            cell = await again.cell("c")
            assert cell is not None
            assert cell.value == b"1"
        finally:
            await again.close()

    async def test_a_closed_handle_says_so(self, db: Backend) -> None:
        await db.close()
        for call in (db.read("w/a"), db.commit([]), db.latest(), db.cell("c"), db.streams()):
            with pytest.raises(Closed):
                await call

    async def test_stats_and_check(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 3), Item(cells=(CellWrite("c", None, b"1"),))])
        stats = await db.stats()
        assert (stats.streams, stats.records, stats.cells, stats.blobs) == (1, 3, 1, 0)
        assert stats.size_bytes > 0
        assert await db.check() == []

    async def test_a_backup_is_a_store(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 3)])
        path = str(self.place / "copy")
        if not db.capabilities.backup:
            with pytest.raises(Unsupported):
                await db.backup(path)
            return
        await asyncio.gather(db.backup(path), *(db.commit([writing(f"w/{i}", 0)]) for i in range(20)))
        copy = await self.open_copy(path)
        try:
            assert bare(await copy.read("w/a")) == bare(await db.read("w/a"))
            assert await copy.check() == []
        finally:
            await copy.close()

    async def open_copy(self, path: str) -> Backend:
        """Open a backup; needed where `capabilities.backup` is True."""
        raise NotImplementedError

    async def test_recover_keeps_everything(self, db: Backend) -> None:
        await db.commit([writing("w/a", 0, 3)])
        await db.recover()
        assert len(await db.read("w/a")) == 3
        (outcome,) = await db.commit([writing("w/a", 3)])
        assert isinstance(outcome, Committed)
