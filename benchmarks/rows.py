"""The rows of the table. Each returns (what, measured, bar, unit, note); bar is (">=" or "<=", number)."""

import asyncio
import random
import subprocess
import sys
import time
from pathlib import Path

import msgspec

import quire
from benchmarks.limits import folder, raw_rows_per_s, size, timed
from quire.orchestra import run, sequence, step

WORDS = [
    "tide",
    "moon",
    "current",
    "gauge",
    "harbour",
    "neap",
    "spring",
    "ebb",
    "flood",
    "datum",
    "buoy",
    "chart",
    "wind",
    "swell",
    "pilot",
    "sounding",
]


def message(number, bytes_=1000):
    """Return realistic, varied text of about 1 KB."""
    chance = random.Random(number)
    text = f"step {number}: "
    while len(text) < bytes_:
        text += f"{chance.choice(WORDS)} {chance.randrange(10_000)} "
    return text


def megabyte():
    """Return a state of about 1 MB: 5,000 records."""
    return {
        "items": {
            f"k{i}": {"name": f"item {i}", "score": i * 1.5, "tags": ["a", "b"], "text": message(i, 110)}
            for i in range(5000)
        },
        "n": 0,
    }


async def _rate(flows, writers, each, place):
    async with quire.open(str(Path(place) / "s.db")) as store:
        made = [await store.create(f"w{i}", {"n": 0}) for i in range(flows)]

        async def write(wf, k):
            for i in range(each):
                await wf.set("/n", i * writers + k + 1, author="agent", message="step")

        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(write(wf, k) for wf in made for k in range(writers)))
        total = flows * writers * each
        return total / (time.perf_counter() - start), (time.process_time() - cpu) / total * 1e6


def rate(flows, writers, each):
    """Return versions per second and CPU microseconds per version; the best of three, as for the limit."""
    results = []
    for _ in range(3):
        with folder() as place:
            results.append(asyncio.run(_rate(flows, writers, each, place)))
    return max(results)


def writing(quick):
    """Durable versions per second."""
    n = 100 if quick else 400
    limit = max(raw_rows_per_s(100, 20_000) for _ in range(3))
    many, cpu = rate(100, 1, n)
    hot, hot_cpu = rate(1, 100, n)
    bare = max(raw_rows_per_s(1, 2000) for _ in range(3))
    one, _ = rate(1, 1, 5 * n)
    yield (
        "100 workflows at once, of raw batches of 100",
        many / limit,
        (">=", 0.4),
        "x",
        f"{many:,.0f}/s of {limit:,.0f}/s, {cpu:.0f} us CPU",
    )
    yield (
        "one hot workflow, 100 writers, of the row above",
        hot / many,
        (">=", 1.0),
        "x",
        f"{hot:,.0f}/s, {hot_cpu:.0f} us CPU",
    )
    yield "one sequential writer, time of a bare commit", bare / one, ("<=", 1.6), "x", f"{one:,.0f}/s of {bare:,.0f}/s"


async def _growing(steps, place):
    path = str(Path(place) / "s.db")
    times = []
    async with quire.open(path) as store:
        wf = await store.create("w", {"messages": []})
        for i in range(steps):
            text = message(i)
            start = time.perf_counter()
            await wf.append("/messages", {"role": "agent", "content": text}, author="agent")
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        await wf.state(steps // 2)
        old = time.perf_counter() - start
    return times, size(path), old


def growing(quick):
    """A message of 1 KB appended to a growing list."""
    steps = 3000
    with folder() as place:
        times, stored, old = asyncio.run(_growing(steps, place))
    early, late = sorted(times[50:150])[50], sorted(times[-100:])[50]
    content = sum(len(message(i)) for i in range(steps))
    yield "append 1 KB, time of step 3000 / step 100", late / early, ("<=", 1.5), "x", f"{late * 1e6:.0f} us"
    yield "bytes stored for 3000 steps, of the content", stored / content, ("<=", 3.0), "x", f"{stored / 1e6:.1f} MB"
    try:
        from benchmarks.peers import langgraph
    except ImportError as missing:
        print(f"   (no LangGraph rows: {missing})", file=sys.stderr)
        return
    theirs_n = 300 if quick else 1000
    with folder() as place:
        theirs, their_bytes, their_old = langgraph(theirs_n, place)
    with folder() as place:
        ours, our_bytes, old = asyncio.run(_growing(theirs_n, place))
    yield (
        f"LangGraph SQLite, {theirs_n} steps: their bytes / ours",
        their_bytes / our_bytes,
        (">=", 1.0),
        "x",
        f"{their_bytes / 1e6:.0f} MB to {our_bytes / 1e6:.1f} MB",
    )
    yield (
        f"LangGraph SQLite, {theirs_n} steps: their time / ours",
        sum(theirs) / sum(ours),
        (">=", 1.0),
        "x",
        f"{sum(theirs):.2f} s to {sum(ours):.2f} s",
    )
    yield (
        "LangGraph SQLite: their old read / ours",
        their_old / old,
        (">=", 1.0),
        "x",
        f"{their_old * 1e3:.1f} ms to {old * 1e3:.1f} ms",
    )


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
            await wf.save(state)
            saves.append(time.perf_counter() - start)
        for i in range(500):
            await wf.set(f"/items/k{i}/score", i + 0.5)
        for _ in range(2000):
            start = time.perf_counter()
            await wf.get("/items/k7/name")
            reads.append(time.perf_counter() - start)
        for version in (20, 100, 250, 400, 500):
            start = time.perf_counter()
            await store.engine.state_at("workflows/w", version)
            olds.append(time.perf_counter() - start)
    mid = lambda times: sorted(times)[len(times) // 2]  # noqa: E731
    return encode, parse, mid(saves), mid(olds), mid(reads), len(encoded)


def large(quick):
    """A state of 1 MB."""
    with folder() as place:
        encode, parse, save, old, read, count = asyncio.run(_large(place))
    yield (
        "save a 1 MB state with one field changed, of encoding it",
        save / encode,
        ("<=", 10.0),
        "x",
        f"{save * 1e3:.1f} ms, {count / 1e6:.2f} MB",
    )
    yield "any old version of it, of parsing it", old / parse, ("<=", 4.0), "x", f"{old * 1e3:.1f} ms"
    yield "read a path of the resident head", read * 1e6, ("<=", 50.0), "us", ""


async def _cold(place):
    path = str(Path(place) / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", megabyte())
        for i in range(20):
            await asyncio.gather(*(wf.set(f"/items/k{(i * 500 + j) % 5000}/score", i + j + 0.25) for j in range(500)))
        text = msgspec.json.encode(await wf.state())
    times = []
    for _ in range(5):
        async with quire.open(path) as store:
            start = time.perf_counter()
            await store.workflow("w").get("/n")
            times.append(time.perf_counter() - start)
    return sorted(times)[2], timed(lambda: msgspec.json.decode(text), 9)


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
        for _ in range(5):
            start = time.perf_counter()
            async with quire.open(path):
                times.append(time.perf_counter() - start)
        opened.append(sorted(times)[2])
    return opened[1] / opened[0]


def living(quick):
    """Many workflows."""
    with folder() as place:
        cold, parse = asyncio.run(_cold(place))
    yield "cold head after 10,000 versions, of parsing 1 MB", cold / parse, ("<=", 3.0), "x", f"{cold * 1e3:.1f} ms"
    with folder() as place:
        opening = asyncio.run(_live(place))
    code = "import asyncio, sys; from benchmarks.rows import grown_mb; print(asyncio.run(grown_mb(sys.argv[1])))"
    with folder() as place:
        said = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=True).stdout
        grown = float(said)
    yield "memory of 1,000 live workflows", grown, ("<=", 50.0), "MB", ""
    yield "opening with 1,010 workflows / with 10", opening, ("<=", 1.5), "x", ""


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

    with folder() as place:
        rate_s, cpu = asyncio.run(work(place))
    yield "durable steps of Orchestra, 50 runs at once", rate_s, (">=", 1000.0), "/s", f"{cpu:.0f} us CPU a step"


def starting(quick):
    """The command line."""
    ours = timed(
        lambda: subprocess.run(
            [sys.executable, "-m", "quire.cli.main", "--version"], stdout=subprocess.DEVNULL, check=True
        ),
        9,
    )
    bare = timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 9)
    yield "`quire --version`, of bare Python", ours / bare, ("<=", 4.0), "x", f"{ours * 1e3:.0f} ms"


ROWS = (writing, growing, large, living, steps, starting)
