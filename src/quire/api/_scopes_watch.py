"""Watching scoped state: the versions of a log, told as what happened to keys.

A version may have been written by anything: a bulk update, a restore of the log, a merge. So what happened to a key is
found by comparing its value before and after, not by reading the change.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import msgspec

from quire.api._scopes_access import REDACTED, Access
from quire.api._scopes_names import StateScope
from quire.api._scopes_sheet import ABSENT, shelf
from quire.api.store import Store
from quire.core.changes import apply
from quire.core.fold import copied
from quire.core.values import same
from quire.model import WORKFLOWS, Change, Fork, Path, Version


class StateEvent(msgspec.Struct, frozen=True):
    """A key changed. old, value: ABSENT where there was, or is, none.  version: of the log, to watch on from."""

    scope: StateScope
    key: str
    old: Any
    value: Any
    version: int
    author: str
    time: datetime
    secret: bool = False

    def __repr__(self) -> str:
        old, value = (v if v is ABSENT or not self.secret else REDACTED for v in (self.old, self.value))
        return f"<StateEvent {self.scope} {self.key}: {old!r} -> {value!r} by {self.author} @{self.version}>"


async def events(
    store: Store, access: Access, key: str | None, after: int | None, cursor: str | None
) -> AsyncGenerator[StateEvent]:
    """Yield what happens in a scope. Cost: one state kept; each version is applied to it once."""
    engine, where = store.engine, access.where
    workflow = store.workflow(where.log_id)
    if after is None:
        after = (await engine.current(WORKFLOWS + where.log_id)).head.version
    state: dict[str, Any] = {}
    known = 0
    async with aclosing(workflow.watch(after=after, cursor=cursor)) as versions:
        async for event in versions:
            number = event.version.number
            if number != known + 1:
                state = await engine.state_at(workflow.stream, number - 1) if number > 1 else {}
            before, known = state, number
            changes = [c for c in event.changes if not isinstance(c, Fork)]
            state = (
                apply(state, changes)
                if len(changes) == len(event.changes)
                else await engine.state_at(workflow.stream, number)
            )
            for found in _told(access, before, state, changes, event.version):
                if key is None or found.key == key:
                    yield found


def _told(
    access: Access, before: dict[str, Any], after: dict[str, Any], changes: list[Change], version: Version
) -> Iterator[StateEvent]:
    old, new = shelf(before, access.where), shelf(after, access.where)
    had, has = old.get("values", {}), new.get("values", {})
    for key in _touched((*access.where.base, "values"), changes, had, has):
        was, now = had.get(key, ABSENT), has.get(key, ABSENT)
        if not same(was, now):
            secret = access.secret(old, key) or access.secret(new, key)
            yield StateEvent(
                access.scope, key, copied(was), copied(now), version.number, version.author, version.time, secret
            )


def _touched(base: Path, changes: list[Change], had: dict[str, Any], has: dict[str, Any]) -> list[str]:
    """Return the keys that may differ: those that changes name, or all where one replaced what holds them."""
    keys: dict[str, None] = {}
    for change in changes:
        path = change.path
        if path[: len(base)] == base[: len(path)]:
            if len(path) <= len(base):
                return list(dict.fromkeys((*had, *has)))
            keys[str(path[len(base)])] = None
    return list(keys)
