"""What RocksDB promises beyond the protocol: one process, nothing left behind, kill -9."""

import asyncio
import importlib.util
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rocksdict")

import quire
from quire.errors import Closed, CorruptRecord, IncompatibleFormat, InvalidKey, StorageError, StorageUnavailable
from quire.storage import _rocksdb_place
from quire.storage._rocksdb_keys import Keys, name_key, prefix_key
from quire.storage.base import CellWrite, Item
from quire.storage.rocksdb import open_rocksdb
from quire.testing._conformance_base import accepted, appended, begun, everything, set_cell

_spec = importlib.util.spec_from_file_location(
    "rocksdb_kill_tools", Path(__file__).parent.parent / "faults" / "test_kill.py"
)
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

NAMES = st.text(max_size=8) | st.text("a\x00\x01\xff", max_size=6)


@given(st.lists(NAMES, unique=True, max_size=20), NAMES)
def test_names_sort_by_code_point_and_come_back(names, prefix):
    assert sorted(names, key=name_key) == sorted(names)
    keys = Keys("n")
    assert [keys.name(keys.of(b"h", name)) for name in names] == names
    for name in names:
        assert name_key(name).startswith(prefix_key(prefix)) == name.startswith(prefix)
        assert not any(name_key(other).startswith(name_key(name)) for other in names if other != name)


async def test_a_second_process_is_told_that_there_is_one(tmp_path):
    url = f"rocksdb:///{tmp_path}/s"
    code = f"import quire\nwith quire.sync.open({url!r}) as store: store.create('w', {{}})"
    async with quire.open(url) as store:
        done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
        assert "StorageUnavailable" in done.stderr
        assert "RocksDB lets only one in" in done.stderr
        assert await store.workflows() == []
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    async with quire.open(url) as store:
        assert await store.workflows() == ["w"]


async def test_handles_of_several_loops_share_the_database(tmp_path):
    path = str(tmp_path / "s")
    first = await open_rocksdb(path, namespace="n")

    def elsewhere():
        async def main():
            backend = await open_rocksdb(path, namespace="n")
            await appended(backend, "s/1", b"1")
            await backend.close()

        asyncio.run(main())

    waiting = asyncio.create_task(first.changed(0, timeout_s=60))
    await asyncio.to_thread(elsewhere)
    assert await waiting == 1
    await first.close()
    again = await open_rocksdb(path, namespace="n")
    assert len(await again.feed()) == 1
    await again.close()


async def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IncompatibleFormat, match=r"notes\.txt"):
        await open_rocksdb(str(tmp_path), namespace="n")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InvalidKey, match="is a file"):
        await open_rocksdb(str(tmp_path / "notes.txt"), namespace="n")
    with pytest.raises(StorageUnavailable, match="does not exist"):
        await open_rocksdb(str(tmp_path / "a/b"), namespace="n")
    async with quire.open(f"file:///{tmp_path}/files"):
        pass
    with pytest.raises(IncompatibleFormat, match="files"):
        await open_rocksdb(str(tmp_path / "files"), namespace="n")
    await (await open_rocksdb(str(tmp_path / "rocks"), namespace="n")).close()
    with pytest.raises(IncompatibleFormat):
        async with quire.open(f"file:///{tmp_path}/rocks"):
            pass
    assert (tmp_path / "rocks").stat().st_mode & 0o77 == 0


async def test_what_is_removed_leaves_no_trace_after_scrub(tmp_path):
    backend = await open_rocksdb(str(tmp_path / "s"), namespace="n")
    secret = b'["SECRET-1"]'
    await appended(backend, "s/SECRET-2", secret)
    records = await appended(backend, "s/1", secret, b"[]")
    await set_cell(backend, "SECRET-3", b"SECRET-4")
    await backend.put_blob("b", secret)
    await backend.rewrite([msgspec.structs.replace(records[0], body=b"[]")])
    await backend.drop("s/SECRET-2")
    await backend.drop_blob("b")
    await accepted(backend, Item(cells=(CellWrite("SECRET-3", b"SECRET-4", None),)))
    held = [p for p in (tmp_path / "s").rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]
    assert held
    await backend.scrub()
    held = [p for p in (tmp_path / "s").rglob("*") if p.is_file() and b"SECRET" in p.read_bytes()]
    assert not held, [(p.name, p.read_bytes()[-300:]) for p in held]
    assert [r.body for r in await backend.read("s/1")] == [b"[]", b"[]"]
    assert await backend.check() == []
    await backend.close()


async def test_expired_cells_are_cleared_away(tmp_path):
    now = [1_000_000]
    backend = await open_rocksdb(str(tmp_path / "s"), namespace="n", now_ms=lambda: now[0])
    for number in range(50):
        await set_cell(backend, f"c{number}", b"1", ttl_ms=10)
        now[0] += 20
    await accepted(backend, Item(cells=(CellWrite("c49", None, b"2", 10_000),)))
    assert (await backend.stats()).cells <= 3
    assert (await backend.cell("c49")).value == b"2"
    await backend.close()


async def test_a_failed_write_is_settled_by_opening_anew(tmp_path, monkeypatch):
    backend = await open_rocksdb(str(tmp_path / "s"), namespace="n")
    await accepted(backend, begun("s/1", b"1"))
    write = _rocksdb_place.Place.write

    def failing(place, fill):
        raise Exception("IO error: No space left on device: injected")

    monkeypatch.setattr(_rocksdb_place.Place, "write", failing)
    with pytest.raises(StorageError, match="full"):
        await backend.commit([begun("s/2", b"1")])
    monkeypatch.setattr(_rocksdb_place.Place, "write", write)
    with pytest.raises(StorageUnavailable, match="recover"):
        await backend.commit([begun("s/3", b"1")])
    await backend.recover()
    await accepted(backend, begun("s/3", b"1"))
    assert await backend.streams() == ["s/1", "s/3"]
    opening = _rocksdb_place.Place.open
    monkeypatch.setattr(_rocksdb_place.Place, "write", failing)
    with pytest.raises(StorageError):
        await backend.commit([begun("s/4", b"1")])
    monkeypatch.setattr(_rocksdb_place.Place, "open", failing_open)
    with pytest.raises(StorageUnavailable):
        await backend.recover()
    with pytest.raises(StorageUnavailable):
        await backend.streams()
    monkeypatch.setattr(_rocksdb_place.Place, "open", opening)
    monkeypatch.setattr(_rocksdb_place.Place, "write", write)
    await backend.recover()
    assert await backend.streams() == ["s/1", "s/3"]
    await backend.close()


def failing_open(place):
    raise Exception("IO error: injected")


async def test_damage_is_said(tmp_path):
    backend = await open_rocksdb(str(tmp_path / "s"), namespace="n")
    for number in range(50):
        await appended(backend, f"s/{number}", os.urandom(2000))
    await backend.scrub()  # which sorts it all into tables
    before = await everything(backend)
    await backend.close()
    (table,) = [p for p in (tmp_path / "s").rglob("*.sst") if p.stat().st_size > 50_000]
    chance, sound = random.Random(1), table.read_bytes()
    said = 0
    for _ in range(30):
        data = bytearray(sound)
        bit = chance.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << bit % 8
        table.write_bytes(data)
        try:
            backend = await open_rocksdb(str(tmp_path / "s"), namespace="n")
        except CorruptRecord:
            said += 1
            continue
        try:
            problems = await backend.check()
            assert problems or await everything(backend) == before
            said += bool(problems)
        except CorruptRecord:
            said += 1
        await backend.close()
    assert said > 20


async def test_a_fork_of_the_process_is_refused(tmp_path):
    backend = await open_rocksdb(str(tmp_path / "s"), namespace="n")
    backend._pid = os.getpid() + 1
    with pytest.raises(Closed, match="fork"):
        await backend.latest()
    backend._pid = os.getpid()
    await backend.close()


def test_a_missing_package_is_named():
    code = (
        "import sys; sys.modules['rocksdict'] = None\nimport quire\n"
        "try:\n    with quire.sync.open('rocksdb:///s'): pass\nexcept quire.errors.Unsupported as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "quire[rocksdb]" in said


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    acked, lost = tools.attack(f"rocksdb:///{tmp_path}/s", 15, 1)
    assert len(acked) > 15
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 12))
def test_nothing_acknowledged_is_lost_by_kill_9_a_thousand_times(tmp_path, seed):
    _, lost = tools.attack(f"rocksdb:///{tmp_path}/s", 100, seed)
    assert not lost


@pytest.mark.parametrize("point", ["commit:begin", "commit:before", "commit:after"])
@pytest.mark.parametrize("number", [1, 6, 30])
def test_death_at_a_named_step_of_a_commit(tmp_path, point, number):
    url = f"rocksdb:///{tmp_path}/s"
    acked, code = tools.live_and_die(url, 20, failpoint=f"{point}:{number}")
    assert code == -signal.SIGKILL
    assert not tools.losses(url, acked)


disk = tools.disk


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_by_a_file_system_that_dies(disk):
    acked, lost = tools.lose_power(disk, f"rocksdb:///{disk[1]}/s", 8, 0)
    assert len(acked) > 8
    assert not lost
