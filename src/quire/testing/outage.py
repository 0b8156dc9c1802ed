"""Strike a server while writers write through the public API, again and again; then count what became of every write.

1. Every write carries a mark of its own and counts itself. Half of the writers give an idempotency key and try again
   until they are told that it is done; the others try once, and what they are told is held against the log.
2. Whatever anybody is told in between has to be an error that says so: retryable, or that the outcome is not known.
3. A reader sees no version disappear, a watcher hears of every version, and of none twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import quire
from quire import Increment, QuireError, Set, Store, Version, Workflow
from quire.testing._outage_ledger import WAIT_S, Ledger, losses, may_be_told
from quire.testing.disk import Disk
from quire.testing.servers import Server

T = TypeVar("T")

__all__ = ["Ledger", "attack", "killed", "lose_power", "losses", "served_from"]

_PAUSE_S = 0.005
"""Between two tries of a write: a server that is down refuses at once."""


class _Crew:
    """Writers, and who watches them, on one open store."""

    def __init__(self, store: Store, ledger: Ledger, *, early: bool) -> None:
        self._store = store
        self._ledger = ledger
        self._early = early
        self._heard: list[tuple[str, int]] = []
        self._more = asyncio.Event()

    async def write(self, w: int) -> None:
        """Write until told to stop, and read each write back."""
        wf, ledger, number = self._store.workflow(f"w{w}"), self._ledger, 0
        while not ledger.stopping:
            number += 1
            mark = f"{w}-{number}"
            if self._early:
                ledger.add(w, (await self._persist(wf.version)).number + 1, mark)
            version = await self._apply(wf, w, mark)
            if version is None:
                continue
            if not self._early and not ledger.add(w, version.number, mark):
                continue
            found = await self._persist(lambda: wf.get("/last"))
            if found != mark:
                raise AssertionError(f"w{w}: {mark} was acknowledged, and {found} is read right after it")

    async def _apply(self, wf: Workflow, w: int, mark: str) -> Version | None:
        changes = [Increment(("n",), 1), Set(("last",), mark)]
        if w % 2:
            return await self._persist(lambda: wf.apply(changes, author=f"a{w}", idempotency_key=mark))
        try:
            return await wf.apply(changes, author=f"a{w}")
        except QuireError as error:
            if not may_be_told(error):
                raise
            self._ledger.failed(error, w, mark)
            await asyncio.sleep(_PAUSE_S)
            return None

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask again until there is an answer."""
        until = time.monotonic() + WAIT_S
        while True:
            try:
                return await ask()
            except QuireError as error:
                if not may_be_told(error) or time.monotonic() > until:
                    raise
                self._ledger.failed(error)
                await asyncio.sleep(_PAUSE_S)

    async def read(self) -> None:
        """See no version disappear."""
        wf, seen = self._store.workflow("w0"), 0
        while not self._ledger.stopping:
            known = self._ledger.newest(0)
            found = (await self._persist(wf.version)).number
            if found < max(seen, known):
                raise AssertionError(f"a reader saw version {found} after {max(seen, known)}")
            seen = found

    async def listen(self) -> None:
        """Hear of everything."""
        async for event in self._store.watch(after=0):
            self._heard.append((event.version.workflow_id, event.version.number))
            self._more.set()

    async def all_heard(self, writers: int) -> None:
        """Wait until the watcher heard of everything, and fail if it heard of something twice."""
        there: list[tuple[str, int]] = []
        for w in range(writers):
            newest = await self._persist(self._store.workflow(f"w{w}").version)
            there += [(f"w{w}", number) for number in range(1, newest.number + 1)]
        while len(set(self._heard)) < len(there):
            self._more.clear()
            await self._more.wait()
        if sorted(self._heard) != sorted(there):
            raise AssertionError("the watcher heard of something twice")


async def _work(url: str, writers: int, ledger: Ledger, *, early: bool, witnesses: bool) -> None:
    over = False

    async def honest(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is reported
            if not over:
                ledger.gave_up(error)

    async with quire.open(url) as store:
        crew = _Crew(store, ledger, early=early)
        works = [crew.write(w) for w in range(writers)]
        if not witnesses:
            await asyncio.gather(*map(honest, works))
            return
        watcher = asyncio.create_task(honest(crew.listen()))
        await asyncio.gather(*map(honest, works), honest(crew.read()))
        if not ledger.wrong:
            await honest(asyncio.wait_for(crew.all_heard(writers), WAIT_S))
        over = True
        watcher.cancel()
        await watcher


def attack(
    url: str,
    outage: Callable[[], None],
    *,
    times: int,
    seed: int,
    writers: int = 4,
    begun: Callable[[Ledger], None] | None = None,
    early: bool = False,
    witnesses: bool = True,
) -> tuple[Ledger, list[tuple[int, int]]]:
    """Write to a store while `outage` strikes at random moments; return what was told, and what of it is lost.

    outage: takes the server down and up again; called in this thread, the writers are in another.
    begun: is given the ledger when the workflows are there and nothing is written yet.
    early: acknowledge what is not yet so, the negative control.  witnesses: whether somebody reads and watches.
    Raises AssertionError where the log is not sound, or anything was there twice, or in spite of an error.
    """
    chance, ledger = random.Random(seed), Ledger()
    with quire.sync.open(url) as store:
        for w in range(writers):
            store.create(f"w{w}", {"n": 0, "last": None})
    if begun is not None:
        begun(ledger)

    def run() -> None:
        try:
            asyncio.run(_work(url, writers, ledger, early=early, witnesses=witnesses))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
            ledger.gave_up(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        for _ in range(times):
            ledger.wait_for(chance.randint(1, 40))
            outage()
            if ledger.wrong:
                break
        if not ledger.wrong:
            ledger.wait_for(2 * writers)  # all went on
    finally:
        ledger.stopping = True
        thread.join(2 * WAIT_S)
    assert not thread.is_alive(), "the writers hang"
    return ledger, losses(url, ledger.acked, writers, ledger.refused)


def killed(server: Server) -> Callable[[], None]:
    """Return the outage that is SIGKILL and a new start on the same data."""

    def outage() -> None:
        server.kill()
        server.restart()

    return outage


@contextmanager
def served_from(folder: Path, server: Server) -> Generator[None]:
    """Have a server make its folder in another one than the system's for such; at the end it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        server.start()
    finally:
        tempfile.tempdir = before
    try:
        yield
    finally:
        if server.running:
            server.kill()


def lose_power(server: Server, *, times: int, seed: int) -> tuple[Ledger, list[tuple[int, int]]]:
    """Attack a server whose disk is cut off at random moments. Raises DiskMissing, ServerMissing.

    Nobody reads or watches: until the server is killed it may show what has gone with the disk.
    """
    ledgers: list[Ledger] = []
    with Disk() as disk, served_from(disk.folder, server):
        os.sync()  # that its folder is there is not what is looked at

        def outage() -> None:
            with ledgers[0].without_power():
                disk.cut()
                server.kill()
                disk.again()
                server.restart()

        return attack(server.url, outage, times=times, seed=seed, writers=8, begun=ledgers.append, witnesses=False)
