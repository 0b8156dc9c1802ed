"""Hooks after a change: callbacks that are told of what became durable, with the values before and after.

1. A callback is called after the version is durable, in the order of commits, one event at a time.
2. One that raises is called again with the same event, after a growing pause, until it succeeds: nothing is passed
   over. It holds up only itself: each has a place of its own in the log, not a queue.
3. They live as long as the store is open. What must not be missed while no process runs is a trigger's: triggers.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from quire.api import views
from quire.api.hooks import Hook
from quire.api.reading import Pointer
from quire.api.views import Event
from quire.calls import call_async, end
from quire.core import record
from quire.core.changes import apply
from quire.core.names import check_id
from quire.core.path import format as pointer
from quire.core.path import get, parse
from quire.core.values import copied
from quire.engine.correlation import CAUSE, Cause, correlation_of
from quire.engine.engine import Engine
from quire.engine.watch import deliver, store_records
from quire.errors import ChangeError, Closed, StorageError
from quire.model import WORKFLOWS, Change, Fork, Path, Record
from quire.threads import Threads

log = logging.getLogger("quire.hooks")

_STATES_MAX = 64
"""Workflows whose last state a subscription remembers; the state of another is read again."""


class Changed(Event, frozen=True, kw_only=True):
    """A version that was committed, with those of its changes that were asked for.

    path: what was asked for, None for everything.  old, new: the value there before and after, UNSET where there was
    none, or where no path was asked for; the path "" is the whole state.
    correlation_id: the one it was written with, otherwise the version's id.
    """

    correlation_id: str
    path: str | None = None
    old: Any = msgspec.UNSET
    new: Any = msgspec.UNSET

    @property
    def id(self) -> str:
        """Names this event in its store for ever: a key to make effects idempotent with."""
        return f"{self.workflow_id}/{self.version.id}"


Teller = Callable[["Changed"], Any]
"""What is told of changes: a plain function, which must not wait, or an async one."""


class Lens:
    """Makes events of records: filters, and finds the values before and after."""

    def __init__(
        self,
        engine: Engine,
        path: Pointer | None,
        types: Collection[str] | None,
        author: str | None,
        workflow: str | None,
    ) -> None:
        """Raises Invalid, InvalidKey for filters that are not allowed."""
        self._engine = engine
        self._sieve = views.sieve(path, types, author)
        self._path: Path | None = None if path is None else parse(path)
        self._stream = None if workflow is None else WORKFLOWS + check_id(workflow, "workflow id")
        self._states: OrderedDict[str, tuple[int, dict[str, Any]]] = OrderedDict()
        self._last: tuple[Record | None, dict[str, Any], dict[str, Any]] = (None, {}, {})
        self.prefix = self._stream or WORKFLOWS

    async def see(self, found: Record, *, skip: str | None = None) -> Changed | None:
        """Return the event of a record, None where the filters keep it out. skip: an author who is kept out too."""
        if self._stream not in (None, found.stream):
            return None
        event = None if found.author == skip else self._sieve(found)
        if self._path is None:
            return event and Changed(event.version, event.changes, correlation_id=correlation_of(event.version))
        if event is None:
            if found.stream in self._states:
                await self._step(found)
            return None
        before, after = await self._step(found)
        return Changed(
            event.version,
            event.changes,
            path=pointer(self._path),
            old=copied(get(before, self._path, msgspec.UNSET)),
            new=copied(get(after, self._path, msgspec.UNSET)),
            correlation_id=correlation_of(event.version),
        )

    async def _step(self, found: Record) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the states before and after a version. Cost: O(its changes) when they come in order."""
        if self._last[0] is found:  # it is told again
            return self._last[1:]
        stream, version, engine = found.stream, found.version, self._engine
        known, before = self._states.get(stream, (0, {}))
        if known != version - 1:
            before = await engine.state_at(stream, version - 1) if version > 1 else {}
        actor = await engine.current(stream)
        after = actor.state if actor.head.version == version else await self._applied(found, before)
        self._states[stream] = (version, after)
        self._states.move_to_end(stream)
        if len(self._states) > _STATES_MAX:
            self._states.popitem(last=False)
        self._last = (found, before, after)
        return before, after

    async def _applied(self, found: Record, before: dict[str, Any]) -> dict[str, Any]:
        changes = record.decode(found)
        plain: list[Change] = [c for c in changes if not isinstance(c, Fork)]
        if len(plain) == len(changes):
            with suppress(ChangeError):  # reading the log says what is wrong, where something is
                return apply(before, plain)
        return await self._engine.state_at(found.stream, found.version)


async def tell(fn: Teller, event: Changed, *, threads: Threads | None, author: str | None = None) -> None:
    """Call a function; what it writes carries the event's correlation id, and is by `author` if it names nobody.

    threads: where it is called, so that it may wait; what it returns is awaited on the loop if that can be.
    """
    token = CAUSE.set(Cause(event.correlation_id, author))
    try:
        await (call_async(fn, event) if threads is None else threads.call(fn, event))
    finally:
        CAUSE.reset(token)


class Listener(Hook):
    """A callback after changes, and the task that calls it. position: up to where it was told."""

    def __init__(self, fn: Teller | None, lens: Lens, engine: Engine, reactions: Reactions) -> None:
        self.position = engine.seen
        self._lens = lens
        self._engine = engine
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._reactions = reactions
        super().__init__(fn, self._start, self._stop)

    def _start(self, _: Hook) -> None:
        self.position = self._engine.seen
        if _running() is self._loop:
            self._begin()
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._task = self._reactions.begin(self._run(), f"on_change {self.name}")

    def _stop(self, _: Hook) -> None:
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(end, self._task)

    async def _run(self) -> None:
        clock, backoff_s = self._engine.clock, self._engine.settings.delivery_backoff_s
        while True:
            try:
                async with aclosing(store_records(self._engine, self.position, self._lens.prefix)) as records:
                    await deliver(records, self._tell, None, clock, backoff_s, lambda found: found.position)
            except Closed:
                return
            except StorageError as error:
                log.warning("%s: the store does not answer, trying again: %s", self.name, error)
                await clock.sleep(backoff_s[1])

    async def _tell(self, found: Record) -> None:
        event = await self._lens.see(found)
        if event is not None:
            self.calls += 1
            try:
                await tell(self, event, threads=self._reactions.threads)
            except Exception as error:
                log.warning("%s failed on %s: %s", self.name, event.id, self.failed(error))
                raise
        self.position = found.position


class Reactions:
    """The tasks of one store that call functions after changes. `close` ends them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.threads: Threads | None = None
        """Where functions are called that may wait; None for the event loop."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.named: dict[str, asyncio.Task[None]] = {}
        """Those of which there is only one of a name."""

    def listen(
        self,
        fn: Teller | None,
        *,
        path: Pointer | None,
        types: Collection[str] | None,
        author: str | None,
        workflow: str | None,
    ) -> Listener:
        """Register a function, or what will take one, to be called from now on. Raises Invalid, InvalidKey, Closed."""
        self._engine.check_open("listen")
        lens = Lens(self._engine, path, types, author, workflow)
        return Listener(fn, lens, self._engine, self)

    def begin(self, work: Coroutine[Any, Any, None], name: str, *, only: str | None = None) -> asyncio.Task[None]:
        """Run something until it ends or `close` ends it. only: kept under this name."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.tasks.add(task)
        if only is not None:
            self.named[only] = task
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self.named = {name: other for name, other in self.named.items() if other is not task}
        if not task.cancelled() and task.exception() is not None:
            log.error("%s ended with an error that was not foreseen", task.get_name(), exc_info=task.exception())

    async def close(self) -> None:
        """End every task, but not the one that asks for it."""
        tasks = [t for t in self.tasks if t is not asyncio.current_task()]
        for task in tasks:
            end(task)
        await asyncio.gather(*tasks, return_exceptions=True)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
