"""Compression around memory, SQLite and encryption keeps the protocol, and answers as the reference does."""

import pytest

from quire.storage.memory import open_memory
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap.compressed import Compression, open_compressed
from quire.storage.wrap.encrypted import open_encrypted
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestZstdOnMemory(BackendConformance):
    compression = Compression(threshold_bytes=0)

    async def open(self, namespace="default"):
        inner = await open_memory(f"z{self.place}", namespace=namespace, now_ms=self.now_ms)
        return await open_compressed(inner, self.compression)


class TestGzipOnMemory(TestZstdOnMemory):
    compression = Compression("gzip")


class TestLz4OnMemory(TestZstdOnMemory):
    compression = "lz4"

    @pytest.fixture(autouse=True)
    def needed(self):
        pytest.importorskip("lz4.frame")


class TestZstdOnEncryptedSqlite(BackendConformance):
    async def open(self, namespace="default", file="s.db"):
        inner = await open_sqlite(str(self.place / file), namespace=namespace, now_ms=self.now_ms)
        return await open_compressed(await open_encrypted(inner, namespace=namespace, key=bytes(32)))

    async def open_copy(self, path):
        return await self.open(file=path)


class CompressedMachine(BackendMachine):
    compression, open = Compression(threshold_bytes=0), TestZstdOnMemory.open


TestCompressedMachine = CompressedMachine.TestCase
TestCompressedMachine.settings = MACHINE
