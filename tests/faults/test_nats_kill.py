"""kill -9 of NATS in the middle of writes: what was acknowledged is there, once, and the writers go on."""

import os
import tempfile

import pytest

from quire.testing.disk import Disk, DiskMissing
from quire.testing.outage import attack
from quire.testing.servers import ServerMissing
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsCluster, NatsServer, program


def strike(times, seed, forgetful=False):
    server = started(NatsServer())

    def outage():
        server.kill()
        if forgetful:
            (server.folder / "data").rename(server.folder / "lost")
        server.restart()

    try:
        return attack(server.url, outage, times=times, seed=seed)
    finally:
        server.stop()


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_or_doubled_by_kill_9_of_the_server():
    ledger, lost = strike(10, seed=1)
    assert not ledger.wrong
    assert not lost
    assert len(ledger.acked) > 20


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10, 20))
def test_nothing_acknowledged_is_lost_or_doubled_in_a_hundred_kills(seed):
    ledger, lost = strike(10, seed)
    assert not ledger.wrong
    assert not lost


def test_the_checker_catches_a_server_that_lost_its_data():
    """The control: what was acknowledged is gone with the folder it was in."""
    _, lost = strike(1, seed=1, forgetful=True)
    assert lost


def leader_killed(times, seed):
    try:
        program()
    except ServerMissing:
        started(NatsServer())  # skips, or fails where servers are required
    with NatsCluster() as cluster:

        def outage():
            leader = cluster.leader_of("quire") or cluster.nodes[0]
            leader.kill()
            ledger_of_attack.wait_for(4)  # writers continue on the two that are left
            leader.restart()
            cluster.await_leader()

        ledger_of_attack = None

        def strikes(ledger):
            nonlocal ledger_of_attack
            ledger_of_attack = ledger

        return attack(cluster.url, outage, times=times, seed=seed, told=strikes)


@pytest.mark.timeout(300)
def test_writers_continue_when_the_leader_of_a_cluster_is_killed():
    ledger, lost = leader_killed(1, seed=1)
    assert not ledger.wrong
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_writers_continue_when_leaders_are_killed_a_hundred_times(seed):
    ledger, lost = leader_killed(10, seed)
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
    ledger, lost = lose_power(NatsServer(), 20, seed, monkeypatch)
    assert not ledger.wrong
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_loss_of_power_takes_what_was_not_synced(monkeypatch):
    """The control: a server that does not sync loses what it acknowledged."""
    _, lost = lose_power(NatsServer(sync='"10m"'), 1, 1, monkeypatch)
    assert lost
