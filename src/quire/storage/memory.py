"""The reference backend: dicts, readable first. Nothing survives the process.

Every other backend is run beside this one and must answer the same.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import msgspec

from quire.errors import Closed, Unsupported
from quire.model import Cell, Head, Keyframe, Record
from quire.storage.base import Capabilities, CellWrite, Committed, Item, Outcome, Refused, StorageStats


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
        self.position = 0
        self.spaces: dict[str, _Space] = {}
        self.handles = 0
        self.waiters: set[asyncio.Event] = set()


_shared: dict[str, _Place] = {}


async def open_memory(name: str = "", *, namespace: str, now_ms: Callable[[], int] | None = None) -> MemoryBackend:
    """Return a store in memory. name: shared by all who give it, until the last closes; "" is private."""
    place = _shared.setdefault(name, _Place()) if name else _Place()
    return MemoryBackend(place, name, namespace, now_ms or (lambda: time.time_ns() // 1_000_000))


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
        self._own = place.spaces.setdefault(namespace, _Space())
        self._open = True
        place.handles += 1

    @property
    def _space(self) -> _Space:
        if not self._open:
            raise Closed("the store is closed; open it again")
        return self._own

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order."""
        space = self._space
        outcomes = [self._commit(space, item) for item in items]
        for event in self._place.waiters:
            event.set()
        return outcomes

    def _commit(self, space: _Space, item: Item) -> Outcome:
        heads = [self._head(space, e.stream) for e in item.expect]
        moved = tuple(
            h for h, e in zip(heads, item.expect, strict=True) if (h.version, h.chain) != (e.version, e.chain)
        )
        cells = tuple(c.name for c in item.cells if self._value(space, c.name) != c.expected)
        if moved or cells:
            return Refused(moved, cells)
        first = self._place.position + 1
        for record in item.records:
            self._place.position += 1
            stored = msgspec.structs.replace(record, position=self._place.position)
            space.streams.setdefault(record.stream, []).append(stored)
            space.feed.append(stored)
        for write in item.cells:
            self._set(space, write)
        return Committed(first, self._place.position) if item.records else Committed(0, 0)

    def _set(self, space: _Space, write: CellWrite) -> None:
        if write.value is None:
            space.cells.pop(write.name, None)
        else:
            expires = None if write.ttl_ms is None else self._now_ms() + write.ttl_ms
            space.cells[write.name] = Cell(write.name, write.value, expires)

    def _value(self, space: _Space, name: str) -> bytes | None:
        cell = space.cells.get(name)
        return None if cell is None or self._expired(cell) else cell.value

    def _expired(self, cell: Cell) -> bool:
        return cell.expires is not None and cell.expires <= self._now_ms()

    def _head(self, space: _Space, stream: str) -> Head:
        records = space.streams.get(stream)
        if not records:
            return Head(stream)
        last = records[-1]
        return Head(stream, last.version, last.chain, last.kind)

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto."""
        records = self._space.streams.get(stream, [])
        start = bisect_right(records, after, key=lambda r: r.version)
        stop = len(records) if upto is None else bisect_right(records, upto, key=lambda r: r.version)
        return records[start : max(start, stop if limit is None else min(stop, start + limit))]

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each."""
        space = self._space
        return [self._head(space, s) for s in streams]

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names, sorted."""
        names = sorted(n for n in self._space.streams if n.startswith(prefix) and n > after)
        return names[:limit]

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records in commit order."""
        feed = self._space.feed
        start = bisect_right(feed, after, key=lambda r: r.position)
        return feed[start : start + limit]

    async def latest(self) -> int:
        """The newest position."""
        assert self._space
        return self._place.position

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit."""
        assert self._space
        event = asyncio.Event()
        self._place.waiters.add(event)
        try:
            if self._place.position <= after:
                async with asyncio.timeout(timeout_s):
                    while self._place.position <= after:
                        event.clear()
                        await event.wait()
        except TimeoutError:
            pass
        finally:
            self._place.waiters.discard(event)
        return self._place.position

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records, never the head's."""
        space = self._space
        records = space.streams.get(stream, [])
        if not records:
            return 0
        cut = bisect_right(records, min(upto, records[-1].version - 1), key=lambda r: r.version)
        gone = {r.position for r in records[:cut]}
        space.streams[stream] = records[cut:]
        space.feed = [r for r in space.feed if r.position not in gone]
        return cut

    async def drop(self, stream: str) -> None:
        """Remove a stream."""
        space = self._space
        space.streams.pop(stream, None)
        space.keyframes.pop(stream, None)
        space.feed = [r for r in space.feed if r.stream != stream]

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep a keyframe."""
        self._space.keyframes.setdefault(keyframe.stream, {})[keyframe.version] = keyframe

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version."""
        frames = self._space.keyframes.get(stream, {})
        versions = sorted(frames)
        index = len(versions) if at is None else bisect_left(versions, at + 1)
        return frames[versions[index - 1]] if index else None

    async def keyframes(self, stream: str) -> list[int]:
        """Their versions."""
        return sorted(self._space.keyframes.get(stream, {}))

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove some."""
        frames = self._space.keyframes.get(stream, {})
        for version in versions:
            frames.pop(version, None)

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes."""
        self._space.blobs.setdefault(name, data)

    async def blob(self, name: str) -> bytes | None:
        """The bytes."""
        return self._space.blobs.get(name)

    async def drop_blob(self, name: str) -> None:
        """Remove bytes."""
        self._space.blobs.pop(name, None)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names, sorted."""
        return sorted(n for n in self._space.blobs if n > after)[:limit]

    async def cell(self, name: str) -> Cell | None:
        """A register."""
        found = self._space.cells.get(name)
        return None if found is None or self._expired(found) else found

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Registers by prefix, sorted."""
        cells = self._space.cells
        names = sorted(n for n in cells if n.startswith(prefix) and n > after and not self._expired(cells[n]))
        return [cells[n] for n in names[:limit]]

    async def check(self) -> list[str]:
        """Nothing can be wrong that a Python process survives."""
        assert self._space
        return []

    async def stats(self) -> StorageStats:
        """Counts."""
        space = self._space
        size = sum(len(r.body) for p in self._place.spaces.values() for r in p.feed)
        frames = sum(len(f) for f in space.keyframes.values())
        return StorageStats(
            len(space.streams), len(space.feed), frames, len(space.blobs), len(space.cells), size
        )

    async def backup(self, path: str) -> None:
        """Not here."""
        raise Unsupported(f"a store in memory cannot be backed up to {path}; copy it to a file store", capability="backup")

    async def recover(self) -> None:
        """Nothing to reconnect."""
        assert self._space

    async def close(self) -> None:
        """Let go; the last handle on a shared place drops it."""
        if self._open:
            self._open = False
            self._place.handles -= 1
            if self._name and self._place.handles == 0:
                _shared.pop(self._name, None)
