"""Live states kept ready, within a bound of bytes; everything here can be dropped and read again.

Loading is: newest keyframe, the records after it, fold. A keyframe that does not check out is passed over for an
older one, down to none: the log alone is always enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from quire.config import Settings
from quire.core import keyframes, record
from quire.core.fold import fold
from quire.core.schema import Schemas
from quire.core.updated_at import EMPTY, Tail, tail_of
from quire.engine.actor import Actor
from quire.errors import CorruptRecord, VersionNotFound
from quire.model import WORKFLOWS, Fork, Head, Keyframe, Record
from quire.storage.base import Archive, Backend

log = logging.getLogger("quire.engine")

_PAGE = 2000
"""Records read at a time when folding: bounds memory, not the result."""
_MEMORY_PER_BYTE = 5
"""A parsed state takes about this many times its JSON text in memory."""
_FORK_DEPTH_MAX = 1000
"""Forks of forks of forks that are followed before the log is called damaged."""


class Residents:
    """The actors in memory, least recently used first."""

    def __init__(self, backend: Backend, settings: Settings, schemas: Schemas, archive: Archive | None = None) -> None:
        """archive: of the backend."""
        self._backend = backend
        self._archive = archive
        self._settings = settings
        self._schemas = schemas
        self._actors: OrderedDict[str, Actor] = OrderedDict()
        self._loading: dict[str, asyncio.Task[Actor]] = {}
        self._passed: dict[str, int] = {}
        self._epoch = 0
        self._bytes = 0
        self._sizes: dict[str, int] = {}
        self._turns = asyncio.Semaphore(settings.parallel_loads_max)

    def __len__(self) -> int:
        return len(self._actors)

    @property
    def size_bytes(self) -> int:
        """Estimated memory of the states."""
        return self._bytes

    def peek(self, stream: str) -> Actor | None:
        """Return the actor if it is here and current, without waiting."""
        actor = self._actors.get(stream)
        return None if actor is None or actor.stale else actor

    async def get(self, stream: str) -> Actor:
        """Return the actor of a stream, loading it if need be; several callers share one load."""
        actor = self._actors.get(stream)
        if actor is not None and not actor.stale:
            self._actors.move_to_end(stream)
            return actor
        task = self._loading.get(stream)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(stream))
            self._loading[stream] = task
            task.add_done_callback(lambda _: self._loading.pop(stream, None))
        return await asyncio.shield(task)

    async def refresh(self, actor: Actor) -> None:
        """Take in what other processes committed to this stream."""
        if self._archive is not None and await self._archive.went(actor.head.stream) > actor.head.version:
            actor.stale = True  # what came next is in the archive by now: the newest keyframe is here, and sooner read
            await self.get(actor.head.stream)
            return
        missed = await self._backend.read(actor.head.stream, after=actor.head.version)
        actor.absorb(missed)
        if actor.stale:
            await self.get(actor.head.stream)

    def passed(self, stream: str, version: int) -> None:
        """Have a load that is on its way not end before this version: it may have read the log before that."""
        if stream in self._loading:
            self._passed[stream] = max(version, self._passed.get(stream, 0))

    def outdate(self) -> None:
        """Have everything read again: what is in memory, and what is being loaded."""
        self._epoch += 1
        for actor in self._actors.values():
            if actor.pending:
                actor.outrun = True
            else:
                actor.stale = True
            actor.wake()

    def settle(self, actor: Actor) -> None:
        """Account for an actor whose state changed; `evict` makes room."""
        stream = actor.head.stream
        size = actor.state_size * _MEMORY_PER_BYTE
        self._bytes += size - self._sizes.get(stream, 0)
        self._sizes[stream] = size

    def each(self, visit: Callable[[Actor], None]) -> None:
        """Call `visit` on every actor in memory."""
        for actor in list(self._actors.values()):
            visit(actor)

    async def materialise(self, stream: str, version: int) -> tuple[dict[str, Any], int]:
        """Return the state of an old version, a fresh object, and what it weighs at most, as far as its changes tell.

        Raises CorruptRecord where the log is damaged.
        """
        async with self._turns:
            state, _, since = await self._read(stream, version)
        return state, since.state_bytes

    def evict(self, keep: str | None = None) -> None:
        """Drop the least recently used actors while over the bound, but not those in use, nor `keep`."""
        if self._bytes <= self._settings.resident_bytes_max:
            return
        for stream, actor in list(self._actors.items()):
            if self._bytes <= self._settings.resident_bytes_max:
                return
            if actor.pending or actor.waiters or stream == keep:
                continue
            del self._actors[stream]
            self._bytes -= self._sizes.pop(stream, 0)

    async def _load(self, stream: str) -> Actor:
        try:
            while True:
                epoch = self._epoch
                async with self._turns:  # a state being read weighs on memory and is not counted yet
                    state, head, since = await self._read(stream, None)
                if epoch == self._epoch and head.version >= self._passed.get(stream, 0):
                    break  # else the engine took in what came while it was read, and will not come by again
        finally:
            self._passed.pop(stream, None)
        old = self._actors.get(stream)
        actor = Actor(self._settings, self._schemas, head, state, state_size=since.state_bytes)
        actor.changes_since_keyframe = since.changes
        actor.size_since_keyframe = since.size
        actor.keyframe_size = since.keyframe_bytes
        actor.tail = since.tail
        if old is not None:  # whoever holds the old one sees it stale; who waits moves over
            actor.waiters, old.waiters = old.waiters, []
        self._actors[stream] = actor
        self._actors.move_to_end(stream)
        self.settle(actor)
        self.evict(keep=stream)
        return actor

    async def _read(self, stream: str, upto: int | None, depth: int = 0) -> tuple[dict[str, Any], Head, _Since]:
        """Return state, head and what lies after the keyframe, at `upto` (None: the newest)."""
        at = upto
        while True:
            frame = None
            try:
                frame = await self._backend.keyframe(stream, at)
                if frame is None:
                    at = 0  # what fails now is the log itself
                return await self._fold(stream, upto, frame, depth)
            except CorruptRecord:
                if at == 0:
                    raise
                at = await self._before(stream, at, frame)
                log.warning("%s: a keyframe does not check out, reading the log from version %d on", stream, at)

    async def _before(self, stream: str, at: int | None, bad: Keyframe | None) -> int:
        """Return where to look for an older keyframe than one that failed; 0 is none: then only the log can be wrong."""
        if bad is not None:
            return bad.version - 1
        try:
            older = [v for v in await self._backend.keyframes(stream) if at is None or v <= at]
        except CorruptRecord:
            return 0
        return older[-1] - 1 if older else 0

    async def _fold(
        self, stream: str, upto: int | None, frame: Keyframe | None, depth: int
    ) -> tuple[dict[str, Any], Head, _Since]:
        since = _Since()
        head = Head(stream)
        state: dict[str, Any] = {}
        after = 0
        if frame is not None:
            state = keyframes.state_of(frame)
            since.keyframe_bytes, since.state_bytes = len(frame.body), frame.size
            after = frame.version - 1  # the record of the keyframe's own version is read too, to check that they agree
        while True:
            page = await self._backend.read(stream, after=after, upto=upto, limit=_PAGE)
            full = len(page) == _PAGE
            if frame is not None and after < frame.version:
                head = _agreed(frame, page)
                since.tail = Tail(page[0].time, 0 if frame.version == 1 else None)
                page = page[1:]
            if not page:
                break
            if self._settings.verify_on_load:
                record.check_all(page, head.version, head.chain)
            if page[0].version == 1 and page[0].kind == "fork":
                state, since.state_bytes = await self._forked(page[0], depth)
            state = fold(state, page)
            last = page[-1]
            head = Head(stream, last.version, last.chain, last.kind)
            since.add(page)
            after = head.version
            if not full:
                break
        if upto is not None and head.version != upto:
            raise VersionNotFound(stream.removeprefix(WORKFLOWS), upto, newest=head.version or None)
        return state, head, since

    async def _forked(self, first: Record, depth: int) -> tuple[dict[str, Any], int]:
        """Return the state that a forked log starts from, and its bytes, checking that the parent is still the one forked."""
        origin = record.decode(first)[0]
        if not isinstance(origin, Fork) or depth > _FORK_DEPTH_MAX:
            raise CorruptRecord(f"{first.stream}: its fork record cannot be followed", at=f"{first.stream}@1")
        state, head, since = await self._read(WORKFLOWS + origin.workflow_id, origin.version, depth + 1)
        if head.chain.hex() != origin.chain:
            raise CorruptRecord(
                f"{first.stream}: forked from {origin.workflow_id}@{origin.version}, whose history differs now",
                at=f"{first.stream}@1",
            )
        return state, since.state_bytes


def _agreed(frame: Keyframe, page: list[Record]) -> Head:
    """Return the head at a keyframe, given the log from its version on. Raises CorruptRecord when they disagree."""
    if not page or page[0].version != frame.version or page[0].chain != frame.chain:
        at = f"{frame.stream}@{frame.version}"
        raise CorruptRecord(f"{at}: the keyframe does not belong to this log", at=at)
    return Head(frame.stream, frame.version, frame.chain, page[0].kind)


class _Since:
    """What was read after a keyframe: decides when the next one is due, and the time of the next version."""

    def __init__(self) -> None:
        self.changes = 0
        self.size = 0
        self.keyframe_bytes = 0
        self.state_bytes = 0
        self.tail = EMPTY

    def add(self, page: list[Record]) -> None:
        size = sum(len(r.body) for r in page)
        self.changes += len(page)
        self.size += size
        self.state_bytes += size
        self.tail = tail_of(self.tail, [r.time for r in page])
