"""Questions to a history: what two forks make together, who set this, what the text was at any keystroke.

Every answer is looked at: a row of a wrong one would be worth nothing.
"""

import asyncio
import random
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import apsw
import msgspec
import zstandard

import quire
from benchmarks.limits import read_versions
from benchmarks.measure import Row, Spread, folder, size, timed
from benchmarks.work import megabyte, typed
from quire.model import WORKFLOWS
from quire.storage.codec import unpack

CHANGES = 1000
"""Of each side of a merge."""


def merging(quick):
    """Two forks of 1,000 disjoint changes each, of a state of 1 MB, merged."""
    objects = megabyte(), [f"/items/k{i}/score" for i in range(2 * CHANGES)]
    for name, works in (("memory", objects), ("SQLite", objects), ("memory, one list", _listed())):
        with folder() as place:
            url = "memory:" if name.startswith("memory") else str(Path(place) / "s.db")
            repeats = 1 if "list" in name else 3 if quick else 9
            merges, parses = asyncio.run(_merged(url, *works, repeats))
        ratio = median(merge / parse for merge, parse in zip(merges, parses, strict=True))
        least = f"{min(merges) * 1e3:.0f} ms of {min(parses) * 1e3:.1f}"
        note = f"{repeats} pairs, at best {least}: {min(merges) / min(parses):.1f} x"
        yield Row(f"merge two forks ({name}), of parsing the state", ratio, "<=", 10, note=note)


def _listed():
    """Return the same records as the items of one list, and the same changes to them by index."""
    state = {"items": list(megabyte()["items"].values()), "n": 0}
    return state, [f"/items/{i}/score" for i in range(2 * CHANGES)]


async def _merged(url, state, places, repeats):
    """Merge fresh pairs of forks of one base; return the seconds of each merge, and of parsing around it."""
    text = msgspec.json.encode(state)
    merges, parses = [], []
    async with quire.open(url) as store:
        base = await store.create("base", state)
        for i in range(repeats):
            ours, theirs = [await base.fork(f"{side}{i}") for side in ("ours", "theirs")]
            for fork, part in ((ours, places[:CHANGES]), (theirs, places[CHANGES:])):
                await asyncio.gather(*(fork.set(place, -1.0) for place in part))
            while store.engine._keyframer is not None:  # made of the 1,000 versions, off the way; not part of a merge
                await asyncio.sleep(0.001)
            before = timed(lambda: msgspec.json.decode(text), 9)
            start = time.perf_counter()
            result = await ours.merge(theirs)
            merges.append(time.perf_counter() - start)
            parses.append((before + timed(lambda: msgspec.json.decode(text), 9)) / 2)
            assert len(result.changes) == CHANGES
            assert not result.conflicts
            assert {await ours.get(place) for place in places} == {-1.0}
    return merges, parses


def blaming(quick):
    """Who set a value, asked of a long history in SQLite."""
    count, repeats = (10_000, 3) if quick else (100_000, 5)
    with folder() as place:
        path = str(Path(place) / "s.db")
        (rare, often), most = asyncio.run(_blamed(path, count, repeats))
    ask, whole, few = rare
    said = f"{count // 100:,} of {count:,} versions match"
    yield Row(f"blame a path, {count:,} versions", ask.mid, "<=", count / 100_000, "s", said)
    yield Row("the same, of reading all of them", ask.mid / whole.mid, "<=", 2, note=f"{whole.mid * 1e3:.0f} ms")
    yield Row("the same, of reading those that match", ask.mid / few.mid, "<=", 2, note=f"{few.mid * 1e3:.1f} ms")
    ask, _, few = often
    said = f"{ask.mid:.2f} s, {most:,} of {count:,} match"
    yield Row("blame what most versions wrote, of reading those", ask.mid / few.mid, "<=", 2, note=said)


async def _blamed(path, count, repeats):
    """Return for a place that few versions write and one that the others do: blame, all reads, matching reads."""
    async with quire.open(path) as store:
        wf = await store.create("w", {"plan": 0, "notes": {}})
        for low in range(0, count, 1000):
            steps = range(low + 1, low + 1001)
            await asyncio.gather(
                *(wf.set("/plan" if i % 100 == 0 else f"/notes/n{i % 50}", i, author="agent") for i in steps)
            )
        found, bare = [], apsw.Connection(path, apsw.SQLITE_OPEN_READONLY)
        for pointer, matches in (("/plan", lambda i: i % 100 == 0), ("/notes", lambda i: i % 100)):
            versions = [i + 1 for i in range(1, count + 1) if matches(i)]
            lines = await wf.blame(pointer)
            assert {line.version for line in lines} <= set(versions)
            assert max(line.version for line in lines) == versions[-1]
            times = [], [], []
            for _ in range(repeats):
                start = time.perf_counter()
                await wf.blame(pointer)
                asked = time.perf_counter()
                await store.engine.backend.read(WORKFLOWS + "w")
                every = time.perf_counter()
                read_versions(bare, WORKFLOWS + "w", versions)
                for into, took in zip(times, (asked - start, every - asked, time.perf_counter() - every), strict=True):
                    into.append(took)
            found.append([Spread(median(t), min(t), max(t)) for t in times])
        bare.close()
    return found, len(versions)


def keystrokes(quick):
    """A text typed key by key, each key a version of its own, in SQLite."""
    count = 4000 if quick else 20_000
    chance = random.Random(1)
    asked = sorted(chance.sample(range(2, count + 1), 50))
    with folder() as place:
        path, empty = str(Path(place) / "s.db"), str(Path(place) / "empty.db")
        asyncio.run(_opened(empty))
        asyncio.run(_typed(path, count))
        weight = (size(path) - size(empty)) / count
        parts = _parts(path, count)
        times, gap = asyncio.run(_read_back(path, count, asked))
    yield Row(f"bytes of a keystroke on disk, of {count:,}", weight, "<=", 40, "B", parts)
    said = f"median {median(times) * 1e3:.1f} ms of {len(asked)}; up to {gap:,} versions from a keyframe"
    yield Row("the text at any of them, at worst", max(times) * 1e3, "<=", 20, "ms", said)


async def _opened(path):
    async with quire.open(path):
        pass


async def _typed(path, count):
    async with quire.open(path) as store:
        wf = await store.create("w", {"text": ""}, author="ann")
        keys = list(typed(count))
        for low in range(0, count, 500):
            part = keys[low : low + 500]
            await asyncio.gather(*(wf.splice("/text", *key, author="ann") for key in part))


def _parts(path, count):
    """Return in words what the bytes of a version are, from the closed file."""
    db = apsw.Connection(path, apsw.SQLITE_OPEN_READONLY)
    try:
        body, words = db.execute(
            "SELECT sum(length(body)), sum(length(author) + length(message) + length(kind)) FROM records"
        ).get
        pages = dict(db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name"))
        bodies = [unpack(row[0]) for row in db.execute("SELECT body FROM records ORDER BY position")]
    finally:
        db.close()
    together = len(zstandard.compress(b"".join(bodies)))
    weights = {
        "body": body,
        "chain": 32 * count,
        "names": words,
        "numbers, pages": pages["records"] - body - 32 * count - words,
        "index": pages["sqlite_autoindex_records_1"],
        "keyframes": pages["keyframes"],
    }
    said = ", ".join(f"{what} {weight / count:.0f}" for what, weight in weights.items())
    return f"{said}; all bodies compressed as one {together / count:.1f}"


async def _read_back(path, count, asked):
    """Return the seconds of reading each version asked for, the best of three, and how far a version is from a keyframe.

    The store is opened anew: nothing is in memory.
    """
    text, texts = "", {}
    for number, (at, gone, new) in enumerate(typed(count), 2):  # version 1 made the workflow
        text = text[:at] + new + text[at + gone :]
        if number in asked:
            texts[number] = text
    times = []
    async with quire.open(path) as store:
        wf = store.workflow("w")
        for number in asked:
            tries = []
            for _ in range(3):
                start = time.perf_counter()
                found = await wf.get("/text", version=number)
                tries.append(time.perf_counter() - start)
                assert found == texts[number]
            times.append(min(tries))
        frames = [0, *await store.engine.backend.keyframes(wf.stream), count + 2]
    return times, max(after - before for before, after in pairwise(frames)) - 1
