"""Workflows and stores, through the public API, on both backends."""

import asyncio
import copy
import gc
import itertools
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire.api.draft import recording
from quire.core.changes import apply
from quire.core.values import same
from quire.engine.clock import FakeClock
from quire.errors import (
    AlreadyExists,
    ChangeError,
    CheckpointNotFound,
    Closed,
    CorruptRecord,
    HeadMoved,
    Invalid,
    InvalidKey,
    InvalidState,
    KeyReused,
    LimitExceeded,
    MergeConflict,
    VersionNotFound,
    WorkflowNotFound,
)
from quire.testing import strategies as qs


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory:" if request.param == "memory" else str(tmp_path / "s.db")


@pytest.fixture
async def store(url):
    async with quire.open(url) as opened:
        yield opened


@pytest.fixture
async def wf(store):
    return await store.create("w", {"topic": "tides", "notes": ["a"], "n": 0, "text": "abc"}, author="ann")


async def test_versions_count_from_one_without_gap_and_know_their_parent(wf):
    for i in range(5):
        await wf.set("/n", i + 1, author=f"a{i}", message=f"m{i}")
    versions = await wf.history(order="oldest")
    assert [v.number for v in versions] == [1, 2, 3, 4, 5, 6]
    assert [v.parent for v in versions] == [None, 1, 2, 3, 4, 5]
    assert versions[3].author == "a2"
    assert versions[3].message == "m2"
    assert len({v.id for v in versions}) == 6
    assert versions[0].kind == "create"
    assert versions[1].size_bytes == len('[["set",["n"],1]]')


async def test_every_writing_method(wf):
    await wf.set("/topic", "neaps")
    await wf.append("/notes", "b", "c")
    await wf.insert("/notes", 0, "z")
    await wf.remove("/notes", 1)
    await wf.splice("/text", 1, 1, "XY")
    await wf.inc("/n", 5)
    await wf.inc("/fresh")
    await wf.set(("notes", 0), "y")
    await wf.delete("/topic")
    await wf.delete("/notes/0")
    assert await wf.state() == {"notes": ["b", "c"], "n": 5, "text": "aXYc", "fresh": 1}
    await wf.apply([{"op": "add", "path": "/notes/-", "value": "d"}, {"op": "test", "path": "/n", "value": 5}])
    await wf.apply({"n": None, "deep": {"x": 1}})
    await wf.apply([quire.Set(("k",), 1), quire.Append(("notes",), ["e"])])
    assert await wf.state() == {"notes": ["b", "c", "d", "e"], "text": "aXYc", "fresh": 1, "deep": {"x": 1}, "k": 1}
    await wf.save({"k": 2}, overwrite=True)
    assert await wf.state() == {"k": 2}


async def test_what_changes_nothing_makes_no_version(wf):
    assert (await wf.set("/n", 0)).number == 1
    assert (await wf.append("/notes")).number == 1
    assert (await wf.save(await wf.state(), overwrite=True)).number == 1
    async with wf.edit() as state:
        state["n"] = 0
    assert (await wf.version()).number == 1
    assert (await wf.set("/n", 0, allow_empty=True)).number == 2
    assert (await wf.set("/n", 0.0)).number == 3  # 0 and 0.0 are two values


async def test_bad_values_are_refused_with_their_place_and_nothing_is_stored(wf):
    for value, path in [(float("nan"), "/x"), ({"a": [b"x"]}, "/x/a/0"), ("\ud800", "/x")]:
        with pytest.raises(InvalidState) as caught:
            await wf.set("/x", value)
        assert caught.value.path == path
    with pytest.raises(InvalidState):
        await wf.save({"n": float("inf")}, overwrite=True)
    with pytest.raises(InvalidState):
        async with wf.edit() as state:
            state["x"] = {1: 2}
    with pytest.raises(LimitExceeded):
        await wf.set("/x", {"k" * 1_000_000: 1})
    with pytest.raises(ChangeError):
        await wf.set("/no/where", 1)
    with pytest.raises(ChangeError):
        await wf.apply([quire.Set(("n",), 5), quire.Delete(("none",))])
    with pytest.raises(Invalid):
        await wf.apply([5])
    with pytest.raises(Invalid, match="authro"):
        await wf.set("/x", 1, authro="me")
    with pytest.raises(Invalid):
        await wf.set("/x", 1, author="")
    with pytest.raises(InvalidState):
        await wf.set("/x", 1, message="\ud800")
    with pytest.raises(InvalidKey):
        await wf.get("n")
    assert (await wf.version()).number == 1
    assert (await wf.state())["n"] == 0


async def test_a_write_over_the_limit_is_refused_and_the_next_one_works(tmp_path):
    async with quire.open("memory:", settings=quire.Settings(write_bytes_max=1000)) as store:
        wf = await store.create("w", {})
        with pytest.raises(LimitExceeded, match="1,000"):
            await wf.set("/x", "y" * 2000)
        await wf.set("/x", "y")
        assert await wf.state() == {"x": "y"}


async def test_nothing_passed_in_or_out_is_the_stored_state(wf):
    value = {"deep": [1]}
    await wf.set("/v", value)
    value["deep"].append(2)
    (await wf.state())["v"]["deep"].append(3)
    (await wf.get("/v"))["deep"].append(4)
    (await wf.version()).changes[0].value["deep"].append(5)
    (await wf.diff(1, 2))[0].value["deep"].append(6)
    (await wf.blame("/v"))[0]
    whole = await wf.state()
    whole["w"] = {"x": []}
    await wf.save(whole, overwrite=True)
    whole["w"]["x"].append(1)
    async with wf.edit() as state:
        out = state["v"].to_plain()
        state["again"] = out
        out["deep"].append(7)
    assert await wf.get("/v") == {"deep": [1]}
    assert await wf.get("/again") == {"deep": [1]}
    assert await wf.get("/w") == {"x": []}


async def test_unknown_things_have_their_errors(store, wf):
    with pytest.raises(AlreadyExists):
        await store.create("w", {})
    with pytest.raises(WorkflowNotFound, match="ghost"):
        await store.workflow("ghost").state()
    with pytest.raises(WorkflowNotFound):
        await store.workflow("ghost").set("/a", 1)
    for version in (0, -1, 99, "99", "~9", "1-000000000000"):
        with pytest.raises(VersionNotFound):
            await wf.state(version)
    with pytest.raises(CheckpointNotFound):
        await wf.state("ghost")
    with pytest.raises(Invalid):
        await wf.state(True)
    with pytest.raises(Invalid):
        await wf.state("2026-99-99")
    assert not await store.workflow("ghost").exists()
    assert await wf.get("/ghost", default=7) == 7


async def test_revisions(url):
    clock = FakeClock()
    async with quire.open(url, clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        for n in (1, 2, 3):
            await clock.wind(60)
            await wf.set("/n", n)
        await wf.checkpoint("two", version=3)
        third = await wf.version(3)
        moment = third.time + timedelta(seconds=30)
        for revision in (3, "3", "~1", "two", third.id, moment, moment.isoformat(), third.time):
            assert await wf.get("/n", version=revision) == 2, revision
        with pytest.raises(VersionNotFound):
            await wf.state(datetime(2001, 1, 1, tzinfo=UTC))


async def test_history_filters(wf):
    await wf.set("/a", {"b": 1}, author="bob")
    await wf.set("/a/b", 2, author="cat", kind="special")
    await wf.append("/notes", "x", author="bob")
    assert [v.number for v in await wf.history(2)] == [4, 3]
    assert [v.number for v in await wf.history(author="bob")] == [4, 2]
    assert [v.number for v in await wf.history(path="/a/b")] == [3, 2, 1]
    assert [v.number for v in await wf.history(path="/notes", order="oldest")] == [1, 4]
    assert [v.number for v in await wf.history(kind="special")] == [3]
    assert [v.number for v in await wf.history(before=3)] == [2, 1]
    assert [v.number for v in await wf.history(1, order="oldest")] == [1]


async def test_checkpoints(wf):
    await wf.set("/n", 1)
    made = await wf.checkpoint("first", tags=["milestone"], description="d", author="ann")
    await wf.set("/n", 2)
    snap = await wf.checkpoint("snap", kind="snapshot")
    assert (made.version, made.tags, made.author) == (2, ("milestone",), "ann")
    assert made.checksum == (await wf.version(2)).checksum
    assert snap.blob is not None
    assert snap.size_bytes is not None
    assert [c.name for c in await wf.checkpoints()] == ["first", "snap"]
    assert [c.name for c in await wf.checkpoints(tag="milestone")] == ["first"]
    with pytest.raises(AlreadyExists):
        await wf.checkpoint("first")
    for name in ("5", "~1", "3-0123456789ab", "2026-01-01", "", "a b"):
        with pytest.raises(InvalidKey):
            await wf.checkpoint(name)
    restored = await wf.restore("first", author="bob")
    assert (restored.number, restored.kind, await wf.get("/n")) == (4, "restore", 1)
    await wf.drop_checkpoint("first")
    with pytest.raises(CheckpointNotFound):
        await wf.state("first")
    with pytest.raises(CheckpointNotFound):
        await wf.drop_checkpoint("first")


async def test_deleting_keeps_history_and_numbers(store, wf):
    await store.delete("w", author="bob")
    assert await store.workflows() == []
    assert not await wf.exists()
    with pytest.raises(WorkflowNotFound):
        await wf.state()
    await store.create("w", {"new": True})
    assert (await wf.version()).number == 3
    assert await wf.state(1) == {"topic": "tides", "notes": ["a"], "n": 0, "text": "abc"}


async def test_the_past_of_what_was_deleted_is_read_as_before(store, wf):
    await wf.set("/n", 1, author="ann")
    await wf.checkpoint("good")
    await wf.set("/n", 2)
    made = await wf.version(2)
    await store.delete("w", author="bob")
    assert [(v.number, v.kind) for v in await wf.history()] == [
        (4, "delete"),
        (3, "change"),
        (2, "change"),
        (1, "create"),
    ]
    assert [v.number for v in await wf.history(author="ann", kind="change", path="/n", before=4)] == [2]
    assert [v.number for v in await wf.history(before="good", order="oldest")] == [1]
    assert [(await wf.state(v))["n"] for v in (1, "2", "~1", "good", made.id)] == [0, 1, 2, 1, 1]
    assert await wf.get("/n", version=3) == 2
    assert await wf.version("good") == made
    assert (await wf.version(4)).author == "bob"
    assert (await wf.diff(1, 3)).modified == ["/n"]
    assert [b.version for b in await wf.blame("/n", version=3)] == [3]
    assert [n.version.number for n in await wf.graph(2)] == [2, 1]
    seen = []
    assert await wf.replay(lambda v, state: seen.append(state["n"]), first=1, last=3) == 3
    assert seen == [0, 1, 2]
    assert (await wf.bisect(lambda state: state["n"] > 0, good=1, bad=3)).number == 2
    with pytest.raises(VersionNotFound):
        await wf.state(5)
    again = await wf.fork("w-again", at=3)
    assert (await again.get("/n"), await again.get("/topic")) == (2, "tides")


async def test_what_was_deleted_has_no_head_and_takes_no_writes(store, wf):
    await wf.set("/n", 1)
    await store.delete("w")
    for act in (
        wf.state(),
        wf.get("/n"),
        wf.version(),
        wf.diff(1),
        wf.blame("/n"),
        wf.graph(),
        wf.replay(print),
        wf.bisect(bool, good=1),
        wf.set("/n", 2),
        wf.restore(1),
        wf.revert(2),
        wf.fork("f"),
        wf.checkpoint("late"),
        wf.checkpoint("late", version=1),
        anext(wf.watch()),
        store.delete("w"),
        store.workflow("never").history(),
        store.workflow("never").state(1),
    ):
        with pytest.raises(WorkflowNotFound):
            await act
    assert await store.workflows() == []
    assert [v.number for v in await wf.history(limit=1)] == [3]


async def test_forks_share_history_and_nothing_else(store, wf):
    await wf.set("/n", 1)
    fork = await wf.fork("f", at=1)
    grand = await fork.fork("g")
    await fork.set("/n", 9)
    await wf.set("/n", 2)
    assert (await wf.get("/n"), await fork.get("/n"), await grand.get("/n")) == (2, 9, 0)
    assert (await fork.version(1)).kind == "fork"
    with pytest.raises(AlreadyExists):
        await wf.fork("f")
    assert [(b.workflow_id, b.version) for b in await fork.blame("/n")] == [("f", 2)]
    assert [(b.workflow_id, b.version) for b in await fork.blame("/topic")] == [("w", 1)]
    assert (await store.verify()).ok


async def test_if_version(wf):
    await wf.set("/n", 1, if_version=1)
    with pytest.raises(HeadMoved) as caught:
        await wf.set("/n", 2, if_version=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    with pytest.raises(HeadMoved):
        async with wf.edit(if_version=1) as state:
            state["n"] = 5
    assert await wf.get("/n") == 1


async def test_edits_of_one_base_are_rebased(wf):
    async with wf.edit(author="slow") as slow:
        async with wf.edit(author="quick") as quick:
            quick["notes"].insert(0, "quick")
            quick["topic"] = "quick"
        slow["notes"][0] = "slow"  # the item that was first when we looked
        slow["notes"].append("end")
        slow.increment("n")
        slow["topic"] = "slow"
    assert await wf.state() == {"topic": "slow", "notes": ["quick", "slow", "end"], "n": 1, "text": "abc"}


async def test_an_edit_of_something_taken_away_loses_nothing_silently(wf):
    with pytest.raises(MergeConflict, match="/notes/0"):
        async with wf.edit() as slow:
            await wf.set("/notes", {})
            slow["notes"][0] = "lost?"
    assert await wf.get("/notes") == {}


async def test_a_base_older_than_memory_is_rebased_over_the_log(url):
    async with quire.open(url, settings=quire.Settings(recent_records=4)) as store:
        wf = await store.create("w", {"l": [], "n": 0})
        async with wf.edit() as state:
            for i in range(20):
                await wf.append("/l", i)
            state["n"] = 7
            state["l"].append("mine")
        assert await wf.state() == {"l": [*range(20), "mine"], "n": 7}


async def test_a_block_that_raises_writes_nothing(wf):
    with pytest.raises(RuntimeError):
        async with wf.edit() as state:
            state["n"] = 5
            raise RuntimeError
    assert await wf.get("/n") == 0
    async with wf.edit() as state:
        pass
    with pytest.raises(Closed):
        state["n"] = 6


async def test_save_with_a_base_keeps_what_others_did(wf):
    mine = await wf.state()
    await wf.set("/topic", "theirs")
    mine["n"] = 5
    await wf.save(mine, base=1)
    assert (await wf.get("/topic"), await wf.get("/n")) == ("theirs", 5)


async def test_a_hundred_writers_of_one_workflow(wf):
    await asyncio.gather(*(wf.inc("/n") for _ in range(100)), *(wf.append("/notes", i) for i in range(100)))
    assert await wf.get("/n") == 100
    assert sorted(await wf.get("/notes"), key=str) == sorted(["a", *range(100)], key=str)
    assert (await wf.version()).number == 201


async def test_idempotency_keys(wf, store):
    first = await wf.inc("/n", idempotency_key="k")
    again = await wf.inc("/n", idempotency_key="k")
    assert first.number == again.number == 2
    both = await asyncio.gather(*(wf.inc("/n", idempotency_key="k2") for _ in range(5)))
    assert {v.number for v in both} == {3}
    assert await wf.get("/n") == 2
    with pytest.raises(KeyReused):
        await wf.inc("/n", 5, idempotency_key="k")
    with pytest.raises(InvalidKey):
        await wf.inc("/n", idempotency_key="")
    other = await store.create("v", {"n": 0})
    assert (await other.inc("/n", idempotency_key="k")).number == 2


async def test_transactions_are_all_or_nothing(store, wf):
    other = await store.create("v", {"n": 0})
    made = await store.transact([wf.change([quire.Set(("n",), 1)]), other.change({"n": 1}, author="bob")])
    assert [v.number for v in made] == [2, 2]
    assert made[1].position == made[0].position + 1
    with pytest.raises(ChangeError):
        await store.transact([wf.change({"n": 2}), other.change([quire.Delete(("none",))])])
    with pytest.raises(HeadMoved):
        await store.transact([wf.change({"n": 2}), other.change({"n": 2}, if_version=1)])
    with pytest.raises(WorkflowNotFound):
        await store.transact([wf.change({"n": 2}), store.workflow("ghost").change({"n": 2})])
    assert (await wf.get("/n"), await other.get("/n")) == (1, 1)
    with pytest.raises(Invalid):
        await store.transact([])
    twice = await store.transact([wf.change({"n": 3}), wf.change({"m": 3})])
    assert [v.number for v in twice] == [3, 4]


@pytest.mark.parametrize("policy", [None, "reject"])
@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (quire.Set(("n",), 1), quire.Set(("n",), 2), ("n",)),
        (quire.Set(("n",), 1), quire.Delete(("n",)), ("n",)),
        (quire.Delete(("o",)), quire.Set(("o", "x"), 2), ("o", "x")),
        (quire.Remove(("l",), 0, 1), quire.Set(("l", 0), 2), ("l", 0)),
    ],
)
async def test_parts_that_contradict_each_other_are_refused_without_a_version_that_is_not_written(
    store, policy, first, second, path
):
    wf = await store.create("w", {"n": 0, "o": {"x": 1}, "l": [1]})
    parts = [wf.change([c], base=1, author="ann", on_conflict=policy) for c in (first, second)]
    with pytest.raises(MergeConflict, match="two parts of one transaction contradict each other at /") as refused:
        await store.transact(parts)
    (met,) = refused.value.conflicts
    assert (met.path, met.author, met.version) == (path, "ann", None)
    assert (refused.value.reason, refused.value.workflow_id, refused.value.base) == ("parts", "w", 1)
    assert refused.value.changes == [second]
    assert (await wf.version()).number == 1


async def test_a_part_that_met_others_names_them_and_no_part_before_it(store):
    wf = await store.create("w", {"a": 0, "b": 0})
    await wf.set("/a", 1, author="bob")
    own = wf.change([quire.Set(("b",), 1)], base=1, author="ann")
    both = wf.change([quire.Set(("a",), 2), quire.Set(("b",), 2)], base=1, author="ann")
    with pytest.raises(MergeConflict, match="by bob in version 2") as refused:
        await store.transact([own, both])
    assert [(m.path, m.author, m.version) for m in refused.value.conflicts] == [
        (("b",), "ann", None),
        (("a",), "bob", 2),
    ]


async def test_parts_made_on_one_base_are_done_in_order_and_what_a_policy_decides_is_recorded(store):
    wf = await store.create("w", {"n": 0, "l": ["a", "b"], "m": 0})
    changes = [quire.Remove(("l",), 0, 1), quire.Set(("l", 1), "B"), quire.Set(("m",), 1)]
    made = await store.transact([wf.change([c], base=1) for c in changes])
    assert [v.number for v in made] == [2, 3, 4]
    assert await wf.state() == {"n": 0, "l": ["B"], "m": 1}
    await store.transact([wf.change([quire.Set(("n",), n)], base=4, on_conflict="ours") for n in (1, 2)])
    (conflict,) = await wf.conflicts()
    assert (conflict.theirs.version, conflict.ours.version, await wf.get("/n")) == (5, 6, 2)


async def test_parts_of_a_transaction_may_name_the_version_before_it_or_the_one_before_them(store):
    wf = await store.create("w", {"n": 0})
    sums = [quire.Increment(("n",), 1)]
    made = await store.transact([wf.change(sums, if_version=1), wf.change(sums, if_version=1)])
    made += await store.transact([wf.change(sums, if_version=3), wf.change(sums, if_version=4)])
    assert [v.number for v in made] == [2, 3, 4, 5]
    with pytest.raises(HeadMoved) as refused:
        await store.transact([wf.change(sums, if_version=5), wf.change(sums, if_version=4)])
    assert (refused.value.actual, (await wf.version()).number) == (5, 5)


async def test_transactions_and_single_writes_mix(store, wf):
    other = await store.create("v", {"n": 0})
    both = [
        store.transact([wf.change([quire.Increment(("n",), 1)]), other.change([quire.Increment(("n",), 1)])])
        for _ in range(20)
    ]
    await asyncio.gather(*both, *(wf.inc("/n") for _ in range(20)), *(other.inc("/n") for _ in range(20)))
    assert (await wf.get("/n"), await other.get("/n")) == (40, 40)


async def test_watching_is_past_and_future_without_gap(store, wf):
    await wf.set("/n", 1)
    seen = []

    async def watch():
        async for event in wf.watch(after=0):
            seen.append(event.version.number)
            if len(seen) == 52:
                return

    task = asyncio.create_task(watch())
    for i in range(50):
        await wf.set("/n", i + 2)
    await task
    assert seen == list(range(1, 53))


async def test_watch_filters(wf):
    await wf.set("/a", 1, author="bob")
    await wf.append("/notes", 1, author="cat")
    await wf.inc("/n", author="bob")

    async def first(**filters):
        async for event in wf.watch(after=1, **filters):
            return event.version.number
        return None

    assert await first(path="/n") == 4
    assert await first(types=["append"]) == 3
    assert await first(author="cat") == 3
    with pytest.raises(Invalid, match="unknown change type"):
        await first(types=["spam"])


async def test_a_store_watch_sees_every_workflow_in_order(store, wf):
    other = await store.create("v", {})
    await wf.checkpoint("c")
    await other.set("/x", 1)
    seen = []
    async for event in store.watch(after=0):
        seen.append((event.workflow_id, event.version.number))
        if len(seen) == 3:
            break
    assert seen == [("w", 1), ("v", 1), ("v", 2)]


async def test_a_named_cursor_comes_back_where_it_was(url, tmp_path):
    url = str(tmp_path / "cursor.db")

    async def take(count):
        taken = []
        async with quire.open(url) as store:
            watch = store.workflow("w").watch(after=0, cursor="agent")
            async for event in watch:
                taken.append(event.version.number)
                if len(taken) == count:
                    break
            await watch.aclose()
        return taken

    async with quire.open(url) as store:
        wf = await store.create("w", {"n": 0})
        for i in range(5):
            await wf.set("/n", i + 1)
    assert await take(3) == [1, 2, 3]
    assert await take(3) == [3, 4, 5]  # the third was taken but not done with: at least once


async def test_closing(url):
    store = await quire.open(url)
    wf = await store.create("w", {"n": 0})
    pending = [asyncio.ensure_future(wf.inc("/n")) for _ in range(10)]
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert {v.number for v in await asyncio.gather(*pending)} == set(range(2, 12))
    with pytest.raises(Closed):
        await wf.set("/n", 1)
    with pytest.raises(Closed):
        await wf.state()


async def test_keyframes_are_written_and_never_matter(url):
    async with quire.open(
        url, settings=quire.Settings(keyframe_changes_min=4, keyframe_bytes_min=0, resident_bytes_max=0)
    ) as store:
        wf = await store.create("w", {"l": []})
        states = [await wf.state()]
        for i in range(60):
            await wf.append("/l", {"i": i, "text": "x" * 20})
            states.append(await wf.state())
        while not (frames := await store.engine.backend.keyframes("workflows/w")):
            await asyncio.sleep(0.01)
        for version in range(1, 62):
            assert await wf.state(version) == states[version - 1]
        await store.engine.backend.drop_keyframes("workflows/w", frames)
        assert await wf.state(30) == states[29]
        assert (await store.verify()).ok


async def test_a_false_keyframe_is_passed_over_and_reported(tmp_path):
    import apsw

    path = str(tmp_path / "s.db")
    async with quire.open(path, settings=quire.Settings(keyframe_changes_min=4, keyframe_bytes_min=0)) as store:
        wf = await store.create("w", {"l": []})
        for i in range(30):
            await wf.append("/l", i)
        while not await store.engine.backend.keyframes("workflows/w"):
            await asyncio.sleep(0.01)
    db = apsw.Connection(path)
    db.execute("UPDATE keyframes SET digest = zeroblob(32)")
    db.close()
    async with quire.open(path) as store:
        assert await store.workflow("w").get("/l") == list(range(30))
        report = await store.verify()
        assert not report.ok
        assert "keyframe" in report.problems[0]


async def test_an_altered_record_is_found(tmp_path):
    import apsw

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await wf.set("/n", 1, author="ann")
    db = apsw.Connection(path)
    db.execute("UPDATE records SET author = 'eve' WHERE version = 2")
    db.close()
    async with quire.open(path) as store:
        with pytest.raises(CorruptRecord, match="v2"):
            await store.workflow("w").state()
        report = await store.verify()
        assert len(report.problems) == 1
        assert "v2" in report.problems[0]


async def test_many_workflows_and_eviction(url):
    async with quire.open(url, settings=quire.Settings(resident_bytes_max=2000)) as store:
        flows = [await store.create(f"w{i}", {"n": i, "pad": "x" * 50}) for i in range(50)]
        assert len(store.engine.residents) < 20
        for i, wf in enumerate(flows):
            await wf.inc("/n")
            assert await wf.get("/n") == i + 1
        assert await store.workflows("w1") == sorted(f"w{i}" for i in range(50) if str(i).startswith("1"))
        assert await store.workflows(after="w5", limit=2) == ["w6", "w7"]


async def test_two_stores_on_one_file_see_each_other(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as two:
        a = await one.create("w", {"n": 0, "l": []})
        b = two.workflow("w")
        assert await b.state() == {"n": 0, "l": []}
        await a.set("/n", 1)
        assert await b.get("/n") == 1
        await asyncio.gather(*(x.inc("/n") for _ in range(50) for x in (a, b)))
        assert await a.get("/n") == await b.get("/n") == 101
        async with b.edit() as state:
            await a.append("/l", "theirs")
            state["l"].append("ours")
        assert await a.get("/l") == ["theirs", "ours"]
        waiting = asyncio.ensure_future(anext(b.watch()))
        await asyncio.sleep(0.05)
        await a.set("/n", 0)
        event = await waiting
        assert event.changes == [quire.Set(("n",), 0)]
        assert (await one.verify()).ok


async def test_namespaces_and_backup(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path, namespace="other") as two:
        await one.create("w", {"a": 1})
        assert await two.workflows() == []
        await two.create("w", {"b": 1})
        assert await one.workflow("w").state() == {"a": 1}
        await one.backup(str(tmp_path / "copy.db"))
        with pytest.raises(InvalidKey):
            await one.backup(str(tmp_path / "copy.db"))
    async with quire.open(str(tmp_path / "copy.db"), namespace="other") as copied:
        assert await copied.workflow("w").state() == {"b": 1}
        assert (await copied.verify()).ok


async def test_blobs(store):
    name = await store.put_blob(b"bytes")
    assert await store.blob(name) == b"bytes"
    assert await store.blob("0" * 64) is None
    with pytest.raises(Invalid):
        await store.put_blob("text")


@settings(max_examples=100)
@given(qs.states, st.data())
def test_a_draft_behaves_like_what_it_drafts(state, data):
    plain, draft = copy.deepcopy(state), recording(copy.deepcopy(state))
    for _ in range(data.draw(st.integers(0, 8))):
        path, value = data.draw(st.sampled_from(qs.places(plain)))
        a, b = plain, draft
        for token in path:
            a, b = a[token], b[token]
        new = data.draw(qs.values)
        if isinstance(value, dict):
            act, key = data.draw(st.sampled_from(["set", "pop", "update", "setdefault", "clear"])), data.draw(qs.keys)
            for side in (a, b):
                match act:
                    case "set":
                        side[key] = copy.deepcopy(new)
                    case "pop":
                        side.pop(key, None)
                    case "update":
                        side.update({key: copy.deepcopy(new)})
                    case "setdefault":
                        side.setdefault(key, copy.deepcopy(new))
                    case _:
                        side.clear()
        elif isinstance(value, list):
            act, at = (
                data.draw(st.sampled_from(["append", "insert", "del", "slice", "iadd", "reverse"])),
                data.draw(st.integers(0, 3)),
            )
            for side in (a, b):
                match act:
                    case "append":
                        side.append(copy.deepcopy(new))
                    case "insert":
                        side.insert(at, copy.deepcopy(new))
                    case "del":
                        del side[at : at + 2]
                    case "slice":
                        side[at : at + 1] = [copy.deepcopy(new)]
                    case "iadd":
                        side += [copy.deepcopy(new)]
                    case _:
                        side.reverse()
    assert same(draft.to_plain(), plain)
    assert same(apply(state, draft.changes), plain)


def test_a_draft_of_an_item_stays_with_its_item():
    draft = recording({"l": [{"n": 1}, {"n": 2}]})
    second = draft["l"][1]
    draft["l"].insert(0, {"n": 0})
    second["n"] = 22
    del draft["l"][0]
    second["m"] = 1
    assert draft == {"l": [{"n": 1}, {"n": 22, "m": 1}]}
    del draft["l"][1]
    with pytest.raises(ChangeError, match="removed"):
        second["n"] = 3


def test_the_sync_facade(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        wf = store.create("w", {"n": 0, "l": []})
        with wf.edit(author="ann") as state:
            state["l"].append(1)
        wf.inc("/n", 2)
        assert wf.state() == {"n": 2, "l": [1]}
        assert [e.version.number for _, e in zip(range(3), wf.watch(after=0), strict=False)] == [1, 2, 3]
        assert wf.fork("f").get("/n") == 2
        assert store.workflows() == ["f", "w"]
        assert store.verify().ok
        with pytest.raises(WorkflowNotFound):
            store.workflow("ghost").state()
    with pytest.raises(Closed):
        wf.state()


@pytest.mark.parametrize("turn", range(4))
def test_closing_ends_every_thread_that_uses_the_store_and_says_nothing(url, turn, caplog):
    store = quire.sync.open(url)
    wf = store.create("w", {"n": 0})
    begun, ended, interval = threading.Semaphore(0), [], sys.getswitchinterval()

    def until_closed(use):
        try:
            for again in itertools.count():
                use()
                if not again:
                    begun.release()
        except BaseException as error:
            ended.append(error)

    looks, changes = store.watch_health(every_s=1e-4), wf.watch()
    uses = [wf.state, lambda: wf.inc("/n"), store.health, lambda: next(looks), lambda: next(changes), store.stats]
    threads = [threading.Thread(target=until_closed, args=(use,), daemon=True) for use in uses]
    sys.setswitchinterval(1e-3)
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=240)
        time.sleep(turn / 2000)
        store.close()
        for thread in threads:
            thread.join(240)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert len(ended) == len(uses) and all(isinstance(e, Closed | StopIteration) for e in ended), ended
    gc.collect()
    assert not caplog.records


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda wf: wf.save([1], overwrite=True), InvalidState, "an object, not list"),
        (lambda wf: wf.save(None, base=1), InvalidState, "an object, not NoneType"),
        (lambda wf: wf.save({"n": 3}, base=1.5), Invalid, "1.5 is not a version"),
        (lambda wf: wf.state(True), Invalid, "True is not a version"),
        (lambda wf: wf.state([1]), Invalid, "is not a version"),
        (lambda wf: wf.history("x"), Invalid, "limit='x'"),
        (lambda wf: wf.history(order="up"), Invalid, "newest and oldest"),
        (lambda wf: wf.inc("/n", 1, minimum=5, maximum=1), Invalid, "at least 5 and at most 1"),
    ],
)
async def test_what_is_no_state_version_or_bound_is_refused_by_name(call, error, said):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"n": 1})
        with pytest.raises(error, match=said):
            await call(wf)
        assert (await wf.version()).number == 1
