"""The limit ours is held against: the bare driver inserting the same rows."""

import time
from pathlib import Path

import apsw

from benchmarks.measure import folder
from quire.storage._sqlite_file import SCHEMA

ROW = ("agent", "step", "change", '[["set",["n"],12]]', b"x" * 32)


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
