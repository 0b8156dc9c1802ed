"""Triggers: functions that are told of changes durably, under a name, by one process at a time.

1. A name has a cursor in the store, a position. It moves past an event only when the function has succeeded with it, so
   each comes at least once, in order, also those of the time when no process ran. After a kill the one in work comes again.
2. Whoever holds the lease of a name runs it. Every move of the cursor is one commit with a check of the lease: an owner
   that was overtaken cannot move it, and stops. Until it notices, its function may run beside the new owner's, with
   events that come again anyway; nothing is skipped, and the cursor never goes back.
3. A trigger that keeps failing is parked: it stands at that event, and its stream says why, until somebody resumes it.
4. What the function writes without naming an author is by the trigger, which does not see it. So it does not set itself off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import msgspec

from quire.api.hooks import Hook
from quire.api.reactions import Changed, Lens, Reactions, Teller, tell
from quire.core.names import check_id
from quire.engine.actor import DELETED
from quire.engine.committer import CellMoved
from quire.engine.correlation import CAUSE
from quire.engine.engine import Engine
from quire.engine.watch import store_records
from quire.engine.write import Write
from quire.errors import AlreadyExists, Closed, CorruptRecord, Invalid, InvalidKey, NotFound, StorageError
from quire.failpoints import hit
from quire.model import WORKFLOWS, Change, Delete, Record, Set
from quire.storage.base import CellWrite

log = logging.getLogger("quire.triggers")

TRIGGERS = "triggers/"
"""The stream prefix of triggers, and where in the cells their cursors and leases are."""

_NAME_MAX = 100
_PASSED_MAX = 500
"""Records that do not concern a trigger, after which its cursor is moved nevertheless."""
_ATTEMPTS = 100
"""How often a trigger is tried to be dropped while it moves on."""
_LEASE_S = (0.05, 86_400)
_ERROR_MAX = 1000
"""Characters of an error that are kept."""


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


class _Dropped(Exception):
    """The trigger does not exist any more."""


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
            write = self._write([Set((), {"status": "active"})], "registered", "create", exists=False)
            with suppress(AlreadyExists, CellMoved):  # another process was first, which does as well
                await self.engine.write(write, (CellWrite(self.cursor, None, str(start).encode()),))
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
            "error": error[:_ERROR_MAX].encode(errors="replace").decode(),
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
        moves = (CellWrite(self.cursor, cursor, str(parked["position"]).encode()),) if skip else ()
        await self.engine.write(self._write(plan, said, "resume"), moves)

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


class Trigger(Hook):
    """A trigger in this process: it runs whenever this process holds its lease.

    author: who writes what the function writes without naming an author.  `remove` stops it here; it stays in the store.
    """

    def __init__(
        self,
        desk: Desk,
        fn: Teller,
        lens: Lens,
        reactions: Reactions,
        *,
        when: Callable[[Changed], bool] | None,
        own: bool,
        attempts_max: int,
        lease_s: float,
    ) -> None:
        self.author = desk.author
        self._desk = desk
        self._lens = lens
        self._when = when
        self._skip = None if own else desk.author
        self._attempts_max = attempts_max
        self._lease_s = lease_s
        self._me = desk.engine.ids().encode()
        self._stored = b""
        self._renewing = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._reactions = reactions
        self.task: asyncio.Task[None] | None = None
        super().__init__(fn, self._start, self._stop)
        self.name = desk.name

    def _start(self, _: Hook) -> None:
        name = self._desk.name
        self.task = self._reactions.begin(self.run(), f"trigger {name}", only=name)

    def _stop(self, _: Hook) -> None:
        if self.task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.task.cancel)

    async def run(self) -> None:
        """Wait for the lease, work while it is held, and again, until the trigger or the store is gone."""
        CAUSE.set(None)  # not that of whoever registered it
        clock = self._desk.engine.clock
        while True:
            try:
                async with self._held() as held:
                    if held:
                        await self._beside_heartbeat()
            except CellMoved:
                log.info("trigger %s: its lease was lost, another process goes on from its cursor", self.name)
            except (_Dropped, NotFound, Closed):
                return
            except StorageError as error:
                log.warning("trigger %s: the store failed, trying again: %s", self.name, error)
            await clock.sleep(self._lease_s / 3)

    # the lease

    @asynccontextmanager
    async def _held(self) -> AsyncGenerator[bool]:
        """Take the lease if it is free, and give it back at the end."""
        engine, lease = self._desk.engine, self._desk.lease
        cell = await engine.backend.cell(lease)
        if cell is not None and cell.value != self._me:
            yield False
            return
        taken = CellWrite(lease, None if cell is None else self._me, self._me, self._ttl_ms)
        await engine.committer.submit((), (taken,))
        try:
            yield True
        finally:
            with suppress(CellMoved, StorageError, Closed):  # then it runs out by itself
                await engine.committer.submit((), (CellWrite(lease, self._me, None),))

    @property
    def _ttl_ms(self) -> int:
        return max(1, round(self._lease_s * 1000))

    async def _as_owner(self, *cells: CellWrite, writes: tuple[Write, ...] = ()) -> None:
        """Commit something only if the lease is still ours, and renew it. Raises CellMoved, with nothing stored.

        One that ran out while nobody took it is taken again: a function that held up the loop for longer must get on.
        """
        async with self._renewing:  # the heartbeat and the work would take a lease that ran out from each other
            for held in (self._me, None):
                lease = CellWrite(self._desk.lease, held, self._me, self._ttl_ms)
                try:
                    await self._desk.engine.committer.submit(writes, (lease, *cells))
                except CellMoved as moved:
                    if held is None or self._desk.lease not in moved.names:
                        raise
                else:
                    return

    async def _beside_heartbeat(self) -> None:
        """Work; stop at once when the lease cannot be renewed."""
        work, beat = asyncio.ensure_future(self._work()), asyncio.ensure_future(self._beat())
        try:
            await asyncio.wait((work, beat), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in (work, beat) if task.done()]
            for task in (work, beat):
                task.cancel()
            await asyncio.gather(work, beat, return_exceptions=True)
        for task in ended:
            task.result()

    async def _beat(self) -> None:
        while True:
            await self._desk.engine.clock.sleep(self._lease_s / 3)
            if not (await self._desk.engine.current(self._desk.stream)).exists:
                raise _Dropped
            try:
                await self._as_owner()
            except CellMoved:
                raise
            except StorageError as error:
                log.warning("trigger %s: its lease could not be renewed, trying again: %s", self.name, error)

    # the work

    async def _work(self) -> None:
        engine, stream = self._desk.engine, self._desk.stream
        with engine.watching():
            while True:
                actor = await engine.current(stream)
                if not actor.exists:
                    raise _Dropped
                if actor.state["status"] == "parked":
                    await engine.wait(stream, actor.head.version)
                else:
                    await self._follow()

    async def _follow(self) -> None:
        """Go on from the cursor until parked."""
        _, self._stored = await self._desk.books()
        passed = 0
        records = store_records(self._desk.engine, int(self._stored), self._lens.prefix)
        async with aclosing(records):
            async for found in records:
                passed += 1
                event = await self._lens.see(found, skip=self._skip)
                if event is not None:
                    if not (await self._desk.engine.current(self._desk.stream)).exists:
                        raise _Dropped
                    called = await self._call(found, event)
                    if called is None:
                        return
                    if called:
                        hit("trigger:called")
                        passed = _PASSED_MAX
                if passed >= _PASSED_MAX:
                    await self._move(found.position)
                    passed = 0

    async def _call(self, found: Record, event: Changed) -> bool | None:
        """Call the function until it succeeds: True. False where `when` keeps the event out, None when it was parked."""
        engine = self._desk.engine
        pause, longest = engine.settings.delivery_backoff_s
        for attempt in range(1, self._attempts_max + 1):
            try:
                if self._when is not None and not self._when(event):
                    return False
                self.calls += 1
                await tell(self, event, threaded=self._reactions.threaded, author=self.author)
            except Exception as error:  # noqa: BLE001 - a user's code: contained, named, counted, tried again
                said = self.failed(error)
                log.warning("trigger %s failed on %s, attempt %d: %s", self.name, event.id, attempt, said)
                if attempt < self._attempts_max:
                    await engine.clock.sleep(pause)
                    pause = min(pause * 2, longest)
            else:
                return True
        await self._as_owner(writes=(self._desk.parking(found, self._attempts_max, self.last_error),))
        log.error("trigger %s is parked at %s; `resume_trigger` lets it go on", self.name, event.id)
        return None

    async def _move(self, position: int) -> None:
        """Everything up to a position is done with."""
        new = str(position).encode()
        await self._as_owner(CellWrite(self._desk.cursor, self._stored, new))
        self._stored = new


async def start(
    engine: Engine,
    reactions: Reactions,
    name: str,
    fn: Teller,
    lens: Lens,
    *,
    when: Callable[[Changed], bool] | None,
    own: bool,
    after: int | None,
    attempts: int,
    lease_s: float,
) -> Trigger:
    """Make a trigger exist, and run it here. Raises Invalid, InvalidKey, AlreadyExists if it runs here already."""
    desk = Desk(engine, name)
    if not callable(fn) or (when is not None and not callable(when)):
        raise Invalid(f"trigger {name}: what it calls, and `when`, are functions of the event")
    if type(own) is not bool:
        raise Invalid(f"own {own!r}: True or False is needed")
    if type(attempts) is not int or attempts < 1:
        raise Invalid(f"attempts {attempts!r}: 1 or more are needed")
    if type(lease_s) not in (int, float) or not _LEASE_S[0] <= lease_s <= _LEASE_S[1]:
        raise Invalid(f"lease_s {lease_s!r}: {_LEASE_S[0]} to {_LEASE_S[1]} seconds are needed")
    if after is not None and (type(after) is not int or after < 0):
        raise Invalid(f"after {after!r}: a position in the store is needed, or None for now")
    await desk.register(after)
    if name in reactions.named:
        raise AlreadyExists(f"trigger {name} runs in this store already; stop it first with its `remove()`")

    return Trigger(desk, fn, lens, reactions, when=when, own=own, attempts_max=attempts, lease_s=lease_s)


async def listed(engine: Engine) -> list[TriggerState]:
    """Return how every trigger stands, by name."""
    found: list[TriggerState] = []
    for stream in await engine.backend.streams(TRIGGERS):
        with suppress(NotFound):  # dropped
            found.append(await Desk(engine, stream.removeprefix(TRIGGERS)).state())
    return found
