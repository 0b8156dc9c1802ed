"""States as trees in which containers and items keep an identity, folded forward by recorded changes.

It is written apart from `quire.core` on purpose: what is checked here must not be computed by what is checked.
A container has an identity from when it is put until it is removed or replaced. An item of a list has one for the slot
that it lies in: inserting and removing moves slots, setting an item leaves its slot where it is. So "the same item" is
what merging means by it.

>>> tree = boxed({"q": ["a", "b"]})
>>> slot = tree["q"].ids[1]
>>> fold(tree, [Remove(("q",), 0, 1)])
>>> plain(tree), tree["q"].ids == [slot]
({'q': ['b']}, True)
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from typing import Any

from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Remove, Set, Splice

_ids = count(1)


class _Absent:
    """The type of ABSENT."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""Where nothing is."""


class Obj(dict[str, Any]):
    """An object of the tree. id: of this container, wherever it is copied to."""

    __slots__ = ("id",)
    id: int


class Arr(list[Any]):
    """A list of the tree. id: of this container.  ids: of its slots."""

    __slots__ = ("id", "ids")
    id: int
    ids: list[int]


class Text(str):
    """A text of the tree. id: of this text, however it is spliced."""

    __slots__ = ("id",)
    id: int


def boxed(value: Any) -> Any:
    """Return a value as a tree of new identities."""
    if type(value) is str:
        return spelled(value, next(_ids))
    if type(value) is dict:
        obj = Obj({key: boxed(inner) for key, inner in value.items()})
        obj.id = next(_ids)
        return obj
    if type(value) is list:
        arr = Arr(boxed(inner) for inner in value)
        arr.id, arr.ids = next(_ids), fresh(len(arr))
        return arr
    return value


def spelled(value: str, id_: int) -> Text:
    """Return a text of this identity."""
    found = Text(value)
    found.id = id_
    return found


def fresh(size: int) -> list[int]:
    """Return new identities."""
    return [next(_ids) for _ in range(size)]


def clone(node: Any) -> Any:
    """Return a copy in which everything is the same one."""
    if type(node) is Obj:
        obj = Obj({key: clone(inner) for key, inner in node.items()})
        obj.id = node.id
        return obj
    if type(node) is Arr:
        arr = Arr(clone(inner) for inner in node)
        arr.id, arr.ids = node.id, list(node.ids)
        return arr
    return node


def plain(node: Any) -> Any:
    """Return the plain JSON of a tree; ABSENT stays."""
    if type(node) is Obj:
        return {key: plain(inner) for key, inner in node.items()}
    if type(node) is Arr:
        return [plain(inner) for inner in node]
    if type(node) is Text:
        return str(node)
    return node


def same(a: Any, b: Any) -> bool:
    """True if two values are the same JSON: 1, 1.0 and true are three values, the order of keys is none."""
    if a is ABSENT or b is ABSENT:
        return a is b
    return a is b or text(a) == text(b)


def text(value: Any) -> str:
    """Return a value as JSON with its keys in order."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def find(node: Any, path: Iterable[str | int]) -> Any:
    """Return what is at a path, or ABSENT. Indexes may be text, as in a JSON Pointer."""
    for token in path:
        if isinstance(node, dict):
            node = node.get(str(token), ABSENT)
        elif isinstance(node, list) and str(token).isdigit() and int(token) < len(node):
            node = node[int(token)]
        else:
            return ABSENT
    return node


def fold(tree: Obj, changes: Iterable[Change]) -> None:
    """Make recorded changes in a tree. Raises AssertionError for one that does not fit or alters nothing."""
    for change in changes:
        before = text(find(tree, change.path[:-1])) if change.path else text(tree)
        _make(tree, change)
        after = text(find(tree, change.path[:-1])) if change.path else text(tree)
        assert before != after, f"{change} alters nothing"


def _make(tree: Obj, change: Change) -> None:
    if not change.path:
        assert isinstance(change, Set)
        tree.clear()
        tree.update(boxed(change.value))
        return
    parent, key = find(tree, change.path[:-1]), change.path[-1]
    there = find(tree, change.path)
    match change:
        case Set(_, value):
            assert isinstance(parent, dict) or there is not ABSENT, change
            parent[key] = boxed(value)
        case Delete():
            assert isinstance(parent, dict), change
            del parent[str(key)]
        case Ensure(_, value):
            assert there is ABSENT, change
            parent[key] = boxed(value)
        case Append(_, values):
            put(there, len(there), [boxed(v) for v in values], fresh(len(values)))
        case Insert(_, index, values):
            assert index <= len(there), change
            put(there, index, [boxed(v) for v in values], fresh(len(values)))
        case Remove(_, index, size):
            assert index + size <= len(there), change
            del there[index : index + size]
            del there.ids[index : index + size]
        case Splice(_, position, delete, insert):
            assert position + delete <= len(there), change
            parent[key] = spelled(there[:position] + insert + there[position + delete :], there.id)
        case Increment(_, amount):
            parent[key] = (0 if there is ABSENT else there) + amount


def put(arr: Arr, index: int, nodes: list[Any], ids: list[int]) -> None:
    """Insert nodes as slots of these identities."""
    arr[index:index] = nodes
    arr.ids[index:index] = ids
