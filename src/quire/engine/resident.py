"""Live states kept ready, within a bound of bytes; everything here can be dropped and read again.

Loading is: newest keyframe, the records after it, fold. A keyframe that does not check out is passed over for an
older one, down to none: the log alone is always enough.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from quire.config import Settings
from quire.core import keyframes, record
from quire.core.descent import Descent
from quire.core.fold import fold
from quire.core.schema import Schemas
from quire.core.updated_at import EMPTY, Tail, tail_of
from quire.engine.actor import Actor
from quire.engine.moving.paging import absent
from quire.engine.starts import Start, Starts
from quire.errors import CorruptRecord
from quire.model import WORKFLOWS, Fork, Head, Keyframe, Record
from quire.storage.base import Archive, Backend, more_may_follow

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
        self._ahead: set[asyncio.Task[Actor]] = set()
        """Loads that watchers began and no caller waits for yet."""
        self._starts = Starts()
        self._held: dict[str, int] = {}
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
        task = self._begun(stream)
        self._ahead.discard(task)
        return await asyncio.shield(task)

    def watch_start(self, stream: str, *, load: bool = True) -> Start:
        """Return where a watcher starts that is called now. load: begin a load if no head is in memory.

        The load is begun so that the start is that of the call, whenever the watcher is iterated. If it fails, or there is
        no event loop to begin it in, the next load settles the start.
        """
        actor = self._actors.get(stream)
        if actor is not None and not actor.stale:
            return Start(actor.head.version)
        found = Start(most=None if actor is None else actor.head.version)
        self._starts.add(stream, found)
        if load and _loop_runs():
            known = self._loading.get(stream)
            task = self._begun(stream)
            if task is not known:
                self._ahead.add(task)
        return found

    def hold(self, stream: str) -> None:
        """Keep the actor of a stream from being dropped, until `release` is called as often."""
        self._held[stream] = self._held.get(stream, 0) + 1

    def release(self, stream: str) -> None:
        """Undo one `hold`."""
        left = self._held[stream] - 1
        if left:
            self._held[stream] = left
        else:
            del self._held[stream]

    async def close(self) -> None:
        """End the loads that no caller waits for."""
        ahead = list(self._ahead)
        for task in ahead:
            task.cancel()
        await asyncio.gather(*ahead, return_exceptions=True)

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
        """Take notice of a version that came while no actor of its stream is current.

        A load that is on its way does not end before it, as it may have read the log before that; watchers look again.
        """
        if stream in self._loading:
            self._passed[stream] = max(version, self._passed.get(stream, 0))
        outdated = self._actors.get(stream)
        if outdated is not None:
            outdated.wake()

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

    def published(self, actor: Actor) -> None:
        """Account for an actor whose batch was committed, and have an actor that missed that loaded again.

        While the batch was prepared, its actor may have gone stale, and another one may have been loaded, or still be.
        """
        stream = actor.head.stream
        known = self._actors.get(stream)
        if known is actor and not actor.stale:
            self.settle(actor)
            return
        if known is not None:
            known.stale = True
        self.passed(stream, actor.head.version)

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

    def evict(self) -> None:
        """Drop the least recently used actors while over the bound, but not those in use.

        A state larger than the bound stays beside what fits in it, the one of these that was used last: or each write of
        it would load it again, and everybody would wait for that. With a bound of 0 none stays.
        """
        bound, spared = self._settings.resident_bytes_max, None
        if self._bytes <= bound:
            return
        if bound:
            spared = next((stream for stream in reversed(self._actors) if self._sizes.get(stream, 0) > bound), None)
        if spared is not None:
            bound += self._sizes[spared]
        for stream, actor in list(self._actors.items()):
            if self._bytes <= bound:
                return
            if actor.pending or actor.waiters or stream in self._held or stream == spared:
                continue
            del self._actors[stream]
            self._bytes -= self._sizes.pop(stream, 0)

    def _begun(self, stream: str) -> asyncio.Task[Actor]:
        """Return the load of a stream that is on its way; begin one if there is none."""
        task = self._loading.get(stream)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(self._load(stream))
            self._loading[stream] = task
            task.add_done_callback(partial(self._ended, stream))
        return task

    def _ended(self, stream: str, task: asyncio.Task[Actor]) -> None:
        self._ahead.discard(task)
        if self._loading.get(stream) is task:
            del self._loading[stream]
        if not task.cancelled():
            task.exception()  # every caller that waits gets it; a watcher that is not iterated has none to tell

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
        actor.descent = since.descent or actor.descent
        if old is not None:  # callers that hold the old one see it stale
            old.wake()
        actor.tail = since.tail
        self._actors[stream] = actor
        self._actors.move_to_end(stream)
        self._starts.settle(stream, head.version)
        self.settle(actor)
        self.evict()
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
            full = more_may_follow(page, _PAGE)
            if frame is not None and after < frame.version:
                head = _agreed(frame, page)
                since.tail = Tail(page[0].time, 0 if frame.version == 1 else None)
                page, after = page[1:], frame.version  # that record may be a page of its own, and the log go on
            if page:
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
            raise await absent(self._backend, stream, upto)
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


def _loop_runs() -> bool:
    """True if the calling thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _agreed(frame: Keyframe, page: list[Record]) -> Head:
    """Return the head at a keyframe, given the log from its version on. Raises CorruptRecord when they disagree."""
    if not page or page[0].version != frame.version or page[0].chain != frame.chain:
        at = f"{frame.stream}@{frame.version}"
        raise CorruptRecord(f"{at}: the keyframe does not belong to this log", at=at)
    return Head(frame.stream, frame.version, frame.chain, page[0].kind)


class _Since:
    """What was read after a keyframe: when the next one is due, what the head descends from, and its time."""

    def __init__(self) -> None:
        self.changes = 0
        self.size = 0
        self.keyframe_bytes = 0
        self.state_bytes = 0
        self.descent: Descent | None = None
        self.tail = EMPTY

    def add(self, page: list[Record]) -> None:
        if self.descent is None:
            self.descent = Descent(page[0].stream, page[0].version - 1)
        self.descent.follow(page)
        size = sum(len(r.body) for r in page)
        self.changes += len(page)
        self.size += size
        self.state_bytes += size
        self.tail = tail_of(self.tail, [r.time for r in page])
