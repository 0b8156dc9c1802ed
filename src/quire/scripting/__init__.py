"""Lua scripts over the state: written by people or models that are not trusted with more than that state.

1. A script runs in a process of its own, which holds nothing: no store, no environment, no file but its pipes.
2. It changes drafts that live here. They are committed when it has ended well, all or nothing.
3. Names load on first use: the script's process imports this package too and must start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.scripting.limits import Limits as Limits
    from quire.scripting.lua import ScriptResult as ScriptResult
    from quire.scripting.lua import run_script as run_script
    from quire.scripting.steps import lua_step as lua_step

_HOME = {
    "Limits": "quire.scripting.limits",
    "ScriptResult": "quire.scripting.lua",
    "lua_step": "quire.scripting.steps",
    "run_script": "quire.scripting.lua",
}

__all__ = ["Limits", "ScriptResult", "lua_step", "run_script"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quire.scripting' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
