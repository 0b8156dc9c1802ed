"""PostgreSQL killed in the middle of writes: acknowledged survives, once, and everybody comes back by himself."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from quire.testing.servers import Server, ServerFailed, ServerMissing
from quire.testing.servers import fixtures as servers
from quire.testing.servers._process import gone
from quire.testing.servers.fixtures import started
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
