"""One task at a time for each name; a name that nobody holds takes no memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class NamedLocks:
    """Locks of one event loop, by name."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, name: str) -> AsyncGenerator[None]:
        """Wait until nobody else holds the name, and hold it meanwhile."""
        lock, holders = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, holders + 1)
        try:
            async with lock:
                yield
        finally:
            lock, holders = self._locks.pop(name)
            if holders > 1:
                self._locks[name] = (lock, holders - 1)
