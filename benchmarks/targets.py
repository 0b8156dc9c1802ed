"""The mission's own targets for a state manager, in its units: floors that have to hold on any machine."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from statistics import median, quantiles

import quire
from benchmarks.measure import Row, folder
from quire.api.manager import StateManager

STATE = {
    "id": "w",
    "name": "survey",
    "status": "running",
    "createdAt": 1,
    "tasks": {f"t{i}": {"id": f"t{i}", "type": "read", "status": "pending", "note": "x" * 100} for i in range(100)},
}

OTHER = """
import asyncio, sys, time, quire
async def main():
    async with quire.open(sys.argv[1]) as store:
        async for event in store.workflow("w").watch():
            if event.version.kind == "ready":
                print("ready", flush=True)
            else:
                print(time.time_ns(), flush=True)
asyncio.run(main())
"""


async def _manager(path):
    gets, persists = [], []
    async with StateManager(path) as manager:
        for i in range(200):
            start = time.perf_counter()
            await manager.persist_workflow_state("w", {**STATE, "n": i})
            persists.append(time.perf_counter() - start)
            start = time.perf_counter()
            await manager.get_workflow_state("w")
            gets.append(time.perf_counter() - start)
    return gets, persists


async def _sync_here(path):
    times, sent = [], []
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})

        async def listen():
            async for _ in wf.watch(after=1):
                times.append(time.perf_counter() - sent[len(times)])
                if len(times) == 100:
                    return

        listener = asyncio.create_task(listen())
        for i in range(100):
            await asyncio.sleep(0.002)
            sent.append(time.perf_counter())
            await wf.set("/n", i + 1)
        await listener
    return times


async def _sync_there(path):
    """From the call that writes here to the moment another process has the event."""
    times = []
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER, path, stdout=asyncio.subprocess.PIPE, limit=2**20
        )
        started = asyncio.create_task(other.stdout.readline())
        while not started.done():
            await wf.set("/n", time.time_ns(), kind="ready")
            await asyncio.sleep(0.05)
        for i in range(50):
            await asyncio.sleep(0.02)
            sent = time.time_ns()
            await wf.set("/n", i + 1)
            line = b"ready"
            while line.strip() == b"ready":
                line = await other.stdout.readline()
            times.append((int(line) - sent) / 1e9)
        other.kill()
        await other.wait()
    return times


async def _conflict(path):
    times = []
    async with quire.open(path) as store:
        wf = await store.create("w", {"plan": 0})
        for i in range(100):
            ours, theirs = wf.edit(author="a"), wf.edit(author="b")
            mine, other = await ours.__aenter__(), await theirs.__aenter__()
            mine["plan"], other["plan"] = f"a{i}", f"b{i}"
            start = time.perf_counter()
            await asyncio.gather(ours.__aexit__(None, None, None), theirs.__aexit__(None, None, None))
            times.append(time.perf_counter() - start)
        assert len(await wf.conflicts()) == 100
    return times


async def _crowd(path):
    async with quire.open(path) as store:
        made = [await store.create(f"w{i}", {"n": 0}) for i in range(1200)]

        async def write(wf):
            for i in range(10):
                await wf.set("/n", i + 1)

        start = time.perf_counter()
        await asyncio.gather(*map(write, made))
        return 12_000 / (time.perf_counter() - start)


def targets(quick):
    """What the mission's documents ask of a state manager."""

    def at(work):
        with folder() as place:
            return asyncio.run(work(str(Path(place) / "s.db")))

    def ms(times):
        return quantiles(times, n=20)[-1] * 1e3

    def said(times):
        return f"p95 of {len(times)}; median {median(times) * 1e3:.2f} ms"

    gets, persists = at(_manager)
    yield Row("get an active state", ms(gets), "<=", 50, "ms", said(gets))
    yield Row("persist a state of 100 tasks", ms(persists), "<=", 100, "ms", said(persists))
    here, there = at(_sync_here), at(_sync_there)
    yield Row("a write reaches another agent", ms(here), "<=", 200, "ms", said(here))
    yield Row("a write reaches another process", ms(there), "<=", 200, "ms", said(there))
    met = at(_conflict)
    yield Row("two writes that conflict, until both are settled", ms(met), "<=", 500, "ms", said(met))
    rate = at(_crowd)
    yield Row("updates of 1,200 workflows at once", rate * 60, ">=", 10_000, "/m")
    code = "import asyncio, sys; from benchmarks.states import grown_mb; print(asyncio.run(grown_mb(sys.argv[1])))"
    with folder() as place:
        grown = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True).stdout
    yield Row("memory of a workflow beside its state", float(grown), "<=", 1000, "KB")
