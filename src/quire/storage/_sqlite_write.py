"""The writer of a SQLite store: what its thread does, and remembers between transactions.

1. A call of `commit` is one transaction and one fsync; an item that does not fit is left out.
2. What is remembered of heads holds while `PRAGMA data_version` says that nobody else wrote.
3. A commit that failed in the driver breaks the writer: only after `settle` is known what of it is stored.
4. What is written is written in this handle's turn, and acknowledged when the files are found in place after it: see
   _sqlite_presence.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import apsw
import msgspec

from quire.errors import FilesChanged, StorageError, StorageTimeout, StorageUnavailable
from quire.failpoints import hit
from quire.model import Head, Keyframe, Record
from quire.storage._sqlite_presence import Presence
from quire.storage._sqlite_read import FLOOR, REMOVED, cell, cell_sum, heads, keyframe_sum, newest
from quire.storage._sqlite_worker import Db, patience
from quire.storage.base import CellWrite, Committed, Item, Outcome, Refused
from quire.storage.codec import checksum, pack

T = TypeVar("T")

_HEADS_MAX = 100_000
"""Heads remembered between transactions; beyond that all are forgotten and asked for again."""
_EXPIRED_MAX = 2
"""Expired cells removed for each one written with an expiry: more than come, so they cannot pile up."""
_SETTLE_S = 1.0
"""How long recovery waits for readers of other processes before it goes another way."""

WAL_PAGES = 1000
"""Pages of the write-ahead log after which a commit copies it into the file; quiet moments do so before. A log that
stays small is overwritten in place, which is quicker to sync than one that grows."""

_NO_RECORDS = Committed(0, 0)
_INSERT = (
    "INSERT INTO records (position, stream, version, time, author, message, kind, body, chain)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REWRITE = (
    "UPDATE records SET body = ? WHERE stream = (SELECT id FROM streams WHERE namespace = ? AND name = ?)"
    " AND version = ? AND chain = ?"
)
_ID = "SELECT id FROM streams WHERE namespace = ? AND name = ?"
_COUNT_UP = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = value + excluded.value"
_SWEEP = (
    "DELETE FROM cells WHERE (namespace, name) IN"
    " (SELECT namespace, name FROM cells WHERE expires <= ? ORDER BY expires LIMIT ?)"
)


class _Stream(msgspec.Struct, gc=False):
    """What is known of a stream: its id (0: none yet) and its head."""

    id: int
    version: int
    chain: bytes
    kind: str


class Writer:
    """Used in the writer's thread only."""

    def __init__(self, path: str, namespace: str, now_ms: Callable[[], int], *, wal: bool = True) -> None:
        self._path = path
        self.presence: Presence | None = None
        """The files as they were opened; None under a VFS for tests."""
        self.gone = ""
        """Why `presence` was given back and the files could not be opened again; "" while they are open."""
        self._wal = wal
        self.log_pages = 0
        """Of the write-ahead log after the newest transaction."""
        self._namespace = namespace
        self._now_ms = now_ms
        self.broken = False
        self._seen: int | None = None
        """The data_version that what follows belongs to; None: nothing is known."""
        self._heads: dict[str, _Stream] = {}
        self._position = 0

    def commit(self, db: Db, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, in one transaction."""
        if self.broken:
            raise StorageUnavailable(f"{self._path}: an earlier commit failed; `recover` has to settle it first")
        with self._turn():
            outcomes = self._commit(db, items)
        self._confirm(db)
        hit("commit:after")
        return outcomes

    def _commit(self, db: Db, items: Sequence[Item]) -> list[Outcome]:
        try:
            db.execute("BEGIN IMMEDIATE")
            hit("commit:begin")
            self._refresh(db)
            rows: list[tuple[Any, ...]] = []
            outcomes = [self._place(db, item, rows) for item in items]
            hit("commit:insert")
            db.executemany(_INSERT, rows)
            hit("commit:before")
            db.execute("COMMIT")
        except BaseException as error:
            # a lock that was not had is no failure: nothing was begun
            self.broken = isinstance(error, apsw.Error) and not isinstance(error, apsw.BusyError)
            self._undo(db)
            raise
        return outcomes

    def change(self, db: Db, job: Callable[[Db], T]) -> T:
        """Run a job beside the log in a transaction of its own.

        A failure leaves nothing to settle: what is changed here is disposable, or is asked for again.
        """
        with self._turn():
            try:
                db.execute("BEGIN IMMEDIATE")
                result = job(db)
                db.execute("COMMIT")
            except BaseException:
                self._undo(db)
                raise
        self._confirm(db)
        return result

    @contextmanager
    def _turn(self, wait_s: float | None = None) -> Generator[None]:
        """Be the only one who writes, to files that are those that were opened. Raises FilesChanged, StorageUnavailable."""
        presence = self.presence
        if presence is None:
            yield
            return
        if self.gone:
            raise StorageUnavailable(self.gone)
        with presence.turn(wait_s):
            try:
                presence.check()
            except StorageUnavailable as error:
                self.broken = not isinstance(error, FilesChanged)  # a log that is gone is put back by `recover`
                raise
            yield

    def _confirm(self, db: Db) -> None:
        """After a transaction: see that it is where others look, and copy a log that grew large into the file.

        A `rescue` that comes between the two finds it in the log that it copies: then this raises, though it is stored.
        """
        if self.presence is not None:
            try:
                self.presence.confirm()
            except StorageUnavailable:
                self.broken = True
                raise
        if self.log_pages >= WAL_PAGES:
            self.log_pages = 0
            with suppress(apsw.Error, StorageError), self._turn():  # as SQLite does it: the next commit tries again
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def watch_log(self, db: Db) -> None:
        """Have SQLite tell how long the log is, instead of copying it without a look at the files."""

        def committed(_db: object, _name: str, pages: int) -> int:
            self.log_pages = pages
            return apsw.SQLITE_OK

        db.set_wal_hook(committed)

    def rest(self, db: Db) -> None:
        """What a quiet moment is for: copy the log into the file, unless another handle is writing."""
        with self._turn(0):
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def settle(self, db: Db) -> None:
        """On a fresh connection after a failed commit: make what is there durable, or see that it is gone.

        What failed to be synced may lie complete in the write-ahead log. Copying the log into the file syncs
        both. Where readers of other processes are in the way, a commit that succeeds is as good: it is
        written over what failed.
        """
        self.forget()
        if self.broken:
            db.set_busy_handler(patience(_SETTLE_S))
            try:
                with self._turn():
                    busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                db.set_busy_handler(patience())
            if busy:
                self.change(db, lambda db: db.execute(_COUNT_UP, ("recoveries", 1)))
            self.broken = False

    def forget(self) -> None:
        """Know nothing about heads and positions any more."""
        self._seen = None
        self._heads.clear()

    def trim(self, db: Db, stream: str, upto: int) -> int:
        """Remove old records of a stream, never the head's; return how many."""
        self.forget()
        found = db.execute(_ID, (self._namespace, stream)).get
        head = db.execute("SELECT max(version) FROM records WHERE stream = ?", (found,)).get
        if head is None:
            return 0
        db.execute("DELETE FROM records WHERE stream = ? AND version <= ?", (found, min(upto, head - 1)))
        return self._removed(db)

    def drop(self, db: Db, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        self.forget()
        found = db.execute(_ID, (self._namespace, stream)).get
        if found is None:
            return
        top = newest(db)
        db.execute("DELETE FROM records WHERE stream = ?", (found,))
        self._removed(db)
        if newest(db) < top:  # the newest record of the store was among them
            db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (FLOOR, top))
        db.execute("DELETE FROM keyframes WHERE stream = ?", (found,))
        db.execute("DELETE FROM streams WHERE id = ?", (found,))

    def rewrite(self, db: Db, records: Sequence[Record]) -> int:
        """Give records another body; return how many were found."""
        count = 0
        for r in records:
            db.execute(_REWRITE, (pack(r.body), self._namespace, r.stream, r.version, r.chain))
            count += db.changes()
        return count

    def scrub(self, db: Db) -> None:
        """Write the file anew, so that no free page holds what was, and empty the write-ahead log."""
        with self._turn():
            db.execute("VACUUM")
            busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._confirm(db)
        if busy:
            raise StorageTimeout(
                f"{self._path}: another process is reading; what was removed is still in the write-ahead log until it "
                "has finished: try again then"
            )

    def put_keyframe(self, db: Db, frame: Keyframe) -> None:
        """Keep a keyframe of a stream that is there."""
        f = frame
        total = keyframe_sum(f.version, f.size, f.body)
        db.execute(
            "INSERT OR REPLACE INTO keyframes (stream, version, chain, size, digest, body, sum)"
            " SELECT id, ?, ?, ?, ?, ?, ? FROM streams WHERE namespace = ? AND name = ?",
            (f.version, f.chain, f.size, f.digest, f.body, total, self._namespace, f.stream),
        )

    def drop_keyframes(self, db: Db, stream: str, versions: Sequence[int]) -> None:
        """Remove keyframes."""
        found = db.execute(_ID, (self._namespace, stream)).get
        db.executemany("DELETE FROM keyframes WHERE stream = ? AND version = ?", [(found, v) for v in versions])

    def put_blob(self, db: Db, name: str, data: bytes) -> None:
        """Keep bytes."""
        db.execute(
            "INSERT OR IGNORE INTO blobs (namespace, name, body, sum) VALUES (?, ?, ?, ?)",
            (self._namespace, name, data, checksum(name.encode(), data)),
        )

    def drop_blob(self, db: Db, name: str) -> None:
        """Remove bytes."""
        db.execute("DELETE FROM blobs WHERE namespace = ? AND name = ?", (self._namespace, name))

    def _undo(self, db: Db) -> None:
        self.forget()
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except apsw.Error:
            self.broken = True  # `recover` opens a new connection

    def _refresh(self, db: Db) -> None:
        """Forget what is known if another connection wrote since."""
        seen = db.execute("PRAGMA data_version").get
        if seen != self._seen or len(self._heads) > _HEADS_MAX:
            self.forget()
            if not self._wal and db.pragma("journal_mode") == "wal":
                raise StorageUnavailable(
                    f"{self._path} was given a write-ahead log by another program, which this file system cannot share; "
                    "close the store everywhere and open it again"
                )
            self._seen = seen
            self._position = newest(db)

    def _place(self, db: Db, item: Item, rows: list[tuple[Any, ...]]) -> Outcome:
        """Check one item; if all that it expects holds, write its cells and add its records to `rows`."""
        known = self._heads
        found: dict[str, _Stream] = {}
        moved: list[Head] = []
        for expect in item.expect:
            name = expect.stream
            stream = found[name] = known.get(name) or self._look_up(db, name)
            if stream.version != expect.version or stream.chain != expect.chain:
                moved.append(Head(name, stream.version, stream.chain, stream.kind))
        cells = [w.name for w in item.cells if self._value(db, w.name) != w.expected] if item.cells else ()
        if moved or cells:
            return Refused(tuple(moved), tuple(cells))
        for write in item.cells:
            self._set(db, write)
        first = position = self._position + 1
        for r in item.records:
            stream = found.get(r.stream)
            assert stream is not None, "an item must expect what its records follow"
            assert r.version == stream.version + 1, "an item must expect what its records follow"
            if stream.id == 0:
                stream.id = self._new_stream(db, r.stream)
            stream.version, stream.chain, stream.kind = r.version, r.chain, r.kind
            rows.append((position, stream.id, r.version, r.time, r.author, r.message, r.kind, pack(r.body), r.chain))
            position += 1
        self._position = position - 1
        return Committed(first, position - 1) if item.records else _NO_RECORDS

    def _look_up(self, db: Db, name: str) -> _Stream:
        found = db.execute(_ID, (self._namespace, name)).get or 0
        (head,) = heads(db, self._namespace, [name])
        known = self._heads[name] = _Stream(found, head.version, head.chain, head.kind)
        return known

    def _new_stream(self, db: Db, name: str) -> int:
        return db.execute(
            "INSERT INTO streams (namespace, name) VALUES (?, ?) RETURNING id", (self._namespace, name)
        ).get

    def _value(self, db: Db, name: str) -> bytes | None:
        found = cell(db, self._namespace, name, self._now_ms())
        return None if found is None else found.value

    def _set(self, db: Db, write: CellWrite) -> None:
        if write.value is None:
            db.execute("DELETE FROM cells WHERE namespace = ? AND name = ?", (self._namespace, write.name))
            return
        expires = None
        if write.ttl_ms is not None:
            now = self._now_ms()
            expires = now + write.ttl_ms
            db.execute(_SWEEP, (now, _EXPIRED_MAX))
        db.execute(
            "INSERT OR REPLACE INTO cells (namespace, name, value, expires, sum) VALUES (?, ?, ?, ?, ?)",
            (self._namespace, write.name, write.value, expires, cell_sum(write.name, write.value, expires)),
        )

    def _removed(self, db: Db) -> int:
        count = db.changes()
        if count:
            db.execute(_COUNT_UP, (REMOVED, count))
        return count
