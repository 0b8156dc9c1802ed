"""A store says how it is doing: it looks without a trace, never hangs, and raises only when it is closed."""

import asyncio
import threading

import pytest

import quire
from quire.api.health import Lag
from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import FakeClock, SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import Closed, Invalid, NotFound, OutcomeUnknown, StorageUnavailable
from quire.storage.base import CellWrite
from quire.storage.memory import MemoryBackend, open_memory

PATIENT = quire.HealthLimits(read_slow_s=1e6, commit_slow_s=1e6)
"""For machines that are busy."""


async def store_on(kind, clock=None):
    backend = await open_memory(namespace="n")
    backend.__class__ = kind
    return Store(Engine(backend, Settings(), clock or SystemClock(), system_ids(), 0), "n")


def statuses(health):
    return {check.name: check.status for check in health.checks}


async def test_a_sound_store_is_ok_and_has_figures(store):
    await store.create("w", {"n": 0})
    health = await store.health(limits=PATIENT)
    found = statuses(health)
    assert {found[name] for name in ("reading", "writing", "commits", "durability")} == {"ok"}
    assert health.read_s > 0 and health.commit_s > 0
    assert health.commit_p99_s >= health.commit_p50_s > 0
    assert health.vitals.place and health.vitals.used_bytes > 0
    assert health.backend == store.capabilities.backend
    assert (health.oldest_unarchived, health.newest_backup) == (None, None)
    if health.backend == "sqlite":
        assert health.vitals.server.startswith("SQLite 3.")
        assert 0 < health.vitals.disk_free_bytes < health.vitals.disk_total_bytes


async def test_looking_leaves_nothing_behind_and_wakes_nobody(store):
    await store.create("w", {"n": 0})
    before, told = await store.stats(), []
    store.on_change(told.append)
    for _ in range(3):
        await store.health()
    after = await store.stats()
    assert (after.cells, after.versions, after.position) == (before.cells, before.versions, before.position)
    assert after.commits == before.commits + 6
    assert told == []
    assert (await store.verify()).ok


async def test_without_the_commit_nothing_is_written(store):
    await store.health(write=False)
    assert (await store.stats()).commits == 0
    assert "writing" not in statuses(await store.health(write=False))


def test_threads_have_the_same(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        assert store.health(limits=PATIENT).durability == "power"
        looks = store.watch_health(limits=PATIENT)
        assert next(looks).backend == "sqlite"
        looks.close()


@pytest.mark.parametrize("how", [{"deadline_s": 0}, {"deadline_s": "soon"}, {"expect_durability": "total"}])
async def test_arguments_that_make_no_sense_are_refused(store, how):
    with pytest.raises(Invalid, match=next(iter(how))):
        await store.health(**how)
    with pytest.raises(Invalid, match="every_s"):
        await anext(store.watch_health(every_s=0))


async def test_relaxed_durability_is_as_the_url_says_and_may_be_too_little(tmp_path):
    async with quire.open(f"sqlite:///{tmp_path}/s.db?durability=relaxed") as store:
        assert statuses(await store.health())["durability"] == "ok"
        health = await store.health(expect_durability="power", limits=PATIENT)
        assert statuses(health)["durability"] == "degraded"
        assert any("the last commits can be lost" in reason for reason in health.reasons)


# what does not answer, or fails


class Silent(MemoryBackend):
    """Answers nothing."""

    async def cell(self, name):
        await asyncio.Event().wait()


class NeverCommits(MemoryBackend):
    """Reads well, and never finishes a commit."""

    async def commit(self, items):
        await asyncio.Event().wait()


class KeepsToItself(MemoryBackend):
    """Says nothing of its surroundings, and lists no cells."""

    async def vitals(self, *, timeout_s):
        await asyncio.Event().wait()

    async def cells(self, prefix="", *, after="", limit=1000):
        await asyncio.Event().wait()


class Stubborn(MemoryBackend):
    """Does not even end when it is cancelled."""

    async def cell(self, name):
        self.go_on = asyncio.Event()
        while not self.go_on.is_set():
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                continue


class Mistaken(MemoryBackend):
    """Raises what no backend may raise."""

    async def cell(self, name):
        raise ZeroDivisionError("a mistake")


class Broken(MemoryBackend):
    """Fails to commit, and to recover from it, until it is mended."""

    mended = False

    async def commit(self, items):
        if self.mended:
            return await super().commit(items)
        raise StorageUnavailable("the disk is gone; look for it")

    async def recover(self):
        if not self.mended:
            raise StorageUnavailable("still gone")


@pytest.mark.parametrize(
    ("kind", "check", "status", "said"),
    [
        (Silent, "reading", "unhealthy", "reading took longer than 0.05 s"),
        (Stubborn, "reading", "unhealthy", "reading took longer than 0.05 s"),
        (NeverCommits, "writing", "unhealthy", "memory: a durable commit took longer than 0.05 s"),
        (KeepsToItself, "server", "degraded", "surroundings are took longer than 0.05 s"),
        (KeepsToItself, "watchers", "degraded", "cursors and triggers took longer than 0.05 s"),
        (Mistaken, "reading", "unhealthy", "unexpected ZeroDivisionError"),
        (Broken, "writing", "unhealthy", "the disk is gone; look for it"),
    ],
)
async def test_what_hangs_or_fails_is_a_finding(kind, check, status, said):
    store = await store_on(kind)
    health = await store.health(deadline_s=0.05)
    assert statuses(health)[check] == status
    assert health.status == ("unhealthy" if status == "unhealthy" else "degraded")
    assert any(said in reason for reason in health.reasons), health.reasons
    if kind is Stubborn:
        store.engine.backend.go_on.set()
    if kind is not NeverCommits:  # who closes waits for what is under way
        await store.close()


async def test_a_commit_that_is_not_settled_is_told_without_writing():
    store = await store_on(Broken)
    with pytest.raises(OutcomeUnknown):
        await store.create("w", {})
    health = await store.health(write=False)
    assert statuses(health)["writing"] == health.status == "degraded"
    assert "not settled" in health.reasons[0]
    store.engine.backend.mended = True
    assert (await store.health(limits=PATIENT)).ok  # its commit settles it
    await store.close()


async def test_a_closed_store_raises_and_closing_ends_who_looks():
    store = await store_on(Silent)
    looking = asyncio.create_task(store.health(deadline_s=1e6))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(Closed):
        await looking
    with pytest.raises(Closed):
        await store.health()


def test_closing_wakes_a_thread_that_waits_for_news_of_health(tmp_path):
    store = quire.sync.open(str(tmp_path / "s.db"))
    looks, first, ended = store.watch_health(every_s=1e6), threading.Event(), []

    def follow():
        try:
            for _ in looks:
                first.set()
        except Closed as error:
            ended.append(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert first.wait(60)
    store.close()
    thread.join(60)
    assert not thread.is_alive() and len(ended) == 1


async def test_a_cancelled_look_leaves_nothing_running():
    store = await store_on(Silent)
    before = asyncio.all_tasks()
    looking = asyncio.create_task(store.health(deadline_s=1e6))
    while len(asyncio.all_tasks()) < len(before) + 4:
        await asyncio.sleep(0)
    looking.cancel()
    while asyncio.all_tasks() != before:
        await asyncio.sleep(0)
    await store.close()


# changes of state


async def test_news_of_health_come_when_a_check_fails_and_when_it_is_well_again():
    clock = FakeClock()
    store = await store_on(Broken, clock)
    backend = store.engine.backend
    backend.mended = True
    looks = store.watch_health(every_s=10, limits=PATIENT)

    assert (await anext(looks)).ok
    news = asyncio.ensure_future(anext(looks))
    for _ in range(3):  # it looks again, and has nothing to tell
        seen = store.engine.committer.commits
        while clock.sleepers == 0:
            await asyncio.sleep(0)
        await clock.wind(10)
        while store.engine.committer.commits < seen + 2:
            await asyncio.sleep(0)
    assert not news.done()
    for mended, status in ((False, "unhealthy"), (True, "ok")):
        backend.mended = mended
        while not news.done():
            await clock.wind(1)
        assert (await news).status == status
        news = asyncio.ensure_future(anext(looks))
    news.cancel()
    await asyncio.gather(news, return_exceptions=True)
    await store.close()


# watchers and triggers


async def test_each_watcher_is_told_with_how_far_it_is_behind(store):
    wf = await store.create("w", {"n": 0})
    other = await store.create("other", {"n": 0})
    for watcher in (
        store.watch(after=0, cursor="all"),
        wf.watch(after=0, cursor="ui"),
        other.watch(after=0, cursor="x"),
    ):
        await anext(watcher)
        await watcher.aclose()  # before it acknowledged what it got
    for _ in range(4):
        await wf.inc("/n")
    health = await store.health()
    assert health.watchers == (Lag("store/all", 6), Lag("workflows/other/x", 1), Lag("workflows/w/ui", 5))
    assert statuses(health)["watchers"] == "ok"
    health = await store.health(limits=quire.HealthLimits(watcher_behind=4))
    assert health.watchers[0] == Lag("store/all", 4, more=True)
    assert statuses(health)["watchers"] == "degraded"
    assert any("workflows/w/ui, store/all are behind by more than 4" in reason for reason in health.reasons)


async def test_subscribers_of_every_face_are_among_the_watchers(store):
    manager = quire.StateManager(store)
    tried: dict[str, asyncio.Event] = {"agent": asyncio.Event(), "events": asyncio.Event()}

    def refusing(name):
        def take(_):
            tried[name].set()
            raise ValueError("not yet")

        return take

    await manager.persist_workflow_state("w", {"id": "w", "name": "w", "status": "running", "createdAt": 1})
    manager.register_agent("agent", refusing("agent"))
    await manager.subscribe_to_state_changes("w", "agent")
    await manager.persist_workflow_state("w", {"id": "w", "name": "x", "status": "running", "createdAt": 1})
    async with quire.AsyncEventStore(store, name="orders") as events:
        await events.subscribe(None, refusing("events"), cursor="bills")
        for _ in range(3):
            await events.append("placed", {})
        for heard in tried.values():
            await heard.wait()
        found = {lag.name: lag.behind for lag in (await store.health()).watchers}
    assert found == {"agents/w/agent": 1, "events/orders/bills": 3}
    await manager.close()


async def test_an_abandoned_watcher_is_forgotten(store):
    wf = await store.create("w", {"n": 0})
    for watcher in (
        store.watch(after=0, cursor="all"),
        wf.watch(after=0, cursor="ui/1"),
        wf.watch(after=0, cursor="all"),
    ):
        await anext(watcher)
        await watcher.aclose()
    assert len((await store.health()).watchers) == 3
    await store.drop_cursor("all")
    await wf.drop_cursor("ui/1")
    assert (await store.health()).watchers == (Lag("workflows/w/all", 1),), "one of the same name elsewhere stays"
    await store.delete("w")
    await wf.drop_cursor("all")
    assert (await store.health()).watchers == ()
    for act in (store.drop_cursor("all"), wf.drop_cursor("ui/1"), store.workflow("never").drop_cursor("x")):
        with pytest.raises(NotFound, match="has no cursor"):
            await act
    again = store.watch(after=1, cursor="all")
    assert (await anext(again)).position == 2, "it begins where it is told to"
    await again.aclose()


async def test_a_cursor_that_is_moved_meanwhile_is_dropped_all_the_same(store, monkeypatch):
    wf = await store.create("w", {"n": 0})
    watcher = wf.watch(after=0, cursor="ui")
    await anext(watcher)
    cell, moves = store.engine.backend.cell, iter("123")

    async def moved_after_it_was_read(name):
        found = await cell(name)
        at = next(moves, None)
        if at is not None:
            await store.engine.committer.submit((), (CellWrite(name, found.value, at.encode()),))
        return found

    monkeypatch.setattr(store.engine.backend, "cell", moved_after_it_was_read)
    await wf.drop_cursor("ui")
    monkeypatch.undo()
    assert (await store.health()).watchers == ()
    await watcher.aclose()


async def test_positions_are_counted_in_versions_however_many_stand_where(store):
    wf = await store.create("w", {"n": 0})
    await wf.checkpoint("c")  # a record of the store, and no version of a workflow
    for _ in range(300):
        await wf.inc("/n")
    latest = await store.engine.backend.latest()

    async def lags(most, **cursors):
        from quire.storage.base import CellWrite

        writes = tuple(CellWrite(f"cursors/store/{name}", None, str(at).encode()) for name, at in cursors.items())
        await store.engine.committer.submit((), writes)
        found = await store.health(limits=quire.HealthLimits(watcher_behind=most))
        ended = tuple(CellWrite(f"cursors/store/{n}", str(at).encode(), None) for n, at in cursors.items())
        await store.engine.committer.submit((), ended)
        return [(lag.name, lag.behind, lag.more) for lag in found.watchers]

    first = (await wf.version(1)).position
    assert await lags(1000, a=0, b=first, c=latest - 7, d=latest, e=latest + 5) == [
        ("store/a", 301, False),
        ("store/b", 300, False),
        ("store/c", 7, False),
        ("store/d", 0, False),
        ("store/e", 0, False),
    ]
    assert await lags(10, a=0, c=latest - 7) == [("store/a", 10, True), ("store/c", 7, False)]
    assert await lags(300, a=0, b=first) == [("store/a", 300, True), ("store/b", 300, False)]


async def test_a_cursor_that_is_damaged_is_told(store):
    from quire.storage.base import CellWrite

    await store.engine.committer.submit((), (CellWrite("cursors/store/x", None, b"nowhere"),))
    health = await store.health(limits=PATIENT)
    assert statuses(health)["watchers"] == "degraded"
    assert any("cursors/store/x holds b'nowhere'" in reason for reason in health.reasons)


async def test_a_parked_trigger_is_degraded_until_it_goes_on():
    clock = FakeClock()
    async with quire.open("memory:", clock=clock) as store:
        wf = await store.create("w", {"n": 0})

        def refuse(event):
            raise ValueError(f"no {event.version.number}")

        trigger = await store.trigger("bills", refuse, attempts=1)
        await wf.set("/n", 1)
        while (await store.triggers())[0].status != "parked":
            await asyncio.sleep(0)
        health = await store.health(limits=PATIENT)
        assert (health.status, health.triggers[0].status) == ("degraded", "parked")
        assert "bills is parked at w@2 after 1 attempts (ValueError: no 2)" in health.reasons[0]
        trigger.remove()
        await store.resume_trigger("bills", skip=True)
        assert (await store.health(limits=PATIENT)).ok


async def test_the_clock_of_the_backend_is_compared_only_where_it_has_one(store):
    assert (await store.health()).clock_off_s is None


async def test_a_store_that_another_process_keeps_locked_is_told_and_nothing_stays(tmp_path):
    import apsw

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        other = apsw.Connection(path)
        other.execute("BEGIN IMMEDIATE")
        health = await store.health(deadline_s=0.2)
        found = statuses(health)
        assert (found["reading"], found["writing"]) == ("ok", "unhealthy")
        assert health.reasons[0].startswith(path)
        other.execute("ROLLBACK")
        other.close()
        await wf.inc("/n")
        cells = await store.engine.backend.cells("health/")
        assert len(cells) <= 1 and all(cell.expires for cell in cells)  # what landed late is gone by itself
        assert (await store.health(limits=PATIENT)).ok


async def test_what_the_store_keeps_by_itself_is_told(tmp_path, monkeypatch):
    from quire.config import Backups, Retention

    clock = FakeClock()
    place, shelf = tmp_path / "old", tmp_path / "backups"
    async with quire.open(
        str(tmp_path / "s.db"),
        clock=clock,
        archive=str(place),
        retention=Retention(versions=1, every_s=0),
        backup=Backups(place=f"file:///{shelf}"),
    ) as store:
        wf = await store.create("w", {"n": 0})
        async with asyncio.timeout(60):
            while store.keeper.newest is None:
                await asyncio.sleep(0.01)
        health = await store.health()
        assert health.oldest_unarchived is None
        assert health.newest_backup == store.keeper.newest
        assert [c.status for c in health.checks if c.name == "backups"] == ["ok"]
        await wf.inc("/n")
        monkeypatch.setattr("quire.storage.objects.folder.Folder.put", refused)
        swept = await store.sweep()
        assert swept.problems
        health = await store.health()
        assert health.oldest_unarchived == (await wf.version(1)).time
        assert health.status == "degraded"
        assert "should be in the archive" in health.reasons[0]
        store.keeper.last_error = "the place is away"
        assert any("could not be taken" in r for r in (await store.health()).reasons)


async def refused(*_):
    raise StorageUnavailable("the place is away")


async def test_no_look_begins_while_those_under_way_are_ended():
    store = await quire.open("memory:")
    looks = store._looks
    under_way = asyncio.create_task(looks.through(asyncio.sleep(1e6)))
    await asyncio.sleep(0)
    ending = asyncio.create_task(looks.end())
    await asyncio.sleep(0)
    with pytest.raises(Closed):
        await asyncio.wait_for(looks.through(asyncio.sleep(1e6)), 5)
    await ending
    with pytest.raises(Closed):
        await under_way
    await store.close()
