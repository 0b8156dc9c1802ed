"""One live workflow (or any other stream): its published state, and the batch being prepared on top of it.

1. `state` and `head` are what is durable. They are replaced, never mutated: a reader may hold on to them.
2. A batch works on `Working`, which copies each touched container once, and seals one record per write.
3. `publish` makes the batch the truth once it is durable; `abandon` forgets it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from quire.config import Settings
from quire.core import layout, record
from quire.core.changes import Working, effective
from quire.core.descent import Descent
from quire.core.guards import Guard, Read, Step, Within, bounded, pure
from quire.core.layout import Stamps
from quire.core.merge import rebase
from quire.core.meter import Meter
from quire.core.path import get
from quire.core.refusals import refusal
from quire.core.resolve import ABSENT, Policy
from quire.core.schema import Schemas
from quire.core.updated_at import EMPTY, Tail, following, next_time, tail_of
from quire.core.values import copied, same
from quire.core.weigh import Weighed, Weight, weigh
from quire.engine.limits import check_words, limits_of, weight_of
from quire.engine.write import Base, Before, Meeting, Write
from quire.errors import AlreadyExists, ChangeError, HeadMoved, LimitExceeded, MergeConflict, WorkflowNotFound
from quire.model import DELETED, WORKFLOWS, Change, Fork, Head, Increment, Path, Record
from quire.threads import aside

_UTF8_MAX = 4
"""Bytes of a character."""
_STANDS: tuple[Policy | None, ...] = (None, "last", "ours", "reject")
"""Policies that leave no change out: a write stands whole, or is refused."""
_QUICK_RECORDS = 1000
"""Records that a write is rebased over on the event loop..."""
_QUICK_BYTES = 256 * 1024
"""...bytes that they have together..."""
_QUICK_STEPS = 10_000
"""...and the steps that this takes; what is more is done in a thread."""


class NeedHistory(Exception):
    """The write's base is older than the records the actor remembers."""


class NeedThread(Exception):
    """It takes long to rebase the write: it is prepared again, in a thread if that may be."""


class Actor:
    """The live state of one stream. Lives on the event loop; no method here waits."""

    __slots__ = (
        "_limits",
        "_meter",
        "_pending_bytes",
        "_schemas",
        "_settings",
        "_start",
        "_start_bytes",
        "_tails",
        "_working",
        "changes_since_keyframe",
        "descent",
        "head",
        "keyframe_size",
        "outrun",
        "parents",
        "pending",
        "recent",
        "size_since_keyframe",
        "stale",
        "state",
        "state_size",
        "tail",
        "waiters",
        "weight",
    )

    def __init__(
        self, settings: Settings, schemas: Schemas, head: Head, state: dict[str, Any], *, state_size: int
    ) -> None:
        self._settings = settings
        self._schemas = schemas
        self.head = head
        self.state = state
        self.state_size = state_size
        """What the state weighs at most: its last keyframe and the changes since. Sums of numbers may outgrow them, to twice."""
        self.weight: Weight | None = None
        """What it weighs exactly, once that was needed."""
        self._limits = limits_of(settings) if head.stream.startswith(WORKFLOWS) else None
        self._meter = Meter(settings.write_bytes_max, settings.write_steps_max, head.stream)
        self.tail: Tail = EMPTY
        """The time of the head, and how many versions right in front of it have the same."""
        self.stale = False
        self.outrun = False
        """Another process committed while a batch was prepared here: the batch will be refused, and readers wait for that."""
        self.recent: deque[Record] = deque(maxlen=settings.recent_records)
        self.descent = Descent(head.stream, head.version)
        """What the head descends from."""
        self.parents: tuple[Descent, ...] | None = None
        """Of the workflows it was forked from, nearest first, up to where each was forked; None until asked for."""
        self.waiters: list[asyncio.Future[None]] = []
        self.changes_since_keyframe = 0
        self.size_since_keyframe = 0
        self.keyframe_size = 0
        self._working: Working | None = None
        self._start: dict[str, Any] | None = None
        self._start_bytes = 0
        self._pending_bytes = 0
        self.pending: list[Record] = []
        """Records sealed in this batch."""
        self._tails: list[Tail] = []
        """The tail behind each of them."""

    @property
    def exists(self) -> bool:
        """Whether there is a workflow here: something was written and not deleted since."""
        return self.head.version > 0 and self.head.kind != DELETED

    @property
    def prepared_state(self) -> dict[str, Any]:
        """The state with what is pending, not to be altered nor kept."""
        return self.state if self._working is None else self._working.state

    def prepare(
        self, write: Write, now_ms: int, before: Before | None = None, *, onto: int | None = None
    ) -> Record | None:
        """Seal one write on top of the batch; None when it changes nothing on its own base.

        before: asked of its changes once they are adjusted to the state they meet.  onto: the version that its transaction
        meets, None where it is the first here.
        Raises the caller's error (ChangeError, HeadMoved, ...) with the batch as it was, or NeedHistory, NeedThread.
        """
        tip = self.pending[-1] if self.pending else self.head
        version = tip.version
        self._expect(write, version, onto, present=version > 0 and tip.kind != DELETED)
        working = self._working
        if working is None or (type(working) is Working and self._nears_a_limit()):
            working = self._rebuilt()
        weight = weight_of(working)
        if write.guard is not None:
            write.guard(working.state)
        plan, write.met, write.hooked, write.made, write.onto = write.plan, write.passed, None, None, version
        if write.base is not None and write.base.version < version:
            plan, write.met = self._onto(write, write.base, working.state)
            _check_seen(write)
        elif callable(plan):
            try:
                plan = plan(working.state)
            except MergeConflict as refused:
                raise _carrying(refused, write) from None
        write.put = plan
        if before is not None:
            plan = self._hooked(write, plan, working.state, before)
        changes = self._apply(working, plan, write)
        if write.met:
            write.met = [_summed(each, working.state) for each in write.met]
        tail = self._tails[-1] if self._tails else self.tail
        time_ms = max(next_time(now_ms, tail), write.not_before_ms)
        start = self._start, self._start_bytes
        if write.start is not None:
            self._start, self._start_bytes = write.start, write.start_bytes
            working = self._working = self._begun()
        if not changes and not write.allow_empty and not _left_no_trace(write):
            return None
        try:
            if self._limits is not None:
                self._limits.check_state(write.stream, write.kind, changes, weight, weight_of(working))
            sealed = self._sealed(write, changes, working.state, tip, time_ms)
        except BaseException:  # what was applied has no record
            self._start, self._start_bytes = start
            self._rebuilt()
            raise
        write.made = sealed.version
        self.pending.append(sealed)
        self._tails.append(following(tail, time_ms))
        self._pending_bytes += len(sealed.body)
        return sealed

    def _hooked(
        self, write: Write, plan: Sequence[Step | Fork], state: dict[str, Any], before: Before
    ) -> Sequence[Step | Fork]:
        """Return what hooks leave of a plan; bounds hold whatever they make of it."""
        steps = [step for step in plan if not isinstance(step, Fork)]
        bounds = [n for n, step in enumerate(steps) if isinstance(step, Within)]
        changes = pure(plan) if any(isinstance(step, Guard) for step in plan) else cast("Sequence[Change | Fork]", plan)
        left = before(write, changes, state)
        if left is changes:
            return plan
        write.hooked = left
        # what they leave is checked where the numbers are in the end
        moved = [step for n in bounds for step in rebase([steps[n]], cast("list[Change]", pure(steps[n + 1 :])))[0]]
        return [*left, *moved]

    def is_to_be_weighed(self) -> bool:
        """Tell whether the next batch may bring the state near a limit, and it is not known what it weighs."""
        limits = self._limits
        return (
            limits is not None and self.weight is None and limits.near(self.state_size + self._settings.batch_bytes_max)
        )

    async def weigh(self) -> None:
        """Find out what the state weighs. Cost: some 25 ms for each MiB of small values, in a thread; once for each load."""
        state = self.state
        weight = await aside(weigh, state)
        if self.state is state:  # else what other processes wrote was taken in meanwhile
            self.weight = weight

    def back_to(self, count: int) -> None:
        """Drop what was prepared after the first `count` records: a later part of its group failed."""
        if len(self.pending) > count:
            del self.pending[count:], self._tails[count:]
            self._pending_bytes = sum(len(sealed.body) for sealed in self.pending)
            if not self.pending:
                self._start, self._start_bytes = None, 0
            self._rebuilt()

    def publish(self) -> None:
        """The batch is durable: it becomes the state."""
        assert self._working is not None
        self.state_size += self._start_bytes
        self._accept(self.pending, self._working, self._tails[-1] if self._tails else self.tail)
        self.abandon()

    def abandon(self) -> None:
        """Forget the batch; what is durable stays."""
        self.pending, self._tails = [], []
        self._pending_bytes = 0
        self._working = None
        self._start, self._start_bytes = None, 0

    def absorb(self, records: Sequence[Record]) -> None:
        """Take in records that another process committed after our head. Raises CorruptRecord if they do not follow."""
        new = [r for r in records if r.version > self.head.version]
        if not new:
            return
        record.check_all(new, self.head.version, self.head.chain)
        working = Working(self.state) if self.weight is None else Weighed(self.state, self.weight)
        for entry in new:
            for change in record.decode(entry):
                if isinstance(change, Fork):
                    self.stale = True  # its state starts elsewhere: it is loaded again
                    return
                working.apply(change)
        self._accept(new, working, tail_of(self.tail, [entry.time for entry in new]))
        self.abandon()  # a write that changed nothing, or failed, left a working state: of what is no longer the newest

    def since(self, version: int) -> list[Record] | None:
        """Published records after `version`, oldest first; None when the actor no longer remembers them all."""
        if version >= self.head.version:
            return []
        if self.recent and self.recent[0].version <= version + 1:
            return [r for r in self.recent if r.version > version]
        return None

    def wake(self) -> None:
        """Have everybody who waits for this stream look again: its head moved, or may have."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _accept(self, records: Sequence[Record], working: Working, tail: Tail) -> None:
        last = records[-1]
        self.outrun = False
        self.state = working.state
        self.head = Head(last.stream, last.version, last.chain, last.kind)
        self.tail = tail
        self.recent.extend(records)
        self.descent.follow(records)
        size = 0
        for entry in records:
            size += len(entry.body)
        self.changes_since_keyframe += len(records)
        self.size_since_keyframe += size
        self.weight = weight_of(working)
        self.state_size = self.state_size + size if self.weight is None else self.weight.size_bytes
        if self.waiters:
            self.wake()

    def _expect(self, write: Write, version: int, onto: int | None, *, present: bool) -> None:
        if write.exists is not None and write.exists is not present:
            name = write.stream.removeprefix(WORKFLOWS)
            if write.exists:
                raise WorkflowNotFound(name)
            raise AlreadyExists(
                f"workflow {name} exists already, at version {version}; open it with `store.workflow({name!r})`"
            )
        met = version if onto is None else onto  # what parts before it made is not written where it is refused
        if write.if_version is not None and write.if_version not in (version, met):
            raise HeadMoved(write.stream.removeprefix(WORKFLOWS), expected=write.if_version, actual=met)

    def _sealed(
        self, write: Write, changes: Sequence[Change | Fork], state: dict[str, Any], tip: Record | Head, time_ms: int
    ) -> Record:
        """Return the record of what was applied. Raises for a state that its schema does not allow, LimitExceeded."""
        if changes and self._schemas:
            self._schemas.check(write.stream.removeprefix(WORKFLOWS), state)
        most = self._settings.write_bytes_max
        said = len(write.author) + len(write.message) + len(write.kind)
        if said > most:
            check_words(write, self._settings)
        body = record.encode(changes, restored=write.restored)
        sealed = record.seal(
            write.stream, tip.version + 1, time_ms, write.author, write.message, write.kind, body, tip.chain
        )
        if len(body) + _UTF8_MAX * said > most and (found := sealed.size_bytes) > most:
            raise LimitExceeded(
                f"this write to {write.stream} weighs {found:,} bytes: its changes {len(body):,}, its message and other "
                f"words {found - len(body):,}; allowed are {most:,} (write_bytes_max); nothing was written: divide it, "
                "or keep large bytes in a blob (`store.put_blob`)",
                limit="write_bytes_max",
                allowed=most,
                found=found,
            )
        return sealed

    def _onto(self, write: Write, base: Base, head: dict[str, Any]) -> tuple[Sequence[Step | Fork], list[Meeting]]:
        """Return the write's steps as they go onto the head, and all that they met. Raises MergeConflict, Need..."""
        try:
            if write.late and not write.anew and base.version < self.head.version:
                base = self._advanced(write, base)
            records = self._since(write, base.version)
            if not records and not callable(write.plan):
                return write.plan, list(write.passed)
            plan, met = self._rebased(write, base, head, records)
            if (
                write.asked is None
                or write.asked[1] is base
                or len(met) == len(write.passed)
                or write.policy in _STANDS
            ):
                return plan, met
        except MergeConflict:
            if write.asked is None or write.asked[1] is base:
                raise
        # it met what came on the way: from its first base on that may be as it was
        (write.plan, write.base), write.passed, write.anew = write.asked, [], True
        return self._rebased(write, write.base, head, self._since(write, write.base.version))

    def _advanced(self, write: Write, base: Base) -> Base:
        """Rebase a write onto what is durable for good: tried again, it meets only what came since. Return its base by now.

        Else each try would take longer than the one before, and whoever writes less quickly than others never wrote. By
        some policies two meetings one after the other are not what they are at once: "theirs" and "queue" leave a change
        out, which then meets nothing more; "both" and functions decide again. Once something was met, those begin anew, and
        so does what was merged by kind.
        """
        plan, met = self._rebased(write, base, self.state, self._since(write, base.version, pending=False))
        # without a policy nothing is stale by now, and the last write stands
        if write.anew or (len(met) > len(write.passed) and write.policy not in _STANDS):
            return base
        write.plan, write.passed, write.history = plan, met, ()
        write.base = Base(self.head.version, self.state)
        return write.base

    def _rebased(
        self, write: Write, base: Base, head: dict[str, Any], records: Sequence[Record]
    ) -> tuple[Sequence[Step], list[Meeting]]:
        """Return the write's steps as they go onto the head, over records since its base, and all that they met.

        Raises MergeConflict with the whole write in it, NeedThread, LimitExceeded.
        """
        quick = not write.heavy
        if quick and (len(records) > _QUICK_RECORDS or sum(len(entry.body) for entry in records) > _QUICK_BYTES):
            raise NeedThread
        meter = Meter(steps_max=self._settings.write_steps_max, where=write.stream)
        if quick:
            meter.steps_max = min(meter.steps_max, _QUICK_STEPS)
        over: list[Change] = []
        sources: list[Record] = []
        for entry in records:
            changes = [c for c in record.decode(entry) if not isinstance(c, Fork)]
            over += changes
            sources += [entry] * len(changes)
        assert not callable(write.plan)
        ours = [c for c in write.plan if not isinstance(c, Fork)]
        if write.asked is None:
            write.asked = effective(base.state, ours), base
        if write.asked[1] is base:
            ours = write.asked[0]
        where = write.stream.removeprefix(WORKFLOWS)
        try:
            settled = layout.settle(
                ours,
                over,
                base=base.state,
                head=head,
                policy=write.policy,
                where=where,
                kinds=self._schemas.kinds(head),
                stamps=lambda: _stamps(len(ours), sources),
                writer=lambda number: (sources[number].author, sources[number].version),
                whole=write.whole,
                meter=meter,
            )
        except MergeConflict as refused:
            raise _carrying(refused, write) from None
        except LimitExceeded:
            if quick and meter.steps > meter.steps_max:
                raise NeedThread from None
            raise
        write.anew = write.anew or settled.by_kind
        passed = [part for parts in settled.behind for part in parts] or over
        earlier: dict[Path, list[Meeting]] = {}
        for moved in (_moved(each, passed) for each in write.passed):
            earlier.setdefault(moved.met.path, []).append(moved)
        met: list[Meeting] = []
        for new in settled.met:
            # met again: the last values of others count, and the first base; with another value it is another item
            again = earlier.get(new.path, [])
            before = next((each for each in again if same(each.met.theirs, new.base)), None)
            if before is not None:
                again.remove(before)
            first = base.version if before is None else before.base
            kept = new if before is None else msgspec.structs.replace(new, base=before.met.base)
            if before is not None and same(kept.base, kept.theirs):
                continue  # it is again what it was at first
            # the state that it meets may be altered by what is written next
            kept = msgspec.structs.replace(kept, theirs=copied(kept.theirs), ours=copied(kept.ours))
            met.append(Meeting(kept, sources[new.other], first))
        return settled.changes, [*(each for left in earlier.values() for each in left), *met]

    def _since(self, write: Write, version: int, *, pending: bool = True) -> list[Record]:
        """Return every record after a version. pending: of this batch too. Raises NeedHistory."""
        known = self.since(version)
        if known is None and write.history and write.history[0].version <= version + 1:  # not read for a later base
            later = self.since(write.history[-1].version)
            known = None if later is None else [r for r in (*write.history, *later) if r.version > version]
        if known is None:
            raise NeedHistory
        return [*known, *(r for r in self.pending if r.version > version)] if pending else known

    def _apply(self, working: Working, changes: Sequence[Step | Fork], write: Write) -> list[Change | Fork]:
        """Apply all or none; return those that changed something."""
        kept: list[Change | Fork] = []
        limits = self._limits
        if limits is not None and not limits.of_values:
            limits = None
        meter = working.meter = self._meter
        meter.size_bytes = meter.steps = 0
        try:
            for given in changes:
                if isinstance(given, Guard):
                    working.apply(given)
                    continue
                if limits is not None:
                    limits.check_value(write.stream, write.kind, working.state, given)
                # a plan, a hook and a policy are shown the state, and may put a part of it elsewhere
                change = given if isinstance(given, Fork) else cast("Change", working.private(given))
                if isinstance(change, Fork) or working.apply(change) or write.verbatim:
                    kept.append(change)  # what was kept when one fails has to be known
        except BaseException as error:
            if kept:
                self._rebuilt()
            if isinstance(error, ChangeError) and write.met:  # it builds on something of its own that gave way
                refused = MergeConflict(
                    f"{write.stream.removeprefix(WORKFLOWS)}: {error}, since other writes came first; "
                    "nothing was written: read the state again and decide",
                    conflicts=[each.met for each in write.met],
                )
                raise _carrying(refused, write) from error
            raise
        finally:
            working.meter = None
        return kept

    def _nears_a_limit(self) -> bool:
        """Whether what is published and pending may weigh so much that it has to be known."""
        limits = self._limits
        return limits is not None and limits.near(self.state_size + self._start_bytes + self._pending_bytes)

    def _begun(self) -> Working:
        """Return a working state on what the batch starts from, one that knows its weight where that matters."""
        weighed = self.weight is not None or self._nears_a_limit()
        if self._start is not None:
            return Weighed(self._start, weigh(self._start)) if weighed else Working(self._start)
        if not weighed:
            return Working(self.state)
        if self.weight is None:
            self.weight = weigh(self.state)
        return Weighed(self.state, self.weight)

    def _rebuilt(self) -> Working:
        """Make the working state anew from what is published and pending: a write failed half-way, or a limit is near."""
        working = self._begun()
        for sealed in self.pending:
            for change in record.decode(sealed):
                if not isinstance(change, Fork):
                    working.apply(change)
        self._working = working
        return working


def _left_no_trace(write: Write) -> bool:
    """Return True for a write that altered its own base, where others had written all of it, or a policy kept theirs.

    It is acknowledged, so it has a version. What hooks took out of a write has none.
    """
    return write.asked is not None and bool(pure(write.asked[0])) and write.hooked != []


def _carrying(refused: MergeConflict, write: Write) -> MergeConflict:
    """Return the error with the write that it refuses."""
    refused.head = write.onto
    if write.asked is not None:
        steps, base = write.asked
        refused.changes, refused.base = list(bounded(steps)), base.version
        refused.workflow_id = write.stream.removeprefix(WORKFLOWS)
    return refused


def _check_seen(write: Write) -> None:
    """Raise MergeConflict where a write meets a version that its author has not seen, be it that both did the same."""
    if write.seen is not None:
        unseen = [each.met for each in write.met if each.theirs.version > write.seen]
        if unseen:
            raise _carrying(refusal(write.stream.removeprefix(WORKFLOWS), "unseen", unseen), write)


def _moved(each: Meeting, changes: Sequence[Change]) -> Meeting:
    """Return what was met in an earlier round, where it is after the changes of others since."""
    path = each.met.path
    if not any(type(token) is int for token in path):
        return each
    left, _ = rebase([Read(path)], changes)
    return each._replace(met=msgspec.structs.replace(each.met, path=left[0].path)) if left else each


def _summed(each: Meeting, state: dict[str, Any]) -> Meeting:
    """Return what was met by a sum with what that came to in the end."""
    if not isinstance(each.met.change, Increment) or each.met.outcome != "ours":
        return each
    return each._replace(met=msgspec.structs.replace(each.met, ours=get(state, each.met.path, ABSENT)))


def _stamps(ours: int, sources: Sequence[Record]) -> Stamps:
    """Return what orders both sides in time: theirs are in the log already, ours comes after."""
    late = [f"~{number:06d}" for number in range(ours)]
    return Stamps(late, [f"{entry.version:012d}.{number:06d}" for number, entry in enumerate(sources)])
