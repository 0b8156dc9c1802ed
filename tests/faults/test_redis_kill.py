"""kill -9 of Redis in the middle of writes: what was acknowledged is there, once, and the writers go on."""

import pytest
import redis

from quire.engine.committer import Committer
from quire.testing.outage import attack, killed
from quire.testing.servers.fixtures import started
from quire.testing.servers.redis import RedisServer


def strike(settings, times, seed, **how):
    server = started(RedisServer(settings))
    try:
        return attack(server.url, killed(server), times=times, seed=seed, **how)
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
    print(ledger)
    assert not ledger.wrong
    assert not lost


def test_the_checker_catches_a_server_that_keeps_nothing():
    """The control: without its log, Redis forgets what it acknowledged."""
    _, lost = strike({"appendonly": "no"}, 1, seed=1, witnesses=False)
    assert lost


def cut_off(times, seed):
    server = started(RedisServer())
    try:
        with redis.Redis(port=server.port) as admin:

            def cut():
                for kind in ("normal", "pubsub"):
                    admin.client_kill_filter(_type=kind, skipme=True)

            return attack(server.url, cut, times=times, seed=seed)
    finally:
        server.stop()


def test_connections_cut_by_the_server_are_made_anew():
    ledger, lost = cut_off(30, seed=3)
    assert not ledger.wrong
    assert not lost


def test_the_checker_catches_an_error_told_of_what_is_stored(monkeypatch):
    """The control: a store that does not look what became of a commit says that it failed."""

    async def careless(self, item, error):
        return error

    monkeypatch.setattr(Committer, "_outcome", careless)
    with pytest.raises(AssertionError, match="were refused, and are there"):
        for seed in range(20):
            cut_off(30, seed)
