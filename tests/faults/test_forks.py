"""The child of a fork is told at once that the store is its parent's, harms nothing there, and may open its own."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

import quire
from quire import forks
from quire.errors import Closed

URLS = ["memory:", "sqlite:///{}/s.db", "file:///{}/f", "rocksdb:///{}/r"]
LIMIT_S = 20


def child_of(work):
    """Run `work` in a fork; return its exit code, None where it had to be killed."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def told(*calls):
    """Return 0 if every call raises Closed that names the fork."""
    for number, call in enumerate(calls, 1):
        try:
            call()
        except Closed as error:
            if "fork" in str(error):
                continue
        return number
    return 0


@pytest.mark.parametrize("url", URLS)
def test_every_use_in_the_child_raises_at_once(tmp_path, url):
    with quire.sync.open(url.format(tmp_path)) as store:
        wf = store.create("w", {"n": 0})
        calls = [
            lambda: wf.set("/n", 1),
            lambda: wf.get("/n"),
            lambda: wf.history(),
            lambda: store.create("other", {}),
            lambda: store.workflows(),
            lambda: store.put_blob(b"x"),
            lambda: store.stats(),
            lambda: store.health(),
            lambda: next(wf.watch()),
            lambda: wf.edit().__enter__(),
        ]

        def child():
            found = told(*calls)
            store.close()
            gc.collect()
            return found

        assert child_of(child) == 0
        wf.set("/n", 2)
        assert wf.get("/n") == 2
    if url != "memory:":
        with quire.sync.open(url.format(tmp_path)) as store:
            assert store.workflow("w").get("/n") == 2
            assert store.verify().ok


async def waited(value):
    return value


@pytest.mark.parametrize("url", URLS)
async def test_so_does_the_asynchronous_interface_also_beside_work_that_is_under_way(tmp_path, url):
    async with quire.open(url.format(tmp_path)) as store:
        wf = await store.create("w", {"n": 0})
        under_way = [asyncio.ensure_future(wf.inc("/n")) for _ in range(20)]
        await asyncio.sleep(0)

        def child():
            def run(call):
                return lambda: asyncio.run(asyncio.wait_for(call(), LIMIT_S / 2))

            calls = (
                lambda: waited(store.before_change(lambda proposed: proposed)),
                lambda: waited(store.on_change(print)),
                lambda: wf.set("/n", 1),
                lambda: wf.get("/n"),
                lambda: store.create("other", {}),
                lambda: store.workflows(),
                lambda: store.blob("0" * 64),
                lambda: store.stats(),
            )
            found = told(*map(run, calls))
            asyncio.run(store.close())
            return found

        assert child_of(child) == 0
        await asyncio.gather(*under_way)
        assert await wf.get("/n") == 20


def test_without_the_check_a_call_in_the_child_waits_for_ever(tmp_path, monkeypatch):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        wf = store.create("w", {"n": 0})
        monkeypatch.setitem(globals(), "LIMIT_S", 1)

        def child():
            store._loop._pid = os.getpid()  # the control
            return told(lambda: wf.set("/n", 1))

        assert child_of(child) is None


EXITS = """
import gc, os, sys, quire
store = quire.sync.open(sys.argv[1])
wf = store.create("w", {"n": 0})
pid = os.fork()
if pid == 0:
    del store, wf
    gc.collect()
    sys.exit(0)  # with all that Python does at its end
assert os.waitpid(pid, 0)[1] == 0
for n in range(5):
    wf.set("/n", n + 1)
store.close()
"""


@pytest.mark.parametrize("url", URLS[1:])
def test_a_child_that_collects_and_exits_leaves_the_store_alone(tmp_path, url):
    done = subprocess.run(
        [sys.executable, "-c", EXITS, url.format(tmp_path)], timeout=60, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    with quire.sync.open(url.format(tmp_path)) as store:
        assert store.workflow("w").get("/n") == 5
        assert store.verify().ok


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "file:///{}/f"])
def test_a_child_may_open_the_store_anew_while_the_parent_writes(tmp_path, url):
    url = url.format(tmp_path)
    with quire.sync.open(url) as store:
        wf = store.create("w", {"ours": 0, "theirs": 0})

        def child():
            with quire.sync.open(url) as own:
                for _ in range(20):
                    own.workflow("w").inc("/theirs")
            return 0

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        for _ in range(20):
            wf.inc("/ours")
        process.join(LIMIT_S)
        assert process.exitcode == 0
        assert wf.state() == {"ours": 20, "theirs": 20}
        assert store.verify().ok


def test_what_is_kept_is_not_collected_in_the_child():
    class Owner:
        def __del__(self):
            os._exit(7)

    owner = Owner()
    forks.keep(owner)

    def child():
        nonlocal owner
        del owner
        gc.collect()
        return 0

    def control():
        lost = Owner()
        del lost
        return 0

    assert child_of(child) == 0
    assert child_of(control) == 7
    Owner.__del__ = lambda _: None
