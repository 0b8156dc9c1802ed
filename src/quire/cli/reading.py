"""What is there now: `ls`, `show`, and `watch` for what comes."""

from __future__ import annotations

import click

from quire.cli.base import json_option, name_argument, opened, revision
from quire.cli.lines import SCHEMA, cells, columns, fit, moment, out, out_json, pad, plain, say
from quire.errors import NotFound


@click.command()
@click.argument("prefix", default="")
@json_option
@click.pass_context
def ls(ctx: click.Context, prefix: str, as_json: bool) -> None:
    """List the workflows that start with PREFIX.

    Columns: name, newest version, when it was written (UTC), who wrote it.
    """
    with opened(ctx) as store:
        rows = [store.workflow(name).version() for name in store.workflows(prefix)]
    if as_json:
        out_json({"schema": SCHEMA, "workflows": [plain(v) for v in rows]})
        return
    width = max((cells(v.workflow_id) for v in rows), default=0)
    digits = max((len(str(v.number)) for v in rows), default=0)
    for v in rows:
        out(fit(f"{pad(v.workflow_id, width)}  {v.number:>{digits}}  {moment(v)}  {v.author}", columns()))
    if not rows:
        say(f"no workflow starts with {prefix}" if prefix else f"no workflows in namespace {ctx.obj[1]}")


@click.command()
@name_argument
@click.argument("path", default="")
@click.pass_context
def show(ctx: click.Context, name: str, path: str) -> None:
    """Print the state of NAME[@REVISION], or PATH in it.

    Always as JSON."""
    missing = object()
    with opened(ctx) as store:
        wf, version = revision(store, name)
        value = wf.get(path, missing, version=version) if path else wf.state(version)
    if value is missing:
        raise NotFound(f"{name}: there is nothing at {path}")
    out_json(value)


@click.command()
@click.argument("name", default="")
@click.option(
    "--since",
    type=click.IntRange(0),
    default=None,
    help="From after this version (without NAME: position) on; 0 is all.",
)
@click.option("--path", default=None, help="Only changes at or below this path.")
@click.option("--count", type=click.IntRange(1), default=None, help="Stop after so many.")
@click.option("--jsonl", is_flag=True, help="One JSON document a line.")
@click.pass_context
def watch(ctx: click.Context, name: str, since: int | None, path: str | None, count: int | None, jsonl: bool) -> None:
    """Follow the changes of NAME, or of all, until interrupted."""
    from quire.core.history import summary

    with opened(ctx) as store:
        events = store.workflow(name).watch(after=since, path=path) if name else store.watch(after=since, path=path)
        for number, event in enumerate(events, 1):
            v = event.version
            if jsonl:
                out_json({"schema": SCHEMA, **plain(v), "changes": plain(event.changes)}, line=True)
            else:
                said = v.message or summary(event.changes)
                out(fit(f"{v.workflow_id}@{v.number} {v.author}: {said}", columns()))
            if number == count:
                break
