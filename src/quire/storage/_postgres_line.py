"""Sessions with a PostgreSQL server: how one begins, what is asked on it, and what an error of the driver means.

1. A session serves one question at a time; who comes later waits in line.
2. What only reads, or may be done twice, is asked once more on a new session when the old one was lost.
3. The password is in the URL that the driver gets, and nowhere else: messages show the URL without it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import asyncpg

from quire.errors import (
    CorruptRecord,
    Denied,
    IncompatibleFormat,
    InvalidKey,
    InvalidState,
    NotFound,
    QuireError,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
)

T = TypeVar("T")

CONNECT_S = 10
"""How long a session may take to begin."""
ANSWER_S = 60.0
"""How long an answer may take; what may be long (VACUUM, verifying) is not bound by it."""
BUSY_S = 30.0
"""How long a lock of another session is waited for."""
_CLOSE_S = 5.0

_SETTINGS = {
    "application_name": "quire",
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",  # what `commit_items` rests on: it looks after it has the lock
    "lock_timeout": f"{BUSY_S:g}s",
    "statement_timeout": "0",
    "client_min_messages": "warning",
    # Every statement of ours finds its rows by an index, and is to do so from the first row on, when the tables are
    # empty and unknown to the planner, until the last, without being planned again.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "enable_memoize": "off",
    "jit": "off",
}


class Db(Protocol):
    """A session, as far as it is used here: the driver's own types are not complete."""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Any]:
        """All rows."""
        ...

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """The first row, or None."""
        ...

    async def fetchval(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """The first value of the first row, or None."""
        ...

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run statements; several where there are no arguments."""
        ...

    def transaction(self, *, isolation: str = ..., readonly: bool = ...) -> AbstractAsyncContextManager[Any]:
        """A transaction as a context."""
        ...

    def cursor(self, query: str, *args: Any, prefetch: int | None = None) -> Any:
        """Rows one by one, within a transaction."""
        ...

    async def add_listener(self, channel: str, callback: Callable[..., object]) -> None:
        """Hear what is notified."""
        ...

    def add_termination_listener(self, callback: Callable[..., object]) -> None:
        """Hear that the session ended."""
        ...

    def is_closed(self) -> bool:
        """Whether the session has ended."""
        ...

    def terminate(self) -> None:
        """Hang up."""
        ...

    async def close(self, *, timeout: float | None = None) -> None:
        """Say goodbye."""
        ...


class Place(NamedTuple):
    """Where a store is. url: for the driver, with its password.  shown: for people, without."""

    url: str
    schema: str
    shown: str

    def __str__(self) -> str:
        return self.shown


async def connect(place: Place) -> Db:
    """Begin a session with our settings. Raises our errors."""
    settings = {**_SETTINGS, "search_path": f"{place.schema}, pg_temp"}
    with translated(place):
        session = await asyncpg.connect(
            place.url, timeout=CONNECT_S, server_settings=settings, max_cached_statement_lifetime=0
        )
    return cast("Db", session)


async def end(db: Db) -> None:
    """End a session, politely if it still listens."""
    try:
        await db.close(timeout=_CLOSE_S)
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it is hung up
        db.terminate()


class Line:
    """One session, begun when it is needed, begun anew after it was lost."""

    def __init__(self, place: Place) -> None:
        self.waiting = 0
        """Questions asked and not answered yet."""
        self._place = place
        self._db: Db | None = None
        self._turn = asyncio.Lock()

    async def do(self, job: Callable[[Db], Awaitable[T]], *, again: bool = True) -> T:
        """Run a job on the session. again: it may be run a second time when the session is lost in the first."""
        self.waiting += 1
        try:
            async with self._turn:
                begun = self._db
                with translated(self._place):
                    try:
                        return await self._run(job)
                    except Exception:
                        lost = begun is not None and self._db is None
                        if not (again and lost):
                            raise
                    return await self._run(job)
        finally:
            self.waiting -= 1

    async def close(self) -> None:
        """End the session when what is asked on it has been answered."""
        async with self._turn:
            db, self._db = self._db, None
            if db is not None:
                await end(db)

    def hang_up(self) -> None:
        """Drop the session at once; whoever waits for an answer gets an error."""
        db, self._db = self._db, None
        if db is not None:
            db.terminate()

    async def _run(self, job: Callable[[Db], Awaitable[T]]) -> T:
        db = self._db
        if db is None or db.is_closed():
            db = self._db = await connect(self._place)
        try:
            return await job(db)
        except BaseException as error:
            if not refused(error):
                db.terminate()
                if self._db is db:
                    self._db = None
            raise


class Lines:
    """A few sessions, begun as they are needed."""

    def __init__(self, place: Place, count: int) -> None:
        self._place = place
        self._count = count
        self._lines: list[Line] = []

    async def do(self, job: Callable[[Db], Awaitable[T]], *, again: bool = True) -> T:
        """Run a job on the session with the fewest waiting."""
        line = min(self._lines, key=lambda line: line.waiting, default=None)
        if line is None or (line.waiting and len(self._lines) < self._count):
            line = Line(self._place)
            self._lines.append(line)
        return await line.do(job, again=again)

    async def fetch(self, query: str, *args: Any, again: bool = True) -> Sequence[Any]:
        """Ask one question."""
        return await self.do(lambda db: db.fetch(query, *args, timeout=ANSWER_S), again=again)

    def hang_up(self) -> None:
        """Drop all sessions."""
        for line in self._lines:
            line.hang_up()

    async def close(self) -> None:
        """End all sessions."""
        with suppress(StorageError):
            await asyncio.gather(*(line.close() for line in self._lines))


def refused(error: BaseException) -> bool:
    """Whether the server itself said no and the session goes on; after anything else it is of no use any more."""
    return isinstance(error, asyncpg.PostgresError) and not sqlstate(error).startswith(("08", "57P"))


def sqlstate(error: BaseException) -> str:
    """Return the code that the server gave an error, "" where the driver made it."""
    return str(getattr(error, "sqlstate", None) or "")


@contextmanager
def translated(place: object) -> Generator[None]:
    """Turn the driver's exceptions into ours."""
    try:
        yield
    except Exception as error:
        said = ours(error, place)
        if said is error:
            raise
        raise said from error


def ours(error: BaseException, place: object) -> BaseException:
    """Return our exception for one of the driver's, with it as the cause; any other comes back as it is."""
    said = _meaning(error, place)
    if said is not error:
        said.__cause__ = error
    return said


def refusal(error: StorageUnavailable) -> Exception:
    """Return what it is that the server refused at opening: then it is for the caller to change something.

    Later it is not: a server that took us before and does not now is out of order, not we.
    """
    state = sqlstate(error.__cause__) if error.__cause__ else ""
    kind = next((kind for prefix, kind in _REFUSALS if state.startswith(prefix)), None)
    return kind(str(error)) if kind else error


def _meaning(error: BaseException, place: object) -> BaseException:
    state = sqlstate(error)
    for prefix, kind, said in _MEANINGS:
        if state and state.startswith(prefix):
            return kind(f"{place}: {said} ({error})")
    match error:
        case QuireError():
            return error
        case TimeoutError():
            return StorageTimeout(f"{place}: no answer in time; see that the server is well, then try again")
        case asyncpg.DataError() | UnicodeEncodeError() | OverflowError():
            return InvalidState(f"{place}: a value cannot be stored ({error}); nothing of this commit was")
        case asyncpg.ClientConfigurationError():
            return InvalidKey(f"{place}: the driver does not understand this URL ({error})")
        case (
            asyncpg.PostgresError() | asyncpg.InterfaceError() | asyncpg.InternalClientError() | OSError() | EOFError()
        ):
            said = f"{type(error).__name__}: {error}"
            return StorageUnavailable(f"{place}: {said}; see that the server runs and can be reached, then try again")
        case _:
            return error


def corrupt(message: str) -> CorruptRecord:
    """Return what is said of tables that are not as we made them."""
    return CorruptRecord(message, at="schema")


def incompatible(message: str) -> IncompatibleFormat:
    """Return what is said of a schema that went away under us."""
    return IncompatibleFormat(message, found="none")


_MEANINGS: tuple[tuple[str, Callable[[str], Exception], str], ...] = (
    ("28", StorageUnavailable, "the server refuses user or password; see the URL, or the server's pg_hba.conf"),
    ("3D000", StorageUnavailable, "there is no such database; make it with `createdb`"),
    (
        "42501",
        StorageUnavailable,
        "this role may not do that; GRANT it CREATE on the database, or let it own the schema",
    ),
    ("25006", StorageUnavailable, "the server can only be read; give the URL of the primary"),
    ("53100", StorageFull, "the server's disk is full; free some space and write again"),
    ("53300", StorageUnavailable, "the server has no connection free; close some, or raise max_connections"),
    ("53", StorageUnavailable, "the server is short of something; try again, or give it more"),
    ("54000", InvalidState, "a value is larger than the server takes; nothing of this commit was stored"),
    ("55P03", StorageTimeout, f"another session held the lock for {BUSY_S:g} s; try again, or find out who"),
    ("57P03", StorageUnavailable, "the server is starting or stopping; try again in a moment"),
    ("57", StorageUnavailable, "the server ended the session; try again"),
    ("XX001", corrupt, "the server found its data damaged; restore a backup"),
    ("XX002", corrupt, "the server found an index damaged; REINDEX it"),
    ("3F000", incompatible, "the schema of the store is gone; open it anew"),
    ("42", corrupt, "the tables are not as Quire made them; run `quire verify`, restore a backup"),
    ("22", InvalidState, "a value cannot be stored; nothing of this commit was"),
    ("23", corrupt, "the tables hold what cannot be there; run `quire verify`, restore a backup"),
)
"""What a code of the server means, the first that fits: the beginning of the code, our error, what to say."""

_REFUSALS: tuple[tuple[str, Callable[[str], Exception]], ...] = (("28", Denied), ("42501", Denied), ("3D000", NotFound))
"""The same for what is refused at opening."""
