"""A thread with a connection of its own that does one job after the other.

Here is also what the SQLite backend uses of the driver's connection, typed: the driver's own types are not complete.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from quire.storage._jobs import Jobs

T = TypeVar("T")

BUSY_S = 30.0
"""How long a lock of another process is waited for."""


class Rows(Protocol):
    """The answer to a statement."""

    @property
    def get(self) -> Any:
        """The only value of the only row, or None."""
        ...

    def fetchone(self) -> Any:
        """The next row as a tuple, or None."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Db(Protocol):
    """A connection, as far as it is used here."""

    @property
    def in_transaction(self) -> bool:
        """Whether a BEGIN is open."""
        ...

    def execute(self, statements: str, bindings: Sequence[Any] | None = None) -> Rows:
        """Run statements."""
        ...

    def executemany(self, statements: str, sequenceofbindings: Iterable[Sequence[Any]]) -> Rows:
        """Run a statement once for each row."""
        ...

    def pragma(self, name: str, value: Any = None) -> Any:
        """Read or set a pragma."""
        ...

    def changes(self) -> int:
        """Rows the last statement changed."""
        ...

    def wal_checkpoint(self, dbname: str | None = None, mode: int = 0) -> tuple[int, int]:
        """Copy the write-ahead log into the file."""
        ...

    def set_busy_handler(self, callable: Callable[[int], bool] | None) -> None:  # noqa: A002 - the driver's name
        """Say what to do while another holds the lock."""
        ...

    def set_wal_hook(self, callable: Callable[[object, str, int], int] | None) -> None:  # noqa: A002 - the driver's name
        """Be told of the pages of the log after each transaction, instead of SQLite's own copying at times."""
        ...

    def readonly(self, name: str) -> bool:
        """Whether the file can only be read."""
        ...

    def close(self, force: bool = False) -> None:
        """Close; with force, whatever happens."""
        ...


def patience(limit_s: float | None = None) -> Callable[[int], bool]:
    """Return a busy handler, for `BUSY_S` by default: short random pauses, so that nobody is always last."""
    until = 0.0

    def wait(attempts: int) -> bool:
        nonlocal until
        if attempts == 0:
            until = time.monotonic() + (BUSY_S if limit_s is None else limit_s)
        elif time.monotonic() > until:
            return False
        time.sleep(random.uniform(0.0002, 0.003))  # noqa: S311 - jitter, no secret
        return True

    return wait


class Worker:
    """One thread, one connection, made by the first job that needs it."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], Db],
        translate: Callable[[BaseException], BaseException],
        rest: Callable[[Db], None] | None = None,
    ) -> None:
        """translate: from the driver's exceptions to ours.  rest: run once when it grows quiet after jobs."""
        self._connect = connect
        self._rest = rest
        self._db: Db | None = None
        self._jobs = Jobs(name, translate, None if rest is None else self._relax)

    @property
    def waiting(self) -> int:
        """Jobs asked for and not answered yet."""
        return self._jobs.waiting

    def do(self, job: Callable[[Db], T]) -> asyncio.Future[T]:
        """Queue a job; the future brings its result or our exception for what it raised."""

        def connected() -> T:
            if self._db is None:
                self._db = self._connect()
            return job(self._db)

        return self._jobs.do(connected)

    def run(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Queue a job that needs no connection; it may use `connection` and `close`."""
        return self._jobs.do(job)

    def disconnect(self) -> asyncio.Future[None]:
        """Close the connection; the next job opens a new one."""
        return self._jobs.do(self.close)

    def end(self) -> None:
        """Finish what is queued and end the thread; the connection stays. Blocks."""
        self._jobs.stop()

    def stop(self) -> None:
        """Finish what is queued, close the connection, end the thread. Blocks."""
        self.end()
        self.close()

    @property
    def connection(self) -> Db | None:
        """The connection, if there is one. In this thread, or after its end."""
        return self._db

    def close(self) -> None:
        """Close the connection. In this thread, or after its end."""
        db, self._db = self._db, None
        if db is not None:
            db.close(True)

    def _relax(self) -> None:
        if self._db is not None and self._rest is not None:
            self._rest(self._db)
