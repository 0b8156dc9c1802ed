"""PostgreSQL: one store that many processes on many machines share.

1. Commits go over one session of the handle's own (_postgres_log.py), whole rounds at a time; reads over a few others.
2. `latest` asks the server every time: a notification may be on its way while the commit it tells of is already
   acknowledged to whoever made it. All who wait for an answer share one question, so many readers cost one round trip.
3. Who waits in `changed` listens; a commit tells only where somebody listens.
4. Sessions belong to the process that began them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from quire import forks
from quire.errors import Closed, InvalidKey, QuireError, StorageUnavailable, Unsupported
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _postgres_read as ask
from quire.storage import _postgres_vitals as vital
from quire.storage._postgres_items import beyond, escaped
from quire.storage._postgres_line import Db, Line, Lines, Place, refusal
from quire.storage._postgres_log import CommitLine
from quire.storage._postgres_scrub import scrub
from quire.storage._postgres_watch import Listener, Newest
from quire.storage._vitals import within
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Tally, Vitals, page_of
from quire.storage.codec import pack

T = TypeVar("T")

_READERS, _READERS_MAX = 3, 64


async def open_postgres(
    url: str,
    *,
    schema: str,
    shown: str,
    namespace: str,
    now_ms: Callable[[], int] | None = None,
    readers: int = _READERS,
) -> PostgresBackend:
    """Open a schema of a database as a store, making it if it is absent or empty.

    url: as libpq takes it, with the password if there is one.  schema: lower case letters, digits and _.
    shown: the URL for messages.  namespace: what is seen of the store.
    now_ms: the clock that cells expire by, UTC milliseconds; by default the server's.
    readers: sessions that read, 1 to 64 at most, begun as they are needed: a handle that does one thing at a time has
    one. Beside them one commits, one listens while somebody waits for news, one checks or scrubs while that lasts.
    Raises InvalidKey, Denied, NotFound, Unsupported, IncompatibleFormat, StorageUnavailable, StorageTimeout.
    """
    if type(readers) is not int or not 1 <= readers <= _READERS_MAX:
        raise InvalidKey(f"{shown}: readers={readers!r}; it is a number from 1 to {_READERS_MAX}")
    backend = PostgresBackend(Place(url, schema, shown), namespace, now_ms, readers)
    try:
        await backend.start()
    except StorageUnavailable as error:
        await backend.close()
        raise refusal(error) from error.__cause__
    except BaseException:
        await backend.close()
        raise
    return backend


class PostgresBackend:
    """A namespace of a schema in PostgreSQL. Made by `open_postgres`."""

    def __init__(self, place: Place, namespace: str, now_ms: Callable[[], int] | None, readers: int) -> None:
        self._place = place
        self._namespace = namespace
        self._now_ms = now_ms
        self._pid = os.getpid()
        forks.keep(self)
        self._closed = False
        self._log = CommitLine(place, namespace, now_ms)
        self._lines = Lines(place, readers)
        self._newest = Newest(self._lines)
        self._listener = Listener(place)

    async def start(self) -> None:
        """Begin the session that commits; make, upgrade or refuse the store."""
        await self._log.start()

    @property
    def capabilities(self) -> Capabilities:
        """What the server's settings let us promise, as of when the session that commits began."""
        risks = self._log.server.risks if self._log.server else []
        return vital.promised(risks)

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)

    async def _answer(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except QuireError:
            if self._closed:  # hung up by ourselves
                raise Closed("the store was closed meanwhile; open it again") from None
            raise

    async def _fetch(self, query: str, *args: Any, again: bool = True) -> Sequence[Any]:
        self._alive()
        return await self._answer(self._lines.fetch(query, *args, again=again))

    def _clock(self) -> int | None:
        return None if self._now_ms is None else self._now_ms()

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably: one round trip and one transaction where no two touch the same stream."""
        self._alive()
        if not items:
            return []
        outcomes = await self._log.commit(items)
        self._listener.wake()
        return outcomes

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        question = ask.RECORDS if limit is None else ask.PAGE
        rows = await self._fetch(question, self._namespace, stream, after, upto, limit)
        return page_of((ask.record(stream, row) for row in rows), limit)

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment."""
        rows = await self._fetch(ask.HEADS, self._namespace, list(streams))
        return [ask.head(stream, row) for stream, row in zip(streams, rows, strict=True)]

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        rows = await self._fetch(ask.STREAMS, self._namespace, prefix, beyond(prefix), after, limit)
        return [name for (name,) in rows]

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads, in SQL."""
        (row,) = await self._fetch(ask.TALLY, self._namespace, prefix, beyond(prefix), escaped(but))
        return Tally(*row)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        rows = await self._fetch(ask.FEED, self._namespace, after, limit)
        return page_of((ask.record(row[0], tuple(row)[1:]) for row in rows), limit)

    async def latest(self) -> int:
        """The newest position of the store. One round trip, shared by all who ask meanwhile."""
        self._alive()
        return await self._answer(self._newest.ask())

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit, by whichever process; each one that somebody waits for is told by the server."""
        self._alive()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self._listener.waiting() as event:
            while True:
                event.clear()
                await self._answer(self._listener.listen())
                latest = await self.latest()
                left = until - loop.time()
                if latest > after or left <= 0:
                    return latest
                alarm = loop.call_later(left, event.set)
                try:
                    await event.wait()
                finally:
                    alarm.cancel()
                self._alive()

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many."""
        rows = await self._fetch("SELECT trim_stream($1, $2, $3)", self._namespace, stream, upto, again=False)
        return rows[0][0]

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes, with nobody committing meanwhile."""
        await self._fetch("SELECT drop_stream($1, $2)", self._namespace, stream)

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, in one statement; return how many were found."""
        wanted = {(r.stream, r.version, r.chain): pack(r.body) for r in sorted(records, key=_place)}
        names, versions, chains = zip(*wanted, strict=True) if wanted else ((), (), ())
        texts = [body if type(body) is str else None for body in wanted.values()]
        packed = [body if type(body) is bytes else None for body in wanted.values()]
        return len(await self._fetch(ask.REWRITE, self._namespace, names, versions, chains, texts, packed))

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        f = keyframe
        total = ask.keyframe_sum(f.version, f.size, f.body)
        values = (f.stream, f.version, f.chain, f.size, f.digest, f.body, total)
        await self._fetch(ask.PUT_KEYFRAME, self._namespace, *values)

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at. Raises CorruptRecord if it does not match its checksum."""
        rows = await self._fetch(ask.KEYFRAME, self._namespace, stream, at)
        return ask.keyframe(stream, rows[0]) if rows else None

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        return [version for (version,) in await self._fetch(ask.KEYFRAMES, self._namespace, stream)]

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        await self._fetch(ask.DROP_KEYFRAMES, self._namespace, stream, list(versions))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content."""
        await self._fetch(ask.PUT_BLOB, self._namespace, name, data, ask.blob_sum(name, data))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord if they do not match their checksum."""
        rows = await self._fetch(ask.BLOB, self._namespace, name)
        return ask.blob(rows[0]) if rows else None

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self._fetch(ask.DROP_BLOB, self._namespace, name)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        return [name for (name,) in await self._fetch(ask.BLOBS, self._namespace, after, limit)]

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired. Raises CorruptRecord where its checksum fails."""
        rows = await self._fetch(ask.CELL, self._namespace, name, self._clock())
        return ask.cell(rows[0]) if rows else None

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        args = (prefix, self._clock(), beyond(prefix), after, limit)
        return [ask.cell(row) for row in await self._fetch(ask.CELLS, self._namespace, *args)]

    # care

    async def check(self) -> list[str]:
        """Problems of the whole store in words: gaps in the log, strays, checksums."""
        return await self._apart(lambda db: ask.problems(db, self._place.shown))

    async def stats(self) -> StorageStats:
        """Counts of this namespace; the size is of all tables of the store with their indexes."""
        return ask.stats((await self._fetch(ask.STATS, self._namespace))[0])

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the server is: what its settings promise now, standbys, sessions."""
        self._alive()
        async with within(timeout_s, self._place.shown):
            return await self._answer(self._lines.do(lambda db: vital.look(db, self._place)))

    async def scrub(self) -> None:
        """Write all tables anew. Needs as much free space as they take; nobody reads or writes meanwhile.

        What the server keeps beside them (write-ahead log, its archive, replicas, backups) is its administrator's:
        see docs/backends/postgresql.md.
        """
        await self._apart(lambda db: scrub(db, self._place.shown))

    async def _apart(self, job: Callable[[Db], Awaitable[T]]) -> T:
        """Run what may take long on a session of its own."""
        self._alive()
        line = Line(self._place)
        try:
            return await self._answer(line.do(job))
        finally:
            await line.close()

    async def backup(self, path: str) -> None:
        """Not here: the server's own tools see all of it at once."""
        self._alive()
        raise Unsupported(
            f"{self._place}: PostgreSQL is backed up by its own tools, not to {path}: pg_dump --schema "
            f"{self._place.schema}, or pg_basebackup for the whole server",
            capability="backup",
        )

    async def recover(self) -> None:
        """End every session, make sure that none of our commits is still on its way, and begin anew.

        Waits up to 30 s for a server that is starting. Raises StorageError while it cannot be said; call it again then.
        """
        self._alive()
        self._lines.hang_up()
        self._listener.hang_up()
        await self._answer(self._log.settle())

    async def close(self) -> None:
        """Finish what was begun, end every session. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._listener.wake()
        await self._listener.close()
        await self._log.close()
        await self._lines.close()


def _place(record: Record) -> tuple[str, int]:
    """Sort by this whatever is locked row by row, so that two who do it never wait in a circle."""
    return record.stream, record.version
