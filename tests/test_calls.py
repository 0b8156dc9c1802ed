"""Calls of user functions: their exceptions, cancellation, threads and the end of these; nothing else calls them."""

import ast
import asyncio
import contextvars
import gc
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import quire
import quire.sync
from quire import calls
from quire import threads as pool
from quire.calls import awaited, call, call_async, in_words, message_of, name_of
from quire.config import Settings
from quire.errors import Closed, FunctionFailed, Invalid
from quire.threads import Threads

pytestmark = pytest.mark.timeout(60)
ROOT = Path(__file__).parent.parent / "src" / "quire"


def raising(error):
    def fn(*_):
        raise error

    return fn


@pytest.fixture
async def threads():
    made = Threads(4)
    yield made
    made.stop()


# in words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no tide"), "ValueError: no tide"),
        (KeyError("x"), "KeyError: 'x'"),
        (StopIteration(), "StopIteration"),
        (ValueError("one\n   two\r\nthree\u2028four"), "ValueError: one two three four"),
        (ValueError("red \x1b[31m \x00 \ud800"), "ValueError: red \\x1b[31m \\x00 \\ud800"),
        (ValueError("été – 潮"), "ValueError: été – 潮"),
    ],
)
def test_words_are_one_line_that_can_be_stored_and_shown(error, words):
    assert in_words(error) == words
    words.encode()


def test_words_are_of_bounded_length_and_say_so_where_they_cannot_be_had():
    long = in_words(ValueError("x" * 1_000_000))
    assert len(long) < 1100 and long.endswith("…")
    bare = type("Bare", (BaseException,), {"__str__": lambda self: raising(GeneratorExit())()})
    assert "cannot be shown" in in_words(bare()) and "GeneratorExit" in in_words(bare())
    assert "TypeError" in in_words(type("Odd", (Exception,), {"__str__": lambda self: 7})())
    assert type(message_of(type("Text", (str,), {})("x"))) is str


def test_words_are_of_what_the_function_raised_not_of_what_stands_in_its_place():
    with pytest.raises(FunctionFailed, match="next raised StopIteration") as caught:
        call(next, iter([]))
    assert in_words(caught.value) == "StopIteration" and calls.raised(caught.value) is caught.value.__cause__
    assert caught.value.code == "function_failed" and isinstance(caught.value, RuntimeError)


class Nameless:
    def __getattr__(self, name):
        raise ValueError


@pytest.mark.parametrize("odd", [object, 7, Nameless], ids=["class", "number", "nameless"])
def test_anything_has_a_name(odd):
    assert isinstance(name_of(odd() if isinstance(odd, type) else odd), str)


# cancelling


async def test_a_cancellation_that_was_asked_for_passes_and_one_that_was_not_does_not():
    with pytest.raises(FunctionFailed, match="CancelledError though nobody cancelled it"):
        await call_async(raising(asyncio.CancelledError()))

    async def of_another_task():
        other = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    with pytest.raises(FunctionFailed):
        await call_async(of_another_task)
    task = asyncio.ensure_future(call_async(asyncio.sleep, 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_around_a_call_is_a_timeout_and_one_within_it_stays_its_own():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await call_async(asyncio.sleep, 60)

    async def within():
        async with asyncio.timeout(0.001):
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await call_async(within)
    assert asyncio.current_task().cancelling() == 0


async def test_an_earlier_cancellation_that_was_caught_does_not_make_a_later_one_real():
    async def main():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
        await call_async(raising(asyncio.CancelledError()))

    task = asyncio.ensure_future(main())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(FunctionFailed):
        await task


def test_a_coroutine_that_is_closed_is_closed_without_a_word(recwarn):
    loop = asyncio.new_event_loop()
    seen = []

    async def forever():
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            seen.append(type(error))
            raise

    outer = call_async(forever)
    task = loop.create_task(outer)
    loop.run_until_complete(asyncio.sleep(0))
    outer.close()
    assert seen == [GeneratorExit]
    task._log_destroy_pending = False
    loop.close()
    del task, outer
    gc.collect()


# threads


async def test_a_function_runs_in_a_daemon_thread_with_the_callers_context(threads):
    seen = contextvars.ContextVar("seen", default=0)
    seen.set(7)

    def fn():
        return seen.get(), threading.current_thread().daemon, threading.current_thread().name

    value, daemon, name = await threads.call(fn)
    assert (value, daemon) == (7, True) and name.startswith("quire-")
    assert await threads.call(lambda: asyncio.sleep(0, "waited for")) == "waited for"


async def test_so_many_run_at_once_and_no_more(threads):
    running, most, lock = [0], [0], threading.Lock()

    def fn():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    await asyncio.gather(*(threads.call(fn) for _ in range(40)))
    assert most[0] == 4


async def test_calls_that_call_in_turn_do_not_wait_for_each_other():
    threads, loop = Threads(1), asyncio.get_running_loop()

    def nested(depth):
        if not depth:
            return threading.current_thread().name
        return asyncio.run_coroutine_threadsafe(threads.call(nested, depth - 1), loop).result(20)

    names = await asyncio.gather(*(threads.call(nested, 3) for _ in range(5)))
    assert len(names) == 5
    await threads.close()


async def test_a_call_whose_caller_left_before_it_began_never_begins():
    threads, go_on, ran = Threads(1), threading.Event(), []
    holding = asyncio.ensure_future(threads.call(go_on.wait, 30))
    await asyncio.sleep(0)
    left = asyncio.ensure_future(threads.call(ran.append, 1))
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    go_on.set()
    await holding
    await threads.call(ran.append, 2)
    assert ran == [2]
    await threads.close()


async def test_idle_threads_end_and_new_ones_come(monkeypatch):
    threads = Threads(3, "idle", idle_s=0.01)
    count = lambda: sum(t.name.startswith("idle-") for t in threading.enumerate())
    for _ in range(3):
        await asyncio.gather(*(threads.call(time.sleep, 0.002) for _ in range(9)))
        for _ in range(1000):
            if not count():
                break
            await asyncio.sleep(0.005)
        assert count() == 0
    await threads.close()


async def test_many_calls_from_many_tasks_all_come_back():
    threads = Threads(3, idle_s=0.0001)  # threads end and begin all the time
    assert sorted(await asyncio.gather(*(threads.call(int, str(n)) for n in range(3000)))) == list(range(3000))
    await threads.close()


async def test_at_close_nothing_begins_and_what_hangs_is_named_and_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(pool, "_CLOSE_S", 0.05)
    threads, go_on = Threads(1), threading.Event()
    hangs = asyncio.ensure_future(threads.call(go_on.wait, 30))
    queued = asyncio.ensure_future(threads.call(print, "never"))
    await asyncio.sleep(0.01)
    with caplog.at_level(logging.WARNING, "quire.threads"):
        await threads.close()
    assert "left alone" in caplog.text and "Event.wait" in caplog.text
    with pytest.raises(Closed):
        await queued
    with pytest.raises(Closed):
        await threads.call(print)
    go_on.set()
    assert await hangs


def test_a_handler_of_sync_may_close_its_own_store_and_is_not_waited_for():
    store = quire.sync.open("memory:")
    w, closed = store.create("w", {"n": 0}), []

    @store.on_change
    def heard(event):
        begun = time.monotonic()
        store.close()
        closed.append(time.monotonic() - begun)

    w.inc("/n")
    for _ in range(1000):
        if closed:
            break
        time.sleep(0.005)
    assert closed and closed[0] < 4


def test_a_handler_of_sync_that_is_in_the_middle_of_a_write_may_finish_it_when_the_store_is_closed():
    begun, late = threading.Event(), []
    with quire.sync.open("memory:") as store:
        w = store.create("w", {"n": 0})

        @store.on_change(path="/n")
        def heard(event):
            begun.set()
            time.sleep(0.1)
            late.append(w.set("/late", 1).number)

        w.inc("/n")
        assert begun.wait(10)
    assert late == [3]


HANGS = """
import quire, threading, time
from quire import threads
threads._CLOSE_S = 0.1
begun = threading.Event()
with quire.sync.open("memory:") as store:
    w = store.create("w", {"n": 0})
    @store.on_change
    def heard(event):
        begun.set()
        threading.Event().wait()
    w.inc("/n")
    begun.wait(10)
print("end")
"""


def test_a_function_that_hangs_keeps_neither_the_store_nor_the_program_from_ending():
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=40)
    assert (done.returncode, done.stdout) == (0, "end\n"), done


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None, "8"])
def test_a_number_of_threads_that_means_nothing_is_refused(wrong):
    with pytest.raises(Invalid, match="threads_max"):
        Settings(threads_max=wrong)


# nothing else calls

OWN_JOBS = {
    "api/imports.py": {"_labels", "next"},
    "api/manager.py": {"record.canonical"},
    "api/reading.py": {"copied", "_difference"},
    "api/views.py": {"partial(history.blame, made, path, kinds=kinds)"},
    "api/whole_states.py": {"diff", "settle", "lambda: reliant(_changes(state, whole))"},
    "api/workflow.py": {"_guarded"},
    "api/writes.py": {"call"},
    "api/tables.py": {
        "os.path.lexists",
        "_Table",
        "table.add",
        "table.close",
        "_finished",
        "partial(part.unlink, missing_ok=True)",
    },
    "backends/documents.py": {"partial(places.made, path, create_dirs=create)"},
    "engine/actor.py": {"weigh"},
    "engine/backing/extending.py": {"segment.decode"},
    "engine/committer.py": {"self._seal"},
    "engine/backing/shelf.py": {"segment.decode", "books.read_inventory"},
    "engine/backing/taking.py": {"write_inventory", "encode"},
    "engine/engine.py": {"keyframes.make"},
    "engine/moving/loading.py": {"_fitting"},
    "engine/lineage.py": {"_all_named"},
    "engine/redaction.py": {"keyframes.make"},
    "engine/verify.py": {"_is_of"},
    "events/fold.py": {"keyframes.make"},
    "events/keyframes.py": {"keyframes.state_of"},
    "scripting/process.py": {"self._reaped"},
    "storage/files.py": {"self._stop"},
    "storage/objects/bucket.py": {"partial(work, *args, **named)"},
    "storage/objects/folder.py": {"work", "self._worked"},
    "storage/open.py": {"key_of"},
    "storage/redis.py": {"rows.plan"},
    "storage/rocksdb.py": {"places.claim", "places.release"},
    "storage/sqlite.py": {"files.claim", "presences.await_log", "self._copy", "self._stop"},
    "storage/wrap/_shelf.py": {"segment.encode", "segment.decode"},
    "threads.py": {"work"},
}
"""What runs in the loop's own threads: small jobs of Quire's, none of which is or calls a function of a user."""
OWN_THREADS = {
    ("threads.py", "threading.Thread"),
    ("api/sync.py", "threading.Thread"),
    ("storage/_jobs.py", "threading.Thread"),
    ("storage/_files_disk.py", "ThreadPoolExecutor"),
}
OWN_LOOKS = {
    ("calls.py", "isawaitable"),
    ("api/workflow.py", "isawaitable"),  # to refuse it
}
USERS = {
    "agent",
    "callback",
    "fn",
    "goes",
    "handler",
    "migration",
    "model",
    "on_print",
    "policy",
    "predicate",
    "sink",
    "when",
}
"""What the rooms call the functions that they are given: they hand them to `quire.calls`, with these exceptions."""
WITHIN = {
    ("calls.py", "fn"),
    ("api/hooks.py", "self._fn"),  # a hook is a function again, which users and `quire.calls` call
    ("scripting/talk.py", "self._on_print"),  # wrapped when it is given
    ("core/layout.py", "policy"),  # these make one policy of another, which core/resolve.py has called
    ("core/layout.py", "self.policy"),
    ("core/threeway.py", "policy"),
}


def strays(source, where):
    """Return the calls in a file by which a function of a user could be called past `quire.calls`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        job = 0 if last in ("to_thread", "aside", "apart") else 1 if called == "beside" else -1
        if job >= 0 and (len(node.args) <= job or ast.unparse(node.args[job]) not in OWN_JOBS.get(where, ())):
            found.append(f"{where}:{node.lineno} {ast.unparse(node)}")
        if last in ("run_in_executor", "set_default_executor"):
            found.append(f"{where}:{node.lineno} {called}")
        if last in ("Thread", "Timer", "ThreadPoolExecutor") and (where, called) not in OWN_THREADS:
            found.append(f"{where}:{node.lineno} {called}")
        if last == "isawaitable" and (where, last) not in OWN_LOOKS:
            found.append(f"{where}:{node.lineno} {called}")
        if last.removeprefix("_") in USERS and (where, called) not in WITHIN:
            found.append(f"{where}:{node.lineno} {ast.unparse(node)}")
        if last == "to_thread" or (last == "partial" and any(ast.unparse(a).endswith("to_thread") for a in node.args)):
            found.append(f"{where}:{node.lineno} {ast.unparse(node)}")
    return found


def test_functions_of_users_are_called_by_one_module_only():
    files = [f for f in ROOT.rglob("*.py") if f.relative_to(ROOT).parts[0] != "testing"]
    assert [s for f in files for s in strays(f.read_text(), str(f.relative_to(ROOT)))] == []


@pytest.mark.parametrize(
    "bad",
    [
        "await asyncio.to_thread(fn, event)",
        "partial(asyncio.to_thread, callback)",
        "loop.run_in_executor(thread, callback, event)",
        "ThreadPoolExecutor(1)",
        "threading.Thread(target=fn)",
        "inspect.isawaitable(answer)",
        "self._when(event)",
        "callback(version, state)",
    ],
)
def test_negative_control_the_check_finds_the_old_ways(bad):
    assert strays(f"async def f():\n    {bad}", "api/reactions.py")


async def test_awaited_returns_what_cannot_be_awaited_as_it_is():
    assert await awaited(7) == 7
