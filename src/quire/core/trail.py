"""The way a place takes through a list of changes: where it was before them or is after them, and which touched it last.

Changes are looked up by their path, so a question costs what concerns the place, not the whole list.

>>> trail = Trail([Insert(("l",), 0, [9]), Set(("n",), 1)])
>>> trail.before(("l", 2)), trail.after(("l", 1))
(('l', 1), (('l', 2), -1))
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Generic, TypeVar

from quire.core.guards import Guard, Step
from quire.core.meter import Meter
from quire.model import Delete, Insert, Path, Remove, Set

_GLANCES_PER_STEP = 8
"""Steps that move items of a list that a place is followed through, in one step of a meter."""

_Put = tuple[int]
"""The number of a step that puts something else at a place, or nothing."""

_Move = tuple[int, int, int, int]
"""The number of a step that moves the items of a list from an index on; up to where it takes them out; how far it moves them."""

Entry = TypeVar("Entry", _Put, _Move)


class _ByPath(Generic[Entry]):
    """What steps of one sort do, by their path."""

    def __init__(self) -> None:
        self._at: dict[Path, list[Entry]] = {}
        self._lengths: dict[Path, int] = {}
        """How long the paths below a path are: a bit for each length."""

    def add(self, path: Path, entry: Entry) -> None:
        """Note what the newest step does at a path."""
        self._at.setdefault(path, []).append(entry)
        bit = 1 << len(path)
        for depth in range(len(path)):
            above = path[:depth]
            self._lengths[above] = self._lengths.get(above, 0) | bit

    def between(self, path: Path, start: int, end: int) -> list[Entry]:
        """Return what the steps at a path do, from number `start` to before `end`."""
        found = self._at.get(path)
        if found is None:
            return []
        low = bisect_left(found, (start,)) if start else 0
        return found[low : bisect_left(found, (end,), low)]

    def below(self, path: Path, length: int) -> bool:
        """Tell whether something is done below a path, at a path that is shorter than `length`."""
        return self._lengths.get(path, 0) & ((1 << length) - 1) != 0


class Trail:
    """A list of changes, guards among them, that places are followed through. meter: what counts the work.

    Cost of following a place: a few lookups for each of its tokens, and a glance at each step that moves items of a list
    that it goes through.
    """

    def __init__(self, steps: Iterable[Step] = (), meter: Meter | None = None) -> None:
        self._count = 0
        self._meter = meter or Meter()
        self._moves: _ByPath[_Move] = _ByPath()
        self._puts: _ByPath[_Put] = _ByPath()
        self._all: dict[Path, list[int]] = {}
        """At and below a path: the numbers of the changes there."""
        self._at: dict[Path, int] = {}
        """The newest change at a path."""
        self.extend(steps)

    def extend(self, steps: Iterable[Step]) -> None:
        """Add steps behind those that are there."""
        for number, step in enumerate(steps, self._count):
            self._count = number + 1
            if isinstance(step, Guard):
                continue
            path = step.path
            self._at[path] = number
            for depth in range(len(path) + 1):
                self._all.setdefault(path[:depth], []).append(number)
            match step:
                case Insert(_, index, values):
                    self._moves.add(path, (number, index, index, len(values)))
                case Remove(_, index, count):
                    self._moves.add(path, (number, index, index + count, -count))
                case Set() | Delete():
                    self._puts.add(path, (number,))
                case _:
                    pass

    def after(
        self, path: Path, start: int = 0, end: int | None = None, *, gap: bool = False
    ) -> tuple[Path | None, int]:
        """Return where what is at `path` after the first `start` steps is after the first `end` (None: all), and -1.

        Where they take it away with what holds it: None, and the number of the step that does. A list that replaces
        another has other items; an object that replaces another has the same keys.
        gap: of an item that is taken out alone, where it would be.
        """
        items = max((depth + 1 for depth, token in enumerate(path) if type(token) is int), default=0)
        return self._after(path, 0, items, start, self._count if end is None else end, gap=gap)

    def _after(self, path: Path, fixed: int, items: int, start: int, end: int, *, gap: bool) -> tuple[Path | None, int]:
        """Return the same of a path whose first `fixed` tokens stay. items: how many of them lead to its last item."""
        taken = -1
        for depth in range(fixed, len(path)):
            around, token = path[:depth], path[depth]
            if depth < items and (puts := self._puts.between(around, start, end)):
                taken = end = puts[0][0]
            moves = self._moves.between(around, start, end)
            if not moves:
                continue
            if type(token) is not int:
                taken = end = moves[0][0]
                continue
            self._meter.add_steps(len(moves) // _GLANCES_PER_STEP)
            nested = self._moves.below(around, len(path)) or self._puts.below(around, items)
            for number, index, stop, shift in moves:
                if token < index:
                    continue
                if nested:
                    found, by = self._after(
                        (*around, token, *path[depth + 1 :]), depth + 1, items, start, number, gap=gap
                    )
                    if found is None:
                        return None, by
                    path, start = found, number
                if token >= stop:
                    token += shift
                elif gap and depth == len(path) - 1:
                    token = index
                else:
                    return None, number
            path = (*around, token, *path[depth + 1 :])
        return (path, -1) if taken < 0 else (None, taken)

    def before(self, path: Path, upto: int | None = None) -> Path | None:
        """Return where the place that is at `path` after the first `upto` steps (None: all) was before them.

        None where they put it there.
        """
        return self._before(path, 0, 0, self._count if upto is None else upto, inside=False)[0]

    def last(self, path: Path) -> int | None:
        """Return which change made what is at `path` in the end, or took it away; None where none did."""
        return self._before(path, 0, 0, self._count, inside=True)[1]

    def _before(self, path: Path, fixed: int, start: int, end: int, *, inside: bool) -> tuple[Path | None, int | None]:
        """Return where a place was before the steps from `start` to before `end`, or None and which put it there.

        fixed: so many of its first tokens stay.  inside: a change at or below the place counts too.
        """
        put: int | None = None
        for depth in range(fixed, len(path)):
            around, token = path[:depth], path[depth]
            if puts := self._puts.between(around, start, end):
                put = puts[-1][0]
                start = put + 1
            moves = self._moves.between(around, start, end) if type(token) is int else []
            if not moves or type(token) is not int:
                continue
            self._meter.add_steps(len(moves) // _GLANCES_PER_STEP)
            if inside:
                nested = len(self._all[around]) > len(moves)
            else:
                nested = self._moves.below(around, len(path)) or self._puts.below(around, len(path))
            for number, index, _, shift in reversed(moves):
                if token < index:
                    continue
                if nested:
                    here = (*around, token, *path[depth + 1 :])
                    found, by = self._before(here, depth + 1, number + 1, end, inside=inside)
                    if found is None:
                        return None, by
                    path, end = found, number
                if token < index + shift:
                    return None, number
                token -= shift
            path = (*around, token, *path[depth + 1 :])
        numbers = self._all.get(path) if inside else None
        if numbers and (place := bisect_left(numbers, end)) and numbers[place - 1] >= start:
            return None, numbers[place - 1]
        return (path, None) if put is None else (None, put)

    def touched(self, path: Path) -> int | None:
        """Return the newest change at, below or around a path, as it is written; None where there is none."""
        newest = [self._all[path][-1]] if path in self._all else []
        newest += [self._at[around] for depth in range(len(path)) if (around := path[:depth]) in self._at]
        return max(newest, default=None)


def moved(path: Path, step: Insert | Remove) -> Path | None:
    """Return where a place is after items of a list were put in or taken out; None where it is not in there any more."""
    depth = len(step.path)
    if path[:depth] != step.path or depth == len(path):
        return path
    token = path[depth]
    if type(token) is not int:
        return None  # there is a list by now
    if token < step.index:
        return path
    if isinstance(step, Insert):
        return (*step.path, token + len(step.values), *path[depth + 1 :])
    if token < step.index + step.count:
        return None
    return (*step.path, token - step.count, *path[depth + 1 :])
