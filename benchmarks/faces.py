"""The other faces of state, beside the plain workflow they are made of: the central store, events, Lua."""

import asyncio
import random
import subprocess
import sys
import time
from statistics import median

import quire
from benchmarks.crowds import WRITERS, at, crowd, plain_writes
from benchmarks.measure import Row, in_turns, timed
from quire.scripting import run_script


async def _central_file(path, each):
    async with quire.AsyncCentralizedStateStore(path) as store:
        took, _ = await crowd(lambda k, i: store.set(f"key{k}", i), each)
        count = WRITERS * each
        pasts = []
        for version in random.Random(1).sample(range(WRITERS, count), 20):
            start = time.perf_counter()
            assert len(await store.get_all(version)) == WRITERS  # the first round of writes made every key
            pasts.append(time.perf_counter() - start)
        return took, median(pasts)


async def _events_file(path, each):
    async with quire.AsyncEventStore(path) as store:
        took, _ = await crowd(lambda k, i: store.append("paid", {"agent": f"a{k}", "cents": i}), each)
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
        central, lambda: at(_events_file, each), lambda: at(plain_writes, each), repeats=1 if quick else 3
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
