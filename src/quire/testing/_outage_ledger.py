"""What writers were told while their server went down and up, and what of it holds when all is over.

Marks are counted three ways: acknowledged ones are there at the version that was told; those refused for good are not
there; all others are there once or not at all.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import quire
from quire.errors import NotFound, OutcomeUnknown, QuireError
from quire.model import WORKFLOWS, Set
from quire.storage.open import open_backend

WAIT_S = 60.0
"""A writer that gets nothing acknowledged for so long hangs."""


class Ledger:
    """What the writers were told.

    acked: (workflow, version) to mark.  refused: marks that a retryable error was told of, by workflow: nothing of them
    is stored.  errors: by type, how often.  wrong: what nobody may be told, or may see.
    """

    def __init__(self) -> None:
        self.acked: dict[tuple[int, int], str] = {}
        self.refused: set[tuple[int, str]] = set()
        self.errors: dict[str, int] = {}
        self.wrong: list[BaseException] = []
        self.stopping = False
        self._dark = False
        self._newest: dict[int, int] = {}
        self._more = threading.Condition()

    def __str__(self) -> str:
        return f"{len(self.acked)} acknowledged; told in between: {self.errors or 'nothing'}"

    @contextmanager
    def without_power(self) -> Generator[None]:
        """Keep no acknowledgement meanwhile: what would be told then, no machine without power tells.

        A disk that is cut off by software is not as quick about it: a sync that is under way may still say that it went
        well, to a server that still runs.
        """
        with self._more:
            self._dark = True
        yield
        with self._more:
            self._dark = False

    def add(self, workflow: int, version: int, mark: str) -> bool:
        """Keep an acknowledgement; tell whether it counts."""
        with self._more:
            if self._dark:
                return False
            self.acked.setdefault((workflow, version), mark)  # a number that is given again hides no loss
            self._newest[workflow] = version
            self._more.notify_all()
            return True

    def newest(self, workflow: int) -> int:
        """Return the newest version of a workflow that was acknowledged."""
        return self._newest.get(workflow, 0)

    def failed(self, error: QuireError, workflow: int | None = None, mark: str = "") -> None:
        """Count an error that may be told; with a workflow, of a write that is not tried again."""
        with self._more:
            name = type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1
            if workflow is not None and not isinstance(error, OutcomeUnknown):
                self.refused.add((workflow, mark))

    def gave_up(self, error: BaseException) -> None:
        """Keep an error that nobody may be told."""
        with self._more:
            self.wrong.append(error)
            self._more.notify_all()

    def wait_for(self, more: int) -> None:
        """Wait until that many more writes are acknowledged, or somebody gave up."""
        with self._more:
            wanted = len(self.acked) + more
            if not self._more.wait_for(lambda: len(self.acked) >= wanted or bool(self.wrong), WAIT_S):
                raise AssertionError(f"nothing was acknowledged for {WAIT_S:g} s; errors: {self.errors}")


def may_be_told(error: QuireError) -> bool:
    """Whether an error leaves no doubt what to do: try again, or look first."""
    return error.retryable or isinstance(error, OutcomeUnknown)


def losses(
    url: str, acked: Mapping[tuple[int, int], str], writers: int, refused: set[tuple[int, str]] | None = None
) -> list[tuple[int, int]]:
    """Return what was acknowledged and is not there, of workflows `w0`, `w1`, ... that keep a mark in `last`.

    acked, refused: as in a `Ledger`. In workflows with a counter `n`, it has to count their writes.
    Raises AssertionError where the log is not sound, a write is there twice, or one is there that was refused.
    """
    lost: list[tuple[int, int]] = []
    there: list[tuple[str, int]] = []
    with quire.sync.open(url) as store:
        report = store.verify()
        assert report.ok, report.problems
        for w in range(writers):
            told = {version: mark for (flow, version), mark in acked.items() if flow == w}
            wf = store.workflow(f"w{w}")
            try:
                versions = wf.history(order="oldest")
            except NotFound:
                lost += [(w, version) for version in told]
                continue
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            there += [(f"{WORKFLOWS}w{w}", v.number) for v in versions]
            marks = {v.number: _mark(v) for v in versions[1:]}
            assert len(set(marks.values())) == len(marks), f"w{w}: a write happened twice"
            assert wf.get("/n", default=len(marks)) == len(marks), f"w{w}: what was counted is not what is there"
            denied = {mark for flow, mark in refused or () if flow == w} & set(marks.values())
            assert not denied, f"w{w}: {denied} were refused, and are there"
            lost += [(w, version) for version, mark in told.items() if marks.get(version) != mark]
    assert sorted(asyncio.run(_fed(url))) == sorted(there), "the feed is not what the workflows are"
    return lost


async def _fed(url: str) -> list[tuple[str, int]]:
    """Return what the feed tells of workflows."""
    found: list[tuple[str, int]] = []
    backend = await open_backend(url, namespace="default")
    try:
        position = 0
        while page := await backend.feed(position):
            position = page[-1].position
            found += [(r.stream, r.version) for r in page if r.stream.startswith(WORKFLOWS)]
    finally:
        await backend.close()
    return found


def _mark(version: quire.Version) -> Any:
    return next((c.value for c in version.changes if isinstance(c, Set) and c.path == ("last",)), None)
