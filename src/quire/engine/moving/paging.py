"""Reading much without holding much: records in pages, and many small jobs a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from quire.model import Record
from quire.storage.base import Backend, more_may_follow

T = TypeVar("T")

_AT_ONCE = 16
_PAGE = 1000
_PAGE_MIN = 16


async def pages(
    backend: Backend, stream: str, after: int = 0, upto: int | None = None, *, limit: int = _PAGE
) -> AsyncGenerator[Record]:
    """Yield the records of a stream, read in pages. limit: of a page."""
    while upto is None or after < upto:
        page = await backend.read(stream, after=after, upto=upto, limit=limit)
        for entry in page:
            yield entry
        if not more_may_follow(page, limit):
            return
        after = page[-1].version


async def backwards(backend: Backend, stream: str, top: int, *, limit: int = _PAGE) -> AsyncGenerator[Record]:
    """Yield the records of a stream from version `top` on down, read in pages. limit: of a page.

    A page is bounded in bytes from its oldest record on. So where one does not reach the newest that was asked for, less is
    asked for: half of it, and then about as many records as made a page.
    """
    count = limit
    while top > 0:
        low = max(0, top - count)
        page = await backend.read(stream, after=low, upto=top, limit=top - low)
        if page and page[-1].version < top and top - low > 1 and more_may_follow(page, None):
            count = max(1, min(len(page), (top - low) // 2))
            continue
        for entry in reversed(page):
            yield entry
        top, count = low, min(limit, max(_PAGE_MIN, 2 * count) if not more_may_follow(page, None) else count)


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
