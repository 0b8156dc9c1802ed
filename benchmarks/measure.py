"""How things are measured: rows of a table, and pairs of runs taken in turns, so that the machine's moods hit both."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

import apsw


class Row(NamedTuple):
    """One line of the table. sign, bar: what it is held against; unit: x for a ratio."""

    what: str
    measured: float
    sign: str
    bar: float
    unit: str = "x"
    note: str = ""

    @property
    def met(self):
        """Whether the bar is reached."""
        return self.measured >= self.bar if self.sign == ">=" else self.measured <= self.bar


class Spread(NamedTuple):
    """The median of several runs, and how far they lie apart."""

    mid: float
    low: float
    high: float

    def __str__(self):
        return f"{self.low:,.0f} to {self.high:,.0f}"


def folder():
    """Return a fresh folder that goes away by itself; all work of a run lies on the same file system."""
    return tempfile.TemporaryDirectory(prefix="quire-bench-")


def in_turns(*works, repeats):
    """Run works of no argument in turns; return the spread of each one's results."""
    results = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, results, strict=True):
            found.append(work())
    return [Spread(median(found), min(found), max(found)) for found in results]


def timed(work, repeats=5, clock=time.perf_counter):
    """Return the median seconds of a call. clock: `time.process_time` for those of the processor."""
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return median(times)


def size(path):
    """Return the bytes of a SQLite file with its log."""
    return sum(os.path.getsize(p) for p in (path, f"{path}-wal") if os.path.exists(p))


def sync_us():
    """Return the median microseconds of appending 4 KB and syncing them: what one commit cannot do without."""
    with folder() as place, open(Path(place) / "f", "wb") as file:

        def once():
            file.write(b"x" * 4096)
            file.flush()
            os.fdatasync(file.fileno())

        return timed(once, 200) * 1e6


def machine():
    """Return what the figures depend on."""
    import platform

    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "sqlite": apsw.sqlite_lib_version(),
        "apsw": apsw.apsw_version(),
        "sync_us": round(sync_us()),
        "load": os.getloadavg()[0],
    }
