"""The recording draft: looks like the state's dicts and lists, and writes down what is done to it.

`async with wf.edit() as state:` hands out one. Nothing needs to be compared afterwards, and the changes keep their
intent: an append stays an append when others append too.

1. Reading gives plain values, except that objects and lists inside come as drafts of their own.
2. A draft of an item stays with its item when the list around it shifts; once its item is gone, using it raises.
3. What is put in is copied, what is taken out by `to_plain()` is a copy: nothing aliases the stored state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, cast, overload

import msgspec

from quire.core.changes import Working, coalesce, effective
from quire.core.diff import diff
from quire.core.fold import copied
from quire.core.path import format as pointer
from quire.core.path import get
from quire.core.values import clean, same
from quire.errors import ChangeError, Closed
from quire.model import Append, Change, Delete, Increment, Insert, Path, Remove, Set, Splice


class _Recorder:
    """The state under the drafts, and the changes so far."""

    __slots__ = ("changes", "closed", "working")

    def __init__(self, state: dict[str, Any]) -> None:
        self.working = Working(state)
        self.changes: list[Change] = []
        self.closed = False

    def record(self, change: Change) -> None:
        if self.closed:
            raise Closed("this draft was committed; open a new `edit()` to change more")
        if effective(self.working.state, change):
            self.working.apply(change)
            self.changes.append(change)


class _Node:
    """A place in the state: knows its parent and its key there."""

    __slots__ = ("_gone", "_key", "_kids", "_parent", "_recorder")

    def __init__(self, recorder: _Recorder, parent: _Node | None, key: str | int | None) -> None:
        self._recorder = recorder
        self._parent = parent
        self._key = key
        self._kids: dict[str | int, _Node] = {}
        self._gone = False

    def __repr__(self) -> str:
        return f"<draft {self._plain()!r}>"

    def __eq__(self, other: object) -> bool:
        return bool(self._plain() == (other._plain() if isinstance(other, _Node) else other))

    __hash__ = None  # type: ignore[assignment]

    def to_plain(self) -> Any:
        """Return a deep plain copy, for `json.dumps` or to keep."""
        return copied(self._plain())

    def _path(self) -> Path:
        path: list[str | int] = []
        node: _Node | None = self
        while node is not None and node._parent is not None:
            if node._gone:
                raise ChangeError("this part of the draft was removed or replaced; read it again from the draft")
            path.append(cast("str | int", node._key))
            node = node._parent
        return tuple(reversed(path))

    def _plain(self) -> Any:
        return get(self._recorder.working.state, self._path())

    def _child(self, key: str | int, value: Any) -> Any:
        kind = type(value)
        if kind is not dict and kind is not list:
            return value
        kid = self._kids.get(key)
        if kid is None:
            kid = self._kids[key] = (DictDraft if kind is dict else ListDraft)(self._recorder, self, key)
        return kid

    def _forget(self, key: str | int) -> None:
        kid = self._kids.pop(key, None)
        if kid is not None:
            kid._gone = True

    def _put(self, key: str | int, value: Any) -> None:
        path = (*self._path(), key)
        value = clean(value, path=path)
        self._recorder.record(Set(path, value))
        self._forget(key)


class DictDraft(_Node, MutableMapping[str, Any]):
    """An object of the state, as a dict that records."""

    __slots__ = ()

    @property
    def changes(self) -> list[Change]:
        """What was done since the draft was opened, with neighbours joined."""
        return coalesce(self._recorder.changes)

    def close(self) -> None:
        """End the draft: changing it from now on raises Closed."""
        self._recorder.closed = True

    def __getitem__(self, key: str) -> Any:
        return self._child(key, self._plain()[key])

    def __setitem__(self, key: str, value: Any) -> None:
        if value is not self._kids.get(key, _Node):  # `state["list"] += [..]` ends by assigning the list to itself
            self._put(key, value)

    def __delitem__(self, key: str) -> None:
        if key not in self._plain():
            raise KeyError(key)
        self._recorder.record(Delete((*self._path(), key)))
        self._forget(key)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._plain()))

    def __len__(self) -> int:
        return len(self._plain())

    def __contains__(self, key: object) -> bool:
        return key in self._plain()

    def __ior__(self, other: Mapping[str, Any]) -> DictDraft:
        self.update(other)
        return self

    def clear(self) -> None:
        """Remove every key."""
        for key in self:
            del self[key]

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value at a key, putting `default` there first if it is absent; an object or list comes as a draft."""
        if key not in self:
            self[key] = default
        return self[key]

    def copy(self) -> dict[str, Any]:
        """Return a deep plain copy."""
        return cast("dict[str, Any]", self.to_plain())

    def increment(self, key: str, amount: int | float = 1) -> None:
        """Add to a number; absent counts as 0. Unlike `+=`, concurrent increments all count."""
        self._recorder.record(Increment((*self._path(), key), clean(amount)))

    def splice(self, key: str, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points. Unlike assigning, it stores only the difference."""
        self._recorder.record(Splice((*self._path(), key), position, delete, str(clean(insert))))

    def replace(self, whole: Mapping[str, Any]) -> None:
        """Make this object what is given, recording only the difference."""
        base = self._path()
        for change in diff(self._plain(), whole):
            moved = msgspec.structs.replace(change, path=(*base, *change.path))
            self._recorder.record(moved)
        for key in list(self._kids):
            self._forget(key)


class ListDraft(_Node, MutableSequence[Any]):
    """A list of the state, as a list that records."""

    __slots__ = ()

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        items = self._plain()
        if isinstance(index, slice):
            return [self._child(i, items[i]) for i in range(*index.indices(len(items)))]
        at = self._at(index, len(items))
        return self._child(at, items[at])

    @overload
    def __setitem__(self, index: int, value: Any) -> None: ...
    @overload
    def __setitem__(self, index: slice, value: Iterable[Any]) -> None: ...
    def __setitem__(self, index: int | slice, value: Any) -> None:
        if isinstance(index, slice):
            items = list(self._plain())
            items[index] = [_plain(v) for v in value]
            self._become(items)
            return
        at = self._at(index, len(self))
        if value is not self._kids.get(at, _Node):
            self._put(at, value)

    def __delitem__(self, index: int | slice) -> None:
        if not isinstance(index, slice):
            self._remove(self._at(index, len(self)), 1)
            return
        where = range(*index.indices(len(self)))
        if where.step == 1 and len(where):
            self._remove(where.start, len(where))
        else:
            for at in sorted(where, reverse=True):
                self._remove(at, 1)

    def __len__(self) -> int:
        return len(self._plain())

    def insert(self, index: int, value: Any) -> None:
        """Insert before `index`, which is cut to the list as list.insert does."""
        length = len(self)
        at = max(0, index + length) if index < 0 else min(index, length)
        path = self._path()
        new = [clean(value, path=(*path, at))]
        if at == length:
            self._recorder.record(Append(path, new))
        else:
            self._recorder.record(Insert(path, at, new))
            self._shift(at, 1)

    def append(self, value: Any) -> None:
        """Add at the end."""
        path = self._path()
        self._recorder.record(Append(path, [clean(value, path=(*path, len(self)))]))

    def extend(self, values: Iterable[Any]) -> None:
        """Add several at the end."""
        path, length = self._path(), len(self)
        new = [clean(v, path=(*path, length + i)) for i, v in enumerate(list(values))]
        if new:
            self._recorder.record(Append(path, new))

    def clear(self) -> None:
        """Remove every item."""
        if len(self):
            self._remove(0, len(self))

    def sort(self, *, key: Any = None, reverse: bool = False) -> None:
        """Sort in place."""
        self._become(sorted(self._plain(), key=key, reverse=reverse))

    def reverse(self) -> None:
        """Reverse in place."""
        self._become(list(self._plain())[::-1])

    def copy(self) -> list[Any]:
        """Return a deep plain copy."""
        return cast("list[Any]", self.to_plain())

    def increment(self, index: int, amount: int | float = 1) -> None:
        """Add to a number; concurrent increments all count."""
        self._recorder.record(Increment((*self._path(), self._at(index, len(self))), clean(amount)))

    def splice(self, index: int, position: int, delete: int = 0, insert: str = "") -> None:
        """Edit a string in place, by code points."""
        at = self._at(index, len(self))
        self._recorder.record(Splice((*self._path(), at), position, delete, str(clean(insert))))

    def _at(self, index: int, length: int) -> int:
        if type(index) is not int:
            raise TypeError(f"list indices must be integers or slices, not {type(index).__name__}")
        at = index + length if index < 0 else index
        if not 0 <= at < length:
            raise IndexError(f"index {index} of a list with {length} items")
        return at

    def _remove(self, at: int, count: int) -> None:
        self._recorder.record(Remove(self._path(), at, count))
        for gone in range(at, at + count):
            self._forget(gone)
        self._shift(at + count, -count)

    def _shift(self, start: int, by: int) -> None:
        moved: dict[str | int, _Node] = {}
        for key, kid in self._kids.items():
            place = cast("int", key)
            kid._key = place + by if place >= start else place
            moved[cast("int", kid._key)] = kid
        self._kids = moved

    def _become(self, items: list[Any]) -> None:
        """Take on new items wholesale."""
        path = self._path()
        if not same(self._plain(), items):
            self._recorder.record(Set(path, clean(items, path=path)))
        for key in list(self._kids):
            self._forget(key)


def recording(state: dict[str, Any]) -> DictDraft:
    """Return a draft over a published state, which is never altered.

    >>> draft = recording({"notes": []})
    >>> draft["notes"].append("spring tide")
    >>> draft.changes
    [Append(path=('notes',), values=['spring tide'])]
    """
    return DictDraft(_Recorder(state), None, None)


def _plain(value: Any) -> Any:
    return value.to_plain() if isinstance(value, _Node) else value

