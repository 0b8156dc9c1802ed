"""A sheet: what is done to one scope log, worked out against the state it meets. Pure.

A log's state is {scope, keys, bytes, values: {key: entry}, steps: {name: {key: entry}}}, an entry is {value, expires?,
secret?}. `scope` is the kind and id of the log's home, whole; `keys` and `bytes` count what the log holds, steps too,
so that limits are checked without weighing everything. `place` below says which entries: ("values",) or ("steps", name).

1. A sheet never alters the state it was given: it works on copies of the containers it touches, and collects changes.
2. The changes fit that state, or `finish` raises with nothing done. So a write may be worked out again and again,
   against whatever others left behind.
3. What is past its time, by the backend's clock, counts as absent for everyone; it is taken out when a limit would be
   passed. One sheet is of one moment, and asks for the time only when something has one.

Cost: O(keys of the scope) to copy its container when writing, tens of microseconds at 10,000; reading copies nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from quire.core.changes import Working
from quire.core.path import describe, get
from quire.core.path import format as pointer
from quire.errors import AlreadyExists, ChangeError, InvalidState
from quire.model import Change, Delete, Ensure, Increment, Path, Set
from quire.scopes.names import StateScope
from quire.scopes.setup import ScopeLimits, exceeded


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""Stands for no value, where None is a value that may be stored."""

Entry = dict[str, Any]
_EMPTY: dict[str, Any] = {}
_FIELDS, _KINDS = ("keys", "bytes", "values", "steps"), (int, int, dict, dict)
_encode = msgspec.json.Encoder().encode


def size_of(value: Any) -> int:
    """Return the bytes of a value as JSON."""
    return len(_encode(value))


class Sheet:
    """See above. home: whose log it is.  now: tells the time that things expire by, UTC milliseconds."""

    def __init__(self, state: dict[str, Any], home: StateScope, limits: ScopeLimits, now: Callable[[], int]) -> None:
        if state and state.get("scope") != [home.kind, home.id]:
            raise AlreadyExists(
                f"workflow {home.log_id} exists and is not the log of {home}: ids that begin with scope- are for "
                "scoped state; fork it under another id and delete this one"
            )
        self._before = state
        self._home = home
        if state and tuple(map(type, map(state.get, _FIELDS))) != _KINDS:
            raise self._misshapen(())
        self._limits = limits
        self._working: Working | None = None
        self._changes: list[Change] = []
        self._keys = 0
        self._bytes = 0
        self._now = now
        self._now_ms: int | None = None

    @property
    def now_ms(self) -> int:
        """The moment that this sheet is of. Raises what `now` raises."""
        if self._now_ms is None:
            self._now_ms = self._now()
        return self._now_ms

    # reading: nothing is copied, so what is handed out must be before it leaves

    def entries(self, place: Path) -> dict[str, Entry]:
        """Return what is stored in a scope, with what is past its time. Raises InvalidState if it is no scope."""
        state = self._before if self._working is None else self._working.state
        found: Any = get(state, place, _EMPTY)
        if type(found) is not dict:
            raise self._misshapen(place)
        return cast("dict[str, Entry]", found)

    def entry(self, place: Path, key: str) -> Entry | None:
        """Return a key's entry; None where there is none, or its time is over."""
        entry = self.entries(place).get(key)
        return entry if entry is not None and self._lives(place, key, entry) else None

    def value(self, place: Path, key: str) -> Any:
        """Return a value, ABSENT where there is none."""
        entry = self.entry(place, key)
        return ABSENT if entry is None else entry["value"]

    def live(self, place: Path) -> dict[str, Entry]:
        """Return the entries whose time is not over, in the order they were first set."""
        return {k: e for k, e in self.entries(place).items() if self._lives(place, k, e)}

    def steps(self) -> list[str]:
        """Return the names of the steps that hold something."""
        return list(self.entries(("steps",)))

    # writing

    def put(self, place: Path, key: str, value: Any, *, expires: int | None, secret: bool) -> None:
        """Set a value. expires: UTC milliseconds, None for never.  secret: marks it; a mark stays with the key."""
        if not self._before and self._working is None:
            # others may begin the same log meanwhile: each of these merges
            self._do(Set(("scope",), [self._home.kind, self._home.id]))
            for name in ("keys", "bytes"):
                self._do(Increment((name,), 0))
            for name in ("values", "steps"):
                self._do(Ensure((name,), {}))
        held = self.entries(place)
        if not held and len(place) > 1:
            self._do(Ensure(place, {}))
        old = self.entry(place, key)
        entry: Entry = {"value": value}
        if expires is not None:
            entry["expires"] = expires
        if secret or (old is not None and "secret" in old):
            entry["secret"] = True
        self._count(key, held.get(key), entry)
        self._do(Set((*place, key), entry))

    def remove(self, place: Path, key: str) -> bool:
        """Take a value out; tell whether there was one. A step whose last value goes is forgotten."""
        held = self.entries(place)
        entry = held.get(key)
        if entry is None:
            return False
        there = self._lives(place, key, entry)
        self._count(key, entry, None)
        self._do(Delete(place if len(place) > 1 and len(held) == 1 else (*place, key)))
        return there

    def add(self, place: Path, key: str, by: int | float) -> int | float:
        """Add to a number, absent counting as 0; return the sum. Raises ChangeError where there is no number."""
        old = self.value(place, key)
        if old is ABSENT:
            self.put(place, key, by, expires=None, secret=False)
            return by
        if type(old) not in (int, float):
            raise ChangeError(f"{self._home}: increment of {key!r} needs a number, found {describe(old)}")
        self._do(Increment((*place, key, "value"), by))
        total = self.value(place, key)
        self._bytes += size_of(total) - size_of(old)
        return cast("int | float", total)

    def clear(self, place: Path) -> int:
        """Take everything out of a scope; return how many values there were. One change, however many they are."""
        held = self.entries(place)
        if not held:
            return 0
        count = len(self.live(place))
        for key, entry in held.items():
            self._count(key, entry, None)
        self._do(Delete(place) if len(place) > 1 else Set(place, {}))
        return count

    def sweep(self) -> int:
        """Take out what is past its time, anywhere in the log; return how many values. Cost: looks at every key."""
        count = 0
        for place in (("values",), *(("steps", name) for name in self.steps())):
            gone = [k for k, e in self.entries(place).items() if not self._lives(place, k, e)]
            for key in gone:
                self.remove(place, key)
            count += len(gone)
        return count

    def finish(self) -> Sequence[Change]:
        """Return the changes. Raises LimitExceeded when they would take the log past a limit."""
        if self._excess():
            self.sweep()
            for limit, found, what in self._excess():
                raise exceeded(limit, getattr(self._limits, limit), found, f"{self._home} would hold {found:,} {what}")
        for name, by in (("keys", self._keys), ("bytes", self._bytes)):
            if by:
                self._do(Increment((name,), by))
        return self._changes

    # inside

    def _do(self, change: Change) -> None:
        if self._working is None:
            self._working = Working(self._before)
        if self._working.apply(change):
            self._changes.append(change)

    def _count(self, key: str, old: Entry | None, new: Entry | None) -> None:
        self._keys += (new is not None) - (old is not None)
        for entry, sign in ((old, -1), (new, 1)):
            if entry is not None:
                self._bytes += sign * (size_of(key) + size_of(entry["value"]))

    def _excess(self) -> list[tuple[str, int, str]]:
        """Return what would pass a limit. What makes it smaller is welcome, even above a limit that was lowered."""
        wanted = (("keys_max", "keys", self._keys), ("size_bytes_max", "bytes", self._bytes))
        totals = [(limit, self._before.get(what, 0) + by, what) for limit, what, by in wanted if by > 0]
        return [t for t in totals if t[1] > getattr(self._limits, t[0])]

    def _lives(self, place: Path, key: str, entry: Any) -> bool:
        until: Any = entry.get("expires", math.inf) if type(entry) is dict and "value" in entry else None
        if type(until) not in (int, float):
            raise self._misshapen((*place, key))
        return until == math.inf or until > self.now_ms

    def _misshapen(self, place: Path) -> InvalidState:
        return InvalidState(
            f"workflow {self._home.log_id}: state{pointer(place)} is not as scoped state keeps it; somebody wrote there "
            "directly: restore an older version of that workflow",
            path=pointer(place),
        )
