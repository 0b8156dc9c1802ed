"""StepState: scoped state inside a step of a run, written with the step's one commit.

Exactly once with respect to state: what a step writes here is stored together with its result, in every log it
touched, or not at all. A step that fails, or whose process dies, leaves nothing.

1. Reads see the logs as they were when the attempt began, and the step's own writes on top. Steps at the same time do
   not see each other's: check what all of them did in the step that follows.
2. Writes are worked out again at the commit, on the newest state: increments of steps at the same time all count, of
   two that set one key the later wins. Where it had read the key (or listed the keys), and others changed it since, that
   is recorded as a conflict; with `step(on_stale="rerun")` the step runs again, with "fail" it fails. Limits on whole
   scopes are checked then, and fail the step.
3. Plain functions, no `await`: like the draft in `context.state`, it is used by one step in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from msgspec import UNSET, structs

from quire.core.resolve import Met
from quire.core.values import copied, same
from quire.engine.backend_clock import Reading
from quire.engine.conflicts import waiting
from quire.engine.engine import Engine
from quire.engine.write import Base, Write
from quire.errors import Closed, Invalid, MergeConflict
from quire.model import WORKFLOWS, Path, Set
from quire.scopes.access import REDACTED, Access, Op, together
from quire.scopes.names import StateScope
from quire.scopes.setup import StateBuilder
from quire.scopes.sheet import ABSENT, Sheet

T = TypeVar("T")
Keys = list[str]
_Place = tuple[Path, str]


class _Log:
    """A log that the step may touch: as it was, with the step's writes on top, and what those writes were."""

    def __init__(self, access: Access, base: Base, reading: Reading) -> None:
        self.access = access
        self.base = base
        self.reading = reading
        self._began_ms = reading.now_ms()
        self.sheet = self.anew()
        self.ops: list[Op[Any]] = []
        self._read: set[tuple[Path, str | None]] = set()
        self._own: set[_Place] = set()
        self._relied: dict[_Place, Any] = {}
        """What was read and then written, with the value that was read."""
        self._overrules = False

    def anew(self) -> Sheet:
        return self.access.sheet(self.base.state, lambda: self._began_ms)

    def saw(self, place: Path, key: str | None) -> None:
        """Note that a key was read; None: which keys there are."""
        self._read.add((place, key))

    def wrote(self, place: Path, keys: Iterable[str]) -> None:
        """Note that keys were replaced or deleted."""
        for key in keys:
            at = (place, key)
            if at not in self._own and (at in self._read or (place, None) in self._read):
                self._relied[at] = self.anew().value(place, key)
            self._own.add(at)

    def check(self, sheet: Sheet) -> None:
        """Raise MergeConflict where what was read and then written is not what it was."""
        if self._overrules:
            return
        for (place, key), before in self._relied.items():
            now = sheet.value(place, key)
            if not same(before, now):
                raise self._stale((*place, key), before, now, secret="secret" in (sheet.entry(place, key) or {}))

    def _stale(self, path: Path, before: Any, now: Any, *, secret: bool) -> MergeConflict:
        hidden = secret or path[-1] in self.access.setup.secrets
        was, is_now = (UNSET if v is ABSENT else REDACTED if hidden else copied(v) for v in (before, now))
        met = Met(path, was, UNSET, is_now, Set(path, None), 0, 0, "pending")
        return MergeConflict(
            f"{self.access.home}: {path[-1]!r} was read by this step, and written by others since: nothing was written; "
            "run the step again, or use increment and compare_and_swap",
            conflicts=[met],
            base=self.base.version,
            workflow_id=self.access.scope.log_id,
            reason="stale",
        )

    def write(self, message: str) -> Write:
        """Return what the step did here, as it is worked out at the commit."""
        return self.access.part(together(self.check, *self.ops), message, self.reading.now_ms)[0]

    def overrule(self, stale: MergeConflict, name: str, author: str, now_ms: int) -> Write:
        """Let the step's writes stand whatever others wrote; return the write that records it."""
        self._overrules = True
        stale.conflicts = [structs.replace(met, outcome="ours") for met in stale.conflicts]
        return waiting(name, stale, author=author, now_ms=now_ms)


class Desk:
    """What one attempt reads and writes in scope logs."""

    def __init__(self) -> None:
        self.closed = False
        self._logs: dict[str, _Log] = {}

    async def lay(self, access: Access) -> None:
        """Take in the newest state of a scope's log."""
        reading = await access.engine.backend_clock.reading()  # what the step will ask for is not known yet
        actor = await access.engine.current(access.stream)
        self._logs.setdefault(access.stream, _Log(access, Base(actor.head.version, actor.state), reading))

    def read(self, access: Access, op: Op[T], key: str | None) -> T:
        """Do something that changes nothing and reads a key (None: all keys).

        Raises Closed after the step, Invalid where the log is not at hand.
        """
        log = self._log(access)
        log.saw(access.place, key)
        return op(log.sheet)

    def do(self, access: Access, op: Op[T], keys: Callable[[], Iterable[str]]) -> T:
        """Do something now, for this step to see, and again at the commit. keys: asked first, those it replaces or deletes."""
        log = self._log(access)
        log.wrote(access.place, keys())
        try:
            result = op(log.sheet)
        except BaseException:  # the agent may catch it and go on: nothing half done may stay on the sheet
            log.sheet = log.anew()
            together(*log.ops)(log.sheet)
            raise
        log.ops.append(op)
        return result

    def parts(self, message: str) -> list[Write]:
        """Return the writes of all logs that something was done to."""
        logs = [log for log in self._logs.values() if log.ops]
        return [log.write(message) for log in logs]

    def knows(self, workflow_id: str) -> bool:
        """Return True if a workflow is one of these logs."""
        return WORKFLOWS + workflow_id in self._logs

    def overruled(
        self, stale: MergeConflict, parts: Sequence[Write], name: str, author: str, now_ms: int
    ) -> list[Write]:
        """Return the parts with one more: the record of a stale write that stands all the same."""
        return [*parts, self._logs[WORKFLOWS + stale.workflow_id].overrule(stale, name, author, now_ms)]

    def keys(self, access: Access) -> Iterable[str]:
        """Return the keys of a scope, as this step sees them."""
        return list(self._log(access).sheet.entries(access.place))

    def _log(self, access: Access) -> _Log:
        if self.closed:
            raise Closed("this step has ended; use a WorkflowStateManager outside of steps")
        log = self._logs.get(access.stream)
        if log is None:
            raise Invalid(
                f"{access.scope} is not at hand in this step: name it when the run is begun, with "
                "StateBuilder().using(scope)"
            )
        return log


class StepState:
    """One scope as a step sees it: `context.state_accessor` is that of the run's workflow.

    Methods mean what those of `State` do and raise the same; what they write is stored with the step's result.
    """

    def __init__(self, desk: Desk, access: Access) -> None:
        self.scope = access.scope
        self._desk = desk
        self._access = access

    def __repr__(self) -> str:
        return f"<StepState of {self.scope} for {self._access.agent}>"

    def global_(self) -> StepState:
        """Return the state that everybody shares."""
        return StepState(self._desk, self._access.to(StateScope.global_()))

    def step(self, step_name: str) -> StepState:
        """Return the state of a step of this run's workflow."""
        return StepState(self._desk, self._access.step(step_name))

    def of(self, scope: StateScope) -> StepState:
        """Return the state of another scope; using it raises Invalid unless `StateBuilder.using` named its log."""
        return StepState(self._desk, self._access.to(scope))

    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - as in State
        """Return a copy of a value, or the default. Right: read."""
        return self._desk.read(self._access, self._access.get(key, default, type), key)

    def lookup(self, key: str, default: Any = None) -> Any:
        """Return the nearest value: of this scope, else of a step's workflow, else of global. Right: read in each."""
        for scope in self.scope.chain:
            access = self._access.to(scope)
            value = self._desk.read(access, access.get(key, ABSENT), key)
            if value is not ABSENT:
                return value
        return self._access.setup.default_of(key, default)

    def list(self, prefix: str = "") -> Keys:
        """Return the keys that begin with `prefix`. Right: list."""
        return self._desk.read(self._access, self._access.keys(prefix), None)

    def set(self, key: str, value: Any, *, ttl_s: float | None = None, secret: bool = False) -> None:
        """Put a JSON value under a key. Right: write."""
        self._desk.do(self._access, self._access.set(key, value, ttl_s, secret=secret), lambda: [key])

    def update(self, values: Mapping[str, Any], *, delete: Sequence[str] = (), ttl_s: float | None = None) -> None:
        """Set many keys and delete others. Rights: write, and delete where something is deleted."""
        self._desk.do(self._access, self._access.update(values, delete, ttl_s), lambda: [*values, *delete])

    def delete(self, key: str) -> bool:
        """Take a key out; tell whether it was there. Right: delete."""
        return self._desk.do(self._access, self._access.delete(key), lambda: [key])

    def clear(self) -> int:
        """Take every key out; return how many there were. Right: delete."""
        return self._desk.do(self._access, self._access.clear(), lambda: self._desk.keys(self._access))

    def increment(self, key: str, by: int | float = 1) -> int | float:
        """Add to a number and return the sum as this step sees it; those of other steps all count. Rights: read, write."""
        total = self._desk.do(self._access, self._access.increment(key, by), list[str])
        return self._desk.read(self._access, lambda _: total, key)


async def step_state(engine: Engine, setup: StateBuilder, workflow_id: str, agent: str) -> tuple[StepState, Desk]:
    """Return what a step is given, and the desk that its commit takes the writes from. Cost: a read for each log."""
    own = Access(engine, StateScope.workflow(workflow_id), setup, agent)
    desk = Desk()
    for scope in (own.scope, StateScope.global_(), *setup.scopes):
        await desk.lay(own.to(scope))
    return StepState(desk, own), desk
