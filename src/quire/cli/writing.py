"""One write, one version: `set`, `patch` and `rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from quire.cli.base import given, name_argument, opened, strict, value_of, writing
from quire.cli.lines import told
from quire.errors import AlreadyExists

if TYPE_CHECKING:
    from quire.api.sync import Store
    from quire.model import Version


@click.command(name="set", context_settings={"ignore_unknown_options": True})  # for values such as -5
@name_argument
@click.argument("path")
@click.argument("value")
@click.option("--text", is_flag=True, help="Take VALUE as text, whatever it looks like.")
@writing
@click.pass_context
def set_(ctx: click.Context, name: str, path: str, value: str, text: bool, **how: Any) -> None:
    """Put VALUE at PATH of NAME, made if it is not there.

    VALUE is JSON, or plain text that does not look like JSON.

    \b
    quire set wf /topic tides
    quire set wf /tags '["sea", "moon"]'
    quire set wf "" '{"topic": "tides"}'      the whole state
    """
    new = value if text else value_of(value)
    with opened(ctx, make=True) as store:
        told(_begun(store, name, path, new, how) or store.workflow(name).set(path, new, **how))


def _begun(store: Store, name: str, path: str, value: Any, how: dict[str, Any]) -> Version | None:
    """Make the workflow with the value in it, None if it is there or is not to be made. A bad value makes nothing."""
    from quire.core.changes import apply
    from quire.core.path import parse, resolve
    from quire.core.values import clean
    from quire.model import Set

    if how["if_version"] or store.workflow(name).exists():
        return None
    state = apply({}, [Set(resolve({}, parse(path)), clean(value))])
    keyed = how["idempotency_key"] is not None  # only `set` remembers a key, so the workflow begins empty then
    message = {"message": how["message"]} if how["message"] and not keyed else {}
    try:
        made = store.create(name, {} if keyed else state, author=how["author"], **message)
    except AlreadyExists:
        return None  # another process was quicker
    return None if keyed else made.version()


@click.command()
@name_argument
@click.argument("file", default="-")
@writing
@click.pass_context
def patch(ctx: click.Context, name: str, file: str, **how: Any) -> None:
    """Apply a JSON Patch or merge patch from FILE or stdin.

    A list is a JSON Patch (RFC 6902), an object a merge patch (RFC 7396).

    \b
    echo '{"topic": "tides", "draft": null}' | quire patch wf
    """
    changes = strict(given(file), "standard input" if file == "-" else file)
    with opened(ctx) as store:
        told(store.workflow(name).apply(changes, **how))


@click.command()
@name_argument
@click.argument("path")
@writing
@click.pass_context
def rm(ctx: click.Context, name: str, path: str, **how: Any) -> None:
    """Remove what is at PATH of NAME; "" ends the workflow.

    An ended workflow is not listed any more; its history stays.
    """
    with opened(ctx) as store:
        if path == "":
            _check_head(store, name, how["if_version"])
            told(store.delete(name, author=how["author"], message=how["message"] or "deleted"))
        else:
            told(store.workflow(name).delete(path, **how))


def _check_head(store: Store, name: str, expected: int | None) -> None:
    from quire.errors import HeadMoved

    if expected is not None and (actual := store.workflow(name).version().number) != expected:
        raise HeadMoved(name, expected=expected, actual=actual)
