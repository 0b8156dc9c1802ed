"""Nodes of a draft: where each stands in the state, what was read of it, and how a write says what it relies on.

1. Each node marks what was read of it. A change that replaces or removes something is guarded when that place, something
   below it, or the whole value around it was read: see core/guards.py. Getting an object or a list is no read of it;
   listing keys is one of each key that is then written.
2. What the draft put there itself is its own: reading it is no read of the state.
3. What commutes is written down as that: `+=` on numbers and texts, `list + [...]` put back.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, cast

from quire.api import augmented
from quire.api.recorder import Recorder
from quire.api.writes import bounded
from quire.core.guards import Step, places
from quire.core.path import describe, get
from quire.core.path import format as pointer
from quire.core.values import copied, same
from quire.errors import ChangeError
from quire.model import Append, Change, Increment, Path, Set, Splice

ABSENT: Any = object()
PRESENCE, READ, OWN, OWN_AFTER_READ = 1, 2, 3, 4
"""Marks of a key: whether something is there was read; what is there was read; what is there is this draft's own; it is,
and what was there before was read."""
_SUMS = frozenset((int, float, str))
"""What `+=` is understood of."""
_NONE: Any = {}
"""Marks or sites of a node that has none: there are many nodes, and most are only passed through. Never written to."""
DRAFTS: dict[type[Any], type[Node]] = {}
"""What stands for an object and for a list."""


class Node:
    """A place in the state: knows its parent and its key there, and what was read of it."""

    __slots__ = (
        "_cache",
        "_gone",
        "_key",
        "_kids",
        "_listed",
        "_marks",
        "_moment",
        "_parent",
        "_recorder",
        "_sites",
        "_sum",
        "_taken",
        "_touched",
        "_whole",
    )

    def __init__(self, recorder: Recorder, parent: Node | None, key: str | int) -> None:
        self._recorder = recorder
        self._parent = parent
        self._key = key
        self._kids: dict[str | int, Node] = {}
        self._gone = False
        self._moment = -1
        self._cache: Any = None
        """What is here, as it was looked up at that moment."""
        self._marks: dict[str | int, int] = _NONE
        self._sites: dict[str | int, tuple[augmented.Site, Any, int]] = _NONE
        """Where `+=` was begun and not ended yet, with what value, and how much was read whole by then."""
        self._sum: Any = ABSENT
        """The newest result of `list + [...]`."""
        self._whole = False
        self._listed = False
        self._taken = False
        """Whether an item was read that this draft then took out: no mark of its own is left."""
        self._touched = False
        """Whether anything was read here or below."""

    def __repr__(self) -> str:
        try:
            self._read_whole()
            return f"<draft {self._plain()!r}>"
        except Exception as error:  # noqa: BLE001 - a repr is read while looking for an error; it must not add one
            return f"<draft: {error}>"

    def __eq__(self, other: object) -> bool:
        self._read_whole()
        if isinstance(other, Node):
            other._read_whole()
            return bool(self._plain() == other._plain())
        return bool(self._plain() == other)

    __hash__ = None  # type: ignore[assignment]

    def __copy__(self) -> Any:
        return self.to_plain()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.to_plain()

    @property
    def changes(self) -> list[Change]:
        """What was done to the whole draft so far, in few changes: copies, the caller's to keep."""
        return [step for step in self._recorder.steps() if isinstance(step, Change)]

    @property
    def steps(self) -> list[Step]:
        """The same, each change that relies on what was read with its guards in front of it."""
        return self._recorder.steps()

    def close(self) -> None:
        """End the whole draft: using any part of it from now on raises Closed; `changes` stays readable."""
        self._recorder.close()

    def to_plain(self) -> Any:
        """Return a deep plain copy, for `json.dumps` or to keep."""
        self._read_whole()
        return copied(self._plain())

    def _path(self) -> Path:
        self._recorder.check_open()
        path: list[str | int] = []
        node = self
        while node._parent is not None:
            if node._gone:
                raise ChangeError(
                    "this part of the draft was removed or replaced; read it from the draft again, or before that: `pop` "
                    "gives what it takes out, `to_plain()` a copy"
                )
            path.append(node._key)
            node = node._parent
        return tuple(reversed(path))

    def _plain(self) -> Any:
        recorder = self._recorder
        if self._moment != recorder.moment:
            self._cache = get(recorder.state, self._path())
            self._moment = recorder.moment
        return self._cache

    def _child(self, key: str | int, value: Any) -> Any:
        draft = DRAFTS.get(cast("type[Any]", type(value)))
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
        if any(kid._was_read() for kid in self._kids.values()):
            self._read_whole()
        for key in list(self._kids):
            self._forget(key)

    # what was read

    def _mark(self, key: str | int, mark: int) -> None:
        if self._marks is _NONE:
            self._marks = {}
        self._marks[key] = mark

    def _mark_own(self, key: str | int) -> None:
        kid = self._kids.get(key)
        read = self._marks.get(key, OWN) != OWN or (kid is not None and kid._was_read())
        self._mark(key, OWN_AFTER_READ if read else OWN)

    def _read(self, key: str | int, mark: int = READ) -> None:
        """Mark a key as read."""
        if self._whole or self._marks.get(key, 0) >= mark:
            return
        self._mark(key, mark)
        self._touch()
        if self._recorder.strict and not self._is_own(key):
            self._recorder.read((*self._path(), key), "presence" if mark == PRESENCE else "value")

    def _read_whole(self) -> None:
        """Mark all that is here as read."""
        if self._whole:
            return
        self._whole = True
        self._recorder.wholes += 1
        self._touch()
        if self._recorder.strict and not self._is_own(None):
            self._recorder.read(self._path(), "value")

    def _read_keys(self) -> None:
        """Mark which keys there are, or how many items, as read."""
        if self._listed or self._whole:
            return
        self._listed = True
        self._touch()
        if self._recorder.strict and not self._is_own(None):
            self._recorder.read(self._path(), "keys")

    def _touch(self) -> None:
        self._recorder.touched = True
        node: Node | None = self
        while node is not None and not node._touched:
            node._touched = True
            node = node._parent

    def _is_own(self, key: str | int | None) -> bool:
        """Return True if what is at a key here (None: here) was put there by this draft, or lies within what was."""
        if key is not None and self._marks.get(key, 0) >= OWN:
            return True
        node = self
        while node._parent is not None:
            if node._parent._marks.get(node._key, 0) >= OWN:
                return True
            node = node._parent
        return False

    def _relied_on(self, key: str | int) -> bool:
        """Return True if the value at a key here was read: itself, something in it, or all around it."""
        kid = self._kids.get(key)
        found = (
            self._marks.get(key, 0) >= PRESENCE
            or self._listed
            or self._whole
            or key in self._sites
            or (kid is not None and kid._was_read())
        )
        node = self
        while not found and node._parent is not None:
            found = node._parent._whole or node._parent._marks.get(node._key) == READ
            node = node._parent
        return found and not self._is_own(key)

    def _was_read(self) -> bool:
        if not self._touched:
            return False
        if self._whole or self._listed or self._taken or any(mark != OWN for mark in self._marks.values()):
            return True
        return any(kid._was_read() for kid in self._kids.values())

    def _guarded(self, path: Path, key: str | int) -> list[Path]:
        """Return the place of a key, if it has to be guarded when it is written. path: of this node."""
        return [(*path, key)] if self._recorder.touched and self._relied_on(key) else []

    def _guarded_below(self, change: Change) -> list[Path]:
        """Return what has to be guarded of a change somewhere at or below this node."""
        found: list[Path] = []
        here = len(self._path())
        for place in places(change):
            node: Node = self
            for token in place[here:-1]:
                below = node._kids.get(token)
                if below is None:
                    break
                node = below
            found += [place] if node._relied_on(place[len(node._path())]) else []
        return found

    # what is written

    def _put(self, path: Path, value: Any) -> None:
        """Set a cleaned value at a path just below this node."""
        key = path[-1]
        if self._recorder.record(Set(path, value), self._guarded(path[:-1], key)):
            self._mark_own(key)
        elif self._recorder.strict:
            self._read(key)  # it is to be that, and is already
        if self._sites:
            self._sites.pop(key, None)
        if self._kids:
            self._forget(key)

    def _begun(self, key: str | int, value: Any) -> Any:
        """Return a scalar that was read, noting where `+=` begins: that is no read of it."""
        site = augmented.reading(2) if type(value) in _SUMS else None
        left = self._sites.pop(key, None) if self._sites else None
        if site is None or left is not None:
            self._read(key)
        if site is not None:
            if self._sites is _NONE:
                self._sites = {}
            self._sites[key] = site, value, self._recorder.wholes
            self._recorder.touched = True
        return value

    def _ended(self, path: Path, key: str | int, value: Any, old: Any) -> bool:
        """Write down what `+=` or `-=` came to, as an increment or a text put behind; False where it cannot be one."""
        begun = self._sites.get(key)
        if begun is None:
            return False
        site, before, wholes = begun
        if not augmented.storing(site, 2) or before is not old or wholes != self._recorder.wholes:
            return False
        change = _sum(path, before, value)
        if change is None:
            return False
        del self._sites[key]
        self._recorder.record(change)
        return True

    def _added(self, key: str | int, value: Any) -> bool:
        """Write down `x = x + [...]` as what it appends; False if it is something else."""
        kid = self._kids.get(key)
        if kid is None or kid._sum is not value:
            return False
        there = cast("list[Any]", kid._plain())
        if not same(there, value[: len(there)]):
            return False
        added = self._recorder.clean(value[len(there) :], kid._path())
        self._recorder.record(Append(kid._path(), added))
        return True

    def _add(self, path: Path, amount: int | float, minimum: int | float | None, maximum: int | float | None) -> None:
        by = self._recorder.clean(amount, path)
        guards = bounded(path, minimum, maximum, self._recorder.bounds)
        before = get(self._recorder.state, path, 0)
        if guards and type(before) in (int, float) and type(by) in (int, float):
            with suppress(OverflowError):  # then the number itself is refused
                guards[0].check_value(before + by)
        self._recorder.record(Increment(path, by), (), guards)

    def _edit_text(self, path: Path, position: int, delete: int, insert: str) -> None:
        text = self._recorder.clean(insert, path)
        if type(text) is not str:
            where = pointer(path)
            raise ChangeError(f"{where}: splice inserts text, not {describe(text)}", path=where)
        self._recorder.record(Splice(path, position, delete, text))


def _sum(path: Path, old: Any, new: Any) -> Change | None:
    """Return the change behind `x += y` or `x -= y`, None where it is not one that is certain to lead there.

    >>> _sum(("n",), 0.1, 0.1 + 0.2), _sum(("t",), "a", "ab")
    (Increment(path=('n',), amount=0.2), Splice(path=('t',), position=1, delete=0, insert='b'))
    """
    if type(old) is str:
        grown = type(new) is str and new.startswith(old)
        return Splice(path, len(old), 0, new[len(old) :]) if grown else None
    if type(new) not in (int, float):
        return None
    try:
        by = new - old
        short = float(f"{by:.15g}") if type(by) is float else by  # what was most likely added, without the noise
        return next((Increment(path, amount) for amount in (short, by) if same(old + amount, new)), None)
    except OverflowError:
        return None
