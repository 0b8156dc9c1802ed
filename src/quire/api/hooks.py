"""Hooks before a change: plain functions that look at a write as it is about to be applied, and may alter or refuse it.

1. Every write to a workflow passes here, whoever makes it: in the actor, after it was adjusted to what others wrote and
   before it is applied. So what watchers, blame and diff see is what the hooks left.
2. A hook that fails changes nothing: it is logged and counted, and the write goes on as if it were not there. One that
   is declared a guard refuses the write instead. So does `Denied`, raised by any of them.
3. What a hook answers is held to the rules for what callers write, and has to fit the state.
4. A hook only computes. It runs between two commits, so all writers wait for it; it may be asked again about a write
   that has to be prepared again, because another process was first.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from quire.api import writes
from quire.api.reading import Pointer
from quire.api.writes import Changes
from quire.calls import call, in_words, name_of, raised
from quire.core import record
from quire.core.changes import apply
from quire.core.guards import pure
from quire.core.history import touches
from quire.core.names import check_id
from quire.core.path import get, parse
from quire.core.values import copied
from quire.engine.actor import DELETED
from quire.engine.correlation import CAUSE, Cause, split
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import ChangeError, Denied, HookFailed, Invalid, InvalidState, LimitExceeded
from quire.model import WORKFLOWS, Change, Fork, Path

log = logging.getLogger("quire.hooks")

Plan = Sequence[Change | Fork]


class Proposed(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """A write that is about to be applied. What is read from it is a copy, the hook's to keep.

    correlation_id: the one it was given, if any. It has no version yet.
    """

    workflow_id: str
    author: str
    message: str
    kind: str
    correlation_id: str | None
    _changes: Plan
    _state: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Proposed {self.kind} of {self.workflow_id} by {self.author}>"

    @property
    def changes(self) -> list[Change | Fork]:
        """What is to change, in order, as hooks asked before left it. It may turn out not to fit the state."""
        return [_copy(c) for c in self._changes]

    @property
    def state(self) -> dict[str, Any]:
        """The whole state before the write. Cost: O(state), each time."""
        return cast("dict[str, Any]", copied(self._state))

    def get(self, path: Pointer, default: Any = None) -> Any:
        """Return the value at a path before the write, or `default`. Cost: O(depth + the value)."""
        return copied(get(self._state, parse(path), default))

    def after(self, path: Pointer = "", default: Any = None) -> Any:
        """Return the value at a path as the write would leave it. Raises ChangeError for a write that does not fit.

        Cost: applies the changes, each time.
        """
        return copied(get(apply(self._state, _plain(self._changes)), parse(path), default))


class Hook:
    """What was registered. As a decorator with options it takes the function; then it calls it.

    name: of the function, as it is logged.  calls, failures: since it was registered.  last_error: "" while none.
    """

    def __init__(self, fn: Callable[..., Any] | None, enter: Callable[[Any], None], leave: Callable[[Any], None]):
        self.name = ""
        self.calls = 0
        self.failures = 0
        self.last_error = ""
        self._fn: Callable[..., Any] | None = None
        self._enter, self._leave = enter, leave
        if fn is not None:
            self._bind(fn)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.calls} calls, {self.failures} failures>"

    def __call__(self, *arguments: Any) -> Any:
        """Take the function that this decorates; afterwards call it."""
        if self._fn is not None:
            return self._fn(*arguments)
        self._bind(*arguments)
        return self

    def remove(self) -> None:
        """Do not call it any more. From any thread; repeating is harmless."""
        self._leave(self)

    def failed(self, error: BaseException) -> str:
        """Count a failure; return it in words that can be stored and shown."""
        self.failures += 1
        self.last_error = in_words(error)
        return self.last_error

    def _bind(self, fn: Callable[..., Any]) -> None:
        if not callable(fn):
            raise Invalid(f"a hook is a function, not {type(fn).__name__}")
        self._check(fn)
        self._fn, self.name = fn, name_of(fn)
        self._enter(self)

    def _check(self, fn: Callable[..., Any]) -> None:
        """Raise Invalid for a function of the wrong kind."""


class BeforeHook(Hook):
    """A hook before changes. guard: what it refuses when it fails."""

    def __init__(
        self,
        fn: Callable[..., Any] | None,
        enter: Callable[[Any], None],
        leave: Callable[[Any], None],
        *,
        path: Path | None,
        workflow_id: str | None,
        guard: bool,
    ) -> None:
        self.path, self.workflow_id, self.guard = path, workflow_id, guard
        super().__init__(fn, enter, leave)

    def wants(self, workflow_id: str, plan: Plan) -> bool:
        """Tell whether it is to be asked about these changes."""
        if self.workflow_id not in (None, workflow_id):
            return False
        path = self.path
        return path is None or any(isinstance(c, Fork) or touches(c, path) for c in plan)

    def _check(self, fn: Callable[..., Any]) -> None:
        if inspect.iscoroutinefunction(fn):
            raise Invalid(
                f"{name_of(fn)} is async: a hook before changes must not wait; see `on_change` for after them"
            )


class BeforeHooks:
    """The hooks before changes of one store, asked in the order they were registered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._hooks: tuple[BeforeHook, ...] = ()
        self._lock = threading.Lock()

    def add(self, fn: Any, *, path: Pointer | None, workflow: str | None, guard: bool) -> BeforeHook:
        """Register a function, or what will take one. Raises Invalid, InvalidKey."""
        if type(guard) is not bool:
            raise Invalid(f"guard {guard!r}: True or False is needed")
        tokens = None if path is None else parse(path)
        workflow_id = None if workflow is None else check_id(workflow, "workflow id")
        return BeforeHook(fn, self._enter, self._leave, path=tokens, workflow_id=workflow_id, guard=guard)

    def _enter(self, hook: BeforeHook) -> None:
        with self._lock:
            self._hooks = (*self._hooks, hook)
            self._engine.committer.before = self._ask_all

    def _leave(self, hook: BeforeHook) -> None:
        with self._lock:
            self._hooks = tuple(h for h in self._hooks if h is not hook)
            if not self._hooks:
                self._engine.committer.before = None

    def _ask_all(self, write: Write, plan: Plan, state: dict[str, Any]) -> Plan:
        """Return what the hooks leave of a write; the very same object where they leave it as it is."""
        if write.stream.startswith(WORKFLOWS):
            workflow_id = write.stream.removeprefix(WORKFLOWS)
            for hook in self._hooks:
                if hook.wants(workflow_id, plan):
                    plan = self._ask(hook, workflow_id, write, plan, state)
        return plan

    def _ask(self, hook: BeforeHook, workflow_id: str, write: Write, plan: Plan, state: dict[str, Any]) -> Plan:
        message, given = split(write.message)
        proposed = Proposed(workflow_id, write.author, message, write.kind, given, plan, state)
        hook.calls += 1
        # this runs in the task of whoever wrote first: what a hook starts is to be ascribed to this write
        token = CAUSE.set(Cause(given))
        try:
            answer = call(hook, proposed)
            return plan if answer is None else call(self._checked, answer, workflow_id, write, state)
        except Denied:
            raise
        except Exception as error:  # noqa: BLE001 - a user's code: contained, named, counted
            if not self._fits(workflow_id, state, plan):
                return plan  # it fails by itself, with an error that is its caller's
            said, cause = hook.failed(error), raised(error)
        finally:
            CAUSE.reset(token)
        what = "the guard" if hook.guard else "the hook"
        log.warning("%s %s failed on a write to %s: %s", what, hook.name, workflow_id, said)
        if not hook.guard:
            return plan
        raise HookFailed(
            f"{workflow_id}: the guard {hook.name} failed ({said}); nothing was written: repair the hook, or remove it",
            hook=hook.name,
        ) from cause

    def _fits(self, workflow_id: str, state: dict[str, Any], plan: Plan) -> bool:
        """Tell whether changes can be made as they are."""
        try:
            self._engine.schemas.check(workflow_id, apply(state, _plain(plan)))
        except (ChangeError, InvalidState):
            return False
        return True

    def _checked(self, answer: Any, workflow_id: str, write: Write, state: dict[str, Any]) -> Plan:
        """Return a hook's changes as they can be applied. Raises Invalid, InvalidState, ChangeError, LimitExceeded."""
        if inspect.iscoroutine(answer):
            answer.close()
            raise Invalid("it returned a coroutine; a hook before changes must not wait")
        planned = writes.plan_of(cast("Changes", answer), self._engine.settings, workflow_id)
        changes = pure(planned(state) if callable(planned) else planned)
        if write.start is not None or write.kind == DELETED:
            raise Invalid("a fork and a deletion can be refused, not altered")
        plain = _plain(changes)
        self._engine.schemas.check(workflow_id, apply(state, plain))
        size, most = len(record.encode(plain)), self._engine.settings.write_bytes_max
        if size > most:
            raise LimitExceeded(
                f"its changes weigh {size:,} bytes, allowed are {most:,}",
                limit="write_bytes_max",
                allowed=most,
                found=size,
            )
        return changes


def _plain(plan: Plan) -> list[Change]:
    return [c for c in plan if not isinstance(c, Fork)]


def _copy(change: Change | Fork) -> Change | Fork:
    held: Any = change
    if hasattr(held, "values"):
        return msgspec.structs.replace(held, values=copied(held.values))
    if hasattr(held, "value"):
        return msgspec.structs.replace(held, value=copied(held.value))
    return change
