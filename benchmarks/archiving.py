"""What an archive costs: moving, reading old versions, bytes, and what writers feel of a sweep."""

import asyncio
import time
from pathlib import Path
from statistics import median

import quire
from benchmarks.answers import typed
from benchmarks.measure import Row, folder
from quire.config import Retention

BY_HAND = Retention(versions=10, every_s=0)


def archiving(quick):
    """Old versions in an archive: moved, read, weighed, and what writers feel of it."""
    count = 4000 if quick else 20_000
    with folder() as place:
        found = asyncio.run(_typed_and_moved(Path(place), count))
    written, moved, weights = found["written"], found["moved"], found["weights"]
    said = f"{moved:,.0f}/s to a folder, {written:,.0f}/s were written by 500 at once"
    yield Row(f"moving {count:,} keystrokes, beside writing them", moved / written, ">=", 1, "x", said)
    yield Row("bytes of a keystroke in the archive, half of the store's", weights, "<=", 57, "B", found["parts"])
    here, cold, warm = found["here"], found["cold"], found["warm"]
    said = f"{here * 1e3:.1f} ms here, {cold * 1e3:.1f} ms with the segment fetched"
    yield Row("an archived version, first read, beside one that is here", cold / here, "<=", 10, "x", said)
    yield Row("again, from segments kept ready", warm / here, "<=", 3, "x", f"{warm * 1e3:.1f} ms")
    with folder() as place:
        alone, beside, moved = asyncio.run(_felt(Path(place), 200 if quick else 1000))
    said = f"{alone * 1e3:.1f} ms, {beside * 1e3:.1f} ms while {moved:,} versions went"
    yield Row("p99 of 20 writers while a sweep runs, beside without", beside / alone, "<=", 3, "x", said)


async def _typed_and_moved(place, count):
    url, rules = str(place / "s.db"), BY_HAND
    async with quire.open(url, archive=str(place / "old"), retention=rules) as store:
        wf = await store.create("w", {"text": ""}, author="ann")
        keys = list(typed(count))
        start = time.perf_counter()
        for low in range(0, count, 500):
            await asyncio.gather(*(wf.splice("/text", *key, author="ann") for key in keys[low : low + 500]))
        written = count / (time.perf_counter() - start)
        asked = range(count // 20, count, count // 20)
        here = [await _read(wf, n) for n in asked]
        start = time.perf_counter()
        done = await store.sweep()
        moved = done.versions / (time.perf_counter() - start)
        held = await store.archived()
    async with quire.open(url) as store:
        wf, shelf = store.workflow("w"), store.engine.archive.shelf
        cold, warm = [], []
        for n in asked:
            shelf.__init__(shelf._inner, "default", None)
            cold.append(await _read(wf, n))
            warm.append(await _read(wf, n))
    segments = sum(each.segments for each in held.streams)
    return {
        "written": written,
        "moved": moved,
        "weights": held.size_bytes / done.versions,
        "parts": f"{held.size_bytes:,} bytes in {segments} segments; 32 of each are its chain",
        "here": median(here),
        "cold": median(cold),
        "warm": median(warm),
    }


async def _read(wf, number):
    start = time.perf_counter()
    await wf.state(number)
    return time.perf_counter() - start


async def _felt(place, each):
    async with quire.open(str(place / "s.db"), archive=str(place / "old"), retention=BY_HAND) as store:
        old = [await store.create(f"old{n}", {"log": []}) for n in range(10)]
        for _ in range(20):
            await asyncio.gather(*(w.append("/log", n) for w in old for n in range(100)))
        flows = [await store.create(f"new{n}", {"n": 0}) for n in range(20)]
        alone = await _p99(flows, each)
        sweep = asyncio.ensure_future(store.sweep())
        beside = await _p99(flows, each)
        return alone, beside, (await sweep).versions


async def _p99(flows, each):
    times = []

    async def write(wf):
        for n in range(each):
            start = time.perf_counter()
            await wf.set("/n", (n, each, time.perf_counter_ns()))
            times.append(time.perf_counter() - start)

    await asyncio.gather(*map(write, flows))
    return sorted(times)[int(len(times) * 0.99)]
