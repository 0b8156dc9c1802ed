"""Backups: `backup`, `backups`, `recover`.

A DEST with a scheme, `file:///folder` or `s3://bucket/prefix`, is a place that keeps many backups; a plain path is one copy in a
file of its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from quire.cli.base import json_option, opened
from quire.cli.lines import SCHEMA, out, out_json, plain, say
from quire.errors import Invalid

if TYPE_CHECKING:
    from quire.api.backups import Backup, Checked
    from quire.api.recovery import Recovered

_of = click.option("--of", default=None, help="Id of the store they were taken of, or how it begins.")


@click.command()
@click.argument("dest")
@click.option("--full", is_flag=True, help="One that needs none of those before it.")
@json_option
@click.pass_context
def backup(ctx: click.Context, dest: str, full: bool, as_json: bool) -> None:
    """Back the store up to DEST, while writers go on.

    DEST is the URL of a place, file:///folder or s3://bucket/prefix: the first
    backup there is full, the next ones add what changed. `quire recover` brings
    them back. A plain path gets one whole copy that opens as a store by itself.
    """
    with opened(ctx) as store:
        made = store.backup(dest, full=full)
    if as_json:
        out_json({"schema": SCHEMA, "copy": dest} if made is None else {"schema": SCHEMA, **plain(made)})
    elif made is None:
        out(f"{dest}: one copy, which opens as a store")
    else:
        out(_line(made))


@click.command()
@click.argument("place")
@_of
@click.option("--check", is_flag=True, help="Read every object and compare it with its digest.")
@click.option("--prune", is_flag=True, help="Remove those that --keep and --days let go.")
@click.option("--keep", type=click.IntRange(1), default=10, show_default=True, help="So many newest stay.")
@click.option("--days", type=click.FloatRange(0.001), default=30.0, show_default=True, help="Younger ones stay.")
@click.option("--dry-run", is_flag=True, help="With --prune: only say what would go.")
@json_option
@click.pass_context
def backups(
    ctx: click.Context,
    place: str,
    of: str | None,
    check: bool,
    prune: bool,
    keep: int,
    days: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """List, check or prune the backups in PLACE.

    No store and no key is needed. --check exits with 5 if something is not
    whole. --prune removes what is neither among the newest nor young enough;
    what a wanted one builds on stays, and so does the newest.
    """
    from quire.api import backups as api

    if check and prune:
        raise Invalid("--check and --prune are two things: check first")
    if check:
        _checked(ctx, asyncio.run(api.check_backups(place, of=of)), as_json=as_json)
        return
    if prune:
        done = asyncio.run(api.prune_backups(place, keep=keep, days=days, of=of, dry_run=dry_run))
        if as_json:
            out_json({"schema": SCHEMA, **plain(done)})
            return
        for store, number in done.removed:
            out(f"{store}  {number:>5}  {'removed' if done.done else 'would be removed'}")
        verb = "removed" if done.done else "would go"
        out(f"{len(done.removed)} backups with {done.objects} objects {verb}, {len(done.kept)} stay")
        return
    found = asyncio.run(api.backups(place, of=of))
    if as_json:
        out_json({"schema": SCHEMA, "backups": [plain(b) for b in found]})
        return
    for each in found:
        out(_line(each))


def _checked(ctx: click.Context, found: Checked, *, as_json: bool) -> None:
    if as_json:
        out_json({"schema": SCHEMA, "ok": found.ok, **plain(found)})
    else:
        for problem in found.problems:
            out(problem)
        verdict = "whole" if found.ok else f"{len(found.problems)} problem(s)"
        out(f"{found.backups} backups, {found.objects} objects, {found.size_bytes:,} bytes: {verdict}")
    if not found.ok:
        ctx.exit(5)


def _line(b: Backup) -> str:
    said = "; ".join(filter(None, (b.why, b.problem)))
    return (
        f"{b.store}  {b.number:>5}  {b.taken_at:%Y-%m-%d %H:%M:%S}Z  {b.kind:<11}  {b.namespace}  position {b.position}, "
        f"{b.versions} versions, {b.added_bytes:,} bytes{f'  ({said})' if said else ''}"
    )


@click.command()
@click.argument("place")
@_of
@click.option("--number", type=click.IntRange(1), default=None, help="Which backup; the newest otherwise.")
@click.option("--at", default=None, help="Back to a position, or a moment such as 2026-01-31T12:00 (UTC).")
@click.option("--replace", is_flag=True, help="Replace what is there, after a backup of it to PLACE.")
@click.option("--unsaved", is_flag=True, help="Replace even what is too damaged to be backed up.")
@click.option("--extend", is_flag=True, help="Go on with what the archive has of later versions.")
@click.option("--dry-run", is_flag=True, help="Read and check everything, say what would be done, change nothing.")
@json_option
@click.pass_context
def recover(
    ctx: click.Context,
    place: str,
    of: str | None,
    number: int | None,
    at: str | None,
    replace: bool,
    unsaved: bool,
    extend: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring a backup in PLACE back to the store (--store).

    Nobody else may have it open. Interrupted, the same call finishes it, and
    until then the store cannot be opened. The namespace is the one the backup
    was taken of, unless --namespace names another.
    """
    from quire.api import recovery as api
    from quire.storage.open import redact_url

    url, namespace = ctx.obj
    named = ctx.find_root().get_parameter_source("namespace") != click.core.ParameterSource.DEFAULT
    done = asyncio.run(
        api.recover(
            place,
            url,
            namespace=namespace if named else None,
            of=of,
            number=number,
            at=at,
            replace=replace,
            unsaved=unsaved,
            extend=extend,
            dry_run=dry_run,
        )
    )
    if as_json:
        out_json({"schema": SCHEMA, **plain(done)})
        return
    _told(done, redact_url(url))


def _told(done: Recovered, url: str) -> None:
    """Say what a recovery did or would do."""
    verb = "would be" if done.dry_run else "is"
    out(
        f"{url}: backup {done.number} of {done.taken_at:%Y-%m-%d %H:%M:%S}Z {verb} there, up to position {done.position}: "
        f"{done.streams} streams, {done.versions} versions, {done.blobs} blobs, {done.cells} cells"
    )
    for workflow, (before, after) in done.back.items():
        out(f"{workflow}: from version {before} back to {after}")
    for workflow in done.gone:
        out(f"{workflow}: gone, the backup does not have it")
    for stream in done.incomplete:
        say(f"{stream}: what it was then had been trimmed before a backup was taken; it is older, or absent")
    if done.follows:
        say(
            f"the next {done.follows} versions have the time of the last one brought back: if they were one transaction with "
            "it, give a moment (--at 2026-...) instead of a position"
        )
    if done.extended:
        out(f"{done.extended} later versions came from the archive")
    if done.before is not None:
        out(f"what was there before is backup {done.before} of {done.before_store}")


def repaired(ctx: click.Context, name: str, place: str | None, *, as_json: bool) -> None:
    """Do what `verify --repair` says. place: "" where --from was given without --repair."""
    if place == "" or name:
        raise Invalid("--from goes with --repair, and --repair goes over the whole store: leave NAME out")
    with opened(ctx) as store:
        done = store.repair(place)
    if as_json:
        out_json({"schema": SCHEMA, "ok": done.ok, **plain(done)})
    else:
        for what, mended in (("keyframe", done.keyframes), ("record", done.records), ("blob", done.blobs)):
            for each in mended:
                out(f"{what} {each}: mended")
        for problem in done.after.problems:
            out(problem)
        found = len(done.before.problems)
        verdict = "sound" if not found else "sound now" if done.ok else f"{len(done.after.problems)} problem(s) left"
        out(f"{found} problem(s) found: {verdict}")
        if not done.ok:
            say("what is left is in a backup: `quire recover PLACE --replace` puts it back, or into another --store")
    if not done.ok:
        ctx.exit(5)
