"""What is read from the log besides states: history, blame, events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, Literal

import msgspec

from quire.core import history, record
from quire.core.fold import copied
from quire.core.path import format as pointer
from quire.core.path import get as get_path
from quire.core.path import parse
from quire.engine.engine import Engine
from quire.engine.watch import Cursor, store_records, stream_records
from quire.errors import Invalid
from quire.model import (
    WORKFLOWS,
    Append,
    Change,
    Delete,
    Fork,
    Increment,
    Insert,
    Path,
    Record,
    Remove,
    Set,
    Splice,
    Version,
)

Order = Literal["newest", "oldest"]
_PAGE = 500

CHANGE_TYPES: Mapping[str, type[Any]] = {
    "set": Set,
    "delete": Delete,
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
            await cursor.save()


async def watch_stream(
    engine: Engine, stream: str, after: int, wanted: Sieve, cursor: str | None
) -> AsyncGenerator[Event]:
    """Yield the events of one workflow after a version."""
    kept = None if cursor is None else Cursor(engine, f"{stream}/{cursor}")
    start = after if kept is None else await kept.load(after)
    idle = kept.save if kept is not None else _nothing
    async with aclosing(_events(stream_records(engine, stream, start, idle), kept, _version, wanted)) as events:
        async for event in events:
            yield event


async def watch_store(engine: Engine, after: int, wanted: Sieve, cursor: str | None) -> AsyncGenerator[Event]:
    """Yield the events of all workflows after a position."""
    kept = None if cursor is None else Cursor(engine, f"store/{cursor}")
    start = after if kept is None else await kept.load(after)
    idle = kept.save if kept is not None else _nothing
    async with aclosing(_events(store_records(engine, start, WORKFLOWS, idle), kept, _position, wanted)) as events:
        async for event in events:
            yield event


async def _nothing() -> None:
    pass


def _version(found: Record) -> int:
    return found.version


def _position(found: Record) -> int:
    return found.position


async def scan(
    engine: Engine, stream: str, top: int, order: Order, matches: Callable[[Record], bool], limit: int | None
) -> list[Version]:
    """Return the versions up to `top` that match, in the order asked, at most `limit`."""
    found: list[Version] = []
    step = _PAGE if limit is None else max(1, min(limit, _PAGE))
    lows = range(0, top, step) if order == "oldest" else range(top - step, -step, -step)
    for low in lows:
        page = await engine.backend.read(stream, after=max(0, low), upto=min(low + step, top))
        for entry in page if order == "oldest" else reversed(page):
            if matches(entry):
                found.append(Version(entry))
                if len(found) == limit:
                    return found
    return found


async def log(engine: Engine, stream: str, upto: int) -> list[Record]:
    """Return the records of a stream up to a version, those of the logs it was forked from first."""
    records = await engine.backend.read(stream, upto=upto)
    if records and records[0].kind == "fork":
        origin = record.decode(records[0])[0]
        if isinstance(origin, Fork):
            return [*await log(engine, WORKFLOWS + origin.workflow_id, origin.version), *records[1:]]
    return records


async def blame(engine: Engine, stream: str, version: int, state: dict[str, Any], path: Path) -> list[BlameLine]:
    """Say who set each value at or below a path last."""
    records = await log(engine, stream, version)
    changes = ((i, [c for c in record.decode(r) if not isinstance(c, Fork)]) for i, r in enumerate(records))
    lines: list[BlameLine] = []
    for line in history.blame(changes, path):
        by = Version(records[max(0, line.entry)])  # what nobody set was there from the first version on
        value = copied(get_path(state, line.path))
        lines.append(BlameLine(pointer(line.path), value, by.workflow_id, by.number, by.author, by.time, by.message))
    return lines
