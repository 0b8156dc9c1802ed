"""Merging by kind: declared lists are merged as objects, their items under names that last, and made lists again.

1. What moves past what is decided in one place, core/merge.py: here is only what it is called there and back.
2. A name is the item's own: a log's from when it was added, a set's from its value, a keyed list's from its field. So the
   same item has the same name on both sides, wherever it stands in its list.
3. A list that is not as it was declared is merged by position, like any other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from quire.core import resolve
from quire.core.changes import Working, apply
from quire.core.diff import diff, text_change
from quire.core.kinds import PLAIN, Kinds, field_of
from quire.core.path import get
from quire.core.resolve import Merging, Met, Policy, Settled
from quire.core.values import same
from quire.model import Append, Change, Delete, Increment, Insert, Path, Remove, Set, Splice

_MISSING: Any = object()
_encode = msgspec.json.Encoder(order="sorted").encode

_LAST = 1 << 60

N = TypeVar("N")
Items = dict[Path, list[str]]
"""For each list that was made an object, the names of its items in their order. Paths have names, too."""


class Stamps(NamedTuple):
    """What orders the changes of both sides in time: one text each, the same for the same change on both sides."""

    ours: Sequence[str]
    theirs: Sequence[str]


def settle(
    changes: Sequence[Change],
    over: Sequence[Change],
    *,
    base: dict[str, Any],
    head: dict[str, Any],
    policy: Policy,
    where: str = "",
    merging: Merging | None = None,
    kinds: Kinds | None = None,
    stamps: Callable[[], Stamps],
    mine: dict[str, Any] | None = None,
) -> Settled:
    """Return what `resolve.settle` does, merging declared places by their kind.

    mine: `base` after ours, where `behind` of the answer is wanted.
    Cost: that of resolve.settle; where both sides touched a declared place, also that of copying what is declared.
    """
    positional = kinds
    while positional and positional.touched(changes) & positional.touched(over):
        try:
            laid = _lay(positional, base, changes, over, stamps())
            found = resolve.settle(
                laid.ours.changes,
                laid.theirs.changes,
                base=laid.base,
                head=laid.theirs.state,
                policy=laid.policy(policy),
                where=where,
                merging=None if merging is None else laid.merging(merging),
            )
            return laid.listed(found, head, mine, len(over))
        except _Unfit as unfit:
            positional = positional.without(unfit.pattern)
    return resolve.settle(changes, over, base=base, head=head, policy=policy, where=where, merging=merging)


class _Unfit(Exception):
    """A list is not as it was declared."""

    def __init__(self, pattern: Path) -> None:
        self.pattern = pattern


class _Renamed(Exception):
    """The items of a list cannot be followed change by change, as while two of them swap their names."""

    def __init__(self, path: Path) -> None:
        self.path = path


def _lay(kinds: Kinds, base: dict[str, Any], ours: Sequence[Change], theirs: Sequence[Change], stamps: Stamps) -> _Laid:
    for path in _begun(kinds, base, ours) & _begun(kinds, base, theirs):  # what both sides begin is one list
        base = apply(base, [Set(path, [])])
    start: Items = {}
    mapped = _Mapper(kinds, start).mapped(base, ())
    return _Laid(
        kinds,
        mapped,
        start,
        _side(kinds, base, mapped, start, ours, stamps.ours),
        _side(kinds, base, mapped, start, theirs, stamps.theirs),
    )


def _begun(kinds: Kinds, base: dict[str, Any], changes: Sequence[Change]) -> set[Path]:
    """Return where changes put a list of a declared kind and nothing was before."""
    return {
        c.path
        for c in changes
        if isinstance(c, Set)
        and type(c.value) is list
        and kinds.at(c.path) not in PLAIN
        and type(get(base, c.path[:-1])) is dict
        and get(base, c.path, _MISSING) is _MISSING
    }


def _side(
    kinds: Kinds,
    base: dict[str, Any],
    mapped: dict[str, Any],
    start: Items,
    changes: Sequence[Change],
    stamps: Sequence[str],
) -> _Side:
    """Follow one side's changes; where its items change their names on the way, only what became of a list counts."""
    whole: set[Path] = set()
    while True:
        try:
            side = _Side(kinds, mapped, start, whole)
            side.follow(changes, stamps, lambda: apply(base, changes))
        except _Renamed as found:
            whole.add(found.path)
        else:
            return side


class _Mapper:
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
            raise _Unfit(self.kinds.pattern(path))
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
                    raise _Unfit(self.kinds.pattern(path))
                name = _encode(key).decode()
            if name in used and kind != "set":
                raise _Unfit(self.kinds.pattern(path))
            while name in used:
                name += "'"  # the same again, in one list: made one when it is a list again
            used.add(name)
            found.append(name)
        return found


class _Side:
    """One side's changes with objects for declared lists. changes, numbers: what, and which change each is from.

    whole: lists of which only what they were and what they became is compared, besides sets.
    """

    def __init__(self, kinds: Kinds, base: dict[str, Any], items: Items, whole: set[Path]) -> None:
        self._kinds = kinds
        self._whole = whole
        self._touched: dict[Path, tuple[int, str]] = {}
        """Of `whole`: which change touched it last, and its stamp."""
        self.items: Items = {path: list(names) for path, names in items.items()}
        self._mapper = _Mapper(kinds, self.items)
        self._working = Working(base)
        self._out: list[tuple[int, Change]] = []
        self._gone: dict[Path, tuple[int, Any]] = {}
        """Items taken out: where in `_out`, and what they were; one that comes back was only moved."""
        self.changes: list[Change] = []
        self.numbers: list[int] = []
        self.state = base

    def follow(self, changes: Sequence[Change], stamps: Sequence[str], end: Callable[[], dict[str, Any]]) -> None:
        """Take changes in. end: what they lead to, as lists. Raises _Renamed, _Unfit."""
        for number, (change, stamp) in enumerate(zip(changes, stamps, strict=True)):
            self._number = number
            self._take(change, stamp)
        state = end() if self._touched else {}
        for path, (number, stamp) in sorted(self._touched.items()):
            self._number = number
            self._rewrite(path, cast("list[Any]", get(state, self._numbered(path))), stamp)
        kept = [(n, c) for n, c in self._out if c is not _NOTHING]
        self.changes = [c for _, c in kept]
        self.numbers = [n for n, _ in kept]
        self.state = self._working.state

    def _take(self, change: Change, stamp: str) -> None:
        path = self._place(change.path)
        prefixes = (path[:depth] for depth in range(len(path) + 1))
        inside = next(filter(self._compared, prefixes), None)
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
            case Delete():
                self._forget(path)
                self._emit(Delete(path))
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
        except _Unfit:
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


def _ends_list(change: Change) -> bool:
    return isinstance(change, Delete) or (isinstance(change, Set) and type(change.value) is not list)


_NOTHING: Any = Delete(())
"""Stands where a change was taken back."""


class _Laid:
    """Both sides as they are merged, and the way back. base: as it is merged.  start: the lists in it."""

    def __init__(self, kinds: Kinds, base: dict[str, Any], start: Items, ours: _Side, theirs: _Side) -> None:
        self.base = base
        self.ours = ours
        self.theirs = theirs
        self._kinds = kinds
        self._start = start

    def merging(self, asked: Merging) -> Merging:
        """Return the questions of a merge, asked with the numbers of the changes as they were given."""

        def numbered(question: Callable[[int, int], bool] | None) -> Callable[[int, int], bool] | None:
            if question is None:
                return None
            return lambda number, other: question(self.ours.numbers[number], self.theirs.numbers[other])

        return Merging(numbered(asked.stands), numbered(asked.ahead), numbered(asked.twins))

    def policy(self, policy: Policy) -> Policy:
        """Return the policy for what is met here: a function is shown lists, and may return them."""
        if not callable(policy):
            return policy
        mapper = _Mapper(self._kinds, {})

        def decided(met: Met) -> Any:
            return mapper.mapped(policy(self._seen(met, self.theirs.items)), met.path, "decided")

        return decided

    def listed(self, found: Settled, head: dict[str, Any], mine: dict[str, Any] | None, count: int) -> Settled:
        """Return what was settled with lists again. count: of their changes as they were given."""
        merged = Working(self.theirs.state)
        for change in found.changes:
            merged.apply(change)
        lists = self._lists({}, {})
        goal = lists.value(merged.state, ())
        ours, theirs = self.ours.numbers, self.theirs.numbers
        forth = [(None if n is None else ours[n], c) for n, c in zip(found.numbers, found.changes, strict=True)]
        onto = self._lists(self.theirs.items, lists.items)
        changes: list[tuple[int | None, Change]] = []
        for number, group in groupby(forth, key=lambda part: part[0]):
            changes += [(number, c) for c in _gathered([onto.change(c) for _, c in group])]
        state = Working(head)
        for _, change in changes:
            state.apply(change)
        missing = diff(state.state, goal)
        behind: list[list[Change]] = [[] for _ in range(count)]
        if mine is not None:
            under = self._lists(self.ours.items, lists.items)
            for number, part in ((n, part) for n, parts in zip(theirs, found.behind, strict=True) for part in parts):
                with suppress(ValueError):  # it stood on what a policy took away
                    behind[number].append(under.change(part))
            behind = [_gathered(parts) for parts in behind]
        return Settled(
            [*(c for _, c in changes), *missing],
            [*(n for n, _ in changes), *[None] * len(missing)],
            [self._seen(m, lists.items) for m in found.met],
            behind,
        )

    def _lists(self, items: Items, final: Items) -> _Lists:
        return _Lists(self._kinds, self._order, items, final)

    def _seen(self, met: Met, items: Items) -> Met:
        """Return what was met as it is in lists with these items."""
        values = {f: self._lists({}, {}).value(getattr(met, f), met.path) for f in ("base", "ours", "theirs")}
        there = self._lists(items, {})
        return msgspec.structs.replace(
            met,
            path=there.path(met.path),
            change=there.shown(met.change),
            number=self.ours.numbers[met.number],
            other=self.theirs.numbers[met.other],
            **values,
        )

    def _order(self, path: Path, there: Iterable[str]) -> list[str]:
        """Return the names of a merged list in the order they get."""
        if self._kinds.at(path) == "log":
            return sorted(there)
        kept = set(there)
        base, ours, theirs = (
            [n for n in items.get(path, ()) if n in kept] for items in (self._start, self.ours.items, self.theirs.items)
        )
        lead, other = (ours, theirs) if _reordered(base, ours) else (theirs, ours)
        result, old = list(lead), set(base)
        placed = set(lead)
        before: str | None = None
        for name in other:
            if name not in placed:
                at = 0 if before is None else result.index(before) + 1
                while at < len(result) and result[at] not in old:
                    at += 1  # what the lead brought comes first
                result.insert(at, name)
                placed.add(name)
            before = name
        result += [n for n in there if n not in placed]  # what a policy made
        if self._kinds.at(path) == "set":
            result = [n for n in result if not (n.endswith("'") and n.rstrip("'") in kept)]
        return result


def _gathered(changes: list[Change]) -> list[Change]:
    """Return changes with additions of items next to each other as one: it was one, and is named after it."""
    done: list[Change] = []
    for change in changes:
        last = done[-1] if done else None
        if isinstance(change, Append) and isinstance(last, Append) and last.path == change.path:
            done[-1] = msgspec.structs.replace(last, values=[*last.values, *change.values])
        elif (
            isinstance(change, Insert)
            and isinstance(last, Insert)
            and last.path == change.path
            and change.index == last.index + len(last.values)
        ):
            done[-1] = Insert(last.path, last.index, [*last.values, *change.values])
        else:
            done.append(change)
    return done


def _reordered(base: Sequence[str], side: Sequence[str]) -> bool:
    known, there = set(base), set(side)
    return [n for n in base if n in there] != [n for n in side if n in known]


class _Lists:
    """Makes lists of objects again, one change after the other.

    items: the lists there are, with what is in them by now.  final: where each new item will have its place.
    """

    def __init__(self, kinds: Kinds, order: Callable[[Path, Iterable[str]], list[str]], items: Items, final: Items):
        self._kinds = kinds
        self._order = order
        self.items: Items = {path: list(names) for path, names in items.items()}
        self._ranks = {path: {name: i for i, name in enumerate(names)} for path, names in final.items()}

    def value(self, value: Any, path: Path) -> Any:
        """Return a value that is at a path, with lists for the objects that were made of them."""
        if type(value) is not dict or not self._kinds.below(path):
            return value
        fields = cast("dict[str, Any]", value)
        if self._kinds.at(path) in PLAIN:
            return {k: self.value(v, (*path, k)) for k, v in fields.items()}
        names = self.items[path] = self._order(path, fields)
        return [self.value(fields[n], (*path, n)) for n in names]

    def path(self, path: Path) -> Path:
        """Return a path with indexes for the names of items; a name stays where its item is gone."""
        done: list[str | int] = []
        for depth, token in enumerate(path):
            names = self.items.get(path[:depth], ())
            done.append(names.index(cast("str", token)) if token in names else token)
        return tuple(done)

    def shown(self, change: Change) -> Change:
        """Return a change as it reads, without doing it."""
        return self._placed(change, self.path(change.path))

    def change(self, change: Change) -> Change:
        """Return what is done to lists for what is done to objects. Raises ValueError where there is no such item."""
        parent, place = change.path[:-1], self.path(change.path)
        names = self.items.get(parent)
        if names is None or not change.path:
            return self._placed(change, place)
        name = cast("str", change.path[-1])
        if isinstance(change, Delete):
            index = names.index(name)
            del names[index]
            return Remove(place[:-1], index)
        if isinstance(change, Set) and name not in names:
            rank = self._ranks.get(parent, {})
            index = bisect_left(names, rank.get(name, _LAST), key=lambda n: rank.get(n, _LAST))
            names.insert(index, name)
            value = self.value(change.value, change.path)
            return Insert(place[:-1], index, [value]) if index < len(names) - 1 else Append(place[:-1], [value])
        return self._placed(change, place)

    def _placed(self, change: Change, place: Path) -> Change:
        if isinstance(change, Set):
            return Set(place, self.value(change.value, change.path))
        return msgspec.structs.replace(change, path=place)
