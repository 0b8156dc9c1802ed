"""Large states, long histories, many workflows."""

import asyncio
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import msgspec

import quire
from benchmarks.measure import Row, folder, in_turns, timed
from benchmarks.work import megabyte


async def _large(place):
    state = megabyte()
    encoded = msgspec.json.encode(state)
    encode, parse = timed(lambda: msgspec.json.encode(state), 9), timed(lambda: msgspec.json.decode(encoded), 9)
    async with quire.open(str(Path(place) / "s.db")) as store:
        wf = await store.create("w", state)
        saves, olds, reads = [], [], []
        for i in range(15):
            state["items"][f"k{i * 300}"]["score"] = -1.0
            start = time.perf_counter()
            await wf.save(state, overwrite=True)
            saves.append(time.perf_counter() - start)
        for i in range(5000):
            await wf.set(f"/items/k{i}/score", i + 0.5)
        for _ in range(2000):
            start = time.perf_counter()
            await wf.get("/items/k7/name")
            reads.append(time.perf_counter() - start)
        for version in (20, 100, 700, 1500, 2500, 3500, 4500):
            start = time.perf_counter()
            await store.engine.state_at("workflows/w", version)
            olds.append(time.perf_counter() - start)
    return encode, parse, saves, olds, median(reads), len(encoded)


def large(quick):
    """A state of 1 MB."""
    with folder() as place:
        encode, parse, saves, olds, read, count = asyncio.run(_large(place))
    save, old = median(saves), median(olds)
    yield Row(
        "save a 1 MB state, one field changed, of encoding it",
        save / encode,
        "<=",
        10,
        note=f"{save * 1e3:.1f} ms, {count / 1e6:.2f} MB",
    )
    yield Row(
        "any old version of 5,000 of it, of parsing it",
        old / parse,
        "<=",
        4,
        note=f"{old * 1e3:.1f} ms, at worst {max(olds) * 1e3:.1f}",
    )
    yield Row("read a path of the resident head", read * 1e6, "<=", 50, "us")


async def _cold(place):
    path = str(Path(place) / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", megabyte())
        for i in range(20):
            await asyncio.gather(*(wf.set(f"/items/k{(i * 500 + j) % 5000}/score", i + j + 0.25) for j in range(500)))
        text = msgspec.json.encode(await wf.state())
    times = []
    for _ in range(9):
        async with quire.open(path) as store:
            start = time.perf_counter()
            await store.workflow("w").get("/n")
            times.append(time.perf_counter() - start)
    return median(times), timed(lambda: msgspec.json.decode(text), 9)


def resident_mb():
    """Return the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def grown_mb(place):
    """Return the memory that 1,000 live workflows of one number each take; to be called in a process of its own."""
    async with quire.open(str(Path(place) / "s.db")) as store:
        await store.create("first", {"n": 0})
        before = resident_mb()
        for i in range(1000):
            await store.create(f"w{i}", {"n": 0})
        return resident_mb() - before


async def _live(place):
    path = str(Path(place) / "s.db")
    opened = []
    for flows in (10, 1000):
        async with quire.open(path) as store:
            for i in range(flows):
                await store.create(f"w{flows}-{i}", {"n": 0})
        times = []
        for _ in range(9):
            start = time.perf_counter()
            async with quire.open(path):
                times.append(time.perf_counter() - start)
        opened.append(median(times))
    return opened[1] / opened[0]


def living(quick):
    """Long histories and many workflows."""
    with folder() as place:
        cold, parse = asyncio.run(_cold(place))
    yield Row("cold head after 10,000 versions, of parsing 1 MB", cold / parse, "<=", 3, note=f"{cold * 1e3:.1f} ms")
    with folder() as place:
        opening = asyncio.run(_live(place))
    code = "import asyncio, sys; from benchmarks.states import grown_mb; print(asyncio.run(grown_mb(sys.argv[1])))"
    with folder() as place:
        said = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True).stdout
    yield Row("memory of 1,000 live workflows", float(said), "<=", 50, "MB")
    yield Row("opening with 1,010 workflows / with 10", opening, "<=", 1.5)


def starting(quick):
    """The command line."""
    works = (
        [Path(sys.executable).with_name("quire"), "--version"],
        [sys.executable, "-c", "import click"],
        [sys.executable, "-c", "pass"],
    )
    ours, click, bare = in_turns(*(partial(_called, w) for w in works), repeats=9 if quick else 31)
    note = f"{ours.mid * 1e3:.0f} ms; `import click` alone {click.mid / bare.mid:.1f} x"
    yield Row("`quire --version`, of bare Python", ours.mid / bare.mid, "<=", 4, note=note)


def _called(command):
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
