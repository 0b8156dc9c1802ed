"""The commands, each a few lines over the public API."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from quire.cli.base import (
    given,
    json_option,
    main,
    opened,
    out_json,
    plain,
    revision,
    short,
    strict,
    style,
    value_of,
    writing,
)

if TYPE_CHECKING:
    from quire.model import Version

SCHEMA = 1
"""Version of the documents that --json prints and export writes."""


def told(version: Version) -> None:
    """Say what a write made."""
    click.echo(f"{version.workflow_id}@{version.number} {version.id}")


@main.command()
@click.pass_context
def init(ctx: click.Context) -> None:
    """Make a new store, or check that one is there."""
    with opened(ctx, make=True) as store:
        stats = store.stats()
        click.echo(f"{ctx.obj[0]}: {stats.workflows} workflows, {stats.versions} versions; {stats.note}")


@main.command()
@click.argument("prefix", default="")
@json_option
@click.pass_context
def ls(ctx: click.Context, prefix: str, as_json: bool) -> None:
    """List the workflows that start with PREFIX."""
    with opened(ctx) as store:
        rows = [store.workflow(name).version() for name in store.workflows(prefix)]
        if as_json:
            out_json({"schema": SCHEMA, "workflows": [plain(v) for v in rows]})
            return
        for v in rows:
            click.echo(f"{v.workflow_id:<32} {v.number:>6}  {v.time:%Y-%m-%d %H:%M:%S}  {v.author}")


@main.command()
@click.argument("name")
@click.argument("path", default="")
@click.pass_context
def show(ctx: click.Context, name: str, path: str) -> None:
    """Print the state of NAME[@REVISION], or what is at PATH in it, as JSON."""
    from quire.errors import NotFound

    missing = object()
    with opened(ctx) as store:
        wf, version = revision(store, name)
        value = wf.get(path, missing, version=version) if path else wf.state(version)
        if value is missing:
            raise NotFound(f"{name}: there is nothing at {path}")
        out_json(value)


@main.command()
@click.argument("name")
@click.option("-l", "--limit", type=int, default=None, help="At most so many.")
@click.option("--by", "author", default=None, help="Only this author's.")
@click.option("--path", default=None, help="Only what changed something at or below this path.")
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
    patch: bool,
    oneline: bool,
    checkpoints: bool,
    as_json: bool,
) -> None:
    """Show the history of NAME, newest first."""
    from quire.core.history import summary

    with opened(ctx) as store:
        wf, before = revision(store, name)
        labels: dict[int, list[str]] = {}
        marks = wf.checkpoints()
        for mark in marks:
            labels.setdefault(mark.version, []).append(mark.name)
        if checkpoints:
            if as_json:
                out_json({"schema": SCHEMA, "checkpoints": plain(marks)})
                return
            for c in marks:
                click.echo(
                    f"{c.name:<24} @{c.version:<6} {c.created_at:%Y-%m-%d %H:%M:%S}  {c.kind:<9} {c.description}"
                )
            return
        top = None if before is None else wf.version(before).number + 1
        found = (
            wf.history(limit, before=None, author=author, path=path)
            if top is None
            else [v for v in wf.history(author=author, path=path) if v.number < top][:limit]
        )
        if as_json:
            out_json({"schema": SCHEMA, "versions": [plain(v) for v in found]})
            return
        for v in found:
            names = style("".join(f" ({n})" for n in labels.get(v.number, [])), fg="green")
            said = v.message or summary(v.changes)
            if oneline:
                click.echo(f"{v.number:>5}{names} {v.author}: {said}"[:200])
                continue
            head = style(f"{v.workflow_id}@{v.number}", fg="yellow")
            click.echo(f"{head}{names}  {v.time:%Y-%m-%d %H:%M:%S}  {style(v.author, bold=True)}  {v.kind}")
            click.echo(f"    {said}")
            if patch:
                _show_changes(v.changes)


def _show_changes(changes: list[Any]) -> None:
    from quire.core.path import format as pointer
    from quire.model import Append, Delete, Fork, Insert, Remove, Set

    for change in changes:
        if isinstance(change, Fork):
            click.echo(f"    = {change.workflow_id}@{change.version}")
            continue
        at = pointer(change.path) or "/"
        match change:
            case Set(_, value):
                click.echo(style(f"    ~ {at} = {short(value)}", fg="cyan"))
            case Delete():
                click.echo(style(f"    - {at}", fg="red"))
            case Append(_, values):
                click.echo(style(f"    + {at}/- {short(values)}", fg="green"))
            case Insert(_, index, values):
                click.echo(style(f"    + {at}/{index} {short(values)}", fg="green"))
            case Remove(_, index, count):
                click.echo(style(f"    - {at}/{index} ({count} items)", fg="red"))
            case _:
                click.echo(style(f"    ~ {at} {short(plain(change)[2:])}", fg="cyan"))


@main.command()
@click.argument("old")
@click.argument("new", default="")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if there are differences.")
@click.option("--patch", "as_patch", is_flag=True, help="Print a JSON Patch.")
@json_option
@click.pass_context
def diff(ctx: click.Context, old: str, new: str, exit_code: bool, as_patch: bool, as_json: bool) -> None:
    """Show what differs between OLD and NEW: two revisions, of one workflow or two. NEW is the newest by default.

    `quire diff wf@3` `quire diff wf@3 wf@7` `quire diff wf@3 fork`
    """
    from quire.core.diff import diff as compare
    from quire.core.patch import to_json_patch

    with opened(ctx) as store:
        first, a = revision(store, old)
        second, b = revision(store, new) if new else (first, None)
        before, after = first.state(a), second.state(b)
        changes = compare(before, after)
        if as_patch:
            out_json(to_json_patch(before, changes))
        elif as_json:
            out_json({"schema": SCHEMA, "changes": plain(changes)})
        else:
            _show_changes(changes)
    if exit_code and changes:
        ctx.exit(1)


@main.command()
@click.argument("name")
@click.argument("path", default="")
@json_option
@click.pass_context
def blame(ctx: click.Context, name: str, path: str, as_json: bool) -> None:
    """Say who set each value of NAME[@REVISION] at or below PATH."""
    with opened(ctx) as store:
        wf, version = revision(store, name)
        lines = wf.blame(path, version=version)
        if as_json:
            out_json({"schema": SCHEMA, "lines": plain(lines)})
            return
        for line in lines:
            click.echo(f"{line.version:>5} {line.author:<20.20} {line.path:<28} {short(line.value, 40)}")


@main.command(name="set")
@click.argument("name")
@click.argument("path")
@click.argument("value")
@writing
@click.pass_context
def set_(ctx: click.Context, name: str, path: str, value: str, **how: Any) -> None:
    """Put VALUE (JSON, or plain text) at PATH of workflow NAME, making the workflow if it is not there.

    `quire set wf /topic tides`   `quire set wf "" '{"topic": "tides"}'`
    """
    with opened(ctx, make=True) as store:
        wf = store.workflow(name)
        if not wf.exists() and how["if_version"] is None:
            store.create(name, {}, author=how["author"])
        told(wf.set(path, value_of(value), **how))


@main.command()
@click.argument("name")
@click.argument("file", default="-")
@writing
@click.pass_context
def patch(ctx: click.Context, name: str, file: str, **how: Any) -> None:
    """Apply a JSON Patch (a list) or a merge patch (an object) from FILE or standard input."""
    with opened(ctx) as store:
        told(store.workflow(name).apply(strict(given(file), file), **how))


@main.command()
@click.argument("name")
@click.argument("path")
@writing
@click.pass_context
def rm(ctx: click.Context, name: str, path: str, **how: Any) -> None:
    """Remove what is at PATH of NAME; "" ends the whole workflow (its history stays)."""
    with opened(ctx) as store:
        if path == "":
            told(store.delete(name, author=how["author"], message=how["message"] or "deleted"))
        else:
            told(store.workflow(name).delete(path, **how))


@main.command()
@click.argument("name")
@writing
@click.pass_context
def edit(ctx: click.Context, name: str, **how: Any) -> None:
    """Open the state of NAME in $EDITOR and write what was changed as one version."""
    import msgspec

    from quire.errors import Invalid

    how.pop("idempotency_key")
    with opened(ctx) as store:
        wf = store.workflow(name)
        base = wf.version().number
        before = msgspec.json.format(msgspec.json.encode(wf.state(base)), indent=2).decode()
        try:
            after = click.edit(before + "\n", extension=".json", require_save=True)
        except click.ClickException as cause:
            raise Invalid(f"the editor failed: {cause.format_message()}; nothing was written") from None
        if after is None:
            click.echo("nothing changed", err=True)
            return
        told(wf.save(strict(after, "the edited state"), base=base, **how))


@main.command()
@click.argument("name")
@click.argument("label")
@click.option("--tag", "tags", multiple=True, help="May be given several times.")
@click.option("--kind", default="manual", help="snapshot also keeps the state whole.")
@click.option("-m", "--message", default="", help="What for.")
@click.option("--as", "author", envvar="QUIRE_AUTHOR", default="cli", help="Who.")
@click.pass_context
def checkpoint(
    ctx: click.Context, name: str, label: str, tags: tuple[str, ...], kind: str, message: str, author: str
) -> None:
    """Give NAME[@REVISION] the name LABEL."""
    with opened(ctx) as store:
        wf, version = revision(store, name)
        made = wf.checkpoint(label, tags=tags, kind=kind, description=message, author=author, version=version)
        click.echo(f"{wf.id}@{made.name} is version {made.version}")


@main.command()
@click.argument("name")
@writing
@click.pass_context
def restore(ctx: click.Context, name: str, **how: Any) -> None:
    """Make NAME what it was at NAME@REVISION, as a new version."""
    from quire.errors import Invalid

    if not how["message"]:
        how.pop("message")
    with opened(ctx) as store:
        wf, version = revision(store, name)
        if version is None:
            raise Invalid(f"say which version: quire restore {name}@REVISION")
        told(wf.restore(version, **how))


@main.command()
@click.argument("name")
@click.argument("new")
@click.option("--as", "author", envvar="QUIRE_AUTHOR", default="cli", help="Who.")
@click.pass_context
def fork(ctx: click.Context, name: str, new: str, author: str) -> None:
    """Start workflow NEW from NAME[@REVISION], sharing its history."""
    with opened(ctx) as store:
        wf, version = revision(store, name)
        told(wf.fork(new, at=version, author=author).version())


@main.command()
@click.argument("name", default="")
@click.option("--since", type=int, default=None, help="From after this version (of a store: position) on; 0 is all.")
@click.option("--path", default=None, help="Only changes at or below this path.")
@click.option("--count", type=int, default=None, help="Stop after so many.")
@click.option("--jsonl", is_flag=True, help="One JSON document a line.")
@click.pass_context
def watch(ctx: click.Context, name: str, since: int | None, path: str | None, count: int | None, jsonl: bool) -> None:
    """Follow the changes of NAME, or of the whole store, until interrupted."""
    from quire.core.history import summary

    with opened(ctx) as store:
        events = store.workflow(name).watch(after=since, path=path) if name else store.watch(after=since, path=path)
        for number, event in enumerate(events, 1):
            v = event.version
            if jsonl:
                out_json({"schema": SCHEMA, **plain(v), "changes": plain(event.changes)}, line=True)
            else:
                click.echo(f"{v.workflow_id}@{v.number} {v.author}: {summary(event.changes)}")
            if number == count:
                break


@main.command()
@click.argument("name", default="")
@json_option
@click.pass_context
def verify(ctx: click.Context, name: str, as_json: bool) -> None:
    """Prove that the log, keyframes and blobs are whole; exit 5 if they are not."""
    with opened(ctx) as store:
        report = store.verify(name or None)
    if as_json:
        out_json({"schema": SCHEMA, "ok": report.ok, **plain(report)})
    else:
        for problem in report.problems:
            click.echo(problem)
        verdict = "sound" if report.ok else f"{len(report.problems)} problem(s)"
        click.echo(f"{report.streams} streams, {report.versions} versions, {report.keyframes} keyframes: {verdict}")
    if not report.ok:
        ctx.exit(5)


@main.command()
@json_option
@click.pass_context
def stats(ctx: click.Context, as_json: bool) -> None:
    """Count what the store holds."""
    with opened(ctx) as store:
        found = plain(store.stats())
    if as_json:
        out_json({"schema": SCHEMA, **found})
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' '):<20} {value:,}" if isinstance(value, int) else f"{name:<20} {value}")


@main.command(name="export")
@click.argument("name")
@click.argument("file", default="-")
@click.pass_context
def export(ctx: click.Context, name: str, file: str) -> None:
    """Write the whole history of NAME to FILE (or standard output) as JSON lines."""
    import msgspec

    with opened(ctx) as store:
        wf = store.workflow(name)
        lines: list[dict[str, Any]] = [{"quire": "export", "schema": SCHEMA, "workflow": name}]
        if (first := wf.version(1)).kind == "fork":
            lines.append({**plain(first), "changes": [["set", [], wf.state(1)]]})
        start = len(lines) - 1
        lines += [plain(v) for v in wf.history(order="oldest")[start:]]
        lines += [{"checkpoint": plain(c)} for c in wf.checkpoints()]
    data = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    if file == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:  # noqa: PTH123
        target.write(data)
    click.echo(f"{len(lines) - 1} entries to {file}", err=True)


@main.command(name="import")
@click.argument("file", default="-")
@click.option("--name", default=None, help="Import under another name.")
@click.pass_context
def import_(ctx: click.Context, file: str, name: str | None) -> None:
    """Read a history that `export` wrote into a new workflow: same changes, authors and messages, new times."""
    import msgspec

    from quire.core.changes import apply
    from quire.errors import InvalidState
    from quire.model import Change

    lines: list[dict[str, Any]] = [
        strict(line, f"{file} line {i}") for i, line in enumerate(given(file).splitlines(), 1)
    ]
    if not lines or not all(isinstance(line, dict) for line in lines) or lines[0].get("quire") != "export":
        raise InvalidState(f"{file} is not an export of Quire")
    if lines[0].get("schema") != SCHEMA:
        raise InvalidState(f"{file} has schema {lines[0].get('schema')}, this Quire reads {SCHEMA}: upgrade quire")
    with opened(ctx, make=True) as store:
        wf = store.workflow(name or str(lines[0].get("workflow")))
        try:
            versions = [
                (line, msgspec.convert(line["changes"], list[Change])) for line in lines[1:] if "version" in line
            ]
            marks = [line["checkpoint"] for line in lines[1:] if "checkpoint" in line]
            for number, (line, changes) in enumerate(versions):
                if number == 0:
                    first = apply({}, changes)
                    store.create(wf.id, first, author=line["author"], message=line["message"])
                else:
                    wf.apply(
                        changes, author=line["author"], message=line["message"], kind=line["kind"], allow_empty=True
                    )
            for mark in marks:
                wf.checkpoint(
                    mark["name"],
                    version=mark["version"],
                    tags=mark["tags"],
                    description=mark["description"],
                    author=mark["author"],
                    kind=mark["kind"],
                )
        except (KeyError, TypeError, AttributeError, IndexError, msgspec.ValidationError) as cause:
            raise InvalidState(f"{file} is damaged: {cause!r}") from None
        told(wf.version())


@main.command()
@click.option("--folder", default="demo-out", show_default=True, help="Where the store and the report go.")
@click.option("--modules", type=int, default=None, help="Survey only so many modules.")
@click.option("--fast", is_flag=True, help="Do not slow down for watching.")
@click.option("--child", is_flag=True, hidden=True)
def demo(folder: str, modules: int | None, fast: bool, child: bool) -> None:
    """Let a team of agents survey this machine's standard library, kill it, and watch it go on."""
    from quire.demo import survey

    sys.exit(survey.agents(folder, modules, fast) if child else survey.main(folder, modules, fast))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `quire completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "quire", "_QUIRE_COMPLETE").source())
