"""Bringing two histories together: `merge` and `conflicts`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quire.cli.base import author_option, json_option, name_argument, opened, revision, value_of
from quire.cli.history import lines_of
from quire.cli.lines import SCHEMA, columns, fit, out, out_json, plain, printable, say, short, style, told
from quire.errors import Invalid

if TYPE_CHECKING:
    from quire.model import Conflict, Side


@click.command()
@name_argument
@click.argument("other")
@click.option(
    "--on-conflict",
    type=click.Choice(["last", "ours", "theirs", "both", "queue", "reject"]),
    default="queue",
    show_default=True,
    help="What becomes of what both changed.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("-m", "--message", default="", help="Why.")
@author_option
@json_option
@click.pass_context
def merge(
    ctx: click.Context,
    name: str,
    other: str,
    on_conflict: Any,
    dry_run: bool,
    message: str,
    author: str,
    as_json: bool,
) -> None:
    """Take what OTHER[@REVISION] did since it parted into NAME.

    As one version; OTHER stays as it is. What both changed stays as NAME has it
    and waits for a decision (`quire conflicts`), unless --on-conflict says
    otherwise. Exits with 1 while something waits.
    """
    with opened(ctx) as store:
        wf, _ = revision(store, name)
        source, version = revision(store, other)
        done = wf.merge(source, at=version, on_conflict=on_conflict, author=author, message=message, dry_run=dry_run)
    waiting = sum(c.status == "pending" for c in done.conflicts)
    if as_json:
        out_json(
            {
                "schema": SCHEMA,
                "dry_run": dry_run,
                "summary": done.summary,
                **plain(done),
                "version": plain(done.version),
            }
        )
    else:
        out(printable(done.summary))
        for line in lines_of(done.changes):
            out(f"    {line}")
        for conflict in done.conflicts:
            _show(conflict)
        if not dry_run and not done.up_to_date:
            told(done.version)
        if waiting and not dry_run:
            say(f"decide with: quire conflicts {wf.id} ID --take ours|theirs, or --value VALUE")
    if waiting:
        ctx.exit(1)


@click.command()
@name_argument
@click.argument("conflict_id", metavar="[ID]", default="")
@click.option("--take", type=click.Choice(["ours", "theirs"]), default=None, help="Decide ID: whose stands.")
@click.option("--value", default=None, help="Decide ID: what stands instead, JSON or text.")
@click.option("--overwrite", is_flag=True, help="Decide ID also where others wrote since.")
@click.option("--all", "every", is_flag=True, help="Also those that are decided.")
@click.option("-m", "--message", default="", help="Why.")
@author_option
@json_option
@click.pass_context
def conflicts(
    ctx: click.Context,
    name: str,
    conflict_id: str,
    take: Any,
    value: str | None,
    overwrite: bool,
    every: bool,
    message: str,
    author: str,
    as_json: bool,
) -> None:
    """List what could not both stand in NAME, or decide ID.

    \b
    quire conflicts wf                            what waits for a decision
    quire conflicts wf conflict-1 --take theirs   decide one
    """
    if conflict_id and (take is None) == (value is None):
        raise Invalid("to decide, give --take ours, --take theirs or --value VALUE")
    if not conflict_id and (take is not None or value is not None):
        raise Invalid("say which conflict: its ID comes after NAME")
    with opened(ctx) as store:
        wf, _ = revision(store, name)
        if conflict_id:
            new = None if value is None else value_of(value)
            how: Any = {"author": author, "message": message, "overwrite": overwrite}
            told(wf.resolve(conflict_id, take or "value", new, **how))
            return
        found = wf.conflicts(status=None if every else "pending")
        if not found:
            wf.version()  # a mistyped name is not one without conflicts
    if as_json:
        out_json({"schema": SCHEMA, "conflicts": plain(found)})
        return
    for conflict in found:
        _show(conflict)
    if not found:
        say("no conflicts" if every else "no conflict waits for a decision")


def _show(conflict: Conflict) -> None:
    c = conflict
    decided = f"{c.resolution} stands" if c.status == "resolved" else "pending"
    head = f"{c.id}  {c.path or 'the whole state'}  {decided} ({c.policy})"
    out(style(fit(head, columns()), fg="yellow" if c.status == "pending" else None))
    for what, side in (("base", c.base), ("theirs", c.theirs), ("ours", c.ours)):
        out(fit(f"    {what:<6} {_side(side)}", columns()))


def _side(side: Side) -> str:
    by = "" if side.version is None else f"  ({side.author or 'version'} @{side.version})"
    told = short(plain(side)["value"], 40) if "value" in plain(side) else "nothing"
    return told + by
