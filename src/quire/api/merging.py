"""Merging one workflow into another: from their common ancestor, in one commit with its conflicts and its entry.

1. What is merged is decided on two heads that stand still: if ours moves meanwhile, it is decided again.
2. Where histories cross there are several newest common ancestors. Any of them will do as the base: what came to both
   sides from another carries its origin, and is done once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, cast

import msgspec

from quire.core import record
from quire.core.changes import Working
from quire.core.diff import diff
from quire.core.history import summary
from quire.core.meter import Meter
from quire.core.resolve import Policy
from quire.core.threeway import Branch, Lead, Merged, three_way
from quire.engine import lineage
from quire.engine.conflicts import CONFLICTS, settled, stored
from quire.engine.engine import Engine
from quire.engine.lineage import MERGES, Made, ancestor, knows, route
from quire.engine.write import Write
from quire.errors import HeadMoved, Invalid, LimitExceeded
from quire.model import WORKFLOWS, Change, Conflict, Point, Set, Side, Version

_ATTEMPTS = 20
"""How often a merge is decided because ours moved meanwhile..."""
_POLITE = 5
"""...and how often before other writers of this process wait for it..."""
_HOLD_MAX_S = 2.0
"""...unless deciding takes longer than this."""


class MergeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge did, or would do.

    version: the newest of ours afterwards.  base: the common ancestor it started from.  ours, theirs: what each side
    changed since.  changes: what was applied to ours.  conflicts: what could not both stand.  up_to_date: all of theirs
    was in ours already, and nothing was written.
    """

    version: Version
    base: Point
    ours: list[Change] = []
    theirs: list[Change] = []
    changes: list[Change] = []
    conflicts: list[Conflict] = []
    up_to_date: bool = False

    @property
    def summary(self) -> str:
        """One line for people."""
        if self.up_to_date:
            return "nothing to merge: everything of theirs is here already"
        sides = f"since {self.base} ours: {_told(self.ours)}; theirs: {_told(self.theirs)}"
        pending = sum(c.status == "pending" for c in self.conflicts)
        met = f"; {len(self.conflicts)} conflict(s), {pending} pending" if self.conflicts else ""
        return sides + met


def _told(changes: Sequence[Change]) -> str:
    return summary(changes) if changes else "nothing"


class _Side:
    """One of the two workflows, as it is now. made: what it did since the base."""

    def __init__(self, point: Point, state: dict[str, Any], made: list[Made]) -> None:
        self.point = point
        self.state = state
        self.made = made

    def branch(self) -> Branch:
        changes, moments = [m.change for m in self.made], [m.moment for m in self.made]
        return Branch(self.point.workflow_id, changes, moments, self.state, [m.origin for m in self.made])

    def seen(self, value: Any, number: int) -> Side:
        by = self.made[number].by
        return Side(value, by.author, by.version)


async def merge(engine: Engine, write: Write, theirs: Point, *, dry_run: bool) -> MergeResult:
    """Merge a version of another workflow into the one that `write` is for.

    write: who, why, by which policy, and onto which version if that matters.  dry_run: write nothing.
    Raises Invalid without a common ancestor, MergeConflict, HeadMoved, LimitExceeded.
    """
    async with AsyncExitStack() as stack:
        attempts = 0
        while True:
            begun = engine.clock.monotonic()
            try:
                return await _merged(engine, write, theirs, dry_run=dry_run)
            except HeadMoved as moved:
                attempts += 1
                if write.if_version is not None:
                    raise
                if attempts == _ATTEMPTS:
                    advice = (
                        f"others wrote first {attempts} times while it was merged; nothing was written: merge again"
                    )
                    raise HeadMoved(
                        moved.workflow_id, expected=moved.expected, actual=moved.actual, advice=advice
                    ) from None
            if attempts == _POLITE and engine.clock.monotonic() - begun < _HOLD_MAX_S:
                await stack.enter_async_context(engine.committer.held(write.stream))


async def _merged(engine: Engine, write: Write, theirs: Point, *, dry_run: bool) -> MergeResult:
    """Decide and write a merge. Raises HeadMoved where ours moved meanwhile."""
    ours = write.stream.removeprefix(WORKFLOWS)
    head = (await engine.current(write.stream)).head.version
    if write.if_version not in (None, head):
        raise HeadMoved(ours, expected=write.if_version, actual=head)
    result, merged = await _decided(engine, write, Point(ours, head), theirs)
    if dry_run or merged is None:
        return result
    parts = await _writes(engine, write, head, theirs, merged, result.conflicts)
    made, *_ = await engine.write_all(parts)
    assert made is not None
    left = parts[0].hooked
    changes = result.changes if left is None else cast("list[Change]", list(left))
    return msgspec.structs.replace(result, version=made, changes=changes)


async def _decided(engine: Engine, write: Write, ours: Point, theirs: Point) -> tuple[MergeResult, Merged | None]:
    """Return what merging two versions gives; None where there is nothing to merge."""
    at = Version(await engine.record(write.stream, ours.version))
    if (await knows(engine, ours)).get(theirs.workflow_id, 0) >= theirs.version:
        return MergeResult(version=at, base=theirs, up_to_date=True), None
    base = await ancestor(engine, ours, theirs)
    if base is None:
        raise Invalid(f"{ours} and {theirs} have no common history; only what was forked can be merged")
    start = await engine.state_at(WORKFLOWS + base.workflow_id, base.version)
    us, them = await _side(engine, base, ours), await _side(engine, base, theirs)
    where = f"merging {theirs} into {ours}"
    # states that are published are never altered, so another thread may look at them
    kinds, policy = engine.schemas.kinds(us.state), write.policy or "last"
    meter = Meter(steps_max=engine.settings.merge_steps_max)
    decide = partial(three_way, where=where, kinds=kinds, meter=meter)
    try:
        merged = await engine.threads.call(decide, start, us.branch(), them.branch(), policy)
    except LimitExceeded as error:
        if error.limit != "write_steps_max":  # a policy's own
            raise
        raise LimitExceeded(
            f"{where} takes more than {meter.steps_max:,} steps (merge_steps_max): {len(us.made):,} changes of ours since "
            f"{base} meet {len(them.made):,} of theirs; nothing was written: merge an earlier version of theirs first",
            limit="merge_steps_max",
            allowed=meter.steps_max,
            found=meter.steps,
        ) from None
    return MergeResult(
        version=at,
        base=base,
        ours=[m.change for m in us.made],
        theirs=[m.change for m in them.made],
        changes=merged.changes.changes,
        conflicts=_conflicts(engine, us, them, base, merged, policy),
    ), merged


async def _side(engine: Engine, base: Point, point: Point) -> _Side:
    state = await engine.state_at(WORKFLOWS + point.workflow_id, point.version)
    return _Side(point, state, await route(engine, base, point))


async def _writes(
    engine: Engine, write: Write, head: int, theirs: Point, merged: Merged, met: Sequence[Conflict]
) -> list[Write]:
    """Return what is committed together: the version, the entry of the merge, the conflicts."""
    ours = write.stream.removeprefix(WORKFLOWS)
    source = await engine.record(WORKFLOWS + theirs.workflow_id, theirs.version)
    known, before = await knows(engine, theirs), await engine.state_at(write.stream, head)
    how: dict[str, Any] = {
        "author": write.author,
        "message": write.message or f"merged {theirs}",
        "kind": write.kind,
    }
    version = Write(write.stream, merged.changes.changes, if_version=head, allow_empty=True, **how)

    def entered(_: dict[str, Any]) -> list[Change]:
        """It is prepared after the version, whose changes hooks may have altered by then."""
        left = version.hooked
        led = (
            merged if left is None or left is version.plan else _altered(merged, before, cast("Sequence[Change]", left))
        )
        entry = lineage.Entry(
            theirs.workflow_id,
            theirs.version,
            source.chain.hex(),
            known,
            led.back.changes,
            taken=led.changes.origins,
            returned=led.back.origins,
        )
        return [Set((str(head + 1),), lineage.stored(entry))]

    writes = [version, Write(MERGES + ours, entered, exists=None, **how)]
    if met:
        writes.append(Write(CONFLICTS + ours, [Set((c.id,), stored(c)) for c in met], exists=None, **how))
    return writes


def _altered(merged: Merged, start: dict[str, Any], changes: Sequence[Change]) -> Merged:
    """Return the outcome of a merge of whose changes onto `start` hooks made others. A change left as it is keeps its origin."""
    origins: dict[bytes, list[str | None]] = {}
    for change, origin in zip(merged.changes.changes, merged.changes.origins, strict=True):
        origins.setdefault(record.encode([change]), []).append(origin)
    working, onto = Working(start), Lead([], [])
    for change in changes:
        if working.apply(change):
            known = origins.get(record.encode([change]))
            onto.changes.append(change)
            onto.origins.append(known.pop(0) if known else None)
    missing = diff(merged.state, working.state)
    back = Lead([*merged.back.changes, *missing], [*merged.back.origins, *[None] * len(missing)])
    return Merged(working.state, onto, back, merged.met)


def _conflicts(engine: Engine, us: _Side, them: _Side, base: Point, merged: Merged, policy: Policy) -> list[Conflict]:
    """Return what the merge met, as it will be kept."""
    into = us.point.version + 1
    return [
        settled(
            f"merge-{into}-{number}",
            us.point.workflow_id,
            met,
            base=Side(met.base, version=base.version),
            ours=us.seen(met.ours, met.number),
            theirs=them.seen(met.theirs, met.other),
            policy=policy,
            now_ms=engine.clock.now_ms(),
            merged=them.point.workflow_id,
            version=into,
        )
        for number, met in enumerate(merged.met, 1)
    ]
