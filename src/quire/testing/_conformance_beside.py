"""The promises about what lies beside the log: keyframes, blobs, cells."""

from __future__ import annotations

import asyncio

from quire.model import Cell, Keyframe
from quire.storage.base import CellWrite, Committed, Item, Refused
from quire.testing._conformance_base import Suite, accepted, appended, begun, promise, set_cell

ODD_NAMES = ("a%1", "a*1", "a_1", "a'1", "a b", "aX1", "a/1", "a", "b", "a\u00e91", "a\uffff", "a\U0001f600")
"""Wildcards, quotes, and names whose order differs in UTF-16 or a locale from that by code point."""
ODD_BYTES = (b"", b"\x00", b"text", b"\x01\x00", "\U0001f600".encode(), b"\xff\xfe", bytes(range(256)) * 100)


def frame(stream: str, version: int, body: bytes = b"{}") -> Keyframe:
    """Return a keyframe; the backend does not interpret it."""
    return Keyframe(stream, version, bytes([version]) * 32, 7 * version, bytes([version + 1]) * 32, body)


class KeyframePromises(Suite):
    """What keyframes answer."""

    @promise
    async def test_keyframe_is_the_newest_at_or_before(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", *[b"[]"] * 9)
        for version in (5, 2, 8):
            await backend.put_keyframe(frame("s/1", version))
        found = {at: await backend.keyframe("s/1", at) for at in (0, 1, 2, 4, 5, 7, 8, 99, None)}
        wanted = {0: None, 1: None, 2: 2, 4: 2, 5: 5, 7: 5, 8: 8, 99: 8, None: 8}
        assert found == {at: version and frame("s/1", version) for at, version in wanted.items()}
        assert await backend.keyframes("s/1") == [2, 5, 8]
        assert await backend.keyframe("s/2") is None
        assert await backend.keyframes("s/2") == []

    @promise
    async def test_keyframe_replaces_one_of_the_same_version(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"[]", b"[]")
        for body in ODD_BYTES:
            await backend.put_keyframe(frame("s/1", 2, body))
            assert await backend.keyframe("s/1", 2) == frame("s/1", 2, body)
        assert await backend.keyframes("s/1") == [2]

    @promise
    async def test_dropped_keyframes_are_gone_and_absent_ones_ignored(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", *[b"[]"] * 4)
        for version in (1, 2, 3, 4):
            await backend.put_keyframe(frame("s/1", version))
        await backend.drop_keyframes("s/1", [2, 4, 99])
        await backend.drop_keyframes("s/1", [])
        await backend.drop_keyframes("s/2", [1])
        assert await backend.keyframes("s/1") == [1, 3]
        assert await backend.keyframe("s/1") == frame("s/1", 3)
        assert len(await backend.read("s/1")) == 4


class BlobPromises(Suite):
    """What blobs answer."""

    @promise
    async def test_blobs_are_the_bytes_that_were_put(self) -> None:
        backend = await self.handle()
        bodies = dict(zip(ODD_NAMES, (*ODD_BYTES, *ODD_BYTES), strict=False))
        for name, data in bodies.items():
            await backend.put_blob(name, data)
        backend = await self.reopened(backend)
        assert {name: await backend.blob(name) for name in ODD_NAMES} == bodies
        assert await backend.blob("none") is None

    @promise
    async def test_blob_put_again_changes_nothing(self) -> None:
        backend = await self.handle()
        await backend.put_blob("b", b"1")
        await backend.put_blob("b", b"1")
        assert await backend.blobs() == ["b"]
        assert await backend.blob("b") == b"1"

    @promise
    async def test_blobs_are_listed_in_order_and_pages(self) -> None:
        backend = await self.handle()
        for name in ODD_NAMES:
            await backend.put_blob(name, b"1")
        names = sorted(ODD_NAMES)
        assert await backend.blobs() == names
        assert await backend.blobs(limit=3) == names[:3]
        for index, name in enumerate(names):
            assert await backend.blobs(after=name, limit=4) == names[index + 1 : index + 5]

    @promise
    async def test_dropped_blob_is_gone(self) -> None:
        backend = await self.handle()
        await backend.put_blob("a", b"1")
        await backend.put_blob("a%", b"2")
        for name in ("a", "a", "none"):
            await backend.drop_blob(name)
        assert await backend.blob("a") is None
        assert await backend.blobs() == ["a%"]


class CellPromises(Suite):
    """What cells answer, and when they are set."""

    @promise
    async def test_cell_is_set_where_it_holds_what_is_expected(self) -> None:
        backend = await self.handle()
        steps: list[tuple[bytes | None, bytes | None, bool]] = [
            (b"", b"1", False),
            (None, b"1", True),
            (None, b"2", False),
            (b"0", b"2", False),
            (b"1", b"2", True),
            (b"2", b"", True),
            (None, b"3", False),
            (b"", None, True),
            (b"", b"4", False),
            (None, None, True),
            (None, b"5", True),
        ]
        value: bytes | None = None
        for expected, wanted, holds in steps:
            (outcome,) = await backend.commit([Item(cells=(CellWrite("c", expected, wanted),))])
            assert outcome == (Committed(0, 0) if holds else Refused((), ("c",)))
            value = wanted if holds else value
            assert await backend.cell("c") == (None if value is None else Cell("c", value))

    @promise
    async def test_cells_hold_any_bytes(self) -> None:
        backend = await self.handle()
        cells = dict(zip(ODD_NAMES, (*ODD_BYTES, *ODD_BYTES), strict=False))
        for name, value in cells.items():
            await set_cell(backend, name, value)
        backend = await self.reopened(backend)
        assert {c.name: c.value for c in await backend.cells()} == cells
        for name, value in cells.items():
            await accepted(backend, Item(cells=(CellWrite(name, value, None),)))
        assert await backend.cells() == []

    @promise
    async def test_one_of_many_takes_a_cell(self) -> None:
        backend, other = await self.handle(), await self.handle()
        items = [Item(cells=(CellWrite("lease", None, b"%d" % number),)) for number in range(20)]
        answers = await asyncio.gather(*((backend, other)[i % 2].commit([item]) for i, item in enumerate(items)))
        taken = [i for i, (outcome,) in enumerate(answers) if isinstance(outcome, Committed)]
        assert len(taken) == 1
        cell = await backend.cell("lease")
        assert cell == Cell("lease", b"%d" % taken[0])

    @promise
    async def test_cell_expires_by_the_clock_of_the_backend(self) -> None:
        backend = await self.handle()
        await set_cell(backend, "long", b"1", ttl_ms=3_600_000)
        await set_cell(backend, "ever", b"1")
        await set_cell(backend, "brief", b"1", ttl_ms=500)
        brief = await backend.cell("brief")
        assert brief is not None
        assert brief.expires is not None
        await self.pass_time(600)
        assert await backend.cell("brief") is None
        assert [c.name for c in await backend.cells()] == ["ever", "long"]
        taken = CellWrite("brief", b"1", b"2")
        assert await backend.commit([Item(cells=(taken,))]) == [Refused((), ("brief",))]
        await set_cell(backend, "brief", b"3")
        await self.pass_time(600)
        assert await backend.cell("brief") == Cell("brief", b"3")

    @promise
    async def test_cell_set_again_lives_by_its_new_time(self) -> None:
        backend = await self.handle()
        await set_cell(backend, "lease", b"1", ttl_ms=1000)
        await self.pass_time(600)
        await accepted(backend, Item(cells=(CellWrite("lease", b"1", b"1", 1000),)))
        await self.pass_time(600)
        held = await backend.cell("lease")
        assert held is not None
        await self.pass_time(600)
        assert await backend.cell("lease") is None

    @promise
    async def test_cells_are_chosen_by_prefix_after_and_limit(self) -> None:
        backend = await self.handle()
        for name in ODD_NAMES:
            await set_cell(backend, name, name.encode())
        for prefix in ("", "a", "a%", "a_", "a*", "a'", "a\u00e9", "a\U0001f600", "c"):
            wanted = [Cell(n, n.encode()) for n in sorted(ODD_NAMES) if n.startswith(prefix)]
            assert await backend.cells(prefix) == wanted
            assert await backend.cells(prefix, limit=2) == wanted[:2]
            for mark in ("a", "a_", "a_1", "zz"):
                later = [cell for cell in wanted if cell.name > mark]
                assert await backend.cells(prefix, after=mark, limit=3) == later[:3]

    @promise
    async def test_expired_cells_do_not_count_against_the_limit(self) -> None:
        backend = await self.handle()
        for number in range(6):
            await set_cell(backend, f"c{number}", b"1", ttl_ms=None if number % 2 else 10)
        await self.pass_time(50)
        assert [c.name for c in await backend.cells(limit=2)] == ["c1", "c3"]
        assert [c.name for c in await backend.cells(after="c1", limit=2)] == ["c3", "c5"]

    @promise
    async def test_cells_of_one_item_are_set_together_with_its_records(self) -> None:
        backend = await self.handle()
        cells = (CellWrite("a", None, b"1"), CellWrite("b", None, b"2"))
        await accepted(backend, begun("s/1", b"1", cells=cells))
        again = begun("s/2", b"1", cells=(CellWrite("a", b"1", b"x"), CellWrite("b", b"1", b"x")))
        assert await backend.commit([again]) == [Refused((), ("b",))]
        assert [c.value for c in await backend.cells()] == [b"1", b"2"]
        assert await backend.streams() == ["s/1"]
