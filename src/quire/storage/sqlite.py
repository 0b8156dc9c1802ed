"""One SQLite file: the default backend.

1. One thread writes, on its own connection; a call of `commit` is one transaction and one fsync.
2. Reads go to other threads and connections; the write-ahead log lets them run beside the writer.
3. Expected heads are checked inside the write transaction. What this process knows about heads is kept between
   transactions as long as `PRAGMA data_version` says that nobody else wrote.
4. A failed transaction leaves the writer unusable until `recover` has reopened the file: only then is known what of
   it is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import apsw
from blake3 import blake3

from quire.errors import Closed, CorruptRecord, InvalidKey, StorageUnavailable
from quire.failpoints import hit
from quire.model import GENESIS, Cell, Head, Keyframe, Record
from quire.storage._sqlite_file import connect, create_file, prepare, translated
from quire.storage.base import Capabilities, CellWrite, Committed, Item, Outcome, Refused, StorageStats
from quire.storage.codec import pack, unpack

T = TypeVar("T")

_READERS = 2
_HEADS_MAX = 100_000
"""Known heads kept between transactions; beyond that they are forgotten and asked for again."""
_COLUMNS = "version, time, author, message, kind, body, chain, position"
_STREAM = "(SELECT id FROM streams WHERE namespace = ? AND name = ?)"


async def open_sqlite(
    path: str,
    *,
    namespace: str,
    durability: str = "full",
    vfs: str | None = None,
    now_ms: Callable[[], int] | None = None,
) -> SqliteBackend:
    """Open a file as a store, making it if it is absent.

    durability: "full" survives power loss; "relaxed" may lose the last commits to it.  vfs: a SQLite VFS, for tests.
    Raises IncompatibleFormat, StorageUnavailable, CorruptRecord.
    """
    backend = SqliteBackend(path, namespace, durability, vfs, now_ms or (lambda: time.time_ns() // 1_000_000))
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend


class _Worker:
    """A thread with a connection of its own that does one job after the other."""

    def __init__(self, name: str, connection: Callable[[], apsw.Connection], path: str) -> None:
        self._connection = connection
        self._path = path
        self._jobs: SimpleQueue[tuple[Callable[[apsw.Connection], Any] | None, Any, Any]] = SimpleQueue()
        self._db: apsw.Connection | None = None
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[apsw.Connection], T] | None) -> asyncio.Future[T]:
        """Queue a job; None closes the connection, the next job opens a new one."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((job, loop, future))
        return future

    def stop(self) -> None:
        self._jobs.put((None, None, None))
        self._thread.join()

    def _work(self) -> None:
        while True:
            job, loop, future = self._jobs.get()
            result, error = None, None
            try:
                if job is None:
                    if self._db is not None:
                        self._db.close(True)
                        self._db = None
                else:
                    with translated(self._path):
                        if self._db is None:
                            self._db = self._connection()
                        result = job(self._db)
            except BaseException as caught:  # noqa: BLE001 - handed to whoever asked
                error = caught
            if loop is None:
                return
            try:
                loop.call_soon_threadsafe(_answer, future, result, error)
            except RuntimeError:
                continue  # the loop is gone, and with it everybody who could be told


def _answer(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class SqliteBackend:
    """A namespace of a SQLite file."""

    def __init__(
        self, path: str, namespace: str, durability: str, vfs: str | None, now_ms: Callable[[], int]
    ) -> None:
        self._path = path
        self._namespace = namespace
        self._durability = durability
        self._vfs = vfs
        self._now_ms = now_ms
        self._pid = os.getpid()
        self._closed = False
        self._broken = False
        self._writer: _Worker | None = None
        self._readers: list[_Worker] = []
        self._turn = 0
        self._probe: apsw.Connection | None = None
        self._probed: int | None = None
        self._latest = 0
        self._woken: set[asyncio.Event] = set()
        # the writer thread's own memory, valid while data_version stands
        self._data_version: int | None = None
        self._heads: dict[str, tuple[int, int, bytes]] = {}
        self._position: int | None = None
        full = durability == "full"
        self.capabilities = Capabilities(
            backend="sqlite",
            durability="power" if full else "process",
            multi_process=True,
            backup=True,
            note="every acknowledged write is on the disk"
            if full
            else "relaxed: the last commits can be lost when power fails",
        )

    async def start(self) -> None:
        """Open the connections."""
        await asyncio.to_thread(self._create)
        self._writer = _Worker("quire-writer", self._connect, self._path)
        self._readers = [_Worker(f"quire-reader-{i}", self._connect_reader, self._path) for i in range(_READERS)]

    def _create(self) -> None:
        if self._vfs is None:
            create_file(self._path)
        with translated(self._path):
            db = self._connect()
            try:
                prepare(db, self._path)
            finally:
                db.close()
            self._probe = self._connect_reader()

    def _connect(self) -> apsw.Connection:
        return connect(self._path, self._durability, self._vfs)

    def _connect_reader(self) -> apsw.Connection:
        db = self._connect()
        db.pragma("query_only", "ON")
        return db

    def _write(self, job: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        self._alive()
        assert self._writer is not None
        return self._writer.do(job)

    def _read(self, job: Callable[[apsw.Connection], T]) -> asyncio.Future[T]:
        self._alive()
        self._turn = (self._turn + 1) % _READERS
        return self._readers[self._turn].do(job)

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        if os.getpid() != self._pid:
            raise Closed("this store was opened before a fork; open it anew in the child process")

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in one transaction."""
        outcomes = await self._write(lambda db: self._commit(db, items))
        for event in self._woken:
            event.set()
        return outcomes

    def _commit(self, db: apsw.Connection, items: Sequence[Item]) -> list[Outcome]:
        if self._broken:
            raise StorageUnavailable(f"{self._path}: an earlier commit failed and has to be cleared up first")
        hit("commit:begin")
        try:
            db.execute("BEGIN IMMEDIATE")
            self._refresh(db)
            rows: list[tuple[Any, ...]] = []
            outcomes = [self._place(db, item, rows) for item in items]
            db.executemany(
                "INSERT INTO records (position, stream, version, time, author, message, kind, body, chain)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            hit("commit:before")
            db.execute("COMMIT")
            hit("commit:after")
        except BaseException as error:
            self._forget()
            # a lock that was not had is no failure: nothing was begun
            self._broken = not isinstance(error, apsw.BusyError) or bool(db.in_transaction)
            self._roll_back(db)
            raise
        return outcomes

    def _refresh(self, db: apsw.Connection) -> None:
        """Forget what is known about heads if anybody else wrote since."""
        version = db.execute("PRAGMA data_version").get
        if version != self._data_version or self._position is None or len(self._heads) > _HEADS_MAX:
            self._forget()
            self._data_version = version
            self._position = _top(db)

    def _forget(self) -> None:
        self._heads.clear()
        self._position = None

    def _roll_back(self, db: apsw.Connection) -> None:
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except apsw.Error:
            self._broken = True  # `recover` opens a new connection

    def _place(self, db: apsw.Connection, item: Item, rows: list[tuple[Any, ...]]) -> Outcome:
        """Check one item; add its records to `rows` and write its cells if everything it expects holds."""
        moved: list[Head] = []
        for expect in item.expect:
            _, version, chain = self._head(db, expect.stream)
            if version != expect.version or chain != expect.chain:
                moved.append(Head(expect.stream, version, chain))
        cells = tuple(c.name for c in item.cells if self._value(db, c.name) != c.expected)
        if moved or cells:
            return Refused(tuple(moved), cells)
        for write in item.cells:
            self._set(db, write)
        if not item.records:
            return Committed(0, 0)
        position = self._position or 0
        first = position + 1
        for r in item.records:
            position += 1
            stream = self._heads[r.stream][0] or self._new_stream(db, r.stream)
            self._heads[r.stream] = (stream, r.version, r.chain)
            rows.append((position, stream, r.version, r.time, r.author, r.message, r.kind, pack(r.body), r.chain))
        self._position = position
        return Committed(first, position)

    def _head(self, db: apsw.Connection, stream: str) -> tuple[int, int, bytes]:
        """Return id (0: no such stream), version and chain."""
        known = self._heads.get(stream)
        if known is None:
            found = db.execute("SELECT id FROM streams WHERE namespace = ? AND name = ?", (self._namespace, stream)).get
            known = (0, 0, GENESIS)
            if found is not None:
                last = db.execute(
                    "SELECT version, chain FROM records WHERE stream = ? ORDER BY version DESC LIMIT 1", (found,)
                ).fetchone()
                known = (found, *last) if last else (found, 0, GENESIS)
            self._heads[stream] = known
        return known

    def _new_stream(self, db: apsw.Connection, stream: str) -> int:
        return db.execute("INSERT INTO streams (namespace, name) VALUES (?, ?) RETURNING id", (self._namespace, stream)).get

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        query = (
            f"SELECT {_COLUMNS} FROM records WHERE stream = {_STREAM}"  # noqa: S608 - constants only
            " AND version > ? AND version <= ? ORDER BY version LIMIT ?"
        )
        bound = (self._namespace, stream, after, 2**62 if upto is None else upto, -1 if limit is None else limit)
        return await self._read(lambda db: [_record(stream, row) for row in db.execute(query, bound)])

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream."""
        query = (
            f"SELECT version, chain, kind FROM records WHERE stream = {_STREAM}"  # noqa: S608 - constants only
            " ORDER BY version DESC LIMIT 1"
        )

        def job(db: apsw.Connection) -> list[Head]:
            found = ((s, db.execute(query, (self._namespace, s)).fetchone()) for s in streams)
            return [Head(s, *row) if row else Head(s) for s, row in found]

        return await self._read(job)

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams, sorted."""

        def job(db: apsw.Connection) -> list[str]:
            names: list[str] = []
            rows = db.execute(
                "SELECT name FROM streams WHERE namespace = ? AND name >= ? AND name > ? ORDER BY name"
                " LIMIT ?",
                (self._namespace, prefix, after, -1 if limit is None else limit),
            )
            for (name,) in rows:
                if not name.startswith(prefix):
                    break  # sorted: no later one does
                names.append(name)
            return names

        return await self._read(job)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace in commit order."""
        query = (
            f"SELECT name, {_COLUMNS} FROM records CROSS JOIN streams ON streams.id = records.stream"  # noqa: S608
            " WHERE position > ? AND namespace = ? ORDER BY position LIMIT ?"
        )
        bound = (after, self._namespace, limit)
        return await self._read(lambda db: [_record(row[0], row[1:]) for row in db.execute(query, bound)])

    async def latest(self) -> int:
        """The newest position; asked on a connection of the loop's own thread, without a detour."""
        self._alive()
        with translated(self._path):
            if self._probe is None:
                self._probe = self._connect_reader()
                self._probed = None
            version = self._probe.execute("PRAGMA data_version").get
            if version != self._probed:
                self._latest = max(self._latest, _top(self._probe))
                self._probed = version
        return self._latest

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit: ours wakes at once, other processes' are looked for every 2 to 50 ms."""
        event = asyncio.Event()
        self._woken.add(event)
        until = time.monotonic() + timeout_s
        pause = 0.002
        try:
            while (latest := await self.latest()) <= after and time.monotonic() < until:
                event.clear()
                try:
                    async with asyncio.timeout(min(pause, max(0.0, until - time.monotonic()))):
                        await event.wait()
                except TimeoutError:
                    pause = min(pause * 1.5, 0.05)
            return latest
        finally:
            self._woken.discard(event)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records, never the head's."""
        return await self._change(
            lambda db: _trim(db, self._namespace, stream, upto)
        )

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        await self._change(lambda db: _drop(db, self._namespace, stream))

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it."""
        k = keyframe
        await self._change(
            lambda db: db.execute(
                f"INSERT OR REPLACE INTO keyframes (stream, version, chain, size, digest, body)"  # noqa: S608
                f" SELECT id, ?, ?, ?, ?, ? FROM streams WHERE namespace = ? AND name = ?",
                (k.version, k.chain, k.size, k.digest, k.body, self._namespace, k.stream),
            )
        )

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version."""
        query = (
            f"SELECT version, chain, size, digest, body FROM keyframes WHERE stream = {_STREAM}"  # noqa: S608
            " AND version <= ? ORDER BY version DESC LIMIT 1"
        )
        row = await self._read(
            lambda db: db.execute(query, (self._namespace, stream, 2**62 if at is None else at)).fetchone()
        )
        return None if row is None else Keyframe(stream, *row)

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one."""
        query = f"SELECT version FROM keyframes WHERE stream = {_STREAM} ORDER BY version"  # noqa: S608
        return await self._read(lambda db: [v for (v,) in db.execute(query, (self._namespace, stream))])

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those."""
        query = f"DELETE FROM keyframes WHERE stream = {_STREAM} AND version = ?"  # noqa: S608
        await self._change(lambda db: db.executemany(query, [(self._namespace, stream, v) for v in versions]))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes."""
        await self._change(
            lambda db: db.execute(
                "INSERT OR IGNORE INTO blobs (namespace, name, data) VALUES (?, ?, ?)", (self._namespace, name, data)
            )
        )

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        query = "SELECT data FROM blobs WHERE namespace = ? AND name = ?"
        return await self._read(lambda db: db.execute(query, (self._namespace, name)).get)

    async def drop_blob(self, name: str) -> None:
        """Remove it."""
        await self._change(
            lambda db: db.execute("DELETE FROM blobs WHERE namespace = ? AND name = ?", (self._namespace, name))
        )

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names, sorted."""
        query = "SELECT name FROM blobs WHERE namespace = ? AND name > ? ORDER BY name LIMIT ?"
        return await self._read(lambda db: [n for (n,) in db.execute(query, (self._namespace, after, limit))])

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None."""
        return await self._read(lambda db: self._cell(db, name))

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Registers by prefix."""

        def job(db: apsw.Connection) -> list[Cell]:
            found: list[Cell] = []
            rows = db.execute(
                "SELECT name, value, expires, sum FROM cells WHERE namespace = ? AND name >= ? AND name > ?"
                " ORDER BY name",
                (self._namespace, prefix, after),
            )
            now = self._now_ms()
            for row in rows:
                if not row[0].startswith(prefix) or len(found) >= limit:
                    break
                cell = _checked(row)
                if cell.expires is None or cell.expires > now:
                    found.append(cell)
            return found

        return await self._read(job)

    def _cell(self, db: apsw.Connection, name: str) -> Cell | None:
        row = db.execute(
            "SELECT name, value, expires, sum FROM cells WHERE namespace = ? AND name = ?", (self._namespace, name)
        ).fetchone()
        if row is None:
            return None
        cell = _checked(row)
        return None if cell.expires is not None and cell.expires <= self._now_ms() else cell

    def _value(self, db: apsw.Connection, name: str) -> bytes | None:
        cell = self._cell(db, name)
        return None if cell is None else cell.value

    def _set(self, db: apsw.Connection, write: CellWrite) -> None:
        if write.value is None:
            db.execute("DELETE FROM cells WHERE namespace = ? AND name = ?", (self._namespace, write.name))
            return
        expires = None if write.ttl_ms is None else self._now_ms() + write.ttl_ms
        db.execute(
            "INSERT OR REPLACE INTO cells (namespace, name, value, expires, sum) VALUES (?, ?, ?, ?, ?)",
            (self._namespace, write.name, write.value, expires, _sum(write.name, write.value, expires)),
        )

    # care

    async def check(self) -> list[str]:
        """Problems in SQLite's own structures and in the order of positions."""

        def job(db: apsw.Connection) -> list[str]:
            problems = [f"{self._path}: {row[0]}" for row in db.execute("PRAGMA integrity_check") if row[0] != "ok"]
            low, high, count = db.execute("SELECT min(position), max(position), count(*) FROM records").fetchone()
            removed = db.execute("SELECT value FROM meta WHERE key = 'removed'").get or 0
            if count and (low != 1 or high != count) and not removed:
                problems.append(f"{self._path}: positions run from {low} to {high}, but there are {count} records")
            for row in db.execute("SELECT name, value, expires, sum FROM cells"):
                try:
                    _checked(row)
                except CorruptRecord as error:
                    problems.append(str(error))
            return problems

        return await self._read(job)

    async def stats(self) -> StorageStats:
        """Counts and size."""

        def job(db: apsw.Connection) -> StorageStats:
            def count(query: str) -> int:
                return db.execute(query, (self._namespace,)).get

            ours = "(SELECT id FROM streams WHERE namespace = ?)"
            size = db.pragma("page_count") * db.pragma("page_size")
            wal = Path(self._path + "-wal")
            return StorageStats(
                streams=count("SELECT count(*) FROM streams WHERE namespace = ?"),
                records=count(f"SELECT count(*) FROM records WHERE stream IN {ours}"),  # noqa: S608
                keyframes=count(f"SELECT count(*) FROM keyframes WHERE stream IN {ours}"),  # noqa: S608
                blobs=count("SELECT count(*) FROM blobs WHERE namespace = ?"),
                cells=count("SELECT count(*) FROM cells WHERE namespace = ?"),
                size_bytes=size + (wal.stat().st_size if wal.exists() else 0),
            )

        return await self._read(job)

    async def backup(self, path: str) -> None:
        """Copy to a new file while writers go on; it appears under its name only when it is whole."""
        self._alive()
        await asyncio.to_thread(self._backup, path)

    def _backup(self, path: str) -> None:
        if Path(path).exists():
            raise InvalidKey(f"{path} exists; a backup is written to a new file")
        part = f"{path}.part-{os.getpid()}"
        create_file(part)
        try:
            with translated(path):
                source, target = self._connect_reader(), apsw.Connection(part)
                try:
                    with target.backup("main", source, "main") as copy:
                        while not copy.done:
                            copy.step(1000)
                    target.pragma("journal_mode", "DELETE")
                finally:
                    target.close()
                    source.close()
            Path(part).rename(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    async def recover(self) -> None:
        """Reopen the file so that what is read is what is on the disk.

        A commit that failed in fsync may still sit in the page cache. Copying the log into the file and syncing that
        decides: then it is durable, or it is gone.
        """
        self._alive()
        if self._probe is not None:
            self._probe.close(True)
            self._probe = None
        assert self._writer is not None
        for worker in (*self._readers, self._writer):
            await worker.do(None)
        await self._writer.do(self._settle)

    def _settle(self, db: apsw.Connection) -> None:
        self._forget()
        prepare(db, self._path)
        busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:  # a reader of another process is in the way: a commit that succeeds decides just as well
            db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('recovered', ?)", (self._now_ms(),))
        self._broken = False

    async def close(self) -> None:
        """Release everything."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() == self._pid:
            await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        if self._probe is not None:
            self._probe.close(True)
        for worker in (*self._readers, self._writer):
            if worker is not None:
                worker.stop()

    async def _change(self, job: Callable[[apsw.Connection], T]) -> T:
        """Run a job of the writer in a transaction of its own."""

        def transaction(db: apsw.Connection) -> T:
            if self._broken:
                raise StorageUnavailable(f"{self._path}: an earlier commit failed and has to be cleared up first")
            try:
                db.execute("BEGIN IMMEDIATE")
                result = job(db)
                db.execute("COMMIT")
            except BaseException:
                self._roll_back(db)
                raise
            finally:
                self._forget()
            return result

        return await self._write(transaction)


def _record(stream: str, row: tuple[Any, ...]) -> Record:
    version, when, author, message, kind, body, chain, position = row
    if type(version) is not int or type(chain) is not bytes or type(position) is not int:
        raise CorruptRecord(f"{stream}: a record holds values of the wrong type; run `quire verify`", at=stream)
    return Record(stream, version, when, author, message, kind, unpack(body), chain, position)


def _top(db: apsw.Connection) -> int:
    """Return the newest position ever given."""
    newest = db.execute("SELECT max(position) FROM records").get or 0
    floor = db.execute("SELECT value FROM meta WHERE key = 'position'").get or 0
    return max(newest, floor)


def _keep_top(db: apsw.Connection) -> None:
    """Before records go: remember the newest position, so that it is not given again."""
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('position', ?), ('removed', 1)", (_top(db),))


def _trim(db: apsw.Connection, namespace: str, stream: str, upto: int) -> int:
    _keep_top(db)
    found = db.execute("SELECT id FROM streams WHERE namespace = ? AND name = ?", (namespace, stream)).get
    newest = db.execute("SELECT max(version) FROM records WHERE stream = ?", (found,)).get
    if newest is None:
        return 0
    db.execute("DELETE FROM records WHERE stream = ? AND version <= ?", (found, min(upto, newest - 1)))
    return db.changes()


def _drop(db: apsw.Connection, namespace: str, stream: str) -> None:
    _keep_top(db)
    found = db.execute("SELECT id FROM streams WHERE namespace = ? AND name = ?", (namespace, stream)).get
    if found is not None:
        db.execute("DELETE FROM records WHERE stream = ?", (found,))
        db.execute("DELETE FROM keyframes WHERE stream = ?", (found,))
        db.execute("DELETE FROM streams WHERE id = ?", (found,))


def _sum(name: str, value: bytes, expires: int | None) -> bytes:
    return blake3(b"%b\0%b\0%d" % (name.encode(), value, -1 if expires is None else expires)).digest()[:8]


def _checked(row: tuple[Any, ...]) -> Cell:
    name, value, expires, total = row
    if _sum(name, value, expires) != total:
        raise CorruptRecord(f"the cell {name} does not match its checksum", at=name)
    return Cell(name, value, expires)

