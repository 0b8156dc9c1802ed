"""What becomes of two writes that cannot both stand: the policies, and what is written down about it.

1. Nothing of either side is lost in silence: whatever a policy decides, `Met` says what both sides had.
2. `last` and `ours` let the later write stand, `theirs` and `queue` what is there already; `both` keeps the two beside
   each other; a callable is given the conflict and returns the value that stands; `reject` refuses the write.
3. A write whose place was taken away (its parent deleted or replaced) cannot stand under any policy: `theirs` and
   `queue` leave it out and say so, the others refuse the whole write.
4. A change behind a guard that does not hold is stale: it was made from a value that is not there any more. Without a
   policy it is refused; a policy settles it like any conflict, also where both sides came to the same value.
5. A whole state has all that its changes need: where ours is one, rule 3 does not apply, what was taken away is put back
   as it is there, and of a text that both changed the one of ours stands, not a mixture. Where both sides began an object
   or a list, it is one that holds what is in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import Any, Literal, cast

import msgspec

from quire.calls import call
from quire.core import merge
from quire.core.changes import Gone, Working, apply
from quire.core.guards import Guard, Read, Step, pure, reliant, sought
from quire.core.meter import Meter
from quire.core.path import get
from quire.core.refusals import Reason, refusal
from quire.core.trail import Trail, moved
from quire.core.values import clean, copied, same
from quire.errors import Invalid
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

Named = Literal["last", "ours", "theirs", "both", "queue", "reject"]
Outcome = Literal["ours", "theirs", "both", "value", "pending"]

POLICIES: tuple[Named, ...] = ("last", "ours", "theirs", "both", "queue", "reject")
ABSENT: Any = msgspec.UNSET
"""Where nothing was, or is."""


class Met(msgspec.Struct, frozen=True):
    """Where two sides met. Values are what each side had at `path`, ABSENT for nothing.

    path: in the state that they had once ours was written; as ours reads it in a refusal, and where it was of what is gone.
    base: before either.  theirs: as it stands now.  ours: as we wanted it.  change: our first change there.
    number, other: which of ours met which of theirs (the last of several).  outcome: what stands; "pending" waits for
    a decision.  author, version: who wrote what is there now, and when, where a write came late.
    """

    path: Path
    base: Any
    ours: Any
    theirs: Any
    change: Step
    number: int
    other: int
    outcome: Outcome
    author: str = ""
    version: int | None = None


Policy = Named | Callable[[Met], Any]
"""A name, or a function of the conflict that returns the value to stand. It must not wait, nor alter what it is given."""

Writer = Callable[[int], tuple[str, int | None]]
"""Asked with the number of one of their changes: who made it, in which version."""


class Merging(msgspec.Struct, frozen=True):
    """Two workflows are merged: rule 3 leaves out and records, no write is refused as a whole.

    stands: who wins where both wrote the same place, None for ours.  ahead: who comes first of two insertions at one
    place, None for theirs.  twins: which changes of both sides are one and the same.
    """

    stands: merge.Stands | None = None
    ahead: merge.Ahead | None = None
    twins: merge.Twins | None = None

    def numbered(self, ours: Callable[[int], int], theirs: Callable[[int], int]) -> Merging:
        """Return the questions of a merge, asked with other numbers of the changes of both sides."""

        def asked(question: Callable[[int, int], bool] | None) -> Callable[[int, int], bool] | None:
            return question and (lambda number, other: question(ours(number), theirs(other)))

        return Merging(asked(self.stands), asked(self.ahead), asked(self.twins))


class Settled(msgspec.Struct, frozen=True):
    """What to write onto the head, and what had to be settled for it.

    changes: with the guards of those that stand.  numbers: for each which of ours it is, None for one that a policy made.
    behind: for each of theirs what it is after ours; exact where nothing had to be settled.  by_kind: lists of declared
    kinds were merged: what ours became is certain on this head only.
    """

    changes: list[Step]
    numbers: list[int | None]
    met: list[Met]
    behind: list[list[Change]]
    by_kind: bool = False

    def numbered(self, numbers: Sequence[int]) -> Settled:
        """Return the same, with other numbers of ours."""
        met = [msgspec.structs.replace(m, number=numbers[m.number]) for m in self.met]
        return Settled(self.changes, [n if n is None else numbers[n] for n in self.numbers], met, self.behind)


_LATE = Merging()
_LOOKS_PER_STEP = 4
"""Places that are compared with a change in one step of a meter."""


def check_policy(policy: Any) -> Policy:
    """Return a policy that is one. Raises Invalid."""
    if callable(policy) or policy in POLICIES:
        return cast("Policy", policy)
    raise Invalid(f"no conflict policy {policy!r}; there are {', '.join(POLICIES)}, or a function of the conflict")


def settle(
    changes: Sequence[Step],
    over: Sequence[Change],
    *,
    base: dict[str, Any],
    head: dict[str, Any],
    policy: Policy | None,
    where: str = "",
    merging: Merging | None = None,
    writer: Writer | None = None,
    whole: bool = False,
    meter: Meter | None = None,
) -> Settled:
    """Return our changes as they go onto the head, by a policy.

    changes, over: ours and theirs, each made on `base`; ours with guards.  head: `base` after theirs.  policy: None
    refuses what is stale and lets the later of two writes stand otherwise.  where: what messages call it.
    merging: how two workflows are merged, None for a write that comes late.  writer: of theirs, for messages.
    whole: ours is a whole state (rule 5).  meter: what counts the work.
    Raises MergeConflict (rules 2 to 4), Invalid for a value of a callable that cannot be stored, LimitExceeded.
    Cost: that of merge.both, twice where the policy yields; where something clashed also applying ours to `base`, comparing
    what was read, and following each place that clashed (see Trail).
    """
    yields = policy in ("theirs", "queue")
    meter = meter or Meter()
    rules = merging or _LATE
    both = partial(merge.both, changes, over, base=base, ahead=rules.ahead, twins=rules.twins, meter=meter)
    late = merging is None
    stands = rules.stands if late or not yields else partial(_among, set[int]())
    ways = _Ways(changes, over, both(stands=stands), base, head, meter)
    alike = _unchanged(ways) if late else set[int]()
    if yields and late and ways.clashes:
        ways = _Ways(changes, over, both(stands=partial(_among, alike)), base, head, meter)
    stale = _stale(ways)
    refused = [
        msgspec.structs.replace(meeting, **_named(writer or _unnamed, meeting.other))
        for number, meeting in stale.items()
        if (policy in (None, "reject") or isinstance(changes[number], Guard))
        and not (isinstance(changes[number], Ensure) and number not in ways.clashes)  # whoever made it, it is there
    ]
    if refused:
        strict = isinstance(refused[0].change, Guard)
        raise refusal(where, "read" if strict else "stale", refused[::-1])  # the first is told
    settled = {n for n in (*ways.clashes, *stale) if not isinstance(changes[n], Guard) and n not in alike}
    lists = {path[:depth] for path in (_place(changes[n]) for n in settled) for depth in range(len(path))}
    if any(isinstance(change, Remove) and change.count > 1 and change.path in lists for change in changes):
        numbers, instead = _apart(changes)
    else:
        settling = _Settling(ways, stale, settled, policy, where, merging, writer or _unnamed, whole=whole)
        done = settling.done()
        vain = _in_vain(settling.yielded, ways)
        if not vain:
            return done
        numbers, instead = _lasting(vain, ways)
    done = settle(
        instead,
        over,
        base=base,
        head=head,
        policy=policy,
        where=where,
        merging=None if merging is None else merging.numbered(numbers.__getitem__, int),
        writer=writer,
        whole=whole,
        meter=meter,
    )
    return done.numbered(numbers)


class _Ways:
    """Ours as they meet theirs, and where their places were before that; looked up when it is first asked."""

    def __init__(
        self,
        changes: Sequence[Step],
        over: Sequence[Change],
        found: merge.Rebased,
        base: dict[str, Any],
        head: dict[str, Any],
        meter: Meter,
    ) -> None:
        self.meter = meter
        self.changes = changes
        self.over = over
        self.found = found
        self.base = base
        self.head = head
        self.clashes = {clash.number: clash for clash in found.clashes}

    @cached_property
    def mine(self) -> dict[str, Any]:
        """Our whole state: not to be altered."""
        return apply(self.base, self.changes)

    @cached_property
    def ours(self) -> Trail:
        return Trail(self.changes, self.meter)

    @cached_property
    def theirs(self) -> Trail:
        return Trail(self.over, self.meter)

    def moves(self, path: Path) -> bool:
        """Tell whether ours moves what is at a path: it goes through a list that ours moves items of."""
        return any(type(token) is int for token in path) and self._moved

    @cached_property
    def _moved(self) -> bool:
        return any(isinstance(step, Insert | Remove) for step in self.changes)

    @cached_property
    def _ahead(self) -> tuple[Trail, list[int]]:
        rebased = self.found.ours
        return Trail((step for steps in rebased for step in steps), self.meter), [0, *accumulate(map(len, rebased))]

    def places(self, number: int) -> tuple[Path | None, Path | None]:
        """Return where the place of one of ours is in the base and in the head; None where it is not there."""
        parts = self.found.ours[number]
        ahead, starts = self._ahead
        now = ahead.before(_place(parts[0]), starts[number]) if parts else None
        return self.ours.before(_place(self.changes[number]), number), now

    def lost(self, number: int) -> tuple[Path | None, Path]:
        """Return where the place of one of ours that was left out is: in the head, None if it is gone, and behind ours so far."""
        path = _place(self.changes[number])
        if not any(type(token) is int for token in path):
            return path, path
        then = self.ours.before(path, number)
        now = then and self.theirs.after(then)[0]
        ahead, starts = self._ahead
        return now, (now and ahead.after(now, end=starts[number])[0]) or path

    @cached_property
    def inside(self) -> dict[Path, list[int]]:
        """Which of ours are at and below a place; of what ours moves, where that was in the base."""
        found: dict[Path, list[int]] = {}
        for number, step in enumerate(self.changes):
            if isinstance(step, Guard):
                continue
            place = step.path
            if self.moves(place):  # or what holds it, where ours put it there
                prefixes = (place[:depth] for depth in range(len(place), -1, -1))
                place = next(then for path in prefixes if (then := self.ours.before(path, number)) is not None)
            for depth in range(len(place) + 1):
                found.setdefault(place[:depth], []).append(number)
        return found

    def left(self, number: int) -> Path | None:
        """Return where the place of one of ours is after all of ours; None where ours took it away with what holds it."""
        path = _place(self.changes[number])
        return self.ours.after(path, number + 1)[0] if self.moves(path) else path


class _Result:
    """What goes onto the head: guards with what they guard, and all in its place beside what "both" put into lists."""

    def __init__(self, head: dict[str, Any], meter: Meter) -> None:
        self.steps: list[tuple[int | None, Step]] = []
        self.trail = Trail((), meter)
        self._meter = meter
        self._working = Working(head)
        self._worked = 0
        self._guards: list[tuple[int, Sequence[Step]]] = []
        self._beside: list[Insert | Remove] = []
        """From the list as it would be if all of ours stood, and nothing else, to the list as it is."""

    def guard(self, number: int, steps: Sequence[Step]) -> None:
        """Have a guard go where the next change goes."""
        self._guards.append((number, steps))

    def unguard(self) -> None:
        """Leave out the guards of what does not stand."""
        self._guards.clear()

    def put(self, number: int | None, steps: Sequence[Step]) -> list[Step]:
        """Put steps and the guards of theirs; return the steps as they were put."""
        put: list[Step] = []
        for step in steps[:-1]:
            self._put_guards(step)
            put += self._put(number, [step])
        self._put_guards(None)
        put += self._put(number, steps[-1:])
        return put

    def _put_guards(self, removal: Step | None) -> None:
        """Put the guards of what a removal takes out, and move the others past it; of anything else, put all."""
        left: list[tuple[int, Sequence[Step]]] = []
        self._meter.add_steps(len(self._guards))
        for guard, parts in self._guards:
            there = [moved(part.path, removal) for part in parts] if isinstance(removal, Remove) else [None]
            if None in there:
                self._put(guard, parts)
            else:
                moves = zip(parts, cast("list[Path]", there), strict=True)
                left.append((guard, [msgspec.structs.replace(part, path=path) for part, path in moves]))
        self._guards = left

    def _put(self, number: int | None, steps: Sequence[Step]) -> list[Step]:
        put = self._moved(steps)
        self.steps.extend((number, step) for step in put)
        self.trail.extend(put)
        return put

    def state(self) -> dict[str, Any]:
        """Return what all that was put leads to: not to be altered, nor kept."""
        for _, step in self.steps[self._worked :]:
            if not isinstance(step, Guard):
                self._working.apply(step)
        self._worked = len(self.steps)
        return self._working.state

    def put_beside(self, changes: Sequence[Change]) -> None:
        """Put what keeps ours beside theirs: items that come after it have moved."""
        before = self._beside
        self._beside = [*before, *(step for step in self.put(None, changes) if isinstance(step, Insert | Remove))]

    def place(self, path: Path) -> Path:
        """Return where a place of ours is beside what was put there."""
        there: Path | None = path
        self._meter.add_steps(len(self._beside) // _LOOKS_PER_STEP)
        for step in self._beside:
            there = there and moved(there, step)
        return there or path

    def keep(self, place: Path) -> None:
        """Note that an item is there that ours took out: items that come after it are where they were."""
        self._beside.insert(0, Insert(place[:-1], cast("int", place[-1]), [None]))

    def _moved(self, steps: Sequence[Step]) -> list[Step]:
        if not self._beside or not steps:
            return list(steps)
        put, self._beside = merge.past(steps, self._beside, self._meter)
        return put


class _At(msgspec.Struct, frozen=True):
    """Where one of ours is settled: its path, its place in the result so far and in the head, None where it is gone; each
    side's value, and what it has become.
    """

    path: Path
    place: Path
    now: Path | None
    base: Any
    ours: Any
    theirs: Any
    parts: Sequence[Step]


class _Settling:
    """Puts ours onto the head one after the other, and settles those that cannot stand as they are."""

    def __init__(
        self,
        ways: _Ways,
        stale: dict[int, Met],
        settled: set[int],
        policy: Policy | None,
        where: str,
        merging: Merging | None,
        writer: Writer,
        *,
        whole: bool,
    ) -> None:
        self._ways = ways
        self._stale = stale
        self._settled = settled
        self._policy: Policy | None = policy
        self._where = where
        self._merging = merging
        self._writer = writer
        self._whole = whole and policy not in ("theirs", "queue")
        self._decides = policy == "both" or callable(policy)
        first = min(settled, default=0) if self._decides else len(ways.changes)
        later = [n for n in range(first, len(ways.changes)) if isinstance(ways.changes[n], Set | Delete | Remove)]
        self._wanted = _wanted({*settled, *later}, ways) if settled else {}
        self._result = _Result(ways.head, ways.meter)
        self._met: list[tuple[Met, int, int]] = []
        """With the number of the step it is about, and of those that were put before it."""
        self._closed: set[Path] = set()
        """Places where something else stands than ours: what ours does below them is part of that."""
        self._keeping: set[Path] = set()
        """Lists of which ours took out items that stay."""

    def done(self) -> Settled:
        """Settle all."""
        for number, parts in enumerate(self._ways.found.ours):
            step = self._ways.changes[number]
            if isinstance(step, Set | Delete | Insert | Remove):  # what looks at all that was settled
                self._ways.meter.add_steps((len(self._closed) + len(self._keeping)) // _LOOKS_PER_STEP)
            if isinstance(step, Read) and not step.strict:
                self._result.guard(number, parts)
            elif self._is_settled_above(step, parts):
                self._result.unguard()
            elif number in self._settled or self._is_around(step):
                self._settle(number, step, parts)
            else:
                self._result.put(number, parts)
            if isinstance(step, Insert | Remove):
                self._closed, self._keeping = _moved_all(self._closed, step), _moved_all(self._keeping, step)
        steps = self._result.steps
        changes = [change for _, change in steps]
        met = self._once([(self._told(each, number, before), number) for each, number, before in self._met])
        if any(_is_sum(each) for each in met):
            state = apply(self._ways.head, cast("list[Change]", pure(changes)))
            met = [msgspec.structs.replace(m, ours=get(state, m.path, ABSENT)) if _is_sum(m) else m for m in met]
        return Settled(changes, [n for n, _ in steps], met, self._ways.found.theirs)

    @property
    def yielded(self) -> set[int]:
        """The numbers of ours that gave way to theirs: of those that met them, and of those that made the values told."""
        told = [(met.number, number) for met, number, _ in self._met if met.outcome in ("theirs", "pending", "both")]
        return {number for numbers in told for number in numbers}

    def _once(self, told: Sequence[tuple[Met, int]]) -> list[Met]:
        """Return the meetings, of one place not the same twice. told: each with the number of the step it is about."""
        if len(told) < 2:
            return [met for met, _ in told]
        found: list[Met] = []
        places: dict[Path, list[Met]] = {}
        for met, number in told:
            place = self._ways.places(number)[0]
            # of an item that is gone the whole item is told
            known = [] if place is None else places.setdefault(place[: len(met.path)], [])
            if not any(_alike(met, other) for other in known):
                known.append(met)
                found.append(met)
        return found

    def _is_settled_above(self, step: Step, parts: Sequence[Step]) -> bool:
        if not self._closed:
            return False
        stands = self._merging is not None and self._merging.stands is not None
        anew = isinstance(step, Set | Delete) and stands and bool(parts)  # it replaces what was settled
        return any(step.path[:depth] in self._closed for depth in range(len(step.path) + (not anew)))

    def _is_around(self, step: Step) -> bool:
        """Tell whether it would replace what was settled: that clash is behind it, and counts for it too."""
        settled = self._closed | self._keeping
        if not settled or not self._decides or not isinstance(step, Set | Delete | Remove):
            return False
        place = _place(step)
        return any(len(path) >= len(place) and path[: len(place)] == place for path in settled)

    def _told(self, met: Met, number: int, before: int) -> Met:
        """Return what was met as it is told: where it is in the result, and of an item that is gone the whole item."""
        own = _place(self._ways.changes[number])
        depths = [depth + 1 for depth, token in enumerate(own) if type(token) is int]
        if not depths or len(own) != len(met.path):
            return met
        ways, trail = self._ways, self._result.trail
        for depth in depths:
            then = ways.ours.before(own[:depth], number)
            if then is None:  # one of ours that is new
                break
            now, _ = ways.theirs.after(then)
            if now is not None and trail.after(now)[0] is not None:
                continue
            gap = now or ways.theirs.after(then, gap=True)[0]
            path = (gap and trail.after(gap, gap=True)[0]) or met.path[:depth]
            if depth == len(own):
                return msgspec.structs.replace(met, path=path)
            base = get(ways.base, then, ABSENT)
            theirs = ABSENT if now is None else get(ways.head, now, ABSENT)
            mine, _ = ways.ours.after(own[:depth], number + 1)
            ours = ABSENT if mine is None else get(ways.mine, mine, ABSENT)
            return msgspec.structs.replace(met, path=path, base=base, theirs=theirs, ours=ours)
        return msgspec.structs.replace(met, path=trail.after(met.path, before)[0] or met.path)

    def _settle(self, number: int, step: Step, parts: Sequence[Step]) -> None:
        """Settle one of ours: it stands where both sides agree, else a policy says what does."""
        stale = self._stale.get(number)
        clash = self._ways.clashes.get(number)
        if clash is None:
            other = self._met[-1][0].other if stale is None else stale.other
            clash = merge.Clash(step.path, step, self._ways.over[other], False, number, other)
        at = self._place(number, step, parts)
        if self._whole and (clash.dropped or isinstance(step, Splice)):
            at = self._put_back(at, clash)
            if stale is None and same(at.base, at.theirs):
                self._result.put(number, at.parts)  # they replaced what is around it, and left it as it was
                return
        if stale is None and self._agree(step, clash, at):
            self._result.put(number, at.parts)
            return
        last, other = _last(number, self._ways), None if at.now is None else self._ways.theirs.last(at.now)
        then = self._ways.ours.before(at.path, number) if at.now is None else None
        if then is not None and (taken := self._ways.theirs.after(then)[1]) >= 0:
            other = taken
        other = clash.other if other is None else other
        told = _named(self._writer, other)
        late = self._policy in ("last", "ours")
        if self._whole and late and at.base is ABSENT and _both_began(at.ours, at.theirs):
            united, twice = _united(at.place, at.ours, at.theirs)
            self._result.unguard()
            self._result.put(number, reliant(united))
            before = len(self._result.steps)
            both = [Met(self._result.place(p), ABSENT, a, b, step, last, other, "ours", **told) for p, a, b in twice]
            self._met += [(met, number, before) for met in both]
            self._closed.add(at.path)
            return
        path = self._result.place(at.place)
        self._decide(number, at, clash, Met(path, at.base, at.ours, at.theirs, step, last, other, "ours", **told))

    def _place(self, number: int, step: Step, parts: Sequence[Step]) -> _At:
        path = _place(step)
        if parts:
            place = _place(parts[0])
            now = self._ways.places(number)[1] or place
        else:
            now, place = self._ways.lost(number)
        theirs = ABSENT if now is None else get(self._ways.head, now, ABSENT)
        return _At(path, place, now, *self._wanted[number], theirs, parts)

    def _put_back(self, at: _At, clash: merge.Clash) -> _At:
        """Return what has our whole state at a place that was taken away, or whose text both changed (rule 5)."""
        if clash.dropped:
            place = _missing(at.path, self._ways.head)
            base, ours, theirs = (
                get(side, place, ABSENT) for side in (self._ways.base, self._ways.mine, self._ways.head)
            )
            at = _At(place, place, place, base, ours, theirs, ())
        self._result.unguard()
        self._closed.add(at.path)
        return msgspec.structs.replace(at, parts=reliant(_valued(at.place, at.ours, at.theirs)))

    def _agree(self, step: Step, clash: merge.Clash, at: _At) -> bool:
        """Tell whether both sides want the same there."""
        if isinstance(step, Set) and not clash.dropped and same(at.ours, at.theirs):
            return True
        around = min(clash.theirs.path, at.path, key=len)
        return at.ours is ABSENT and at.theirs is ABSENT and _both_took(around, self._ways)

    def _decide(self, number: int, at: _At, clash: merge.Clash, meeting: Met) -> None:
        """Put what the policy lets stand."""
        parts = cast("list[Change]", at.parts)
        step = self._ways.changes[number]
        policy = self._policy or "last"
        yields = policy in ("theirs", "queue")
        late = self._merging is None
        if policy == "reject" or (clash.dropped and not yields and late and not self._whole):
            reason: Reason = "gone" if clash.dropped else "written"
            meeting = msgspec.structs.replace(meeting, path=at.path)
            raise refusal(self._where, reason if late else "merge", [*(met for met, *_ in self._met), meeting])
        if not yields and not parts:  # they did it too; what else ours does there stands
            outcome, instead = "theirs", parts if late else list[Change]()
        else:
            outcome, instead = self._outcome(policy, meeting, at, parts)
        before = len(self._result.steps)
        if outcome != "ours":
            self._result.unguard()
        taken = any(isinstance(change, Remove) for change in instead)
        if outcome == "both" or (taken and not isinstance(step, Remove) and outcome != "ours"):
            self._result.put_beside(instead)
        else:
            self._result.put(number if outcome == "ours" else None, instead)
        if isinstance(step, Remove) and parts and not taken and outcome != "ours":
            self._result.keep(at.place)
            self._keeping.add(at.path[:-1])
            self._closed = {path for path in self._closed if path[: len(at.path)] != at.path}
        if at.path in self._closed and not self._whole:  # a later one of ours stands where an earlier one did not
            self._closed.discard(at.path)
            self._met = [
                (met, of, n)
                for met, of, n in self._met
                if (self._result.trail.after(met.path, n, before)[0] or met.path) != meeting.path
            ]
        if instead is not parts and not isinstance(step, Remove):  # of an item that ours took out nothing is below
            self._closed.add(at.path)
        self._met.append((msgspec.structs.replace(meeting, outcome=outcome), number, before))

    def _outcome(self, policy: Policy, meeting: Met, at: _At, parts: list[Change]) -> tuple[Outcome, list[Change]]:
        """Return what stands, and the changes that make it so."""
        place = at.place
        if policy in ("last", "ours"):
            return "ours", parts
        if policy == "theirs":
            return "theirs", []
        if policy == "queue":
            return "pending", []
        if policy == "both":
            if meeting.ours is ABSENT or not isinstance(meeting.change, Set) or not place:
                return "theirs", []  # nothing of ours to keep: a removal gives way
            if meeting.theirs is ABSENT:
                return "ours", parts or [Set(place, meeting.ours)]
            return "both", [self._beside(at, meeting)]
        shown = {name: copied(getattr(meeting, name)) for name in ("base", "ours", "theirs")}
        answer = call(cast("Callable[[Met], Any]", policy), msgspec.structs.replace(meeting, **shown))
        if not place and type(answer) is not dict:
            raise Invalid(f"the policy gave {type(answer).__name__} for a whole state, which is an object")
        if answer is not ABSENT:
            return "value", [Set(place, clean(answer, path=place))]
        if meeting.theirs is ABSENT:
            return "value", []
        return "value", [Remove(place[:-1], place[-1]) if isinstance(place[-1], int) else Delete(place)]

    def _beside(self, at: _At, meeting: Met) -> Change:
        """Return the change that puts ours next to theirs: as the next item, or under a key like `plan~2`."""
        *_, key = at.place
        if isinstance(key, int):
            return Insert(at.place[:-1], key + 1, [meeting.ours])
        sides = ((self._result.state(), meeting.path), (self._ways.mine, at.path))
        taken = [cast("dict[str, Any]", get(side, path[:-1], {})) for side, path in sides]
        number = 2
        while any(f"{key}~{number}" in names for names in taken):
            number += 1
        return Set((*at.place[:-1], f"{key}~{number}"), meeting.ours)


def _moved_all(places: set[Path], step: Insert | Remove) -> set[Path]:
    return {there for path in places if (there := moved(path, step)) is not None}


def _in_vain(yielded: Collection[int], ways: _Ways) -> dict[int, int]:
    """Return the numbers of ours whose place a later one replaces that gave way to theirs, each with that of the later one.

    Else a part of ours would stand that was not to be there in the end.
    """
    changes = ways.changes
    vain: dict[int, int] = {}
    for number in sorted(yielded):
        step = changes[number]
        if isinstance(step, Set | Delete) or (isinstance(step, Remove) and step.count):
            path = _place(step)
            place = ways.ours.before(path, number) if ways.moves(path) else path
            inside = [] if place is None else ways.inside.get(place, [])
            vain |= {earlier: number for earlier in inside if earlier < number}
    return vain


def _lasting(vain: dict[int, int], ways: _Ways) -> tuple[list[int], list[Step]]:
    """Return the numbers of the steps of ours that are left, and these; what the others relied on, the later ones do."""
    changes = ways.changes
    guarded = dict(sought(changes))
    carried: dict[int, list[tuple[int, Step]]] = {}
    numbers: list[int] = []
    steps: list[Step] = []
    for number, step in enumerate(changes):
        later = vain.get(guarded.get(number, number))
        if later is None:
            count = [*carried.get(number, ()), (number, step)]
            numbers += [n for n, _ in count]
            # a step that does not count may have put there the value that this one deletes
            steps += [Gone(each.path) if type(each) is Delete else each for _, each in count]
        elif number in guarded and (path := ways.ours.after(step.path, number, later)[0]) is not None:
            carried.setdefault(later, []).append((number, msgspec.structs.replace(step, path=path)))
    return numbers, steps


def _unchanged(ways: _Ways) -> set[int]:
    """Return which of ours met what others changed and changed back: that is no conflict."""
    alike: set[int] = set()
    places: set[Path] = set()
    for number in sorted(ways.clashes):
        step = ways.changes[number]
        if isinstance(step, Set | Delete | Ensure | Increment) and not ways.clashes[number].dropped:
            then, now = ways.places(number)
            own = then is None and step.path in places  # it goes on with one of ours that stands
            if own or (
                then is not None and now is not None and same(get(ways.base, then, ABSENT), get(ways.head, now, ABSENT))
            ):
                alike.add(number)
                places.add(step.path)
    return alike


def _stale(ways: _Ways) -> dict[int, Met]:
    """Return, by the number of the change that relies on it, the first guard that does not hold; strict ones by their own.

    Cost: nothing where nothing that was read was touched, else comparing what was read and is touched.
    """
    changes = ways.changes
    touched = [n for n in ways.clashes if isinstance(changes[n], Read)]
    target = dict(sought(changes)) if touched else {}
    stale: dict[int, Met] = {}
    for number in sorted(touched):
        guard = cast("Read", changes[number])
        relies = number if guard.strict else target.get(number)
        then, now = ways.places(number)
        if relies is None or then is None:
            continue
        was = get(ways.base, then, ABSENT)
        is_now = ABSENT if now is None else get(ways.head, now, ABSENT)
        if not guard.holds(was, is_now) and relies not in stale:
            change = changes[relies]
            ours = change.value if isinstance(change, Set) and change.path == guard.path else ABSENT
            there, other = ways.theirs.after(then) if any(type(token) is int for token in then) else (now, -1)
            if there is None:
                is_now = ABSENT  # there may be another list by now, with other items
            else:
                last = ways.theirs.last(there)
                other = ways.clashes[number].other if last is None else last
            stale[relies] = Met(guard.path, was, ours, is_now, change, relies, other, "ours")
    return stale


def _missing(path: Path, head: dict[str, Any]) -> Path:
    """Return the beginning of a path that is not in the head as our change needs it: an object's key, or a whole list."""
    there: Any = head
    for depth, token in enumerate(path):
        if type(token) is int or type(there) is not dict:
            return path[:depth]
        if token not in there:
            return path[: depth + 1]
        there = there[cast("str", token)]
    return path


def _valued(place: Path, ours: Any, theirs: Any) -> list[Step]:
    """Return what makes the value at a place ours, by itself."""
    if ours is not ABSENT:
        return [Set(place, ours)]
    return [] if theirs is ABSENT else [Delete(place)]


def _both_began(ours: Any, theirs: Any) -> bool:
    return type(ours) is type(theirs) in (dict, list) and not same(ours, theirs)


def _united(place: Path, ours: Any, theirs: Any) -> tuple[list[Change], list[tuple[Path, Any, Any]]]:
    """Return what puts all of ours into an object or list that theirs began too, and where both wrote: ours and theirs."""
    if type(ours) is list:
        return [Append(place, ours)] if ours else [], []
    changes: list[Change] = []
    both: list[tuple[Path, Any, Any]] = []
    for key, value in cast("dict[str, Any]", ours).items():
        there = theirs.get(key, ABSENT)
        path = (*place, key)
        if _both_began(value, there):
            more, met = _united(path, value, there)
            changes += more
            both += met
        else:
            changes.append(Set(path, value))
            both += [] if there is ABSENT else [(path, value, there)]
    return changes, both


def _alike(a: Met, b: Met) -> bool:
    """Tell whether two meetings at one place tell the same."""
    return a.outcome == b.outcome and all(
        same(getattr(a, side), getattr(b, side)) for side in ("base", "ours", "theirs")
    )


def _last(number: int, ways: _Ways) -> int:
    """Return which of ours made the value that is told of a change: the last one at its place, see `_wanted`."""
    path = _place(ways.changes[number])
    return number if ways.moves(path) else max(number, ways.ours.touched(path) or 0)


def _place(step: Step) -> Path:
    """Return where what a change is about is: of a removal the first item that it takes out."""
    return (*step.path, step.index) if isinstance(step, Remove) else step.path


def _is_sum(met: Met) -> bool:
    return isinstance(met.change, Increment) and met.outcome == "ours"


def _apart(changes: Sequence[Step]) -> tuple[list[int], list[Step]]:
    """Return the changes with each removal of several items as one of each, and for each which of the given it is."""
    numbers: list[int] = []
    apart: list[Step] = []
    for number, change in enumerate(changes):
        if isinstance(change, Remove) and change.count > 1:
            first = len(apart)
            while first and isinstance(guard := apart[first - 1], Read) and not guard.strict:
                first -= 1
            depth = len(change.path)
            guards: dict[Path, list[Step]] = {}
            for guard in apart[first:]:
                of_item = msgspec.structs.replace(guard, path=(*change.path, change.index, *guard.path[depth + 1 :]))
                guards.setdefault(guard.path[: depth + 1], []).append(of_item)
            del apart[first:], numbers[first:]
            for index in range(change.index, change.index + change.count):
                parts = [*guards.get((*change.path, index), ()), Remove(change.path, change.index)]
                apart += parts
                numbers += [number] * len(parts)
        else:
            apart.append(change)
            numbers.append(number)
    return numbers, apart


def _unnamed(number: int) -> tuple[str, int | None]:  # noqa: ARG001 - the shape of Writer
    return "", None


def _named(writer: Writer, number: int) -> dict[str, Any]:
    author, version = writer(number)
    return {"author": author, "version": version}


def _both_took(path: Path, ways: _Ways) -> bool:
    """Tell whether both sides took away what was at a path, whatever each did there on the way, and kept what held it."""
    if not path or ways.moves(path):
        return False  # where ours moved places, what is there is not theirs
    sides = (ways.head, ways.mine)
    return any(  # at the path, or with something that held it
        all(type(get(s, path[:depth])) is dict and get(s, path[: depth + 1], ABSENT) is ABSENT for s in sides)
        for depth in range(len(path))
    )


def _among(alike: set[int], number: int, other: int) -> bool:  # noqa: ARG001 - the shape of merge.Stands
    return number in alike


def _wanted(clashes: Collection[int], ways: _Ways) -> dict[int, tuple[Any, Any]]:
    """Return for each clashing change of ours what was at its place before, and what we had there in the end."""
    changes, base = ways.changes, ways.base
    working = Working(base)
    before: dict[int, Any] = {}
    for number, change in enumerate(changes):
        if number in clashes:
            path = _place(change)
            then = ways.ours.before(path, number) if ways.moves(path) else path
            before[number] = ABSENT if then is None else get(base, then, ABSENT)
        working.apply(change)
    # later changes of ours at the same place count
    wanted: dict[int, tuple[Any, Any]] = {}
    for number, was in before.items():
        left = None if isinstance(changes[number], Remove) else ways.left(number)
        wanted[number] = was, ABSENT if left is None else get(working.state, left, ABSENT)
    return wanted
