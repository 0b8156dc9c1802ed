"""The reference backend: dicts, readable first. Nothing survives the process.

Every other backend is run beside this one and must answer the same: what storage/base.py promises should be
seen here at a glance. Handles on one `memory:name` may sit on loops of several threads: a place has a lock.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice

import msgspec

from quire import forks
from quire.errors import Closed, Unsupported
from quire.model import Cell, Head, Keyframe, Record
from quire.storage.base import (
    Capabilities,
    CellWrite,
    Committed,
    Item,
    Outcome,
    Refused,
    StorageStats,
    Tally,
    Vitals,
    page_of,
    tally_of,
)


class _Space:
    """What one namespace holds."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Record]] = {}
        self.feed: list[Record] = []
        self.keyframes: dict[str, dict[int, Keyframe]] = {}
        self.blobs: dict[str, bytes] = {}
        self.cells: dict[str, Cell] = {}


class _Place:
    """What several handles on one `memory:name` share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.position = 0
        self.spaces: dict[str, _Space] = {}
        self.handles = 0
        self.waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for loop, event in self.waiters:
            with suppress(RuntimeError):  # a loop that was closed has nobody left to wake
                loop.call_soon_threadsafe(event.set)


_shared: dict[str, _Place] = {}
_shared_lock = threading.Lock()


async def open_memory(name: str = "", *, namespace: str, now_ms: Callable[[], int] | None = None) -> MemoryBackend:
    """Return a store in memory.

    name: shared by all who give it, until the last of them closes; "" is private.
    now_ms: the clock that cells expire by, UTC milliseconds.
    """
    with _shared_lock:
        place = _shared.setdefault(name, _Place()) if name else _Place()
        return MemoryBackend(place, name, namespace, now_ms or (lambda: time.time_ns() // 1_000_000))


def _forget() -> None:
    """In the child of a fork: what the parent has open is not ours, and a thread of it may have held the lock."""
    global _shared_lock  # noqa: PLW0603 - made anew, as it cannot be released
    _shared.clear()
    _shared_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget)


class MemoryBackend:
    """A namespace of a place in memory."""

    capabilities = Capabilities(
        backend="memory",
        durability="none",
        multi_process=False,
        backup=False,
        note="nothing survives the process; open a file to keep it",
    )

    def __init__(self, place: _Place, name: str, namespace: str, now_ms: Callable[[], int]) -> None:
        self._place = place
        self._name = name
        self._now_ms = now_ms
        self._space = place.spaces.setdefault(namespace, _Space())
        self._open = True
        self._pid = os.getpid()
        place.handles += 1

    @contextmanager
    def _held(self) -> Generator[_Space]:
        """Our namespace, with nobody else in the place."""
        forks.check(self._pid)
        with self._place.lock:
            if not self._open:
                raise Closed("the store is closed; open it again")
            yield self._space

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order and answer for each."""
        assert all(_in_sequence(item) for item in items), "an item must expect what its records follow"
        with self._held() as space:
            outcomes = [self._refusal(space, item) or self._store(space, item) for item in items]
            self._place.wake()
        return outcomes

    def _refusal(self, space: _Space, item: Item) -> Refused | None:
        heads = [_head(space, e.stream) for e in item.expect]
        moved = tuple(
            h for h, e in zip(heads, item.expect, strict=True) if (h.version, h.chain) != (e.version, e.chain)
        )
        cells = tuple(w.name for w in item.cells if self._value(space, w.name) != w.expected)
        return Refused(moved, cells) if moved or cells else None

    def _store(self, space: _Space, item: Item) -> Committed:
        first = self._place.position + 1
        for record in item.records:
            self._place.position += 1
            stored = msgspec.structs.replace(record, position=self._place.position)
            space.streams.setdefault(record.stream, []).append(stored)
            space.feed.append(stored)
        for write in item.cells:
            self._set(space, write)
        return Committed(first, self._place.position) if item.records else Committed(0, 0)

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        with self._held() as space:
            found = _between(space.streams.get(stream, []), after, upto)
        return page_of(found, limit)

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked."""
        with self._held() as space:
            return [_head(space, s) for s in streams]

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams, sorted."""
        with self._held() as space:
            return _names(space.streams, prefix, after)[:limit]

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads."""
        with self._held() as space:
            return tally_of((_head(space, s) for s in _names(space.streams, prefix, "")), but)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace in commit order."""
        with self._held() as space:
            start = bisect_right(space.feed, after, key=lambda r: r.position)
            return page_of(islice(space.feed, start, None), limit)

    async def latest(self) -> int:
        """The newest position of the place."""
        with self._held():
            return self._place.position

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit by any handle on the place."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._held():
            self._place.waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while (latest := await self.latest()) <= after:
                    await event.wait()
                    event.clear()
            return latest
        except TimeoutError:
            return await self.latest()
        finally:
            with self._place.lock:
                self._place.waiters.discard(waiter)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records, never the head's."""
        with self._held() as space:
            records = space.streams.get(stream, [])
            gone = {r.position for r in records[:-1] if r.version <= upto}
            if gone:
                space.streams[stream] = records[len(gone) :]
                space.feed = [r for r in space.feed if r.position not in gone]
            return len(gone)

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        with self._held() as space:
            space.streams.pop(stream, None)
            space.keyframes.pop(stream, None)
            space.feed = [r for r in space.feed if r.stream != stream]

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records another body."""
        with self._held() as space:
            wanted = {(r.stream, r.version, r.chain): r.body for r in records}

            def rewritten(record: Record) -> Record:
                body = wanted.get((record.stream, record.version, record.chain))
                return record if body is None else msgspec.structs.replace(record, body=body)

            before = space.feed
            space.feed = [rewritten(r) for r in before]
            for stream in {r.stream for r in records} & set(space.streams):
                space.streams[stream] = [rewritten(r) for r in space.streams[stream]]
            return sum((r.stream, r.version, r.chain) in wanted for r in before)

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, unless its stream was dropped meanwhile: keyframes are derived, and written late."""
        with self._held() as space:
            if keyframe.stream in space.streams:
                space.keyframes.setdefault(keyframe.stream, {})[keyframe.version] = keyframe

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version."""
        with self._held() as space:
            frames = space.keyframes.get(stream, {})
            newest = max((v for v in frames if at is None or v <= at), default=None)
            return None if newest is None else frames[newest]

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        with self._held() as space:
            return sorted(space.keyframes.get(stream, {}))

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        with self._held() as space:
            for version in versions:
                space.keyframes.get(stream, {}).pop(version, None)

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name; what is there already stays."""
        with self._held() as space:
            space.blobs.setdefault(name, data)

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        with self._held() as space:
            return space.blobs.get(name)

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        with self._held() as space:
            space.blobs.pop(name, None)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names, sorted."""
        with self._held() as space:
            return _names(space.blobs, "", after)[:limit]

    # cells

    def _set(self, space: _Space, write: CellWrite) -> None:
        if write.value is None:
            space.cells.pop(write.name, None)
        else:
            expires = None if write.ttl_ms is None else self._now_ms() + write.ttl_ms
            space.cells[write.name] = Cell(write.name, write.value, expires)

    def _value(self, space: _Space, name: str) -> bytes | None:
        cell = self._cell(space, name)
        return None if cell is None else cell.value

    def _cell(self, space: _Space, name: str) -> Cell | None:
        cell = space.cells.get(name)
        return None if cell is None or self._expired(cell) else cell

    def _expired(self, cell: Cell) -> bool:
        return cell.expires is not None and cell.expires <= self._now_ms()

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired."""
        with self._held() as space:
            return self._cell(space, name)

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers by prefix, sorted by name."""
        with self._held() as space:
            found = [space.cells[name] for name in _names(space.cells, prefix, after)]
            return [cell for cell in found if not self._expired(cell)][:limit]

    # care

    async def check(self) -> list[str]:
        """Nothing can be wrong that a Python process survives."""
        with self._held():
            return []

    async def stats(self) -> StorageStats:
        """Counts of the namespace; the size is of the values in the whole place."""
        with self._held() as space:
            return StorageStats(
                streams=len(space.streams),
                records=len(space.feed),
                keyframes=sum(len(frames) for frames in space.keyframes.values()),
                blobs=len(space.blobs),
                cells=len(space.cells),
                size_bytes=sum(map(_size, self._place.spaces.values())),
            )

    async def vitals(self, *, timeout_s: float) -> Vitals:  # noqa: ARG002 - it answers at once
        """What its values take: there is nothing around them."""
        with self._held():
            return Vitals(place="memory", used_bytes=sum(map(_size, self._place.spaces.values())))

    async def scrub(self) -> None:
        """What is gone is gone."""
        with self._held():
            return

    async def backup(self, path: str) -> None:
        """Not here."""
        with self._held():
            raise Unsupported(
                f"a store in memory cannot be backed up to {path}; keep it in a file with sqlite:///PATH",
                capability="backup",
            )

    async def recover(self) -> None:
        """Nothing to reconnect."""
        with self._held():
            return

    async def close(self) -> None:
        """Let go and end our waits; the last handle on a shared place drops it. In the child of a fork it does nothing."""
        if os.getpid() != self._pid:
            return
        with _shared_lock, self._place.lock:
            if not self._open:
                return
            self._open = False
            self._place.wake()
            self._place.handles -= 1
            if self._name and self._place.handles == 0:
                del _shared[self._name]


def _in_sequence(item: Item) -> bool:
    """Whether each stream's records follow what the item expects of it: the caller's duty, see Item."""
    versions = {e.stream: e.version for e in item.expect}
    for record in item.records:
        if versions.get(record.stream) != record.version - 1:
            return False
        versions[record.stream] = record.version
    return True


def _head(space: _Space, stream: str) -> Head:
    records = space.streams.get(stream)
    if not records:
        return Head(stream)
    last = records[-1]
    return Head(stream, last.version, last.chain, last.kind)


def _between(records: list[Record], after: int, upto: int | None) -> list[Record]:
    start = bisect_right(records, after, key=lambda r: r.version)
    stop = len(records) if upto is None else bisect_right(records, upto, key=lambda r: r.version)
    return records[start:stop]


def _names(named: dict[str, list[Record]] | dict[str, bytes] | dict[str, Cell], prefix: str, after: str) -> list[str]:
    return sorted(n for n in named if n.startswith(prefix) and n > after)


def _size(space: _Space) -> int:
    frames = (frame for frames in space.keyframes.values() for frame in frames.values())
    bodies = (part.body for parts in (space.feed, frames) for part in parts)
    values = (cell.value for cell in space.cells.values())
    return sum(len(data) for area in (bodies, space.blobs.values(), values) for data in area)
