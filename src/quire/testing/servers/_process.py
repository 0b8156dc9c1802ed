"""A server process of our own: started, killed, started again, and never left behind.

1. It is a child of this process, started without a shell, and ended by its process id, never by a name.
2. Where Linux can, it dies with the thread that started it, however that ends.
3. Its folder belongs to it alone, and goes with it unless it was told to keep one; whoever may not run as root runs as an unprivileged user that is there already.
4. A server that does not come up is an error that shows the end of its log.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, ClassVar, NamedTuple, Self

from quire.testing.servers._keeping import Keeping, ServerFailed, free_port

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOG_TAIL_BYTES = 4000
_PORTS_TRIED = 5
"""Between finding a free port and the server taking it, somebody else may: then another one is tried."""
_REFUSED_S = 2.0
"""After so long a server is told again to end: Redis refuses while it writes its first append-only file."""
_LOOK_S = 0.02
"""How often a server that is coming up is asked whether it answers."""


class ServerMissing(Exception):
    """The server's program is not installed. The message says what would bring it."""


class _Identity(NamedTuple):
    """Whom a program runs as; None: as whom we run."""

    user: int | None = None
    group: int | None = None
    extra_groups: list[str | int] | None = None


class Server:
    """A private server. Subclass it and give `command`, `answers` and `url`; `build` where it needs a first content.

    folder: its own, removed by `stop`.  port: chosen at the first start, kept from then on.
    """

    name: ClassVar[str] = "server"
    """For people and for the folder's name."""
    unprivileged: ClassVar[bool] = False
    """Whether the program refuses to run as root."""
    start_s: ClassVar[float] = 60.0
    """How long it may take to come up."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """What tells it to end in good order."""
    death_signal: ClassVar[signal.Signals] = signal.SIGKILL
    """What it gets from the kernel when we are gone."""

    def __init__(self) -> None:
        self.port = 0
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._built = False
        self._kept: Keeping | None = None

    # what a subclass gives

    def build(self) -> None:
        """Make what has to be in the folder before the first start. `run` helps."""

    def command(self) -> list[str]:
        """Return the program and its arguments, for `folder` and `port`."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether it serves now: connect and ask, within a second or so. An OSError counts as no."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """Where a store on it is."""
        raise NotImplementedError

    # what it does

    def start(self) -> Self:
        """Start it and wait until it answers. Raises ServerMissing, ServerFailed."""
        if self._process is not None:
            raise ServerFailed(f"{self.name} runs already, as process {self.pid}")
        if not self._built:
            if self._kept is None:
                self._build_in(Path(tempfile.mkdtemp(prefix=f"quire-{self.name}-")))
            else:
                self.folder, self.port = self._kept.enter(self._build_in)
            self._built = True
        chosen = self.port != 0
        for attempt in range(_PORTS_TRIED):
            if not chosen:
                self.port = free_port()
            try:
                self._launch()
                break
            except ServerFailed:
                if chosen or attempt == _PORTS_TRIED - 1 or not self._port_was_taken():
                    raise
        if self._kept is not None:
            self._kept.note(self.port)
        return self

    def keep(self, folder: Path) -> Self:
        """Have its data in a folder that stays, made if it is not there, gone on with if it is. Before the first start.

        `start` then raises ServerFailed for a folder that holds anything else, or that another such server uses.
        """
        self._kept = Keeping(folder.absolute(), self.name)
        return self

    def kill(self) -> None:
        """End it at once, by SIGKILL: nothing is flushed, nothing is said. Its data and port stay for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Start it again on the same data and port, after ending it in good order if it still runs."""
        if self._process is not None:
            self._end(self.stop_signal)
        return self.start()

    def stop(self) -> None:
        """End it in good order and remove its folder, unless that is kept. Idempotent."""
        try:
            if self._process is not None:
                self._end(self.stop_signal)
        finally:
            if self._kept is not None:
                self._kept.leave()
            elif self._built:
                shutil.rmtree(self.folder, ignore_errors=True)
            self._built = False

    @property
    def pid(self) -> int:
        """Its process id. Raises ServerFailed where it does not run."""
        if self._process is None:
            raise ServerFailed(f"{self.name} does not run; start() it")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """Return the end of what it wrote about itself."""
        try:
            return self._log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""

    def run(self, *command: str | Path) -> None:
        """Run a program as the server's user, to its end. Raises ServerFailed with what it said."""
        who = self._identity()
        done = subprocess.run(  # noqa: S603 - our own command
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=_environment(),
            check=False,
            user=who.user,
            group=who.group,
            extra_groups=who.extra_groups,
        )
        if done.returncode:
            said = done.stdout[-_LOG_TAIL_BYTES:].decode(errors="replace")
            raise ServerFailed(f"{self.name}: {command[0]} ended with {done.returncode}:\n{said}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # inside

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    def _build_in(self, folder: Path) -> None:
        self.folder = folder
        try:
            self._own(folder)
            self.build()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _launch(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = self._spawn(log)
        until = time.monotonic() + self.start_s
        while True:
            try:
                self._process.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                pass
            else:
                code, self._process = self._process.returncode, None
                raise ServerFailed(f"{self.name} ended with {code} while starting; its log ends so:\n{self.log()}")
            if self._answers():
                return
            if time.monotonic() > until:
                self._end(signal.SIGKILL)
                raise ServerFailed(f"{self.name} did not answer in {self.start_s:g} s; its log ends so:\n{self.log()}")

    def _answers(self) -> bool:
        try:
            return self.answers()
        except OSError:
            return False

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        prctl = ctypes.CDLL(None, use_errno=True).prctl if os.uname().sysname == "Linux" else None
        parent, death = os.getpid(), int(self.death_signal)

        def tie() -> None:  # after the change of user, which would untie it
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, death)
                if os.getppid() != parent:  # gone already
                    os._exit(1)

        who = self._identity()
        return subprocess.Popen(  # noqa: S603 - our own command
            self.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env=_environment(),
            start_new_session=True,  # an interrupt from the keyboard is for us
            preexec_fn=tie,  # noqa: PLW1509 - it allocates nothing and takes no lock
            user=who.user,
            group=who.group,
            extra_groups=who.extra_groups,
        )

    def _end(self, how: signal.Signals) -> None:
        process = self._process
        if process is None:
            raise ServerFailed(f"{self.name} does not run")
        until = time.monotonic() + self.start_s
        while True:
            process.send_signal(how)
            try:
                process.wait(_REFUSED_S)
                break
            except subprocess.TimeoutExpired:
                if time.monotonic() > until:
                    process.kill()
                    process.wait()
                    self._process = None
                    raise ServerFailed(
                        f"{self.name} did not end in {self.start_s:g} s; its log:\n{self.log()}"
                    ) from None
        self._process = None

    def _port_was_taken(self) -> bool:
        return "in use" in self.log().lower()

    def _identity(self) -> _Identity:
        user = self._user()
        return _Identity() if user is None else _Identity(user.pw_uid, user.pw_gid, [])

    def _user(self) -> pwd.struct_passwd | None:
        return nobody() if self.unprivileged and os.geteuid() == 0 else None

    def _own(self, folder: Path) -> None:
        user = self._user()
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)


def nobody() -> pwd.struct_passwd:
    """Return the unprivileged user of this machine. Raises ServerMissing where there is none."""
    for name in ("nobody", "daemon"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServerMissing(
        "this server does not run as root, and there is no user `nobody` to run it as; use another user"
    )


def gone(handle: int, timeout_s: float) -> bool:
    """Wait until the process of a pidfd has ended; tell whether it did in time."""
    return bool(select.select([handle], [], [], timeout_s)[0])


def _environment() -> dict[str, str]:
    """What a server sees of ours: enough to run, nothing that would change its settings."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
