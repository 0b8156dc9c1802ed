"""Which versions of a log may go: rules in, a number out. What goes is a beginning of the log, and never all of it.

Rules only add up: a version goes when one of them says so. Bytes are counted from the newest version back, so that what
stays is what was written last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from quire.calls import call
from quire.config import Retention
from quire.model import Record, Version

Label = Mapping[str, Any]
"""A checkpoint as its stream holds it: version, kind, tags, created_at in UTC milliseconds."""

DAY_MS = 24 * 3600 * 1000
_RECORD_BYTES = 150
"""What a record weighs beside its body."""

AUTOMATIC = ("automatic", "pre_step", "post_step", "error")
"""Kinds of checkpoints that nobody asked for one by one."""


def weight(r: Record) -> int:
    """Return about how many bytes a record takes in a store."""
    return len(r.body) + len(r.message) + _RECORD_BYTES


def by_count(retention: Retention, head: int) -> int:
    """Return the newest version that the rule by number lets go; 0 for none."""
    return 0 if retention.versions is None else max(head - retention.versions, 0)


def by_age(before_ms: int, records: Iterable[Record]) -> int:
    """Return the newest version that was made before a moment; 0 for none. records: oldest version first.

    Stops at the first that is younger: times are for people, and a clock may have been wrong.
    """
    last = 0
    for r in records:
        if r.time > before_ms:
            break
        last = r.version
    return last


def by_bytes(allowed: int | None, sizes: Sequence[tuple[int, int]]) -> int:
    """Return the newest version that does not fit with those after it. sizes: version and bytes, oldest first."""
    if allowed is None:
        return 0
    for version, size in reversed(sizes):
        allowed -= size
        if allowed < 0:
            return version
    return 0


def by_choice(retention: Retention, workflow_id: str, records: Iterable[Record]) -> int:
    """Return the newest version that the caller's own rule lets go, asked from the oldest on."""
    last = 0
    if retention.goes is not None:
        for r in records:
            if not call(retention.goes, workflow_id, Version(r)):
                break
            last = r.version
    return last


def cutoff(allowed: int, times_and_sizes: Sequence[tuple[int, int]]) -> int:
    """Return the time at or before which versions go, so that those after it have at most so many bytes together.

    times_and_sizes: of every version of a store, in any order. 0 if all of them may stay.
    """
    ordered = sorted(times_and_sizes)
    total = 0
    for time, size in reversed(ordered):
        total += size
        if total > allowed:
            return time
    return 0


def pinned(labels: Mapping[str, Label]) -> set[int]:
    """Return the versions that checkpoints name: all but those of automatic ones without a tag."""
    return {label["version"] for label in labels.values() if not _automatic(label)}


def outdated(retention: Retention, now_ms: int, labels: Mapping[str, Label]) -> list[str]:
    """Return the names of automatic checkpoints that may be dropped. labels: by name, oldest first."""
    automatic = [name for name, label in labels.items() if _automatic(label)]
    most, days = retention.checkpoints, retention.checkpoint_days
    surplus = set() if most is None else set(automatic[: max(len(automatic) - most, 0)])
    before = None if days is None else now_ms - days * DAY_MS
    return [n for n in automatic if n in surplus or (before is not None and labels[n]["created_at"] <= before)]


def _automatic(label: Label) -> bool:
    return label["kind"] in AUTOMATIC and not label["tags"]
