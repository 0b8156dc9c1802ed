"""Durable versions per second, and steps of Orchestra."""

import asyncio
import time
from pathlib import Path

import quire
from benchmarks.limits import raw_rows_per_s
from benchmarks.measure import Row, folder, in_turns
from quire.orchestra import run, sequence, step


async def _write(flows, writers, each, place):
    async with quire.open(str(Path(place) / "s.db")) as store:
        made = [await store.create(f"w{i}", {"n": 0}) for i in range(flows)]

        async def write(wf, k):
            for i in range(each):
                await wf.set("/n", i * writers + k + 1, author="agent", message="step")

        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(write(wf, k) for wf in made for k in range(writers)))
        total = flows * writers * each
        return total / (time.perf_counter() - start), (time.process_time() - cpu) / total * 1e6


def writing(quick):
    """Durable versions per second, beside the bare driver."""
    n = 100 if quick else 400
    cpu = []

    def ours(flows, writers, each):
        with folder() as place:
            rate, us = asyncio.run(_write(flows, writers, each, place))
        cpu.append(us)
        return rate

    repeats = 3 if quick else 5
    raw, many, hot = in_turns(
        lambda: raw_rows_per_s(100, 20_000), lambda: ours(100, 1, n), lambda: ours(1, 100, n), repeats=repeats
    )
    us = sorted(cpu[::2])[repeats // 2], sorted(cpu[1::2])[repeats // 2]
    yield Row(
        "100 workflows at once, of raw batches of 100",
        many.mid / raw.mid,
        ">=",
        0.4,
        note=f"{many}/s, {us[0]:.0f} us CPU, raw {raw}/s",
    )
    yield Row("one hot workflow, 100 writers, of the row above", hot.mid / many.mid, ">=", 1.0, note=f"{hot}/s")
    bare, one = in_turns(lambda: raw_rows_per_s(1, 2000), lambda: ours(1, 1, 5 * n), repeats=repeats)
    yield Row(
        "one sequential writer, time of a bare commit", bare.mid / one.mid, "<=", 1.6, note=f"{one}/s of {bare}/s"
    )


def steps(quick):
    """Steps of Orchestra, 50 runs at once."""

    async def work(place):
        async def agent(ctx):
            ctx.state["n"] = ctx.state.get("n", 0) + 1
            return ctx.state["n"]

        team = sequence(*(step(agent, name=f"s{i}") for i in range(20)))
        async with quire.open(str(Path(place) / "s.db")) as store:
            start, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(run(store, team, id=f"r{i}") for i in range(50)))
            return 1000 / (time.perf_counter() - start), (time.process_time() - cpu) * 1000

    found = []
    for _ in range(1 if quick else 3):
        with folder() as place:
            found.append(asyncio.run(work(place)))
    rate, cpu = sorted(found)[len(found) // 2]
    yield Row("durable steps of Orchestra, 50 runs at once", rate, ">=", 1000, "/s", f"{cpu:.0f} us CPU a step")
