"""States are dropped from memory and read again at any time: readers and watchers do not notice."""

import asyncio

from quire import Set, Settings
from quire.api.store import Store
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
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
