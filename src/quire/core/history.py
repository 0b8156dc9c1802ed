"""Questions to a history: who set this, does this change concern that path, what happened in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from quire.core.path import format as pointer
from quire.model import Append, Change, Delete, Fork, Increment, Insert, Path, Remove, Set, Splice


class Blamed(msgspec.Struct, frozen=True):
    """The value at `path` was last set by entry number `entry`."""

    path: Path
    entry: int


class _Mark:
    """Who set a value, and the same for what is inside it: mirrors the state, with a number in each place."""

    __slots__ = ("entry", "inside")

    def __init__(self, entry: int, value: Any) -> None:
        self.entry = entry
        self.inside: dict[str, _Mark] | list[_Mark] | None = None
        if type(value) is dict:
            self.inside = {k: _Mark(entry, v) for k, v in cast("dict[str, Any]", value).items()}
        elif type(value) is list:
            self.inside = [_Mark(entry, v) for v in cast("list[Any]", value)]


def blame(history: Iterable[tuple[int, Sequence[Change]]], path: Path = ()) -> list[Blamed]:
    """Return for every leaf and empty container at or below a path which entry set it last, in document order.

    history: (number, changes), oldest first, from an empty state on; all changes fit.  Items of lists keep their
    blame when others are inserted or removed before them. Cost: O(all changes), once.
    """
    root = _Mark(-1, {})
    for entry, changes in history:
        for change in changes:
            root = _marked(root, change, entry)
    node = root
    for token in path:
        node = cast("Any", node.inside)[token]
    return list(_leaves(node, path))


def _marked(root: _Mark, change: Change, entry: int) -> _Mark:
    if not change.path:
        return _Mark(entry, cast("Set", change).value)
    parent = root
    for token in change.path[:-1]:
        parent = cast("Any", parent.inside)[token]
    places, key = cast("Any", parent.inside), change.path[-1]
    match change:
        case Set(_, value):
            places[key] = _Mark(entry, value)
        case Delete():
            del places[key]
        case Splice() | Increment():
            places[key] = _Mark(entry, None)
        case Append(_, values):
            places[key].inside += [_Mark(entry, v) for v in values]
        case Insert(_, index, values):
            places[key].inside[index:index] = [_Mark(entry, v) for v in values]
        case Remove(_, index, count):
            del places[key].inside[index : index + count]
            places[key].entry = entry  # a list that became empty was emptied by this one
    return root


def _leaves(node: _Mark, path: Path) -> Iterator[Blamed]:
    if not node.inside:
        yield Blamed(path, node.entry)
    elif isinstance(node.inside, dict):
        for key, inner in node.inside.items():
            yield from _leaves(inner, (*path, key))
    else:
        for index, inner in enumerate(node.inside):
            yield from _leaves(inner, (*path, index))


def touches(change: Change, path: Path) -> bool:
    """Tell whether a change alters something at or below a path, or replaces what the path goes through.

    Tokens compare as text, so that an unresolved `"0"` matches index 0.
    """
    target, wanted = change.path, path
    if isinstance(change, Insert | Remove) and len(path) > len(target) and _under(path, target):
        token = str(path[len(target)])
        return not token.isdigit() or int(token) >= change.index
    if isinstance(change, Append):
        return _under(target, wanted)
    return _under(target, wanted) or _under(wanted, target)


def _under(path: Path, ancestor: Path) -> bool:
    return len(path) >= len(ancestor) and all(str(a) == str(b) for a, b in zip(path, ancestor, strict=False))


def summary(changes: Sequence[Change | Fork], *, most: int = 2) -> str:
    """Return changes in one line for people: `set /a/b; append 3 to /notes; +2 more`."""
    said = [_said(c) for c in changes[:most]]
    if len(changes) > most:
        said.append(f"+{len(changes) - most} more")
    return "; ".join(said)


def _said(change: Change | Fork) -> str:
    if isinstance(change, Fork):
        return f"fork of {change.workflow_id}@{change.version}"
    at = pointer(change.path) or "the state"
    match change:
        case Set():
            return f"set {at}"
        case Delete():
            return f"delete {at}"
        case Append(_, values):
            return f"append {len(values)} to {at}"
        case Insert(_, index, values):
            return f"insert {len(values)} at {at}/{index}"
        case Remove(_, index, count):
            return f"remove {count} at {at}/{index}"
        case Splice():
            return f"edit text {at}"
        case Increment(_, amount):
            return f"{at} {amount:+}"
