"""Hostile scripts get nowhere: a typed error or a harmless result, the owner lives, nothing is stored.

Controls: without the guard most of the same scripts do get out; and a process that an attacker owns entirely still
holds nothing, and cannot say anything that harms the other side.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import quire
from quire import WorkflowStateManager
from quire.errors import LimitExceeded, ScriptError
from quire.scripting import Limits, run_script
from quire.scripting import process as processes

from . import corpus, hostile

OWN = {"topic": "tides", "_run": {"epoch": 1}}
HERE = Path(__file__).parent
LIMITS = Limits(wall_ms=3000, cpu_s=1, memory_bytes=16_000_000, output_bytes=10_000, calls=500, traffic_bytes=8_000_000)


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        await opened.create("w", OWN)
        await opened.create("secret", {"hidden": 1})
        manager = WorkflowStateManager(opened)
        await manager.workflow_state("w").step("other").set("secret", 1)
        await manager.workflow_state("secret").set("hidden", 1)
        yield opened


@pytest.fixture
def pids(monkeypatch):
    """The processes that were started."""
    found = []

    class Noting(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            found.append(self.pid)

    monkeypatch.setattr(processes.subprocess, "Popen", Noting)
    return found


async def attacked(store, source):
    """Run a hostile script; return what it made of it: a value, an error or the name of a limit."""
    try:
        done = await run_script(store, source, name="evil", workflow="w", step="mine", limits=LIMITS)
    except LimitExceeded as error:
        assert error.found >= error.allowed == getattr(LIMITS, error.limit)
        return error.limit
    except ScriptError as error:
        assert error.script == "evil"
        return error
    return done.value


async def untouched(store, pids):
    assert len(pids) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert await store.workflow("w").state() == OWN
    assert await store.workflow("secret").state() == {"hidden": 1}
    manager = WorkflowStateManager(store)
    assert [await manager.workflow_state(w).items() for w in ("w", "secret")] == [{}, {"hidden": 1}]
    assert [await manager.workflow_state("w").step(s).items() for s in ("other", "mine")] == [{"secret": 1}, {}]
    assert await manager.global_().items() == {}
    assert (await run_script(store, "return 1")).value == 1


@pytest.mark.parametrize("name", corpus.REACH)
async def test_nothing_is_reached(store, pids, name):
    found = await attacked(store, corpus.REACH[name])
    assert found in (None, False) or (isinstance(found, ScriptError) and name != "userdata_anywhere"), found
    if isinstance(found, ScriptError):
        assert found.line is not None, found  # it was the script that failed, not its process
    await untouched(store, pids)


@pytest.mark.parametrize("name", corpus.BURN)
async def test_nothing_is_used_beyond_the_limits(store, pids, name):
    found = await attacked(store, corpus.BURN[name])
    harmless = isinstance(found, ScriptError) or found in (False, None, *Limits.__struct_fields__)
    assert harmless, found
    await untouched(store, pids)


def test_the_corpus_is_as_large_as_we_say():
    assert len(corpus.REACH) >= 60 and len(corpus.BURN) >= 50


def unguarded(*more):
    return lambda: [sys.executable, "-S", "-s", "-B", str(HERE / "unguarded.py"), *more]


async def test_control_without_the_guard_the_same_scripts_get_out(store, monkeypatch):
    monkeypatch.setattr(processes, "command", unguarded())
    reached = []
    for name, source in corpus.REACH.items():
        try:
            done = await run_script(store, source, name="evil", workflow="w", step="mine", limits=LIMITS)
        except (ScriptError, LimitExceeded) as error:
            if name == "os_exit" and "code 7" in str(error):
                reached.append(name)
            continue
        if done.value == "REACHED":
            reached.append(name)
    assert set(reached) >= {
        "python_eval", "python_builtins", "os_getenv", "os_execute", "os_exit", "os_remove", "io_open",
        "io_write_to_the_pipe", "io_lines", "debug_registry", "debug_upvalues", "package_loadlib", "package_loaded",
        "require_os", "load_text", "load_bytecode", "string_dump", "collectgarbage", "the_real_globals", "finalizer",
        "userdata_anywhere", "metatable_of_strings", "env_upwards", "thread_environment",
    }  # fmt: skip


REFUSED = {
    "a_file_to_read": "open('/etc/passwd')",
    "a_file_to_write": "open('/tmp/quire-script-was-here', 'w')",
    "a_folder": "__import__('os').listdir('/')",
    "a_socket": "__import__('_socket').socket()",
    "a_pipe": "__import__('os').pipe()",
    "a_process": "__import__('os').fork() or __import__('os')._exit(0)",
    "a_signal": "__import__('os').kill(1, 0)",
    "much_memory": "len(bytearray(10**9))",  # a MemoryError says nothing
    "a_higher_limit": "__import__('resource').setrlimit(7, (99, 99)) or open('/etc/passwd')",
}


REFUSALS = re.compile("Too many open files|not allowed to raise|Resource temporarily unavailable|not permitted|^$")


@pytest.mark.parametrize("what", REFUSED)
async def test_whoever_reaches_python_still_finds_no_file_and_no_network(store, monkeypatch, what):
    monkeypatch.setattr(processes, "command", unguarded("confined"))
    source = f'local ok, e = pcall(python.eval, "{REFUSED[what]}") return ok and "REACHED" or tostring(e)'
    said = (await run_script(store, source)).value
    assert REFUSALS.search(said), said
    monkeypatch.setattr(processes, "command", unguarded())
    if what in ("a_file_to_read", "a_folder", "a_pipe", "much_memory"):
        assert (await run_script(store, source)).value == "REACHED"  # the control: it is the kernel that refuses


async def test_the_process_has_no_environment_and_only_its_pipes(store, monkeypatch):
    monkeypatch.setenv("QUIRE_SECRET", "sesame")
    monkeypatch.setattr(processes, "command", unguarded("confined"))
    with open("/etc/passwd") as held:
        os.set_inheritable(held.fileno(), True)
        source = """
        local names = python.eval("' '.join(sorted(__import__('os').environ)).encode()")
        local open = {}
        local fstat = python.eval("lambda n: __import__('os').fstat(n) and True")
        for n = 0, 200 do if pcall(fstat, n) then open[#open + 1] = n end end
        return { names, open, python.eval("__import__('os').getcwd().encode()") }
        """
        names, descriptors, folder = (await run_script(store, source)).value
    assert set(names.split()) <= {"PYTHONPATH", "LC_CTYPE"}
    assert descriptors == [0, 1, 2] and folder == "/"


@pytest.mark.parametrize("deed", hostile.DEEDS)
async def test_a_process_in_an_attackers_hands_harms_nobody(store, pids, monkeypatch, deed):
    regular = processes.command()
    monkeypatch.setattr(
        processes, "command", lambda: [sys.executable, "-S", "-s", "-B", str(HERE / "hostile.py"), deed]
    )
    found = await attacked(store, "return 1")
    assert isinstance(found, ScriptError) or found in Limits.__struct_fields__, found
    monkeypatch.setattr(processes, "command", lambda: regular)
    await untouched(store, pids[:1])
