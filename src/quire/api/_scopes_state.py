"""State: the keys of one scope, read and written. What scopes are is said in scopes.py."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from quire.api._scopes_access import Access, Op, log
from quire.api._scopes_names import StateScope
from quire.api._scopes_rules import check_key
from quire.api._scopes_sheet import ABSENT, Sheet, live, live_keys, shelf
from quire.api._scopes_watch import StateEvent, events
from quire.api.store import Store
from quire.core.fold import copied
from quire.core.values import clean, same
from quire.errors import Invalid
from quire.model import WORKFLOWS, Version

Keys = list[str]


class State:
    """The state of one scope, as one agent sees it. Made by a WorkflowStateManager; making one does nothing.

    Every method raises InvalidKey or LimitExceeded for a key that breaks the rules, ScopeDenied where the policy says
    no, AlreadyExists where the log's id belongs to a workflow that is no scope's log, and StorageError. Writing raises
    InvalidState for what is not JSON or not of the declared type, and LimitExceeded; nothing is stored then.
    """

    def __init__(self, store: Store, access: Access) -> None:
        self.scope = access.scope
        self.agent = access.agent
        self._store = store
        self._engine = store.engine
        self.access = access
        self._where = access.where
        self._stream = WORKFLOWS + access.where.log_id

    def __repr__(self) -> str:
        return f"<State of {self.scope} for {self.agent}>"

    # neighbours

    def global_(self) -> State:
        """Return the state that everybody shares."""
        return self._of(StateScope.global_())

    def step(self, step_name: str) -> State:
        """Return the state of a step of this workflow (or of this step's workflow). Raises Invalid elsewhere."""
        if self.scope.kind not in ("workflow", "step"):
            raise Invalid(f"{self.scope} has no steps; only a workflow has")
        return self._of(StateScope.step(self.scope.id, step_name))

    # reading

    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - as in msgspec
        """Return a copy of a value; the default, or the one declared for the key, where there is none.

        type: what it must be, such as `int` or a msgspec.Struct; InvalidState when it is not. Right: read.
        Cost: O(value), some microseconds.
        """
        self.access.check("read")
        check_key(key)
        return self.access.answer(await self._held(), key, default, type)

    async def peek(self, key: str, default: Any = None) -> Any:
        """Return a value as this process knows it, without looking whether another one wrote. Right: read.

        In this process a write is seen as soon as it is acknowledged. Never waits for a writer while the log is in
        memory; in `quire.sync` it is then answered in the calling thread, beside any number of others.
        """
        value = self.at_hand(key, default)
        return await self.get(key, default) if value is ABSENT else value

    def at_hand(self, key: str, default: Any = None) -> Any:
        """Return what `peek` does, or ABSENT when the log is not in memory. From any thread, without a lock."""
        self.access.check("read")
        check_key(key)
        actor = self._engine.residents.peek(self._stream)
        if actor is None or self._engine.closed:
            return ABSENT
        return self.access.answer(shelf(actor.state, self._where), key, default, None)

    async def lookup(self, key: str, default: Any = None) -> Any:
        """Return the nearest value: of this scope, else of a step's workflow, else of global, else the default.

        Right: read in each scope that is looked at.
        """
        check_key(key)
        scope: StateScope | None = self.scope
        while scope is not None:
            access = self.access.to(scope)
            access.check("read")
            actor = await self._engine.current(WORKFLOWS + access.where.log_id)
            value = live(shelf(actor.state, access.where), key, self._engine.clock.now_ms())
            if value is not ABSENT:
                return copied(value)
            scope = scope.parent
        return self.access.setup.default_of(key, default)

    async def list(self, prefix: str = "") -> Keys:
        """Return the keys that begin with `prefix`, as they were set, in the order they first were. Right: list."""
        self.access.check("list")
        keys = live_keys(await self._held(), self._engine.clock.now_ms())
        return [k for k in keys if k.startswith(prefix)] if prefix else keys

    async def items(self) -> dict[str, Any]:
        """Return a copy of everything in this scope, as of one version. Rights: list, read. Cost: O(scope)."""
        self.access.check("list", "read")
        held = await self._held()
        return {k: copied(held["values"][k]) for k in live_keys(held, self._engine.clock.now_ms())}

    # writing

    async def set(
        self, key: str, value: Any, *, ttl_s: float | None = None, secret: bool = False, message: str = ""
    ) -> Version:
        """Put a JSON value under a key; return the version. Right: write.

        ttl_s: seconds until it counts as absent, by the store's clock; None for ever.  secret: keep the value out of
        logs and reprs from now on, until the key is deleted; it is stored like any other.
        """
        self.access.check("write")
        op = self.access.put(key, value, ttl_s, secret=secret)
        made = await self._write([op], message or f"set {key}")
        self._log("set", key)
        return made if made is not None else await self._head()

    async def update(
        self, values: Mapping[str, Any], *, delete: Sequence[str] = (), ttl_s: float | None = None, message: str = ""
    ) -> Version | None:
        """Set many keys and delete others, all or none, as one version; None when nothing changed.

        Rights: write, and delete where something is deleted.
        """
        if not isinstance(values, Mapping):
            raise Invalid(f"update takes a mapping of keys to values, not {type(values).__name__}")
        self.access.check("write", *(("delete",) if delete else ()))
        ops = [self.access.put(k, v, ttl_s, secret=False) for k, v in values.items()]
        ops += [self.access.removal(k) for k in delete]
        made = await self._write(ops, message or f"update {len(values)} keys")
        self._log("set", *values)
        self._log("delete", *delete)
        return made

    async def delete(self, key: str, *, message: str = "") -> bool:
        """Take a key out; tell whether it was there. Right: delete."""
        self.access.check("delete")
        removal = self.access.removal(key)
        found = False

        def op(sheet: Sheet) -> None:
            nonlocal found
            found = removal(sheet)

        await self._write([op], message or f"delete {key}")
        self._log("delete", key)
        return found

    async def clear(self, *, steps: bool = False, message: str = "") -> int:
        """Take every key out; return how many there were. steps: those of the workflow's steps too. Right: delete."""
        self.access.check("delete")
        if steps and self.scope.kind != "workflow":
            raise Invalid(f"{self.scope} has no steps to clear; only a workflow has")
        count = 0

        def op(sheet: Sheet) -> None:
            nonlocal count
            count = self.access.clear(sheet, steps=steps)

        await self._write([op], message or "clear")
        log.debug("%s: %s cleared %d values", self.scope, self.agent, count)
        return count

    async def compare_and_swap(self, key: str, expected: Any, value: Any, *, message: str = "") -> bool:
        """Set a value only if `expected` is there now; tell whether it was. ABSENT stands for no value, on both sides.

        1, 1.0 and True are three values. What else goes with the key (its time to live) ends. Rights: read, write,
        and delete where the value is ABSENT.
        """
        self.access.check("read", "delete" if value is ABSENT else "write")
        check_key(key)
        wanted = expected if expected is ABSENT else clean(expected, **self.access.bounds)
        put = None if value is ABSENT else self.access.put(key, value, None, secret=False)
        swapped = False

        def op(sheet: Sheet) -> None:
            nonlocal swapped
            swapped = same(sheet.get(self._where, key), wanted)
            if swapped and put is not None:
                put(sheet)
            elif swapped:
                sheet.remove(self._where, key)

        await self._write([op], message or f"swap {key}")
        if swapped:
            self._log("swap", key)
        return swapped

    async def increment(self, key: str, by: int | float = 1, *, message: str = "") -> int | float:
        """Add to a number, absent counting as 0, and return the sum; concurrent ones all count. Rights: read, write.

        Raises ChangeError where there is something else than a number.
        """
        self.access.check("read", "write")
        addition = self.access.addition(key, by)
        total: int | float = 0

        def op(sheet: Sheet) -> None:
            nonlocal total
            total = addition(sheet)

        await self._write([op], message or f"increment {key}")
        self._log("increment", key)
        return total

    async def watch(
        self, key: str | None = None, *, after: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[StateEvent]:
        """Yield each change of this scope, or of one key of it, for ever: what was, what is, who did it. Right: read.

        after: a version of the log to start behind (None: from now on; 0: all).  cursor: a name under which the place
        is kept, as in `Workflow.watch`. A value whose time is over is reported when it is taken out.
        """
        self.access.check("read", *(() if key is not None else ("list",)))
        if key is not None:
            check_key(key)
        async with aclosing(events(self._store, self.access, key, after, cursor)) as found:
            async for event in found:
                yield event

    # inside

    def _of(self, scope: StateScope) -> State:
        return State(self._store, self.access.to(scope))

    async def _held(self) -> dict[str, Any]:
        actor = await self._engine.current(self._stream)
        return shelf(actor.state, self._where)

    async def _head(self) -> Version:
        return await self._store.workflow(self._where.log_id).version()

    async def _write(self, ops: Sequence[Op], message: str) -> Version | None:
        return await self._engine.write(self.access.part(ops, message))

    def _log(self, what: str, *keys: str) -> None:
        """Say what was done, with the values as they are now; secret ones are not shown."""
        if log.isEnabledFor(logging.DEBUG):
            actor = self._engine.residents.peek(self._stream)
            held = {} if actor is None else shelf(actor.state, self._where)
            for key in keys:
                shown = self.access.shown(held, key, held.get("values", {}).get(key, ABSENT))
                log.debug("%s: %s by %s, %s = %s", self.scope, what, self.agent, key, shown)
