"""Backups: what taking, adding to and bringing back one costs beside copying the SQLite file.

python -m benchmarks.backing [--quick]
"""

import asyncio
import sys
import time
from pathlib import Path
from statistics import median

import quire
from benchmarks.measure import folder

WORKFLOWS = 100
NOTE = "the tide came in at noon, and whoever saw it wrote a line of this length about it"


async def _written(wf, start, each):
    for i in range(start, start + each):
        await wf.append("/log", f"{i} {NOTE}", author="agent")


async def measured(each, repeats):
    """Return the median seconds of each, and the bytes: of 100 workflows with so many versions."""
    took = {
        "copy of the file": [],
        "full": [],
        "1 % more": [],
        "nothing new": [],
        "check": [],
        "dry run": [],
        "recover": [],
    }

    async def timed(what, work):
        start = time.perf_counter()
        done = await work
        took[what].append(time.perf_counter() - start)
        return done

    with folder() as place:
        url = str(Path(place) / "s.db")
        async with quire.open(url) as store:
            flows = [await store.create(f"w{i}", {"log": []}) for i in range(WORKFLOWS)]
            await asyncio.gather(*(_written(wf, 0, each) for wf in flows))
            for n in range(repeats):
                shelf = f"file:///{place}/place{n}"
                await timed("copy of the file", store.backup(f"{place}/copy{n}.db"))
                full = await timed("full", store.backup(shelf))
                await asyncio.gather(*(_written(wf, each * (1 + n), max(1, each // 100)) for wf in flows))
                more = await timed("1 % more", store.backup(shelf))
                await timed("nothing new", store.backup(shelf))
                assert (await timed("check", quire.check_backups(shelf))).ok
                await timed("dry run", quire.recover(shelf, f"{place}/t{n}.db", dry_run=True))
                back = await timed("recover", quire.recover(shelf, f"{place}/t{n}.db"))
                assert back.versions == full.versions + more.versions
        size = Path(place, "copy0.db").stat().st_size
    return {what: median(s) for what, s in took.items()}, size, full, more


def main():
    quick = "--quick" in sys.argv
    each, repeats = (100, 2) if quick else (1000, 3)
    took, size, full, more = asyncio.run(measured(each, repeats))
    base = took["copy of the file"]
    print(f"{full.versions:,} versions of {WORKFLOWS} workflows; the file has {size:,} bytes")
    for what, seconds in took.items():
        print(f"{what:<18} {seconds:8.3f} s   {seconds / base:6.1f} x the copy")
    print(f"a full one has {full.added_bytes:,} bytes, {full.added_bytes / size:.2f} x the file")
    print(f"1 % more adds {more.added_bytes:,} bytes, {more.added_bytes / full.added_bytes:.3f} x the full one")


if __name__ == "__main__":
    main()
