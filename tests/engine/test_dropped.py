"""States are dropped from memory and read again at any time: readers and watchers do not notice."""

import asyncio
from contextlib import aclosing

import pytest

import quire
from quire import Set, Settings
from quire.api.store import Store
from quire.core import record
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.engine.resident import Residents
from quire.engine.watch import store_records
from quire.storage.base import Expect, Item
from quire.storage.memory import MemoryBackend, open_memory

SMALL = Settings(resident_bytes_max=0)


class Gated(MemoryBackend):
    """Waits before it reads or commits, and before it gives out what it read, while a gate is shut."""

    def prepare(self):
        self.reading, self.giving, self.committing, self.feeding = {}, {}, None, None

    async def read(self, stream, **how):
        if stream in self.reading:
            await self.reading[stream].wait()
        found = await super().read(stream, **how)
        if stream in self.giving:
            await self.giving[stream].wait()
        return found

    async def commit(self, items):
        if self.committing is not None:
            await self.committing.wait()
        return await super().commit(items)

    async def feed(self, after=0, *, limit=1000):
        found = await super().feed(after, limit=limit)
        if self.feeding is not None:
            await self.feeding.wait()
        return found


async def gated(settings):
    backend = await open_memory(namespace="n")
    backend.__class__ = Gated
    backend.prepare()
    store = Store(Engine(backend, settings, SystemClock(), system_ids(), 0), "n")
    return store, backend, [await store.create(name, {"n": 0}) for name in ("w", "v")]


def drop(store):
    """Drop from memory what is not in use."""
    residents = store.engine.residents
    residents._settings, usual = SMALL, residents._settings
    residents.evict()
    residents._settings = usual


async def settled():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("url", ["memory:", "file"])
async def test_every_watcher_is_told_of_everything_however_little_memory_there_is(url, tmp_path, monkeypatch):
    loads, load = [], Residents._load
    monkeypatch.setattr(Residents, "_load", lambda self, stream: loads.append(stream) or load(self, stream))
    async with quire.open(str(tmp_path / "s.db") if url == "file" else url, settings=SMALL) as store:
        flows = [await store.create(f"w{number}", {"n": 0}) for number in range(30)]

        async def follow(wf):
            async with aclosing(wf.watch(after=0)) as events:
                return [(await anext(events)).version.number for _ in range(6)]

        watchers = [asyncio.create_task(follow(wf)) for wf in flows]
        await settled()
        for _ in range(5):
            await asyncio.gather(*(wf.inc("/n") for wf in flows))
        async with asyncio.timeout(30):
            assert await asyncio.gather(*watchers) == [[1, 2, 3, 4, 5, 6]] * 30
    assert len(loads) < 4 * 30 * 6, "watchers do not drop each other's states time and again"


async def test_who_reads_while_a_transaction_is_prepared_reads_what_it_wrote_afterwards():
    store, backend, (w, v) = await gated(Settings())
    drop(store)
    part = [Set(("n",), 1)]
    backend.reading["workflows/v"], backend.committing = asyncio.Event(), asyncio.Event()
    tied = asyncio.ensure_future(store.transact([w.change(part), v.change(part)]))
    await settled()  # "w" is in memory, "v" is being read
    backend.reading["workflows/w"] = asyncio.Event()
    drop(store)
    reading = asyncio.ensure_future(w.get("/n"))
    await settled()
    backend.reading["workflows/v"].set()
    await settled()  # all that is left of it is the commit
    backend.reading["workflows/w"].set()
    assert await reading == 0
    backend.committing.set()
    await tied
    assert (await w.get("/n"), await v.get("/n")) == (1, 1)
    await store.close()


@pytest.mark.parametrize("read", ["before the commit", "until after the commit"])
async def test_what_went_stale_while_a_commit_was_prepared_on_it_is_read_again(read):
    store, backend, (w, v) = await gated(Settings())
    drop(store)
    part = [Set(("n",), 1)]
    backend.reading["workflows/v"], backend.committing = asyncio.Event(), asyncio.Event()
    tied = asyncio.ensure_future(store.transact([w.change(part), v.change(part)]))
    await settled()  # "w" is in memory, "v" is being read
    store.engine.residents.outdate()
    backend.giving["workflows/w"] = asyncio.Event()
    events = w.watch(after=1)
    told = asyncio.ensure_future(anext(events))
    await settled()
    if read == "before the commit":
        backend.giving["workflows/w"].set()
        await settled()
    backend.reading["workflows/v"].set()
    await settled()
    backend.committing.set()
    await tied
    backend.giving["workflows/w"].set()
    async with asyncio.timeout(10):
        assert (await told).version.number == 2
    assert await w.get("/n") == 1
    await events.aclose()
    await store.close()


async def test_writes_of_one_commit_follow_each_other_whatever_is_read_anew_between_them():
    store, backend, (w, v) = await gated(Settings())
    u = await store.create("u", {"n": 0})
    drop(store)
    part = [Set(("n",), 1)]
    backend.reading = {"workflows/v": asyncio.Event(), "workflows/u": asyncio.Event()}
    made = [store.transact([w.change(part), v.change(part)]), u.set("/n", 2), w.set("/n", 3)]
    made = [asyncio.ensure_future(each) for each in made]
    await settled()
    store.engine.residents.outdate()  # "w" is in memory, "v" is being read
    backend.reading["workflows/v"].set()
    await settled()  # "v" was read, "u" is being read
    assert await w.get("/n") == 0
    backend.reading["workflows/u"].set()
    await asyncio.gather(*made)
    assert [r.version for r in await backend.read("workflows/w")] == [1, 2, 3]
    assert (await w.get("/n"), await v.get("/n"), await u.get("/n")) == (3, 1, 2)
    assert (await store.verify()).ok
    await store.close()


async def test_a_watcher_is_told_of_what_a_state_that_was_read_again_brought():
    store, backend, (w, _) = await gated(Settings())
    events = w.watch()
    told = asyncio.ensure_future(anext(events))
    await settled()
    stale = store.engine.residents.peek("workflows/w")
    later = record.seal("workflows/w", 2, 0, "another process", "", "change", b"[]", stale.head.chain)
    await MemoryBackend.commit(backend, [Item([Expect("workflows/w", 1, stale.head.chain)], [later], [])])
    stale.stale = True
    await store.engine.residents.get("workflows/w")
    async with asyncio.timeout(10):
        assert (await told).version.author == "another process"
    await events.aclose()
    await store.close()


async def test_what_is_committed_while_the_feed_is_read_is_not_passed_over():
    store, backend, (w, _) = await gated(Settings())
    backend._space.feed.clear()  # of what was dropped, the feed has nothing more
    store.engine.recent.clear()
    backend.feeding = asyncio.Event()
    records = store_records(store.engine, 0)
    first = asyncio.ensure_future(anext(records))
    await settled()
    await w.set("/n", 1)
    backend.feeding.set()
    async with asyncio.timeout(10):
        assert (await first).version == 2
    await records.aclose()
    await store.close()
