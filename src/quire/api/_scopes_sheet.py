"""A sheet: what is to be done to one scope log, worked out against the state it meets. Pure.

A log's state is {scope, keys, bytes, values, expires?, secret?, steps?}; a step's entry below `steps` is {name, values,
expires?, secret?}. `scope` names the log's home whole; `keys` and `bytes` count what the log and its steps hold, so
that limits are checked at the cost of the change, never of the state.

1. A sheet never alters the state it was given: it collects changes, and remembers what they come to for what
   follows on the same sheet.
2. `finish` gives changes that fit that state, or raises with nothing done. So a write may be worked out again and
   again, against whatever state others left behind.
3. What is past its time counts as absent for everyone; it is taken out when a limit would be reached, or by `sweep`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import msgspec

from quire.api._scopes_names import StateScope
from quire.api._scopes_rules import ScopeLimits
from quire.core.path import describe
from quire.errors import AlreadyExists, ChangeError, LimitExceeded
from quire.model import Change, Delete, Increment, Path, Set


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Any = _Absent()
"""Stands for no value, where None is a value that may be stored."""

_EMPTY: dict[str, Any] = {}
_MARKS = ("expires", "secret")
_encode = msgspec.json.Encoder().encode


class Where(NamedTuple):
    """A scope as its log sees it: the log's id and home, and for a step its token and name."""

    log_id: str
    home: list[str]
    token: str | None
    name: str

    @property
    def base(self) -> Path:
        """The path of the scope's shelf in the log's state."""
        return () if self.token is None else ("steps", self.token)


def where_of(scope: StateScope) -> Where:
    """Return where a scope's state is."""
    return Where(scope.log_id, [scope.home.kind, scope.id], scope.place, scope.part)


class Entry(NamedTuple):
    """A value with its key and what goes with it, on its way to another scope."""

    key: str
    value: Any
    expires: int | None
    secret: bool


def weight(key: str, value: Any) -> int:
    """Return what an entry counts for: bytes of key and value as JSON."""
    return len(_encode(key)) + len(_encode(value))


def shelf(state: dict[str, Any], where: Where) -> dict[str, Any]:
    """Return what holds a scope's values in its log's state, empty where nothing was ever put.

    Raises AlreadyExists when the workflow of that id is something else.
    """
    if not state:
        return _EMPTY
    if state.get("scope") != where.home:
        raise AlreadyExists(
            f"workflow {where.log_id} exists and is not the log of {StateScope(*where.home)}: ids that begin with "
            "scope- are for scoped state; fork it under another id and delete this one"
        )
    if where.token is None:
        return state
    return state.get("steps", _EMPTY).get(where.token, _EMPTY)


def live(held: dict[str, Any], key: str, now_ms: int) -> Any:
    """Return a value, ABSENT where there is none or its time is over. Never a copy."""
    value = held.get("values", _EMPTY).get(key, ABSENT)
    if value is not ABSENT and "expires" in held and held["expires"].get(key, math.inf) <= now_ms:
        return ABSENT
    return value


def live_keys(held: dict[str, Any], now_ms: int) -> list[str]:
    """Return the keys whose time is not over, in the order they were first set."""
    values = held.get("values", _EMPTY)
    if "expires" not in held:
        return list(values)
    until = held["expires"]
    return [k for k in values if until.get(k, math.inf) > now_ms]


class Sheet:
    """See above. home and limits are those of the log; now_ms is the time that things expire by."""

    def __init__(self, state: dict[str, Any], where: Where, limits: ScopeLimits, now_ms: int) -> None:
        shelf(state, where)
        self._state = state
        self._home = where.home
        self._limits = limits
        self._now = now_ms
        self._changes: list[Change] = []
        self._over: dict[tuple[str | None, str], Any] = {}
        self._marks: dict[tuple[str | None, str, str], Any] = {}
        self._made: dict[tuple[str | None, str], bool] = {}
        """Containers that this sheet made (True) or took away (False)."""
        self._named: dict[str, str] = {}
        """Names of the steps that this sheet made, by token."""
        self._keys = 0
        self._bytes = 0

    def get(self, where: Where, key: str) -> Any:
        """Return a value as it would be after what is on the sheet; ABSENT where there is none. Never a copy."""
        value = self._raw(where.token, key)
        return ABSENT if value is not ABSENT and self._over_time(where.token, key) else value

    def secret(self, where: Where, key: str) -> bool:
        """Tell whether a key is marked secret."""
        return bool(self._mark(where.token, "secret", key))

    def keys(self, where: Where) -> list[str]:
        """Return the keys as they would be."""
        stored = live_keys(self._held(where.token), self._now)
        added = [k for token, k in self._over if token == where.token]
        return [k for k in dict.fromkeys((*stored, *added)) if self.get(where, k) is not ABSENT]

    def entries(self, where: Where) -> list[Entry]:
        """Return everything a scope holds. The values are the log's own: copy them before they go elsewhere."""
        token = where.token
        return [
            Entry(k, self.get(where, k), self._mark(token, "expires", k), self.secret(where, k))
            for k in self.keys(where)
        ]

    def put(self, where: Where, key: str, value: Any, size: int, *, until: int | None, secret: bool) -> None:
        """Set a value of a known weight. until: UTC milliseconds, None for ever.  secret: marks it; a mark stays."""
        token = where.token
        old = self._raw(token, key)
        base = self._open(where)
        self._keys += old is ABSENT
        self._bytes += size if old is ABSENT else size - weight(key, old)
        self._changes.append(Set((*base, "values", key), value))
        self._over[token, key] = value
        self._set_mark(where, "expires", key, until)
        if secret:
            self._set_mark(where, "secret", key, True)

    def remove(self, where: Where, key: str) -> bool:
        """Take a value out; tell whether there was one."""
        token = where.token
        old = self._raw(token, key)
        if old is ABSENT:
            return False
        there = not self._over_time(token, key)
        self._keys -= 1
        self._bytes -= weight(key, old)
        self._changes.append(Delete((*_base(token), "values", key)))
        self._set_mark(where, "expires", key, None)
        self._set_mark(where, "secret", key, None)
        self._over[token, key] = ABSENT
        return there

    def add(self, where: Where, key: str, by: int | float) -> int | float:
        """Add to a number; absent counts as 0. Returns the sum. Raises ChangeError where there is no number."""
        old = self.get(where, key)
        if old is ABSENT:
            self.put(where, key, by, weight(key, by), until=None, secret=False)
            return by
        if type(old) not in (int, float):
            raise ChangeError(f"{key}: increment needs a number, found {describe(old)}", path=f"/{key}")
        try:
            total = old + by
        except OverflowError:
            total = math.inf
        if type(total) is float and not math.isfinite(total):
            raise ChangeError(f"{key}: the sum is not a finite number", path=f"/{key}")
        self._bytes += len(_encode(total)) - len(_encode(old))
        self._changes.append(Increment((*_base(where.token), "values", key), by))
        self._over[where.token, key] = total
        return cast("int | float", total)

    def clear(self, where: Where) -> int:
        """Take everything out of a scope; return how many values there were. One change, however many they are."""
        token, held = where.token, self._held(where.token)
        count = len(self.keys(where))
        everything = dict.fromkeys((*held.get("values", _EMPTY), *(k for t, k in self._over if t == token)))
        gone = [(key, old) for key in everything if (old := self._raw(token, key)) is not ABSENT]
        if not gone:
            return 0
        self._keys -= len(gone)
        self._bytes -= sum(weight(key, old) for key, old in gone)
        self._changes.append(Set((*_base(token), "values"), {}))
        for field in _MARKS:
            if self._has(token, field):
                self._changes.append(Delete((*_base(token), field)))
                self._made[token, field] = False
        for key, _ in gone:
            self._over[token, key] = ABSENT
            for field in _MARKS:
                self._marks[token, field, key] = None
        return count

    def steps(self) -> dict[str, str]:
        """Return the names of the steps that have something here, by token."""
        stored = {t: str(held["name"]) for t, held in self._state.get("steps", _EMPTY).items()}
        return {t: n for t, n in (stored | self._named).items() if self._made.get((t, ""), True)}

    def forget(self, where: Where) -> int:
        """Take everything out of a step and forget its name; return how many values there were."""
        count = self.clear(where)
        token = where.token
        if token is not None and token in self.steps():
            self._changes.append(Delete(("steps", token)))
            self._made[token, ""] = False
            for field in _MARKS:
                self._made[token, field] = False
        return count

    def sweep(self) -> int:
        """Take out what is past its time, anywhere in the log; return how many values."""
        count = 0
        for token in (None, *self._state.get("steps", _EMPTY)):
            held = self._held(token)
            for key in list(held.get("expires", _EMPTY)):
                if self._raw(token, key) is not ABSENT and self._over_time(token, key):
                    self.remove(Where("", self._home, token, ""), key)  # only the token counts for a removal
                    count += 1
        return count

    def finish(self) -> list[Change]:
        """Return the changes. Raises LimitExceeded when they would take the log past a limit."""
        if self._excess() is not None:
            self.sweep()
            excess = self._excess()
            if excess is not None:
                raise excess
        counts: list[Change] = [
            Increment((name,), by) for name, by in (("keys", self._keys), ("bytes", self._bytes)) if by
        ]
        return [*self._changes, *counts]

    # inside

    def _excess(self) -> LimitExceeded | None:
        for limit, name, by, what in (
            ("keys_max", "keys", self._keys, "keys"),
            ("size_bytes_max", "bytes", self._bytes, "bytes"),
        ):
            allowed, found = getattr(self._limits, limit), int(self._state.get(name, 0)) + by
            if by > 0 and found > allowed:  # what makes it smaller is welcome, even above a limit that was lowered
                return LimitExceeded(
                    f"{StateScope(*self._home)} would hold {found:,} {what}, allowed are {allowed:,}; delete or "
                    "clear what is not needed, or raise the limit",
                    limit=limit,
                    allowed=allowed,
                    found=found,
                )
        return None

    def _held(self, token: str | None) -> dict[str, Any]:
        """What the state held when the sheet was begun."""
        return self._state if token is None else self._state.get("steps", _EMPTY).get(token, _EMPTY)

    def _raw(self, token: str | None, key: str) -> Any:
        value = self._over.get((token, key), self)
        return self._held(token).get("values", _EMPTY).get(key, ABSENT) if value is self else value

    def _mark(self, token: str | None, field: str, key: str) -> Any:
        mark = self._marks.get((token, field, key), self)
        return self._held(token).get(field, _EMPTY).get(key) if mark is self else mark

    def _has(self, token: str | None, field: str) -> bool:
        """Tell whether there is a container of marks."""
        return self._made.get((token, field), field in self._held(token))

    def _over_time(self, token: str | None, key: str) -> bool:
        until = self._mark(token, "expires", key)
        return until is not None and until <= self._now

    def _set_mark(self, where: Where, field: str, key: str, value: Any) -> None:
        token = where.token
        if value is None:
            if self._mark(token, field, key) is not None:
                self._changes.append(Delete((*_base(token), field, key)))
                self._marks[token, field, key] = None
            return
        path: Path = (*_base(token), field)
        if self._has(token, field):
            self._changes.append(Set((*path, key), value))
        else:
            self._changes.append(Set(path, {key: value}))
            self._made[token, field] = True
        self._marks[token, field, key] = value

    def _open(self, where: Where) -> Path:
        """Return the path of a scope's shelf, making it and its log where there is none."""
        made, token = self._made, where.token
        if not self._state and not made.get((None, "")):
            self._changes.append(Set((), {"scope": list(self._home), "keys": 0, "bytes": 0, "values": {}}))
            made[None, ""] = True
        if token is None:
            return ()
        if made.get((token, ""), token in self._state.get("steps", _EMPTY)):
            return ("steps", token)
        shelf_: dict[str, Any] = {"name": where.name, "values": {}}
        if "steps" in self._state or made.get((None, "steps")):
            self._changes.append(Set(("steps", token), shelf_))
        else:
            self._changes.append(Set(("steps",), {token: shelf_}))
            made[None, "steps"] = True
        made[token, ""] = True
        self._named[token] = where.name
        return ("steps", token)


def _base(token: str | None) -> Path:
    return () if token is None else ("steps", token)
