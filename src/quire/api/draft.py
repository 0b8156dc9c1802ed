"""The recording draft: looks like the state's dicts and lists, and writes down what is done to it.

`async with wf.edit() as state:` hands out one. Nothing needs to be compared afterwards, and the changes keep
their intent: an append stays an append when others append too.

1. Reading gives plain values, except that objects and lists inside come as drafts of their own.
2. A draft of an item stays with its item when the list around it shifts. Once its item is removed or
   replaced, using it raises ChangeError.
3. What is put in is copied, and what `pop`, `copy` and `to_plain` give is a copy: no aliases of stored state.
4. A draft is not a dict: `json.dumps(draft.to_plain())`, not `json.dumps(draft)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, SupportsIndex, cast, overload

import msgspec

from quire.api.recorder import Recorder
from quire.core.diff import diff
from quire.core.fold import copied
from quire.core.path import describe, get
from quire.core.path import format as pointer
from quire.core.values import same
from quire.errors import ChangeError
from quire.model import Append, Change, Delete, Increment, Insert, Path, Remove, Set, Splice

_ABSENT: Any = object()


class _Node:
    """A place in the state: knows its parent and its key there."""

    __slots__ = ("_gone", "_key", "_kids", "_parent", "_recorder")

    def __init__(self, recorder: Recorder, parent: _Node | None, key: str | int) -> None:
        self._recorder = recorder
        self._parent = parent
        self._key = key
        self._kids: dict[str | int, _Node] = {}
        self._gone = False

    def __repr__(self) -> str:
        try:
            return f"<draft {self._plain()!r}>"
        except Exception as error:  # noqa: BLE001 - a repr is read while looking for an error; it must not add one
            return f"<draft: {error}>"

    def __eq__(self, other: object) -> bool:
        return bool(self._plain() == (other._plain() if isinstance(other, _Node) else other))

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Any:
        return self.to_plain()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.to_plain()

    @property
    def changes(self) -> list[Change]:
        """What was done to the whole draft so far, in few changes: copies, the caller's to keep."""
        return self._recorder.changes()

    def close(self) -> None:
        """End the whole draft: using any part of it from now on raises Closed; `changes` stays readable."""
        self._recorder.closed = True

    def to_plain(self) -> Any:
        """Return a deep plain copy, for `json.dumps` or to keep."""
        return copied(self._plain())

    def _path(self) -> Path:
        self._recorder.check_open()
        path: list[str | int] = []
        node = self
        while node._parent is not None:
            if node._gone:
                raise ChangeError("this part of the draft was removed or replaced; read it from the draft")
            path.append(node._key)
            node = node._parent
        return tuple(reversed(path))

    def _plain(self) -> Any:
        return get(self._recorder.state, self._path())

    def _child(self, key: str | int, value: Any) -> Any:
        draft = _DRAFTS.get(cast("type[Any]", type(value)))
        if draft is None:
            return value
        kid = self._kids.get(key)
        if kid is None:
            kid = self._kids[key] = draft(self._recorder, self, key)
        return kid

    def _forget(self, key: str | int) -> None:
        kid = self._kids.pop(key, None)
        if kid is not None:
            kid._gone = True

    def _forget_all(self) -> None:
        for key in list(self._kids):
            self._forget(key)

    def _put(self, path: Path, value: Any) -> None:
        """Set a cleaned value at a path just below this node."""
        self._recorder.record(Set(path, value))
        self._forget(path[-1])

    def _add(self, path: Path, amount: int | float) -> None:
        self._recorder.record(Increment(path, self._recorder.clean(amount, path)))

    def _edit_text(self, path: Path, position: int, delete: int, insert: str) -> None:
        text = self._recorder.clean(insert, path)
        if type(text) is not str:
            where = pointer(path)
            raise ChangeError(f"{where}: splice inserts text, not {describe(text)}", path=where)
        self._recorder.record(Splice(path, position, delete, text))


class DictDraft(_Node, MutableMapping[str, Any]):
    """An object of the state, as a dict that records."""

    __slots__ = ()

    def __getitem__(self, key: str) -> Any:
        value = self._plain()[key]
        return self._child(_name(key), value)

    def __setitem__(self, key: str, value: Any) -> None:
        base = self._path()
        if value is self._kids.get(key, _ABSENT):
            return  # `state["list"] += [..]` ends by assigning the list to itself
        ((name, plain),) = self._recorder.clean({key: value}, base).items()
        self._put((*base, name), plain)

    def __delitem__(self, key: str) -> None:
        if key not in self._plain():
            raise KeyError(key)
        self._recorder.record(Delete((*self._path(), _name(key))))
        self._forget(key)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._plain()))

    def __len__(self) -> int:
        return len(self._plain())

    def __contains__(self, key: object) -> bool:
        return key in self._plain()

    def __ior__(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> DictDraft:
        self.update(other)
        return self

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value at a key, putting `default` there first if it is absent."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: str, default: Any = _ABSENT) -> Any:
        """Remove a key and return a plain copy of its value, or `default`. Raises KeyError without one."""
        value = self._plain().get(key, _ABSENT)
        if value is _ABSENT:
            if default is _ABSENT:
                raise KeyError(key)
            return default
        value = copied(value)
        del self[key]
        return value

    def popitem(self) -> tuple[str, Any]:
        """Remove the newest key; return it and a copy of its value. Raises KeyError if there is none."""
        for key in reversed(self._plain()):
            return key, self.pop(key)
        raise KeyError("popitem from an empty object")

    def clear(self) -> None:
        """Remove every key."""
        for key in self:
            del self[key]

    def copy(self) -> dict[str, Any]:
        """Return a deep plain copy."""
        return cast("dict[str, Any]", self.to_plain())

    def increment(self, key: str, amount: int | float = 1) -> None:
        """Add to a number; absent counts as 0. Unlike `+=`, concurrent increments all count."""
        base = self._path()
        ((name, _),) = self._recorder.clean({key: None}, base).items()
        self._add((*base, name), amount)

    def splice(self, key: str, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points. Unlike assigning, it merges with others' edits."""
        self._edit_text((*self._path(), _name(key)), position, delete, insert)

    def replace(self, whole: Mapping[str, Any]) -> None:
        """Make this object what is given, recording only the difference; drafts inside it go stale."""
        base = self._path()
        whole = self._recorder.clean(whole, base)
        for change in diff(self._plain(), whole):
            self._recorder.record(msgspec.structs.replace(change, path=(*base, *change.path)))
        self._forget_all()


class ListDraft(_Node, MutableSequence[Any]):
    """A list of the state, as a list that records."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        items = self._plain()
        if isinstance(index, slice):
            return [self._child(i, items[i]) for i in range(*index.indices(len(items)))]
        at = _at(index, len(items))
        return self._child(at, items[at])

    @overload
    def __setitem__(self, index: SupportsIndex, value: Any) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Any]) -> None: ...
    def __setitem__(self, index: SupportsIndex | slice, value: Any) -> None:
        if isinstance(index, slice):
            self._put_slice(range(*index.indices(len(self))), value)
            return
        at = _at(index, len(self))
        if value is not self._kids.get(at, _ABSENT):
            path = (*self._path(), at)
            self._put(path, self._recorder.clean(value, path))

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        if not isinstance(index, slice):
            self._remove(_at(index, len(self)), 1)
            return
        where = range(*index.indices(len(self)))
        if not where:
            return
        if where.step in (1, -1):
            self._remove(min(where), len(where))
            return
        for at in sorted(where, reverse=True):
            self._remove(at, 1)

    def __len__(self) -> int:
        return len(self._plain())

    def __contains__(self, value: object) -> bool:
        return value in self._plain()

    def __add__(self, other: list[Any] | ListDraft) -> list[Any]:
        return self.copy() + (other.copy() if isinstance(other, ListDraft) else other)

    def __radd__(self, other: list[Any]) -> list[Any]:
        return other + self.copy()

    def insert(self, index: SupportsIndex, value: Any) -> None:
        """Insert before `index`, which is cut to the list as list.insert does."""
        length, at = len(self), int(operator.index(index))
        at = max(0, at + length) if at < 0 else min(at, length)
        self._insert(at, self._cleaned([value], at))

    def append(self, value: Any) -> None:
        """Add at the end."""
        self.extend([value])

    def extend(self, values: Iterable[Any]) -> None:
        """Add several at the end."""
        length = len(self)
        self._insert(length, self._cleaned(values, length))

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the first index of a value. Raises ValueError if it is not there."""
        return cast("int", self._plain().index(value, start, len(self) if stop is None else stop))

    def count(self, value: Any) -> int:
        """Return how often a value occurs."""
        return cast("int", self._plain().count(value))

    def pop(self, index: SupportsIndex = -1) -> Any:
        """Remove an item and return a plain copy of it."""
        items = self._plain()
        if not items:
            raise IndexError("pop from empty list")
        at = _at(index, len(items))
        value = copied(items[at])
        self._remove(at, 1)
        return value

    def clear(self) -> None:
        """Remove every item."""
        if len(self):
            self._remove(0, len(self))

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place; `key` is given items as they are read from the draft."""
        items = self._plain()
        keys = items if key is None else [key(item) for item in self]
        order = sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)
        self._become([items[i] for i in order])

    def reverse(self) -> None:
        """Reverse in place."""
        self._become(self._plain()[::-1])

    def copy(self) -> list[Any]:
        """Return a deep plain copy."""
        return cast("list[Any]", self.to_plain())

    def increment(self, index: SupportsIndex, amount: int | float = 1) -> None:
        """Add to a number; concurrent increments all count."""
        self._add((*self._path(), _at(index, len(self))), amount)

    def splice(self, index: SupportsIndex, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points. Unlike assigning, it merges with others' edits."""
        self._edit_text((*self._path(), _at(index, len(self))), position, delete, insert)

    def _cleaned(self, values: Iterable[Any], start: int) -> list[Any]:
        """Return private copies of items that will lie at `start` and behind; all, before any is recorded."""
        path = self._path()
        return [self._recorder.clean(v, (*path, start + i)) for i, v in enumerate(list(values))]

    def _put_slice(self, where: range, values: Iterable[Any]) -> None:
        if where.step == 1:
            new = self._cleaned(values, where.start)
            if not same(self._plain()[where.start : where.start + len(where)], new):
                if where:
                    self._remove(where.start, len(where))
                self._insert(where.start, new)
            return
        given = list(values)
        if len(given) != len(where):
            raise ValueError(f"attempt to assign sequence of size {len(given)} to extended slice of size {len(where)}")
        path = self._path()
        new = [self._recorder.clean(v, (*path, at)) for at, v in zip(where, given, strict=True)]
        for at, value in zip(where, new, strict=True):
            self._put((*path, at), value)

    def _insert(self, at: int, new: list[Any]) -> None:
        path, length = self._path(), len(self)
        self._recorder.record(Append(path, new) if at == length else Insert(path, at, new))
        self._shift(at, len(new))

    def _remove(self, at: int, count: int) -> None:
        self._recorder.record(Remove(self._path(), at, count))
        for key in [k for k in self._kids if at <= cast("int", k) < at + count]:
            self._forget(key)
        self._shift(at + count, -count)

    def _shift(self, start: int, by: int) -> None:
        """Let the drafts of items from `start` on follow their items."""
        moved: dict[str | int, _Node] = {}
        for key, kid in self._kids.items():
            place = cast("int", key)
            kid._key = place + by if place >= start else place
            moved[kid._key] = kid
        self._kids = moved

    def _become(self, items: list[Any]) -> None:
        """Take on the same items in another order."""
        if not same(self._plain(), items):
            self._recorder.record(Set(self._path(), copied(items)))  # the items themselves go on being changed
            self._forget_all()


def recording(state: dict[str, Any], *, depth_max: int = 64, key_bytes_max: int = 512) -> DictDraft:
    """Return a draft over a published state, which is never altered.

    depth_max, key_bytes_max: what values put in are held to.

    >>> draft = recording({"notes": []})
    >>> draft["notes"].append("spring tide")
    >>> draft.changes
    [Append(path=('notes',), values=['spring tide'])]
    """
    return DictDraft(Recorder(state, depth_max=depth_max, key_bytes_max=key_bytes_max), None, "")


_DRAFTS: dict[type[Any], type[DictDraft] | type[ListDraft]] = {dict: DictDraft, list: ListDraft}


def _name(key: str) -> str:
    """Return the plain key behind a subclass of str, an enum's member for one."""
    return key if type(key) is str else str.__str__(key)


def _at(index: SupportsIndex, length: int) -> int:
    at = int(operator.index(index))
    place = at + length if at < 0 else at
    if not 0 <= place < length:
        raise IndexError(f"index {at} of a list with {length} items")
    return place
