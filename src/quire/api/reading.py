"""Reading a workflow: its state now and then, its history, who did what, what happens next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec

from quire.api import revisions, views
from quire.api.checkpoints import Checkpoints
from quire.api.revisions import Revision
from quire.api.views import BlameLine, Diff, Event, Order
from quire.calls import call, call_async
from quire.core import history, record
from quire.core.diff import diff
from quire.core.names import check_id
from quire.core.path import get as get_path
from quire.core.path import parse, resolve
from quire.core.schema import typed
from quire.core.values import copied, is_large
from quire.engine.actor import Actor
from quire.engine.engine import Engine
from quire.engine.lineage import Node, graph
from quire.engine.starts import Start
from quire.engine.write import Base
from quire.errors import ChangeError, Invalid, WorkflowNotFound
from quire.model import WORKFLOWS, Change, Fork, Path, Point, Record, Version
from quire.threads import Threads, beside

if TYPE_CHECKING:
    from quire.api.workflow import Workflow

T = TypeVar("T")

Pointer = str | Sequence[str | int]
"""A JSON Pointer such as `/notes/0`, or the same as a sequence of keys and indexes."""


class Reader:
    """A handle that can only read. Making one does nothing; handles may be many and are cheap.

    One that was deleted has no head, so what is asked of it (the default) raises WorkflowNotFound; its history, and
    every version that is named, can be read as before.
    Raises WorkflowNotFound; VersionNotFound, CheckpointNotFound for a revision that is not there; StorageError.
    """

    def __init__(self, engine: Engine, workflow_id: str) -> None:
        self.id = check_id(workflow_id, "workflow id")
        self.stream = WORKFLOWS + workflow_id
        self.threads: Threads = engine.threads
        """Where plain functions run that may take long. For the inside."""
        self._engine = engine
        self._checkpoints = Checkpoints(engine, workflow_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def exists(self) -> bool:
        """Tell whether the workflow is there."""
        return (await self._engine.current(self.stream)).exists

    async def version(self, version: Revision = None) -> Version:
        """Return one version; None is the head. Raises VersionNotFound, CheckpointNotFound."""
        return Version(await self._engine.record(self.stream, await self._number(version)))

    @overload
    async def state(self, version: Revision = None) -> dict[str, Any]: ...

    @overload
    async def state(self, version: Revision = None, *, type: type[T]) -> T: ...

    async def state(self, version: Revision = None, *, type: Any = None) -> Any:  # noqa: A002 - as in msgspec
        """Return the state, or what it was: a plain dict, the caller's to keep.

        type: a msgspec.Struct, or anything else msgspec converts to, to have it as. An old version is as it was, of
        whatever schema. Raises InvalidState where it does not fit the type, MigrationFailed.
        Cost: O(state); of an old version also the changes since the keyframe before it, which are more the older it is.
        """
        state = await private(await self._at(version))
        return state if type is None else typed(state, type, getattr(type, "__name__", str(type)))

    async def state_and_version(self, version: Revision = None) -> tuple[dict[str, Any], int]:
        """Return the state, the caller's to keep, and the number of its version: the base of a later `save`."""
        number, state = await self.snapshot(version)
        return await private(state), number

    async def snapshot(self, version: Revision = None) -> Base:
        """Return a version's number and its state. The state is the engine's own and must not be altered."""
        if version is not None:
            number = await self._number(version)
            return Base(number, await self._engine.state_at(self.stream, number))
        actor = await self._live()
        return Base(actor.head.version, actor.state)

    async def get(self, path: Pointer, default: Any = None, *, version: Revision = None) -> Any:
        """Return the value at a path, or `default` where there is none.

        Cost: O(depth + the value); of an old version that of reading its state.
        """
        return await private(get_path(await self._at(version), parse(path), default))

    async def history(
        self,
        limit: int | None = None,
        *,
        before: Revision = None,
        author: str | None = None,
        path: Pointer | None = None,
        kind: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        order: Order = "newest",
    ) -> list[Version]:
        """Return versions, newest first unless order="oldest".

        limit: how many at most, None for all.  before: only versions older than this.  author, kind: only theirs.  path: only
        versions that changed something at or below it.  since, until: only versions made from one moment on, or before
        another; without a zone it is UTC, as in "2026-01-31". That of a workflow that was deleted ends with the version
        that did so. Cost: reads the records passed over, never the state.
        """
        actor = await self._past()
        top = actor.head.version if before is None else await self._number(before) - 1
        tokens = None if path is None else tokens_of(actor.state, path)
        from_ms, to_ms = revisions.millis(since), revisions.millis(until)

        def matches(found: Record) -> bool:
            return (
                (author is None or found.author == author)
                and (kind is None or found.kind == kind)
                and (from_ms is None or found.time >= from_ms)
                and (to_ms is None or found.time < to_ms)
                and (tokens is None or any(_touches(c, tokens) for c in record.decode(found)))
            )

        return await views.scan(self._engine, self.stream, top, order, matches, limit)

    async def diff(self, old: Revision = None, new: Revision = None, *, of: Workflow | str | None = None) -> Diff:
        """Return the changes that turn the state at `old` into the state at `new` (None: the head), with a summary.

        of: the workflow that `new` is a version of, where it is another.
        """
        other = self if of is None else Reader(self._engine, of if isinstance(of, str) else of.id)
        before, after = await self._at(old), await other._at(new)
        return Diff(before, await beside(is_large(before, after), _difference, before, after))

    async def replay(
        self,
        callback: Callable[[Version, dict[str, Any]], Any],
        *,
        first: Revision = 1,
        last: Revision = None,
    ) -> int:
        """Call a function with every version from `first` to `last` (None: the head) and the state it left behind.

        callback: plain or async; what it raises ends the replay, see quire/calls.py. The state is its own to keep.
        Returns how many versions there were. Cost: folds the range once, and copies a state for each version.
        """
        start, end = await self._number(first), await self._number(last)
        count = 0
        async for version, state in views.states(self._engine, self.stream, start, end):
            await call_async(callback, version, await private(state))
            count += 1
        return count

    async def bisect(
        self, predicate: Callable[[dict[str, Any]], Any], *, good: Revision = 1, bad: Revision = None
    ) -> Version:
        """Return the first version whose state a predicate holds for, such as the one that broke something.

        predicate: plain or async, of a state, its own to keep; it must not hold for `good`, and for all from some version
        on up to `bad` (None: the head).
        Raises Invalid where it holds for `good`, or not for `bad`. Cost: reads O(log of the range) states.
        """

        async def holds(number: int) -> bool:
            state = await private(await self._engine.state_at(self.stream, number))
            return call(bool, await call_async(predicate, state))

        if not callable(predicate):
            raise Invalid(f"the predicate is a function of a state, not {type(predicate).__name__}")
        low, high = await self._number(good), await self._number(bad)
        if low >= high or await holds(low) or not await holds(high):
            raise Invalid(
                f"{self.id}: the predicate must not hold for version {low} and must hold for {high}, a later one; "
                "choose other ends, or turn it around"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if await holds(middle) else (middle, high)
        return await self.version(high)

    async def blame(self, path: Pointer = "", *, version: Revision = None) -> list[BlameLine]:
        """Say for every value at or below a path who set it last, when and why, in document order.

        Raises ChangeError when there is nothing at the path. Cost: reads and folds the history once.
        """
        number = await self._number(version)
        state = await self._engine.state_at(self.stream, number)
        return await views.blame(self._engine, self.stream, number, state, resolve(state, parse(path)))

    async def graph(self, version: Revision = None) -> list[Node]:
        """Return a version and every one it builds on, of this workflow, what it was forked from and what it merged.

        Newest first, each with its parents. Cost: reads all of them.
        """
        return await graph(self._engine, Point(self.id, await self._number(version)))

    def watch(
        self,
        *,
        after: Revision = None,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[Event]:
        """Yield every version after `after` (None: from now on; 0: all), past ones first, then live ones, for ever.

        Now is when `watch` is called, not when the loop over it begins: it shows all that comes after the head that this
        process has at the call. Where the workflow is not in memory, its head is looked up, before anything that this
        process writes after the call.
        path, types, author: only matching changes (types: set, delete, ensure, append, insert, remove, splice, inc).
        cursor: a name under which the place is kept: each event then comes at least once, across restarts, and counts
        as done when the next one is asked for; `after` then only says where a new cursor starts.
        Raises Invalid, InvalidKey for arguments at the call; WorkflowNotFound when the first event is asked for.
        """
        sieve = views.sieve(path, types, author)
        begin = (
            partial(self._number_of_start, self._engine.watch_start(self.stream))
            if after is None
            else partial(self._number_after, after)
        )
        return views.watch_stream(self._engine, self.stream, begin, sieve, cursor)

    async def drop_cursor(self, name: str) -> None:
        """Remove the place that `watch(cursor=name)` keeps, when nobody is to go on from there: `health` then forgets it.

        A watcher that still runs writes it anew; watching with the name later begins where `after` says.
        The workflow may have been deleted. Raises NotFound, Conflict while a watcher keeps moving it.
        """
        await views.drop_cursor(self._engine, self.stream, name)

    # inside

    async def _live(self) -> Actor:
        """Return the head, migrated if need be."""
        return self._existing(await self._engine.live(self.stream))

    def _existing(self, actor: Actor) -> Actor:
        if not actor.exists:
            raise WorkflowNotFound(self.id)
        return actor

    async def _past(self) -> Actor:
        """Return what there is or was: one that was deleted has a past."""
        actor = await self._engine.current(self.stream)
        if not actor.head.version:
            raise WorkflowNotFound(self.id)
        return actor

    async def _number(self, version: Revision) -> int:
        if version is None:
            return (await self._live()).head.version
        if type(version) is int and self._engine.is_past(self.stream, version):
            return version
        actor = await self._past()
        return await revisions.resolve(self._engine, actor, version, self._checkpoints)

    async def _number_after(self, after: Revision) -> int:
        return 0 if after == 0 else await self._number(after)

    async def _number_of_start(self, start: Start) -> int:
        """Return where a watcher starts. Raises WorkflowNotFound where there is no workflow, and was none since."""
        actor = await self._engine.live(self.stream)
        assert start.version is not None, "a head was loaded since"
        if actor.head.version <= start.version:
            self._existing(actor)
        return start.version

    async def _at(self, version: Revision) -> dict[str, Any]:
        if version is None:
            return (await self._live()).state
        return await self._engine.state_at(self.stream, await self._number(version))


def _difference(before: dict[str, Any], after: dict[str, Any]) -> list[Change]:
    """Return what turns a state into another, in fresh values: the caller's to keep."""
    return msgspec.json.decode(record.encode(diff(before, after)), type=list[Change])


async def private(value: Any) -> Any:
    """Return a copy of a value of ours, the caller's to keep. A large one is copied in a thread."""
    return await beside(is_large(value), copied, value)


def tokens_of(state: dict[str, Any], path: Pointer) -> Path:
    """Resolve a path against a state for filtering; what is not there now may still be in the history."""
    tokens = parse(path)
    try:
        return resolve(state, tokens)
    except ChangeError:
        return tokens


def _touches(change: Change | Fork, path: Path) -> bool:
    return isinstance(change, Fork) or history.touches(change, path)
