"""What a `StateManager` gives and takes: the shapes of its documents, with their names in camel case as JSON.

A state is any JSON object with `id`, `name`, `status` and `createdAt`; what else is in it is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import msgspec

from quire.api.conflicts import standing_in
from quire.errors import InvalidState
from quire.model import Conflict, Side

STATUSES = ("pending", "running", "completed", "failed", "cancelled")
PRIORITIES = ("low", "medium", "high", "critical")
_STRATEGIES = {"last": "last-write-wins", "both": "merge", "queue": "manual"}
"""What the documents call our policies; the others keep their names."""


class StateVersion(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One version with its whole state. timestamp: UTC milliseconds.  checksum: the chain in hex."""

    id: str
    workflow_id: str
    version: int
    state: dict[str, Any]
    timestamp: int
    author: str
    change_description: str
    checksum: str
    parent_version: str | None = None


class StateChange(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One change as subscribers receive it. type: task-update, agent-status, workflow-status or metadata-update."""

    id: str
    workflow_id: str
    type: str
    path: str
    old_value: Any
    new_value: Any
    timestamp: int
    agent_id: str


class StateSnapshot(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A state kept whole. size: UTF-8 bytes of its canonical JSON.  checksum: SHA-256 of them in hex."""

    id: str
    workflow_id: str
    state: dict[str, Any]
    created_at: int
    description: str
    size: int
    checksum: str


class StateConflict(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A stale write that met a newer state. status: pending, resolved or failed.

    conflicting_changes: what each side had, the one that stands first: path ("" is the whole state), version, author, and
    value where there was one.
    """

    id: str
    workflow_id: str
    conflicting_changes: list[dict[str, Any]]
    detected_at: int
    resolution_strategy: str
    status: str


class StateMetrics(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Counts since the store was made, and averages in milliseconds since this manager was."""

    total_states: int
    active_workflows: int
    versions_created: int
    conflicts_resolved: int
    snapshots_created: int
    subscriptions: int
    average_state_size: float
    average_retrieval_time: float
    average_persistence_time: float
    resident_bytes: int


def validate(state: Mapping[str, Any]) -> None:
    """Raise InvalidState "State validation failed: ..." unless this is a workflow's state; unknown fields are fine."""
    if not isinstance(state, Mapping):
        raise InvalidState(f"State validation failed: state is {type(state).__name__}, not an object")
    errors = [f"{field} is required" for field in ("id", "name", "status", "createdAt") if not state.get(field)]
    if state.get("status") and state["status"] not in STATUSES:
        errors.append(f"status {state['status']!r} is not one of {', '.join(STATUSES)}")
    if state.get("priority") is not None and state["priority"] not in PRIORITIES:
        errors.append(f"priority {state['priority']!r} is not one of {', '.join(PRIORITIES)}")
    tasks = state.get("tasks")
    if isinstance(tasks, Mapping):
        for key, task in cast("Mapping[str, Any]", tasks).items():
            if not isinstance(task, Mapping) or cast("Mapping[str, Any]", task).get("id") != key:
                errors.append(f"task {key} does not carry its own id")
            elif not cast("Mapping[str, Any]", task).get("type"):
                errors.append(f"task {key} has no type")
    if errors:
        raise InvalidState(f"State validation failed: {', '.join(errors)}")


def state_conflict(conflict: Conflict) -> StateConflict:
    """Return a conflict as the manager tells it."""
    sides = (conflict.theirs, conflict.ours) if standing_in(conflict) == "theirs" else (conflict.ours, conflict.theirs)
    return StateConflict(
        id=conflict.id,
        workflow_id=conflict.workflow_id,
        conflicting_changes=[_side(conflict.path, side) for side in sides],
        detected_at=ms_of(conflict.created_at),
        resolution_strategy=_STRATEGIES.get(conflict.policy, conflict.policy),
        status="pending" if is_open(conflict) else "resolved",
    )


def is_open(conflict: Conflict) -> bool:
    """Return True where nobody settled a conflict: that the last write stands is what the documents call pending."""
    return conflict.status == "pending" or (conflict.policy == "last" and conflict.resolved_by is None)


def _side(path: str, side: Side) -> dict[str, Any]:
    told: dict[str, Any] = {"path": path, "version": side.version, "author": side.author}
    return told if side.value is msgspec.UNSET else {**told, "value": side.value}


def ms_of(moment: datetime) -> int:
    """Return UTC milliseconds."""
    return round(moment.timestamp() * 1000)
