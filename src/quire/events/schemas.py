"""Schemas of events: what the data of a type must look like, and how data of former times is read today.

1. Data is checked before it is stored. What is stored is what was given, never a repaired form of it.
2. A stored event is never rewritten. It carries the number of the schema it was made by; when it is read, upcasters
   lead its data from there to the present schema, one number at a time, and the result is checked again.
3. A type without a schema takes any object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import msgspec

from quire.api.writes import Bounds
from quire.calls import call, in_words, message_of, raised
from quire.core.values import clean, copied
from quire.errors import IncompatibleFormat, Invalid, InvalidEvent, InvalidState

Data = dict[str, Any]
Upcaster = Callable[[Data], Data]
"""Gives the data of the next schema; it may alter what it is given."""

_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


class EventSchema(msgspec.Struct, frozen=True):
    """What the data of one event type looks like.

    model: a msgspec Struct, dataclass or TypedDict that the data must convert to, or a function that raises to refuse it
    (its exception may have a `field`).  version: 1, 2, 3...; raise it when the model changes.  upcast: for every former
    version n, a function from its data to that of n + 1.
    """

    model: Callable[..., Any] | None = None
    version: int = 1
    upcast: Mapping[int, Upcaster] = {}


class Schemas:
    """The schemas of one event store, by event type."""

    def __init__(self, schemas: Mapping[str, EventSchema] | None) -> None:
        self._schemas = dict(schemas or {})
        for event_type, schema in self._schemas.items():
            if not isinstance(schema, EventSchema):
                raise Invalid(f"the schema of event {event_type!r} is {type(schema).__name__}; make an EventSchema")
            wanted = set(range(1, schema.version))
            if type(schema.version) is not int or schema.version < 1 or set(schema.upcast) != wanted:
                raise Invalid(
                    f"the schema of event {event_type!r} has version {schema.version!r} and upcasters from "
                    f"{sorted(schema.upcast)}; version n >= 1 needs one from each of 1 to n - 1"
                )

    def __contains__(self, event_type: str) -> bool:
        return event_type in self._schemas

    def checked(self, event_type: str, given: Any, bounds: Bounds) -> tuple[Data, int]:
        """Return a private copy of new data, and the number of its schema. Raises InvalidEvent. Cost: O(data)."""
        data = msgspec.to_builtins(given) if isinstance(given, msgspec.Struct) else given
        if not isinstance(data, Mapping):
            raise InvalidEvent(event_type, f"data is {type(cast('object', data)).__name__}, an object is needed")
        try:
            plain = cast("Data", clean(data, path=("event", "data"), **bounds))
        except InvalidState as cause:
            field = ".".join(cause.path.split("/")[3:])
            raise InvalidEvent(event_type, str(cause).partition(": ")[2], field=field) from cause
        schema = self._schemas.get(event_type)
        if schema is None:
            return plain, 1
        _check(schema, event_type, plain, None)
        return plain, schema.version

    def present(self, event_type: str, data: Data, made_by: int, version: int) -> Data:
        """Return stored data in the form of the present schema. made_by: its schema.  version: of the event.

        Raises InvalidEvent when an upcaster fails or gives what the schema refuses, IncompatibleFormat when the event
        was made by a newer schema than this process knows.
        """
        schema = self._schemas.get(event_type)
        if schema is None or made_by == schema.version:
            return data
        if made_by > schema.version:
            raise IncompatibleFormat(
                f"event {event_type!r} of version {version} was made by schema {made_by}, this process knows "
                f"{schema.version}; update the program",
                found=made_by,
                supported=schema.version,
            )
        for step in range(made_by, schema.version):
            try:
                data = call(schema.upcast[step], data)
            except Exception as cause:  # noqa: BLE001 - of the caller's code: it is the cause
                why = f"the upcaster from schema {step} failed: {in_words(cause)}"
                raise InvalidEvent(event_type, why, field=_named(cause), version=version) from raised(cause)
            if type(data) is not dict:
                why = f"the upcaster from schema {step} returned {type(cast('object', data)).__name__}, not a dict"
                raise InvalidEvent(event_type, why, version=version)
        _check(schema, event_type, data, version)
        return data


def _check(schema: EventSchema, event_type: str, data: Data, version: int | None) -> None:
    """Raise InvalidEvent unless the data fits the model."""
    model = schema.model
    try:
        if isinstance(model, type):
            call(msgspec.convert, data, model)
        elif model is not None:
            call(model, copied(data))  # a check is not to alter what is stored
    except msgspec.ValidationError as cause:
        text = str(cause)
        place, missing = _PLACE.search(text), _FIELD.search(text)
        parts = [m[1] for m in (place, missing) if m and m[1]]
        raise InvalidEvent(event_type, _PLACE.sub("", text), field=".".join(parts), version=version) from cause
    except Exception as cause:  # noqa: BLE001 - of the caller's code: it is the cause
        raise InvalidEvent(event_type, in_words(cause), field=_named(cause), version=version) from raised(cause)


def _named(error: Exception) -> str:
    """Return the field that an exception of the caller's code names."""
    if isinstance(error, KeyError) and error.args:
        return message_of(error.args[0])
    return message_of(call(getattr, error, "field", ""))
