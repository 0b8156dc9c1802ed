"""Folding events into a state, by reducers.

1. A state is the fold of the events up to a version. Keyframes only shorten the way there (`keyframes`).
2. One is kept by whoever reads, after the read, when the events folded weigh as much as the last one: the byte rule of
   the log's own keyframes.
3. A reducer that raises is named with its event. It harms nobody: not the log, nor a state that somebody holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from quire.calls import call, in_words, raised
from quire.core import keyframes
from quire.core.values import clean
from quire.engine.engine import Engine
from quire.errors import Invalid, ReducerFailed
from quire.events.keyframes import Keyframes
from quire.events.log import Event, EventLog, type_of
from quire.model import GENESIS, Head, Keyframe, Record
from quire.threads import aside

State = dict[str, Any]
Reducer = Callable[[State, Event], State]
"""Returns the state after an event. It may alter the state it is given and return that."""
Reducers = Mapping[str, Reducer] | Reducer
"""By event type, where types without one change nothing; or one function for all."""


def _update_position(state: State, event: Event) -> State:
    return {**state, "position": event.data}


def _change_status(state: State, event: Event) -> State:
    return {**state, "status": event.data["status"]}


EXAMPLES: Mapping[str, Reducer] = {"update_position": _update_position, "change_status": _change_status}
"""The reducers of the document's example: what a store has that was given none."""


def reducer_of(reducers: Reducers | None) -> Reducer:
    """Return one function for all types. Raises Invalid."""
    if reducers is None:
        reducers = EXAMPLES
    if not isinstance(reducers, Mapping):
        if not callable(reducers):
            raise Invalid(f"reducers are a table by event type or one function, not {type(reducers).__name__}")
        return reducers
    table = dict(reducers)
    wrong = next((t for t, r in table.items() if not callable(r)), None)
    if wrong is not None:
        raise Invalid(f"the reducer of event {wrong!r} is not a function of state and event")

    def reduce(state: State, event: Event) -> State:
        reducer = table.get(event.event_type)
        return state if reducer is None else reducer(state, event)

    return reduce


class Folded(NamedTuple):
    """A state and where it is. changes, size: events and their bytes since a keyframe of `kept_size` bytes."""

    version: int
    chain: bytes
    state: State
    changes: int = 0
    size: int = 0
    kept_size: int = 0


class Fold:
    """One way to fold an event log: its reducers, and the keyframes of what they make."""

    def __init__(self, engine: Engine, events: EventLog, reduce: Reducer, kept_as: str | None) -> None:
        """kept_as: the name that keyframes are kept under, None for none."""
        self._settings = engine.settings
        self._threads = engine.threads
        self._events = events
        self._reduce = reduce
        self._keyframes = None if kept_as is None else Keyframes(engine, events.stream, kept_as)

    async def at(
        self, number: int, known: Folded | None = None, *, event_type: str | None = None, fresh: bool = False
    ) -> Folded:
        """Return the state at a number of the log. Raises ReducerFailed, InvalidState for a state that is not JSON
        and has to be kept, and what reading events raises.

        known: a state at or before it, which is given up.  event_type: of the events of one type only.
        fresh: use and make no keyframes; with event_type there are none.
        Cost: the events since `known` or the nearest keyframe.
        """
        kept = None if fresh or event_type is not None else self._keyframes
        if known is None and kept is not None:
            known = _unpacked(await kept.nearest(number))
        folded = known if known is not None else Folded(0, GENESIS, {})
        async for page in self._events.pages(folded.version, number, chain=folded.chain):
            folded = await self._threads.call(self._page, folded, page, event_type)  # reducers are the caller's code
        if kept is not None and self._due(folded):
            head = Head(kept.name, folded.version, folded.chain)
            frame = await aside(keyframes.make, head, self.plain(folded.state))
            if await kept.keep(frame):
                folded = folded._replace(changes=0, size=0, kept_size=len(frame.body))
        return folded

    def plain(self, state: State) -> State:
        """Return a copy that is the caller's to keep. Raises InvalidState for what is not JSON. Cost: O(state)."""
        return cast("State", clean(state, depth_max=self._settings.depth_max))

    def _page(self, folded: Folded, page: Sequence[Record], event_type: str | None) -> Folded:
        state, size = folded.state, folded.size
        for found in page:
            if event_type is None or type_of(found) == event_type:
                state = self._step(state, self._events.event(found))
            size += len(found.body)
        last = page[-1]
        return Folded(last.version, last.chain, state, folded.changes + len(page), size, folded.kept_size)

    def _step(self, state: State, event: Event) -> State:
        try:
            state = call(self._reduce, state, event)
        except Exception as cause:  # noqa: BLE001 - of the caller's code: it is the cause
            raise ReducerFailed(event.event_type, event.version, in_words(cause)) from raised(cause)
        if type(state) is not dict:
            why = f"it returned {type(cast('object', state)).__name__}, not the state"
            raise ReducerFailed(event.event_type, event.version, why)
        return state

    def _due(self, folded: Folded) -> bool:
        return keyframes.due(
            changes=folded.changes,
            size=folded.size,
            last_size=folded.kept_size,
            changes_min=self._settings.keyframe_changes_min,
            bytes_min=self._settings.keyframe_bytes_min,
            ratio=self._settings.keyframe_ratio,
        )


def _unpacked(frame: tuple[Keyframe, State] | None) -> Folded | None:
    if frame is None:
        return None
    kept, state = frame
    return Folded(kept.version, kept.chain, state, kept_size=len(kept.body))
