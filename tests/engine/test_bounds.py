"""Bounds of a whole store: its size, its blobs, how much one commit holds, how many states are read at once."""

import asyncio
import threading
from secrets import token_hex

import msgspec
import pytest

import quire
from quire import Set, Settings
from quire.api.store import Store
from quire.core.weigh import weigh
from quire.engine import actor
from quire.engine.clock import FakeClock, system_ids
from quire.engine.engine import Engine
from quire.errors import LimitExceeded, StorageUnavailable
from quire.storage.memory import MemoryBackend, open_memory


class Watched(MemoryBackend):
    """Counts what is asked of it, and waits with reading while `gate` is shut."""

    gate = None
    reading = most = looks = 0
    deaf = False

    async def commit(self, items):
        self.sizes = [*getattr(self, "sizes", []), sum(len(item.records) for item in items)]
        return await super().commit(items)

    async def keyframe(self, stream, at=None):
        self.loads = getattr(self, "loads", 0) + 1
        return await super().keyframe(stream, at)

    async def read(self, stream, **how):
        self.reading += 1
        self.most = max(self.most, self.reading)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return await super().read(stream, **how)
        finally:
            self.reading -= 1

    async def stats(self):
        self.looks += 1
        if self.deaf:
            raise StorageUnavailable("no answer")
        return await super().stats()


async def store_with(settings, clock=None):
    backend = await open_memory(namespace="n")
    backend.__class__ = Watched
    return Store(Engine(backend, settings, clock or FakeClock(), system_ids(), await backend.latest()), "n")


# commits


async def test_no_commit_holds_more_writes_than_allowed_in_whatever_parts_they_come():
    store = await store_with(Settings(batch_writes_max=10))
    flows = [await store.create(f"w{n}", {}) for n in range(30)]
    store.engine.backend.sizes = []
    parts = [flows[n : n + 4] for n in range(0, 28, 4)]
    many = [store.transact([w.change([Set(("t",), 1)]) for w in part]) for part in parts]
    await asyncio.gather(*many, *(w.set("/n", 1) for w in flows))
    assert max(store.engine.backend.sizes) <= 10
    assert sum(store.engine.backend.sizes) == 28 + 30
    await store.transact([w.change([Set(("all",), 1)]) for w in flows])  # one commit or none: it goes alone
    assert store.engine.backend.sizes[-1] == 30
    await store.close()


async def test_a_transaction_that_is_too_large_is_refused_whole():
    store = await store_with(Settings(transaction_writes_max=3))
    flows = [await store.create(f"w{n}", {}) for n in range(4)]
    with pytest.raises(LimitExceeded) as caught:
        await store.transact([w.change([Set(("t",), 1)]) for w in flows])
    assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("transaction_writes_max", 3, 4)
    assert [await w.state() for w in flows] == [{}] * 4
    assert len(await store.transact([w.change([Set(("t",), 1)]) for w in flows[:3]])) == 3
    await store.close()


# loads


async def test_no_more_states_are_read_at_once_than_allowed():
    store = await store_with(Settings(parallel_loads_max=3, resident_bytes_max=0))
    backend = store.engine.backend
    flows = [await store.create(f"w{n}", {"n": n}) for n in range(20)]
    for wf in flows:
        await wf.set("/m", 1)
    backend.gate, backend.most = asyncio.Event(), 0
    asked = [asyncio.ensure_future(wf.get("/n")) for wf in flows]
    asked += [asyncio.ensure_future(wf.get("/n", version=1)) for wf in flows]
    while backend.reading < 3:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert backend.reading == 3
    backend.gate.set()
    assert await asyncio.gather(*asked) == [*range(20)] * 2
    assert backend.most == 3
    await store.close()


async def test_a_fork_of_forks_is_read_by_one_turn():
    store = await store_with(Settings(parallel_loads_max=1, resident_bytes_max=0))
    wf = await store.create("w0", {"n": 0})
    for number in range(1, 6):
        wf = await wf.fork(f"w{number}")
        await wf.set("/n", number)
    assert await asyncio.gather(*(store.workflow(f"w{n}").get("/n") for n in range(6))) == [*range(6)]
    await store.close()


async def test_memory_stays_within_its_bound_whatever_is_read():
    store = await store_with(Settings(resident_bytes_max=50_000))
    for number in range(100):
        await store.create(f"w{number}", {"text": "x" * 1000})
    found = await asyncio.gather(*(store.workflow(f"w{n}").get("/text") for n in range(100)))
    assert set(found) == {"x" * 1000}
    assert (await store.stats()).resident_bytes <= 50_000
    await store.close()


@pytest.mark.parametrize(("bound", "others", "reads"), [(40_000, 0, 0), (40_000, 5, 0), (0, 5, 40)])
async def test_a_state_larger_than_the_bound_is_not_read_again_for_each_write(bound, others, reads):
    store = await store_with(Settings(resident_bytes_max=bound))
    small = [await store.create(f"small{n}", {"n": 0}) for n in range(others)]
    big = await store.create("big", {"text": "x" * 20_000, "n": 0})
    await big.inc("/n")
    store.engine.backend.loads = 0
    for _ in range(40):
        await big.inc("/n")
        for wf in small:
            await wf.inc("/n")
    assert store.engine.backend.loads >= reads
    assert reads or not store.engine.backend.loads
    assert (await store.stats()).resident_workflows == (others + 1 if bound else 0)
    assert [await wf.get("/n") for wf in (big, *small)] == [41, *[40] * others]
    await store.close()


async def test_of_two_states_larger_than_the_bound_one_stays():
    store = await store_with(Settings(resident_bytes_max=40_000))
    for name in ("one", "two"):
        await store.create(name, {"text": "x" * 20_000})
    await store.workflow("one").set("/n", 1)
    assert (await store.stats()).resident_workflows == 1
    assert await store.workflow("two").get("/text") == "x" * 20_000
    assert (await store.stats()).resident_workflows == 1
    assert (await store.stats()).resident_bytes <= 40_000 + 5 * 21_000
    await store.close()


async def test_a_state_near_its_limit_is_weighed_off_the_loop_and_once(monkeypatch):
    limits = Settings(state_bytes_max=100_000, state_keys_max=30_000, write_bytes_max=20_000, batch_bytes_max=10_000)
    store = await store_with(limits)
    threads = []

    def weighing(state):
        threads.append(threading.get_ident())
        return weigh(state)

    monkeypatch.setattr(actor, "weigh", weighing)
    wf = await store.create("w", {"text": "x" * 15_000, "more": {}})
    await wf.set("/n", 1)
    assert threads == []  # far from it nothing is weighed
    for n in range(8):
        await wf.set(f"/more/{n}", "y" * 10_000)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    with pytest.raises(LimitExceeded) as caught:
        await wf.set("/more/9", "y" * 10_000)
    there = len(msgspec.json.encode({**await wf.state(), "more": {**await wf.get("/more"), "9": "y" * 10_000}}))
    assert (caught.value.limit, caught.value.found) == ("state_bytes_max", there)
    await store.close()


# the store


PLACES = {"memory": "memory:", "sqlite": "{here}/s.db", "file": "file:///{here}/f", "rocksdb": "rocksdb:///{here}/r"}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_a_store_grows_to_its_bound_and_not_much_further(place, tmp_path):
    allowed = 6_000_000
    url = place.format(here=tmp_path)
    clock = FakeClock()
    async with quire.open(url, settings=Settings(store_bytes_max=allowed), clock=clock) as store:
        wf = await store.create("w", {})
        with pytest.raises(LimitExceeded) as caught:
            for number in range(2000):
                await wf.set(f"/{number}", token_hex(10_000))
        error = caught.value
        assert (error.limit, error.allowed) == ("store_bytes_max", allowed)
        assert allowed <= error.found
        written = len(await wf.state()) * 20_000
        assert written > allowed / 4, "it is refused for its size, not from the start"
        assert (await store.stats()).size_bytes < allowed * 1.4  # a keyframe may come on top
        with pytest.raises(LimitExceeded):
            await store.put_blob(b"x")
        with pytest.raises(LimitExceeded):
            await wf.checkpoint("c", kind="snapshot")
        assert (await store.verify()).ok
        await store.delete("w")  # what leads to room is not refused
        with pytest.raises(LimitExceeded):
            await store.create("v", {})


async def test_whoever_makes_room_goes_on_and_the_size_is_asked_seldom():
    clock = FakeClock()
    store = await store_with(Settings(store_bytes_max=1_000_000), clock)
    backend = store.engine.backend
    wf = await store.create("w", {})
    with pytest.raises(LimitExceeded):
        for number in range(10_000):
            await wf.set(f"/{number}", "x" * 1000)
    assert 900 < number < 1100
    assert backend.looks < 80
    looks = backend.looks
    for _ in range(20):
        with pytest.raises(LimitExceeded):
            await wf.set("/n", 1)
    assert backend.looks == looks
    await backend.drop("workflows/w")
    with pytest.raises(LimitExceeded):
        await store.create("v", {})
    await clock.wind(2)
    await store.create("v", {})
    backend.deaf = True  # the last known size counts
    await clock.wind(100)
    await store.workflow("v").set("/n", 1)
    await store.close()


async def test_what_others_write_is_noticed_after_a_while():
    clock = FakeClock()
    store = await store_with(Settings(store_bytes_max=100_000), clock)
    wf = await store.create("w", {})
    other = Store(Engine(store.engine.backend, Settings(), clock, system_ids(), 0), "n")
    await other.create("big", {"text": "x" * 200_000})
    await wf.set("/n", 1)
    await clock.wind(61)
    with pytest.raises(LimitExceeded, match="store_bytes_max"):
        await wf.set("/n", 2)
    await store.close()


async def test_a_blob_may_be_as_large_as_allowed():
    async with quire.open("memory:", settings=Settings(blob_bytes_max=100)) as store:
        name = await store.put_blob(bytes(100))
        assert await store.blob(name) == bytes(100)
        with pytest.raises(LimitExceeded) as caught:
            await store.put_blob(bytes(101))
        assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("blob_bytes_max", 100, 101)
        assert (await store.stats()).blobs == 1
