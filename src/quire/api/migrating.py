"""Migrating many workflows at once, and saying beforehand what would be done.

Nobody has to: a workflow is migrated when it is next read or written. This is for those who want it done, or known.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec

from quire.core.changes import apply
from quire.core.schema import KEY
from quire.engine.engine import Engine
from quire.errors import InvalidState, MigrationFailed
from quire.model import WORKFLOWS, Change


class Migrated(msgspec.Struct, frozen=True):
    """What migrating one workflow did, or would do.

    before, after: what its state is, as in "research/1".  changes: of all steps.  error: why it stopped at `after`.
    """

    workflow_id: str
    before: str
    after: str
    changes: list[Change]
    error: str | None = None


async def migrated(
    engine: Engine, workflows: Callable[[], Coroutine[Any, Any, list[str]]], *, plan: bool
) -> AsyncIterator[Migrated]:
    """Migrate, or look what it would do, one workflow after the other; yield those that need it."""
    for workflow_id in await workflows():
        stream = WORKFLOWS + workflow_id
        before = (await engine.current(stream)).state
        if engine.schemas.step(before) is None:
            continue
        state, changes, error = _ahead(engine, workflow_id, before)
        if not plan:
            try:
                state = (await engine.live(stream)).state
            except MigrationFailed as failed:
                state, error = (await engine.current(stream)).state, str(failed)
        yield Migrated(workflow_id, before[KEY], str(state.get(KEY)), changes, error)


def _ahead(engine: Engine, workflow_id: str, state: dict[str, Any]) -> tuple[dict[str, Any], list[Change], str | None]:
    """Return the state, the changes and the error that migrating would lead to. Writes nothing."""
    done: list[Change] = []
    while (step := engine.schemas.step(state)) is not None:
        try:
            changes = step.changes(workflow_id, state)
            after = apply(state, changes)
            engine.schemas.check(workflow_id, after)
        except (MigrationFailed, InvalidState) as error:
            return state, done, str(error)
        state = after
        done += changes
    return state, done, None
