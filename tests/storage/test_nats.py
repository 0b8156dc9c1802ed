"""NATS keeps the protocol by its own clock, and answers as the reference does by a wound one."""

import asyncio
from hashlib import sha256

from quire.storage._nats_wire import Address
from quire.storage.nats import open_nats
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer


async def opened(place, namespace, now_ms=None):
    address = Address([f"127.0.0.1:{shared(NatsServer).port}"], None, None)
    stream = "t" + sha256(str(place).encode()).hexdigest()[:20]
    return await open_nats(address, namespace=namespace, stream=stream, synced=True, now_ms=now_ms)


class TestNats(BackendConformance):
    async def open(self, namespace="default"):
        return await opened(self.place, namespace)

    async def pass_time(self, ms):
        await asyncio.sleep(ms / 1000)  # the server's clock cannot be wound


class NatsMachine(BackendMachine):
    async def open(self, namespace):
        return await opened(self.place, namespace, self.now_ms)


TestNatsMachine = NatsMachine.TestCase
TestNatsMachine.settings = MACHINE
