"""What embedded stores say of the disk they lie on: a real one that is small, full or read only, and what is written of others."""

import asyncio
import os
import subprocess
from contextlib import suppress

import pytest

import quire
from quire.errors import QuireError
from quire.storage import _sqlite_file
from quire.storage._vitals import Disk, disk_of, file_system_of
from quire.testing.disk import Disk as RealDisk
from quire.testing.disk import DiskMissing

EMBEDDED = ["sqlite:///{}/s.db", "file:///{}/s", "rocksdb:///{}/s"]
PATIENT = quire.HealthLimits(read_slow_s=1e6, commit_slow_s=1e6)

MOUNTS = """22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /srv rw - xfs /dev/vdb rw
31 30 0:31 / /srv/shared\\040files rw - nfs4 server:/x rw
32 30 0:32 / /srv/a rw - ext4 /dev/vdc rw
33 32 0:33 / /srv/a rw - tmpfs tmpfs rw
a line that is none
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/srvx/s.db", "ext4"),
        ("/srv/s.db", "xfs"),
        ("/srv/shared files/deep/s.db", "nfs4"),
        ("/srv/shared files", "nfs4"),
        ("/srv/a/s.db", "tmpfs"),  # the one mounted over the other
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(path, kind):
    assert file_system_of(path, MOUNTS) == kind
    assert file_system_of(path, "") == ""


@pytest.mark.parametrize(
    ("kind", "said"),
    [("nfs4", "machines share"), ("9p", "machines share"), ("tmpfs", "goes with the machine"), ("ext4", None)],
)
def test_file_systems_that_keep_no_promise_are_told(kind, said):
    warnings = Disk(file_system=kind).warnings("/x/s.db")
    assert len(warnings) == (said is not None)
    assert said is None or (said in warnings[0] and "/x/s.db" in warnings[0])


def test_a_path_that_is_not_there_is_judged_by_the_folder_above(tmp_path):
    there, absent = disk_of(str(tmp_path)), disk_of(str(tmp_path / "a" / "b"))
    assert absent.total_bytes == there.total_bytes > 0
    assert absent.read_only is there.read_only is False
    assert absent.file_system == there.file_system


def test_a_disk_in_memory_is_told():
    folder = "/dev/shm"
    if file_system_of(folder) != "tmpfs":
        pytest.skip("there is no tmpfs at /dev/shm here")
    assert "goes with the machine" in disk_of(folder).warnings(folder)[0]


@pytest.fixture
def small():
    try:
        disk = RealDisk().__enter__()
    except DiskMissing as reason:
        pytest.skip(str(reason))
    yield disk
    disk.__exit__(None, None, None)


def fill(folder, leave):
    """Write until only so much is free."""
    free = os.statvfs(folder)
    count = free.f_bavail * free.f_frsize - leave
    with (folder / "ballast").open("wb", buffering=0) as file:
        with suppress(OSError):  # the file system needs some blocks to write down which are taken
            os.posix_fallocate(file.fileno(), 0, count)
            return
        with suppress(OSError):
            while file.tell() < count:
                file.write(bytes(1 << 16))


def check(health, name):
    return next(c for c in health.checks if c.name == name)


@pytest.mark.parametrize("url", EMBEDDED)
async def test_a_disk_that_fills_up_is_told_before_writes_fail_and_when_they_do(small, url):
    limits = quire.HealthLimits(read_slow_s=1e6, commit_slow_s=1e6, disk_low_part=0.5)
    async with quire.open(url.format(small.folder)) as store:
        wf = await store.create("w", {"n": 0})
        assert check(await store.health(limits=limits), "disk").status == "ok"
        fill(small.folder, 60 << 20)
        health = await store.health(limits=limits)
        assert (health.status, check(health, "disk").status) == ("degraded", "degraded")
        await wf.inc("/n")
        (small.folder / "ballast").unlink()
        fill(small.folder, 1 << 20)
        health = await store.health(limits=limits)
        assert check(health, "disk").status == health.status == "unhealthy"
        assert str(small.folder) in health.reasons[0] and "free some space" in health.reasons[0]
        (small.folder / "ballast").unlink()
        assert (await store.health(limits=limits)).ok
        assert await wf.state() == {"n": 1}


async def test_a_disk_without_any_room_fails_the_commit_that_is_measured(small):
    async with quire.open(f"sqlite:///{small.folder}/s.db") as store:
        await store.create("w", {"text": ""})
        fill(small.folder, 0)
        with pytest.raises(QuireError):  # fills what the files had in reserve
            for _ in range(200):
                await store.workflow("w").set("/text", os.urandom(200_000).hex())
        health = await store.health(limits=PATIENT)
        assert check(health, "disk").status == "unhealthy"
        (small.folder / "ballast").unlink()
        assert (await store.health(limits=quire.HealthLimits(commit_slow_s=1e6, disk_low_part=0))).ok


async def test_a_disk_that_was_made_read_only_is_told(small):
    async with quire.open(f"sqlite:///{small.folder}/s.db") as store:
        await store.create("w", {})
        assert (await store.engine.backend.vitals(timeout_s=60)).read_only is False
    subprocess.run(["mount", "-o", "remount,ro", str(small.folder)], check=True)
    assert disk_of(str(small.folder)).read_only is True


async def test_a_reader_that_keeps_the_log_from_being_copied_is_told(tmp_path):
    import apsw

    limits = quire.HealthLimits(read_slow_s=1e6, commit_slow_s=1e6, log_large_bytes=1 << 20)
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"text": ""})
        reader = apsw.Connection(str(tmp_path / "s.db"), flags=apsw.SQLITE_OPEN_READWRITE)
        reader.execute("BEGIN; SELECT count(*) FROM records").fetchall()
        for _ in range(20):
            await wf.set("/text", os.urandom(200_000).hex())
        health = await store.health(limits=limits)
        assert check(health, "log").status == health.status == "degraded"
        assert health.vitals.log_bytes > 1 << 20
        reader.close()


async def test_a_release_of_sqlite_that_can_damage_files_is_told(tmp_path, monkeypatch):
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert (await store.engine.backend.vitals(timeout_s=60)).warnings == disk_of(str(tmp_path)).warnings(
            str(tmp_path / "s.db")
        )
        monkeypatch.setattr(_sqlite_file, "SOUND", (99, 0, 0))
        (warning,) = [w for w in (await store.health()).reasons if "write-ahead log is reset" in w]
        assert "99.0.0 or newer" in warning and "apsw" in warning


async def test_a_file_that_was_removed_under_the_store_is_told(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.create("w", {})
        await asyncio.gather(store.health(), store.health())  # so that all connections are open
        (tmp_path / "s.db").unlink()
        health = await store.health()
        assert any("was removed or moved away" in reason for reason in health.reasons)


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db?compression=zstd&encryption_key_env=QUIRE_TEST_KEY"])
async def test_wrappers_pass_on_how_the_store_within_is(tmp_path, monkeypatch, url):
    monkeypatch.setenv("QUIRE_TEST_KEY", "0" * 64)
    async with quire.open(url.format(tmp_path)) as store:
        await store.create("w", {})
        vitals = await store.engine.backend.vitals(timeout_s=60)
        assert vitals.server.startswith("SQLite") and vitals.disk_free_bytes > 0
        health = await store.health(limits=PATIENT)
        assert check(health, "writing").status == "ok"
        assert (await store.stats()).cells == 0
