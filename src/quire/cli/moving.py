"""From store to store: `export` and `import`, as JSON lines that any program can read.

1. An export replaces a file only whole, and only when told to; never a store.
2. An import is all or nothing: see api/imports.py.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from quire.api.imports import check_head, end_of
from quire.cli.base import file_of, given, name_argument, opened, strict
from quire.cli.lines import SCHEMA, plain, say, told
from quire.errors import AlreadyExists, Denied, Invalid, NotFound
from quire.model import Version

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
        say(f"{len(lines) - 2} entries to {file}")


def _exported(wf: Workflow) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [{"quire": "export", "schema": SCHEMA, "workflow": wf.id}]
    if (first := wf.version(1)).kind == "fork":  # an export stands alone: what a fork began with goes into it
        lines.append({**plain(first), "changes": [["set", [], wf.state(1)]]})
    start = len(lines) - 1
    lines += [_exported_version(v) for v in wf.history(order="oldest")[start:]]
    lines += [{"checkpoint": plain(c)} for c in wf.checkpoints()]
    return [*lines, end_of(lines)]


def _exported_version(version: Version) -> dict[str, Any]:
    back = version.restored
    return plain(version) if back is None else {**plain(version), "restored": back}


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
    data = given(file)
    check_head(next(_lines(data, what), None), what)  # before a store is made for it
    with opened(ctx, make=True) as store:
        told(store.import_workflow(_lines(data, what), workflow_id=name, what=what))


def _lines(data: bytes, what: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of an export. Raises InvalidState for one that is not JSON."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield strict(line, f"{what} line {number}")
