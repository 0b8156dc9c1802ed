"""NATS JetStream: a store that lives on a server or on a cluster of them.

1. The log is one JetStream stream, with a subject for each stream and cell of ours; keyframes, blobs and what replaces
   rewritten records lie in a second one beside it. What is in a message: _nats_rows.py.
2. A call of `commit` is one atomic batch where it can be (_nats_writer.py), refused as a whole where a subject moved on.
3. `recover` ends the session: whatever of it is still on its way is refused when it arrives.
4. What is durable is the server's business, and it does not tell: `sync_interval: always` is claimed by the URL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from quire import forks
from quire.errors import (
    Closed,
    CorruptRecord,
    Denied,
    StorageError,
    StorageUnavailable,
    Unsupported,
)
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _nats_rows as rows
from quire.storage import _nats_server as server
from quire.storage import _nats_vitals as vital
from quire.storage import _nats_writer as writing
from quire.storage._nats_floor import Floor
from quire.storage._nats_log import Log
from quire.storage._nats_shelf import Shelf
from quire.storage._nats_wire import Address, Moved, Wire
from quire.storage._nats_writer import Places, Writer
from quire.storage._vitals import within
from quire.storage._waiting import patiently
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Tally, Vitals, page_of, tally_of

_OLDEST = (2, 12)
_TIMEOUT_S = 10.0
_PATIENCE_S = 15.0
"""How long reading and `recover` wait for a server that restarts or a cluster that finds a leader."""
_LOOK_S = 1.0
"""`changed` looks by itself this often: who commits tells of it afterwards, and may die before."""
_PAGE = 500


async def open_nats(
    address: Address,
    *,
    namespace: str,
    stream: str = "quire",
    replicas: int = 1,
    synced: bool = False,
    now_ms: Callable[[], int] | None = None,
    timeout_s: float = _TIMEOUT_S,
    patience_s: float = _PATIENCE_S,
) -> NatsBackend:
    """Open the store in a stream of a NATS server, making it if there is none.

    stream: letters, digits, _ and -; a second one, STREAM-side, is made with it.  replicas: of both when they are made.
    synced: whether whoever runs the servers says that their `sync_interval` is always.
    now_ms: the clock that cells expire by, UTC milliseconds; the server's own by default.
    timeout_s: how long an answer may take.  patience_s: how long a server that restarts is waited for.
    Raises StorageUnavailable, StorageTimeout, StorageFull, Denied, Unsupported, IncompatibleFormat.
    """
    backend = NatsBackend(address, namespace, stream, now_ms, timeout_s, patience_s)
    try:
        await backend.start(replicas, synced=synced)
    except BaseException:
        await backend.close()
        raise
    return backend


class NatsBackend:
    """A namespace of a store in JetStream. Made by `open_nats`."""

    capabilities: Capabilities

    def __init__(
        self,
        address: Address,
        namespace: str,
        stream: str,
        now_ms: Callable[[], int] | None,
        timeout_s: float,
        patience_s: float,
    ) -> None:
        self._shown = address.shown
        self._now_ms = now_ms
        self._patience_s = patience_s
        self._pid = os.getpid()
        forks.keep(self)
        self._closed = False
        self._broken = False
        self._turn = asyncio.Lock()
        self._reading, self._writing = Wire(address, timeout_s), Wire(address, timeout_s)
        self._places = Places(stream, namespace)
        self._shelf = Shelf(self._reading, stream, patience_s)
        self._side = Shelf(self._reading, f"{stream}-side", patience_s)
        self._own = Shelf(self._writing, stream, patience_s)
        self._log = Log(self._shelf, self._side, self._places)
        self._writer = Writer(self._own, self._places, now_ms)
        self._floor = Floor(self._writing, f"{stream}-floor")
        self._news = f"{stream}-news"
        self._events: set[asyncio.Event] = set()
        self._heard_on: Client | None = None

    async def start(self, replicas: int, *, synced: bool) -> None:
        """Look at the server, find or make the two streams."""
        await self._reading.open()
        version = self._reading.client.connected_server_version
        if (version.major, version.minor) < _OLDEST:
            raise Unsupported(f"{self._shown} is NATS {version}; 2.12 or newer is needed", capability="nats>=2.12")
        configs = [await server.claim(shelf, replicas, self._shown) for shelf in (self._shelf, self._side)]
        for shelf, config in zip((self._shelf, self._side), configs, strict=True):
            shelf.replicas = config["num_replicas"]
        self._own.replicas = self._shelf.replicas
        await self._writing.open()
        self._synced = synced
        self.capabilities = server.promised(configs, synced=synced)

    def _alive(self) -> None:
        if self._closed:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in as few batches as they can be."""
        self._alive()
        if not items:
            return []
        async with self._turn:  # first come, first sent: a call begins when the one before it was answered
            self._alive()
            if self._broken:
                raise StorageUnavailable(f"{self._shown}: an earlier commit failed; `recover` has to settle it first")
            try:
                await self._writing.open()  # nothing is under way on it: a connection that broke meanwhile does no harm
                await self._floor.wait()
                outcomes = await self._writer.commit(items)
                await self._floor.judge(outcomes)
                if any(item.records for item in items):
                    await self._writing.tell(self._news)
            except BaseException:
                self._broken = True
                raise
        self._wake()
        return outcomes

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first. The beginning is found by halving: O(log n) questions."""
        self._alive()
        if limit == 0:
            return []
        runs = await self._log.runs(stream, max(after, 0), upto, limit)
        found = [r for run in runs for r in run.records if r.version > after and (upto is None or r.version <= upto)]
        return page_of(found, limit)

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment."""
        self._alive()
        return [head for head, _ in await self._log.newest(streams)] if streams else []

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams, sorted. JetStream lists all of a kind, in no order: O(streams)."""
        self._alive()
        kind, slash, _ = prefix.partition("/")
        names = await self._log.streams(kind if slash else None)
        return sorted(n for n in names if n.startswith(prefix) and n > after)[:limit]

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads."""
        return tally_of(await self.heads(await self.streams(prefix)), but)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        self._alive()
        return page_of(await self._log.feed(after, limit), limit) if limit > 0 else []

    async def latest(self) -> int:
        """A position past every commit: that of the newest message, of cells too."""
        self._alive()
        last = await self._log.last_sequence()
        return last * rows.PLACES + rows.PLACES - 1 if last > 1 else 0  # the first is the anchor

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit: who commits tells of it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        event = asyncio.Event()
        self._events.add(event)
        try:
            while (latest := await self.latest()) <= after and (left := until - loop.time()) > 0:
                if await self._listen():
                    continue  # what came before we listened was not heard
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, _LOOK_S)):
                        await event.wait()
                event.clear()
            return latest
        finally:
            self._events.discard(event)

    async def _listen(self) -> bool:
        """Listen for news on the connection that is open now; return whether that is new."""
        client = self._reading.client
        if self._heard_on is client:
            return False
        self._heard_on = client

        async def heard(_: Msg) -> None:
            self._wake()

        try:
            await client.subscribe(self._news, cb=heard)
            await client.flush()
        except (NatsError, OSError, TimeoutError) as error:
            self._heard_on = None
            raise StorageUnavailable(f"{self._shown}: the connection broke; try again") from error
        return True

    def _wake(self) -> None:
        for event in self._events:
            event.set()

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many. Each message is overwritten."""
        self._alive()
        return await self._log.trim(stream, upto)

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes: from the oldest on, not in one moment."""
        self._alive()
        await self._log.drop(stream)

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, in one batch; return how many were found."""
        self._alive()
        wanted: dict[str, dict[tuple[int, bytes], bytes]] = {}
        for r in records:
            wanted.setdefault(r.stream, {})[r.version, r.chain] = r.body
        changed: dict[int, Any] = {}
        count = 0
        for stream, bodies in wanted.items():
            versions = [version for version, _ in bodies]
            for run in await self._log.runs(stream, max(0, min(versions) - 1), max(versions), None):
                given = [bodies.get((r.version, r.chain)) for r in run.records]
                if any(body is not None for body in given):
                    count += sum(body is not None for body in given)
                    pairs = zip(run.records, given, strict=True)
                    changed[run.of] = run._replace(records=[r if b is None else _with_body(r, b) for r, b in pairs])
        await self._log.replace(list(changed.values()))
        return count

    # keyframes

    def _frame(self, stream: str, version: int | str) -> str:
        return self._places.beside("k", f"{rows.tokens(stream)}.{version}")

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        (head,) = await self.heads([keyframe.stream])
        if head.version == 0:
            return
        subject = self._frame(keyframe.stream, keyframe.version)
        data = rows.frame_as_stored((keyframe.chain, keyframe.size, keyframe.digest, keyframe.body))
        before = await self._side.newest(subject)
        await self._keep(subject, subject, data)
        if before is not None:
            await self._log.erase_all(self._side, subject, before.sequence)

    async def _keep(self, subject: str, name: str, data: bytes, *, expected: int | None = None) -> None:
        parts = subject.split(".")
        parts_on = ".".join([parts[0], "q", *parts[2:]])
        whole = rows.summed(name, data)
        await self._side.patiently(
            lambda: self._side.put(self._side.pieces(subject, parts_on, rows.About(), whole, expected=expected))
        )

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at. Raises CorruptRecord if it does not match its checksum."""
        versions = [v for v in await self.keyframes(stream) if at is None or v <= at]
        if not versions:
            return None
        subject = self._frame(stream, versions[-1])
        message = await self._side.newest(subject)
        if message is None:  # dropped just now
            return None
        data = rows.unsummed("keyframe", subject, await self._side.whole(message))
        return Keyframe(stream, versions[-1], *rows.frame_of(data))

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        self._alive()
        subjects = await self._side.subjects(self._frame(stream, "*"))
        return sorted(int(subject.rsplit(".", 1)[1]) for subject in subjects)

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        self._alive()
        there = set(await self.keyframes(stream)) if versions else set()
        for version in there & set(versions):
            await self._log.erase_all(self._side, self._frame(stream, version))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content. Raises LimitExceeded beyond a batch's size."""
        self._alive()
        with suppress(Moved):  # it is there
            await self._keep(self._places.beside("b", rows.token(name)), name, data, expected=0)

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord if they do not match their checksum."""
        self._alive()
        message = await self._side.newest(self._places.beside("b", rows.token(name)))
        return None if message is None else rows.unsummed("blob", name, await self._side.whole(message))

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        self._alive()
        await self._log.erase_all(self._side, self._places.beside("b", rows.token(name)))

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        self._alive()
        subjects = await self._side.subjects(self._places.beside("b", "*"))
        return sorted(n for s in subjects if (n := rows.text(s.rsplit(".", 1)[1])) > after)[:limit]

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired. Raises CorruptRecord where its checksum fails."""
        self._alive()
        found = await self._found_cells([name])
        return found[0] if found else None

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        self._alive()
        names = [rows.text(s.rsplit(".", 1)[1]) for s in await self._shelf.subjects(self._places.cells())]
        wanted = sorted(n for n in names if n.startswith(prefix) and n > after)
        found: list[Cell] = []
        while wanted and len(found) < limit:
            found += await self._found_cells(wanted[:_PAGE])
            wanted = wanted[_PAGE:]
        return found[:limit]

    async def _found_cells(self, names: Sequence[str]) -> list[Cell]:
        """Return those that are there and unexpired."""
        by_subject = {self._places.cell(name): name for name in names}
        messages = await self._shelf.last(list(by_subject))
        expiring = any(m.about.ttl is not None for m in messages.values())
        now = self._now_ms() if self._now_ms is not None else await writing.now_of(self._shelf) if expiring else 0
        found: list[Cell] = []
        for subject, name in by_subject.items():
            message = messages.get(subject)
            value = writing.value_of(name, message, now)
            if message is not None and value is not None:
                found.append(Cell(name, value, writing.expires_of(message)))
        return found

    # care

    async def check(self) -> list[str]:
        """Problems of this namespace in words: versions that are missing, heads that disagree, checksums."""
        self._alive()
        found: list[str] = []
        for stream in await self.streams():
            with _noting(found):
                (head,) = await self.heads([stream])
                records = await self.read(stream, upto=head.version)
                first = records[0].version if records else head.version
                if [r.version for r in records] != list(range(first, head.version + 1)):
                    found.append(f"{stream}: {len(records)} records for versions {first} to {head.version}")
                elif records[-1].chain != head.chain:
                    found.append(f"{stream}: the newest record is not the one that its head names")
                for version in await self.keyframes(stream):
                    await self.keyframe(stream, version)
        for name in await self.blobs(limit=1 << 60):
            with _noting(found):
                await self.blob(name)
        with _noting(found):
            await self.cells(limit=1 << 60)
        return found

    async def stats(self) -> StorageStats:
        """Counts of this namespace: two questions for each stream. The size is of the whole store."""
        self._alive()
        streams = await self.streams()
        heads = await self.heads(streams)
        records = 0
        for stream, head in zip(streams, heads, strict=True):
            records += head.version - await self._log.low(stream) + 1
        states = [(await shelf.api("STREAM.INFO"))["state"] for shelf in (self._shelf, self._side)]
        return StorageStats(
            streams=len(streams),
            records=records,
            keyframes=len(await self._side.subjects(self._places.beside("k", "*.*.*"))),
            blobs=len(await self._side.subjects(self._places.beside("b", "*"))),
            cells=len(await self._shelf.subjects(self._places.cells())),
            size_bytes=sum(state["bytes"] for state in states),
        )

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the servers are: who follows, and what room there is."""
        self._alive()
        async with within(timeout_s, self._shown):
            await self._reading.open()
            shelves = (self._shelf, self._side)
            return await vital.look(self._reading, shelves, self._shown, timeout_s / 2, synced=self._synced)

    async def scrub(self) -> None:
        """Erase what was rewritten and is left of an interruption; what was removed was overwritten then already."""
        self._alive()
        await self._log.clear()

    async def backup(self, path: str) -> None:
        """Not here."""
        self._alive()
        raise Unsupported(
            f"{self._shown} cannot be backed up to {path} from here: copy the store to a file, "
            "or use `nats stream backup`",
            capability="backup",
        )

    async def recover(self) -> None:
        """Connect anew and end the session that failed, so that nothing of it can land any more.

        Waits up to 15 seconds for a server that restarts, or a cluster without a leader. Raises StorageError while that
        cannot be done.
        """
        self._alive()
        async with self._turn:
            self._broken = True
            await patiently(self._begin_again, self._patience_s)

    async def _begin_again(self) -> None:
        await self._writing.reset()
        await self._reading.reset()
        self._alive()
        await self._writing.open()
        await self._writer.fence()
        self._broken = False

    async def close(self) -> None:
        """Finish what was begun, release everything. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        async with self._turn:
            if self._closed:
                return
            self._closed = True
            if self._writing.is_open and not self._broken:
                with suppress(StorageError, Denied, Closed):  # the server forgets the session by itself
                    await self._writer.end()
        self._wake()
        await self._writing.close()
        await self._reading.close()


class _noting:  # noqa: N801 - reads as a verb
    """Write damage down instead of raising it."""

    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __enter__(self) -> None: ...

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, CorruptRecord):
            self._found.append(str(error))
            return True
        return False


def _with_body(record: Record, body: bytes) -> Record:
    return Record(
        *(record.stream, record.version, record.time, record.author, record.message, record.kind),
        *(body, record.chain, record.position),
    )
