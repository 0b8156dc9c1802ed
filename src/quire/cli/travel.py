"""Going back and going another way: `checkpoint`, `restore`, `fork`."""

from __future__ import annotations

from typing import Any

import click

from quire.cli.base import author_option, name_argument, opened, revision, writing
from quire.cli.lines import out, told
from quire.errors import Invalid


@click.command()
@name_argument
@click.argument("label")
@click.option("--tag", "tags", multiple=True, help="May be given several times.")
@click.option("--kind", default="manual", show_default=True, help="snapshot also keeps the state whole.")
@click.option("-m", "--message", default="", help="What for.")
@author_option
@click.pass_context
def checkpoint(
    ctx: click.Context, name: str, label: str, tags: tuple[str, ...], kind: str, message: str, author: str
) -> None:
    """Give NAME[@REVISION] the name LABEL."""
    with opened(ctx) as store:
        wf, version = revision(store, name)
        made = wf.checkpoint(label, tags=tags, kind=kind, description=message, author=author, version=version)
    out(f"{wf.id}@{made.name} is version {made.version}")


@click.command()
@name_argument
@writing
@click.pass_context
def restore(ctx: click.Context, name: str, **how: Any) -> None:
    """Make NAME what it was at NAME@REVISION, as a new version."""
    if not how["message"]:
        how.pop("message")
    with opened(ctx) as store:
        wf, version = revision(store, name)
        if version is None:
            raise Invalid(f"say which version: quire restore {name}@REVISION")
        told(wf.restore(version, **how))


@click.command()
@name_argument
@click.option("--on-conflict", default="reject", help="Where later versions changed the same: ours undoes that, too.")
@writing
@click.pass_context
def revert(ctx: click.Context, name: str, on_conflict: Any, **how: Any) -> None:
    """Undo what one version did, keeping what came after.

    NAME is NAME@REVISION. Where later versions changed the same places it
    stops, unless --on-conflict says ours (undo it all the same) or theirs.
    """
    if not how["message"]:
        how.pop("message")
    with opened(ctx) as store:
        wf, version = revision(store, name)
        if version is None:
            raise Invalid(f"say which version: quire revert {name}@REVISION")
        told(wf.revert(version, on_conflict=on_conflict, **how))


@click.command()
@name_argument
@click.argument("new")
@author_option
@click.pass_context
def fork(ctx: click.Context, name: str, new: str, author: str) -> None:
    """Start NEW from NAME[@REVISION], sharing its history."""
    with opened(ctx) as store:
        wf, version = revision(store, name)
        told(wf.fork(new, at=version, author=author).version())
