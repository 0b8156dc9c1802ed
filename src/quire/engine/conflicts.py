"""Conflicts are written down beside the workflow they happened in, in the same commit as the write that met them.

The stream `conflicts/<id>` is state like any other: one object, from the conflict's id to the conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from quire.core.guards import Within
from quire.core.path import format as pointer
from quire.core.resolve import Met, Policy
from quire.engine.write import Meeting, Write
from quire.errors import MergeConflict
from quire.model import CONFLICTS, WORKFLOWS, Change, Conflict, Record, Set, Side


def stream_of(write: Write) -> str:
    """Return where the conflicts of a write are kept."""
    return CONFLICTS + write.stream.removeprefix(WORKFLOWS)


def report(write: Write, sealed: Record | None, after: int, now_ms: int) -> Write:
    """Return the write that records what `write` met. sealed: its version, None if nothing of it was left.

    after: the head of the stream of conflicts; it makes the ids unique.
    """
    made = None if sealed is None else sealed.version
    whole = write.replaces
    count = len(write.met) + (whole is not None)
    names = [f"conflict-{after + 1}{'' if count == 1 else f'-{number}'}" for number in range(1, count + 1)]
    found = [of_meeting(name, write, each, made, now_ms) for name, each in zip(names, write.met, strict=False)]
    if whole is not None:
        found.append(
            Conflict(
                id=names[-1],
                workflow_id=write.stream.removeprefix(WORKFLOWS),
                path="",
                base=Side(),
                theirs=Side(author=whole.author, version=whole.version),
                ours=Side(author=write.author, version=made),
                change=[],
                policy="last",
                status="resolved",
                created_at=datetime.fromtimestamp(now_ms / 1000, UTC),
                resolution="ours",
                version=write.onto if made is None else made,
            )
        )
    return Write(
        stream_of(write),
        [Set((conflict.id,), stored(conflict)) for conflict in found],
        author=write.author,
        message=f"met {count} while writing" if count > 1 else f"at {found[0].path}",
        kind="conflict",
        exists=None,
    )


def of_meeting(name: str, write: Write, meeting: Meeting, made: int | None, now_ms: int) -> Conflict:
    """Return what a write met as it is kept. made: the write's version, None if nothing of it was left."""
    met, theirs, base = meeting
    return settled(
        name,
        write.stream.removeprefix(WORKFLOWS),
        met,
        base=Side(met.base, version=base),
        theirs=Side(met.theirs, theirs.author, theirs.version),
        ours=Side(met.ours, write.author, made),
        policy=write.policy or "last",
        now_ms=now_ms,
        version=write.onto if made is None else made,
    )


def settled(
    name: str,
    workflow_id: str,
    met: Met,
    *,
    base: Side,
    theirs: Side,
    ours: Side,
    policy: Policy,
    now_ms: int,
    version: int,
    merged: str | None = None,
    changes: Sequence[Change | Within] = (),
) -> Conflict:
    """Return what was met as it is kept; pending or resolved, as the policy left it. changes: of a write that waits."""
    pending = met.outcome == "pending"
    return Conflict(
        id=name,
        workflow_id=workflow_id,
        path=pointer(met.path),
        base=base,
        theirs=theirs,
        ours=ours,
        change=stored(cast("Change", met.change)),
        policy=policy if isinstance(policy, str) else "callable",
        status="pending" if pending else "resolved",
        created_at=datetime.fromtimestamp(now_ms / 1000, UTC),
        resolution=None if pending else met.outcome,
        merged=merged,
        version=version,
        changes=stored(list(changes)),
    )


def waiting(name: str, refused: MergeConflict, *, author: str, now_ms: int) -> Write:
    """Return the write that keeps a refused one as a conflict, pending with all that it would have changed.

    refused: with the write in it; what it met last says what stands.  author: of that write.
    """
    met = cast("Met", refused.conflicts[-1])
    conflict = settled(
        name,
        refused.workflow_id,
        met,
        base=Side(met.base, version=refused.base),
        theirs=Side(met.theirs, met.author, met.version),
        ours=Side(met.ours, author),
        policy="queue",
        now_ms=now_ms,
        version=refused.head,
        changes=refused.changes,
    )
    return Write(
        CONFLICTS + refused.workflow_id,
        [Set((name,), stored(conflict))],
        author=author,
        message=f"at {conflict.path or '/'}",
        kind="conflict",
        exists=None,
    )


def stored(value: Conflict | Change | list[Change | Within]) -> Any:
    """Return what is stored for it: plain JSON that shares nothing with any state."""
    return msgspec.json.decode(msgspec.json.encode(value))
