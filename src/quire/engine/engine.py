"""The engine of one open store: residents, committer and watchers wired to a backend.

What happens to a write: `write` -> committer -> actor (fold, seal) -> backend (durable) -> published state -> watchers
-> the caller. What happens to a read: ask the backend cheaply whether another process committed, take that in, answer
from the resident state.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from typing import Any

from quire import forks
from quire.config import Settings
from quire.core import keyframes
from quire.core.path import format as pointer
from quire.core.resolve import Policy
from quire.core.schema import Schemas
from quire.engine.actor import Actor
from quire.engine.backend_clock import BackendClock
from quire.engine.clock import Clock
from quire.engine.committer import Committer
from quire.engine.moving.paging import absent, names
from quire.engine.resident import Residents
from quire.engine.starts import Start
from quire.engine.write import Write
from quire.errors import (
    Closed,
    CorruptRecord,
    InvalidState,
    LimitExceeded,
    MigrationFailed,
    NotFound,
    QuireError,
    StorageError,
    VersionNotFound,
)
from quire.failpoints import hit
from quire.locks import NamedLocks
from quire.model import WORKFLOWS, Head, Path, Record, Version
from quire.storage.base import Archive, Backend, CellWrite, more_may_follow
from quire.threads import Threads, aside

log = logging.getLogger("quire.engine")

_FEED_PAGE = 1000
_POLL_S = 1.0
"""How long one wait for other processes lasts; a commit ends it early."""


class Engine:
    """One per open store and event loop."""

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        clock: Clock,
        ids: Callable[[], str],
        seen: int,
        policy: Policy | None = None,
        schemas: Schemas | None = None,
        archive: Archive | None = None,
    ) -> None:
        """seen: the backend's latest position at opening; what came before is read when asked for.

        policy: for writes that do not say what becomes of conflicts.  schemas: what states may look like.
        archive: of this backend.
        """
        self.policy: Policy | None = policy
        self.backend = backend
        self.settings = settings
        self.clock = clock
        self.ids = ids
        self.schemas = schemas or Schemas()
        self.residents = Residents(backend, settings, self.schemas, archive)
        self.committer = Committer(backend, self.residents, settings, clock, self._committed, self._look_around)
        self.backend_clock = BackendClock(backend, self.committer, clock)
        self.threads = Threads(settings.threads_max)
        """Where plain functions of the caller's run that may take long."""
        self.archive = archive
        if archive is not None:
            archive.turn = self.committer.turn
        self.recent: deque[Record] = deque(maxlen=settings.feed_records)
        self.seen = seen
        self._reached = seen
        """What the store was said to have reached, or what was acknowledged here. The feed may be ahead of that."""
        self.closed = False
        self.pid = os.getpid()
        """The process that opened the store: in the child of a fork every use raises."""
        self._catching_up = asyncio.Lock()
        self._waiters: list[asyncio.Future[None]] = []
        self._watching = 0
        self._poller: asyncio.Task[None] | None = None
        self._locks = NamedLocks()
        self._keyframes_due: dict[str, None] = {}
        self._keyframer: asyncio.Task[None] | None = None
        self._forgotten: dict[tuple[str, Path], int] = {}
        self._forgetting: asyncio.Future[Any] | None = None

    # writing

    async def write(self, write: Write, cells: Sequence[CellWrite] = ()) -> Version | None:
        """Write to one stream; None when nothing changed and no version was asked for."""
        if self.schemas:
            await self.live(write.stream)
        return (await self.committer.submit((write,), cells))[0]

    async def write_all(self, writes: Sequence[Write]) -> list[Version | None]:
        """Write to several streams, all or none, durable together."""
        if self.schemas:
            for write in writes:
                await self.live(write.stream)
        return await self.committer.submit(writes)

    async def take_blob(self, size_bytes: int) -> None:
        """Count a blob that is about to be put. Raises LimitExceeded for one that is too large, and where the store is full."""
        allowed = self.settings.blob_bytes_max
        if size_bytes > allowed:
            raise LimitExceeded(
                f"a blob of {size_bytes:,} bytes, allowed are {allowed:,} (blob_bytes_max); divide it",
                limit="blob_bytes_max",
                allowed=allowed,
                found=size_bytes,
            )
        await self.committer.quota.take(size_bytes)

    def key_lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """One task at a time per name."""
        return self._locks.hold(name)

    def check_open(self, to: str) -> None:
        """Raise Closed unless the store is open, in this process. to: what for."""
        forks.check(self.pid)
        if self.closed:
            raise Closed(f"the store is closed; open it again to {to}")

    # reading

    async def current(self, stream: str) -> Actor:
        """Return the actor of a stream with everything that any process had committed before the call."""
        self.check_open("read")
        await self._look_around()
        actor = self.residents.peek(stream) or await self.residents.get(stream)
        while actor.outrun:
            if actor.pending:
                async with self.committer.turn:
                    pass
                await asyncio.sleep(0)
            else:
                actor.stale = True  # its batch was given up before it could be refused
            actor = self.residents.peek(stream) or await self.residents.get(stream)
        return actor

    async def live(self, stream: str) -> Actor:
        """Return what `current` does, its state migrated to the schema that this program knows.

        Each step is one version. Whoever comes second finds it done; after a crash it goes on where it stood.
        Raises MigrationFailed.
        """
        actor = await self.current(stream)
        while self.schemas and actor.exists and (step := self.schemas.step(actor.state)) is not None:
            where = stream.removeprefix(WORKFLOWS)
            write = Write(
                stream,
                partial(step.changes, where),
                author="quire",
                message=f"migrated from {step.before} to {step.after}",
                kind="migrate",
            )
            try:
                await self.committer.submit((write,))
            except (InvalidState, LimitExceeded) as error:
                raise MigrationFailed(where, step.before, step.after, str(error)) from error
            hit("migrate:step")
            actor = await self.current(stream)
        return actor

    async def state_at(self, stream: str, version: int) -> dict[str, Any]:
        """Return the state at a version, not to be altered. Raises VersionNotFound, CorruptRecord."""
        return (await self.start_at(stream, version))[0]

    async def start_at(self, stream: str, version: int) -> tuple[dict[str, Any], int]:
        """Return the state at a version for a fork to begin with, and what it weighs at most, as `Write.start_bytes`."""
        if not self.is_past(stream, version):
            actor = await self.current(stream)
            if version == actor.head.version:
                return actor.state, actor.state_size
            if not 1 <= version < actor.head.version:
                raise VersionNotFound(stream.removeprefix(WORKFLOWS), version, newest=actor.head.version)
        return await self.residents.materialise(stream, version)

    async def heads(self, prefix: str) -> AsyncGenerator[list[Head]]:
        """Yield the heads of the streams whose names begin so, in pages, in the order of their names."""
        async for page in names(self.backend, prefix):
            yield [head for head in await self.backend.heads(page) if head.version]

    async def state_of(self, head: Head) -> dict[str, Any]:
        """Return the state at a head that was listed, not to be altered. What has to be read is not kept in memory."""
        actor = self.residents.peek(head.stream)
        if actor is not None and actor.head.version == head.version:
            return actor.state
        return (await self.residents.materialise(head.stream, head.version))[0]

    def is_past(self, stream: str, version: int) -> bool:
        """Tell whether a version is known to be older than the head, without looking what others wrote: that stays true."""
        actor = self.residents.peek(stream)
        return actor is not None and 1 <= version < actor.head.version

    async def record(self, stream: str, version: int) -> Record:
        """Return one record. Raises VersionNotFound, CorruptRecord."""
        found = await self.backend.read(stream, after=version - 1, upto=version) if version > 0 else []
        if not found:
            raise await absent(self.backend, stream, version)
        return found[0]

    async def outdate(self, stream: str, *, state: bool) -> None:
        """Forget records that were rewritten. state: also the newest state, which is not what it was."""
        self.recent.clear()
        actor = self.residents.peek(stream)
        if actor is None:
            return
        actor.recent.clear()
        if state:
            while actor.pending:  # noqa: ASYNC110 - it lasts a commit, which would be published where nobody looks
                await asyncio.sleep(0)
            actor.stale = True

    # watching

    def watch_start(self, stream: str) -> Start:
        """Return where a watcher of a stream starts that is called now. Does not wait."""
        return self.residents.watch_start(stream, load=not self.closed)

    @contextmanager
    def watching(self) -> Generator[None]:
        """While any such context is open, `wait` also notices other processes' commits."""
        self._watching += 1
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield
        finally:
            self._watching -= 1
            if self._watching == 0:
                self._poller.cancel()
                self._poller = None

    async def wait(self, stream: str | None, after: int) -> None:
        """Wait until a stream's head passes version `after`; with None, the store passes position `after`."""
        forks.check(self.pid)
        if self.closed:
            raise Closed("the store was closed while watching")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if stream is None:
            if self.seen > after:
                return
            self._waiters.append(waiter)
        else:
            actor = await self.current(stream)
            if self.residents.peek(stream) is not actor:
                actor = await self._kept(stream)
            if actor.head.version > after:
                return
            actor.waiters.append(waiter)
        await waiter

    async def close(self) -> None:
        """Finish queued writes, stop the tasks, close the backend. In the child of a fork it does nothing."""
        if self.closed or os.getpid() != self.pid:
            return
        await self.threads.close()  # what runs there may still have something to write
        await _ended(self._keyframer)
        if self._forgetting is not None:  # what was written down is to be done
            await asyncio.gather(self._forgetting, return_exceptions=True)
        await self.committer.close()
        self.closed = True
        await self.residents.close()
        await _ended(self._poller)
        await _ended(self._keyframer)
        self._wake_store()
        self.residents.each(Actor.wake)
        await self.backend.close()

    # inside

    async def _kept(self, stream: str) -> Actor:
        """Return what `current` does, but only an actor that is in memory still: no other one is woken for its waiters."""
        self.residents.hold(stream)  # the loads of other streams would drop it again
        try:
            while True:
                actor = await self.current(stream)
                if self.residents.peek(stream) is actor:
                    return actor
        finally:
            self.residents.release(stream)

    def _committed(self, records: list[Record], actors: list[Actor]) -> None:
        """Our own commit is durable and published."""
        first, last = records[0].position, records[-1].position
        self._reached = max(self._reached, last)
        if first == self.seen + 1 and last - first + 1 == len(records):
            self.recent.extend(records)
            self.seen = last
        # otherwise somebody else's commits lie between: the next look at the backend reads them all in order
        least = self.settings.keyframe_changes_min
        for actor in actors:
            if actor.changes_since_keyframe >= least and self._keyframe_due(actor):
                self._keyframes_due[actor.head.stream] = None
        if self._keyframes_due and self._keyframer is None:
            self._keyframer = asyncio.get_running_loop().create_task(self._write_keyframes())
        self._wake_store()

    async def _look_around(self) -> None:
        """Take in what any process had committed before the call. Cost: little where nobody did.

        Raises CorruptRecord where the store has gone back: commits that were read, or acknowledged, are no longer there.
        """
        reached = self._reached
        latest = await self.backend.latest()
        if latest < reached:
            where = self.backend.capabilities.backend
            raise CorruptRecord(
                f"the newest position of the store ({where}) is {latest}, and was {reached}: it was emptied, or an older copy "
                "took its place, and acknowledged writes are gone; restore a backup, or open it anew to go on from there"
            )
        self._reached = max(latest, self._reached)
        if latest > self.seen:
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Take in what other processes committed."""
        async with self._catching_up, self.committer.still:
            target = await self.backend.latest()
            if self.archive is not None and self.seen < target and await self.archive.top() > self.seen:
                self._skip(target)
            while self.seen < target:
                page = await self.backend.feed(self.seen, limit=_FEED_PAGE)
                for entry in page:
                    if entry.position <= self.seen:
                        continue  # our own commit was published while we read
                    self.recent.append(entry)
                    self.seen = entry.position
                    self._take_in(entry)
                if not more_may_follow(page, _FEED_PAGE):
                    self.seen = max(self.seen, target)
            self._wake_store()

    def _skip(self, target: int) -> None:
        """Part of what others committed is in the archive by now, and nobody who asks for the newest waits for that."""
        self.recent.clear()
        self.seen = target
        self.residents.outdate()

    def _take_in(self, entry: Record) -> None:
        actor = self.residents.peek(entry.stream)
        if actor is None:
            self.residents.passed(entry.stream, entry.version)
            return
        if entry.version <= actor.head.version:
            return
        if actor.pending:
            actor.outrun = True
            return
        try:
            if entry.version == actor.head.version + 1:
                actor.absorb([entry])
                self.residents.settle(actor)
            else:
                actor.stale = True
        except (CorruptRecord, QuireError):
            actor.stale = True  # loading it again says exactly what is wrong, to whoever asks
        actor.wake()

    def _wake_store(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _keyframe_due(self, actor: Actor) -> bool:
        return keyframes.due(
            changes=actor.changes_since_keyframe,
            size=actor.size_since_keyframe,
            last_size=actor.keyframe_size,
            changes_min=self.settings.keyframe_changes_min,
            bytes_min=self.settings.keyframe_bytes_min,
            ratio=self.settings.keyframe_ratio,
        )

    async def frame(self, stream: str, version: int) -> None:
        """See to it that there is a keyframe of a version: a log that lost its beginning begins with one.

        Cost: lists the keyframes; where there is none, reads that state.
        """
        if version not in await self.backend.keyframes(stream):
            state = await self.state_at(stream, version)
            head = Head(stream, version, (await self.record(stream, version)).chain)
            await self.backend.put_keyframe(await aside(keyframes.make, head, state))

    async def _write_keyframes(self) -> None:
        """Off the commit path: nobody waits for this, and losing it loses nothing."""
        try:
            while self._keyframes_due:
                stream = next(iter(self._keyframes_due))
                del self._keyframes_due[stream]
                actor = await self.residents.get(stream)
                if not self._keyframe_due(actor):
                    continue
                head, state = actor.head, actor.state
                changes, size = actor.changes_since_keyframe, actor.size_since_keyframe
                frame = await aside(keyframes.make, head, state)
                await self.backend.put_keyframe(frame)
                actor.changes_since_keyframe -= changes
                actor.size_since_keyframe -= size
                actor.keyframe_size = len(frame.body)
                if actor.weight is None:
                    actor.state_size = frame.size + actor.size_since_keyframe
                self.residents.settle(actor)
                gone = 0 if self.archive is None else await self.archive.went(stream)
                old = keyframes.surplus([v for v in await self.backend.keyframes(stream) if v > gone])
                if old:
                    await self.backend.drop_keyframes(stream, old)
                if old and self.archive is not None and (gone := await self.archive.went(stream)) and gone + 1 in old:
                    await self.frame(stream, gone + 1)  # a sweep elsewhere made it meanwhile what the log begins with
                await self._forget(stream, state)
        except (StorageError, NotFound) as error:
            log.warning("a keyframe could not be written, reading will be slower until one can: %s", error)
        finally:
            self._keyframer = None

    async def _forget(self, stream: str, state: dict[str, Any]) -> None:
        """Take out of the past what the schema keeps no history of. Seldom: each record is looked at once."""
        for rule in self.schemas.unkept(state):
            from quire.engine.redaction import forget  # which is built on this file

            where = (stream, rule.path)
            what = f"history of {pointer(rule.path)}"
            write = Write(stream, (), author="quire", message=f"no {what} is kept")
            workflow_id = stream.removeprefix(WORKFLOWS)
            after = self._forgotten.get(where, 0)
            self._forgetting = asyncio.ensure_future(
                forget(self, workflow_id, rule, write, what=what, after=after, scrub=False)
            )
            self._forgotten[where] = (await asyncio.shield(self._forgetting))[1]

    async def _poll(self) -> None:
        """While somebody watches, look out for other processes' commits."""
        while True:
            try:
                if await self.backend.changed(self.seen, timeout_s=_POLL_S) > self.seen:
                    await self._catch_up()
            except StorageError as error:
                log.warning("watching: the store does not answer, trying again: %s", error)
                await self.clock.sleep(_POLL_S)


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
