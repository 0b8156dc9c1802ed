"""One server of each kind for all tests of a process: started by the first that needs it, stopped at the end.

    class TestMine(BackendConformance):
        async def open(self, namespace="default"):
            url = shared(PostgresServer).place(self.place)
            return await open_backend(url, namespace=namespace)

With pytest-xdist each worker has its own. Where a server is not installed the test is skipped with the reason; with
`QUIRE_REQUIRE_SERVERS=1` in the environment it fails instead, so that no machine skips in silence.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from quire.testing.servers._process import Server, ServerMissing
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

S = TypeVar("S", bound=Server)

REQUIRE = "QUIRE_REQUIRE_SERVERS"
_running: dict[type[Server], Server] = {}
_missing: dict[type[Server], str] = {}


def shared(kind: type[S]) -> S:
    """Return the running server of this kind, starting it where none is. Skips or fails where it is not installed."""
    found = _running.get(kind)
    if found is not None and not found.running:  # a test killed it, or it died: the next one is not to blame
        found.stop()
        del _running[kind]
        found = None
    if found is None:
        found = started(kind())
        _running[kind] = found
    assert isinstance(found, kind)
    return found


def started(server: S) -> S:
    """Start a server of a test's own. Skips or fails where it is not installed; who starts it stops it."""
    kind = type(server)
    if kind not in _missing:
        try:
            server.start()
        except ServerMissing as reason:
            _missing[kind] = str(reason)
        else:
            return server
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {_missing[kind]}", pytrace=False)
    pytest.skip(_missing[kind])


@atexit.register
def _stop_all() -> None:
    while _running:
        _running.popitem()[1].stop()


PLACES: dict[str, Callable[[Path], str]] = {
    "memory": lambda folder: f"memory:{folder.name}",
    "sqlite": lambda folder: f"sqlite:///{folder}/s.db",
    "files": lambda folder: f"file:///{folder}/f",
    "rocksdb": lambda folder: f"rocksdb:///{folder}/r",
    "postgresql": lambda folder: shared(PostgresServer).place(folder),
    "redis": lambda folder: shared(RedisServer).place(folder),
    "nats": lambda folder: shared(NatsServer).place(folder),
}
"""The URL of a new store of each kind, for a test with this folder."""
