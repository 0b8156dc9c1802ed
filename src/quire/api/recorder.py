"""What a draft writes down: the state as it is being changed, and the changes that lead there.

What is appended to a list stays open until the draft ends: later changes to those items are not changes of
their own, they end up in what is appended. So a draft says by index only what it found, never what it added
itself, and its changes can be rebased over other appends to the same list without taking theirs for ours.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from quire.core import values
from quire.core.changes import Working, coalesce
from quire.core.fold import copied
from quire.core.path import get
from quire.errors import Closed
from quire.model import Append, Change, Delete, Insert, Path, Remove, Set


class Recorder:
    """The state under the drafts of one edit, and the changes so far. `closed` ends it."""

    __slots__ = ("_bounds", "_changes", "_tails", "_working", "closed")

    def __init__(self, state: dict[str, Any], *, depth_max: int, key_bytes_max: int) -> None:
        self._bounds = {"depth_max": depth_max, "key_bytes_max": key_bytes_max}
        self._working = Working(state)
        self._changes: list[Change] = []
        self._tails: dict[Path, int] = {}
        """Where, in each list that was appended to, the appended items start."""
        self.closed = False

    @property
    def state(self) -> dict[str, Any]:
        """The state as changed so far: not to be altered, nor kept."""
        return self._working.state

    def check_open(self) -> None:
        """Raise Closed once the draft was ended."""
        if self.closed:
            raise Closed("this edit has ended; read with `state()`, change with a new `edit()`")

    def clean(self, value: Any, path: Path) -> Any:
        """Return a private copy of a value that will be at `path`. Raises InvalidState, LimitExceeded."""
        return values.clean(value, path=path, **self._bounds)

    def record(self, change: Change) -> None:
        """Make a change; write it down unless it alters nothing. Raises ChangeError, with nothing altered."""
        self.check_open()
        before: Any = get(self.state, change.path)
        kind = cast("type[Any]", type(before))
        length = len(before) if kind is list else 0
        if not self._working.apply(change):
            return
        if self._within_appended(change):
            return
        match change:
            case Append(path):
                self._tails[path] = length
                return
            case Remove(path, index, count) if index + count > self._tails.get(path, length):
                change = Remove(path, index, self._tails[path] - index)
            case _:
                pass
        self._changes.append(change)
        if isinstance(change, Insert | Remove) or kind in (dict, list):
            tails = self._tails.items()
            self._tails = dict(moved for tail in tails for moved in _followed(tail, change))

    def changes(self) -> list[Change]:
        """Return what was written down, with neighbours joined and appends last: all copies."""
        result = [_private(c) for c in coalesce(self._changes)]
        for path, start in self._tails.items():
            if added := get(self.state, path)[start:]:
                result.append(Append(path, copied(added)))
        return result

    def _within_appended(self, change: Change) -> bool:
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


def _private(change: Change) -> Change:
    match change:
        case Set(_, value):
            return msgspec.structs.replace(change, value=copied(value))
        case Append(_, added) | Insert(_, _, added):
            return msgspec.structs.replace(change, values=copied(added))
        case _:
            return change
