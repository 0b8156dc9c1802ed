"""One agent's access to one scope: what is checked and prepared before a log is read or written.

The same for state that is written at once (scopes.State) and for what a step writes with its commit
(_scopes_step.StepState), so that no rule holds in only one of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quire.api import writes
from quire.api._scopes_names import StateScope
from quire.api._scopes_rules import check_key, check_ttl
from quire.api._scopes_setup import StateBuilder
from quire.api._scopes_sheet import ABSENT, Sheet, live, weight, where_of
from quire.api.permissions import Right
from quire.core.fold import copied
from quire.core.values import clean
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import Invalid, InvalidState, LimitExceeded
from quire.model import WORKFLOWS, Change

log = logging.getLogger("quire.scopes")

REDACTED = "[REDACTED]"

Op = Callable[[Sheet], Any]
"""Something to do on a sheet. It may be called more than once, on sheets over different states."""


class Access:
    """See above. agent: who is checked against the policy, and blamed for what is written."""

    __slots__ = ("agent", "bounds", "engine", "scope", "setup", "where")

    def __init__(self, engine: Engine, scope: StateScope, setup: StateBuilder, agent: str) -> None:
        self.engine = engine
        self.scope = scope
        self.setup = setup
        self.agent = writes.name(agent, "agent")
        self.where = where_of(scope)
        self.bounds = writes.limits(engine.settings)

    def to(self, scope: StateScope) -> Access:
        """Return the same agent's access to another scope."""
        return Access(self.engine, scope, self.setup, self.agent)

    def check(self, *rights: Right) -> None:
        """Raise ScopeDenied unless the policy allows all of these here."""
        policy = self.setup.policy
        if policy is not None:
            for right in rights:
                policy.check(self.agent, self.scope, right)

    def sheet(self, state: dict[str, Any]) -> Sheet:
        """Return a sheet over the state of this scope's log."""
        return Sheet(state, self.where, self.setup.limits, self.engine.clock.now_ms())

    def secret(self, held: dict[str, Any], key: str) -> bool:
        """Tell whether a key's value must not be shown."""
        return key in self.setup.secrets or key in held.get("secret", ())

    def shown(self, held: dict[str, Any], key: str, value: Any) -> str:
        """Return a value as a log may show it."""
        return REDACTED if self.secret(held, key) else repr(value)

    def answer(self, held: dict[str, Any], key: str, default: Any, wanted: Any) -> Any:
        """Return a copy of what is held under a key, as `wanted` if that is not None, or the default."""
        value = live(held, key, self.engine.clock.now_ms())
        if value is ABSENT or wanted is None:
            return self.given(key, value, default, None, secret=False)
        return self.given(key, value, default, wanted, secret=self.secret(held, key))

    def given(self, key: str, value: Any, default: Any, wanted: Any, *, secret: bool) -> Any:
        """Return the same for a value already found."""
        if value is ABSENT:
            return self.setup.default_of(key, default)
        return copied(value) if wanted is None else self._typed(key, value, wanted, secret=secret)

    def put(self, key: str, value: Any, ttl_s: float | None, *, secret: bool) -> Op:
        """Return what sets a value, checked and copied now.

        Raises InvalidKey, InvalidState naming the place, LimitExceeded.
        """
        check_key(key)
        ttl_ms = check_ttl(ttl_s, self.setup.limits)
        value, size = self.ready(key, value, secret=secret)
        where, engine = self.where, self.engine
        hidden = secret or key in self.setup.secrets

        def op(sheet: Sheet) -> None:
            until = None if ttl_ms is None else engine.clock.now_ms() + ttl_ms
            sheet.put(where, key, value, size, until=until, secret=hidden)

        return op

    def removal(self, key: str) -> Callable[[Sheet], bool]:
        """Return what takes a key out and tells whether it was there. Raises InvalidKey, LimitExceeded."""
        check_key(key)
        return lambda sheet: sheet.remove(self.where, key)

    def addition(self, key: str, by: Any) -> Callable[[Sheet], int | float]:
        """Return what adds to a number and gives the sum. Raises InvalidKey, LimitExceeded, InvalidState, Invalid."""
        check_key(key)
        amount = clean(by, **self.bounds)
        if type(amount) not in (int, float):
            raise Invalid(f"{self.scope}: increment {key!r} by {type(by).__name__}; a number is needed")

        def op(sheet: Sheet) -> int | float:
            total = sheet.add(self.where, key, amount)
            self.ready(key, total)
            return total

        return op

    def clear(self, sheet: Sheet, *, steps: bool) -> int:
        """Take everything out, of the workflow's steps too if asked; return how many values there were."""
        count = sheet.forget(self.where)
        for token, name in sheet.steps().items() if steps else ():
            step = self.to(StateScope.step(self.scope.id, name))
            step.check("delete")
            count += sheet.forget(step.where)
            assert step.where.token == token
        return count

    def part(self, ops: Sequence[Op], message: str) -> Write:
        """Return a write of this scope's log that is not done yet."""

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            sheet = self.sheet(state)
            for op in ops:
                op(sheet)
            return sheet.finish()

        stream = WORKFLOWS + self.where.log_id
        return Write(stream, plan, author=self.agent, message=writes.text(message), exists=None)

    def ready(self, key: str, value: Any, *, secret: bool = False) -> tuple[Any, int]:
        """Return a private copy of a value and its weight. Raises InvalidState, LimitExceeded."""
        value = clean(value, path=(*self.where.base, "values", key), **self.bounds)
        wanted = self.setup.types.get(key)
        if wanted is not None:
            self._typed(key, value, wanted, secret=secret or key in self.setup.secrets)
        size = weight(key, value)
        found, allowed = size - weight(key, 0) + 1, self.setup.limits.value_bytes_max
        if found > allowed:
            raise LimitExceeded(
                f"{self.scope}: the value of {key!r} has {found:,} bytes, allowed are {allowed:,}; keep large bytes in "
                "a blob (`store.put_blob`) and store its name",
                limit="value_bytes_max",
                allowed=allowed,
                found=found,
            )
        return value, size

    def _typed(self, key: str, value: Any, wanted: Any, *, secret: bool) -> Any:
        try:
            return msgspec.convert(copied(value), wanted)
        except msgspec.ValidationError as cause:
            why = REDACTED if secret else str(cause)  # some messages quote the value
        name = getattr(wanted, "__name__", str(wanted))
        raise InvalidState(f"{self.scope}: {key!r} is not {name}: {why}", path=f"/{key}")
