"""Retention: what goes to the archive is read as before, what stays is what the rules say, and nobody has to ask."""

import asyncio
import shutil
from contextlib import aclosing

import msgspec
import pytest

import quire
from quire.config import ARCHIVING, Retention, Settings
from quire.core.retention import DAY_MS
from quire.engine.clock import FakeClock
from quire.errors import CorruptRecord, Invalid, InvalidKey, StorageUnavailable

OFTEN = Settings(keyframe_changes_min=4, keyframe_bytes_min=0)
"""Keyframes every few versions, so that they are in what is moved."""
BY_HAND = {"every_s": 0}


async def peopled(store):
    """A workflow with forks, merges, checkpoints and conflicts, beside another."""
    w = await store.create("w", {"n": 0, "log": ["begin"], "who": {"name": "ann"}}, author="ann")
    other = await store.create("other", {"n": 0})
    for n in range(1, 10):
        await w.inc("/n", author="bob")
        await w.append("/log", f"entry {n}", author=("ann", "bob")[n % 2], message=f"note {n}")
        await other.inc("/n")
    fork = await w.fork("f", at=5)
    await fork.set("/who/name", "fay", author="fay")
    await w.merge(fork, author="mia")
    await w.checkpoint("manual", version=3)
    await w.checkpoint("whole", version=7, kind="snapshot")
    await w.checkpoint("auto", version=9, kind="automatic")
    await w.checkpoint("tagged", version=11, kind="automatic", tags=["keep"])
    for n in range(10):
        await w.set("/who/age", n, author="ann")
    return w


async def told(store):
    """Everything that can be asked of the past."""
    found = {}
    for name in await store.workflows():
        w = store.workflow(name)
        versions = await w.history(order="oldest")
        numbers = [v.number for v in versions]
        last = numbers[-1]
        found[name] = [
            versions,
            [await w.version(n) for n in numbers],
            [await w.state(n) for n in numbers],
            [await w.diff(a, b) for a, b in ((1, last), (last, 1), (max(1, last - 4), last), (1, min(3, last)))],
            await w.blame(),
            await w.blame("/n", version=min(4, last)),
            await w.bisect(lambda state: state["n"] >= 2) if last > 4 else None,
            await replayed(w),
            [(node.version, node.parents) for node in await w.graph()],
            await w.history(author="bob", limit=3),
            await w.history(path="/who"),
            await w.checkpoints(),
            [await w.state(c.name) for c in await w.checkpoints()],
        ]
        found[name].append(await taken(w.watch(after=0), last))
    count = sum(len(f[0]) for f in found.values())
    found["all"] = await taken(store.watch(after=0), count)
    return msgspec.json.encode(found, enc_hook=repr)


async def replayed(workflow):
    seen = []
    await workflow.replay(lambda version, state: seen.append((version.number, dict(state))))
    return seen


async def taken(events, count):
    async with aclosing(events):
        return [(e.version, e.position) for e in [await anext(events) for _ in range(count)]]


async def here(store, name="w"):
    """The versions that are in the store itself."""
    return [r.version for r in await store.engine.archive.inner.read(f"workflows/{name}")]


@pytest.fixture(params=["folder", "packed", "sealed"])
def place(request, tmp_path):
    options = {"folder": {"archive": str(tmp_path / "old")}, "packed": {}}
    sealed = {"archive": str(tmp_path / "old"), "encryption_key": bytes(32), "compression": "zstd"}
    return {"url": str(tmp_path / "s.db"), **options.get(request.param, sealed)}


async def test_all_of_the_past_is_as_before_the_sweep(place):
    rules = Retention(versions=2, **BY_HAND)
    async with quire.open(**place, settings=OFTEN, retention=rules) as store:
        w = await peopled(store)
        head, before = (await w.version()).number, await told(store)
        plan = await store.sweep(plan=True)
        assert await here(store) == list(range(1, head + 1))
        done = await store.sweep()
        assert done == plan
        assert done.moved == {"w": head - 2, "other": 8}
        assert not done.problems
        assert await here(store) == [head - 1, head]
        assert await told(store) == before
        again = await store.sweep()
        assert (again.moved, again.kept) == ({}, 0)


async def test_a_store_finds_its_archive_by_itself_and_numbering_goes_on(place):
    async with quire.open(**place, settings=OFTEN, retention=Retention(versions=1, **BY_HAND)) as store:
        w = await peopled(store)
        head, before = (await w.version()).number, await told(store)
        counted_before = (await store.stats()).versions
        await store.sweep()
        assert (await store.stats()).versions == counted_before
    place.pop("archive", None)
    async with quire.open(**place) as store:
        assert await told(store) == before
        assert (await store.verify()).ok
        w = store.workflow("w")
        assert (await w.inc("/n")).number == head + 1
        assert (await w.restore(2)).number == head + 2
        assert await w.state() == await w.state(2)
        assert (await w.revert(head + 1)).number == head + 3


async def test_forks_begin_from_archived_versions_and_merges_go_over_them(place):
    rules = Retention(versions=1, **BY_HAND)
    async with quire.open(**place, settings=OFTEN, retention=rules) as store:
        w = await peopled(store)
        await store.sweep()
        fork = await w.fork("late", at=4)
        assert await fork.state() == await w.state(4)
        await fork.append("/log", "from the fork")
        await store.sweep()
        merged = await w.merge(fork)
        assert "from the fork" in (await w.state())["log"]
        assert merged.version is not None
        assert (await store.verify()).ok


async def test_a_write_made_on_an_archived_version_is_rebased(place):
    async with quire.open(**place, settings=OFTEN, retention=Retention(versions=1, **BY_HAND)) as store:
        w = await peopled(store)
        old = await w.state(5)
        await store.sweep()
        await w.save({**old, "mine": True}, base=5)
        assert (await w.state())["mine"] is True
        assert (await w.state())["who"]["age"] == 9


# what stays within reach


async def test_what_is_pinned_tagged_or_forked_is_readable_without_the_archive(tmp_path):
    place = {"url": str(tmp_path / "s.db"), "archive": str(tmp_path / "old")}
    async with quire.open(**place, settings=OFTEN, retention=Retention(versions=1, **BY_HAND)) as store:
        w = await peopled(store)
        states = {n: await w.state(n) for n in range(1, (await w.version()).number + 1)}
        done = await store.sweep()
        late = await w.fork("late", at=13)
        await w.checkpoint("late", version=14)
        assert (await store.sweep()).kept == 2  # it is fetched for whoever comes later
        assert (await store.archived()).streams[-1].kept == (1, 3, 5, 7, 11, 13, 14)
    shutil.rmtree(tmp_path / "old")
    async with quire.open(place["url"], settings=OFTEN) as store:
        w = store.workflow("w")
        assert done.kept >= 4
        for n in (1, 3, 5, 7, 11, 13, 14, max(states)):
            assert await w.state(n) == states[n]
            assert (await w.version(n)).number == n
        assert await store.workflow("f").state()
        assert await late.__class__(store.engine, "late").state() == states[13]
        for n in (2, 9):
            with pytest.raises(CorruptRecord, match=rf"segment of workflows/w .* gone from file:///{tmp_path}/old"):
                await w.state(n)
        await w.inc("/n")
        report = await store.verify()
        assert not report.ok
        assert {p.split(":")[0] for p in report.problems} == {"workflows/w", "workflows/other", "workflows/f"} - (
            set() if any("workflows/f" in p for p in report.problems) else {"workflows/f"}
        )


# the rules


async def counted(store, name, count, clock=None, days=1.0):
    w = await store.create(name, {"n": 0})
    for _ in range(count - 1):
        if clock is not None:
            await clock.wind(days * 24 * 3600)
        await w.inc("/n")
    return w


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({}, 10),
        ({"versions": 3}, 3),
        ({"versions": 50}, 10),
        ({"days": 4}, 4),
        ({"days": 0}, 1),
        ({"days": 0.5}, 1),
        ({"days": 100}, 10),
        ({"bytes": 0}, 1),
        ({"bytes": 400}, 2),
        ({"bytes": 100_000}, 10),
        ({"goes": lambda name, version: version.number < 7}, 4),
        ({"goes": lambda name, version: name != "w"}, 10),
        ({"versions": 6, "days": 8, "goes": lambda name, version: version.number < 3}, 6),
        ({"versions": 9, "days": 3, "bytes": 100_000}, 3),
        ({"store_bytes": 0}, 1),
        ({"store_bytes": 100_000}, 10),
    ],
)
async def test_what_each_rule_leaves(tmp_path, rules, left):
    clock = FakeClock()
    async with quire.open("memory:", clock=clock, retention=Retention(**rules, **BY_HAND)) as store:
        await counted(store, "w", 10, clock)
        done = await store.sweep()
        assert await here(store) == list(range(11 - left, 11))
        assert done.versions == 10 - left


async def test_the_bytes_of_a_store_are_shared_by_age(tmp_path):
    clock = FakeClock()
    async with quire.open("memory:", clock=clock, retention=Retention(store_bytes=1000, **BY_HAND)) as store:
        await counted(store, "old", 10, clock)
        await counted(store, "new", 3, clock)
        await store.sweep()
        assert await here(store, "new") == [1, 2, 3]
        assert len(await here(store, "old")) < 4


async def test_automatic_checkpoints_are_dropped_by_number_and_age_but_not_those_with_a_tag(tmp_path):
    clock = FakeClock()
    rules = Retention(versions=1, checkpoints=3, checkpoint_days=2, **BY_HAND)
    async with quire.open("memory:", clock=clock, retention=rules) as store:
        w = await counted(store, "w", 3)
        for n in range(6):
            await w.checkpoint(f"a{n}", kind="automatic")
            await clock.wind(24 * 3600)
        await w.checkpoint("t", kind="automatic", tags=["x"])
        await w.checkpoint("m", version=1)
        plan = await store.sweep(plan=True)
        assert sorted(c.name for c in await w.checkpoints()) == ["a0", "a1", "a2", "a3", "a4", "a5", "m", "t"]
        done = await store.sweep()
        assert done.checkpoints == plan.checkpoints == [f"w@a{n}" for n in range(5)]
        assert sorted(c.name for c in await w.checkpoints()) == ["a5", "m", "t"]


async def test_the_preset_keeps_a_hundred_versions_and_a_month():
    clock = FakeClock()
    rules = msgspec.structs.replace(ARCHIVING, every_s=0)
    async with quire.open("memory:", clock=clock, retention=rules) as store:
        await counted(store, "many", 130)
        await counted(store, "old", 5, clock, days=20)
        assert await store.sweep()
        assert len(await here(store, "many")) == 1  # all are older than a month by now, and the newest stays
        assert await here(store, "old") == [4, 5]
        await counted(store, "more", 130)
        await store.sweep()
        assert len(await here(store, "more")) == 100


async def test_a_rule_that_raises_stops_its_workflow_only():
    def goes(name, version):
        if name == "bad":
            raise RuntimeError("no idea")
        return True

    async with quire.open("memory:", retention=Retention(goes=goes, **BY_HAND)) as store:
        for name in ("a", "bad", "c"):
            await counted(store, name, 4)
        done = await store.sweep()
        assert done.moved == {"a": 3, "c": 3}
        assert done.problems == ["bad: RuntimeError: no idea"]


async def test_other_rules_for_once():
    async with quire.open("memory:", retention=Retention(**BY_HAND)) as store:
        await counted(store, "w", 10)
        assert (await store.sweep()).versions == 0
        assert (await store.sweep(retention=Retention(versions=4))).versions == 6
        assert (await store.sweep()).versions == 0


async def test_a_store_without_an_archive_says_so():
    async with quire.open("memory:") as store:
        for call in (store.sweep, store.archived):
            with pytest.raises(Invalid, match="has no archive"):
                await call()


# by itself


async def test_a_store_sweeps_by_itself_now_and_then():
    clock = FakeClock()
    async with quire.open("memory:", clock=clock, retention=Retention(versions=2, every_s=60)) as store:
        await counted(store, "w", 5)
        for _ in range(2):
            await store.workflow("w").inc("/n")
            while not clock.sleepers:
                await asyncio.sleep(0)
            await clock.wind(60)
            while not clock.sleepers:
                await asyncio.sleep(0)
            assert len(await here(store)) == 2
        assert await store.workflow("w").get("/n", version=2) == 1


async def test_sweeping_goes_on_when_the_archive_comes_back(tmp_path, caplog):
    clock, place = FakeClock(), tmp_path / "old"
    rules = Retention(versions=2, every_s=60)
    async with quire.open(str(tmp_path / "s.db"), clock=clock, archive=str(place), retention=rules) as store:
        w = await counted(store, "w", 5, clock)
        place.rename(tmp_path / "away")
        place.write_text("no folder")

        async def swept():
            while not clock.sleepers:
                await asyncio.sleep(0)
            await clock.wind(60)
            while not clock.sleepers:
                await asyncio.sleep(0.001)

        await swept()
        assert await here(store) == [1, 2, 3, 4, 5]
        assert "w: " in caplog.text
        overdue = store._sweeper.overdue
        assert overdue == (await w.version(1)).time
        await w.inc("/n")
        place.unlink()
        (tmp_path / "away").rename(place)
        await swept()
        assert await here(store) == [5, 6]
        assert store._sweeper.overdue is None
        assert [v.number for v in await w.history(order="oldest")] == [1, 2, 3, 4, 5, 6]


# places


async def test_an_archive_moves_with_its_objects_only(tmp_path):
    url, rules = str(tmp_path / "s.db"), Retention(versions=1, **BY_HAND)
    async with quire.open(url, archive=str(tmp_path / "one"), retention=rules) as store:
        await peopled(store)
        before = await told(store)
        await store.sweep()
    with pytest.raises(InvalidKey, match="segments are not in .*copy archives/"):
        await quire.open(url, archive=str(tmp_path / "two"))
    with pytest.raises(InvalidKey, match="cannot be moved into the store"):
        await quire.open(url, archive="store:")
    shutil.rmtree(tmp_path / "two")
    async with quire.open(url) as old:  # open all the while
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        async with quire.open(url, archive=str(tmp_path / "two"), retention=rules) as store:
            shutil.rmtree(tmp_path / "one")
            assert await told(store) == before
            assert await told(old) == before
            await store.workflow("w").inc("/n")
            await store.sweep()
            assert await old.workflow("w").state(20)
    assert not (tmp_path / "one").exists()
    async with quire.open(url) as store:
        assert (await store.archived(check=True)).problems == []
        assert (await store.verify()).ok


async def test_from_within_the_store_to_a_place(tmp_path):
    url, rules = str(tmp_path / "s.db"), Retention(versions=1, **BY_HAND)
    async with quire.open(url, retention=rules) as store:
        w = await counted(store, "w", 10)
        await store.sweep()
        assert (await store.archived()).place == "store:"
    async with quire.open(url, archive=str(tmp_path / "old"), retention=rules) as store:
        w = store.workflow("w")
        for _ in range(10):
            await w.inc("/n")
        await store.sweep()
        assert [v.number for v in await w.history(order="oldest")] == list(range(1, 21))
        assert (await store.verify()).ok
        assert list((tmp_path / "old").rglob("*.zst"))


@pytest.mark.parametrize("bad", ["", "nosuch:place", "s3://user:secret@bucket", "file://x", "memory:a?b=c"])
async def test_wrong_places_are_refused_before_anything_is_made(tmp_path, bad):
    with pytest.raises(quire.errors.QuireError) as caught:
        await quire.open(str(tmp_path / "s.db"), archive=bad)
    assert isinstance(caught.value, InvalidKey)
    assert "secret" not in str(caught.value)
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert store.engine.archive is None


async def test_a_place_that_is_away_keeps_nobody_from_what_is_here(tmp_path, monkeypatch):
    url, place = str(tmp_path / "s.db"), tmp_path / "old"
    async with quire.open(url, archive=str(place), retention=Retention(versions=1, **BY_HAND)) as store:
        await counted(store, "w", 10)
        await store.sweep()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    place.rename(tmp_path / "away")
    place.write_text("no folder")
    async with quire.open(url) as store:
        w = store.workflow("w")
        assert await w.get("/n") == 9
        await w.inc("/n")
        assert (await w.version(1)).number == 1
        with pytest.raises((StorageUnavailable, CorruptRecord), match="segment of workflows/w 1 to 9"):
            await w.state(5)


def test_the_sync_twin_sweeps_and_tells(tmp_path):
    with quire.sync.open(
        str(tmp_path / "s.db"), archive=str(tmp_path / "old"), retention=Retention(versions=2, **BY_HAND)
    ) as store:
        w = store.create("w", {"n": 0})
        for _ in range(9):
            w.inc("/n")
        assert store.sweep(plan=True).moved == store.sweep().moved == {"w": 8}
        (held,) = store.archived(check=True).streams
        assert (held.stream, held.first, held.last, held.versions, held.kept) == ("workflows/w", 1, 8, 8, (1,))
        assert [w.get("/n", version=n) for n in range(1, 11)] == list(range(10))


def test_days_are_those_of_the_calendar():
    assert DAY_MS == 86_400_000


async def test_the_task_of_the_state_manager_sweeps_where_there_is_an_archive(tmp_path):
    task = {"id": "t", "type": "archive-old-versions", "payload": {}}
    async with quire.open("memory:") as store, quire.StateManager(store) as manager:
        assert (await manager.process_task(task)).result["archived"] == 0
    rules = Retention(versions=2, **BY_HAND)
    async with quire.open("memory:", retention=rules) as store, quire.StateManager(store) as manager:
        await counted(store, "w", 9)
        done = await manager.process_task(task)
        assert done.result == {"archived": 7, "workflows": {"w": 7}, "problems": []}
        assert await store.workflow("w").get("/n", version=3) == 2
