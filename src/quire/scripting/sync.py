"""Scripts for code without an event loop: the same words without `await`, on a store of `quire.sync`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.api import sync
from quire.scopes import StateBuilder
from quire.scripting import lua as _lua
from quire.scripting.limits import Limits
from quire.scripting.lua import LIMITS, OPEN, ScriptResult


def run_script(
    store: sync.Store,
    source: str,
    *,
    name: str = "script",
    workflow: str | None = None,
    step: str | None = None,
    input: Any = None,  # noqa: A002 - as in the twin
    author: str = "script",
    message: str | None = None,
    scoped: StateBuilder = OPEN,
    limits: Limits = LIMITS,
    on_print: Callable[[str], None] | None = None,
) -> ScriptResult:
    return store._loop.run(  # pyright: ignore[reportPrivateUsage] - this is a part of the facade
        _lua.run_script(
            store._store,  # pyright: ignore[reportPrivateUsage]
            source,
            name=name,
            workflow=workflow,
            step=step,
            input=input,
            author=author,
            message=message,
            scoped=scoped,
            limits=limits,
            on_print=on_print,
        )
    )


run_script.__doc__ = _lua.run_script.__doc__
