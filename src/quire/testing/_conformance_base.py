"""What the promises stand on: handles that are always closed, a clock wound by hand, records made to order.

A backend does not interpret bodies and chains, so the records here hold any bytes, and a chain of 32 bytes
that differs from record to record without being a real one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from quire.model import GENESIS, Head, Record
from quire.storage.base import Backend, CellWrite, Committed, Expect, Item

# This file is imported before those with the promises, whose failures then say what was found instead.
pytest.register_assert_rewrite(*(f"quire.testing._conformance_{part}" for part in ("commit", "log", "beside", "care")))

LIMIT_S = 60.0
"""A promise that is not answered by then is broken: nothing hangs for ever."""
FAR_S = 1000.0
"""Longer than that: who waits so long has to be woken."""


class Suite:
    """What a subclass supplies, and what a promise can use."""

    place: Path
    """A folder: empty, and the test's own."""

    async def open(self, namespace: str = "default") -> Backend:
        """Open a handle on the place of this test: the same at every call, another for every test."""
        raise NotImplementedError

    async def open_copy(self, path: str) -> Backend:
        """Open what `backup` wrote. Needed where the capabilities say that there is a backup."""
        raise NotImplementedError

    async def pass_time(self, ms: int) -> None:
        """Let cells age: the clock of `now_ms` is wound; a backend with a clock of its own has to wait."""
        self._ms += ms

    def now_ms(self) -> int:
        """The wound clock, for a backend that takes one."""
        return self._ms

    def begin(self, place: Path) -> None:
        """Set up for one promise."""
        self.place = place
        self._ms = 1_700_000_000_000
        self._handles: list[Backend] = []

    @pytest.fixture(autouse=True)
    def _begun(self, tmp_path: Path) -> None:
        self.begin(tmp_path)

    async def handle(self, namespace: str = "default") -> Backend:
        """Return a new handle that is closed when the promise was looked at, however that ends."""
        return self.kept(await self.open(namespace))

    def kept(self, backend: Backend) -> Backend:
        """Have a handle closed at the end."""
        self._handles.append(backend)
        return backend

    async def reopened(self, backend: Backend, namespace: str = "default") -> Backend:
        """Close every handle, return a new one. It is opened first where the place lives by its handles."""
        if backend.capabilities.durability == "none":
            again = await self.open(namespace)
            await self.close_all()
            return self.kept(again)
        await self.close_all()
        return await self.handle(namespace)

    async def close_all(self) -> None:
        """Close every handle."""
        while self._handles:
            await self._handles.pop().close()


S = TypeVar("S", bound=Suite)


def promise(test: Callable[[S], Coroutine[None, None, None]]) -> Callable[[S], None]:
    """Make an async test an ordinary one, on an event loop of its own, so that no plugin is needed."""

    async def whole(suite: S) -> None:
        try:
            async with asyncio.timeout(LIMIT_S):
                await test(suite)
        finally:
            await suite.close_all()

    @functools.wraps(test)
    def run(suite: S) -> None:
        asyncio.run(whole(suite))

    return run


def chain(stream: str, version: int) -> bytes:
    """Return a stand-in for a chain, another for each version of each stream."""
    return GENESIS if version == 0 else sha256(f"{stream}@{version}".encode()).digest()


def entry(stream: str, version: int, body: bytes = b"[]", kind: str = "change") -> Record:
    """Return a record that follows `chain(stream, version - 1)`."""
    time = 1_700_000_000_000 + version
    return Record(stream, version, time, "ann", f"version {version}", kind, body, chain(stream, version))


def bare(records: Iterable[Record]) -> list[Record]:
    """Return records without their positions, which belong to the store."""
    return [msgspec.structs.replace(record, position=0) for record in records]


def after(head: Head, *bodies: bytes, cells: Iterable[CellWrite] = (), kind: str = "change") -> Item:
    """Return an item that expects `head` and adds a record for each body."""
    records = tuple(entry(head.stream, head.version + i, body, kind) for i, body in enumerate(bodies, 1))
    return Item((Expect(head.stream, head.version, head.chain),), records, tuple(cells))


def begun(stream: str, *bodies: bytes, cells: Iterable[CellWrite] = ()) -> Item:
    """Return an item that begins a stream with a record for each body."""
    return after(Head(stream), *bodies, cells=cells)


def together(*items: Item) -> Item:
    """Return one item that is all of them."""
    return Item(
        tuple(e for item in items for e in item.expect),
        tuple(r for item in items for r in item.records),
        tuple(c for item in items for c in item.cells),
    )


def head_of(item: Item) -> Head:
    """Return the head that the item's last record makes."""
    last = item.records[-1]
    return Head(last.stream, last.version, last.chain, last.kind)


async def accepted(backend: Backend, *items: Item) -> list[Committed]:
    """Commit in one call and return the answers, all of which must be Committed."""
    outcomes = await backend.commit(items)
    taken = [outcome for outcome in outcomes if isinstance(outcome, Committed)]
    assert len(taken) == len(items), f"refused: {outcomes}"
    return taken


async def appended(backend: Backend, stream: str, *bodies: bytes) -> list[Record]:
    """Commit records after the head that is there; return them as they read afterwards."""
    (head,) = await backend.heads([stream])
    await accepted(backend, after(head, *bodies))
    return await backend.read(stream, after=head.version)


async def set_cell(backend: Backend, name: str, value: bytes, *, ttl_ms: int | None = None) -> None:
    """Set a cell that is not there."""
    await accepted(backend, Item(cells=(CellWrite(name, None, value, ttl_ms),)))


async def everything(backend: Backend) -> dict[str, object]:
    """Return all that a namespace answers, for comparing."""
    streams = await backend.streams()
    return {
        "feed": await backend.feed(limit=1_000_000),
        "records": {s: await backend.read(s) for s in streams},
        "heads": await backend.heads(streams),
        "keyframes": {s: [await backend.keyframe(s, v) for v in await backend.keyframes(s)] for s in streams},
        "blobs": {name: await backend.blob(name) for name in await backend.blobs()},
        "cells": await backend.cells(),
    }
