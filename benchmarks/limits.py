"""The limits ours is held against: the bare driver inserting the same rows, and reading no row too many."""

import json
import time
from pathlib import Path

import apsw

from benchmarks.measure import folder
from quire.model import Record
from quire.storage._sqlite_file import SCHEMA
from quire.storage.codec import unpack

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


def read_versions(db, stream, versions):
    """Return the records of some versions of a stream, on an open connection, as an index of what they changed would."""
    rows = db.execute(
        # without CROSS the versions would be looked for in every row
        "SELECT version, time, author, message, kind, body, chain, position FROM json_each(?) CROSS JOIN records"
        " ON version = json_each.value AND stream = (SELECT id FROM streams WHERE name = ?)",
        (json.dumps(versions), stream),
    )
    found = [Record(stream, *row[:5], unpack(row[5]), *row[6:]) for row in rows]
    assert len(found) == len(versions)
    return found
