"""The promises about the whole: namespaces, reopening, closing, backup, counts, recovery."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import get_args

import msgspec
import pytest

from quire.errors import Closed, StorageTimeout, Unsupported
from quire.model import Keyframe
from quire.storage.base import Backend, CellWrite, Durability, Expect, Item
from quire.testing._conformance_base import (
    FAR_S,
    Suite,
    accepted,
    appended,
    begun,
    entry,
    everything,
    promise,
    set_cell,
)


async def filled(backend: Backend, mark: bytes = b"1") -> Backend:
    """Write something to all four areas and remove some of it again."""
    await accepted(backend, begun("s/1", mark, mark, mark), begun("s/2", mark), begun("s/3", mark, mark))
    for version in (1, 3):
        await backend.put_keyframe(Keyframe("s/1", version, bytes(32), 2, bytes(32), mark))
    await backend.put_blob("blob", mark)
    await set_cell(backend, "cell", mark)
    await set_cell(backend, "lease", mark, ttl_ms=3_600_000)
    await backend.trim("s/1", 1)
    await backend.drop("s/3")
    return backend


class CarePromises(Suite):
    """What a backend says of itself, and how it is opened and closed."""

    @promise
    async def test_capabilities_say_what_is_promised(self) -> None:
        backend = await self.handle()
        assert backend.capabilities.backend
        assert backend.capabilities.durability in get_args(Durability)
        # who may lose what was acknowledged has to say so in words
        assert backend.capabilities.note or backend.capabilities.durability == "power"

    @promise
    async def test_namespaces_see_nothing_of_each_other(self) -> None:
        backend, other = await filled(await self.handle()), await self.handle("other")
        nothing: dict[str, object] = {
            "feed": [],
            "records": {},
            "heads": [],
            "keyframes": {},
            "blobs": {},
            "cells": [],
        }
        assert await everything(other) == nothing
        assert [await other.blob("blob"), await other.cell("cell"), await other.keyframe("s/1")] == [None] * 3
        before = await everything(backend)
        await filled(other, b"2")
        assert (await everything(other))["blobs"] == {"blob": b"2"}
        await accepted(other, Item(cells=(CellWrite("cell", b"2", None),)))
        await other.drop_keyframes("s/1", [1, 3])
        await other.drop_blob("blob")
        await other.trim("s/1", 3)
        await other.drop("s/1")
        await other.drop("s/2")
        assert await everything(backend) == before

    @promise
    async def test_reopening_keeps_everything(self) -> None:
        backend = await filled(await self.handle())
        before, latest = await everything(backend), await backend.latest()
        backend = await self.reopened(backend)
        assert await everything(backend) == before
        assert await backend.latest() == latest
        (record,) = await appended(backend, "s/1", b"4")
        assert record.version == 4
        assert record.position > latest

    @promise
    async def test_handles_on_one_place_see_the_same(self) -> None:
        backend, other = await self.handle(), await self.handle()
        await filled(backend)
        assert await everything(other) == await everything(backend)
        await appended(other, "s/1", b"4")
        await appended(backend, "s/1", b"5")
        await backend.drop("s/2")
        await appended(other, "s/2", b"again")
        await appended(backend, "s/2", b"and again")
        assert await everything(other) == await everything(backend)

    @promise
    async def test_close_may_be_repeated_and_leaves_other_handles_open(self) -> None:
        backend, other, elsewhere = await self.handle(), await self.handle(), await self.handle("other")
        await filled(backend)
        before = await everything(backend)
        for _ in range(3):
            await backend.close()
        assert await everything(other) == before
        await filled(elsewhere)
        await appended(other, "s/1", b"4")

    @promise
    async def test_closed_handle_refuses_everything(self) -> None:
        backend = await self.handle()
        await backend.close()
        keyframe = Keyframe("s/1", 1, bytes(32), 2, bytes(32), b"{}")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: backend.commit([begun("s/1", b"1")]),
            lambda: backend.commit([Item((Expect("s/1", 0, bytes(32)),))]),
            lambda: backend.read("s/1"),
            lambda: backend.heads(["s/1"]),
            backend.streams,
            backend.feed,
            backend.latest,
            lambda: backend.changed(0, timeout_s=FAR_S),
            lambda: backend.trim("s/1", 1),
            lambda: backend.drop("s/1"),
            lambda: backend.rewrite([entry("s/1", 1)]),
            lambda: backend.put_keyframe(keyframe),
            lambda: backend.keyframe("s/1"),
            lambda: backend.keyframes("s/1"),
            lambda: backend.drop_keyframes("s/1", [1]),
            lambda: backend.put_blob("b", b"1"),
            lambda: backend.blob("b"),
            lambda: backend.drop_blob("b"),
            backend.blobs,
            lambda: backend.cell("c"),
            backend.cells,
            backend.check,
            backend.stats,
            lambda: backend.vitals(timeout_s=FAR_S),
            backend.scrub,
            lambda: backend.backup(str(self.place / "copy")),
            backend.recover,
        ]
        for call in calls:
            with pytest.raises(Closed):
                await call()

    @promise
    async def test_check_finds_nothing_wrong(self) -> None:
        backend = await self.handle()
        assert await backend.check() == []
        await filled(backend)
        await filled(await self.handle("other"))
        assert await backend.check() == []

    @promise
    async def test_stats_count_the_namespace(self) -> None:
        backend, other = await filled(await self.handle()), await self.handle("other")
        stats = await backend.stats()
        assert (stats.streams, stats.records, stats.keyframes, stats.blobs, stats.cells) == (2, 3, 2, 1, 2)
        assert stats.size_bytes > 0
        none = await other.stats()
        assert (none.streams, none.records, none.keyframes, none.blobs, none.cells) == (0, 0, 0, 0, 0)

    @promise
    async def test_vitals_are_figures_that_can_be_true(self) -> None:
        backend = await filled(await self.handle())
        vitals = await backend.vitals(timeout_s=FAR_S)
        figures = msgspec.structs.asdict(vitals)
        assert all(figure >= 0 for figure in figures.values() if type(figure) in (int, float))
        pairs = (
            (vitals.disk_free_bytes, vitals.disk_total_bytes),
            (vitals.sessions, vitals.sessions_max),
        )
        assert all(part <= whole for part, whole in pairs if part is not None and whole is not None)
        assert vitals.place
        assert vitals.used_bytes != 0
        assert vitals.read_only is not True
        assert vitals.promises is None or vitals.promises == backend.capabilities
        assert all(replica.name for replica in vitals.replicas)
        assert all(warning.strip() for warning in vitals.warnings)

    @promise
    async def test_asking_for_vitals_changes_nothing_even_when_given_up(self) -> None:
        backend = await filled(await self.handle())

        async def kept() -> list[object]:
            # a server counts bytes of its own as well
            stats = msgspec.structs.replace(await backend.stats(), size_bytes=0)
            return [await everything(backend), await backend.latest(), stats]

        before = await kept()
        for timeout_s in (FAR_S, 0.0):
            with suppress(StorageTimeout):
                await backend.vitals(timeout_s=timeout_s)
        assert await kept() == before
        asked = [backend.vitals(timeout_s=FAR_S) for _ in range(3)]
        await asyncio.gather(*asked, appended(backend, "s/1", b"4"))
        assert (await backend.heads(["s/1"]))[0].version == 4

    @promise
    async def test_scrub_leaves_what_is_there(self) -> None:
        backend, other = await filled(await self.handle()), await filled(await self.handle("other"), b"2")
        before = [await everything(backend), await everything(other), await backend.latest()]
        await backend.scrub()
        assert [await everything(backend), await everything(other), await backend.latest()] == before
        assert await backend.check() == []
        (record,) = await appended(backend, "s/1", b"4")
        assert record.version == 4

    @promise
    async def test_recover_keeps_everything_and_goes_on(self) -> None:
        backend = await filled(await self.handle())
        before = await everything(backend)
        await backend.recover()
        assert await everything(backend) == before
        assert [r.version for r in await appended(backend, "s/1", b"4")] == [4]

    @promise
    async def test_backup_opens_and_equals(self) -> None:
        backend = await filled(await self.handle())
        path = str(self.place / "copy")
        if not backend.capabilities.backup:
            with pytest.raises(Unsupported) as caught:
                await backend.backup(path)
            assert caught.value.capability == "backup"
            return
        await backend.backup(path)
        copy = self.kept(await self.open_copy(path))
        assert await everything(copy) == await everything(backend)
        assert await copy.check() == []
        (record,) = await appended(copy, "s/1", b"4")
        assert record.position > await backend.latest()

    @promise
    async def test_backup_while_writers_go_on_is_a_moment_of_the_store(self) -> None:
        backend = await filled(await self.handle())
        if not backend.capabilities.backup:
            return  # that it says so is the promise above
        path, before = str(self.place / "copy"), await backend.feed()
        items = [begun(f"t/{number}", b"1", b"2") for number in range(30)]
        await asyncio.gather(backend.backup(path), *(accepted(backend, item) for item in items))
        copy = self.kept(await self.open_copy(path))
        copied, feed = await copy.feed(), await backend.feed()
        assert copied == feed[: len(copied)]
        assert len(copied) >= len(before)
        assert [len(await copy.read(s)) for s in await copy.streams("t/")] == [2] * len(await copy.streams("t/"))
        assert await copy.check() == []
