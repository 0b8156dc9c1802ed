"""Waiting for commits where nobody tells of other processes': our own wake at once, theirs are looked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.002, 0.05


class Polling:
    """Who waits on one handle."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Event] = set()

    def wake(self) -> None:
        """Have everybody look now."""
        for event in self._waiters:
            event.set()

    async def past(self, after: int, latest: Callable[[], Awaitable[int]], timeout_s: float) -> int:
        """Return the latest position once it passes `after`, or the time is over. Looks every 2 to 50 ms."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        pause = _PAUSE_MIN_S
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            while (found := await latest()) <= after and (left := until - loop.time()) > 0:
                event.clear()
                alarm = loop.call_later(min(pause, left), event.set)
                try:
                    await event.wait()
                finally:
                    alarm.cancel()
                pause = min(pause * 1.5, _PAUSE_MAX_S)
        finally:
            self._waiters.discard(event)
        return found
