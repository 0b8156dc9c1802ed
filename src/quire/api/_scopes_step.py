"""StepState: scoped state inside a step of a run, written with the step's one commit.

Exactly once with respect to state: what a step writes here is stored together with its result, in every log it
touched, or not at all. A step that fails, or whose process dies, leaves nothing.

1. Reads see the logs as they were when the attempt began, and the step's own writes on top. Steps at the same time do
   not see each other's: check what all of them did in the step that follows.
2. Writes are worked out again at the commit, on the newest state: increments of steps at the same time all count, of
   two that set one key the later wins. Limits are checked then.
3. Plain functions, no `await`: like the draft in `context.state`, it is used by one step in one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from quire.api._scopes_access import Access, Op
from quire.api._scopes_names import StateScope
from quire.api._scopes_rules import check_key
from quire.api._scopes_setup import StateBuilder
from quire.api._scopes_sheet import ABSENT, Sheet
from quire.core.fold import copied
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import Closed, Invalid
from quire.model import WORKFLOWS

T = TypeVar("T")
Keys = list[str]


class Desk:
    """The sheets of one attempt: one for each log that it may touch."""

    def __init__(self) -> None:
        self.closed = False
        self._sheets: dict[str, tuple[Access, Sheet, list[Op]]] = {}

    async def lay(self, access: Access) -> None:
        """Take in the newest state of a scope's log."""
        actor = await access.engine.current(WORKFLOWS + access.where.log_id)
        self._sheets.setdefault(access.where.log_id, (access, access.sheet(actor.state), []))

    def sheet(self, access: Access) -> Sheet:
        """Return the sheet of a scope's log. Raises Closed after the step, Invalid where it is not at hand."""
        if self.closed:
            raise Closed("this step has ended; use a WorkflowStateManager outside of steps")
        if access.where.log_id not in self._sheets:
            raise Invalid(
                f"{access.scope} is not at hand in this step: name it when the run is begun, with "
                "StateBuilder().using(scope)"
            )
        return self._sheets[access.where.log_id][1]

    def do(self, access: Access, op: Callable[[Sheet], T]) -> T:
        """Do something now, for this step to see, and again at the commit."""
        result = op(self.sheet(access))
        self._sheets[access.where.log_id][2].append(op)
        return result

    def parts(self, message: str) -> list[Write]:
        """Return the writes of all logs that something was done to."""
        return [access.part(ops, message) for access, _, ops in self._sheets.values() if ops]


class StepState:
    """One scope as a step sees it: `context.state_accessor` is that of the run's workflow.

    Methods mean what those of `State` do and raise the same, but for limits on whole scopes: they are found at the
    commit, and fail the step.
    """

    def __init__(self, desk: Desk, access: Access) -> None:
        self.scope = access.scope
        self._desk = desk
        self._access = access

    def __repr__(self) -> str:
        return f"<StepState of {self.scope} for {self._access.agent}>"

    def global_(self) -> StepState:
        """Return the state that everybody shares."""
        return self.of(StateScope.global_())

    def step(self, step_name: str) -> StepState:
        """Return the state of a step of this run's workflow."""
        if self.scope.kind not in ("workflow", "step"):
            raise Invalid(f"{self.scope} has no steps; only a workflow has")
        return self.of(StateScope.step(self.scope.id, step_name))

    def of(self, scope: StateScope) -> StepState:
        """Return the state of another scope that was named with `StateBuilder.using`. Raises Invalid for others."""
        access = self._access.to(scope)
        self._desk.sheet(access)
        return StepState(self._desk, access)

    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - as in State
        """Return a copy of a value, or the default. Right: read."""
        self._access.check("read")
        check_key(key)
        sheet, access = self._desk.sheet(self._access), self._access
        secret = key in access.setup.secrets or sheet.secret(access.where, key)
        return access.given(key, sheet.get(access.where, key), default, type, secret=secret)

    def lookup(self, key: str, default: Any = None) -> Any:
        """Return the nearest value: of this scope, else of a step's workflow, else of global. Right: read in each."""
        check_key(key)
        scope: StateScope | None = self.scope
        while scope is not None:
            access = self._access.to(scope)
            access.check("read")
            value = self._desk.sheet(access).get(access.where, key)
            if value is not ABSENT:
                return copied(value)
            scope = scope.parent
        return self._access.setup.default_of(key, default)

    def list(self, prefix: str = "") -> Keys:
        """Return the keys that begin with `prefix`. Right: list."""
        self._access.check("list")
        return [k for k in self._desk.sheet(self._access).keys(self._access.where) if k.startswith(prefix)]

    def set(self, key: str, value: Any, *, ttl_s: float | None = None, secret: bool = False) -> None:
        """Put a JSON value under a key. Right: write."""
        self._access.check("write")
        self._desk.do(self._access, self._access.put(key, value, ttl_s, secret=secret))

    def delete(self, key: str) -> bool:
        """Take a key out; tell whether it was there. Right: delete."""
        self._access.check("delete")
        return self._desk.do(self._access, self._access.removal(key))

    def clear(self) -> int:
        """Take every key out; return how many there were. Right: delete."""
        self._access.check("delete")
        return self._desk.do(self._access, lambda sheet: self._access.clear(sheet, steps=False))

    def increment(self, key: str, by: int | float = 1) -> int | float:
        """Add to a number and return the sum as this step sees it; those of other steps all count. Rights: read, write."""
        self._access.check("read", "write")
        return self._desk.do(self._access, self._access.addition(key, by))


async def step_state(engine: Engine, setup: StateBuilder, workflow_id: str, agent: str) -> tuple[StepState, Desk]:
    """Return what a step is given, and the desk that its commit takes the writes from. Cost: a read for each log."""
    own = Access(engine, StateScope.workflow(workflow_id), setup, agent)
    desk = Desk()
    for scope in (own.scope, StateScope.global_(), *setup.scopes):
        await desk.lay(own.to(scope))
    return StepState(desk, own), desk
