"""Changing what is stored of the past, or all of it at once: `redact` and `migrate`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from quire.cli.base import author_option, given, json_option, name_argument, opened, revision
from quire.cli.lines import SCHEMA, out, out_json, plain, printable, say
from quire.errors import Invalid


@click.command()
@name_argument
@click.argument("path", default="")
@click.option("--text", default=None, help="Take out a text wherever it is; - reads it from stdin.")
@click.option("--keep-current", is_flag=True, help="Keep what is at PATH now, take out what was.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("-m", "--message", default="", help="Why.")
@author_option
@json_option
@click.pass_context
def redact(
    ctx: click.Context,
    name: str,
    path: str,
    text: str | None,
    keep_current: bool,
    yes: bool,
    message: str,
    author: str,
    as_json: bool,
) -> None:
    """Take something out of NAME in every version there is.

    What is at PATH or below becomes "[REDACTED]", in all versions, forks,
    conflicts and snapshots, and is written out of the file. The history stays
    provable. It cannot be undone; backups and copies are not reached.

    \b
    quire redact wf /user/email
    pass show key | quire redact wf --text - --yes
    """
    if text is not None and path:
        raise Invalid("give a PATH or --text, not both")
    wanted = text if text != "-" else given("-").decode(errors="replace").removesuffix("\n")
    what = f"what is at {path}" if text is None else "that text"
    if not yes:
        if not sys.stdin.isatty():
            raise Invalid("this cannot be undone; add --yes where nobody can be asked")
        click.confirm(printable(f"Take {what} out of {name} for good?"), abort=True, err=True)
    with opened(ctx) as store:
        wf, version = revision(store, name)
        if version is not None:
            raise Invalid(f"redaction is of every version: leave out @{version}")
        done = wf.redact(
            path if text is None else None, text=wanted, keep_current=keep_current, author=author, message=message
        )
    if as_json:
        out_json({"schema": SCHEMA, **plain(done)})
        return
    for stream, versions in done.versions.items():
        out(f"{printable(stream)}: {len(versions)} version{'s' * (len(versions) > 1)} rewritten")
    for snapshot in done.snapshots:
        out(f"{printable(snapshot)}: its snapshot replaced")
    if not done.versions:
        out("nothing was there to be taken out")
    if done.said:
        say(f"the text is also in messages or authors, which cannot be taken out: {', '.join(done.said[:10])}")


@click.command()
@click.argument("prefix", default="")
@click.option("--schemas", "where", required=True, metavar="MODULE:NAME", help="The list of quire.Schema to use.")
@click.option("--plan", is_flag=True, help="Write nothing, say what would be done.")
@json_option
@click.pass_context
def migrate(ctx: click.Context, prefix: str, where: str, plan: bool, as_json: bool) -> None:
    """Bring states to the newest version of their schemas.

    Of all workflows, or those that start with PREFIX. A program does so by
    itself for what it reads and writes. MODULE is imported from here or from
    where Python finds it. Exits with 1 if one fails.

    \b
    quire migrate --schemas myapp.states:SCHEMAS --plan
    """
    schemas = _schemas(where)
    with opened(ctx, schemas=schemas) as store:
        found = store.migrate(prefix, plan=plan)
    if as_json:
        out_json({"schema": SCHEMA, "plan": plan, "workflows": plain(found)})
    else:
        from quire.core.history import summary

        for m in found:
            done = f"{m.before} -> {m.after}" if m.before != m.after else f"{m.before} stays"
            out(printable(f"{m.workflow_id}  {done}  {summary(m.changes) if m.changes else ''}".rstrip()))
            if m.error:
                out(f"    {printable(m.error)}")
        verb = "would be migrated" if plan else "migrated"
        out(f"{sum(m.error is None for m in found)} {verb}, {sum(m.error is not None for m in found)} failed")
    if any(m.error for m in found):
        ctx.exit(1)


def _schemas(where: str) -> list[Any]:
    """Import what the user names. Raises Invalid."""
    module, _, name = where.partition(":")
    if not module or not name:
        raise Invalid(f"--schemas {where}: MODULE:NAME is needed, as in myapp.states:SCHEMAS")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = getattr(import_module(module), name)
    except ImportError as cause:
        raise Invalid(f"--schemas {where}: {cause}") from cause
    except AttributeError:
        raise Invalid(f"--schemas {where}: {module} has no {name}") from None
    except Exception as cause:
        raise Invalid(f"--schemas {where}: importing {module} failed: {type(cause).__name__}: {cause}") from cause
    return list(found) if isinstance(found, list | tuple) else [found]
