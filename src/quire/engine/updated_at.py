"""Which `updatedAt` a version has, and which version has an `updatedAt`: core/updated_at.py asked of a log.

Times do not go back within a log, so the first version of a millisecond is found by halving: from the newest on, in
steps that double, then between two of them. A number that may stand for several versions stands for none.
"""

from __future__ import annotations

from quire.core.updated_at import PARTS, Tail, UpdatedAt
from quire.engine.actor import Actor
from quire.engine.engine import Engine
from quire.errors import VersionNotFound
from quire.model import WORKFLOWS

_PAGE = 16
"""Records read at a time where several are needed: most callers are a few versions behind."""

_GONE = -1
"""The time of a version that is not there: before any other."""


async def of_version(engine: Engine, stream: str, version: int) -> UpdatedAt:
    """Return the `updatedAt` of a version. Raises VersionNotFound.

    Cost: nothing for the newest version, one read of two records for another, more where it shares its millisecond.
    """
    actor = engine.residents.peek(stream)
    if actor is not None and actor.head.version == version and actor.tail.nth is not None:
        return UpdatedAt(actor.tail.time_ms, actor.tail.nth)
    times = _Times(engine, stream, actor)
    time_ms = await times.at(version, 2)
    if time_ms == _GONE:
        raise VersionNotFound(stream.removeprefix(WORKFLOWS), version)
    nth = 0
    while nth < PARTS - 1 and await times.at(version - nth - 1, _PAGE) == time_ms:
        nth += 1
    if actor is not None and actor.head.version == version:
        actor.tail = Tail(time_ms, nth)  # it was loaded without it: from now on it knows
    return UpdatedAt(time_ms, nth)


async def version_of(engine: Engine, actor: Actor, wanted: UpdatedAt) -> int | None:
    """Return the version with this `updatedAt`; None where there is none, or where the log does not tell which.

    Cost: nothing where it is the newest or still remembered, else reads of O(log(versions since)) records.
    """
    head, tail = actor.head, actor.tail
    if (wanted.time_ms, wanted.nth) == tail and wanted.nth < PARTS - 1:
        return head.version
    if head.version == 0 or wanted.time_ms > tail.time_ms:
        return None
    times = _Times(engine, head.stream, actor)
    low, high, step = head.version, head.version + 1, 1
    while low > 0 and await times.at(low, _PAGE if step <= _PAGE else 1) >= wanted.time_ms:
        low, high, step = max(0, low - step), low, step * 2
    if low == 0 and await times.at(1) > wanted.time_ms:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if await times.at(middle) >= wanted.time_ms else (middle, high)
    first, version = high, high + wanted.nth
    if first > 1 and await times.at(first - 1) == _GONE:
        return None  # what was right in front of it is gone: there may have been more of that millisecond
    if wanted.nth >= PARTS - 1 and await times.at(version + 1) == wanted.time_ms:
        return None
    return version if await times.at(version) == wanted.time_ms else None


class _Times:
    """The times of a log's versions, read as they are needed."""

    def __init__(self, engine: Engine, stream: str, actor: Actor | None) -> None:
        self._backend = engine.backend
        self._stream = stream
        self._known: dict[int, int] = {} if actor is None else {r.version: r.time for r in actor.recent}

    async def at(self, version: int, together: int = 1) -> int:
        """Return the time of a version, _GONE where it is not there. together: how many up to it are read at once."""
        if version not in self._known and version > 0:
            for r in await self._backend.read(self._stream, after=max(0, version - together), upto=version):
                self._known[r.version] = r.time
        return self._known.get(version, _GONE)
