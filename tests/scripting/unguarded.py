"""The script's process without its guards, for negative controls: lupa as it comes, the whole of Lua.

With `confined` as its argument the kernel's limits stay: then what a script reaches is a process that holds nothing.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

from quire.scripting import child

lua = import_module("lupa.lua54")


def runtime(**options):
    return lua.LuaRuntime(encoding=None, max_memory=options["max_memory"])


child.import_module = lambda name: SimpleNamespace(LuaRuntime=runtime, LuaError=lua.LuaError)
if "confined" not in sys.argv:
    child.confine = lambda *_: None
child.main(str(Path(__file__).parent / "unguarded.lua"))
