"""kill -9 of NATS in the middle of writes: what was acknowledged is there, once, and the writers go on."""

import pytest

from quire.testing.outage import attack, killed
from quire.testing.servers import ServerMissing
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsCluster, NatsServer, program


def strike(times, seed, forgetful=False):
    server = started(NatsServer())

    def outage():
        server.kill()
        (server.folder / "data").rename(server.folder / "lost")
        server.restart()

    try:
        how = {"witnesses": not forgetful}
        return attack(server.url, outage if forgetful else killed(server), times=times, seed=seed, **how)
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
    print(ledger)
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
    ledgers = []
    with NatsCluster() as cluster:

        def outage():
            leader = cluster.leader_of("quire") or cluster.nodes[0]
            leader.kill()
            ledgers[0].wait_for(4)  # writers continue on the two that are left
            leader.restart()
            cluster.await_leader()

        return attack(cluster.url, outage, times=times, seed=seed, begun=ledgers.append)


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
    print(ledger)
    assert not ledger.wrong
    assert not lost
