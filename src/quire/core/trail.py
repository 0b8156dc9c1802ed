"""The way a place took through a list of changes: where it was before them, and which of them touched it last.

Changes are looked up by their path, so a question costs what concerns the place, not the whole list.

>>> Trail([Insert(("l",), 0, [9]), Set(("n",), 1)]).before(("l", 2))
('l', 1)
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from quire.core.guards import Guard, Step
from quire.model import Delete, Insert, Path, Remove, Set


class Trail:
    """A list of changes, guards among them, that places are followed through."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps
        self._at: dict[Path, list[int]] = {}
        self._below: dict[Path, list[int]] = {}
        """At and below a path: the numbers of the changes there."""
        for number, step in enumerate(steps):
            if not isinstance(step, Guard):
                self._at.setdefault(step.path, []).append(number)
                for depth in range(len(step.path) + 1):
                    self._below.setdefault(step.path[:depth], []).append(number)

    def before(self, path: Path, upto: int | None = None) -> Path | None:
        """Return where the place that is at `path` after the first `upto` steps (None: all) was before them.

        None where they put it there.
        """
        at = len(self._steps) if upto is None else upto
        while (number := self._around(path, at)) is not None:
            found = self._undone(path, number)
            if found is None:
                return None
            path, at = found, number
        return path

    def last(self, path: Path) -> int | None:
        """Return which change made what is at `path` in the end, or took it away; None where none did."""
        at = len(self._steps)
        while True:
            inside, around = _newest(self._below.get(path), at), self._around(path, at)
            if inside is not None and (around is None or inside >= around):
                return inside
            if around is None:
                return None
            found = self._undone(path, around)
            if found is None:
                return around
            path, at = found, around

    def touched(self, path: Path) -> int | None:
        """Return the newest change at, below or around a path, as it is written; None where there is none."""
        numbers = (_newest(self._below.get(path), len(self._steps)), self._around(path, len(self._steps)))
        return max((n for n in numbers if n is not None), default=None)

    def _around(self, path: Path, upto: int) -> int | None:
        """Return the newest change at a path or around it, before number `upto`."""
        found = (_newest(self._at.get(path[:depth]), upto) for depth in range(len(path) + 1))
        return max((n for n in found if n is not None), default=None)

    def _undone(self, path: Path, number: int) -> Path | None:
        """Return where a place was before one change around it; None where that put it there."""
        change = self._steps[number]
        depth = len(change.path)
        token = path[depth] if len(path) > depth else None
        match change:
            case Set() | Delete():
                return path if token is None else None  # something else is there by now, in the same place
            case Insert(_, index, values) if type(token) is int and token >= index:
                if token < index + len(values):
                    return None
                shift = -len(values)
            case Remove(_, index, count) if type(token) is int and token >= index:
                shift = count
            case _:
                return path
        return (*change.path, token + shift, *path[depth + 1 :])


def _newest(numbers: list[int] | None, upto: int) -> int | None:
    """Return the last of sorted numbers that is below `upto`."""
    place = 0 if numbers is None else bisect_left(numbers, upto)
    return None if numbers is None or place == 0 else numbers[place - 1]
