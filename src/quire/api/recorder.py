"""What a draft writes down: the state as it is being changed, and the changes that lead there.

1. What is appended to a list stays open until the draft ends: later changes to those items are not changes of their
   own, they end up in what is appended. So a draft says by index only what it found, never what it added itself, and
   its changes can be rebased over other appends to the same list without taking theirs for ours.
2. A change that relies on what was read has a guard in front of it, see core/guards.py. The draft says which do.
3. A number that `setdefault` puts at 0 is written down with what follows: with increments only, it is an increment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec

from quire.api.writes import Bounds
from quire.core import values
from quire.core.changes import Working, coalesce
from quire.core.guards import Read, Step, Within
from quire.core.meter import too_large
from quire.core.path import get
from quire.core.values import copied
from quire.core.weigh import size_of
from quire.errors import Closed
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set


class Recorder:
    """The state under the drafts of one edit, and the changes so far.

    strict: every read is guarded, whether something is written there or not.  touched: something was read.  wholes: how often something was read whole.
    moment: counts changes; what was looked
    up at an earlier one may have moved.
    """

    __slots__ = (
        "_size_bytes",
        "_steps",
        "_tails",
        "_working",
        "_zeros",
        "bounds",
        "closed",
        "moment",
        "strict",
        "touched",
        "wholes",
    )

    def __init__(
        self,
        state: dict[str, Any],
        *,
        depth_max: int,
        key_bytes_max: int,
        bytes_max: int | None = None,
        strict: bool = False,
    ) -> None:
        self.bounds: Bounds = {"depth_max": depth_max, "key_bytes_max": key_bytes_max, "bytes_max": bytes_max}
        self._size_bytes = 0
        self._working = Working(state)
        self._steps: list[Step] = []
        self._tails: dict[Path, int] = {}
        """Where, in each list that was appended to, the appended items start."""
        self._zeros: dict[Path, int | float] = {}
        """Numbers put at zero that are not written down yet."""
        self.strict = strict
        self.touched = False
        self.wholes = 0
        self.moment = 0
        self.closed = False

    @property
    def state(self) -> dict[str, Any]:
        """The state as changed so far: not to be altered, nor kept."""
        return self._working.state

    def close(self) -> None:
        """End the draft."""
        self.closed = True
        self.moment += 1

    def check_open(self) -> None:
        """Raise Closed once the draft was ended."""
        if self.closed:
            raise Closed("this edit has ended; read with `state()`, change with a new `edit()`")

    def clean(self, value: Any, path: Path) -> Any:
        """Return a private copy of a value that will be at `path`. Raises InvalidState, LimitExceeded."""
        return values.clean(value, path=path, **self.bounds)

    def read(self, path: Path, of: Literal["value", "keys", "presence"]) -> None:
        """Guard a read by itself: the whole write is stale when it is. What was appended here is no read of the state."""
        if self._tails and self._within_appended(Read(path, of)):
            return
        self._steps.append(Read(path, of, strict=True))

    def ensures(self, path: Path) -> bool:
        """Tell whether the write itself sees to it that a container is at a path, so that nobody has to be asked."""
        if not self.strict or any(type(token) is int for token in path):
            return False
        return next((isinstance(s, Ensure) for s in reversed(self._steps) if s.path == path), False)

    def record(self, change: Change, reads: Sequence[Path] = (), within: Sequence[Within] = ()) -> bool:
        """Make a change and write it down; return False, with nothing written, where it alters nothing.

        reads: places that it relies on.  within: bounds that hold after it. Raises ChangeError, with nothing altered, and
        LimitExceeded where all that was changed by now is more than one write may be.
        """
        self.check_open()
        self._weigh(change)
        before: Any = get(self.state, change.path)
        kind = cast("type[Any]", type(before))
        length = len(before) if kind is list else 0
        if not self._working.apply(change):
            return False
        self.moment += 1
        if self._within_appended(change):
            return True
        if self._zeros:
            change = self._settled(change)
        match change:
            case Append(path):
                self._tails[path] = length
                return True
            case Set(path, value) if (
                kind is list and path in self._tails and values.same(before[: self._tails[path]], value)
            ):
                self._steps.append(Append(path, before[self._tails[path] :]))  # that it is gone is a change
            case Remove(path, index, count) if index + count > self._tails.get(path, length):
                change = Remove(path, index, self._tails[path] - index)
                reads = [place for place in reads if cast("int", place[-1]) < index + change.count]
            case _:
                pass
        steps = self._steps
        if reads:
            steps += [Read(place) for place in reads]
        steps.append(change)
        if within:
            steps += within
        if isinstance(change, Insert | Remove) or kind in (dict, list):
            tails = self._tails.items()
            self._tails = dict(moved for tail in tails for moved in _followed(tail, change))
        return True

    def _weigh(self, change: Change) -> None:
        """Count what a change puts. What was written over since is no part of the write: so it is counted anew first."""
        most = self.bounds["bytes_max"]
        if most is None:
            return
        size = size_of(change)
        self._size_bytes += size
        if self._size_bytes > most:
            self._size_bytes = size_of(self.steps()) + size
            if self._size_bytes > most:
                found = self._size_bytes
                self._size_bytes -= size
                raise too_large("what this edit changes", found, most)

    def begin_number(self, path: Path, zero: int | float) -> None:
        """Put a number at 0 where nothing is, see rule 3."""
        self.check_open()
        change = Set(path, zero)
        self._working.apply(change)
        self.moment += 1
        if not self._within_appended(change):
            self._zeros[path] = zero

    def steps(self) -> list[Step]:
        """Return what was written down with its guards, neighbours joined and appends last: all copies."""
        recorded = [*self._steps, *(step for path, zero in self._zeros.items() for step in _begun(path, zero))]
        result = [_private(step) for step in coalesce(recorded)]
        for path, start in self._tails.items():
            if added := get(self.state, path)[start:]:
                result.append(Append(path, copied(added)))
        return result

    def _settled(self, change: Change) -> Change:
        """Write down the zeros that a change concerns; return the change, or the increment that takes one in."""
        path = change.path
        if isinstance(change, Increment) and path in self._zeros:
            return Increment(path, self._zeros.pop(path) + change.amount)
        for place in [p for p in self._zeros if p[: len(path)] == path or path[: len(p)] == p]:
            self._steps += _begun(place, self._zeros.pop(place))
        return change

    def _within_appended(self, change: Step) -> bool:
        if not self._tails:
            return False
        path = change.path
        for depth, token in enumerate(path):
            if type(token) is int and token >= self._tails.get(path[:depth], token + 1):
                return True
        start = self._tails.get(path)
        if start is None:
            return False
        return isinstance(change, Append) or (isinstance(change, Insert | Remove) and change.index >= start)


def _begun(path: Path, zero: int | float) -> list[Step]:
    """Return how a number at 0 is written that more than increments followed: others may have begun it meanwhile."""
    return [Read(path), Set(path, zero)]


def _followed(tail: tuple[Path, int], change: Change) -> list[tuple[Path, int]]:
    """Return where a list and its appended items are after a change elsewhere; nothing if it is gone."""
    path, start = tail
    depth = len(change.path)
    if path[:depth] != change.path:
        return [tail]
    match change:
        case Set() | Delete():
            return []
        case Insert(_, index, added):
            by, end = len(added), index
        case Remove(_, index, count):
            by, end = -count, index + count
        case _:
            return [tail]
    if len(path) == depth:
        return [(path, start + by)]
    token = path[depth]
    assert isinstance(token, int)
    if token < end:
        return [tail] if isinstance(change, Insert) or token < change.index else []
    return [((*path[:depth], token + by, *path[depth + 1 :]), start)]


def _private(change: Step) -> Step:
    match change:
        case Set(_, value):
            return msgspec.structs.replace(change, value=copied(value))
        case Append(_, added) | Insert(_, _, added):
            return msgspec.structs.replace(change, values=copied(added))
        case _:
            return change
