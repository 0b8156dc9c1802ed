"""What is printed: values as lines that fit the terminal, or as JSON for programs.

1. Text that agents wrote never reaches a terminal with its control characters: they could hide or forge lines.
2. Only lines for a person's terminal are cut; what goes to a pipe or into JSON is whole.
3. Colour is for terminals, and not where NO_COLOR is set.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from contextlib import suppress
from typing import Any

import click
import msgspec

from quire.model import Version

SCHEMA = 1
"""Version of the documents that --json prints and export writes."""

_PIPED = 100
"""Width of a table's free column when nobody says how wide the paper is."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""What moves the cursor, colours, rings or turns the direction of writing."""
_WIDTH_MIN = 20


def say(text: str) -> None:
    """Print a remark to stderr; a stderr that is full or closed is nobody's fault."""
    with suppress(OSError):
        click.echo(printable(text, keep="\n"), err=True)


def out(text: str = "") -> None:
    """Print one line that was asked for."""
    click.echo(text)


def out_json(value: Any, *, line: bool = False) -> None:
    """Print one JSON document, indented unless it is one of a stream."""
    data = msgspec.json.encode(value)
    text = data.decode() if line else msgspec.json.format(data, indent=2).decode()
    click.echo(printable(text, keep="\n") if terminal() else text)


def terminal() -> bool:
    """Tell whether a person reads stdout."""
    return sys.stdout is not None and sys.stdout.isatty()  # pyright: ignore[reportUnnecessaryComparison] - closed


def columns() -> int | None:
    """Return how many columns there are to fill, None for a pipe or file."""
    return max(_WIDTH_MIN, shutil.get_terminal_size().columns) if terminal() else None


def style(text: str, **how: Any) -> str:
    """Colour on a terminal, unless NO_COLOR is set."""
    return text if os.environ.get("NO_COLOR") or not terminal() else click.style(text, **how)


def printable(text: str, *, keep: str = "") -> str:
    r"""Return text whose control characters are spelled out, but for those to keep.

    >>> printable("two\nlines \x1b[31m")
    'two\\u000alines \\u001b[31m'
    """
    return _CONTROL.sub(lambda m: m[0] if m[0] in keep else f"\\u{ord(m[0]):04x}", text)


def cells(text: str) -> int:
    """Return how many columns text takes: East Asian wide characters take two, combining ones none.

    >>> cells("abc"), cells("\u65e5\u672c")
    (3, 4)
    """
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1 for c in text
    )


def fit(text: str, width: int | None) -> str:
    """Return text on one line, cut to a width in columns. None: as long as it is.

    >>> fit("all is well", 8)
    'all i...'
    """
    text = printable(text)
    if width is None or cells(text) <= width:
        return text
    room = width - 3
    kept = text[: max(room, 0)]
    while cells(kept) > max(room, 0):
        kept = kept[:-1]
    return kept + "..."[: max(width, 0)]


def pad(text: str, width: int) -> str:
    """Return text cut and filled to exactly a width in columns."""
    text = fit(text, width)
    return text + " " * (width - cells(text))


def short(value: Any, width: int | None) -> str:
    """Return a value as JSON on one line, cut to a width. None: what is left of a line in a pipe."""
    return fit(msgspec.json.encode(value).decode(), _PIPED if width is None else max(width, 8))


def moment(version: Version) -> str:
    """Return when, to the second, UTC."""
    return f"{version.time:%Y-%m-%d %H:%M:%S}"


def plain(value: Any) -> Any:
    """Return what `--json` prints for one of our values."""
    if isinstance(value, Version):
        return {
            "workflow": value.workflow_id,
            "version": value.number,
            "id": value.id,
            "author": value.author,
            "message": value.message,
            "time": value.time.isoformat(),
            "kind": value.kind,
            "checksum": value.checksum,
            "position": value.position,
            "changes": msgspec.to_builtins(value.changes),
        }
    return msgspec.to_builtins(value)


def told(version: Version) -> None:
    """Say what a write made."""
    out(f"{version.workflow_id}@{version.number} {version.id}")
