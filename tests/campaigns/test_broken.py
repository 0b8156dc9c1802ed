"""What was broken on purpose where random edits do not look, as the smallest programs that show it, the most serious first."""

import asyncio
import subprocess
import sys

import pytest

import quire
from quire import Schema
from quire.errors import ChangeError, InvalidState, MergeConflict, OutOfBounds, StepFailed, StorageError
from quire.orchestra import Retry, run, step
from quire.scopes import StateBuilder, WorkflowStateManager


@pytest.fixture
async def store():
    async with quire.open("memory:") as store:
        yield store


KINDS = {"/tags": "set", "/tasks": "keyed(id)", "/count": "counter", "/text": "text"}


@pytest.fixture
async def board():
    async with quire.open("memory:", schemas=[Schema("board", kinds=KINDS)]) as store:
        tasks = [{"id": "a", "hours": 1}, {"id": "b", "hours": 2}]
        first = {"tags": ["x", "y"], "tasks": tasks, "count": 1, "text": "a dark night", "plan": "", "first": ""}
        yield await store.create("w", first, schema="board")


# acknowledged, and not done


async def test_what_is_made_of_a_refusal_is_stored():
    async with quire.open("memory:alias") as one, quire.open("memory:alias") as other:
        wf = await one.create("w", {"q": ["a", "b"]})
        with pytest.raises(MergeConflict) as refused:
            async with wf.edit(author="ann") as mine:
                mine["q"] = [x for x in mine["q"] if x != "a"]
                await wf.append("/q", "c", author="bob")
        wanted = refused.value.conflicts[0].theirs
        wanted.remove("a")
        await wf.set("/q", wanted, author="ann")  # acknowledged with bob's version: it seems to be there already
        assert await other.workflow("w").get("/q") == await wf.get("/q") == ["b", "c"]


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_update_refuses_a_function_that_does_not_run_when_it_is_called(store, kind):
    wf = await store.create("w", {"n": 1})

    def one(s):
        s["n"] = 2
        yield

    async def other(s):
        s["n"] = 2
        yield

    try:
        await wf.update(one if kind == "generator" else other)
    except quire.errors.Invalid:
        return
    assert await wf.get("/n") == 2  # acknowledged with version 1


async def test_what_a_key_function_writes_stays(store):
    wf = await store.create("w", {"jobs": [{"name": "a", "cost": 1}, {"name": "b", "cost": 2}]})
    async with wf.edit() as mine:
        mine["jobs"].sort(key=lambda job: job.setdefault("rank", -job["cost"]))
    assert await wf.get("/jobs") == [{"name": "b", "cost": 2, "rank": -2}, {"name": "a", "cost": 1, "rank": -1}]


@pytest.mark.parametrize("policy", ["theirs", "queue"])
async def test_a_change_that_nobody_else_made_is_not_left_out_for_a_set_beside_it(board, policy):
    async with board.edit(author="ann", on_conflict=policy) as mine:
        mine["tags"].remove("x")
        mine["plan"] = "ann's"  # nobody else writes the plan
        await board.append("/tags", "z", author="bob")
    assert await board.get("/plan") == "ann's"


async def test_an_edit_that_is_entered_twice_writes_both_or_refuses(store):
    wf = await store.create("w", {"a": 0, "b": 0})
    edit = wf.edit()
    try:
        async with edit as first:
            first["a"] = 1
            async with edit as second:
                second["b"] = 1
    except quire.errors.Invalid:
        return
    assert await wf.state() == {"a": 1, "b": 1}


@pytest.mark.parametrize("on_stale", ["fail", "queue", "rerun"])
async def test_a_step_decides_what_becomes_of_it_whatever_the_policy_of_the_store(on_stale):
    async with quire.open("memory:", on_conflict="theirs") as store:
        ran = []

        async def agent(ctx):
            ran.append(ctx.attempt)
            ctx.state["n"] = ctx.state["n"] * 2
            if len(ran) == 1:
                await store.workflow("r").set("/n", 7)

        try:
            result = await run(store, step(agent, on_stale=on_stale), id="r", state={"n": 1})
        except StepFailed:
            assert on_stale == "fail"
            return
        assert on_stale != "fail"
        assert result.conflicts or result.state["n"] == 14  # 7: its change was left out


# bounds that were promised


async def test_bounds_hold_for_the_item_they_were_given_for_beside_a_hook(store):
    wf = await store.create("w", {"accounts": [{"n": 40}, {"n": 100}], "writes": 0})
    store.before_change(lambda proposed: [*proposed.changes, quire.Increment(("writes",), 1)])
    edit = wf.edit()
    mine = await edit.__aenter__()
    mine["accounts"][0].increment("n", -30, minimum=0)
    mine["accounts"].insert(0, {"n": 1000})
    await wf.inc("/accounts/0/n", -30, minimum=0)
    with pytest.raises(OutOfBounds):
        await edit.__aexit__(None, None, None)
    assert await wf.get("/accounts/0/n") == 10


async def test_a_refused_write_that_is_applied_after_all_keeps_its_bounds(store):
    wf = await store.create("w", {"budget": 100, "plan": "first"})
    with pytest.raises(MergeConflict) as refused:
        async with wf.edit(author="ann") as mine:
            mine["plan"] = f"not {mine['plan']}"
            mine.increment("budget", -60, minimum=0)
            await wf.set("/plan", "bob's", author="bob")
    await wf.inc("/budget", -60, minimum=0)
    with pytest.raises(OutOfBounds):
        await wf.apply(refused.value.changes, base=refused.value.base, on_conflict="last")
    assert await wf.get("/budget") == 40


async def test_a_stale_step_that_is_let_in_keeps_its_bounds(store):
    async def agent(ctx):
        ctx.state["plan"] = f"not {ctx.state['plan']}"
        ctx.state.increment("budget", -60, minimum=0)
        await store.workflow("r").set("/plan", "bob's")

    result = await run(store, step(agent), id="r", state={"budget": 100, "plan": "first"})
    wf = store.workflow("r")
    await wf.inc("/budget", -60, minimum=0)
    with pytest.raises(OutOfBounds):
        await wf.resolve(result.conflicts[0].id, "ours")
    assert await wf.get("/budget") == 40


# scoped state of stale steps


async def waiting_scope(store):
    state = WorkflowStateManager(store).workflow_state("r")

    async def agent(ctx):
        if ctx.state_accessor.get("token") is None:
            ctx.state_accessor.set("token", "hunter2", secret=True)
        await state.set("token", "bob's", secret=True)

    result = await run(store, step(agent), id="r", state={}, scoped=StateBuilder())
    return result.conflicts[0]


# nobody is told, or the loop stands still


ENDS = """
import os, sys, threading, quire
wf = quire.sync.open("memory:").create("w", {"n": 1})
told = []

def caller():
    try:
        wf.update(lambda _: sys.exit(3))
    except BaseException as error:
        told.append(error)

thread = threading.Thread(target=caller, daemon=True)
thread.start()
thread.join(3)
os._exit(0 if told else 1)
"""


def test_a_function_that_ends_the_program_leaves_nobody_waiting():
    done = subprocess.run([sys.executable, "-c", ENDS], timeout=60, check=False, capture_output=True)
    assert done.returncode == 0


async def calls(ours, theirs, state):
    """Return how many calls of functions it takes to commit a draft beside what others wrote."""
    async with quire.open("memory:") as store:
        wf = await store.create("w", state)
        edit = wf.edit()
        ours(await edit.__aenter__())
        await theirs(wf)
        found = 0

        def count(frame, event, argument):
            nonlocal found
            found += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            await edit.__aexit__(None, None, None)
        except MergeConflict:
            pass
        finally:
            sys.setprofile(None)
        return found


async def test_blind_writes_to_many_keys_that_others_wrote_take_time_by_their_number():
    async def cost(n):
        def ours(s):
            for i in range(n):
                s["o"][str(i)] = -1

        changes = [quire.Set(("o", str(i)), i + 1) for i in range(n)]
        return await calls(ours, lambda wf: wf.apply(changes), {"o": {str(i): i for i in range(n)}})

    assert await cost(320) < 4 * 2 * await cost(80)


async def test_guards_of_many_keys_that_others_replaced_take_time_by_their_number():
    async def cost(n):
        def ours(s):
            for key in list(s["o"]):
                s["o"][key] = s["o"][key] * 2

        return await calls(ours, lambda wf: wf.set("/o", {}), {"o": {str(i): i for i in range(n)}})

    assert await cost(640) < 4 * 2 * await cost(160)


async def test_insertions_leave_no_marks_behind(store):
    wf = await store.create("w", {"l": [0]})
    async with wf.edit() as mine:
        for i in range(2000):
            mine["l"].insert(0, i)
        assert not mine["l"]._marks


# what was read and then replaced


@pytest.mark.parametrize("read", [lambda s: s.get("n"), lambda s: s.to_plain()["n"], lambda s: s.copy()["n"]])
async def test_a_number_that_is_doubled_in_place_was_read(store, read):
    wf = await store.create("w", {"n": 10})
    with pytest.raises(MergeConflict):
        async with wf.edit() as mine:
            mine["n"] += read(mine)  # as mine["n"] += mine["n"], which is refused
            await wf.set("/n", 1)


async def test_what_was_read_before_a_replace_was_read(store):
    wf = await store.create("w", {"o": {"p": {"x": 1}}})
    with pytest.raises(MergeConflict):
        async with wf.edit() as mine:
            if mine["o"]["p"]["x"] == 1:
                mine["o"].replace({"p": {"x": 1}, "q": 2})
                del mine["o"]["p"]
            await wf.set("/o/p/x", 5)


async def test_a_serializable_edit_has_read_what_setdefault_returned(store):
    wf = await store.create("w", {})
    with pytest.raises(MergeConflict):
        async with wf.edit(isolation="serializable") as mine:
            mine["id"] = mine.setdefault("next", 0)  # as where `next` is there, which is refused
            mine["next"] += 1
            await wf.inc("/next")
    assert await wf.state() == {"next": 1}


@pytest.mark.parametrize("path", ["/tasks", "/tags"])
async def test_a_serializable_edit_has_read_the_order_of_a_list_of_a_kind(board, path):
    with pytest.raises(MergeConflict):
        async with board.edit(isolation="serializable") as mine:
            mine["first"] = mine[path[1:]].to_plain()[0]
            await board.set(path, (await board.get(path))[::-1])


async def test_a_serializable_edit_leaves_what_it_set(store):
    wf = await store.create("w", {"leader": "ann", "since": 1})
    try:
        async with wf.edit(isolation="serializable") as mine:
            mine["leader"] = "ann"
            mine["since"] = 2
            await wf.set("/leader", "bob")
    except MergeConflict:
        return
    assert await wf.state() == {"leader": "ann", "since": 2}


async def test_a_patch_with_a_base_is_refused_where_its_test_fails_by_now(store):
    wf = await store.create("w", {"a": 1, "b": 1})
    await wf.set("/a", 2)
    patch = [{"op": "test", "path": "/a", "value": 1}, {"op": "replace", "path": "/b", "value": 2}]
    with pytest.raises((ChangeError, MergeConflict)):
        await wf.apply(patch, base=1)


async def test_a_text_that_both_saved_alike_is_refused_whatever_its_length(store):
    wrong = "The quick brown fox jumps over lazy dog, and then it goes home again to sleep."
    wf = await store.create("w", {"text": wrong})
    mended = {"text": wrong.replace("over lazy", "over the lazy")}
    await wf.save(mended, base=1, author="ann")
    with pytest.raises(MergeConflict):
        await wf.save(mended, base=1, author="bob")  # "over the the lazy"


# what is refused without need


async def test_a_list_that_nobody_read_was_not_read(store):
    wf = await store.create("w", {"l": ["a"]})
    async with wf.edit() as mine:
        for i in range(1002):
            mine["l"].insert(0, i)
        mine["l"][-1] = "b"  # recorded, with fewer insertions
        await wf.set("/l/0", "c")
    assert (await wf.get("/l"))[-1] == "b"


@pytest.mark.parametrize("way", ["edit", "save"])
async def test_counters_and_texts_merge_as_declared(board, way):
    if way == "edit":
        async with board.edit() as mine:
            mine["count"] = mine["count"] + 10
            mine["text"] = mine["text"].replace("dark", "bright")
            await board.set("/count", 101)
            await board.set("/text", "a dark day")
    else:
        state, version = await board.state_and_version()
        await board.set("/count", 101)
        await board.set("/text", "a dark day")
        await board.save({**state, "count": 11, "text": "a bright night"}, base=version)
    assert (await board.get("/count"), await board.get("/text")) == (111, "a bright day")


async def test_what_is_taken_out_of_a_set_is_gone_beside_what_is_added(board):
    async with board.edit() as mine:
        mine["tags"].remove("x")  # as `del mine["tags"][0]`, which is merged
        await board.append("/tags", "z")
    assert await board.get("/tags") == ["y", "z"]


async def test_an_agent_that_is_refused_elsewhere_is_tried_again(store):
    other = await store.create("other", {"n": 1})
    tries = []

    async def agent(ctx):
        tries.append(ctx.attempt)
        async with other.edit() as theirs:
            theirs["n"] = theirs["n"] * 2
            if len(tries) == 1:
                await other.set("/n", 5)

    await run(store, step(agent, retry=Retry(attempts=3, pause_s=0)), id="r")
    assert tries == [1, 2]


async def test_a_write_refused_for_what_could_not_be_stored_is_tried_again(store):
    wf = await store.create("w", {"n": 1})
    backend, commit = store.engine.backend, store.engine.backend.commit
    failures = [StorageError("the disk")]

    async def committing(items):
        if failures:
            raise failures.pop()
        return await commit(items)

    edit = wf.edit(author="ann")
    mine = await edit.__aenter__()
    mine["n"] = mine["n"] * 2
    backend.commit = committing
    bob, ann = await asyncio.gather(wf.set("/n", 5), edit.__aexit__(None, None, None), return_exceptions=True)
    assert isinstance(bob, StorageError)
    assert (ann, await wf.get("/n")) == (None, 2)


async def test_a_policy_of_a_step_decides_over_scoped_state_too(store):
    state = WorkflowStateManager(store).workflow_state("r")

    async def agent(ctx):
        ctx.state_accessor.set("x", ctx.state_accessor.get("x", "nobody") + " and ann")
        await state.set("x", "bob")

    await run(store, step(agent, on_stale="last"), id="r", scoped=StateBuilder())
    assert await state.get("x") == "nobody and ann"


async def test_a_function_may_let_a_removal_stand(store):
    wf = await store.create("w", {"k": 1})
    async with wf.edit(on_conflict=lambda met: met.ours) as mine:
        del mine["k"]
        await wf.set("/k", 2)
    assert await wf.state() == {}


# what is told


async def test_a_refusal_names_a_place_of_the_state(board):
    with pytest.raises(MergeConflict) as refused:
        async with board.edit() as mine:
            mine["tasks"][0]["hours"] = mine["tasks"][0]["hours"] * 2
            await board.set("/tasks/0/hours", 9)
    assert refused.value.conflicts[0].path == ("tasks", 0, "hours")  # ("tasks", '"a"', "hours")


async def test_a_refused_transaction_names_no_version_of_its_own(store):
    wf = await store.create("w", {"a": 0})
    parts = [wf.change([quire.Set(("a",), n)], base=1, author="ann") for n in (1, 2)]
    with pytest.raises(MergeConflict) as refused:
        await store.transact(parts)
    assert refused.value.conflicts[0].version is None
    assert (await wf.version()).number == 1


async def test_a_write_of_which_nothing_is_left_has_a_version_beside_a_hook(store):
    wf = await store.create("w", {"t": "a"})
    store.before_change(lambda _: None)
    edit = wf.edit(on_conflict="theirs")
    async with edit as mine:
        mine["t"] = "b"
        await wf.set("/t", "c")
    assert edit.version is not None  # as without the hook


async def test_a_queued_conflict_names_the_last_of_several_rounds():
    async with quire.open("memory:rounds") as one, quire.open("memory:rounds") as other:
        wf, theirs = await one.create("w", {"plan": "first"}), other.workflow("w")
        commit, left = one.engine.backend.commit, ["bob", "cleo"]

        async def committing(items):
            if left:
                name = left.pop(0)
                await theirs.set("/plan", f"{name}'s", author=name)
            return await commit(items)

        one.engine.backend.commit = committing
        async with wf.edit(author="ann", on_conflict="queue") as mine:
            mine["plan"] = "ann's"
        (conflict,) = await wf.conflicts()
        assert (conflict.theirs.value, conflict.theirs.author) == ("cleo's", "cleo")


async def test_an_edit_that_changed_nothing_has_no_version(store):
    wf = await store.create("w", {"n": 1})
    edit = wf.edit()
    async with edit as mine:
        mine["n"] = 2
    async with edit as mine:
        mine["n"] = 2
    assert edit.version is None


# small differences from a dict and a list, and errors that say nothing


async def test_adding_a_float_makes_a_float(store):
    wf = await store.create("w", {"n": 1})
    async with wf.edit() as mine:
        mine["n"] += 0.0
    assert isinstance(await wf.get("/n"), float)


async def test_a_list_is_extended_by_what_is_taken_from_it(store):
    wf = await store.create("w", {"l": [1, 2, 3]})
    async with wf.edit() as mine:
        mine["l"].extend(mine["l"].pop(0) for _ in range(2))
    assert await wf.get("/l") == [3, 1, 2]


@pytest.mark.parametrize("access", [lambda s: s[5], lambda s: s.__delitem__(5)])
async def test_a_key_that_is_no_text_is_not_there(store, access):
    wf = await store.create("w", {"5": 1})
    with pytest.raises(KeyError):
        async with wf.edit() as mine:
            access(mine)


async def test_a_sum_that_is_too_large_is_told_by_an_error_of_ours(store):
    wf = await store.create("w", {"n": 0.5})
    with pytest.raises((ChangeError, InvalidState, OutOfBounds)):
        async with wf.edit() as mine:
            mine.increment("n", 10**400, minimum=0)
