"""The events of one log: how they are stored, written and read.

An event store is a stream of its own kind, `events/<name>`, in which every record is exactly one event: nobody else
writes to it, so versions have no gaps and nothing stored is ever changed. The record carries type (in `kind`), time,
author and message; its one change replaces the event before it in the stream's state. So the engine keeps one event in
memory however long the log grows, an append costs the event, and a read costs the events read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from quire.api import revisions, writes
from quire.api.checkpoints import Checkpoints
from quire.api.counting import Moment, from_zero, in_log, missing, options_in_log, revision
from quire.core import record
from quire.core.names import check_id
from quire.engine.engine import Engine
from quire.engine.idempotency import write_once
from quire.engine.write import Write
from quire.errors import CorruptRecord, LimitExceeded, VersionNotFound
from quire.events.schemas import Schemas
from quire.model import GENESIS, Head, Record, Set
from quire.storage.base import more_may_follow

EVENTS = "events/"
KIND = "event:"
"""Before the type in a record's kind, which has meanings of its own for words such as "fork"."""
PAGE = 1000
"""Events read at a time: bounds memory, not the result."""
_TOGETHER_MAX = 10_000


class Event(msgspec.Struct, frozen=True):
    """Something that happened. version: 0, 1, 2... in its store.  timestamp: UTC, for people; order is by version.

    data: the reader's own copy, in the form of the present schema.  schema: the number of the one it was made by.
    """

    event_id: str
    event_type: str
    data: dict[str, Any]
    timestamp: datetime
    version: int
    author: str = "system"
    message: str = ""
    schema: int = 1


class _Kept(msgspec.Struct, gc=False):
    """The value of the one change of a record."""

    id: str
    data: dict[str, Any]
    schema: int = 1


class _Change(msgspec.Struct, gc=False, array_like=True, tag="set"):
    path: tuple[str]
    value: _Kept


_decode = msgspec.json.Decoder(tuple[_Change]).decode


def type_of(found: Record) -> str:
    """Return the type of a record's event. Cost: nothing is decoded."""
    return found.kind.removeprefix(KIND)


class EventLog:
    """The log of one event store."""

    def __init__(self, engine: Engine, name: str, schemas: Schemas) -> None:
        self.name = check_id(name, "event store")
        self.stream = EVENTS + name
        self.schemas = schemas
        self._engine = engine
        self._bounds = writes.limits(engine.settings)

    # writing

    def drafted(self, event_type: str, data: Any, how: Mapping[str, Any]) -> Write:
        """Return the write of an event that is not stored yet. Runs the schema, which is the caller's code.

        Raises InvalidEvent, Invalid.
        """
        named = writes.name(event_type, "event type")
        plain, schema = self.schemas.checked(named, data, self._bounds)
        value: dict[str, Any] = {"id": self._engine.ids(), "data": plain, **({} if schema == 1 else {"schema": schema})}
        how = options_in_log(how)
        return writes.write(self.stream, [Set(("event",), value)], how, kind=KIND + named, exists=None)[0]

    async def store(self, writes: Sequence[Write], key: str | None = None) -> list[Event]:
        """Make drafted events durable, all or none, and return them. key: at most once, however often it is sent."""
        if len(writes) > _TOGETHER_MAX:
            raise LimitExceeded(
                f"{len(writes):,} events at once, allowed are {_TOGETHER_MAX:,}; append them in parts",
                limit="events_together_max",
                allowed=_TOGETHER_MAX,
                found=len(writes),
            )
        with from_zero(self.name):
            if key is None:
                made = await self._engine.write_all(writes) if writes else []
            else:
                made = [await write_once(self._engine, writes[0], key, _content(writes[0]))]
        return [self.event(v.record) for v in made if v is not None]

    # reading

    async def head(self) -> Head:
        """Return the newest record's number and chain, of any process; version 0 where there is none."""
        if self._engine.residents.peek(self.stream) is not None:
            return (await self._engine.current(self.stream)).head
        # a log that is only read is not loaded: what is damaged in it does not keep the rest from being read
        return (await self._engine.backend.heads([self.stream]))[0]

    async def number(self, moment: Moment | None) -> int:
        """Return the log's number of the last event at a version or a time; 0 is before the first event.

        Raises VersionNotFound.
        """
        head = await self.head()
        if moment is None:
            return head.version
        if isinstance(moment, datetime):
            actor = await self._engine.current(self.stream)
            try:
                return await revisions.resolve(
                    self._engine, actor, revision(moment), Checkpoints(self._engine, self.name)
                )
            except VersionNotFound:
                return 0  # nothing had happened yet
        number = in_log(moment)
        if not 0 <= number <= head.version:
            raise missing(self.name, moment, oldest=-1, newest=head.version - 1)
        return number

    async def pages(
        self, after: int, upto: int | None = None, *, chain: bytes | None = None, limit: int | None = None
    ) -> AsyncGenerator[list[Record]]:
        """Yield the records with after < version <= upto in order, checked against the chain, at most `limit`.

        after: a number of the log that exists, or 0.  chain: of that record; it is read where it is not given.
        Raises CorruptRecord at the first one that does not follow.
        """
        check = self._engine.settings.verify_on_load
        if after == 0:
            chain = GENESIS
        elif chain is None and check:
            chain = (await self._engine.record(self.stream, after)).chain
        while limit is None or limit > 0:
            size = PAGE if limit is None else min(PAGE, limit)
            page = await self._engine.backend.read(self.stream, after=after, upto=upto, limit=size)
            if not page:
                return
            if check:
                chain = record.check_all(page, after, cast("bytes", chain))
            yield page
            if not more_may_follow(page, size):
                return
            after = page[-1].version
            limit = None if limit is None else limit - len(page)

    async def events(
        self, after: int, upto: int | None = None, *, event_type: str | None = None, limit: int | None = None
    ) -> list[Event]:
        """Return the events with after < number <= upto, oldest first; event_type: only these."""
        found: list[Event] = []
        async for page in self.pages(after, upto, limit=limit if event_type is None else None):
            wanted = [r for r in page if event_type is None or type_of(r) == event_type]
            found += await self._engine.threads.call(self._all, wanted)  # upcasters are the caller's code
            if limit is not None and len(found) >= limit:
                return found[:limit]
        return found

    def event(self, found: Record) -> Event:
        """Return the event of a record, fresh values. Raises CorruptRecord, and what the type's schema raises."""
        try:
            kept = _decode(found.body)[0].value
            moment = datetime.fromtimestamp(found.time / 1000, UTC)
        except (msgspec.MsgspecError, RecursionError, UnicodeError, OverflowError, ValueError, OSError) as cause:
            at = f"{found.stream}@{found.version}"
            raise CorruptRecord(f"{at}: this is not an event ({cause}); run `quire verify`", at=at) from cause
        event_type = type_of(found)
        data = self.schemas.present(event_type, kept.data, kept.schema, found.version - 1)
        return Event(kept.id, event_type, data, moment, found.version - 1, found.author, found.message, kept.schema)

    def _all(self, records: Sequence[Record]) -> list[Event]:
        return [self.event(r) for r in records]


def _content(write: Write) -> bytes:
    """Return what is asked, without what differs each time it is asked."""
    plan = cast("Sequence[Set]", write.plan)
    return msgspec.json.encode([write.kind, {k: v for k, v in plan[0].value.items() if k != "id"}])
