"""`watch` begins where it is called: what is written between the call and the loop over it is shown, once, in order."""

import asyncio
import gc
import threading
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import pytest

import quire
from quire import Set, Settings
from quire.api.store import Store
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import Closed, Invalid, InvalidKey, StorageUnavailable, WorkflowNotFound
from quire.storage.memory import MemoryBackend, open_memory
from quire.testing.servers.fixtures import PLACES

SMALL = Settings(resident_bytes_max=0)
"""Nothing stays in memory that is not in use."""


@pytest.fixture(params=PLACES)
def url(request, tmp_path):
    return PLACES[request.param](tmp_path)


@asynccontextmanager
async def reopened(url, settings=None):
    """A store that has a workflow "w" of one version, and has not read it yet."""
    async with AsyncExitStack() as ends:
        if url.startswith("memory:"):  # which is gone when nobody has it open
            await ends.enter_async_context(quire.open(url))
        async with quire.open(url) as store:
            await store.create("w", {"n": 0})
        yield await ends.enter_async_context(quire.open(url, settings=settings))


async def taken(events, count):
    """Return the numbers of the next events, and end the watcher."""
    async with aclosing(events), asyncio.timeout(20):
        return [(await anext(events)).version.number for _ in range(count)]


# on every store


async def test_what_is_written_between_the_call_and_the_loop_is_shown(url):
    async with quire.open(url) as store:
        wf = await store.create("w", {"a": 1})
        events = wf.watch(path="/ok")
        await wf.set("/ok", True)
        assert await taken(events, 1) == [2]


async def test_so_it_is_where_the_workflow_is_not_in_memory(url):
    async with reopened(url) as store:
        wf = store.workflow("w")
        events, later = wf.watch(), None
        for number in range(2, 7):
            await wf.set("/n", number)
            later = later or wf.watch()
        assert await taken(events, 5) == [2, 3, 4, 5, 6]
        assert await taken(later, 4) == [3, 4, 5, 6]


async def test_the_whole_store_is_watched_from_the_call_on(url):
    async with reopened(url) as store:
        events = store.watch()
        await store.workflow("w").set("/n", 1)
        await store.create("v", {})
        async with aclosing(events):
            assert [(e.workflow_id, e.version.number) for e in [await anext(events), await anext(events)]] == [
                ("w", 2),
                ("v", 1),
            ]


@pytest.mark.parametrize("settings", [None, SMALL], ids=["resident", "dropped"])
async def test_beside_busy_writers_nothing_is_left_out_or_shown_twice(url, settings):
    """Several tasks write all the time. What was acknowledged before the call is not shown, what is submitted later is."""
    async with reopened(url, settings) as store:
        acked, over, calls = [1], False, []

        async def write(wf):
            while not over:
                submitted = len(calls)
                made = await wf.inc("/n")
                acked.append(made.number)
                for call in calls[:submitted]:
                    call["later"].append(made.number)

        async def tie():
            while not over:
                await store.transact([store.workflow(w).change([Set(("t",), len(acked))]) for w in ("v", "w")])

        await store.create("v", {})
        writers = [asyncio.create_task(write(store.workflow("w"))) for _ in range(4)]
        writers += [asyncio.create_task(write(store.workflow("w"))), asyncio.create_task(tie())]
        for turn in range(12):
            for _ in range(turn):
                await asyncio.sleep(0)
            newest = max(acked)
            if turn % 2:
                await asyncio.sleep(0.005)
                newest = max(acked)
            calls.append({"events": store.workflow("w").watch(), "acked": newest, "later": []})
        while any(len(call["later"]) < 5 for call in calls):
            await asyncio.sleep(0.001)
        over = True
        await asyncio.gather(*writers)
        head = (await store.workflow("w").version()).number
        for call in calls:
            async with aclosing(call["events"]) as events, asyncio.timeout(30):
                seen = [(await anext(events)).version.number]
                while seen[-1] < head:
                    seen.append((await anext(events)).version.number)
            assert seen == [*range(seen[0], head + 1)]
            assert call["acked"] < seen[0] <= min(call["later"])


async def test_a_new_cursor_starts_at_the_call_and_an_old_one_goes_on(url):
    async with reopened(url) as store:
        wf = store.workflow("w")
        of_workflow, of_store = wf.watch(cursor="c"), store.watch(cursor="c")
        await wf.set("/n", 1)
        await wf.set("/n", 2)
        for events in (of_workflow, of_store):
            async with aclosing(events):
                assert [(await anext(events)).version.number for _ in range(2)] == [2, 3]  # 2 is acknowledged by that
        again = wf.watch(cursor="c"), store.watch(cursor="c")
        await wf.set("/n", 3)
        for events in again:
            assert await taken(events, 2) == [3, 4]


def test_without_await_it_is_the_same(url):
    with quire.sync.open(url) as store:
        wf = store.create("w", {"n": 0})
        state = quire.sync.WorkflowStateManager(store).workflow_state("s")
        state.set("k", 0)
        events, everything, keys = wf.watch(), store.watch(), state.watch("k")
        wf.set("/n", 1)
        state.set("k", 1)
        assert next(events).version.number == 2
        assert [next(everything).workflow_id for _ in range(2)] == ["w", "scope-workflow-s"]
        assert next(keys).value == 1
        for each in (events, everything, keys):
            each.close()


# what the workflow is when it is called


async def test_a_workflow_that_is_absent_is_not_found_when_the_watcher_is_iterated(store):
    wf = store.workflow("never")
    for events in (wf.watch(), wf.watch(after=1), wf.watch(cursor="c")):
        with pytest.raises(WorkflowNotFound):
            await anext(events)


async def test_a_workflow_that_is_made_after_the_call_is_shown_from_its_beginning(store):
    events = store.workflow("w").watch()
    wf = await store.create("w", {})
    await wf.set("/n", 1)
    assert await taken(events, 2) == [1, 2]


async def test_the_end_of_a_workflow_after_the_call_is_shown(store):
    wf = await store.create("w", {})
    events = wf.watch()
    await store.delete("w")
    async with aclosing(events):
        assert (await anext(events)).version.kind == "delete"
    with pytest.raises(WorkflowNotFound):
        await anext(wf.watch())


async def test_arguments_are_checked_at_the_call(store):
    wf = await store.create("w", {})
    for watch in (wf.watch, store.watch):
        with pytest.raises(Invalid):
            watch(types=["sets"])
        with pytest.raises(InvalidKey):
            watch(path="no pointer")


async def test_a_version_to_start_after_is_found_when_the_watcher_is_iterated(store):
    wf = await store.create("w", {})
    named, back = wf.watch(after="label"), wf.watch(after="~0")
    await wf.set("/n", 1)
    await wf.checkpoint("label")
    await wf.set("/n", 2)
    assert await taken(named, 1) == [3]
    late = asyncio.ensure_future(taken(back, 1))
    await asyncio.sleep(0)
    assert not late.done()
    await wf.set("/n", 3)
    assert await late == [4]


async def test_a_watcher_can_be_closed_before_it_is_iterated(store):
    wf = await store.create("w", {})
    for events in (wf.watch(), store.watch(), store.workflow("never").watch(), wf.watch(cursor="c")):
        await events.aclose()
        await events.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    assert [w.name for w in (await store.health()).watchers] == []


# how the head is found


class Gated(MemoryBackend):
    """Waits with reading a stream while its gate is shut, and fails as often as told. reads: of each stream."""

    def prepare(self):
        self.gates, self.fails, self.reads = {}, 0, []

    async def read(self, stream, **how):
        self.reads.append(stream)
        if stream in self.gates:
            await self.gates[stream].wait()
        if self.fails:
            self.fails -= 1
            raise StorageUnavailable("no answer")
        return await super().read(stream, **how)


@asynccontextmanager
async def gated(settings=SMALL, *, other=None):
    """A store of which nothing is in memory, with workflows "w" and "v" of one version each."""
    backend = await open_memory("" if other is None else other, namespace="n")
    backend.__class__ = Gated
    backend.prepare()
    store = Store(Engine(backend, settings, SystemClock(), system_ids(), 0), "n")
    try:
        for name in ("w", "v"):
            await store.create(name, {"n": 0})
        assert len(store.engine.residents) == 0 or settings is not SMALL
        store.engine.residents._actors.clear()
        backend.reads.clear()
        yield store, backend
    finally:
        await store.close()


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_head_that_is_being_loaded_counts_whatever_waits_for_the_load():
    async with gated() as (store, backend):
        wf, gate = store.workflow("w"), asyncio.Event()
        backend.gates["workflows/w"] = gate
        before = [asyncio.ensure_future(wf.inc("/n")) for _ in range(3)]
        await settled()
        events = wf.watch()
        after = [asyncio.ensure_future(wf.inc("/n")) for _ in range(3)]
        await settled()
        gate.set()
        assert [v.number for v in await asyncio.gather(*before, *after)] == [2, 3, 4, 5, 6, 7]
        assert await taken(events, 6) == [2, 3, 4, 5, 6, 7]


async def test_the_head_is_looked_up_at_the_call_not_at_the_loop():
    async with gated(other="looked-up") as (store, _), quire.open("memory:looked-up", namespace="n") as other:
        wf, elsewhere = store.workflow("w"), other.workflow("w")
        await elsewhere.set("/n", 1)
        events = wf.watch()
        await settled()
        await elsewhere.set("/n", 2)
        await elsewhere.set("/n", 3)
        assert await taken(events, 2) == [3, 4]


async def test_what_another_process_wrote_unnoticed_is_shown_too():
    """The head in memory counts: whether what comes after it was written before the call is not known."""
    async with gated(Settings(), other="unnoticed") as (store, _), quire.open("memory:unnoticed", namespace="n") as two:
        wf = store.workflow("w")
        await wf.state()
        await two.workflow("w").set("/n", 1)
        events = wf.watch()
        await wf.set("/m", 1)
        assert await taken(events, 2) == [2, 3]


async def test_a_load_that_fails_leaves_the_start_to_the_next_one():
    async with gated() as (store, backend):
        wf, backend.fails = store.workflow("w"), 1
        events = wf.watch()
        await settled()
        assert backend.fails == 0
        await wf.set("/n", 1)
        assert await taken(events, 1) == [2]


async def test_a_load_that_still_fails_raises_when_the_watcher_is_iterated():
    async with gated() as (store, backend):
        wf, backend.fails = store.workflow("w"), 2
        events = wf.watch()
        await settled()
        with pytest.raises(StorageUnavailable):
            await anext(events)
        assert backend.fails == 0


async def test_a_stale_head_counts_while_the_log_has_it():
    async with gated(Settings(resident_bytes_max=1 << 20), other="stale") as (store, _):
        wf = store.workflow("w")
        await wf.set("/n", 1)
        store.engine.residents.outdate()
        events = wf.watch()
        await wf.set("/n", 2)
        assert await taken(events, 1) == [3]
        store.engine.residents.outdate()
        events = wf.watch()
        for record in store.engine.backend._space.streams["workflows/w"][1:]:  # a backup was restored under us
            store.engine.backend._space.feed.remove(record)
        del store.engine.backend._space.streams["workflows/w"][1:]
        await wf.set("/n", 3)
        assert await taken(events, 1) == [2]


@pytest.mark.parametrize("meanwhile", ["evict", "outdate"])
async def test_a_transaction_is_shown_whatever_is_dropped_or_goes_stale_while_it_is_prepared(meanwhile):
    async with gated() as (store, backend):
        w, v, part = store.workflow("w"), store.workflow("v"), [Set(("n",), 1)]
        backend.gates["workflows/v"] = asyncio.Event()
        tied = asyncio.ensure_future(store.transact([w.change(part), v.change(part)]))
        await settled()  # "w" was read, "v" is being read
        backend.gates["workflows/w"] = asyncio.Event()
        getattr(store.engine.residents, meanwhile)()
        events = w.watch()
        last = asyncio.ensure_future(w.set("/n", 2))
        await settled()
        backend.gates["workflows/v"].set()
        await tied
        assert (await last).number == 3
        backend.gates["workflows/w"].set()
        assert await taken(events, 2) == [2, 3]


def test_the_loop_need_not_run_at_the_call():
    loop = asyncio.new_event_loop()
    try:
        store = loop.run_until_complete(quire.open("memory:", settings=SMALL)._open())
        wf = loop.run_until_complete(store.create("w", {}))
        assert len(store.engine.residents) == 0
        events = wf.watch()
        loop.run_until_complete(wf.set("/n", 1))
        assert loop.run_until_complete(taken(events, 1)) == [2]
        loop.run_until_complete(store.close())
    finally:
        loop.close()


# watchers that are not iterated


async def test_a_watcher_that_is_never_iterated_leaves_nothing_behind():
    complaints, tasks = [], asyncio.all_tasks()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with gated() as (store, backend):
        wf, never = store.workflow("w"), store.workflow("never")
        backend.fails = 2
        for events in (wf.watch(), never.watch(), store.watch()):
            await settled()
            del events
        gc.collect()
        await settled()
        assert backend.fails == 0
        assert asyncio.all_tasks() == tasks
        for _ in range(20_000):
            wf.watch()
        assert len(store.engine.residents._starts) <= 1000
        backend.gates["workflows/w"] = asyncio.Event()
        waiting = wf.watch()  # its load does not end before the store is closed
        await settled()
        assert len(asyncio.all_tasks()) == len(tasks) + 1
    assert asyncio.all_tasks() == tasks
    with pytest.raises(Closed):
        await anext(waiting)
    closed = wf.watch()
    assert asyncio.all_tasks() == tasks
    with pytest.raises(Closed):
        await anext(closed)
    del waiting, closed
    gc.collect()
    assert complaints == []


async def test_closing_leaves_a_load_to_the_reader_that_waits_for_it():
    async with gated() as (store, backend):
        wf, gate = store.workflow("w"), asyncio.Event()
        backend.gates["workflows/w"] = gate
        events = wf.watch()
        reading = asyncio.ensure_future(wf.state())
        await settled()
        await store.engine.residents.close()
        gate.set()
        assert await reading == {"n": 0}
        assert await taken(store.workflow("w").watch(after=0), 1) == [1]
        await events.aclose()


def test_without_await_a_watcher_that_is_never_iterated_leaves_nothing_behind(tmp_path):
    path = f"{tmp_path}/s.db"
    with quire.sync.open(path) as store:
        store.create("w", {})
    with quire.sync.open(path) as store:
        for _ in range(50):
            store.workflow("w").watch()
            store.watch().close()
        waiting = store.workflow("w").watch()
    with pytest.raises(Closed):
        next(waiting)
    with pytest.raises(Closed):
        store.workflow("w").watch()
    assert not [t for t in threading.enumerate() if t.name == "quire-sync" and t.is_alive()]


# other ways to be told


@pytest.mark.parametrize("settings", [None, SMALL], ids=["resident", "dropped"])
async def test_a_scope_is_watched_from_the_call_on(tmp_path, settings):
    async with quire.open(f"{tmp_path}/s.db", settings=settings) as store:
        state = quire.WorkflowStateManager(store).workflow_state("s")
        early = state.watch("k")
        await state.set("k", 1)
        later, named = state.watch("k"), state.watch("k", cursor="c")
        await state.set("k", 2)
        for events, values in ((early, [1, 2]), (later, [2]), (named, [2])):
            async with aclosing(events), asyncio.timeout(10):
                assert [(await anext(events)).value for _ in values] == values


async def test_every_other_subscriber_is_told_of_what_is_written_after_it_was_made(store):
    wf = await store.create("w", {"n": 0})
    told = {"hook": [], "decorated": [], "trigger": [], "agent": [], "event": []}
    store.on_change(lambda e: told["hook"].append(e.version.number), workflow="w")
    decorate = store.on_change(workflow="w")
    await wf.set("/n", 1)  # before there is a function to tell
    decorate(lambda e: told["decorated"].append(e.version.number))
    await store.trigger("t", lambda e: told["trigger"].append(e.version.number), workflow="w")
    manager = quire.StateManager(store)
    manager.register_agent("a", lambda m: told["agent"].append(m["payload"]["change"]["newValue"]))
    await manager.subscribe_to_state_changes("w", "a")
    async with quire.AsyncEventStore(store) as events:
        await events.append("before", {})
        await events.subscribe(None, lambda e: told["event"].append(e.version))
        await wf.set("/n", 2)
        await events.append("after", {})
        async with asyncio.timeout(10):
            while not all(told.values()) or told["hook"] != [2, 3]:
                await asyncio.sleep(0.01)
    assert told == {"hook": [2, 3], "decorated": [3], "trigger": [3], "agent": [2], "event": [1]}
    await manager.close()
