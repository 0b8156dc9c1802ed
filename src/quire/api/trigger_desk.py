"""What a store knows of its triggers: a stream that says how each stands, a cursor, a lease.

Anybody may look at them and resume or drop one, whatever process runs it. All that belongs together is one commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from quire.core.names import check_id
from quire.engine.actor import DELETED
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import AlreadyExists, CorruptRecord, InvalidKey, NotFound
from quire.model import WORKFLOWS, Change, Delete, Record, Set
from quire.storage.base import CellWrite

TRIGGERS = "triggers/"
"""The stream prefix of triggers, and where in the cells their cursors and leases are."""

_NAME_MAX = 100
_ATTEMPTS = 100
"""How often a trigger is tried to be dropped while it moves on."""


class TriggerState(msgspec.Struct, frozen=True, kw_only=True):
    """How a trigger stands. status: active or parked.  position: everything up to there is done.

    behind: how many positions the store is ahead; not all of them concern the trigger.  owned: whether some process
    holds its lease now.  workflow_id, version, attempts, error: where a parked one stands, and why.
    """

    name: str
    status: str
    position: int
    behind: int
    owned: bool
    workflow_id: str = ""
    version: int | None = None
    attempts: int = 0
    error: str = ""


class Desk:
    """A trigger's books in the store, for whoever looks at them: its stream, its cursor, its lease."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = check_id(name, "trigger name")
        if len(name) > _NAME_MAX:
            raise InvalidKey(f"trigger name {name[:40]!r}... has {len(name)} characters; {_NAME_MAX} are allowed")
        self.author = f"trigger/{name}"
        self.stream = TRIGGERS + name
        self.cursor = f"cursors/{TRIGGERS}{name}"
        self.lease = f"leases/{TRIGGERS}{name}"

    async def register(self, after: int | None) -> None:
        """Make it exist, standing at a position (None: now). One that exists stays as it is."""
        backend = self.engine.backend
        while not (await self.engine.current(self.stream)).exists:
            start = await backend.latest() if after is None else after
            left = await backend.cell(self.cursor)  # of one whose stream was dropped
            write = self._write([Set((), {"status": "active"})], "registered", "create", exists=False)
            with suppress(AlreadyExists, CellMoved):  # another process was first, which does as well
                await self.engine.write(write, (CellWrite(self.cursor, left and left.value, str(start).encode()),))
            await asyncio.sleep(0)

    async def books(self) -> tuple[dict[str, Any], bytes]:
        """Return what the stream says, not to be altered, and the cursor. Raises NotFound, CorruptRecord."""
        actor = await self.engine.current(self.stream)
        cell = await self.engine.backend.cell(self.cursor)
        if not actor.exists or cell is None:
            raise NotFound(f"no trigger {self.name!r}; `triggers()` lists them, `trigger(...)` makes one")
        if not cell.value.isdigit():
            raise CorruptRecord(f"{self.cursor} holds {cell.value!r}, not a position", at=self.cursor)
        return actor.state, cell.value

    async def state(self) -> TriggerState:
        """Return how it stands. Raises NotFound."""
        state, cursor = await self.books()
        backend, parked = self.engine.backend, state.get("parked", {})
        return TriggerState(
            name=self.name,
            status=state["status"],
            position=int(cursor),
            behind=max(0, await backend.latest() - int(cursor)),
            owned=await backend.cell(self.lease) is not None,
            workflow_id=parked.get("workflow_id", ""),
            version=parked.get("version"),
            attempts=parked.get("attempts", 0),
            error=parked.get("error", ""),
        )

    def parking(self, found: Record, attempts: int, error: str) -> Write:
        """Return the write that parks it at a record."""
        at = {
            "position": found.position,
            "workflow_id": found.stream.removeprefix(WORKFLOWS),
            "version": found.version,
            "attempts": attempts,
            "error": error,
        }
        changes: list[Change] = [Set(("status",), "parked"), Set(("parked",), at)]
        return self._write(changes, f"parked at {at['workflow_id']}@{found.version}", "park")

    async def resume(self, *, skip: bool) -> None:
        """Let a parked one go on; skip: after the event it stands at. Raises NotFound, Conflict if it moves meanwhile."""
        state, cursor = await self.books()
        parked = state.get("parked")
        if parked is None:
            return

        def plan(now: dict[str, Any]) -> list[Change]:
            return [Set(("status",), "active"), Delete(("parked",))] if now.get("parked") == parked else []

        said = f"resumed {'after' if skip else 'at'} {parked['workflow_id']}@{parked['version']}"
        moves = (CellWrite(self.cursor, cursor, str(await self._place(parked)).encode()),) if skip else ()
        await self.engine.write(self._write(plan, said, "resume"), moves)

    async def _place(self, parked: dict[str, Any]) -> int:
        """Return the position of the event it stands at: what was written down is another store's, where this is a copy."""
        stream, version = WORKFLOWS + parked["workflow_id"], parked["version"]
        found = await self.engine.backend.read(stream, after=version - 1, upto=version)
        return found[0].position if found else parked["position"]

    async def drop(self) -> None:
        """Make it not exist; its history stays. Raises NotFound."""
        for _ in range(_ATTEMPTS):
            _, cursor = await self.books()
            ends = self._write([Set((), {})], "dropped", DELETED)
            with suppress(CellMoved):  # it moved on meanwhile
                await self.engine.write(ends, (CellWrite(self.cursor, cursor, None),))
                return
        raise CellMoved([self.cursor])

    def _write(
        self,
        plan: list[Change] | Callable[[dict[str, Any]], list[Change]],
        said: str,
        kind: str,
        *,
        exists: bool = True,
    ) -> Write:
        return Write(self.stream, plan, author=self.author, message=f"{self.name} {said}", kind=kind, exists=exists)


async def listed(engine: Engine) -> list[TriggerState]:
    """Return how every trigger stands, by name."""
    found: list[TriggerState] = []
    for stream in await engine.backend.streams(TRIGGERS):
        with suppress(NotFound):  # dropped
            found.append(await Desk(engine, stream.removeprefix(TRIGGERS)).state())
    return found
