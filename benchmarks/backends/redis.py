"""Redis with appendfsync always: the bare driver's pipelines, the backend alone, and the public API. `python -m` it."""

import asyncio
import os
import time

from redis.asyncio import Redis

from benchmarks.backends.reading import read_states, rows
from benchmarks.backends.served import read_back, records_per_s, report
from benchmarks.backends.work import used
from benchmarks.measure import in_turns
from quire.testing.servers.redis import RedisServer

FIELDS = {"t": 1_700_000_000_000, "a": "agent", "m": "step", "k": "change", "b": '[["set",["n"],12]]', "c": b"x" * 32}


async def raw_rows_per_s(port, batch, total):
    """Add rows to streams of Redis with pipelines of `batch`, waiting for each."""
    async with Redis(port=port) as client:
        start = time.perf_counter()
        for _ in range(total // batch):
            pipe = client.pipeline(transaction=False)
            for i in range(batch):
                pipe.xadd(f"raw:{i}", FIELDS)
            await pipe.execute()
        return total / (time.perf_counter() - start)


async def sizes(server):
    """Return the bytes of memory and of the log."""
    async with Redis(port=server.port) as client:
        memory = await client.info("memory")
    files = [f for f in server.folder.rglob("*") if f.is_file() and "aof" in f.name]
    return memory["used_memory"], sum(os.path.getsize(f) for f in files)


def main():
    """Measure on a private server."""
    with RedisServer() as server:
        count = iter(range(1000))

        def place():
            return server.place(next(count))

        def run(work):
            return asyncio.run(work)

        print("Redis,", "appendfsync always, private server on the same machine")
        bare, many = in_turns(
            lambda: run(raw_rows_per_s(server.port, 100, 20_000)),
            lambda: run(used(place(), 100, 1, 200)),
            repeats=5,
        )
        raw = bare.mid
        print(
            f"  public API, 100 workflows, of bare pipelines: {many.mid / raw:.2f} (bar >= 0.4; {many}/s of {bare}/s)"
        )
        report("bare pipelines of 100 XADD", raw, raw)
        one = run(raw_rows_per_s(server.port, 1, 2000))
        report("bare XADD, one at a time", one, raw)
        report("backend alone: 100 streams, one record each, one call", run(records_per_s(place(), 100, 200)), raw)
        report("  the same, 4 calls under way", run(records_per_s(place(), 100, 200, 1, 4)), raw)
        report("backend alone: 1,000 streams", run(records_per_s(place(), 1000, 20)), raw)
        report("backend alone: one stream, 100 records a call", run(records_per_s(place(), 1, 200, 100)), raw)
        report("backend alone: one record a call", run(records_per_s(place(), 1, 2000)), raw)
        report("public API: 100 workflows at once", many.mid, raw)
        report("public API: 1,000 workflows at once", run(used(place(), 1000, 1, 20)), raw)
        report("public API: one hot workflow, 100 writers", run(used(place(), 1, 100, 200)), raw)
        report("public API: one sequential writer", run(used(place(), 1, 1, 1000)), raw)
        before = run(sizes(server))
        url = place()
        run(records_per_s(url, 10, 20, 100))
        after = run(sizes(server))
        feed, read, asked = run(read_back(url))
        report("feed, pages of 1,000", feed)
        report("one stream read whole (2,000 records)", read)
        print(f"  latest(): {asked:.0f} us")
        for row in rows(run(read_states(place())), 2000):
            print(f"  {row.what:<58} {row.measured:>10,.1f} {row.unit} (bar <= {row.bar:g})", flush=True)
        memory, log = ((b - a) / 20_000 for a, b in zip(before, after, strict=True))
        print(f"  bytes per version: {memory:.0f} in memory, {log:.0f} in the log (18 of them the change)")


if __name__ == "__main__":
    main()
