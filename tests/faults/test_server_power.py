"""A loss of power under servers that sync before they acknowledge, on a disk of its own: what was acknowledged is there."""

import pytest

from quire.testing.disk import DiskMissing
from quire.testing.outage import lose_power
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.redis import RedisServer


def without_power(server, times, seed):
    started(server).stop()  # skips, or fails where servers are required
    try:
        return lose_power(server, times=times, seed=seed)
    except DiskMissing as reason:
        pytest.skip(str(reason))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", [RedisServer, NatsServer])
def test_nothing_acknowledged_is_lost_by_a_loss_of_power(kind, seed):
    ledger, lost = without_power(kind(), 20, seed)
    print(ledger)
    assert not ledger.wrong
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("forgetful", [RedisServer({"appendfsync": "no"}), NatsServer(sync='"10m"')])
def test_a_loss_of_power_takes_what_was_not_synced(forgetful):
    """The control: a server that does not sync loses what it acknowledged."""
    _, lost = without_power(forgetful, 1, 1)
    assert lost
