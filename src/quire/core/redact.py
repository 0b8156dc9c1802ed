"""Redaction: what is left of states and changes when something is taken out of them.

1. What is left of the changes leads, version by version, to what is left of the states. So everything that reads the log
   goes on to work.
2. It is worked out change by change, one for one: their number and their order stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

from quire.core.changes import Working
from quire.core.path import format as pointer
from quire.core.path import get
from quire.errors import Invalid
from quire.model import Append, Change, Delete, Insert, Path, Set, Splice

MARK = "[REDACTED]"
"""Stands where something was taken out."""

NOT_KEPT = "[NOT KEPT]"
"""Stands where a value was that a schema keeps no history of."""


class Rule(Protocol):
    """What is taken out."""

    def value(self, path: Path, value: Any) -> Any:
        """Return what is left of a value at a path: itself, if nothing is taken out. The value given is not altered."""
        ...

    def change(self, change: Change, before: str = "", after: str = "") -> Change:
        """Return what is left of a change. before, after: of a Splice the whole text, as it was."""
        ...


class ByPath:
    """Takes out everything that ever was at or below a path. path: keys of objects only, at least one.

    mark: what stands there instead.
    """

    def __init__(self, path: Path, *, mark: str = MARK) -> None:
        if not path or not all(type(token) is str for token in path):
            raise Invalid(
                f"{pointer(path) or 'the whole state'} cannot be redacted: give the path of an object's key; of a list, "
                "redact the whole list, or a text wherever it is"
            )
        self.path = path
        self._mark = mark

    def value(self, path: Path, value: Any) -> Any:
        """Return what is left of a value at a path."""
        depth = len(path)
        if path[: len(self.path)] == self.path:
            return self._mark
        if self.path[:depth] != path or type(value) is not dict or self.path[depth] not in value:
            return value
        fields, key = cast("dict[str, Any]", value), cast("str", self.path[depth])
        left = self.value((*path, key), fields[key])
        return fields if left is fields[key] else {**fields, key: left}

    def change(self, change: Change, before: str = "", after: str = "") -> Change:  # noqa: ARG002
        """Return what is left of a change."""
        if isinstance(change, Set):
            if len(change.path) <= len(self.path):
                return Set(change.path, self.value(change.path, change.value))
        elif change.path == self.path and isinstance(change, Delete):
            return change
        return Set(self.path, self._mark) if change.path[: len(self.path)] == self.path else change


class ByText:
    """Takes a text out of every string. Raises Invalid where it is in a key, which cannot be taken out."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text:
            raise Invalid("a text that is not empty is needed to redact it")
        self._text = text

    def value(self, path: Path, value: Any) -> Any:
        """Return what is left of a value at a path. Cost: O(value)."""
        kind: type[Any] = type(value)
        if kind is str:
            return value.replace(self._text, MARK) if self._text in value else value
        if kind is list:
            items = cast("list[Any]", value)
            left = [self.value((*path, i), v) for i, v in enumerate(items)]
            return items if all(a is b for a, b in zip(items, left, strict=True)) else left
        if kind is dict:
            fields = cast("dict[str, Any]", value)
            found = {k: self.value((*path, k), v) for k, v in fields.items()}
            for key in fields:
                self._key(path, key)
            return fields if all(fields[k] is v for k, v in found.items()) else found
        return value

    def change(self, change: Change, before: str = "", after: str = "") -> Change:
        """Return what is left of a change. A text that was put together by edits is taken out when it is whole."""
        path = change.path
        for depth, token in enumerate(path):
            self._key(path[:depth], token)
        match change:
            case Set(_, value):
                return Set(path, self.value(path, value))
            case Append(_, values):
                return Append(path, self.value(path, values))
            case Insert(_, index, values):
                return Insert(path, index, self.value(path, values))
            case Splice() if any(self._text in text for text in (before, after, change.insert)):
                return Set(path, self.value(path, after))
            case _:
                return change

    def within(self, *texts: str) -> bool:
        """Tell whether it is in any of these."""
        return any(self._text in text for text in texts)

    def _key(self, path: Path, key: str | int) -> None:
        if type(key) is str and self._text in key:
            remedy = f"redact {pointer(path)!r} instead" if path else "keys of the state itself cannot be taken out"
            raise Invalid(f"the text is in a key at {pointer(path) or 'the root'}: {remedy}")


def follow(rule: Rule, changes: Sequence[Change], working: Working) -> list[Change]:
    """Return what is left of changes. working: the state they were made on, as it was; they are applied to it."""
    left: list[Change] = []
    for change in changes:
        edits = isinstance(change, Splice)
        before = get(working.state, change.path) if edits else ""
        working.apply(change)
        left.append(rule.change(change, before, get(working.state, change.path)) if edits else rule.change(change))
    return left
