"""The file of a SQLite store: its schema, how it is opened and copied, and what an error of the driver means.

1. A file that is not ours is never changed. Ours has `APPLICATION_ID` in its header from its first page on:
   it is made with a rollback journal and switched to the write-ahead log afterwards.
2. An existing file is never opened but by SQLite: closing any other descriptor of it would drop the locks of
   every connection of this process (https://sqlite.org/howtocorrupt.html section 2.2).
"""

from __future__ import annotations

import os
import random
import stat
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import apsw

from quire.errors import (
    CorruptRecord,
    IncompatibleFormat,
    InvalidKey,
    InvalidState,
    QuireError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
)
from quire.storage import _sqlite_worker as worker
from quire.storage._sqlite_read import one_moment
from quire.storage._sqlite_worker import Db

APPLICATION_ID = 0x51554952  # "QUIR"
SCHEMA_VERSION = 1
SOUND = (3, 51, 3)
"""The first release whose write-ahead log several connections may write: see the WAL-reset bug in https://sqlite.org/wal.html"""
_MAGIC = b"SQLite format 3\x00"
_HEADER_BYTES = 100
_LOGGED = 2
"""The write version, in byte 18 of the header, of a file with a write-ahead log: https://sqlite.org/fileformat2.html"""
_WAL_MAX_BYTES = 64 * 1024 * 1024
"""A log that grew beyond this behind a long reader is cut back."""
_COPY_PAGES = 1000

SCHEMA = """
CREATE TABLE streams (
    id INTEGER PRIMARY KEY, namespace TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (namespace, name)
) STRICT;
CREATE TABLE records (
    position INTEGER PRIMARY KEY, stream INTEGER NOT NULL, version INTEGER NOT NULL, time INTEGER NOT NULL,
    author TEXT NOT NULL, message TEXT NOT NULL, kind TEXT NOT NULL, body ANY NOT NULL, chain BLOB NOT NULL,
    UNIQUE (stream, version)
) STRICT;
CREATE TABLE keyframes (
    stream INTEGER NOT NULL, version INTEGER NOT NULL, chain BLOB NOT NULL, size INTEGER NOT NULL,
    digest BLOB NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL, UNIQUE (stream, version)
) STRICT;
CREATE TABLE blobs (
    namespace TEXT NOT NULL, name TEXT NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL,
    UNIQUE (namespace, name)
) STRICT;
CREATE TABLE cells (
    namespace TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, expires INTEGER, sum BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX cells_expires ON cells (expires) WHERE expires IS NOT NULL;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE VIEW log AS
    SELECT position, namespace, name AS stream, version,
           strftime('%Y-%m-%dT%H:%M:%fZ', time / 1000.0, 'unixepoch') AS time,
           author, message, kind, body, lower(hex(chain)) AS chain
    FROM records JOIN streams ON streams.id = records.stream;
"""

UPGRADES: dict[int, Callable[[Db], Any]] = {}
"""From a schema version to the function that makes it the next one. All run in one transaction at opening."""

_creating = threading.Lock()


def ours(error: BaseException, path: str) -> BaseException:
    """Return our exception for one of the driver's; any other comes back as it is."""
    said = _meaning(error, path)
    if said is not error:
        said.__cause__ = error
    return said


@contextmanager
def translated(path: str) -> Generator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except Exception as error:
        said = ours(error, path)
        if said is error:
            raise
        raise said from error


def _meaning(error: BaseException, path: str) -> BaseException:
    match error:
        case QuireError():
            return error
        case apsw.FullError():
            return StorageFull(f"{path}: the disk is full; free some space and write again")
        case apsw.BusyError() | apsw.LockedError():
            return StorageTimeout(
                f"{path}: another process held the lock for {worker.BUSY_S:g} s; try again, or find out who"
            )
        case apsw.NotADBError():
            return IncompatibleFormat(f"{path} is not a Quire store ({error}); nothing was changed", found="other")
        case apsw.CorruptError() | apsw.FormatError() | apsw.SQLError() | apsw.ConstraintError() | UnicodeDecodeError():
            # our statements are constants: where one does not fit, the tables are not as we made them
            return CorruptRecord(f"{path} is damaged ({error}); run `quire verify`, restore a backup", at=path)
        case apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.AuthError():
            return _unwritable(path, str(error))
        case UnicodeEncodeError() | OverflowError():
            return InvalidState(f"{path}: a value cannot be stored ({error}); nothing of this commit was")
        case apsw.Error() | OSError():
            said = f"{type(error).__name__}: {error}"
            return StorageUnavailable(f"{path}: {said}; see that disk and folder are well, then try again")
        case _:
            return error


def _unwritable(path: str, why: str) -> StorageUnavailable:
    return StorageUnavailable(f"{path} cannot be written ({why}); check the rights of the file and of its folder")


def claim(path: str, vfs: str | None) -> bool:
    """Make the file if it is absent, for its owner's eyes only; refuse one that is not a store.

    Returns whether it has a write-ahead log.

    path: absolute, without symbolic links; with a vfs, any name it knows (SQLite makes the file then).
    Raises InvalidKey, IncompatibleFormat, StorageUnavailable.
    """
    with translated(path):
        if vfs is None:
            with _creating:  # between making a file and closing it, nobody here may have it open: rule 2
                _make(path)
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode):
                raise InvalidKey(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'device or pipe'}; name a file")
            return _check_header(path, "")
        with suppress(apsw.CantOpenError):  # not there yet
            return _check_header(path, vfs)
        return False


def _make(path: str) -> None:
    folder = str(Path(path).parent)
    if os.path.lexists(f"{path}-wal") and not os.path.lexists(path):
        raise StorageUnavailable(
            f"{path} is not there, but its write-ahead log {path}-wal is: the file was moved away, and a new one would destroy "
            "what the log holds; put the file back, or remove the log if both are to go"
        )
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except FileNotFoundError:
        if os.path.lexists(folder):  # such as /proc, where nothing can be made
            raise _unwritable(path, "no file can be made in that folder") from None
        raise StorageUnavailable(f"{path}: the folder {folder} does not exist; make it first") from None
    except PermissionError as cause:
        raise _unwritable(path, str(cause.strerror)) from None
    os.close(file)
    sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Make the names in a folder durable."""
    with suppress(PermissionError):  # one may write where one cannot list; SQLite lets that pass too
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check_header(path: str, vfs: str) -> bool:
    file = apsw.VFSFile(vfs, path, [apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_MAIN_DB, 0])
    try:
        header = file.xRead(_HEADER_BYTES, 0) if file.xFileSize() else b""
    finally:
        file.xClose()
    if not header:
        return False  # a new file
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise IncompatibleFormat(
            f"{path} is not a Quire store, nor any SQLite file; nothing was changed",
            found="other",
            supported="sqlite",
        )
    _check_format(path, int.from_bytes(header[68:72], "big"), int.from_bytes(header[60:64], "big"))
    return header[18] == _LOGGED


def _check_format(path: str, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise IncompatibleFormat(
            f"{path} is a SQLite file of another program; nothing was changed",
            found=application,
            supported=APPLICATION_ID,
        )
    if version > SCHEMA_VERSION:
        raise IncompatibleFormat(
            f"{path} has format {version}, this Quire reads up to {SCHEMA_VERSION}: upgrade quire to open it",
            found=version,
            supported=SCHEMA_VERSION,
        )


def connect(path: str, durability: str, vfs: str | None, *, wal: bool = True, busy_s: float | None = None) -> Db:
    """Return a connection to a file that `claim` let pass, with our settings.

    wal: False for a file that `prepare` has given a rollback journal.  busy_s: as `patience`.
    """
    flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if vfs else 0)
    db = cast("Db", apsw.Connection(path, flags, vfs, statementcachesize=64))
    try:
        db.set_busy_handler(worker.patience(busy_s))
        if db.readonly("main"):
            raise _unwritable(path, "it opens for reading only")
        db.pragma("synchronous", "FULL" if durability == "full" else "NORMAL")
        db.pragma("wal_autocheckpoint", 0)  # the writer does so itself, after a look at the files
        db.pragma("journal_size_limit", _WAL_MAX_BYTES)
        db.pragma("cache_size", -16_000)
        db.pragma("mmap_size", 0)  # an I/O error under a map would kill the process
        db.pragma("temp_store", "MEMORY")
        db.pragma("trusted_schema", "OFF")
        db.pragma("cell_size_check", "ON")
        if not wal:
            _roll_back(db, path)
    except BaseException:
        db.close(True)
        raise
    return db


def prepare(db: Db, path: str, *, wal: bool = True) -> None:
    """Create the schema in an empty file, upgrade an older one, choose its journal; several processes may do so at once.

    db: a connection that has read nothing yet.  wal: whether shared memory can be used; if not, `end_log` came before.
    """
    if not wal:
        _roll_back(db, path)
    with one_moment(db):  # else another process could make the file between the two looks that `_version` takes
        version = _version(db, path)
    if version != SCHEMA_VERSION:
        db.pragma("page_size", 4096)
        db.execute("BEGIN IMMEDIATE")
        try:
            version = _version(db, path)  # another process may have been first
            if version == 0:
                db.execute(SCHEMA)
                db.pragma("application_id", APPLICATION_ID)
            while 0 < version < SCHEMA_VERSION:
                UPGRADES[version](db)
                version += 1
            db.pragma("user_version", SCHEMA_VERSION)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
    if wal:
        _write_ahead(db)


def _version(db: Db, path: str) -> int:
    """Return the schema version, 0 for an empty file. Raises IncompatibleFormat for what is not ours."""
    version = int(db.pragma("user_version"))
    if version == 0 and not db.execute("SELECT count(*) FROM sqlite_schema").get:
        return 0
    _check_format(path, int(db.pragma("application_id")), version)
    missing = [v for v in range(version, SCHEMA_VERSION) if v not in UPGRADES]
    if missing:
        raise IncompatibleFormat(
            f"{path} has format {version}; no upgrade from format {missing[0]} is known here: "
            "open it with the quire that wrote it",
            found=version,
            supported=SCHEMA_VERSION,
        )
    return version


def _write_ahead(db: Db) -> None:
    """Switch to WAL. SQLite does not wait for locks in the switch: other processes may be opening too."""
    until = time.monotonic() + worker.BUSY_S
    while True:
        try:
            if db.pragma("journal_mode", "WAL") != "wal":
                raise StorageUnavailable("this file system cannot share memory; use a local disk")
        except apsw.BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - jitter, no secret
        else:
            return


def end_log(path: str) -> None:
    """Take a file that `claim` let pass out of WAL mode without shared memory, which one connection alone can do.

    Each of two that try at once holds the shared lock that keeps the other from the exclusive one, and SQLite lets go of it
    only with the connection. So a try has its own connection, is short, and leaves a longer pause behind it.
    """
    until = time.monotonic() + worker.BUSY_S
    while True:
        db = cast("Db", apsw.Connection(path, apsw.SQLITE_OPEN_READWRITE))
        try:
            db.set_busy_handler(worker.patience(0.005))
            db.pragma("locking_mode", "EXCLUSIVE")  # before the first read, or that uses shared memory
            db.pragma("synchronous", "FULL")
            db.pragma("user_version")  # until it has read something, SQLite does not know the mode of the file
            return _roll_back(db, path)
        except apsw.BusyError:
            if time.monotonic() > until:
                raise
        finally:
            db.close(True)
        time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - jitter, no secret


def _roll_back(db: Db, path: str) -> None:
    """Use a rollback journal: truncated after each transaction, and synced, so that nothing rests on the folder."""
    if db.pragma("journal_mode", "TRUNCATE") != "truncate":
        raise StorageUnavailable(
            f"{path} has a write-ahead log that another program uses, which this file system cannot share; close it there"
        )


def copy(source: Db, path: str) -> None:
    """Write what `source` sees now to a new file, which gets its name only when it is whole and durable.

    Raises InvalidKey if there is a file of that name.
    """
    if "\0" in path:
        raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
    path = os.path.realpath(path)
    if os.path.lexists(path):
        raise InvalidKey(f"{path} exists; a backup is written to a new file")
    part = f"{path}.part-{os.getpid()}-{threading.get_native_id()}"
    with translated(path):
        try:
            _make(part)
            _fill(source, part)
            _publish(part, path)
        finally:
            Path(part).unlink(missing_ok=True)
        sync_folder(str(Path(path).parent))


def _fill(source: Db, part: str) -> None:
    target = apsw.Connection(part, apsw.SQLITE_OPEN_READWRITE)
    try:
        source.execute("BEGIN")  # one snapshot throughout: a copy that others write under begins again and again
        source.execute("SELECT count(*) FROM meta").fetchone()
        with target.backup("main", cast("apsw.Connection", source), "main") as steps:
            while not steps.done:
                steps.step(_COPY_PAGES)
        cast("Db", target).pragma("journal_mode", "DELETE")  # one file, no companions
    finally:
        target.close(True)


def _publish(part: str, path: str) -> None:
    try:
        os.link(part, path)  # unlike a rename, it never replaces what somebody put there meanwhile
    except FileExistsError:
        raise InvalidKey(f"{path} exists; a backup is written to a new file") from None
    except OSError:
        Path(part).rename(path)  # a file system without hard links
