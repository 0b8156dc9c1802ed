"""Steps whose changes were made from what others changed meanwhile: work that was done is neither repeated nor dropped."""

import asyncio
import re

import pytest
from msgspec import UNSET

import quire
from quire.errors import ChangeError, Invalid, MergeConflict, StepFailed
from quire.orchestra import Retry, parallel, run, sequence, step
from quire.scopes import StateBuilder, StateScope, WorkflowStateManager


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        yield opened


def halver(name, together, ran, **how):
    """A step that halves the budget, which the other one does at the same time."""

    async def work(ctx):
        ran.append(name)
        await together.wait() if len(ran) <= 2 else None
        ctx.state["budget"] = ctx.state["budget"] // 2
        ctx.state["by"][name] = "was here"
        return f"{name} is done"

    return step(work, name=name, **how)


async def halved(store, **how):
    ran = []
    together = asyncio.Barrier(2)
    both = parallel(halver("ann", together, ran, **how), halver("bob", together, ran, **how), name="p")

    async def after(ctx):
        return sorted(ctx.input.values())

    result = await run(store, sequence(both, after), id="r", state={"budget": 100, "by": {}})
    return result, ran


async def test_a_stale_step_keeps_its_result_and_all_its_changes_wait_together(store, caplog):
    result, ran = await halved(store)
    (logged,) = [record.getMessage() for record in caplog.records if "wait in" in record.getMessage()]
    assert re.search(
        r"its changes wait in conflict-\w+: /budget was read as 100 and is 50 now, by p/\w+ in version \d+$", logged
    )
    assert result.result == ["ann is done", "bob is done"]
    assert sorted(ran) == ["ann", "bob"]  # nothing ran twice
    (conflict,) = result.conflicts
    late, first = conflict.ours.author.removeprefix("p/"), conflict.theirs.author.removeprefix("p/")
    assert {late, first} == {"ann", "bob"}
    assert (conflict.path, conflict.status, conflict.base.value, conflict.theirs.value) == (
        "/budget",
        "pending",
        100,
        50,
    )
    assert [c[:2] for c in conflict.changes] == [["set", ["budget"]], ["set", ["by", late]]]
    assert (result.state["budget"], result.state["by"]) == (50, {first: "was here"})
    wf = store.workflow("r")
    with pytest.raises(Invalid, match="wait together: choose ours or theirs"):
        await wf.resolve(conflict.id, "value", 25)
    made = await wf.resolve(conflict.id, "ours", author="mia")
    state = await wf.state()
    assert (state["budget"], sorted(state["by"]), made.author) == (50, ["ann", "bob"], "mia")
    (closed,) = await wf.conflicts()
    assert (closed.status, closed.resolution, closed.resolved_by) == ("resolved", "ours", "mia")
    with pytest.raises(Invalid, match="resolved already"):
        await wf.resolve(conflict.id, "theirs")
    again = await run(
        store,
        sequence(parallel(*(step(print, name=n) for n in ("ann", "bob")), name="p"), step(print, name="after")),
        id="r",
    )
    assert (again.ran, again.conflicts) == ([], [])


async def test_what_waits_can_be_let_go(store):
    result, _ = await halved(store, on_stale="queue")
    (conflict,) = result.conflicts
    wf = store.workflow("r")
    before = await wf.version()
    assert (await wf.resolve(conflict.id, "theirs")).number == before.number
    assert len((await wf.state())["by"]) == 1
    assert await wf.conflicts(status="pending") == []


async def test_a_stale_step_runs_again_when_it_says_so(store):
    result, ran = await halved(store, on_stale="rerun")
    assert (result.state["budget"], sorted(result.state["by"]), len(ran)) == (25, ["ann", "bob"], 3)
    assert result.conflicts == []


async def test_a_step_that_stays_stale_fails_after_ten_runs(store):
    ran = []

    async def work(ctx):
        ran.append(ctx.attempt)
        ctx.state["n"] = ctx.state["n"] * 2
        await store.workflow("r").inc("/n")

    with pytest.raises(StepFailed, match="/n was read as") as failed:
        await run(store, step(work, on_stale="rerun"), id="r", state={"n": 1})
    assert isinstance(failed.value.__cause__, MergeConflict)
    assert len(ran) == 10


async def test_a_stale_step_fails_when_it_says_so_and_is_not_tried_again_unasked(store):
    ran = []

    async def work(ctx):
        ran.append(1)
        ctx.state["n"] = ctx.state["n"] * 2
        await store.workflow("r").inc("/n")

    with pytest.raises(StepFailed, match="/n was read as"):
        await run(store, step(work, on_stale="fail", retry=Retry(attempts=5, pause_s=0)), id="r", state={"n": 1})
    assert len(ran) == 1
    assert await store.workflow("r").get("/n") == 2


@pytest.mark.parametrize(("policy", "budget"), [("last", 50), ("theirs", 50), (lambda met: met.ours + met.theirs, 100)])
async def test_a_policy_of_the_step_decides(store, policy, budget):
    result, ran = await halved(store, on_stale=policy)
    assert (result.state["budget"], sorted(result.state["by"]), len(ran)) == (budget, ["ann", "bob"], 2)
    assert result.conflicts == []
    (conflict,) = await store.workflow("r").conflicts()
    assert (conflict.status, conflict.path) == ("resolved", "/budget")


async def test_the_policy_of_the_store_decides_where_the_step_has_none():
    async with quire.open("memory:", on_conflict="last") as store:
        result, _ = await halved(store)
        assert (result.state["budget"], sorted(result.state["by"]), result.conflicts) == (50, ["ann", "bob"], [])


def test_a_wrong_word_is_refused():
    with pytest.raises(Invalid, match="on_stale 'again': there are queue, rerun, fail"):
        step(print, on_stale="again")


async def test_a_step_in_something_that_is_gone_waits_too(store):
    async def work(ctx):
        ctx.state["plan"]["title"] = "Tides"
        await store.workflow("r").delete("/plan")
        return "planned"

    result = await run(store, step(work), id="r", state={"plan": {}})
    assert result.result == "planned"
    (conflict,) = result.conflicts
    with pytest.raises(ChangeError, match="/plan/title.* is not there any more"):
        await store.workflow("r").resolve(conflict.id, "ours")
    assert (await store.workflow("r").conflicts())[0].status == "pending"


# scoped state


async def counted(store, act, **how):
    """Two steps that do the same to scoped state at once; return the result of the run."""
    together = asyncio.Barrier(2)

    def worker(name):
        async def work(ctx):
            seen = act(ctx.state_accessor, name)
            await together.wait()
            return seen

        return step(work, name=name, **how)

    return await run(store, parallel(worker("ann"), worker("bob"), name="p"), id="r", scoped=StateBuilder())


async def met(store):
    return await store.workflow(StateScope.workflow("r").log_id).conflicts()


async def test_a_key_that_was_read_and_then_set_over_what_others_set_is_recorded(store):
    def act(state, name):
        seen = state.get("n", 0)
        state.set("n", seen + 1)
        state.set(f"by-{name}", True)

    result = await counted(store, act)
    state = WorkflowStateManager(store, agent="x").state(StateScope.workflow("r"))
    (conflict,) = await met(store)
    assert (conflict.path, conflict.status, conflict.resolution) == ("/values/n", "resolved", "ours")
    assert (await state.get("n"), len([k for k in await state.list() if k.startswith("by-")])) == (1, 2)
    assert result.conflicts == []
    log = await store.workflow(conflict.workflow_id).state()
    assert log["keys"] == 3


async def test_a_key_that_was_read_and_then_set_has_the_step_run_again_when_it_says_so(store):
    together, ran = asyncio.Barrier(2), []

    def worker(name):
        async def work(ctx):
            ctx.state_accessor.set("n", ctx.state_accessor.get("n", 0) + 1)
            ran.append(name)
            if len(ran) <= 2:
                await together.wait()

        return step(work, name=name, on_stale="rerun")

    await run(store, parallel(worker("ann"), worker("bob"), name="p"), id="r", scoped=StateBuilder())
    state = WorkflowStateManager(store, agent="x").state(StateScope.workflow("r"))
    assert (await state.get("n"), len(ran), await met(store)) == (2, 3, [])


@pytest.mark.parametrize(
    "act",
    [
        lambda state, name: state.increment("n"),
        lambda state, name: state.set(name, 1),
        lambda state, name: (state.list(), state.set(name, 1)),
        lambda state, name: state.set("same", name),  # nobody read it: the later one stands
        lambda state, name: (state.set("same", name), state.get("same"), state.set("same", name + "!")),
    ],
)
async def test_what_commutes_or_is_blind_is_no_conflict(store, act):
    await counted(store, act)
    assert await met(store) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda state, name: None if state.get("leader") else state.set("leader", name),
        lambda state, name: None if "leader" in state.list() else state.set("leader", name),
        lambda state, name: (state.increment("n"), state.set("n", 0)),
        lambda state, name: (state.get("n"), state.update({"n": name})),
        lambda state, name: (state.set("m", 1), state.list(), state.get("n"), state.set("n", name)),
    ],
)
async def test_what_was_read_and_then_written_is_recorded(store, act):
    await counted(store, act)
    assert len(await met(store)) == 1


async def test_a_secret_is_not_shown_in_a_conflict(store):
    def act(state, name):
        state.get("token")
        state.set("token", f"secret of {name}", secret=True)

    await counted(store, act)
    (conflict,) = await met(store)
    assert "secret of" not in repr(conflict)


async def test_what_waits_overwrites_nothing_that_was_written_since(store):
    async def work(ctx):
        ctx.state["n"] = ctx.state["n"] * 2
        await store.workflow("r").set("/n", 7)

    result = await run(store, step(work), id="r", state={"n": 1})
    wf, (conflict,) = store.workflow("r"), result.conflicts
    await wf.set("/n", 9, author="dan")
    with pytest.raises(MergeConflict, match="/n was 7 when they met and is 9 now"):
        await wf.resolve(conflict.id, "ours")
    assert await wf.get("/n") == 9
    await wf.resolve(conflict.id, "ours", overwrite=True)
    assert await wf.get("/n") == 2


SINCE = {  # what a step does beside its stale write, what others write while that waits, and where it is refused
    "a key": (lambda s: s.update(a=2), lambda wf: wf.set("/a", 5, author="dan"), "/a is 5 now, by dan in version"),
    "an item": (
        lambda s: s["l"].__setitem__(1, "ours"),
        lambda wf: wf.set("/l/1", "dan's", author="dan"),
        '/l/1 is "dan\'s" now, by dan in version',
    ),
    "inside an item": (
        lambda s: s["jobs"][0].update(by="step"),
        lambda wf: wf.set("/jobs/0/by", "dan", author="dan"),
        "/jobs/0/by is 'dan' now, by dan",
    ),
    "an item that moved": (
        lambda s: s["l"].__setitem__(1, "ours"),
        lambda wf: wf.apply([quire.Insert(("l",), 0, ["new"]), quire.Set(("l", 2), "dan's")], author="dan"),
        '/l/2 is "dan\'s" now, by dan',
    ),
    "a removed item": (
        lambda s: s["jobs"].pop(0),
        lambda wf: wf.set("/jobs/0/by", "dan", author="dan"),
        "/jobs/0",
    ),
    "an item that both took": (
        lambda s: s.update(a=s["jobs"].pop(0)),
        lambda wf: wf.apply([quire.Remove(("jobs",), 0, 1)], author="dan"),
        "/jobs/0 is nothing now, by dan",
    ),
    "a text": (lambda s: s.update(t="ours"), lambda wf: wf.set("/t", "dan's", author="dan"), "/t is"),
}


@pytest.mark.parametrize("where", SINCE)
async def test_nor_at_other_places_than_the_one_that_is_told(store, where):
    beside, others, told = SINCE[where]

    async def work(ctx):
        ctx.state["n"] = ctx.state["n"] * 2
        beside(ctx.state)
        await store.workflow("r").set("/n", 7)

    start = {"n": 1, "a": 1, "l": ["a", "b"], "jobs": [{"by": ""}], "t": "x"}
    result = await run(store, step(work), id="r", state=start)
    wf, (conflict,) = store.workflow("r"), result.conflicts
    await others(wf)
    before = await wf.state()
    with pytest.raises(MergeConflict, match=re.escape(told)) as refused:
        await wf.resolve(conflict.id, "ours")
    assert refused.value.reason == "unseen"
    assert await wf.state() == before
    await wf.resolve(conflict.id, "ours", overwrite=True)
    assert (await wf.get("/n"), await wf.conflicts(status="pending")) == (2, [])


@pytest.mark.parametrize("blind", [True, False])
async def test_all_that_it_overrules_is_recorded_when_it_is_let_in(store, blind):
    """A conflict that waits tells of one place; what others wrote at another was there as well when they met."""

    async def work(ctx):
        ctx.state["n"] = ctx.state["n"] * 2
        ctx.state["m"] = "step's" if blind else ctx.state["m"].replace("start", "step's")
        job = ctx.state["jobs"].pop(0)
        await store.workflow("r").set("/m", "dan's", author="dan")
        await store.workflow("r").apply([quire.Remove(("jobs",), 0, 1)], author="dan")
        await store.workflow("r").set("/n", 7, author="eve")
        return job

    result = await run(store, step(work), id="r", state={"n": 1, "m": "start", "jobs": ["a", "b"]})
    wf, (conflict,) = store.workflow("r"), result.conflicts
    assert conflict.path == "/n"
    done = await wf.resolve(conflict.id, "ours", author="me")
    state = await wf.state()
    assert [state[key] for key in ("n", "m", "jobs")] == [2, "step's", ["b"]]
    told = {
        c.path: (c.status, c.base.value, c.theirs.value, c.theirs.author, c.ours.value, c.resolved_in or c.ours.version)
        for c in await wf.conflicts()
    }
    assert told == {
        "/n": ("resolved", 1, 7, "eve", 2, done.number),
        "/m": ("resolved", "start", "dan's", "dan", "step's", done.number),
        "/jobs/0": ("resolved", "a", UNSET, "dan", UNSET, done.number),
    }


async def test_what_others_wrote_elsewhere_since_is_kept(store):
    async def work(ctx):
        ctx.state["n"] = ctx.state["n"] * 2
        ctx.state["l"][1] = "ours"
        ctx.state["log"].append("step")
        await store.workflow("r").set("/n", 7)

    result = await run(store, step(work), id="r", state={"n": 1, "l": ["a", "b"], "log": []})
    wf, (conflict,) = store.workflow("r"), result.conflicts
    await wf.insert("/l", 0, "new")
    await wf.append("/log", "dan")
    await wf.set("/m", 1)
    await wf.resolve(conflict.id, "ours")
    state = await wf.state()
    assert [state[key] for key in ("n", "l", "m")] == [2, ["new", "a", "ours"], 1]
    assert sorted(state["log"]) == ["dan", "step"]
