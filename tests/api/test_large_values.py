"""Large values are copied, compared and written down in threads, so that the event loop goes on."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import quire
from quire import Append, Set, threads
from quire.api import reading, whole_states
from quire.core import keyframes, layout, record
from quire.core.changes import are_large
from quire.core.diff import diff
from quire.core.values import copied, is_large
from quire.engine import verify
from quire.errors import Invalid, StorageUnavailable

LARGE = {f"k{n}": {"n": n, "of": [n, "x"]} for n in range(5000)}
OTHER = {f"k{n}": {"n": -n, "of": [n, "x"]} for n in range(5000)}
SMALL = {"k": {"n": 1, "of": [1, "x"]}}


async def edited(wf, value):
    async with wf.edit() as state:
        state["new"] = value


async def saved(wf, value):
    await wf.save({**await wf.state(), **value}, base=(await wf.version()).number)


async def transacted(store, wf, value):
    await store.transact([wf.change([Set(("new",), value)])])


WRITES = {
    "create": lambda store, wf, value: store.create("v", value),
    "set": lambda store, wf, value: wf.set("/new", value),
    "append": lambda store, wf, value: wf.append("/list", value),
    "insert": lambda store, wf, value: wf.insert("/list", 0, value),
    "apply a list": lambda store, wf, value: wf.apply([Append(("list",), [value])]),
    "apply a merge patch": lambda store, wf, value: wf.apply({"new": value}),
    "transact": transacted,
    "edit": lambda store, wf, value: edited(wf, value),
    "save over all": lambda store, wf, value: wf.save(value, overwrite=True),
    "save": lambda store, wf, value: saved(wf, value),
}


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        yield opened


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
@pytest.mark.parametrize("write", WRITES)
async def test_what_is_large_is_written_down_in_a_thread(store, monkeypatch, write, large):
    wf = await store.create("w", {"list": []})
    threads, encode = set(), record.encode

    def noted(changes, **how):
        threads.add(threading.current_thread())
        return encode(changes, **how)

    monkeypatch.setattr(record, "encode", noted)
    await WRITES[write](store, wf, LARGE if large else SMALL)
    assert len(threads) == 1
    assert (threading.current_thread() in threads) is not large


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
async def test_what_is_large_is_read_in_a_thread(store, monkeypatch, large):
    value, other = (LARGE, OTHER) if large else (SMALL, {"k": 2})
    wf = await store.create("w", value)
    await wf.save(other, overwrite=True)
    threads = []

    def noted(work):
        def noting(*args):
            threads.append(threading.current_thread())
            return work(*args)

        return noting

    monkeypatch.setattr(reading, "copied", noted(copied))
    monkeypatch.setattr(reading, "diff", noted(diff))
    for count, read in enumerate(
        (wf.state, wf.state_and_version, lambda: wf.get(""), lambda: wf.state(1), lambda: wf.diff(1, 2)), 1
    ):
        await read()
        assert len(threads) == count
    assert (threading.current_thread() in threads) is not large


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
async def test_a_whole_state_that_is_large_is_compared_in_a_thread(monkeypatch, large):
    own = {"id": "w", "name": "w", "status": "running", "priority": "high", "createdAt": 1}
    threads = set()

    def noted(*args):
        threads.add(threading.current_thread())
        return diff(*args)

    monkeypatch.setattr(whole_states, "diff", noted)
    async with quire.StateManager("memory:") as manager:
        state = {**own, **(LARGE if large else SMALL)}
        await manager.persist_workflow_state("w", state)
        state = await manager.get_workflow_state("w")
        state["k0"] = 1
        await manager.persist_workflow_state("w", state)
        assert (await manager.get_workflow_state("w"))["k0"] == 1
    assert (threading.current_thread() in threads) is not large


async def test_what_the_program_alters_while_it_is_read_is_refused(store):
    wf, value = await store.create("w", {}), {f"k{n}": [n] for n in range(300_000)}
    write = asyncio.ensure_future(wf.set("/new", value))
    while not write.done():
        await asyncio.sleep(0.001)
        value[f"more {len(value)}"] = 1
    with pytest.raises(Invalid, match="altered the value while it was read"):
        await write
    assert await wf.state() == {}


def test_large_is_what_has_many_items_or_is_long():
    assert is_large([0] * 6000) and is_large({str(n): n for n in range(6000)}) and is_large([[n] for n in range(3000)])
    assert is_large("x" * 100_000_000) and is_large(*[[1] * 100] * 60)
    assert not is_large([0] * 4000) and not is_large("x" * 1_000_000) and not is_large(None, 1, "a", {"a": [1, {}]})
    assert are_large([Set(("a",), n) for n in range(600)]) and are_large([Set(("a",), LARGE)])
    assert not are_large([Set(("a",), n) for n in range(300)])


async def test_a_write_from_a_base_long_ago_is_rebased_in_a_thread(store, monkeypatch):
    wf = await store.create("w", {"n": 0, "m": 0})
    await asyncio.gather(*(wf.set("/n", n) for n in range(1, 1500)))
    threads, encode = [], record.encode

    def noted(changes, **how):
        threads.append(threading.current_thread())
        return encode(changes, **how)

    monkeypatch.setattr(record, "encode", noted)
    await wf.set("/m", 1, base=1000)
    await wf.set("/m", 2, base=(await wf.version()).number)
    await wf.set("/m", 3, base=1000, on_conflict="ours")
    on_loop = [thread is threading.current_thread() for thread in threads]
    assert on_loop[:2] == [True, True] and await wf.get("/m") == 3
    threads.clear()
    async with wf.edit(base=2) as state:
        state["k"] = 1
    assert threads and threading.current_thread() not in threads


async def test_a_part_removed_from_a_base_is_guarded_and_compared_in_a_thread(store, monkeypatch):
    wf = await store.create("w", {"list": [{"n": n} for n in range(3000)]})
    seen, settle = set(), layout.settle

    def noted(*args, **how):
        seen.add(threading.current_thread())
        return settle(*args, **how)

    base = (await wf.version()).number
    await wf.append("/list", 1)
    monkeypatch.setattr(layout, "settle", noted)
    await wf.remove("/list", 0, 1200, base=base)
    assert seen and threading.current_thread() not in seen
    assert len(await wf.get("/list")) == 1801


async def test_what_the_program_fills_its_own_threads_with_may_wait_for_large_writes(store):
    wf, loop = await store.create("w", {}), asyncio.get_running_loop()

    def job(n):
        return asyncio.run_coroutine_threadsafe(wf.set(f"/k{n}", LARGE), loop).result(60)

    async with asyncio.timeout(60):
        await asyncio.gather(*(asyncio.to_thread(job, n) for n in range(20)))
    assert len(await wf.state()) == 20


@pytest.mark.parametrize("busy", [False, True])
async def test_without_a_thread_a_large_write_is_refused_and_never_done(tmp_path, monkeypatch, busy):
    """A thread that cannot be started leaves nothing behind that a later one would do."""
    monkeypatch.setattr(threads, "_own", threads.Threads(1, "test"))
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        part = wf.change([Set(("v",), LARGE), quire.Increment(("n",), 1)])
        held = threading.Event()
        nap = asyncio.create_task(threads.aside(held.wait)) if busy else None
        await asyncio.sleep(0.05)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refused)
            writing = asyncio.create_task(store.transact([part]))
            await asyncio.sleep(0.05)
        held.set()
        if busy:  # it waits for the thread that there is
            await nap
            await writing
        else:
            with pytest.raises(StorageUnavailable, match="no thread"):
                await writing
        for _ in range(3):
            await wf.inc("/n")
        assert await wf.get("/n") == 3 + busy and ("v" in await wf.state()) is busy
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert await store.workflow("w").get("/n") == 3 + busy
        assert (await store.verify()).ok


def refused(_thread):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("others", "beside"),
    [
        ([Append(("list",), [n]) for n in range(400)], True),
        ([Set(("text",), "x" * 300_000)], True),
        ([Append(("list",), [n]) for n in range(10)], False),
    ],
    ids=["many", "long", "few"],
)
async def test_a_write_that_meets_much_is_rebased_in_a_thread(store, monkeypatch, others, beside):
    wf = await store.create("w", {"list": [], "text": ""})
    seen, settle = [], layout.settle

    def noted(*args, **how):
        seen.append(threading.current_thread())
        return settle(*args, **how)

    monkeypatch.setattr(layout, "settle", noted)
    await wf.apply(others)
    await wf.apply([Append(("list",), [-n]) for n in range(1, 11)], base=1)
    assert (seen[-1] is not threading.current_thread()) is beside
    assert (await wf.get("/list"))[-10:] == list(range(-1, -11, -1))


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
async def test_verify_compares_a_large_keyframe_in_a_thread(monkeypatch, large):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {f"key {n}": "x" * 20 for n in range(6000)} if large else SMALL)
        (head,) = await store.engine.backend.heads([wf.stream])
        await store.engine.backend.put_keyframe(keyframes.make(head, await wf.state()))
        threads, work = [], verify._is_of

        def noted(*args):
            threads.append(threading.current_thread())
            return work(*args)

        monkeypatch.setattr(verify, "_is_of", noted)
        assert (await store.verify()).keyframes
    assert threads and (threading.current_thread() not in threads) is large


async def test_others_have_their_turn_while_many_records_are_gone_through(store, monkeypatch):
    wf = await store.create("w", {"n": ""})
    await asyncio.gather(*(wf.set("/n", str(n) * 5000) for n in range(300)))
    turns = []

    async def ticking():
        while True:
            await asyncio.sleep(0)
            turns.append(1)

    ticks = asyncio.create_task(ticking())
    for ask in (
        lambda: wf.history(limit=1000),
        lambda: wf.replay(lambda version, state: None),
        store.verify,
        lambda: wf.blame("/n"),
    ):
        turns.clear()
        await ask()
        assert len(turns) > 5
    ticks.cancel()


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{}/s.db", "file:///{}/f", "rocksdb:///{}/r"])
async def test_a_program_that_fills_the_threads_of_its_loop_holds_up_nothing(tmp_path, url):
    loop, end = asyncio.get_running_loop(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        loop.set_default_executor(pool)
        full = loop.run_in_executor(None, end.wait)
        try:
            async with asyncio.timeout(30):
                async with quire.open(url.format(tmp_path), archive=str(tmp_path / "archive")) as store:
                    wf = await store.create("w", {"n": 0})
                    await wf.set("/new", LARGE)
                    await store.sweep()
                    if not url.startswith("memory"):
                        await store.backup(f"file:///{tmp_path}/backups")
                        assert (tmp_path / "backups").is_dir()
                    assert await wf.get("/new/k1/n") == 1
        finally:
            end.set()
            await full
