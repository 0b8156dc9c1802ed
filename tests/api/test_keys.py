"""Idempotency keys: spent while the head descends from what they made, whatever restores, forks and processes do."""

import asyncio
import json
import subprocess
import sys
from collections import UserDict, deque
from contextlib import AsyncExitStack, ExitStack
from types import MappingProxyType

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import quire
from quire import CentralizedStateStore, StateManager
from quire.config import Retention, Settings
from quire.core.descent import Descent
from quire.engine import idempotency
from quire.errors import AlreadyExists, Invalid, KeyReused, WorkflowNotFound
from quire.model import Restored
from quire.storage.base import CellWrite
from quire.testing.servers.fixtures import PLACES

MANY = [name for name in PLACES if name not in ("memory", "rocksdb")]
"""Those that several processes may open at once."""


@pytest.fixture(params=PLACES)
async def store(request, tmp_path):
    async with quire.open(PLACES[request.param](tmp_path)) as opened:
        yield opened


@pytest.fixture
async def wf(store):
    return await store.create("w", {"p": 0, "n": 0})


async def step(wf, key="step", path="/n"):
    """Send a write with a key; return which version answers for it."""
    return (await wf.inc(path, idempotency_key=key)).number


# one workflow


async def test_a_restore_to_before_its_version_frees_a_key(wf):
    assert [await step(wf), await step(wf)] == [2, 2]
    await wf.restore(1)
    assert await wf.get("/n") == 0
    assert [await step(wf), await step(wf)] == [4, 4], "made again, once"
    assert await wf.get("/n") == 1


async def test_a_later_overwrite_does_not_free_a_key(wf):
    await step(wf)
    await wf.set("/n", 0)
    await wf.apply([quire.Set((), {"p": 0, "n": 0})])
    await wf.set("/n", 1)
    await wf.revert(2)
    assert await step(wf) == 2
    assert await wf.get("/n") == 0


async def test_a_restore_to_its_version_or_later_frees_nothing(wf):
    await step(wf)
    await wf.set("/p", 1)
    for version in (2, 3, 4):
        await wf.restore(version)
        assert await step(wf) == 2
    assert await wf.get("/n") == 1


async def test_undoing_a_restore_brings_its_key_back(wf):
    await step(wf)
    await wf.set("/p", 1)
    await wf.restore(1)
    await wf.restore(3)
    assert await step(wf) == 2
    await wf.restore("~1")  # of the restore that went back to 1
    assert await step(wf) == 7


async def test_of_several_uses_the_one_that_the_state_comes_from_counts(wf):
    assert await step(wf) == 2
    await wf.restore(1)
    await wf.set("/p", "other life")
    again = await wf.inc("/n", 5, idempotency_key="step")  # it is free: whatever is sent with it is written
    assert again.number == 5
    await wf.restore(2)
    assert [await step(wf), await wf.get("/n")] == [2, 1]
    with pytest.raises(KeyReused, match="version 2"):
        await wf.inc("/n", 5, idempotency_key="step")
    await wf.restore(5)
    assert (await wf.inc("/n", 5, idempotency_key="step")).number == 5
    with pytest.raises(KeyReused, match="version 5"):
        await step(wf)
    await wf.restore(1)
    third = await wf.set("/p", 3, idempotency_key="step")
    assert third.number == 9
    for version, content in ((4, None), (8, None), (2, 1), (5, 5), (third.number, 3)):
        await wf.restore(version)
        if content == 1:
            assert await step(wf) == 2
        elif content == 5:
            assert (await wf.inc("/n", 5, idempotency_key="step")).number == 5
        elif content == 3:
            assert (await wf.set("/p", 3, idempotency_key="step")).number == 9
    await wf.restore(8)
    assert await step(wf) == (await wf.version()).number, "all three are in the past of none of these"


async def test_other_content_with_a_spent_key_is_refused_and_with_a_free_one_written(wf):
    await step(wf)
    with pytest.raises(KeyReused, match="a different write"):
        await wf.inc("/n", 2, idempotency_key="step")
    await wf.restore(1)
    assert (await wf.inc("/n", 2, idempotency_key="step")).number == 4
    with pytest.raises(KeyReused):
        await step(wf)


async def test_a_write_that_changed_nothing_is_remembered_with_the_head_it_met(wf):
    await wf.set("/p", 1)
    met = await wf.set("/p", 1, idempotency_key="same")
    assert met.number == (await wf.version()).number == 2
    await wf.set("/p", 2)
    assert (await wf.set("/p", 1, idempotency_key="same")).number == 2
    assert await wf.get("/p") == 2, "sent again it writes nothing, although now it would change something"
    await wf.restore(2)
    assert (await wf.set("/p", 1, idempotency_key="same")).number == 2
    await wf.restore(1)
    assert (await wf.set("/p", 1, idempotency_key="same")).number == 6, "it goes by that head"
    assert await wf.get("/p") == 1


async def test_a_restore_with_a_key_is_a_write_with_a_key(wf):
    await step(wf)
    for _ in range(2):
        assert (await wf.restore(1, idempotency_key="back")).number == 3
    assert await step(wf) == 4
    assert (await wf.restore(1, idempotency_key="back")).number == 3
    await wf.restore(2)
    assert (await wf.restore(1, idempotency_key="back")).number == 6
    assert (await wf.restore(1, idempotency_key="back")).number == 6
    await wf.restore(5)
    assert await step(wf) == 2


async def test_a_restore_that_changes_nothing_or_has_another_kind_is_one_all_the_same(wf):
    await wf.inc("/n", 0, idempotency_key="step", allow_empty=True)
    empty = await wf.restore(1, kind="rollback", message="nothing to change")
    assert (empty.number, empty.changes, empty.restored, empty.kind) == (3, [], 1, "rollback")
    assert (await wf.inc("/n", 0, idempotency_key="step", allow_empty=True)).number == 4
    assert [v.restored for v in await wf.history()] == [None, 1, None, None]


async def test_no_writer_can_pretend_to_restore(wf):
    await step(wf)
    await wf.set("/n", 0, kind="restore", message="restored version 1")
    await wf.save({"p": 0, "n": 0, "restored": 1}, kind="restore", allow_empty=True, overwrite=True)
    with pytest.raises(Invalid):
        await wf.apply([Restored(1)])
    with pytest.raises(Invalid):
        await wf.apply([["restored", 1]])
    assert await step(wf) == 2
    assert {v.restored for v in await wf.history()} == {None}


async def test_deleting_a_workflow_and_creating_it_anew_frees_its_keys(store, wf):
    await step(wf)
    await store.delete("w")
    with pytest.raises(WorkflowNotFound):
        await wf.inc("/n", idempotency_key="new")
    await store.create("w", {"p": 0, "n": 10})
    assert [await step(wf), await step(wf)] == [5, 5]
    assert await wf.get("/n") == 11
    await wf.restore(2)  # of the life before
    assert [await step(wf), await wf.get("/n")] == [2, 1]


async def test_a_key_that_expired_is_free_wherever_the_head_comes_from():
    now_ms = 1_000_000
    async with quire.open("memory:", settings=Settings(idempotency_seconds=60)) as store:
        store.engine.backend._now_ms = lambda: now_ms
        wf = await store.create("w", {"n": 0})
        await step(wf)
        now_ms += 59_000
        assert await step(wf) == 2
        now_ms += 2_000
        assert await step(wf) == 3
        await wf.restore(1)
        now_ms += 59_000
        assert await step(wf) == 5, "a use makes the time anew, of all of them"
        now_ms += 59_000
        await wf.restore(3)
        assert await step(wf) == 3
        now_ms += 2_000
        assert await step(wf) == 7


# forks


async def test_a_key_spent_before_a_fork_is_spent_in_it_and_one_used_after_is_not(store, wf):
    assert await step(wf, "before") == 2
    fork = await wf.fork("f")
    assert await step(wf, "after") == 3
    for again in (await fork.inc("/n", idempotency_key="before"), await fork.inc("/n", idempotency_key="before")):
        assert (again.workflow_id, again.number) == ("w", 2)
    with pytest.raises(KeyReused, match="used on w for a different write"):
        await fork.inc("/n", 7, idempotency_key="before")
    assert [await step(fork, "after"), await step(fork, "after")] == [2, 2]
    assert (await fork.version("~0")).workflow_id == "f"
    assert (await fork.get("/n"), await wf.get("/n")) == (2, 2)
    assert await step(wf, "before") == 2


async def test_a_fork_of_an_old_version_has_the_keys_that_version_descends_from(store, wf):
    assert await step(wf, "a") == 2
    await wf.restore(1)
    assert await step(wf, "b") == 4
    first, second, third = await wf.fork("f1", at=1), await wf.fork("f2", at=2), await wf.fork("f4", at=4)
    assert [await step(first, "a"), await step(first, "b")] == [2, 3]
    assert [await step(second, "a"), await step(second, "b")] == [2, 2]
    assert await second.get("/n") == 2
    assert [await step(third, "b"), await step(third, "a")] == [4, 2]
    assert await third.get("/n") == 2


async def test_restoring_a_fork_frees_its_own_keys_and_not_its_parents(store, wf):
    await step(wf, "old")
    fork = await wf.fork("f")
    assert await step(fork, "own") == 2
    deep = await fork.fork("g")
    assert await step(deep, "deep") == 2
    await deep.restore(1)
    again = [await deep.inc("/n", idempotency_key=key) for key in ("old", "own", "deep", "deep")]
    assert [(v.workflow_id, v.number) for v in again] == [("w", 2), ("f", 2), ("g", 4), ("g", 4)]
    await fork.restore(1)
    again = [await fork.inc("/n", idempotency_key=key) for key in ("old", "own", "own")]
    assert [(v.workflow_id, v.number) for v in again] == [("w", 2), ("f", 4), ("f", 4)]
    assert await step(deep, "own") == 2, "it comes from what the fork was"
    await wf.restore(1)
    assert [await step(fork, "old"), await step(deep, "old"), await step(wf, "old")] == [2, 2, 4]
    assert (await wf.get("/n"), await fork.get("/n"), await deep.get("/n")) == (1, 2, 3)


async def test_a_fork_of_what_was_freed_and_used_again_knows_which_use_it_comes_from(store, wf):
    await step(wf)
    await wf.restore(1)
    assert (await wf.inc("/n", 5, idempotency_key="step")).number == 4
    old, new, none = [await wf.fork(f"f{at}", at=at) for at in (2, 4, 3)]
    assert (await old.inc("/n", idempotency_key="step")).number == 2
    assert (await new.inc("/n", 5, idempotency_key="step")).number == 4
    assert (await none.set("/p", "free", idempotency_key="step")).workflow_id == "f3"
    for fork in (old, new):
        with pytest.raises(KeyReused):
            await fork.inc("/n", 6, idempotency_key="step")


async def test_a_fork_that_was_deleted_and_created_anew_has_no_parent(store, wf):
    await step(wf)
    fork = await wf.fork("f")
    await store.delete("f")
    await store.create("f", {"n": 0})
    assert [await step(fork), await step(fork)] == [4, 4]
    with pytest.raises(AlreadyExists):
        await wf.fork("f")


async def test_a_key_sent_before_there_was_the_fork_is_looked_for_in_its_parent(store, wf):
    """What was found out while there was nothing must not be kept."""
    await step(wf)
    with pytest.raises(WorkflowNotFound):
        await step(store.workflow("f"))
    assert (await (await wf.fork("f")).inc("/n", idempotency_key="step")).workflow_id == "w"


async def test_what_a_merge_takes_in_does_not_spend_a_key(store, wf):
    """By descent is meant: following restores and forks."""
    fork = await wf.fork("f")
    await step(fork)
    await wf.merge("f")
    assert await wf.get("/n") == 1
    assert await step(wf) == 3


# what else brings a version back


async def test_a_snapshot_of_the_manager_restored_frees_keys():
    async with quire.open("memory:") as store, StateManager(store) as manager:
        state = {"id": "w", "name": "w", "status": "running", "createdAt": 1, "n": 0}
        await manager.persist_workflow_state("w", state)
        snapshot = await manager.create_state_snapshot("w")
        wf = store.workflow("w")
        assert await step(wf) == 2
        await manager.restore_from_snapshot("w", snapshot.id)
        assert (await wf.version()).restored == 1
        assert (await wf.version()).kind == "restore"
        assert [await step(wf), await step(wf)] == [4, 4]
        assert await wf.get("/n") == 1


def test_rolling_a_central_store_back_frees_keys():
    with CentralizedStateStore() as central:
        central.set("n", 1)
        wf = central.workflow
        made = wf.inc("/values/n", idempotency_key="step")
        central.rollback(1)
        assert (wf.version().restored, central.get("n")) == (2, 1)
        assert wf.inc("/values/n", idempotency_key="step").number == made.number + 2
        assert central.get("n") == 2


def test_a_snapshot_of_a_central_store_frees_keys_where_it_is_what_a_version_was():
    with CentralizedStateStore() as central, CentralizedStateStore() as other:
        central.set("n", 1)
        text = central.snapshot()
        wf = central.workflow
        wf.inc("/values/n", idempotency_key="step")
        central.restore(text)
        assert (wf.version().restored, wf.version().kind) == (2, "restore")
        assert wf.inc("/values/n", idempotency_key="step").number == 5
        edited = {**json.loads(text), "state": {"n": 7}}
        del edited["checksum"]
        for stray in (json.dumps(edited), json.dumps({**edited, "version": 99})):
            central.restore(stray)
            assert (wf.version().restored, central.get("n")) == (None, 7)
            assert wf.inc("/values/n", idempotency_key="step").number == 5
        other.set("n", 1)
        other.restore(text)  # of another store: at that version this one held the same, but at another time
        assert other.workflow.version().restored in (None, 2)


# what the marker goes through


async def test_redaction_archive_copy_and_backup_keep_what_was_restored(tmp_path):
    secret, parquet = "sk-hunter2", pytest.importorskip("pyarrow.parquet")
    rules = Retention(versions=2, every_s=0)
    async with quire.open(f"{tmp_path}/s.db", archive=f"{tmp_path}/old", retention=rules) as store:
        wf = await store.create("w", {"n": 0, "key": secret})
        await step(wf)
        await wf.set("/key", "none")
        await wf.restore(1)
        for n in range(5):
            await wf.set("/m", n)
        await wf.redact(text=secret)
        restored = await wf.version(4)
        assert (restored.redacted, restored.restored, [c.path for c in restored.changes]) == (
            True,
            1,
            [("n",), ("key",)],
        )
        assert (await store.verify()).ok
        done = await store.sweep()
        assert (done.versions > 4, done.problems) == (True, [])
        await wf.redact("/key")
        assert ((await wf.version(4)).restored, (await store.verify()).problems) == (1, [])
        await store.export_table(f"{tmp_path}/all.parquet")
        assert "restored" not in str(parquet.read_table(f"{tmp_path}/all.parquet")["changes"].to_pylist())
        await store.backup(f"file:///{tmp_path}/place")
        await store.copy_to(f"{tmp_path}/copy.db")
    await quire.recover(f"{tmp_path}/place", f"{tmp_path}/back.db")
    for url in ("s.db", "copy.db", "back.db"):
        async with quire.open(f"{tmp_path}/{url}") as store:
            wf = store.workflow("w")
            assert (await wf.version(4)).restored == 1
            head = (await wf.version()).number
            assert [await step(wf), await step(wf)] == [head + 1, head + 1]
            assert await wf.get("/n") == 1
            await wf.restore(3)
            assert await step(wf) == 2
            assert (await store.verify()).ok


# at the same time


@pytest.mark.parametrize("place", MANY)
async def test_a_freed_key_is_written_once_by_tasks_and_by_other_handles(tmp_path, place):
    url = PLACES[place](tmp_path)
    async with AsyncExitStack() as ends:
        stores = [await ends.enter_async_context(quire.open(url)) for _ in range(3)]
        wf = await stores[0].create("w", {"n": 0})
        handles = [store.workflow("w") for store in stores]
        await step(wf)
        for turn in range(1, 6):
            await wf.restore(1)
            made = await asyncio.gather(*(step(each) for each in handles * 4), handles[1].set("/p", turn))
            assert len(set(made[:-1])) == 1
            assert await handles[turn % 3].get("/n") == 1
        assert [v.kind for v in await wf.history(order="oldest") if v.restored].count("restore") == 5
        assert (await stores[0].verify()).ok


@pytest.mark.parametrize("place", MANY)
async def test_answers_are_those_of_the_log_while_others_restore(tmp_path, place):
    """Each write is there as often as the head has it in its past: once, whatever was restored while it was sent."""
    url = PLACES[place](tmp_path)
    async with AsyncExitStack() as ends:
        one, other = [await ends.enter_async_context(quire.open(url)) for _ in range(2)]
        wf = await one.create("w", {"n": {}})
        same = other.workflow("w")

        async def restore(number):
            for turn in range(12):
                await (wf, same)[turn % 2].restore(1 + (turn * number) % (await wf.version()).number)

        async def send(handle, who):
            for turn in range(12):
                await handle.inc(f"/n/k{(turn + who) % 3}", idempotency_key=f"k{(turn + who) % 3}")

        await asyncio.gather(restore(5), restore(7), *(send(h, w) for h in (wf, same) for w in range(3)))
        for number in range(1, (await wf.version()).number + 1):
            counts = (await wf.state(number))["n"]
            assert set(counts.values()) <= {1}, (number, counts)


CODE = """
import asyncio, sys, quire
async def main(url):
    async with quire.open(url) as store:
        wf = store.workflow("w")
        print("ready", flush=True)
        sys.stdin.readline()
        made = await asyncio.gather(*(wf.inc(f"/{k}", idempotency_key=k) for k in sys.argv[2:] * 2))
        print(*(v.number for v in made))
asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("place", MANY)
def test_a_freed_key_is_written_once_by_processes(tmp_path, place):
    url, keys = PLACES[place](tmp_path), [f"k{n}" for n in range(10)]
    with quire.sync.open(url) as store:
        wf = store.create("w", {})
        for key in keys:
            wf.inc(f"/{key}", idempotency_key=key)
        wf.restore(1)
    with ExitStack() as ends:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        sent = [
            ends.enter_context(subprocess.Popen([sys.executable, "-c", CODE, url, *keys], **pipes)) for _ in range(4)
        ]
        assert [each.stdout.readline() for each in sent] == ["ready\n"] * 4
        for each in sent:
            each.stdin.write("go\n")
            each.stdin.flush()
        told = [each.communicate(timeout=60)[0].split() for each in sent]
    assert len(set(map(tuple, told))) == 1
    assert len(set(told[0])) == len(keys)
    with quire.sync.open(url) as store:
        assert store.workflow("w").state() == dict.fromkeys(keys, 1)
        assert store.verify().ok


@pytest.fixture
async def pair(tmp_path):
    """Two handles on one file."""
    async with quire.open(f"{tmp_path}/s.db") as one, quire.open(f"{tmp_path}/s.db") as other:
        await one.create("w", {"n": 0})
        yield one, other


def before_it_is_queued(store, monkeypatch, act):
    """Do something once after a key was found to be free, before its write is queued."""
    submit, left = store.engine.committer.submit, [act]

    async def slow(*args, **more):
        if more.get("stamp") is not None and left:
            await left.pop()()
        return await submit(*args, **more)

    monkeypatch.setattr(store.engine.committer, "submit", slow)


@pytest.mark.parametrize("who", ["same", "other"])
async def test_a_key_that_a_restore_brings_back_meanwhile_is_spent(pair, monkeypatch, who):
    one, other = pair
    wf = one.workflow("w")
    await step(wf)
    await wf.restore(1)
    before_it_is_queued(one, monkeypatch, lambda: (one if who == "same" else other).workflow("w").restore(2))
    assert await step(wf) == 2
    assert await wf.get("/n") == 1


@pytest.mark.parametrize("who", ["same", "other"])
async def test_a_key_that_was_free_stays_so_whatever_plain_writes_come_meanwhile(pair, monkeypatch, who):
    one, other = pair
    wf = one.workflow("w")
    await step(wf)
    await wf.restore(1)
    before_it_is_queued(one, monkeypatch, lambda: (one if who == "same" else other).workflow("w").set("/p", 1))
    assert await step(wf) == 5
    assert await wf.state() == {"n": 1, "p": 1}


async def test_a_key_that_a_restore_in_the_same_commit_brings_back_is_spent(pair, monkeypatch):
    one, _ = pair
    wf, committer = one.workflow("w"), one.engine.committer
    await step(wf)
    await wf.restore(1)
    before = []

    async def restore_first():
        before.append(asyncio.create_task(wf.restore(2)))
        while not committer._queue:
            await asyncio.sleep(0)

    before_it_is_queued(one, monkeypatch, restore_first)
    async with committer.turn:  # what is queued from here on is one commit
        before.append(asyncio.create_task(wf.set("/p", 1)))
        while committer._task is None or committer._queue:
            await asyncio.sleep(0)
        again = asyncio.create_task(step(wf))
        while len(committer._queue) < 2:
            await asyncio.sleep(0)
    assert (await again, len(await asyncio.gather(*before))) == (2, 2)
    assert await wf.state() == {"n": 1}


async def test_a_key_of_a_fork_that_a_restore_brings_back_while_its_parent_is_asked_is_spent(pair, monkeypatch):
    wf = pair[0].workflow("w")
    fork = await wf.fork("f")
    await step(wf), await step(fork)
    await fork.restore(1)
    asked, left = idempotency.descends, [1]

    async def slow(engine, descent, version):
        found = await asked(engine, descent, version)
        if descent.stream == wf.stream and left:
            left.pop()
            await fork.restore(2)
        return found

    monkeypatch.setattr(idempotency, "descends", slow)
    assert [await step(fork), await fork.get("/n"), left] == [2, 1, []]


async def test_a_key_sent_while_the_fork_is_made_is_looked_for_in_its_parent(pair, monkeypatch):
    wf = pair[0].workflow("w")
    await step(wf)
    before_it_is_queued(pair[0], monkeypatch, lambda: wf.fork("f"))
    assert (await pair[0].workflow("f").inc("/n", idempotency_key="step")).workflow_id == "w"


async def test_a_use_that_is_seen_before_its_version_is_not_taken_for_gone(pair, monkeypatch):
    """A store may show a cell before it tells that anything was committed."""
    one, other = pair
    wf = one.workflow("w")
    await step(wf)
    await wf.restore(1)
    await wf.get("/n")
    latest, seen = one.engine.backend.latest, one.engine.seen
    assert await step(other.workflow("w")) == 4
    late = [seen, seen]

    async def behind():
        return late.pop() if late else await latest()

    monkeypatch.setattr(one.engine.backend, "latest", behind)
    assert await step(wf) == 4
    assert await wf.get("/n") == 1


# what it costs, and its bounds


async def test_a_repeated_write_reads_only_what_came_after_it_and_that_once(tmp_path, monkeypatch):
    async with quire.open(f"{tmp_path}/s.db") as store:
        wf = await store.create("w", {"n": 0})
        for n in range(300):
            await wf.set("/m", n)
        await step(wf)
        for n in range(3000):
            await wf.set("/m", n)
        reads = counted(store, monkeypatch)
        assert [await step(wf) for _ in range(3)] == [302] * 3
        assert sum(count for after, count in reads if after != 301) <= 1, "made since it was opened: nothing is read"
    async with quire.open(f"{tmp_path}/s.db") as store:
        wf = store.workflow("w")
        await wf.get("/n")
        reads = counted(store, monkeypatch)
        assert await step(wf) == 302
        assert 2000 < sum(count for _, count in reads) <= 3000 + 1 + 1, (
            "what came since, the version, how the log begins"
        )
        del reads[:]
        assert [await step(wf), await step(wf)] == [302] * 2
        assert reads == [(301, 1)] * 2
        for n in range(100):
            await wf.set("/m", -n - 1)
        del reads[:]
        assert await step(wf) == 302
        assert reads == [(301, 1)]


async def test_a_new_key_costs_one_read_of_a_cell_for_each_workflow_it_may_come_from(tmp_path, monkeypatch):
    async with quire.open(f"{tmp_path}/s.db") as store:
        wf = await store.create("w", {"n": 0})
        fork = await (await wf.fork("f")).fork("g")
        await step(wf, "first"), await step(fork, "first of the fork")
        reads, asked = counted(store, monkeypatch), []
        cell = store.engine.backend.cell

        async def asking(name):
            asked.append(name)
            return await cell(name)

        monkeypatch.setattr(store.engine.backend, "cell", asking)
        await step(wf, "new")
        assert (reads, asked) == ([], ["idempotency/workflows/w/new"])
        await step(fork, "newer")
        assert (reads, asked[1:]) == ([], [f"idempotency/workflows/{name}/newer" for name in ("g", "f", "w")])


def counted(store, monkeypatch):
    """Return a list that grows by every read of records: after which version, and how many there were."""
    read, reads = type(store.engine.backend).read, []

    async def reading(self, stream, *, after=0, upto=None, limit=None):
        found = await read(self, stream, after=after, upto=upto, limit=limit)
        reads.append((after, len(found)))
        return found

    monkeypatch.setattr(store.engine.backend, "read", reading.__get__(store.engine.backend))
    return reads


async def test_uses_that_are_remembered_are_bounded(monkeypatch):
    monkeypatch.setattr(idempotency, "_USES_MAX", 3)
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"n": 0})
        made = []
        for _ in range(5):
            made.append(await step(wf))
            await wf.restore(1)
        cell = await store.engine.backend.cell("idempotency/workflows/w/step")
        assert [int(word) for word in cell.value.split()[1::2]] == made[-3:]
        await wf.restore(made[2])
        assert await step(wf) == made[2]
        await wf.restore(made[0])
        assert await step(wf) == (await wf.version()).number, "the oldest are forgotten"


async def test_what_an_older_quire_remembered_is_still_known():
    """A cell of one use, or of a write that changed nothing, of which it was not noted which head it met."""
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"n": 0})
        await step(wf)
        cell = await store.engine.backend.cell("idempotency/workflows/w/step")
        assert cell.value.partition(b" ")[2] == b"2"
        await wf.set("/n", 1, idempotency_key="same")
        name = "idempotency/workflows/w/same"
        now = (await store.engine.backend.cell(name)).value
        old = CellWrite(name, now, now.replace(b" 2", b" 0"))
        await store.engine.committer.submit((), (old,))
        await wf.restore(1)
        again = await wf.set("/n", 1, idempotency_key="same")
        assert again.number == (await wf.version()).number == 3, "spent until it expires, as it was"
        fork = await wf.fork("f")
        assert (await fork.set("/n", 1, idempotency_key="same")).workflow_id == "f", "a fork did not know it"


# beside a model

FOLDED = Settings(recent_records=2, keyframe_changes_min=2, keyframe_bytes_min=0, resident_bytes_max=1)
"""Little is remembered, so that the log is asked."""


class KeysBesideModel(RuleBasedStateMachine):
    """Keyed writes, plain ones, restores, forks and new lives beside a model that keeps what every version descends from."""

    def __init__(self):
        super().__init__()
        self.ends = ExitStack()
        import tempfile

        folder = self.ends.enter_context(tempfile.TemporaryDirectory())
        self.url = f"{folder}/s.db"
        self.stores = [self.open(), self.open()]
        self.heads = {}  # workflow -> number of its newest version, 0 after its end
        self.past = {}  # (workflow, version) -> all that it descends from, itself too
        self.states = {}  # (workflow, version) -> state
        self.parents = {}  # fork -> the workflow it was forked from
        self.uses = {}  # key -> [(workflow, version, content)], oldest first
        self.spent = self.repeated = 0

    def open(self):
        return self.ends.enter_context(quire.sync.open(self.url, settings=FOLDED))

    def teardown(self):
        self.ends.close()

    def flow(self, data):
        """A workflow that is there, by one of the handles; the first is made when there is none."""
        store = data.draw(st.sampled_from(self.stores))
        alive = [name for name, head in self.heads.items() if self.states[name, head] is not None]
        if not alive:
            name = f"w{len(self.heads)}"
            store.create(name, {})
            self.expect(name, 1, set(), {})
            alive = [name]
        name = data.draw(st.sampled_from(alive))
        return store, name, store.workflow(name)

    def expect(self, name, number, past, state):
        self.heads[name] = number
        self.past[name, number] = {*past, (name, number)}
        self.states[name, number] = state

    def use_of(self, name, key):
        """The use of a key that the head descends from: of its own workflow first, then of those above."""
        past = self.past[name, self.heads[name]]
        while name is not None:
            for use in reversed(self.uses.get(key, ())):
                if use[0] == name and use[:2] in past:
                    return use
            name = self.parents.get(name)
        return None

    @rule(data=st.data(), key=st.sampled_from("ab"), place=st.sampled_from("xy"), value=st.integers(0, 1))
    def keyed(self, data, key, place, value):
        _, name, wf = self.flow(data)
        head = self.heads[name]
        used = self.use_of(name, key)
        content = (place, value)
        if used is not None and used[2] != content:
            with pytest.raises(KeyReused):
                wf.set(f"/{place}", value, idempotency_key=key)
            return
        made = wf.set(f"/{place}", value, idempotency_key=key)
        if used is not None:
            self.spent += 1
            assert (made.workflow_id, made.number) == used[:2]
            return
        self.repeated += key in self.uses
        state = self.states[name, head]
        if state.get(place) != value:
            self.expect(name, head + 1, self.past[name, head], {**state, place: value})
        assert (made.workflow_id, made.number) == (name, self.heads[name])
        self.uses.setdefault(key, []).append((name, self.heads[name], content))

    @rule(data=st.data(), place=st.sampled_from("xy"), value=st.integers(2, 3))
    def plain(self, data, place, value):
        _, name, wf = self.flow(data)
        head = self.heads[name]
        wf.set(f"/{place}", value, allow_empty=True, kind=data.draw(st.sampled_from(["change", "restore"])))
        self.expect(name, head + 1, self.past[name, head], {**self.states[name, head], place: value})

    @rule(data=st.data())
    def restore(self, data):
        _, name, wf = self.flow(data)
        number = data.draw(st.sampled_from([n for w, n in self.past if w == name and self.states[w, n] is not None]))
        wf.restore(number)
        self.expect(name, self.heads[name] + 1, self.past[name, number], self.states[name, number])

    @rule(data=st.data())
    def fork(self, data):
        _, name, wf = self.flow(data)
        if len(self.heads) < 6:
            number = data.draw(
                st.sampled_from([n for w, n in self.past if w == name and self.states[w, n] is not None])
            )
            new = f"w{len(self.heads)}"
            wf.fork(new, at=number)
            self.parents[new] = name
            self.expect(new, 1, self.past[name, number], self.states[name, number])

    @rule(data=st.data())
    def new_life(self, data):
        store, name, _ = self.flow(data)
        store.delete(name)
        self.expect(name, self.heads[name] + 1, set(), None)
        store.create(name, {"born": self.heads[name]})
        number = self.heads[name] + 1
        self.expect(name, number, set(), {"born": number - 1})

    @rule(data=st.data())
    def reopen(self, data):
        self.stores[data.draw(st.integers(0, 1))].close()
        self.stores = [s if not s._loop._loop.is_closed() else self.open() for s in self.stores]

    @invariant()
    def states_are_those_of_the_model(self):
        for name, head in self.heads.items():
            state = self.states[name, head]
            if state is not None:
                wf = self.stores[head % 2].workflow(name)
                assert (wf.version().number, wf.state()) == (head, state)


TestKeysBesideModel = KeysBesideModel.TestCase
TestKeysBesideModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


# negative controls: what the tests above would let pass they prove nothing of


@pytest.mark.parametrize("wrong", [True, False], ids=["restores free nothing", "everything is free"])
def test_the_model_notices_keys_that_do_not_go_by_descent(monkeypatch, wrong):
    monkeypatch.setattr(Descent, "includes", lambda self, version: wrong)
    quick = settings(
        max_examples=200,
        stateful_step_count=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    with pytest.raises(BaseException) as caught:
        run_state_machine_as_test(KeysBesideModel, settings=quick)
    found = (AssertionError, KeyReused, pytest.fail.Exception)
    error = caught.value
    noticed = caught.group_contains(found) if isinstance(error, BaseExceptionGroup) else isinstance(error, found)
    assert noticed, repr(error)


async def test_without_another_look_when_it_is_prepared_a_write_would_be_made_twice(pair, monkeypatch):
    monkeypatch.setattr(Descent, "straight", lambda self, after: True)
    wf = pair[0].workflow("w")
    await step(wf)
    await wf.restore(1)
    before_it_is_queued(pair[0], monkeypatch, lambda: pair[1].workflow("w").restore(2))
    await step(wf)
    assert await wf.get("/n") == 2


@pytest.mark.parametrize(
    "take", [lambda s: s["queue"].pop(0), lambda s: s["jobs"].pop(min(s["jobs"]))], ids=["item", "key"]
)
async def test_a_key_is_not_spent_for_another_item_than_was_taken(pair, take):
    wf = await pair[0].create("jobs", {"queue": ["a", "b"], "jobs": {"1": "a", "2": "b"}})

    async def taken(key):
        async with wf.edit(idempotency_key=key) as state:
            return take(state)

    assert await taken("ann") == "a"
    with pytest.raises(KeyReused):
        await taken("ann")  # "b" is somebody else's
    assert await taken("bob") == "b"


@pytest.mark.parametrize(
    "changes",
    [
        [quire.Set(("v",), UserDict(a=1))],
        {"v": UserDict(a=1)},
        MappingProxyType({"v": 1}),
        [MappingProxyType({"op": "add", "path": "/v", "value": 1})],
        deque([quire.Set(("v",), 1)]),
    ],
    ids=["value", "merge patch", "mapping", "JSON Patch", "deque"],
)
async def test_a_key_stands_for_whatever_form_of_changes_is_applied(changes):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {})
        first = await wf.apply(changes, idempotency_key="k")
        assert await wf.apply(changes, idempotency_key="k") == first
        with pytest.raises(KeyReused):
            await wf.apply({"v": 7}, idempotency_key="k")
