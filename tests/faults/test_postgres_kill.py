"""PostgreSQL killed in the middle of writes: acknowledged survives, once, and everybody comes back by himself."""

import asyncio
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import asyncpg
import pytest

import quire
from quire.errors import QuireError
from quire.storage import _postgres_line
from quire.testing.servers import Server, ServerFailed, ServerMissing
from quire.testing.servers import fixtures as servers
from quire.testing.servers._process import gone
from quire.testing.servers.fixtures import shared, started
from quire.testing.servers.postgres import PostgresServer

# the harness itself


def test_a_server_is_killed_and_comes_back_on_its_port():
    server = started(PostgresServer())
    try:
        port, first = server.port, server.pid
        assert server.answers()
        server.kill()
        assert not server.running
        with pytest.raises(OSError):
            server.answers()
        server.restart()
        assert (server.port, server.answers()) == (port, True)
        assert server.pid != first
    finally:
        server.stop()
    assert not server.folder.exists()
    server.stop()


def test_a_server_dies_with_who_started_it():
    started(PostgresServer()).stop()  # skips where there is none
    code = """
        import sys
        from quire.testing.servers.postgres import PostgresServer
        server = PostgresServer().start()
        print(server.pid, server.folder, flush=True)
        sys.stdin.read()
    """
    starter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    pid, folder = starter.stdout.readline().decode().split()
    handle = os.pidfd_open(int(pid))
    starter.send_signal(signal.SIGKILL)
    starter.communicate()
    try:
        assert gone(handle, 60)
    finally:
        os.close(handle)
        subprocess.run(["rm", "-rf", folder], check=True)


class Broken(Server):
    name = "broken"

    def command(self):
        return [sys.executable, "-c", "import sys; sys.exit('no such cluster')"]

    def answers(self):
        return False


class Absent(Server):
    name = "absent"

    def build(self):
        raise ServerMissing("there is no such program here")


def test_a_server_that_does_not_come_up_shows_its_log():
    server = Broken()
    with pytest.raises(ServerFailed, match="no such cluster"):
        server.start()
    server.stop()


def test_a_missing_server_skips_with_the_reason_and_fails_where_it_is_required(monkeypatch):
    monkeypatch.delenv(servers.REQUIRE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no such program"):
        started(Absent())
    monkeypatch.setenv(servers.REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match="no such program"):
        started(Absent())


# the server killed under writers, readers and a watcher

WRITERS = 4


class Story:
    """What writers were told: {(workflow, version): mark}, and what went wrong that may go wrong."""

    def __init__(self):
        self.acked = {}
        self.newest = {}
        self.errors = []
        self.wanted = 0
        self.enough = asyncio.Event()

    def ack(self, workflow, version, mark):
        self.acked.setdefault((workflow, version), mark)
        self.newest[workflow] = version
        if len(self.acked) >= self.wanted:
            self.enough.set()

    async def more(self, count):
        """Wait for so many more acknowledgements."""
        self.wanted = len(self.acked) + count
        self.enough.clear()
        await asyncio.wait_for(self.enough.wait(), 60)

    def met(self, error):
        assert error.retryable, repr(error)
        self.errors.append(error)


async def write(store, w, story, stop, honesty):
    wf, count = store.workflow(f"w{w}"), 0
    while not stop.is_set():
        count += 1
        mark = f"{w}-{count}"
        try:
            if honesty == "early":
                story.ack(w, (await wf.version()).number + 1, mark)
            async with wf.edit(author=f"writer {w}") as state:
                state.increment("n")
                state["last"] = mark
            if honesty != "early":
                story.ack(w, (await wf.version()).number, mark)
        except QuireError as error:
            story.met(error)


async def read(store, w, story, stop):
    wf, seen = store.workflow(f"w{w}"), 0
    while not stop.is_set():
        known = story.newest.get(w, 0)
        try:
            found = (await wf.version()).number
        except QuireError as error:
            story.met(error)
            continue
        assert found >= max(seen, known), "a reader went back in time"
        seen = found


async def watch(store, seen):
    async for event in store.watch(after=0):
        seen.append((event.version.workflow_id, event.version.number))


async def attack(server, url, kills, seed, honesty="honest"):
    """Write, kill the server at random moments and start it again; return what was acknowledged and what is lost."""
    chance, stop = random.Random(seed), asyncio.Event()
    story, events = Story(), []
    async with quire.open(url) as store:
        for w in range(WRITERS):
            await store.create(f"w{w}", {"n": 0, "last": None})
        await on_disk(server)
        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(write(store, w, story, stop, honesty)) for w in range(WRITERS)]
            observers = [read(store, 0, story, stop), watch(store, events)] if honesty == "honest" else []
            observers = [tasks.create_task(work) for work in observers]
            for _ in range(kills):
                await story.more(chance.randrange(1, 60))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
            await story.more(20)
            stop.set()
            await asyncio.gather(*writers)
            lost = await losses(url, story.acked, events if observers else None)
            for observer in observers:
                observer.cancel()
    return story, lost


async def on_disk(server):
    """What is there before the attack is not what is attacked."""
    db = await asyncpg.connect(server.url)
    await db.execute("CHECKPOINT")
    await db.close()


async def losses(url, acked, events):
    """Return what was acknowledged and is not there, after checking that what is there is sound and there once."""
    lost, there = [], []
    async with quire.open(url) as store:
        report = await store.verify()
        assert report.ok, report.problems
        for w in range(WRITERS):
            wf = store.workflow(f"w{w}")
            versions = await wf.history(order="oldest")
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            marks = {v.number: next((c.value for c in v.changes if c.path == ("last",)), None) for v in versions}
            written = [m for m in marks.values() if m]
            assert len(set(written)) == len(written), "a write happened twice"
            assert await wf.get("/n") == len(versions) - 1
            lost += [key for key, mark in acked.items() if key[0] == w and marks.get(key[1]) != mark]
            there += [(f"w{w}", v.number) for v in versions]
        feed = [v async for v in all_of(store, len(there))]
    assert sorted(feed) == sorted(there)
    while events is not None and len(set(events)) < len(there):
        await asyncio.sleep(0.01)  # the test's own limit ends this: the watcher hears of the last ones soon
    assert events is None or sorted(events) == sorted(there), "the watcher missed or doubled something"
    return lost


async def all_of(store, count):
    if count:
        async for event in store.watch(after=0):
            yield event.version.workflow_id, event.version.number
            count -= 1
            if count == 0:
                return


CLIENT = str(Path(__file__).parent / "crash_writer.py")


@pytest.mark.parametrize("point", ["commit:before", "commit:after"])
async def test_nothing_acknowledged_is_lost_by_kills_of_a_client(tmp_path, point):
    """A client that dies before its commit has left, or after it was answered, again and again on one store."""
    url, acked = shared(PostgresServer).place(tmp_path), {}
    for number in (1, 2, 7, 20, 60):
        env = {**os.environ, "QUIRE_FAILPOINT": f"{point}:{number}"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, CLIENT, url, str(WRITERS), "honest", stdout=subprocess.PIPE, env=env
        )
        said, _ = await process.communicate()
        assert process.returncode == -signal.SIGKILL
        for line in said.decode().split("\n")[:-1]:
            if line != "ready":
                workflow, version, mark = line.split(" ")
                acked[(int(workflow), int(version))] = mark
    assert len(acked) > 50
    assert not await losses(url, acked, None)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.timeout(600)
async def test_nothing_acknowledged_is_lost_by_ten_kills_of_the_server(tmp_path):
    server = started(PostgresServer())
    try:
        story, lost = await attack(server, server.place(tmp_path), 10, seed=1)
    finally:
        server.stop()
    assert len(story.acked) > 100
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
async def test_nothing_acknowledged_is_lost_by_a_hundred_kills_of_the_server(tmp_path, seed):
    server = started(PostgresServer())
    try:
        _, lost = await attack(server, server.place(tmp_path), 10, seed=100 + seed)
    finally:
        server.stop()
    assert not lost


@pytest.mark.timeout(600)
async def test_the_checker_catches_an_early_acknowledgement(tmp_path):
    server = started(PostgresServer())
    try:
        for seed in range(20):
            _, lost = await attack(server, server.place(f"{tmp_path} {seed}"), 1, seed, honesty="early")
            if lost:
                return
    finally:
        server.stop()
    pytest.fail("20 dishonest runs lost their server and nothing was found missing: the checker does not check")


@pytest.mark.timeout(600)
async def test_the_checker_catches_a_server_that_does_not_wait_for_its_disk(tmp_path, monkeypatch):
    monkeypatch.setitem(_postgres_line._SETTINGS, "synchronous_commit", "off")
    server = started(PostgresServer({"wal_writer_delay": "10s"}))
    try:
        for seed in range(20):
            url = server.place(f"{tmp_path} {seed}")
            _, lost = await attack(server, url, 1, seed, honesty="forgetful")
            if lost:
                async with quire.open(url) as store:
                    assert store.capabilities.durability == "process"
                    assert "synchronous_commit is off" in store.capabilities.note
                return
    finally:
        server.stop()
    pytest.fail("20 servers died with what they had not written, and nothing was found missing")
