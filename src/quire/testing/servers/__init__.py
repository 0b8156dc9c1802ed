"""Private servers for tests, benchmarks and first tries: started here, on this machine, for this process alone.

    with PostgresServer() as server:
        store = await quire.open(server.url)

Each lies in a temporary folder, listens on a free port of 127.0.0.1, can be killed and started again on the same data,
and ends with the process that started it. `fixtures` shares one between the tests of a session.
"""

from __future__ import annotations

from quire.testing.servers._keeping import ServerFailed, free_port
from quire.testing.servers._process import Server, ServerMissing

__all__ = ["Server", "ServerFailed", "ServerMissing", "free_port"]
