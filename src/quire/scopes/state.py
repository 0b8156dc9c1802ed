"""State: the keys of one scope, read and written. What scopes are is said in manager.py."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TypeVar

from quire.api.store import Store
from quire.engine.backend_clock import Now
from quire.model import Version
from quire.scopes.access import Access, Op
from quire.scopes.names import StateScope
from quire.scopes.setup import check_key
from quire.scopes.sheet import ABSENT
from quire.scopes.watch import StateEvent, events

log = logging.getLogger("quire.scopes")
T = TypeVar("T")
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
        self._access = access

    def __repr__(self) -> str:
        return f"<State of {self.scope} for {self.agent}>"

    # neighbours

    def global_(self) -> State:
        """Return the state that everybody shares."""
        return State(self._store, self._access.to(StateScope.global_()))

    def step(self, step_name: str) -> State:
        """Return the state of a step of this workflow (or of this step's workflow). Raises Invalid elsewhere."""
        return State(self._store, self._access.step(step_name))

    # reading

    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:  # noqa: A002 - as in msgspec
        """Return a copy of a value; the default, or the one declared for the key, where there is none.

        type: what it must be, such as `int` or a msgspec.Struct; InvalidState when it is not. Right: read.
        Cost: O(value), some microseconds; never waits for a writer.
        """
        return await self._access.look(self._access.get(key, default, type))

    async def lookup(self, key: str, default: Any = None) -> Any:
        """Return the nearest value: of this scope, else of a step's workflow, else of global, else the default.

        Right: read in each scope that is looked at.
        """
        for scope in self.scope.chain:
            access = self._access.to(scope)
            value = await access.look(access.get(key, ABSENT))
            if value is not ABSENT:
                return value
        return self._access.setup.default_of(key, default)

    async def list(self, prefix: str = "") -> Keys:
        """Return the keys that begin with `prefix`, as they were set, in the order they first were. Right: list."""
        return await self._access.look(self._access.keys(prefix))

    async def items(self, *, redact: bool = False) -> dict[str, Any]:
        """Return a copy of everything in this scope, as of one version. redact: with "[REDACTED]" for secret values.

        Rights: list, read. Cost: O(scope).
        """
        return await self._access.look(self._access.items(redact=redact))

    # writing

    async def set(
        self, key: str, value: Any, *, ttl_s: float | None = None, secret: bool = False, message: str = ""
    ) -> Version:
        """Put a JSON value under a key; return the version. Right: write.

        ttl_s: seconds until it counts as absent, by the backend's clock; None for ever.  secret: do not show the value in
        reprs and messages, until the key is deleted; it is stored like any other.
        """
        made, _ = await self._write(self._access.set(key, value, ttl_s, secret=secret), message or f"set {key}")
        return made if made is not None else await self._store.workflow(self.scope.log_id).version()

    async def update(
        self, values: Mapping[str, Any], *, delete: Sequence[str] = (), ttl_s: float | None = None, message: str = ""
    ) -> Version | None:
        """Set many keys and delete others, all or none, as one version; None when nothing changed.

        Rights: write, and delete where something is deleted.
        """
        op = self._access.update(values, delete, ttl_s)
        return (await self._write(op, message or f"update {len(values) + len(delete)} keys"))[0]

    async def delete(self, key: str, *, message: str = "") -> bool:
        """Take a key out; tell whether it was there. Right: delete."""
        return (await self._write(self._access.delete(key), message or f"delete {key}"))[1]

    async def clear(self, *, steps: bool = False, message: str = "") -> int:
        """Take every key out; return how many there were. steps: those of the workflow's steps too. Right: delete."""
        return (await self._write(self._access.clear(steps=steps), message or "clear"))[1]

    async def compare_and_swap(self, key: str, expected: Any, value: Any, *, message: str = "") -> bool:
        """Set a value only if `expected` is there now; tell whether it was. ABSENT stands for no value, on both sides.

        1, 1.0 and True are three values. A time to live ends with the old value. Rights: read and write; delete
        instead of write where the new value is ABSENT.
        """
        return (await self._write(self._access.swap(key, expected, value), message or f"swap {key}"))[1]

    async def increment(self, key: str, by: int | float = 1, *, message: str = "") -> int | float:
        """Add to a number, absent counting as 0, and return the sum; concurrent ones all count. Rights: read, write.

        Raises ChangeError where there is something else than a number.
        """
        return (await self._write(self._access.increment(key, by), message or f"increment {key}"))[1]

    def watch(
        self, key: str | None = None, *, after: int | None = None, cursor: str | None = None
    ) -> AsyncGenerator[StateEvent]:
        """Yield each change of this scope, or of one key of it, for ever: what was, what is, who did it.

        after: a version of the log to start behind (None: from now on, which is the call, as in `Workflow.watch`; 0: all).
        cursor: a name under which the place is kept. A value whose time is over is reported when it is taken out.
        Rights: read, and list unless one key is named.
        """
        self._access.check("read", *(() if key is not None else ("list",)))
        if key is not None:
            check_key(key)
        return events(self._store, self._access, key, after, cursor)

    async def _write(self, op: Op[T], message: str) -> tuple[Version | None, T]:
        engine = self._store.engine

        async def attempt(now: Now) -> tuple[Version | None, T]:
            write, results = self._access.part(op, message, now)
            return await engine.write(write), results[0]

        made, result = await engine.backend_clock.told(attempt)
        if made is not None:  # never the values: what is secret may have been marked by another process
            log.debug("%s: %s, by %s, version %d", self.scope, message, self.agent, made.number)
        return made, result
