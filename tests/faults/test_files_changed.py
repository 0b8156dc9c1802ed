"""Acknowledged writes survive what others do to the files of an open store, or the store says so and takes no more."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

import quire
from quire.config import Retention
from quire.errors import CorruptRecord, FilesChanged, StorageError, StorageUnavailable
from quire.storage import _inodes, _sqlite_presence
from quire.storage._files_disk import Disk
from quire.storage._inodes import Inodes
from quire.storage._sqlite_presence import Presence

LOOKING = """
import os, signal, sqlite3, sys, quire
from quire.errors import StorageError
from quire.storage import _inodes, _sqlite_presence
path, off = sys.argv[1:]
if "locks" in off:
    _sqlite_presence._SET = None
if "inodes" in off:
    _inodes.Inodes.trouble = lambda self: None
store = quire.sync.open(path)
wf = store.create("a", {"n": 0})
wf.set("/n", 1)
n = 1
for look in range(3):
    db = sqlite3.connect(path)
    db.execute("select count(*) from log").fetchone()
    db.close()
    for _ in range(4):
        try:
            wf.set("/n", n + 1)
        except StorageError:
            break
        n += 1
print(n, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def look(path):
    """Open and close a store with Python's own SQLite, as pandas and notebooks do."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute("select count(*) from log").fetchone()


def after_looks(path, off=""):
    """Write, look, and be killed; return what was acknowledged last, and what is there."""
    done = subprocess.run([sys.executable, "-c", LOOKING, path, off], stdout=-1, check=False)
    with quire.sync.open(path) as store:
        assert store.verify().ok
        return int(done.stdout), store.workflow("a").get("/n")


# another SQLite library in the process


def test_looks_with_another_library_lose_nothing_and_disturb_nobody(tmp_path):
    assert after_looks(str(tmp_path / "s.db")) == (13, 13)


def test_without_locks_of_open_file_descriptions_no_lost_write_is_acknowledged(tmp_path):
    assert after_looks(str(tmp_path / "s.db"), "locks") == (1, 1)


def test_without_both_acknowledged_writes_are_lost(tmp_path):
    acknowledged, found = after_looks(str(tmp_path / "s.db"), "locks inodes")
    assert found < acknowledged == 13  # the control


ATTEMPT = """
import asyncio, sys
from quire.errors import StorageTimeout
from quire.storage import _sqlite_worker
from quire.storage.base import CellWrite, Item
from quire.storage.sqlite import open_sqlite
async def main():
    _sqlite_worker.BUSY_S = 0.3
    db = await open_sqlite(sys.argv[1], namespace="default")
    try:
        await db.commit([Item(cells=(CellWrite("c", None, b"x"),))])
        print("wrote")
    except StorageTimeout:
        print("waited")
    await db.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("locks", [True, False])
async def test_a_look_in_the_midst_of_a_write_lets_no_other_process_write(tmp_path, monkeypatch, locks):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {})
        backend = store.engine.backend
        if not locks:
            monkeypatch.setattr(_sqlite_presence, "_try", lambda *_: True)

        def job(_):
            look(path)
            return subprocess.run([sys.executable, "-c", ATTEMPT, path], stdout=-1, check=False).stdout.split()

        said = await backend._writer.do(lambda db: backend._log.change(db, job))
        assert said == ([b"waited"] if locks else [b"wrote"])  # the control: two who write at once


# the write-ahead log is removed


@pytest.mark.parametrize("names", [("-wal",), ("-wal", "-shm"), ("-shm",)])
async def test_a_log_that_was_removed_is_put_back(tmp_path, names):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await store.put_blob(b"kept")
        await wf.set("/n", 1)
        for name in names:
            Path(path + name).unlink()
        with pytest.raises(StorageUnavailable, match="removed.*write again"):
            await wf.set("/n", 2)
        await wf.set("/n", 3)
        assert await wf.get("/n") == 3
        assert (await store.health()).status != "unhealthy"
    async with quire.open(path) as store:
        assert await store.workflow("w").get("/n") == 3
        assert (await store.verify()).ok
        assert len(await store.workflow("w").history()) == 3


async def test_a_read_too_puts_a_removed_log_back(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store, quire.open(path, namespace="b") as other:
        await store.create("w", {"n": 1})
        await other.create("w", {"n": 2})
        await other.close()
        Path(f"{path}-wal").unlink()
        await asyncio.sleep(_inodes.LOOK_S)
        assert await store.workflow("w").get("/n") == 1
        assert Path(f"{path}-wal").exists()
        async with quire.open(path, namespace="b") as again:
            assert await again.workflow("w").get("/n") == 2


async def test_a_log_that_two_handles_share_is_put_back_once_both_are_closed(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store, quire.open(path, namespace="b") as other:
        await store.create("w", {"n": 1})
        await other.create("w", {"n": 2})
        Path(f"{path}-wal").unlink()
        with pytest.raises(StorageError, match="every handle"):
            await store.workflow("w").set("/n", 3)
        with pytest.raises(StorageError):
            await store.workflow("w").set("/n", 3)
        await other.close()
        await store.workflow("w").set("/n", 4)
    for namespace, n in (("default", 4), ("b", 2)):
        async with quire.open(path, namespace=namespace) as store:
            assert await store.workflow("w").get("/n") == n


@pytest.mark.parametrize("rescued", [True, False])
async def test_closing_puts_a_removed_log_back(tmp_path, monkeypatch, rescued):
    path = str(tmp_path / "s.db")
    if not rescued:
        monkeypatch.setattr(Presence, "rescue", lambda *_: None)
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await asyncio.sleep(0.4)  # the first version goes into the file
        await wf.set("/n", 1)
        Path(f"{path}-wal").unlink()
    async with quire.open(path) as store:
        assert await store.workflow("w").get("/n") == int(rescued)  # the control loses it


KEEPER = """
import sys, quire
from quire.errors import StorageError
with quire.sync.open(sys.argv[1]) as store:
    wf = store.create("theirs", {"n": 0})
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            wf.set("/n", int(line))
            print("wrote", flush=True)
        except StorageError as error:
            print(type(error).__name__, flush=True)
"""


def test_a_log_that_two_processes_share_is_put_back_with_what_both_wrote(tmp_path):
    path = str(tmp_path / "s.db")
    with subprocess.Popen([sys.executable, "-c", KEEPER, path], stdin=-1, stdout=-1, text=True) as other:

        def ask(text):
            other.stdin.write(text)
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert other.stdout.readline() == "ready\n"
        with quire.sync.open(path) as store:
            wf = store.create("ours", {"n": 0})
            assert ask("1\n") == "wrote"
            wf.set("/n", 1)
            Path(f"{path}-wal").unlink()
            Path(f"{path}-shm").unlink()
            with pytest.raises(StorageUnavailable):
                wf.set("/n", 2)
            wf.set("/n", 3)
            assert ask("2\n") in ("OutcomeUnknown", "StorageUnavailable")  # its log is not the one in use any more
            wf.set("/n", 4)
            other.stdin.close()
            assert other.wait(30) == 0
            assert store.workflow("theirs").get("/n") == 1
    with quire.sync.open(path) as store:
        assert (store.workflow("ours").get("/n"), store.workflow("theirs").get("/n")) == (4, 1)
        assert store.verify().ok


WRITING = """
import sys, time, quire
from quire.errors import QuireError
with quire.sync.open(sys.argv[1]) as store:
    wf = store.create(sys.argv[2], {"l": []})
    print("ready", flush=True)
    acked, refused = [], 0
    until = time.monotonic() + 60
    while len(acked) < 400 and time.monotonic() < until:
        n = len(acked) + refused
        try:
            wf.append("/l", n)
            acked.append(n)
        except QuireError:
            refused += 1
            time.sleep(0.01)
        time.sleep(0.001)
    there = wf.get("/l")
    assert [n for n in acked if n not in there] == [], (acked, there)
    print(len(acked), refused, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("names", [("-shm",), ("-wal",), ("-wal", "-shm")], ids="".join)
def test_two_processes_go_on_when_the_log_they_share_was_removed(tmp_path, names):
    path = str(tmp_path / "s.db")
    args = [sys.executable, "-c", WRITING, path]
    both = [subprocess.Popen([*args, name], stdin=-1, stdout=-1, text=True) for name in ("one", "two")]
    assert [writer.stdout.readline() for writer in both] == ["ready\n"] * 2
    time.sleep(0.2)
    for name in names:
        Path(f"{path}{name}").unlink()
    done = [writer.stdout.readline().split() for writer in both]
    for writer in both:
        writer.communicate("\n", timeout=60)
    assert [writer.returncode for writer in both] == [0, 0]
    assert [acked for acked, _ in done] == ["400", "400"]
    assert sum(int(refused) for _, refused in done) < 20, done
    with quire.sync.open(path) as store:
        assert all(len(store.workflow(name).get("/l")) >= 400 for name in ("one", "two"))
        assert store.verify().ok


ASKED = """
import sys, quire
from quire.errors import QuireError
from quire.storage import _sqlite_presence as presences
path, blind = sys.argv[1:]
if blind == "True":
    presences._another_is_held = lambda *_: False
with quire.sync.open(path) as store:
    wf = store.workflow("theirs")
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            wf.inc("/n")
            print("wrote", flush=True)
        except QuireError as error:
            print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize("blind", [False, True])
def test_no_log_is_begun_beside_one_that_was_removed_and_holds_something(tmp_path, blind):
    """One process puts a log back and begins another, which is removed as well; one that slept has the first log still."""
    path, acked = str(tmp_path / "s.db"), []
    store = quire.sync.open(path)
    wf = store.create("ours", {})
    store.create("theirs", {"n": 0})
    args = [sys.executable, "-c", ASKED, path, str(blind)]
    with subprocess.Popen(args, stdin=-1, stdout=-1, text=True) as other:

        def ask():
            other.stdin.write("go\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        def write(count):
            for n in range(len(acked), len(acked) + count):
                with suppress(StorageError):
                    wf.set(f"/k{n}", n)
                    acked.append(f"k{n}")

        def remove():
            for name in ("-wal", "-shm"):
                Path(f"{path}{name}").unlink()

        assert other.stdout.readline() == "ready\n"
        assert ask() == "wrote"
        write(3)
        remove()
        write(30)
        remove()
        assert ask() in ("OutcomeUnknown", "StorageUnavailable")
        write(3)
        if not blind:
            assert ask() == "wrote"
            write(3)
            assert ask() == "wrote"
        store.close()
        other.stdin.close()
        assert other.wait(30) == 0
    with quire.sync.open(path) as store:
        there = store.workflow("ours").state()
        lost = [name for name in acked if name not in there]
        assert (len(acked) > 30 and lost == []) if not blind else len(lost) > 20  # the control
        assert store.verify().ok


GOING = """
import os, sys, quire
from quire.errors import QuireError
from quire.storage import _sqlite_presence as presences
path, real = sys.argv[1], presences.await_log
def then_removed(path):
    real(path)
    os.unlink(path + "-wal")
presences.await_log = then_removed
try:
    quire.sync.open(path).close()
except QuireError as error:
    print(type(error).__name__)
"""


def test_no_log_is_begun_where_one_goes_in_the_midst_of_opening(tmp_path):
    path = str(tmp_path / "s.db")
    with quire.sync.open(path) as store:
        wf = store.create("w", {"n": 0})
        for n in range(20):
            wf.set("/n", n)
        done = subprocess.run([sys.executable, "-c", GOING, path], stdout=-1, check=False, text=True)
        assert done.stdout.split() == ["StorageUnavailable"]
        with pytest.raises(StorageUnavailable):
            wf.set("/n", 20)
        wf.set("/n", 21)
    with quire.sync.open(path) as store:
        assert store.workflow("w").get("/n") == 21
        assert store.workflow("w").get("/n", version=20) == 19
        assert store.verify().ok


async def test_a_log_that_another_program_began_anew_is_not_written_over(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await asyncio.sleep(0.4)
        for name in ("-wal", "-shm"):
            Path(path + name).unlink()
        with closing(apsw.Connection(path)) as other:
            other.execute("CREATE TABLE theirs (x)")
            for n in range(2):
                with pytest.raises(StorageError, match="another program"):
                    await wf.set("/n", n + 1)
            health = await store.health()
            assert health.status == "unhealthy" and any("another program" in reason for reason in health.reasons)
    with closing(apsw.Connection(path)) as db:
        assert db.execute("PRAGMA integrity_check").get == "ok"
        assert db.execute("SELECT count(*) FROM theirs").get == 0


def moved(path, to):
    os.rename(path, to)


def replaced(path, to):
    shutil.copy(path, to)
    os.replace(to, path)


GOES = {
    "log removed": lambda place: os.unlink(place / "s.db-wal"),
    "log moved": lambda place: moved(place / "s.db-wal", place / "x"),
    "shared memory removed": lambda place: os.unlink(place / "s.db-shm"),
    "file replaced": lambda place: replaced(place / "s.db", place / "x"),
    "file moved to another folder": lambda place: moved(place / "s.db", place.parent / "x"),
    "folder moved": lambda place: moved(place, place.parent / "moved"),
    "folder replaced": lambda place: (
        moved(place, place.parent / "moved"),
        shutil.copytree(place.parent / "moved", place),
    ),
}


@pytest.mark.parametrize("goes", GOES)
async def test_a_folder_that_did_not_change_stands_for_its_files_and_one_that_did_does_not(tmp_path, monkeypatch, goes):
    monkeypatch.setattr(_sqlite_presence, "_COARSEST_NS", 50_000_000)
    place = tmp_path / "place"
    place.mkdir()
    async with quire.open(str(place / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        await asyncio.sleep(0.1)
        await wf.set("/n", 1)  # finds all in place
        looks, looked = [], Inodes.trouble
        with monkeypatch.context() as patched:
            patched.setattr(Inodes, "trouble", lambda self: looks.append(self) or looked(self))
            await wf.set("/n", 2)
        assert looks == []
        (presence,) = (found for found in _sqlite_presence._open.values() if found.path == str(place / "s.db"))
        GOES[goes](place)
        assert presence.trouble() is not None
        assert presence.trouble() is not None


@pytest.mark.parametrize("seconds_only", [False, True])
async def test_a_folder_that_has_just_changed_does_not_stand_for_its_files(tmp_path, monkeypatch, seconds_only):
    if seconds_only:
        monkeypatch.setattr(_sqlite_presence, "_FINE_NS", 1)  # each time is a multiple of that
    else:
        monkeypatch.setattr(_sqlite_presence, "_COARSE_NS", 60_000_000_000)
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        looks, looked = [], Inodes.trouble
        monkeypatch.setattr(Inodes, "trouble", lambda self: looks.append(self) or looked(self))
        await asyncio.sleep(0.1)
        await wf.set("/n", 1)
        assert len(looks) >= 2


async def test_a_second_name_of_an_open_file_is_refused(tmp_path):
    async with quire.open(str(tmp_path / "s.db")):
        os.link(tmp_path / "s.db", tmp_path / "t.db")
        with pytest.raises(StorageUnavailable, match="two names"):
            await quire.open(str(tmp_path / "t.db"))


# the store is removed, moved or replaced

URLS = ["sqlite:///{}", "file:///{}", "rocksdb:///{}"]


def parts(place):
    return list(place.parent.glob(f"{place.name}*"))


def remove(place, _):
    for part in parts(place):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


def move(place, aside):
    aside.mkdir(exist_ok=True)
    for part in parts(place):
        part.rename(aside / part.name)


def replace(place, aside):
    copy = aside.parent / "copy"
    shutil.copytree(place, copy) if place.is_dir() else shutil.copy(place, copy)
    move(place, aside)
    copy.rename(place)


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("how", [remove, move, replace])
async def test_a_store_that_is_gone_takes_no_writes_and_answers_no_reads(tmp_path, url, how):
    place, aside = tmp_path / "s", tmp_path / "aside"
    async with quire.open(url.format(place)) as store:
        wf = await store.create("w", {"n": 0})
        how(place, aside)
        for n in range(3):
            with pytest.raises(FilesChanged, match=f"{place}.*(put back|open what is to be used)"):
                await wf.set("/n", n + 1)
        with pytest.raises(StorageError):
            await store.put_blob(b"b")
        await asyncio.sleep(_inodes.LOOK_S)
        with pytest.raises(StorageUnavailable):
            await wf.get("/n")
        health = await store.health()
        assert health.status == "unhealthy"
        assert any(str(place) in reason for reason in health.reasons)
        if how is move:
            for part in aside.iterdir():
                part.rename(tmp_path / part.name)
            await wf.set("/n", 7)
            assert await wf.get("/n") == 7
    if how is move:
        async with quire.open(url.format(place)) as store:
            assert await store.workflow("w").get("/n") == 7
            assert (await store.verify()).ok


@pytest.mark.parametrize("url", URLS)
async def test_without_the_look_writes_are_acknowledged_into_nowhere(tmp_path, monkeypatch, url):
    place = tmp_path / "s"
    async with quire.open(url.format(place)) as store:
        wf = await store.create("w", {"n": 0})
        move(place, tmp_path / "aside")
        monkeypatch.setattr(Inodes, "trouble", lambda _: None)
        monkeypatch.setattr(Disk, "expect", lambda *_: None)
        await wf.set("/n", 1)  # the control
        monkeypatch.undo()
    assert not place.exists() or not list(place.iterdir())


@pytest.mark.parametrize("wal", ["", "-wal"])
async def test_what_goes_between_commit_and_answer_is_not_acknowledged(tmp_path, monkeypatch, wal):
    """The look comes after the transaction: a file that went in its midst is missed then."""
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        commit = store.engine.backend._log._commit

        def late(db, items):
            done = commit(db, items)
            Path(path + wal).unlink()
            return done

        monkeypatch.setattr(store.engine.backend._log, "_commit", late)
        if wal:
            await wf.set("/n", 1)  # it was in the log, which was put back, and is found there
            monkeypatch.undo()
            assert await wf.get("/n") == 1
        else:
            with pytest.raises(StorageError):
                await wf.set("/n", 1)


def take(file, aside):
    file.rename(aside)


def cut(file, aside):
    """Leave the first lines of a file, as an older copy has them."""
    aside.write_bytes(file.read_bytes())
    file.write_bytes(b"".join(aside.read_bytes().splitlines(True)[:2]))


TAKEN = [(name, how) for name in ("workflows/w.state", "feed.log", "cells.log") for how in (take, cut)]


@pytest.mark.parametrize(("name", "how"), TAKEN, ids=[f"{how.__name__} {name}" for name, how in TAKEN])
async def test_a_file_that_was_taken_out_of_a_folder_counts_as_lost_until_it_is_back(tmp_path, name, how):
    async with quire.open(f"file:///{tmp_path}/s") as store:
        wf, other = await store.create("w", {"n": 0}), await store.create("other", {"n": 0})
        for n in range(1, 5):
            await wf.set("/n", n, idempotency_key=f"key {n}")
        file, aside = tmp_path / "s" / name, tmp_path / "aside"
        how(file, aside)
        left = file.read_bytes() if file.exists() else None
        writes = {
            "workflows/w.state": [
                lambda: wf.set("/n", 9),
                lambda: store.create("w", {"anew": True}),
                wf.state,
                wf.history,
                store.workflows,
            ],
            "feed.log": [lambda: wf.set("/n", 9), lambda: other.set("/n", 9), lambda: store.create("third", {})],
            "cells.log": [
                lambda: wf.set("/n", 4, idempotency_key="key 4"),
                lambda: other.set("/n", 9, idempotency_key="key 5"),
            ],
        }[name]
        with pytest.raises(StorageError):
            await writes[0]()
        for write in writes * 2:
            with pytest.raises(CorruptRecord, match=f"{file} (is gone|ends at)"):
                await write()
        if name.startswith("workflows"):
            await other.set("/n", 1)  # whose own file is well
        assert (file.read_bytes() if file.exists() else None) == left
        health = await store.health()
        assert health.status != "ok" and str(file) in str(health.reasons)
        assert not (await store.verify()).ok
        file.unlink(missing_ok=True)
        aside.rename(file)
        assert await wf.state() == {"n": 4}
        for _ in range(2):  # a descriptor may be on the file that was there
            with suppress(StorageError):
                await other.set("/n", 9, idempotency_key="key 5")
        assert (await wf.set("/n", 9)).number == 6
        assert (await wf.set("/n", 4, idempotency_key="key 4")).number == 5
        assert await other.get("/n") == 9
        assert (await store.verify()).ok and (await store.health()).status == "ok"


async def test_a_damaged_file_of_a_folder_is_told_by_health_until_it_is_well(tmp_path):
    async with quire.open(f"file:///{tmp_path}/s") as store:
        wf = await store.create("w", {"n": 0})
        await wf.set("/n", 1)
        file = tmp_path / "s" / "workflows" / "w.state"
        whole = file.read_bytes()
        file.write_bytes(whole[:-10])
        for _ in range(2):
            with pytest.raises(StorageError):
                await wf.set("/n", 2)
        with pytest.raises(CorruptRecord, match="does not match its checksum"):
            await wf.state()
        health = await store.health()
        assert health.status == "degraded" and "w.state is damaged" in str(health.reasons)
        file.write_bytes(whole)
        assert await wf.state() == {"n": 1}
        assert (await store.health()).status == "ok"


@pytest.mark.parametrize("name", ["feed.log", "cells.log"])
async def test_a_file_that_is_gone_when_a_folder_is_opened_is_missed(tmp_path, name):
    url = f"file:///{tmp_path}/s"
    async with quire.open(url) as store:
        wf = await store.create("w", {"n": 0})
        await wf.inc("/n", 1, idempotency_key="k")
    (tmp_path / "s" / name).rename(tmp_path / "aside")
    with pytest.raises(CorruptRecord, match=f"{name} is gone"):  # noqa: PT012 - with one of them nothing opens
        async with quire.open(url) as store:
            assert f"{name} is gone" in str((await store.verify()).problems)
            await store.workflow("w").inc("/n", 1, idempotency_key="l")
    (tmp_path / "aside").rename(tmp_path / "s" / name)
    async with quire.open(url) as store:
        await store.workflow("w").inc("/n", 1, idempotency_key="k")
        assert await store.workflow("w").get("/n") == 1


async def test_what_another_process_removed_by_its_word_does_not_count_as_lost(tmp_path):
    async with quire.open(f"file:///{tmp_path}/s") as store, quire.open(f"file:///{tmp_path}/s") as other:
        for name in ("w", "v"):
            await (await store.create(name, {"n": 0})).set("/n", 1)
        assert await other.workflows() == ["v", "w"]
        backend = store.engine.backend
        await backend.drop("workflows/w")
        await backend.trim("workflows/v", 1)
        assert await other.engine.backend.streams("workflows/") == ["workflows/v"]
        assert (await other.engine.backend.heads(["workflows/w"]))[0].version == 0
        assert [r.version for r in await other.engine.backend.read("workflows/v")] == [2]
        await backend.drop("workflows/v")
        await backend.scrub()  # which leaves no word of either
        assert await other.engine.backend.streams("workflows/") == []
        assert (await other.engine.backend.heads(["workflows/v"]))[0].version == 0
        await other.create("w", {"n": 0})
        assert (await store.verify()).ok


async def test_a_feed_is_not_made_anew_without_what_is_gone(tmp_path):
    async with quire.open(f"file:///{tmp_path}/s") as store:
        for name in ("w", "v"):
            await store.create(name, {})
        (tmp_path / "s" / "workflows" / "w.state").unlink()
        with pytest.raises(CorruptRecord, match="is gone, but workflows/w was written up to version 1"):
            await store.engine.backend.scrub()
        assert "workflows/w: 1 records were committed" in str((await store.verify()).problems)


@pytest.mark.parametrize("how", [remove, move])
async def test_an_archive_that_is_gone_is_not_begun_anew(tmp_path, how):
    archive = tmp_path / "archive"
    keep = Retention(versions=1, every_s=0)
    async with quire.open(str(tmp_path / "s.db"), archive=str(archive), retention=keep) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(5):
            await wf.set("/n", n)
        assert (await store.sweep()).moved
        for n in range(5):
            await wf.set("/n", n)
        how(archive, tmp_path / "aside")
        (problem,) = (await store.sweep()).problems
        assert "removed or moved away" in problem
        assert not archive.exists()
        assert await wf.get("/n") == 4
        if how is move:
            (tmp_path / "aside" / "archive").rename(archive)
            await store.sweep()
            assert len(await wf.history()) == 10


# others who open what was taken away

OPENING = """
import sys, quire
from quire.errors import StorageUnavailable
try:
    quire.sync.open(sys.argv[1]).close()
    print("opened")
except StorageUnavailable as error:
    print(error)
"""


def opened_elsewhere(path):
    return subprocess.run([sys.executable, "-c", OPENING, path], stdout=-1, check=True, text=True).stdout


async def written(path):
    """Return an open store with three versions that are in the write-ahead log only."""
    store = await quire.open(path).__aenter__()
    wf = await store.create("w", {"n": 0})
    await wf.set("/n", 1)
    await wf.set("/n", 2)
    return store


@pytest.mark.parametrize("checked", [True, False])
async def test_who_opens_a_store_whose_log_was_removed_does_not_begin_another(tmp_path, monkeypatch, checked):
    path = str(tmp_path / "s.db")
    store = await written(path)
    os.unlink(path + "-wal")
    program = (
        OPENING
        if checked
        else f"from quire.storage import _sqlite_presence as p; p.await_log = lambda _: None{OPENING}"
    )
    said = subprocess.run([sys.executable, "-c", program, path], stdout=-1, check=True, text=True).stdout
    if not checked:  # that its log is empty would be seen, too
        monkeypatch.setattr(Presence, "_is_stale", lambda *_: False)
    await store.close()
    async with quire.open(path) as again:
        there = await again.workflow("w").exists() and await again.workflow("w").get("/n") == 2
    assert there == checked  # the control loses them
    assert ("only that one can put back what it wrote" in said) == checked


async def test_who_opens_a_store_whose_file_was_moved_away_does_not_make_a_new_one(tmp_path):
    path = str(tmp_path / "s.db")
    store = await written(path)
    os.rename(path, path + ".away")
    assert "the file was moved away, and a new one would destroy what the log holds" in opened_elsewhere(path)
    os.rename(path + ".away", path)
    assert await store.workflow("w").get("/n") == 2
    await store.workflow("w").set("/n", 3)
    await store.close()
    async with quire.open(path) as again:
        assert await again.workflow("w").get("/n") == 3


async def test_a_log_that_was_put_back_after_it_was_rescued_undoes_nothing(tmp_path):
    path = str(tmp_path / "s.db")
    store = await written(path)
    os.rename(path + "-wal", path + ".log")
    acknowledged = 0
    for n in range(3, 40):
        try:
            await store.workflow("w").set("/n", n)
        except StorageError:
            continue
        acknowledged = n
    assert acknowledged == 39
    await asyncio.sleep(0.5)  # a quiet moment, in which the log goes into the file
    os.rename(path + ".log", path + "-wal")
    await store.close()
    async with quire.open(path) as again:
        assert await again.workflow("w").get("/n") == 39
        assert (await again.verify()).ok


# a log that is cut where it is


@pytest.mark.parametrize("left", [0, 32, 30_000, -1])
async def test_a_log_that_was_cut_takes_no_more_writes(tmp_path, left):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(1, 20):
            await wf.set("/n", n)
        size = Path(path + "-wal").stat().st_size
        os.truncate(path + "-wal", left % size)
        for _ in range(3):
            with pytest.raises(
                FilesChanged, match=f"s.db-wal was cut while the store was open: it has {left % size:,} bytes"
            ):
                await wf.set("/n", 100)
        with pytest.raises(FilesChanged, match="was cut"):
            await wf.history()
        health = await store.health()
        assert health.status == "unhealthy" and "was cut" in str(health.reasons)
    with closing(sqlite3.connect(path)) as db:  # what is left is whole, if old
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
    async with quire.open(path) as store:
        names = await store.workflows()
        assert names == [] or 0 < await store.workflow("w").get("/n") < 20
        assert (await store.verify()).ok


async def test_without_a_look_at_its_length_a_log_that_was_cut_takes_writes_and_loses_them(tmp_path, monkeypatch):
    monkeypatch.setattr(Presence, "_missing", lambda _: None)
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(1, 20):
            await wf.set("/n", n)
        os.truncate(path + "-wal", 0)
        await wf.set("/n", 100)
    with pytest.raises(StorageError):
        async with quire.open(path) as store:
            await store.workflow("w").get("/n")


async def test_a_log_that_is_in_the_database_too_may_be_cut(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(1, 20):
            await wf.set("/n", n)
        with closing(apsw.Connection(path)) as db:
            db.execute("select count(*) from log").fetchall()
            pages, copied = db.wal_checkpoint()
        assert pages == copied > 0
        os.truncate(path + "-wal", 0)
        for n in range(20, 40):
            await wf.set("/n", n)
        assert (await store.verify()).ok
    async with quire.open(path) as store:
        assert [v.number for v in await store.workflow("w").history()] == list(range(40, 0, -1))


EMPTYING = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=0.05)
db.execute("select count(*) from log").fetchall()
count = 0
print("begun", flush=True)
while not os.path.exists(sys.argv[1] + ".end"):
    try:
        count += db.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0
    except sqlite3.OperationalError:
        pass
print(count, flush=True)
"""


async def test_another_program_may_empty_the_log_as_often_as_it_likes(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        with subprocess.Popen([sys.executable, "-c", EMPTYING, path], stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "begun\n"
            try:
                for n in range(1, 151):
                    await wf.set("/n", n)
            finally:
                Path(path + ".end").touch()
            assert int(other.stdout.read()) > 3
        assert (await wf.version()).number == 151


# a log that is moved away and comes back, or is taken for another


async def stored(wf, keys):
    """Write each key until it is stored; return how often that was refused."""
    refused = 0
    for key in keys:
        for _ in range(5):
            try:
                await wf.set(f"/{key}", 1)
                break
            except StorageError:
                refused += 1
        else:
            raise AssertionError(f"{key} was never written")
    return refused


def come_back(log, aside):
    aside.rename(log)


def come_empty(log, aside):
    aside.with_name("empty").touch()
    aside.with_name("empty").rename(log)


@pytest.mark.parametrize("back", [come_back, come_empty])
async def test_a_log_that_was_moved_away_and_comes_back_takes_nothing_with_it(tmp_path, back):
    path, aside = str(tmp_path / "s.db"), tmp_path / "aside"
    log = Path(path + "-wal")
    async with quire.open(path) as store:
        wf = await store.create("w", {})
        await stored(wf, "abc")
        log.rename(aside)
        assert await stored(wf, "defgh") == 1
        back(log, aside)
        assert await stored(wf, "ijk") == 1
        assert (await store.health()).status == "ok"
    async with quire.open(path) as store:
        assert sorted(await store.workflow("w").state()) == list("abcdefghijk")
        assert (await store.verify()).ok


async def test_an_older_copy_of_the_log_takes_nothing_with_it(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {})
        await stored(wf, "abc")
        shutil.copy(path + "-wal", tmp_path / "copy")
        await stored(wf, "def")
        (tmp_path / "copy").rename(path + "-wal")
        assert await stored(wf, "ghi") == 1
    async with quire.open(path) as store:
        assert sorted(await store.workflow("w").state()) == list("abcdefghi")
        assert (await store.verify()).ok


async def test_a_log_with_something_else_in_it_is_not_removed(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {})
        await stored(wf, "abc")
        (tmp_path / "other").write_bytes(Path(path + "-wal").read_bytes()[:-1] + b"?")
        (tmp_path / "other").rename(path + "-wal")
        for _ in range(3):
            with pytest.raises(StorageError, match="was replaced while the store was open"):
                await wf.set("/d", 1)
        assert Path(path + "-wal").read_bytes().endswith(b"?")


async def test_another_file_in_the_place_of_the_log_is_not_taken_for_a_log_that_was_cut(tmp_path):
    path, aside = str(tmp_path / "s.db"), tmp_path / "aside"
    log = Path(path + "-wal")
    async with quire.open(path) as store:
        wf = await store.create("w", {})
        await stored(wf, "abc")
        log.rename(aside)
        log.write_bytes(b"?" * 100)
        with pytest.raises(StorageError, match="was replaced while the store was open"):
            await wf.set("/d", 1)
        aside.replace(log)
        await stored(wf, "def")
        assert sorted(await wf.state()) == list("abcdef")
        assert (await store.health()).status == "ok"


@pytest.mark.parametrize("left", [0, 50, 4096, 8192, -1])
async def test_a_database_that_was_cut_takes_no_more_writes(tmp_path, left):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await wf.set("/n", 1)
        with closing(apsw.Connection(path)) as db:
            db.execute("select count(*) from log").fetchall()
            db.wal_checkpoint()
        await wf.set("/n", 2)
        size = Path(path).stat().st_size
        os.truncate(path, left % size)
        for _ in range(3):
            with pytest.raises(
                FilesChanged, match=f"s.db was cut while the store was open: it has {left % size:,} bytes"
            ):
                await wf.set("/n", 3)
        health = await store.health()
        assert health.status == "unhealthy" and "was cut" in str(health.reasons)
    assert Path(path + "-wal").stat().st_size  # it is not copied into half a file


async def test_a_database_that_became_smaller_by_itself_was_not_cut(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        name = await store.put_blob(os.urandom(500_000))
        with closing(apsw.Connection(path)) as db:
            db.execute("select count(*) from log").fetchall()
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        await store.create("w", {"n": 0})
        before = Path(path).stat().st_size
        await store.engine.backend.drop_blob(name)
        with closing(apsw.Connection(path)) as db:
            db.execute("vacuum")
            db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        assert Path(path).stat().st_size < before
        other = await store.create("other", {"n": 0})
        await other.set("/n", 1)
        assert (await store.verify()).ok
