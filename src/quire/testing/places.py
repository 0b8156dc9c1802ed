"""A place for objects that fails when told, or gives back what it should not: for archives and backups.

place = FailingPlace(Folder(path))
place.plan = Fault("put", at=3, lasting=True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from quire.errors import StorageError, StorageUnavailable
from quire.storage.objects import Objects

Call = Literal["put", "get", "names", "delete"]


class Fault(msgspec.Struct):
    """Which call fails. at: the n-th of that kind.  lasting: every later one too.

    through: what was asked for is done although failure is reported, as when an answer is lost.
    """

    call: Call
    at: int = 1
    lasting: bool = False
    through: bool = False
    calls: int = 0
    fired: int = 0

    def due(self, call: Call) -> bool:
        """Count a call; tell whether it fails."""
        if call != self.call:
            return False
        self.calls += 1
        fails = self.calls >= self.at if self.lasting else self.calls == self.at
        self.fired += fails
        return fails


class FailingPlace:
    """Objects around others."""

    def __init__(self, inner: Objects) -> None:
        self.inner = inner
        self.url = inner.url
        self.plan: Fault | None = None
        self.wrong: Callable[[str, bytes | None], bytes | None] | None = None
        """What is given back instead of an object, from its name and content."""
        self.asked: list[tuple[Call, str]] = []

    def _enter(self, call: Call, name: str) -> StorageError | None:
        self.asked.append((call, name))
        due = self.plan is not None and self.plan.due(call)
        return StorageUnavailable(f"{self.url}: {call} failed (injected)") if due else None

    async def put(self, name: str, data: bytes) -> bool:
        """Keep bytes."""
        error = self._enter("put", name)
        if error is None or (self.plan is not None and self.plan.through):
            new = await self.inner.put(name, data)
            if error is None:
                return new
        raise error

    async def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The bytes, or None."""
        error = self._enter("get", name)
        if error is not None:
            raise error
        found = await self.inner.get(name, max_bytes=max_bytes)
        return found if self.wrong is None else self.wrong(name, found)

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a folder."""
        error = self._enter("names", prefix)
        if error is not None:
            raise error
        return await self.inner.names(prefix)

    async def delete(self, name: str) -> None:
        """Remove it."""
        error = self._enter("delete", name)
        if error is None or (self.plan is not None and self.plan.through):
            await self.inner.delete(name)
        if error is not None:
            raise error
