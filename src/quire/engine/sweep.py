"""Sweeping: what retention lets go is moved to the archive, and automatic checkpoints that outlived their use are dropped.

1. Nothing is removed here that cannot be read afterwards: moving is `Archived.shelve`, which removes only what it read back.
2. One workflow that fails, or an archive that is away, never stops the others, a writer or the store; the next sweep
   tries again. What went wrong is in the report and the log, and how old it is in `overdue`.
3. Several processes may sweep one store: whoever comes second finds it done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from quire.calls import in_words, message_of
from quire.config import Retention
from quire.core import retention
from quire.engine.engine import Engine
from quire.engine.lineage import origin
from quire.engine.moving.paging import names
from quire.engine.write import Write
from quire.errors import Closed, Invalid, QuireError
from quire.model import CHECKPOINTS, WORKFLOWS, Delete, Record
from quire.storage.base import Archive, Archived

log = logging.getLogger("quire.sweep")

_PAGE = 500
_TRIES = 20
_REMEMBERED_MAX = 100_000
"""Workflows that are remembered to stand still; others are looked at in every sweep."""


class Swept(msgspec.Struct, frozen=True):
    """What a sweep did. moved: versions that went to the archive, by workflow.  kept: of those, how many stay within reach.

    checkpoints: automatic ones that were dropped, as `id@name`.  problems: sentences, of what did not succeed.
    """

    workflows: int = 0
    moved: dict[str, int] = {}
    kept: int = 0
    checkpoints: list[str] = []
    problems: list[str] = []

    @property
    def versions(self) -> int:
        """How many versions went to the archive."""
        return sum(self.moved.values())


class Holdings(msgspec.Struct, frozen=True):
    """What is in an archive. place: a URL, or `store:`.  streams: what of each went.  problems: of segments that were read."""

    place: str
    streams: list[Archived]
    problems: list[str] = []

    @property
    def versions(self) -> int:
        """How many versions are there."""
        return sum(each.versions for each in self.streams)

    @property
    def size_bytes(self) -> int:
        """What their segments take."""
        return sum(each.size_bytes for each in self.streams)


async def holdings(archive: Archive, *, check: bool) -> Holdings:
    """Return what is in an archive. check: read every segment and say what is wrong. Cost: a cell for each workflow."""
    problems = [said async for _, said in archive.examined() if said is not None] if check else []
    return Holdings(await archive.place(), [each async for each in archive.holds()], problems)


class Sweeper:
    """Keeps a store to what its retention says, while it is open and whenever it is asked."""

    def __init__(self, engine: Engine, archive: Archive, rules: Retention) -> None:
        self._engine = engine
        self._archive = archive
        self._rules = rules
        self._one = asyncio.Lock()
        self._seen: dict[str, tuple[int, int, int]] = {}
        """What each workflow was when it was last looked at: one that stands still has nothing new by number."""
        self._forks: dict[str, set[int]] = {}
        self._forks_upto = 0
        self._due: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def overdue(self) -> datetime | None:
        """When the oldest version was written that the last sweep should have moved and could not; None for none.

        For health: costs nothing, and asks nobody.
        """
        return datetime.fromtimestamp(min(self._due.values()) / 1000, UTC) if self._due else None

    def start(self) -> None:
        """Sweep now and then from now on."""
        if self._rules.every_s:
            self._task = asyncio.get_running_loop().create_task(self._often())

    async def close(self) -> None:
        """Stop; what is being moved is finished by whoever opens the store next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def sweep(self, *, plan: bool = False, rules: Retention | None = None) -> Swept:
        """Do what retention says of every workflow. plan: do nothing, only say what would be done.

        rules: others, for once. Cost: looks at each workflow that changed, or may have grown old; reads and writes what
        it moves.
        """
        async with self._one:
            work = _Sweep(self._engine, self._archive, rules or self._rules, plan=plan)
            if work.rules.store_bytes is not None:
                await work.measure(work.rules.store_bytes)
            await self._learn_forks()
            async for name, head, labels in self._workflows():
                now = (head, labels, len(self._forks.get(name, ())))
                if rules is None and self._still(name, now):
                    continue
                try:
                    await work.workflow(name, head, self._forked)
                except Closed:
                    raise
                except Exception as error:  # noqa: BLE001 - also what the caller's own rule raises
                    work.problems.append(f"{name}: {_said(error)}")
                    continue
                if not plan and rules is None and (name in self._seen or len(self._seen) < _REMEMBERED_MAX):
                    self._seen[name] = now
            if not plan and rules is None:
                self._due = work.due
            return work.done()

    def _still(self, name: str, now: tuple[int, int, int]) -> bool:
        """Tell whether nothing can have come to go: no rule is of time, of the whole store or the caller's."""
        rules = self._rules
        timed = (rules.days, rules.checkpoint_days, rules.store_bytes, rules.goes, rules.checkpoints)
        return all(rule is None for rule in timed) and self._seen.get(name) == now

    async def _workflows(self) -> AsyncGenerator[tuple[str, int, int]]:
        """Yield each workflow with the number of its newest version, and of that of its checkpoints."""
        async for page in names(self._engine.backend, WORKFLOWS):
            ids = [name.removeprefix(WORKFLOWS) for name in page]
            heads = await self._engine.backend.heads([*page, *(CHECKPOINTS + i for i in ids)])
            for workflow_id, head, labels in zip(ids, heads, heads[len(ids) :], strict=False):
                if head.version:
                    yield workflow_id, head.version, labels.version

    async def _forked(self, workflow_id: str) -> set[int]:
        """Return the versions of a workflow that forks began from, as of now."""
        await self._learn_forks()
        return self._forks.get(workflow_id, set())

    async def _learn_forks(self) -> None:
        """Cost: the first record of each workflow, once."""
        upto = await self._engine.backend.latest()
        if self._forks_upto == 0:
            async for name, _, _ in self._workflows():
                await self._note_fork(name)
        else:
            after = self._forks_upto
            while after < upto and (page := await self._engine.backend.feed(after, limit=_PAGE)):
                for r in page:
                    if r.version == 1 and r.kind == "fork":
                        await self._note_fork(r.stream.removeprefix(WORKFLOWS))
                after = page[-1].position
        self._forks_upto = max(upto, self._forks_upto, 1)

    async def _note_fork(self, name: str) -> None:
        source = await origin(self._engine, name)
        if source is not None:
            self._forks.setdefault(source.workflow_id, set()).add(source.version)

    async def _often(self) -> None:
        while True:
            await self._engine.clock.sleep(self._rules.every_s)
            try:
                done = await self.sweep()
            except (QuireError, OSError) as error:
                log.warning("sweeping failed, trying again in %g s: %s", self._rules.every_s, error)
                continue
            for problem in done.problems:
                log.warning("sweeping: %s", problem)


def _said(error: Exception) -> str:
    """Return an error in words: of ours the message, which says all; of the caller's own rule the type, too."""
    return message_of(error) if isinstance(error, QuireError) else in_words(error)


class _Sweep:
    """One sweep."""

    def __init__(self, engine: Engine, archive: Archive, rules: Retention, *, plan: bool) -> None:
        self._engine = engine
        self._archive = archive
        self.rules = rules
        self._plan = plan
        self._now_ms = engine.clock.now_ms()
        self._before_ms = 0
        self._workflows = 0
        self._moved: dict[str, int] = {}
        self._kept = 0
        self._dropped: list[str] = []
        self.problems: list[str] = []
        self.due: dict[str, int] = {}
        """When the oldest version was written that should go, of workflows that could not be dealt with."""

    def done(self) -> Swept:
        """Return what was done."""
        return Swept(self._workflows, self._moved, self._kept, self._dropped, self.problems)

    async def measure(self, allowed: int) -> None:
        """Find out how old a version may be so that all together fit. Cost: reads every record that is here."""
        found: list[tuple[int, int]] = []
        after = 0
        while page := await self._archive.inner.feed(after, limit=_PAGE):
            found += [(r.time, retention.weight(r)) for r in page if r.stream.startswith(WORKFLOWS)]
            after = page[-1].position
        self._before_ms = retention.cutoff(allowed, found)

    async def workflow(self, name: str, head: int, forked: Callable[[str], Awaitable[set[int]]]) -> None:
        """Do what retention says of one workflow."""
        self._workflows += 1
        stream = WORKFLOWS + name
        here = await self._archive.inner.read(stream, limit=1)
        labels = await self._labels(name)
        if not here:
            return
        first = here[0]
        cut = min(await self._cut(name, first, head), head - 1)
        wanted = retention.pinned(labels) | await forked(name)
        if cut >= first.version:
            self.due[name] = first.time
        late = {v for v in wanted if v < first.version}
        if late and not self._plan:
            late -= await self._archive.kept(stream)
            for version in sorted(late):
                await self._engine.frame(stream, version)
            self._kept += await self._archive.hold(stream, late)
        if cut >= first.version:
            # where a log begins is asked of every workflow when forks and merges are: nobody waits for the archive then
            keep = {v for v in {1, *wanted} if first.version <= v <= cut}
            moved = await self._shelved(stream, cut, keep) if not self._plan else cut - first.version + 1
            if moved:
                self._moved[name] = moved
                self._kept += len(keep)
        self.due.pop(name, None)

    async def _shelved(self, stream: str, cut: int, keep: set[int]) -> int:
        """Move versions up to a cut to the archive; return how many went."""
        moved = tries = 0
        while True:
            for version in sorted({*keep, cut + 1}):
                await self._engine.frame(stream, version)
            try:
                moved = await self._archive.shelve(stream, cut, keep=keep)
                break
            except Invalid:  # another process thinned the keyframes out meanwhile, and one of these was among them
                tries += 1
                if tries == _TRIES:
                    raise
        if moved:  # the same may come between looking for it and removing what was before it
            for first in await self._archive.inner.read(stream, limit=1):
                await self._engine.frame(stream, first.version)
        return moved

    async def _labels(self, name: str) -> dict[str, Any]:
        """Return the checkpoints of a workflow that are left, after dropping what may go."""
        stream = CHECKPOINTS + name
        (head,) = await self._engine.backend.heads([stream])
        if not head.version:
            return {}
        labels = (await self._engine.current(stream)).state
        gone = retention.outdated(self.rules, self._now_ms, labels)
        if gone and not self._plan:
            message = f"dropped {len(gone)} automatic checkpoints that retention no longer keeps"
            write = Write(stream, lambda now: [Delete((n,)) for n in gone if n in now], author="quire", message=message)
            await self._engine.write(write)
        self._dropped += [f"{name}@{n}" for n in gone]
        return {n: label for n, label in labels.items() if n not in gone}

    async def _cut(self, name: str, here: Record, head: int) -> int:
        """Return the newest version that goes. here: the oldest that is here."""
        rules, stream, first = self.rules, WORKFLOWS + name, here.version
        cut = retention.by_count(rules, head)
        before = max(self._before_ms, 0 if rules.days is None else self._now_ms - int(rules.days * retention.DAY_MS))
        old, chosen = here.time <= before, rules.goes is not None
        async for page in self._pages(stream, first) if old or chosen else _nothing():
            newest = page[-1].version
            if old:
                aged = retention.by_age(before, page)
                cut, old = max(cut, aged), aged == newest
            if chosen:
                choice = retention.by_choice(rules, name, page)
                cut, chosen = max(cut, choice), choice == newest
            if not old and not chosen:
                break
        if rules.bytes is not None:
            sizes = [(r.version, retention.weight(r)) async for page in self._pages(stream, first) for r in page]
            cut = max(cut, retention.by_bytes(rules.bytes, sizes))
        return cut

    async def _pages(self, stream: str, first: int) -> AsyncGenerator[list[Record]]:
        after = first - 1
        while page := await self._engine.backend.read(stream, after=after, limit=_PAGE):
            yield page
            after = page[-1].version


async def _nothing() -> AsyncGenerator[list[Record]]:
    for page in ():
        yield page
