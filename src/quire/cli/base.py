"""What the commands share: opening the store, reading what the user gave, and the options of writers."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from quire.cli.completing import names
from quire.errors import Denied, Invalid, InvalidState, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from quire.api.sync import Store, Workflow
    from quire.config import Retention
    from quire.core.schema import Schema

_LOOKS_LIKE_JSON = re.compile(r"""[\[{"]|-?(NaN|Infinity|(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?)\Z""")
"""Whoever writes this means JSON: an open bracket or a number out of range must not be stored as text."""
_FOLDER = re.compile(r"(?:file|rocksdb):///([^?]*)", re.IGNORECASE)
_AT_BYTE = re.compile(r"(.*) \(byte (\d+)\)")


@contextlib.contextmanager
def opened(
    ctx: click.Context,
    *,
    make: bool = False,
    schemas: Sequence[Schema] = (),
    archive: str | None = None,
    retention: Retention | None = None,
) -> Generator[Store]:
    """Open the store of this call. Only `init`, `set` and `import` make a new one: a mistyped path must not."""
    from quire.api import sync  # half of a call's time: `--help` does without

    url, namespace = store_of(ctx, make=make)
    with sync.open(url, namespace=namespace, schemas=schemas, archive=archive, retention=retention) as store:
        yield store


def store_of(ctx: click.Context, *, make: bool = False) -> tuple[str, str]:
    """Return the URL and namespace of the store of this call. Raises for a file that is not there, or not ours to open."""
    url, namespace = ctx.obj
    if not url:
        raise Invalid("the store has no name: give --store PATH, or unset QUIRE_STORE for quire.db here")
    file = file_of(url)
    if file is not None:
        _check(file, make=make)
    elif not make:
        _check_folder(url)
    return url, namespace


def file_of(url: str) -> str | None:
    """Return the path of a SQLite store, None for any other."""
    if url.startswith("sqlite:///"):
        from urllib.parse import unquote

        return unquote(url.removeprefix("sqlite:///").partition("?")[0])
    known = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", url)
    return None if known or "\0" in url else url.partition("?")[0]


def _check_folder(url: str) -> None:
    """Say that a store which is a folder is not there, instead of making it."""
    from urllib.parse import unquote

    folder = _FOLDER.match(url)
    if folder is not None and not Path(unquote(folder[1])).is_dir():
        command = f"quire --store {shlex.quote(url)} init"
        raise NotFound(f"there is no store at {unquote(folder[1])}; `{command}` makes one")


def _check(file: str, *, make: bool) -> None:
    """Say plainly what the backend could only say in SQLite's words: that a file is not there, or not ours to open."""
    try:
        Path(file).stat()
    except FileNotFoundError:
        if make or Path(f"{file}-wal").exists():  # the file was moved away: the backend says what to do
            return
        command = f"quire --store {shlex.quote(file)} init"
        raise NotFound(f"there is no store at {file}; `{command}` makes one") from None
    except PermissionError:
        raise Denied(f"{file}: you may not look into its folder; ask its owner") from None
    except OSError as cause:
        raise Invalid(f"{file}: {cause.strerror}") from None
    for place in (file, str(Path(file).resolve().parent)):
        if not os.access(place, os.R_OK | os.W_OK):
            raise Denied(
                f"{place}: you may not read and write it; a store needs both, for its lock and log beside it, "
                "even to be read"
            )


def revision(store: Store, text: str) -> tuple[Workflow, str | None]:
    """Split NAME@REVISION."""
    name, separator, version = text.partition("@")
    if separator and not version:
        raise Invalid(f"{text}: what comes after @ is missing: a number, ~3, a checkpoint's name, a date")
    return store.workflow(name), (version if separator else None)


def value_of(text: str) -> Any:
    """Return JSON if the text is JSON, the text itself if it is plainly none; broken JSON is an error.

    >>> value_of("[1]"), value_of("tides"), value_of("9 o'clock")
    ([1], 'tides', "9 o'clock")
    """
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise InvalidState("the value is nested too deeply; 64 levels are allowed") from None
    except (msgspec.DecodeError, UnicodeError) as cause:
        if _LOOKS_LIKE_JSON.match(text):
            raise InvalidState(f"{_cut(text)} is not JSON ({cause}); to store it as text, add --text") from None
        return text


def strict(text: str | bytes, what: str) -> Any:
    """Return JSON; anything else is an error that says where."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise InvalidState(f"{what} is nested too deeply; 64 levels are allowed") from None
    except (msgspec.DecodeError, UnicodeError) as cause:
        raise InvalidState(f"{what} is not JSON: {_where(str(cause), text)}") from None


def _where(said: str, text: str | bytes) -> str:
    """Return a decoder's complaint with line and column, which editors know, for its byte."""
    found = _AT_BYTE.fullmatch(said)
    if not found:
        return said
    data = text.encode(errors="replace") if isinstance(text, str) else text
    before = data[: int(found[2])]
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    return f"{found[1]} (line {line}, column {column})"


def _cut(text: str) -> str:
    return text if len(text) <= 30 else text[:27] + "..."


def given(file: str) -> bytes:
    """Return what is in a file, or on standard input for `-`."""
    try:
        if file == "-":
            return sys.stdin.buffer.read() if sys.stdin else b""
        return Path(file).read_bytes()
    except PermissionError:
        raise Denied(f"{file}: you may not read it") from None
    except FileNotFoundError:
        raise NotFound(f"{file}: there is no such file") from None
    except (OSError, ValueError) as cause:
        raise Invalid(f"{file}: {getattr(cause, 'strerror', None) or cause}") from None


def writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options every writing command has."""
    for option in (
        click.option("--idempotency-key", default=None, help="Repeating the call with it writes only once."),
        click.option("--if-version", type=click.IntRange(0), default=None, help="Write only if this is the newest."),
        click.option("-m", "--message", default="", help="Why."),
        author_option,
    ):
        command = option(command)
    return command


author_option = click.option(
    "--as", "author", envvar="QUIRE_AUTHOR", default="cli", show_default=True, help="Who (or set QUIRE_AUTHOR)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
name_argument = click.argument("name", shell_complete=names)
