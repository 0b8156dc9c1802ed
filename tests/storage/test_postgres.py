"""PostgreSQL keeps the protocol and answers as the reference does."""

import pytest
from hypothesis import settings

from quire.storage.postgres import open_postgres
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine
from quire.testing.servers.fixtures import shared
from quire.testing.servers.postgres import PostgresServer


class TestPostgres(BackendConformance):
    async def open(self, namespace="default"):
        server = shared(PostgresServer)
        return await open_postgres(
            server.url, schema=server.schema(self.place), shown="db", namespace=namespace, now_ms=self.now_ms
        )


class PostgresMachine(BackendMachine):
    open = TestPostgres.open


class TestPostgresMachine(PostgresMachine.TestCase):
    settings = settings(MACHINE, max_examples=6)


@pytest.mark.soak
class TestPostgresMachineForLong(PostgresMachine.TestCase):
    settings = settings(MACHINE, max_examples=500)
