"""Where the `quire` script enters: the group, which command lives in which file, and what becomes of errors.

1. A user sees one sentence and an exit code, never a traceback. The codes: 0 fine, 1 differences, a failed check or a
   degraded store, 2 usage, 3 not found, 4 conflict, 5 integrity, 6 unavailable, 7 denied, 70 a fault of Quire's own,
   130 interrupted.
2. What is asked for goes to stdout, what is said about it to stderr. A reader that stops reading ends us quietly.
3. A command's file is imported when the command is called.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

import quire

if TYPE_CHECKING:
    from quire.errors import QuireError

SECTIONS = {
    "Start": {
        "init": ("care:init", "Make a new store, or check that one is there."),
        "demo": ("showing:demo", "Watch agents survey Python, be killed, and go on."),
        "dev": ("dev:dev", "Start a private server to try, until Ctrl-C."),
        "completion": ("showing:completion", "Print the completion script of a shell."),
    },
    "Read": {
        "ls": ("reading:ls", "List the workflows that start with PREFIX."),
        "show": ("reading:show", "Print the state of NAME[@REVISION], or PATH in it."),
        "log": ("history:log", "Show the history of NAME[@REVISION], newest first."),
        "diff": ("history:diff", "Show what differs between two revisions."),
        "blame": ("history:blame", "Say who set each value of NAME[@REVISION]."),
        "bisect": ("asking:bisect", "Find the version of NAME that broke something."),
        "replay": ("asking:replay", "Print every state of NAME, or give each to a command."),
        "watch": ("reading:watch", "Follow the changes of NAME, or of all, until interrupted."),
    },
    "Write": {
        "set": ("writing:set_", "Put VALUE at PATH of NAME, made if it is not there."),
        "patch": ("writing:patch", "Apply a JSON Patch or merge patch from FILE or stdin."),
        "rm": ("writing:rm", 'Remove what is at PATH of NAME; "" ends the workflow.'),
        "edit": ("editing:edit", "Edit the state of NAME in $EDITOR."),
        "lua": ("scripting:lua", "Run the Lua script in FILE or stdin on the store."),
    },
    "Travel": {
        "checkpoint": ("travel:checkpoint", "Give NAME[@REVISION] the name LABEL."),
        "restore": ("travel:restore", "Make NAME what it was at NAME@REVISION, as a new version."),
        "revert": ("travel:revert", "Undo what one version did, keeping what came after."),
        "fork": ("travel:fork", "Start NEW from NAME[@REVISION], sharing its history."),
        "merge": ("merging:merge", "Take what OTHER[@REVISION] did since it parted into NAME."),
        "conflicts": ("merging:conflicts", "List what could not both stand in NAME, or decide ID."),
    },
    "Care": {
        "verify": ("care:verify", "Prove that log, keyframes and blobs are whole."),
        "doctor": ("doctoring:doctor", "Examine the store and what is around it."),
        "backup": ("backing:backup", "Back the store up to DEST, while writers go on."),
        "backups": ("backing:backups", "List, check or prune the backups in PLACE."),
        "recover": ("backing:recover", "Bring a backup in PLACE back to the store."),
        "stats": ("care:stats", "Count what the store holds."),
        "train": ("secrets:train", "Learn from the changes there are how to store them smaller."),
        "rotate": ("secrets:rotate", "Have an encrypted store open with another key."),
        "migrate": ("changing:migrate", "Bring states to the newest version of their schemas."),
        "sweep": ("archiving:sweep", "Move old versions to the archive, where they can still be read."),
        "archive": ("archiving:archive", "Say which versions are in the archive, and where."),
        "redact": ("changing:redact", "Take something out of NAME in every version there is."),
        "copy": ("copying:copy", "Copy all of a store to another of any kind."),
        "export": ("moving:export", "Write the history of NAME to FILE or stdout."),
        "import": ("moving:import_", "Read an export from FILE or stdin into a new workflow."),
    },
}
"""The commands as `--help` lists them without importing them: file, function, and how its docstring begins."""
_HOMES = {name: home for part in SECTIONS.values() for name, (home, _) in part.items()}

_FAULT = 70
"""EX_SOFTWARE of sysexits.h."""


def exit_code(error: QuireError) -> int:
    """Return the exit code of an error."""
    from quire import errors

    table: tuple[tuple[type[BaseException], int], ...] = (
        (errors.NotFound, 3),
        (errors.Conflict, 4),
        (errors.Denied, 7),
        (errors.RequestError, 2),
        (errors.CorruptRecord, 5),
        (errors.IncompatibleFormat, 5),
    )
    return next((code for kind, code in table if isinstance(error, kind)), 6)


class Commands(click.Group):
    """The group: finds commands where `SECTIONS` says, and turns errors into sentences and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the order of `--help`."""
        return list(_HOMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _HOMES:
            return super().get_command(ctx, cmd_name)
        file, _, function = _HOMES[cmd_name].partition(":")
        return getattr(import_module(f"quire.cli.{file}"), function)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; for a mistyped one, tell which was likely meant."""
        if args[0] in _HOMES or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(args[0], _HOMES, 1)
        said = f"No such command {args[0]!r}." + "".join(f" Did you mean {n!r}?" for n in near)
        raise click.UsageError(said, ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands by what they are for."""
        width = max(map(len, _HOMES))
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), said) for name, (_, said) in entries.items()])

    def main(self, *args: Any, **more: Any) -> Any:
        """Enter."""
        _occupy()
        return super().main(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from quire.errors import QuireError

        try:
            return super().invoke(ctx)
        except QuireError as error:
            _end(ctx, str(error), exit_code(error), error)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor shall the interpreter try again
            ctx.exit(0)
        except (KeyboardInterrupt, click.Abort) as error:
            _end(ctx, "", 130, error)
        except RecursionError:
            _end(ctx, "the input is nested too deeply", 2)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except OSError as error:
            _end(ctx, f"the system refused: {error}", 7 if isinstance(error, PermissionError) else 6, error)
        except Exception as error:  # the last resort is for our own mistakes, which also deserve a sentence
            if os.environ.get("QUIRE_DEBUG"):
                raise
            said = f"{type(error).__name__}: {error}; this is a fault of Quire: report it with what QUIRE_DEBUG=1 shows"
            _end(ctx, said, _FAULT, error)


def _end(ctx: click.Context, said: str, code: int, error: BaseException | None = None) -> None:
    """Say what happened, with what was noted on the way, and exit."""
    from quire.cli.lines import say

    if said:
        say(f"quire: {said}")
    for note in getattr(error, "__notes__", ()):
        say(note)
    ctx.exit(code)


def _occupy() -> None:
    """Open what the caller closed of descriptors 0 to 2: else a store's file would get a number others write to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option(
    "--store",
    "-s",
    "url",
    envvar="QUIRE_STORE",
    default="quire.db",
    show_default=True,
    help="URL or path of the store (or set QUIRE_STORE).",
)
@click.option(
    "--namespace",
    "-n",
    envvar="QUIRE_NAMESPACE",
    default="default",
    help="Namespace in the store (or set QUIRE_NAMESPACE).",
)
@click.version_option(quire.__version__, prog_name="quire")
@click.pass_context
def main(ctx: click.Context, url: str, namespace: str) -> None:
    """Durable, versioned state for workflows of agents.

    A version is named NAME@REVISION: wf@42, wf@~3 (three before the newest),
    wf@checkpoint, wf@2026-01-31T12:00. A PATH is a JSON Pointer: /notes/0.
    """
    ctx.obj = (url, namespace)
