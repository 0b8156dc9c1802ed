"""Revisions: the ways to name a version.

A number, `"42"`, `"~3"` (three before the head), a version's id, the name of a checkpoint, a moment (the last version
not after it). Checkpoint names that could be mistaken for another form are refused when they are made.
"""

from __future__ import annotations

import re
from contextlib import aclosing
from datetime import UTC, datetime

from quire.api.checkpoints import Checkpoints
from quire.engine.actor import Actor
from quire.engine.engine import Engine
from quire.engine.moving.paging import backwards
from quire.errors import Invalid, VersionNotFound
from quire.model import Version

Revision = int | str | datetime | Version | None
"""How a caller names a version; None is the head."""

_ID = re.compile(r"([1-9][0-9]*)-[0-9a-f]{12}")
_BACK = re.compile(r"~([0-9]+)")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")
_PAGE = 500


def is_reserved(name: str) -> bool:
    """Tell whether a name reads as another form of revision, so that no checkpoint may have it."""
    return name.isdigit() or any(form.fullmatch(name) for form in (_ID, _BACK, _MOMENT))


async def resolve(engine: Engine, actor: Actor, revision: Revision, checkpoints: Checkpoints) -> int:
    """Return the version number a revision names. Raises VersionNotFound, CheckpointNotFound, Invalid."""
    head = actor.head
    if revision is None:
        return head.version
    if isinstance(revision, Version):
        revision = revision.id
    if isinstance(revision, int) and not isinstance(revision, bool):
        return _known(checkpoints.workflow_id, revision, head.version)
    if isinstance(revision, datetime):
        return await _as_of(engine, actor, revision, checkpoints.workflow_id)
    if not isinstance(revision, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller's
        raise Invalid(f"{revision!r} is not a version: give a number, '~3', an id, a checkpoint's name or a datetime")
    if revision.isdigit() and revision.isascii():
        return _known(checkpoints.workflow_id, int(revision[:20]), head.version)
    if back := _BACK.fullmatch(revision):
        return _known(checkpoints.workflow_id, head.version - int(back[1][:20]), head.version)
    if found := _ID.fullmatch(revision):
        number = _known(checkpoints.workflow_id, int(found[1][:20]), head.version)
        if Version(await engine.record(head.stream, number)).id != revision:
            raise VersionNotFound(checkpoints.workflow_id, revision)
        return number
    if _MOMENT.fullmatch(revision):
        return await _as_of(engine, actor, moment(revision), checkpoints.workflow_id)
    return (await checkpoints.get(revision)).version


def moment(text: str) -> datetime:
    """Return an ISO 8601 moment; without a zone it is UTC. Raises Invalid."""
    try:
        at = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise Invalid(f"{text!r} is not a moment; write it like 2026-01-31T12:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def millis(at: datetime | str | None) -> int | None:
    """Return a moment in UTC milliseconds. Raises Invalid."""
    if at is None:
        return None
    if not isinstance(at, datetime):
        at = moment(at)
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def _known(workflow_id: str, number: int, newest: int) -> int:
    if not 1 <= number <= newest:
        raise VersionNotFound(workflow_id, number, newest=newest)
    return number


async def _as_of(engine: Engine, actor: Actor, at: datetime, workflow_id: str) -> int:
    """Return the last version not after a moment. Clocks may step back, so it looks from the newest on."""
    limit = at.timestamp() * 1000
    read = backwards(engine.backend, actor.head.stream, actor.head.version, limit=_PAGE)
    async with aclosing(read) as records:
        async for record in records:
            if record.time <= limit:
                return record.version
    raise VersionNotFound(workflow_id, at.isoformat())
