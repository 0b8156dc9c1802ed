"""Kill a server while writers write through the public API, again and again; then count what became of every write.

Each write carries a mark of its own and an idempotency key, and is tried again until it is acknowledged. So every mark
has to be there exactly once, and at the version that was acknowledged. Whatever the writers are told in between has to
be an error that says so: retryable, or that the outcome is not known.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import quire
from quire.errors import NotFound, OutcomeUnknown, QuireError

_WAIT_S = 60.0
"""A writer that gets nothing acknowledged for so long hangs."""


class Ledger:
    """What the writers were told. acked: (workflow, version) to mark.  errors: by type, how often.  wrong: the rest."""

    def __init__(self) -> None:
        self.acked: dict[tuple[int, int], str] = {}
        self.errors: dict[str, int] = {}
        self.wrong: list[BaseException] = []
        self.stopping = False
        self._more = threading.Condition()

    def add(self, workflow: int, version: int, mark: str) -> None:
        """Keep an acknowledgement."""
        with self._more:
            self.acked[workflow, version] = mark
            self._more.notify_all()

    def failed(self, error: QuireError) -> None:
        """Count an error that a writer may be told."""
        with self._more:
            name = type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1

    def gave_up(self, error: BaseException) -> None:
        """Keep an error that no writer may be told."""
        with self._more:
            self.wrong.append(error)
            self._more.notify_all()

    def wait_for(self, more: int) -> None:
        """Wait until that many more writes are acknowledged, or a writer gave up."""
        with self._more:
            wanted = len(self.acked) + more
            if not self._more.wait_for(lambda: len(self.acked) >= wanted or bool(self.wrong), _WAIT_S):
                raise AssertionError(f"nothing was acknowledged for {_WAIT_S:g} s; errors: {self.errors}")


async def _write(url: str, writers: int, ledger: Ledger) -> None:
    async with quire.open(url) as store:

        async def persist(write: Callable[[], Any]) -> Any:
            while True:
                try:
                    return await write()
                except QuireError as error:
                    if ledger.stopping or (not error.retryable and not isinstance(error, OutcomeUnknown)):
                        raise
                    ledger.failed(error)
                    await asyncio.sleep(0.005)  # a server that is down refuses at once

        async def one(w: int) -> None:
            wf = store.workflow(f"w{w}")
            try:
                number = 0
                while not ledger.stopping:
                    number += 1
                    mark = f"{w}-{number}"
                    version = await persist(
                        lambda mark=mark: wf.set("/last", mark, author=f"a{w}", idempotency_key=mark)
                    )
                    ledger.add(w, version.number, mark)
                    found = await persist(lambda: wf.get("/last"))
                    if found != mark:
                        raise AssertionError(f"w{w}: {mark} was acknowledged, and {found} is read right after it")
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - whatever it is, it is reported
                ledger.gave_up(error)

        await asyncio.gather(*(one(w) for w in range(writers)))


def attack(
    url: str,
    outage: Callable[[], None],
    *,
    times: int,
    seed: int,
    writers: int = 4,
    told: Callable[[Ledger], None] | None = None,
) -> tuple[Ledger, list[tuple[int, int]]]:
    """Write to a store while `outage` strikes at random moments; return what was told, and what of it is lost.

    outage: takes the server down and up again; called in this thread, the writers are in another.
    told: is given the ledger before anything is written, for an outage that waits for writers to go on.
    Raises AssertionError where a write is there twice, or the log is not sound.
    """
    chance, ledger = random.Random(seed), Ledger()
    if told is not None:
        told(ledger)
    with quire.sync.open(url) as store:
        for w in range(writers):
            store.create(f"w{w}", {"last": None})
    thread = threading.Thread(target=lambda: asyncio.run(_write(url, writers, ledger)), daemon=True)
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
        thread.join(_WAIT_S)
    assert not thread.is_alive(), "the writers hang"
    return ledger, _losses(url, ledger, writers)


def _losses(url: str, ledger: Ledger, writers: int) -> list[tuple[int, int]]:
    lost: list[tuple[int, int]] = []
    with quire.sync.open(url) as store:
        report = store.verify()
        assert report.ok, report.problems
        for w in range(writers):
            told = {version: mark for (flow, version), mark in ledger.acked.items() if flow == w}
            try:
                versions = store.workflow(f"w{w}").history(order="oldest")
            except NotFound:
                lost += [(w, version) for version in told]
                continue
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            marks = {v.number: getattr(v.changes[0], "value", None) for v in versions[1:]}
            assert len(set(marks.values())) == len(marks), f"w{w}: a write happened twice"
            lost += [(w, version) for version, mark in told.items() if marks.get(version) != mark]
    return lost
