"""From store to store, of any kind: `copy`.

1. FROM is never made: a mistyped one, or one with nothing in it, ends the command before TO is opened.
2. Bars are drawn on stderr, where a person reads it and `rich` is installed; elsewhere a line at each quarter.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from quire.cli.base import file_of, json_option, opened
from quire.cli.lines import SCHEMA, out, out_json, plain, say
from quire.errors import Invalid, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from quire.engine.moving.copying import Step

_QUARTERS = 4


@click.command(name="copy")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("-n", "--namespace", default=None, help="Namespace in FROM (or set QUIRE_NAMESPACE).")
@click.option("--to-namespace", default=None, help="Namespace in TO, if it has another name there.")
@json_option
@click.pass_context
def copy(
    ctx: click.Context, source: str, target: str, namespace: str | None, to_namespace: str | None, as_json: bool
) -> None:
    """Copy all of a store to another of any kind.

    FROM and TO are URLs or paths. Writers of FROM may go on. Called again it
    brings what is new, or goes on where it was killed. What arrived is verified:
    it exits with 5 if that fails.
    """
    from quire.storage.open import redact_url

    _check_source(source)
    ctx.obj = (source, ctx.obj[1] if namespace is None else namespace)
    with opened(ctx) as store:
        found = store.stats()
        if not (found.versions or found.blobs or found.cells):
            raise NotFound(
                f"{redact_url(source)} has nothing in the namespace {ctx.obj[1]}; name another with --namespace"
            )
        with _shown() as show:
            copied = store.copy_to(target, namespace=to_namespace, progress=show)
    if as_json:
        out_json({"schema": SCHEMA, **plain(copied)})
        return
    out(
        f"{redact_url(target)}: {copied.versions} versions, {copied.blobs} blobs and {copied.cells} cells brought over; "
        f"all {copied.streams} streams are as in {redact_url(source)} at position {copied.position}"
    )
    if copied.redacted or copied.trimmed:
        out(f"{copied.redacted} versions redacted and {copied.trimmed} removed there, as they were here")
    for stream in copied.beyond:
        say(f"{stream} is in the target only")


def _check_source(url: str) -> None:
    """Say plainly that a store is not there. Raises NotFound, Invalid."""
    if url.lower().startswith("memory:"):
        raise Invalid(f"{url}: a store in memory is seen by its own process only; there, say `store.copy_to(...)`")
    if not url or file_of(url) == "":
        raise Invalid("FROM is empty: give the URL or path of a store")


@contextmanager
def _shown() -> Generator[Callable[[Step], None]]:
    """Show how far it is, while it lasts."""
    if sys.stderr is None or not sys.stderr.isatty() or find_spec("rich") is None:  # pyright: ignore[reportUnnecessaryComparison] - closed
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(30),
        TextColumn("{task.percentage:>3.0f}%", style="green"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as progress:
        tasks = {what: progress.add_task(what, total=None) for what in ("versions", "cells", "blobs", "verify")}

        def show(step: Step) -> None:
            if step.what in tasks:
                total = max(step.total, 1)
                progress.update(tasks[step.what], total=total, completed=step.done if step.total else total)

        yield show


class _Lines:
    """A line on stderr at every quarter of the versions."""

    def __init__(self) -> None:
        self._said = 0

    def __call__(self, step: Step) -> None:
        quarter = _QUARTERS * step.done // step.total if step.what == "versions" and step.total else 0
        if quarter > self._said:
            self._said = quarter
            say(f"{100 * quarter // _QUARTERS} % of the versions")
