"""What wrappers share: everything is passed on to the backend within, and what is stored goes through a few hooks.

1. `commit` changes its items without waiting for anything, so that calls reach the backend within in their order.
2. A wrapper keeps its own books in cells and blobs whose names begin with what it calls `own`; nobody outside sees or
   sets those, nor what lies beneath all wrappers (`base.BENEATH`).
3. What lies in the bare backend can be shown as the wrappers around it would show it: `Seal`. Backups are made so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, TypeVar

import msgspec

from quire.errors import InvalidKey
from quire.model import Cell, Head, Keyframe, Record
from quire.storage.base import (
    BENEATH,
    Backend,
    Capabilities,
    CellWrite,
    Committed,
    Expect,
    Item,
    Outcome,
    StorageStats,
    Tally,
    Vitals,
    page_of,
)

T = TypeVar("T")

_OWN_MAX = 1000
"""Cells and blobs that a wrapper keeps in one namespace, at most."""
_replace = msgspec.structs.replace


class Around:
    """A backend around `inner`. As it is, it changes nothing; wrappers override the hooks."""

    own: ClassVar[str]
    """How the names of this wrapper's own cells and blobs begin."""

    def __init__(self, inner: Backend, note: str) -> None:
        """note: what people are told of it."""
        self.inner = inner
        self._note = note
        caps = inner.capabilities
        self.capabilities: Capabilities = _replace(caps, note="; ".join(filter(None, (caps.note, note))))

    # hooks: each pair undoes what the other does

    def store_chain(self, chain: bytes, version: int) -> bytes:
        """Return what is stored for a chain."""
        del version
        return chain

    def load_chain(self, chain: bytes, version: int) -> bytes:
        """Return the chain of what is stored."""
        del version
        return chain

    def store_body(self, r: Record) -> bytes:
        """Return what is stored for the body of a record."""
        return r.body

    def load_body(self, r: Record) -> bytes:
        """Return the body of a stored record. Raises CorruptRecord."""
        return r.body

    def store_keyframe(self, k: Keyframe) -> Keyframe:
        """Return what is stored for a keyframe."""
        return k

    def load_keyframe(self, k: Keyframe) -> Keyframe:
        """Return the keyframe of what is stored. Raises CorruptRecord."""
        return k

    def store_cell(self, name: str, value: bytes) -> bytes:
        """Return what is stored for a cell: always the same for the same value, because cells are compared."""
        del name
        return value

    def load_cell(self, name: str, value: bytes) -> bytes:
        """Return the value of what is stored. Raises CorruptRecord."""
        del name
        return value

    def store_blob(self, name: str, data: bytes) -> bytes:
        """Return what is stored for a blob."""
        del name
        return data

    def load_blob(self, name: str, data: bytes) -> bytes:
        """Return the blob of what is stored. Raises CorruptRecord."""
        del name
        return data

    async def before_loading(self, records: Sequence[Record]) -> None:
        """Fetch what `load_body` needs for these."""

    def _is_own(self, name: str) -> bool:
        return name.startswith(self.own) or name in BENEATH

    def _allowed(self, name: str) -> None:
        if self._is_own(name):
            raise InvalidKey(f"{name}: names that begin with {self.own} are kept for a wrapper; choose another")

    def name_in(self, name: str) -> str:
        """Return the name under which a blob is stored."""
        return name

    async def _paged(
        self, page: Callable[[str], Awaitable[list[T]]], after: str, limit: int, name: Callable[[T], str]
    ) -> list[T]:
        """Return the first that are not this wrapper's own, passing over those however many they are."""
        found: list[T] = []
        while True:
            some = await page(after)
            found += [each for each in some if not self._is_own(name(each))]
            if len(some) < limit or len(found) >= limit:
                return found[:limit]
            after = name(some[-1])
            if after.startswith(self.own):
                after = self.own + "\U0010ffff"

    # log

    def _record_in(self, r: Record) -> Record:
        return _replace(r, body=self.store_body(r), chain=self.store_chain(r.chain, r.version))

    def _record_out(self, r: Record) -> Record:
        return _replace(r, body=self.load_body(r), chain=self.load_chain(r.chain, r.version))

    async def shown(self, records: Sequence[Record]) -> list[Record]:
        """Return records that the backend within gave as they are to be seen. Raises CorruptRecord."""
        await self.before_loading(records)
        return [self._record_out(r) for r in records]

    async def _page(self, records: Sequence[Record], limit: int | None) -> list[Record]:
        """Return the records of a page as they are to be seen: fewer, where they are larger than they are stored."""
        await self.before_loading(records)
        return page_of(map(self._record_out, records), limit)

    def _head_out(self, h: Head) -> Head:
        return Head(h.stream, h.version, self.load_chain(h.chain, h.version), h.kind)

    def _item_in(self, item: Item) -> Item:
        return Item(
            [Expect(e.stream, e.version, self.store_chain(e.chain, e.version)) for e in item.expect],
            [self._record_in(r) for r in item.records],
            [self._write_in(w) for w in item.cells],
        )

    def _write_in(self, w: CellWrite) -> CellWrite:
        self._allowed(w.name)
        expected = None if w.expected is None else self.store_cell(w.name, w.expected)
        value = None if w.value is None else self.store_cell(w.name, w.value)
        return CellWrite(w.name, expected, value, w.ttl_ms)

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, and answer for each."""
        outcomes = await self.inner.commit([self._item_in(item) for item in items])
        return [
            o if isinstance(o, Committed) else _replace(o, heads=tuple(map(self._head_out, o.heads))) for o in outcomes
        ]

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        return await self._page(await self.inner.read(stream, after=after, upto=upto, limit=limit), limit)

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked."""
        return [self._head_out(h) for h in await self.inner.heads(streams)]

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams, sorted."""
        return await self.inner.streams(prefix, after=after, limit=limit)

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads."""
        return await self.inner.tally(prefix, but=but)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace in commit order."""
        return await self._page(await self.inner.feed(after, limit=limit), limit)

    async def latest(self) -> int:
        """The newest position."""
        return await self.inner.latest()

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit."""
        return await self.inner.changed(after, timeout_s=timeout_s)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records, never the head's."""
        return await self.inner.trim(stream, upto)

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        await self.inner.drop(stream)

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records another body."""
        return await self.inner.rewrite([self._record_in(r) for r in records])

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it."""
        await self.inner.put_keyframe(self.store_keyframe(keyframe))

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version."""
        found = await self.inner.keyframe(stream, at)
        return None if found is None else self.load_keyframe(found)

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        return await self.inner.keyframes(stream)

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        await self.inner.drop_keyframes(stream, versions)

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name."""
        self._allowed(name)
        await self.inner.put_blob(name, self.store_blob(name, data))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        found = None if self._is_own(name) else await self.inner.blob(name)
        return None if found is None else self.load_blob(name, found)

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        if not self._is_own(name):
            await self.inner.drop_blob(name)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names, sorted."""
        return await self._paged(lambda last: self.inner.blobs(after=last, limit=limit), after, limit, _itself)

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired."""
        found = None if self._is_own(name) else await self.inner.cell(name)
        return None if found is None else Cell(found.name, self.load_cell(found.name, found.value), found.expires)

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers by prefix, sorted by name."""

        def page(last: str) -> Awaitable[list[Cell]]:
            return self.inner.cells(prefix, after=last, limit=limit)

        others = await self._paged(page, after, limit, _name)
        return [Cell(c.name, self.load_cell(c.name, c.value), c.expires) for c in others]

    # care

    async def check(self) -> list[str]:
        """Problems of the backend within, in words."""
        return await self.inner.check()

    async def stats(self) -> StorageStats:
        """Counts and size, without what wrappers keep for themselves."""
        found = await self.inner.stats()
        cells, blobs = await self.own_counts()
        return _replace(found, cells=found.cells - cells, blobs=found.blobs - blobs)

    async def own_counts(self) -> tuple[int, int]:
        """How many cells and blobs of the backend within belong to this wrapper."""
        blobs = await self.inner.blobs(after=self.own, limit=_OWN_MAX)
        cells = await self.inner.cells(self.own, limit=_OWN_MAX)
        return len(cells), sum(name.startswith(self.own) for name in blobs)

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the surroundings of the backend within are, with what this wrapper says of itself."""
        found = await self.inner.vitals(timeout_s=timeout_s)
        if found.promises is None:
            return found
        note = "; ".join(filter(None, (found.promises.note, self._note)))
        return _replace(found, promises=_replace(found.promises, note=note))

    async def scrub(self) -> None:
        """Leave no trace of what was removed."""
        await self.inner.scrub()

    async def backup(self, path: str) -> None:
        """Write a copy of the backend within: it is opened with the same wrappers."""
        await self.inner.backup(path)

    async def recover(self) -> None:
        """After a failed commit: reconnect."""
        await self.inner.recover()

    async def close(self) -> None:
        """Release everything."""
        await self.inner.close()


def layers(backend: Backend) -> list[Around]:
    """Return the wrappers around a backend, the outermost first."""
    found: list[Around] = []
    while isinstance(backend, Around):
        found.append(backend)
        backend = backend.inner
    return found


def stored(backend: Backend) -> Backend:
    """Return the bare backend within all wrappers."""
    around = layers(backend)
    return around[-1].inner if around else backend


class Seal:
    """Shows what is stored in the bare backend as a backend with its wrappers does. Raises CorruptRecord where it cannot."""

    def __init__(self, backend: Backend) -> None:
        self._layers = layers(backend)

    async def records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records as they are to be seen."""
        for layer in reversed(self._layers):
            records = await layer.shown(records)
        return records

    def chain(self, chain: bytes, version: int) -> bytes:
        """A chain as it is to be seen."""
        for layer in reversed(self._layers):
            chain = layer.load_chain(chain, version)
        return chain

    def keyframe(self, frame: Keyframe) -> Keyframe:
        """A keyframe as it is to be seen."""
        for layer in reversed(self._layers):
            frame = layer.load_keyframe(frame)
        return frame

    def cell(self, name: str, value: bytes) -> bytes:
        """The value of a cell as it is to be seen."""
        for layer in reversed(self._layers):
            value = layer.load_cell(name, value)
        return value

    def blob(self, name: str, data: bytes) -> bytes:
        """The bytes of a blob as they are to be seen. name: as it is seen."""
        for layer in reversed(self._layers):
            data = layer.load_blob(name, data)
        return data

    def blob_name(self, name: str) -> str:
        """The name under which a blob is stored."""
        for layer in self._layers:
            name = layer.name_in(name)
        return name


def _itself(name: str) -> str:
    return name


def _name(cell: Cell) -> str:
    return cell.name


async def claim_cell(inner: Backend, name: str, value: bytes) -> bytes:
    """Set a cell if nobody did; return what it holds then."""
    while True:
        found = await inner.cell(name)
        if found is not None:
            return found.value
        (outcome,) = await inner.commit([Item(cells=(CellWrite(name, None, value),))])
        if isinstance(outcome, Committed):
            return value
