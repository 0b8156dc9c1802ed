"""`sweep` and `archive`: what goes is said before and after, what is there is proved, and all of it is a table."""

import json

import duckdb
import polars
import pyarrow.parquet

import quire as package
from quire.config import Retention


def grown(quire, name="w", count=8):
    for n in range(count):
        quire("set", name, "/n", str(n), "--as", "ann", "-m", f"note {n}")


def test_a_sweep_says_what_would_go_and_then_what_went(quire, tmp_path):
    grown(quire)
    quire("checkpoint", "w@3", "kept")
    planned = quire("sweep", "--versions", "2", "--archive", "old", "--dry-run")
    assert planned == "w  6\n6 versions of 1 workflows would go; 2 are kept near as well\n"
    assert "0 versions, 0 bytes" in quire("archive")
    done = json.loads(quire("sweep", "--versions", "2", "--json"))
    assert (done["versions"], done["moved"], done["problems"]) == (6, {"w": 6}, [])
    assert list((tmp_path / "old").rglob("*.zst"))
    said = quire("archive", "--check")
    assert "w  @1 to @6: 6 versions in 3 segments" in said
    assert f"in file:///{tmp_path}/old; all sound" in said
    assert json.loads(quire("show", "w@4")) == {"n": 3}
    assert quire("log", "w").count("note") == 8
    assert "sound" in quire("verify")
    assert quire("sweep", "--versions", "2") == "0 versions of 0 workflows went; 0 are kept near as well\n"


def test_an_archive_as_json(quire):
    grown(quire)
    grown(quire, "v")
    quire("sweep", "--days", "0")
    told = json.loads(quire("archive", "w", "--json"))
    assert told["place"] == "store:"
    assert told["versions"] == 7
    (one,) = told["workflows"]
    assert (one["workflow"], one["first"], one["last"], one["versions"], one["kept"]) == ("w", 1, 7, 7, [1])
    assert one["size_bytes"] == told["size_bytes"] > 0
    assert json.loads(quire("archive", "--check", "--json"))["problems"] == []


def test_damage_is_said_and_ends_with_5(quire, tmp_path):
    grown(quire)
    quire("sweep", "--versions", "1", "--archive", "old")
    (file,) = (tmp_path / "old").rglob("*.zst")
    file.write_bytes(file.read_bytes()[:-1])
    assert "the segment of workflows/w 1 to 7 is damaged" in quire("archive", "--check", code=5)
    assert "reading stopped after version 0" in quire("verify", code=5)
    assert json.loads(quire("show", "w")) == {"n": 7}
    quire("show", "w@4", code=5)


def test_what_cannot_be_moved_is_said_and_ends_with_6(quire, tmp_path):
    grown(quire)
    quire("sweep", "--versions", "4", "--archive", "old")
    file = next((tmp_path / "old").rglob("*.zst"))
    for each in sorted((tmp_path / "old").rglob("*"), reverse=True):
        each.unlink() if each.is_file() else each.rmdir()
    (tmp_path / "old").rmdir()
    (tmp_path / "old").write_text("no folder")
    quire("sweep", "--versions", "1", code=6)
    assert json.loads(quire("show", "w@6")) == {"n": 5}
    assert file.name


def test_mistakes_are_said(quire):
    grown(quire)
    quire("archive", code=2)  # there is none
    quire("sweep", code=2)  # no rule
    quire("sweep", "--versions", "0", code=2)
    quire("sweep", "--versions", "5", "--archive", "ftp://x", code=2)
    quire("sweep", "--versions", "5")
    quire("archive", "ghost", code=3)
    quire("archive", "ghost", "--export", "x.parquet", code=3)


def test_all_versions_are_a_table_for_duckdb_and_polars(quire, tmp_path):
    grown(quire)
    grown(quire, "v", 3)
    quire("sweep", "--versions", "2")
    quire("archive", "--export", "all.parquet")
    quire("archive", "--export", "all.parquet", code=4)
    quire("archive", "w", "--export", "all.parquet", "--force")
    quire("archive", "--export", "all.parquet", "--force")
    file = str(tmp_path / "all.parquet")
    rows = duckdb.sql(
        f"SELECT workflow, version, author, message, changes->>'$[0][2]', epoch_ms(time), chain FROM '{file}' ORDER BY position"
    ).fetchall()
    assert [row[:2] for row in rows] == [("w", n) for n in range(1, 9)] + [("v", n) for n in range(1, 4)]
    assert rows[5][2:5] == ("ann", "note 5", "5")
    with package.sync.open(str(tmp_path / "quire.db")) as store:
        versions = {(v.workflow_id, v.number): v for w in ("w", "v") for v in store.workflow(w).history()}
        for row in rows:
            assert row[6] == versions[row[:2]].checksum
            assert row[5] == versions[row[:2]].record.time
    frame = polars.read_parquet(file)
    assert frame.group_by("workflow").len().sort("workflow").rows() == [("v", 3), ("w", 8)]
    assert frame.schema["time"] == polars.Datetime("ms", "UTC")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []


def test_what_was_taken_out_is_marked_and_a_large_table_has_many_groups(tmp_path, monkeypatch):
    from quire.api import tables

    monkeypatch.setattr(tables, "_GROUP_BYTES", 20_000)
    path, file = str(tmp_path / "s.db"), str(tmp_path / "t.parquet")
    with package.sync.open(path, retention=Retention(versions=3, every_s=0), encryption_key=bytes(32)) as store:
        w = store.create("w", {"n": 0, "pin": "secret"})
        for n in range(60):
            w.set("/text", f"{n} " * 500)
        store.sweep()
        w.redact("/pin")
        assert store.export_table(file) == 62
    table = pyarrow.parquet.ParquetFile(file)
    assert table.num_row_groups > 3
    rows = table.read().to_pylist()
    assert [row["redacted"] for row in rows] == [True] + [False] * 61
    assert json.loads(rows[0]["changes"]) == [["set", [], {"n": 0, "pin": "[REDACTED]"}]]
    assert [row["version"] for row in rows] == list(range(1, 63))


def test_segments_are_read_by_duckdb_itself(quire, tmp_path):
    grown(quire)
    quire("sweep", "--versions", "2", "--archive", "old")
    found = duckdb.sql(
        f"""SELECT stream, version, author, body->>'$[0][2]'
        FROM read_json('{tmp_path}/old/archives/*/segments/*/*.jsonl.zst', format='newline_delimited', compression='zstd',
            columns={{stream: 'VARCHAR', version: 'BIGINT', author: 'VARCHAR', body: 'VARCHAR'}})
        WHERE version IS NOT NULL ORDER BY version"""
    ).fetchall()
    assert [row[:3] for row in found] == [("workflows/w", n, "ann") for n in range(1, 7)]
    assert [row[3] for row in found[1:]] == ["1", "2", "3", "4", "5"]
