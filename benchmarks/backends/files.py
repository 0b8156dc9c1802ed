"""A folder of files beside the bare operating system: append and sync of the same bytes, and of one file for each workflow.

python -m benchmarks.backends.files [--quick]
"""

import asyncio
import itertools
import os
import sys
import time
from pathlib import Path

from benchmarks.backends.reading import read_states, rows
from benchmarks.backends.work import alone, back, item, opening, used
from benchmarks.measure import Row, folder, in_turns
from quire.storage._files_lines import owner, record_line

_places = itertools.count()


def raw_append(batch, total):
    """Lines per second of one file: append `batch` ready lines, sync."""
    line = record_line(owner("default", "workflows/w1"), item(1, 0).records[0], 1)
    with folder() as place, (Path(place) / "f").open("wb") as file:
        start = time.perf_counter()
        for _ in range(total // batch):
            file.write(line * batch)
            file.flush()
            os.fdatasync(file.fileno())
        return total / (time.perf_counter() - start)


def raw_files(batch, total):
    """Lines per second of `batch` files: append one ready line to each, sync each: what files without a journal cost."""
    line = record_line(owner("default", "workflows/w1"), item(1, 0).records[0], 1)
    with folder() as place:
        files = [os.open(f"{place}/{i}", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for i in range(batch)]
        start = time.perf_counter()
        for _ in range(total // batch):
            for file in files:
                os.write(file, line)
            for file in files:
                os.fdatasync(file)
        rate = total / (time.perf_counter() - start)
        for file in files:
            os.close(file)
        return rate


def files(quick):
    """Versions per second in a folder of files, beside the bare operating system."""
    n, repeats = (30, 3) if quick else (100, 5)

    def run(work, *args):
        def once():
            with folder() as place:
                return asyncio.run(work(f"file:///{place}/{next(_places)}", *args))

        return once

    bare, each, ours, batches, many, hot, crowd = in_turns(
        lambda: raw_append(100, 20_000),
        lambda: raw_files(100, 1_000),
        run(alone, 100, n),
        run(alone, 1, n, 100),
        run(used, 100, 1, n),
        run(used, 1, 100, n),
        run(used, 1000, 1, n // 5),
        repeats=repeats,
    )
    what = "of raw appends of 100 to one file"
    note = f"{ours}/s, raw {bare}/s; {ours.mid / each.mid:.1f} x a sync for each file ({each}/s)"
    yield Row(f"commit of 100 ready items, {what}", ours.mid / bare.mid, ">=", 0.4, note=note)
    yield Row(f"commit of 100 to one stream, {what}", batches.mid / bare.mid, ">=", 0.4, note=f"{batches}/s")
    note = f"{many}/s; {many.mid / each.mid:.1f} x a sync for each file"
    yield Row(f"100 workflows at once, {what}", many.mid / bare.mid, ">=", 0.4, note=note)
    yield Row("one hot workflow, 100 writers, of the row above", hot.mid / many.mid, ">=", 1.0, note=f"{hot}/s")
    yield Row(f"1,000 workflows at once, {what}", crowd.mid / bare.mid, ">=", 0.4, note=f"{crowd}/s")
    single, one = in_turns(lambda: raw_append(1, 1000), run(used, 1, 1, 5 * n), repeats=repeats)
    yield Row(
        "one sequential writer, of raw appends of 1", one.mid / single.mid, ">=", 0.4, note=f"{one}/s, {single}/s"
    )
    with folder() as place:
        rate, asked, size = asyncio.run(back(f"file:///{place}/s", 20_000))
    yield Row("feed", rate, ">=", 10_000, "/s")
    with folder() as place:
        yield from rows(asyncio.run(read_states(f"file:///{place}/s")), 100)
    yield Row("latest", asked, "<=", 50, "us")
    yield Row("bytes of a version with its journal, body 18", size, "<=", 1000, "B")
    times = []
    for flows in (10, 5000):
        with folder() as place:
            times.append(asyncio.run(opening(f"file:///{place}/s", flows)))
    yield Row(
        "opening with 5,000 workflows / with 10", times[1][0] / times[0][0], "<=", 2, note=f"{times[1][0]:.1f} ms"
    )
    yield Row("one cold head of 5,000", times[1][1], "<=", 5, "ms")


if __name__ == "__main__":
    for row in files("--quick" in sys.argv):
        print(f"{row.what:<66} {row.measured:>9,.2f} {row.unit:<2} bar {row.sign} {row.bar:g}  {row.note}", flush=True)
