"""PostgreSQL killed in the middle of writes: acknowledged survives, once, and everybody comes back by himself."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import asyncpg
import pytest

import quire
from quire.storage import _postgres_line
from quire.testing.outage import attack, killed, losses
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


class Reluctant(Server):
    name = "reluctant"

    def command(self):
        code = """
            import pathlib, signal
            def refuse(*_):
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                pathlib.Path("refused").touch()
            signal.signal(signal.SIGTERM, refuse)
            pathlib.Path("up").touch()
            while True:
                signal.pause()
        """
        return [sys.executable, "-c", textwrap.dedent(code)]

    def answers(self):
        return (self.folder / "up").exists()


def test_a_server_that_refuses_to_end_is_told_again():
    server = Reluctant().start()
    try:
        server.restart()
        assert (server.folder / "refused").exists()
    finally:
        server.kill()
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
CLIENT = str(Path(__file__).parent / "crash_writer.py")


def strike(server, url, times, seed, **how):
    def on_disk(ledger):
        """What is there before the attack is not what is attacked."""

        async def checkpoint():
            db = await asyncpg.connect(server.url)
            await db.execute("CHECKPOINT")
            await db.close()

        asyncio.run(checkpoint())

    return attack(url, killed(server), times=times, seed=seed, writers=WRITERS, begun=on_disk, **how)


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
    assert not await asyncio.to_thread(losses, url, acked, WRITERS)


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.ERROR)


@pytest.mark.timeout(600)
def test_nothing_acknowledged_is_lost_by_ten_kills_of_the_server(tmp_path):
    server = started(PostgresServer())
    try:
        ledger, lost = strike(server, server.place(tmp_path), 10, seed=1)
    finally:
        server.stop()
    assert not ledger.wrong
    assert not lost
    assert len(ledger.acked) > 100
    assert "OutcomeUnknown" not in ledger.errors


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_nothing_acknowledged_is_lost_by_a_hundred_kills_of_the_server(tmp_path, seed):
    server = started(PostgresServer())
    try:
        ledger, lost = strike(server, server.place(tmp_path), 10, seed=100 + seed)
    finally:
        server.stop()
    print(ledger)
    assert not ledger.wrong
    assert not lost
    assert "OutcomeUnknown" not in ledger.errors


@pytest.mark.timeout(600)
def test_the_checker_catches_an_early_acknowledgement(tmp_path):
    server = started(PostgresServer())
    try:
        for seed in range(20):
            _, lost = strike(server, server.place(f"{tmp_path} {seed}"), 1, seed, early=True, witnesses=False)
            if lost:
                return
    finally:
        server.stop()
    pytest.fail("20 dishonest runs lost their server and nothing was found missing: the checker does not check")


@pytest.mark.timeout(600)
def test_the_checker_catches_a_server_that_does_not_wait_for_its_disk(tmp_path, monkeypatch):
    monkeypatch.setitem(_postgres_line._SETTINGS, "synchronous_commit", "off")
    server = started(PostgresServer({"wal_writer_delay": "10s"}))
    try:
        for seed in range(20):
            url = server.place(f"{tmp_path} {seed}")
            _, lost = strike(server, url, 1, seed, witnesses=False)
            if lost:
                with quire.sync.open(url) as store:
                    assert store.capabilities.durability == "process"
                    assert "synchronous_commit is off" in store.capabilities.note
                return
    finally:
        server.stop()
    pytest.fail("20 servers died with what they had not written, and nothing was found missing")
