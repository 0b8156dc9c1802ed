"""Examining a store and what is around it: `doctor`.

It says what it can where the store cannot be opened. The status is 0 where all is ok, 1 where something is degraded, 6
where something is unhealthy.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import Any, get_args

import click

from quire.api.health import RANK, Check, Health, Status
from quire.cli import environment
from quire.cli.base import file_of, json_option, opened
from quire.cli.lines import SCHEMA, columns, out, out_json, plain, printable, style
from quire.errors import Invalid, QuireError
from quire.storage._vitals import disk_of
from quire.storage.base import Durability

_CODES: dict[Status, int] = {"ok": 0, "degraded": 1, "unhealthy": 6}
_COLOURS: dict[Status, str] = {"ok": "green", "degraded": "yellow", "unhealthy": "red"}
_WIDTH = 80
_NAME, _STATUS = 12, 11
"""Columns of the table's first two columns."""


@click.command()
@json_option
@click.option(
    "--expect-durability",
    type=click.Choice(get_args(Durability)),
    default=None,
    help="What acknowledged writes have to survive.",
)
@click.option("--write/--no-write", default=True, help="Whether to measure a durable commit of a cell that is removed.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="Seconds.")
@click.pass_context
def doctor(
    ctx: click.Context, as_json: bool, expect_durability: Durability | None, write: bool, deadline: float
) -> None:
    """Examine the store and what is around it.

    Each check with its figure, and what to do where it is not well. Exits with 0 if all is ok, 1 if something is
    degraded, 6 if something is unhealthy or the store cannot be opened.
    """
    from quire.storage.open import redact_url

    url, _ = ctx.obj
    checks = environment.examined(url)
    health: Health | None = None
    try:
        environment.required(url)
        with opened(ctx) as store:
            health = store.health(deadline_s=deadline, write=write, expect_durability=expect_durability)
        checks += health.checks
    except Invalid:  # the caller's mistake: a URL that is none, a deadline that is no time
        raise
    except QuireError as error:
        checks += [Check("store", "unhealthy", error.code, str(error)), *_disk(url)]
    worst: Status = max(checks, key=lambda check: RANK[check.status]).status
    if as_json:
        out_json(_document(redact_url(url), worst, checks, health))
    else:
        _table(redact_url(url), worst, checks)
    ctx.exit(_CODES[worst])


def _disk(url: str) -> list[Check]:
    """Say what disk an embedded store lies on that could not be opened and asked itself."""
    path = file_of(url) or environment.folder_of(url)
    if path is None or "\0" in path:
        return []
    disk = disk_of(os.path.realpath(path))
    warnings = disk.warnings(path)
    status: Status = "degraded" if warnings else "ok"
    return [Check("disk", status, disk.file_system or "not known", " ".join(warnings))]


def _document(url: str, worst: Status, checks: Sequence[Check], health: Health | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "store": url,
        "status": worst,
        "reasons": [check.reason for check in checks if check.status != "ok"],
        "checks": plain(checks),
        "health": None if health is None else plain(health),
    }


def _table(url: str, worst: Status, checks: Sequence[Check]) -> None:
    width = min(columns() or _WIDTH, _WIDTH)
    indent = " " * min(_NAME + _STATUS, width // 3)
    out(printable(url))
    for check in checks:
        status = style(check.status.ljust(_STATUS), fg=_COLOURS[check.status])
        out(f"{check.name:<{_NAME}}{status}{printable(check.figure)}".rstrip())
        if check.reason:
            for line in textwrap.wrap(printable(check.reason), width - len(indent)):
                out(indent + line)
    bad = sum(check.status != "ok" for check in checks)
    out(f"{worst}: {bad} of {len(checks)} checks are not well" if bad else f"ok: {len(checks)} checks")
