"""RocksDB beside its bare driver: write batches of the same rows, synced.

python -m benchmarks.backends.rocksdb [--quick]
"""

import asyncio
import itertools
import sys
import time

import rocksdict

from benchmarks.backends.reading import read_states, rows
from benchmarks.backends.work import BODY, alone, back, link, opening, used
from benchmarks.measure import Row, folder, in_turns
from quire.storage._rocksdb_keys import Keys, number_key
from quire.storage._rocksdb_write import Entry, Top, pack

_places = itertools.count()


def raw(batch, total):
    """Rows per second of the bare driver: record, feed and head of ready bytes, `batch` to a synced write."""
    keys = Keys("default")
    entry = pack(Entry(1, 1_700_000_000_000, "agent", "step", "change", link("w", 1), BODY))
    head, pointer = pack(Top(1, link("w", 1), "change", 1)), pack(("workflows/w1", 1))
    names = [keys.of(b"r", f"workflows/w{i}") for i in range(batch)]
    heads = [keys.of(b"h", f"workflows/w{i}") for i in range(batch)]
    with folder() as place:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        db = rocksdict.Rdict(f"{place}/raw", options)
        how = rocksdict.WriteOptions()
        how.sync = True
        start, position = time.perf_counter(), 0
        for turn in range(total // batch):
            rows = rocksdict.WriteBatch(raw_mode=True)
            for i in range(batch):
                position += 1
                rows.put(names[i] + number_key(turn), entry)
                rows.put(b"f" + number_key(position), pointer)
                rows.put(heads[i], head)
            db.write(rows, how)
        rate = position / (time.perf_counter() - start)
        db.close()
    return rate


def rocksdb(quick):
    """Versions per second in RocksDB, beside the bare driver."""
    n, repeats = (30, 3) if quick else (100, 5)

    def run(work, *args):
        def once():
            with folder() as place:
                return asyncio.run(work(f"rocksdb:///{place}/{next(_places)}", *args))

        return once

    bare, ours, many, hot, crowd = in_turns(
        lambda: raw(100, 20_000),
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
    single, one = in_turns(lambda: raw(1, 1000), run(used, 1, 1, 5 * n), repeats=repeats)
    yield Row(
        "one sequential writer, of raw batches of 1", one.mid / single.mid, ">=", 0.4, note=f"{one}/s, {single}/s"
    )
    with folder() as place:
        rate, asked, size = asyncio.run(back(f"rocksdb:///{place}/s", 20_000))
    yield Row("feed", rate, ">=", 10_000, "/s")
    with folder() as place:
        yield from rows(asyncio.run(read_states(f"rocksdb:///{place}/s")), 100)
    yield Row("latest", asked, "<=", 50, "us")
    yield Row("bytes of a version with its log, body 18", size, "<=", 1000, "B")
    times = []
    for flows in (10, 5000):
        with folder() as place:
            times.append(asyncio.run(opening(f"rocksdb:///{place}/s", flows)))
    yield Row(
        "opening with 5,000 workflows / with 10", times[1][0] / times[0][0], "<=", 2, note=f"{times[1][0]:.1f} ms"
    )
    yield Row("one cold head of 5,000", times[1][1], "<=", 5, "ms")


if __name__ == "__main__":
    for row in rocksdb("--quick" in sys.argv):
        print(f"{row.what:<66} {row.measured:>9,.2f} {row.unit:<2} bar {row.sign} {row.bar:g}  {row.note}", flush=True)
