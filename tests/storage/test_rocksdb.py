"""RocksDB keeps the protocol, and answers as the reference does."""

import pytest
from hypothesis import settings

pytest.importorskip("rocksdict")

from quire.storage.rocksdb import open_rocksdb
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestRocksdb(BackendConformance):
    async def open(self, namespace="default", folder="store"):
        return await open_rocksdb(str(self.place / folder), namespace=namespace, now_ms=self.now_ms)

    async def open_copy(self, path):
        return await self.open(folder=path)


class RocksdbMachine(BackendMachine):
    open = TestRocksdb.open


class TestRocksdbMachine(RocksdbMachine.TestCase):
    settings = settings(MACHINE, max_examples=10)


@pytest.mark.soak
class TestRocksdbMachineForLong(RocksdbMachine.TestCase):
    settings = settings(MACHINE, max_examples=500)
