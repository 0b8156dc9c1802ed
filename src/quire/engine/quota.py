"""How much the whole store may take: looked at seldom, because asking a backend for its size counts what it holds.

1. Between two looks, what was written since is counted; a look is due after a 64th of what is allowed.
2. A store that is full is looked at again after a second, so that whoever made room goes on by himself.
3. What ends a workflow or redacts is never refused, nor are cells: they are how room is made, and who leads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from quire.config import Settings
from quire.engine.actor import DELETED
from quire.engine.clock import Clock
from quire.engine.limits import REDACT
from quire.engine.write import Write
from quire.errors import LimitExceeded, StorageError
from quire.storage.base import Backend

log = logging.getLogger("quire.engine")

_SHARE = 64
"""A look is due after this part of what is allowed was written."""
_LEAST_BYTES = 4096
_AGE_S = 60.0
"""A look is also due after so long, for what other processes write."""
_FULL_AGE_S = 1.0
_RECORD_BYTES = 150
"""What a record weighs beside its body."""


class Quota:
    """The size of one store, as of the last look, and what was written since."""

    def __init__(self, backend: Backend, settings: Settings, clock: Clock) -> None:
        self._backend = backend
        self._allowed = settings.store_bytes_max
        self._clock = clock
        self._looked: float | None = None
        self._found = 0
        self._since = 0

    def wrote(self, records: int, size_bytes: int) -> None:
        """Count what is about to be committed."""
        self._since += size_bytes + records * _RECORD_BYTES

    async def take(self, size_bytes: int) -> None:
        """Count bytes that are put beside the log. Raises LimitExceeded where the store is full."""
        full = await self.full()
        if full is not None:
            raise full
        self.wrote(0, size_bytes)

    async def full(self) -> LimitExceeded | None:
        """Return why no more may be written now; None where there is room, or no limit."""
        if self._allowed is None:
            return None
        if self._due(self._allowed):
            await self._look()
        if self._found < self._allowed:
            return None
        return LimitExceeded(
            f"the store takes {self._found:,} bytes, allowed are {self._allowed:,} (store_bytes_max); nothing was "
            "written: end and remove workflows or old versions, or allow more",
            limit="store_bytes_max",
            allowed=self._allowed,
            found=self._found,
        )

    def _due(self, allowed: int) -> bool:
        if self._looked is None or self._since >= max(_LEAST_BYTES, allowed // _SHARE):
            return True
        return self._clock.monotonic() - self._looked >= (_FULL_AGE_S if self._found >= allowed else _AGE_S)

    async def _look(self) -> None:
        self._looked, self._since = self._clock.monotonic(), 0
        try:
            self._found = (await self._backend.stats()).size_bytes
        except StorageError as error:  # what is wrong with the store, its commits say to whom it concerns
            log.warning("the size of the store is not known, the last known one counts: %s", error)


def frees(writes: Sequence[Write]) -> bool:
    """Tell whether writes are such that a full store takes them."""
    return all(write.kind in (DELETED, REDACT) for write in writes)
