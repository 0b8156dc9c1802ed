"""One SQLite file: the default backend.

1. One thread writes, on its own connection (_sqlite_write.py); a call of `commit` is one transaction.
2. Reads go to other threads and connections (_sqlite_read.py), beside the writer.
3. `latest` is asked on a connection of the event loop's own thread: it comes before reads and must be quick.
4. Connections belong to the process that opened them: SQLite's locks do not survive a fork.
5. Files that are not those that were opened are neither written nor read any more (_sqlite_presence.py).
6. Where file systems cannot share memory between processes there is no write-ahead log, but a rollback journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import apsw

from quire import forks
from quire.errors import Closed, CorruptRecord, FilesChanged, InvalidKey, StorageError, StorageUnavailable
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _sqlite_file as files
from quire.storage import _sqlite_presence as presences
from quire.storage import _sqlite_read as ask
from quire.storage._sqlite_presence import Presence
from quire.storage._sqlite_worker import Db, Worker
from quire.storage._sqlite_write import Writer
from quire.storage._vitals import bytes_of, disk_of, file_system_of, shares_memory, within
from quire.storage._waiting import Polling
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Tally, Vitals
from quire.threads import apart

log = logging.getLogger("quire.storage")

T = TypeVar("T")

_READERS = 2
_PROBE_S = 0.005
"""How long the event loop may be held up by a lock; then a reader's thread waits instead."""
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
        self._path = path = path if vfs else os.path.realpath(path)  # SQLite would make what a link names 0644
        kind = "" if vfs else file_system_of(path)
        self._wal = wal = shares_memory(kind)
        self._journal = "journal: WAL" if wal else f"journal: TRUNCATE, as {kind} cannot share memory"
        self.capabilities = Capabilities(
            backend="sqlite",
            durability="power" if durability == "full" else "process",
            multi_process=True,
            backup=True,
            note=f"{_NOTES[durability]}; {self._journal}",
        )
        self._namespace = namespace
        self._now_ms = now_ms
        self._vfs = vfs
        self._durability = durability
        self._pid = os.getpid()
        self._closed = False
        self._connect = partial(files.connect, path, durability, vfs)
        self._log = Writer(path, namespace, now_ms, wal=wal)
        translate = partial(files.ours, path=path)
        self._writer = Worker("quire-writer", self._connect_writer, translate, rest=self._log.rest)
        self._readers = [Worker(f"quire-reader-{i}", self._connect_reader, translate) for i in range(_READERS)]
        self._probe: Db | None = None
        self._probed: int | None = None
        self._latest = 0
        self._news = Polling()
        self._reopening = asyncio.Lock()
        forks.keep(self)

    async def start(self) -> None:
        """Make, upgrade or refuse the file."""
        logged = await apart(files.claim, self._path, self._vfs)
        if logged and self._wal and self._vfs is None:
            await apart(presences.await_log, self._path)
        await self._begin()

    async def _begin(self) -> None:
        """Open the file in its journal mode, and say that it is in use.

        The connection that switches the mode needs the file for itself, so it comes before that; what it opened may be gone
        by then, so it is closed again.
        """
        await self._writer.run(self._enter)
        if self._log.presence is not None:
            try:
                await self._writer.do(self._note)
            except BaseException as error:
                await self._writer.run(partial(self._give_up, str(error)))
                raise

    def _enter(self) -> None:
        if not self._wal:
            files.end_log(self._path)
        db = files.connect(self._path, self._durability, self._vfs)
        try:
            files.prepare(db, self._path, wal=self._wal)
            if self._vfs is None:
                self._log.presence = presences.enter(self._path, wal=self._wal)
                self._log.gone = ""
        finally:
            db.close(True)

    def _give_up(self, why: str) -> None:
        """Close what was opened, before anything is written there: the files are not in a state to be used."""
        assert self._log.presence is not None
        self._log.gone = why
        self._leave(self._log.presence)

    def _note(self, db: Db) -> None:
        assert self._log.presence is not None
        ask.newest(db)  # opens the log
        presences.note(self._log.presence)

    def _connect_writer(self) -> Db:
        db = self._connected()
        self._log.watch_log(db)
        return db

    def _connect_reader(self, busy_s: float | None = None) -> Db:
        db = self._connected(busy_s)
        db.pragma("query_only", "ON")
        return db

    def _connected(self, busy_s: float | None = None) -> Db:
        db = self._connect(wal=self._wal, busy_s=busy_s)
        try:
            if self._log.presence is not None:
                self._log.presence.check()
        except BaseException:
            db.close(True)
            raise
        return db

    async def _look(self) -> None:
        """See that the files are those that were opened, unless that was done just now; put back a log that was removed.

        Raises FilesChanged, StorageUnavailable.
        """
        presence = self._log.presence
        if presence is not None and presence.cut is not None:
            raise FilesChanged(presence.cut)
        if presence is not None and not self._in_place():
            async with self._reopening:
                if not self._in_place():
                    await self._reopen()

    def _in_place(self) -> bool:
        presence = self._log.presence
        if presence is None or self._log.gone:
            return False
        try:
            presence.look()
        except FilesChanged:
            raise
        except StorageUnavailable:
            return False
        return True

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)

    async def _read(self, job: Callable[[Db], T]) -> T:
        self._alive()
        await self._look()
        return await min(self._readers, key=lambda r: r.waiting).do(job)

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

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads, in SQL."""
        return await self._read(lambda db: ask.tally(db, self._namespace, prefix, but))

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        return await self._read(lambda db: ask.feed(db, self._namespace, after, limit))

    async def latest(self) -> int:
        """The newest position of the file. A few microseconds while nobody writes."""
        self._alive()
        await self._look()
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
            self._alive()
            return await min(self._readers, key=lambda r: r.waiting).run(self._surroundings)

    def _surroundings(self) -> Vitals:
        disk = disk_of(self._path)
        file, log = bytes_of(self._path), bytes_of(f"{self._path}-wal")
        release = apsw.sqlite_lib_version()
        warnings = list(disk.warnings(self._path))
        presence = self._log.presence
        said = self._log.gone or (None if presence is None else presence.trouble())
        if said is not None:
            warnings.append(f"{said}; put it back, or close the store everywhere and open what is to be used")
        if tuple(map(int, release.split("."))) < files.SOUND:
            warnings.append(
                f"SQLite {release} can damage a file that several connections write (its write-ahead log is reset too "
                f"early); {'.'.join(map(str, files.SOUND))} or newer is needed: upgrade the package apsw"
            )
        return Vitals(
            place=self._path,
            server=f"SQLite {release}, {self._journal}",
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
        await self._look()
        await apart(self._copy, path)

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
        async with self._reopening:
            await self._reopen()
        await self._writer.do(self._log.settle)

    async def _reopen(self) -> None:
        self._close_probe()
        await asyncio.gather(*(reader.disconnect() for reader in self._readers))
        self._alive()  # a writer that was stopped meanwhile would never answer
        await self._writer.run(self._step_back)
        self._alive()
        await self._begin()

    def _step_back(self) -> None:
        """Close the last connection, after bringing home what only it can read. In the writer's thread."""
        presence = self._log.presence
        if presence is None or self._log.gone:
            self._writer.close()
            if presence is not None:
                presence.check_file()
            return
        self._rescue(presence)
        self._log.gone = f"{self._path} could not be opened again after a failed write; see its disk, then write again"
        self._leave(presence)

    def _rescue(self, presence: Presence) -> None:
        db = self._writer.connection
        if db is not None:
            presence.rescue(db)
        elif (said := presence.trouble()) is not None:
            raise StorageUnavailable(f"{said}; close the store in all processes, then open it again")

    def _leave(self, presence: Presence) -> None:
        presences.leave(presence)
        try:
            self._writer.close()
        finally:
            presences.left(presence)

    async def close(self) -> None:
        """Finish what was begun, release everything. In the child of a fork it does nothing.

        Where the files were removed or replaced, what only this process can read goes back if it can; else it is logged.
        """
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._close_probe()
        self._news.wake()
        await apart(self._stop)

    def _stop(self) -> None:
        for reader in self._readers:
            reader.stop()
        self._writer.end()  # it is closed last: it copies the log into the file
        presence = self._log.presence
        if presence is None or self._log.gone:
            self._writer.close()
            return
        try:
            with files.translated(self._path):
                self._rescue(presence)
        except StorageError as error:
            log.warning("closing: %s", error)
        finally:
            self._leave(presence)

    def _close_probe(self) -> None:
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close(True)
