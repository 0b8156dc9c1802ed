"""Who waits for commits is woken by what Redis publishes. News are a hint: whoever wakes asks what is there.

Nothing is listened to before somebody waits. A lost line wakes everybody, and whoever still waits listens anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

from redis.asyncio.connection import Connection
from redis.exceptions import RedisError


class News:
    """One subscription, shared by all who wait."""

    def __init__(self, connection: Callable[[], Connection], channel: str) -> None:
        self._make = connection
        self._channel = channel
        self._events: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def waiting(self) -> Generator[asyncio.Event]:
        """Give an event that is set whenever there may be news."""
        event = asyncio.Event()
        self._events.add(event)
        try:
            yield event
        finally:
            self._events.discard(event)

    def listen(self) -> None:
        """Make sure that somebody listens. The events are set once it does: look again then."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Stop, and wake everybody."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        self._wake()

    async def _listen(self) -> None:
        connection = self._make()
        try:
            await connection.connect()
            await connection.send_command("SUBSCRIBE", self._channel)
            while True:
                await connection.read_response()  # the first says that we listen
                self._wake()
        except (RedisError, OSError):
            # whoever waits asks the server next, and is told what is wrong with it
            self._wake()
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _wake(self) -> None:
        for event in self._events:
            event.set()
