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

from quire.api.store import Store
from quire.core.changes import apply
from quire.core.values import copied, same
from quire.engine.starts import Start
from quire.model import Change, Fork, Version
from quire.scopes.access import REDACTED, Access
from quire.scopes.names import StateScope
from quire.scopes.sheet import ABSENT


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


def events(
    store: Store, access: Access, key: str | None, after: int | None, cursor: str | None
) -> AsyncGenerator[StateEvent]:
    """Yield what happens in a scope, from this call on if after is None.

    Cost: one state kept; each version is applied to it once.
    """
    return _events(store, access, key, store.engine.watch_start(access.stream) if after is None else after, cursor)


async def _events(
    store: Store, access: Access, key: str | None, after: Start | int, cursor: str | None
) -> AsyncGenerator[StateEvent]:
    engine = store.engine
    workflow = store.workflow(access.scope.log_id)
    if isinstance(after, Start):
        await engine.current(access.stream)
        assert after.version is not None, "a head was loaded since"
        after = after.version
    state: dict[str, Any] = {}
    known = 0
    async with aclosing(workflow.watch(after=after, cursor=cursor)) as versions:
        async for event in versions:
            number = event.version.number
            if number != known + 1:
                state = await engine.state_at(access.stream, number - 1) if number > 1 else {}
            before, known = state, number
            changes = [c for c in event.changes if not isinstance(c, Fork)]
            state = (
                apply(state, changes)
                if len(changes) == len(event.changes)
                else await engine.state_at(access.stream, number)
            )
            for found in _told(access, before, state, changes, event.version):
                if key is None or found.key == key:
                    yield found


def _told(
    access: Access, before: dict[str, Any], after: dict[str, Any], changes: list[Change], version: Version
) -> Iterator[StateEvent]:
    old, new = (access.sheet(s).entries(access.place) for s in (before, after))
    keys = [c.path[len(access.place)] for c in changes if _inside(c, access)]
    if any(not _inside(c, access) and c.path == access.place[: len(c.path)] for c in changes):
        keys = [*old, *new]  # what holds them was replaced
    for key in dict.fromkeys(map(str, keys)):
        entries = [held.get(key, {}) for held in (old, new)]
        was, now = (e.get("value", ABSENT) for e in entries)
        if not same(was, now):
            secret = key in access.setup.secrets or any("secret" in e for e in entries)
            yield StateEvent(
                access.scope, key, copied(was), copied(now), version.number, version.author, version.time, secret
            )


def _inside(change: Change, access: Access) -> bool:
    """Tell whether a change is to one entry of the scope."""
    depth = len(access.place)
    return len(change.path) > depth and change.path[:depth] == access.place
