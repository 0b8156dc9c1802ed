"""Answers from history: what differs, who did it, when it began, what it was, and undoing one version of many."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire import Append, Insert, Remove, Schema, Set
from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.values import same
from quire.engine.clock import FakeClock
from quire.errors import Invalid, MergeConflict, VersionNotFound
from quire.testing.strategies import changes_for, states


async def written(store, *values, name="w"):
    w = await store.create(name, {"n": 0, "log": []})
    for value in values:
        async with w.edit(author=f"a{value}") as state:
            state["n"] = value
            state["log"].append(value)
    return w


# what differs


async def test_a_diff_says_what_it_amounts_to(store):
    w = await store.create("w", {"a": 1, "b": {"c": 2}, "l": [1, 2], "t": "x" * 100})
    await w.save({"a": 5, "l": [1, 2, 3], "new": None, "t": "x" * 50 + "y" * 50}, overwrite=True)
    found = await w.diff(1, 2)
    assert (sorted(found.added), sorted(found.modified), found.removed) == (["/l/2", "/new"], ["/a", "/t"], ["/b"])
    assert found.summary == "2 added, 2 modified, 1 removed"
    assert same(apply(await w.state(1), found), await w.state(2))
    assert (await w.diff(2)).summary == "no difference"
    assert (await w.diff(2, 1)).removed == ["/new", "/l/2"]


async def test_a_diff_of_two_workflows(store):
    w, v = await written(store, 1, 2), await written(store, 1, 5, name="v")
    for other in (v, "v"):
        found = await w.diff(of=other)
        assert same(apply(await w.state(), found), await v.state())
    assert (await w.diff(2, 2, of="v")).summary == "no difference"
    with pytest.raises(VersionNotFound):
        await w.diff(1, 9, of=v)


# when


async def test_history_between_two_moments(tmp_path):
    clock = FakeClock()
    async with quire.open("memory:", clock=clock) as store:
        w = await store.create("w", {"n": 0})
        start = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
        for i in range(1, 6):
            await clock.wind(3600)
            await w.set("/n", i)
        hour = timedelta(hours=1)
        assert [v.number for v in await w.history(since=start + hour, until=start + 3 * hour)] == [3, 2]
        assert [v.number for v in await w.history(since=(start + 4 * hour).isoformat())] == [6, 5]
        assert [v.number for v in await w.history(until=(start + hour).replace(tzinfo=None), limit=5)] == [1]
        with pytest.raises(Invalid, match="not a moment"):
            await w.history(since="yesterday")


async def test_bisect_finds_the_first_version_that_broke_it(store):
    w = await written(store, *range(1, 40))
    looked = []

    def broken(state):
        looked.append(state["n"])
        state["log"].clear()  # what it is given is its own
        return state["n"] >= 17

    found = await w.bisect(broken)
    assert (found.number, found.author) == (18, "a17")
    assert len(looked) <= 8

    async def later(state):
        await asyncio.sleep(0)
        return state["n"] >= 30

    assert (await w.bisect(later, good=5, bad="~2")).number == 31
    for ends in ({"good": 35}, {"bad": 20}, {"good": 10, "bad": 10}):
        with pytest.raises(Invalid, match="must not hold for version"):
            await w.bisect(later, **ends)
    with pytest.raises(ZeroDivisionError):
        await w.bisect(lambda _: 1 / 0)


async def test_replay_tells_every_version_of_a_range(store):
    w = await written(store, 1, 2, 3)
    fork = await w.fork("f", at=2)
    await fork.set("/n", 9)
    seen = []
    assert await w.replay(lambda v, s: seen.append((v.number, s["n"], s["log"])), first=2, last=3) == 2
    assert seen == [(2, 1, [1]), (3, 2, [1, 2])]

    async def take(version, state):
        seen.append((version.number, state["n"]))
        state["log"].append("mine")

    seen.clear()
    assert await fork.replay(take) == 2
    assert seen == [(1, 1), (2, 9)]
    assert (await fork.state())["log"] == [1]

    def stop(*_):
        raise KeyError("enough")

    with pytest.raises(KeyError):
        await w.replay(stop)


@given(states, st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_replayed_is_what_is_read(first, data):
    async def check():
        async with quire.open("memory:") as store:
            w = await store.create("w", first)
            for _ in range(data.draw(st.integers(0, 5))):
                await w.apply(data.draw(changes_for(await w.state(), 3)), allow_empty=True)
            seen = []
            await w.replay(lambda v, s: seen.append(s))
            assert same(seen, [await w.state(v) for v in range(1, len(seen) + 1)])

    asyncio.run(check())


# undoing


async def test_one_version_is_undone_and_what_came_later_stays(store):
    w = await store.create("w", {"a": 1, "l": ["x"], "n": 0})
    await w.apply([Set(("a",), 2), Append(("l",), ["bad"]), Set(("b",), 1)], author="eve")
    await w.append("/l", "later")
    await w.inc("/n")
    made = await w.revert(2, author="ann")
    assert await w.state() == {"a": 1, "l": ["x", "later"], "n": 1}
    assert (made.kind, made.message, made.author) == ("revert", "reverted version 2", "ann")
    await w.revert(made.number)
    assert await w.state() == {"a": 2, "b": 1, "l": ["x", "bad", "later"], "n": 1}


async def test_what_later_versions_built_on_is_not_undone_unasked(store):
    w = await store.create("w", {"a": 1})
    await w.set("/a", 2)
    await w.set("/a", 3)
    with pytest.raises(MergeConflict):
        await w.revert(2)
    assert await w.get("/a") == 3
    kept = await w.revert(2, on_conflict="theirs", author="bob")
    assert (kept.number, kept.author, kept.changes, await w.get("/a")) == (4, "bob", [], 3)
    await w.revert(2, on_conflict="ours")
    assert await w.get("/a") == 1
    for version in (1, "1"):
        with pytest.raises(Invalid, match="began or ended"):
            await w.revert(version)
    with pytest.raises(VersionNotFound):
        await w.revert(99)


async def test_versions_are_undone_one_by_one_from_the_newest(store):
    w = await store.create("w", {"a": 1, "l": []})
    for value in (2, 3, 4):
        await w.apply([Set(("a",), value), Append(("l",), [value])])
    for version in (4, 3, 2):
        await w.revert(version)
    assert await w.state() == {"a": 1, "l": []}


@given(states, st.data())
@settings(max_examples=150, deadline=None)
def test_undoing_the_newest_gives_what_was_before(first, data):
    async def check():
        async with quire.open("memory:") as store:
            w = await store.create("w", first)
            await w.apply(data.draw(changes_for(first, 5)), allow_empty=True)
            await w.revert(2)
            assert same(await w.state(), first)

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["create", "delete", "fork", "merge", "migrate", "redact"])
async def test_the_words_of_the_engine_are_no_kinds_of_a_writer(store, kind):
    w = await store.create("w", {})
    with pytest.raises(Invalid, match="a word of Quire's own"):
        await w.set("/a", 1, kind=kind)
    assert await w.exists()


async def test_the_place_after_the_last_item_is_written_to(store):
    w = await store.create("w", {"l": [1], "o": {"-": 0}})
    await w.set("/l/-", 2)
    await w.set("/o/-", 5)
    assert await w.state() == {"l": [1, 2], "o": {"-": 5}}
    assert (await w.version(2)).changes == [Append(("l",), [2])]


# who


def keyed(*schemas):
    return Schema("board", kinds={"/tasks": "keyed(id)"})


def task(name, **more):
    return {"id": name, "who": "", **more}


async def test_blame_follows_items_that_are_moved():
    async with quire.open("memory:", schemas=[keyed()]) as store:
        w = await store.create("w", {"tasks": [task("a"), task("b"), task("c")]}, schema="board", author="ann")
        await w.set("/tasks/0/who", "x", author="bob")
        state = await w.state()
        await w.apply([Remove(("tasks",), 0), Append(("tasks",), [state["tasks"][0]])], author="mover")
        await w.apply(diff(await w.state(), {**state, "tasks": (await w.get("/tasks"))[::-1]}), author="turner")
        moved = await w.get("/tasks/0")
        await w.apply([Remove(("tasks",), 0), Insert(("tasks",), 1, [{**moved, "done": True}])], author="cat")
        by = {line.path: line.author for line in await w.blame("/tasks")}
        where = {t["id"]: i for i, t in enumerate(await w.get("/tasks"))}
        assert by[f"/tasks/{where['a']}/id"] == "ann"
        assert by[f"/tasks/{where['a']}/who"] == "bob"
        assert by[f"/tasks/{where['a']}/done"] == "cat"
        assert by[f"/tasks/{where['b']}/id"] == by[f"/tasks/{where['c']}/who"] == "ann"


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_blame_of_keyed_items_does_not_depend_on_where_they_stand(data):
    """A model: who last gave each field of each item the value it has."""

    async def check():
        async with quire.open("memory:", schemas=[keyed()]) as store:
            w = await store.create("w", {"tasks": [task(i) for i in "abc"]}, schema="board", author="v1")
            who = {i: dict.fromkeys(("id", "who"), "v1") for i in "abc"}
            for number in range(2, 8):
                items = [dict(t) for t in await w.get("/tasks")]
                verb = data.draw(st.sampled_from(["shuffle", "edit", "drop", "add", "both"]))
                if verb in ("shuffle", "both"):
                    items = data.draw(st.permutations(items))
                if verb in ("edit", "both") and items:
                    chosen = data.draw(st.sampled_from(items))
                    if chosen["who"] != f"w{number}":
                        chosen["who"] = f"w{number}"
                        who[chosen["id"]]["who"] = f"v{number}"
                if verb == "drop" and items:
                    who.pop(items.pop(data.draw(st.integers(0, len(items) - 1)))["id"])
                if verb == "add":
                    items.insert(data.draw(st.integers(0, len(items))), task(f"n{number}"))
                    who[f"n{number}"] = dict.fromkeys(("id", "who"), f"v{number}")
                await w.save({**await w.state(), "tasks": items}, author=f"v{number}", allow_empty=True, overwrite=True)
            items = await w.get("/tasks")
            lines = {line.path: line.author for line in await w.blame("/tasks")} if items else {}
            for index, item in enumerate(items):
                for field in ("id", "who"):
                    assert lines[f"/tasks/{index}/{field}"] == who[item["id"]][field]

    asyncio.run(check())


async def test_blame_goes_through_merges_to_who_wrote_it(store):
    w = await store.create("w", {"a": 1}, author="ann")
    fork = await w.fork("f", author="bob")
    await fork.set("/b", 2, author="bob", message="because")
    await fork.append("/l", 3) if await fork.get("/l") else await fork.set("/l", [3], author="cat")
    await w.set("/c", 4, author="dan")
    await w.merge(fork, author="merger")
    lines = {line.path: line for line in await w.blame()}
    assert {p: (x.author, x.workflow_id, x.version) for p, x in lines.items()} == {
        "/a": ("ann", "w", 1),
        "/b": ("bob", "f", 2),
        "/l/0": ("cat", "f", 3),
        "/c": ("dan", "w", 2),
    }
    assert lines["/b"].message == "because"
    second = await w.fork("g")
    await second.set("/d", 5, author="eve")
    await w.merge(second)
    assert {x.author for x in await w.blame("/b")} == {"bob"}


async def test_without_await(tmp_path):
    def check():
        with quire.sync.open(str(tmp_path / "s.db")) as store:
            w = store.create("w", {"n": 0})
            for i in range(1, 5):
                w.set("/n", i)
            assert w.bisect(lambda s: s["n"] >= 3 and w.get("/n") == 4).number == 4
            seen = []
            assert w.replay(lambda v, s: seen.append((v.number, s["n"], w.id)), first=2) == 4
            assert seen[0] == (2, 1, "w")
            assert w.revert(5).number == 6
            assert w.diff(1, of=w).summary == "1 modified"

    await asyncio.to_thread(check)
