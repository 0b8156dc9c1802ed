"""Waiting: for commits where nobody tells of other processes', and for a server that comes back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

from quire.errors import StorageTimeout, StorageUnavailable

T = TypeVar("T")

_PAUSE_MIN_S, _PAUSE_MAX_S = 0.002, 0.05
_ABSENT_MIN_S, _ABSENT_MAX_S = 0.02, 0.5
"""Between two attempts to reach a server, up to twice as long: others come back too."""


class Polling:
    """Who waits on one handle: our own commits wake at once, other processes' are looked for."""

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


async def patiently(attempt: Callable[[], Awaitable[T]], patience_s: float) -> T:
    """Return what an attempt returns, which is made again for so long while the server does not answer.

    Raises what the last one raised.
    """
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + patience_s, _ABSENT_MIN_S
    while True:
        try:
            return await attempt()
        except (StorageUnavailable, StorageTimeout):
            if loop.time() + pause > until:
                raise
        await asyncio.sleep(pause * (1 + secrets.randbelow(100) / 100))
        pause = min(pause * 2, _ABSENT_MAX_S)
