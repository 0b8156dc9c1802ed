"""What a schema says of lists, numbers and texts, so that they merge as they are meant.

    log        items are only added; merged in the order of time
    set        an item is there or not; what both add is there once
    keyed(id)  items are known by a field: an edit finds its item wherever it went, two additions of one id are one item
    counter    a number; setting it is adding the difference
    text       setting it is editing it
    seq        by position: what every list is that is not declared

How lists are merged by their kind is in core/layout.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from quire.core.guards import Step
from quire.core.path import parse
from quire.errors import Invalid
from quire.model import Path

_KINDS = re.compile(r"log|set|seq|counter|text|keyed\(([^()]+)\)")
_ANY = "*"

PLAIN = (None, "seq", "counter", "text")
"""Kinds of what is merged as it is: everything but lists of a declared kind."""


def field_of(kind: str) -> str:
    """Return the field that the items of a keyed list are known by."""
    return kind[len("keyed(") : -1]


class Kinds:
    """Declared kinds by path. `*` stands for any key, or any item of a declared list."""

    def __init__(self, declared: Mapping[str, str]) -> None:
        """declared: JSON Pointers to kinds, as in {"/notes": "log", "/agents/*/done": "set"}. Raises Invalid."""
        self._patterns: dict[Path, str] = {}
        for path, kind in declared.items():
            if not _KINDS.fullmatch(kind):
                raise Invalid(f"{path}: no kind {kind!r}; there are log, set, keyed(field), counter, text, seq")
            self._patterns[tuple(map(str, parse(path)))] = kind

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __repr__(self) -> str:
        return f"<Kinds {self._patterns}>"

    def at(self, path: Path) -> str | None:
        """Return the kind declared for a path."""
        return next((kind for pattern, kind in self._patterns.items() if fits(pattern, path)), None)

    def below(self, path: Path) -> bool:
        """Tell whether anything is declared at or below a path."""
        return any(len(p) >= len(path) and fits(p[: len(path)], path) for p in self._patterns)

    def touched(self, changes: Sequence[Step]) -> set[Path]:
        """Return the patterns of what changes may concern: declared at, above or below one of their paths."""
        paths = {tuple(map(str, c.path)) for c in changes}
        return {
            pattern
            for pattern in self._patterns
            if any(fits(pattern[: len(path)], path[: len(pattern)]) for path in paths)
        }

    def keyed(self) -> dict[Path, str]:
        """Return the lists whose items are known by a field, and that field; those inside of lists are left out."""
        return {p: field_of(k) for p, k in self._patterns.items() if k.startswith("keyed")}

    def without(self, pattern: Path) -> Kinds:
        """Return the same with one declaration less."""
        fewer = Kinds({})
        fewer._patterns = {p: k for p, k in self._patterns.items() if p != pattern}
        return fewer

    def pattern(self, path: Path) -> Path:
        """Return the pattern that declares a path."""
        return next(p for p in self._patterns if fits(p, path))


def fits(pattern: Path, path: Path) -> bool:
    """Tell whether a path is meant. The items of lists that are not declared have no names, only numbers: none is."""
    return len(pattern) == len(path) and all(
        p == t or (p == _ANY and type(t) is str) for p, t in zip(pattern, path, strict=True)
    )
