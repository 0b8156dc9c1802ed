"""Forks are merged: everything of both sides once, conflicts kept, the same whoever merges, whatever the web."""

import asyncio
import random

import pytest

import quire
from quire.api import merging
from quire.core import keyframes
from quire.errors import HeadMoved, Invalid, InvalidKey, MergeConflict, QuireError, WorkflowNotFound
from quire.model import Head


async def parted(store):
    """Return a workflow and its fork, each with work of its own."""
    a = await store.create("a", {"title": "t", "n": 1, "notes": ["x"], "deep": {"k": 1}})
    b = await a.fork("b", author="bob")
    await a.inc("/n", 5, author="ann")
    await b.inc("/n", 7, author="bob")
    await a.append("/notes", "of a", author="ann")
    await b.append("/notes", "of b", author="bob")
    return a, b


async def test_work_of_both_is_there_in_one_version(store):
    a, b = await parted(store)
    result = await a.merge(b, author="mia", message="back together")
    assert await a.state() == {"title": "t", "n": 13, "notes": ["x", "of a", "of b"], "deep": {"k": 1}}
    assert await b.get("/n") == 8  # the other stays as it is
    assert (result.version.number, result.version.author, result.version.kind) == (4, "mia", "merge")
    assert result.version.message == "back together"
    assert (result.base, result.conflicts, result.up_to_date) == (("a", 1), [], False)
    assert "ours: /n +5" in result.summary
    assert "theirs: /n +7" in result.summary
    assert (await store.verify()).ok


async def test_a_second_merge_takes_only_what_came_since(store):
    a, b = await parted(store)
    await a.merge(b)
    again = await a.merge("b")
    assert again.up_to_date
    assert again.version.number == 4
    assert "nothing to merge" in again.summary
    await b.inc("/n", 100)
    result = await a.merge(b)
    assert result.base == ("b", 3)
    assert [c.amount for c in result.theirs] == [100]
    assert await a.get("/n") == 113
    back = await b.merge(a)
    assert await b.state() == await a.state()
    assert (await a.merge(b)).version.number == (await a.version()).number
    assert not back.conflicts
    assert (await b.merge(a)).up_to_date or await b.state() == await a.state()


async def test_an_old_version_can_be_merged(store):
    a, b = await parted(store)
    await a.merge(b, at=2)
    assert await a.get("/n") == 13
    assert "of b" not in await a.get("/notes")
    await a.merge(b)
    assert await a.get("/notes") == ["x", "of a", "of b"]
    assert await a.get("/n") == 13


async def test_what_cannot_both_stand_is_kept_and_can_be_decided(store):
    a, b = await parted(store)
    await a.set("/title", "A", author="ann")
    await b.set("/title", "B", author="bob")
    result = await a.merge(b, on_conflict="queue", author="mia")
    (conflict,) = result.conflicts
    assert await a.conflicts(status="pending") == [conflict]
    assert (conflict.path, conflict.merged, conflict.base.value) == ("/title", "b", "t")
    assert (conflict.ours.value, conflict.ours.author, conflict.ours.version) == ("A", "ann", 4)
    assert (conflict.theirs.value, conflict.theirs.author, conflict.theirs.version) == ("B", "bob", 4)
    assert await a.get("/title") == "A"
    assert "1 conflict(s), 1 pending" in result.summary
    await a.set("/title", "A, later")
    kept = await a.resolve(conflict.id, "ours")
    assert await a.get("/title") == "A, later"  # what stands is not taken back
    assert kept.number == (await a.version()).number
    assert [c.status for c in await a.conflicts()] == ["resolved"]


@pytest.mark.parametrize(
    ("policy", "title"), [("ours", "A"), ("theirs", "B"), ("last", "B"), (lambda m: f"{m.ours}{m.theirs}", "AB")]
)
async def test_policies(store, policy, title):
    a, b = await parted(store)
    await a.set("/title", "A")
    await b.set("/title", "B")
    result = await a.merge(b, on_conflict=policy)
    assert await a.get("/title") == title
    assert [c.status for c in await a.conflicts()] == ["resolved"]
    assert await a.get("/n") == 13
    decided = await a.resolve(result.conflicts[0].id, "value", "C")
    assert (await a.get("/title"), decided.kind) == ("C", "resolve")


async def test_theirs_can_be_taken_afterwards(store):
    a, b = await parted(store)
    await a.set("/title", "A")
    await b.set("/title", "B")
    (conflict,) = (await a.merge(b, on_conflict="queue")).conflicts
    await a.resolve(conflict.id, "theirs", author="cleo")
    assert await a.get("/title") == "B"
    (done,) = await a.conflicts()
    assert (done.status, done.resolution, done.resolved_by) == ("resolved", "theirs", "cleo")


async def test_reject_writes_nothing(store):
    a, b = await parted(store)
    await a.set("/title", "A")
    await b.set("/title", "B")
    before = await a.version()
    with pytest.raises(MergeConflict, match="/title"):
        await a.merge(b, on_conflict="reject")
    assert (await a.version()).number == before.number
    assert await a.conflicts() == []


async def test_a_dry_run_says_and_does_nothing(store):
    a, b = await parted(store)
    await a.set("/title", "A")
    await b.set("/title", "B")
    plan = await a.merge(b, dry_run=True)
    assert plan.version.number == (await a.version()).number == 4
    assert len(plan.conflicts) == 1
    assert await a.conflicts() == []
    done = await a.merge(b)
    assert done.changes == plan.changes


async def test_what_cannot_be_merged_is_said(store):
    a, b = await parted(store)
    await store.create("stranger", {})
    with pytest.raises(Invalid, match="no common history"):
        await a.merge("stranger")
    with pytest.raises(WorkflowNotFound):
        await a.merge("nobody")
    with pytest.raises(HeadMoved):
        await a.merge(b, if_version=1)
    with pytest.raises(Invalid, match="conflict policy"):
        await a.merge(b, on_conflict="lsat")
    with pytest.raises(InvalidKey):
        await a.merge("../b")
    assert (await a.merge(a)).up_to_date
    assert (await a.version()).number == 3


async def test_whoever_merges_gets_the_same(store):
    a, b = await parted(store)
    await a.set("/title", "A")
    await b.delete("/deep")
    await a.set("/deep/k", 9)
    await b.insert("/notes", 0, "first of b")
    await a.insert("/notes", 0, "first of a")
    before = await a.version()
    await a.merge(b)
    await b.merge(a, at=before.number)
    assert await a.state() == await b.state()


async def test_writers_go_on_while_it_is_merged(store):
    a, b = await parted(store)

    async def write(wf, amount):
        for _ in range(60):
            await wf.inc("/n", amount)

    async def join():
        for _ in range(15):
            await a.merge(b)

    # a hot head may win every time; nothing is lost by that
    *done, joined = await asyncio.gather(write(a, 1000), write(b, 1_000_000), join(), return_exceptions=True)
    assert done == [None, None]
    assert joined is None or isinstance(joined, HeadMoved)
    await a.merge(b)
    assert await a.get("/n") == 13 + 60 * 1000 + 60 * 1_000_000


async def test_it_is_all_there_after_a_restart(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        a, b = await parted(store)
        await a.merge(b)
        await b.inc("/n", 100)
    async with quire.open(path) as store:
        result = await store.workflow("a").merge("b")
        assert result.base == ("b", 3)
        assert await store.workflow("a").get("/n") == 113


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_the_web_everything_known_is_there_once(store, seed):
    """Random forks, writes and merges, crossing as they like: each token counts once where it is known, and only there."""
    chance = random.Random(seed)
    names = ["w0"]
    await store.create("w0", {"n": 0, "log": [], "by": {}, "gone": {}, "text": ""})
    known, gone = {"w0": set()}, {"w0": set()}
    for step in range(45):
        name = chance.choice(names)
        wf = store.workflow(name)
        what = chance.random()
        if what < 0.12 and len(names) < 6:
            names.append(f"w{len(names)}")
            await wf.fork(names[-1])
            known[names[-1]], gone[names[-1]] = set(known[name]), set(gone[name])
        elif what < 0.2 and known[name] - gone[name]:
            token = chance.choice(sorted(known[name] - gone[name]))
            async with wf.edit(author=name) as state:
                state["log"].remove(token)
                at = state["text"].index(chr(0x4E00 + token))
                state.splice("text", at, 1)
                state["gone"][str(token)] = name
            gone[name].add(token)
        elif what < 0.6:
            async with wf.edit(author=name) as state:
                state.increment("n", 2**step)
                if chance.random() < 0.5:
                    state["log"].append(step)
                else:
                    state["log"].insert(chance.randint(0, len(state["log"])), step)
                state["by"][str(step)] = name
                at = chance.randint(0, len(state["text"]))
                state.splice("text", at, 0, chr(0x4E00 + step))
            known[name].add(step)
        else:
            other = chance.choice(names)
            number = chance.randint(1, (await store.workflow(other).version()).number)
            if chance.random() < 0.7:
                number = None
            theirs = await store.workflow(other).state(number)
            known[name] |= {int(t) for t in theirs["by"]}
            gone[name] |= {int(t) for t in theirs["gone"]}
            result = await wf.merge(other, at=number, author="merger")
            assert all(
                c.path.startswith("/gone/") for c in result.conflicts
            )  # removed by two, for reasons of their own
        state = await wf.state()
        assert sorted(state["log"]) == sorted(known[name] - gone[name])
        assert state["n"] == sum(2**t for t in known[name])
        assert {int(t) for t in state["by"]} == known[name]
        assert sorted(state["text"]) == sorted(chr(0x4E00 + t) for t in known[name] - gone[name])
    assert (await store.verify()).ok


async def test_what_is_not_kept_any_more_is_said_and_nothing_is_lost(store):
    w = await store.create("w", {"n": 0})
    for i in range(1, 6):
        await w.set("/n", i)
    fork = await w.fork("f", at=2)
    await fork.set("/f", 1)
    backend = store.engine.backend
    chain = (await w.version(4)).record.chain
    await backend.put_keyframe(keyframes.make(Head(w.stream, 4, chain), await w.state(4)))
    await backend.trim(w.stream, 3)
    for gone in (w.fork("g", at=2), w.state(2), w.diff(2), w.revert(3)):
        with pytest.raises(QuireError):
            await gone
    assert not await store.workflow("g").exists()
    with pytest.raises(QuireError):
        await w.merge(fork)
    assert (await w.fork("h", at=5)).id == "h"
    assert await w.get("/n") == 5
    assert await w.get("/n", version=4) == 3
    report = await store.verify(w.id)
    assert report.ok, report.problems


@pytest.mark.parametrize("policy", ["ours", "queue"])
async def test_items_that_one_side_changed_stay_and_nothing_else_does_beside_a_removal_of_all(store, policy):
    main = await store.create("main", {"l": ["a", "b"]})
    fork = await main.fork("fork")
    await fork.remove("/l", 0)
    await fork.remove("/l", 0)
    await main.append("/l", "bob's", author="bob")
    await main.set("/l/0", "A", author="bob")
    await main.merge(fork, on_conflict=policy)
    assert await main.get("/l") == ["A", "bob's"]


async def test_a_new_item_of_a_fork_keeps_all_that_was_done_to_it(store):
    main = await store.create("main", {"l": ["a"]})
    fork = await main.fork("fork")
    await fork.set("/l/0", "edited", author="bob")
    await fork.insert("/l", 0, {"v": 1}, author="bob")
    await fork.set("/l/0/n", 2, author="bob")
    await main.remove("/l", 0)
    await main.merge(fork)
    assert (await main.get("/l"))[0] == {"v": 1, "n": 2}


@pytest.mark.parametrize("polite", [5, 100], ids=["held", "control"])
async def test_a_merge_gets_its_turn_beside_writers_that_never_pause(store, monkeypatch, polite):
    monkeypatch.setattr(merging, "_POLITE", polite)
    monkeypatch.setattr(merging, "_ATTEMPTS", 8)
    wf = await store.create("w", {"notes": [], "n": 0})
    ended = False
    decided = merging._decided

    async def slowly(*args):
        await asyncio.sleep(0.02)
        return await decided(*args)

    async def noting(name):
        count = 0
        while not ended:
            await wf.append("/notes", f"{name} {count}")
            count += 1
            await asyncio.sleep(0)
        return count

    monkeypatch.setattr(merging, "_decided", slowly)
    writers = [asyncio.create_task(noting(name)) for name in "ab"]
    fork = await wf.fork("f")
    await fork.inc("/n")
    try:
        if polite == 5:
            await wf.merge(fork)
        else:
            with pytest.raises(HeadMoved, match="others wrote first 8 times while it was merged; nothing was written"):
                await wf.merge(fork)
    finally:
        ended = True
        counts = await asyncio.gather(*writers)
    assert await wf.get("/n") == (polite == 5)
    assert len(await wf.get("/notes")) == sum(counts)


async def test_a_merge_that_is_cancelled_lets_other_writers_go_on(store, monkeypatch):
    monkeypatch.setattr(merging, "_POLITE", 1)
    wf = await store.create("w", {"n": 0})
    fork = await wf.fork("f")
    await fork.inc("/n")
    decided, calls = merging._decided, []

    async def stuck(*args):
        calls.append(args)
        if len(calls) == 1:
            await wf.inc("/n")
        elif len(calls) == 2:
            await asyncio.sleep(60)
        return await decided(*args)

    monkeypatch.setattr(merging, "_decided", stuck)
    merge = asyncio.create_task(wf.merge(fork))
    while len(calls) < 2:
        await asyncio.sleep(0.01)
    late = asyncio.create_task(wf.set("/late", 1))
    other = await store.create("other", {"n": 0})
    await other.inc("/n")
    assert not late.done()
    merge.cancel()
    await late
    with pytest.raises(asyncio.CancelledError):
        await merge
