"""Where processes cannot share memory by mapping a file, SQLite keeps a rollback journal instead of a write-ahead log."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import apsw
import pytest

import quire
from quire.errors import StorageError
from quire.storage import _sqlite_file as files
from quire.storage import _sqlite_worker, _vitals
from quire.storage._vitals import file_system_of, shares_memory

MOUNTS = """\
1 0 8:1 / / rw,relatime - ext4 /dev/vda rw
2 1 0:40 / {} rw,relatime master:7 - {} host rw
3 1 0:41 / {}/disk rw - xfs /dev/vdb rw
"""

WRITER = """
import sys
from pathlib import Path
import quire
from quire.storage import _vitals
_vitals._MOUNTS = Path(sys.argv[2])
with quire.sync.open(sys.argv[1]) as store:
    for _ in range(int(sys.argv[3])):
        store.workflow("w").inc("/n")
print("done")
"""


def mounts(tmp_path, kind):
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS.format(tmp_path, kind, tmp_path))
    return table


def mode(path):
    with closing(apsw.Connection(str(path))) as db:
        return db.execute("PRAGMA journal_mode").get


@pytest.mark.parametrize(
    "kind",
    [
        "virtiofs",
        "fakeowner",
        "grpcfuse",
        "drvfs",
        "9p",
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "fuse.sshfs",
        "fuse.new",
        "fuse",
    ],
)
def test_folders_of_another_machine_share_no_memory(tmp_path, kind):
    found = file_system_of(str(tmp_path / "s.db"), MOUNTS.format(tmp_path, kind, tmp_path))
    assert found == kind
    assert not shares_memory(found)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk", "fuse.fuse-overlayfs", ""]
)
def test_local_disks_do(kind):
    assert shares_memory(kind)


def test_the_longest_mount_point_decides(tmp_path):
    table = MOUNTS.format(tmp_path, "virtiofs", tmp_path)
    assert file_system_of(str(tmp_path / "disk" / "s.db"), table) == "xfs"
    assert file_system_of(f"{tmp_path}-other/s.db", table) == "ext4"


async def test_stats_and_health_say_which_journal_is_in_force_and_why(tmp_path, monkeypatch):
    async with quire.open(str(tmp_path / "a.db")) as store:
        assert "journal: WAL" in (await store.stats()).note
        assert "journal: WAL" in (await store.health()).note
    monkeypatch.setattr(_vitals, "_MOUNTS", mounts(tmp_path, "virtiofs"))
    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.create("w", {})
        said = "journal: TRUNCATE, as virtiofs cannot share memory"
        assert said in (await store.stats()).note
        health = await store.health()
        assert said in health.note and health.status != "unhealthy"
        assert {p.name for p in tmp_path.glob("s.db*")} <= {"s.db", "s.db-journal"}


@pytest.mark.parametrize("made_on", ["ext4", "fakeowner"])
def test_two_processes_write_one_file_there(tmp_path, monkeypatch, made_on):
    path = tmp_path / "s.db"
    monkeypatch.setattr(_vitals, "_MOUNTS", mounts(tmp_path, made_on))
    with quire.sync.open(str(path)) as store:
        store.create("w", {"n": 0})
    assert (mode(path) == "wal") == (made_on == "ext4")
    table = mounts(tmp_path, "fakeowner")
    args = [sys.executable, "-c", WRITER, path, table, "40"]
    writers = [subprocess.Popen(args, stdout=-1) for _ in range(2)]
    assert [w.communicate(timeout=60)[0] for w in writers] == [b"done\n"] * 2
    assert mode(path) != "wal"
    with quire.sync.open(str(path)) as store:
        assert store.workflow("w").get("/n") == 80
        assert store.verify().ok


def test_many_openings_at_one_moment_end_a_log(tmp_path, monkeypatch):
    path = str(tmp_path / "s.db")
    monkeypatch.setattr(_sqlite_worker, "BUSY_S", 5.0)
    with quire.sync.open(path) as store:
        store.create("w", {"n": 0})
    start = threading.Barrier(4, timeout=10)

    def opened():
        start.wait()
        files.end_log(path)
        with closing(files.connect(path, "full", None)) as db:
            files.prepare(db, path, wal=False)
            return db.pragma("journal_mode")

    for _ in range(10):
        with closing(apsw.Connection(path)) as db:
            db.pragma("journal_mode", "WAL")
        with ThreadPoolExecutor(4) as threads:
            assert [t.result(30) for t in [threads.submit(opened) for _ in range(4)]] == ["truncate"] * 4


def test_a_log_that_another_program_uses_is_not_taken_from_it(tmp_path, monkeypatch):
    path = tmp_path / "s.db"
    monkeypatch.setattr(_sqlite_worker, "BUSY_S", 0.2)
    with quire.sync.open(str(path)) as store:
        store.create("w", {"n": 0})
        table = mounts(tmp_path, "virtiofs")
        args = [sys.executable, "-c", WRITER.replace("import quire\n", BUSY), path, table, "1"]
        done = subprocess.run(args, capture_output=True, check=False, text=True)
        assert "StorageTimeout" in done.stderr
        store.workflow("w").inc("/n")
        assert store.verify().ok


BUSY = """import quire
from quire.storage import _sqlite_worker
_sqlite_worker.BUSY_S = 0.2
"""


async def test_a_log_that_another_program_begins_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(_vitals, "_MOUNTS", mounts(tmp_path, "virtiofs"))
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        assert mode(tmp_path / "s.db") != "wal"
        with closing(apsw.Connection(str(tmp_path / "s.db"))) as other:
            assert other.execute("PRAGMA journal_mode = WAL").get == "wal"
        with pytest.raises(StorageError, match="another program"):
            await wf.set("/n", 1)
