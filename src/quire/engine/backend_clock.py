"""The backend's clock, as far as we know it: what ends at a time ends for every process at once.

A process's own clock may be wrong, so it is never asked what time it is. The backend's is, through what it makes of a
cell that expires; from there on elapsed time is counted, which no setting of a clock alters.

1. A reading is off by what its commit took, at most; the first by half of that. A later one moves it only as far as it
   contradicts it, so that time does not jump to and fro within that.
2. It is renewed when it is a minute old, or when our clock and elapsed time part (the machine slept, a clock was set).
3. Who never needs the time never pays for it: `now_ms` raises Untimed, and `told` measures and tries again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from quire.engine.clock import Clock
from quire.engine.committer import CellMoved, Committer
from quire.errors import StorageError, StorageTimeout
from quire.storage.base import Backend, CellWrite

log = logging.getLogger("quire.engine")
T = TypeVar("T")
Now = Callable[[], int]
"""Tells the time by the backend's clock, UTC milliseconds."""

_CELL = "clock/now"
_LASTS_MS = 60_000
_FRESH_MS = 60_000
"""How long a reading is used without asking anew."""
_PARTED_MS = 1_000
"""How far our clock and elapsed time may part before a reading is doubted."""
_ATTEMPTS = 100
"""How often the cell is written while other processes ask at the same moment."""


class Untimed(Exception):
    """The backend's time is needed, and not known now."""


class Reading(msgspec.Struct, frozen=True):
    """What the backend's clock showed. ahead_ms: by how much it is ahead of `clock.monotonic`.  off_ms: see rule 1."""

    clock: Clock
    ahead_ms: float
    off_ms: float
    elapsed_ms: float
    wall_ms: int

    def now_ms(self) -> int:
        """UTC milliseconds, however old the reading is."""
        return round(self.ahead_ms + self.clock.monotonic() * 1000)

    @property
    def fresh(self) -> bool:
        """Whether it may be used without asking anew."""
        since = self.clock.monotonic() * 1000 - self.elapsed_ms
        return since < _FRESH_MS and abs(self.clock.now_ms() - self.wall_ms - since) < _PARTED_MS


class BackendClock:
    """One per engine. clock: ours, for elapsed time."""

    def __init__(self, backend: Backend, committer: Committer, clock: Clock) -> None:
        self._backend = backend
        self._committer = committer
        self._clock = clock
        self._reading: Reading | None = None
        self._asking = asyncio.Lock()

    def now_ms(self) -> int:
        """UTC milliseconds by the backend's clock. Raises Untimed where there is no fresh reading."""
        if self._reading is None or not self._reading.fresh:
            raise Untimed
        return self._reading.now_ms()

    async def told(self, attempt: Callable[[Now], Awaitable[T]]) -> T:
        """Return what an attempt returns, which is made again with a reading if it turns out to need one."""
        try:
            return await attempt(self.now_ms)
        except Untimed:
            reading = await self.reading()
        return await attempt(reading.now_ms)

    async def reading(self) -> Reading:
        """Return a fresh reading. Cost: where there is none, one durable commit, however many ask at once.

        Raises StorageError where there never was one. One that is old and cannot be renewed is used on, with a warning:
        the time since was counted, only a backend's clock that was set meanwhile is missed.
        """
        async with self._asking:
            known = self._reading
            if known is not None and known.fresh:
                return known
            try:
                self._reading = await self._measured(known)
            except StorageError as error:
                if known is None:
                    raise
                log.warning("the store's clock cannot be read again, counting on from the last time: %s", error)
                return known
            return self._reading

    async def _measured(self, known: Reading | None) -> Reading:
        for _ in range(_ATTEMPTS):
            found = await self._backend.cell(_CELL)
            token = secrets.token_bytes(16)
            write = CellWrite(_CELL, None if found is None else found.value, token, _LASTS_MS)
            wall_ms, before = self._clock.now_ms(), self._clock.monotonic() * 1000
            try:
                await self._committer.submit((), (write,))
            except CellMoved:
                continue
            after = self._clock.monotonic() * 1000
            cell = await self._backend.cell(_CELL)
            if cell is None or cell.value != token or cell.expires is None:
                continue
            least, most = (cell.expires - _LASTS_MS - elapsed for elapsed in (after, before))
            ahead = (least + most) / 2 if known is None else min(max(known.ahead_ms, least), most)
            return Reading(self._clock, ahead, max(ahead - least, most - ahead), before, wall_ms)
        raise StorageTimeout(
            f"the store's clock could not be read: other processes asked at the same moment {_ATTEMPTS} times; try again"
        )
