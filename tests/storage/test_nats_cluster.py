"""Three replicas on three nodes keep the protocol as one does, though any of them may answer a read."""

import asyncio
from hashlib import sha256

import pytest

from quire.storage._nats_wire import Address
from quire.storage.nats import open_nats
from quire.testing.conformance import BackendConformance
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsCluster, NatsServer


@pytest.fixture(scope="module")
def hosts():
    started(NatsServer()).stop()  # skips, or fails, where there is none
    with NatsCluster() as cluster:
        yield [f"127.0.0.1:{node.port}" for node in cluster.nodes]


@pytest.mark.soak
@pytest.mark.timeout(600)
class TestNatsCluster(BackendConformance):
    @pytest.fixture(autouse=True)
    def cluster(self, hosts):
        self.hosts, self.turn = hosts, 0

    async def open(self, namespace="default"):
        self.turn += 1  # each handle begins with another node
        first = self.turn % 3
        address = Address(self.hosts[first:] + self.hosts[:first], None, None)
        stream = "t" + sha256(str(self.place).encode()).hexdigest()[:20]
        return await open_nats(address, namespace=namespace, stream=stream, replicas=3, synced=True)

    async def pass_time(self, ms):
        await asyncio.sleep(ms / 1000)
