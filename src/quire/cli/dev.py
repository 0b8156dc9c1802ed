"""A server to try: `quire dev` starts a private PostgreSQL, Redis or NATS, and ends it with itself.

stdout has the URL and nothing else, for scripts; what is said about it goes to stderr. Ctrl-C and SIGTERM are how it is
meant to end: the server is ended by its process id, its folder removed unless it was to be kept, and the status is 0. When
we are killed outright, the kernel ends the server.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from quire.cli.lines import out, say
from quire.errors import Invalid, NotFound, StorageUnavailable, Unsupported

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S = 0.2
"""How often the server is looked at, whether it still runs."""
_GRACE_S = 10.0
"""How long a command may take to end when it is told to."""
_DRIVERS = {"postgres": ("asyncpg",), "redis": ("redis", "hiredis"), "nats": ("nats",)}
"""What Quire needs to use a server of that kind: the extra's name, and its modules."""


class _Asked(BaseException):
    """We were asked to end."""


class _Asks:
    """The signals that ask us to end. The first raises `_Asked`, unless it is held back; those after it do nothing."""

    def __init__(self) -> None:
        self._held = self._waiting = self._told = False

    @contextmanager
    def heard(self) -> Generator[None]:
        """Hear them."""
        before: dict[signal.Signals, Any] = {number: signal.signal(number, self._ask) for number in _ENDS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the first back, so that no process is begun and not known; a second raises at once."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting and not self._told:
            self._told = True
            raise _Asked

    def over(self) -> None:
        """Hear none any more: what is left to do is to end."""
        self._told = True

    def _ask(self, *_: object) -> None:
        if self._told:
            return
        if self._held and not self._waiting:
            self._waiting = True
            return
        self._told = True
        raise _Asked


@click.command()
@click.argument("kind", type=click.Choice(list(_DRIVERS)))
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the data in this folder, and go on with it.")
@click.option("--nodes", type=click.Choice(["1", "3"]), default="1", help="NATS: one server, or a cluster of three.")
@click.argument("command", nargs=-1)
@click.pass_context
def dev(ctx: click.Context, kind: str, keep: Path | None, nodes: str, command: tuple[str, ...]) -> None:
    """Start a private server to try, until Ctrl-C.

    It listens on a free port of 127.0.0.1. The URL is all that goes to stdout. With COMMAND (put -- before it) it runs
    that with QUIRE_STORE set to the URL instead, ends with it, and has its status.
    """
    if nodes != "1" and kind != "nats":
        raise Invalid(f"{kind} has one node here; --nodes 3 is for nats")
    server = _made(kind, int(nodes))
    if keep is not None:
        _kept(server, keep)
    code, asks = 0, _Asks()
    with asks.heard():
        try:
            with asks.held():
                _started(server)
            code = _run(command, server.url, asks) if command else _serve(server, kind, keep)
        except _Asked:
            code = 0
        finally:
            asks.over()  # another Ctrl-C would leave the server to the kernel, and its folder to nobody
            server.stop()
    ctx.exit(code)


def _made(kind: str, nodes: int) -> Any:
    """Return a server that was not started yet."""
    if kind == "postgres":
        from quire.testing.servers.postgres import PostgresServer

        return PostgresServer()
    if kind == "redis":
        from quire.testing.servers.redis import RedisServer

        return RedisServer()
    from quire.testing.servers.nats import NatsCluster, NatsServer

    return NatsServer() if nodes == 1 else NatsCluster()


def _kept(server: Any, folder: Path) -> None:
    if hasattr(server, "nodes"):
        folder.mkdir(mode=0o700, exist_ok=True)
    server.keep(folder)


def _started(server: Any) -> None:
    from quire.testing.servers import ServerFailed, ServerMissing

    try:
        server.start()
    except ServerMissing as cause:
        raise Unsupported(str(cause), capability="dev") from cause
    except ServerFailed as cause:
        raise StorageUnavailable(str(cause)) from cause


def _serve(server: Any, kind: str, keep: Path | None) -> int:
    """Say where it is, and wait. Raises StorageUnavailable where it ends by itself."""
    out(server.url)
    say(
        f"a private {kind}; "
        + (f"its data stay in {keep}" if keep else "its data go with it, unless --keep DIR says where")
    )
    if not all(find_spec(module) for module in _DRIVERS[kind]):
        say(f"to use it: pip install 'quire[{kind}]'")
    say(f"try: quire --store {shlex.quote(server.url)} set plan /topic tides")
    say("Ctrl-C ends it")
    while server.running:
        time.sleep(_LOOK_S)
    raise StorageUnavailable(f"{kind} ended by itself; its log ends so:\n{server.log()}")


def _run(command: Sequence[str], url: str, asks: _Asks) -> int:
    """Run a command on the store, to its end; return its status."""
    child: subprocess.Popen[bytes] | None = None
    try:
        with asks.held():
            child = subprocess.Popen(command, env={**os.environ, "QUIRE_STORE": url})  # noqa: S603 - the user's own
        status = child.wait()
    except FileNotFoundError:
        raise NotFound(f"{command[0]}: there is no such command") from None
    except _Asked:
        if child is not None:
            _end(child)
        raise
    return status if status >= 0 else 128 - status


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
