"""A commit that errors: what is answered is what is so, or that it cannot be known."""

import asyncio

import pytest

import quire
from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import CorruptRecord, OutcomeUnknown, StorageFull, StorageUnavailable
from quire.storage.memory import MemoryBackend, open_memory


class Faulty(MemoryBackend):
    """Fails as told: before or after the records are stored, with or without being able to reconnect."""

    fail = None
    deaf = False

    async def commit(self, items):
        if self.fail == "before":
            self.fail = None
            raise StorageFull("no space")
        outcomes = await super().commit(items)
        if self.fail == "after":
            self.fail = None
            raise StorageUnavailable("the sync failed")
        return outcomes

    async def recover(self):
        if self.deaf:
            raise StorageUnavailable("still away")


@pytest.fixture
async def store():
    backend = await open_memory(namespace="n")
    backend.__class__ = Faulty
    opened = Store(Engine(backend, Settings(), SystemClock(), system_ids(), 0), "n")
    await opened.create("w", {"n": 0})
    yield opened
    await opened.close()


async def test_a_commit_that_failed_but_is_stored_is_acknowledged_once(store):
    wf = store.workflow("w")
    store.engine.backend.fail = "after"
    versions = await asyncio.gather(*(wf.inc("/n") for _ in range(5)))
    assert [v.number for v in versions] == [2, 3, 4, 5, 6]
    assert await wf.get("/n") == 5
    assert (await store.verify()).ok


async def test_a_commit_that_failed_and_is_not_stored_is_reported(store):
    wf = store.workflow("w")
    store.engine.backend.fail = "before"
    results = await asyncio.gather(*(wf.inc("/n") for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [StorageFull] * 3
    assert len({id(r) for r in results}) == 3
    assert await wf.get("/n") == 0
    assert (await wf.inc("/n")).number == 2
    assert await wf.get("/n") == 1


@pytest.mark.parametrize("fail", ["before", "after"])
async def test_what_cannot_be_known_is_said_and_then_found_out(store, fail):
    wf, backend = store.workflow("w"), store.engine.backend
    backend.fail, backend.deaf = fail, True
    with pytest.raises(OutcomeUnknown) as caught:
        await wf.set("/n", 7)
    assert caught.value.__cause__ is not None
    with pytest.raises(StorageUnavailable):  # not sent: known not to be stored
        await wf.set("/m", 1)
    backend.deaf = False
    await wf.set("/m", 2)
    assert await wf.state() == ({"n": 7, "m": 2} if fail == "after" else {"n": 0, "m": 2})
    assert (await store.verify()).ok


@pytest.mark.parametrize("fail", ["before", "after"])
async def test_a_key_makes_a_retry_safe_when_nothing_is_known(store, fail):
    wf, backend = store.workflow("w"), store.engine.backend
    backend.fail, backend.deaf = fail, True
    with pytest.raises(OutcomeUnknown):
        await wf.inc("/n", idempotency_key="k")
    backend.deaf = False
    await wf.inc("/n", idempotency_key="k")
    assert await wf.get("/n") == 1


async def test_transactions_fail_and_succeed_whole(store):
    other = await store.create("v", {"n": 0})
    wf, backend = store.workflow("w"), store.engine.backend

    def parts():
        return [w.change([quire.Increment(("n",), 1)]) for w in (wf, other)]

    backend.fail = "after"
    await store.transact(parts())
    backend.fail = "before"
    with pytest.raises(StorageFull):
        await store.transact(parts())
    assert (await wf.get("/n"), await other.get("/n")) == (1, 1)


async def test_a_plan_that_raises_anything_hurts_only_its_own_write(store):
    wf = store.workflow("w")

    def broken(state):
        raise ZeroDivisionError

    results = await asyncio.gather(
        wf.inc("/n"), store.engine.write(Write(wf.stream, broken)), wf.inc("/n"), return_exceptions=True
    )
    assert isinstance(results[1], ZeroDivisionError)
    assert await wf.get("/n") == 2


async def test_a_cancelled_writer_leaves_the_others_alone(store):
    wf = store.workflow("w")
    tasks = [asyncio.ensure_future(wf.inc("/n")) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[3].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    n = await wf.get("/n")
    assert n in (9, 10)
    assert (await wf.inc("/n")).number == n + 2


async def test_a_full_queue_makes_writers_wait_not_fail():
    async with quire.open("memory:", settings=Settings(queue_writes_max=5, batch_writes_max=2)) as small:
        wf = await small.create("w", {"n": 0})
        await asyncio.gather(*(wf.inc("/n") for _ in range(50)))
        assert await wf.get("/n") == 50


async def test_a_feed_that_is_ahead_of_the_newest_position_is_no_loss(monkeypatch):
    """A commit of another handle can be read before that handle, and the store, say that it is there."""
    async with quire.open("memory:ahead") as one, quire.open("memory:ahead") as two:
        wf = await one.create("w", {"n": 0})
        assert await two.workflow("w").get("/n") == 0
        backend = two.engine.backend
        before = await backend.latest()
        await wf.inc("/n")
        late = [before, before]

        async def behind():
            return late.pop(0) if late else await type(backend).latest(backend)

        monkeypatch.setattr(backend, "latest", behind)
        two.engine.seen = before + 1  # as its feed said
        assert [await two.workflow("w").exists() for _ in range(2)] == [True] * 2


async def test_a_store_that_went_back_is_not_read_as_if_nothing_was_lost(monkeypatch):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"n": 0})
        await wf.inc("/n")
        backend = store.engine.backend
        newest = await backend.latest()

        async def emptied():
            return newest - 1

        monkeypatch.setattr(backend, "latest", emptied)
        for call in (wf.state, wf.history, wf.exists, wf.version, lambda: wf.fork("f")):
            with pytest.raises(CorruptRecord, match="an older copy took its place"):
                await call()
