"""What a write has read of its own state: places that keep their item, and which writes they make stale.

A read of a value tells of all that is in it. One of keys, or of a length, tells which keys or items there are. One of
presence tells only that something is there: of a container nothing else was read.
"""

from __future__ import annotations

from typing import Any, Literal

from quire.testing.edits.tree import ABSENT, Arr, Obj, plain, same

Path = tuple[str | int, ...]
"""Keys and indexes, in a writer's own state at that moment."""
Place = tuple[Any, ...]
"""The same with the identities of slots instead of indexes."""
Kind = Literal["value", "keys", "presence"]


class Reads:
    """The reads of one write. lenient: what the rules leave open counts as well."""

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient
        self._seen: list[tuple[Kind, Place]] = []

    def note(self, kind: Kind, place: Place) -> None:
        """Add a read."""
        self._seen.append((kind, place))

    def cover(self, place: Place) -> bool:
        """True if a write at a place is made from what was read: that place, a part of it, or the value around it."""
        for kind, seen in self._seen:
            inside, around = seen[: len(place)] == place, place[: len(seen)] == seen
            if inside or (around and (kind == "value" or self._lenient)):
                return True
            if around and kind == "keys" and len(place) == len(seen) + 1:
                return True
        return False


def place_of(tree: Any, path: Path) -> Place:
    """Return the place of a path in a tree."""
    node: Any = tree
    found: list[Any] = []
    for token in path:
        if isinstance(node, Arr) and isinstance(token, int):
            found.append(("slot", node.ids[token]))
            node = node[token]
        else:
            found.append(token)
            node = node.get(str(token), ABSENT) if isinstance(node, Obj) else ABSENT
    return tuple(found)


def at_place(node: Any, place: Place) -> Any:
    """Return what is at a place, or ABSENT."""
    for token in place:
        if isinstance(node, Arr) and isinstance(token, tuple):
            node = node[node.ids.index(token[1])] if token[1] in node.ids else ABSENT
        else:
            node = node.get(token, ABSENT) if isinstance(node, Obj) else ABSENT
    return node


def path_of(node: Any, place: Place) -> list[str | int] | None:
    """Return the path of a place in a tree, None where its item is not in it."""
    path: list[str | int] = []
    for token in place:
        if isinstance(token, tuple):
            if not isinstance(node, Arr) or token[1] not in node.ids:
                return None
            index = node.ids.index(token[1])
            path.append(index)
            node = node[index]
        else:
            path.append(token)
            node = node.get(token, ABSENT) if isinstance(node, Obj) else ABSENT
    return path


def alike(kind: Kind, a: Any, b: Any) -> bool:
    """True if a read of one node tells the same as one of the other."""
    if kind == "value":
        return same(plain(a), plain(b))
    if kind == "presence" or type(a) is not type(b):
        return type(a) is type(b)
    if isinstance(a, Obj):
        return bool(a.keys() == b.keys())
    return len(a) == len(b) if isinstance(a, Arr) else same(plain(a), plain(b))
