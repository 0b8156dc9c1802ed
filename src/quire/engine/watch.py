"""Watching: past and future of a log as one stream, without gap or repetition.

A watcher has no queue. It has a cursor, and reads from memory what is recent, from the log what is not; a slow one
therefore costs nothing and delays nobody. With a name its cursor is a cell: delivery is then at least once, across
restarts, and what was taken but not acknowledged comes again.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from quire.calls import call_async, check_end, in_words
from quire.engine.clock import Clock
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.errors import CorruptRecord, FilesChanged, OutcomeUnknown, StorageTimeout, StorageUnavailable
from quire.model import Record
from quire.storage.base import CellWrite

log = logging.getLogger("quire.watch")

T = TypeVar("T")

_PAGE = 500
_SAVE_EVERY = 100
"""Acknowledgements before a cursor is saved although more is waiting; it is always saved before going to sleep."""
_PAUSE_MAX_S = 2.0
"""The longest pause before a store that does not answer is asked again."""
_ATTEMPTS = 100
"""How often a cursor is removed while its subscriber moves it."""

Idle = Callable[[], Awaitable[None]]
"""Called when a watcher has caught up, before it goes to sleep."""


async def _nothing() -> None:
    pass


async def steadily(engine: Engine, ask: Callable[[], Awaitable[T]]) -> T:
    """Return what the store answers, asked again while it does not: a watcher outlives the restart of a server.

    ask: what may be asked twice.  Raises at once what no waiting mends, such as Closed, CorruptRecord and FilesChanged.
    """
    pause, longest = engine.settings.delivery_backoff_s
    told = False
    while True:
        try:
            return await ask()
        except FilesChanged:
            raise
        except (StorageUnavailable, StorageTimeout, OutcomeUnknown) as error:
            if not told:
                log.warning("watching: the store does not answer, trying again: %s", error)
            told = True
        await engine.clock.sleep(pause)
        pause = min(2 * pause, longest, _PAUSE_MAX_S)


async def stream_records(engine: Engine, stream: str, after: int, idle: Idle = _nothing) -> AsyncGenerator[Record]:
    """Yield the records of a stream with version > after, for ever; waits for new ones of any process."""
    with engine.watching():
        while True:
            actor = await steadily(engine, partial(engine.current, stream))
            found = actor.since(after)
            if found is None:
                found = await steadily(engine, partial(engine.backend.read, stream, after=after, limit=_PAGE))
            for record in found:
                yield record
                after = record.version
            if not found:
                await steadily(engine, idle)
                await steadily(engine, partial(engine.wait, stream, after))


async def store_records(engine: Engine, after: int, prefix: str = "", idle: Idle = _nothing) -> AsyncGenerator[Record]:
    """Yield the records of all streams that start with `prefix`, with position > after, in commit order, for ever."""
    with engine.watching():
        while True:
            recent, seen = engine.recent, engine.seen
            if recent and recent[0].position <= after + 1:
                found = [recent[i] for i in range(bisect_right(recent, after, key=_position), len(recent))]
            elif seen > after:
                found = await steadily(engine, partial(engine.backend.feed, after, limit=_PAGE))
            else:
                found = []
            for record in found:
                if record.stream.startswith(prefix):
                    yield record
                after = record.position
            if not found:
                after = max(after, seen)  # what came while the feed was read is not passed over
                await steadily(engine, idle)
                await engine.wait(None, after)


def _position(record: Record) -> int:
    return record.position


class Cursor:
    """A subscriber's place in a log, kept in a cell.

    Two live subscribers with one name would take turns in stealing it: the later save wins and both may see an entry.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = f"cursors/{name}"
        self._stored: bytes | None = None
        self._acked: int | None = None
        self._unsaved = 0

    async def load(self, default: int) -> int:
        """Return where the subscriber stands; it is created at `default`, so that nothing after that is missed."""
        cell = await self._engine.backend.cell(self._name)
        if cell is None:
            await self.ack(default)
            await self.save()
            return default
        self._stored = cell.value
        try:
            return int(cell.value)
        except ValueError:
            raise CorruptRecord(f"the cursor {self._name} holds {cell.value!r}, not a number", at=self._name) from None

    async def ack(self, at: int) -> None:
        """Everything up to `at` is done with. Saved soon, and always by `save`."""
        self._acked = at
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            await steadily(self._engine, self.save)

    async def save(self) -> None:
        """Make the last acknowledgement durable."""
        if self._unsaved == 0 or self._acked is None:
            return
        value = str(self._acked).encode()
        cell = await self._engine.backend.cell(self._name)
        await self._engine.committer.submit((), (CellWrite(self._name, None if cell is None else cell.value, value),))
        self._stored, self._unsaved = value, 0

    async def forget(self) -> bool:
        """Remove the cursor; tell whether there was one. Raises CellMoved while a subscriber keeps moving it."""
        for _ in range(_ATTEMPTS):
            cell = await self._engine.backend.cell(self._name)
            if cell is None:
                return False
            with suppress(CellMoved):  # it moved on meanwhile
                await self._engine.committer.submit((), (CellWrite(self._name, cell.value, None),))
                return True
        raise CellMoved([self._name])


async def deliver(
    records: AsyncIterator[Record],
    handler: Callable[[Record], Awaitable[Any] | Any],
    cursor: Cursor | None,
    clock: Clock,
    backoff_s: tuple[float, float],
    place: Callable[[Record], int],
) -> None:
    """Hand each record to `handler` until it succeeds, then acknowledge it; runs until cancelled.

    A handler that raises is called again with the same record after a growing pause: it is never dropped, and it
    holds up only itself.
    """
    async for record in records:
        pause = backoff_s[0]
        while True:
            try:
                await call_async(handler, record)
                break
            except Exception as error:  # noqa: BLE001 - a subscriber's own code: contained, named, tried again
                log.warning(
                    "%s v%d: a subscriber failed (%s), trying again in %.2g s",
                    record.stream,
                    record.version,
                    in_words(error),
                    pause,
                )
                check_end()
                await clock.sleep(pause)
                pause = min(pause * 2, backoff_s[1])
        if cursor is not None:
            await cursor.ack(place(record))
        check_end()
