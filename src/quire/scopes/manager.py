"""WorkflowStateManager: the way to scopes, and what is done to several of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.api.store import Store
from quire.core.values import copied
from quire.engine.backend_clock import Now
from quire.errors import Invalid
from quire.model import WORKFLOWS, Path, Version
from quire.scopes.access import Access, Op, together
from quire.scopes.names import PREFIX, StateScope
from quire.scopes.setup import StateBuilder, check_key
from quire.scopes.sheet import Entry, Sheet
from quire.scopes.state import State


class WorkflowStateManager:
    """Gives access to scopes, as one agent under one set of rules. Holds nothing: make as many as you like.

    store: an open Store.  setup: limits, defaults, types, secrets and permissions.  agent: who reads and writes; it
    is checked against the policy, and is the author of every version.
    Raises Invalid for a name of an agent that is not allowed.

    >>> async with quire.open("sqlite:///state.db") as store:            # doctest: +SKIP
    ...     state = WorkflowStateManager(store).workflow_state("workflow_123")
    ...     await state.set("config", {"retries": 3})
    ...     await state.step("process_data").set("progress", 0.5)
    """

    def __init__(self, store: Store, setup: StateBuilder | None = None, *, agent: str = "system") -> None:
        self.store = store
        self.setup = StateBuilder() if setup is None else setup
        self.agent = agent
        self._global = Access(store.engine, StateScope.global_(), self.setup, agent)

    def __repr__(self) -> str:
        return f"<WorkflowStateManager for {self.agent}>"

    def state(self, scope: StateScope) -> State:
        """Return the state of any scope. Raises Invalid for what is not a scope."""
        return State(self.store, self._global.to(scope))

    def workflow_state(self, workflow_id: str) -> State:
        """Return the state of a workflow. Raises InvalidKey."""
        return self.state(StateScope.workflow(workflow_id))

    def global_(self) -> State:
        """Return the state that everybody shares."""
        return self.state(StateScope.global_())

    def place(self, scope: StateScope, key: str) -> tuple[str, Path]:
        """Return where a key is kept: the id of an ordinary workflow, and the path of the value in its state.

        For what this face does not show: history, blame, checkpoints, restore. The policy does not reach there.
        """
        return scope.log_id, (*scope.place, check_key(key), "value")

    async def scopes(self, kind: str | None = None) -> list[StateScope]:
        """Return the scopes that hold something, of one kind or all, that this agent may list.

        In the order of their logs' ids, a workflow before its steps. Cost: reads every scope log's state.
        """
        policy = self.setup.policy
        found: list[StateScope] = []
        for log_id in await self.store.workflows(PREFIX):
            state = (await self.store.engine.current(WORKFLOWS + log_id)).state
            home = _home(log_id, state)
            if home is None:
                continue  # somebody's own workflow under such an id
            sheet = self._global.to(home).sheet(state)
            if sheet.entries(home.place):
                found.append(home)
            found += [StateScope.step(home.id, name) for name in sheet.steps()]
        return [
            s
            for s in found
            if (kind is None or s.kind == kind) and (policy is None or policy.allows(self.agent, s, "list"))
        ]

    async def update(
        self, values: Mapping[StateScope, Mapping[str, Any]], *, ttl_s: float | None = None, message: str = ""
    ) -> list[Version | None]:
        """Set keys in several scopes, all or none, durable together; a version for each log that changed.

        In the order of the scopes given, None for a log that stayed as it was. Right: write in each.
        """
        if not isinstance(values, Mapping):
            raise Invalid("update takes a mapping of scopes to mappings of keys to values")
        logs: dict[str, tuple[Access, list[Op[None]]]] = {}
        for scope, entries in values.items():
            access = self._global.to(scope)
            access.check("write")
            logs.setdefault(access.stream, (access, []))[1].append(access.update(entries, (), ttl_s))
        said = message or f"update {len(values)} scopes"
        engine = self.store.engine

        async def attempt(now: Now) -> list[Version | None]:
            return await engine.write_all([a.part(together(*ops), said, now)[0] for a, ops in logs.values()])

        return await engine.backend_clock.told(attempt) if logs else []

    async def copy_scope(self, source: StateScope, target: StateScope, *, message: str = "") -> int:
        """Put a copy of everything in one scope into another, over what is under the same keys; return how many.

        One commit that sees both as of one moment. Times to live and secrecy come along; a workflow's steps do not.
        Rights: list and read in the source, write in the target. Raises Invalid for a scope onto itself.
        """
        return await self._carry(source, target, message or f"copy from {source}", moving=False)

    async def move_scope(self, source: StateScope, target: StateScope, *, message: str = "") -> int:
        """Like `copy_scope`, and take it out of the source in the same commit. Right, besides: delete in the source."""
        return await self._carry(source, target, message or f"move from {source}", moving=True)

    async def _carry(self, source: StateScope, target: StateScope, message: str, *, moving: bool) -> int:
        giver, taker = self._global.to(source), self._global.to(target)
        if source == target:
            raise Invalid(f"{source} cannot be copied or moved onto itself")
        giver.check("list", "read", *(("delete",) if moving else ()))
        taker.check("write")
        carried: dict[str, Entry] = {}

        def take(sheet: Sheet) -> None:
            nonlocal carried
            carried = copied(sheet.live(giver.place))  # what follows in the same batch may alter the log's own
            if moving:
                sheet.clear(giver.place)

        def give(sheet: Sheet) -> None:
            for key, entry in carried.items():
                sheet.put(
                    taker.place, key, entry["value"], expires=entry.get("expires"), secret=entry.get("secret", False)
                )

        async def attempt(now: Now) -> None:
            if giver.stream == taker.stream:
                await self.store.engine.write(giver.part(together(take, give), message, now)[0])
            else:  # worked out in this order, each time anew if other processes were first
                parts = (giver.part(take, message, now), taker.part(give, message, now))
                await self.store.engine.write_all([write for write, _ in parts])

        await self.store.engine.backend_clock.told(attempt)
        return len(carried)


def _home(log_id: str, state: dict[str, Any]) -> StateScope | None:
    """Return whose log this is, None where it is no scope's."""
    named: Any = state.get("scope")
    if type(named) is not list or len(named) != 2:
        return None
    try:
        scope = StateScope(*named)
    except Invalid:
        return None
    return scope if scope.log_id == log_id and scope.home == scope else None
