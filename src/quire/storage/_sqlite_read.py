"""Questions to a SQLite store: each function is one of the protocol's reads, on a connection, in a namespace.

What comes out of the file may be damaged in any way. Nothing leaves here that has another type than was put
in or, outside the log, does not match its checksum; the log's chain is checked by who reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from quire.errors import CorruptRecord
from quire.model import Cell, Head, Keyframe, Record
from quire.storage._sqlite_worker import Db
from quire.storage.base import StorageStats, Tally, page_of
from quire.storage.codec import checksum, unpack

_VERSION, _POSITION = attrgetter("version"), attrgetter("position")
_ROUND = "an index leads back to what was before it"
FLOOR, REMOVED = "position_floor", "records_removed"
"""Keys of `meta`: the newest position at the time it was removed; how many records were removed ever."""

_ENDLESS = 2**62
_RECORD = "version, time, author, message, kind, body, chain, position"
_STREAM_ID = "(SELECT id FROM streams WHERE namespace = ? AND name = ?)"
_RECORD_TYPES = (int, int, str, str, str, bytes, int)
_READ = (
    f"SELECT {_RECORD} FROM records WHERE stream = {_STREAM_ID}"  # noqa: S608 - constants only, as in all below
    " AND version > ? AND version <= ? ORDER BY version LIMIT ?"
)
_HEAD = f"SELECT version, chain, kind FROM records WHERE stream = {_STREAM_ID} ORDER BY version DESC LIMIT 1"  # noqa: S608
_FEED = (
    f"SELECT name, {_RECORD} FROM records CROSS JOIN streams ON streams.id = records.stream"  # noqa: S608
    " WHERE position > ? AND namespace = ? ORDER BY position LIMIT ?"
)
_TALLY = (
    "SELECT count(*), ifnull(sum(version), 0) FROM streams CROSS JOIN records ON stream = streams.id"
    " AND version = (SELECT max(version) FROM records WHERE stream = streams.id)"
    " WHERE namespace = ? AND name >= ? AND substr(name, 1, length(?)) = ? AND kind <> ?"
)
_KEYFRAME = (
    f"SELECT version, chain, size, digest, body, sum FROM keyframes WHERE stream = {_STREAM_ID}"  # noqa: S608
    " AND version <= ? ORDER BY version DESC LIMIT 1"
)
_OURS = "(SELECT id FROM streams WHERE namespace = ?)"
_COUNTS = (
    "SELECT (SELECT count(*) FROM streams WHERE namespace = ?),"  # noqa: S608
    f" (SELECT count(*) FROM records WHERE stream IN {_OURS}),"
    f" (SELECT count(*) FROM keyframes WHERE stream IN {_OURS}),"
    " (SELECT count(*) FROM blobs WHERE namespace = ?),"
    " (SELECT count(*) FROM cells WHERE namespace = ?)"
)
_TOP = "SELECT max(ifnull((SELECT max(position) FROM records), 0), ifnull((SELECT value FROM meta WHERE key = ?), 0))"


@contextmanager
def one_moment(db: Db) -> Generator[None]:
    """Have all statements within see the store as the first of them does, whoever commits meanwhile."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        if db.in_transaction:  # SQLite ends it itself after some errors
            db.execute("ROLLBACK")


# log


def records(db: Db, namespace: str, stream: str, *, after: int, upto: int | None, limit: int | None) -> list[Record]:
    """Records of a stream, oldest first."""
    bounds = (after, _ENDLESS if upto is None else upto, -1 if limit is None else limit)
    rows = db.execute(_READ, (namespace, stream, *bounds))
    return page_of(_rising((_record(stream, row) for row in rows), _VERSION, after), limit)


def feed(db: Db, namespace: str, after: int, limit: int) -> list[Record]:
    """Records of a namespace in commit order."""
    rows = db.execute(_FEED, (after, namespace, limit))
    return page_of(_rising((_record(_text(row[0], "a stream"), row[1:]) for row in rows), _POSITION, after), limit)


def _rising(found: Iterable[Record], place: Callable[[Record], int], after: int) -> Iterator[Record]:
    """Yield records as long as they go up, as an index that is damaged may go round. Raises CorruptRecord."""
    for entry in found:
        if place(entry) <= after:
            at = f"{entry.stream}@{entry.version}"
            raise _damaged(f"the order of records ({place(entry)} behind {after})", at, _ROUND)
        after = place(entry)
        yield entry


def heads(db: Db, namespace: str, streams: Sequence[str]) -> list[Head]:
    """The head of each stream, version 0 where there is none."""
    found: list[Head] = []
    for stream in streams:
        row = db.execute(_HEAD, (namespace, stream)).fetchone()
        if row is not None and tuple(map(type, row)) != (int, bytes, str):
            raise _damaged(f"the head of {stream}", stream)
        found.append(Head(stream) if row is None else Head(stream, *row))
    return found


def names(db: Db, namespace: str, prefix: str, after: str, limit: int | None) -> list[str]:
    """Names of streams, sorted by code point."""
    rows = db.execute(
        "SELECT name FROM streams WHERE namespace = ? AND name >= ? AND name > ? ORDER BY name",
        (namespace, prefix, after),
    )
    found: list[str] = []
    for (name,) in rows:
        if len(found) == limit or not _text(name, "a stream").startswith(prefix):
            break  # sorted: no later one does
        _check_behind(name, found[-1] if found else after, "streams")
        found.append(name)
    return found


def _check_behind(name: str, last: str, what: str) -> None:
    """Raise CorruptRecord unless a name comes after the last one: an index that is damaged may go round."""
    if name.encode(errors="surrogatepass") <= last.encode(errors="surrogatepass"):
        raise _damaged(f"the order of {what} ({name!r} behind {last!r})", name, _ROUND)


def _text(name: Any, whose: str) -> str:
    if type(name) is not str:
        raise _damaged(f"the name of {whose} ({name!r})", str(name))
    return name


def tally(db: Db, namespace: str, prefix: str, but: str) -> Tally:
    """How many streams start with a prefix, and the sum of their heads' versions."""
    count, versions = db.execute(_TALLY, (namespace, prefix, prefix, prefix, but)).fetchone()
    if type(versions) is not int:
        raise _damaged("the version of a record", prefix)
    return Tally(count, versions)


def newest(db: Db) -> int:
    """The newest position ever given, in any namespace."""
    found = db.execute(_TOP, (FLOOR,)).get
    if type(found) is not int:
        raise _damaged(f"the newest position ({found!r})", FLOOR)
    return found


def _record(stream: str, row: tuple[Any, ...]) -> Record:
    version, time, author, message, kind, body, chain, position = row
    if (
        type(version),
        type(time),
        type(author),
        type(message),
        type(kind),
        type(chain),
        type(position),
    ) != _RECORD_TYPES:
        raise _damaged(f"{stream} v{version}", f"{stream}@{version}")
    try:
        return Record(stream, version, time, author, message, kind, unpack(body), chain, position)
    except CorruptRecord as cause:
        raise _damaged(f"{stream} v{version}", f"{stream}@{version}", str(cause)) from cause


def _damaged(what: str, at: str, how: str = "its values are not of the type they were stored with") -> CorruptRecord:
    return CorruptRecord(f"{what} is damaged: {how}; `quire verify` lists all damage, a backup has the rest", at=at)


# keyframes and blobs


def keyframe(db: Db, namespace: str, stream: str, at: int | None) -> Keyframe | None:
    """The newest keyframe at or before a version."""
    row = db.execute(_KEYFRAME, (namespace, stream, _ENDLESS if at is None else at)).fetchone()
    return None if row is None else _keyframe(stream, row)


def keyframe_versions(db: Db, namespace: str, stream: str) -> list[int]:
    """Versions that have one, ascending."""
    query = f"SELECT version FROM keyframes WHERE stream = {_STREAM_ID} ORDER BY version"  # noqa: S608
    found = [version for (version,) in db.execute(query, (namespace, stream))]
    if any(type(version) is not int for version in found):
        raise _damaged(f"the list of keyframes of {stream}", stream)
    return found


def keyframe_sum(version: int, size: int, body: bytes) -> bytes:
    """Return what guards a keyframe's row. Chain and digest are left out: the engine compares both."""
    return checksum(b"%d" % version, b"%d" % size, body)


def _keyframe(stream: str, row: tuple[Any, ...]) -> Keyframe:
    *_, body, total = row
    if tuple(map(type, row)) != (int, bytes, int, bytes, bytes, bytes) or keyframe_sum(row[0], row[2], body) != total:
        at = f"{stream}@{row[0]}"
        raise _damaged(f"the keyframe of {at}", at, "it does not match its checksum")
    return Keyframe(stream, *row[:-1])


def blob(db: Db, namespace: str, name: str) -> bytes | None:
    """The bytes, or None."""
    row = db.execute("SELECT name, body, sum FROM blobs WHERE namespace = ? AND name = ?", (namespace, name)).fetchone()
    return None if row is None else _blob(row)


def blob_names(db: Db, namespace: str, after: str, limit: int) -> list[str]:
    """Names greater than `after`, sorted."""
    query = "SELECT name FROM blobs WHERE namespace = ? AND name > ? ORDER BY name LIMIT ?"
    found: list[str] = []
    for (name,) in db.execute(query, (namespace, after, limit)):
        _check_behind(_text(name, "a blob"), found[-1] if found else after, "blobs")
        found.append(name)
    return found


def _blob(row: tuple[Any, ...]) -> bytes:
    name, body, total = row
    if type(body) is not bytes or checksum(_text(name, "a blob").encode(), body) != total:
        raise _damaged(f"the blob {name}", name, "it does not match its checksum")
    return body


# cells


def cell(db: Db, namespace: str, name: str, now_ms: int) -> Cell | None:
    """The register, or None if absent or expired."""
    row = db.execute(
        "SELECT name, value, expires, sum FROM cells WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    return None if row is None else _unexpired(_cell(row), now_ms)


def cells(db: Db, namespace: str, prefix: str, now_ms: int, *, after: str, limit: int) -> list[Cell]:
    """Unexpired registers, sorted by name."""
    rows = db.execute(
        "SELECT name, value, expires, sum FROM cells WHERE namespace = ? AND name >= ? AND name > ? ORDER BY name",
        (namespace, prefix, after),
    )
    found: list[Cell] = []
    for row in rows:
        if len(found) == limit or not _text(row[0], "a cell").startswith(prefix):
            break
        _check_behind(row[0], found[-1].name if found else after, "cells")
        here = _unexpired(_cell(row), now_ms)
        if here is not None:
            found.append(here)
    return found


def cell_sum(name: str, value: bytes, expires: int | None) -> bytes:
    """Return what guards a cell's row."""
    return checksum(name.encode(), value, b"" if expires is None else b"%d" % expires)


def _cell(row: tuple[Any, ...]) -> Cell:
    name, value, expires, total = row
    sound = type(name) is str and type(value) is bytes and type(expires) in (int, type(None))
    if not sound or cell_sum(name, value, expires) != total:
        raise _damaged(f"the cell {name}", str(name), "it does not match its checksum")
    return Cell(name, value, expires)


def _unexpired(found: Cell, now_ms: int) -> Cell | None:
    return None if found.expires is not None and found.expires <= now_ms else found


# care


def counts(db: Db, namespace: str, path: str) -> StorageStats:
    """What the namespace holds, and how large the file and its log are."""
    row = db.execute(_COUNTS, (namespace,) * 5).fetchone()
    size = db.pragma("page_count") * db.pragma("page_size")
    log = Path(path + "-wal")
    return StorageStats(*row, size_bytes=size + (log.stat().st_size if log.exists() else 0))


def problems(db: Db, path: str) -> Iterator[str]:
    """What is wrong with the file, over all namespaces: SQLite's own structures, gaps, checksums."""
    yield from (f"{path}: {said}" for (said,) in db.execute("PRAGMA integrity_check") if said != "ok")
    removed = db.execute("SELECT value FROM meta WHERE key = ?", (REMOVED,)).get or 0
    count = db.execute("SELECT count(*) FROM records").get
    if count + removed != newest(db):
        yield (
            f"{path}: {newest(db)} records were committed and {removed} of them removed, "
            f"but {count} are there; restore a backup"
        )
    gaps = db.execute(
        "SELECT ifnull(name, 'stream ' || stream), min(version), max(version), count(*) FROM records"
        " LEFT JOIN streams ON streams.id = stream"
        " GROUP BY stream HAVING name IS NULL OR max(version) - min(version) >= count(*)"
    )
    for name, low, high, held in gaps:
        yield f"{path}: {name}: {held} records for versions {low} to {high}, or nobody knows whose they are"
    yield from _unsound(db, "SELECT name, value, expires, sum FROM cells", _cell)
    yield from _unsound(db, "SELECT name, body, sum FROM blobs", _blob)
    yield from _unsound(
        db,
        "SELECT version, chain, size, digest, body, sum, ifnull(name, 'stream ' || stream) FROM keyframes"
        " LEFT JOIN streams ON streams.id = stream",
        lambda row: _keyframe(row[-1], row[:-1]),
    )


def _unsound(db: Db, query: str, read: Callable[[tuple[Any, ...]], object]) -> Iterator[str]:
    for row in db.execute(query):
        try:
            read(row)
        except CorruptRecord as error:
            yield str(error)
