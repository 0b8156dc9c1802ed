"""The process a script runs in: `python -m quire.scripting.child`, started by `process.py` and by nobody else.

1. It imports nothing of Quire but this file, holds no store and gets no environment: there is nothing here to steal.
2. Once the limits are set no file, socket or pipe can be opened any more: the kernel allows no new descriptor. Nor can
   a process be started; one that was started by root is root no more.
3. It only carries lines. What they say is judged by the other side, which trusts none of it.
4. It exits with `os._exit`, so that closing Lua runs nothing.

The first line on stdin is the order, written by `talk.py`: source, name and context of the script, and limits; then
come the answers, one for each `call`. What goes the other way is told there.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).parent
NOBODY = 65534
"""User and group of nobody, by convention of Linux: what a process started by root becomes."""


def confine(memory_bytes: int, cpu_s: int) -> None:
    """Give up what the process will not need, for good: a limit that was lowered cannot be raised again.

    memory_bytes: by how much the process may still grow; kept where the kernel says how large it is (Linux).
    """
    _lower(resource.RLIMIT_CPU, cpu_s, cpu_s + 1)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)
    _lower(resource.RLIMIT_NPROC, 0)
    _lower(resource.RLIMIT_NOFILE, 0)
    if os.geteuid() == 0:  # root could raise the limits again, fork in spite of them, and signal anybody
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _lower(what: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, unless one that is lower already holds."""
    allowed = resource.getrlimit(what)[1]
    wanted = [soft, soft if hard is None else hard]
    if allowed != resource.RLIM_INFINITY:
        wanted = [min(w, allowed) for w in wanted]
    resource.setrlimit(what, (wanted[0], wanted[1]))


def denied(*_: Any) -> NoReturn:
    """Refuse every attribute of every Python object."""
    raise AttributeError("a script reaches no Python object")


def tell(line: bytes) -> None:
    """Write one line to the other side, whole."""
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(1, rest) :]


def ask(line: bytes) -> bytes:
    """Write one line and return the answer. Leaves for good when the other side is gone."""
    tell(line)
    answer = sys.stdin.buffer.readline()
    if not answer:
        os._exit(1)
    return answer


def main(guard: str = "guard.lua") -> None:
    """Read the order, confine the process, run the script, leave."""
    order = json.loads(sys.stdin.buffer.readline())
    lua = import_module("lupa.lua54")
    runtime = lua.LuaRuntime(
        encoding=None,
        register_eval=False,
        register_builtins=False,
        attribute_handlers=(denied, denied),
        max_memory=order["memory_bytes"],
    )
    bridge, json_lua, guarding = ((HERE / file).read_bytes() for file in ("bridge.lua", "json.lua", guard))
    source, name, context = (order[part].encode() for part in ("source", "name", "context"))
    confine(order["memory_bytes"] + order["slack_bytes"], order["cpu_s"])
    try:
        runtime.execute(
            bridge,
            ask,
            tell,
            json_lua,
            guarding,
            source,
            name,
            context,
            order["message_bytes"],
            order["depth_max"],
            name=b"=quire",
            mode="t",
        )
    except MemoryError:
        tell(b'["failed","memory","not enough memory",null]\n')
    except lua.LuaError as error:
        tell(json.dumps(["failed", "error", str(error)[:2000], None]).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
