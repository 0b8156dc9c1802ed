"""Merging by kind: declared lists are merged as objects, their items under names that last, and made lists again.

1. What moves past what is decided in one place, core/merge.py: here is only what it is called there and back.
   How they become objects is in core/items.py.
2. A list that is not as it was declared is merged by position, like any other.
3. Objects have no order, so two orders of one list are the same to a guard. Where a serializable write read the list, its
   order counts all the same: that is looked at here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, TypeVar, cast

import msgspec

from quire.core import resolve
from quire.core.changes import Gone, Working, apply
from quire.core.diff import diff
from quire.core.guards import Read, Step
from quire.core.items import Items, Mapper, Side, Unfit, followed
from quire.core.kinds import PLAIN, Kinds
from quire.core.meter import Meter
from quire.core.path import get
from quire.core.refusals import Reason, refusal
from quire.core.resolve import ABSENT, Merging, Met, Policy, Settled, Writer
from quire.core.trail import Trail
from quire.errors import MergeConflict
from quire.model import Append, Change, Delete, Ensure, Insert, Path, Remove, Set

_MISSING: Any = object()
_encode = msgspec.json.Encoder(order="sorted").encode

_LAST = 1 << 60

Moved = TypeVar("Moved", Change, Step)


class Stamps(NamedTuple):
    """What orders the changes of both sides in time: one text each, the same for the same change on both sides."""

    ours: Sequence[str]
    theirs: Sequence[str]


def settle(
    changes: Sequence[Step],
    over: Sequence[Change],
    *,
    base: dict[str, Any],
    head: dict[str, Any],
    policy: Policy | None,
    where: str = "",
    merging: Merging | None = None,
    kinds: Kinds | None = None,
    stamps: Callable[[], Stamps],
    mine: dict[str, Any] | None = None,
    writer: Writer | None = None,
    whole: bool = False,
    meter: Meter | None = None,
) -> Settled:
    """Return what `resolve.settle` does, merging declared places by their kind.

    mine: `base` after ours, where `behind` of the answer is wanted.
    Cost: that of resolve.settle; where both sides touched a declared place, also that of copying what is declared.
    """
    positional = kinds
    while positional and positional.touched(changes) & positional.touched(over):
        try:
            laid = _lay(positional, base, changes, over, stamps())
            if others := laid.other_orders(changes, over, base, head, writer):
                raise refusal(where, "read", others)
            found = laid.settled(policy, where, merging, writer, whole=whole, meter=meter)
            return laid.listed(found, head, mine, len(over))
        except Unfit as unfit:
            positional = positional.without(unfit.pattern)
    return resolve.settle(
        changes,
        over,
        base=base,
        head=head,
        policy=policy,
        where=where,
        merging=merging,
        writer=writer,
        whole=whole,
        meter=meter,
    )


def _lay(kinds: Kinds, base: dict[str, Any], ours: Sequence[Step], theirs: Sequence[Change], stamps: Stamps) -> _Laid:
    for path in _begun(kinds, base, ours) & _begun(kinds, base, theirs):  # what both sides begin is one list
        base = apply(base, [Set(path, [])])
    start: Items = {}
    mapped = Mapper(kinds, start).mapped(base, ())
    return _Laid(
        kinds,
        mapped,
        start,
        followed(kinds, base, mapped, start, ours, stamps.ours),
        followed(kinds, base, mapped, start, theirs, stamps.theirs),
    )


def _begun(kinds: Kinds, base: dict[str, Any], changes: Sequence[Step]) -> set[Path]:
    """Return where changes put a list of a declared kind and nothing was before."""
    return {
        c.path
        for c in changes
        if isinstance(c, Set | Ensure)
        and type(c.value) is list
        and kinds.at(c.path) not in PLAIN
        and type(get(base, c.path[:-1])) is dict
        and get(base, c.path, _MISSING) is _MISSING
    }


class _Laid:
    """Both sides as they are merged, and the way back. base: as it is merged.  start: the lists in it."""

    def __init__(self, kinds: Kinds, base: dict[str, Any], start: Items, ours: Side, theirs: Side) -> None:
        self.base = base
        self.ours = ours
        self.theirs = theirs
        self._kinds = kinds
        self._start = start

    def settled(
        self,
        policy: Policy | None,
        where: str,
        merging: Merging | None,
        writer: Writer | None,
        *,
        whole: bool,
        meter: Meter | None,
    ) -> Settled:
        """Return what is settled of objects. Raises MergeConflict, told of lists."""
        try:
            return resolve.settle(
                self.ours.changes,
                cast("list[Change]", self.theirs.changes),
                base=self.base,
                head=self.theirs.state,
                policy=self.policy(policy),
                where=where,
                merging=None if merging is None else self.merging(merging),
                writer=None if writer is None else self.writer(writer),
                whole=whole,
                meter=meter,
            )
        except MergeConflict as refused:
            met = [self.seen(cast("Met", each)) for each in refused.conflicts]
            raise refusal(where, cast("Reason", refused.reason), met) from None

    def other_orders(
        self,
        changes: Sequence[Step],
        over: Sequence[Change],
        base: dict[str, Any],
        head: dict[str, Any],
        writer: Writer | None,
    ) -> list[Met]:
        """Return where a serializable write read lists whose items others put into another order; the first comes last."""
        found: list[Met] = []
        guards = [(n, step) for n, step in zip(self.ours.numbers, self.ours.changes, strict=True) if _reads_order(step)]
        before, now = self._lists(self._start, {}), self._lists(self.theirs.items, {})
        for path, names in self._start.items() if guards else ():
            number = next((n for n, step in guards if path[: len(step.path)] == step.path), None)
            if number is None or not _reordered(names, self.theirs.items.get(path, ())):
                continue
            place = now.path(path)
            other = Trail(over).last(place) or 0
            author, version = ("", None) if writer is None else writer(other)
            was, is_now = get(base, before.path(path), ABSENT), get(head, place, ABSENT)
            found.append(
                Met(place, was, ABSENT, is_now, changes[number], number, other, "ours", author=author, version=version)
            )
        return sorted(found, key=lambda met: -met.number)

    def merging(self, asked: Merging) -> Merging:
        """Return the questions of a merge, asked with the numbers of the changes as they were given."""
        return asked.numbered(self.ours.numbers.__getitem__, self.theirs.numbers.__getitem__)

    def writer(self, writer: Writer) -> Writer:
        """Return the same, asked with the numbers that their changes have here."""
        return lambda number: writer(self.theirs.numbers[number])

    def policy(self, policy: Policy | None) -> Policy | None:
        """Return the policy for what is met here: a function is shown lists, and may return them."""
        if not callable(policy):
            return policy
        mapper = Mapper(self._kinds, {})

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
        changes: list[tuple[int | None, Step]] = []
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
            [self._seen(m, self._having(m.path, lists.items)) for m in found.met],
            behind,
            by_kind=True,
        )

    def seen(self, met: Met) -> Met:
        """Return what was met as it is in lists: where it is now, or was at first if it is gone."""
        now = self._seen(met, self.theirs.items)
        there = get(self._plain(self.theirs), now.path, _MISSING) is not _MISSING
        return now if there else self._seen(met, self._start)

    def _having(self, path: Path, items: Items) -> Items:
        """Return the first lists that have the items a path goes through: as merged, as theirs, or as they were at first."""
        for found in (items, self.theirs.items):
            if all(token in found[path[:depth]] for depth, token in enumerate(path) if path[:depth] in found):
                return found
        return self._start

    def _plain(self, side: Side) -> dict[str, Any]:
        return cast("dict[str, Any]", self._lists({}, {}).value(side.state, ()))

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


def _gathered(changes: list[Moved]) -> list[Moved]:
    """Return changes with additions of items next to each other as one: it was one, and is named after it."""
    done: list[Any] = []
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


def _reads_order(step: Step) -> bool:
    return isinstance(step, Read) and step.strict and step.of == "value"


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

    def shown(self, change: Step) -> Step:
        """Return a change as it reads, without doing it."""
        return self._placed(change, self.path(change.path))

    def change(self, change: Any) -> Any:
        """Return what is done to lists for what is done to objects. Raises ValueError where there is no such item."""
        parent, place = change.path[:-1], self.path(change.path)
        names = self.items.get(parent)
        if names is None or not change.path:
            return self._placed(change, place)
        name = cast("str", change.path[-1])
        if isinstance(change, Gone) and name not in names:
            return change
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

    def _placed(self, change: Any, place: Path) -> Any:
        if isinstance(change, Set | Ensure):
            return type(change)(place, self.value(change.value, change.path))
        return msgspec.structs.replace(change, path=place)
