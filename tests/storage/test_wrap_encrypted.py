"""Encryption around memory and SQLite keeps the protocol, and answers as the reference does."""

from quire.storage.memory import open_memory
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap.encrypted import open_encrypted
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine

KEY = bytes(range(32))


class TestEncryptedMemory(BackendConformance):
    async def open(self, namespace="default"):
        inner = await open_memory(f"e{self.place}", namespace=namespace, now_ms=self.now_ms)
        return await open_encrypted(inner, namespace=namespace, key=KEY)


class TestEncryptedSqlite(BackendConformance):
    async def open(self, namespace="default", file="s.db"):
        inner = await open_sqlite(str(self.place / file), namespace=namespace, now_ms=self.now_ms)
        return await open_encrypted(inner, namespace=namespace, key=KEY)

    async def open_copy(self, path):
        return await self.open(file=path)


class EncryptedMachine(BackendMachine):
    open = TestEncryptedMemory.open


TestEncryptedMachine = EncryptedMachine.TestCase
TestEncryptedMachine.settings = MACHINE
