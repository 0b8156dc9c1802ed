"""kill -9 of Redis in the middle of writes: what was acknowledged is there, once, and the writers go on."""

import pytest

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
