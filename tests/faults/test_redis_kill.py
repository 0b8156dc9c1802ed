"""kill -9 of Redis in the middle of writes: what was acknowledged is there, once, and the writers go on."""

import os
import tempfile

import pytest

from quire.testing.disk import Disk, DiskMissing
from quire.testing.outage import attack
from quire.testing.servers.fixtures import started
from quire.testing.servers.redis import RedisServer


def strike(settings, times, seed):
    server = started(RedisServer(settings))

    def outage():
        server.kill()
        server.restart()

    try:
        return attack(server.url, outage, times=times, seed=seed)
    finally:
        server.stop()


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9_of_the_server():
    ledger, lost = strike({}, 10, seed=1)
    assert not ledger.wrong
    assert not lost
    assert len(ledger.acked) > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_nothing_acknowledged_is_lost_or_doubled_in_a_hundred_kills(seed):
    ledger, lost = strike({}, 10, seed)
    assert not ledger.wrong
    assert not lost


def test_the_checker_catches_a_server_that_keeps_nothing():
    """The control: without its log, Redis forgets what it acknowledged."""
    _, lost = strike({"appendonly": "no"}, 1, seed=1)
    assert lost


def test_connections_cut_by_the_server_are_made_anew():
    server = started(RedisServer())
    try:
        import redis

        admin = redis.Redis(port=server.port)

        def cut():
            for kind in ("normal", "pubsub"):
                admin.client_kill_filter(_type=kind, skipme=True)

        ledger, lost = attack(server.url, cut, times=30, seed=3)
        admin.close()
    finally:
        server.stop()
    assert not ledger.wrong
    assert not lost


# power


def lose_power(server, times, seed, monkeypatch):
    """Run a server on a disk that is cut off at random moments of writing."""
    try:
        disk = Disk().__enter__()
    except DiskMissing as reason:
        pytest.skip(str(reason))
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
        started(server)
        os.sync()  # that its folder is there is not what is looked at

        def outage():
            disk.cut()
            server.kill()
            disk.again()
            server.restart()

        return attack(server.url, outage, times=times, seed=seed, writers=8)
    finally:
        if server.running:
            server.kill()
        disk.__exit__()


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_by_a_loss_of_power(seed, monkeypatch):
    ledger, lost = lose_power(RedisServer(), 20, seed, monkeypatch)
    assert not ledger.wrong
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_loss_of_power_takes_what_was_not_synced(monkeypatch):
    """The control: a server that does not sync loses what it acknowledged."""
    _, lost = lose_power(RedisServer({"appendfsync": "no"}), 1, 1, monkeypatch)
    assert lost
