"""The recording draft: looks like the state's dicts and lists, and writes down what is done to it.

`async with wf.edit() as state:` hands out one. Nothing needs to be compared afterwards, and the changes keep
their intent: an append stays an append when others append too.

1. Reading gives plain values, except that objects and lists inside come as drafts of their own.
2. A draft of an item stays with its item when the list around it shifts. Once its item is removed or
   replaced, using it raises ChangeError.
3. What is put in is copied, and what `pop`, `copy` and `to_plain` give is a copy: no aliases of stored state. It is copied
   first: a generator or a mapping may itself change the draft, so only then is the place looked up that it goes to.
4. A draft is not a dict: `json.dumps(draft.to_plain())`, not `json.dumps(draft)`.
5. What is read is marked, and what is then replaced or removed is guarded: see draft_node.py.
6. An empty object or list that is put where nothing is becomes an `Ensure`, which several writers share.
"""

from __future__ import annotations

import operator
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    ValuesView,
)
from typing import Any, SupportsIndex, cast, overload

import msgspec

from quire.api.draft_node import ABSENT, DRAFTS, OWN, PRESENCE, READ, Node
from quire.api.recorder import Recorder
from quire.api.writes import Bounds
from quire.core.diff import diff
from quire.core.values import copied, same
from quire.model import Append, Delete, Ensure, Insert, Path, Remove, Set

_MARKS_MAX = 1000
"""Marks that a list keeps for each item; with more it counts as read whole."""


class DictDraft(Node, MutableMapping[str, Any]):
    """An object of the state, as a dict that records."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        value = self._plain().get(key, ABSENT)
        if type(value) in DRAFTS:
            return self._child(_name(key), value)
        if value is ABSENT:
            if isinstance(key, str):
                self._read(_name(key))
            raise KeyError(key)
        return self._begun(_name(key), value)

    def __setitem__(self, key: str, value: Any) -> None:
        base = self._path()
        if self._kids and (value is self._kids.get(key, ABSENT) or self._added(key, value)):
            return  # `state["list"] += [..]` ends by assigning the list to itself
        if self._sites and self._ended((*base, key), key, value, self._plain().get(key, ABSENT)):
            return
        name, plain = self._cleaned(key, value)
        path = (*self._path(), name)
        if type(plain) in DRAFTS and not plain and name not in self._plain():
            self._recorder.record(Ensure(path, plain))
        else:
            self._put(path, plain)

    def __delitem__(self, key: str) -> None:
        path = self._path()
        if key not in self._plain():
            if isinstance(key, str):
                self._read(_name(key))
            raise KeyError(key)
        self._drop(path, _name(key))

    def __iter__(self) -> Iterator[str]:
        self._read_keys()
        return iter(list(self._plain()))

    def __len__(self) -> int:
        self._read_keys()
        return len(self._plain())

    def __contains__(self, key: object) -> bool:
        there = self._plain().get(key, ABSENT)
        if isinstance(key, str) and not (type(there) in DRAFTS and self._recorder.ensures((*self._path(), key))):
            self._read(_name(key), PRESENCE if type(there) in DRAFTS else READ)
        return there is not ABSENT

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> DictDraft:
        self.update(other)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value at a key, or `default`."""
        value = self._plain().get(key, ABSENT)
        if type(value) in DRAFTS:
            return self._child(_name(key), value)
        if isinstance(key, str):
            self._sites.pop(_name(key), None)
            self._read(_name(key))
        return default if value is ABSENT else value

    def items(self) -> ItemsView[str, Any]:
        """Return the keys with their values; going through them reads all of it."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """Return the values; going through them reads all of it."""
        return _Values(self)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value at a key, putting `default` there first if it is absent.

        Others may do so at the same time: an empty object or list is one for all, a number at 0 that is only added to
        counts what all add, and of anything else the first stays.
        """
        if self._plain().get(key, ABSENT) is not ABSENT:
            return self.get(key)
        name, plain = self._cleaned(key, default)
        if name in self._plain():  # the default put it there
            return self.get(name)
        path = (*self._path(), name)
        if type(plain) in DRAFTS and not plain:
            self._recorder.record(Ensure(path, plain))
        elif type(plain) in (int, float) and plain == 0:
            if self._recorder.strict:
                self._read(name)
            self._recorder.begin_number(path, plain)
        else:
            self._read(name)
            self._put(path, plain)
        return self._child(name, self._plain()[name])

    def pop(self, key: str, default: Any = ABSENT) -> Any:
        """Remove a key and return a plain copy of its value, or `default`. Raises KeyError without one."""
        path, value = self._path(), self._plain().get(key, ABSENT)
        if isinstance(key, str):
            self._read(_name(key))
        if value is ABSENT:
            if default is ABSENT:
                raise KeyError(key)
            return default
        value = copied(value)
        self._drop(path, _name(key))
        return value

    def popitem(self) -> tuple[str, Any]:
        """Remove the newest key; return it and a copy of its value. Raises KeyError if there is none."""
        self._read_keys()
        for key in reversed(self._plain()):
            return key, self.pop(key)
        raise KeyError("popitem from an empty object")

    def clear(self) -> None:
        """Remove every key."""
        if self._recorder.strict:
            self._read_keys()
        for key in list(self._plain()):
            self._drop(self._path(), key)

    def copy(self) -> dict[str, Any]:
        """Return a deep plain copy."""
        return cast("dict[str, Any]", self.to_plain())

    def increment(
        self,
        key: str,
        amount: int | float = 1,
        *,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
    ) -> None:
        """Add to a number; absent counts as 0. Concurrent increments all count.

        minimum, maximum: where the number has to stay, both included, on the state that the write meets when it is
        committed. Raises OutOfBounds, now or then, with nothing written.
        """
        name, _ = self._cleaned(key, None)
        self._add((*self._path(), name), amount, minimum, maximum)

    def splice(self, key: str, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points. Unlike assigning, it merges with others' edits."""
        self._edit_text((*self._path(), _name(key)), position, delete, insert)

    def replace(self, whole: Mapping[str, Any]) -> None:
        """Make this object what is given, recording only the difference; drafts inside it go stale."""
        whole = self._recorder.clean(whole, self._path())
        base = self._path()
        if self._recorder.strict:
            self._read_whole()
        for change in diff(self._plain(), whole):
            placed = msgspec.structs.replace(change, path=(*base, *change.path))
            self._recorder.record(placed, self._guarded_below(placed))
        self._forget_all()

    def _cleaned(self, key: str, value: Any) -> tuple[str, Any]:
        """Return a plain key and a private copy of what will be there."""
        ((name, plain),) = self._recorder.clean({key: value}, self._path()).items()
        return name, plain

    def _drop(self, path: Path, key: str) -> None:
        self._recorder.record(Delete((*path, key)), self._guarded(path, key))
        self._mark_own(key)
        self._sites.pop(key, None)
        self._forget(key)


class _Items(ItemsView[str, Any]):
    """The items of an object of the state."""

    _mapping: DictDraft

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._mapping._read_whole()  # pyright: ignore[reportPrivateUsage]
        return super().__iter__()


class _Values(ValuesView[Any]):
    """The values of an object of the state."""

    _mapping: DictDraft

    def __iter__(self) -> Iterator[Any]:
        self._mapping._read_whole()  # pyright: ignore[reportPrivateUsage]
        return super().__iter__()

    def __contains__(self, value: object) -> bool:
        self._mapping._read_whole()  # pyright: ignore[reportPrivateUsage]
        return super().__contains__(value)


class ListDraft(Node, MutableSequence[Any]):
    """A list of the state, as a list that records."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        items = self._plain()
        if isinstance(index, slice):
            self._locate()
            where = range(*index.indices(len(items)))
            for i in where:
                self._read(i)
            return [self._child(i, items[i]) for i in where]
        at = self._at(index)
        value = items[at]
        return self._child(at, value) if type(value) in DRAFTS else self._begun(at, value)

    @overload
    def __setitem__(self, index: SupportsIndex, value: Any) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Any]) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        if isinstance(index, slice):
            self._put_slice(index, value)
            return
        at = self._at(index)
        if value is self._kids.get(at, ABSENT) or self._added(at, value):
            return
        if not (self._sites and self._ended((*self._path(), at), at, value, self._plain()[at])):
            (plain,) = self._cleaned([value], at)
            self._put((*self._path(), self._at(index)), plain)

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        if not isinstance(index, slice):
            self._remove(self._at(index), 1)
            return
        self._locate()
        where = range(*index.indices(len(self._plain())))
        if not where:
            return
        if where.step in (1, -1):
            self._remove(min(where), len(where))
            return
        for at in sorted(where, reverse=True):
            self._remove(at, 1)

    def __len__(self) -> int:
        self._read_keys()
        return len(self._plain())

    def __iter__(self) -> Iterator[Any]:
        self._read_whole()
        at = 0
        while at < len(self._plain()):
            yield self._child(at, self._plain()[at])
            at += 1

    def __reversed__(self) -> Iterator[Any]:
        self._read_whole()
        for at in reversed(range(len(self._plain()))):
            yield self._child(at, self._plain()[at])

    def __contains__(self, value: object) -> bool:
        self._read_whole()
        return value in self._plain()

    def __add__(self, other: list[Any] | ListDraft) -> list[Any]:
        self._sum = self.copy() + (other.copy() if isinstance(other, ListDraft) else other)
        return self._sum

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + self.copy()

    def insert(self, index: SupportsIndex, value: Any) -> None:
        """Insert before `index`, which is cut to the list as list.insert does."""
        at = int(operator.index(index))
        new = self._cleaned([value], self._cut(at))
        self._locate()
        self._insert(self._cut(at), new)

    def append(self, value: Any) -> None:
        """Add at the end."""
        self.extend([value])

    def extend(self, values: Iterable[Any]) -> None:
        """Add several at the end."""
        given = list(values)
        new = self._cleaned(given, len(self._plain()))
        self._insert(len(self._plain()), new)

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the first index of a value. Raises ValueError if it is not there."""
        self._read_whole()
        items = self._plain()
        return cast("int", items.index(value, start, len(items) if stop is None else stop))

    def count(self, value: Any) -> int:
        """Return how often a value occurs."""
        self._read_whole()
        return cast("int", self._plain().count(value))

    def remove(self, value: Any) -> None:
        """Remove the first item of a value. Raises ValueError if it is not there."""
        self._locate()
        items = self._plain()
        try:
            at = items.index(value)
        except ValueError:
            self._read_whole()
            raise
        self._read(at)
        self._remove(at, 1)

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove an item and return a plain copy of it."""
        items = self._plain()
        if not items:
            self._read_keys()
            raise IndexError("pop from empty list")
        at = self._at(index)
        self._read(at)
        value = copied(items[at])
        self._remove(at, 1)
        return value

    def clear(self) -> None:
        """Remove every item."""
        self._locate()
        if length := len(self._plain()):
            self._remove(0, length)

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place; `key` is given items as they are read from the draft."""
        self._read_whole()
        keys = self._plain() if key is None else [key(item) for item in self]
        items = self._plain()
        if len(items) != len(keys):
            raise ValueError("list modified during sort")
        order = sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)
        self._become([items[i] for i in order])

    def reverse(self) -> None:
        """Reverse in place."""
        self._read_whole()
        self._become(self._plain()[::-1])

    def copy(self) -> list[Any]:
        """Return a deep plain copy."""
        return cast("list[Any]", self.to_plain())

    def increment(
        self,
        index: SupportsIndex,
        amount: int | float = 1,
        *,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
    ) -> None:
        """Add to a number; concurrent increments all count. minimum, maximum: as for those of an object."""
        self._add((*self._path(), self._at(index)), amount, minimum, maximum)

    def splice(self, index: SupportsIndex, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points. Unlike assigning, it merges with others' edits."""
        self._edit_text((*self._path(), self._at(index)), position, delete, insert)

    def _cleaned(self, values: list[Any], start: int, step: int = 1) -> list[Any]:
        """Return private copies of items that will lie at `start` and behind; all, before any is recorded."""
        path = self._path()
        return [self._recorder.clean(v, (*path, start + i * step)) for i, v in enumerate(values)]

    def _cut(self, index: int) -> int:
        """Return a place to insert at, for an index that may count from the end, or lie beyond."""
        length = len(self._plain())
        return max(0, index + length) if index < 0 else min(index, length)

    def _put_slice(self, index: slice, values: Iterable[Any]) -> None:
        given = list(values)
        start, _, step = index.indices(len(self._plain()))
        new = self._cleaned(given, start, step)
        self._locate()
        where = range(*index.indices(len(self._plain())))
        if where.step == 1:
            if not same(self._plain()[where.start : where.start + len(where)], new):
                if where:
                    self._remove(where.start, len(where))
                self._insert(where.start, new)
            return
        if len(new) != len(where):
            raise ValueError(f"attempt to assign sequence of size {len(new)} to extended slice of size {len(where)}")
        path = self._path()
        for at, value in zip(where, new, strict=True):
            self._put((*path, at), value)

    def _locate(self) -> None:
        """Have a serializable write rely on where items are: merging follows them wherever others move them."""
        if self._recorder.strict:
            self._read_whole()

    def _at(self, index: SupportsIndex) -> int:
        """Return the place of an index, which may count from the end. Raises IndexError."""
        self._locate()
        at, length = int(operator.index(index)), len(self._plain())
        place = at + length if at < 0 else at
        if not 0 <= place < length:
            self._read_keys()
            raise IndexError(f"index {at} of a list with {length} items")
        return place

    def _insert(self, at: int, new: list[Any]) -> None:
        path, length = self._path(), len(self._plain())
        if self._recorder.record(Append(path, new) if at == length else Insert(path, at, new)) and at < length:
            self._shift(at, len(new))

    def _remove(self, at: int, count: int) -> None:
        path = self._path()
        self._recorder.record(Remove(path, at, count), [p for i in range(count) for p in self._guarded(path, at + i)])
        taken = range(at, at + count)
        self._taken = self._taken or any(mark != OWN for key, mark in self._marks.items() if key in taken)
        for key in [k for k in self._kids if k in taken]:
            self._taken = self._taken or self._kids[key]._was_read()
            self._forget(key)
        for known in (self._marks, self._sites):
            for key in [k for k in known if k in taken]:
                del known[key]
        self._shift(at + count, -count)

    def _shift(self, start: int, by: int) -> None:
        """Let the drafts and marks of items from `start` on follow their items."""
        moved: dict[str | int, Node] = {}
        for key, kid in self._kids.items():
            place = cast("int", key)
            kid._key = place + by if place >= start else place
            moved[kid._key] = kid
        self._kids = moved
        if len(self._marks) > _MARKS_MAX:
            self._read_whole()
            self._marks = {}
        for key in self._sites:
            self._read(key)  # what its `+=` comes to is not an increment of what is there now
        self._sites = {}
        if self._marks:
            self._marks = {k + by if cast("int", k) >= start else k: m for k, m in self._marks.items()}  # type: ignore[operator]

    def _become(self, items: list[Any]) -> None:
        """Take on the same items in another order."""
        if not same(self._plain(), items):
            path, parent = self._path(), self._parent
            assert parent is not None
            change = Set(path, copied(items))  # the items themselves go on being changed
            self._recorder.record(change, parent._guarded(path[:-1], self._key))
            self._forget_all()


def recording(
    state: dict[str, Any],
    *,
    depth_max: int = 64,
    key_bytes_max: int = 512,
    bytes_max: int | None = None,
    strict: bool = False,
) -> DictDraft:
    """Return a draft over a published state, which is never altered.

    depth_max, key_bytes_max: what values put in are held to.  bytes_max: of all changes together.  strict: every read is guarded, see `Recorder`.

    >>> draft = recording({"notes": []})
    >>> draft["notes"].append("spring tide")
    >>> draft.changes
    [Append(path=('notes',), values=['spring tide'])]
    """
    bounds: Bounds = {"depth_max": depth_max, "key_bytes_max": key_bytes_max, "bytes_max": bytes_max}
    return DictDraft(Recorder(state, **bounds, strict=strict), None, "")


DRAFTS.update({dict: DictDraft, list: ListDraft})


def _name(key: str) -> str:
    """Return the plain key behind a subclass of str, an enum's member for one."""
    return key if type(key) is str else str.__str__(key)
