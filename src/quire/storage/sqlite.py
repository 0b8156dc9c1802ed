"""One SQLite file: the default backend.

1. One thread writes, on its own connection (_sqlite_write.py); a call of `commit` is one transaction.
2. Reads go to other threads and connections (_sqlite_read.py), beside the writer.
3. `latest` is asked on a connection of the event loop's own thread: it comes before reads and must be quick.
4. Connections belong to the process that opened them: SQLite's locks do not survive a fork.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import apsw

from quire.errors import Closed, CorruptRecord, InvalidKey
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _sqlite_file as files
from quire.storage import _sqlite_read as ask
from quire.storage._sqlite_worker import Db, Worker
from quire.storage._sqlite_write import Writer
from quire.storage._vitals import bytes_of, disk_of, within
from quire.storage._waiting import Polling
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Vitals

T = TypeVar("T")

_READERS = 2
_PROBE_S = 0.005
"""How long the event loop may be held up by a lock; then a reader's thread waits instead."""
"""How often commits of other processes are looked for."""
_NOTES = {
    "full": "every acknowledged write is on the disk",
    "relaxed": "relaxed: the last commits can be lost when power fails",
}


async def open_sqlite(
    path: str,
    *,
    namespace: str,
    durability: str = "full",
    vfs: str | None = None,
    now_ms: Callable[[], int] | None = None,
) -> SqliteBackend:
    """Open a file as a store, making it if it is absent or empty.

    path: its folder must exist.  namespace: what is seen of it.
    durability: "full" survives power loss; "relaxed" may lose the last commits to it.
    vfs: name of a SQLite VFS, for tests.  now_ms: the clock that cells expire by, UTC milliseconds.
    Raises InvalidKey, IncompatibleFormat, StorageUnavailable, StorageTimeout, CorruptRecord.
    """
    if durability not in _NOTES:
        raise InvalidKey(f"durability {durability!r}: it is full or relaxed")
    clock = now_ms or (lambda: time.time_ns() // 1_000_000)
    backend = SqliteBackend(path, namespace, durability, vfs, clock)
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend


class SqliteBackend:
    """A namespace of a SQLite file. Made by `open_sqlite`."""

    def __init__(self, path: str, namespace: str, durability: str, vfs: str | None, now_ms: Callable[[], int]) -> None:
        self.capabilities = Capabilities(
            backend="sqlite",
            durability="power" if durability == "full" else "process",
            multi_process=True,
            backup=True,
            note=_NOTES[durability],
        )
        self._path = path = path if vfs else os.path.realpath(path)  # SQLite would make what a link names 0644
        self._namespace = namespace
        self._now_ms = now_ms
        self._vfs = vfs
        self._pid = os.getpid()
        self._closed = False
        self._connect = partial(files.connect, path, durability, vfs)
        self._log = Writer(path, namespace, now_ms)
        translate = partial(files.ours, path=path)
        self._writer = Worker("quire-writer", self._connect, translate, rest=_rest)
        self._readers = [Worker(f"quire-reader-{i}", self._connect_reader, translate) for i in range(_READERS)]
        self._probe: Db | None = None
        self._probed: int | None = None
        self._latest = 0
        self._news = Polling()

    async def start(self) -> None:
        """Make, upgrade or refuse the file."""
        await asyncio.to_thread(files.claim, self._path, self._vfs)
        await self._writer.do(lambda db: files.prepare(db, self._path))

    def _connect_reader(self, busy_s: float | None = None) -> Db:
        db = self._connect(busy_s=busy_s)
        db.pragma("query_only", "ON")
        return db

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        if os.getpid() != self._pid:
            raise Closed("this store was opened before a fork; open it anew in the child process")

    def _read(self, job: Callable[[Db], T]) -> asyncio.Future[T]:
        self._alive()
        return min(self._readers, key=lambda r: r.waiting).do(job)

    def _change(self, job: Callable[[Db], T]) -> asyncio.Future[T]:
        self._alive()
        return self._writer.do(lambda db: self._log.change(db, job))

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in one transaction."""
        self._alive()
        outcomes = await self._writer.do(lambda db: self._log.commit(db, items))
        self._news.wake()
        return outcomes

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        return await self._read(
            lambda db: ask.records(db, self._namespace, stream, after=after, upto=upto, limit=limit)
        )

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment: never half of an item."""

        def job(db: Db) -> list[Head]:
            with ask.one_moment(db):
                return ask.heads(db, self._namespace, streams)

        return await self._read(job)

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        return await self._read(lambda db: ask.names(db, self._namespace, prefix, after, limit))

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        return await self._read(lambda db: ask.feed(db, self._namespace, after, limit))

    async def latest(self) -> int:
        """The newest position of the file. A few microseconds while nobody writes."""
        self._alive()
        try:
            if self._probe is None:
                self._probe = self._connect_reader(_PROBE_S)
                self._probed = None
            seen = self._probe.execute("PRAGMA data_version").get
            if seen != self._probed:
                self._latest = ask.newest(self._probe)
                self._probed = seen
        except apsw.BusyError:
            return await self._read(ask.newest)
        except apsw.Error as error:
            raise files.ours(error, self._path) from error
        return self._latest

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit: our own wakes at once, others' are looked for every 2 to 50 ms."""
        return await self._news.past(after, self.latest, timeout_s)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many."""
        return await self._change(lambda db: self._log.trim(db, stream, upto))

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        await self._change(lambda db: self._log.drop(db, stream))

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, in one transaction; return how many were found."""
        return await self._change(lambda db: self._log.rewrite(db, records))

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        await self._change(lambda db: self._log.put_keyframe(db, keyframe))

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at. Raises CorruptRecord if it does not match its checksum."""
        return await self._read(lambda db: ask.keyframe(db, self._namespace, stream, at))

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        return await self._read(lambda db: ask.keyframe_versions(db, self._namespace, stream))

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        await self._change(lambda db: self._log.drop_keyframes(db, stream, versions))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content."""
        await self._change(lambda db: self._log.put_blob(db, name, data))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord if they do not match their checksum."""
        return await self._read(lambda db: ask.blob(db, self._namespace, name))

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self._change(lambda db: self._log.drop_blob(db, name))

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        return await self._read(lambda db: ask.blob_names(db, self._namespace, after, limit))

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired. Raises CorruptRecord where its checksum fails."""
        return await self._read(lambda db: ask.cell(db, self._namespace, name, self._now_ms()))

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        return await self._read(
            lambda db: ask.cells(db, self._namespace, prefix, self._now_ms(), after=after, limit=limit)
        )

    # care

    async def check(self) -> list[str]:
        """Problems of the whole file in words: SQLite's structures, gaps in the log, checksums."""

        def job(db: Db) -> list[str]:
            found: list[str] = []
            try:
                with ask.one_moment(db):  # counts of two moments do not add up
                    found.extend(ask.problems(db, self._path))
            except (apsw.Error, UnicodeDecodeError) as error:
                damage = files.ours(error, self._path)
                if not isinstance(damage, CorruptRecord):
                    raise
                found.append(str(damage))  # too damaged to look any further
            return found

        return await self._read(job)

    async def stats(self) -> StorageStats:
        """Counts of this namespace; the size is of the file with its write-ahead log."""
        return await self._read(lambda db: ask.counts(db, self._namespace, self._path))

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the disk is, how large file and write-ahead log are, and which SQLite this is."""
        async with within(timeout_s, self._path):
            return await self._read(lambda _: self._look())

    def _look(self) -> Vitals:
        disk = disk_of(self._path)
        file, log = bytes_of(self._path), bytes_of(f"{self._path}-wal")
        release = apsw.sqlite_lib_version()
        warnings = list(disk.warnings(self._path))
        if file is None:
            warnings.append(f"{self._path} is not there any more; close the store everywhere and restore a backup")
        if tuple(map(int, release.split("."))) < files.SOUND:
            warnings.append(
                f"SQLite {release} can damage a file that several connections write (its write-ahead log is reset too "
                f"early); {'.'.join(map(str, files.SOUND))} or newer is needed: upgrade the package apsw"
            )
        return Vitals(
            place=self._path,
            server=f"SQLite {release}",
            read_only=disk.read_only,
            used_bytes=None if file is None else file + (log or 0),
            disk_free_bytes=disk.free_bytes,
            disk_total_bytes=disk.total_bytes,
            file_system=disk.file_system,
            log_bytes=log or 0,
            warnings=tuple(warnings),
        )

    async def scrub(self) -> None:
        """Write the file anew. Needs as much free space as the file takes."""
        self._alive()
        await self._writer.do(self._log.scrub)

    async def backup(self, path: str) -> None:
        """Copy to a new file while writers go on; it appears under its name only when it is whole.

        Raises InvalidKey if there is a file of that name.
        """
        self._alive()
        await asyncio.to_thread(self._copy, path)

    def _copy(self, path: str) -> None:
        with files.translated(self._path):
            source = self._connect_reader()
            try:
                files.copy(source, path)
            finally:
                source.close(True)

    async def recover(self) -> None:
        """Close every connection and open the file anew, so that what is read is what is on the disk.

        Raises StorageError while that cannot be said; call it again then.
        """
        self._alive()
        self._close_probe()
        await asyncio.gather(*(worker.disconnect() for worker in (*self._readers, self._writer)))
        self._alive()  # a writer that was stopped meanwhile would never answer
        await self._writer.do(self._log.settle)

    async def close(self) -> None:
        """Finish what was begun, release everything. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._close_probe()
        self._news.wake()
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        for worker in (*self._readers, self._writer):  # the writer last: it copies the log into the file
            worker.stop()

    def _close_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close(True)


def _rest(db: Db) -> None:
    db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
