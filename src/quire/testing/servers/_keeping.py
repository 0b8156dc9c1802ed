"""A server's folder that stays: who made it, on which port it was, and that only one uses it at a time.

1. A folder that holds anything else is never touched. Ours has `MARK`, and gets its name only when it was built whole.
2. Whoever uses it holds its lock; the kernel lets go of that when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

MARK = "quire-server.json"
_LOCK = "quire-server.lock"
_GIVEN = Path("/proc/sys/net/ipv4/ip_local_port_range")
_chance = random.SystemRandom()


class ServerFailed(Exception):
    """The server did not come up, or did not end. The message holds the end of its log."""


class Keeping:
    """A folder for the data of one kind of server."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._kind = kind
        self._lock: int | None = None

    def enter(self, build: Callable[[Path], None]) -> tuple[Path, int]:
        """Return the folder, held, and the port it had, 0 where there is none or it is taken. Raises ServerFailed.

        build: makes what has to be in it before the first start, in an empty folder that is then renamed.
        """
        if not (self.folder / MARK).exists():
            self._make(build)
        self._hold()
        try:
            said = json.loads((self.folder / MARK).read_text())
            kind, port = said["server"], int(said["port"])
        except (ValueError, KeyError, TypeError) as cause:
            self.leave()
            raise ServerFailed(f"{self.folder}: {MARK} is damaged ({cause}); name another folder") from cause
        if kind != self._kind:
            self.leave()
            raise ServerFailed(f"{self.folder} holds the data of {kind}, not of {self._kind}; name another folder")
        return self.folder, port if _free(port) else 0

    def note(self, port: int) -> None:
        """Remember the port, so that URLs stay as they were."""
        part = self.folder / f"{MARK}.part"
        part.write_text(json.dumps({"server": self._kind, "port": port}) + "\n")
        part.rename(self.folder / MARK)

    def leave(self) -> None:
        """Let others use it. Idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _make(self, build: Callable[[Path], None]) -> None:
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ServerFailed(
                f"{self.folder} holds other things and was not made here; nothing was changed: name another"
            )
        part = self.folder.with_name(f"{self.folder.name}.part-{os.getpid()}")
        try:
            part.mkdir(0o700)
        except OSError as cause:
            raise ServerFailed(f"{part}: {cause.strerror}; name a folder whose parent is there") from cause
        build(part)
        (part / MARK).write_text(json.dumps({"server": self._kind, "port": 0}) + "\n")
        try:
            part.rename(self.folder)
        except OSError as cause:
            shutil.rmtree(part, ignore_errors=True)
            raise ServerFailed(f"{self.folder}: somebody else is making it just now ({cause}); try again") from cause

    def _hold(self) -> None:
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ServerFailed(
                f"{self.folder} is in use by another server; end that one, or name another folder"
            ) from None
        self._lock = lock


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has now, nor gets by connecting somewhere.

    The system gives ports of its own choice to outgoing connections: one of those could be gone when a server that was
    killed comes back to it.
    """
    first = _first_given()
    while True:
        port = _chance.randrange(first // 2, first)
        if _free(port):
            return port


def _first_given() -> int:
    try:
        return int(_GIVEN.read_text().split()[0])
    except OSError:
        return 32768


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: a port that is cooling down is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return port != 0
