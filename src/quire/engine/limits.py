"""How much a workflow's state may hold: asked by its actor of every change it applies and every record it seals.

1. A state far below its limits costs nothing: what its records weigh bounds what it weighs. Where one more write
   could bring it to half a limit it is weighed exactly: once whole, then change by change (core/weigh.py).
2. A write that leaves a state lighter than it found it is never refused, nor is one that takes something out for
   redaction. So whoever is over a limit, because it was lowered, finds a way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from quire.config import Settings
from quire.core.changes import Working
from quire.core.path import format as pointer
from quire.core.path import get
from quire.core.weigh import EMPTY, Weighed, Weight, size_of
from quire.engine.write import Write
from quire.errors import LimitExceeded
from quire.model import WORKFLOWS, Append, Change, Fork, Insert, Path, Set, Splice, utf8

REDACT = "redact"
"""The kind of versions that take out what redaction takes out of the past as well."""

_KEY_BYTES = 4
"""What a key weighs at least: its quotes, its colon, a value."""
_HIDDEN = 2
"""A state weighs at most this many times the changes that made it: only sums of numbers outgrow what was added."""


class Limits:
    """The limits of one store's workflows. Made by `limits_of`."""

    __slots__ = ("_keys", "_near", "_size", "_value")

    def __init__(self, settings: Settings) -> None:
        self._size = settings.state_bytes_max
        self._keys = settings.state_keys_max
        self._value = settings.value_bytes_max
        bounds = [self._size, None if self._keys is None else self._keys * _KEY_BYTES]
        tightest = min((bound for bound in bounds if bound is not None), default=None)
        self._near: float = float("inf")
        if tightest is not None:
            self._near = tightest / _HIDDEN - settings.write_bytes_max

    @property
    def of_values(self) -> bool:
        """Whether there is a limit for single values."""
        return self._value is not None

    def near(self, changes_bytes: int) -> bool:
        """Tell whether one more write may pass a limit. changes_bytes: what all changes of the state weigh."""
        return changes_bytes > self._near

    def check_value(self, stream: str, kind: str, state: dict[str, Any], change: Change | Fork) -> None:
        """Raise LimitExceeded for a change that would put a value larger than one may be, and than what is there.

        state: before it.
        """
        if self._value is None or kind == REDACT:
            return
        for path, size in _values(state, change):
            if size > self._value and size > _size_there(state, path):
                where = pointer(path)
                raise LimitExceeded(
                    f"{stream.removeprefix(WORKFLOWS)}: the value for {where} weighs {size:,} bytes as JSON, allowed "
                    f"are {self._value:,} (value_bytes_max); nothing was written: keep it in a blob "
                    "(`store.put_blob`), or divide it",
                    limit="value_bytes_max",
                    allowed=self._value,
                    found=size,
                    path=where,
                )

    def check_state(
        self, stream: str, kind: str, changes: Sequence[Change | Fork], before: Weight | None, after: Weight | None
    ) -> None:
        """Raise LimitExceeded for a state that is larger than it may be, and than it was before the write.

        before: None for what was empty, or too far below its limits to be weighed.  after: None for the same.
        """
        if after is None or kind == REDACT:
            return
        before = before or EMPTY
        for limit, allowed, found, had, what in (
            ("state_bytes_max", self._size, after.size_bytes, before.size_bytes, "bytes as JSON"),
            ("state_keys_max", self._keys, after.keys, before.keys, "keys"),
        ):
            if allowed is not None and found > allowed and found > had:
                where = _heaviest(changes)
                raise LimitExceeded(
                    f"{stream.removeprefix(WORKFLOWS)}: with what is put at {where or 'its root'} the state would have "
                    f"{found:,} {what}, allowed are {allowed:,} ({limit}); nothing was written: remove something "
                    "first, keep what is large in blobs, or divide the workflow",
                    limit=limit,
                    allowed=allowed,
                    found=found,
                    path=where,
                )


def check_words(write: Write, settings: Settings) -> None:
    """Raise LimitExceeded where what is said beside the changes of a write is too much by itself, before it is encoded."""
    most = settings.write_bytes_max
    for what, text in (("author", write.author), ("message", write.message), ("kind", write.kind)):
        if len(text) > most:
            raise LimitExceeded(
                f"{write.stream.removeprefix(WORKFLOWS)}: the {what} of this write weighs {utf8(text):,} bytes, allowed "
                f"are {most:,} with its changes (write_bytes_max); nothing was written: shorten it, or keep the text in "
                "the state or a blob (`store.put_blob`)",
                limit="write_bytes_max",
                allowed=most,
                found=utf8(text),
            )


@lru_cache(8)
def limits_of(settings: Settings) -> Limits:
    """Return the limits that settings name; the same for the same settings, as each actor asks."""
    return Limits(settings)


def weight_of(working: Working) -> Weight | None:
    """Return what a working state weighs, where it knows."""
    return working.weight if type(working) is Weighed else None


def _values(state: dict[str, Any], change: Change | Fork) -> list[tuple[Path, int]]:
    """Return where a change puts values, and their bytes."""
    match change:
        case Set((), value) if type(value) is dict:
            return [((key,), size_of(part)) for key, part in value.items()]
        case Set(path, value):
            return [(path, size_of(value))]
        case Append(path, values) | Insert(path, _, values):
            return [((*path, "-"), size_of(value)) for value in values]
        case Splice(path, position, delete, insert):
            text = get(state, path)
            if type(text) is not str:
                return []
            return [(path, size_of(text) - size_of(text[position : position + delete]) + size_of(insert))]
        case _:
            return []


def _size_there(state: dict[str, Any], path: Path) -> int:
    """Return the bytes of what a value comes to replace, 0 for none."""
    there = get(state, path)
    return 0 if there is None else size_of(there)


def _heaviest(changes: Sequence[Change | Fork]) -> str:
    """Return where the change that puts the most puts it."""
    most = max((c for c in changes if not isinstance(c, Fork)), key=size_of, default=None)
    return "" if most is None else pointer(most.path)
