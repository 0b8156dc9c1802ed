"""kill -9 of a process that takes, brings back, replaces or removes backups: the same again finishes it, nothing is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.moving.sources import do, everything, filled, trim

import quire
from quire.errors import StorageUnavailable

KEEPER = str(Path(__file__).parent / "keeper.py")
TAKING = [*(f"backup:segment:{n}" for n in (1, 2, 5)), "backup:inventory:1", "backup:manifest:1"]
RECOVERING = [
    *(
        "recover:marked:1",
        "recover:dropped:1",
        "recover:beside:1",
        "load:commit:1",
        "load:committed:1",
        "load:committed:5",
    ),
    *(
        "load:placeholders:1",
        "load:framed:1",
        "load:trimmed:4",
        "recover:page:2",
        "recover:loaded:1",
        "recover:compared:1",
    ),
]
REPLACING = ["backup:segment:1", *TAKING[-2:], *RECOVERING, "recover:dropping:1", "recover:dropping:2"]


def done_until(what, url, shelf, point=None, after_s=None, at=None):
    """Run a keeper, kill it after a while if it is not done, return how it ended."""
    env = {**os.environ, **({"QUIRE_FAILPOINT": point} if point else {}), **({} if at is None else {"AT": str(at)})}
    with subprocess.Popen([sys.executable, KEEPER, what, url, shelf], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if after_s is not None:
            until = time.monotonic() + after_s
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.001)  # noqa - when it dies is the attack
            process.send_signal(signal.SIGKILL)
        process.wait(60)
    return process.returncode


async def source(folder):
    url, shelf = str(folder / "s.db"), f"file:///{folder}/place"
    async with filled(url) as store:
        for i in range(3):
            await do(store, "many", "a", i)
        await trim(store, "b", 5)
        return url, shelf, await everything(store.engine.backend)


async def assert_is(url, wanted):
    async with quire.open(url) as store:
        found = await everything(store.engine.backend)
        for part in ("records", "read", "heads", "blobs", "places"):
            assert found[part] == wanted[part], part
        mine = {n: v for n, v in found["cells"].items() if not n.startswith("quire:")}
        assert mine == {n: v for n, v in wanted["cells"].items() if not n.startswith("quire:")}
        report = await store.verify()
        assert report.ok, report.problems


async def assert_whole(shelf):
    checked = await quire.check_backups(shelf)
    assert checked.ok, checked.problems


@pytest.mark.parametrize("point", TAKING)
async def test_death_while_a_backup_is_taken(tmp_path, point):
    url, shelf, wanted = await source(tmp_path)
    assert done_until("backup", url, shelf, point) == -signal.SIGKILL
    assert await quire.backups(shelf) == [], "what has no manifest is no backup"
    assert done_until("backup", url, shelf) == 0
    assert [b.number for b in await quire.backups(shelf)] == [1]
    await assert_whole(shelf)
    assert done_until("recover", str(tmp_path / "t.db"), shelf) == 0
    await assert_is(str(tmp_path / "t.db"), wanted)


async def test_what_an_interrupted_backup_put_is_used_by_the_next(tmp_path):
    url, shelf, _ = await source(tmp_path)
    done_until("full", url, shelf, "backup:manifest:1")
    there = {f: f.stat().st_mtime_ns for f in (tmp_path / "place").rglob("*.zst")}
    assert len(there) > 3
    assert done_until("full", url, shelf) == 0
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "place").rglob("*.zst")} == there
    (made,) = await quire.backups(shelf)
    assert made.added_bytes == 0


@pytest.mark.parametrize("point", RECOVERING)
async def test_death_while_one_is_brought_back(tmp_path, point):
    url, shelf, wanted = await source(tmp_path)
    assert done_until("backup", url, shelf) == 0
    there = str(tmp_path / "t.db")
    assert done_until("recover", there, shelf, point) == -signal.SIGKILL
    with pytest.raises(StorageUnavailable, match="being put back"):
        await quire.open(there)
    assert done_until("recover", there, shelf) == 0
    await assert_is(there, wanted)


async def replaced(folder):
    """A store with a backup of how it was, and much that happened since."""
    url, shelf, old = await source(folder)
    assert done_until("backup", url, shelf) == 0
    async with quire.open(url) as store:
        await do(store, "many", "c", 1)
        await store.create("since", {"n": 1})
        await store.put_blob(b"since")
        position = (await quire.backups(shelf))[0].position
        return url, shelf, old, await everything(store.engine.backend), position


async def assert_nothing_is_lost(url, shelf, old, new):
    """The store is as it was before, or as it is to be; or it cannot be opened, and the place has both."""
    try:
        async with quire.open(url) as store:
            heads = (await everything(store.engine.backend))["heads"]
        assert heads in (old["heads"], new["heads"])
    except StorageUnavailable:
        await assert_whole(shelf)
        assert len(await quire.backups(shelf)) >= 2  # one more where it died between saving and saying so


@pytest.mark.parametrize("point", REPLACING)
async def test_death_while_a_store_is_replaced(tmp_path, point):
    url, shelf, old, new, position = await replaced(tmp_path)
    assert done_until("replace", url, shelf, point, at=position) == -signal.SIGKILL
    await assert_nothing_is_lost(url, shelf, old, new)
    assert done_until("replace", url, shelf, at=position) == 0
    async with quire.open(url) as store:
        assert (await everything(store.engine.backend))["heads"] == old["heads"]
        assert (await store.verify()).ok
    last = (await quire.backups(shelf))[-1]
    await quire.recover(shelf, str(tmp_path / "new.db"), number=last.number)
    await assert_is(str(tmp_path / "new.db"), new)


async def killed_at_random(folder, seed):
    chance = random.Random(seed)
    url, shelf, old, new, position = await replaced(folder)
    mine = (await quire.backups(shelf))[0].store
    for _ in range(4):
        if done_until("replace", url, shelf, after_s=chance.uniform(0.05, 0.5), at=position) == 0:
            break
        await assert_nothing_is_lost(url, shelf, old, new)
    done_until(
        "backup" if chance.random() < 0.5 else "full", str(folder / "x.db"), shelf, after_s=chance.uniform(0, 0.4)
    )
    assert done_until("replace", url, shelf, at=position) in (0, 1)
    await quire.recover(shelf, str(folder / "old.db"), of=mine, number=1)  # by now the place may have another store's
    await assert_is(str(folder / "old.db"), old)
    await quire.recover(shelf, str(folder / "new.db"), of=mine, number=2)
    await assert_is(str(folder / "new.db"), new)


@pytest.mark.parametrize("seed", range(10))
async def test_death_at_any_moment_of_a_replacement(tmp_path, seed):
    await killed_at_random(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10, 200))
async def test_death_at_any_moment_of_many_replacements(tmp_path, seed):
    await killed_at_random(tmp_path, seed)


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_death_while_old_ones_are_removed(tmp_path, number):
    url, shelf, _ = await source(tmp_path)
    for what in ("full", "backup", "full", "full"):
        async with quire.open(url) as store:
            await do(store, "many", "a", 1)
        assert done_until(what, url, shelf) == 0
    assert done_until("prune", url, shelf, f"prune:manifest:{number}") == -signal.SIGKILL
    await assert_whole(shelf)
    assert done_until("prune", url, shelf) == 0
    assert [b.number for b in await quire.backups(shelf)] == [4]
    await assert_whole(shelf)
    left = {f.parts[-4] for f in (tmp_path / "place" / "backups" / "objects").rglob("*.zst")}
    assert left == {f"{4:012d}"}


async def test_control_a_recovery_without_its_mark_is_caught(tmp_path):
    """Were the mark not looked at, half a store would be opened as a whole one."""
    from quire.storage.base import RECOVERING as MARK
    from quire.storage.base import CellWrite, Item
    from quire.storage.open import open_bare

    url, shelf, wanted = await source(tmp_path)
    assert done_until("backup", url, shelf) == 0
    there = str(tmp_path / "t.db")
    assert done_until("recover", there, shelf, "load:committed:2") == -signal.SIGKILL
    bare, *_ = await open_bare(there, namespace="default")
    cell = await bare.cell(MARK)
    await bare.commit([Item(cells=(CellWrite(MARK, cell.value, None),))])
    await bare.close()
    with pytest.raises(AssertionError):
        await assert_is(there, wanted)
