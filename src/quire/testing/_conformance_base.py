"""What the promises stand on: handles that are always closed, a clock wound by hand, records made to order.

A backend does not interpret bodies and chains, so the records here hold any bytes and a chain of 32 bytes that
differs from record to record, without being a real one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import pytest

from quire.model import Head, Record
from quire.storage.base import Backend, CellWrite, Committed, Expect, Item

# This file is imported before the ones with the promises: their failures then say what was found instead.
pytest.register_assert_rewrite("quire.testing._conformance_log", "quire.testing._conformance_beside")

LIMIT_S = 60.0
"""A promise that is not answered by then is broken: nothing hangs for ever."""


class Suite:
    """What a subclass supplies, and what a promise can use."""

    folder: Path
    """Empty, and the test's own."""

    async def open(self, namespace: str = "default") -> Backend:
        """Open the place of this test: the same at every call, another for every test."""
        raise NotImplementedError

    async def open_copy(self, path: str, namespace: str = "default") -> Backend:
        """Open what `backup` wrote. Needed where the capabilities say that there is a backup."""
        raise NotImplementedError

    async def pass_time(self, ms: int) -> None:
        """Let cells age. Here the clock of `now_ms` is wound; a backend with a clock of its own has to wait."""
        self._ms += ms

    def now_ms(self) -> int:
        """The wound clock, for a backend that takes one."""
        return self._ms

    def begin(self, folder: Path) -> None:
        """Set up for one promise."""
        self.folder = folder
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
        """Close every handle and return a new one. What lives in its handles only is held by the new one first."""
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


def made(stream: str, version: int, body: bytes = b"[]", kind: str = "change") -> Record:
    """Return a record whose chain depends on all that is given."""
    chain = sha256(b"%b %d %b %b" % (stream.encode(), version, kind.encode(), body)).digest()
    return Record(stream, version, 1_700_000_000_000 + version, "author", f"version {version}", kind, body, chain)


def after(head: Head, *bodies: bytes, cells: Iterable[CellWrite] = (), kind: str = "change") -> Item:
    """Return an item that expects `head` and adds a record for each body."""
    records = tuple(made(head.stream, head.version + i, body, kind) for i, body in enumerate(bodies, 1))
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


async def whole(backend: Backend, *, blobs: Sequence[str] = (), cells: str = "") -> dict[str, object]:
    """Return all that a namespace answers, for comparing."""
    streams = await backend.streams()
    frames = {s: [await backend.keyframe(s, v) for v in await backend.keyframes(s)] for s in streams}
    return {
        "feed": await backend.feed(limit=1_000_000),
        "streams": {s: await backend.read(s) for s in streams},
        "heads": await backend.heads(streams),
        "keyframes": frames,
        "blobs": {n: await backend.blob(n) for n in (*await backend.blobs(), *blobs)},
        "cells": await backend.cells(cells),
    }
