"""What happened: `log`, `diff` and `blame`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from quire.cli.base import json_option, name_argument, opened, revision
from quire.cli.lines import (
    SCHEMA,
    cells,
    columns,
    fit,
    moment,
    out,
    out_json,
    pad,
    plain,
    printable,
    say,
    short,
    style,
)
from quire.errors import Invalid, NotFound
from quire.model import Append, Change, Delete, Fork, Increment, Insert, Remove, Set, Version

if TYPE_CHECKING:
    from quire.api.sync import Workflow
    from quire.model import Checkpoint

_OLD = 24
"""Columns that a replaced value may take beside the new one."""
_VALUE = 20
"""Columns kept for a value beside its path."""


@click.command()
@name_argument
@click.option("-l", "--limit", type=click.IntRange(1), default=None, help="At most so many.")
@click.option("--by", "author", default=None, help="Only this author's.")
@click.option("--path", default=None, help="Only what changed something at or below this path.")
@click.option("--kind", default=None, help="Only of this kind: change, merge, restore, ...")
@click.option("--since", default=None, help="Only from this moment on, such as 2026-01-31T12:00.")
@click.option("--until", default=None, help="Only before this moment.")
@click.option("--graph", is_flag=True, help="Draw forks and merges beside it.")
@click.option("-p", "--patch", is_flag=True, help="Show the changes.")
@click.option("--oneline", is_flag=True, help="One line each.")
@click.option("--checkpoints", is_flag=True, help="List the checkpoints instead.")
@json_option
@click.pass_context
def log(
    ctx: click.Context,
    name: str,
    limit: int | None,
    author: str | None,
    path: str | None,
    kind: str | None,
    since: str | None,
    until: str | None,
    graph: bool,
    patch: bool,
    oneline: bool,
    checkpoints: bool,
    as_json: bool,
) -> None:
    """Show the history of NAME[@REVISION], newest first."""
    with opened(ctx) as store:
        wf, before = revision(store, name)
        marks = wf.checkpoints()
        wanted: dict[str, Any] = {"author": author, "path": path, "kind": kind, "since": since, "until": until}
        if graph and any(v is not None for v in wanted.values()):
            raise Invalid("--graph shows what every version builds on: leave out the filters, or the graph")
        nodes = wf.graph(before)[:limit] if graph else []
        found = [] if checkpoints or graph else _versions(wf, before, limit, wanted)
    if checkpoints:
        _show_checkpoints(marks, as_json)
        return
    if graph:
        from quire.cli.graph import show_graph

        show_graph(wf.id, nodes, as_json=as_json)
        return
    if as_json:
        out_json({"schema": SCHEMA, "versions": [plain(v) for v in found]})
        return
    labels: dict[int, list[str]] = {}
    for mark in marks:
        labels.setdefault(mark.version, []).append(mark.name)
    digits = max((len(str(v.number)) for v in found), default=0)
    for v in found:
        names = "".join(f" ({n})" for n in labels.get(v.number, []))
        if oneline:
            _show_line(v, names, digits)
        else:
            show_version(v, names, patch=patch)
    if not found:
        say(f"{name}: no version matches")


def _versions(wf: Workflow, before: str | None, limit: int | None, wanted: dict[str, Any]) -> list[Version]:
    if before is None:
        return wf.history(limit, **wanted)
    top = wf.version(before).number
    newest = wf.version().number
    return wf.history(limit, before=top + 1 if top < newest else None, **wanted)


def _show_line(v: Version, names: str, digits: int) -> None:
    said = (v.message or _summary(v)).splitlines()[0]
    line = fit(f"{v.number:>{digits}}{names} {v.author}: {said}", columns())
    start = digits + len(names)
    out(line if not names else line[:digits] + style(line[digits:start], fg="green") + line[start:])


def show_version(v: Version, names: str, *, patch: bool) -> None:
    """Print a version over several lines. names: of its checkpoints.  patch: with its changes."""
    head = style(f"{v.workflow_id}@{v.number}", fg="yellow") + style(names, fg="green")
    out(f"{head}  {moment(v)}  {style(v.author, bold=True)}  {v.kind}")
    for line in (v.message or _summary(v)).splitlines():
        out(f"    {printable(line)}")
    if patch:
        for line in lines_of(v.changes):
            out(f"    {line}")


def _summary(v: Version) -> str:
    from quire.core.history import summary

    return summary(v.changes)


def _show_checkpoints(marks: list[Checkpoint], as_json: bool) -> None:
    if as_json:
        out_json({"schema": SCHEMA, "checkpoints": plain(marks)})
        return
    width = max((cells(c.name) for c in marks), default=0)
    for c in marks:
        line = f"{pad(c.name, width)}  @{c.version:<6} {c.created_at:%Y-%m-%d %H:%M:%S}  {c.kind:<9} {c.description}"
        out(fit(line.rstrip(), columns()))
    if not marks:
        say("no checkpoints")


def lines_of(changes: Sequence[Change | Fork], undo: Sequence[Change] | None = None) -> Iterator[str]:
    """Yield a line for each change; `undo` holds the inverse of each, which tells what was there."""
    from quire.core.path import format as pointer

    width = columns()
    for i, change in enumerate(changes):
        if isinstance(change, Fork):
            yield f"= {change.workflow_id}@{change.version}"
            continue
        at = printable(pointer(change.path)) or "/"
        back = undo[i] if undo is not None else None
        room = None if width is None else width - 8 - cells(at)
        match change:
            case Set(_, value) if isinstance(back, Delete):
                yield style(f"+ {at} = {short(value, room)}", fg="green")
            case Set(_, value) if isinstance(back, Set):
                old = short(back.value, _OLD)
                yield style(f"~ {at} = {old} -> {short(value, room and room - 4 - cells(old))}", fg="cyan")
            case Set(_, value):
                yield style(f"~ {at} = {short(value, room)}", fg="cyan")
            case Delete():
                old = f" {short(back.value, room)}" if isinstance(back, Set) else ""
                yield style(f"- {at}{old}", fg="red")
            case Append(_, values):
                yield style(f"+ {at}/- {short(values, room)}", fg="green")
            case Insert(_, index, values):
                yield style(f"+ {at}/{index} {short(values, room)}", fg="green")
            case Remove(_, index, count):
                old = short(back.values, room) if isinstance(back, Insert | Append) else f"({count} items)"
                yield style(f"- {at}/{index} {old}", fg="red")
            case Increment(_, amount):
                yield style(f"~ {at} {amount:+}", fg="cyan")
            case _:
                yield style(f"~ {at} {short(plain(change)[2:], room)}", fg="cyan")


@click.command()
@click.argument("old")
@click.argument("new", default="")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there are differences.")
@click.option("--path", default="", help="Only what is at or below this path.")
@click.option("--patch", "as_patch", is_flag=True, help="Print a JSON Patch.")
@json_option
@click.pass_context
def diff(ctx: click.Context, old: str, new: str, exit_code: bool, path: str, as_patch: bool, as_json: bool) -> None:
    """Show what differs between two revisions.

    OLD and NEW are of one workflow or of two; NEW is OLD's newest if not given.

    \b
    quire diff wf@3           since version 3
    quire diff wf@3 wf@7      from 3 to 7
    quire diff wf other       from one workflow to another
    """
    from quire.core.changes import invert
    from quire.core.diff import diff as compare

    with opened(ctx) as store:
        first, a = revision(store, old)
        second, b = revision(store, new) if new else (first, None)
        before, after = _only(first.state(a), path), _only(second.state(b), path)
    changes: Any = compare(before, after)
    if as_patch:
        from quire.core.patch import to_json_patch

        out_json(to_json_patch(before, changes))
    elif as_json:
        out_json({"schema": SCHEMA, "changes": plain(changes)})
    else:
        for line in lines_of(changes, invert(before, changes)[::-1]):
            out(line)
    if exit_code and changes:
        ctx.exit(1)


def _only(state: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a state that holds nothing but what is at a path, the containers on the way as objects."""
    from quire.core.path import get, parse

    tokens = parse(path)
    if not tokens:
        return state
    missing: Any = object()
    only: dict[str, Any] = {}
    node = only
    for token in tokens[:-1]:
        node = node.setdefault(str(token), {})
    value = get(state, tokens, missing)
    if value is not missing:
        node[str(tokens[-1])] = value
    return only


@click.command()
@name_argument
@click.argument("path", default="")
@json_option
@click.pass_context
def blame(ctx: click.Context, name: str, path: str, as_json: bool) -> None:
    """Say who set each value of NAME[@REVISION].

    PATH: only what is there or below. Columns: version, author, path, value.
    """
    missing = object()
    with opened(ctx) as store:
        wf, version = revision(store, name)
        found = wf.blame(path, version=version)
        nothing = not found and wf.get(path, missing, version=version) is missing
    if nothing:
        raise NotFound(f"{name}: there is nothing at {path}")
    if as_json:
        out_json({"schema": SCHEMA, "lines": plain(found)})
        return
    width = columns()
    digits = max((len(str(line.version)) for line in found), default=0)
    who = min(max((cells(line.author) for line in found), default=0), 20)
    longest = max((cells(line.path) for line in found), default=0)
    where = longest if width is None else min(longest, max(10, width - digits - who - 6 - _VALUE))
    room = None if width is None else width - digits - who - where - 6
    for line in found:
        out(
            f"{line.version:>{digits}}  {pad(line.author, who)}  {pad(line.path or '/', where)}  "
            f"{short(line.value, room)}"
        )
