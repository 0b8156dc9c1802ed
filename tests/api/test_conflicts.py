"""Conflicts are recorded with the write that met them, listed, and decided by hand or by policy."""

import asyncio

import pytest
from msgspec import UNSET

import quire
from quire import Insert, Remove, Set
from quire.errors import ChangeError, ConflictNotFound, Invalid, MergeConflict


async def meet(wf, **how):
    """Two agents write the same place from one base."""
    async with wf.edit(author="ann", **how) as ours, wf.edit(author="bob") as theirs:
        theirs["plan"] = "bob's"
        ours["plan"] = "ann's"
        ours["n"] = 1


async def test_by_default_the_last_stands_and_what_it_overruled_is_recorded(store):
    wf = await store.create("w", {"plan": "first", "n": 0})
    await meet(wf)
    assert await wf.state() == {"plan": "ann's", "n": 1}
    (conflict,) = await wf.conflicts()
    assert (conflict.path, conflict.policy, conflict.status, conflict.resolution) == (
        "/plan",
        "last",
        "resolved",
        "ours",
    )
    assert (conflict.base.value, conflict.base.version) == ("first", 1)
    assert (conflict.theirs.value, conflict.theirs.author, conflict.theirs.version) == ("bob's", "bob", 2)
    assert (conflict.ours.value, conflict.ours.author, conflict.ours.version) == ("ann's", "ann", 3)
    assert conflict.change == ["set", ["plan"], "ann's"]


async def test_a_queued_conflict_waits_and_each_choice_closes_it(store):
    for number, (choice, plan) in enumerate([("ours", "ann's"), ("theirs", "bob's"), ("value", "both agree")]):
        wf = await store.create(f"w{number}", {"plan": "first", "n": 0})
        await meet(wf, on_conflict="queue")
        assert await wf.state() == {"plan": "bob's", "n": 1}
        (conflict,) = await wf.conflicts(status="pending")
        made = await wf.resolve(conflict.id, choice, "both agree" if choice == "value" else None, author="eve")
        assert (await wf.state())["plan"] == plan
        assert made.number == (await wf.version()).number
        assert await wf.conflicts(status="pending") == []
        (closed,) = await wf.conflicts()
        assert (closed.status, closed.resolution, closed.resolved_by) == ("resolved", choice, "eve")
        assert closed.resolved_at is not None
        # deciding again, even differently, is a plain write and never a new conflict
        await wf.resolve(conflict.id, "ours")
        assert (await wf.state())["plan"] == "ann's"
        assert len(await wf.conflicts()) == 1


async def test_a_store_has_a_policy_and_a_write_may_have_another(tmp_path):
    async with quire.open("memory:", on_conflict="reject") as store:
        wf = await store.create("w", {"plan": "first", "n": 0})
        with pytest.raises(MergeConflict, match="w: /plan was written by others"):
            await meet(wf)
        assert await wf.state() == {"plan": "bob's", "n": 0}
        assert await wf.conflicts() == []
        await wf.set("/plan", "second")
        await meet(wf, on_conflict=lambda met: sorted([met.ours, met.theirs]))
        assert (await wf.state())["plan"] == ["ann's", "bob's"]
        with pytest.raises(Invalid, match="no conflict policy"):
            await meet(wf, on_conflict="mine")
    with pytest.raises(Invalid, match="no conflict policy 'mine'"):
        quire.open("memory:", on_conflict="mine")


async def test_a_place_that_is_gone(store):
    wf = await store.create("w", {"o": {"k": 1}})
    with pytest.raises(MergeConflict, match="/o/k was removed or replaced") as refused:
        async with wf.edit(author="ann") as ours:
            ours["o"]["k"] = 2
            await wf.delete("/o", author="bob")
    assert refused.value.conflicts[0].ours == 2
    await wf.set("/o", {"k": 1})
    async with wf.edit(author="ann", on_conflict="queue") as ours:
        ours["o"]["k"] = 3
        await wf.delete("/o", author="bob")
    (conflict,) = await wf.conflicts()
    assert (conflict.status, conflict.ours.value, conflict.ours.version) == ("pending", 3, 5)
    assert (await wf.version()).changes == []  # nothing of it could stand; that it was made is in the history
    with pytest.raises(ChangeError, match="/o"):
        await wf.resolve(conflict.id, "ours")
    assert (await wf.conflicts())[0].status == "pending"
    await wf.resolve(conflict.id, "theirs")
    assert (await wf.conflicts())[0].status == "resolved"


async def test_a_deletion_of_ours_can_be_chosen(store):
    wf = await store.create("w", {"plan": "first", "l": [1, 2]})
    async with wf.edit(on_conflict="queue") as ours:
        del ours["plan"]
        await wf.set("/plan", "second", author="bob")
    (conflict,) = await wf.conflicts()
    await wf.resolve(conflict.id, "ours")
    assert await wf.state() == {"l": [1, 2]}


async def test_what_the_engine_no_longer_remembers_is_read(tmp_path):
    settings = quire.Settings(recent_records=4)
    async with quire.open(str(tmp_path / "s.db"), settings=settings) as store:
        wf = await store.create("w", {"plan": "first", "n": 0})
        async with wf.edit(author="ann") as ours:
            ours["plan"] = "ann's"
            await wf.set("/plan", "bob's", author="bob")
            for i in range(20):
                await wf.set("/n", i + 1)
        assert await wf.state() == {"plan": "ann's", "n": 20}
        (conflict,) = await wf.conflicts()
        assert (conflict.theirs.author, conflict.theirs.version, conflict.ours.version) == ("bob", 2, 23)


async def test_many_at_once_keep_every_write_or_its_conflict(store):
    wf = await store.create("w", {f"k{i}": None for i in range(3)})

    async def agent(name):
        for i in range(10):
            async with wf.edit(author=name, on_conflict="queue") as state:
                await asyncio.sleep(0)
                state[f"k{i % 3}"] = f"{name}-{i}"

    await asyncio.gather(*(agent(f"a{n}") for n in range(8)))
    history = await wf.history(kind="change")
    assert len(history) == 80
    written = {v.changes[0].value for v in history if v.changes}
    queued = {c.ours.value for c in await wf.conflicts()}
    assert written | queued == {f"a{n}-{i}" for n in range(8) for i in range(10)}
    assert not written & queued
    assert (await store.verify()).ok


async def test_conflicts_survive_and_are_in_sync_too(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await meet(await store.create("w", {"plan": "first", "n": 0}), on_conflict="queue")

    def look():
        with quire.sync.open(path) as store:
            wf = store.workflow("w")
            (conflict,) = wf.conflicts(status="pending")
            wf.resolve(conflict.id, "ours", author="eve")
            return wf.get("/plan")

    assert await asyncio.to_thread(look) == "ann's"


async def test_wrong_choices_are_told(store):
    wf = await store.create("w", {})
    with pytest.raises(ConflictNotFound, match="Conflict not found: w nope"):
        await wf.resolve("nope")
    with pytest.raises(Invalid, match="choice 'mine'"):
        await wf.resolve("nope", "mine")


ROWS = {"rows": [{"w": "a"}, {"w": "b"}, {"w": "c"}], "log": []}


@pytest.fixture
async def rows(store):
    return await store.create("rows", ROWS)


async def put_in_front(wf, what):
    await wf.apply([Insert(("rows",), 0, [{"w": what}])])


@pytest.mark.parametrize("choice", ["ours", "theirs", "value"])
async def test_a_decision_is_about_the_item_that_was_met_wherever_it_is_by_now(rows, choice):
    async with rows.edit(author="ann", on_conflict="queue") as mine:
        mine["rows"].insert(0, {"w": "ann's"})
        mine["rows"][2]["w"] = "ann"
        await rows.set("/rows/1/w", "bob", author="bob")
        await put_in_front(rows, "before")
    (met,) = await rows.conflicts()
    assert met.path == "/rows/3/w" and await rows.get(met.path, version=met.ours.version) == met.theirs.value == "bob"
    await put_in_front(rows, "since")
    await rows.resolve(met.id, choice, *(["cleo"] if choice == "value" else []))
    stands = {"ours": "ann", "theirs": "bob", "value": "cleo"}[choice]
    assert [row["w"] for row in await rows.get("/rows")] == ["since", "before", "ann's", "a", stands, "c"]


async def test_a_decision_about_an_item_that_is_gone_by_now_is_refused(rows):
    async with rows.edit(author="ann", on_conflict="queue") as mine:
        mine["rows"][1]["w"] = "ann"
        await rows.set("/rows/1/w", "bob")
    (met,) = await rows.conflicts()
    await rows.apply([Remove(("rows",), 1)])
    with pytest.raises(ChangeError, match="is not there any more"):
        await rows.resolve(met.id, "ours")
    assert [row["w"] for row in await rows.get("/rows")] == ["a", "c"]


TAKEN = {"theirs": ["a", "bob", "c"], "queue": ["a", "bob", "c"], "both": ["a", "bob", "c"], "last": ["a", "c"]}


@pytest.mark.parametrize("choice", ["ours", "theirs"])
@pytest.mark.parametrize("policy", TAKEN)
async def test_who_takes_out_an_item_decides_about_that_item_only(rows, policy, choice):
    async with rows.edit(author="ann", on_conflict=policy) as mine:
        mine["rows"].pop(1)
        mine["rows"][1]["w"] += "!"
        mine["rows"].append({"w": "ann's"})
        await rows.set("/rows/1/w", "bob", author="bob")
        await put_in_front(rows, "before")
    there = TAKEN[policy]
    assert [row["w"] for row in await rows.get("/rows")] == ["before", *there[:-1], "c!", "ann's"]
    (met,) = await rows.conflicts()
    assert (met.path, met.base.value, met.theirs.value) == ("/rows/2", {"w": "b"}, {"w": "bob"})
    assert met.ours.value is UNSET and met.theirs.author == "bob"
    await put_in_front(rows, "since")
    await rows.append("/rows", {"w": "later"})
    await rows.resolve(met.id, choice)
    decided = ["a", "bob"] if choice == "theirs" else ["a"]
    after = ["since", "before", *decided, "c!", "ann's", "later"]
    assert [row["w"] for row in await rows.get("/rows")] == after


@pytest.mark.parametrize("policy", ["theirs", "queue", "both"])
async def test_of_several_items_those_stay_that_others_changed(rows, policy):
    async with rows.edit(author="ann", on_conflict=policy) as mine:
        del mine["rows"][:2]
        mine["rows"][0]["w"] += "!"
        await rows.set("/rows/1/w", "bob", author="bob")
    assert [row["w"] for row in await rows.get("/rows")] == ["bob", "c!"]
    (met,) = await rows.conflicts()
    assert met.path == "/rows/0"


async def test_what_is_met_at_one_item_leaves_out_nothing_at_the_next(rows):
    async with rows.edit(author="ann", on_conflict="theirs") as mine:
        mine["rows"][1]["w"] = "ann"
        mine["rows"].insert(1, {"w": "new"})
        mine["rows"][1]["w"] = "ann's new"
        mine["rows"][2]["x"] = "of b"
        mine["rows"][3]["w"] = "of c"
        await rows.set("/rows/1/w", "bob")
    assert await rows.get("/rows") == [{"w": "a"}, {"w": "ann's new"}, {"w": "bob", "x": "of b"}, {"w": "of c"}]


async def test_an_item_that_ours_changed_and_took_out_is_told_as_a_whole_and_can_be_put_back(rows):
    async with rows.edit(author="ann") as mine:
        mine["rows"][0]["w"] = "done"
        mine["rows"].pop(0)
        await rows.set("/rows/0/w", "bob", author="bob")
    (met,) = await rows.conflicts()
    assert (met.path, met.theirs.value, met.ours.value) == ("/rows/0", {"w": "bob"}, UNSET)
    await rows.resolve(met.id, "theirs")
    assert [row["w"] for row in await rows.get("/rows")] == ["bob", "b", "c"]


async def test_deciding_an_item_again_is_about_the_item_as_it_was_decided(rows):
    async with rows.edit(author="ann", on_conflict="last") as mine:
        mine["rows"].pop(1)
        await rows.set("/rows/1/w", "bob", author="bob")
    (met,) = await rows.conflicts()
    for choice, value, stands in [
        ("theirs", None, ["a", "bob", "c"]),
        ("ours", None, ["a", "c"]),
        ("value", {"w": "one"}, ["a", "one", "c"]),
        ("value", {"w": "two"}, ["a", "two", "c"]),
        ("theirs", None, ["a", "bob", "c"]),
    ]:
        await rows.resolve(met.id, choice, *([value] if value else []))
        assert [row["w"] for row in await rows.get("/rows")] == stands
        await put_in_front(rows, "since")
        assert (await rows.get("/rows/0/w")) == "since"
        await rows.remove("/rows", 0)


@pytest.mark.parametrize("path", ["/tasks/7", "/plan"])
async def test_deciding_again_and_again_changes_what_stands(store, path):
    wf = await store.create("w", {"tasks": {"7": "first"}, "plan": "first"})
    await wf.set(path, "bob's", author="bob")
    await wf.set(path, "ann's", base=1, author="ann", on_conflict="last")
    (met,) = await wf.conflicts()
    for choice, stands in [("theirs", "bob's"), ("ours", "ann's"), ("theirs", "bob's")]:
        await wf.resolve(met.id, choice)
        assert await wf.get(path) == stands


@pytest.mark.parametrize("choice", ["ours", "value"])
@pytest.mark.parametrize("place", ["/plan", "/plans/0"])
async def test_a_decision_overwrites_nothing_that_was_written_since(store, choice, place):
    first = {"title": "first", "steps": ["s1"]}
    wf = await store.create("w", {"plan": first, "plans": [first]})
    await wf.set(f"{place}/title", "ann's", author="ann")
    await wf.set(place, {"title": "bob's", "steps": ["s1"]}, base=1, author="bob", on_conflict="queue")
    (met,) = await wf.conflicts()
    await wf.append(f"{place}/steps", "s2", author="dan")
    value = [{"title": "both"}] if choice == "value" else []
    with pytest.raises(MergeConflict, match=r"when they met and is .*overwrite=True") as refused:
        await wf.resolve(met.id, choice, *value)
    assert refused.value.reason == "moved"
    assert await wf.get(place) == {"title": "ann's", "steps": ["s1", "s2"]}
    await wf.resolve(met.id, choice, *value, overwrite=True)
    assert await wf.get(place) == (value[0] if value else {"title": "bob's", "steps": ["s1"]})


@pytest.mark.parametrize("choice", ["ours", "theirs", "value"])
async def test_a_whole_state_can_be_decided(store, choice):
    wf = await store.create("w", {"a": 1})
    await wf.set("/a", 2, author="bob")
    await wf.set("", {"q": 1}, base=1, author="ann", on_conflict="queue")
    (met,) = await wf.conflicts()
    await wf.resolve(met.id, choice, *([{"z": 1}] if choice == "value" else []))
    assert await wf.state() == {"ours": {"q": 1}, "theirs": {"a": 2}, "value": {"z": 1}}[choice]


async def test_both_gives_ours_a_name_that_nobody_has(store):
    wf = await store.create("w", {"plan": "first", "l": [{"v": "first"}]})
    async with wf.edit(author="ann", on_conflict="both") as mine:
        mine["l"].insert(0, {})
        mine["plan~2"], mine["l"][1]["v"], mine["plan"] = "ann's second", "ann's", "ann's"
        await wf.apply([Set(("plan",), "bob's"), Set(("l", 0, "v"), "bob's"), Set(("l", 0, "v~2"), "bob's second")])
    assert await wf.state() == {
        "plan": "bob's",
        "plan~2": "ann's second",
        "plan~3": "ann's",
        "l": [{}, {"v": "bob's", "v~2": "bob's second", "v~3": "ann's"}],
    }


@pytest.mark.parametrize("policy", ["both", lambda met: met.theirs], ids=["both", "function"])
async def test_what_was_settled_is_not_overruled_by_what_ours_does_around_it_later(store, policy):
    wf = await store.create("w", {"o": {"t": "first"}, "l": ["a", "b"]})
    async with wf.edit(author="ann", on_conflict=policy) as mine:
        mine["o"]["t"] = mine["l"][0] = "ann's"
        del mine["o"]
        mine["l"].pop(0)
        await wf.apply([Set(("o", "t"), "bob's"), Set(("l", 0), "bob's")], author="bob")
    assert await wf.state() == {"o": {"t": "bob's"}, "l": ["bob's", "b"]}


async def test_what_a_function_removes_moves_what_ours_does_behind_it(store):
    wf = await store.create("w", {"l": ["a", "b", "c"]})
    async with wf.edit(author="ann", on_conflict=lambda _: UNSET) as mine:
        mine["l"][0], mine["l"][1] = "ann's a", "ann's b"
        await wf.apply([Set(("l", 0), "bob's a"), Set(("l", 1), "bob's b")])
    assert await wf.get("/l") == ["c"]


async def test_a_conflict_of_an_item_names_who_wrote_that_item(store):
    wf = await store.create("w", {"l": ["a", "b"]})
    async with wf.edit(author="ann") as mine:
        mine["l"].insert(0, "new")
        mine["l"][1] = "ann's"
        await wf.set("/l/0", "bob's", author="bob")
        await wf.set("/l/1", "cleo's", author="cleo")
    (met,) = await wf.conflicts()
    assert (met.theirs.value, met.theirs.author) == ("bob's", "bob")
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit(author="ann") as mine:
            mine["l"][0] = "ann's"
            await wf.set("/l/1", "xeno's", author="xeno")
            await wf.remove("/l", 0, author="yves")
    assert refused.value.conflicts[0].author == "yves"


@pytest.mark.parametrize("policy", ["queue", "theirs"])
async def test_a_new_item_keeps_what_ours_does_to_it_where_another_gives_way(rows, policy):
    async with rows.edit(author="ann", on_conflict=policy) as mine:
        mine["rows"][0]["w"] = "ann"
        mine["rows"].insert(0, {"w": "new"})
        mine["rows"][0]["n"] = 2
        await rows.set("/rows/0/w", "bob")
    assert (await rows.get("/rows"))[:2] == [{"w": "new", "n": 2}, {"w": "bob"}]


@pytest.mark.parametrize("kind", ["keyed(id)", "log", "set"])
async def test_an_item_of_a_list_of_a_kind_that_ours_took_out_can_be_put_back(kind):
    async with quire.open("memory:", schemas=[quire.Schema("s", kinds={"/l": kind})]) as store:
        wf = await store.create("w", {"l": [{"id": "x", "v": 0}, {"id": "y", "v": 0}]}, schema="s")
        async with wf.edit(author="ann", on_conflict="last") as mine:
            del mine["l"][0]
            await wf.set("/l/0/v", "bob's", author="bob")
        for met in await wf.conflicts():
            assert met.path.startswith("/l/0")
            await wf.resolve(met.id, "theirs")
        assert {"id": "x", "v": "bob's"} in await wf.get("/l")


async def test_each_of_two_items_that_ours_took_out_has_its_own_conflict(store):
    wf = await store.create("w", {"l": ["a", "b", "c"]})
    async with wf.edit(author="ann") as mine:
        del mine["l"][:2]
        await wf.set("/l/0", "bob's", author="bob")
        await wf.set("/l/1", "a", author="cleo")
    assert await wf.get("/l") == ["c"]
    told = [(met.base.value, met.theirs.value, met.theirs.author) for met in await wf.conflicts()]
    assert sorted(told) == [("a", "bob's", "bob"), ("b", "a", "cleo")]


@pytest.mark.parametrize("policy", ["ours", "queue", "theirs"])
async def test_a_conflict_of_a_merge_is_decided_where_the_merge_left_it(store, policy):
    wf = await store.create("w", {"l": ["a", "b", "c", "d"], "t": "first"})
    fork = await wf.fork("fork")
    await fork.apply([Set(("l", 1), "bob's"), Insert(("l",), 0, ["new"]), Set(("t",), "bob's")], author="bob")
    await wf.apply([Set(("l", 1), "ann's"), Set(("t",), "ann's")], author="ann")
    await wf.set("/later", 1)
    await wf.merge(fork, on_conflict=policy)
    for met in await wf.conflicts():
        await wf.resolve(met.id, "ours" if policy == "theirs" else "theirs")
    stands = "ann's" if policy == "theirs" else "bob's"
    assert await wf.state() == {"l": ["new", "a", stands, "c", "d"], "t": stands, "later": 1}


async def test_hooks_that_write_too_move_no_decision(store):
    wf = await store.create("w", {"l": ["a", "b"], "audit": ["nobody"]})
    async with wf.edit(author="ann", on_conflict="queue") as mine:
        mine["l"][1] = "ann's"
        await wf.set("/l/1", "bob's", author="bob")
    (met,) = await wf.conflicts()
    hook = store.before_change(lambda p: [Set(("audit", 0), p.author), *p.changes] if p.kind == "resolve" else None)
    for choice, stands in [("ours", "ann's"), ("theirs", "bob's"), ("ours", "ann's")]:
        await wf.resolve(met.id, choice, author="mia")
        assert await wf.state() == {"l": ["a", stands], "audit": ["mia"]}
    assert hook is not None


@pytest.mark.parametrize("place", ["/l/0", "/o/k"])
async def test_a_decision_for_what_stood_is_refused_or_made_where_others_wrote_since(store, place):
    wf = await store.create("w", {"l": ["first"], "o": {"k": "first"}})
    await wf.set(place, "bob's", author="bob")
    await wf.set(place, "ann's", base=1, author="ann", on_conflict="queue")
    (met,) = await wf.conflicts()
    await wf.set(place, "cleo's", author="cleo")
    with pytest.raises(MergeConflict):
        await wf.resolve(met.id, "value", "bob's")
    await wf.resolve(met.id, "value", "bob's", overwrite=True)
    assert await wf.get(place) == "bob's"


async def test_a_function_gives_an_object_for_a_whole_state(store):
    wf = await store.create("w", {"a": 1})
    await wf.set("/a", 2, author="bob")
    with pytest.raises(Invalid, match="whole state"):
        await wf.set("", {"q": 1}, base=1, on_conflict=lambda _: UNSET)
    assert await wf.state() == {"a": 2}


async def test_an_item_of_a_list_that_was_made_anew_was_taken_by_who_removed_the_list(store):
    wf = await store.create("w", {"g": {"l": ["a"]}})
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit(author="ann") as mine:
            mine["g"]["l"].pop(0)
            await wf.delete("/g/l", author="bob")
            async with wf.edit(author="cleo") as theirs:
                theirs["g"].setdefault("l", []).append("b")
    (met,) = refused.value.conflicts
    assert (met.base, met.theirs, met.author) == ("a", UNSET, "bob")


async def test_a_decision_on_a_write_that_a_hook_dropped_follows_the_item(store):
    """Nothing of it became a version: the conflict is about the version that it met."""
    wf = await store.create("w", {"l": ["a", "b"]})
    await wf.set("/l/1", "bob's", author="bob")
    await wf.insert("/l", 0, "first")
    hook = store.before_change(lambda proposal: [])
    await wf.set("/l/1", "ann's", base=1, author="ann", on_conflict="last")
    hook.remove()
    (met,) = await wf.conflicts()
    assert (met.path, met.version, met.ours.version) == ("/l/2", 3, None)
    await wf.insert("/l", 0, "zeroth")
    await wf.resolve(met.id, "value", "decided")
    assert await wf.get("/l") == ["zeroth", "first", "a", "decided"]


async def test_a_step_that_is_replaced_later_is_still_guarded(store):
    wf = await store.create("w", {"o": {"k": 1}})
    with pytest.raises(MergeConflict, match="/o/k was read as 1"):
        async with wf.edit() as mine:
            mine["o"]["k"] = mine["o"]["k"] * 2
            mine["o"] = {"k": 5}
            await wf.set("/o/k", 7, author="bob")
    assert await wf.get("/o/k") == 7


@pytest.mark.parametrize("choice", ["ours", "theirs", "value"])
@pytest.mark.parametrize("where", ["key", "item", "merge"])
@pytest.mark.parametrize("since", [False, True])
async def test_what_both_kept_beside_the_other_goes_when_one_is_chosen(choice, where, since):
    """Where somebody changed the copy since, it stays."""
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"o": {"a": 1}, "l": [{"id": 1, "t": "x"}, {"id": 2, "t": "y"}]})
        place = "/l/0/t" if where == "item" else "/o/a"
        if where == "merge":
            fork = await wf.fork("f")
            await wf.set("/o/a", "theirs")
            await fork.set("/o/a", "ours")
            await wf.merge(fork, on_conflict="both")
        else:
            async with wf.edit(on_conflict="both") as state:
                if where == "key":
                    await wf.set("/o/a", "theirs")
                    state["o"]["a"] = "ours"
                else:
                    await wf.set("/l/0", {"id": 1, "t": "theirs"})
                    state["l"][0] = {"id": 1, "t": "ours"}
        (conflict,) = await wf.conflicts()
        kept = await wf.state()
        assert (list(kept["o"]), len(kept["l"])) == ((["a"], 3) if where == "item" else (["a", "a~2"], 2))
        sides = {"ours": conflict.ours.value, "theirs": conflict.theirs.value, "value": "new"}
        if since and where == "item":
            await wf.set("/l/1/t", "edited")
            with pytest.raises(MergeConflict, match="edited"):
                await wf.resolve(conflict.id, choice, *(["new"] if choice == "value" else []))
            return
        if since:
            await wf.set("/o/a~02", "edited")
        await wf.resolve(conflict.id, choice, *(["new"] if choice == "value" else []))
        state = await wf.state()
        assert await wf.get(place.removesuffix("/t")) == sides[choice]
        if where == "item":
            assert state["l"][1:] == [{"id": 2, "t": "y"}]
        else:
            assert state["o"] == {"a": sides[choice], **({"a~2": "edited"} if since else {})}


@pytest.mark.parametrize("policy", ["queue", "theirs"])
async def test_an_item_that_is_gone_is_told_once_whatever_ours_wrote_into_it(policy):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"jobs": [{"id": 1, "by": "", "s": ""}, {"id": 2}]})
        async with wf.edit(author="bob", on_conflict=policy) as state:
            state["jobs"][0]["by"] = "bob"
            state["jobs"][0]["s"] = "done"
            await wf.apply([Remove(("jobs",), 0, 1)], author="ann")
        (conflict,) = await wf.conflicts()
        await wf.resolve(conflict.id, "ours")
        assert await wf.get("/jobs") == [{"id": 1, "by": "bob", "s": "done"}, {"id": 2}]


@pytest.mark.parametrize("policy", ["both", "theirs", "queue"])
async def test_a_list_that_is_replaced_after_an_item_of_it_was_taken_out_gives_way_as_a_whole(policy):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"c": [["b"]]})
        async with wf.edit(author="bob", on_conflict=policy) as state:
            state["c"].pop(0)
            state["c"] = {"o": 1}
            await wf.append("/c/0", "t", author="ann")
        beside = {"c~2": {"o": 1}} if policy == "both" else {}
        assert await wf.state() == {"c": [["b", "t"]], **beside}
        (conflict,) = await wf.conflicts()
        assert (conflict.path, conflict.ours.value, conflict.theirs.value) == ("/c", {"o": 1}, [["b", "t"]])
