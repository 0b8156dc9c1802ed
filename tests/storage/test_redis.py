"""Redis keeps the protocol by its own clock, and answers as the reference does by a wound one."""

import asyncio
from hashlib import sha256

import pytest
from hypothesis import settings

from quire.storage._redis_line import Address
from quire.storage.redis import open_redis
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine
from quire.testing.servers.fixtures import shared
from quire.testing.servers.redis import RedisServer


async def opened(place, namespace, now_ms=None):
    address = Address("127.0.0.1", shared(RedisServer).port, 0, None, None, tls=False, ca=None)
    prefix = "t" + sha256(str(place).encode()).hexdigest()
    return await open_redis(address, namespace=namespace, prefix=prefix, now_ms=now_ms)


class TestRedis(BackendConformance):
    async def open(self, namespace="default"):
        return await opened(self.place, namespace)

    async def pass_time(self, ms):
        await asyncio.sleep(ms / 1000)  # the server's clock cannot be wound


class RedisMachine(BackendMachine):
    async def open(self, namespace):
        return await opened(self.place, namespace, self.now_ms)


class TestRedisMachine(RedisMachine.TestCase):
    settings = settings(MACHINE, max_examples=10)


@pytest.mark.soak
class TestRedisMachineForLong(RedisMachine.TestCase):
    settings = settings(MACHINE, max_examples=500)
