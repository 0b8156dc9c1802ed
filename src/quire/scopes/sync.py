"""Scoped state for code without an event loop: the same words without `await`, safe from any thread.

Bodies and docstrings are those of the async twins; tests/test_parity.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from quire.api import sync
from quire.model import Path, Version
from quire.scopes import manager as _scopes
from quire.scopes import state as _state
from quire.scopes.names import StateScope
from quire.scopes.setup import StateBuilder
from quire.scopes.watch import StateEvent

Keys = list[str]


class State:
    """The state of one scope, as one agent sees it, for threads."""

    def __init__(self, loop: sync._Loop, state: _state.State) -> None:  # pyright: ignore[reportPrivateUsage]
        self.scope = state.scope
        self.agent = state.agent
        self._loop = loop
        self._state = state

    def __repr__(self) -> str:
        return repr(self._state)

    def global_(self) -> State:
        return State(self._loop, self._state.global_())

    def step(self, step_name: str) -> State:
        return State(self._loop, self._state.step(step_name))

    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - as in the twin
        return self._loop.run(self._state.get(key, default, type=type))

    def lookup(self, key: str, default: Any = None) -> Any:
        return self._loop.run(self._state.lookup(key, default))

    def list(self, prefix: str = "") -> Keys:
        return self._loop.run(self._state.list(prefix))

    def items(self, *, redact: bool = False) -> dict[str, Any]:
        return self._loop.run(self._state.items(redact=redact))

    def set(
        self, key: str, value: Any, *, ttl_s: float | None = None, secret: bool = False, message: str = ""
    ) -> Version:
        return self._loop.run(self._state.set(key, value, ttl_s=ttl_s, secret=secret, message=message))

    def update(
        self, values: Mapping[str, Any], *, delete: Sequence[str] = (), ttl_s: float | None = None, message: str = ""
    ) -> Version | None:
        return self._loop.run(self._state.update(values, delete=delete, ttl_s=ttl_s, message=message))

    def delete(self, key: str, *, message: str = "") -> bool:
        return self._loop.run(self._state.delete(key, message=message))

    def clear(self, *, steps: bool = False, message: str = "") -> int:
        return self._loop.run(self._state.clear(steps=steps, message=message))

    def compare_and_swap(self, key: str, expected: Any, value: Any, *, message: str = "") -> bool:
        return self._loop.run(self._state.compare_and_swap(key, expected, value, message=message))

    def increment(self, key: str, by: int | float = 1, *, message: str = "") -> int | float:
        return self._loop.run(self._state.increment(key, by, message=message))

    def watch(
        self, key: str | None = None, *, after: int | None = None, cursor: str | None = None
    ) -> Iterator[StateEvent]:
        return self._loop.iterate(partial(self._state.watch, key, after=after, cursor=cursor))


class WorkflowStateManager:
    """Gives access to scopes, as one agent under one set of rules, for threads. See quire.WorkflowStateManager."""

    def __init__(self, store: sync.Store, setup: StateBuilder | None = None, *, agent: str = "system") -> None:
        self.store = store
        self._loop, twin = store._loop, store._store  # pyright: ignore[reportPrivateUsage]
        self._manager = _scopes.WorkflowStateManager(twin, setup, agent=agent)
        self.setup = self._manager.setup
        self.agent = agent

    def __repr__(self) -> str:
        return repr(self._manager)

    def state(self, scope: StateScope) -> State:
        return State(self._loop, self._manager.state(scope))

    def workflow_state(self, workflow_id: str) -> State:
        return State(self._loop, self._manager.workflow_state(workflow_id))

    def global_(self) -> State:
        return State(self._loop, self._manager.global_())

    def place(self, scope: StateScope, key: str) -> tuple[str, Path]:
        return self._manager.place(scope, key)

    def scopes(self, kind: str | None = None) -> list[StateScope]:
        return self._loop.run(self._manager.scopes(kind))

    def update(
        self, values: Mapping[StateScope, Mapping[str, Any]], *, ttl_s: float | None = None, message: str = ""
    ) -> list[Version | None]:
        return self._loop.run(self._manager.update(values, ttl_s=ttl_s, message=message))

    def copy_scope(self, source: StateScope, target: StateScope, *, message: str = "") -> int:
        return self._loop.run(self._manager.copy_scope(source, target, message=message))

    def move_scope(self, source: StateScope, target: StateScope, *, message: str = "") -> int:
        return self._loop.run(self._manager.move_scope(source, target, message=message))


def _document() -> None:
    """Give each method its async twin's docstring: written once, the same in both."""
    for ours, theirs in ((State, _state.State), (WorkflowStateManager, _scopes.WorkflowStateManager)):
        for name, method in vars(ours).items():
            twin = getattr(theirs, name, None)
            if not name.startswith("_") and twin is not None and callable(method):
                method.__doc__ = twin.__doc__


_document()
