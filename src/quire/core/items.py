"""Declared lists as objects: their items under names that last, and one side's changes followed there.

A name is the item's own: a log's from when it was added, a set's from its value, a keyed list's from its field. So the
same item has the same name on both sides, wherever it stands in its list. Used by core/layout.py only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from quire.core.changes import Gone, Working, apply
from quire.core.diff import diff, text_change
from quire.core.guards import Guard, Read, Step, Within
from quire.core.kinds import PLAIN, Kinds, field_of
from quire.core.path import format as pointer
from quire.core.path import get
from quire.core.values import same
from quire.errors import ChangeError
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

_MISSING: Any = object()
_encode = msgspec.json.Encoder(order="sorted").encode

Items = dict[Path, list[str]]
"""For each list that was made an object, the names of its items in their order. Paths have names, too."""


class Unfit(Exception):
    """A list is not as it was declared."""

    def __init__(self, pattern: Path) -> None:
        self.pattern = pattern


class _Renamed(Exception):
    """The items of a list cannot be followed change by change, as while two of them swap their names."""

    def __init__(self, path: Path) -> None:
        self.path = path


def followed(
    kinds: Kinds,
    base: dict[str, Any],
    mapped: dict[str, Any],
    start: Items,
    changes: Sequence[Step],
    stamps: Sequence[str],
) -> Side:
    """Follow one side's changes; where its items change their names on the way, only what became of a list counts."""
    whole: set[Path] = set()
    while True:
        try:
            side = Side(kinds, mapped, start, whole)
            side.follow(changes, stamps, lambda: apply(base, changes))
        except _Renamed as found:
            whole.add(found.path)
        else:
            return side


class Mapper:
    """Makes objects of declared lists."""

    def __init__(self, kinds: Kinds, items: Items) -> None:
        self.kinds = kinds
        self.items = items

    def mapped(self, value: Any, path: Path, stamp: str = "") -> Any:
        """Return a value that is at `path` with objects for the declared lists in it, noting their items."""
        if not self.kinds.below(path):
            return value
        kind = self.kinds.at(path)
        if type(value) is dict and kind in PLAIN:
            return {k: self.mapped(v, (*path, k), stamp) for k, v in cast("dict[str, Any]", value).items()}
        if kind in PLAIN:
            return value
        if type(value) is dict:
            raise Unfit(self.kinds.pattern(path))
        if type(value) is not list:
            return value
        given = cast("list[Any]", value)
        names = self.names(path, given, [], stamp)
        self.items[path] = names
        return {n: self.mapped(v, (*path, n), stamp) for n, v in zip(names, given, strict=True)}

    def names(self, path: Path, values: Sequence[Any], taken: Sequence[str], stamp: str) -> list[str]:
        """Return names for items that come into a list. stamp: when; "" for those it began with."""
        kind = self.kinds.at(path) or "seq"
        used = set(taken)
        found: list[str] = []
        for number, value in enumerate(values):
            if kind == "log":
                name = f"1{stamp}.{number:06d}" if stamp else f"0{number:012d}"
            elif kind == "set":
                name = _encode(value).decode()
            else:
                field = field_of(kind)
                key = cast("dict[str, Any]", value).get(field, _MISSING) if type(value) is dict else _MISSING
                if key is _MISSING:
                    raise Unfit(self.kinds.pattern(path))
                name = _encode(key).decode()
            if name in used and kind != "set":
                raise Unfit(self.kinds.pattern(path))
            while name in used:
                name += "'"  # the same again, in one list: made one when it is a list again
            used.add(name)
            found.append(name)
        return found


class Side:
    """One side's changes with objects for declared lists. changes, numbers: what, and which change each is from.

    whole: lists of which only what they were and what they became is compared, besides sets.
    """

    def __init__(self, kinds: Kinds, base: dict[str, Any], items: Items, whole: set[Path]) -> None:
        self._kinds = kinds
        self._whole = whole
        self._touched: dict[Path, tuple[int, str]] = {}
        """Of `whole`: which change touched it last, and its stamp."""
        self._held: dict[Path, list[tuple[int, Step]]] = {}
        """Guards inside lists that are compared as a whole: they go where that goes."""
        self.items: Items = {path: list(names) for path, names in items.items()}
        self._mapper = Mapper(kinds, self.items)
        self._working = Working(base)
        self._out: list[tuple[int, Step]] = []
        self._gone: dict[Path, tuple[int, Any]] = {}
        """Items taken out: where in `_out`, and what they were; one that comes back was only moved."""
        self.changes: list[Step] = []
        self.numbers: list[int] = []
        self.state = base

    def follow(self, changes: Sequence[Step], stamps: Sequence[str], end: Callable[[], dict[str, Any]]) -> None:
        """Take changes in. end: what they lead to, as lists. Raises _Renamed, Unfit."""
        for number, (change, stamp) in enumerate(zip(changes, stamps, strict=True)):
            self._number = number
            self._take(change, stamp)
        state = end() if self._touched else {}
        for path, (number, stamp) in sorted(self._touched.items()):
            self._out += self._held.pop(path, [])
            self._number = number
            self._rewrite(path, cast("list[Any]", get(state, self._numbered(path))), stamp)
        kept = [(n, c) for n, c in self._out if c is not _NOTHING]
        self.changes = [c for _, c in kept]
        self.numbers = [n for n, _ in kept]
        self.state = self._working.state

    def _take(self, change: Step, stamp: str) -> None:
        path = self._place(change.path)
        prefixes = (path[:depth] for depth in range(len(path) + 1))
        inside = next(filter(self._compared, prefixes), None)
        if inside is not None and isinstance(change, Guard):
            if isinstance(change, Within):
                raise ChangeError(f"{pointer(path)}: bounds cannot be checked in a list that is merged as a set")
            known = self.items[inside] if inside not in self._touched else []
            token = path[len(inside)] if len(path) > len(inside) else None
            place = inside
            if isinstance(token, int) and token < len(known):
                place = (*inside, known[token], *path[len(inside) + 1 :])
            placed = (self._number, msgspec.structs.replace(change, path=place))
            if change.strict:
                self._out.append(placed)  # it stands for itself, also where nothing here is changed
            else:
                self._held.setdefault(inside, []).append(placed)
            return
        if inside is not None and not (path == inside and _ends_list(change)):
            self._touched[inside] = (self._number, stamp)
            return
        match change:
            case Set() | Delete() | Increment() | Splice() if self._names_item(path):
                raise _Renamed(path[:-2])
            case Set(_, value) if path[:-1] in self.items and type(change.path[-1]) is int:
                self._replace(path[:-1], change.path[-1], value, stamp)
            case Set(_, value) if path in self.items and type(value) is list:
                self._rewrite(path, cast("list[Any]", value), stamp)
            case Set(_, value):
                self._put(path, value, stamp)
            case Gone():
                self._forget(path)
                self._working.apply(Gone(path))
                self._out.append((self._number, Gone(path)))
            case Delete():
                self._forget(path)
                self._emit(Delete(path))
            case Ensure(_, value) if path not in self.items:
                self._emit(Ensure(path, self._mapper.mapped(value, path, stamp)))
            case Ensure() if type(change.value) is list:
                pass  # it is there, as an object
            case Read(_, _, False) if self._kinds.at(path) in ("counter", "text"):
                pass  # what is set there counts as what it adds
            case Read() | Within():
                self._out.append((self._number, msgspec.structs.replace(change, path=path)))
            case Append(_, values) | Insert(_, _, values) if path in self.items:
                at = change.index if isinstance(change, Insert) else len(self.items[path])
                self._bring(path, at, values, stamp)
            case Remove(_, index, count) if path in self.items:
                for _ in range(count):
                    self._drop((*path, self.items[path].pop(index)))
            case _:
                self._emit(msgspec.structs.replace(change, path=path))

    def _compared(self, path: Path) -> bool:
        """Tell whether of a list only what it was and what it became counts: of sets always, so they never clash."""
        return path in self.items and (path in self._whole or self._kinds.at(path) == "set")

    def _place(self, path: Path) -> Path:
        place: Path = ()
        for token in path:
            names = self.items.get(place) if type(token) is int and not self._compared(place) else None
            place = (*place, token if names is None else names[cast("int", token)])
        return place

    def _numbered(self, path: Path) -> Path:
        place: Path = ()
        for depth, token in enumerate(path):
            names = self.items.get(path[:depth])
            place = (*place, token if names is None else names.index(cast("str", token)))
        return place

    def _names_item(self, path: Path) -> bool:
        """Tell whether a path is that of the field an item is known by."""
        kind = self._kinds.at(path[:-2]) if path[:-2] in self.items else None
        return kind is not None and kind.startswith("keyed") and path[-1] == field_of(kind)

    def _emit(self, change: Change) -> None:
        if self._working.apply(change):
            self._out.append((self._number, change))

    def _put(self, path: Path, value: Any, stamp: str) -> None:
        """Set a value that is no item of a declared list."""
        before = get(self._working.state, path, _MISSING)
        kind = self._kinds.at(path)
        if kind == "counter" and type(before) is type(value) is int:
            self._emit(Increment(path, value - before))
        elif kind == "text" and type(before) is type(value) is str:
            self._emit(text_change(before, value, path))
        else:
            self._forget(path)
            self._emit(Set(path, self._mapper.mapped(value, path, stamp)))

    def _replace(self, path: Path, index: int, value: Any, stamp: str) -> None:
        """Put another item in the place of one."""
        names = self.items[path]
        old = names[index]
        (new,) = [old] if self._kinds.at(path) == "log" else self._mapper.names(path, [value], [], stamp)
        if new == old:
            place = (*path, old)
            self._forget(place)
            self._emit(Set(place, self._mapper.mapped(value, place, stamp)))
            return
        if new in names:
            raise _Renamed(path)
        self._drop((*path, names.pop(index)))
        self._bring(path, index, [value], stamp)

    def _rewrite(self, path: Path, values: list[Any], stamp: str) -> None:
        """Replace a whole list: what is still in it stays, wherever it is now."""
        old = cast("dict[str, Any]", get(self._working.state, path))
        if self._kinds.at(path) == "log":
            kept = 0
            plain = list(old.values())
            while kept < min(len(plain), len(values)) and same(plain[kept], values[kept]):
                kept += 1
            names = self.items[path][:kept] + self._mapper.names(path, values[kept:], [], stamp)
        else:
            names = self._mapper.names(path, values, [], stamp)
        self._forget(path)
        self.items[path] = names
        new = {n: self._mapper.mapped(v, (*path, n), stamp) for n, v in zip(names, values, strict=True)}
        for change in diff(old, new):
            place = (*path, *change.path)
            if isinstance(change, Set) and self._kinds.at(place) in ("counter", "text"):
                self._put(place, change.value, stamp)
            else:
                self._emit(msgspec.structs.replace(change, path=place))

    def _bring(self, path: Path, at: int, values: Sequence[Any], stamp: str) -> None:
        try:
            names = self._mapper.names(path, values, self.items[path], stamp)
        except Unfit:
            raise _Renamed(path) from None  # it may be gone again when all is done
        self.items[path][at:at] = names
        for name, value in zip(names, values, strict=True):
            place = (*path, name)
            new = self._mapper.mapped(value, place, stamp)
            moved = self._gone.pop(place, None)
            if moved is None:
                self._emit(Set(place, new))
                continue
            number, old = moved
            self._out[number] = (self._number, _NOTHING)
            self._working.apply(Set(place, old))
            if type(old) is type(new) is dict:
                for change in diff(cast("dict[str, Any]", old), cast("dict[str, Any]", new)):
                    self._emit(msgspec.structs.replace(change, path=(*place, *change.path)))
            else:
                self._emit(Set(place, new))

    def _drop(self, place: Path) -> None:
        self._forget(place)
        self._gone[place] = (len(self._out), get(self._working.state, place))
        self._emit(Delete(place))

    def _forget(self, path: Path) -> None:
        """Whatever was at a path is replaced or gone, with the lists in it."""
        depth = len(path)
        for known in (self.items, self._gone, self._touched):
            for inside in [p for p in known if len(p) >= depth and p[:depth] == path]:
                del known[inside]


def _ends_list(change: Step) -> bool:
    return isinstance(change, Delete) or (isinstance(change, Set) and type(change.value) is not list)


_NOTHING: Any = Delete(())
"""Stands where a change was taken back."""
