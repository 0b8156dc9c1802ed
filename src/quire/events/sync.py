"""The event store for code without an event loop: the same words, from any thread.

Each method runs its twin on the loop of a `quire.sync` store; reducers, schemas and callbacks, which are the caller's
code, run in threads. Signatures and docstrings are held equal by tests/test_parity.py.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Unpack

from quire.api import sync
from quire.api.counting import Moment, WritingFromZero
from quire.api.face import Face, twin_of
from quire.api.store import Store
from quire.api.sync import _Loop  # pyright: ignore[reportPrivateUsage] - faces share the store's loop
from quire.engine.write import Write
from quire.errors import Closed, Invalid
from quire.events import delivery
from quire.events.fold import Reducers, State, reducer_of
from quire.events.log import Event
from quire.events.schemas import EventSchema
from quire.events.store import AsyncEventStore
from quire.events.view import AsyncStateView
from quire.threads import Threads

Callback = Callable[[Event], Any]


@twin_of(delivery.Subscription)
class Subscription:
    """What `subscribe` returns. delivered: events its callback took.  failures: how often it raised.

    last_error: what it raised last; None once it succeeded again.
    """

    def __init__(self, loop: _Loop, subscription: delivery.Subscription, thread: Threads) -> None:
        self._loop = loop
        self._subscription = subscription
        self._thread = thread
        self.event_type = subscription.event_type

    @property
    def active(self) -> bool:
        """Whether it is being delivered to."""
        return self._subscription.active

    @property
    def delivered(self) -> int:
        """Events its callback took."""
        return self._subscription.delivered

    @property
    def failures(self) -> int:
        """How often it raised."""
        return self._subscription.failures

    @property
    def last_error(self) -> Exception | None:
        """What it raised last; None once it succeeded again."""
        return self._subscription.last_error

    def cancel(self) -> None:
        with suppress(Closed):  # the store was closed before: nothing is delivered any more
            self._loop.run(self._subscription.cancel())
        self._thread.stop()  # it ends once the callback returns


@twin_of(AsyncEventStore)
class EventStore(Face[AsyncEventStore]):
    """An append-only log of events, with reducers, schemas and subscribers, safe from many threads and processes.

    storage: an open `quire.sync` store, or a URL; "memory:" forgets everything when it is closed.  name: which log in it.
    reducers, schemas, keyframes: as `AsyncEventStore` takes them. Callbacks run in a thread of their own each.

    >>> with EventStore() as store:
    ...     store.append("update_position", {"x": 10, "y": 20}).version
    ...     store.replay()
    0
    {'position': {'x': 10, 'y': 20}}
    """

    def __init__(
        self,
        storage: sync.Store | str = "memory:",
        *,
        name: str = "events",
        namespace: str = "default",
        reducers: Reducers | None = None,
        schemas: Mapping[str, EventSchema] | None = None,
        keyframes: str | None = None,
    ) -> None:
        self._reduce = reducer_of(reducers)

        def face_on(store: Store) -> AsyncEventStore:
            return AsyncEventStore(store, name=name, reducers=self._apply_event, schemas=schemas, keyframes=keyframes)

        super().__init__(storage, namespace, face_on)
        self._subscriptions: set[Subscription] = set()
        self.name = name

    def close(self) -> None:
        for subscription in list(self._subscriptions):
            subscription.cancel()
        super().close()

    def append(
        self,
        event_type: str,
        data: Mapping[str, Any] | Any,
        *,
        idempotency_key: str | None = None,
        **how: Unpack[WritingFromZero],
    ) -> Event:
        drafted = self.event(event_type, data, **how)  # in the caller's thread, for schemas are the caller's code
        return self.loop.run(self.twin.log.store([drafted], idempotency_key))[0]

    def append_many(
        self, events: Iterable[tuple[str, Mapping[str, Any] | Any]], **how: Unpack[WritingFromZero]
    ) -> list[Event]:
        return self.loop.run(self.twin.log.store(self.twin.drafted(events, how)))

    def event(self, event_type: str, data: Mapping[str, Any] | Any, **how: Unpack[WritingFromZero]) -> Write:
        return self.twin.event(event_type, data, **how)

    def get_version(self) -> int:
        return self.loop.run(self.twin.get_version())

    def get_events_since(
        self, version: Moment, *, event_type: str | None = None, limit: int | None = None
    ) -> list[Event]:
        return self.loop.run(self.twin.get_events_since(version, event_type=event_type, limit=limit))

    def get_all_events(self, *, event_type: str | None = None, upto: Moment | None = None) -> list[Event]:
        return self.loop.run(self.twin.get_all_events(event_type=event_type, upto=upto))

    def replay(
        self, event_type: str | None = None, *, upto: Moment | None = None, fresh: bool = False
    ) -> dict[str, Any]:
        return self.loop.run(self.twin.replay(event_type, upto=upto, fresh=fresh))

    def drop_keyframes(self, name: str) -> None:
        return self.loop.run(self.twin.drop_keyframes(name))

    def subscribe(
        self,
        event_type: str | None,
        callback: Callback,
        *,
        cursor: str | None = None,
        after: int | None = None,
    ) -> Subscription:
        if inspect.iscoroutinefunction(callback):
            raise Invalid("callbacks of this store are plain functions; `AsyncEventStore` calls async ones")
        # a thread of its own: a callback may block, or call this store, without holding up the loop or the others
        thread = Threads(1, f"quire-{self.name}", idle_s=None)
        called = partial(thread.call, callback) if callable(callback) else callback
        made = self.loop.run(self.twin.subscribe(event_type, called, cursor=cursor, after=after))
        subscription = Subscription(self.loop, made, thread)
        self._subscriptions.difference_update([s for s in list(self._subscriptions) if not s.active])
        self._subscriptions.add(subscription)
        return subscription

    def drop_cursor(self, cursor: str) -> None:
        return self.loop.run(self.twin.drop_cursor(cursor))

    def drain(self, timeout_s: float | None = None) -> bool:
        return self.loop.run(self.twin.drain(timeout_s))

    def _apply_event(self, state: State, event: Event) -> State:
        """Return the state after an event; override it to reduce in one place."""
        return self._reduce(state, event)


@twin_of(AsyncStateView)
class StateView:
    """A read-only state derived from the events of a store, kept ready until the store moves; safe from any thread.

    reducers, keyframes: its own, as an event store takes them (None: the store's). One log may have many views.
    """

    def __init__(
        self, event_store: EventStore, *, reducers: Reducers | None = None, keyframes: str | None = None
    ) -> None:
        if not isinstance(event_store, EventStore):
            raise Invalid(f"a view is made of an EventStore, not of {type(event_store).__name__}")
        self.event_store = event_store
        self._view = AsyncStateView(event_store.twin, reducers=reducers, keyframes=keyframes)

    @property
    def cached_version(self) -> int:
        """The version of the newest event in the state kept ready; -1 before the first one, or before the first read."""
        return self._view.cached_version

    def get_state(self) -> dict[str, Any]:
        return self.event_store.loop.run(self._view.get_state())
