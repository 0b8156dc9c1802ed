"""How cost grows with what is there: `python -m benchmarks.laws`.

Processor time of this process in milliseconds, the median of some calls, at sizes that are far apart. Read the law of each
row, not its figures.
"""

import asyncio
import statistics
import sys
import time

import quire
from benchmarks.measure import folder
from quire import StateManager
from quire.orchestra import run, sequence, step

MANY = 100_000
MIB = 1024 * 1024


async def median_ms(call, turns):
    """Return the median processor time of a call in milliseconds."""
    found = []
    for _ in range(turns):
        begun = time.process_time()
        await call()
        found.append((time.process_time() - begun) * 1e3)
    return statistics.median(found)


async def large_states(place, sizes):
    """Set a number in a state that holds so many MiB in texts of 100 KB; another workflow is written in between."""
    found = []
    for size in sizes:
        async with quire.open(f"{place}/large-{size}.db") as store:
            big, small = await store.create("big", {"text": {}, "n": 0}), await store.create("small", {"n": 0})
            for part in range(size * MIB // 5_000_000 + 1):
                texts = {f"{part}-{i}": "y" * 100_000 for i in range(min(50, size * 10 - part * 50))}
                await big.apply({"text": texts})
            await small.inc("/n")

            async def both(big=big, small=small):
                await big.inc("/n")
                await small.inc("/n")

            found.append(await median_ms(both, 15))
    return found


async def filled(place, count):
    """Return the URL of a store with so many workflows."""
    url = f"{place}/many-{count}.db"
    async with quire.open(url) as store:
        for begin in range(0, count, 1000):
            names = range(begin, min(begin + 1000, count))
            await asyncio.gather(*(store.create(f"w{n:06}", {"status": "running", "n": n}) for n in names))
    return url


async def many_workflows(place, sizes):
    """Return figures of a store by its number of workflows, by what is asked."""
    found = {what: [] for what in ("page of 20", "stats", "metrics, first", "metrics, again")}
    for size in sizes:
        url = await filled(place, size)
        async with StateManager(url) as manager:
            store = manager.store
            await store.workflows(limit=1)
            found["page of 20"].append(await median_ms(lambda store=store: store.workflows(limit=20), 5))
            found["stats"].append(await median_ms(store.stats, 3))
            found["metrics, first"].append(await median_ms(manager.get_state_metrics, 1))
            await store.workflow("w000001").set("/status", "completed")
            found["metrics, again"].append(await median_ms(manager.get_state_metrics, 1))
    return found


async def histories(place, sizes):
    """`get_workflow_history` of so many versions, a millisecond for each version."""
    found = []
    for size in sizes:
        async with StateManager(f"{place}/history-{size}.db") as manager:
            wf = await manager.store.create("w", {"status": "running", "n": 0})
            for _ in range(size - 1):
                await wf.inc("/n")
            found.append(await median_ms(lambda manager=manager: manager.get_workflow_history("w"), 1) / size)
    return found


async def late_steps(place, sizes):
    """One of the last tenth of so many steps of a run, each with a result of 1 KB."""
    found = []
    for size in sizes:
        marks = []

        async def work(ctx, marks=marks):
            marks.append(time.process_time())
            return {"text": "x" * 1000}

        async with quire.open(f"{place}/steps-{size}.db") as store:
            await run(store, sequence(*(step(work, name=f"s{n}") for n in range(size))), id="r")
        tenth = max(1, size // 10)
        found.append((marks[-1] - marks[-1 - tenth]) / tenth * 1e3)
    return found


async def main(many):
    """Print a table."""
    print("| what | small | middle | large |\n| --- | --- | --- | --- |")

    def row(what, found):
        print(f"| {what} | {' | '.join(f'{ms:,.2f}' for ms in found)} |", flush=True)

    with folder() as place:
        row("set in a state of 1, 15 and 30 MiB, and in a small one", await large_states(place, (1, 15, 30)))
        row("a step at the end of 100, 1,000 and 5,000", await late_steps(place, (100, 1000, 5000)))
        row("`get_workflow_history`, a version of 100, 1,000 and 10,000", await histories(place, (100, 1000, 10_000)))
        for what, found in (await many_workflows(place, (10, 1000, many))).items():
            row(f"{what}, 10, 1,000 and {many:,} workflows", found)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else MANY))
