"""What is measured of a store to say how it is doing: a read, a commit, what its backend knows, how far watchers are.

1. Nothing is waited for beyond the deadline, not even the end of what was given up.
2. Whatever fails is a finding, not an exception; only a store that was closed raises.
3. The commit is a real one, of a cell of its own that expires by itself and is removed at once: it makes no version, wakes
   no watcher, and takes the way of every write, so that it waits where writers would wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from time import perf_counter
from typing import Any, Generic, TypeVar

from quire.api import judging, trigger_desk
from quire.api.health import Health, HealthLimits, Lag
from quire.api.trigger_desk import TriggerState
from quire.engine.engine import Engine
from quire.engine.telling import typed
from quire.errors import Closed, CorruptRecord, Invalid, QuireError, StorageTimeout
from quire.model import WORKFLOWS, Cell
from quire.storage.base import Backend, CellWrite, Durability, Vitals, more_may_follow

T = TypeVar("T")

_CURSORS = "cursors/"
_POSITIONS = ("store/", trigger_desk.TRIGGERS)
"""What stands at positions of the store; all other cursors stand at versions of a stream."""
_AGENTS = "agents/"
_PAGE = 250
_PROBE_MS = 60_000
"""After this time a cell that could not be removed is gone by itself."""
_DURABILITIES = ("none", "process", "power")
_given_up: set[asyncio.Task[Any]] = set()
"""Tasks that were cancelled and not waited for: somebody has to hold them until they end."""


class _Probe(Generic[T]):
    """A question that is being asked."""

    def __init__(self, asking: Coroutine[Any, Any, T], what: str) -> None:
        self._what = what
        self.task = asyncio.get_running_loop().create_task(asking)

    def answer(self, deadline_s: float) -> tuple[T | None, QuireError | None]:
        """Return what came of it by now: its result, or why there is none. Raises Closed."""
        if not self.task.done():
            late = f"{self._what} took longer than {deadline_s:g} s; see that the disk or server is well"
            return None, StorageTimeout(late)
        if self.task.cancelled():
            return None, typed(asyncio.CancelledError(), self._what)
        error = self.task.exception()
        if isinstance(error, Closed):
            raise error
        return (self.task.result(), None) if error is None else (None, typed(error, self._what))


def give_up(task: asyncio.Task[Any]) -> None:
    """Stop a task, if it is not done, without waiting until it has stopped."""
    _given_up.add(task)
    task.add_done_callback(_ended)
    task.cancel()


def _ended(task: asyncio.Task[Any]) -> None:
    _given_up.discard(task)
    if not task.cancelled():
        task.exception()  # seen


async def health(
    engine: Engine,
    *,
    deadline_s: float,
    write: bool,
    expect_durability: Durability | None,
    limits: HealthLimits | None,
    upkeep: Callable[[], judging.Upkeep] = judging.Upkeep,
) -> Health:
    """Return how a store is doing; see `Store.health`. upkeep: what the store's housekeeping knows."""
    bounds = HealthLimits() if limits is None else limits
    if type(deadline_s) not in (int, float) or not deadline_s > 0:
        raise Invalid(f"deadline_s={deadline_s!r}: a number of seconds above 0 is needed")
    if expect_durability not in (None, *_DURABILITIES):
        raise Invalid(f"expect_durability={expect_durability!r}: it is {', '.join(_DURABILITIES)}, or None")
    engine.check_open("look at its health")
    found = await _measured(engine, deadline_s, write, bounds)
    found.upkeep = upkeep()
    return judging.judged(found, bounds, engine.backend.capabilities, expect_durability)


async def _measured(engine: Engine, deadline_s: float, write: bool, limits: HealthLimits) -> judging.Findings:
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_s
    probes: list[_Probe[Any]] = []

    def ask(asking: Coroutine[Any, Any, T], what: str) -> _Probe[T]:
        probe = _Probe(asking, what)
        probes.append(probe)
        return probe

    async def wait(these: Iterable[_Probe[Any]]) -> None:
        await asyncio.wait([p.task for p in these], timeout=max(0.0, until - loop.time()))

    try:
        vitals = ask(_vitals(engine, deadline_s), "asking how the store's surroundings are")
        reading = ask(_read(engine.backend), "reading")
        await wait([reading])
        read_s, read_error = reading.answer(deadline_s)
        found = judging.Findings(
            read_s=read_s, read_error=read_error, broken=engine.committer.broken, took_s=list(engine.committer.took_s)
        )
        if read_error is not None:  # what cannot be read need not be asked anything else
            if vitals.task.done():
                found.vitals = (vitals.answer(deadline_s)[0] or (None,))[0]
            return found
        writing = ask(_commit(engine), "a durable commit") if write else None
        watchers = ask(_watchers(engine, limits), "looking at cursors and triggers")
        await wait(probes)
        answer, found.vitals_error = vitals.answer(deadline_s)
        if answer is not None:
            found.vitals, found.clock_off_s = answer
        if writing is not None:
            found.commit_s, found.commit_error = writing.answer(deadline_s)
        lags, found.watchers_error = watchers.answer(deadline_s)
        if lags is not None:
            found.watchers, found.triggers = lags
        return found
    finally:
        for probe in probes:
            give_up(probe.task)


async def _read(backend: Backend) -> float:
    begun = perf_counter()
    await backend.cell("health/none")
    return perf_counter() - begun


async def _commit(engine: Engine) -> float:
    name, value = f"health/{engine.ids()}", b"a commit to measure"
    begun = perf_counter()
    await engine.committer.submit((), (CellWrite(name, None, value, _PROBE_MS),))
    took = perf_counter() - begun
    await engine.committer.submit((), (CellWrite(name, value, None),))
    return took


async def _vitals(engine: Engine, timeout_s: float) -> tuple[Vitals, float | None]:
    """Return the vitals, and how far the server's clock is off for certain: what the round trip may explain is not."""
    before, begun = engine.clock.now_ms(), perf_counter()
    vitals = await engine.backend.vitals(timeout_s=timeout_s)
    half_s = (perf_counter() - begun) / 2
    if vitals.clock_ms is None:
        return vitals, None
    off_s = (vitals.clock_ms - before) / 1000 - half_s
    return vitals, off_s if abs(off_s) > half_s else 0.0


async def _watchers(engine: Engine, limits: HealthLimits) -> tuple[tuple[Lag, ...], tuple[TriggerState, ...]]:
    cells = await engine.backend.cells(_CURSORS, limit=limits.watchers_max)
    stands = {cell.name.removeprefix(_CURSORS): _number(cell) for cell in cells}
    positions = {name: at for name, at in stands.items() if name.startswith(_POSITIONS)}
    versions = {name: at for name, at in stands.items() if name not in positions}
    lags = await _behind_positions(engine.backend, positions, limits.watcher_behind)
    lags += await _behind_versions(engine.backend, versions)
    triggers = await trigger_desk.listed(engine)
    return tuple(sorted(lags, key=lambda lag: lag.name)), tuple(triggers)


def _number(cursor: Cell) -> int:
    if not cursor.value.isdigit():
        raise CorruptRecord(f"{cursor.name} holds {cursor.value!r}, not a number; restore a backup", at=cursor.name)
    return int(cursor.value)


async def _behind_versions(backend: Backend, stands: dict[str, int]) -> list[Lag]:
    streams = {name: _stream(name) for name in stands}
    wanted = sorted(set(streams.values()))
    heads = {head.stream: head.version for head in await backend.heads(wanted)}
    return [Lag(name, max(0, heads[streams[name]] - at)) for name, at in stands.items()]


def _stream(cursor: str) -> str:
    """Return the stream whose versions a cursor counts: its name begins with it. Those of agents are of workflows."""
    kind, _, rest = cursor.partition("/")
    owner = rest.partition("/")[0]
    return f"{WORKFLOWS}{owner}" if f"{kind}/" == _AGENTS else f"{kind}/{owner}"


async def _behind_positions(backend: Backend, stands: dict[str, int], most: int) -> list[Lag]:
    """Count versions of workflows after each position, up to `most`. Whoever has come far is counted along with others."""
    counted: dict[int, tuple[int, bool]] = {}
    for start in sorted(set(stands.values())):
        if start in counted:
            continue
        after: list[int] = []
        last = start
        while len(after) <= most:
            page = await backend.feed(last, limit=_PAGE)
            after += [r.position for r in page if r.stream.startswith(WORKFLOWS)]
            if not more_may_follow(page, _PAGE):  # all that there is: it holds for everybody who stands later
                for at in stands.values():
                    if at >= start:
                        counted[at] = (sum(position > at for position in after), False)
                break
            last = page[-1].position
        else:
            counted[start] = (most, True)
    return [Lag(name, *_capped(counted[at], most)) for name, at in stands.items()]


def _capped(counted: tuple[int, bool], most: int) -> tuple[int, bool]:
    count, more = counted
    return (most, True) if count > most else (count, more)


class Looks:
    """Looks at a store that are under way: its closing ends them."""

    def __init__(self) -> None:
        self._ends: set[asyncio.Future[None]] = set()
        self._ended = False

    async def through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work, unless the store is closed before it is done. Raises Closed."""
        if self._ended:
            work.close()
            raise Closed("the store is closed; open it again")
        loop = asyncio.get_running_loop()
        end: asyncio.Future[None] = loop.create_future()
        task = loop.create_task(work)
        self._ends.add(end)
        try:
            await asyncio.wait([task, end], return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                raise Closed("the store was closed while its health was looked at")
            return task.result()
        finally:
            self._ends.discard(end)
            give_up(task)

    async def end(self) -> None:
        """End them all, and wait until whoever looks was told: a thread that waits must not wait for ever."""
        self._ended = True
        for end in self._ends:
            if not end.done():
                end.set_result(None)
        while self._ends:  # noqa: ASYNC110 - it lasts a turn or two of the loop
            await asyncio.sleep(0)


async def watch(engine: Engine, looks: Looks, every_s: float, **how: Any) -> AsyncGenerator[Health]:
    """Yield how a store is doing, now and whenever another check fails or is well again, until it is closed."""
    if type(every_s) not in (int, float) or not every_s > 0:
        raise Invalid(f"every_s={every_s!r}: a number of seconds above 0 is needed")
    told: list[tuple[str, str]] | None = None
    while True:
        found = await looks.through(health(engine, **how))
        state = sorted((check.name, check.status) for check in found.checks if check.status != "ok")
        if state != told:
            yield found
            told = state
        await looks.through(engine.clock.sleep(every_s))
