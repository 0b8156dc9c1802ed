"""The rules of concurrent edits, computed from a write's base and the state that it met: a reference to check against.

A `Meeting` does a write's steps twice, side by side: on `mine`, a copy of its base, as the writer saw it, and on `now`, a
copy of the version before its own, as a serial execution does.

1. Sums, appends, insertions and empty containers where none is are done on both, whatever is there.
2. What replaces or removes something is stale where that place, a part of it, or the whole value around it was read, and
   holds something else in `now` than in `mine`. A stale write is refused, unless a policy decides.
3. What was not read is blind: the later stands, or what a policy says, and a conflict tells of both.
4. What lies in a container or an item that is not in `now` any more has no place. It is refused; by a policy that keeps
   what is there it is left out.

So a write that was accepted must run through, and leave `now` as its version has it; one that was refused must not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from quire.testing.edits.reads import Path, Place, at_place, place_of
from quire.testing.edits.sides import DECIDING, YIELDING, Refused, Sides, Terms
from quire.testing.edits.tree import ABSENT, Arr, Obj, Text, boxed, clone, find, fresh, plain, put, same, spelled, text


class Met(msgspec.Struct, frozen=True):
    """A conflict that has to be recorded. path: in the writer's state.  base, theirs: what each had there.

    stale: what is replaced was read.  sets: the write puts a value there.
    """

    path: Path
    place: Place
    base: Any
    theirs: Any
    stale: bool
    sets: bool = True


class Meeting(Sides):
    """A write's steps on its base and on the state that it met.

    rehearsal: the same write on its own base, which tells what becomes in the end of what it puts in.
    """

    def __init__(self, base: Obj, head: Obj, terms: Terms, *, rehearsal: Meeting | None = None) -> None:
        super().__init__(base, head, terms)
        self.met: list[Met] = []
        self.texts: list[str] = []
        """What is put into texts later on."""
        self._rehearsal = rehearsal
        self._decide: list[Met] = []
        self._inserted: list[Place] = []
        self._added: set[int] = set()
        """The slots of items that the write put in: beside them there is a place in whatever list they are in."""
        self._undone: list[Path] = []
        self._written: list[Path] = []

    def _done(self, path: Path, make: Callable[[], None]) -> None:
        """Do to `now` what was done at a path, unless a policy left that out."""
        place = place_of(self.mine, path)
        if self.is_closed(place):
            return
        try:
            make()
        except Refused as refused:
            if refused.why == "gone" and (self._both_took(path) or self._is_in_vain(path)):
                return
            if refused.why != "gone" or self.terms.policy not in YIELDING:
                raise
            self.met.append(Met(path, place, self.value(path), ABSENT, stale=False))
            self.closed.append(place)

    def _both_took(self, path: Path) -> bool:
        """Tell whether in the end neither side has what held a place: whatever was done in it then is no matter."""
        if self._rehearsal is None or any(isinstance(token, int) for token in path):
            return False
        ends = (self._rehearsal.mine, self.head)
        return any(all(find(end, path[:depth]) is ABSENT for end in ends) for depth in range(1, len(path) + 1))

    def _is_in_vain(self, path: Path) -> bool:
        """Tell whether the write itself replaces later what it changes here: whether it is refused is left open."""
        if self._rehearsal is None or self.terms.lenient:
            return False
        whole, so_far = self._rehearsal._written, self._written
        places = [path[:depth] for depth in range(1, len(path) + 1)]
        return any(whole.count(place) > so_far.count(place) for place in places)

    # what commutes

    def add(self, path: Path, amount: int, low: int | None = None, high: int | None = None) -> None:
        """Add to a number; absent counts as 0."""
        if self.terms.differs:
            self.put(path, self.value(path) + amount)
            return
        if path in self.zeros:
            self.zeros.remove(path)
            del find(self.mine, path[:-1])[path[-1]]
        self._settle(path)
        before = self.value(path)

        def made() -> None:
            there = self.found(path)
            if there is ABSENT and before is not ABSENT:
                if not self._meets(path, before, before + amount, relied=False, sets=False):
                    return
                there = 0
            if type(there) is not int and there is not ABSENT:
                raise Refused("gone", path, "is no number")
            if self.terms.lenient and self.terms.policy == "reject" and self.was_removed(path):
                raise Refused("met", path, "may be another number by now")
            now, key = self.there(path)
            if self.terms.policy in DECIDING and self.was_removed(path):  # whether it is that number is left open
                for decided in (there, self._ending(path, before)):
                    if same(self.at_last(path), decided):
                        self.closed.append(place_of(self.mine, path))
                        _lay(now, key, decided)
                        return
            now[key] = (0 if there is ABSENT else there) + amount
            _check(now[key], path, low, high)

        self._done(path, made)
        find(self.mine, path[:-1])[path[-1]] = (0 if before is ABSENT else before) + amount
        _check(self.value(path), path, low, high)

    def grow(self, path: Path, added: str, at: int | None = None) -> None:
        """Insert into a text: at its end (None), or wherever the two parts around it end and begin."""
        self._settle(path)
        whole = find(self.mine, path)
        at = None if at == len(whole) else at
        place = len(whole) if at is None else at
        left_out = self.terms.policy in YIELDING and added not in text(self.terms.after)

        def made() -> None:
            before = self.found(path)
            if type(before) is not Text or (
                before.id != whole.id and (self.terms.lenient or at is not None or left_out)
            ):
                raise Refused("gone", path, "is not that text")
            found = len(before) if at is None else self._chosen_in_text(path, added, place)
            if (
                at is not None
                and _within(whole, before)
                and not (_within(whole[:place], before[:found]) and _within(whole[place:], before[found:]))
            ):
                raise Refused("gone", path, "an insertion moved past what it was put beside")
            now, key = self.there(path)
            now[key] = spelled(before[:found] + added + before[found:], before.id)

        self._done(path, made)
        self.texts.remove(added)
        find(self.mine, path[:-1])[path[-1]] = spelled(whole[:place] + added + whole[place:], whole.id)

    def _chosen_in_text(self, path: Path, added: str, otherwise: int) -> int:
        after = self.at_last(path)
        if type(after) is not str:
            return otherwise
        for later in reversed(self.texts):  # the newest may be within an older one
            after = after if later == added else after.replace(later, "")
        found = after.find(added)
        return otherwise if found < 0 else found

    def append(self, path: Path, values: list[Any]) -> None:
        """Add at the end of a list."""
        self._settle(path)
        nodes, ids = [boxed(v) for v in values], fresh(len(values))

        mark = self._marked(path, ids)

        def made() -> None:
            there = self.found(path)
            if not isinstance(there, Arr) or (self.terms.lenient and there.id != find(self.mine, path).id):
                raise Refused("gone", path, "is not that list")
            at = len(there)
            if self.terms.policy == "merge":  # the older of two appends comes first
                known = set(find(self.mine, path).ids)
                low = max((i + 1 for i, slot in enumerate(there.ids) if slot in known), default=0)
                at = self._chosen(path, there, mark, low, at)
            put(there, at, [clone(node) for node in nodes], ids)

        self._done(path, made)
        mine = find(self.mine, path)
        put(mine, len(mine), nodes, ids)

    def insert(self, path: Path, index: int, values: list[Any]) -> None:
        """Insert into a list: between what is left of the items beside it."""
        mine = find(self.mine, path)
        if index >= len(mine):
            self.append(path, values)
            return
        left, right = set(mine.ids[:index]), set(mine.ids[index:])
        nodes, ids = [boxed(v) for v in values], fresh(len(values))
        mark = self._marked(path, ids)

        def made() -> None:
            there = self.found(path)
            if not isinstance(there, Arr) or (there.id != mine.id and (self.terms.lenient or not right <= self._added)):
                raise Refused("gone", path, "is not that list")
            low = max((i + 1 for i, slot in enumerate(there.ids) if slot in left), default=0)
            high = min((i for i, slot in enumerate(there.ids) if slot in right), default=len(there))
            low = low if there.id == mine.id else high
            if low > high:
                raise Refused("gone", path, "the order of its items changed")
            put(there, self._chosen(path, there, mark, low, high), [clone(node) for node in nodes], ids)

        self._done(path, made)
        put(mine, index, nodes, ids)

    def _marked(self, path: Path, ids: list[int]) -> Any:
        """Return what tells the first of items that are inserted from others in the end, ABSENT where it is gone."""
        number = len(self._inserted)
        self._added.update(ids)
        self._inserted.append((*place_of(self.mine, path), ("slot", ids[0] if ids else 0)))
        if self._rehearsal is None or number >= len(self._rehearsal._inserted):
            return ABSENT
        return _mark(plain(at_place(self._rehearsal.mine, self._rehearsal._inserted[number])))

    def _chosen(self, path: Path, there: Arr, mark: Any, low: int, high: int) -> int:
        """Return which of the places from low to high an insertion took, as far as the log tells.

        It does not where the write itself puts the list into another order later.
        """
        if self._rehearsal is not None and path in self._rehearsal._written:
            return low
        after = self.at_last(path)
        marks = [_mark(value) for value in after] if type(after) is list else []
        if mark not in marks:
            return low
        here = [_mark(plain(node)) for node in there]
        ends = [0, *(here.index(before) + 1 for before in marks[: marks.index(mark)] if before in here)]
        return min(max(low, ends[-1]), high)

    def ensure(self, path: Path, empty: Any) -> None:
        """Make an empty container where the writer has nothing."""
        self._settle(path)
        node = boxed(empty)

        def made() -> None:
            there = self.found(path)
            if type(there) is type(node):
                node.id = there.id  # one container for all who made it
                return
            if there is not ABSENT and not self._meets(path, ABSENT, empty, relied=False, sets=False):
                return
            now, key = self.there(path)
            now[key] = clone(node)

        self._done(path, made)
        find(self.mine, path[:-1])[path[-1]] = node

    # what does not

    def put(self, path: Path, value: Any) -> None:
        """Set a value; nothing where the writer has it already."""
        before = self.value(path)
        if same(before, value):
            self.locate(path)  # it is to be that, and is already
        else:
            self._settle(path)
            self._replace(path, before, value)

    def drop(self, path: Path) -> None:
        """Remove the key of an object."""
        self._settle(path)
        self._replace(path, self.value(path), ABSENT)

    def _replace(self, path: Path, before: Any, value: Any) -> None:
        node = ABSENT if value is ABSENT else boxed(value)

        def made() -> None:
            relied = self.reads.cover(place_of(self.mine, path))
            now, key = self.there(path)
            if key is None:
                raise Refused("gone", path)
            if self._is_undone(path):
                self._undone.append(path)
                _lay(now, key, node)
            elif self._meets(path, before, value, relied=relied):
                _lay(now, key, node)

        self._done(path, made)
        if value is not ABSENT:  # in the end there is something of ours, which "both" keeps
            place = place_of(self.mine, path)
            self._decide = [replace(met, sets=met.sets or met.place == place) for met in self._decide]
        self._written.append(path)
        _lay(find(self.mine, path[:-1]), path[-1], node)

    def take(self, path: Path, index: int) -> None:
        """Remove an item of a list."""
        item = (*path, index)
        before = self.value(item)

        def made() -> None:
            relied = self.reads.cover(place_of(self.mine, item))
            now: Any = None
            key: int | None = None
            try:
                now, key = self.there(item)
            except Refused:  # by policies that let the later stand, what is gone is gone
                if self.terms.lenient or self.terms.policy in (None, "reject", *YIELDING):
                    raise
            if key is None:
                if self.terms.lenient and self.terms.policy == "reject":
                    raise Refused("met", item)
                if relied and self.terms.policy in (None, "reject"):
                    raise Refused("stale", item, f"was {before!r}, is gone")
                if relied:
                    self.met.append(Met(item, place_of(self.mine, item), before, ABSENT, stale=True))
            elif self._meets(item, before, ABSENT, relied=relied):
                del now[key]
                del now.ids[key]

        self._done(item, made)
        mine = find(self.mine, path)
        del mine[index]
        del mine.ids[index]

    def _meets(self, path: Path, before: Any, value: Any, *, relied: bool, sets: bool = True) -> bool:
        """Compare what the writer has at a path with what is there; return whether the write stands. Raises Refused."""
        place = place_of(self.mine, path)
        there = plain(self.found(path))
        differs = not same(before, there)
        if relied and not differs and (self.terms.lenient or self.terms.policy in DECIDING):
            # both may have come to the same value independently: whether that is a conflict is left open
            is_open = not self.terms.lenient and same(self.at_last(path), self._ending(path, value))
            differs = not is_open and not same(plain(at_place(self.base, place)), plain(at_place(self.head, place)))
        if not differs and self.was_touched(path) and (not relied or path in self._written):
            if self.terms.policy == "reject" and self.terms.lenient:
                raise Refused("met", path)
            # whether a blind write met others who put back what was there, or set the same, is left open
            differs = self.terms.policy in DECIDING and not same(self.at_last(path), self._ending(path, value))
        if not differs or (same(there, value) and not relied and value is not ABSENT):
            return True
        if relied and self.terms.policy in (None, "reject"):
            raise Refused("stale", path, f"was {before!r}, is {there!r}")
        if (
            not relied
            and there is ABSENT
            and value is ABSENT
            and not (self.terms.policy == "reject" and self.terms.lenient)
        ):
            return True
        if self.terms.policy == "reject":
            if self._rehearsal is not None and same(self._ending(path, value), plain(at_place(self.head, place))):
                return True
            raise Refused("met", path)
        met = Met(path, place, before, there, stale=relied, sets=sets and value is not ABSENT)
        self.met.append(met)
        if self.terms.policy not in DECIDING:
            return True
        self.closed.append(place)
        self._decide.append(met)
        now, key = self.there(path)
        _lay(now, key, at_place(self.head, place))  # what the write did there before was to be replaced
        return False

    def _ending(self, path: Path, otherwise: Any) -> Any:
        """Return what the write leaves at a path on its own base."""
        return otherwise if self._rehearsal is None else plain(find(self._rehearsal.mine, path))

    def _is_undone(self, path: Path) -> bool:
        """True if the write leaves at a path what it began with, and the log what was there: whether it wrote is left open."""
        if self._rehearsal is None or self.terms.policy == "merge" or any(isinstance(token, int) for token in path):
            return False
        ended, began = plain(find(self._rehearsal.mine, path)), plain(find(self.base, path))
        return same(ended, began) and same(self.at_last(path), plain(find(self.head, path)))

    # numbers put at 0

    def zero(self, path: Path) -> None:
        """Put a number at 0 where the writer has nothing: with sums only behind it, it is a sum."""
        self.locate(path)
        find(self.mine, path[:-1])[path[-1]] = 0
        self.zeros.append(path)

    def _settle(self, path: Path) -> None:
        for place in [p for p in self.zeros if p[: len(path)] == path or path[: len(p)] == p]:
            self.zeros.remove(place)
            del find(self.mine, place[:-1])[place[-1]]
            self.reads.note("value", place_of(self.mine, place))
            self._replace(place, ABSENT, 0)

    # the end

    def finish(self) -> None:
        """End the write: what was met is decided by what it left."""
        self._settle(())
        for path in self._undone:
            if isinstance(parent := find(self.now, path[:-1]), Obj):
                _lay(parent, path[-1], find(self.head, path))
        for met in self._decide:
            ours = plain(at_place(self.mine, met.place))
            now, key = at_place(self.now, met.place[:-1]), met.place[-1]
            if not isinstance(key, str) or (ours is ABSENT and met.theirs is ABSENT):
                continue
            if self.terms.policy == "smaller":
                theirs = plain(at_place(self.head, met.place))
                _lay(now, key, boxed(smaller(theirs, ours)))
            elif self.terms.policy == "both" and (met.sets or self.terms.differs) and ours is not ABSENT:
                if met.theirs is not ABSENT:
                    taken = {*now, *at_place(self.mine, met.place[:-1])}
                    key = next(f"{key}~{n}" for n in range(2, len(taken) + 3) if f"{key}~{n}" not in taken)
                _lay(now, key, boxed(ours))
        self.met = [m for m in self.met if m.stale or not self._agrees(m)]

    def _agrees(self, met: Met) -> bool:
        ours, others = plain(at_place(self.mine, met.place)), plain(at_place(self.head, met.place))
        return same(ours, met.theirs) or same(ours, others)


def smaller(theirs: Any, ours: Any) -> Any:
    """Return one of two values, none of which has to be there: the policy that campaigns have as a function."""
    there = [value for value in (theirs, ours) if value is not ABSENT and value is not msgspec.UNSET]
    return min(there, key=repr) if there else ABSENT


def _mark(item: Any) -> Any:
    """Return what tells an item from others, whatever is changed in it later."""
    return item.get("id") if isinstance(item, dict) else item


def _lay(container: Any, key: Any, node: Any) -> None:
    if node is ABSENT:
        container.pop(key, None)
    else:
        container[key] = clone(node)


def _check(found: int, path: Path, low: int | None, high: int | None) -> None:
    if (low is not None and found < low) or (high is not None and found > high):
        raise Refused("bounds", path, str(found))


def _within(part: str, whole: str) -> bool:
    """True if a text can be had from another by leaving out characters."""
    rest = iter(whole)
    return all(character in rest for character in part)
