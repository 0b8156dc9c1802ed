"""Scoped state: what a get and a set take, alone, in a crowd, and for threads beside a writer."""

import asyncio
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import apsw

import quire
from benchmarks.crowds import WRITERS, at, crowd, each_of, plain_writes
from benchmarks.measure import Row, folder, in_turns

READERS = 8


async def _scope_memory(count):
    async with quire.open("memory:") as store:
        state = quire.WorkflowStateManager(store).workflow_state("w")
        for i in range(100):
            await state.set(f"key{i}", {"progress": i})
        gets = await each_of(lambda i: state.get(f"key{i % 100}"), count)
        return gets, await each_of(lambda i: state.set(f"key{i % 100}", {"progress": i + 0.5}), count // 4)


async def _scope_file(path, each):
    async with quire.open(path) as store:
        state = quire.WorkflowStateManager(store).workflow_state("w")
        alone = await each_of(lambda i: state.set("alone", i), 200)
        return alone, *await crowd(lambda k, i: state.set(f"key{k}", i), each)


def scoped(quick):
    """Scoped state: get and set, alone and in a crowd."""
    gets, sets = asyncio.run(_scope_memory(2000 if quick else 20_000))
    yield Row("scoped get in memory", median(gets) * 1e6, "<=", 20, "us", f"p50 of {len(gets):,}; p99 {_p99(gets):.0f}")
    yield Row("scoped set in memory", median(sets) * 1e6, "<=", 20, "us", f"p50 of {len(sets):,}; p99 {_p99(sets):.0f}")
    each = 20 if quick else 100
    found = []

    def ours():
        found.append(at(_scope_file, each))
        return found[-1][1]

    took, plain = in_turns(ours, lambda: at(plain_writes, each), repeats=1 if quick else 3)
    alone, waited = (median(median(run[i]) for run in found) * 1e3 for i in (0, 2))
    per = took.mid / (WRITERS * each) * 1e3
    yield Row("durable scoped set, one writer, p50", alone, "<=", 1, "ms")
    yield Row(f"durable scoped set, {WRITERS} writers, time per write", per, "<=", 1, "ms", f"{1000 / per:,.0f}/s")
    yield Row(f"durable scoped set, {WRITERS} writers, p50 each waits", waited, "<=", 1, "ms")
    ratio = took.mid / plain.mid
    yield Row("the same writes, of those of a plain workflow", ratio, "<=", 2, note=f"plain {plain.mid:.2f} s")


def _p99(times):
    return quantiles(times, n=100)[-1] * 1e6


def reading(quick):
    """8 threads that read scoped state, beside a writer."""
    count, repeats = (500, 3) if quick else (1000, 7)
    with folder() as place:
        path = str(Path(place) / "s.db")
        with quire.sync.open(path) as store:
            state = quire.sync.WorkflowStateManager(store).workflow_state("w")
            state.set("key", {"progress": 0})
            besides = (_idle, partial(_read, state), partial(_write, state), partial(_held, path, state))
            runs = [[_readers(state, count, beside) for beside in besides] for _ in range(repeats)]
    alone, ninth, writer, _ = (median(_p99(times) for times, _ in some) for some in zip(*runs, strict=True))
    shares = [max(times) / took for times, took in (run[-1] for run in runs)]
    what = f"longest of {READERS * count:,} reads while a commit is held up, of that"
    yield Row(what, median(shares), "<=", 0.1, note=f"{min(shares):.2f} to {max(shares):.2f}; 1 if it waited")
    note = f"{alone:,.0f} to {writer:,.0f} us; beside a ninth reader {ninth:,.0f} us"
    yield Row(f"p99 of {READERS} readers beside a busy writer / alone", writer / alone, "<=", 2, note=note)


def _readers(state, count, beside):
    """Return the seconds of each read of 8 threads, and of all, while one more does `beside` until told it is over."""
    times, over = [], threading.Event()

    def read():
        mine = []
        for _ in range(count):
            start = time.perf_counter()
            state.get("key")
            mine.append(time.perf_counter() - start)
        times.extend(mine)

    other = threading.Thread(target=beside, args=(over,))
    other.start()
    began = time.perf_counter()
    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    over.set()
    other.join()
    assert len(times) == READERS * count
    return times, took


def _idle(over):
    over.wait()


def _read(state, over):
    while not over.is_set():
        state.get("key")


def _write(state, over):
    while not over.is_set():
        state.set("other", time.time_ns())


def _held(path, state, over):
    """Write while another connection holds the file's lock, until the readers are done."""
    lock = apsw.Connection(path)
    lock.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=_write_once, args=(state,))
    writer.start()
    over.wait()
    assert writer.is_alive(), "nothing was held up"
    lock.execute("ROLLBACK")
    lock.close()
    writer.join()


def _write_once(state):
    state.set("other", time.time_ns())
