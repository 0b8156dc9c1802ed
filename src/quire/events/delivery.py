"""Subscriptions to events: a callback is told of every event of its type, at least once, in order.

Delivery hangs on the log, not on the writer: an append is answered when it is durable, whatever subscribers do. Each
subscription reads for itself, so one that raises, or is slow, holds up only itself. It is tried again with a growing
pause until it succeeds, and its failures are counted. With a cursor its place outlives the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

from quire.calls import call_async, end
from quire.engine.engine import Engine
from quire.engine.watch import Cursor, deliver, stream_records
from quire.errors import Closed, QuireError
from quire.events.log import Event, EventLog, type_of
from quire.model import Record

log = logging.getLogger("quire.events")

Callback = Callable[[Event], Awaitable[Any] | Any]


class Subscription:
    """What `subscribe` returns. delivered: events its callback took.  failures: how often it raised.

    last_error: what it raised last; None once it succeeded again.
    """

    def __init__(
        self, engine: Engine, events: EventLog, event_type: str | None, callback: Callback, cursor: Cursor | None
    ) -> None:
        self.event_type = event_type
        self.delivered = 0
        self.failures = 0
        self.last_error: Exception | None = None
        self._engine = engine
        self._events = events
        self._callback = callback
        self._cursor = cursor
        self._at = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        """Whether it is being delivered to."""
        return self._task is not None and not self._task.done()

    def start(self, after: int) -> None:
        """Deliver what comes after a number of the log, until cancelled."""
        self._at = after
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def cancel(self) -> None:
        """Stop delivering. A cursor stays where it is: subscribing with it again goes on from there. Idempotent."""
        if self._task is not None:
            end(self._task)
            await asyncio.gather(self._task, return_exceptions=True)

    async def reach(self, number: int) -> None:
        """Wait until everything up to a number of the log was taken."""
        if self._at < number:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((number, waiter))
            await waiter

    async def _run(self) -> None:
        """Deliver; when the store fails, wait and go on from what was taken last."""
        shortest, longest = self._engine.settings.delivery_backoff_s
        pause, at = shortest, self._at
        try:
            while True:
                try:
                    await self._deliver()
                except Closed:
                    return
                except QuireError as error:
                    log.warning("%s: a subscription could not read on, trying again: %s", self._events.stream, error)
                    self._failed(error)
                pause, at = (pause if self._at == at else shortest), self._at
                await self._engine.clock.sleep(pause)
                pause = min(pause * 2, longest)
        finally:
            for _, waiter in self._waiting:
                waiter.cancel()

    async def _deliver(self) -> None:
        cursor, clock = self._cursor, self._engine.clock
        idle = cursor.save if cursor is not None else _nothing
        try:
            async with aclosing(stream_records(self._engine, self._events.stream, self._at, idle)) as records:
                backoff = self._engine.settings.delivery_backoff_s
                source = cast("AsyncIterator[Record]", records)
                await deliver(source, self._take, cursor, clock, backoff, lambda found: found.version)
        finally:
            if cursor is not None:
                try:
                    await cursor.save()
                except QuireError as error:  # what was taken since the last save comes again: at least once
                    log.info("%s: a cursor was not saved at the end: %s", self._events.stream, error)

    async def _take(self, found: Record) -> None:
        if self.event_type is None or type_of(found) == self.event_type:
            try:
                await call_async(self._callback, await self._event(found))
            except Exception as error:
                self._failed(error)
                raise
            self.delivered += 1
            self.last_error = None
        self._at = found.version
        due = [w for number, w in self._waiting if number <= self._at]
        self._waiting = [(number, w) for number, w in self._waiting if number > self._at]
        for waiter in due:
            if not waiter.done():
                waiter.set_result(None)

    async def _event(self, found: Record) -> Event:
        if type_of(found) in self._events.schemas:  # upcasters are the caller's code: not on the loop
            return cast("Event", await self._engine.threads.call(self._events.event, found))
        return self._events.event(found)

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        self.last_error = error


async def _nothing() -> None:
    pass
