"""The bytes and steps that one write may take, counted while the work is done.

A limit that is only checked on the result is no limit: a JSON Patch of 5 kB whose `copy` operations double a list makes
gigabytes first. So whatever grows a write charges its meter before it does the work, and ends there.

A step is about a microsecond: one change, or so many items, or characters, that are moved for it.
"""

from __future__ import annotations

import sys
from typing import Any, cast

from quire.errors import LimitExceeded

ITEMS_PER_STEP = 256
"""Items of a list or object that are copied or moved in one step."""
_COPIED_PER_STEP = 16
"""Items that are copied with what is in them in one step."""
CHARACTERS_PER_STEP = 8192
"""Characters of a text that are copied in one step."""


class Meter:
    """What one write has taken so far. Raises LimitExceeded as soon as that is more than it may.

    bytes_max, steps_max: what it may take, None for no limit.  where: the workflow or stream, for the error.
    Bytes are counted low, never high: what would fit is never refused.
    """

    __slots__ = ("bytes_max", "size_bytes", "steps", "steps_max", "where")

    def __init__(self, bytes_max: int | None = None, steps_max: int | None = None, where: str = "") -> None:
        self.bytes_max = sys.maxsize if bytes_max is None else bytes_max
        self.steps_max = sys.maxsize if steps_max is None else steps_max
        self.where = where
        self.size_bytes = 0
        self.steps = 0

    def add_bytes(self, count: int) -> None:
        """Count bytes of values that the write puts."""
        self.size_bytes += count
        if self.size_bytes > self.bytes_max:
            raise too_large(self._write(), self.size_bytes, self.bytes_max)

    def add_steps(self, count: int = 1) -> None:
        """Count work."""
        self.steps += count
        if self.steps > self.steps_max:
            raise LimitExceeded(
                f"{self._write()} takes more than {self.steps_max:,} steps (write_steps_max): changes, and items and "
                "characters that are moved for them; nothing was written: divide it",
                limit="write_steps_max",
                allowed=self.steps_max,
                found=self.steps,
            )

    def copied(self, value: Any) -> Any:
        """Return a deep copy of a JSON value, counting its bytes and items on the way."""
        kind: type[Any] = type(value)
        if kind is dict:
            fields = cast("dict[str, Any]", value)
            self.open(len(fields), _COPIED_PER_STEP)
            self.add_bytes(sum(map(len, fields)))
            return {key: self.copied(item) for key, item in fields.items()}
        if kind is list:
            items = cast("list[Any]", value)
            self.open(len(items), _COPIED_PER_STEP)
            return [self.copied(item) for item in items]
        if kind is str:
            self.add_bytes(len(value))
        return value

    def open(self, length: int, per_step: int) -> None:
        """Count a list or object that is looked into. length: its items.  per_step: how many are looked at in a step."""
        self.steps += 1 + length // per_step
        self.size_bytes += 2 * length or 1  # each item a byte and a comma; the last comma is the second bracket
        if self.steps > self.steps_max or self.size_bytes > self.bytes_max:
            self.add_steps(0)
            self.add_bytes(0)

    def _write(self) -> str:
        return f"a write to {self.where}" if self.where else "this write"


def too_large(what: str, found: int, allowed: int, limit: str = "write_bytes_max") -> LimitExceeded:
    """Return the error for a write, or what belongs to one, that has too many bytes."""
    return LimitExceeded(
        f"{what} weighs {found:,} bytes or more, allowed are {allowed:,} ({limit}); nothing was written: divide it, or "
        "keep what is large in a blob (`store.put_blob`)",
        limit=limit,
        allowed=allowed,
        found=found,
    )
