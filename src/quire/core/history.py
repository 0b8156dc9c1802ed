"""Questions to a history: who set this, does this change concern that path, what happened in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from quire.core.path import format as pointer
from quire.model import Append, Change, Delete, Fork, Increment, Insert, Path, Remove, Set, Splice

BASE = -1
"""The entry that is blamed for what was there before the first one."""

_PLACE_MAX = 60
"""Longer paths are shortened in a summary."""


class Blamed(msgspec.Struct, frozen=True):
    """The value at `path` was last set by the entry with this number."""

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
            self.inside = _marks(entry, cast("list[Any]", value))


def blame(
    history: Iterable[tuple[int, Sequence[Change]]], path: Path = (), *, base: dict[str, Any] | None = None
) -> list[Blamed]:
    """Return for every leaf and empty container at or below a path which entry set it last.

    history: (number, changes), oldest first; all changes fit.  base: the state before the first, blamed on
    BASE; None for an empty one.
    Returns them in document order; none for a path where nothing is. Items of lists keep their blame when
    others are inserted or removed before them. An edited text or a count is blamed on its last edit.
    Cost: O(all changes to the path's first key), once.

    >>> blame([(1, [Set(("a",), 0), Set(("b",), 0)]), (2, [Increment(("a",), 1)])])
    [Blamed(path=('a',), entry=2), Blamed(path=('b',), entry=1)]
    """
    root = _Mark(BASE, {} if base is None else base)
    for entry, changes in history:
        for change in changes:
            if not path or change.path[:1] in ((), path[:1]):
                root = _marked(root, change, entry)
    node: _Mark | None = root
    for token in path:
        node = _below(node, token)
        if node is None:
            return []
    return list(_leaves(node, path))


def _marks(entry: int, items: list[Any]) -> list[_Mark]:
    return [_Mark(entry, v) for v in items]


def _below(mark: _Mark, token: str | int) -> _Mark | None:
    inside = mark.inside
    if isinstance(inside, dict):
        return inside.get(token) if isinstance(token, str) else None
    if inside is None or not isinstance(token, int) or not 0 <= token < len(inside):
        return None
    return inside[token]


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
            parent.entry = entry  # an object that became empty was emptied by this one
        case Splice() | Increment():
            places[key] = _Mark(entry, None)
        case Append(_, values):
            places[key].inside += _marks(entry, values)
        case Insert(_, index, values):
            places[key].inside[index:index] = _marks(entry, values)
        case Remove(_, index, count) if count:
            del places[key].inside[index : index + count]
            places[key].entry = entry
        case _:
            pass
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

    An insertion or removal touches its list and the items from its index on, which move. An append touches
    its list but none of the items in it, which stay as they are. Tokens compare as text, so that an
    unresolved `"0"` matches index 0.

    >>> touches(Set(("a",), {}), ("a", "b")), touches(Insert(("l",), 2, [0]), ("l", 1))
    (True, False)
    """
    target = change.path
    if _under(target, path):
        return True
    if not _under(path, target) or isinstance(change, Append):
        return False
    if isinstance(change, Insert | Remove):
        token = str(path[len(target)])
        return not token.isdecimal() or int(token) >= change.index
    return True


def _under(path: Path, ancestor: Path) -> bool:
    return len(path) >= len(ancestor) and all(str(a) == str(b) for a, b in zip(path, ancestor, strict=False))


def summary(changes: Sequence[Change | Fork], *, most: int = 2) -> str:
    """Return changes in one line for people. most: how many are said, the others are counted.

    >>> summary([Set(("a", "b"), 1), Append(("notes",), [1, 2, 3]), Delete(("c",)), Delete(("d",))])
    'set /a/b; append 3 to /notes; +2 more'
    """
    said = [_said(c) for c in changes[:most]]
    if len(changes) > most:
        said.append(f"+{len(changes) - most} more")
    return "; ".join(said) or "no change"


def _said(change: Change | Fork) -> str:
    if isinstance(change, Fork):
        return f"fork of {change.workflow_id}@{change.version}"
    at = _place(change.path)
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


def _place(path: Path) -> str:
    """Return a path that stays on its line: without control characters, and not longer than fits."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in pointer(path))
    return (text if len(text) <= _PLACE_MAX else text[: _PLACE_MAX - 3] + "...") or "the state"
