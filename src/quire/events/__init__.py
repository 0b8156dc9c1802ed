"""Event sourcing: what happened is the truth, states are folds of it.

An event store is a log of its own kind in a Quire store, appended at the cost of the event. `EventStore` and `StateView`
are for threads, their twins with `Async` for the event loop.
"""

from __future__ import annotations

from quire.events.fold import Reducer
from quire.events.log import Event
from quire.events.schemas import EventSchema
from quire.events.store import AsyncEventStore
from quire.events.sync import EventStore, StateView
from quire.events.view import AsyncStateView

__all__ = ["AsyncEventStore", "AsyncStateView", "Event", "EventSchema", "EventStore", "Reducer", "StateView"]
