"""Reading much without holding much: records in pages, and many small jobs a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

from quire.model import Record
from quire.storage.base import Backend

T = TypeVar("T")

_AT_ONCE = 16
_PAGE = 1000
_PAGE_MIN = 16
"""Records of the first page, when nobody knows how large they are."""
_PAGE_BYTES = 4 << 20
"""What a page is to weigh at most, as far as the one before it tells."""


async def pages(backend: Backend, stream: str, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record]:
    """Yield the records of a stream, read in pages."""
    while page := await backend.read(stream, after=after, upto=upto, limit=_PAGE):
        for entry in page:
            yield entry
        after = page[-1].version


async def feed(backend: Backend, after: int) -> AsyncGenerator[list[Record]]:
    """Yield the records after a position in commit order, in pages that are bounded by what records weigh."""
    limit = _PAGE_MIN
    while page := await backend.feed(after, limit=limit):
        yield page
        after = page[-1].position
        size = sum(len(entry.body) for entry in page)
        limit = max(1, min(_PAGE, 2 * limit, limit * _PAGE_BYTES // (size + 1)))


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
