"""Conflicts of a workflow: what writes met, kept beside it by the engine, listed and decided here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from quire.core.diff import diff
from quire.core.fold import copied
from quire.core.guards import Within
from quire.core.path import get, parse, resolve
from quire.core.values import same
from quire.engine.conflicts import CONFLICTS, stored
from quire.engine.engine import Engine
from quire.engine.write import Base, Write
from quire.errors import ChangeError, ConflictNotFound, Invalid, MergeConflict
from quire.model import WORKFLOWS, Change, Conflict, Delete, Insert, Remove, Set, Side, Version

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
        if conflict_id not in entries:
            raise ConflictNotFound(self.workflow_id, conflict_id)
        return read(entries[conflict_id])

    async def resolve(self, conflict_id: str, choice: Choice, value: Any, author: str, message: str) -> Version | None:
        """Let one side stand, or a value, and close the conflict; both in one commit. None: the state stays as it is.

        Raises ConflictNotFound, Invalid for a conflict that is closed, ChangeError where the place is gone.
        """
        conflict = await self.get(conflict_id)
        if conflict.changes:
            return await self._let_in(conflict, choice, author, message)
        stream, tokens, standing = WORKFLOWS + self.workflow_id, parse(conflict.path), standing_in(conflict)
        sides = {"ours": conflict.ours, "theirs": conflict.theirs, "value": Side(value)}
        new, gone = sides[choice].value, standing != "value" and sides.get(standing, Side(None)).value is msgspec.UNSET
        if choice == standing != "value":
            return await self._closed(conflict, choice, Write(stream, []), author, message)  # or what was written since
        version = sides[choice].version
        if not tokens and new is msgspec.UNSET and version:
            whole = await self._engine.state_at(stream, version)
            return await self._closed(
                conflict, choice, Write(stream, lambda state: diff(state, whole)), author, message
            )

        def decided(state: dict[str, Any]) -> list[Change]:
            place = resolve(state, tokens)
            *above, key = place
            if get(state, above, msgspec.UNSET) is msgspec.UNSET:
                raise ChangeError(f"there is no {conflict.path}", path=conflict.path)
            if type(key) is int and gone:  # the item was taken out
                return [] if new is msgspec.UNSET else [Insert(place[:-1], key, [new])]
            if new is not msgspec.UNSET:
                return [Set(place, new)]
            return [Remove(place[:-1], key, 1) if type(key) is int else Delete(place)]

        made = (conflict.ours.version or 0) + (conflict.merged is not None)
        write = Write(stream, decided)  # onto whatever the head is
        try:
            if made and any(str(token).isdigit() for token in tokens):  # where its item is in the head by now
                state = await self._engine.state_at(stream, made)
                write = Write(stream, decided(state), base=Base(made, state), policy="ours", unrecorded=True)
            return await self._closed(conflict, choice, write, author, message)
        except (ChangeError, MergeConflict):
            raise ChangeError(
                f"{self.workflow_id}: the place of {conflict_id}, {conflict.path}, is not there any more; choose "
                f"what stands ({standing}) to close it, and write what is missing by hand",
                path=conflict.path,
            ) from None

    async def _let_in(self, conflict: Conflict, choice: Choice, author: str, message: str) -> Version | None:
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
        write = Write(stream, changes, base=base, policy="ours", unrecorded=True)
        return await self._closed(conflict, choice, write, author, message)

    async def _closed(
        self, conflict: Conflict, choice: Choice, write: Write, author: str, message: str
    ) -> Version | None:
        """Make the write that a decision leads to, and close the conflict in the same commit."""

        def closed(entries: dict[str, Any]) -> list[Change]:
            if not same(entries.get(conflict.id), stored(conflict)):
                raise Invalid(f"{self.workflow_id}: {conflict.id} was resolved meanwhile; look at it again")
            now = datetime.fromtimestamp(self._engine.clock.now_ms() / 1000, UTC)
            done = msgspec.structs.replace(
                conflict, status="resolved", resolution=choice, resolved_by=author, resolved_at=now
            )
            return [Set((conflict.id,), stored(done))]

        why = message or f"resolved {conflict.id}: {choice}"
        write.author, write.message, write.kind = author, why, "resolve"
        beside = Write(self._stream, closed, author=author, message=why, kind="resolve", exists=None)
        return (await self._engine.write_all([write, beside]))[0]


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
