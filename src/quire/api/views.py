"""What is read from the log besides states: history, blame, events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import datetime
from functools import partial
from typing import Any, Literal

import msgspec

from quire.core import history, record
from quire.core.changes import Working
from quire.core.path import format as pointer
from quire.core.path import get as get_path
from quire.core.path import parse
from quire.core.values import copied
from quire.engine.engine import Engine
from quire.engine.lineage import merges, named, point_of, sources
from quire.engine.moving.paging import Stride, backwards, pages
from quire.engine.watch import Cursor, store_records, stream_records
from quire.errors import Closed, CorruptRecord, Invalid, NotFound
from quire.model import (
    WORKFLOWS,
    Append,
    Change,
    Delete,
    Ensure,
    Fork,
    Increment,
    Insert,
    Path,
    Point,
    Record,
    Remove,
    Set,
    Splice,
    Version,
)
from quire.threads import aside

Order = Literal["newest", "oldest"]
STORE = "store"
"""Where cursors of whole stores are: nothing that has a log is called so."""
_PAGE = 500
_NOTHING: Any = object()

CHANGE_TYPES: Mapping[str, type[Any]] = {
    "set": Set,
    "delete": Delete,
    "ensure": Ensure,
    "append": Append,
    "insert": Insert,
    "remove": Remove,
    "splice": Splice,
    "inc": Increment,
}
"""Names of the change types, as filters take them."""


class Event(msgspec.Struct, frozen=True):
    """What a watcher receives: a version, and those of its changes that passed the filter."""

    version: Version
    changes: list[Change | Fork]

    @property
    def workflow_id(self) -> str:
        """The workflow that changed."""
        return self.version.workflow_id

    @property
    def position(self) -> int:
        """Its place in the store's order: watch a store again from here."""
        return self.version.position


class Diff(list[Change]):
    """The changes from one state to another, and what they amount to. Places are JSON Pointers, as in the new state."""

    def __init__(self, before: dict[str, Any], changes: Sequence[Change]) -> None:
        super().__init__(changes)
        self.added: list[str] = []
        self.modified: list[str] = []
        self.removed: list[str] = []
        """Places of the old state."""
        for change in changes:
            self._sort(before, change)

    @property
    def summary(self) -> str:
        """One line for people, such as "2 added, 1 modified"."""
        counts = (("added", self.added), ("modified", self.modified), ("removed", self.removed))
        return ", ".join(f"{len(places)} {what}" for what, places in counts if places) or "no difference"

    def _sort(self, before: dict[str, Any], change: Change) -> None:
        at = change.path
        match change:
            case Set() | Ensure():
                there = get_path(before, at, _NOTHING) is not _NOTHING
                (self.modified if there else self.added).append(pointer(at))
            case Append(_, values):
                start = len(get_path(before, at, ()))
                self.added += [pointer((*at, start + i)) for i in range(len(values))]
            case Insert(_, index, values):
                self.added += [pointer((*at, index + i)) for i in range(len(values))]
            case Delete():
                self.removed.append(pointer(at))
            case Remove(_, index, count):
                self.removed += [pointer((*at, index + i)) for i in range(count)]
            case Splice() | Increment():
                self.modified.append(pointer(at))


class BlameLine(msgspec.Struct, frozen=True):
    """Who set the value at `path`, when, in which version, and why."""

    path: str
    value: Any
    workflow_id: str
    version: int
    author: str
    time: datetime
    message: str


Sieve = Callable[[Record], Event | None]


def sieve(path: Any, types: Collection[str] | None, author: str | None) -> Sieve:
    """Return a function that makes an event of a record, or None where the filters keep it out."""
    tokens = None if path is None else parse(path)
    unknown = sorted(set(types or ()) - set(CHANGE_TYPES))
    if unknown:
        raise Invalid(f"unknown change type {unknown[0]!r}; there are {', '.join(CHANGE_TYPES)}")
    wanted = None if types is None else tuple(CHANGE_TYPES[t] for t in types)

    def event(found: Record) -> Event | None:
        if author is not None and found.author != author:
            return None
        changes = record.decode(found)
        if tokens is not None:
            changes = [c for c in changes if isinstance(c, Fork) or history.touches(c, tokens)]
        if wanted is not None:
            changes = [c for c in changes if isinstance(c, wanted)]
        if not changes and (tokens is not None or wanted is not None):
            return None
        return Event(Version(found), changes)

    return event


async def _events(
    records: AsyncGenerator[Record], cursor: Cursor | None, place: Callable[[Record], int], wanted: Sieve
) -> AsyncGenerator[Event]:
    """Yield what passes the sieve; what was yielded is acknowledged when the next is asked for."""
    try:
        async with aclosing(records):
            async for found in records:
                event = wanted(found)
                if event is not None:
                    yield event
                if cursor is not None:
                    await cursor.ack(place(found))
    finally:
        if cursor is not None:
            with suppress(Closed):  # the loop was left, and the store closed, before this: the last event comes again
                await cursor.save()


async def watch_stream(
    engine: Engine, stream: str, begin: Callable[[], Awaitable[int]], wanted: Sieve, cursor: str | None
) -> AsyncGenerator[Event]:
    """Yield the events of one workflow after the version that `begin` returns."""
    after = await begin()
    kept = None if cursor is None else Cursor(engine, f"{stream}/{cursor}")
    start = after if kept is None else await kept.load(after)
    idle = kept.save if kept is not None else _nothing
    async with aclosing(_events(stream_records(engine, stream, start, idle), kept, _version, wanted)) as events:
        async for event in events:
            yield event


async def watch_store(engine: Engine, after: int, wanted: Sieve, cursor: str | None) -> AsyncGenerator[Event]:
    """Yield the events of all workflows after a position."""
    kept = None if cursor is None else Cursor(engine, f"{STORE}/{cursor}")
    start = after if kept is None else await kept.load(after)
    idle = kept.save if kept is not None else _nothing
    async with aclosing(_events(store_records(engine, start, WORKFLOWS, idle), kept, _position, wanted)) as events:
        async for event in events:
            yield event


async def drop_cursor(engine: Engine, area: str, name: str) -> None:
    """Remove a cursor of what is watched. Raises NotFound."""
    if not await Cursor(engine, f"{area}/{name}").forget():
        raise NotFound(f"{area} has no cursor {name!r}; `health().watchers` tells which there are")


async def _nothing() -> None:
    pass


def _version(found: Record) -> int:
    return found.version


def _position(found: Record) -> int:
    return found.position


async def scan(
    engine: Engine, stream: str, top: int, order: Order, matches: Callable[[Record], bool], limit: int | None
) -> list[Version]:
    """Return the versions up to `top` that match, in the order asked, at most `limit`. Raises Invalid."""
    if limit is not None and (type(limit) is not int or limit < 0):
        raise Invalid(f"limit={limit!r} is not a number of versions; leave it out for all of them")
    if order not in ("newest", "oldest"):
        raise Invalid(f"order={order!r}; there are newest and oldest")
    if limit == 0:
        return []
    found: list[Version] = []
    step = _PAGE if limit is None else max(1, min(limit, _PAGE))
    read = pages(engine.backend, stream, 0, top, limit=step)
    if order == "newest":
        read = backwards(engine.backend, stream, top, limit=step)
    async with aclosing(read) as records:
        async for entry in records:
            if matches(entry):
                found.append(Version(entry))
                if len(found) == limit:
                    break
    return found


async def states(engine: Engine, stream: str, first: int, last: int) -> AsyncGenerator[tuple[Version, dict[str, Any]]]:
    """Yield each version of a range with the state it left behind, which is not to be altered."""
    working = Working(await engine.state_at(stream, first - 1) if first > 1 else {})
    async for entry in pages(engine.backend, stream, first - 1, last, limit=_PAGE):
        for change in record.decode(entry):
            if isinstance(change, Fork):
                working = Working(await engine.state_at(WORKFLOWS + change.workflow_id, change.version))
            else:
                working.apply(change)
        yield Version(entry), working.state
        working = Working(working.state)  # what was yielded stays as it is


async def log(engine: Engine, stream: str, upto: int) -> list[Record]:
    """Return the records of a stream up to a version, those of the logs it was forked from first."""
    records = [entry async for entry in pages(engine.backend, stream, 0, upto)]
    if not records or records[0].version != 1:
        raise CorruptRecord(
            f"{stream.removeprefix(WORKFLOWS)}: its first version is not there; run `quire verify`", at=stream
        )
    if records[0].kind == "fork":
        origin = record.decode(records[0])[0]
        if isinstance(origin, Fork):
            return [*await log(engine, WORKFLOWS + origin.workflow_id, origin.version), *records[1:]]
    return records


def _mentions(path: Path) -> Callable[[bytes], bool]:
    """Return a quick look at a body, whether it may concern a path: it names the first key, or replaces the whole."""
    if not path:
        return lambda _: True
    key = msgspec.json.encode(path[0])
    return lambda body: key in body or b'"set",[],' in body


async def _by_source(engine: Engine, entry: Record) -> list[tuple[Record, list[Change]]]:
    """Return the changes of a record, those of a merge each with the record it was merged from."""
    changes = [c for c in record.decode(entry) if not isinstance(c, Fork)]
    if entry.kind != "merge":
        return [(entry, changes)]
    at = Point(entry.stream.removeprefix(WORKFLOWS), entry.version)
    origins = [o for _, o in named(at.workflow_id, entry, (await merges(engine, at)).get(entry.version))]
    known = await sources(engine, [o for o in origins if o is not None])
    firsts = [entry if o is None else known.get(point_of(o), entry) for o in origins]
    return [(by, [change]) for by, change in zip(firsts, changes, strict=True)]


async def blame(engine: Engine, stream: str, version: int, state: dict[str, Any], path: Path) -> list[BlameLine]:
    """Say who set each value at or below a path last; of what was merged, who did that where it came from."""
    records = await log(engine, stream, version)
    kinds = engine.schemas.kinds(state)
    wanted = _mentions(path)
    by_entry: list[Record] = []
    made: list[tuple[int, list[Change]]] = []
    stride = Stride()
    for entry in records:
        await stride.past(entry)
        if not wanted(entry.body) and not (kinds and kinds.keyed()) and by_entry:
            continue
        for by, changes in await _by_source(engine, entry):
            made.append((len(by_entry), changes))
            by_entry.append(by)
    lines: list[BlameLine] = []
    for number, line in enumerate(await aside(partial(history.blame, made, path, kinds=kinds))):
        if number % _PAGE == 0:
            await asyncio.sleep(0)
        by = Version(by_entry[max(0, line.entry)])  # what nobody set was there from the first version on
        value = copied(get_path(state, line.path))
        lines.append(BlameLine(pointer(line.path), value, by.workflow_id, by.number, by.author, by.time, by.message))
    return lines
