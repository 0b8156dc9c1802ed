"""Rebasing: changes made on a base, rewritten to fit the state that others have changed since.

Each of ours is moved past each of theirs, and theirs past ours, as two people swap places one step at a time.

1. A swap keeps the meaning: theirs, then ours rewritten, gives what ours, then theirs rewritten, gives. So
   what fitted the base fits the result. (A sum that leaves the finite numbers is the one exception.)
2. Where both wrote the same place ours, the later, wins, or whoever is preferred. Where theirs took away what ours
   needs, ours is left out. Both are reported. What commutes or is the same on both sides merges silently.
3. Texts are lists of code points: a splice is an insertion and a removal behind it.
4. A `Read` or `Within` among ours is moved past theirs and leaves them as they are. Where theirs touch its place that is
   reported as a clash, dropped where the place is gone; whether the value there differs is for the caller to see.
5. Where a list ends is not in a change. Two appends merge all the same, but what ours then says by index
   about that list is certain only with `base`. Without it, it is left out and reported, not done to the wrong
   item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec.structs import replace

from quire.core.changes import Gone, Working
from quire.core.guards import Guard, Step
from quire.core.meter import Meter
from quire.core.path import get
from quire.core.trail import moved
from quire.core.values import same
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

Stands = Callable[[int, int], bool]
"""Asked where both wrote the same place, with the numbers of our change and of theirs: whether ours stands."""


Ahead = Callable[[int, int], bool]
"""Asked where both insert at the same place, likewise: whether ours comes first."""

Twins = Callable[[int, int], bool]
"""Asked with the numbers of our change and of theirs: whether both come from one."""


class Clash(msgspec.Struct, frozen=True):
    """Two changes that cannot both stand, as they were written. `path` is ours.

    dropped: True where ours was left out, for want of its place or because theirs was preferred, False where it
    overruled theirs.  number, other: which of ours, which of theirs.
    """

    path: Path
    ours: Step
    theirs: Change
    dropped: bool
    number: int = 0
    other: int = 0


class Rebased(NamedTuple):
    """Two sides after each other: base, theirs, ours is the same state as base, ours, theirs.

    ours: for each of our changes what it is after all of theirs.  theirs: for each of theirs what it is after all of
    ours, exact only where the base was at hand and ours won.
    """

    ours: list[list[Step]]
    theirs: list[list[Change]]
    clashes: list[Clash]


class _Placed(Append, frozen=True, array_like=True, tag="append"):
    """An append to a list whose length is known."""

    index: int = 0


Held = tuple[str, ...] | int
"""What a container holds: the keys of an object, the number of items of a list."""


class _Taken(Delete, frozen=True, array_like=True, tag="del"):
    """A deletion of what is known to hold something."""

    held: Held = ()


class _Replaced(Set, frozen=True, array_like=True, tag="set"):
    """A value put where something is known to hold something."""

    held: Held = ()


class _Meant(_Replaced, frozen=True, array_like=True, tag="set"):
    """Their value put where ours has put the same: there is nothing left to do, but it is what they meant."""


class _AtEnd(Splice, frozen=True, array_like=True, tag="splice"):
    """What is put behind a text: behind whatever text is there."""


class _Somewhere(Append, frozen=True, array_like=True, tag="append"):
    """Their append once ours is behind it: no longer at the end, and where, nobody knows."""


Moving = TypeVar("Moving", Change, Guard)


_PASSED_PER_STEP = 4
"""Changes elsewhere that one change is moved past in one step."""
_STEPS_PER_SWAP = 4
"""Steps that two changes of one place take..."""
_STEPS_PER_MOVE = 2
"""...and one that is inside of what the other alters."""


_Theirs = tuple[int, Change]
"""Which of their changes it was, and how it reads by now."""


_MOVING = (Insert, Remove)
_GROWING = (Insert, _Placed)
_TAKING = (Set, Delete, _Somewhere)


class _Rules(NamedTuple):
    """How one change of ours meets theirs: see `both`. Each is asked with the number of their change.

    None: ours wins and comes second.  meter: what counts the work.
    """

    meter: Meter
    wins: Callable[[int], bool] | None = None
    ahead: Callable[[int], bool] | None = None
    twin: Callable[[int], bool] | None = None


class _Swap(NamedTuple):
    """How two changes read after each other. dropped: see Clash; None where they do not clash."""

    ours: list[Change]
    theirs: list[Change]
    dropped: bool | None = None


def rebase(
    changes: Sequence[Step], over: Sequence[Change], *, base: dict[str, Any] | None = None
) -> tuple[list[Step], list[Clash]]:
    """Return our changes as they apply after `over`, and where the two sides clashed; ours win.

    changes, over: each made on the same state, in order; not modified.  base: that state if at hand: rule 5.
    Raises ChangeError only for changes that do not fit `base`.
    Cost: O(len(changes) x len(over)) for those that share a root (see `_roots`), nothing for the others.

    >>> rebase([Set(("notes", 2), "x")], [Remove(("notes",), 0, 1)])
    ([Set(path=('notes', 1), value='x')], [])
    """
    found = both(changes, over, base=base)
    return [c for parts in found.ours for c in parts], found.clashes


def both(
    changes: Sequence[Step],
    over: Sequence[Change],
    *,
    base: dict[str, Any] | None = None,
    stands: Stands | None = None,
    ahead: Ahead | None = None,
    twins: Twins | None = None,
    meter: Meter | None = None,
) -> Rebased:
    """Return both sides as they apply after each other. Otherwise as `rebase`.

    stands: who wins; None: ours.  ahead: of two insertions at one place, who comes first; None: theirs.  twins: which
    changes of both sides are one and the same, done once; where it is given, two branches are merged as equals: a number
    that one sets and the other adds to gets both, whoever is moved.  meter: what counts the work.
    """
    meter = meter or Meter()
    lists = {c.path for side in (changes, over) for c in side if isinstance(c, Insert | Remove)}
    ourplaces, theirplaces = [_fixed(c.path, lists) for c in changes], [_fixed(c.path, lists) for c in over]
    roots = _roots(ourplaces, theirplaces)
    shared = {roots[p] for p in ourplaces} & {roots[p] for p in theirplaces}
    if not shared:
        return Rebased([[c] for c in changes], [[c] for c in over], [])
    ensured = any(isinstance(c, Ensure) for c in changes)
    ours, others = _parts(changes, base), cast("list[list[Change]]", _parts(over, base, holding=ensured))
    waiting: dict[Path, list[_Theirs]] = {}
    for number, parts in enumerate(others):
        waiting.setdefault(roots[theirplaces[number]], []).extend((number, part) for part in parts)
    result: list[list[Step]] = []
    clashes: list[Clash] = []
    lost: set[Path] = set()
    plain = _Rules(meter)
    back: list[_Theirs] = []
    """What puts the items back that ours took out and that stay: what ours does later is written without them."""
    for number, (change, parts) in enumerate(zip(changes, ours, strict=True)):
        path = change.path
        built_on = path[:-1] if isinstance(change, Set | Delete) else path  # what replaces all there does not need it
        if lost and any(path[:depth] in lost for depth in range(len(built_on) + 1)):
            result.append([])  # made on something of ours that did not stand: what is there now is not alike
            continue
        root = roots[ourplaces[number]]
        met: dict[int, bool] = {}
        if isinstance(change, Guard):
            (guard,) = _followed(change, back, {}, meter)  # what is put back takes nothing away
            result.append(_followed(cast("Guard", guard), waiting.get(root, []), met, meter))
            clashes += [Clash(change.path, change, over[i], dropped, number, i) for i, dropped in met.items()]
            continue
        rules = _Rules(
            meter,
            None if stands is None else partial(stands, number),
            None if ahead is None else partial(ahead, number),
            None if twins is None else partial(twins, number),
        )
        written = cast("list[Change]", parts)
        if back:
            written, back = _past(written, back, {}, plain)
        theirs = waiting.get(root, [])
        now, waiting[root] = _past(written, theirs, met, rules)
        if lost and isinstance(change, Insert | Remove):
            lost = {there for gone in lost if (there := moved(gone, change)) is not None}
        if stands is not None and any(met.values()):
            if isinstance(change, Remove) and change.count == len(written) == 1 and not now:
                waiting[root] = theirs  # it stays: they are what they were
                back.append((-1, Insert(path, cast("Remove", written[0]).index, [None])))
            else:
                lost.add(path)
        elif lost and isinstance(change, Set | Delete) and now:
            lost = {gone for gone in lost if gone[: len(path)] != path}
        result.append(cast("list[Step]", _joined(now)))
        clashes += [Clash(change.path, change, over[i], dropped, number, i) for i, dropped in met.items()]
    left: list[list[Change]] = [[] for _ in over]
    for run in waiting.values():
        for number, other in run:
            left[number].append(other)
    return Rebased(result, [_joined(parts) for parts in left], clashes)


def past(
    changes: Sequence[Step], moves: Sequence[Insert | Remove], meter: Meter | None = None
) -> tuple[list[Step], list[Insert | Remove]]:
    """Return few changes as they apply after moves of items, and those after them: as `both` does, at less cost."""
    rules = _Rules(meter or Meter())
    ours: list[Step] = []
    theirs: list[_Theirs] = list(enumerate(moves))
    for change, parts in zip(changes, _parts(changes, None), strict=True):
        if isinstance(change, Guard):
            ours += _followed(change, theirs, {}, rules.meter)
        else:
            now, theirs = _past(cast("list[Change]", parts), theirs, {}, rules)
            ours += _joined(now)
    return ours, [cast("Insert | Remove", move) for _, move in theirs]


def _fixed(path: Path, lists: set[Path]) -> Path:
    """Return the part of a path that no change can move: up to the first index into a list whose items are moved."""
    if not lists:
        return path
    return next((path[:i] for i, token in enumerate(path) if type(token) is int and path[:i] in lists), path)


def _roots(*sides: Iterable[Path]) -> dict[Path, Path]:
    """Return for the fixed part of every path the shortest one that contains it: changes of two roots never meet."""
    fixed = {path for side in sides for path in side}
    depths = sorted({len(p) for p in fixed})
    return {path: next(path[:i] for i in depths if path[:i] in fixed) for path in fixed}


def _parts(changes: Sequence[Step], base: dict[str, Any] | None, *, holding: bool = False) -> list[list[Step]]:
    """Return each change as what can be swapped: splices in two, appends with their place if known.

    holding: what takes a container away knows what it held.
    """
    working = None if base is None else Working(base)
    found: list[list[Step]] = []
    for change in changes:
        parts: list[Step] = [change]
        if isinstance(change, Splice) and change.delete and change.insert:
            path, at = change.path, change.position
            # what is put in comes first: it stays before whatever others put behind what is taken out
            parts = [Splice(path, at, 0, change.insert), Splice(path, at + len(change.insert), change.delete, "")]
        elif isinstance(change, Splice) and working is not None and not change.delete:
            at_end = change.position == len(get(working.state, change.path, ""))
            parts = [_AtEnd(change.path, change.position, 0, change.insert)] if at_end else parts
        if working is not None:
            if isinstance(change, Append):
                length = len(get(working.state, change.path, ()))
                parts = [_Placed(change.path, change.values, length)]
            elif holding and isinstance(change, Set | Delete) and change.path:
                held = _held(get(working.state, change.path, None))
                taken = isinstance(change, Delete)
                parts = [_Taken(change.path, held) if taken else _Replaced(change.path, change.value, held)]
            working.apply(change)
        found.append(parts)
    return found


def _joined(parts: Iterable[Change]) -> list[Change]:
    """Return the parts of one change as few plain changes."""
    result: list[Change] = []
    for part in parts:
        last = result[-1] if result else None
        match part, last:
            case _Placed(path, values) | _Somewhere(path, values), _:
                result.append(Append(path, values))
            case _Meant(), _:
                pass
            case _Taken(path), _:
                result.append(Delete(path))
            case _Replaced(path, value), _:
                result.append(Set(path, value))
            case _AtEnd(path, at, gone, text), _:
                result.append(Splice(path, at, gone, text))
            case Splice(path, at, gone, ""), Splice(_, start, more, text) if at == start + len(text):
                result[-1] = Splice(path, start, more + gone, text)
            case _:
                result.append(part)
    return result


def _followed(guard: Guard, theirs: Sequence[_Theirs], met: dict[int, bool], meter: Meter) -> list[Step]:
    """Return a guard as it reads after theirs, nothing where its place is gone; note in `met` what touched it."""
    mine = guard.path
    depth = len(mine)
    meter.add_steps(len(theirs) // _PASSED_PER_STEP)
    for number, change in theirs:
        other = change.path
        if other[:depth] != mine[: len(other)]:
            continue
        if len(other) >= depth:
            met[number] = False
        elif isinstance(change, _MOVING):
            meter.add_steps(_STEPS_PER_MOVE)
            there = moved(mine, change)
            if there is None:
                met[number] = True
                return []
            mine = there
        elif isinstance(change, _Somewhere):
            met[number] = True
            return []
        elif isinstance(change, Set | Delete):
            met[number] = False  # it may have put there what was there
    return [_at(guard, mine)]


def _past(
    ours: Sequence[Change], theirs: list[_Theirs], met: dict[int, bool], rules: _Rules
) -> tuple[list[Change], list[_Theirs]]:
    """Move runs of changes past each other; note in `met` which of theirs clashed, and how."""
    done: list[Change] = []
    for change in ours:
        parts, theirs = _one_past(change, theirs, met, rules)
        done += parts
    return done, theirs


def _one_past(
    ours: Change, theirs: list[_Theirs], met: dict[int, bool], rules: _Rules
) -> tuple[list[Change], list[_Theirs]]:
    """Move one change past a run of theirs. What stays as it is on either side is not made anew."""
    behind: list[_Theirs] = []
    mine, twin, meter = ours.path, rules.twin, rules.meter
    depth = len(mine)
    meter.add_steps(len(theirs) // _PASSED_PER_STEP)
    for place, each in enumerate(theirs):
        number, change = each
        other = change.path
        if twin is not None and twin(number) and _alike(ours, change):
            return [], [*behind, *theirs[place + 1 :]]
        if other[:depth] != mine[: len(other)]:
            behind.append(each)
            continue
        if len(other) < depth:
            meter.add_steps(_STEPS_PER_MOVE)
            there = _inside(mine, change)
            if there is not None:
                mine = there
                behind.append((number, _holding(change, _at(ours, mine))) if isinstance(change, _Meant) else each)
                continue
            swap = _Swap([], [_holding(change, _at(ours, mine))], True)
        else:
            if mine is not ours.path:
                ours = replace(ours, path=mine)
            if len(other) > depth:
                meter.add_steps(_STEPS_PER_MOVE)
                there = _inside(other, ours)
                if there is not None:
                    behind.append(each if there is other else (number, replace(change, path=there)))
                    continue
                swap = _Swap([ours], [], False)
            else:
                meter.add_steps(_STEPS_PER_SWAP)
                ahead = rules.ahead is not None and rules.ahead(number)
                swap = _same_place(ours, change, ahead=ahead, late=twin is None)
        if swap.dropped is False and rules.wins is not None and not rules.wins(number):
            swap = _Swap([], [change], True)
        if swap.dropped is not None:
            met[number] = swap.dropped
        behind += [(number, part) for part in swap.theirs]
        if len(swap.ours) != 1:  # it is gone, or was split
            parts = swap.ours
            for at in range(place + 1, len(theirs)):
                if not parts:
                    return [], behind + theirs[at:]
                parts, rest = _past(parts, [theirs[at]], met, rules)
                behind += rest
            return parts, behind
        ours = swap.ours[0]
    return [_at(ours, mine)], behind


def _alike(ours: Change, theirs: Change) -> bool:
    """Tell whether two changes of one origin still do the same, wherever each has been moved to."""
    match ours, theirs:
        case Set(_, a), Set(_, b):
            return same(a, b)
        case ((Append(_, a) | Insert(_, _, a)), (Append(_, b) | Insert(_, _, b))):
            return same(a, b)
        case Remove(), Remove():
            return ours.count == theirs.count
        case Splice(), Splice():
            return (ours.delete, ours.insert) == (theirs.delete, theirs.insert)
        case Increment(_, a), Increment(_, b):
            return same(a, b)
        case _:
            return type(ours) is type(theirs)


def _inside(path: Path, around: Change) -> Path | None:
    """Return where a place inside what a change alters is then; None if it is gone."""
    if isinstance(around, _MOVING):
        return moved(path, around)
    return None if isinstance(around, _TAKING) and not isinstance(around, _Meant) else path


def _at(change: Moving, path: Path) -> Moving:
    return change if path is change.path else replace(change, path=path)


def _same_place(ours: Change, theirs: Change, *, ahead: bool, late: bool) -> _Swap:
    """Return the swap of two changes of one path: the table of what merges, who wins, what is dropped.

    late: ours is a write that knew nothing of theirs and means what it sets; else the sides are equals.
    """
    if isinstance(theirs, _Meant) and not isinstance(ours, Set | Delete | Ensure):
        return _Swap([ours], [_holding(theirs, ours)])  # it goes on with what ours has put there
    if (a := _span(ours)) and (b := _span(theirs)):
        return _spans(ours, theirs, a, b, ahead=ahead)
    match ours, theirs:
        case Set(path, value), Increment(_, amount) if not late and _countable(value, amount):
            return _Swap([Set(path, value + amount)], [theirs])
        case Ensure(_, mine), Ensure(_, other) if type(mine) is type(other):
            return _Swap([ours], [theirs])
        case Ensure(path, mine), Set(_, other):
            if type(mine) is not type(other) or not (late or same(mine, other)):
                return _Swap([Set(path, mine)], _emptied(theirs, mine), False)
            if not isinstance(theirs, _Replaced):
                return _Swap([ours], [theirs])
            # it is theirs, and what both put into it merges
            return _Swap([ours], [*_emptied(theirs, mine), *_filled(path, other)])
        case Ensure(_, mine), Delete():
            return _Swap([ours], _emptied(theirs, mine), None if late else False)
        case Ensure(path, mine), Ensure() | Increment() | Splice():
            return _Swap([Set(path, mine)], [], False)
        case Set(_, mine), Ensure(_, other) if type(mine) is type(other) and (late or same(mine, other)):
            return _Swap([ours], [theirs])
        case Increment() | Splice(), Ensure(path, other):
            return _Swap([], [Set(path, other)], True)
        case Set(path, a), Set(_, b):
            # what is the same stays on both sides: whatever follows on one of them meets what the other meant
            return _Swap([ours], [_Meant(path, b, _held(a))]) if same(a, b) else _Swap([ours], [], False)
        case Delete(), Delete():
            return _Swap([Gone(ours.path)] if late else [], [])
        case Set() | Delete(), _:
            return _Swap([ours], [], False)
        case Increment(_, amount), Set(path, value) if _countable(value, amount):
            return _Swap([ours], [Set(path, value + amount)])
        case Increment(path, amount), Delete():  # an absent number counts as 0
            return _Swap([ours], [Set(path, amount)], False)
        case _AtEnd(path, _, _, text), Set(_, value) if type(value) is str:
            return _Swap([_AtEnd(path, len(value), 0, text)], [Set(path, value + text)])
        case Append(_, values), Set(path, value) if type(value) is list:
            there = cast("list[Any]", value)
            mine = _Placed(path, values, len(there)) if isinstance(ours, _Placed) else ours
            return _Swap([mine], [replace(_holding(theirs, ours), value=there + values)])
        case _, Set() | Delete():
            return _Swap([], [_holding(theirs, ours)], True)
        case Insert() | Remove(), _Somewhere():
            return _Swap([], [theirs], True)
        case Append(), Append() if type(ours) is type(theirs) is Append:
            return _Swap([ours], [_Somewhere(theirs.path, theirs.values)])
        case _:  # numbers add up, and an append is behind everything that has a place
            return _Swap([ours], [theirs])


def _held(value: Any) -> Held:
    return tuple(cast("dict[str, Any]", value)) if type(value) is dict else len(value) if type(value) is list else ()


def _holding(theirs: Change, ours: Change) -> Change:
    """Return what takes a container away once ours has changed it: with what it holds then."""
    if not isinstance(theirs, _Taken | _Replaced):
        return theirs
    held = theirs.held
    if isinstance(ours, Set) and ours.path == theirs.path:
        held = _held(ours.value)
    elif type(held) is int:
        match ours:
            case Append(path, values) | Insert(path, _, values) if path == theirs.path:
                held += len(values)
            case Remove(path, _, count) if path == theirs.path:
                held -= count
            case _:
                pass
    elif type(held) is tuple and len(ours.path) == len(theirs.path) + 1:
        key = cast("str", ours.path[-1])
        held = tuple(k for k in held if k != key)
        held += () if isinstance(ours, Delete) else (key,)
    return replace(theirs, held=held)


def _emptied(theirs: Change, empty: Any) -> list[Change]:
    """Return what takes all out of a container that it holds; where that is not known, what puts an empty one there."""
    if not isinstance(theirs, _Taken | _Replaced):
        return [Set(theirs.path, empty)]
    held = theirs.held
    if type(held) is int:
        return [Remove(theirs.path, 0, held)] if held else []
    return [Delete((*theirs.path, key)) for key in cast("tuple[str, ...]", held)]


def _filled(path: Path, value: dict[str, Any] | list[Any]) -> list[Change]:
    """Return the changes that fill an empty container."""
    if isinstance(value, dict):
        return [Set((*path, key), item) for key, item in value.items()]
    return [_Placed(path, value, 0)] if value else []


def _countable(value: Any, amount: float) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return math.isfinite(value + amount)
    except OverflowError:  # of an int too large for a float: its sum with an int is fine
        return type(value) is type(amount) is int


class _Span(NamedTuple):
    """The stretch of a list or a text that a change puts in (`grows`) or takes out."""

    at: int
    size: int
    grows: bool


def _span(change: Change) -> _Span | None:
    if isinstance(change, _GROWING):
        return _Span(change.index, len(change.values), True)
    if isinstance(change, Remove):
        return _Span(change.index, change.count, False)
    if isinstance(change, Splice):
        return _Span(change.position, len(change.insert) or change.delete, bool(change.insert))
    return None


def _laid(change: Change, span: _Span) -> list[Change]:
    """Return the change with another stretch; nothing where there is nothing left to take out."""
    match change:
        case Insert() | _Placed():
            return [replace(change, index=span.at)]
        case Remove(path):
            return [Remove(path, span.at, span.size)] if span.size else []
        case Splice(_, _, _, text) if text:
            return [replace(change, position=span.at)]
        case Splice(path):
            return [Splice(path, span.at, span.size, "")] if span.size else []
        case _:
            return [change]


def _spans(ours: Change, theirs: Change, a: _Span, b: _Span, *, ahead: bool) -> _Swap:
    """Return the swap of two changes inside the same list or text. a, b: where they are."""
    both_grow = a.grows and b.grows
    if both_grow or (a.size and b.size):  # one may be before the other
        if a.at + (0 if a.grows else a.size) <= b.at and (ahead or not both_grow or a.at < b.at):
            shifted = _shifted(theirs, a.size if a.grows else -a.size)
            return _Swap([_in_place(ours) if both_grow else ours], [shifted])
        if b.at + (0 if b.grows else b.size) <= a.at:
            shifted = _shifted(ours, b.size if b.grows else -b.size)
            return _Swap([shifted], [_in_place(theirs) if both_grow else theirs])
    if a.grows:
        put, taken = _put_and_take(a, b)
        return _Swap(_laid(ours, put), [p for span in taken for p in _laid(theirs, span)])
    if b.grows:
        put, taken = _put_and_take(b, a)
        return _Swap([p for span in taken for p in _laid(ours, span)], _laid(theirs, put))
    return _Swap(_laid(ours, _without(a, b)), _laid(theirs, _without(b, a)))


def _in_place(change: Change) -> Change:
    """Return an addition that is not at the end any more."""
    return Insert(change.path, change.index, change.values) if isinstance(change, _Placed) else change


def _shifted(change: Change, by: int) -> Change:
    """Return a change of a stretch that lies further on."""
    if isinstance(change, Splice):
        return replace(change, position=change.position + by)
    return replace(change, index=cast("Insert", change).index + by)


def _put_and_take(put: _Span, take: _Span) -> tuple[_Span, list[_Span]]:
    """Return an insertion after a removal, and the removal, around it if need be, after the insertion."""
    end = take.at + take.size
    if put.at <= take.at:
        return put, [take._replace(at=take.at + put.size)]
    if put.at >= end:
        return put._replace(at=put.at - take.size), [take]
    before = put.at - take.at
    return put._replace(at=take.at), [
        _Span(take.at, before, False),
        _Span(take.at + put.size, take.size - before, False),
    ]


def _without(span: _Span, gone: _Span) -> _Span:
    """Return where a removal lies, and what is left of it, once another has been made."""
    start, end = span.at, span.at + span.size
    low, high = gone.at, gone.at + gone.size
    before = max(0, min(high, start) - low)
    within = max(0, min(end, high) - max(start, low))
    return _Span(start - before, span.size - within, False)
