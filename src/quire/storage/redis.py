"""Redis: a store that several machines share, in memory and in Redis' own log on disk.

1. A call of `commit` is one script: all items are checked and stored while nobody else gets in (_redis_commit.lua).
2. Commits go one behind the other on a line of their own, numbered within a session that Redis remembers. A number
   out of turn is refused, so after a call that failed none of the later ones takes effect.
3. `recover` ends the session and begins another: whatever of the old one is still on its way is refused when it comes.
4. What is durable is the server's business (_redis_server.py reads its settings): with appendfsync always, Redis
   answers after its log is on the disk, reads included, so nobody sees what could still be lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from quire import forks
from quire.errors import (
    Closed,
    Denied,
    LimitExceeded,
    QuireError,
    StorageError,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _redis_rows as rows
from quire.storage import _redis_server as server
from quire.storage import _redis_vitals as vital
from quire.storage._redis_line import Address, Forgotten, Line, Word
from quire.storage._redis_news import News
from quire.storage._vitals import within
from quire.storage._waiting import patiently
from quire.storage.base import (
    PAGE_BYTES,
    Capabilities,
    Committed,
    Item,
    Outcome,
    Refused,
    StorageStats,
    Tally,
    Vitals,
    more_may_follow,
    page_of,
    tally_of,
)
from quire.threads import aside

FORMAT = "quire 1"

_SESSION_MS = 7 * 24 * 3600 * 1000
"""How long Redis remembers a session that commits nothing; one that comes back later has to recover first."""
_TIMEOUT_S = 30.0
_PATIENCE_S = 10.0
"""How long `recover` waits for a server that restarts."""
_LOOK_S = 5.0
"""`changed` looks by itself this often: a dead line may take long to show itself, and with it news are lost."""
_THREAD_BYTES = 1 << 20
"""A commit larger than this is packed in a thread: compressing it would hold up the event loop."""
_VALUE_BYTES_MAX = 512 * 1024 * 1024 - 1024
_PAGE = 1000
"""Most that a script answers at once (CHUNK in the scripts)."""


def _script(name: str) -> tuple[str, str]:
    text = files("quire.storage").joinpath(name).read_text(encoding="utf-8")
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # as Redis names it


_COMMIT, _COMMIT_SHA = _script("_redis_commit.lua")
_REST, _REST_SHA = _script("_redis_rest.lua")


async def open_redis(
    address: Address,
    *,
    namespace: str,
    prefix: str = "quire",
    now_ms: Callable[[], int] | None = None,
    timeout_s: float = _TIMEOUT_S,
    patience_s: float = _PATIENCE_S,
) -> RedisBackend:
    """Open the store under a prefix of a Redis database, making it if there is none.

    prefix: keeps the rule of ids; several stores may share a database under different ones.
    now_ms: the clock that cells expire by, UTC milliseconds; the server's own by default.
    timeout_s: how long an answer may take.  patience_s: how long `recover` waits for a server that restarts.
    Raises StorageUnavailable, StorageTimeout, StorageFull, Denied, Unsupported, IncompatibleFormat, InvalidKey.
    """
    backend = RedisBackend(address, namespace, prefix, now_ms, timeout_s, patience_s)
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend


class RedisBackend:
    """A namespace of a store in Redis. Made by `open_redis`."""

    capabilities: Capabilities

    def __init__(
        self,
        address: Address,
        namespace: str,
        prefix: str,
        now_ms: Callable[[], int] | None,
        timeout_s: float,
        patience_s: float,
    ) -> None:
        self._shown = address.shown
        self._namespace = namespace
        self._prefix = prefix
        self._space = f"{prefix}:n:{namespace}:"
        self._now_ms = now_ms
        self._patience_s = patience_s
        self._pid = os.getpid()
        forks.keep(self)
        self._closed = False
        self._writing = Line(address, timeout_s)
        self._reading = Line(address, timeout_s)
        self._news = News(lambda: address.connection(timeout_s), f"{prefix}:news")
        self._session = ""
        self._number = 0
        self._broken = True
        self._under_way = 0
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Look at the server, refuse what cannot hold a store, begin a session."""
        await self._reading.open((_REST,))
        self.capabilities = await server.survey(self._reading, self._shown)
        await server.refuse_foreign(self._reading, self._prefix, self._shown)
        await self._begin()

    async def _begin(self) -> None:
        await self._writing.open((_COMMIT, _REST))
        session = secrets.token_hex(8)
        self._number = await self._writing.ask(
            *("EVALSHA", _REST_SHA, 0, self._prefix, self._namespace, "session"),
            *(FORMAT, self._session, session, _SESSION_MS),
        )
        self._session, self._broken = session, False

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)

    async def _ask(self, *words: Word, again: bool = True) -> Any:
        """Put a question on the reading line, once more on a new one where the line broke under it."""
        self._alive()
        try:
            await self._reading.open((_REST,))
            return await self._reading.ask(*words)
        except (StorageUnavailable, StorageTimeout) as error:
            self._alive()
            if isinstance(error, Forgotten):
                await self._reading.reset()
            elif self._reading.is_open or not again:
                raise  # an answer, if not the one hoped for
        await self._reading.open((_REST,))
        return await self._reading.ask(*words)

    def _call(self, name: str, *words: Word, again: bool = True) -> Any:
        return self._ask("EVALSHA", _REST_SHA, 0, self._prefix, self._namespace, name, *words, again=again)

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in one script."""
        self._alive()
        if not items:
            return []
        async with self._turn:  # first come, first sent
            size = sum(r.size_bytes for item in items for r in item.records)
            plan, parts = await aside(rows.plan, items) if size > _THREAD_BYTES else rows.plan(items)
            self._alive()
            if self._broken:
                raise StorageUnavailable(f"{self._shown}: an earlier commit failed; `recover` has to settle it first")
            if not self._writing.is_open and not self._under_way:
                await self._writing.open((_COMMIT, _REST))  # it broke while nothing was on it: the session goes on
            self._number += 1
            clock = "" if self._now_ms is None else self._now_ms()
            try:
                waiting = await self._writing.send(
                    *("EVALSHA", _COMMIT_SHA, 0, self._prefix, self._namespace, self._session, self._number),
                    *(clock, _SESSION_MS, plan, *parts),
                )
            except BaseException:
                self._broken = True  # half of it may be on its way
                raise
        self._under_way += 1
        try:
            answers = await self._writing.answer(waiting)
        except QuireError:
            self._broken = True
            raise
        finally:
            self._under_way -= 1
        names = list(dict.fromkeys(e.stream for item in items for e in item.expect))
        return [_outcome(names, answer) for answer in answers]

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first, asked for in pages."""
        found: list[Record] = []
        after = max(after, 0)
        while True:
            left = _PAGE if limit is None else min(_PAGE, limit - len(found))
            if left <= 0:
                self._alive()
                return found
            first, *page = await self._call("read", stream, after, "" if upto is None else upto, left, PAGE_BYTES)
            records = page_of((rows.record_of(stream, first + i, row) for i, row in enumerate(page)), limit and left)
            found += records
            if limit is not None and more_may_follow(found, limit):
                return page_of(found, limit)
            if not records or (len(page) < left and not more_may_follow(records, left)):
                return found
            after = records[-1].version

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment."""
        if not streams:
            self._alive()
            return []
        stored = await self._call("heads", *streams)
        return [rows.head_of(stream, head) for stream, head in zip(streams, stored, strict=True)]

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        return await self._names("streams", prefix, after, limit)

    async def _names(self, key: str, prefix: str, after: str, limit: int | None) -> list[str]:
        low, high = _range(prefix, after)
        count = -1 if limit is None else limit
        found = await self._ask("ZRANGEBYLEX", self._space + key, low, high, "LIMIT", 0, count)
        return [rows.text_of(name, key) for name in found]

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads."""
        names = await self.streams(prefix)
        pages = [await self.heads(names[start : start + _PAGE]) for start in range(0, len(names), _PAGE)]
        return tally_of((head for page in pages for head in page), but)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        found: list[Record] = []
        self._alive()
        while (left := min(_PAGE, limit - len(found))) > 0:
            page = await self._call("feed", after, left, PAGE_BYTES)
            for stream, version, row in zip(page[::3], page[1::3], page[2::3], strict=True):
                number = rows.number_of(version, "the feed")
                found.append(rows.record_of(rows.text_of(stream, "a stream"), number, row))
            if len(page) < 3 * left or more_may_follow(found, limit):
                break
            after = found[-1].position
        return page_of(found, limit)

    async def latest(self) -> int:
        """The newest position of the store: one question, as no news could say that there are none."""
        found = await self._ask("GET", self._prefix + ":position")
        return 0 if found is None else rows.number_of(found, "the newest position")

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit by any process: Redis publishes it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with self._news.waiting() as event:
            while (latest := await self.latest()) <= after and (left := until - loop.time()) > 0:
                self._news.listen()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_S)):
                        await event.wait()
                event.clear()
            return latest

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many. Redis serves nobody meanwhile."""
        return await self._call("trim", stream, upto, again=False)

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes. Redis serves nobody meanwhile: 5 us a record."""
        await self._call("drop", stream)

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, in one script; return how many were found."""
        self._alive()
        wanted = {(r.stream, r.version, r.chain): r.body for r in records}
        words: list[Word] = []
        for (stream, version, chain), body in wanted.items():
            words += (stream, version, chain.hex(), rows.body_as_stored(body))
        return await self._call("rewrite", *words)

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        self._alive()
        await self._call("put_keyframe", keyframe.stream, keyframe.version, _fits(rows.frame_as_stored(keyframe)))

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at. Raises CorruptRecord if it does not match its checksum."""
        found = await self._call("keyframe", stream, "" if at is None else at)
        return None if found is None else rows.frame_of(stream, found[0], found[1])

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        return sorted(map(int, await self._ask("HKEYS", f"{self._space}k:{stream}")))

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        self._alive()
        for start in range(0, len(versions), _PAGE):
            await self._call("drop_keyframes", stream, *versions[start : start + _PAGE])

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content. Raises LimitExceeded beyond 512 MiB."""
        await self._call("put_blob", name, _fits(rows.blob_as_stored(name, data)))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord if they do not match their checksum."""
        found = await self._ask("GET", f"{self._space}b:{name}")
        return None if found is None else rows.blob_of(name, found)

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self._call("drop_blob", name)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        return await self._names("blobs", "", after, limit)

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired. Raises CorruptRecord where its checksum fails."""
        found = await self._cells(f"[{name}", f"[{name}", 1)
        return found[0] if found else None

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        self._alive()
        low, high = _range(prefix, after)
        return await self._cells(low, high, limit)

    async def _cells(self, low: Word, high: Word, limit: int) -> list[Cell]:
        found: list[Cell] = []
        while (left := min(_PAGE, limit - len(found))) > 0:
            time, *page = await self._call("cells", low, high, left)
            now = time if self._now_ms is None else self._now_ms()
            for name, stored in zip(page[::2], page[1::2], strict=True):
                if stored is None:
                    raise rows.damaged(f"the cell {name!r}", repr(name), "it is not there")
                cell = rows.cell_of(rows.text_of(name, "a cell"), stored)
                if cell.expires is None or cell.expires > now:
                    found.append(cell)
            if len(page) < 2 * left:
                break
            low = b"(" + page[-2]
        return found

    # care

    async def check(self) -> list[str]:
        """Problems of this namespace in words: rows that are missing, counts that disagree, checksums."""
        self._alive()
        return await server.problems(self, self._call)

    async def stats(self) -> StorageStats:
        """Counts of this namespace; the size is of all that the server holds, of others too."""
        counts = await self._call("stats")
        if min(counts) < 0:
            raise rows.damaged("the number of keyframes", self._space + "keyframes", "it is no number")
        memory = await server.info(self._ask, "memory")
        return StorageStats(*counts, size_bytes=int(memory.get("used_memory", 0)))

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the server is, and what its settings promise now."""
        async with within(timeout_s, self._shown):
            return await vital.look(self._ask, self._shown)

    async def scrub(self) -> None:
        """Have Redis write its log and its snapshot anew, and forget its list of slow commands.

        Raises Unsupported where the server forbids that, StorageTimeout if it takes longer than ten minutes. Cost: Redis
        forks and writes all it holds, of others too.
        """
        await server.scrub(self._ask, self._shown)

    async def backup(self, path: str) -> None:
        """Not here."""
        self._alive()
        raise Unsupported(
            f"{self._shown} cannot be backed up to {path} from here: copy the store to a file, "
            "or keep the snapshots that Redis itself writes (BGSAVE)",
            capability="backup",
        )

    async def recover(self) -> None:
        """Connect anew and end the session that failed, so that nothing of it can land any more.

        Waits up to ten seconds for a server that restarts. Raises StorageError while that cannot be done.
        """
        self._alive()
        async with self._turn:
            self._broken = True
            await patiently(self._begin_again, self._patience_s)

    async def _begin_again(self) -> None:
        await self._writing.reset()
        await self._reading.reset()
        self._alive()
        await self._begin()

    async def close(self) -> None:
        """Finish what was begun, release everything. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        async with self._turn:
            if self._closed:
                return
            self._closed = True
            if self._session and self._writing.is_open:
                # behind the commits under way; where it fails, Redis forgets the session by itself
                with suppress(StorageError, Denied, Closed):
                    await self._writing.ask("DEL", f"{self._prefix}:session:{self._session}")
        await self._news.close()
        await self._writing.close()
        await self._reading.close()


def _outcome(names: list[str], answer: list[Any]) -> Outcome:
    if isinstance(answer[0], int):
        return Committed(answer[0], answer[1])
    moved, taken = answer
    heads = tuple(rows.head_of(names[i - 1], h) for i, h in zip(moved[::2], moved[1::2], strict=True))
    return Refused(heads, tuple(name.decode() for name in taken))


def _range(prefix: str, after: str) -> tuple[Word, Word]:
    """Return bounds for ZRANGEBYLEX, which compares bytes: for UTF-8 that is the order by code point."""
    low = f"({after}" if after and after >= prefix else f"[{prefix}" if prefix else "-"
    high = b"(" + prefix.encode() + b"\xff" if prefix else "+"  # no UTF-8 has that byte
    return low, high


def _fits(value: bytes) -> bytes:
    if len(value) > _VALUE_BYTES_MAX:
        raise LimitExceeded(
            f"Redis holds values of up to {_VALUE_BYTES_MAX} bytes, this has {len(value)}; keep it elsewhere",
            limit="value_bytes",
            allowed=_VALUE_BYTES_MAX,
            found=len(value),
        )
    return value
