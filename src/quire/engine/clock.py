"""Time and ids come in from outside, so that tests wind the clock and replay the ids."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where the engine reads the time and waits."""

    def now_ms(self) -> int:
        """UTC milliseconds, for people: nothing is ordered by it."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards, for deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """UTC milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Seconds since some start."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait for real."""
        await asyncio.sleep(seconds)


class FakeClock:
    """A clock that stands still until it is wound. Sleepers wake when `wind` passes their time.

    >>> clock = FakeClock(start_ms=1_000)
    >>> clock.now_ms()
    1000
    """

    def __init__(self, start_ms: int = 1_700_000_000_000) -> None:
        self._ms = start_ms
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now_ms(self) -> int:
        """Milliseconds as last wound."""
        return self._ms

    def monotonic(self) -> float:
        """The same in seconds."""
        return self._ms / 1000

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was wound far enough."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._ms / 1000 + seconds, waiter))
        await waiter

    async def wind(self, seconds: float) -> None:
        """Advance, waking whoever is due, and let them run."""
        self._ms += round(seconds * 1000)
        due = [w for at, w in self._sleepers if at <= self._ms / 1000]
        self._sleepers = [(at, w) for at, w in self._sleepers if at > self._ms / 1000]
        for waiter in due:
            if not waiter.done():
                waiter.set_result(None)
        for _ in range(10):  # a woken task may have to pass through a few awaits before it does what it woke for
            await asyncio.sleep(0)

    @property
    def sleepers(self) -> int:
        """How many are waiting: a test can wait for somebody to fall asleep before winding."""
        return len(self._sleepers)


def system_ids() -> Callable[[], str]:
    """Return a source of random ids: 16 hex characters, 64 bits."""
    return lambda: secrets.token_hex(8)
