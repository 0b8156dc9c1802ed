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
from functools import partial
from itertools import accumulate
from typing import Any, Literal, cast

import msgspec

from quire.core import merge
from quire.core.changes import Working, apply
from quire.core.fold import copied
from quire.core.guards import Guard, Read, Step, reliant, sought
from quire.core.path import get
from quire.core.refusals import Reason, refusal
from quire.core.trail import Trail
from quire.core.values import clean, same
from quire.errors import Invalid
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

Named = Literal["last", "ours", "theirs", "both", "queue", "reject"]
Outcome = Literal["ours", "theirs", "both", "value", "pending"]

POLICIES: tuple[Named, ...] = ("last", "ours", "theirs", "both", "queue", "reject")
ABSENT: Any = msgspec.UNSET
"""Where nothing was, or is."""


class Met(msgspec.Struct, frozen=True):
    """Where two sides met. Values are what each side had at `path`, ABSENT for nothing.

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


class Settled(msgspec.Struct, frozen=True):
    """What to write onto the head, and what had to be settled for it.

    changes: with the guards of those that stand.  numbers: for each which of ours it is, None for one that a policy made.
    behind: for each of theirs what it is after ours; exact where nothing had to be settled.
    """

    changes: list[Step]
    numbers: list[int | None]
    met: list[Met]
    behind: list[list[Change]]


_LATE = Merging()


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
) -> Settled:
    """Return our changes as they go onto the head, by a policy.

    changes, over: ours and theirs, each made on `base`; ours with guards.  head: `base` after theirs.  policy: None
    refuses what is stale and lets the later of two writes stand otherwise.  where: what messages call it.
    merging: how two workflows are merged, None for a write that comes late.  writer: of theirs, for messages.
    whole: ours is a whole state (rule 5).
    Raises MergeConflict (rules 2 to 4), Invalid for a value of a callable that cannot be stored.
    Cost: that of merge.both, plus applying ours to `base` where something clashed, and comparing what was read.
    """
    yields = policy in ("theirs", "queue")
    rules = merging or _LATE
    writer = writer or _unnamed
    found = merge.both(
        changes, over, base=base, stands=None if yields else rules.stands, ahead=rules.ahead, twins=rules.twins
    )
    clashes = {clash.number: clash for clash in found.clashes}
    ways = _Ways(changes, found) if clashes else None
    alike = set[int]()
    if ways is not None and merging is None:
        alike = _unchanged(changes, ways, clashes, base, head)
    if yields and clashes:
        stands = partial(_among, alike)
        found = merge.both(changes, over, base=base, stands=stands, ahead=rules.ahead, twins=rules.twins)
        clashes = {clash.number: clash for clash in found.clashes}
        ways = _Ways(changes, found)
    stale = {} if ways is None else _stale(changes, ways, clashes, base, head)
    refused = [
        msgspec.structs.replace(meeting, **_named(writer, meeting.other))
        for number, meeting in stale.items()
        if (policy in (None, "reject") or isinstance(changes[number], Guard))
        and not (isinstance(changes[number], Ensure) and number not in clashes)  # whoever made it, it is there
    ]
    if refused:
        strict = isinstance(refused[0].change, Guard)
        raise refusal(where, "read" if strict else "stale", refused[::-1])  # the first is told
    settled = {n for n in (*clashes, *stale) if not isinstance(changes[n], Guard) and n not in alike}
    wanted = _wanted(base, changes, settled, ways) if settled and ways is not None else {}
    theirs_made = Trail(over)
    mine = apply(base, changes) if whole and settled else base
    result: list[tuple[int | None, Step]] = []
    met: list[Met] = []
    closed: set[Path] = set()
    guards: list[tuple[int, Sequence[Step]]] = []
    """Those in front of the next change: they go where it goes."""
    beside: list[Change] = []
    """What "both" put into lists: what comes after it there has moved."""

    def put(number: int | None, steps: Sequence[Step]) -> None:
        for guard, parts in [*guards, (number, steps)]:
            moved = merge.rebase(parts, beside)[0] if beside else parts
            result.extend((guard, step) for step in moved)
        guards.clear()

    for number, rebased in enumerate(found.ours):
        step, parts = changes[number], rebased
        path = step.path
        if isinstance(step, Read) and not step.strict:
            guards.append((number, parts))
            continue
        anew = isinstance(step, Set | Delete) and bool(rules.stands and parts)  # it replaces what was settled
        if closed and any(path[:depth] in closed for depth in range(len(path) + (not anew))):
            guards.clear()
            continue  # part of what was settled above
        if number not in settled or isinstance(step, Guard):
            put(number, parts)
            continue
        own = clashes.get(number)
        clash = own or merge.Clash(path, step, over[stale[number].other], False, number, stale[number].other)
        place = parts[0].path if parts else path
        before, ours = wanted[number]
        taken = not parts and isinstance(clash.theirs, Delete | Remove)
        theirs = ABSENT if taken else get(head, place, ABSENT)
        if whole and not yields and (clash.dropped or isinstance(step, Splice)):
            if clash.dropped:
                path = place = _missing(path, head)
                before, ours, theirs = (get(side, place, ABSENT) for side in (base, mine, head))
            guards.clear()
            parts = reliant(_valued(place, ours, theirs))
            closed.add(path)
            if number not in stale and same(before, theirs):
                put(number, parts)  # they replaced what is around it, and left it as it was
                continue
        around = min(clash.theirs.path, path, key=len)
        if number not in stale and (
            (ours is ABSENT and theirs is ABSENT and _both_took(around, base, changes, head))
            or (isinstance(step, Set) and not clash.dropped and same(ours, theirs))
        ):
            put(number, parts)
            continue
        other = theirs_made.last(place)
        last, other = _last(changes, number, ways), clash.other if other is None else other
        if whole and policy in ("last", "ours") and before is ABSENT and _both_began(ours, theirs):
            united, twice = _united(place, ours, theirs)
            guards.clear()
            put(number, reliant(united))
            told = _named(writer, other)
            met += [Met(p, ABSENT, a, b, step, last, other, "ours", **told) for p, a, b in twice]
            closed.add(path)
            continue
        meeting = Met(path, before, ours, theirs, step, last, other, "ours", **_named(writer, other))
        if policy == "reject" or (clash.dropped and not yields and merging is None and not whole):
            reason: Reason = "merge" if merging is not None else "gone" if clash.dropped else "written"
            raise refusal(where, reason, [*met, meeting])
        if not yields and not parts:  # they did it too; what else ours does there stands
            outcome, instead = "theirs", cast("list[Change]", parts) if merging is None else list[Change]()
        else:
            outcome, instead = _decide(policy or "last", meeting, place, cast("list[Change]", parts), head)
        if outcome != "ours":
            guards.clear()
        elif isinstance(step, Increment):
            meeting = msgspec.structs.replace(meeting, ours=get(apply(head, instead), place, ABSENT))
        put(number if outcome == "ours" else None, instead)
        beside += [change for change in instead if outcome == "both" and isinstance(change, Insert)]
        if path in closed and not whole:  # a later one of ours stands where an earlier one did not
            closed.discard(path)
            met = [m for m in met if m.path != path]
        if instead is not parts:
            closed.add(path)
        met.append(msgspec.structs.replace(meeting, outcome=outcome))
    return Settled([c for _, c in result], [n for n, _ in result], met, found.theirs)


class _Ways:
    """Where the places of ours were before ours, in the base and in the head."""

    def __init__(self, changes: Sequence[Step], found: merge.Rebased) -> None:
        self._changes = changes
        self._found = found
        self.ours = Trail(changes)
        self.moved = any(isinstance(step, Insert | Remove) for step in changes)
        self._ahead = Trail([step for steps in found.ours for step in steps])
        self._starts = [0, *accumulate(len(steps) for steps in found.ours)]

    def places(self, number: int) -> tuple[Path | None, Path | None]:
        """Return where the place of one of ours is in the base and in the head; None where it is not there."""
        parts = self._found.ours[number]
        now = self._ahead.before(parts[0].path, self._starts[number]) if parts else None
        return self.ours.before(self._changes[number].path, number), now


def _unchanged(
    changes: Sequence[Step],
    ways: _Ways,
    clashes: dict[int, merge.Clash],
    base: dict[str, Any],
    head: dict[str, Any],
) -> set[int]:
    """Return which of ours met what others changed and changed back: that is no conflict."""
    alike: set[int] = set()
    places: set[Path] = set()
    for number in sorted(clashes):
        step = changes[number]
        if isinstance(step, Set | Delete) and not clashes[number].dropped:
            then, now = ways.places(number)
            own = then is None and step.path in places  # it goes on with one of ours that stands
            if own or (then is not None and now is not None and same(get(base, then, ABSENT), get(head, now, ABSENT))):
                alike.add(number)
                places.add(step.path)
    return alike


def _stale(
    changes: Sequence[Step],
    ways: _Ways,
    clashes: dict[int, merge.Clash],
    base: dict[str, Any],
    head: dict[str, Any],
) -> dict[int, Met]:
    """Return, by the number of the change that relies on it, the first guard that does not hold; strict ones by their own.

    Cost: nothing where nothing that was read was touched, else comparing what was read and is touched.
    """
    touched = [n for n in clashes if isinstance(changes[n], Read)]
    target = dict(sought(changes)) if touched else {}
    stale: dict[int, Met] = {}
    for number in sorted(touched):
        guard = cast("Read", changes[number])
        relies = number if guard.strict else target.get(number)
        then, now = ways.places(number)
        if relies is None or then is None:
            continue
        was, is_now = (ABSENT if at is None else get(state, at, ABSENT) for at, state in ((then, base), (now, head)))
        if not guard.holds(was, is_now) and relies not in stale:
            change = changes[relies]
            ours = change.value if isinstance(change, Set) and change.path == guard.path else ABSENT
            stale[relies] = Met(guard.path, was, ours, is_now, change, relies, clashes[number].other, "ours")
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


def _last(changes: Sequence[Step], number: int, ways: _Ways | None) -> int:
    """Return which of ours made the value that is told of a change: the last one at its place, see `_wanted`."""
    if ways is None or ways.moved:
        return number
    return max(number, ways.ours.touched(changes[number].path) or 0)


def _unnamed(number: int) -> tuple[str, int | None]:  # noqa: ARG001 - the shape of Writer
    return "", None


def _named(writer: Writer, number: int) -> dict[str, Any]:
    author, version = writer(number)
    return {"author": author, "version": version}


def _both_took(path: Path, base: dict[str, Any], changes: Sequence[Step], head: dict[str, Any]) -> bool:
    """Tell whether both sides took away what was at a path, whatever each did there on the way, and kept what held it."""
    if not path or any(isinstance(c, Insert | Remove) for c in changes):
        return False  # where ours moved places, what is there is not theirs
    sides = (head, apply(base, changes))
    return any(  # at the path, or with something that held it
        all(type(get(s, path[:depth])) is dict and get(s, path[: depth + 1], ABSENT) is ABSENT for s in sides)
        for depth in range(len(path))
    )


def _among(alike: set[int], number: int, other: int) -> bool:  # noqa: ARG001 - the shape of merge.Stands
    return number in alike


def _wanted(
    base: dict[str, Any], changes: Sequence[Step], clashes: Collection[int], ways: _Ways
) -> dict[int, tuple[Any, Any]]:
    """Return for each clashing change of ours what was at its place before, and what we had there in the end."""
    working = Working(base)
    before: dict[int, Any] = {}
    after: dict[int, Any] = {}
    for number, change in enumerate(changes):
        if number in clashes:
            then = ways.ours.before(change.path, number)
            before[number] = ABSENT if then is None else get(base, then, ABSENT)
        working.apply(change)
        if number in clashes:
            after[number] = get(working.state, change.path, ABSENT)
    # later changes of ours at the same place count; where ours moved the place itself, what it was at first is told
    final = after if ways.moved else {n: get(working.state, changes[n].path, ABSENT) for n in after}
    return {n: (before[n], final[n]) for n in after}


def _decide(
    policy: Policy, meeting: Met, place: Path, parts: list[Change], head: dict[str, Any]
) -> tuple[Outcome, list[Change]]:
    """Return what stands, and the changes that make it so."""
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
        return "both", [_beside(place, meeting.ours, head)]
    shown = {name: copied(getattr(meeting, name)) for name in ("base", "ours", "theirs")}
    answer = cast("Callable[[Met], Any]", policy)(msgspec.structs.replace(meeting, **shown))
    if answer is not ABSENT:
        return "value", [Set(place, clean(answer, path=place))]
    if meeting.theirs is ABSENT:
        return "value", []
    return "value", [Remove(place[:-1], place[-1]) if isinstance(place[-1], int) else Delete(place)]


def _beside(place: Path, value: Any, head: dict[str, Any]) -> Change:
    """Return the change that puts a value next to the one at `place`: as the next item, or under a key like `plan~2`."""
    parent, key = place[:-1], place[-1]
    if isinstance(key, int):
        return Insert(parent, key + 1, [value])
    taken = cast("dict[str, Any]", get(head, parent, {}))
    number = 2
    while f"{key}~{number}" in taken:
        number += 1
    return Set((*parent, f"{key}~{number}"), value)
