"""The limits ours are held against: the driver itself, and a parse of the state."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median

import apsw

from quire.storage._sqlite_file import SCHEMA

ROW = ("agent", "step", "change", '[["set",["n"],12]]', b"x" * 32)


def folder():
    """Return a fresh folder that goes away by itself."""
    return tempfile.TemporaryDirectory(prefix="quire-bench-")


def size(path):
    """Return the bytes of a SQLite file with its log."""
    return sum(os.path.getsize(p) for p in (path, f"{path}-wal") if os.path.exists(p))


def timed(work, repeats=5):
    """Return the median seconds of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def raw_rows_per_s(batch, total):
    """Insert rows of our schema with the bare driver, WAL and FULL, `batch` to a transaction."""
    with folder() as place:
        db = apsw.Connection(str(Path(place) / "raw.db"))
        db.pragma("journal_mode", "WAL")
        db.pragma("synchronous", "FULL")
        db.execute(SCHEMA)
        start, position = time.perf_counter(), 0
        for _ in range(total // batch):
            rows = []
            for i in range(batch):
                position += 1
                rows.append((position, i, position, 1_700_000_000_000, *ROW))
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.execute("COMMIT")
        rate = position / (time.perf_counter() - start)
        db.close()
    return rate
