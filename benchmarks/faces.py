"""The other faces of state, beside the plain workflow they are made of: scopes, the central store, events, Lua."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import apsw

import quire
from benchmarks.measure import Row, folder, in_turns, timed
from quire.scripting import run_script

WRITERS = 100
READERS = 8


def at(work, *given):
    """Run work on a SQLite file of its own."""
    with folder() as place:
        return asyncio.run(work(str(Path(place) / "s.db"), *given))


async def _each(work, count):
    """Return the seconds of each of `count` calls, one after the other."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        await work(i)
        times.append(time.perf_counter() - start)
    return times


async def _crowd(work, each):
    """Have 100 writers call `work` with writer and number; return seconds for all, and of each call."""
    start = time.perf_counter()
    times = await asyncio.gather(*(_each(partial(work, k), each) for k in range(WRITERS)))
    return time.perf_counter() - start, [t for some in times for t in some]


# scopes


async def _scope_memory(count):
    async with quire.open("memory:") as store:
        state = quire.WorkflowStateManager(store).workflow_state("w")
        for i in range(100):
            await state.set(f"key{i}", {"progress": i})
        gets = await _each(lambda i: state.get(f"key{i % 100}"), count)
        return gets, await _each(lambda i: state.set(f"key{i % 100}", {"progress": i + 0.5}), count // 4)


async def _scope_file(path, each):
    async with quire.open(path) as store:
        state = quire.WorkflowStateManager(store).workflow_state("w")
        alone = await _each(lambda i: state.set("alone", i), 200)
        return alone, *await _crowd(lambda k, i: state.set(f"key{k}", i), each)


async def _plain_file(path, each):
    async with quire.open(path) as store:
        wf = await store.create("w", {"values": {}})
        return (await _crowd(lambda k, i: wf.set(f"/values/key{k}", i + 1), each))[0]


def scoped(quick):
    """Scoped state: get and set, alone and in a crowd."""
    gets, sets = asyncio.run(_scope_memory(2000 if quick else 20_000))
    yield Row("scoped get in memory", median(gets) * 1e6, "<=", 20, "us", f"p50 of {len(gets):,}; p99 {_p99(gets):.0f}")
    yield Row("scoped set in memory", median(sets) * 1e6, "<=", 20, "us", f"p50 of {len(sets):,}; p99 {_p99(sets):.0f}")
    each = 20 if quick else 100
    found = []

    def ours():
        found.append(at(_scope_file, each))
        return found[-1][1]

    took, plain = in_turns(ours, lambda: at(_plain_file, each), repeats=1 if quick else 3)
    alone, crowd = (median(median(run[i]) for run in found) * 1e3 for i in (0, 2))
    per = took.mid / (WRITERS * each) * 1e3
    yield Row("durable scoped set, one writer, p50", alone, "<=", 1, "ms")
    yield Row(f"durable scoped set, {WRITERS} writers, time per write", per, "<=", 1, "ms", f"{1000 / per:,.0f}/s")
    yield Row(f"durable scoped set, {WRITERS} writers, p50 each waits", crowd, "<=", 1, "ms")
    ratio = took.mid / plain.mid
    yield Row("the same writes, of those of a plain workflow", ratio, "<=", 2, note=f"plain {plain.mid:.2f} s")


def _p99(times):
    return quantiles(times, n=100)[-1] * 1e6


def reading(quick):
    """8 threads that read scoped state, beside a writer: what the slowest hundredth of their reads takes."""
    count = 250 if quick else 1000
    with folder() as place:
        path = str(Path(place) / "s.db")
        with quire.sync.open(path) as store:
            state = quire.sync.WorkflowStateManager(store).workflow_state("w")
            state.set("key", {"progress": 0})
            besides = (_idle, partial(_read, state), partial(_write, state), partial(_held, path, state))
            alone, reader, writer, held = in_turns(
                *(partial(_readers, state, count, beside) for beside in besides), repeats=3 if quick else 5
            )
    said = f"{alone.mid:,.0f} us ({alone}) to {{:,.0f}} us"
    yield Row(
        f"p99 of {READERS} readers beside a commit held up / alone",
        held.mid / alone.mid,
        "<=",
        1.5,
        note=said.format(held.mid),
    )
    note = f"{said.format(writer.mid)}; beside a ninth reader {reader.mid:,.0f} us"
    yield Row(f"p99 of {READERS} readers beside a busy writer / alone", writer.mid / alone.mid, "<=", 2, note=note)


def _readers(state, count, beside):
    """Return the 99th percentile in us of what 8 threads' reads take while one more does `beside` until told it is over."""
    times, over = [], threading.Event()

    def read():
        mine = []
        for _ in range(count):
            start = time.perf_counter()
            state.get("key")
            mine.append(time.perf_counter() - start)
        times.extend(mine)

    other = threading.Thread(target=beside, args=(over,))
    other.start()
    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    other.join()
    assert len(times) == READERS * count
    return _p99(times)


def _idle(over):
    over.wait()


def _read(state, over):
    while not over.is_set():
        state.get("key")


def _write(state, over):
    while not over.is_set():
        state.set("other", time.time_ns())


def _held(path, state, over):
    """Write while another connection holds the file's lock, until the readers are done."""
    lock = apsw.Connection(path)
    lock.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=_write_once, args=(state,))
    writer.start()
    over.wait()
    assert writer.is_alive(), "nothing was held up"
    lock.execute("ROLLBACK")
    lock.close()
    writer.join()


def _write_once(state):
    state.set("other", time.time_ns())


# maps and events


async def _central_file(path, each):
    async with quire.AsyncCentralizedStateStore(path) as store:
        took, _ = await _crowd(lambda k, i: store.set(f"key{k}", i), each)
        count = WRITERS * each
        pasts = []
        for version in random.Random(1).sample(range(WRITERS, count), 20):
            start = time.perf_counter()
            assert len(await store.get_all(version)) == WRITERS  # the first round of writes made every key
            pasts.append(time.perf_counter() - start)
        return took, median(pasts)


async def _events_file(path, each):
    async with quire.AsyncEventStore(path) as store:
        took, _ = await _crowd(lambda k, i: store.append("paid", {"agent": f"a{k}", "cents": i}), each)
        assert await store.get_version() == WRITERS * each - 1
        return took


def _paid(state, event):
    agent = event.data["agent"]
    return {**state, agent: state.get(agent, 0) + event.data["cents"]}


async def _replays(path, count):
    """Return the seconds of replays up to versions here and there: with keyframes, and from the first event."""
    async with quire.AsyncEventStore(path, reducers={"paid": _paid}, keyframes="sums") as store:
        for low in range(0, count, 500):
            await store.append_many(("paid", {"agent": f"a{i % 100}", "cents": i}) for i in range(low, low + 500))
            await store.replay()  # somebody reads now and then, and so leaves keyframes
        near, far = [], []
        for version in random.Random(2).sample(range(count), 15):
            found = []
            for fresh, times in ((False, near), (True, far)):
                start = time.perf_counter()
                found.append(await store.replay(upto=version, fresh=fresh))
                times.append(time.perf_counter() - start)
            assert found[0] == found[1]
        return near, far


def sharing(quick):
    """The central store and the event store, beside a plain workflow, 100 writers each."""
    each, pasts = (20 if quick else 100), []

    def central():
        took, past = at(_central_file, each)
        pasts.append(past)
        return took

    sets, appends, plain = in_turns(
        central, lambda: at(_events_file, each), lambda: at(_plain_file, each), repeats=1 if quick else 3
    )
    for what, took in (("central store: set", sets), ("event store: append", appends)):
        note = f"{WRITERS * each / took.mid:,.0f}/s of {WRITERS * each / plain.mid:,.0f}/s"
        yield Row(f"{what}, time of a plain write", took.mid / plain.mid, "<=", 2, note=note)
    past = median(pasts) * 1e3
    yield Row(f"central store: all keys at one of {WRITERS * each:,} versions", past, "<=", 20, "ms")
    count = 10_000 if quick else 20_000
    near, far = at(_replays, count)
    said = f"median {median(near) * 1e3:.1f} ms of {median(far) * 1e3:.0f}, {count:,} events"
    yield Row("event store: replay with keyframes, of without", sum(near) / sum(far), "<=", 0.2, note=said)


# scripts


async def _ran(sources):
    """Return the seconds of each script, run in turns."""
    times = [[] for _ in sources]
    async with quire.open("memory:") as store:
        for _ in range(7):
            for source, into in zip(sources, times, strict=True):
                start = time.perf_counter()
                await run_script(store, source)
                into.append(time.perf_counter() - start)
    return map(median, times)


def scripts(quick):
    """Lua: the start of a script, and one call of it."""
    count = 500 if quick else 2000
    get = f"for i = 1, {count} do State.get('key') end"
    put = f"for i = 1, {count} do State.set('key' .. i % 10, i) end"
    start, gets, sets = asyncio.run(_ran(("return 1", get, put)))
    bare = timed(lambda: subprocess.run([sys.executable, "-c", "import lupa.lua54"], check=True), 9)
    yield Row("a script of one line, of Python with `import lupa`", start / bare, "<=", 3, note=f"{start * 1e3:.0f} ms")
    for what, took in (("get", gets), ("set", sets)):
        yield Row(f"a script's call of State.{what}", (took - start) / count * 1e3, "<=", 0.1, "ms", f"of {count:,}")
