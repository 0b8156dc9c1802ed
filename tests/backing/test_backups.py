"""Backups of every kind of store, whole and incremental, and what comes back of them: everything, byte for byte."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tests.moving.sources import NAMES, do, everything, filled, trim

import quire
import quire.config
from quire.api.backups import is_place
from quire.engine.backing.taking import _Taking
from quire.engine.clock import FakeClock
from quire.engine.watch import Cursor
from quire.errors import (
    AlreadyExists,
    CorruptRecord,
    Denied,
    Invalid,
    InvalidKey,
    NotFound,
    StorageUnavailable,
    Unsupported,
)
from quire.storage.memory import open_memory
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer
from quire.testing.servers.s3 import S3Server

EMBEDDED = ("memory", "sqlite", "files", "rocksdb")
SERVERS = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
KEY = bytes(range(32))
BOTH = {"encryption_key": KEY, "compression": "zstd"}


def place(kind, folder, name):
    if kind in SERVERS:
        return shared(SERVERS[kind]).place(f"{folder}/{name}")
    paths = {
        "memory": f"memory:{folder.name}-{name}",
        "sqlite": f"{folder}/{name}.db",
        "files": f"file:///{folder}/{name}-files",
        "rocksdb": f"rocksdb:///{folder}/{name}-rocks",
    }
    return paths[kind]


async def assert_back(wanted, url, **how):
    """The store at a URL holds what `everything` said, and is sound. Keyframes are derived: they are made again."""
    async with quire.open(url, **how) as store:
        found = await everything(store.engine.backend)
        for part in ("records", "read", "heads", "blobs", "cells", "places"):
            ours, theirs = wanted[part], found[part]
            if part == "cells":
                ours, theirs = (
                    {n: v for n, v in some.items() if not n.startswith("quire:")} for some in (ours, theirs)
                )
            assert theirs == ours, part
        report = await store.verify()
        assert report.ok, report.problems
        assert not await store.engine.backend.cells("copies/backup-")


async def there_and_back(folder, source, target, **how):
    shelf = f"file:///{folder}/place"
    async with filled(place(source, folder, "from"), **how) as store:
        first = await store.backup(shelf)
        await do(store, "many", "a", 1)
        await do(store, "snapshot", "a", 9)
        second = await store.backup(shelf)
        assert (first.kind, second.kind, second.series) == ("full", "incremental", first.number)
        assert second.versions < first.versions and second.added_bytes < first.added_bytes
        assert await store.backup(shelf) == second, "nothing changed, so there is nothing to add"
        wanted = await everything(store.engine.backend)
    key = {k: v for k, v in how.items() if k == "encryption_key"}
    if target == "memory":  # gone with its last handle
        holder = await open_memory(f"{folder.name}-to", namespace="default")
    done = await quire.recover(shelf, place(target, folder, "to"), **key)
    assert (done.number, done.versions, done.before) == (2, first.versions + second.versions, None)
    await assert_back(wanted, place(target, folder, "to"), **how)
    if target == "memory":
        await holder.close()


@pytest.mark.parametrize(("source", "target"), [*zip(EMBEDDED, (*EMBEDDED[1:], EMBEDDED[0]), strict=True)])
async def test_every_embedded_store_comes_back_in_another(tmp_path, source, target):
    await there_and_back(tmp_path, source, target)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", SERVERS)
async def test_servers_are_backed_up_and_brought_back(tmp_path, kind):
    await there_and_back(tmp_path, kind, "sqlite")
    (tmp_path / "other").mkdir()
    await there_and_back(tmp_path / "other", "sqlite", kind)


@pytest.mark.parametrize("how", [{"compression": "zstd"}, {"encryption_key": KEY}, BOTH], ids=lambda how: "+".join(how))
async def test_what_is_sealed_is_kept_sealed_and_comes_back(tmp_path, how):
    await there_and_back(tmp_path, "sqlite", "files", **how)
    kept = b"".join(f.read_bytes() for f in (tmp_path / "place").rglob("*") if f.is_file())
    if "encryption_key" in how:
        assert b"sk-hunter2" not in kept
        assert (await quire.backups(f"{tmp_path}/place"))[0].encrypted
        assert (await quire.check_backups(f"{tmp_path}/place")).ok, "checking needs no key"
        with pytest.raises(Denied, match="key"):
            await quire.recover(f"{tmp_path}/place", str(tmp_path / "x.db"))
        with pytest.raises(Denied, match="key"):
            await quire.recover(f"{tmp_path}/place", str(tmp_path / "x.db"), encryption_key=bytes(32))
        with pytest.raises(Invalid, match="bound to that name"):
            await quire.recover(f"{tmp_path}/place", str(tmp_path / "x.db"), namespace="other", encryption_key=KEY)


async def test_a_bucket_of_s3_keeps_them(tmp_path):
    with S3Server() as server:
        shelf = server.url("backups", "mine")
        async with filled(str(tmp_path / "s.db")) as store:
            assert (await store.backup(shelf)).kind == "full"
            await do(store, "many", "a", 1)
            assert (await store.backup(shelf)).kind == "incremental"
            wanted = await everything(store.engine.backend)
        assert (await quire.check_backups(shelf)).ok
        await quire.recover(shelf, str(tmp_path / "t.db"))
        await assert_back(wanted, str(tmp_path / "t.db"))


async def test_an_archived_namespace_comes_back_with_what_its_archive_has(tmp_path):
    from quire.storage.open import open_backend

    url, old = str(tmp_path / "s.db"), str(tmp_path / "old")
    async with quire.open(url, settings=quire.Settings(keyframe_changes_min=4, keyframe_bytes_min=0)) as store:
        wf = await store.create("w", {"n": 0, "pad": "x" * 100})
        for n in range(1, 40):
            await wf.set("/n", n)
        state = await store.engine.state_at("workflows/w", 31)
    backend = await open_backend(url, namespace="default", archive=old)
    from quire.core import keyframes
    from quire.model import Head

    (record,) = await backend.read("workflows/w", after=30, upto=31)
    await backend.put_keyframe(keyframes.make(Head("workflows/w", 31, record.chain), state))
    assert await backend.shelve("workflows/w", 30) == 30
    await backend.close()
    async with quire.open(url) as store:
        await store.backup(f"file:///{tmp_path}/place")
        wanted = [(v.number, v.checksum) for v in await store.workflow("w").history()]
    await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert [(v.number, v.checksum) for v in await store.workflow("w").history()] == wanted
        assert await store.workflow("w").get("/n", version=11) == 10
        assert (await store.verify()).ok
    async with quire.open(url) as store:
        assert await store.workflow("w").get("/n", version=11) == 10, "the archive was not touched"


@pytest.mark.parametrize("how", [{}, {"encryption_key": KEY}], ids=str)
async def test_a_lost_store_is_rebuilt_from_backup_and_archive(tmp_path, how):
    """What was swept into the archive after the backup goes on from it; other histories and damage do not come in."""
    url, shelf = str(tmp_path / "s.db"), f"file:///{tmp_path}/place"
    rules = quire.config.Retention(versions=5, every_s=0)
    async with quire.open(url, archive=f"file:///{tmp_path}/old", retention=rules, **how) as store:
        wf, other = await store.create("w", {"n": 0}), await store.create("other", {"n": 0})
        for n in range(1, 21):
            await wf.set("/n", n)
        await store.backup(shelf)
        for n in range(21, 61):
            await wf.set("/n", n)
            await other.set("/n", n)
        await store.sweep()
        wanted = {v.number: v.checksum for v in await wf.history()}
    (tmp_path / "s.db").unlink()
    done = await quire.recover(shelf, url, extend=True, **how)
    assert done.extended > 30
    async with quire.open(url, **how) as store:
        found = {v.number: v.checksum for v in await store.workflow("w").history()}
        assert found == {n: wanted[n] for n in found} and len(found) >= 55
        assert await store.workflow("w").get("/n") == max(found) - 1
        report = await store.verify()
        assert report.ok, report.problems
        await store.workflow("w").set("/n", "on")
    with pytest.raises(Invalid, match="point in time"):
        await quire.recover(shelf, url, extend=True, at=1)
    victim = next(f for f in (tmp_path / "old").rglob("*.zst"))
    data = victim.read_bytes()
    victim.write_bytes(data[:-1])
    with pytest.raises(CorruptRecord, match=victim.name):
        await quire.recover(shelf, str(tmp_path / "t.db"), extend=True, **how)
    victim.write_bytes(data)
    await quire.recover(shelf, str(tmp_path / "t.db"), extend=True, **how)


async def test_without_an_archive_there_is_nothing_to_go_on_with(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.create("w", {})
        await store.backup(f"file:///{tmp_path}/place")
    with pytest.raises(Invalid, match="needs an archive"):
        await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"), extend=True)


# what a backup has


async def test_writers_go_on_and_what_is_kept_is_a_prefix_of_the_log(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        flows = [await store.create(f"w{i}", {"n": 0}) for i in range(5)]
        done = False

        async def write(wf):
            while not done:
                await wf.inc("/n", idempotency_key=f"{wf.id}-{(await wf.version()).number}")

        async with asyncio.TaskGroup() as group:
            for wf in flows:
                group.create_task(write(wf))
            kept = [await store.backup(shelf) for _ in range(6)]
            done = True
        assert kept[0].position < kept[-1].position
        feed = await store.engine.backend.feed(limit=1_000_000)
    for number in (1, 4, 6):
        url = str(tmp_path / f"t{number}.db")
        back = await quire.recover(shelf, url, number=number)
        async with quire.open(url) as store:
            found = await store.engine.backend.feed(limit=1_000_000)
            assert [(r.stream, r.version, r.chain) for r in found] == [
                (r.stream, r.version, r.chain) for r in feed if r.position <= back.position
            ]
            for wf in map(store.workflow, ("w0", "w4")):
                number_now = (await wf.version()).number
                for cell in await store.engine.backend.cells(f"idempotency/workflows/{wf.id}/"):
                    assert int(cell.value.rpartition(b" ")[2]) <= number_now, (
                        "a key tells of a version that is not there"
                    )


async def test_an_idempotency_key_comes_back_with_its_version(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        made = await wf.inc("/n", idempotency_key="once")
        await store.backup(f"file:///{tmp_path}/place")
    await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        again = await store.workflow("w").inc("/n", idempotency_key="once")
        assert (again.number, again.checksum) == (made.number, made.checksum)
        assert await store.workflow("w").get("/n") == 1


async def test_a_key_used_again_while_a_backup_is_taken_comes_back_with_its_new_version(tmp_path, monkeypatch):
    listed = _Taking._cells
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        await wf.inc("/n", idempotency_key="once")

        async def then_written(taking):
            cells = await listed(taking)
            await wf.restore(1)
            await wf.inc("/n", idempotency_key="once")
            return cells

        monkeypatch.setattr(_Taking, "_cells", then_written)
        await store.backup(f"file:///{tmp_path}/place")
    await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert (await store.workflow("w").inc("/n", idempotency_key="once")).number == 4
        assert await store.workflow("w").get("/n") == 1


async def test_leases_stay_behind(tmp_path):
    from quire.storage.base import CellWrite

    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.create("w", {})
        await store.engine.committer.submit((), (CellWrite("leases/triggers/t", None, b"me", 100_000),))
        await store.backup(f"file:///{tmp_path}/place")
    await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert not await store.engine.backend.cells("leases/")


async def test_what_was_redacted_makes_the_next_one_full(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"pin": "hunter2", "n": 0})
        await store.backup(shelf)
        await wf.redact(text="hunter2")
        second = await store.backup(shelf)
        assert second.kind == "full" and "redacted" in second.why
        await wf.inc("/n")
        assert (await store.backup(shelf)).kind == "incremental"
    await quire.recover(shelf, str(tmp_path / "t.db"))
    assert b"hunter2" not in (tmp_path / "t.db").read_bytes()
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert (await store.verify()).ok
    await quire.recover(shelf, str(tmp_path / "old.db"), number=1)
    async with quire.open(str(tmp_path / "old.db")) as store:
        assert await store.workflow("w").get("/pin") == "hunter2", "old backups have it still, and that is said"
    before = (await quire.backups(shelf))[1]
    await quire.recover(shelf, str(tmp_path / "was.db"), number=2, at=1)
    async with quire.open(str(tmp_path / "was.db")) as store:
        assert await store.workflow("w").get("/pin") != "hunter2", "what is redacted stays so, whatever the moment"
        report = await store.verify()
        assert report.ok, report.problems
    assert before.kind == "full"


async def test_a_redaction_that_was_interrupted_makes_the_next_one_full_too(tmp_path, monkeypatch):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"pin": "hunter2", "n": 0})
        rewrite = store.engine.backend.rewrite

        async def fails(records):
            raise StorageUnavailable("injected")

        monkeypatch.setattr(store.engine.backend, "rewrite", fails)
        with pytest.raises(StorageUnavailable):
            await wf.redact(text="hunter2")
        monkeypatch.setattr(store.engine.backend, "rewrite", rewrite)
        await store.backup(shelf)
        await wf.redact(text="hunter2")
        last = await store.backup(shelf)
        assert last.kind == "full"
    await quire.recover(shelf, str(tmp_path / "t.db"))
    assert b"hunter2" not in (tmp_path / "t.db").read_bytes()


@pytest.mark.parametrize("newer", [0, 10])
async def test_a_dropped_stream_is_gone_and_one_begun_anew_is_the_new_one(tmp_path, newer):
    """newer: whether the backup remembers the streams as the newest ones; then it is made anew, to be sure."""
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        for name in ("gone", "anew", *(f"w{i}" for i in range(newer))):
            await (await store.create(name, {"n": 1})).inc("/n")
        first = await store.backup(shelf)
        for name in ("gone", "anew"):
            await store.engine.backend.drop(f"workflows/{name}")
    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.create("other", {})
        await store.create("anew", {"n": 100})
        last = await store.backup(shelf)
        assert last.kind == ("incremental" if newer else "full")
        wanted = await everything(store.engine.backend)
    await quire.recover(shelf, str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        found = await everything(store.engine.backend)
        assert found["heads"] == wanted["heads"] and found["records"] == wanted["records"]
    if newer:
        await quire.recover(shelf, str(tmp_path / "o.db"), at=first.position + 1)
        async with quire.open(str(tmp_path / "o.db")) as store:
            assert await store.workflow("anew").get("/n") == 2
            assert await store.workflow("gone").get("/n") == 2, "dropped between two backups: as if at the second"


async def test_a_store_that_went_back_is_backed_up_anew(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        await wf.inc("/n")
        await store.backup(str(tmp_path / "copy.db"))
        await store.backup(shelf)
        for _ in range(10):
            await wf.inc("/n")
        await store.backup(shelf)
    async with quire.open(str(tmp_path / "copy.db")) as store:  # the same store, as it was before
        for _ in range(12):
            await store.workflow("w").inc("/n", 100)
        found = await store.backup(shelf)
        assert found.kind == "full"
        wanted = await everything(store.engine.backend)
    await quire.recover(shelf, str(tmp_path / "t.db"), of=found.store, number=found.number)
    await assert_back(wanted, str(tmp_path / "t.db"))


@pytest.mark.parametrize("back", [1, 6])
async def test_trimming_between_and_during_backups_leaves_whole_streams(tmp_path, back):
    shelf = f"file:///{tmp_path}/place"
    async with filled(str(tmp_path / "s.db")) as store:
        await store.backup(shelf)
        for _ in range(3):
            for name in NAMES:
                await do(store, "many", name, 0)
            await trim(store, "c", back)
            taking = asyncio.ensure_future(store.backup(shelf))
            for name in NAMES:
                await do(store, "many", name, 1)
                await trim(store, name, back)
            await taking
        await store.backup(shelf, full=True)
        wanted = await everything(store.engine.backend)
    await quire.recover(shelf, str(tmp_path / "t.db"))
    await assert_back(wanted, str(tmp_path / "t.db"))
    for number in range(1, 5):
        url = str(tmp_path / f"t{number}.db")
        await quire.recover(shelf, url, number=number)
        async with quire.open(url) as store:
            report = await store.verify()
            assert report.ok, report.problems


# back to a point in time


async def test_every_position_can_be_gone_back_to(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    clock, states = FakeClock(), {}
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(1, 10):
            await clock.wind(1)
            if n % 3 == 0:
                await store.backup(shelf)
            made = await wf.set("/n", n)
            states[made.position] = (n, made.time)
        await store.backup(shelf)
    for position, (n, time) in states.items():
        for at in (position, time, time + timedelta(milliseconds=999), time.isoformat(), str(position)):
            url = f"memory:{tmp_path.name}-{n}"
            holder = await open_memory(url.removeprefix("memory:"), namespace="default")
            assert (await quire.recover(shelf, url, at=at)).position == position
            async with quire.open(url) as store:
                assert await store.workflow("w").get("/n") == n
            await holder.close()
    with pytest.raises(Invalid, match="after the end"):
        await quire.recover(shelf, str(tmp_path / "x.db"), at=10_000)
    for wrong in (-1, 1.5, "yesterday", True):
        with pytest.raises(Invalid):
            await quire.recover(shelf, str(tmp_path / "x.db"), at=wrong)


async def test_a_moment_never_cuts_a_transaction_in_two_and_a_position_says_that_it_may(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    clock = FakeClock()
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        one, two = await store.create("one", {"n": 0}), await store.create("two", {"n": 0})
        await clock.wind(1)
        made = await store.transact([one.change({"n": 1}), two.change({"n": 1})])
        await store.backup(shelf)
    cut = await quire.recover(shelf, str(tmp_path / "p.db"), at=made[0].position, dry_run=True)
    assert cut.follows == 1
    await quire.recover(shelf, str(tmp_path / "t.db"), at=made[0].time)
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert [await store.workflow(n).get("/n") for n in ("one", "two")] == [1, 1]
    await quire.recover(shelf, str(tmp_path / "u.db"), at=made[0].time - timedelta(milliseconds=1))
    async with quire.open(str(tmp_path / "u.db")) as store:
        assert [await store.workflow(n).get("/n") for n in ("one", "two")] == [0, 0]


async def test_no_cell_is_ahead_of_the_log_it_comes_back_with(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        wf = await store.create("w", {"n": 0})
        cursor = Cursor(store.engine, "workflows/w/reader")
        await cursor.load(0)
        for n in range(1, 7):
            await wf.inc("/n")
            await cursor.ack(n + 1)
            await cursor.save()
            await store.backup(shelf)
    for at in range(1, 8):
        url = str(tmp_path / f"{at}.db")
        await quire.recover(shelf, url, at=at)
        async with quire.open(url) as store:
            cell = await store.engine.backend.cell("cursors/workflows/w/reader")
            assert cell is None or int(cell.value) <= (await store.workflow("w").version()).number


# into which store


async def test_a_dry_run_reads_everything_and_changes_nothing(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with filled(str(tmp_path / "s.db")) as store:
        await store.backup(shelf)
    for url in ("t.db", f"sqlite:///{tmp_path}/u.db", f"file:///{tmp_path}/f", f"rocksdb:///{tmp_path}/r"):
        await quire.recover(shelf, str(tmp_path / url) if url == "t.db" else url, dry_run=True)
    assert not [n for n in ("t.db", "u.db", "f", "r") if (tmp_path / n).exists()]
    async with quire.open(str(tmp_path / "there.db")) as store:
        await store.create("mine", {})
        long = await store.create("a", {})
        for n in range(300):
            await long.set("/n", n)
    before = (tmp_path / "there.db").read_bytes()
    said = await quire.recover(shelf, str(tmp_path / "there.db"), dry_run=True)
    assert said.gone == ["mine"] and said.back["a"][0] == 301 and said.dry_run
    assert (tmp_path / "there.db").read_bytes() == before
    real = await quire.recover(shelf, str(tmp_path / "t.db"))
    assert (said.streams, said.versions, said.blobs, said.cells) == (
        real.streams,
        real.versions,
        real.blobs,
        real.cells,
    )
    assert {f.name for f in tmp_path.iterdir()} >= {"t.db"}


async def test_what_is_replaced_is_backed_up_before(tmp_path):
    shelf, url = f"file:///{tmp_path}/place", str(tmp_path / "s.db")
    async with filled(url) as store:
        good = await store.backup(shelf)
        wanted = await everything(store.engine.backend)
        await do(store, "many", "a", 0)
        await store.create("lost", {"n": 1})
        await store.put_blob(b"also lost")
        bad = await everything(store.engine.backend)
    with pytest.raises(AlreadyExists, match="holds something"):
        await quire.recover(shelf, url)
    done = await quire.recover(shelf, url, replace=True)
    assert done.number == good.number and done.gone == ["lost"] and "a" in done.back
    await assert_back(wanted, url)
    saved = [b for b in await quire.backups(shelf) if b.number == done.before]
    assert saved[0].why == "taken before it was replaced" and done.before_store == good.store
    again = await quire.recover(shelf, url, number=done.before, replace=True)
    assert again.before is not None
    await assert_back(bad, url)
    async with quire.open(url) as store:
        await store.workflow("lost").inc("/n")
        assert (await store.backup(shelf)).kind == "full", "positions are others now"


async def test_a_store_that_is_being_put_back_cannot_be_opened(tmp_path, monkeypatch):
    from quire.engine.backing import recovering

    shelf, url = f"file:///{tmp_path}/place", str(tmp_path / "t.db")
    async with filled(str(tmp_path / "s.db")) as store:
        await store.backup(shelf)
        await store.backup(shelf, full=True)
        wanted = await everything(store.engine.backend)

    async def dies(*_):
        raise StorageUnavailable("injected")

    with monkeypatch.context() as patch:
        patch.setattr(recovering.Recovery, "_cells", dies)
        with pytest.raises(StorageUnavailable, match="injected"):
            await quire.recover(shelf, url)
    with pytest.raises(StorageUnavailable, match="being put back"):
        await quire.open(url)
    with pytest.raises(AlreadyExists, match="not finished"):
        await quire.recover(shelf, url, number=1)
    await quire.recover(shelf, url)
    await assert_back(wanted, url)


async def test_what_cannot_be_backed_up_is_replaced_only_when_told_so(tmp_path):
    shelf, url = f"file:///{tmp_path}/place", str(tmp_path / "s.db")
    async with quire.open(url, encryption_key=KEY) as store:
        await store.create("w", {"n": 1})
        await store.backup(shelf)
        wanted = await everything(store.engine.backend)
        cell = await store.engine.backend.inner.cell("quire:keyring")
        from quire.storage.base import CellWrite, Item

        await store.engine.backend.inner.commit([Item(cells=(CellWrite("quire:keyring", cell.value, b"damaged"),))])
    with pytest.raises(CorruptRecord) as caught:
        await quire.recover(shelf, url, replace=True, encryption_key=KEY)
    assert any("--unsaved" in note for note in caught.value.__notes__)
    await quire.recover(shelf, url, replace=True, unsaved=True, encryption_key=KEY)
    await assert_back(wanted, url, encryption_key=KEY)


async def test_several_stores_share_a_place_and_are_told_apart(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    ids = []
    for name in ("x", "y"):
        async with quire.open(str(tmp_path / f"{name}.db")) as store:
            await store.create(name, {})
            ids.append((await store.backup(shelf)).store)
    async with quire.open(str(tmp_path / "x.db"), namespace="tenant") as store:
        await store.create("z", {})
        ids.append((await store.backup(shelf)).store)
    assert len(set(ids)) == 3
    assert [b.store for b in await quire.backups(shelf)] == sorted(ids)
    assert [b.store for b in await quire.backups(shelf, of=ids[1])] == [ids[1]]
    with pytest.raises(Invalid, match="3 stores"):
        await quire.recover(shelf, str(tmp_path / "t.db"))
    with pytest.raises(Invalid, match="2 stores"):
        await quire.recover(shelf, str(tmp_path / "t.db"), namespace="default")
    await quire.recover(shelf, str(tmp_path / "t.db"), of=ids[1][:8])
    await quire.recover(shelf, str(tmp_path / "t.db"), of=ids[2])
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert await store.workflows() == ["y"]
    async with quire.open(str(tmp_path / "t.db"), namespace="tenant") as store:
        assert await store.workflows() == ["z"]
    with pytest.raises(NotFound):
        await quire.recover(shelf, str(tmp_path / "t.db"), of="nobody")
    with pytest.raises(NotFound, match="no backup 9"):
        await quire.recover(shelf, str(tmp_path / "t.db"), of=ids[0], number=9)


# removing old ones


async def test_pruning_keeps_what_is_wanted_and_all_that_builds_on(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    clock = FakeClock(start_ms=int(datetime.now(UTC).timestamp() * 1000) - 40 * 86_400_000)
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        for day in range(1, 41):  # a full one on days 1, 11, 21, 31
            await wf.set("/n", day)
            await store.put_blob(b"%d" % day)
            await store.backup(shelf, full=day % 10 == 1)
            await clock.wind(86_400)
    said = await quire.prune_backups(shelf, keep=15, days=30)
    assert not said.done and len(await quire.backups(shelf)) == 40
    done = await quire.prune_backups(shelf, keep=15, days=30, dry_run=False)
    assert (done.removed, done.objects) == (said.removed, said.objects) and done.done
    left = await quire.backups(shelf)
    assert [b.number for b in left] == list(range(21, 41)), "the wanted 26 to 40, and 21 to 25 which they build on"
    assert (await quire.check_backups(shelf)).ok and not any(b.problem for b in left)
    objects = {f.parts[-4] for f in (tmp_path / "place" / "backups" / "objects").rglob("*") if f.is_file()}
    assert objects == {f"{n:012d}" for n in (21, 31)}
    await quire.recover(shelf, str(tmp_path / "t.db"), number=22)
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert await store.workflow("w").get("/n") == 22
    await quire.prune_backups(shelf, keep=1, days=0.001, dry_run=False)
    assert [b.number for b in await quire.backups(shelf)] == list(range(31, 41)), "the newest always stays"
    for wrong in ({"keep": 0}, {"days": 0}, {"keep": 1.5}):
        with pytest.raises(Invalid):
            await quire.prune_backups(shelf, **wrong)


# how it is asked for


@pytest.mark.parametrize("dest", ["copy.db", "./a:b.db", "folder/x", "C_file"])
async def test_a_plain_path_is_one_copy_as_ever(tmp_path, monkeypatch, dest):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert not is_place(dest)
    async with quire.open("s.db") as store:
        await store.create("w", {"n": 1})
        assert await store.backup(dest) is None
        with pytest.raises(Invalid, match="file:///"):
            await store.backup("other.db", full=True)
    async with quire.open(f"sqlite:///{dest}") as store:
        assert await store.workflow("w").get("/n") == 1


async def test_where_no_copy_can_be_made_a_place_is_named(tmp_path):
    async with quire.open("memory:") as store:
        with pytest.raises(Unsupported, match="file:///"):
            await store.backup("copy.db")
        with pytest.raises(InvalidKey):
            await store.backup("")
        with pytest.raises(InvalidKey, match="no place for backups"):
            await store.backup("ftp://host/x")
    with pytest.raises(quire.errors.Closed):
        await store.backup(f"file:///{tmp_path}/x")


async def test_an_empty_store_is_backed_up_too(tmp_path):
    shelf = f"file:///{tmp_path}/place"
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert (await store.backup(shelf)).versions == 0
        await store.create("w", {})
        assert (await store.backup(shelf)).versions == 1
    assert (await quire.recover(shelf, str(tmp_path / "t.db"), number=1)).streams == 0
    with pytest.raises(NotFound):
        await quire.recover(f"{tmp_path}/nothing", str(tmp_path / "t.db"))
    assert await quire.backups(f"{tmp_path}/nothing") == []
