"""The `quire` command line.

Exit codes: 0 fine, 1 differences or a failed check, 2 usage, 3 not found, 4 conflict, 5 integrity, 6 unavailable,
7 denied, 130 interrupted. What is asked for goes to stdout, what is said about it to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from quire.api.sync import Store, Workflow
    from quire.errors import QuireError

STORE_HELP = "URL or path of the store (or set QUIRE_STORE)."


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


class Quiet(click.Group):
    """Turns our errors into one line and an exit code; a traceback is never what a user sees."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from quire.errors import QuireError

        try:
            return super().invoke(ctx)
        except QuireError as error:
            click.echo(f"quire: {error}", err=True)
            ctx.exit(exit_code(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt:
            ctx.exit(130)
        except RecursionError:
            click.echo("quire: the input is nested too deeply", err=True)
            ctx.exit(2)


@click.group(cls=Quiet, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.option("--store", "-s", "url", envvar="QUIRE_STORE", default="quire.db", show_default=True, help=STORE_HELP)
@click.option("--namespace", "-n", envvar="QUIRE_NAMESPACE", default="default", help="Namespace in the store.")
@click.version_option("0.1.0", prog_name="quire")
@click.pass_context
def main(ctx: click.Context, url: str, namespace: str) -> None:
    """Durable, versioned state for workflows of agents.

    A version is named NAME@REVISION: wf@42, wf@~3 (three before the newest), wf@checkpoint, wf@2026-01-31T12:00.
    """
    ctx.obj = (url, namespace)


@contextlib.contextmanager
def opened(ctx: click.Context, *, make: bool = False) -> Generator[Store]:
    """Open the store of this call. Only `init`, `set` and `import` make a new one: a mistyped path must not."""
    from quire.api import sync
    from quire.errors import NotFound

    url, namespace = ctx.obj
    path = url.removeprefix("sqlite:///").partition("?")[0]
    if not make and not url.startswith("memory") and "://" not in path and not os.path.exists(path):  # noqa: PTH110
        raise NotFound(f"there is no store at {path}; `quire --store {path} init` makes one")
    with sync.open(url, namespace=namespace) as store:
        yield store


def revision(store: Store, text: str) -> tuple[Workflow, str | None]:
    """Split NAME@REVISION."""
    name, separator, version = text.partition("@")
    return store.workflow(name), (version if separator else None)


def value_of(text: str) -> Any:
    """Return JSON if the text is JSON, the text itself otherwise."""
    import msgspec

    from quire.errors import InvalidState

    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise InvalidState("the value is nested too deeply; 64 levels are allowed") from None
    except (msgspec.DecodeError, UnicodeError):
        return text


def strict(text: str | bytes, what: str) -> Any:
    """Return JSON; anything else is an error that says where."""
    import msgspec

    from quire.errors import InvalidState

    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise InvalidState(f"{what} is nested too deeply; 64 levels are allowed") from None
    except (msgspec.DecodeError, UnicodeError) as cause:
        raise InvalidState(f"{what} is not JSON: {cause}") from None


def given(file: str) -> bytes:
    """Return what is in a file, or on standard input for `-`."""
    from quire.errors import NotFound

    if file == "-":
        return sys.stdin.buffer.read()
    try:
        with open(file, "rb") as source:  # noqa: PTH123
            return source.read()
    except OSError as cause:
        raise NotFound(f"{file}: {cause.strerror}") from None


def plain(value: Any) -> Any:
    """Return what `--json` prints for one of our values."""
    import msgspec

    from quire.model import Version

    if isinstance(value, Version):
        return {
            "workflow": value.workflow_id,
            "version": value.number,
            "id": value.id,
            "author": value.author,
            "message": value.message,
            "time": value.time.isoformat(),
            "kind": value.kind,
            "checksum": value.checksum,
            "position": value.position,
            "changes": msgspec.to_builtins(value.changes),
        }
    return msgspec.to_builtins(value)


def out_json(value: Any, *, line: bool = False) -> None:
    """Print one JSON document, indented unless it is one of a stream."""
    import msgspec

    text = msgspec.json.encode(value)
    click.echo(text.decode() if line else msgspec.json.format(text, indent=2).decode())
    if line:
        sys.stdout.flush()


def style(text: str, **how: Any) -> str:
    """Colour on a terminal, unless NO_COLOR is set."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return click.style(text, **how)


def short(value: Any, width: int = 60) -> str:
    """Return a value on one line, cut to a width."""
    import msgspec

    text = msgspec.json.encode(value).decode()
    return text if len(text) <= width else text[: width - 3] + "..."


def writing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options every writing command has."""
    for option in (
        click.option("--as", "author", envvar="QUIRE_AUTHOR", default="cli", help="Who writes."),
        click.option("-m", "--message", default="", help="Why."),
        click.option("--if-version", type=int, default=None, help="Write only if this is the newest version."),
        click.option("--idempotency-key", default=None, help="Repeating the call with it writes only once."),
    ):
        command = option(command)
    return command


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")
