"""Mending: what is damaged comes back from backups where it fits, what is derived is dropped, and nothing gets worse."""

import random
from pathlib import Path

import apsw
import msgspec
import pytest
from tests.faults.test_bitflips import everything, make
from tests.moving.sources import do, filled, trim
from tests.moving.sources import everything as all_of

import quire
from quire.core import keyframes
from quire.engine.backing import mending
from quire.engine.backing.finding import Finder
from quire.engine.verify import Report
from quire.errors import CorruptRecord, NotFound, QuireError
from quire.model import Head

KEY = bytes(range(32))
HOW = [{}, {"compression": "zstd"}, {"encryption_key": KEY}]


def sql(path, statement, *values):
    with apsw.Connection(str(path)) as db:
        return list(db.execute(statement, values))


async def kept(tmp_path, **how):
    """A store with a backup of it; return their names and what it holds."""
    url, shelf = str(tmp_path / "s.db"), f"file:///{tmp_path}/place"
    async with filled(url, **how) as store:
        await trim(store, "b", 5)
        await store.backup(shelf)
        await do(store, "many", "a", 1)
        await do(store, "snapshot", "a", 9)
        await store.backup(shelf)
        return url, shelf, await all_of(store.engine.backend)


async def mended(url, shelf, **how):
    async with quire.open(url, **how) as store:
        done = await store.repair(shelf)
        report = await store.verify()
        assert report == done.after
        return done, await all_of(store.engine.backend)


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_a_sound_store_stays_as_it_is(tmp_path, how):
    url, shelf, _ = await kept(tmp_path, **how)
    before = Path(url).read_bytes()
    done, _ = await mended(url, shelf, **how)
    assert done.ok and not (done.keyframes or done.records or done.blobs)
    assert Path(url).read_bytes() == before


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_bodies_come_back(tmp_path, how):
    url, shelf, wanted = await kept(tmp_path, **how)
    numbers = [p for (p,) in sql(url, "select position from records order by position")][::9]
    for number in numbers:
        sql(url, "update records set body = 'damaged' where position = ?", number)
    sql(url, "update records set body = substr(body, 1, length(body) - 1) where position = ?", numbers[-1] - 1)
    done, found = await mended(url, shelf, **how)
    assert done.ok and len(done.records) > len(numbers), done.after.problems
    assert found == wanted
    async with quire.open(url, **how) as store:
        assert (await store.repair()).before.ok


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_blobs_and_keyframes_come_back_or_go(tmp_path, how):
    url, shelf, wanted = await kept(tmp_path, **how)
    sql(url, "update blobs set body = zeroblob(length(body))")
    sql(url, "update keyframes set body = zeroblob(length(body))")
    done, found = await mended(url, shelf, **how)
    assert done.ok and done.blobs and done.keyframes, done.after.problems
    assert (found["blobs"], found["records"], found["cells"]) == (wanted["blobs"], wanted["records"], wanted["cells"])


async def test_a_snapshot_whose_blob_is_gone_comes_back(tmp_path):
    url, shelf, wanted = await kept(tmp_path)
    sql(url, "delete from blobs where name in (select name from blobs)")
    async with quire.open(url) as store:
        label = next(c for c in await store.workflow("a").checkpoints() if c.blob)
        assert (await store.engine.backend.blob(label.blob)) is None
    sql(url, "update records set body = 'damaged' where position = 1")  # what makes verify look
    done, found = await mended(url, shelf)
    assert label.blob in done.blobs and done.ok
    assert found["blobs"][label.blob] == wanted["blobs"][label.blob]


async def test_without_a_backup_what_is_derived_is_dropped_and_the_rest_is_said(tmp_path):
    url, shelf, _ = await kept(tmp_path)
    sql(url, "update keyframes set body = zeroblob(length(body)) where version > 40")
    done, _ = await mended(url, None)
    assert done.ok and done.keyframes and not done.records
    sql(url, "update records set body = 'damaged' where position = 3")
    done, _ = await mended(url, None)
    assert not done.ok and len(done.after.problems) == len(done.before.problems)
    done, _ = await mended(url, shelf)
    assert done.ok


async def test_a_keyframe_that_differs_from_the_log_is_dropped(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        made = [await wf.inc("/n") for _ in range(5)]
        wrong = keyframes.make(Head("workflows/w", 3, made[1].record.chain, "change"), {"n": 99})
        await store.engine.backend.put_keyframe(wrong)
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert not (await store.verify()).ok
        done = await store.repair()
        assert done.ok and done.keyframes == ["workflows/w@3"]
        assert await store.workflow("w").get("/n", version=3) == 2


async def test_what_was_redacted_since_does_not_come_back(tmp_path):
    url, shelf = str(tmp_path / "s.db"), f"file:///{tmp_path}/place"
    async with quire.open(url) as store:
        wf = await store.create("w", {"pin": "hunter2"})
        await wf.set("/n", 1)
        await store.backup(shelf)
        await wf.redact(text="hunter2")
    sql(url, "update records set body = 'damaged' where version = 1 and position = 1")
    done, _ = await mended(url, shelf)
    assert not done.ok and not done.records
    assert b"hunter2" not in Path(url).read_bytes()


async def test_what_cannot_be_mended_is_said_and_left_alone(tmp_path):
    url, shelf, _ = await kept(tmp_path)
    sql(url, "update records set author = 'forged' where position = 5")
    sql(url, "update records set chain = zeroblob(32) where position = 50")
    before = sql(url, "select * from records")
    done, _ = await mended(url, shelf)
    assert not done.ok and sql(url, "select * from records") == before
    await quire.recover(shelf, url, replace=True, unsaved=True)
    async with quire.open(url) as store:
        assert (await store.verify()).ok


async def test_a_place_of_another_store_is_refused(tmp_path):
    for name in ("s", "t"):
        async with quire.open(str(tmp_path / f"{name}.db")) as store:
            await store.create(name, {})
            await store.backup(f"file:///{tmp_path}/place-{name}")
    async with quire.open(str(tmp_path / "s.db")) as store:
        with pytest.raises(NotFound, match="no backup of this store"):
            await store.repair(f"file:///{tmp_path}/place-t")


class Blind:
    """Looks at chains where records are damaged, and not at those of what is put back."""

    check, decode = staticmethod(mending.record.check), staticmethod(mending.record.decode)

    @staticmethod
    def expected_chain(there, _):
        return there.chain


@pytest.mark.parametrize("rest", [True, False])
async def test_the_keyframe_that_a_log_begins_with_comes_back_where_it_is_gone(tmp_path, rest):
    url, shelf, _ = await kept(tmp_path)
    ours = "stream = (SELECT id FROM streams WHERE name = 'workflows/b')"
    ((first,),) = sql(url, f"SELECT min(version) FROM records WHERE {ours}")
    sql(url, f"DELETE FROM keyframes WHERE {ours}" + (" AND version = ?" if rest else ""), *([first] if rest else []))
    async with quire.open(url) as store:
        assert any("workflows/b" in said for said in (await store.verify()).problems)
        without = await store.repair()  # no backup: it stays as it is, and says so
        assert any("workflows/b" in said for said in without.after.problems)
        done = await store.repair(shelf)
        assert done.ok, done.after.problems
        assert done.keyframes == [f"workflows/b@{first}"]
        assert await store.workflow("b").state(first)


async def unsound():
    return Report(0, 0, 0, 0, ["something"])


async def flips(tmp_path, count, seed):
    """Flip bits one at a time, mend, and compare; return how many were mended, how many not."""
    original, shelf = str(tmp_path / "s.db"), f"file:///{tmp_path}/place"
    await make(original)
    async with quire.open(original) as store:
        await store.backup(shelf)
        sound = await everything(store)
    data = Path(original).read_bytes()
    chance, tally = random.Random(seed), {"sound": 0, "mended": 0, "left": 0, "refused": 0}
    for bit in chance.sample(range(len(data) * 8), count):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        place = tmp_path / "flipped.db"
        place.write_bytes(broken)
        try:
            async with quire.open(str(place)) as store:
                before = await store.verify()
                done = await store.repair(shelf)
                after = await store.verify()
                wrote = done.records or done.keyframes or done.blobs
                cut_off = any("is damaged (" in said for said in before.problems)  # what lies behind was not counted
                assert cut_off or len(after.problems) <= len(before.problems) or not wrote, "it was made worse"
                if after.ok:
                    assert await everything(store) == sound, "sound, but not what it was"
                tally["sound" if before.ok else "mended" if done.ok else "left"] += 1
        except QuireError:
            tally["refused"] += 1
        for file in tmp_path.glob("flipped.db*"):
            file.unlink()
    return tally


@pytest.mark.timeout(300)
async def test_no_flipped_bit_is_made_worse(tmp_path):
    tally = await flips(tmp_path, 200, seed=5)
    print(tally)
    assert tally["mended"] >= 3, tally


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(10))
async def test_no_flipped_bit_is_made_worse_of_many(tmp_path, seed):
    assert (await flips(tmp_path, 2000, seed))["mended"] > 50


async def test_control_a_mender_that_does_not_look_whether_it_fits_is_caught(tmp_path, monkeypatch):
    """Bodies that are not those that were sealed are not put back; a mender that did would leave the store unsound."""
    url, shelf, _ = await kept(tmp_path)
    sql(url, "update records set body = 'damaged' where position = 7")
    found = Finder.records

    async def forged(self, asked):
        async for there, parent in found(self, asked):
            yield msgspec.structs.replace(there, body=b'[["set",["forged"],1]]'), parent

    monkeypatch.setattr(Finder, "records", forged)
    done, _ = await mended(url, shelf)
    assert not done.ok and not done.records
    with monkeypatch.context() as patch:
        patch.setattr(mending, "record", Blind)
        async with quire.open(url) as store:
            patch.setattr(mending, "verify", lambda *_: unsound())
            assert (await store.repair(shelf)).records
    async with quire.open(url) as store:
        assert not (await store.verify()).ok


async def test_what_cannot_be_opened_is_recovered_beside_it_when_it_is_moved_aside(tmp_path):
    url, shelf, _ = await kept(tmp_path)
    with open(url, "r+b") as file:
        file.truncate(8192)
    with pytest.raises(CorruptRecord) as raised:
        await quire.recover(shelf, url, replace=True, unsaved=True)
    assert "move its file or folder aside" in " ".join(raised.value.__notes__)
    for name in ("", "-wal", "-shm"):
        if Path(url + name).exists():
            Path(url + name).rename(url + name + ".aside")
    await quire.recover(shelf, url)
    async with quire.open(url) as store:
        assert (await store.verify()).ok and await store.workflows()
