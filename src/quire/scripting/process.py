"""The process of one script, seen from outside: started, spoken to, ended.

1. However a script ends, well, by a limit, an error or a cancellation, its process is dead and reaped: no orphans. If
   this side dies first, the script's next call finds the pipe closed and leaves; until then `cpu_s` bounds it.
2. Spawned, never forked: it inherits nothing but its three pipes and the names of two folders to import from.
3. Only `end` reaps, after it has killed. So its number is never another process's when it is signalled, which asyncio's
   own subprocesses do not promise (python/cpython#127049).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import quire
from quire.errors import StorageUnavailable, Unsupported
from quire.threads import apart

_STDERR_MAX = 65536


def command() -> list[str]:
    """Return what starts the process: the interpreter without user site, without site, without the current folder."""
    if not sys.executable:
        raise Unsupported(
            "scripts need a Python interpreter to start; sys.executable is empty here", capability="scripts"
        )
    return [sys.executable, "-S", "-s", "-P", "-B", "-X", "utf8", "-m", "quire.scripting.child"]


def environment() -> dict[str, str]:
    """Return the whole environment of the process. Raises Unsupported without lupa, or off POSIX."""
    found = importlib.util.find_spec("lupa")
    if found is None or not found.submodule_search_locations:
        raise Unsupported("scripts need lupa: install `quire[lua]`", capability="scripts")
    if importlib.util.find_spec("resource") is None:
        raise Unsupported("scripts need a POSIX system: their limits are kept by its kernel", capability="scripts")
    folders = [Path(quire.__file__).parent.parent, Path(found.submodule_search_locations[0]).parent]
    return {"PYTHONPATH": ":".join(str(f.resolve()) for f in folders)}


class Process:
    """A running process and its pipes. Every one that was started must be ended."""

    def __init__(self, child: subprocess.Popen[bytes], line_max: int) -> None:
        self._child = child
        self._lines = asyncio.StreamReader(limit=line_max + 1)
        self._transports: list[asyncio.ReadTransport | asyncio.WriteTransport] = []
        self._writer: asyncio.StreamWriter | None = None
        self._ending: asyncio.Future[tuple[int, str]] | None = None

    @staticmethod
    async def start(*, name: str, line_max: int) -> Process:
        """Start the process of a script. line_max: bytes of the longest line it may say.

        Raises Unsupported where scripts cannot run, StorageUnavailable when the system has no room for a process.
        """
        try:
            child = subprocess.Popen(  # noqa: S603, ASYNC220 - our own interpreter; spawning takes a millisecond
                command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=environment(),
                cwd="/",
                start_new_session=True,  # Ctrl-C at the terminal is for us, who then end it
            )
        except OSError as cause:
            raise StorageUnavailable(f"no process for script {name} could be started: {cause}") from cause
        process = Process(child, line_max)
        try:
            await process._connect()
        except BaseException:
            await process.end()
            raise
        return process

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        hearing = asyncio.StreamReaderProtocol(self._lines)
        self._transports.append((await loop.connect_read_pipe(lambda: hearing, self._child.stdout))[0])
        speaking = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: speaking, self._child.stdin)
        self._transports.append(transport)
        self._writer = asyncio.StreamWriter(transport, speaking, None, loop)

    async def send(self, line: bytes) -> None:
        """Write a line. One that nobody reads any more is no error: what was said last is still to be read."""
        assert self._writer is not None
        try:
            self._writer.write(line)
            await self._writer.drain()
        except (BrokenPipeError, ConnectionResetError):
            return

    async def line(self) -> bytes:
        """Return the next line, nothing when there is none any more. Raises asyncio.LimitOverrunError."""
        try:
            return await self._lines.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return b""

    async def end(self) -> tuple[int, str]:
        """Kill the process if it is alive, and reap it; may be called again.

        Returns its code, negative for a signal, and the last line it wrote to stderr. A process that was dying already
        keeps the code it died with.
        """
        if self._ending is None:
            for transport in self._transports:
                transport.close() if isinstance(transport, asyncio.ReadTransport) else transport.abort()
            self._child.kill()
            self._ending = asyncio.ensure_future(apart(self._reaped))
        return await asyncio.shield(self._ending)

    def _reaped(self) -> tuple[int, str]:
        """Wait for the end. Stderr is read only now: a process that fills that pipe waits until its time is over."""
        code = self._child.wait()
        assert self._child.stderr is not None
        with self._child.stderr as stderr:
            os.set_blocking(stderr.fileno(), False)
            said = stderr.read(_STDERR_MAX) or b""
        return code, said.decode(errors="replace").strip().rpartition("\n")[2][:300]
