"""SQLite keeps the protocol, in both durabilities, and answers as the reference does."""

from __future__ import annotations

from quire.storage.sqlite import open_sqlite
from quire.testing.conformance import BackendConformance


class TestSqlite(BackendConformance):
    durability = "full"

    async def open(self, namespace="default"):
        path = str(self.place / "s.db")
        return await open_sqlite(path, namespace=namespace, durability=self.durability, now_ms=self.now_ms)

    async def open_copy(self, path):
        return await open_sqlite(path, namespace="default", now_ms=self.now_ms)


class TestRelaxed(TestSqlite):
    durability = "relaxed"
