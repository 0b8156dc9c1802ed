"""Moving a store: what a verified copy costs beside copying the file and verifying that."""

import asyncio
import time
from pathlib import Path
from statistics import median

import quire
from benchmarks.measure import Row, folder

WORKFLOWS = 100
NOTE = "the tide came in at noon, and whoever saw it wrote a line of this length about it"


def moving(quick):
    """100,000 versions of 100 workflows, copied from SQLite to SQLite, read back and checked."""
    repeats, each = (2, 100) if quick else (5, 1000)
    copies, others, again = asyncio.run(_moved(repeats, each))
    ratio = median(copy / other for copy, other in zip(copies, others, strict=True))
    rate = WORKFLOWS * each / median(copies)
    note = f"{rate:,.0f} versions/s; {median(copies):.2f} s of {median(others):.2f} s"
    yield Row("copy SQLite to SQLite, of backup and verify", ratio, "<=", 5, note=note)
    yield Row("copy once more, nothing new, of the first copy", median(again) / median(copies), "<=", 0.1)


async def _moved(repeats, each):
    """Return the seconds of copies, of backups with a verification, in turns, and of second copies."""
    copies, others, again = [], [], []
    with folder() as place:
        async with quire.open(str(Path(place) / "s.db")) as store:
            flows = [await store.create(f"w{i}", {"log": []}) for i in range(WORKFLOWS)]
            await asyncio.gather(*(_written(wf, each) for wf in flows))
            for number in range(repeats):
                start = time.perf_counter()
                await store.backup(f"{place}/b{number}.db")
                async with quire.open(f"{place}/b{number}.db") as backup:
                    report = await backup.verify()
                others.append(time.perf_counter() - start)
                start = time.perf_counter()
                copied = await store.copy_to(f"{place}/t{number}.db")
                copies.append(time.perf_counter() - start)
                assert report.ok
                assert copied.verified == copied.versions == report.versions == WORKFLOWS * (each + 1)
                start = time.perf_counter()
                assert (await store.copy_to(f"{place}/t{number}.db")).versions == 0
                again.append(time.perf_counter() - start)
    return copies, others, again


async def _written(wf, each):
    for i in range(each):
        await wf.append("/log", f"{i} {NOTE}", author="agent")
