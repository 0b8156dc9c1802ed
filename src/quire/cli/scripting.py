"""`lua`: run a script on the store, all of it or nothing."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

import click

from quire.cli.base import author_option, given, json_option, opened, value_of
from quire.cli.completing import names
from quire.cli.lines import out, out_json, plain, printable, say, terminal
from quire.errors import Invalid

if TYPE_CHECKING:
    from quire.scripting.limits import Limits


@click.command()
@click.argument("file", default="-")
@click.option("--workflow", "-w", default=None, shell_complete=names, help="What `workflow.state` is.")
@click.option("--step", default=None, help="What `step.state` is, in that workflow.")
@click.option("--input", "text", default=None, help="JSON or text, `input` in the script.")
@click.option("--limit", "pairs", multiple=True, metavar="NAME=N", help="Such as cpu_s=30; may be repeated.")
@author_option
@click.option("-m", "--message", default=None, help="Why.")
@json_option
@click.pass_context
def lua(
    ctx: click.Context,
    file: str,
    workflow: str | None,
    step: str | None,
    text: str | None,
    pairs: tuple[str, ...],
    author: str,
    message: str | None,
    as_json: bool,
) -> None:
    """Run the Lua script in FILE or stdin on the store.

    What it changed is written when it has ended well, else nothing is.
    Limits: wall_ms, cpu_s, memory_bytes, output_bytes, calls, message_bytes,
    traffic_bytes, source_bytes.

    \b
    echo 'print(State.increment("visits"))' | quire lua
    quire lua plan.lua --workflow research-42
    """
    from quire.scripting.sync import run_script

    source = _text(given(file), file)
    chosen = _limits(pairs)
    with opened(ctx, make=workflow is None) as store:
        done = run_script(
            store,
            source,
            name=_name(file),
            workflow=workflow,
            step=step,
            input=None if text is None else value_of(text),
            author=author,
            message=message,
            limits=chosen,
            on_print=None if as_json else _show,
        )
    if as_json:
        versions = [plain(v) for v in done.versions.values()]
        out_json({"value": done.value, "output": done.output, "versions": versions})
        return
    if done.value is not None:
        out_json(done.value)
    for version in done.versions.values():
        say(f"{version.workflow_id}@{version.number} {version.id}")


def _show(line: str) -> None:
    """Print what the script prints, when it does; on a terminal without its control characters."""
    out(printable(line, keep="\n\t") if terminal() else line)


def _name(file: str) -> str:
    """Return a name for messages: the file's own, as far as Lua shows it."""
    name = "stdin" if file == "-" else printable(PurePath(file).name)
    return name.encode(errors="replace")[-55:].decode(errors="ignore") or "script"


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as cause:
        raise Invalid(f"{file}: a script is UTF-8 text; byte {cause.start} is not") from None


def _limits(pairs: tuple[str, ...]) -> Limits:
    from quire.scripting.limits import Limits

    found: dict[str, int] = {}
    for pair in pairs:
        name, _, number = pair.partition("=")
        if name not in Limits.__struct_fields__ or not (number.isascii() and number.isdigit()):
            raise Invalid(f"--limit {pair}: NAME=N with one of {', '.join(Limits.__struct_fields__)}")
        found[name] = int(number)
    return Limits(**found)
