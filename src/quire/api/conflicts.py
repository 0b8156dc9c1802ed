"""Conflicts of a workflow: what writes met, kept beside it by the engine, listed and decided here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, cast

import msgspec

from quire.core.diff import diff
from quire.core.guards import Within, pure, reliant
from quire.core.path import format as pointer
from quire.core.path import get, parse, resolve
from quire.core.refusals import refusal
from quire.core.resolve import Met, Policy
from quire.core.values import copied, same
from quire.engine.conflicts import CONFLICTS, of_meeting, stored
from quire.engine.engine import Engine
from quire.engine.write import Base, Meeting, Write
from quire.errors import ChangeError, ConflictNotFound, Invalid, MergeConflict
from quire.model import WORKFLOWS, Change, Conflict, Delete, Fork, Insert, Path, Remove, Set, Side, Version

Choice = Literal["ours", "theirs", "value"]


class Conflicts:
    """The conflicts of one workflow."""

    def __init__(self, engine: Engine, workflow_id: str) -> None:
        self._engine = engine
        self.workflow_id = workflow_id
        self._stream = CONFLICTS + workflow_id

    async def all(self) -> list[Conflict]:
        """Return them, oldest first."""
        entries = (await self._engine.current(self._stream)).state
        return [read(entry) for entry in entries.values()]

    async def get(self, conflict_id: str) -> Conflict:
        """Return one. Raises ConflictNotFound."""
        entries = (await self._engine.current(self._stream)).state
        if not isinstance(conflict_id, str) or conflict_id not in entries:
            raise ConflictNotFound(self.workflow_id, conflict_id)
        return read(entries[conflict_id])

    async def resolve(
        self, conflict_id: str, choice: Choice, value: Any, author: str, message: str, *, overwrite: bool = False
    ) -> Version | None:
        """Let one side stand, or a value, and close the conflict; both in one commit. None: the state stays as it is.

        overwrite: also where others wrote since. Raises ConflictNotFound, Invalid for a conflict that is closed,
        ChangeError where the place is gone, MergeConflict where it is not as the conflict left it.
        """
        conflict = await self.get(conflict_id)
        if conflict.changes:
            return await self._let_in(conflict, choice, author, message, overwrite=overwrite)
        stream, tokens, standing = WORKFLOWS + self.workflow_id, parse(conflict.path), standing_in(conflict)
        sides = {"ours": conflict.ours, "theirs": conflict.theirs, "value": Side(value)}
        new, gone = sides[choice].value, standing != "value" and sides.get(standing, Side(None)).value is msgspec.UNSET
        if choice == standing != "value":
            return await self._closed(conflict, choice, Write(stream, []), author, message)  # or what was written since
        made = conflict.resolved_in or conflict.version
        left, version, whole = await self._engine.state_at(stream, made), sides[choice].version, None
        if not tokens and new is msgspec.UNSET and version:
            whole = await self._engine.state_at(stream, version)
        place = _placed(left, conflict.path if conflict.resolved_path is None else conflict.resolved_path)
        gone = gone and bool(place) and type(place[-1:][0]) is int
        kept = _copied_to(left, place, conflict.ours.value) if standing == "both" and place else None

        def decided(state: dict[str, Any]) -> list[Change]:
            changes = placed(state)
            if kept is not None and same(get(state, kept, msgspec.UNSET), conflict.ours.value):
                key = kept[-1]
                changes.append(Remove(kept[:-1], key, 1) if isinstance(key, int) else Delete(kept))
            return changes

        def placed(state: dict[str, Any]) -> list[Change]:
            if place is None or (place and get(state, place[:-1], msgspec.UNSET) is msgspec.UNSET):
                raise ChangeError(f"there is no {conflict.path}", path=conflict.path)
            was, is_now = get(left, place, msgspec.UNSET), get(state, place, msgspec.UNSET)
            if not overwrite and not gone and not same(was, is_now) and not same(is_now, new):
                met = Met(place, was, new, is_now, Set(place, None), 0, 0, "ours")
                raise refusal(self.workflow_id, "moved", [met])
            if whole is not None:
                return diff(state, whole)
            if place and type(place[-1]) is int and gone:  # the item was taken out
                return [] if new is msgspec.UNSET else [Insert(place[:-1], place[-1], [new])]
            if new is not msgspec.UNSET:
                return [Set(place, new)]
            return [Remove(place[:-1], place[-1], 1) if type(place[-1]) is int else Delete(place)]

        write = Write(stream, decided)  # onto whatever the head is
        try:
            if any(type(token) is int for token in place or ()):  # where its item is in the head by now
                plan = decided(left) if overwrite else reliant(decided(left))
                policy: Policy | None = "ours" if overwrite else None
                base = Base(made, left)
                write = Write(stream, plan, base=base, policy=policy, unrecorded=True)
                write.asked = plan, base  # also where it alters nothing there: it may by now
            return await self._closed(conflict, choice, write, author, message)
        except (ChangeError, MergeConflict) as refused:
            if isinstance(refused, MergeConflict) and refused.reason in ("stale", "moved"):
                met = [cast("Met", each) for each in refused.conflicts]
                if met[-1].theirs is not msgspec.UNSET or not any(type(token) is int for token in met[-1].path):
                    raise refusal(self.workflow_id, "moved", met) from None
            raise ChangeError(
                f"{self.workflow_id}: the place of {conflict_id}, {conflict.path}, is not there any more; choose "
                f"what stands ({standing}) to close it, and write what is missing by hand",
                path=conflict.path,
            ) from None

    async def _let_in(
        self, conflict: Conflict, choice: Choice, author: str, message: str, *, overwrite: bool
    ) -> Version | None:
        """Resolve a conflict of a write that waits as a whole: "ours" applies all of it, over what others wrote since."""
        if choice == "value":
            raise Invalid(
                f"{self.workflow_id}: {conflict.id} is a write of {len(conflict.changes)} change(s) that wait together: "
                "choose ours or theirs, and write what else is to be by hand"
            )
        if conflict.status == "resolved":
            raise Invalid(f"{self.workflow_id}: {conflict.id} was resolved already ({conflict.resolution})")
        stream, number = WORKFLOWS + self.workflow_id, conflict.base.version or 0
        changes: list[Change | Within] = []
        if choice == "ours":
            changes = msgspec.convert(conflict.changes, list[Change | Within])
        base = Base(number, await self._engine.state_at(stream, number) if number else {})
        write = Write(stream, reliant(changes), base=base, policy="ours", unrecorded=True)  # noted beside this one
        if changes and not overwrite:
            met = await self._engine.state_at(stream, conflict.version)
            write.guard = partial(self._as_met, met, _placed(met, conflict.path))
            write.seen = conflict.version
        try:
            return await self._closed(conflict, choice, write, author, message)
        except MergeConflict as refused:
            if refused.reason in ("moved", "unseen"):
                raise
            place = pointer(refused.conflicts[-1].path)
            raise ChangeError(
                f"{self.workflow_id}: {place}, where {conflict.id} would write, is not there any more; choose theirs to "
                "close it, and write what is missing by hand",
                path=place,
            ) from None

    def _as_met(self, met: dict[str, Any], place: Path | None, state: dict[str, Any]) -> None:
        """Refuse a write that waited where others wrote since at the place that it met them, if that is not in a list."""
        if place is None or any(type(token) is int for token in place):
            return
        was, is_now = get(met, place, msgspec.UNSET), get(state, place, msgspec.UNSET)
        if not same(was, is_now):
            found = Met(place, was, msgspec.UNSET, is_now, Set(place, None), 0, 0, "ours")
            raise refusal(self.workflow_id, "moved", [found])

    async def _closed(
        self, conflict: Conflict, choice: Choice, write: Write, author: str, message: str
    ) -> Version | None:
        """Make the write that a decision leads to, and close the conflict in the same commit."""

        def closed(entries: dict[str, Any]) -> list[Change]:
            if not same(entries.get(conflict.id), stored(conflict)):
                raise Invalid(f"{self.workflow_id}: {conflict.id} was resolved meanwhile; look at it again")
            now_ms = self._engine.clock.now_ms()
            now = datetime.fromtimestamp(now_ms / 1000, UTC)
            done = msgspec.structs.replace(
                conflict,
                status="resolved",
                resolution=choice,
                resolved_by=author,
                resolved_at=now,
                resolved_in=write.made or conflict.resolved_in,
                resolved_path=_told(write) if write.made and conflict.path else conflict.resolved_path,
            )
            overruled = _also_met(conflict, write.met) if conflict.changes else []
            found = [
                of_meeting(f"{conflict.id}-{n}", write, each, write.made, now_ms) for n, each in enumerate(overruled, 1)
            ]
            return [Set((each.id,), stored(each)) for each in [done, *found]]

        why = message or f"resolved {conflict.id}: {choice}"
        write.author, write.message, write.kind = author, why, "resolve"
        beside = Write(self._stream, closed, author=author, message=why, kind="resolve", exists=None)
        return (await self._engine.write_all([write, beside]))[0]


def _copied_to(state: dict[str, Any], place: Path, ours: Any) -> Path | None:
    """Return where "both" put ours beside theirs, as the next item or under a key like `plan~2`; None if it is not there."""
    *parent, key = place
    if isinstance(key, int):
        names: list[str | int] = [key + 1]
    else:
        names = [name for name in get(state, parent, {}) if re.fullmatch(re.escape(key) + r"~[0-9]+", name)]
    there = [path for name in names if same(get(state, path := (*parent, name), msgspec.UNSET), ours)]
    return there[-1] if there else None


def _placed(state: dict[str, Any], path: str) -> Path | None:
    try:
        return resolve(state, parse(path))
    except ChangeError:
        return None


def _also_met(conflict: Conflict, met: Sequence[Meeting]) -> list[Meeting]:
    """Return the meetings of a write that waited but for the one that its conflict tells of."""
    told = conflict.theirs
    return [
        each
        for each in met
        if not (
            each.theirs.version == told.version
            and same(each.met.theirs, told.value)
            and same(each.met.base, conflict.base.value)
        )
    ]


def _told(write: Write) -> str | None:
    """Return where a decision was put."""
    for step in pure(write.put):
        if not isinstance(step, Fork):
            return pointer((*step.path, step.index) if isinstance(step, Insert | Remove) else step.path)
    return None


def read(entry: Any) -> Conflict:
    """Return a conflict from the JSON object that is stored."""
    return msgspec.convert(copied(entry), Conflict)


async def of_store(engine: Engine) -> list[Conflict]:
    """Return the conflicts of every workflow, by workflow, oldest first."""
    found: list[Conflict] = []
    for stream in await engine.backend.streams(CONFLICTS):
        found += [read(entry) for entry in (await engine.current(stream)).state.values()]
    return found


def standing_in(conflict: Conflict) -> str:
    """Return which side of a conflict stands as long as nobody resolves it: ours, theirs, both or value."""
    return conflict.resolution or ("ours" if conflict.merged else "theirs")
