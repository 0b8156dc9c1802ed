"""Reading much without holding much: records in pages, and many small jobs a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from quire.core.record import missing
from quire.errors import CorruptRecord, VersionNotFound
from quire.model import WORKFLOWS, Record
from quire.storage.base import Backend, more_may_follow

T = TypeVar("T")

_AT_ONCE = 16
_PAGE = 1000
_PAGE_MIN = 16
_RECORD_BYTES = 256
"""What a record costs beside its body, in bytes of one."""
_STRETCH_BYTES = 256 * 1024
"""Bytes of records that are gone through before others have their turn."""


class Stride:
    """Lets others go on, now and then, while many records are gone through: call `past` after each."""

    def __init__(self) -> None:
        self._bytes = 0

    async def past(self, entry: Record) -> None:
        """Count a record, and pause where it is time."""
        self._bytes += len(entry.body) + _RECORD_BYTES
        if self._bytes >= _STRETCH_BYTES:
            self._bytes = 0
            await asyncio.sleep(0)


async def pages(
    backend: Backend, stream: str, after: int = 0, upto: int | None = None, *, limit: int = _PAGE
) -> AsyncGenerator[Record]:
    """Yield the records of a stream, read in pages. limit: of a page.

    What was trimmed is left out. Raises CorruptRecord where a version is missing between two.
    """
    stride = Stride()
    while upto is None or after < upto:
        page = await backend.read(stream, after=after, upto=upto, limit=limit)
        for entry in page:
            if entry.version != after + 1:
                await _check_trimmed(backend, stream, after + 1)
            yield entry
            after = entry.version
            await stride.past(entry)
        if not more_may_follow(page, limit):
            return
        await asyncio.sleep(0)  # a store in memory answers without letting others go on


async def backwards(backend: Backend, stream: str, top: int, *, limit: int = _PAGE) -> AsyncGenerator[Record]:
    """Yield the records of a stream from version `top` on down, read in pages. limit: of a page.

    A page is bounded in bytes from its oldest record on. So where one does not reach the newest that was asked for, less is
    asked for: half of it, and then about as many records as made a page.
    What was trimmed is left out. Raises CorruptRecord where a version is missing in front of another, or `top` itself is.
    """
    count, stride = limit, Stride()
    while top > 0:
        low = max(0, top - count)
        page = await backend.read(stream, after=low, upto=top, limit=top - low)
        if page and page[-1].version < top and top - low > 1 and more_may_follow(page, None):
            count = max(1, min(len(page), (top - low) // 2))
            continue
        for entry in reversed(page):
            if entry.version != top:
                await _check_trimmed(backend, stream, top)
            yield entry
            top = entry.version - 1
            await stride.past(entry)
        if top > low:
            await _check_trimmed(backend, stream, top)
            return
        await asyncio.sleep(0)
        count = min(limit, max(_PAGE_MIN, 2 * count) if not more_may_follow(page, None) else count)


async def absent(backend: Backend, stream: str, version: int) -> VersionNotFound | CorruptRecord:
    """Return the error for a version that could not be read: whether it never was, was trimmed, or is missing."""
    (head,) = await backend.heads([stream])
    first = await backend.read(stream, limit=1)
    oldest = first[0].version if first else head.version
    if oldest < version < head.version:
        return missing(stream, version)
    return VersionNotFound(stream.removeprefix(WORKFLOWS), version, oldest=oldest, newest=head.version or None)


async def _check_trimmed(backend: Backend, stream: str, version: int) -> None:
    """Raise CorruptRecord for a version that is not there though an older one is."""
    oldest = await backend.read(stream, limit=1)
    if oldest and oldest[0].version < version:
        raise missing(stream, version)


async def names(backend: Backend, prefix: str = "") -> AsyncGenerator[list[str]]:
    """Yield the names of the streams that begin so, sorted, in pages."""
    after = ""
    while page := await backend.streams(prefix, after=after, limit=_PAGE):
        yield page
        after = page[-1]


async def feed(backend: Backend, after: int) -> AsyncGenerator[list[Record]]:
    """Yield the records after a position in commit order, in pages."""
    while page := await backend.feed(after, limit=_PAGE):
        yield page
        after = page[-1].position


async def at_once(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do all of it, a few at a time; return the results in order."""
    jobs = iter(work)
    done: list[T] = []
    while some := list(islice(jobs, _AT_ONCE)):
        found = await asyncio.gather(*some, return_exceptions=True)
        for result in found:  # all of them have ended before one is told of
            if isinstance(result, BaseException):
                raise result
            done.append(result)
    return done
