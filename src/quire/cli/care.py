"""Looking after a store: `init`, `verify`, `stats`."""

from __future__ import annotations

from contextlib import suppress

import click

from quire.cli.base import json_option, opened
from quire.cli.lines import SCHEMA, out, out_json, plain
from quire.errors import StorageError


@click.command()
@click.pass_context
def init(ctx: click.Context) -> None:
    """Make a new store, or check that one is there."""
    from quire.storage.open import redact_url

    with opened(ctx, make=True) as store:
        stats = store.stats()
    out(f"{redact_url(ctx.obj[0])}: {stats.workflows} workflows, {stats.versions} versions; {stats.note}")


@click.command()
@click.argument("name", default="")
@click.option("--repair", is_flag=True, help="Mend what can be, and say what is left.")
@click.option("--from", "place", default=None, help="With --repair: where backups are, file:///folder.")
@json_option
@click.pass_context
def verify(ctx: click.Context, name: str, repair: bool, place: str | None, as_json: bool) -> None:
    """Prove that log, keyframes and blobs are whole.

    Of all workflows, or of NAME. Exits with 5 if something is not.
    """
    if repair or place is not None:
        from quire.cli.backing import repaired  # a part of the whole command, seldom needed

        repaired(ctx, name, place if repair else "", as_json=as_json)
        return
    with opened(ctx) as store:
        if name:
            with suppress(StorageError):  # damage is what `verify` is for; a mistyped name is not a sound one
                store.workflow(name).version()
        report = store.verify(name or None)
    if as_json:
        out_json({"schema": SCHEMA, "ok": report.ok, **plain(report)})
    else:
        for problem in report.problems:
            out(problem)
        verdict = "sound" if report.ok else f"{len(report.problems)} problem(s)"
        out(f"{report.streams} streams, {report.versions} versions, {report.keyframes} keyframes: {verdict}")
    if not report.ok:
        ctx.exit(5)


@click.command()
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
        out(f"{name.replace('_', ' '):<20} {value:,}" if isinstance(value, int) else f"{name:<20} {value}")
