"""What a state weighs: its bytes as JSON and the keys in it, kept true change by change.

1. `Weighed` is a working state that knows its weight at any time: exactly what weighing the whole state would say.
2. Keeping it costs what comes and what goes, never the whole state; and what goes has come before.
3. The bytes are those of the shortest JSON, without spaces, in UTF-8.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import msgspec

from quire.core.changes import Working
from quire.core.guards import Guard, Step
from quire.core.path import get
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

_encode = msgspec.json.Encoder().encode
_ABSENT: Any = object()
_BRACKETS = 2
"""Bytes of the brackets of a list or object, or of the quotes of a text."""


class Weight(NamedTuple):
    """size_bytes: of the JSON.  keys: of all objects in it, at any depth."""

    size_bytes: int
    keys: int

    def plus(self, size_bytes: int, keys: int) -> Weight:
        """Return the sum."""
        return Weight(self.size_bytes + size_bytes, self.keys + keys)


EMPTY = Weight(_BRACKETS, 0)
"""Of a state that holds nothing."""


def size_of(value: Any) -> int:
    """Return the bytes of a value as JSON.

    >>> size_of({"a": [1, "x"]})
    13
    """
    return len(_encode(value))


def keys_in(value: Any) -> int:
    """Return how many keys the objects in a value have, at any depth.

    >>> keys_in({"a": [{"b": 1}, {"b": 2}]})
    3
    """
    count = 0
    todo: list[Any] = [value]
    while todo:
        node = todo.pop()
        if type(node) is dict:
            count += len(node)
            node = cast("dict[str, Any]", node).values()
        elif type(node) is not list:
            continue
        todo += [child for child in cast("Any", node) if type(child) in (dict, list)]
    return count


def weigh(value: Any) -> Weight:
    """Return the weight of a value. Cost: an encoding, and a look at each key."""
    return Weight(size_of(value), keys_in(value))


class Weighed(Working):
    """A working state with its weight. weight: of the state that is given."""

    __slots__ = ("weight",)

    def __init__(self, state: dict[str, Any], weight: Weight) -> None:
        super().__init__(state)
        self.weight = weight

    def apply(self, change: Step) -> bool:
        """Apply one change as `Working.apply` does. Cost: besides, an encoding of what comes and of what goes."""
        if isinstance(change, Guard):
            return super().apply(change)
        gone = _gone(self.state, change)  # where it does not fit, applying it says so
        if not super().apply(change):
            return False
        self.weight = weigh(self.state) if not change.path else self.weight.plus(*_grown(self.state, change, gone))
        return True


def _gone(state: dict[str, Any], change: Change) -> Any:
    """Return what a change takes away, `_ABSENT` where there is nothing."""
    match change:
        case Append() | Insert():
            return _ABSENT
        case Remove(path, index, count):
            found = get(state, path)
            return found[index : index + count] if type(found) is list else _ABSENT
        case Splice(path, position, delete):
            found = get(state, path)
            return found[position : position + delete] if type(found) is str else _ABSENT
        case _:
            return get(state, change.path, _ABSENT)


def _grown(state: dict[str, Any], change: Change, gone: Any) -> tuple[int, int]:
    """Return by how many bytes and keys a state has grown. state: with the change in it.  gone: what it took away."""
    match change:
        case Append(path, values) | Insert(path, _, values):
            return _inner(values) + _commas(_length(state, path)) - _commas(
                _length(state, path) - len(values)
            ), keys_in(values)
        case Remove(path):
            return _commas(_length(state, path)) - _commas(_length(state, path) + len(gone)) - _inner(gone), -keys_in(
                gone
            )
        case Splice():
            return size_of(change.insert) - size_of(gone), 0
        case Delete(path):
            size = size_of(path[-1]) + 1 + size_of(gone) + (_length(state, path[:-1]) > 0)
            return -size, -1 - keys_in(gone)
        case Set() | Ensure() | Increment():
            came = get(state, change.path)
            if gone is not _ABSENT:
                return size_of(came) - size_of(gone), keys_in(came) - keys_in(gone)
            size = size_of(change.path[-1]) + 1 + size_of(came) + (_length(state, change.path[:-1]) > 1)
            return size, 1 + keys_in(came)


def _inner(values: list[Any]) -> int:
    """Return the bytes of the items of a list, without what is between and around them."""
    return size_of(values) - _BRACKETS - _commas(len(values))


def _commas(count: int) -> int:
    return max(0, count - 1)


def _length(state: dict[str, Any], path: Path) -> int:
    return len(get(state, path))
