"""News of a store in PostgreSQL: which position is the newest, and being told when there is a newer one.

1. An answer counts only for who asked before the question left: a commit that was acknowledged before somebody asks
   is in the answer he gets.
2. Whoever listens holds `LOCK_WATCH` shared, and looks after he has both the lock and the channel. A commit that found
   the lock free had begun before, and is over by then; one that did not find it free tells. So none is missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from quire.storage import _postgres_read as ask
from quire.storage._postgres_line import Db, Lines, Place, connect, end, translated
from quire.storage._postgres_schema import LOCK_WATCH

_STORE = "SELECT hashtext(current_schema())"
_SHARE = "SELECT pg_advisory_lock_shared($1, $2)"


class Newest:
    """Asks for the newest position, once for all who wait."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._asked: asyncio.Task[int] | None = None
        """The question that is on its way."""
        self._next: asyncio.Task[int] | None = None
        """The one that leaves after it, for all who came meanwhile."""

    async def ask(self) -> int:
        """Return a position at or past every commit that had finished before the call."""
        if self._next is None:
            self._next = asyncio.create_task(self._question(self._asked))
            self._next.add_done_callback(_heard)
        return await asyncio.shield(self._next)

    async def _question(self, before: asyncio.Task[int] | None) -> int:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._asked, self._next = self._next, None
        return (await self._lines.fetch(ask.LATEST))[0][0]


def _heard(task: asyncio.Task[int]) -> None:
    """Take note of a failure that nobody waited for any more."""
    if not task.cancelled():
        task.exception()


class Listener:
    """A session that hears of commits, begun by the first who waits."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._db: Db | None = None
        self._turn = asyncio.Lock()
        self._waiters: set[asyncio.Event] = set()
        self._closed = False

    @contextmanager
    def waiting(self) -> Generator[asyncio.Event]:
        """Have an event set whenever there may be news: a commit, a lost session, the end."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            yield event
        finally:
            self._waiters.discard(event)

    def wake(self, *_: object) -> None:
        """Let everybody who waits look again."""
        for event in self._waiters:
            event.set()

    async def listen(self) -> None:
        """Make sure that we are told from now on. Raises our errors."""
        if self._db is not None and not self._db.is_closed():
            return
        async with self._turn:
            if self._closed or (self._db is not None and not self._db.is_closed()):
                return
            db = await connect(self._place)
            try:
                with translated(self._place):
                    store: Any = await db.fetchval(_STORE)
                    await db.execute(_SHARE, LOCK_WATCH, store)
                    await db.add_listener(f"quire_{store}", self.wake)
                    db.add_termination_listener(self.wake)
            except BaseException:
                db.terminate()
                raise
            self._db = db

    def hang_up(self) -> None:
        """Drop the session; who waits begins another."""
        db, self._db = self._db, None
        if db is not None:
            db.terminate()
        self.wake()

    async def close(self) -> None:
        """End the session."""
        self._closed = True
        async with self._turn:
            db, self._db = self._db, None
        if db is not None:
            await end(db)
