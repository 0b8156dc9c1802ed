"""Processes that write the same workflows at once: no update is lost, nobody starves."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

import quire
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

CODE = """
import asyncio, sys, quire
async def main(path, who, count):
    async with quire.open(path) as store:
        wf = store.workflow("w")
        for i in range(count):
            async with wf.edit(author=who) as state:
                state.increment("n")
                state["log"].append(f"{who}-{i}")
                state["by"][who] = i
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_eight_processes_lose_no_update(tmp_path):
    path, count, who = str(tmp_path / "s.db"), 40, [f"p{i}" for i in range(8)]
    with quire.sync.open(path) as store:
        store.create("w", {"n": 0, "log": [], "by": {}})
    processes = [subprocess.Popen([sys.executable, "-c", CODE, path, name, str(count)]) for name in who]
    assert [p.wait(timeout=100) for p in processes] == [0] * 8
    with quire.sync.open(path) as store:
        wf = store.workflow("w")
        state = wf.state()
        assert state["n"] == 8 * count
        assert sorted(state["log"]) == sorted(f"{name}-{i}" for name in who for i in range(count))
        for name in who:
            assert [e for e in state["log"] if e.startswith(f"{name}-")] == [f"{name}-{i}" for i in range(count)]
        versions = wf.history(order="oldest")
        assert [v.number for v in versions] == list(range(1, 8 * count + 2))
        # replayed from the log, every version holds exactly one more than the one before
        for number in (2, 100, 8 * count):
            assert wf.get("/n", version=number) == number - 1
        assert store.verify().ok


# turns

BUSY = """
import asyncio, os, sys, quire
async def main(url):
    async with quire.open(url, settings=quire.config.Settings(retry_seconds=15)) as store:
        async def count():
            while True:
                await store.workflow("a").inc("/n")
                os.write(1, b".")
        async def edit(name, place):  # made on a state that the other has moved on from
            while True:
                async with store.workflow(name).edit() as state:
                    state.increment("n")
                    state["last"] = place
                os.write(1, b".")
        await asyncio.gather(count(), edit("b", "here"), edit("c", os.getpid()))
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["sqlite", "files", "postgres", "redis", "nats"])
def test_who_comes_second_to_busy_workflows_gets_its_turns(tmp_path, kind):
    """Each is heard of again and again while the other writes the same as fast as it can; nobody gives up."""
    servers = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
    local = {"sqlite": str(tmp_path / "s.db"), "files": f"file:///{tmp_path}/folder"}
    with ExitStack() as ends:
        url = local.get(kind) or url_of(ends, servers[kind]())
        with quire.sync.open(url) as store:
            for name in ("a", "b", "c"):
                store.create(name, {"n": 0})
        first = begun(ends, url)
        acked = said(first, 60)
        second = begun(ends, url)
        acked += said(second, 60)
        acked += waiting(first) + said(first, 60)  # and it goes on, beside the other
        writers = [first, second]
        for writer in writers:
            writer.kill()
            acked += len(writer.stdout.read())
        with quire.sync.open(url) as store:
            assert sum(store.workflow(name).get("/n") for name in ("a", "b", "c")) >= acked
            assert store.verify().ok


def begun(ends, url):
    command = [sys.executable, "-c", BUSY, url]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    ends.enter_context(writer)
    ends.callback(writer.kill)
    return writer


def said(writer, count):
    """Wait for so many acknowledgements."""
    got = 0
    while got < count:
        more = len(writer.stdout.read(count - got))
        assert more, writer.stderr.read().decode()
        got += more
    return got


def waiting(writer):
    """Take what was acknowledged up to now."""
    got = 0
    os.set_blocking(writer.stdout.fileno(), False)
    while more := writer.stdout.read(65536):
        got += len(more)
    os.set_blocking(writer.stdout.fileno(), True)
    return got


def url_of(ends, server):
    started(server)
    ends.callback(server.stop)
    return server.url
