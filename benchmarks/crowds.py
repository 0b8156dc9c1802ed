"""Many writers at once, and what each call takes; the plain workflow that every other face is held against."""

import asyncio
import time
from functools import partial
from pathlib import Path

import quire
from benchmarks.measure import folder

WRITERS = 100


def at(work, *given):
    """Run work on a SQLite file of its own."""
    with folder() as place:
        return asyncio.run(work(str(Path(place) / "s.db"), *given))


async def each_of(work, count):
    """Return the seconds of each of `count` calls, one after the other."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        await work(i)
        times.append(time.perf_counter() - start)
    return times


async def crowd(work, each):
    """Have 100 writers call `work` with writer and number; return seconds for all, and of each call."""
    start = time.perf_counter()
    times = await asyncio.gather(*(each_of(partial(work, k), each) for k in range(WRITERS)))
    return time.perf_counter() - start, [t for some in times for t in some]


async def plain_writes(path, each):
    """Return the seconds of the crowd on one plain workflow."""
    async with quire.open(path) as store:
        wf = await store.create("w", {"values": {}})
        return (await crowd(lambda k, i: wf.set(f"/values/key{k}", i + 1), each))[0]
