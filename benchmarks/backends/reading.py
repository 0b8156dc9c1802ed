"""What reading costs with each store: a path of the resident head, a cold head, and old versions."""

import time
from statistics import median

import quire
from benchmarks.measure import Row
from benchmarks.work import message

VERSIONS = 1000


async def read_states(url, versions=VERSIONS):
    """Return microseconds of a path of the resident head, milliseconds of a cold head and of an old version: medians.

    Not to be held against means, which on a busy machine are several times as much.

    The workflow grew by 200 bytes a version. Cold is a store that was opened just now.
    """
    async with quire.open(url) as store:
        wf = await store.create("grown", {"notes": [], "n": 0})
        for i in range(versions):
            await wf.append("/notes", message(i, 200), author="agent")
        times = []
        for _ in range(500):
            start = time.perf_counter()
            await wf.get("/n")
            times.append(time.perf_counter() - start)
        path = median(times) * 1e6
    cold = []
    for _ in range(5):
        async with quire.open(url) as store:
            start = time.perf_counter()
            state = await store.workflow("grown").state()
            cold.append(time.perf_counter() - start)
            assert len(state["notes"]) == versions
    old = []
    async with quire.open(url) as store:
        wf = store.workflow("grown")
        for i in range(1, 10):
            number = versions * i // 10
            start = time.perf_counter()
            state = await wf.state(number + 1)
            old.append(time.perf_counter() - start)
            assert len(state["notes"]) == number
    return path, median(cold) * 1e3, median(old) * 1e3


def rows(found, path_bar_us):
    """Return lines of a table. path_bar_us: a store on a server needs a round trip to know that nothing is newer."""
    path, cold, old = found
    yield Row("read a path of the resident head, p50", path, "<=", path_bar_us, "us")
    yield Row(f"read a cold head after {VERSIONS:,} versions, 200 KB, p50", cold, "<=", 50, "ms")
    yield Row(f"read one of its {VERSIONS:,} old versions, p50", old, "<=", 50, "ms")
