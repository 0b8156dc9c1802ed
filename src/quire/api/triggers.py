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

from quire.api.hooks import Hook
from quire.api.reactions import Changed, Lens, Reactions, Teller, tell
from quire.api.trigger_desk import Desk
from quire.calls import call, check_end, end
from quire.engine.committer import CellMoved
from quire.engine.correlation import CAUSE
from quire.engine.engine import Engine
from quire.engine.watch import store_records
from quire.engine.write import Write
from quire.errors import AlreadyExists, Closed, Invalid, NotFound, StorageError
from quire.failpoints import hit
from quire.model import Record
from quire.storage.base import CellWrite

log = logging.getLogger("quire.triggers")

_PASSED_MAX = 500
"""Records that do not concern a trigger, after which its cursor is moved nevertheless."""
_LEASE_S = (0.05, 86_400)


class _Dropped(Exception):
    """The trigger does not exist any more."""


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
        self._until_s = 0.0
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
            self._loop.call_soon_threadsafe(end, self.task)

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
        self._until_s = engine.clock.monotonic() + self._lease_s
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
            started_s = self._desk.engine.clock.monotonic()
            for held in (self._me, None):
                lease = CellWrite(self._desk.lease, held, self._me, self._ttl_ms)
                try:
                    await self._desk.engine.committer.submit(writes, (lease, *cells))
                except CellMoved as moved:
                    if held is None or self._desk.lease not in moved.names:
                        raise
                else:
                    self._until_s = started_s + self._lease_s
                    return

    async def _beside_heartbeat(self) -> None:
        """Work; stop at once when the lease cannot be renewed."""
        work, beat = asyncio.ensure_future(self._work()), asyncio.ensure_future(self._beat())
        try:
            await asyncio.wait((work, beat), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended = [task for task in (work, beat) if task.done()]
            for task in (work, beat):
                end(task)
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
                    await self._still_owner()
                    called = await self._call(found, event)
                    if called is None:
                        return
                    if called:
                        hit("trigger:called")
                        passed = _PASSED_MAX
                if passed >= _PASSED_MAX:
                    await self._move(found.position)
                    passed = 0
                check_end()

    async def _call(self, found: Record, event: Changed) -> bool | None:
        """Call the function until it succeeds: True. False where `when` keeps the event out, None when it was parked."""
        engine = self._desk.engine
        pause, longest = engine.settings.delivery_backoff_s
        for attempt in range(1, self._attempts_max + 1):
            try:
                if self._when is not None and not call(self._when, event):
                    return False
                self.calls += 1
                await tell(self, event, threads=self._reactions.threads, author=self.author)
            except Exception as error:  # noqa: BLE001 - a user's code: contained, named, counted, tried again
                said = self.failed(error)
                log.warning("trigger %s failed on %s, attempt %d: %s", self.name, event.id, attempt, said)
                check_end()
                if attempt < self._attempts_max:
                    await engine.clock.sleep(pause)
                    pause = min(pause * 2, longest)
            else:
                return True
        await self._as_owner(writes=(self._desk.parking(found, self._attempts_max, self.last_error),))
        log.error("trigger %s is parked at %s; `resume_trigger` lets it go on", self.name, event.id)
        return None

    async def _still_owner(self) -> None:
        """Make sure of the lease if it may have run out: a process that was stopped is not to act on what it remembers."""
        if self._desk.engine.clock.monotonic() >= self._until_s:
            await self._as_owner(CellWrite(self._desk.cursor, self._stored, self._stored))

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
