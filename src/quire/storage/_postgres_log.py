"""The session that commits: calls go to the server in the order they were made, and a lost one is settled.

1. One round is on its way at a time; what is asked meanwhile, by several calls, goes together in the next: one
   round trip, one transaction, one fsync, however many wait.
2. A round that failed breaks the line. Nothing is sent any more until `settle`.
3. The session holds a lock under a number of its own from its beginning to its end. A commit whose session was lost
   may still be on its way in the server: `settle` ends that session and then gets its lock, so it is over. Only then
   is known what is stored, and nothing can land later.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from quire.errors import Closed, InvalidState, StorageUnavailable
from quire.failpoints import hit
from quire.storage._postgres_items import Round, arguments, outcomes, rounds
from quire.storage._postgres_line import ANSWER_S, Db, Place, connect, end, ours, translated
from quire.storage._postgres_schema import LOCK_SESSION, Server, prepare
from quire.storage._waiting import patiently
from quire.storage.base import Item, Outcome

PATIENCE_S = 30.0
"""How long `settle` waits for a server that is starting again."""

_COMMIT = (
    "SELECT * FROM commit_items($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,"
    " $20, $21)"
)
_MARK = "SELECT pg_advisory_lock($1, $2)"
_UNMARK = "SELECT pg_advisory_unlock($1, $2)"
_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 2"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = $1::bigint::oid AND objid = $2::bigint::oid AND pid <> pg_backend_pid()"
)


class _Call:
    """One call of `commit`: its rounds, what has been answered, and who waits."""

    __slots__ = ("answered", "count", "future", "rounds")

    def __init__(self, items: Sequence[Item], future: asyncio.Future[list[Outcome]]) -> None:
        self.rounds = deque(rounds(items))
        self.count = len(items)
        self.answered: list[Outcome] = []
        self.future = future

    def answer(self, found: list[Outcome]) -> None:
        """Take the outcomes of the next items."""
        self.answered += found
        if len(self.answered) == self.count and not self.future.done():
            self.future.set_result(self.answered)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits."""
        if not self.future.done():
            self.future.set_exception(error)


class CommitLine:
    """The one way of a handle's commits to the server."""

    def __init__(self, place: Place, namespace: str, now_ms: Callable[[], int] | None) -> None:
        """now_ms: the clock that cells expire by, UTC milliseconds; None for the server's."""
        self.broken = False
        self.server: Server | None = None
        self._place = place
        self._namespace = namespace
        self._now_ms = now_ms
        self._db: Db | None = None
        self._mark = 0
        """What the session is known by, on the server."""
        self._calls: deque[_Call] = deque()
        self._round = Round()
        """What is on its way."""
        self._task: asyncio.Task[None] | None = None
        self._settling = asyncio.Lock()

    async def start(self) -> Server:
        """Begin the session; make, upgrade or refuse the store. Raises our errors."""
        db = await connect(self._place)
        try:
            with translated(self._place):
                server = await prepare(db, self._place)
                mark = secrets.randbelow(2**31)
                await db.execute(_MARK, LOCK_SESSION, mark)
        except BaseException:
            await end(db)
            raise
        self._db, self._mark, self.server = db, mark, server
        return server

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Queue a call and wait for its outcomes."""
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._calls.append(_Call(items, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await future

    async def settle(self) -> None:
        """After a failure: end the session that it happened on, and begin another. Raises StorageError if it cannot."""
        async with self._settling:
            while self._task is not None:
                await asyncio.wait([self._task])
            old, mark = self._db, self._mark
            if old is not None:
                old.terminate()
            await self._begin_again(mark)
            self.broken = False

    async def close(self) -> None:
        """Finish what is queued and end the session."""
        async with self._settling:
            while self._task is not None:
                await asyncio.wait([self._task])
            db, self._db = self._db, None
        if db is not None:
            await end(db)

    async def _begin_again(self, mark: int) -> None:
        await patiently(self.start, PATIENCE_S)
        db = self._db
        assert db is not None
        try:
            with translated(self._place):
                await db.fetch(_END, LOCK_SESSION, mark)
                await db.execute(_MARK, LOCK_SESSION, mark, timeout=ANSWER_S)
                await db.execute(_UNMARK, LOCK_SESSION, mark)
        except BaseException:
            db.terminate()
            self._mark = mark  # the old one is still to be settled
            raise

    async def _drain(self) -> None:
        try:
            while self._calls:
                taken = self._gather()
                try:
                    await self._send(taken)
                except BaseException as error:  # whoever waits has to be told, whatever it was
                    said = ours(error, self._place)
                    if isinstance(said, InvalidState):
                        self.broken = False  # refused before anything of it was stored, and the session is well
                    self._fail(taken, said if isinstance(said, Exception) else Closed("the store is shutting down"))
                    if not isinstance(said, Exception):
                        raise
        finally:
            self._task = None

    def _gather(self) -> list[tuple[_Call, int]]:
        """Return the calls whose items go into the next round, and how many items of each: the first, and those after
        it as long as each fits whole."""
        first = self._calls[0]
        self._round = first.rounds.popleft()
        taken = [(first, len(self._round.items))]
        while not first.rounds and len(self._calls) > len(taken):
            following = self._calls[len(taken)]
            if len(following.rounds) != 1 or not self._round.joins(following.rounds[0]):
                break
            following.rounds.clear()
            taken.append((following, following.count))
        for call, _ in taken:
            if not call.rounds:
                self._calls.popleft()
        return taken

    async def _send(self, taken: list[tuple[_Call, int]]) -> None:
        if self.broken:
            raise StorageUnavailable(f"{self._place}: an earlier commit failed; `recover` has to settle it first")
        items = self._round.items
        columns = arguments(items)
        self.broken = True  # until it is known to have gone well
        db = self._db
        if db is None or db.is_closed():  # idle when it was lost: nothing of ours was on its way
            await self.start()
            db = self._db
        assert db is not None
        hit("commit:before")
        clock = None if self._now_ms is None else self._now_ms()
        row: Any = await db.fetchrow(_COMMIT, self._namespace, clock, *columns, timeout=ANSWER_S)
        hit("commit:after")
        self.broken = False
        found = outcomes(items, row)
        start = 0
        for call, count in taken:
            call.answer(found[start : start + count])
            start += count

    def _fail(self, taken: list[tuple[_Call, int]], error: Exception) -> None:
        for call, _ in taken:
            call.fail(error)
            if self._calls and self._calls[0] is call:  # the rest of it is not sent
                self._calls.popleft()
