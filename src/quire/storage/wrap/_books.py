"""The books of an archive: its cells read, and changed by compare-and-set, one commit each.

1. A catalogue is changed only by whoever read what it is now; whoever comes second is told, and looks again.
2. Commits take their turn with those of the store's own committer, which is held for one commit and no longer. One that
   began is waited for, also by whoever is cancelled: nobody else may meet its outcome.
3. After one that failed the backend is reconnected before anybody else commits; what became of it is in the cell.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import msgspec

from quire.errors import CorruptRecord, StorageError, StorageUnavailable
from quire.model import Cell
from quire.storage.base import Backend, CellWrite, Committed, Item, Outcome
from quire.storage.wrap import ARCHIVE
from quire.storage.wrap._catalogue import PREFIX, About, Catalogue, about_of, read_catalogue, stream_of, write

T = TypeVar("T")

_PAGE = 1000
_TRIES = 20
_PAUSE_MAX_S = 0.2
_EMPTY = Catalogue()
_replace = msgspec.structs.replace


class Books:
    """The cells of one namespace's archive."""

    def __init__(self, inner: Backend, turn: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        """turn: returns what is held while something is committed."""
        self._inner = inner
        self._turn = turn
        self._broken = False

    async def about(self) -> About:
        """Return what the namespace says of its archive."""
        return await about_of(self._inner)

    async def cell(self, stream: str) -> Cell | None:
        """Return the cell of a stream."""
        return await self._inner.cell(PREFIX + stream)

    async def catalogue(self, stream: str) -> Catalogue:
        """Return where the records of a stream went."""
        return read_catalogue(await self.cell(stream))

    async def each(self) -> AsyncGenerator[tuple[str, Catalogue]]:
        """Yield every stream that has something there, by name. Cost: reads a cell for each; a page in memory."""
        after = ""
        while page := await self._inner.cells(PREFIX, after=after, limit=_PAGE):
            for cell in page:
                yield stream_of(cell), read_catalogue(cell)
            after = page[-1].name

    async def settled(self, stream: str, look: Callable[[Catalogue], Awaitable[T]]) -> T:
        """Return what `look` finds in the segments of a stream; again where others took their place meanwhile."""
        for tried in range(_TRIES):
            await pause(tried)
            catalogue = await self.catalogue(stream)
            try:
                return await look(catalogue)
            except CorruptRecord:
                if await self.catalogue(stream) == catalogue:
                    raise
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def note(self, cell: Cell | None, stream: str, new: Catalogue) -> Cell | None:
        """Commit a catalogue whose records are where they were. Raises Overtaken."""
        value = write(new) if new != _EMPTY else None
        outcome = await self._commit(CellWrite(PREFIX + stream, None if cell is None else cell.value, value))
        if not isinstance(outcome, Committed):
            raise Overtaken
        return None if value is None else Cell(PREFIX + stream, value)

    async def record(
        self, cell: Cell | None, stream: str, new: Catalogue, *, top: int = 0, places: Collection[str] = ()
    ) -> Cell:
        """Commit a catalogue with records in other places. Raises Overtaken.

        top: the newest position of what went.  places: where segments were written: the archive must be there still.
        """
        value = write(new)
        for tried in range(_TRIES):
            await pause(tried)
            about = await self.about()
            if any(place != about.place for place in places):
                raise Overtaken
            changed = _replace(about, top=max(about.top, top), changes=about.changes + 1)
            outcome = await self._commit(
                CellWrite(PREFIX + stream, None if cell is None else cell.value, value),
                CellWrite(ARCHIVE, write(about), write(changed)),
            )
            if isinstance(outcome, Committed):
                return Cell(PREFIX + stream, value)
            if PREFIX + stream in outcome.cells:
                raise Overtaken
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def _commit(self, *writes: CellWrite) -> Outcome:
        work = asyncio.ensure_future(self._turned(Item(cells=writes)))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.gather(work, return_exceptions=True)
            raise

    async def _turned(self, item: Item) -> Outcome:
        async with self._turn():
            await self.mend()
            try:
                (outcome,) = await self._inner.commit([item])
            except BaseException as error:
                self._broken = True
                if isinstance(error, StorageError):
                    await self.mend()
                raise
            return outcome

    async def mend(self) -> None:
        """Reconnect after a commit of ours that failed: or whoever commits next would be told of it."""
        if self._broken:
            await self._inner.recover()
            self._broken = False

    def mended(self) -> None:
        """Somebody else reconnected."""
        self._broken = False


async def pause(tried: int) -> None:
    """Let others finish what they are doing: not at all at first, then longer and longer, up to a fifth of a second."""
    if tried:
        await asyncio.sleep(random.uniform(0, min(0.001 * 2**tried, _PAUSE_MAX_S)))  # noqa: S311 - no secret


class Overtaken(Exception):
    """Another process changed the books first: read them again."""
