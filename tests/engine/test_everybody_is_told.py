"""Whatever is raised while writes are committed, whose write it was is told, and nobody else has to wait or to suffer."""

import asyncio

import pytest

import quire
from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.engine.write import Base, Write
from quire.errors import Closed, FunctionFailed, Invalid, InvalidState, OutcomeUnknown, StorageError
from quire.model import Increment, Set
from quire.storage.memory import MemoryBackend, open_memory


class Raising(MemoryBackend):
    """Raises what it is told: once out of `commit`, before or after storing, or for records that it does not like."""

    before = after = recovering = reading = None
    disliked = b"disliked"
    held = None
    sizes = ()

    async def commit(self, items):
        if self.held is not None:
            await self.held.wait()
        self.sizes = (*self.sizes, len(items))
        if any(self.disliked in r.body for item in items for r in item.records):
            raise InvalidState("a value is larger than the server takes")
        error, self.before = self.before, None
        if error is not None:
            raise error
        outcomes = await super().commit(items)
        error, self.after = self.after, None
        if error is not None:
            raise error
        return outcomes

    async def read(self, *args, **kwargs):
        error, self.reading = self.reading, None
        if error is not None:
            raise error
        return await super().read(*args, **kwargs)

    async def recover(self):
        error, self.recovering = self.recovering, None
        if error is not None:
            raise error


@pytest.fixture
async def store():
    backend = await open_memory(namespace="n")
    backend.__class__ = Raising
    opened = Store(Engine(backend, Settings(), SystemClock(), system_ids(), 0), "n")
    for name in ("w", "v", "u"):
        await opened.create(name, {"n": 0})
    backend.sizes = ()
    yield opened
    assert (await opened.verify()).ok
    await opened.close()


async def all_of(*writes):
    return await asyncio.gather(*writes, return_exceptions=True)


async def numbers(store):
    return [await store.workflow(name).get("/n") for name in ("w", "v", "u")]


async def test_one_write_that_the_backend_refuses_hurts_no_other_of_its_commit(store):
    w, v, u = (store.workflow(name) for name in ("w", "v", "u"))
    results = await all_of(w.inc("/n"), v.set("/x", "disliked"), v.inc("/n"), u.inc("/n"), w.set("/y", "disliked"))
    assert [type(r).__name__ for r in results] == ["Version", "InvalidState", "Version", "Version", "InvalidState"]
    assert results[1] is not results[4]
    assert await numbers(store) == [1, 1, 1]
    assert (await v.state(), await w.state()) == ({"n": 1}, {"n": 1})
    assert store.engine.backend.sizes == (3, 1, 1, 1, 1, 1)
    await all_of(*(wf.inc("/n") for wf in (w, v, u)))
    assert store.engine.backend.sizes[-1] == 3  # they are committed together again


async def test_a_transaction_that_the_backend_refuses_is_refused_whole(store):
    w, v = store.workflow("w"), store.workflow("v")
    both = store.transact([w.change([Increment(("n",), 1)]), v.change([Set(("x",), "disliked")])])
    results = await all_of(both, w.inc("/n"))
    assert isinstance(results[0], InvalidState)
    assert results[1].number == 2
    assert (await w.state(), await v.state()) == ({"n": 1}, {"n": 0})


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError(), StopAsyncIteration()])
async def test_an_unexpected_error_of_a_commit_that_stored_nothing_is_told_with_its_cause(store, error):
    backend, w, v = store.engine.backend, store.workflow("w"), store.workflow("v")
    backend.before = error
    results = await all_of(w.inc("/n"), v.inc("/n"))
    assert [type(r) for r in results] == [StorageError] * 2
    assert all(r.__cause__ is error and type(error).__name__ in str(r) for r in results)
    assert (await w.inc("/n")).number == 2
    assert await numbers(store) == [1, 0, 0]


@pytest.mark.parametrize("error", [InvalidState("odd"), RuntimeError("bug"), asyncio.CancelledError()])
async def test_an_unexpected_error_of_a_commit_that_is_stored_is_none(store, error):
    store.engine.backend.after = error
    results = await all_of(store.workflow("w").inc("/n"), store.workflow("v").inc("/n"))
    assert [r.number for r in results] == [2, 2]
    assert await numbers(store) == [1, 1, 0]


@pytest.mark.parametrize("error", [InvalidState("odd"), RuntimeError("bug"), asyncio.CancelledError()])
@pytest.mark.parametrize("where", ["recovering", "reading"])
async def test_where_the_store_cannot_be_asked_it_is_said_and_then_found_out(store, where, error):
    backend, w = store.engine.backend, store.workflow("w")
    backend.after = RuntimeError("bug")
    setattr(backend, where, error)
    results = await all_of(w.inc("/n"), store.workflow("v").inc("/n"))
    assert [type(r) for r in results] == [OutcomeUnknown] * 2
    backend.recovering = error
    with pytest.raises(type(error) if isinstance(error, InvalidState) else StorageError):
        await w.inc("/n")  # not sent
    assert (await w.inc("/n")).number == 3
    assert await numbers(store) == [2, 1, 0]


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError()])
async def test_an_error_while_reading_what_another_process_wrote_is_told(error):
    place, opened = "told" + type(error).__name__, []
    for _ in range(2):
        backend = await open_memory(place, namespace="n")
        backend.__class__ = Raising
        opened.append(Store(Engine(backend, Settings(), SystemClock(), system_ids(), 0), "n"))
    ours, theirs = opened
    mine = await ours.create("w", {"n": 0})
    await theirs.workflow("w").inc("/n")
    ours.engine.backend.reading = error
    write = Write("workflows/w", [Increment(("n",), 1)])
    with pytest.raises(StorageError) as caught:
        await ours.engine.committer.submit((write,))
    assert caught.value.__cause__ is not None
    assert (await mine.inc("/n")).number == 3
    for each in opened:
        await each.close()


def raising(error):
    def fn(*_):
        raise error

    return fn


def of_a_plan(base, fn):
    return Write("workflows/w", fn)


def of_a_guard(base, fn):
    return Write("workflows/w", [Increment(("n",), 1)], guard=fn)


def of_a_policy(base, fn):
    return Write("workflows/w", [Set(("t",), "ours")], base=base, policy=fn)


@pytest.mark.parametrize("made", [of_a_plan, of_a_guard, of_a_policy])
@pytest.mark.parametrize("error", [asyncio.CancelledError, GeneratorExit, StopIteration])
async def test_a_function_that_raises_what_ends_tasks_is_refused_and_the_others_go_on(store, made, error):
    w = store.workflow("w")
    base = Base(1, {"n": 0})
    await w.set("/t", "theirs")
    bad = made(base, raising(error()))
    results = await all_of(w.inc("/n"), store.engine.write(bad), w.inc("/n"), store.workflow("v").inc("/n"))
    assert isinstance(results.pop(1), FunctionFailed)
    assert [r.number for r in results] == [3, 4, 2]
    assert await w.state() == {"n": 2, "t": "theirs"}


async def test_writers_that_wait_for_room_get_in_behind_any_failure():
    backend = await open_memory(namespace="n")
    backend.__class__ = Raising
    small = Store(
        Engine(backend, Settings(queue_writes_max=2, batch_writes_max=2), SystemClock(), system_ids(), 0), "n"
    )
    w = await small.create("w", {"n": 0})

    def one(i):
        backend.before = RuntimeError("bug") if i == 0 else None
        if i % 3 == 0:
            return small.engine.write(Write("workflows/w", raising(asyncio.CancelledError())))
        return w.set("/x", "disliked") if i % 3 == 1 else w.inc("/n")

    results = await all_of(*(one(i) for i in range(60)))
    assert sum(isinstance(r, quire.Version) for r in results) == await w.get("/n") == 20
    assert sum(isinstance(r, FunctionFailed) for r in results) == 20
    assert sum(isinstance(r, Invalid) for r in results) == 20
    assert (await small.verify()).ok
    await small.close()


async def test_when_the_committing_task_is_cancelled_all_are_told_and_the_next_write_finds_out(store):
    backend, w, v = store.engine.backend, store.workflow("w"), store.workflow("v")
    await w.inc("/n")
    await v.inc("/n")
    backend.held = asyncio.Event()
    sent = [asyncio.ensure_future(wf.inc("/n")) for wf in (w, v)]
    while not store.engine.committer._task:
        await asyncio.sleep(0)
    for _ in range(5):  # it is in the commit, and another write comes
        await asyncio.sleep(0)
    queued = asyncio.ensure_future(w.inc("/n"))
    await asyncio.sleep(0)
    store.engine.committer._task.cancel()
    results = await all_of(*sent, queued)
    assert [type(r) for r in results] == [OutcomeUnknown, OutcomeUnknown, Closed]
    backend.held = None
    assert (await w.inc("/n")).number == 3
    assert await numbers(store) == [2, 1, 0]


@pytest.mark.parametrize(
    "bad",
    [
        Write("workflows/w", [Set(("a",), 1), Set(("x",), "\ud800")]),
        Write("workflows/w", [Set(("a",), 1), object()]),
        Write("workflows/w", [Set(("a",), 1)], author="\ud800"),
        Write("workflows/w", [Set(("a",), "x" * 2_000_000)], start={"b": 1}),
    ],
)
async def test_a_write_that_cannot_be_sealed_leaves_nothing_in_what_is_published(bad):
    async with quire.open("memory:", settings=Settings(write_bytes_max=1_000_000)) as store:
        w = await store.create("w", {"n": 0})
        results = await all_of(w.inc("/n"), store.engine.write(bad), w.inc("/n"))
        assert isinstance(results[1], Exception)
        results = await all_of(store.engine.write(bad), w.inc("/n"))
        assert isinstance(results[0], Exception)
        assert await w.state() == {"n": 3}
        assert (await store.verify()).ok
