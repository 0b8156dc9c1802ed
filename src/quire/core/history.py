"""Questions to a history: who set this, does this change concern that path, what happened in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import msgspec

from quire.core.changes import Working
from quire.core.kinds import Kinds, fits
from quire.core.path import format as pointer
from quire.core.path import get
from quire.core.values import same
from quire.model import Append, Change, Delete, Ensure, Fork, Increment, Insert, Path, Remove, Set, Splice

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

    def copy(self) -> _Mark:
        """Return the same that can be altered by itself."""
        made = _Mark(self.entry, None)
        if isinstance(self.inside, dict):
            made.inside = {k: m.copy() for k, m in self.inside.items()}
        elif self.inside is not None:
            made.inside = [m.copy() for m in self.inside]
        return made


def _marks(entry: int, items: list[Any]) -> list[_Mark]:
    return [_Mark(entry, v) for v in items]


def blame(
    history: Iterable[tuple[int, Sequence[Change]]],
    path: Path = (),
    *,
    base: dict[str, Any] | None = None,
    kinds: Kinds | None = None,
) -> list[Blamed]:
    """Return for every leaf and empty container at or below a path which entry set it last.

    history: (number, changes), oldest first; all changes fit.  base: the state before the first, blamed on
    BASE; None for an empty one.  kinds: items of keyed lists keep their blame wherever they are moved.
    Returns them in document order; none for a path where nothing is. Items of lists keep their blame when
    others are inserted or removed before them. An edited text or a count is blamed on its last edit.
    Cost: O(all changes to the path's first key), once.

    >>> blame([(1, [Set(("a",), 0), Set(("b",), 0)]), (2, [Increment(("a",), 1)])])
    [Blamed(path=('a',), entry=2), Blamed(path=('b',), entry=1)]
    """
    root = _Mark(BASE, {} if base is None else base)
    moves = _Moves(kinds, base or {}) if kinds is not None and kinds.keyed() else None
    for entry, changes in history:
        here = [c for c in changes if not path or c.path[:1] in ((), path[:1])]
        known = moves.seen(root, here) if moves is not None else []
        for change in here:
            root = _marked(root, change, entry)
        if moves is not None:
            moves.carry(root, here, known, entry)
    node: _Mark | None = root
    for token in path:
        node = _below(node, token)
        if node is None:
            return []
    return list(_leaves(node, path))


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
        case Ensure(_, value):
            places.setdefault(key, _Mark(entry, value))
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


class _Moves:
    """Follows the items of keyed lists: a change by position may be a move of many items."""

    def __init__(self, kinds: Kinds, state: dict[str, Any]) -> None:
        self._keyed = kinds.keyed()
        self._working = Working(state)

    def seen(self, root: _Mark, changes: Sequence[Change]) -> list[tuple[Path, str, dict[Any, tuple[_Mark, Any]]]]:
        """Return the lists that changes may reorder, with the marks and values of their items by key."""
        found: list[tuple[Path, str, dict[Any, tuple[_Mark, Any]]]] = []
        for pattern, field in self._keyed.items():
            depth = len(pattern)
            places = {c.path[:depth] for c in changes if len(c.path) <= depth + 1 or c.path[depth + 1 :] == (field,)}
            for place in places:
                mark = self._at(root, place) if fits(pattern, place) else None
                items = get(self._working.state, place, ())
                if mark is not None and isinstance(mark.inside, list) and type(items) is list:
                    pairs = zip(mark.inside, cast("list[Any]", items), strict=True)
                    found.append((place, field, {_key(v, field): (m.copy(), v) for m, v in pairs}))
        if found:
            self._working = Working(self._working.state)  # the values found stay as they are
        return found

    def carry(
        self,
        root: _Mark,
        changes: Sequence[Change],
        known: Sequence[tuple[Path, str, dict[Any, tuple[_Mark, Any]]]],
        entry: int,
    ) -> None:
        """Take changes in, and give items that are still there the marks they had."""
        for change in changes:
            self._working.apply(change)
        for place, field, before in known:
            mark = self._at(root, place)
            items = get(self._working.state, place, ())
            if mark is None or not isinstance(mark.inside, list) or type(items) is not list:
                continue
            for index, value in enumerate(cast("list[Any]", items)):
                old = before.get(_key(value, field))
                if old is not None:
                    mark.inside[index] = _carried(*old, value, entry)

    def _at(self, root: _Mark, place: Path) -> _Mark | None:
        node: _Mark | None = root
        for token in place:
            node = None if node is None else _below(node, token)
        return node


def _key(value: Any, field: str) -> Any:
    """Return what an item is known by; an object that equals nothing else where it has no such field."""
    key = cast("dict[str, Any]", value).get(field) if type(value) is dict else None
    return (type(key), key) if type(key) in (str, int, float, bool) else object()


def _carried(mark: _Mark, old: Any, new: Any, entry: int) -> _Mark:
    """Return the marks of an item after a change: those it had, where nothing changed."""
    if same(old, new):
        return mark
    made = _Mark(entry, new)
    if isinstance(made.inside, dict) and isinstance(mark.inside, dict):
        for key, value in cast("dict[str, Any]", new).items():
            if key in mark.inside and key in old:
                made.inside[key] = _carried(mark.inside[key], old[key], value, entry)
    return made


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
        case Ensure():
            return f"begin {at}"
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
