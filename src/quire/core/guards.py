"""Guards: what a write relies on, moved with its changes and checked on the state that it meets.

A guard stands in a list of changes in front of the change that relies on it (a `Read`) or behind it (a `Within`). It
alters nothing and is never stored. Merging moves it like a change, so that it follows the item of a list wherever
others moved that. A `Read` is stale when the value at its place is not what it was on the write's base: values are
compared, so A, B, A again is not stale.

>>> [type(c).__name__ for c in reliant([Set(("n",), 2), Increment(("m",), 1)])]
['Read', 'Set', 'Increment']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import msgspec

from quire.core.path import describe, get
from quire.core.path import format as pointer
from quire.core.values import same
from quire.errors import OutOfBounds
from quire.model import Change, Delete, Fork, Path, Remove, Set, Splice

_ABSENT: Any = object()


class Read(msgspec.Struct, frozen=True, array_like=True, tag="read"):
    """The write relies on what is at `path`.

    of: its whole value (or its absence), only its keys or length, or only whether something is there.  strict: the write is refused when it is stale,
    whatever its policy; otherwise only the change behind the guard is stale.
    """

    path: Path
    of: Literal["value", "keys", "presence"] = "value"
    strict: bool = False

    def holds(self, before: Any, now: Any) -> bool:
        """Return True if what was read there is there still. before, now: UNSET for nothing."""
        if self.of == "presence":
            return (before is msgspec.UNSET) == (now is msgspec.UNSET)
        if self.of == "value" or type(before) is not type(now):
            return same(before, now)
        if type(before) is dict:
            return cast("dict[str, Any]", before).keys() == cast("dict[str, Any]", now).keys()
        return len(before) == len(now) if type(before) is list else same(before, now)


class Within(msgspec.Struct, frozen=True, array_like=True, tag="within"):
    """The number at `path` must be within bounds, both included, once the changes in front of it are made."""

    path: Path
    minimum: int | float | None = None
    maximum: int | float | None = None

    def check(self, state: dict[str, Any]) -> None:
        """Raise OutOfBounds unless it is."""
        self.check_value(get(state, self.path, 0))

    def check_value(self, found: Any) -> None:
        """Raise OutOfBounds for a value that is no number within the bounds."""
        low, high = self.minimum, self.maximum
        if type(found) in (int, float) and (low is None or found >= low) and (high is None or found <= high):
            return
        where = pointer(self.path)
        shown = found if type(found) in (int, float) else describe(found)
        allowed = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
        raise OutOfBounds(
            f"{where} would be {shown}, allowed is {allowed}; nothing was written",
            path=where,
            found=found,
            minimum=low,
            maximum=high,
        )


Guard = Read | Within
Step = Change | Guard
"""What a list of guarded changes is made of."""


def pure(steps: Iterable[Step | Fork]) -> list[Change | Fork]:
    """Return the changes without their guards."""
    return [step for step in steps if not isinstance(step, Guard)]


def bounded(steps: Iterable[Step | Fork]) -> list[Change | Within]:
    """Return the changes with the bounds that they have to keep, without what was read."""
    return [step for step in steps if not isinstance(step, Read | Fork)]


def places(change: Change) -> list[Path]:
    """Return the places whose value a change replaces or removes; none for a change that commutes with others."""
    match change:
        case Set(path) | Delete(path):
            return [path]
        case Remove(path, index, count):
            return [(*path, index + i) for i in range(count)]
        case Splice(path, _, delete) if delete:
            return [path]
        case _:
            return []


def reliant(changes: Iterable[Step]) -> list[Step]:
    """Return changes with a guard in front of each that replaces something: they were made from their whole base."""
    steps: list[Step] = []
    for change in changes:
        if not isinstance(change, Guard):
            steps += [Read(place) for place in places(change)]
        steps.append(change)
    return steps


def sought(steps: Sequence[Step]) -> Iterator[tuple[int, int]]:
    """Yield for each guard that is not strict its number and that of the change it stands in front of."""
    waiting: list[int] = []
    for number, step in enumerate(steps):
        if isinstance(step, Read) and not step.strict:
            waiting.append(number)
        elif not isinstance(step, Guard):
            yield from ((guard, number) for guard in waiting)
            waiting = []
