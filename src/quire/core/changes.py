"""The eight changes applied, inverted, and made fewer.

`Working` is the one place where a change meets a state; `apply` and the engine's live states are built on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from quire.core.guards import Guard, Read, Step, Within, places
from quire.core.meter import CHARACTERS_PER_STEP, ITEMS_PER_STEP, Meter
from quire.core.path import describe, get
from quire.core.path import format as pointer
from quire.core.values import copied, is_large, same
from quire.errors import ChangeError
from quire.model import Append, Change, Delete, Ensure, Fork, Increment, Insert, Path, Remove, Set, Splice

_MISSING: Any = object()
_CONTAINERS = (dict, list)
_QUICK_STEPS = 500


def are_large(steps: Sequence[Step | Fork]) -> bool:
    """Tell whether it takes more than a few milliseconds to apply and write down some steps. Cost: as `is_large`."""
    if len(steps) > _QUICK_STEPS:
        return True
    values: list[Any] = []
    removed = 0
    for step in steps:
        if isinstance(step, Set):
            values.append(step.value)
        elif isinstance(step, Append | Insert):
            values.append(step.values)
        elif isinstance(step, Splice):
            values.append(step.insert)
        elif isinstance(step, Remove):
            removed += step.count
    return removed > _QUICK_STEPS or is_large(values)


class Gone(Delete, frozen=True, gc=False, array_like=True, tag="del"):
    """A deletion of what others deleted already: it alters nothing, unless something is there again by then."""


class Working:
    """A state being changed. Containers of the state it began with are copied before their first change, once each.

    Values that come in with a change are never altered either: they belong to whoever made the change. One that was
    taken from this very state, and copied here, is copied again: no container is ever in two places and ours.
    `Working.owning(state)` copies nothing: for folding into a state, with changes that were effective and that nobody
    else holds. One change is all or nothing.
    meter: charged with what each change does, where it is set.
    """

    __slots__ = ("_fresh", "meter", "state")

    def __init__(self, state: dict[str, Any], meter: Meter | None = None) -> None:
        self.state = state
        self.meter = meter
        # containers made here, by id; the references keep the ids from being used again
        self._fresh: dict[int, Any] | None = {}

    @classmethod
    def owning(cls, state: dict[str, Any]) -> Working:
        """Return one that may alter everything it is given."""
        working = cls(state)
        working._fresh = None
        return working

    def apply(self, change: Step) -> bool:
        """Apply one change; tell whether it altered anything. Raises ChangeError, with nothing altered.

        A guard alters nothing; bounds are checked and raise OutOfBounds. Whoever owns the state replays a log, which holds no idle changes: there a Set is not compared.
        Raises LimitExceeded where the meter says that it is too much. Cost: O(depth + width of what is copied).
        """
        if self.meter is not None:
            self.meter.add_steps()
        if self._fresh:
            change = self.private(change)
        return _APPLY[type(change)](self, change)

    def private(self, change: Step) -> Step:
        """Return the change with values that nothing done here alters later: for whoever keeps it, or writes it down.

        It is the same change, unless a value in it holds a container of this state that was copied here.
        Cost: while nothing was copied here, nothing; else a look at each container in its values.
        """
        if self._fresh:
            if isinstance(change, Set):
                if type(change.value) in _CONTAINERS and self._holds_ours(change.value):
                    return Set(change.path, self._copied(change.value))
            elif isinstance(change, Append):
                if self._holds_ours(change.values):
                    return Append(change.path, self._copied(change.values))
            elif isinstance(change, Insert) and self._holds_ours(change.values):
                return Insert(change.path, change.index, self._copied(change.values))
        return change

    def _copied(self, value: Any) -> Any:
        return copied(value) if self.meter is None else self.meter.copied(value)

    def _holds_ours(self, value: Any) -> bool:
        """Tell whether a container in a value is one that may be altered here."""
        fresh = self._fresh or {}
        todo: list[Any] = [value]
        for node in todo:
            if id(node) in fresh:
                return True
            inside: Any = cast("dict[str, Any]", node).values() if type(node) is dict else node
            todo += [child for child in inside if type(child) in _CONTAINERS]
        return False

    def _set(self, change: Set) -> bool:
        path, value = change.path, change.value
        if not path:
            if type(value) is not dict:
                raise ChangeError(f"the state must be an object, not {describe(value)}")
            if self._fresh is not None and same(self.state, value):
                return False
            self.state = cast("dict[str, Any]", value)
            return True
        node, key = self._reach(path[:-1], path), path[-1]
        if type(node) is dict:
            if type(key) is not str:
                raise _not_a_key(key, path)
            before = node.get(key, _MISSING)
        else:
            before = node[_position(key, len(node) - 1, path, len(node))]
        if self._fresh is not None and same(before, value):
            return False
        node[key] = value
        return True

    def _delete(self, change: Delete) -> bool:
        if not change.path:
            raise ChangeError("the whole state cannot be deleted; set it to an empty object")
        node, key = self._reach(change.path[:-1], change.path), change.path[-1]
        if type(node) is not dict:
            raise _misfit(change.path, "items of a list are taken out with remove")
        if type(key) is not str:
            raise _not_a_key(key, change.path)
        if key not in node:
            raise _misfit(change.path, "there is nothing to delete")
        del node[key]
        return True

    def _gone(self, change: Gone) -> bool:
        parent = get(self.state, change.path[:-1])
        return type(parent) is dict and change.path[-1] in parent and self._delete(change)

    def _ensure(self, change: Ensure) -> bool:
        path, value = change.path, change.value
        if not path or type(path[-1]) is not str or type(value) not in (dict, list) or value:
            raise _misfit(path, "ensure makes an empty object or list at a key of an object")
        node = self._reach(path[:-1], path)
        if type(node) is not dict:
            raise _misfit(path, "ensure makes a container at a key, and there is a list")
        before = node.get(path[-1], _MISSING)
        if before is _MISSING:
            node[path[-1]] = type(value)()
        elif type(before) is not type(value):
            raise _misfit(path, f"{describe(value)} is needed, found {describe(before)}")
        return before is _MISSING

    def _append(self, change: Append) -> bool:
        self._list(change.path).extend(change.values)
        return bool(change.values)

    def _insert(self, change: Insert) -> bool:
        items = self._list(change.path)
        at = _position(change.index, len(items), change.path, len(items))
        self._moves(len(items) - at)
        items[at:at] = change.values
        return bool(change.values)

    def _remove(self, change: Remove) -> bool:
        items = self._list(change.path)
        if type(change.index) is not int or type(change.count) is not int:
            raise _misfit(
                change.path, f"cannot remove {change.count!r} items from {change.index!r} on: these are not integers"
            )
        if change.count < 0 or change.index < 0 or change.index + change.count > len(items):
            raise _misfit(
                change.path,
                f"cannot remove {change.count} items from {change.index} on, the list has {len(items)}",
            )
        self._moves(len(items) - change.index)
        del items[change.index : change.index + change.count]
        return change.count != 0

    def _splice(self, change: Splice) -> bool:
        path = change.path
        if not path:
            raise ChangeError("the whole state is not a string")
        text = get(self.state, path, _MISSING)
        if type(text) is not str:
            raise _misfit(path, f"splice needs a string, found {'nothing' if text is _MISSING else describe(text)}")
        at, gone = change.position, change.delete
        if type(at) is not int or type(gone) is not int or type(change.insert) is not str:
            raise _misfit(
                path, f"cannot splice {gone!r} characters at {at!r}: these are integers, what is put in is a string"
            )
        if at < 0 or gone < 0 or at + gone > len(text):
            raise _misfit(path, f"cannot splice {gone} of {len(text)} characters at {at}; positions count code points")
        if text[at : at + gone] == change.insert:
            return False
        if self.meter is not None:
            self.meter.add_steps(len(text) // CHARACTERS_PER_STEP)
        self._put(path, text[:at] + change.insert + text[at + gone :])
        return True

    def _increment(self, change: Increment) -> bool:
        path, amount = change.path, change.amount
        if not path:
            raise ChangeError("the whole state is not a number")
        before = get(self.state, path, _MISSING)
        if before is _MISSING and type(get(self.state, path[:-1], _MISSING)) is not dict:
            raise _misfit(path, "there is no number, and no object to put one in")
        if before is not _MISSING and type(before) not in (int, float):
            raise _misfit(path, f"inc needs a number, found {describe(before)}")
        if type(amount) not in (int, float):
            raise _misfit(path, f"inc by {describe(amount)}, a number is needed")
        try:
            after = amount if before is _MISSING else before + amount
        except OverflowError:
            after = math.inf
        if type(after) is float and not math.isfinite(after):
            raise _misfit(path, f"{before} + {amount} is not a finite number")
        if amount == 0 and before is not _MISSING and same(before, after):
            return False
        self._put(path, after)
        return True

    def _put(self, path: Path, value: Any) -> None:
        self._reach(path[:-1], path)[path[-1]] = value

    def _moves(self, items: int) -> None:
        if self.meter is not None:
            self.meter.add_steps(items // ITEMS_PER_STEP)

    def _list(self, path: Path) -> list[Any]:
        node = self._reach(path, path)
        if type(node) is not list:
            raise _misfit(path, f"a list is needed, found {describe(node)}")
        return cast("list[Any]", node)

    def _reach(self, path: Path, whole: Path) -> Any:
        """Return the container at `path`, ours to alter. Raises ChangeError if there is none."""
        fresh = self._fresh
        node: Any = self.state
        if fresh is not None and id(node) not in fresh:
            self._moves(len(node))
            self.state = node = dict(node)
            fresh[id(node)] = node
        for depth, token in enumerate(path):
            if type(node) is dict:
                child = node.get(token, _MISSING)
            elif type(node) is list and type(token) is int and 0 <= token < len(node):
                child = node[token]
            else:
                child = _MISSING
            kind = type(child)
            if kind is not dict and kind is not list:
                place = pointer(path[: depth + 1])
                found = "nothing" if child is _MISSING else describe(child)
                raise _misfit(whole, f"{place} holds {found}")
            if fresh is not None and id(child) not in fresh:
                self._moves(len(child))
                child = child.copy()
                fresh[id(child)] = child
                cast("Any", node)[token] = child
            node = child
        return node


def _unaltered(working: Working, guard: Read) -> bool:  # noqa: ARG001 - the shape of all in the table
    return False


def _within(working: Working, guard: Within) -> bool:
    guard.check(working.state)
    return False


_APPLY: dict[type[Any], Callable[[Working, Any], bool]] = {
    Gone: Working._gone,  # pyright: ignore[reportPrivateUsage]
    Read: _unaltered,
    Within: _within,
    Ensure: Working._ensure,  # pyright: ignore[reportPrivateUsage]
    Set: Working._set,  # pyright: ignore[reportPrivateUsage]
    Delete: Working._delete,  # pyright: ignore[reportPrivateUsage]
    Append: Working._append,  # pyright: ignore[reportPrivateUsage]
    Insert: Working._insert,  # pyright: ignore[reportPrivateUsage]
    Remove: Working._remove,  # pyright: ignore[reportPrivateUsage]
    Splice: Working._splice,  # pyright: ignore[reportPrivateUsage]
    Increment: Working._increment,  # pyright: ignore[reportPrivateUsage]
}


def apply(state: dict[str, Any], changes: Sequence[Step]) -> dict[str, Any]:
    """Apply changes to a state.

    state: not modified.  changes: in order.
    Returns a new object that shares every untouched branch with `state`.
    Raises ChangeError at the first change that does not fit. Cost: O(len(changes) x depth + what is copied).

    >>> apply({"n": 1}, [Set(("n",), 2)])
    {'n': 2}
    """
    working = Working(state)
    for change in changes:
        working.apply(change)
    return working.state


def invert(state: dict[str, Any], changes: Sequence[Change]) -> list[Change]:
    """Return changes that undo `changes`, which were made on `state`. Raises ChangeError like `apply`."""
    working = Working(state)
    undo: list[Change] = []
    for change in changes:
        back = _undo(working.state, change)
        if working.apply(change):  # an idle one has nothing to undo, and its `back` would still be part of the state
            undo.append(back)
    undo.reverse()
    return undo


def _undo(state: dict[str, Any], change: Change) -> Change:
    path = change.path
    before = get(state, path, _MISSING)
    match change:
        case Append():
            return Remove(path, len(before) if type(before) is list else 0, len(change.values))
        case Insert():
            return Remove(path, change.index, len(change.values))
        case Remove():
            return Insert(path, change.index, before[change.index : change.index + change.count] if before else [])
        case Splice():
            gone = before[change.position : change.position + change.delete] if type(before) is str else ""
            return Splice(path, change.position, len(change.insert), gone)
        case Increment() if type(before) is int and type(change.amount) is int:
            return Increment(path, -change.amount)
        case _:
            return Delete(path) if before is _MISSING else Set(path, before)


def effective(base: dict[str, Any], steps: Sequence[Step]) -> list[Step]:
    """Return the steps without changes that alter nothing on their own base, nor the guards of those.

    Cost: that of applying them.
    """
    working = Working(base)
    kept: list[Step] = []
    waiting: list[Step] = []
    for step in steps:
        if isinstance(step, Read) and not step.strict:
            waiting.append(step)
        elif isinstance(step, Guard):
            kept.append(step)
        else:
            if working.apply(step):
                kept += [*waiting, step]
            waiting = []
    return kept


def taken(steps: Sequence[Step], state: dict[str, Any]) -> list[Any]:
    """Return the values that were read and that changes remove, in order. state: what the steps were made on."""
    working, found = Working(state), list[Any]()
    read: set[Path] = set()
    for step in steps:
        if isinstance(step, Read):
            read.add(step.path)
        elif not isinstance(step, Guard):
            if isinstance(step, Remove | Delete):
                found += [get(working.state, place) for place in places(step) if place in read]
            working.apply(step)
            read = set()
    return found


def coalesce(changes: Sequence[Step]) -> list[Step]:
    """Return fewer changes with the same effect: neighbours on the same path become one where that is exact."""
    kept: list[Step] = []
    for change in changes:
        joined = _join(kept[-1], change) if kept and kept[-1].path == change.path else None
        if joined is None:
            kept.append(change)
        else:
            kept[-1] = joined
    return kept


def _join(a: Step, b: Step) -> Step | None:
    match a, b:
        case Append(), Append():
            return Append(a.path, [*a.values, *b.values])
        case Set(), Set():
            return b
        case Increment(), Increment() if type(a.amount) is int and type(b.amount) is int:
            return Increment(a.path, a.amount + b.amount)
        case Splice(), Splice() if b.position == a.position + len(a.insert) and a.delete == 0:
            return Splice(a.path, a.position, b.delete, a.insert + b.insert)
        case _:
            return None


def _not_a_key(key: str | int, path: Path) -> ChangeError:
    return _misfit(path, f"{key!r} is an index, but there is an object")


def _position(key: str | int, last: int, path: Path, length: int) -> int:
    if type(key) is not int or not 0 <= key <= last:
        raise _misfit(path, f"{key!r} is not a place in a list of {length} items")
    return key


def _misfit(path: Path, why: str) -> ChangeError:
    where = pointer(path)
    return ChangeError(f"{where}: {why}", path=where)
