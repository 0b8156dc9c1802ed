"""An event store: what happened, in order, for ever; states are folded from it when they are asked for.

The log is the truth (`log`), states are folds of it (`fold`), subscribers follow it (`delivery`). The store itself holds
nothing that it could lose. `sync` is the same for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Unpack, cast

from quire.api import writes
from quire.api.counting import Moment, WritingFromZero
from quire.api.face import AsyncFace
from quire.api.store import Store
from quire.core.names import check_id
from quire.engine.watch import Cursor
from quire.engine.write import Write
from quire.errors import AlreadyExists, Closed, Invalid, LimitExceeded, NotFound
from quire.events.delivery import Callback, Subscription
from quire.events.fold import Fold, Reducers, State, reducer_of
from quire.events.keyframes import Keyframes
from quire.events.log import Event, EventLog
from quire.events.schemas import EventSchema, Schemas

_SUBSCRIPTIONS_MAX = 1000


class AsyncEventStore(AsyncFace):
    """An append-only log of events, with reducers, schemas and subscribers.

    storage: an open Store, or the URL of one, opened by `async with` or `start`.  name: which log in it.
    reducers: by event type, a function of state and event that returns the state after it; types without one change
    nothing. Or one function for all types; or override `_apply_event`. Default: those of the document's example.
    schemas: by event type, see EventSchema.
    keyframes: a name for these reducers, under which states are kept so that `replay` need not begin at the first
    event. Change the name whenever a reducer changes. None keeps nothing.
    Raises InvalidKey, Invalid for these; Closed before `start`; StorageError.
    """

    def __init__(
        self,
        storage: Store | str = "memory:",
        *,
        name: str = "events",
        namespace: str = "default",
        reducers: Reducers | None = None,
        schemas: Mapping[str, EventSchema] | None = None,
        keyframes: str | None = None,
    ) -> None:
        super().__init__(storage, namespace)
        self.name = check_id(name, "event store")
        self._reduce = reducer_of(reducers)
        self._schemas = Schemas(schemas)
        self._keyframes = keyframes
        self._log: EventLog | None = None
        self._subscriptions: dict[Subscription, str | None] = {}

    async def _begin(self, store: Store) -> None:
        self._log = EventLog(store.engine, self.name, self._schemas)

    async def close(self) -> None:
        """Stop delivering; close the store if it was opened here. Idempotent."""
        for subscription in list(self._subscriptions):
            await subscription.cancel()
        self._subscriptions.clear()
        self._log = None
        await super().close()

    @property
    def log(self) -> EventLog:
        """The log underneath. Raises Closed."""
        if self._log is None:
            raise Closed("the event store is not open: `async with` it, or `await store.start()`")
        return self._log

    # appending

    async def append(
        self,
        event_type: str,
        data: Mapping[str, Any] | Any,
        *,
        idempotency_key: str | None = None,
        **how: Unpack[WritingFromZero],
    ) -> Event:
        """Add an event and return it once it is durable. Cost: O(event), however long the log is.

        data: an object, or a msgspec Struct.  idempotency_key: sent again with the same key the event is not repeated,
        the one it made is returned.
        Raises InvalidEvent naming type and field, Invalid, LimitExceeded, HeadMoved, KeyReused.
        """
        return (await self.log.store([self.log.drafted(event_type, data, how)], idempotency_key))[0]

    async def append_many(
        self, events: Iterable[tuple[str, Mapping[str, Any] | Any]], **how: Unpack[WritingFromZero]
    ) -> list[Event]:
        """Add several events (type, data), all or none, consecutive, and return them."""
        return await self.log.store(self.drafted(events, how))

    def event(self, event_type: str, data: Mapping[str, Any] | Any, **how: Unpack[WritingFromZero]) -> Write:
        """Return an event that is not stored yet, for `store.transact`: a state and its event, both or neither."""
        return self.log.drafted(event_type, data, how)

    def drafted(self, events: Iterable[tuple[str, Any]], how: WritingFromZero) -> list[Write]:
        """Return several events that are not stored yet; what they ask of the version is asked once, of the first."""
        rest = cast("WritingFromZero", {k: v for k, v in how.items() if k != "if_version"})
        return [self.log.drafted(t, data, rest if i else how) for i, (t, data) in enumerate(events)]

    # reading

    async def get_version(self) -> int:
        """Return the version of the newest event, of any process; -1 when there is none."""
        return (await self.log.head()).version - 1

    async def get_events_since(
        self, version: Moment, *, event_type: str | None = None, limit: int | None = None
    ) -> list[Event]:
        """Return the events after a version (-1: all) or a time, oldest first, at most `limit`.

        Raises VersionNotFound. Cost: O(events returned); with event_type O(events passed over), which are not decoded.
        """
        return await self.log.events(await self.log.number(version), event_type=event_type, limit=_limit(limit))

    async def get_all_events(self, *, event_type: str | None = None, upto: Moment | None = None) -> list[Event]:
        """Return all events, oldest first; upto: those up to a version or a time."""
        return await self.log.events(0, await self.log.number(upto), event_type=event_type)

    async def replay(
        self, event_type: str | None = None, *, upto: Moment | None = None, fresh: bool = False
    ) -> dict[str, Any]:
        """Return the state that the events make: of all, or of one type only; as of a version, a time, or now.

        A store without events has the state {}. fresh: begin at the first event, whatever keyframes there are.
        Raises ReducerFailed, InvalidEvent, VersionNotFound; InvalidState when reducers make what is not JSON.
        Cost: the events since the nearest keyframe. With event_type no keyframes are used, and all events are read.
        """
        fold, number = self.fold(), await self.log.number(upto)
        return fold.plain((await fold.at(number, event_type=event_type, fresh=fresh)).state)

    async def drop_keyframes(self, name: str) -> None:
        """Forget the keyframes kept under a name; reading makes new ones."""
        await Keyframes(self.store.engine, self.log.stream, name).drop()

    # following

    async def subscribe(
        self,
        event_type: str | None,
        callback: Callback,
        *,
        cursor: str | None = None,
        after: int | None = None,
    ) -> Subscription:
        """Call `callback` with every event of a type (None: of all), in order, at least once, from now on.

        after: begin after this version instead (-1: with the first event).  cursor: a name under which the place is
        kept across restarts; subscribing with it again goes on from there, and `after` only says where a new one
        begins. A callback that raises is called again with the same event after a growing pause; the writer and other
        subscribers never notice. Raises AlreadyExists for a cursor in use here, LimitExceeded, Invalid.
        """
        if event_type is not None:
            writes.name(event_type, "event type")
        if not callable(callback):
            raise Invalid(f"a callback is callable, {type(cast('object', callback)).__name__} is not")
        async with self.store.engine.key_lock(f"subscribe/{self.log.stream}"):  # two at once could take one cursor
            self._subscriptions = {s: c for s, c in self._subscriptions.items() if s.active}
            if len(self._subscriptions) >= _SUBSCRIPTIONS_MAX:
                raise LimitExceeded(
                    f"{_SUBSCRIPTIONS_MAX} subscriptions are active; cancel some",
                    limit="subscriptions_max",
                    allowed=_SUBSCRIPTIONS_MAX,
                    found=len(self._subscriptions) + 1,
                )
            start = await self.log.number(after)
            place = None
            if cursor is not None:
                if writes.name(cursor, "cursor") in self._subscriptions.values():
                    raise AlreadyExists(f"cursor {cursor!r} is in use by a subscription here; take another name")
                place = Cursor(self.store.engine, f"{self.log.stream}/{cursor}")
                start = await place.load(start)
            subscription = Subscription(self.store.engine, self.log, event_type, callback, place)
            self._subscriptions[subscription] = cursor
            subscription.start(start)
            return subscription

    async def drop_cursor(self, cursor: str) -> None:
        """Remove the place that `subscribe(cursor=...)` keeps, when nobody is to go on from there.

        Raises NotFound, AlreadyExists while a subscription here uses it: cancel that first.
        """
        if any(s.active and used == cursor for s, used in self._subscriptions.items()):
            raise AlreadyExists(f"cursor {cursor!r} is in use by a subscription here; cancel it first")
        if not await Cursor(self.store.engine, f"{self.log.stream}/{cursor}").forget():
            raise NotFound(f"event store {self.name} has no cursor {cursor!r}")

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until every subscriber has taken what is stored now; tell whether they did within the time."""
        number = (await self.log.head()).version
        waits = [asyncio.ensure_future(s.reach(number)) for s in self._subscriptions if s.active]
        if not waits:
            return True
        done, late = await asyncio.wait(waits, timeout=timeout_s)
        for wait in late:
            wait.cancel()
        return not late and not any(wait.cancelled() for wait in done)  # those were cancelled before they got there

    # inside

    def _apply_event(self, state: State, event: Event) -> State:
        """Return the state after an event; override it to reduce in one place."""
        return self._reduce(state, event)

    def fold(self, reducers: Reducers | None = None, keyframes: str | None = None) -> Fold:
        """Return a way to fold these events: with reducers of its own, or (None) the store's."""
        if reducers is None:
            return Fold(self.store.engine, self.log, self._apply_event, keyframes or self._keyframes)
        return Fold(self.store.engine, self.log, reducer_of(reducers), keyframes)


def _limit(limit: int | None) -> int | None:
    if limit is not None and (type(limit) is not int or limit < 0):
        raise Invalid(f"limit {limit!r}: a number of events is needed, or None for all")
    return limit
