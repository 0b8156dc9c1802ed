"""A thread with a connection of its own that does one job after the other.

Jobs go in by a queue; each answer comes back with one wake-up of the event loop that asked. Here is also what
the SQLite backend uses of the driver's connection, typed: the driver's own types are not complete.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

BUSY_S = 30.0
"""How long a lock of another process is waited for."""
_REST_S = 0.25
"""After this long without a job, what is left for quiet moments is done."""


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

    def readonly(self, name: str) -> bool:
        """Whether the file can only be read."""
        ...

    def close(self, force: bool = False) -> None:
        """Close; with force, whatever happens."""
        ...


Job = Callable[[Db], Any]


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
        self.waiting = 0
        """Jobs asked for and not answered yet."""
        self._connect = connect
        self._translate = translate
        self._rest = rest
        self._db: Db | None = None
        self._jobs: SimpleQueue[tuple[Job | None, asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[Db], T]) -> asyncio.Future[T]:
        """Queue a job; the future brings its result or our exception for what it raised."""
        return self._ask(job)

    def disconnect(self) -> asyncio.Future[None]:
        """Close the connection; the next job opens a new one."""
        return self._ask(None)

    def stop(self) -> None:
        """Finish what is queued, close the connection, end the thread. Blocks."""
        self._jobs.put(None)
        self._thread.join()

    def _ask(self, job: Job | None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        self._jobs.put((job, future))
        return future

    def _run(self) -> None:
        quiet = True
        while True:
            try:
                asked = self._jobs.get(timeout=None if quiet else _REST_S)
            except Empty:
                quiet = True
                self._relax()
                continue
            if asked is None:
                self._disconnect()
                return
            self._answer(*asked)
            quiet = self._rest is None
            del asked  # a result must not live until the next job comes

    def _answer(self, job: Job | None, future: asyncio.Future[Any]) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            if job is None:
                self._disconnect()
            else:
                if self._db is None:
                    self._db = self._connect()
                result = job(self._db)
        except BaseException as caught:  # noqa: BLE001 - handed to whoever asked
            error = self._translate(caught)
        with suppress(RuntimeError):  # the loop is gone, and with it everybody who could be told
            future.get_loop().call_soon_threadsafe(self._settle, future, result, error)

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self.waiting -= 1
        if future.done():
            return  # whoever asked was cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _relax(self) -> None:
        # Whatever fails here is put off: the next job meets the same trouble and has somebody to tell.
        with suppress(Exception):
            if self._db is not None and self._rest is not None:
                self._rest(self._db)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close(True)
