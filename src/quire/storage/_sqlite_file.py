"""The file of a SQLite store: its schema, how it is opened, and what an error of the driver means."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from quire.errors import (
    CorruptRecord,
    IncompatibleFormat,
    QuireError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
)

APPLICATION_ID = 0x51554952  # "QUIR"
SCHEMA_VERSION = 1
_MAGIC = b"SQLite format 3\x00"
_BUSY_S = 30.0
"""How long a lock of another process is waited for."""

_SCHEMA = """
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
    digest BLOB NOT NULL, body BLOB NOT NULL, PRIMARY KEY (stream, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE blobs (
    namespace TEXT NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, UNIQUE (namespace, name)
) STRICT;
CREATE TABLE cells (
    namespace TEXT NOT NULL, name TEXT NOT NULL, value BLOB NOT NULL, expires INTEGER, sum BLOB NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE VIEW log AS
    SELECT position, namespace, name AS stream, version,
           strftime('%Y-%m-%dT%H:%M:%fZ', time / 1000.0, 'unixepoch') AS time,
           author, message, kind, body, lower(hex(chain)) AS chain
    FROM records JOIN streams ON streams.id = records.stream;
"""

UPGRADES: dict[int, Callable[[apsw.Connection], None]] = {}
"""From a schema version to the function that makes it the next one. All run in one transaction at opening."""


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except QuireError:
        raise
    except apsw.FullError as cause:
        raise StorageFull(f"{path}: the disk is full; free some space and write again") from cause
    except (apsw.BusyError, apsw.LockedError) as cause:
        raise StorageTimeout(
            f"{path}: another process held the write lock for {_BUSY_S:g} s; try again, or find out who"
        ) from cause
    except apsw.NotADBError as cause:
        raise IncompatibleFormat(f"{path} is not a Quire store ({cause}); nothing was changed") from cause
    except (apsw.CorruptError, apsw.FormatError, UnicodeDecodeError) as cause:
        raise CorruptRecord(f"{path} is damaged ({cause}); run `quire verify`, restore a backup", at=path) from cause
    except (apsw.ReadOnlyError, apsw.PermissionsError, apsw.AuthError) as cause:
        raise StorageUnavailable(f"{path} cannot be written ({cause}); check the rights of file and folder") from cause
    except apsw.Error as cause:
        raise StorageUnavailable(f"{path}: {type(cause).__name__}: {cause}") from cause
    except OSError as cause:
        raise StorageUnavailable(f"{path}: {cause}") from cause


def create_file(path: str) -> None:
    """Make sure the file is there, readable by its owner only, and is SQLite or empty. Never alters a foreign file."""
    with translated(path):
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise StorageUnavailable(f"the folder {Path(path).parent} does not exist; make it first") from None
        except PermissionError as cause:
            raise StorageUnavailable(f"{path}: no right to write it ({cause.strerror})") from None
        with Path(path).open("rb") as file:
            start = file.read(len(_MAGIC))
    if start and start != _MAGIC:
        raise IncompatibleFormat(f"{path} is not a Quire store: it is no SQLite file; nothing was changed", found="other")


def connect(path: str, durability: str, vfs: str | None) -> apsw.Connection:
    """Return a connection with our settings to a file that is ours."""
    db = apsw.Connection(path, vfs=vfs, statementcachesize=64)
    try:
        db.set_busy_handler(_patience())
        found = db.pragma("application_id")
        if found != APPLICATION_ID and (found or db.execute("SELECT count(*) FROM sqlite_schema").get):
            raise IncompatibleFormat(
                f"{path} is a SQLite file of another program; nothing was changed", found=found, supported=APPLICATION_ID
            )
        _check_version(db, path)
        _journal(db)
        db.pragma("synchronous", "FULL" if durability == "full" else "NORMAL")
        db.pragma("wal_autocheckpoint", 1000)  # a log that stays small is overwritten in place: cheaper to sync
        db.pragma("cache_size", -16000)
        db.pragma("temp_store", "MEMORY")
        db.pragma("trusted_schema", "OFF")
    except BaseException:
        db.close(True)
        raise
    return db


def prepare(db: apsw.Connection, path: str) -> None:
    """Create the schema in a new file, upgrade an older one; several processes may do so at once."""
    if db.pragma("user_version") == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _check_version(db, path)
        if version == 0:
            db.execute(_SCHEMA)
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


def _check_version(db: apsw.Connection, path: str) -> int:
    version = int(db.pragma("user_version"))
    if version > SCHEMA_VERSION:
        raise IncompatibleFormat(
            f"{path} has format {version}, this Quire reads up to {SCHEMA_VERSION}: upgrade quire to open it",
            found=version,
            supported=SCHEMA_VERSION,
        )
    if 0 < version < SCHEMA_VERSION and version not in UPGRADES:
        raise IncompatibleFormat(f"{path} has format {version}, which no upgrade is known for", found=version)
    return version


def _journal(db: apsw.Connection) -> None:
    """Switch to WAL. The switch does not wait for locks by itself: other processes may be opening too."""
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            if db.pragma("journal_mode", "WAL") != "wal":
                raise apsw.CantOpenError("the file system does not support a write-ahead log")
        except apsw.BusyError:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.001, 0.01))  # noqa: S311 - jitter, no secret
        else:
            return


def _patience() -> Callable[[int], bool]:
    """Return a busy handler: short random pauses, so that no process is always last."""
    started = 0.0

    def wait(attempts: int) -> bool:
        nonlocal started
        if attempts == 0:
            started = time.monotonic()
        elif time.monotonic() - started > _BUSY_S:
            return False
        time.sleep(random.uniform(0.0002, 0.003))  # noqa: S311 - jitter, no secret
        return True

    return wait
