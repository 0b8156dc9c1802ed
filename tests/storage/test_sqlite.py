"""SQLite keeps the protocol, in both durabilities, and answers as the reference does."""

from quire.storage.sqlite import open_sqlite
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestSqlite(BackendConformance):
    durability = "full"

    async def open(self, namespace="default", file="s.db"):
        path = str(self.place / file)
        return await open_sqlite(path, namespace=namespace, durability=self.durability, now_ms=self.now_ms)

    async def open_copy(self, path):
        return await self.open(file=path)


class TestRelaxed(TestSqlite):
    durability = "relaxed"


class SqliteMachine(BackendMachine):
    durability, open = "relaxed", TestSqlite.open


TestSqliteMachine = SqliteMachine.TestCase
TestSqliteMachine.settings = MACHINE
