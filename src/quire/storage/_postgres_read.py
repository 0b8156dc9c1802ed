"""Questions to a store in PostgreSQL, and what their rows mean: each is one statement, and so sees one moment.

Rows outside the log carry a checksum that is compared here; the log's chain is checked by who reads it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from quire.errors import CorruptRecord
from quire.model import GENESIS, Cell, Head, Keyframe, Record
from quire.storage._postgres_items import cell_sum, unescaped
from quire.storage._postgres_line import Db
from quire.storage.base import PAGE_BYTES, StorageStats
from quire.storage.codec import checksum, unpack

_RECORD = "version, time, author, message, kind, body, packed, chain, position"
_STREAM = "(SELECT id FROM streams WHERE namespace = $1 AND name = $2)"
_ENDLESS = 2**62  # a bound, where none is given: with "or null" the index would be read to its end
_NOW = "coalesce($3, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint)"

RECORDS = (
    f"SELECT {_RECORD} FROM records WHERE stream = {_STREAM}"  # noqa: S608 - constants only, as in all below
    f" AND version > $3 AND version <= coalesce($4, {_ENDLESS}) ORDER BY version LIMIT $5"
)
_WEIGHT = (
    "octet_length(coalesce(packed, convert_to('', 'UTF8'))) + octet_length(coalesce(body, '')) + octet_length(message)"
)
"""What a record weighs as it is stored: nothing is read for it."""
_BEFORE = f"sum({_WEIGHT}) OVER (ORDER BY {{}} ROWS UNBOUNDED PRECEDING) - ({_WEIGHT}) AS before"
PAGE = (
    f"SELECT {_RECORD} FROM (SELECT {_RECORD}, {_BEFORE.format('version')} FROM ({RECORDS}) AS r) AS s"  # noqa: S608
    f" WHERE before < {PAGE_BYTES} ORDER BY version"
)
HEADS = (
    "SELECT r.version, r.chain, r.kind FROM unnest($2::text[]) WITH ORDINALITY AS w(name, n)"
    " LEFT JOIN LATERAL (SELECT id FROM streams WHERE namespace = $1 AND name = w.name OFFSET 0) s ON true"
    " LEFT JOIN LATERAL"
    " (SELECT version, chain, kind FROM records WHERE stream = s.id ORDER BY version DESC LIMIT 1) r ON true"
    " ORDER BY w.n"
)
STREAMS = (
    "SELECT name FROM streams WHERE namespace = $1 AND name >= $2 AND name < $3 AND name > $4"
    " AND starts_with(name, $2) ORDER BY name LIMIT $5"
)
TALLY = (
    "SELECT count(*), coalesce(sum(version), 0)::bigint FROM streams CROSS JOIN LATERAL"
    " (SELECT version, kind FROM records WHERE stream = streams.id ORDER BY version DESC LIMIT 1) r"
    " WHERE namespace = $1 AND name >= $2 AND name < $3 AND starts_with(name, $2) AND kind <> $4"
)
_FEED = (
    f"SELECT name, {_RECORD} FROM records CROSS JOIN LATERAL"  # noqa: S608
    " (SELECT name FROM streams WHERE id = stream AND namespace = $1 OFFSET 0) s"  # one by one, in the order of the log
    " WHERE position > $2 ORDER BY position LIMIT $3"
)
FEED = (
    f"SELECT name, {_RECORD} FROM (SELECT name, {_RECORD}, {_BEFORE.format('position')} FROM ({_FEED}) AS r) AS s"  # noqa: S608
    f" WHERE before < {PAGE_BYTES} ORDER BY position"
)
LATEST = (
    "SELECT greatest((SELECT max(position) FROM records), (SELECT value FROM meta WHERE key = 'position_floor'), 0)"
)
REWRITE = (
    # a stream that is being dropped or trimmed is waited for, so that nobody waits in a circle for its rows
    "WITH s AS MATERIALIZED (SELECT id, name FROM streams WHERE namespace = $1 AND name = ANY ($2) ORDER BY id"
    " FOR KEY SHARE)"
    " UPDATE records r SET body = w.body, packed = w.packed"
    " FROM unnest($2::text[], $3::bigint[], $4::bytea[], $5::text[], $6::bytea[])"
    " AS w(name, version, chain, body, packed) JOIN s ON s.name = w.name"
    " WHERE r.stream = s.id AND r.version = w.version AND r.chain = w.chain RETURNING r.version"
)
PUT_KEYFRAME = (
    # a stream that is being dropped is waited for: a keyframe must not come after it is gone
    "INSERT INTO keyframes (stream, version, chain, size, digest, body, sum)"
    " SELECT id, $3, $4, $5, $6, $7, $8 FROM streams WHERE namespace = $1 AND name = $2 FOR KEY SHARE"
    " ON CONFLICT (stream, version) DO UPDATE SET chain = excluded.chain, size = excluded.size,"
    " digest = excluded.digest, body = excluded.body, sum = excluded.sum"
)
KEYFRAME = (
    f"SELECT version, chain, size, digest, body, sum FROM keyframes WHERE stream = {_STREAM}"  # noqa: S608
    f" AND version <= coalesce($3, {_ENDLESS}) ORDER BY version DESC LIMIT 1"
)
KEYFRAMES = f"SELECT version FROM keyframes WHERE stream = {_STREAM} ORDER BY version"  # noqa: S608
DROP_KEYFRAMES = f"DELETE FROM keyframes WHERE stream = {_STREAM} AND version = ANY ($3::bigint[])"  # noqa: S608
PUT_BLOB = "INSERT INTO blobs (namespace, name, body, sum) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING"
BLOB = "SELECT name, body, sum FROM blobs WHERE namespace = $1 AND name = $2"
DROP_BLOB = "DELETE FROM blobs WHERE namespace = $1 AND name = $2"
BLOBS = "SELECT name FROM blobs WHERE namespace = $1 AND name > $2 ORDER BY name LIMIT $3"
CELL = (
    "SELECT name, value, expires, sum FROM cells WHERE namespace = $1 AND name = $2"  # noqa: S608
    f" AND (expires IS NULL OR expires > {_NOW})"
)
CELLS = (
    "SELECT name, value, expires, sum FROM cells"  # noqa: S608
    " WHERE namespace = $1 AND name >= $2 AND name < $4 AND name > $5 AND starts_with(name, $2)"
    f" AND (expires IS NULL OR expires > {_NOW}) ORDER BY name LIMIT $6"
)
STATS = (
    "SELECT (SELECT count(*) FROM streams WHERE namespace = $1) AS streams,"
    " (SELECT count(*) FROM records JOIN streams ON streams.id = stream WHERE namespace = $1) AS records,"
    " (SELECT count(*) FROM keyframes JOIN streams ON streams.id = stream WHERE namespace = $1) AS keyframes,"
    " (SELECT count(*) FROM blobs WHERE namespace = $1) AS blobs,"
    " (SELECT count(*) FROM cells WHERE namespace = $1) AS cells,"
    " (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class"
    " WHERE relnamespace = to_regnamespace(current_schema()) AND relkind = 'r') AS size_bytes"
)
_COUNTED = (
    "SELECT (SELECT count(*) FROM records) AS held,"  # noqa: S608
    f" coalesce((SELECT value FROM meta WHERE key = 'records_removed'), 0) AS removed, ({LATEST}) AS newest"
)
_GAPS = (
    "SELECT coalesce(name, 'stream ' || stream) AS name, min(version) AS low, max(version) AS high, count(*) AS held"
    " FROM records LEFT JOIN streams ON streams.id = stream GROUP BY stream, name"
    " HAVING name IS NULL OR max(version) - min(version) >= count(*)"
)
_ALL_CELLS = "SELECT name, value, expires, sum FROM cells"
_ALL_BLOBS = "SELECT name, body, sum FROM blobs"
_ALL_KEYFRAMES = (
    "SELECT version, chain, size, digest, body, sum, coalesce(name, 'stream ' || stream) AS name"
    " FROM keyframes LEFT JOIN streams ON streams.id = stream"
)
_PREFETCH = 10
"""Rows on their way at once while all are checked: a row may be large."""


def record(stream: str, row: Sequence[Any]) -> Record:
    """Return the record of a row of RECORDS. Raises CorruptRecord."""
    version, time, author, message, kind, body, packed, chain, position = row
    try:
        plain = body.encode() if packed is None else unpack(packed)
    except CorruptRecord as cause:
        raise _damaged(f"{stream} v{version}", f"{stream}@{version}", str(cause)) from cause
    said = (unescaped(author), unescaped(message), unescaped(kind))
    return Record(stream, version, time, *said, plain, chain, position)


def head(stream: str, row: Sequence[Any]) -> Head:
    """Return the head of a row of HEADS."""
    version, chain, kind = row
    return Head(stream, 0, GENESIS, "") if version is None else Head(stream, version, chain, unescaped(kind))


def keyframe_sum(version: int, size: int, body: bytes) -> bytes:
    """Return what guards a keyframe's row. Chain and digest are left out: the engine compares both."""
    return checksum(b"%d" % version, b"%d" % size, body)


def keyframe(stream: str, row: Sequence[Any]) -> Keyframe:
    """Return the keyframe of a row. Raises CorruptRecord where its checksum fails."""
    version, chain, size, digest, body, total = row
    if keyframe_sum(version, size, body) != total:
        at = f"{stream}@{version}"
        raise _damaged(f"the keyframe of {at}", at, "it does not match its checksum")
    return Keyframe(stream, version, chain, size, digest, body)


def _named_keyframe(row: Sequence[Any]) -> Keyframe:
    *values, name = row
    return keyframe(name, values)


def blob_sum(name: str, data: bytes) -> bytes:
    """Return what guards a blob's row."""
    return checksum(name.encode(), data)


def blob(row: Sequence[Any]) -> bytes:
    """Return the bytes of a row. Raises CorruptRecord where its checksum fails."""
    name, body, total = row
    if blob_sum(name, body) != total:
        raise _damaged(f"the blob {name}", name, "it does not match its checksum")
    return body


def cell(row: Sequence[Any]) -> Cell:
    """Return the cell of a row. Raises CorruptRecord where its checksum fails."""
    name, value, expires, total = row
    if cell_sum(name, value) != total:
        raise _damaged(f"the cell {name}", name, "it does not match its checksum")
    return Cell(name, value, expires)


def stats(row: Any) -> StorageStats:
    """Return the counts of the row of STATS."""
    return StorageStats(**dict(row))


async def problems(db: Db, shown: str) -> list[str]:
    """What is wrong with the store, over all namespaces, as of one moment: gaps, strays, checksums."""
    async with db.transaction(isolation="repeatable_read", readonly=True):
        await db.execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on")
        counted = await db.fetchrow(_COUNTED)
        found: list[str] = []
        if counted["held"] + counted["removed"] != counted["newest"]:
            found.append(
                f"{shown}: {counted['newest']} records were committed and {counted['removed']} of them removed, "
                f"but {counted['held']} are there; restore a backup"
            )
        for gap in await db.fetch(_GAPS):
            found.append(  # noqa: PERF401 - a comprehension would hide what is said
                f"{shown}: {gap['name']}: {gap['held']} records for versions {gap['low']} to {gap['high']}, "
                "or nobody knows whose they are"
            )
        for query, read in (
            (_ALL_CELLS, cell),
            (_ALL_BLOBS, blob),
            (_ALL_KEYFRAMES, _named_keyframe),
        ):
            found += [said async for said in _unsound(db, query, read)]
    return found


async def _unsound(db: Db, query: str, read: Callable[[Any], object]) -> AsyncIterator[str]:
    async for row in db.cursor(query, prefetch=_PREFETCH):
        try:
            read(row)
        except CorruptRecord as error:
            yield str(error)


def _damaged(what: str, at: str, how: str) -> CorruptRecord:
    return CorruptRecord(f"{what} is damaged: {how}; `quire verify` lists all damage, a backup has the rest", at=at)
