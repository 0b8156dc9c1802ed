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
from quire.engine.write import Write
from quire.errors import MergeConflict
from quire.model import CONFLICTS, WORKFLOWS, Change, Conflict, Record, Set, Side


def stream_of(write: Write) -> str:
    """Return where the conflicts of a write are kept."""
    return CONFLICTS + write.stream.removeprefix(WORKFLOWS)


def report(write: Write, sealed: Record | None, after: int, now_ms: int) -> Write:
    """Return the write that records what `write` met. sealed: its version, None if nothing of it was left.

    after: the head of the stream of conflicts; it makes the ids unique.
    """
    entries: list[Set] = []
    for number, (met, theirs, base) in enumerate(write.met, 1):
        name = f"conflict-{after + 1}" if len(write.met) == 1 else f"conflict-{after + 1}-{number}"
        conflict = settled(
            name,
            write.stream.removeprefix(WORKFLOWS),
            met,
            base=Side(met.base, version=base),
            theirs=Side(met.theirs, theirs.author, theirs.version),
            ours=Side(met.ours, write.author, None if sealed is None else sealed.version),
            policy=write.policy or "last",
            now_ms=now_ms,
        )
        entries.append(Set((name,), stored(conflict)))
    return Write(
        stream_of(write),
        entries,
        author=write.author,
        message=f"met {len(entries)} while writing" if len(entries) > 1 else f"at {entries[0].value['path']}",
        kind="conflict",
        exists=None,
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
