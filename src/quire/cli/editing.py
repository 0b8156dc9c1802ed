"""`edit`: the state in the user's own editor.

1. What the user wrote is never lost: unless it was stored, or is what we gave, its file stays and the message names it.
2. No store is open while the editor is; the edited text is rebased onto what others wrote meanwhile.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import click
import msgspec

from quire.cli.base import given, name_argument, opened, strict, writing
from quire.cli.lines import say, told
from quire.errors import Invalid, InvalidState

_EDITORS = ("sensible-editor", "nano", "vim", "vi")


@click.command()
@name_argument
@click.option("--text", "kept", default=None, metavar="FILE", help="Begin with FILE, which an edit left behind.")
@click.option("--base", type=click.IntRange(1), default=None, help="The version FILE was made from.")
@writing
@click.pass_context
def edit(ctx: click.Context, name: str, kept: str | None, base: int | None, **how: Any) -> None:
    """Edit the state of NAME in $EDITOR.

    What you changed becomes one version. If it cannot be stored your text is kept, and the message says where.
    """
    if kept is not None and base is None:
        raise Invalid(
            "--text needs --base too, the version that FILE was made from: else it would undo what came since"
        )
    if how.pop("idempotency_key") is not None:
        raise Invalid("edit takes no idempotency key: what you write in the editor is different every time")
    command = _editor()
    with opened(ctx) as store:
        wf = store.workflow(name)
        base = wf.version(base).number
        before = msgspec.json.format(msgspec.json.encode(wf.state(base)), indent=2) + b"\n"
    file = _draft(name, before if kept is None else given(kept))
    try:
        _run(command, file)
        text = _read(file)
        if text == before:
            file.unlink()
            say("nothing changed")
            return
        state = strict(text, "the edited state")
        if not isinstance(state, dict):
            raise InvalidState("the edited state is not an object: it must be between { and }")
        with opened(ctx) as store:
            made = store.workflow(name).save(state, base=base, **how)
    except BaseException as error:
        _keep(file, before, name, base, error)
        raise
    file.unlink()
    told(made)


def _editor() -> list[str]:
    """Return the editor's command. Raises Invalid when there is none."""
    wanted = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not wanted and sys.stdin.isatty():
        wanted = next((e for e in _EDITORS if shutil.which(e)), None)
    if not wanted:
        raise Invalid("no editor was found: set EDITOR, as in `EDITOR=nano quire edit ...`, or use `quire patch`")
    try:
        command = shlex.split(wanted)
    except ValueError as cause:
        raise Invalid(f"EDITOR={wanted!r} cannot be read: {cause}") from None
    if not command or not shutil.which(command[0]):
        raise Invalid(f"EDITOR={wanted!r}: there is no such program")
    return command


def _draft(name: str, text: bytes) -> Path:
    """Write the text to a file of its own, for its owner's eyes only."""
    handle, path = tempfile.mkstemp(prefix=f"quire-{name[:40]}-", suffix=".json")
    with os.fdopen(handle, "wb") as target:
        target.write(text)
    return Path(path)


def _run(command: list[str], file: Path) -> None:
    """Wait for the editor. Ctrl-C is the editor's business as long as it runs."""
    before = signal.signal(signal.SIGINT, _leave)  # not SIG_IGN, which the editor would inherit
    try:
        code = subprocess.run([*command, str(file)], check=False).returncode  # noqa: S603 - the user's own editor
    finally:
        signal.signal(signal.SIGINT, before)
    if code != 0:
        raise Invalid(f"the editor {command[0]} ended with code {code}")


def _leave(_signal: int, _frame: FrameType | None) -> None:
    pass


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise Invalid("the editor removed the file") from None


def _keep(file: Path, before: bytes, name: str, base: int, error: BaseException) -> None:
    """Note on the error where the text is, if there is any that could be missed; else remove the file."""
    if not file.exists() or file.read_bytes() in (before, b""):
        file.unlink(missing_ok=True)
        error.add_note("Nothing was written.")
        return
    again = f"quire edit {shlex.quote(name)} --base {base} --text {shlex.quote(str(file))}"
    error.add_note(f"Nothing was written. Your text is kept in {file}; go on with\n  {again}")
