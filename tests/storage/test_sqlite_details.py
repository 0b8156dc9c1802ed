"""What SQLite promises beyond the protocol: its file, its locks, its failures, its repair."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import apsw
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from quire import failpoints
from quire.errors import (
    Closed,
    CorruptRecord,
    IncompatibleFormat,
    InvalidKey,
    InvalidState,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
)
from quire.model import GENESIS, Keyframe, Record
from quire.storage import _sqlite_file, _sqlite_presence, _sqlite_read, _sqlite_worker
from quire.storage.base import CellWrite, Committed, Expect, Item, Refused
from quire.storage.codec import pack, unpack
from quire.storage.sqlite import open_sqlite


def link(version):
    return GENESIS if version == 0 else version.to_bytes(32, "big")


def writing(stream, after, body=b"[]", author="ann"):
    record = Record(stream, after + 1, 1_700_000_000_000, author, "why", "change", body, link(after + 1))
    return Item((Expect(stream, after, link(after)),), (record,))


@asynccontextmanager
async def opened(path, **options):
    backend = await open_sqlite(str(path), namespace="n", **options)
    try:
        yield backend
    finally:
        await backend.close()


def altered(path, *statements):
    """Damage a closed store."""
    db = apsw.Connection(str(path))
    for statement in statements:
        db.execute(statement)
    db.close()


WRITER = """
import asyncio, sys
from quire.storage.base import CellWrite, Expect, Item
from quire.model import Record
from quire.storage.sqlite import open_sqlite

async def main(path, stream, count):
    sys.stdin.readline()
    db = await open_sqlite(path, namespace="n")
    for i in range(int(count)):
        record = Record(stream, i + 1, 0, "ann", "why", "change", b"[]", (i + 1).to_bytes(32, "big"))
        expect = Expect(stream, i, i.to_bytes(32, "big"))
        await db.commit([Item((expect,), (record,), (CellWrite(str(i), None, b""),))])
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


def run(code, *args, **env):
    """Run code in a process of its own; return its exit code and what it printed."""
    env = {**os.environ, **env}
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, input=b"go", stdout=-1, check=False)
    return done.returncode, done.stdout


def crowd(path, size, count, code=WRITER):
    """Let processes open and write at once; return their exit codes."""
    args = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen([*args, f"w/{i}", str(count)], stdin=subprocess.PIPE) for i in range(size)]
    for writer in writers:
        writer.stdin.write(b"go")
        writer.stdin.close()
    return [writer.wait(60) for writer in writers]


RIVAL = """
import asyncio, sys
from quire.storage.base import Committed, Expect, Item
from quire.model import Record
from quire.storage.sqlite import open_sqlite

async def main(path, author, count):
    sys.stdin.readline()
    db = await open_sqlite(path, namespace="n")
    won = 0
    while won < int(count):
        (head,) = await db.heads(["w/a"])
        version = head.version + 1
        record = Record("w/a", version, 0, author, str(won), "change", b"[]", version.to_bytes(32, "big"))
        (outcome,) = await db.commit([Item((Expect("w/a", head.version, head.chain),), (record,))])
        won += isinstance(outcome, Committed)
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


def fork(child):
    """Run `child` in a fork; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = child()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def descriptors(path):
    """What this process has open of a store."""
    return [p for p in (n.resolve() for n in Path("/proc/self/fd").iterdir()) if str(path) in str(p)]


# the codec


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | st.binary(max_size=9).map(lambda b: b * 999))
def test_every_body_comes_back(body):
    stored = pack(body)
    assert unpack(stored) == body
    assert isinstance(stored, str) or stored[0] in (0, 1)


def test_small_json_stays_text_and_large_is_compressed_where_it_pays():
    assert pack(b'{"a": 1}') == '{"a": 1}'
    assert isinstance(pack(b"x" * 2047), str)
    assert len(pack(b"x" * 2048)) < 100
    noise = os.urandom(4096).hex().encode()[:4096]
    assert len(pack(noise)) < 4096 * 0.9  # hex is half empty
    assert pack(os.urandom(4096))[0] == 0


BOMB = zstandard.ZstdCompressor().compress(bytes(257 * 1024 * 1024))
FRAME = zstandard.ZstdCompressor().compress(b"abc" * 100)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 100)


@pytest.mark.parametrize(
    "column",
    [
        None,
        5,
        1.5,
        b"",
        b"\x07abc",
        b"\x01",
        b"\x01" + FRAME[:-1],
        b"\x01" + FRAME + b"x",
        b"\x01" + UNSIZED,
        b"\x01" + BOMB,
    ],
)
def test_what_pack_does_not_write_is_refused(column):
    with pytest.raises(CorruptRecord):
        unpack(column)


# the file


async def test_an_empty_file_is_a_new_store(tmp_path):
    (tmp_path / "s.db").touch()
    async with opened(tmp_path / "s.db") as db:
        assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_the_file_behind_a_link_is_private_too(tmp_path):
    (tmp_path / "link.db").symlink_to(tmp_path / "real.db")
    async with opened(tmp_path / "link.db"):
        assert stat.S_IMODE((tmp_path / "real.db").stat().st_mode) == 0o600


async def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(InvalidKey, match="name a file"):
            await open_sqlite(str(path), namespace="n")
    with pytest.raises(InvalidKey, match="full or relaxed"):
        await open_sqlite(str(tmp_path / "s.db"), namespace="n", durability="none")


async def test_a_foreign_database_with_unfinished_business_is_not_touched(tmp_path):
    path = tmp_path / "other.db"
    code = (
        "import apsw, os, sys; db = apsw.Connection(sys.argv[1]); db.pragma('journal_mode', 'WAL');"
        "db.execute('create table t(x); insert into t values (1)'); os._exit(0)"
    )
    assert run(code, path)[0] == 0
    files = {p: p.read_bytes() for p in tmp_path.iterdir()}
    assert (tmp_path / "other.db-wal") in files
    with pytest.raises(IncompatibleFormat, match=r"other\.db"):
        await open_sqlite(str(path), namespace="n")
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == files


async def test_the_log_tells_its_story_to_any_tool(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        await db.commit([writing("w/a", 0, b'[["set",["n"],1]]')])
    with sqlite3.connect(tmp_path / "s.db") as other:
        rows = other.execute("select * from log").fetchall()
    other.close()
    story = (1, "n", "w/a", 1, "2023-11-14T22:13:20.000Z", "ann", "why", "change", '[["set",["n"],1]]')
    assert rows == [(*story, link(1).hex())]


async def test_an_upgrade_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "s.db"
    async with opened(path) as db:
        await db.commit([writing("w/a", 0)])

    def half(db):
        db.execute("CREATE TABLE half (x)")

    def fails(db):
        raise apsw.FullError("no room")

    monkeypatch.setattr(_sqlite_file, "SCHEMA_VERSION", 3)
    monkeypatch.setattr(_sqlite_file, "UPGRADES", {1: half, 2: fails})
    with pytest.raises(StorageFull):
        await open_sqlite(str(path), namespace="n")
    monkeypatch.undo()
    async with opened(path) as db:
        assert len(await db.read("w/a")) == 1
    assert not apsw.Connection(str(path)).table_exists("main", "half")


def test_a_store_made_by_another_while_ours_is_looked_at_is_a_store(tmp_path):
    path = str(tmp_path / "s.db")
    ours, theirs = apsw.Connection(path), apsw.Connection(path)
    theirs.set_busy_timeout(0)
    slipped = []

    def between(_, statement, __):
        if "sqlite_schema" in statement and not slipped:
            slipped.append(True)
            with contextlib.suppress(apsw.BusyError):  # that it has to wait is what makes it right
                _sqlite_file.prepare(theirs, path)
        return True

    ours.set_exec_trace(between)
    _sqlite_file.prepare(ours, path)
    assert slipped
    assert ours.pragma("user_version") == _sqlite_file.SCHEMA_VERSION


async def test_processes_may_all_make_the_store_at_once(tmp_path):
    assert crowd(tmp_path / "s.db", 4, 0) == [0] * 4
    async with opened(tmp_path / "s.db") as db:
        assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_processes_that_write_one_stream_each_get_their_turns(tmp_path):
    assert crowd(tmp_path / "s.db", 4, 25, RIVAL) == [0] * 4
    async with opened(tmp_path / "s.db") as db:
        records = await db.read("w/a")
        assert [(r.version, r.position) for r in records] == [(i, i) for i in range(1, 101)]
        for author in {r.author for r in records}:
            assert [r.message for r in records if r.author == author] == [str(i) for i in range(25)]
        assert await db.check() == []


# one moment


def committing(db, *streams):
    """Return a function for another thread that commits once more to every stream, in one item."""
    loop, versions = asyncio.get_running_loop(), count()

    def commit():
        after = next(versions)
        items = [writing(stream, after) for stream in streams]
        item = Item(tuple(i.expect[0] for i in items), tuple(i.records[0] for i in items))
        asyncio.run_coroutine_threadsafe(db.commit([item]), loop).result(60)

    return commit


async def test_heads_asked_together_never_show_half_an_item(tmp_path):
    async with opened(tmp_path / "s.db") as db, opened(tmp_path / "s.db") as other:
        commit = committing(other, "w/a", "w/b")
        await asyncio.to_thread(commit)

        class Interrupted(tuple):
            def __iter__(self):
                for stream in super().__iter__():
                    yield stream
                    commit()

        assert [h.version for h in await db.heads(Interrupted(("w/a", "w/b")))] == [1, 1]
        assert [h.version for h in await db.heads(("w/a", "w/b"))] == [3, 3]


async def test_a_check_beside_writers_finds_nothing_wrong(tmp_path, monkeypatch):
    async with opened(tmp_path / "s.db") as db, opened(tmp_path / "s.db") as other:
        commit, newest = committing(other, "w/a"), _sqlite_read.newest

        def late(db):
            commit()
            return newest(db)

        await asyncio.to_thread(commit)
        monkeypatch.setattr(_sqlite_read, "newest", late)
        assert await db.check() == []
        monkeypatch.undo()
        assert len(await db.read("w/a")) > 1


# locks


def held_by_another(path):
    """Whether this process holds SQLite's shared lock on the file, as another process sees it."""
    code = (
        "import fcntl, os, struct, sys; fd = os.open(sys.argv[1], os.O_RDWR);"
        "ask = struct.pack('hhqqi', fcntl.F_WRLCK, 0, 0x40000002, 510, 0);"
        "print(struct.unpack('hhqqi', fcntl.fcntl(fd, fcntl.F_GETLK, ask))[0])"
    )
    return int(run(code, path)[1]) != fcntl.F_UNLCK


@pytest.mark.parametrize("locks", [True, False])
async def test_another_handle_leaves_the_locks_of_the_first(tmp_path, monkeypatch, locks):
    """locks: those that stay when SQLite's go; without them SQLite's are seen."""
    if not locks:
        monkeypatch.setattr(_sqlite_presence, "_SET", None)
    path = tmp_path / "s.db"
    async with opened(path) as db:
        await db.commit([writing("w/a", 0)])
        assert held_by_another(path)
        async with opened(path) as second:
            await second.backup(str(tmp_path / "copy.db"))
        assert held_by_another(path)
        with path.open("rb"):
            pass  # the control: SQLite's locks go
        assert held_by_another(path) == locks


async def test_a_lock_held_too_long_is_a_timeout_and_nothing_broke(tmp_path, monkeypatch):
    monkeypatch.setattr(_sqlite_worker, "BUSY_S", 0.02)
    async with opened(tmp_path / "s.db") as db:
        other = apsw.Connection(str(tmp_path / "s.db"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageTimeout, match="another process"):
            await db.commit([writing("w/a", 0)])
        with pytest.raises(StorageTimeout):
            await db.drop("w/a")
        other.execute("ROLLBACK")
        other.close()
        assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_the_child_of_a_fork_is_told_and_the_parent_goes_on(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        await db.commit([writing("w/a", 0)])

        def child():
            try:
                db.commit([]).send(None)
            except Closed as error:
                return 0 if "fork" in str(error) else 1
            return 2

        assert fork(child) == 0
        assert await db.commit([writing("w/a", 1)]) == [Committed(2, 2)]


async def test_closing_leaves_no_descriptor_and_no_companion(tmp_path):
    path = tmp_path / "s.db"
    async with opened(path) as db:
        await db.commit([writing("w/a", 0)])
        await asyncio.gather(db.read("w/a"), db.read("w/a"), db.latest())
        assert len(descriptors(path)) >= 4
    assert descriptors(path) == []
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


# failures


@contextmanager
def failing_disk():
    """A VFS that fails while `fault` is set: (operation, exception)."""

    class File(apsw.VFSFile):
        def __init__(self, name, flags):
            super().__init__("", name, flags)

        def xWrite(self, data, offset):
            self.fail("write")
            super().xWrite(data, offset)

        def xSync(self, flags):
            self.fail("sync")
            super().xSync(flags)

        def fail(self, operation):
            if disk.fault and disk.fault[0] == operation:
                raise disk.fault[1]

        def excepthook(self, *_):
            pass

    class Disk(apsw.VFS):
        fault = None

        def xOpen(self, name, flags):
            return File(name, flags)

    disk = Disk("failing", "")
    try:
        yield disk
    finally:
        disk.unregister()


def io_error(code):
    error = apsw.IOError("injected")
    error.extendedresult = code
    return error


async def test_a_commit_whose_sync_fails_is_settled_by_recover(tmp_path):
    path = tmp_path / "s.db"
    with failing_disk() as disk:
        async with opened(path, vfs="failing") as db:
            await db.commit([writing("w/a", 0)])
            disk.fault = ("sync", io_error(apsw.SQLITE_IOERR_FSYNC))
            with pytest.raises(StorageUnavailable):
                await db.commit([writing("w/a", 1)])
            with pytest.raises(StorageUnavailable, match="recover"):
                await db.commit([writing("w/a", 1)])
            disk.fault = ("write", io_error(apsw.SQLITE_IOERR_WRITE))
            with pytest.raises(StorageError):
                await db.recover()
            with pytest.raises(StorageUnavailable, match="recover"):
                await db.commit([writing("w/a", 1)])
            disk.fault = None
            await db.recover()
            head = (await db.heads(["w/a"]))[0].version
            assert head in (1, 2)
            assert await db.commit([writing("w/a", head)]) == [Committed(head + 1, head + 1)]
            assert await db.check() == []
        async with opened(path) as db:
            assert [r.version for r in await db.read("w/a")] == list(range(1, head + 2))


async def test_recover_settles_by_a_commit_where_a_reader_is_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("quire.storage._sqlite_write._SETTLE_S", 0.01)
    path = tmp_path / "s.db"
    with failing_disk() as disk:
        async with opened(path, vfs="failing") as db:
            await db.commit([writing("w/a", 0)])
            other = apsw.Connection(str(path))
            other.execute("BEGIN; SELECT count(*) FROM records")
            disk.fault = ("sync", io_error(apsw.SQLITE_IOERR_FSYNC))
            with pytest.raises(StorageUnavailable):
                await db.commit([writing("w/a", 1)])
            disk.fault = None
            await db.recover()
            assert other.execute("SELECT count(*) FROM records").get == 1
            other.execute("ROLLBACK")
            assert other.execute("SELECT value FROM meta WHERE key = 'recoveries'").get == 1
            other.close()
            assert len(await db.read("w/a")) == 1
            assert await db.commit([writing("w/a", 1)]) == [Committed(2, 2)]


async def test_a_full_disk_says_so_and_writing_goes_on_when_there_is_room(tmp_path):
    with failing_disk() as disk:
        async with opened(tmp_path / "s.db", vfs="failing") as db:
            disk.fault = ("write", apsw.FullError("injected"))
            with pytest.raises(StorageFull, match="disk is full"):
                await db.commit([writing("w/a", 0)])
            with pytest.raises(StorageFull):
                await db.put_blob("b", b"1")
            disk.fault = None
            await db.recover()
            assert await db.read("w/a") == []
            assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_a_value_that_cannot_be_stored_spoils_nothing(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        with pytest.raises(InvalidState):
            await db.commit([writing("w/b", 0), writing("w/a", 0, author="\ud800")])
        assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]
        assert await db.streams() == ["w/a"]


async def test_an_item_that_skips_a_version_is_our_own_mistake(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        skips = Item((Expect("w/a", 0, GENESIS),), writing("w/a", 1).records, (CellWrite("c", None, b"1"),))
        with pytest.raises(AssertionError, match="follow"):
            await db.commit([skips])
        assert await db.cell("c") is None
        assert await db.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_a_record_whose_stream_is_not_expected_is_our_own_mistake(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        for after in range(2):  # the second time the writer knows the stream's head
            unchecked = Item((), writing("w/a", after).records)
            with pytest.raises(AssertionError, match="follow"):
                await db.commit([unchecked])
            assert await db.commit([writing("w/a", after)]) == [Committed(after + 1, after + 1)]
            with pytest.raises(AssertionError, match="follow"):
                await db.commit([Item((), writing("w/a", after + 1).records)])


@pytest.mark.parametrize(
    ("point", "stored"),
    [("commit:begin", 0), ("commit:insert", 0), ("commit:before", 0), ("commit:after", 1)],
)
async def test_a_process_that_dies_in_a_commit_leaves_all_or_nothing(tmp_path, point, stored):
    died, _ = run(WRITER, tmp_path / "s.db", "w/a", 9, QUIRE_FAILPOINT=f"{point}:3")
    assert died == -signal.SIGKILL
    async with opened(tmp_path / "s.db") as db:
        assert [r.version for r in await db.read("w/a")] == list(range(1, 3 + stored))
        assert [c.name for c in await db.cells()] == [str(i) for i in range(2 + stored)]
        assert await db.check() == []


@pytest.mark.parametrize("spec", ["", "commit:begin", "commit:begin:", "commit:begin:0", ":1", "commit:begin:x"])
def test_a_failpoint_that_arms_nothing_is_refused(spec):
    with pytest.raises(ValueError, match="point:n"):
        failpoints.arm(spec)
    failpoints.hit("commit:begin")


# damage


async def filled(path):
    async with opened(path) as db:
        await db.commit([writing(f"w/{i}", 0) for i in range(3)])
        await db.commit([Item(cells=(CellWrite("c", None, b"1", 10**9),))])
        await db.put_blob("b", b"bytes")
        await db.put_keyframe(Keyframe("w/1", 1, link(1), 2, b"d", b"{}"))
        assert await db.check() == []


@pytest.mark.parametrize(
    ("damage", "read", "word"),
    [
        ("UPDATE cells SET value = x'32'", lambda db: db.cell("c"), "cell c"),
        ("UPDATE cells SET expires = expires + 1", lambda db: db.cells(), "cell c"),
        ("UPDATE cells SET name = 'd'", lambda db: db.cell("d"), "cell d"),
        ("UPDATE blobs SET body = x'00'", lambda db: db.blob("b"), "blob b"),
        ("UPDATE blobs SET name = 'a'", lambda db: db.blob("a"), "blob a"),
        ("UPDATE keyframes SET body = x'00'", lambda db: db.keyframe("w/1"), "keyframe of w/1"),
        ("UPDATE keyframes SET size = 3", lambda db: db.keyframe("w/1", 1), "keyframe of w/1"),
    ],
)
async def test_damage_beside_the_log_is_noticed_and_listed(tmp_path, damage, read, word):
    await filled(tmp_path / "s.db")
    altered(tmp_path / "s.db", damage)
    async with opened(tmp_path / "s.db") as db:
        with pytest.raises(CorruptRecord, match=word):
            await read(db)
        problems = await db.check()
        assert len(problems) == 1
        assert word in problems[0]


@pytest.mark.parametrize("body", ["x'07'", "x'0128b52ffd'", "5", "1.5"])
async def test_a_damaged_body_names_its_record(tmp_path, body):
    await filled(tmp_path / "s.db")
    altered(tmp_path / "s.db", f"UPDATE records SET body = {body} WHERE position = 2")
    async with opened(tmp_path / "s.db") as db:
        assert len(await db.read("w/0")) == 1
        for read in (db.read("w/1"), db.feed()):
            with pytest.raises(CorruptRecord, match="w/1 v1") as caught:
                await read
            assert caught.value.at == "w/1@1"


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        ("DELETE FROM records WHERE position = 2", "3 records were committed and 0 of them removed, but 2"),
        (
            "UPDATE records SET stream = 1, version = 3 WHERE position = 2",
            "w/0: 2 records for versions 1 to 3",
        ),
        ("DELETE FROM streams WHERE name = 'w/1'", "nobody knows whose"),
    ],
)
async def test_holes_in_the_log_are_listed(tmp_path, damage, word):
    await filled(tmp_path / "s.db")
    altered(tmp_path / "s.db", "DELETE FROM keyframes", damage)
    async with opened(tmp_path / "s.db") as db:
        assert [word in said for said in await db.check()] == [True]


async def test_a_file_with_a_page_of_noise_is_corrupt_and_nothing_else(tmp_path):
    path = tmp_path / "s.db"
    await filled(path)
    whole = path.read_bytes()
    seen = set()
    for page in range(1, len(whole) // 4096):
        path.write_bytes(whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :])
        try:
            async with opened(path) as db:
                problems = await db.check()
                assert problems
                seen.add("listed")
                await db.feed()
                await db.cells()
        except CorruptRecord:
            seen.add("raised")
    assert seen == {"listed", "raised"}


# care


async def test_a_backup_is_private_whole_and_replaces_nothing(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        await filled(tmp_path / "s.db")
        await db.backup(str(tmp_path / "copy.db"))
        assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600
        with pytest.raises(InvalidKey, match="exists"):
            await db.backup(str(tmp_path / "copy.db"))
        with pytest.raises(StorageUnavailable, match="folder"):
            await db.backup(str(tmp_path / "none" / "copy.db"))
        with pytest.raises(InvalidKey, match="no file name"):
            await db.backup(str(tmp_path / "copy\0.db"))
        assert sorted(p.name for p in tmp_path.iterdir() if "copy" in p.name) == ["copy.db"]


async def test_a_backup_ends_though_others_never_stop_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(_sqlite_file, "_COPY_PAGES", 1)
    async with opened(tmp_path / "s.db") as db:
        await db.commit([writing("w/a", 0, os.urandom(400_000))])
        copying = asyncio.ensure_future(db.backup(str(tmp_path / "copy.db")))
        versions = count(1)
        while not copying.done():
            await db.commit([writing("w/a", next(versions))])
        await copying
    async with opened(tmp_path / "copy.db") as copy:
        assert await copy.check() == []
        assert len(await copy.read("w/a")) >= 1


async def test_expired_cells_do_not_pile_up(tmp_path):
    now = 0
    async with opened(tmp_path / "s.db", now_ms=lambda: now) as db:
        for i in range(50):
            now = i * 100
            await db.commit([Item(cells=(CellWrite(f"key/{i}", None, b"1", 150),))])
        assert (await db.stats()).cells <= 3
        assert [c.name for c in await db.cells()] == ["key/48", "key/49"]
        (outcome,) = await db.commit([Item(cells=(CellWrite("key/49", None, b"2"),))])
        assert outcome == Refused((), ("key/49",))


async def test_a_dropped_end_keeps_its_positions_over_a_restart(tmp_path):
    path = tmp_path / "s.db"
    async with opened(path) as db:
        await db.commit([writing("w/a", 0), writing("w/b", 0)])
        await db.drop("w/b")
        assert await db.latest() == 2
    async with opened(path) as db:
        assert await db.latest() == 2
        assert await db.commit([writing("w/b", 0)]) == [Committed(3, 3)]
        assert await db.check() == []


def found_in_files(path, text):
    return [p.name for p in path.parent.glob(path.name + "*") if text in p.read_bytes()]


async def test_nothing_removed_is_in_the_file_after_scrubbing(tmp_path):
    path, secret = tmp_path / "s.db", b"hunter2" * 3
    async with opened(path) as db:
        await db.commit([writing("w/a", 0, b'["' + secret + b'"]'), writing("w/b", 0, b'["' + secret + b'"]')])
        await db.put_keyframe(Keyframe("w/a", 1, link(1), 2, bytes(32), secret + os.urandom(9000)))
        await db.put_blob("b", secret + os.urandom(9000))
        (record,) = await db.read("w/a")
        await db.rewrite([Record(*(getattr(record, f) for f in Record.__struct_fields__[:6]), b"[]", record.chain)])
        await db.drop_keyframes("w/a", [1])
        await db.drop_blob("b")
        await db.drop("w/b")
        assert found_in_files(path, secret), "the control: it is in free pages and in the write-ahead log"
        await db.scrub()
        assert found_in_files(path, secret) == []
        assert [r.body for r in await db.read("w/a")] == [b"[]"]
        assert await db.check() == []


async def test_scrubbing_says_so_where_a_reader_is_in_the_way(tmp_path, monkeypatch):
    path = tmp_path / "s.db"
    async with opened(path) as db:
        await db.commit([writing("w/a", 0)])
        monkeypatch.setattr(_sqlite_worker, "BUSY_S", 0.01)
        await db.recover()
        other = apsw.Connection(str(path))
        other.execute("BEGIN; SELECT count(*) FROM records")
        with pytest.raises(StorageTimeout):
            await db.scrub()
        other.close()
        await db.scrub()
        assert len(await db.read("w/a")) == 1


async def test_closing_ends_the_wait_of_a_watcher(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        waiting = asyncio.ensure_future(db.changed(0, timeout_s=60))
        await asyncio.sleep(0)
        await db.close()
        with pytest.raises(Closed):
            await waiting


async def test_closing_ends_a_recovery_that_is_under_way(tmp_path):
    async with opened(tmp_path / "s.db") as db:
        gate = threading.Event()
        held = [reader.do(lambda _: gate.wait(60)) for reader in db._readers]
        recovery = asyncio.ensure_future(db.recover())
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(db.close())
        await asyncio.sleep(0)
        gate.set()
        db._writer._jobs._thread.join(60)  # the loop is held meanwhile: recovery goes on when the writer is gone
        await asyncio.gather(closing, *held)
        async with asyncio.timeout(10):
            with pytest.raises(Closed):
                await recovery
