"""From store to store: `export` and `import`, as JSON lines that any program can read.

1. An export replaces a file only whole, and only when told to; never a store.
2. An import is folded before it is written: a damaged file makes no workflow.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from quire.cli.base import file_of, given, name_argument, opened, strict
from quire.cli.lines import SCHEMA, plain, say, told
from quire.errors import AlreadyExists, Denied, Invalid, InvalidState, NotFound
from quire.model import Change

if TYPE_CHECKING:
    from quire.api.sync import Workflow


@click.command(name="export")
@name_argument
@click.argument("file", default="-")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.pass_context
def export(ctx: click.Context, name: str, file: str, force: bool) -> None:
    """Write the history of NAME to FILE or stdout.

    As JSON lines, whole and durable; `quire import` reads them."""
    if file != "-":
        _check_target(file, file_of(ctx.obj[0]), force=force)
    with opened(ctx) as store:
        lines = _exported(store.workflow(name))
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    if file == "-":
        click.echo(data, nl=False)
    else:
        _write(file, data)
        say(f"{len(lines) - 1} entries to {file}")


def _exported(wf: Workflow) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"quire": "export", "schema": SCHEMA, "workflow": wf.id}]
    if (first := wf.version(1)).kind == "fork":  # an export stands alone: what a fork began with goes into it
        lines.append({**plain(first), "changes": [["set", [], wf.state(1)]]})
    start = len(lines) - 1
    lines += [plain(v) for v in wf.history(order="oldest")[start:]]
    lines += [{"checkpoint": plain(c)} for c in wf.checkpoints()]
    return lines


def _check_target(file: str, store: str | None, *, force: bool) -> None:
    """Refuse what must not be replaced. Raises Invalid, AlreadyExists."""
    target = Path(file)
    if store is not None and target.exists() and Path(store).exists() and target.samefile(store):
        raise Invalid(f"{file} is the store itself; name another file")
    if target.is_dir():
        raise Invalid(f"{file} is a folder; name a file in it")
    if target.exists() and not force:
        raise AlreadyExists(f"{file} exists; add --force to replace it")


def _write(file: str, data: bytes) -> None:
    """Put a file in its place, whole and durable, for its owner's eyes only."""
    folder = Path(file).resolve().parent
    try:
        handle, part = tempfile.mkstemp(dir=folder, prefix=".quire-export-")
    except FileNotFoundError:
        raise NotFound(f"{folder}: there is no such folder") from None
    except PermissionError:
        raise Denied(f"{folder}: you may not write there") from None
    try:
        with os.fdopen(handle, "wb") as target:
            target.write(data)
            target.flush()
            os.fsync(target.fileno())
        Path(part).replace(Path(file).resolve())
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


@click.command(name="import")
@click.argument("file", default="-")
@click.option("--name", default=None, help="Import under another name.")
@click.pass_context
def import_(ctx: click.Context, file: str, name: str | None) -> None:
    """Read an export from FILE or stdin into a new workflow.

    Same changes, authors, messages and checkpoints; new times.
    """
    what = "standard input" if file == "-" else file
    lines = [strict(line, f"{what} line {i}") for i, line in enumerate(given(file).splitlines(), 1)]
    if not lines or not all(isinstance(line, dict) for line in lines) or lines[0].get("quire") != "export":
        raise InvalidState(f"{what} is not an export of Quire; `quire export` writes one")
    if lines[0].get("schema") != SCHEMA:
        raise InvalidState(f"{what} has schema {lines[0].get('schema')}, this Quire reads {SCHEMA}: upgrade quire")
    versions, marks, state = _read(lines[1:], what)
    with opened(ctx, make=True) as store:
        wf = store.workflow(name or str(lines[0].get("workflow")))
        first, *others = versions
        store.create(wf.id, state, author=first.author, message=first.message)
        for version in others:
            wf.apply(
                version.changes, author=version.author, message=version.message, kind=version.kind, allow_empty=True
            )
        for mark in marks:
            wf.checkpoint(
                mark.name,
                version=mark.version,
                tags=mark.tags,
                description=mark.description,
                author=mark.author,
                kind=mark.kind,
            )
        told(wf.version())


class _Version(msgspec.Struct):
    """A version as exported."""

    version: int
    changes: list[Change]
    author: str
    message: str
    kind: str


class _Mark(msgspec.Struct):
    """A checkpoint as exported."""

    name: str
    version: int
    tags: list[str]
    description: str
    author: str
    kind: str


def _read(lines: list[dict[str, Any]], what: str) -> tuple[list[_Version], list[_Mark], dict[str, Any]]:
    """Return versions, checkpoints and the state of version 1. Raises InvalidState for what `export` does not write."""
    from quire.core.changes import apply
    from quire.errors import ChangeError

    versions: list[_Version] = []
    marks: list[_Mark] = []
    first: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for number, line in enumerate(lines, 2):
        try:
            if "checkpoint" in line:
                marks.append(msgspec.convert(line["checkpoint"], _Mark))
                continue
            found = msgspec.convert(line, _Version)
            if found.version != len(versions) + 1:
                raise InvalidState(f"{what} line {number}: version {found.version} where {len(versions) + 1} belongs")
            state = apply(state, found.changes)
            first = first if versions else state
            versions.append(found)
        except (msgspec.ValidationError, ChangeError) as cause:
            raise InvalidState(f"{what} line {number} is damaged: {cause}") from None
    if not versions:
        raise InvalidState(f"{what} holds no versions: it was cut off")
    return versions, marks, first
