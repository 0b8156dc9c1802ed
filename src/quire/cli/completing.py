"""What the shell offers on TAB: workflow ids and, after `@`, checkpoint names.

A shell asks in the middle of a line that the user is typing: no answer is better than an error, or than waiting.
"""

from __future__ import annotations

import os

import click

_MOST = 200
"""Offered at once; a shell asks before it lists more than that anyway."""


def names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return ids that begin as the word does, or `id@checkpoint` for a word with an `@`."""
    root = ctx.find_root()
    url = root.params.get("url") or os.environ.get("QUIRE_STORE") or "quire.db"
    namespace = root.params.get("namespace") or "default"
    from quire.api import sync
    from quire.cli.base import file_of
    from quire.errors import QuireError

    file = file_of(url)
    if file is None or not os.path.isfile(file):  # noqa: PTH113 - pathlib raises where this answers no
        return []
    try:
        with sync.open(url, namespace=namespace) as store:
            name, at, _ = incomplete.partition("@")
            if not at:
                return store.workflows(incomplete, limit=_MOST)
            marks = store.workflow(name).checkpoints()
            return [f"{name}@{m.name}" for m in marks if f"{name}@{m.name}".startswith(incomplete)][:_MOST]
    except QuireError:
        return []
