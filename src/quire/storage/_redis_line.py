"""A connection to Redis on which commands are answered in the order they were sent, and errors of ours.

Several callers may have a command under way at once: they are sent one behind the other without waiting for answers.
A line that broke fails everything that was under way on it, and nothing is sent on it again until it is opened anew.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import hiredis
from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from quire.errors import (
    Closed,
    CorruptRecord,
    Denied,
    IncompatibleFormat,
    InvalidKey,
    QuireError,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)

Word = str | bytes | int

_CODE = re.compile(
    r"(?:^|[\s-])(OOM|MISCONF|READONLY|NOPERM|NOAUTH|WRONGPASS|LOADING|BUSY|MASTERDOWN|FENCED|FORMAT|LOST|NOSCRIPT"
    r"|WRONGTYPE|CROSSSLOT|MOVED|CLUSTERDOWN|DB index is out of range)(?=\s|$)"
)
_STRIPPED: dict[type[RedisError], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    NoPermissionError: "NOPERM",
    AuthenticationError: "NOAUTH",
    BusyLoadingError: "LOADING",
    NoScriptError: "NOSCRIPT",
}
"""Of these the driver takes the code off the text."""


class Forgotten(StorageUnavailable):
    """The server no longer knows our scripts: it was restarted or told to forget them. Opening a line gives them anew."""


_WHO = "user or password is wrong; write redis://USER:PASSWORD@HOST:PORT/DB"
_ANSWERS: dict[str, tuple[type[QuireError], str]] = {
    "OOM": (StorageFull, "Redis is out of memory; raise maxmemory, or trim and drop"),
    "MISCONF": (StorageFull, "Redis cannot write its files; see its log and its disk"),
    "READONLY": (StorageUnavailable, "this is a read-only replica; name the primary"),
    "MASTERDOWN": (StorageUnavailable, "this is a replica that lost its primary; name the primary"),
    "LOADING": (StorageUnavailable, "Redis is still loading its data; try again"),
    "BUSY": (StorageTimeout, "Redis is busy with a long script; try again"),
    "FENCED": (StorageUnavailable, "`recover` has to begin a new session"),
    "NOSCRIPT": (Forgotten, "the server was restarted or told to forget scripts; try again"),
    "NOPERM": (Denied, "this user may not do that; give it the rights for scripts, its prefix and its channel"),
    "NOAUTH": (Denied, _WHO),
    "WRONGPASS": (Denied, _WHO),
    "WRONGTYPE": (CorruptRecord, "a key of the store was replaced by something else"),
    "DB index is out of range": (InvalidKey, "the server has no database of that number"),
}


class Refusal(StorageError):
    """The server said no to a command, for a reason that none of our other errors names."""


class Address:
    """Where a server is, and who we are there. `shown` has no password."""

    def __init__(
        self, host: str, port: int, db: int, username: str | None, password: str | None, tls: bool, ca: str | None
    ) -> None:
        self._options: dict[str, Any] = {"host": host, "port": port, "db": db, "username": username}
        self._options["password"] = password
        self._tls = tls
        if ca is not None:
            self._options["ssl_ca_certs"] = ca
        place = f"[{host}]" if ":" in host else host
        self.shown = f"{'rediss' if tls else 'redis'}://{place}:{port}/{db}"

    def connection(self, timeout_s: float) -> Connection:
        """Return a connection that is not open yet. Retrying is the caller's: a commit must not be sent twice."""
        kind = SSLConnection if self._tls else Connection
        return kind(**self._options, protocol=2, socket_timeout=None, socket_connect_timeout=timeout_s)


class Line:
    """One connection at a time, opened by `open`."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        """timeout_s: how long an answer may take before the line counts as broken."""
        self._address = address
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()
        self._connection: Connection | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reader: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._connection is not None and self._connection.is_connected

    async def open(self, scripts: Sequence[str] = ()) -> None:
        """Connect unless connected, and give the server the scripts. Raises StorageError, Denied, InvalidKey."""
        async with self._turn:
            if self.is_open:
                return
            await self.reset()
            connection = self._address.connection(self._timeout_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await connection.connect()
                    for script in scripts:
                        await connection.send_command("SCRIPT", "LOAD", script)
                        await connection.read_response()
            except (RedisError, OSError) as error:
                await connection.disconnect(nowait=True)
                raise ours(error, self._address.shown) from error
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
            self._connection = connection
            self._reader = asyncio.create_task(self._read(connection, self._waiting))

    async def ask(self, *words: Word) -> Any:
        """Send a command and return its answer. Raises StorageError: whether it took effect is then not known."""
        return await self.answer(await self.send(*words))

    async def send(self, *words: Word) -> asyncio.Future[Any]:
        """Send a command behind those before it; return what `answer` waits for."""
        command = hiredis.pack_command(words)  # pyright: ignore[reportArgumentType] - declared as a tuple of one
        waiting: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        async with self._turn:
            connection = self._connection
            if connection is None or not connection.is_connected:
                raise StorageUnavailable(f"{self._address.shown}: the connection is gone; try again")
            self._waiting.append(waiting)
            try:
                await connection.send_packed_command(command, check_health=False)
            except (RedisError, OSError) as error:
                failure = ours(error, self._address.shown)
                await self._drop(failure)
                raise failure from error
            except BaseException:
                await self._drop(StorageUnavailable(f"{self._address.shown}: a command was given up while it was sent"))
                raise
        return waiting

    async def answer(self, waiting: asyncio.Future[Any]) -> Any:
        """Wait for what the server says to a command; breaks the line where it says nothing for too long."""
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout_s):
                return await waiting
        except StorageTimeout:
            raise
        except TimeoutError as error:
            late = StorageTimeout(f"{self._address.shown} did not answer within {self._timeout_s:g} s")
            if self._connection is connection:  # and not one that was opened meanwhile
                await self._drop(late)
            raise late from error

    async def reset(self) -> None:
        """Break the line; what is under way fails with StorageUnavailable."""
        await self._drop(StorageUnavailable(f"{self._address.shown}: connecting anew"))

    async def close(self) -> None:
        """Break the line; what is under way fails with Closed."""
        await self._drop(Closed("the store is closed; open it again"))

    async def _read(self, connection: Connection, waiting: deque[asyncio.Future[Any]]) -> None:
        while True:
            answer: Any = None
            failure: QuireError | None = None
            try:
                answer = await connection.read_response()
            except ResponseError as error:  # an answer to one command
                failure = ours(error, self._address.shown)
                failure.__cause__ = error
            except (RedisError, OSError) as error:  # the end of the connection
                failure = ours(error, self._address.shown)
                failure.__cause__ = error
                self._reader = None
                await self._drop(failure)
                return
            future = waiting.popleft()
            if future.done():  # its caller was cancelled
                continue
            if failure is None:
                future.set_result(answer)
            else:
                future.set_exception(failure)

    async def _drop(self, failure: QuireError) -> None:
        """Fail what is under way and let the connection go."""
        connection, self._connection = self._connection, None
        reader, self._reader = self._reader, None
        waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            if not future.done():
                future.set_exception(failure)
                future.exception()  # seen: its caller may be gone
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
        if connection is not None:
            with suppress(RedisError, OSError):  # it is let go, however it ends
                await connection.disconnect()


def ours(error: Exception, shown: str) -> QuireError:
    """Return what a driver's error means to us."""
    text = str(error)
    found = _CODE.search(text)
    code = found[1] if found else next((c for kind, c in _STRIPPED.items() if isinstance(error, kind)), "")
    if code in _ANSWERS:
        kind, said = _ANSWERS[code]
        return kind(f"{shown}: {said} ({text})")
    if code == "LOST":
        return CorruptRecord(
            f"{shown}: {text.removeprefix('LOST ')} is gone from the server, which evicted or deleted it, was flushed or "
            "restarted without its data; nothing was written: see `quire verify`, and restore a backup"
        )
    if code == "FORMAT":
        known = text.removeprefix("FORMAT ")
        return IncompatibleFormat(
            f"{shown}: the store has the format {known!r}, which this version cannot read; "
            "upgrade quire, or choose another place with ?prefix=",
            found=known,
        )
    if code in ("CROSSSLOT", "MOVED", "CLUSTERDOWN"):
        return Unsupported(f"{shown}: a Redis cluster cannot hold a store ({text})", capability="cluster")
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return StorageTimeout(f"{shown} did not answer in time ({text}); try again")
    if isinstance(error, ResponseError):
        if "unknown command" in text:
            return Unsupported(f"{shown} does not know or allow a command ({text})", capability="redis command")
        return Refusal(f"{shown}: Redis refused a command ({text}); `quire verify` looks for damage")
    return StorageUnavailable(f"{shown} cannot be reached ({text}); start Redis there, or correct the URL")
