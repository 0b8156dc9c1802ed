"""PostgreSQL: the bare driver inserting the same rows, our backend alone, and the store that users call.

python -m benchmarks.backends.postgres [--quick]
"""

import asyncio
import itertools
import subprocess
import sys
import time

import asyncpg

from benchmarks.backends.reading import read_states, rows
from benchmarks.backends.work import BODY, alone, back, item, link, used
from benchmarks.measure import Row, in_turns
from quire.storage.open import open_backend
from quire.testing.servers.postgres import PostgresServer

ROWS = (
    "INSERT INTO records (position, stream, version, time, author, message, kind, body, chain)"
    " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)
_places = itertools.count()
SLOW_DISK = {"commit_delay": "5000", "commit_siblings": "0"}
"""Settings that make each flush of the log take 5 ms more; transactions that flush meanwhile share one."""


async def raw(server, batch, total):
    """Rows per second of the bare driver: our table with its indexes, `batch` rows to a transaction, fsync on."""
    place = f"raw{next(_places)}"
    await (await open_backend(server.place(place), namespace="bench")).close()
    db = await asyncpg.connect(server.url, server_settings={"search_path": server.schema(place)})
    start, position = time.perf_counter(), 0
    for _ in range(total // batch):
        rows = []
        for i in range(batch):
            position += 1
            said = ("agent", "step", "change", BODY.decode())
            rows.append((position, i, position, 1_700_000_000_000, *said, link(str(i), position)))
        async with db.transaction():
            await db.executemany(ROWS, rows)
    rate = position / (time.perf_counter() - start)
    await db.close()
    return rate


async def asked(server, readers):
    """Seconds of `latest`, asked by so many at once."""
    backend = await open_backend(server.place(f"asked{next(_places)}"), namespace="bench")
    await backend.latest()
    start = time.perf_counter()
    for _ in range(100):
        await asyncio.gather(*(backend.latest() for _ in range(readers)))
    took = (time.perf_counter() - start) / 100
    await backend.close()
    return took


async def one_of_a_crowd(url, name, each):
    """Commit `each` times 100 versions, beginning when told; run in a process of its own by `crowded`."""
    backend = await open_backend(url, namespace=name)
    print("ready", flush=True)
    sys.stdin.readline()
    for turn in range(each):
        await backend.commit([item(flow, turn) for flow in range(100)])
    await backend.close()


def crowded(server, processes, each, *, apart):
    """Versions per second of several processes that commit 100 at a time; apart: each to a store of its own."""
    key = f"crowd{next(_places)}"
    code = "import asyncio, sys; from benchmarks.backends.postgres import one_of_a_crowd as one"
    code += "; asyncio.run(one(sys.argv[1], sys.argv[2], int(sys.argv[3])))"
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", code, server.place(f"{key} {i if apart else ''}"), f"n{i}", str(each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for i in range(processes)
    ]
    for process in crowd:
        process.stdout.readline()
    start = time.perf_counter()
    for process in crowd:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in crowd:
        process.wait()
    return processes * each * 100 / (time.perf_counter() - start)


def postgres(quick):
    """Versions per second on PostgreSQL, beside the bare driver."""
    n, repeats = (30, 3) if quick else (100, 5)
    with PostgresServer() as server:

        def run(work, *args):
            return lambda: asyncio.run(work(server.place(f"s{next(_places)}"), *args))

        bare, ours, many, hot, crowd = in_turns(
            lambda: asyncio.run(raw(server, 100, 10_000)),
            run(alone, 100, n),
            run(used, 100, 1, n),
            run(used, 1, 100, n),
            run(used, 1000, 1, n // 5),
            repeats=repeats,
        )
        what = "of raw batches of 100"
        yield Row(f"commit of 100 ready items, {what}", ours.mid / bare.mid, ">=", 0.4, note=f"{ours}/s, raw {bare}/s")
        yield Row(f"100 workflows at once, {what}", many.mid / bare.mid, ">=", 0.4, note=f"{many}/s")
        yield Row("one hot workflow, 100 writers, of the row above", hot.mid / many.mid, ">=", 1.0, note=f"{hot}/s")
        yield Row(f"1,000 workflows at once, {what}", crowd.mid / bare.mid, ">=", 0.4, note=f"{crowd}/s")
        single, one = in_turns(lambda: asyncio.run(raw(server, 1, 500)), run(used, 1, 1, 5 * n), repeats=repeats)
        yield Row("one sequential writer, of the bare driver", one.mid / single.mid, ">=", 0.4, note=f"{one}/s")
        rate, _, size = asyncio.run(back(server.place("fed"), 20_000))
        yield Row("feed", rate, ">=", 10_000, "/s")
        yield from rows(asyncio.run(read_states(server.place("read"))), 2000)
        yield Row("bytes of a version with its indexes, body 18", size, "<=", 400, "B")
        yield Row("latest, one reader", asyncio.run(asked(server, 1)) * 1e3, "<=", 2, "ms")
        yield Row("latest, 100 readers at once", asyncio.run(asked(server, 100)) * 1e3, "<=", 20, "ms")
    with PostgresServer(SLOW_DISK) as server:
        alone_s, together, parted = in_turns(
            lambda: crowded(server, 1, n, apart=False),
            lambda: crowded(server, 4, n, apart=False),
            lambda: crowded(server, 4, n, apart=True),
            repeats=repeats,
        )
        yield Row(
            "4 processes, one store, of 4 on stores apart; flush 5 ms",
            together.mid / parted.mid,
            ">=",
            0.2,
            note=f"{together}/s, apart {parted}/s, one process {alone_s}/s",
        )


if __name__ == "__main__":
    for row in postgres("--quick" in sys.argv):
        print(f"{row.what:<58} {row.measured:>9,.2f} {row.unit:<2} bar {row.sign} {row.bar:g}  {row.note}", flush=True)
