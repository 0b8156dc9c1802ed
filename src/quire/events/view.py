"""A view of an event store: the state its events make, kept ready, folded on only when the store has moved."""

from __future__ import annotations

import asyncio
from typing import Any

from quire.errors import Invalid
from quire.events.fold import Fold, Folded, Reducers, reducer_of
from quire.events.log import EventLog
from quire.events.store import AsyncEventStore


class AsyncStateView:
    """A read-only state derived from events. It has nothing that the events do not have: it can be dropped at any time.

    reducers, keyframes: its own, as an event store takes them (None: the store's). One log may have many views.
    """

    def __init__(
        self, event_store: AsyncEventStore, *, reducers: Reducers | None = None, keyframes: str | None = None
    ) -> None:
        if not isinstance(event_store, AsyncEventStore):
            raise Invalid(f"a view is made of an AsyncEventStore, not of {type(event_store).__name__}")
        if reducers is not None:
            reducer_of(reducers)
        self.event_store = event_store
        self._how = (reducers, keyframes)
        self._log: EventLog | None = None
        self._fold: Fold | None = None
        self._cached: Folded | None = None
        self._lock = asyncio.Lock()

    @property
    def cached_version(self) -> int:
        """The version of the newest event in the state kept ready; -1 before the first one, or before the first read."""
        return -1 if self._cached is None else self._cached.version - 1

    async def get_state(self) -> dict[str, Any]:
        """Return the present state, the caller's to keep; {} for a store without events.

        Events of other processes count. Raises what `replay` raises; the next call then begins again.
        Cost: the events since the last call, and a copy of the state.
        """
        async with self._lock:
            log = self.event_store.log
            if self._fold is None or self._log is not log:  # the store was closed and opened again
                self._log, self._fold, self._cached = log, self.event_store.fold(*self._how), None
            head = await log.head()
            if self._cached is None or self._cached.version != head.version:
                known, self._cached = self._cached, None  # given up: a reducer that fails may have altered it
                self._cached = await self._fold.at(head.version, known)
            return self._fold.plain(self._cached.state)
