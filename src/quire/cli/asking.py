"""Asking all of a history: `bisect` and `replay`, which give states to a command or print them."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

import click
import msgspec

from quire.cli.base import json_option, name_argument, opened, revision
from quire.cli.lines import SCHEMA, out, out_json, plain, say
from quire.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from quire.model import Version

_CANNOT_TELL = 125
"""What a command exits with that cannot say whether a state is good; it and all above are no answer."""


@click.command(context_settings={"ignore_unknown_options": True})
@name_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--good", default="1", show_default=True, help="A revision that was good.")
@click.option("--path", default=None, help="Instead of a command: where the value here became what it is.")
@json_option
@click.pass_context
def bisect(
    ctx: click.Context,
    name: str,
    command: tuple[str, ...],
    good: str,
    path: str | None,
    as_json: bool,
) -> None:
    """Find the version of NAME that broke something.

    NAME is the bad one (NAME@REVISION). COMMAND gets a state as JSON on stdin
    and exits with 0 if it is good, 1 to 124 if it is bad.

    \b
    quire bisect wf -- jq -e '.n < 5'
    quire bisect wf --path /phase
    """
    from quire.core.path import get, parse
    from quire.core.values import same

    if (path is None) == (not command):
        raise Invalid("give a COMMAND after --, or --path PATH")
    looked = 0
    wanted: Any = None

    def bad(state: dict[str, Any]) -> bool:
        nonlocal looked
        looked += 1
        return _asked(command, state) if path is None else same(get(state, parse(path)), wanted)

    with opened(ctx) as store:
        wf, version = revision(store, name)
        wanted = None if path is None else wf.get(path, version=version)
        found = wf.bisect(bad, good=good, bad=version)
    if as_json:
        out_json({"schema": SCHEMA, "looked_at": looked, **plain(found)})
        return
    from quire.cli.history import show_version

    show_version(found, "", patch=True)
    say(f"the first bad version, after a look at {looked} states")


@click.command(context_settings={"ignore_unknown_options": True})
@name_argument
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--first", default="1", show_default=True, help="The revision to begin with.")
@click.pass_context
def replay(ctx: click.Context, name: str, command: tuple[str, ...], first: str) -> None:
    """Print every state of NAME, or give each to a command.

    Oldest first, up to NAME@REVISION: one line of JSON each, with the version
    and its state. COMMAND gets the state on stdin and QUIRE_VERSION in its
    environment; it ends the replay by not exiting with 0.

    \b
    quire replay wf@9 --first 3 | jq .state.n
    quire replay wf -- sh -c 'cat > state-$QUIRE_VERSION.json'
    """

    def take(version: Version, state: dict[str, Any]) -> None:
        if command:
            code = _run(command, state, {"QUIRE_VERSION": str(version.number), "QUIRE_AUTHOR": version.author})
            if code:
                raise Invalid(f"{command[0]} ended with {code} at version {version.number}; the replay stops there")
        else:
            out_json({**plain(version), "state": state}, line=True)

    with opened(ctx) as store:
        wf, last = revision(store, name)
        count = wf.replay(take, first=first, last=last)
    if command:
        out(f"{count} versions")


def _asked(command: Sequence[str], state: dict[str, Any]) -> bool:
    code = _run(command, state, {})
    if not 0 <= code < _CANNOT_TELL:
        raise Invalid(f"{command[0]} ended with {code}, which is no answer; 0 is good, 1 to {_CANNOT_TELL - 1} bad")
    return code != 0


def _run(command: Sequence[str], state: dict[str, Any], more: dict[str, str]) -> int:
    """Run a command the user gave, without a shell, with a state on its stdin; return its exit code."""
    try:
        done = subprocess.run(  # noqa: S603 - it is the user's own command
            list(command), input=msgspec.json.encode(state), env={**os.environ, **more}, check=False
        )
    except OSError as cause:
        raise Invalid(f"{command[0]} cannot be run: {cause.strerror or cause}") from None
    return done.returncode
