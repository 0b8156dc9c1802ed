"""One agent's access to one scope: each verb, checked and prepared, as something to do on a sheet.

The same verbs serve state that is written at once (state.State) and what a step writes with its commit
(step.StepState), so that no rule can hold in only one of them. Rights, keys and values are checked when the
verb is called; what depends on the state, when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from quire.api import writes
from quire.core.values import clean, copied, same
from quire.engine.backend_clock import Now
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import Invalid, InvalidState
from quire.model import WORKFLOWS, Change
from quire.scopes.names import StateScope
from quire.scopes.permissions import Right
from quire.scopes.setup import StateBuilder, check_key, check_ttl, exceeded
from quire.scopes.sheet import ABSENT, Sheet, size_of

T = TypeVar("T")
Op = Callable[[Sheet], T]
"""Something to do on a sheet. It may be called more than once, on sheets over different states."""

REDACTED = "[REDACTED]"


def together(*ops: Op[Any]) -> Op[None]:
    """Return one thing to do that does all, in order."""

    def op(sheet: Sheet) -> None:
        for each in ops:
            each(sheet)

    return op


class Access:
    """See above. agent: who is checked against the policy, and blamed for what is written."""

    __slots__ = ("_bounds", "agent", "engine", "home", "place", "scope", "setup", "stream")

    def __init__(self, engine: Engine, scope: StateScope, setup: StateBuilder, agent: str) -> None:
        if not isinstance(scope, StateScope):
            raise Invalid(f"a scope is made with StateScope.workflow(...) and its like, not {type(scope).__name__}")
        self.engine = engine
        self.scope = scope
        self.setup = setup
        self.agent = writes.name(agent, "agent")
        self.home = scope.home
        self.place = scope.place
        self.stream = WORKFLOWS + scope.log_id
        self._bounds = writes.limits(engine.settings)

    def to(self, scope: StateScope) -> Access:
        """Return the same agent's access to another scope."""
        return Access(self.engine, scope, self.setup, self.agent)

    def step(self, step_name: str) -> Access:
        """Return access to a step of this workflow, or of this step's. Raises Invalid elsewhere."""
        if self.scope.kind not in ("workflow", "step"):
            raise Invalid(f"{self.scope} has no steps; only a workflow has")
        return self.to(StateScope.step(self.scope.id, step_name))

    def check(self, *rights: Right) -> None:
        """Raise ScopeDenied unless the policy allows all of these here."""
        if self.setup.policy is not None:
            for right in rights:
                self.setup.policy.check(self.agent, self.scope, right)

    def sheet(self, state: dict[str, Any], now: Now | None = None) -> Sheet:
        """Return a sheet over the state of this scope's log. now: None for the backend's clock, if it is known."""
        return Sheet(state, self.home, self.setup.limits, now or self.engine.backend_clock.now_ms)

    async def look(self, op: Op[T]) -> T:
        """Return what an op that changes nothing makes of the newest state that any process committed."""

        async def attempt(now: Now) -> T:
            return op(self.sheet((await self.engine.current(self.stream)).state, now))

        return await self.engine.backend_clock.told(attempt)

    def part(self, op: Op[T], message: str, now: Now) -> tuple[Write, list[T]]:
        """Return a write that is not done yet, and where the op's result will be when it is."""
        results: list[T] = []

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            sheet = self.sheet(state, now)
            results[:] = [op(sheet)]
            return sheet.finish()

        return Write(self.stream, plan, author=self.agent, message=writes.text(message), exists=None), results

    # reading

    def get(self, key: str, default: Any = None, wanted: Any = None) -> Op[Any]:
        """A copy of a value, as type `wanted` if given; the default where there is none."""
        self.check("read")
        check_key(key)

        def op(sheet: Sheet) -> Any:
            entry = sheet.entry(self.place, key)
            if entry is None:
                return self.setup.default_of(key, default)
            if wanted is None:
                return copied(entry["value"])
            return self._typed(key, entry["value"], wanted, secret="secret" in entry)

        return op

    def keys(self, prefix: str) -> Op[list[str]]:
        """The keys that begin with a prefix."""
        self.check("list")
        return lambda sheet: [k for k in sheet.live(self.place) if k.startswith(prefix)]

    def items(self, *, redact: bool) -> Op[dict[str, Any]]:
        """A copy of everything."""
        self.check("list", "read")
        secrets = self.setup.secrets

        def op(sheet: Sheet) -> dict[str, Any]:
            return {
                k: REDACTED if redact and ("secret" in e or k in secrets) else copied(e["value"])
                for k, e in sheet.live(self.place).items()
            }

        return op

    # writing

    def set(self, key: str, value: Any, ttl_s: float | None = None, *, secret: bool = False) -> Op[None]:
        """Put a value, checked and copied now. Raises InvalidKey, InvalidState naming the place, LimitExceeded."""
        self.check("write")
        check_key(key)
        ttl_ms = check_ttl(ttl_s, self.setup.limits)
        hidden = secret or key in self.setup.secrets
        ready = self._ready(key, value, secret=hidden)

        def op(sheet: Sheet) -> None:
            until = None if ttl_ms is None else sheet.now_ms + ttl_ms
            sheet.put(self.place, key, ready, expires=until, secret=hidden)

        return op

    def update(self, values: Mapping[str, Any], delete: Sequence[str], ttl_s: float | None) -> Op[None]:
        """Set many, delete others."""
        if not isinstance(values, Mapping) or isinstance(delete, str):
            raise Invalid("update takes a mapping of keys to values, and a list of keys to delete")
        return together(*(self.set(k, v, ttl_s) for k, v in values.items()), *(self.delete(k) for k in delete))

    def delete(self, key: str) -> Op[bool]:
        """Take a key out; whether it was there."""
        self.check("delete")
        check_key(key)
        return lambda sheet: sheet.remove(self.place, key)

    def clear(self, *, steps: bool = False) -> Op[int]:
        """Take everything out, of the workflow's steps too if asked; how many values there were."""
        self.check("delete")
        if steps and self.scope.kind != "workflow":
            raise Invalid(f"{self.scope} has no steps to clear; only a workflow has")

        def op(sheet: Sheet) -> int:
            others = [self.step(name) for name in sheet.steps()] if steps else []
            for other in others:
                other.check("delete")
            return sum(sheet.clear(a.place) for a in (self, *others))

        return op

    def swap(self, key: str, expected: Any, value: Any) -> Op[bool]:
        """Set a value only if `expected` is there; whether it was. ABSENT is no value, on both sides."""
        self.check("read")
        wanted = expected if expected is ABSENT else clean(expected, **self._bounds)
        then = self.delete(key) if value is ABSENT else self.set(key, value)

        def op(sheet: Sheet) -> bool:
            found = same(sheet.value(self.place, key), wanted)
            if found:
                then(sheet)
            return found

        return op

    def increment(self, key: str, by: Any) -> Op[int | float]:
        """Add to a number, absent counting as 0; the sum."""
        self.check("read", "write")
        check_key(key)
        amount = clean(by, **self._bounds)
        if type(amount) not in (int, float):
            raise Invalid(f"{self.scope}: increment of {key!r} by {type(by).__name__}; a number is needed")

        def op(sheet: Sheet) -> int | float:
            total = sheet.add(self.place, key, amount)
            self._ready(key, total, secret=True)
            return total

        return op

    def _ready(self, key: str, value: Any, *, secret: bool) -> Any:
        """Return a private copy of a value that may be stored. Raises InvalidState, LimitExceeded."""
        value = clean(value, path=(*self.place, key, "value"), **self._bounds)
        wanted = self.setup.types.get(key)
        if wanted is not None:
            self._typed(key, value, wanted, secret=secret)
        size, allowed = size_of(value), self.setup.limits.value_bytes_max
        if size > allowed:
            raise exceeded("value_bytes_max", allowed, size, f"{self.scope}: the value of {key!r} has {size:,} bytes")
        return value

    def _typed(self, key: str, value: Any, wanted: Any, *, secret: bool) -> Any:
        try:
            return msgspec.convert(copied(value), wanted)
        except msgspec.ValidationError as cause:
            why = REDACTED if secret or key in self.setup.secrets else str(cause)  # some messages quote the value
        name = getattr(wanted, "__name__", str(wanted))
        raise InvalidState(f"{self.scope}: {key!r} is not {name}: {why}", path=f"/{key}")
