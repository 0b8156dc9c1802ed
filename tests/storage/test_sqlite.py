"""SQLite keeps the protocol, in both durabilities."""

from quire.storage.sqlite import open_sqlite
from quire.testing.conformance import BackendConformance


class TestSqlite(BackendConformance):
    async def open(self, namespace="default"):
        return await open_sqlite(str(self.place / "s.db"), namespace=namespace)

    async def open_copy(self, path):
        return await open_sqlite(path, namespace="default")


class TestRelaxed(TestSqlite):
    async def open(self, namespace="default"):
        return await open_sqlite(str(self.place / "s.db"), namespace=namespace, durability="relaxed")
