"""Old versions: `sweep` moves them to the archive, `archive` says what is there, proves it, and writes all as a table."""

from __future__ import annotations

from typing import Any

import click

from quire.cli.base import json_option, opened
from quire.cli.completing import names
from quire.cli.lines import SCHEMA, cells, columns, fit, out, out_json, pad, plain, say
from quire.errors import Invalid, WorkflowNotFound
from quire.model import WORKFLOWS

_RULES = ("versions", "days", "bytes", "store_bytes", "checkpoints", "checkpoint_days")


@click.command()
@click.option("--versions", type=int, help="So many newest of each workflow stay.")
@click.option("--days", type=float, help="What is younger stays.")
@click.option("--bytes", type=int, help="So many bytes of changes of each workflow stay.")
@click.option("--store-bytes", type=int, help="So many of all together.")
@click.option("--checkpoints", type=int, help="So many newest automatic checkpoints stay.")
@click.option("--checkpoint-days", type=float, help="Younger automatic checkpoints stay.")
@click.option("--archive", "place", default=None, help="Where they go: a folder, s3://bucket/prefix; else as before.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_context
def sweep(ctx: click.Context, place: str | None, dry_run: bool, as_json: bool, **rules: Any) -> None:
    """Move old versions to the archive, where they can still be read.

    A version goes when any rule says so; the newest never does. Without an
    archive they are packed within the store. Exits with 6 if some could not go.
    """
    from quire.config import Retention

    if all(rules[name] is None for name in _RULES):
        raise Invalid("say what stays: for instance --versions 100 --days 30")
    retention = Retention(**rules, every_s=0)
    with opened(ctx, archive=place, retention=retention) as store:
        done = store.sweep(plan=dry_run)
    if as_json:
        out_json({"schema": SCHEMA, "dry_run": dry_run, "versions": done.versions, **plain(done)})
    else:
        for name, count in sorted(done.moved.items()):
            out(f"{name}  {count:,}")
        for name in done.checkpoints:
            out(f"{name}  checkpoint {'would be ' if dry_run else ''}dropped")
        verb = "would go" if dry_run else "went"
        out(f"{done.versions:,} versions of {len(done.moved):,} workflows {verb}; {done.kept:,} are kept near as well")
    for problem in done.problems:
        say(problem)
    if done.problems:
        ctx.exit(6)


@click.command()
@click.argument("name", default="", shell_complete=names)
@click.option("--check", is_flag=True, help="Read every segment and prove it whole.")
@click.option("--export", "file", default=None, metavar="FILE", help="Write all versions, archived or not, as Parquet.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@json_option
@click.pass_context
def archive(ctx: click.Context, name: str, check: bool, file: str | None, force: bool, as_json: bool) -> None:
    """Say which versions are in the archive, and where.

    Of all workflows, or of NAME. Exits with 5 if --check finds something wrong.
    """
    if file is not None:
        _export(ctx, name, file, force=force)
        return
    with opened(ctx) as store:
        if name and not store.workflow(name).exists():
            raise WorkflowNotFound(name)
        held = store.archived(check=check)
    streams = [each for each in held.streams if not name or each.stream == WORKFLOWS + name]
    if as_json:
        shown = [{"workflow": each.stream.removeprefix(WORKFLOWS), **plain(each)} for each in streams]
        totals = {"versions": sum(s.versions for s in streams), "size_bytes": sum(s.size_bytes for s in streams)}
        problems = {"problems": held.problems} if check else {}
        out_json({"schema": SCHEMA, "place": held.place, **totals, "workflows": shown, **problems})
    else:
        width = max((cells(each.stream) for each in streams), default=0) - len(WORKFLOWS)
        for each in streams:
            kept = f", {len(each.kept)} kept near" if each.kept else ""
            where = f"@{each.first} to @{each.last}: {each.versions:,} versions in {each.segments} segments"
            text = f"{pad(each.stream.removeprefix(WORKFLOWS), width)}  {where}, {each.size_bytes:,} bytes{kept}"
            out(fit(text, columns()))
        for problem in held.problems:
            out(problem)
        total = f"{sum(s.versions for s in streams):,} versions, {sum(s.size_bytes for s in streams):,} bytes"
        verdict = "" if not check else "; all sound" if not held.problems else f"; {len(held.problems)} problem(s)"
        out(f"{total} in {held.place}{verdict}")
    if held.problems:
        ctx.exit(5)


def _export(ctx: click.Context, name: str, file: str, *, force: bool) -> None:
    with opened(ctx) as store:
        rows = store.export_table(file, workflow_id=name or None, replace=force)
    say(f"{rows:,} versions to {file}")
