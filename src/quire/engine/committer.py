"""Group commit: while one commit is on its way to the disk, writes gather for the next.

1. One commit is in flight at a time. Everything queued meanwhile, of any workflow, goes into the next: one
   transaction, one fsync, one wake-up of the loop.
2. A caller is answered only when its write is durable, refused, or known not to be stored.
3. An error out of the backend means the outcome is unknown. The backend is reconnected and the log is asked; only
   what was found is acknowledged, only what was not found is reported as failed.
4. Refused means another process was first. What it wrote is read, and the writes go onto the new head.
5. What no commit checks, a refusal and a write that changes nothing, is decided on the newest versions of all
   processes. One look at the backend serves all writes made before it.
6. Whatever fails, and whoever's code it is, those whose write it was are told, and the others go on: nobody is left
   waiting. Only a cancellation of this task or the end of the program stops it, and then everybody is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import perf_counter

import msgspec

from quire import forks
from quire.calls import failure
from quire.config import Settings
from quire.core.refusals import between_parts
from quire.engine import conflicts
from quire.engine.actor import Actor, NeedHistory, NeedThread
from quire.engine.bundle import Bundle, Stamp, Submission, join
from quire.engine.clock import Clock
from quire.engine.correlation import CAUSE, sign
from quire.engine.moving.paging import pages
from quire.engine.quota import Quota, frees
from quire.engine.resident import Residents
from quire.engine.telling import INTERRUPTED, STOPPED, stops, twin, typed
from quire.engine.write import Before, Write
from quire.errors import (
    Closed,
    Conflict,
    FilesChanged,
    LimitExceeded,
    MergeConflict,
    OutcomeUnknown,
    QuireError,
    RequestError,
    StorageTimeout,
)
from quire.model import WORKFLOWS, Record, Version
from quire.storage.base import Backend, CellWrite, Committed, Item, Outcome, Refused
from quire.threads import aside

log = logging.getLogger("quire.engine")

_WEIGHINGS_MAX = 3
"""How often a state is weighed that other processes go on writing, before that is done without letting go of it."""
_TOOK_KEPT = 512
"""Commits whose duration is remembered; older ones are forgotten."""

_holding: ContextVar[frozenset[str]] = ContextVar("quire_holding", default=frozenset())
"""The streams that the running code holds, see `held`."""

_place = msgspec.structs.force_setattr
"""For the one field of a record that is not known before its commit: nobody else has seen the record by then."""


class CellMoved(Conflict):
    """A cell did not hold what the write expected. `names` says which."""

    code = "cell_moved"

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"changed meanwhile: {', '.join(names)}")
        self.names = tuple(names)


class _NeedStream(Exception):
    """A stream that belongs to a write is not in memory."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.stream = stream


class Committer:
    """The one writer of a store."""

    def __init__(
        self,
        backend: Backend,
        residents: Residents,
        settings: Settings,
        clock: Clock,
        committed: Callable[[list[Record], list[Actor]], None],
        look_around: Callable[[], Awaitable[None]],
    ) -> None:
        """committed: told of the records of each commit, in position order, and whose they are, before the writers.

        look_around: takes in what any process had committed before the call.
        """
        self._backend = backend
        self._residents = residents
        self._settings = settings
        self._clock = clock
        self._committed = committed
        self._look_around = look_around
        self._asked = 0
        """How many submissions were made."""
        self._looked = 0
        """How many of them had been made when what other processes wrote was last looked at."""
        self._queue: deque[Submission] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._batch: dict[str, Actor | None] = {}
        """What the batch is prepared on, by stream; None while it is being loaded. It stays in memory until the end."""
        self._closed = False
        self._pid = os.getpid()
        self._broken = False
        self._alone = 0
        """So many of the next submissions are committed one by one: the backend objects to one of them."""
        self.still = asyncio.Lock()
        """Held while a thread prepares a write: nothing is taken into an actor then."""
        self.turn = asyncio.Lock()
        """Held while a commit is on its way, and until what became of it is known: for whoever else commits."""
        self.commits = 0
        self.took_s: deque[float] = deque(maxlen=_TOOK_KEPT)
        """How long the backend took for each of the newest commits that did not fail."""
        self.quota = Quota(backend, settings, clock)
        self.before: Before | None = None
        """Asked of every write as it is prepared; None while there is no hook."""
        self._held: dict[str, asyncio.Event] = {}
        """Streams that one task holds, and what is set when it lets go."""

    @asynccontextmanager
    async def held(self, stream: str) -> AsyncGenerator[None]:
        """Have other writers of this process wait with their writes to a stream, so that what is decided on its head stands."""
        while (held := self._held.get(stream)) is not None:
            await held.wait()
        event = self._held[stream] = asyncio.Event()
        token = _holding.set(_holding.get() | {stream})
        try:
            yield
        finally:
            _holding.reset(token)
            del self._held[stream]
            event.set()

    async def submit(
        self, writes: Sequence[Write], cells: Sequence[CellWrite] = (), *, stamp: Stamp | None = None
    ) -> list[Version | None]:
        """Write all or none; return each write's version, None for one that changed nothing.

        cells: set in the same commit.  stamp: makes one more from the records, or raises to refuse them.
        If the caller is cancelled while waiting, the write may still happen. Raises what the writes raise, LimitExceeded,
        StorageTimeout when other processes kept winning, OutcomeUnknown, CellMoved, Closed.
        """
        forks.check(self._pid)
        most = self._settings.transaction_writes_max
        if len(writes) > most:
            raise LimitExceeded(
                f"a transaction of {len(writes):,} writes, allowed are {most:,} (transaction_writes_max); divide it",
                limit="transaction_writes_max",
                allowed=most,
                found=len(writes),
            )
        cause = CAUSE.get()
        if cause is not None:
            sign(writes, cause)
        loop = asyncio.get_running_loop()
        while self._held and (held := self._held_by_others(writes)) is not None:
            await held.wait()
        while len(self._queue) >= self._settings.queue_writes_max:
            room = loop.create_future()
            self._room.append(room)
            await room
        if self._closed:
            raise Closed("the store is closed; open it again to write")
        future: asyncio.Future[list[Version | None]] = loop.create_future()
        self._asked += 1
        self._queue.append(Submission(self._asked, writes, cells, stamp, future))
        if self._task is None:
            self._task = loop.create_task(self._drain())
            self._task.add_done_callback(_retrieved)
        return await future

    def _held_by_others(self, writes: Sequence[Write]) -> asyncio.Event | None:
        mine = _holding.get()
        return next((self._held[w.stream] for w in writes if w.stream in self._held and w.stream not in mine), None)

    async def put(self, item: Item) -> Outcome:
        """Commit an item that was made elsewhere, as one. It is told to readers like the commit of another process.

        Raises LimitExceeded where the store is full, OutcomeUnknown, StorageError, Closed.
        """
        if self._closed:
            raise Closed("the store is closed; open it again to write")
        if (full := await self.quota.full()) is not None:
            raise full
        async with self.turn:
            if self._broken and isinstance(outcome := await self._revive(), QuireError):
                raise outcome
            self.quota.wrote(len(item.records), sum(r.size_bytes for r in item.records))
            (outcome,) = await self._send((), [item])
        self.commits += 1
        if isinstance(outcome, QuireError):
            raise outcome
        return outcome

    @property
    def broken(self) -> bool:
        """Whether a commit failed in a way that could not be cleared up yet: the next write tries to."""
        return self._broken

    async def clear_up(self) -> None:
        """Reconnect after a commit whose outcome is not known: what is read from now on says what became of it.

        Nothing is done where there was none. Raises StorageError while that cannot be said; call it again then.
        """
        async with self.turn:
            outcome = await self._revive() if self._broken else None
        if isinstance(outcome, QuireError):
            raise outcome

    async def close(self) -> None:
        """Finish what is queued, refuse what comes later."""
        self._closed = True
        while self._task is not None:
            await asyncio.wait([self._task])
            await asyncio.sleep(0)

    async def _drain(self) -> None:
        try:
            while self._queue:
                await self._round()
                await asyncio.sleep(0)  # writers just answered get to queue again: larger commits
        except BaseException:
            self._fail_all(self._queue, STOPPED)
            self._queue.clear()
            raise
        finally:
            self._task = None
            self._make_room()

    async def _round(self) -> None:
        taken: list[Submission] = []
        try:
            bundles = await self._prepare(taken)
            if bundles:
                async with self.turn:
                    await self._commit(bundles)
        except BaseException as error:
            self._residents.each(Actor.abandon)
            if stops(error):
                self._fail_all(taken, STOPPED)
                raise
            log.exception("a mistake in Quire: writes could not be prepared or published")
            self._fail_all(taken or self._queue, typed(error, "preparing or publishing the write"))
            if not taken:
                self._queue.clear()
        finally:
            for stream in self._batch:
                self._residents.release(stream)
            self._batch.clear()
            self._residents.evict()
            self._make_room()

    def _fail_all(self, submissions: Iterable[Submission], error: QuireError) -> None:
        for submission in submissions:
            submission.fail(twin(error))

    def _make_room(self) -> None:
        while self._room and len(self._queue) < self._settings.queue_writes_max:
            room = self._room.popleft()
            if not room.done():
                room.set_result(None)

    async def _prepare(self, taken: list[Submission]) -> list[Bundle]:
        """Apply queued writes to their actors, up to the bounds of one commit."""
        bundles: dict[str, Bundle] = {}
        queue, settings = self._queue, self._settings
        full = await self.quota.full()
        now_ms = self._clock.now_ms()
        count = size = 0
        most = 1 if self._alone else settings.batch_writes_max
        while queue and count < most and size < settings.batch_bytes_max:
            if count and count + len(queue[0].writes) > most:
                break
            submission = queue.popleft()
            taken.append(submission)
            count += max(1, len(submission.writes))
            self._alone = max(0, self._alone - 1)
            if submission.future.done():  # its caller was cancelled before anything happened
                continue
            if full is not None and not frees(submission.writes):
                submission.fail(twin(full))
                continue
            actors: list[Actor] = []
            submission.refusal = None
            try:
                size += await self._sealed(submission, actors, bundles, now_ms)
            except (Exception, asyncio.CancelledError) as error:
                if stops(error):
                    raise
                # the caller's, whatever it is: plans are the caller's code
                refusal = error if isinstance(error, Exception) else typed(error, "reading what to write onto")
                if not any(actor.head.stream in bundles for actor in actors):
                    submission.fail(refusal)
                    continue
                submission.refusal = refusal  # it met writes that may never be: it is told when they are durable
            join(bundles, submission, actors)
        self.quota.wrote(count, size)
        self._make_room()
        return list({id(b): b for b in bundles.values()}.values())

    async def _sealed(
        self, submission: Submission, actors: list[Actor], bundles: Mapping[str, Bundle], now_ms: int
    ) -> int:
        """Prepare all writes of a submission or none, and put their actors into `actors`; return the bytes of their changes.

        Raises what refuses them.
        """
        while True:
            actors.clear()
            heavy = False
            for write in submission.writes:
                actor = self._batch.get(write.stream)
                if actor is None or (actor.stale and write.stream not in bundles):
                    actor = await self._take(write.stream)
                actors.append(actor)
                heavy = heavy or write.heavy
            try:
                if heavy and self.before is None:
                    size = await self._sealed_beside(submission, actors, now_ms)
                else:
                    size = self._seal(submission, actors, now_ms)
                if not submission.idle or not await self._behind(submission, actors, bundles):
                    return size
            except NeedHistory:
                await self._catch_up(submission, actors)
            except NeedThread:
                for write in submission.writes:
                    write.heavy = True
            except _NeedStream as need:
                await self._residents.get(need.stream)
            except Exception as error:
                if stops(error) or not await self._behind(submission, actors, bundles):
                    raise

    async def _sealed_beside(self, submission: Submission, actors: list[Actor], now_ms: int) -> int:
        """Do `_seal` in a thread, as it takes long; but not where it calls code of the program.

        Meanwhile nothing is taken in that other processes wrote (`still`): the actors are the thread's.
        """
        if any(callable(w.policy) or w.guard is not None for w in submission.writes):
            return self._seal(submission, actors, now_ms)
        async with self.still:
            job = asyncio.ensure_future(aside(self._seal, submission, actors, now_ms))
            try:
                return await asyncio.shield(job)
            finally:
                if not job.done():  # this task was cancelled: the actors are given up when nobody works on them
                    await asyncio.wait([job])

    async def _behind(self, submission: Submission, actors: list[Actor], bundles: Mapping[str, Bundle]) -> bool:
        """Take in what was written before the submission was made; tell whether its actors did not know of all that.

        Those in a bundle are checked by its commit. One look serves all submissions made before it.
        """
        known = [(actor, actor.head.version) for actor in actors if actor.head.stream not in bundles]
        if not known:
            return False
        if submission.number > self._looked:
            asked = self._asked
            await self._look_around()
            self._looked = asked
        for actor, _ in known:
            if actor.outrun:
                actor.stale = True  # its batch was given up before it could be refused
        return any(actor.stale or actor.head.version != version for actor, version in known)

    async def _take(self, stream: str) -> Actor:
        """Return the current actor of a stream, and have the batch prepared on no other one.

        It stays in memory until the batch is committed: one that was loaded meanwhile would not know of the commit.
        """
        if stream not in self._batch:
            self._batch[stream] = None
            self._residents.hold(stream)
        actor = self._residents.peek(stream) or await self._residents.get(stream)
        for _ in range(_WEIGHINGS_MAX):
            if not actor.is_to_be_weighed():
                break
            await actor.weigh()
            actor = self._residents.peek(stream) or await self._residents.get(stream)
        self._batch[stream] = actor
        return actor

    def _seal(self, submission: Submission, actors: list[Actor], now_ms: int) -> int:
        """Prepare all writes of a submission or none; return the bytes of their changes."""
        records: list[Record | None] = []
        submission.beside = []
        marks = [(actor, len(actor.pending)) for actor in actors]
        size = 0
        try:
            for write, (actor, mark) in zip(submission.writes, list(marks), strict=True):
                if len(actor.pending) == mark:
                    sealed = actor.prepare(write, now_ms, self.before)
                else:
                    sealed = self._prepare_part(write, actor, mark, now_ms)
                records.append(sealed)
                if sealed is not None:
                    size += sealed.size_bytes
                if (write.met or write.replaces is not None) and not write.unrecorded:
                    self._note(submission, write, sealed, now_ms, marks)
            if submission.stamp is not None:
                submission.cells = (submission.stamp(records, actors),)
        except BaseException as error:
            for actor, mark in marks:
                actor.back_to(mark)
            told = failure(error)  # nothing here waits: it is from a plan, a guard or a policy
            if told is error:
                raise
            raise told from error
        submission.records = records
        submission.idle = not (size or submission.cells or submission.beside) and records.count(None) == len(records)
        return size

    def _prepare_part(self, write: Write, actor: Actor, mark: int, now_ms: int) -> Record | None:
        """Prepare a write behind others of its submission. mark: how many records its stream had in front of that."""
        onto = (actor.pending[mark - 1] if mark else actor.head).version
        try:
            return actor.prepare(write, now_ms, self.before, onto=onto)
        except MergeConflict as refused:
            raise between_parts(refused, onto) from refused.__cause__

    def _note(
        self, submission: Submission, write: Write, sealed: Record | None, now_ms: int, marks: list[tuple[Actor, int]]
    ) -> None:
        """Prepare the record of the conflicts that a write met."""
        stream = conflicts.stream_of(write)
        actor = self._residents.peek(stream)
        if actor is None:
            raise _NeedStream(stream)
        marks.append((actor, len(actor.pending)))
        after = (actor.pending[-1] if actor.pending else actor.head).version
        noted = actor.prepare(conflicts.report(write, sealed, after, now_ms), now_ms)
        assert noted is not None
        submission.beside.append((actor, noted))

    async def _catch_up(self, submission: Submission, actors: list[Actor]) -> None:
        """Read, for writes whose base their actors no longer remember, what came since."""
        for write, actor in zip(submission.writes, actors, strict=True):
            if write.base is not None and actor.since(write.base.version) is None:
                first, upto = write.base.version + 1, actor.head.version  # which may move on while it is read
                known = write.history if write.history and write.history[0].version == first else ()  # of another try
                after = known[-1].version if known else write.base.version
                more = [entry async for entry in pages(self._backend, write.stream, after, upto)]
                write.history = [*known, *more]
                if [r.version for r in write.history] != list(range(first, upto + 1)):
                    name = write.stream.removeprefix(WORKFLOWS)
                    raise MergeConflict(
                        f"{name}: version {first}, which came after the one this write was made on, is not kept any "
                        "more, so the two cannot be compared; nothing was written: read the state again and decide",
                        conflicts=[],
                    )

    async def _commit(self, bundles: list[Bundle]) -> None:
        items = [bundle.item() for bundle in bundles]
        outcomes: Sequence[Outcome | QuireError]
        if self._broken:
            outcomes = [await self._revive()] * len(items)
        else:
            outcomes = await self._send(bundles, items)
        self.commits += 1
        records: list[Record] = []
        moved: list[Actor] = []
        done: list[Submission] = []
        refused: list[tuple[Bundle, Refused]] = []
        failed: list[tuple[Submission, QuireError]] = []
        for bundle, outcome in zip(bundles, outcomes, strict=True):
            if isinstance(outcome, Committed):
                self._publish(bundle, outcome)
                records += bundle.records
                moved += bundle.actors
                done += bundle.submissions
            elif isinstance(outcome, Refused):
                refused.append((bundle, outcome))
            else:
                for actor in bundle.actors:
                    actor.abandon()
                    actor.stale = True
                failed += [(submission, outcome) for submission in bundle.submissions]
        try:
            if records:
                self._committed(records, moved)
        finally:  # it is durable, whatever else is wrong
            for submission in done:
                submission.succeed()
        again: list[Submission] = []
        for submission, error in failed:
            if submission.refusal is not None or (
                len(failed) > 1 and isinstance(error, RequestError)
            ):  # one of them is to blame: each is tried by itself
                again.append(submission)
            else:
                submission.fail(twin(error))
        alone = len(again)
        if refused:
            for some in await asyncio.gather(*(self._refused(bundle, outcome) for bundle, outcome in refused)):
                again += some
        if again:  # at once: a pause after reading what others wrote would let them write more
            self._queue.extendleft(reversed(again))
            self._alone = max(self._alone, alone)

    def _publish(self, bundle: Bundle, outcome: Committed) -> None:
        position = outcome.first
        for sealed in bundle.records:
            _place(sealed, "position", position)
            position += 1
        for actor in bundle.actors:
            if actor.pending:
                actor.publish()
                self._residents.published(actor)

    async def _refused(self, bundle: Bundle, outcome: Refused) -> list[Submission]:
        """Take in what others wrote; return the submissions to try again."""
        actors = {a.head.stream: a for a in bundle.actors}
        for actor in bundle.actors:
            actor.abandon()
        try:
            behind: list[Actor] = []
            for head in outcome.heads:
                actor = actors[head.stream]
                if head.version < actor.head.version:
                    actor.stale = True  # dropped or restored from a backup under us
                else:
                    behind.append(actor)
            await asyncio.gather(*map(self._residents.refresh, behind))
        except (Exception, asyncio.CancelledError) as error:
            if stops(error):
                raise
            self._fail_all(bundle.submissions, typed(error, "reading what another process wrote"))
            return []
        again: list[Submission] = []
        now = self._clock.monotonic()
        for submission in bundle.submissions:
            moved = [c.name for c in submission.cells if c.name in outcome.cells]
            if submission.deadline is None:
                submission.deadline = now + self._settings.retry_seconds
            if moved:
                submission.fail(CellMoved(moved))
            elif now > submission.deadline:
                streams = ", ".join(w.stream for w in submission.writes)
                submission.fail(
                    StorageTimeout(
                        f"{streams}: other processes kept writing first for {self._settings.retry_seconds:g} s"
                    )
                )
            else:
                for write in submission.writes:
                    write.late = True
                again.append(submission)
        return again

    async def _revive(self) -> Outcome | QuireError:
        """An earlier failure could not be cleared up, and nothing of this batch was sent yet: reconnect first."""
        try:
            await self._backend.recover()
        except (Exception, asyncio.CancelledError) as error:
            if stops(error):
                raise
            return typed(error, "reconnecting")
        self._broken = False
        self._residents.each(_mark_stale)
        return Refused()  # the heads may have moved under us: prepare it all again

    async def _send(self, bundles: Sequence[Bundle], items: Sequence[Item]) -> Sequence[Outcome | QuireError]:
        try:
            try:
                begun = perf_counter()
                outcomes = await self._backend.commit(items)
                self.took_s.append(perf_counter() - begun)
                return outcomes
            except FilesChanged as error:  # nothing was begun, and there is nothing to ask
                return [error] * len(items)
            except (Exception, asyncio.CancelledError) as error:
                if stops(error):
                    raise
                return await self._look(items, typed(error, "the commit"))
        except BaseException:
            self._broken = True  # whoever writes next finds out first
            for bundle in bundles:
                self._fail_all(bundle.submissions, INTERRUPTED)
            raise

    async def _look(self, items: Sequence[Item], error: QuireError) -> list[Outcome | QuireError]:
        """After a failed commit: reconnect, and find out what of it is stored."""
        try:
            await self._backend.recover()
            return [await self._outcome(item, error) for item in items]
        except (Exception, asyncio.CancelledError) as caught:
            if stops(caught):
                raise
            self._broken = True
            second = typed(caught, "asking")
            unknown = OutcomeUnknown(
                f"the commit failed ({error}) and the store cannot be asked whether it is stored ({second}); "
                "read the workflow before writing again, or retry with the same idempotency key"
            )
            unknown.__cause__ = error
            return [unknown] * len(items)

    async def _outcome(self, item: Item, error: QuireError) -> Outcome | QuireError:
        """Say what became of one item. An item is atomic, so any part of it answers for the whole."""
        if item.records:
            wanted = item.records[0]
            found = await self._backend.read(wanted.stream, after=wanted.version - 1, upto=wanted.version)
            stored = bool(found) and found[0].chain == wanted.chain
            return Committed(found[0].position, found[0].position + len(item.records) - 1) if stored else error
        for write in item.cells:
            cell = await self._backend.cell(write.name)
            if (None if cell is None else cell.value) != write.value:
                return error
        return Committed(0, 0)


def _retrieved(task: asyncio.Task[None]) -> None:
    """Take the exception of a task that nobody waits for: all writers were told before it ended."""
    if not task.cancelled():
        task.exception()


def _mark_stale(actor: Actor) -> None:
    actor.stale = True
    actor.wake()
