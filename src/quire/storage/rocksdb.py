"""RocksDB in a folder: for one process that writes much, on a store larger than memory.

1. One thread writes: an item is checked against what is there and what comes before it in the call, and a call of `commit`
   is one write batch and one sync of RocksDB's log.
2. Another thread reads, as of one moment (a snapshot of the driver's).
3. A failed write leaves an unknown outcome: `recover` closes the database and opens it anew, which decides.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from quire import forks
from quire.errors import Closed, CorruptRecord, FilesChanged, StorageUnavailable
from quire.failpoints import hit
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _rocksdb_place as places
from quire.storage._rocksdb_keys import Keys, number_key, number_of, prefix_key
from quire.storage._rocksdb_place import FAMILIES, Place
from quire.storage._rocksdb_write import (
    Draft,
    Entry,
    Frame,
    cell_of,
    entry_of,
    frame_of,
    held_of,
    pack,
    pointer_of,
    top_of,
)
from quire.storage._vitals import disk_of, within
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Tally, Vitals, page_of, tally_of
from quire.threads import apart

T = TypeVar("T")


async def open_rocksdb(path: str, *, namespace: str, now_ms: Callable[[], int] | None = None) -> RocksdbBackend:
    """Open a folder as a store, making it if it is absent or empty.

    path: the folder; the one around it must exist.  namespace: what is seen of it.
    now_ms: the clock that cells expire by, UTC milliseconds.
    Raises InvalidKey, IncompatibleFormat, CorruptRecord, and StorageUnavailable where another process has it open.
    """
    place = await apart(places.claim, path)
    return RocksdbBackend(place, namespace, now_ms or (lambda: time.time_ns() // 1_000_000))


class RocksdbBackend:
    """A namespace of a RocksDB. Made by `open_rocksdb`."""

    capabilities = Capabilities(
        backend="rocksdb",
        durability="power",
        multi_process=False,
        backup=True,
        note="every acknowledged write is on the disk; one process at a time",
    )

    def __init__(self, place: Place, namespace: str, now_ms: Callable[[], int]) -> None:
        self._place = place
        self._keys = Keys(namespace)
        self._now_ms = now_ms
        self._pid = os.getpid()
        forks.keep(self)
        self._closed = False
        self._events: set[asyncio.Event] = set()

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)

    async def _read(self, job: Callable[[], T]) -> T:
        self._alive()
        if not self._place.is_open:  # an earlier `recover` failed, and whoever reads first tries again
            await self.recover()
        self._place.inodes.look()
        return await self._place.reader.do(job)

    def _change(self, job: Callable[[], T]) -> asyncio.Future[T]:
        self._alive()
        return self._place.writer.do(job)

    def _scan(self, source: Any, begin: bytes, start: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys that begin with `begin`, from `start` on, and their values."""
        walk = source.iter()
        walk.seek(begin if start is None else start)
        while walk.valid():
            key = walk.key()
            if not key.startswith(begin):
                break
            yield key, walk.value()
            walk.next()
        walk.status()  # raises where the walk ended for damage

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in one batch."""
        outcomes = await self._change(lambda: self._commit(items))
        self._place.wake()
        return outcomes

    def _commit(self, items: Sequence[Item]) -> list[Outcome]:
        place = self._place
        if place.broken:
            raise StorageUnavailable(f"{place.path}: an earlier commit failed; `recover` has to settle it first")
        hit("commit:begin")
        draft = Draft(self._keys, place.family("log"), place.family("cells"), place.position, self._now_ms())
        outcomes = [draft.add(item) for item in items]
        if not draft.empty:
            try:
                place.broken = True  # until it is known that it did not fail
                place.write(draft.fill)
                place.broken = False
            except FilesChanged:
                place.broken = False
                raise
        hit("commit:after")
        return outcomes

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""

        def found() -> Generator[Record]:
            begin = self._keys.of(b"r", stream)
            log = self._place.family("log").snapshot()
            for key, value in self._scan(log, begin, begin + number_key(max(after, 0) + 1)) if limit != 0 else ():
                version = number_of(key)
                if upto is not None and version > upto:
                    return
                yield _record(stream, version, value)

        return await self._read(lambda: page_of(found(), limit))

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment."""

        def job() -> list[Head]:
            walk = self._place.family("log").snapshot().iter()
            return [_head(stream, _found(walk, self._keys.of(b"h", stream))) for stream in streams]

        return await self._read(job)

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        return await self._read(lambda: self._names("log", b"h", prefix, after, limit))

    def _names(self, family: str, kind: bytes, prefix: str, after: str, limit: int | None) -> list[str]:
        found: list[str] = []
        begin = self._keys.begin(kind) + prefix_key(prefix)
        start = max(begin, self._keys.of(kind, after))
        for key, _ in self._scan(self._place.family(family).snapshot(), begin, start):
            name = self._keys.name(key)
            if len(found) == limit:
                break
            if name > after:
                found.append(name)
        return found

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads."""

        def job() -> Tally:
            log = self._place.family("log").snapshot()
            return tally_of(
                (_head("", v) for _, v in self._scan(log, self._keys.begin(b"h") + prefix_key(prefix))), but
            )

        return await self._read(job)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""

        def found() -> Generator[Record]:
            log = self._place.family("log").snapshot()
            records = log.iter()
            begin = self._keys.begin(b"f")
            for _, value in self._scan(log, begin, begin + number_key(max(after, 0) + 1)) if limit > 0 else ():
                stream, version = pointer_of(value)
                record = _found(records, self._keys.of(b"r", stream) + number_key(version))
                if record is None:
                    raise _gone(stream, version)
                yield _record(stream, version, record)

        return await self._read(lambda: page_of(found(), limit))

    async def latest(self) -> int:
        """The newest position of the store: nobody else writes to it."""
        self._alive()
        self._place.inodes.look()
        return self._place.position

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit by any handle of this process."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        self._place.waiters.add(waiter)
        self._events.add(event)
        try:
            async with asyncio.timeout(timeout_s):
                while (latest := await self.latest()) <= after:
                    await event.wait()
                    event.clear()
            return latest
        except TimeoutError:
            return await self.latest()
        finally:
            self._place.waiters.discard(waiter)
            self._events.discard(event)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many."""
        return await self._change(lambda: self._remove(stream, upto))

    def _remove(self, stream: str, upto: int | None) -> int:
        """Remove records up to a version but the head's; with None all of them, and the keyframes."""
        place, keys = self._place, self._keys
        top = place.family("log").get(keys.of(b"h", stream))
        if top is None:
            return 0
        head = top_of(top)
        last = head.version if upto is None else min(upto, head.version - 1)
        begin = keys.of(b"r", stream)
        records = self._scan(place.family("log"), begin)
        gone = [(key, entry_of(value).position) for key, value in records if number_of(key) <= last]

        def fill(batch: Any, family: Callable[[str], Any]) -> int:
            log, keyframes = family("log"), family("keyframes")
            for key, position in gone:
                batch.delete(key, log)
                batch.delete(keys.begin(b"f") + number_key(position), log)
            if upto is None:
                batch.delete(keys.of(b"h", stream), log)
                for key, _ in self._scan(place.family("keyframes"), keys.of(b"k", stream)):
                    batch.delete(key, keyframes)
            elif gone:
                head.first = last + 1
                batch.put(keys.of(b"h", stream), pack(head), log)
            return place.position

        place.write(fill)
        return len(gone)

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        await self._change(lambda: self._remove(stream, None))

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, in one batch; return how many were found."""

        def job() -> int:
            found: dict[bytes, Entry] = {}
            for r in records:
                key = self._keys.of(b"r", r.stream) + number_key(r.version)
                value = self._place.family("log").get(key)
                entry = None if value is None else entry_of(value)
                if entry is not None and entry.chain == r.chain:
                    entry.body = r.body
                    found[key] = entry
            if found:
                self._put("log", {key: pack(entry) for key, entry in found.items()})
            return len(found)

        return await self._change(job)

    def _put(self, family: str, values: dict[bytes, bytes], gone: Sequence[bytes] = ()) -> None:
        def fill(batch: Any, families: Callable[[str], Any]) -> int:
            for key, value in values.items():
                batch.put(key, value, families(family))
            for key in gone:
                batch.delete(key, families(family))
            return self._place.position

        self._place.write(fill)

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        k = keyframe

        def job() -> None:
            if self._place.family("log").get(self._keys.of(b"h", k.stream)) is not None:
                key = self._keys.of(b"k", k.stream) + number_key(k.version)
                self._put("keyframes", {key: pack(Frame(k.chain, k.size, k.digest, k.body))})

        await self._change(job)

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at."""

        def job() -> Keyframe | None:
            begin = self._keys.of(b"k", stream)
            frames = self._place.family("keyframes").snapshot()
            walk = frames.iter()
            walk.seek_for_prev(begin + (b"\xff" * 8 if at is None else number_key(at)))
            if not walk.valid() or not walk.key().startswith(begin):
                walk.status()
                return None
            f = frame_of(walk.value())
            return Keyframe(stream, number_of(walk.key()), f.chain, f.size, f.digest, f.body)

        return await self._read(job)

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""

        def job() -> list[int]:
            frames = self._place.family("keyframes").snapshot()
            return [number_of(key) for key, _ in self._scan(frames, self._keys.of(b"k", stream))]

        return await self._read(job)

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        gone = [self._keys.of(b"k", stream) + number_key(version) for version in versions if version > 0]
        await self._change(lambda: self._put("keyframes", {}, gone))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content."""
        key = self._keys.of(b"b", name)

        def job() -> None:
            if self._place.family("blobs").get(key) is None:
                self._put("blobs", {key: data})

        await self._change(job)

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        return await self._read(lambda: self._place.family("blobs").get(self._keys.of(b"b", name)))

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self._change(lambda: self._put("blobs", {}, [self._keys.of(b"b", name)]))

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        return await self._read(lambda: self._names("blobs", b"b", "", after, limit))

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired."""
        now = self._now_ms()
        value = await self._read(lambda: self._place.family("cells").get(self._keys.of(b"c", name)))
        return None if value is None else cell_of(name, held_of(value), now)

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""

        def job() -> list[Cell]:
            now = self._now_ms()
            found: list[Cell] = []
            begin = self._keys.begin(b"c") + prefix_key(prefix)
            start = max(begin, self._keys.of(b"c", after))
            for key, value in self._scan(self._place.family("cells").snapshot(), begin, start):
                name = self._keys.name(key)
                cell = cell_of(name, held_of(value), now)
                if len(found) == limit:
                    break
                if cell is not None and name > after:
                    found.append(cell)
            return found

        return await self._read(job)

    # care

    async def check(self) -> list[str]:
        """Problems of this namespace in words: RocksDB's checksums, gaps, and what the feed says. Cost: reads all."""
        return await self._read(self._problems)

    def _problems(self) -> list[str]:
        found: list[str] = []
        try:
            log = self._place.family("log").snapshot()
            feed = {pointer_of(v): number_of(k) for k, v in self._scan(log, self._keys.begin(b"f"))}
            for key, value in self._scan(log, self._keys.begin(b"h")):
                stream, top = self._keys.name(key), top_of(value)
                records = self._scan(log, self._keys.of(b"r", stream))
                held = {number_of(k): entry_of(v).position for k, v in records}
                if list(held) != list(range(top.first, top.version + 1)):
                    found.append(
                        f"{self._place.path}: {stream}: its versions do not run from {top.first} to {top.version}"
                    )
                found += [
                    f"{self._place.path}: {stream} v{version}: the feed does not have it at {position}"
                    for version, position in held.items()
                    if feed.pop((stream, version), None) != position
                ]
            found += [f"{self._place.path}: {stream} v{version} is in the feed only" for stream, version in feed]
            for family in FAMILIES[1:]:
                for _ in self._scan(self._place.family(family).snapshot(), self._keys.begin(b"")):
                    pass
        except Exception as error:
            said = str(places.ours(error, self._place.path))
            if not isinstance(places.ours(error, self._place.path), CorruptRecord):
                raise
            found.append(said)
        return found

    async def stats(self) -> StorageStats:
        """Counts of this namespace; the size is of the whole folder. Cost: walks over heads, keyframes and names."""

        def job() -> StorageStats:
            counted = {
                kind: sum(1 for _ in self._scan(self._place.family(family).snapshot(), self._keys.begin(kind)))
                for family, kind in (("keyframes", b"k"), ("blobs", b"b"), ("cells", b"c"))
            }
            log = self._place.family("log").snapshot()
            tops = [top_of(value) for _, value in self._scan(log, self._keys.begin(b"h"))]
            files = (p for p in Path(self._place.path).rglob("*") if p.is_file())
            return StorageStats(
                streams=len(tops),
                records=sum(top.version - top.first + 1 for top in tops),
                keyframes=counted[b"k"],
                blobs=counted[b"b"],
                cells=counted[b"c"],
                size_bytes=sum(file.stat().st_size for file in files),
            )

        return await self._read(job)

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the disk is, how large tables and logs are, and whether RocksDB goes on in the background."""
        place = self._place

        def job() -> Vitals:
            disk = disk_of(place.path)
            used, logs = place.sizes()
            return Vitals(
                place=place.path,
                server=f"RocksDB of rocksdict {version('rocksdict')}",
                read_only=disk.read_only,
                used_bytes=used,
                disk_free_bytes=disk.free_bytes,
                disk_total_bytes=disk.total_bytes,
                file_system=disk.file_system,
                log_bytes=logs,
                warnings=(*disk.warnings(place.path), *place.complaints()),
            )

        async with within(timeout_s, place.path):
            return await self._read(job)

    async def scrub(self) -> None:
        """Write everything anew without what was removed, and open it anew: the list of tables names keys too."""

        def job() -> None:
            self._place.compact()
            self._place.reopen()

        await self._change(job)

    async def backup(self, path: str) -> None:
        """Write a copy to a new folder while writers go on. Raises InvalidKey if there is something of that name."""
        await self._read(lambda: self._place.checkpoint(path))

    async def recover(self) -> None:
        """Close the database and open it anew, so that what is read is what is on the disk."""

        def job() -> None:
            if self._place.broken:
                self._place.reopen()

        await self._change(job)

    async def close(self) -> None:
        """Let go; the last handle of the process closes the database. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        for event in self._events:
            event.set()
        await apart(places.release, self._place)


def _found(walk: Any, key: bytes) -> bytes | None:
    """Return what stands under a key as of a snapshot, by a walk over it."""
    walk.seek(key)
    if walk.valid():
        return walk.value() if walk.key() == key else None
    walk.status()
    return None


def _head(stream: str, value: bytes | None) -> Head:
    if value is None:
        return Head(stream)
    top = top_of(value)
    return Head(stream, top.version, top.chain, top.kind)


def _record(stream: str, version: int, value: bytes) -> Record:
    e = entry_of(value)
    return Record(stream, version, e.time, e.author, e.message, e.kind, e.body, e.chain, e.position)


def _gone(stream: str, version: int) -> CorruptRecord:
    return CorruptRecord(
        f"{stream} v{version} is in the feed but not there; `quire verify` lists all damage, a backup has the rest",
        at=f"{stream}@{version}",
    )
