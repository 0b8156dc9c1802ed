"""What campaigns found, as the smallest programs that show it, the most serious first. Each is fixed by its own change."""

import asyncio

import pytest
from msgspec import UNSET

import quire
from quire.errors import MergeConflict, OutOfBounds


@pytest.fixture
async def store():
    async with quire.open("memory:") as store:
        yield store


async def test_a_key_that_others_removed_and_put_back_is_still_removed(store):
    wf = await store.create("w", {"jobs": {"a": 1}})
    async with wf.edit(author="ann") as mine:
        assert mine["jobs"].pop("a") == 1
        await wf.delete("/jobs/a", author="bob")
        await wf.set("/jobs/a", 1, author="bob")  # the same value: ann's read holds, and she is not refused
    assert await wf.state() == {"jobs": {}}


async def test_an_append_is_not_lost_with_a_removal_in_front_of_it(store):
    wf = await store.create("w", {"queue": ["a", "b"]})
    async with wf.edit(author="ann") as mine:
        del mine["queue"][0]
        mine["queue"].append("ann's")
        async with wf.edit(author="bob") as theirs:
            theirs["queue"][0] = "c"
            del theirs["queue"][0]
    assert await wf.get("/queue") == ["b", "ann's"]


async def test_a_blind_removal_stands_or_a_conflict_tells_of_it(store):
    wf = await store.create("w", {"k": 1})
    async with wf.edit(author="ann") as mine:
        del mine["k"]
        await wf.delete("/k", author="bob")
        await wf.set("/k", 2, author="bob")
    assert await wf.state() == {} or await wf.conflicts()


class Beaten:
    """Two handles of one place; the other writes first each time that one has prepared a batch, as often as it is told."""

    def __init__(self, one, other):
        self.wf, self.other = one.workflow("w"), other.workflow("w")
        self.backend, self.commit = one.engine.backend, one.engine.backend.commit

    def by(self, *writes):
        self.writes = list(writes)
        self.backend.commit = self.committing
        return self.wf

    async def committing(self, items):
        if self.writes:
            await self.writes.pop(0)(self.other)
        return await self.commit(items)


@pytest.fixture
async def beaten():
    async with quire.open("memory:beaten") as one, quire.open("memory:beaten") as other:
        await one.create("w", {"budget": 100, "plan": "first", "a": 1})
        yield Beaten(one, other)


@pytest.mark.parametrize("policy", ["theirs", "queue"])
async def test_what_was_met_at_one_place_leaves_out_nothing_at_another(beaten, policy):
    wf = beaten.by(lambda other: other.delete("/a"), lambda other: other.set("/a", 5))
    async with wf.edit(author="ann", on_conflict=policy) as mine:
        mine.pop("a")
        mine["plan"] = "ann's"  # nobody else writes the plan
    assert await wf.get("/plan") == "ann's"


@pytest.mark.parametrize("policy", ["last", "ours", "theirs", "queue"])
async def test_a_policy_decides_however_often_a_write_is_beaten(beaten, policy):
    wf = beaten.by(lambda other: other.delete("/a"), lambda other: other.set("/a", 5))
    async with wf.edit(author="ann", on_conflict=policy) as mine:
        mine.pop("a")


async def test_an_append_goes_to_the_end_of_a_list_that_others_replaced_and_appended_to(store):
    wf = await store.create("w", {"log": ["a"]})
    async with wf.edit() as mine:
        mine["log"].append("ours")
        await wf.set("/log", ["b", "c", "d"])
        await wf.append("/log", "e")
    assert await wf.get("/log") == ["b", "c", "d", "e", "ours"]


async def test_what_was_read_is_relied_on_though_it_was_written_since(store):
    wf = await store.create("w", {"x": {"p": 1, "q": 1}})
    with pytest.raises(MergeConflict):
        async with wf.edit(author="ann") as mine:
            mine["x"]["p"] = mine["x"]["p"] + 1
            mine["x"] = {"p": 5}
            await wf.set("/x/q", 2, author="bob")


async def test_a_write_is_refused_only_for_what_is_committed(beaten):
    wf = beaten.by(lambda other: other.inc("/budget", -50, author="cleo"))
    bob, dora = await asyncio.gather(
        wf.inc("/budget", -60, minimum=0), wf.inc("/budget", -45, minimum=0), return_exceptions=True
    )
    assert isinstance(bob, OutOfBounds)  # of the 50 that cleo left
    assert not isinstance(dora, OutOfBounds)  # told "would be -5", of bob's 40, which never was
    assert await wf.get("/budget") == 5


async def test_a_refusal_names_a_version_of_the_log(beaten):
    wf = beaten.by(lambda other: other.inc("/budget", author="cleo"))

    async def ann():
        async with wf.edit(author="ann") as mine:
            mine["plan"] = f"not {mine['plan']}"

    _, refused = await asyncio.gather(wf.set("/plan", "bob's", author="bob"), ann(), return_exceptions=True)
    assert isinstance(refused, MergeConflict)
    (met,) = refused.conflicts
    assert (await wf.version(met.version)).author == met.author
    assert await wf.get("/plan", version=met.version) == met.theirs


async def test_history_is_not_missing_because_the_head_moves_meanwhile():
    async with quire.open("memory:caught-up") as other:
        theirs = await other.create("w", {"n": 0, "k": 0})
        for _ in range(3):
            await theirs.inc("/n")
        async with quire.open("memory:caught-up") as one:
            wf = one.workflow("w")
            await wf.version()  # it is in memory now, and knows nothing of older versions
            read = one.engine.backend.read

            async def reading(stream, **how):
                records = await read(stream, **how)
                if how.get("after") == 2:
                    one.engine.backend.read = read
                    await theirs.inc("/n")
                    await wf.version()
                return records

            one.engine.backend.read = reading
            await wf.set("/k", 1, base=2)
            assert await wf.state() == {"n": 4, "k": 1}


async def test_who_is_refused_sees_what_refused_the_write(store):
    wf = await store.create("w", {"plan": "first"})
    commit = store.engine.backend.commit

    async def slowly(items):
        for _ in range(20):
            await asyncio.sleep(0)
        return await commit(items)

    async def ann():
        with pytest.raises(MergeConflict) as refused:
            async with wf.edit(author="ann") as mine:
                mine["plan"] = f"not {mine['plan']}"
        return refused.value.conflicts[0].version, (await wf.version()).number

    store.engine.backend.commit = slowly
    _, (refuser, newest) = await asyncio.gather(wf.set("/plan", "bob's", author="bob"), ann())
    assert newest >= refuser


async def test_a_refused_write_that_is_applied_after_all_keeps_its_bounds(store):
    wf = await store.create("w", {"budget": 100, "plan": "first"})
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit(author="ann") as mine:
            mine["plan"] = f"not {mine['plan']}"
            mine.increment("budget", -60, minimum=0)
            await wf.set("/plan", "bob's")
            await wf.inc("/budget", -60, minimum=0)
    with pytest.raises(OutOfBounds):
        await wf.apply(refused.value.changes, base=refused.value.base, on_conflict="ours")


async def test_a_serializable_edit_has_read_which_item_is_the_last(store):
    wf = await store.create("w", {"log": [1]})
    with pytest.raises(MergeConflict):
        async with wf.edit(isolation="serializable") as mine:
            mine["log"].append(mine["log"][-1] + 1)
            await wf.append("/log", 2)
    assert await wf.state() == {"log": [1, 2]}


async def test_a_serializable_clear_leaves_nothing(store):
    wf = await store.create("w", {"queue": [1]})
    try:
        async with wf.edit(isolation="serializable") as mine:
            mine["queue"].clear()
            await wf.append("/queue", 2)
    except MergeConflict:
        return
    assert await wf.state() == {"queue": []}


@pytest.mark.parametrize("path", ["/x", "/x/k"])
async def test_a_refusal_shows_what_the_version_it_names_has(store, path):
    wf = await store.create("w", {"x": {"k": [1]}})
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit(author="ann") as mine:
            del mine["x"]["k"][0]
            await wf.set(path, {"k": [2]} if path == "/x" else [2], author="bob")
            await wf.append("/x/k", 3, author="cleo")
    (met,) = refused.value.conflicts
    assert (met.path, met.theirs) == (("x", "k", 0), UNSET)
    assert met.author == "bob"  # who put another list there; cleo's item is behind that


@pytest.mark.parametrize("removed", [True, False])
async def test_equal_values_that_were_not_read_are_no_conflict(store, removed):
    wf = await store.create("w", {"leader": "ann"})
    async with wf.edit(author="dora") as mine:
        mine["leader"] = None
        await (wf.delete("/leader", author="bob") if removed else wf.set("/leader", "bob", author="bob"))
        await wf.set("/leader", None, author="cleo")
    assert not await wf.conflicts()


async def test_a_queued_conflict_names_the_last_of_several(store):
    wf = await store.create("w", {"plan": "first"})
    async with wf.edit(author="ann", on_conflict="queue") as mine:
        mine["plan"] = "ann's"
        await wf.set("/plan", "bob's", author="bob")
        await wf.set("/plan", "cleo's", author="cleo")
    (met,) = await wf.conflicts()
    assert (met.theirs.value, met.theirs.author, met.theirs.version) == ("cleo's", "cleo", 3)


@pytest.mark.parametrize("policy", ["both", "queue", "last"])
async def test_what_is_kept_of_a_write_is_what_it_left(store, policy):
    wf = await store.create("w", {"n": 1, "queue": ["a"]})
    async with wf.edit(on_conflict=policy) as mine:
        mine["n"] = 10
        del mine["queue"][0]
        mine["n"] += 1
        await wf.set("/n", 5)
    (met,) = await wf.conflicts()
    assert met.ours.value == 11
    assert (await wf.state()).get("n~2", 11) == 11


@pytest.mark.parametrize("policy", ["theirs", "queue", "both", "reject"])
async def test_what_was_read_and_is_there_again_is_no_conflict(store, policy):
    wf = await store.create("w", {"n": 1})
    async with wf.edit(author="ann", on_conflict=policy) as mine:
        mine["n"] = mine["n"] * 10
        await wf.set("/n", 2, author="bob")
        await wf.set("/n", 1, author="cleo")
    assert await wf.get("/n") == 10


async def test_a_refusal_shows_no_changes_of_its_own(store):
    wf = await store.create("w", {"n": 1})
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit() as mine:
            mine["n"] += 10
            mine["n"] = mine["n"] * 2
            await wf.inc("/n", 100)
    (met,) = refused.value.conflicts
    assert (met.base, met.theirs) == (1, 101)


async def test_a_conflict_shows_what_the_write_came_to(store):
    wf = await store.create("w", {"n": 5})
    async with wf.edit(author="ann") as mine:
        mine["n"] += 2
        await wf.delete("/n", author="bob")
    (met,) = await wf.conflicts()
    assert met.ours.value == await wf.get("/n", version=met.ours.version) == 2


async def test_an_edit_that_changes_nothing_has_no_version(store):
    wf = await store.create("w", {"n": 0, "m": 0})
    edit = wf.edit(author="ann")
    async with edit as mine:
        mine["n"] += 1
        mine["n"] -= 1
    assert edit.version is None


async def test_a_serializable_edit_has_read_only_presence(store):
    wf = await store.create("w", {"groups": {"a": []}})
    async with wf.edit(isolation="serializable") as mine:
        if "a" not in mine["groups"]:
            mine["groups"]["a"] = []
        mine["groups"]["a"].append("ann")
        await wf.append("/groups/a", "bob")
    assert await wf.state() == {"groups": {"a": ["bob", "ann"]}}


async def test_what_was_absent_and_is_absent_is_made(store):
    wf = await store.create("w", {"groups": {}})
    async with wf.edit() as mine:
        mine["groups"].setdefault("a", {})["ann"] = 1
        await wf.set("/groups/a", {"bob": 1})
        await wf.delete("/groups/a")
    assert await wf.state() == {"groups": {"a": {"ann": 1}}}


async def test_a_list_that_is_emptied_is_empty(store):
    wf = await store.create("w", {"groups": {}})
    async with wf.edit(author="ann") as mine:
        mine["groups"].setdefault("a", []).append("ann's")
        mine["groups"]["a"] = []
        await wf.set("/groups/a", ["bob's"], author="bob")
    assert await wf.get("/groups/a") == [] or await wf.conflicts()
