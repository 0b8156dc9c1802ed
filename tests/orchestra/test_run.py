"""Runs: order, retries, failure, and going on where it stopped."""

import asyncio
import threading

import pytest

import quire
from quire.engine.clock import FakeClock
from quire.errors import Invalid, RunNotFound, StepFailed
from quire.orchestra import Retry, RunLost, parallel, resume, run, sequence, step


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        yield opened


def agent(name, log, *, fail=0, result=None):
    left = [fail]

    async def work(ctx):
        log.append(name)
        if left[0]:
            left[0] -= 1
            raise ValueError(f"{name} broke")
        ctx.state.setdefault("done", []).append(name)
        return result if result is not None else name

    return step(work, name=name)


async def test_a_sequence_hands_results_on(store):
    async def collect(ctx):
        ctx.state["found"] = ctx.input["topic"]
        return [1, 2]

    def add(ctx):  # a plain function runs in a thread
        assert threading.current_thread() is not threading.main_thread()
        return sum(ctx.input) + len(ctx.results["collect"])

    result = await run(store, sequence(collect, add), id="r", input={"topic": "tides"})
    assert (result.result, result.state["found"], result.ran, result.resumed) == (5, "tides", ["collect", "add"], [])
    assert result.state["_run"]["status"] == "completed"


async def test_parallel_parts_overlap_and_all_their_changes_stay(store):
    together = asyncio.Barrier(3)

    def part(n):
        async def work(ctx):
            await together.wait()
            ctx.state["parts"].append(n)
            ctx.state[f"p{n}"] = n
            return n

        return step(work, name=f"p{n}")

    result = await run(store, parallel(*map(part, range(3)), name="all"), id="r", state={"parts": []})
    assert result.result == {"p0": 0, "p1": 1, "p2": 2}
    assert sorted(result.state["parts"]) == [0, 1, 2]
    assert set(result.state["_run"]["steps"]) == {"all/p0", "all/p1", "all/p2"}


async def test_a_limit_is_kept(store):
    running = [0, 0]

    def part(n):
        async def work(ctx):
            running[0] += 1
            running[1] = max(running)
            await asyncio.sleep(0)
            running[0] -= 1

        return step(work, name=f"p{n}")

    await run(store, parallel(*map(part, range(8)), limit=2), id="r")
    assert running[1] == 2


async def test_result_and_changes_of_a_step_are_one_version(store):
    await run(store, sequence(agent("a", []), agent("b", [])), id="r")
    versions = await store.workflow("r").history(kind="step", order="oldest")
    assert [v.author for v in versions] == ["a", "b"]
    assert all(
        any(c.path[0] == "done" for c in v.changes) and any(c.path[0] == "_run" for c in v.changes) for v in versions
    )


async def test_a_failed_run_goes_on_at_the_failed_step(store):
    log = []
    topology = sequence(agent("a", log), agent("b", log, fail=1), agent("c", log))
    with pytest.raises(StepFailed, match="b broke") as caught:
        await run(store, topology, id="r")
    assert isinstance(caught.value.__cause__, ValueError)
    state = await store.workflow("r").state()
    assert state["_run"]["status"] == "failed"
    assert state["_run"]["steps"]["b"]["error"] == "ValueError: b broke"
    assert state["done"] == ["a"]
    result = await run(store, topology, id="r")
    assert log == ["a", "b", "b", "c"]
    assert (result.ran, result.resumed) == (["b", "c"], ["a"])
    assert result.state["_run"]["steps"]["b"]["attempt"] == 2


async def test_retries_pause_and_grow():
    clock = FakeClock()
    async with quire.open("memory:", clock=clock) as store:
        left, keys = [2], []

        async def flaky(ctx):
            keys.append((ctx.key, ctx.attempt))
            if left[0]:
                left[0] -= 1
                raise ValueError

        running = asyncio.ensure_future(run(store, step(flaky, retry=Retry(3, pause_s=10, factor=2)), id="r"))
        for pause in (10, 20):
            while not clock.sleepers:
                await asyncio.sleep(0)
            await clock.wind(pause)
        await running
        assert keys == [("flaky", 1), ("flaky", 2), ("flaky", 3)]


async def test_a_failure_cancels_siblings_and_leaves_no_child_alive(store):
    alive, started = [], asyncio.Event()

    async def slow(ctx):
        started.set()
        alive.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            alive.pop()

    async def bad(ctx):
        await started.wait()
        raise ValueError("bad")

    with pytest.raises(StepFailed, match="bad"):
        await run(store, parallel(slow, bad), id="r")
    assert not alive
    assert len(asyncio.all_tasks()) <= 2


async def test_what_a_failed_step_did_to_the_state_is_gone(store):
    async def half(ctx):
        ctx.state["half"] = True
        raise ValueError

    with pytest.raises(StepFailed):
        await run(store, step(half), id="r")
    assert "half" not in await store.workflow("r").state()


async def test_an_older_owner_cannot_commit(store):
    gate, started = asyncio.Event(), asyncio.Event()

    async def slow(ctx):
        started.set()
        await gate.wait()
        ctx.state["by"] = "old"

    async def quick(ctx):
        ctx.state["by"] = "new"

    old = asyncio.ensure_future(run(store, step(slow, name="s"), id="r"))
    await started.wait()
    result = await resume(store, step(quick, name="s"), id="r")
    gate.set()
    with pytest.raises(RunLost):
        await old
    assert result.state["by"] == await store.workflow("r").get("/by") == "new"


async def test_two_that_start_one_run_at_once_run_it_once(store):
    async def count(ctx):
        await asyncio.sleep(0.01)
        ctx.state.increment("n")
        return "counted"

    for i in range(10):
        twice = [run(store, step(count), id=f"r{i}", state={"n": 0}) for _ in range(2)]
        ends = await asyncio.gather(*twice, return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == ["RunLost", "RunResult"]
        assert await store.workflow(f"r{i}").get("/n") == 1
        assert [v.message for v in await store.workflow(f"r{i}").history()].count("count done") == 1


async def test_a_run_begins_on_a_workflow_that_is_there(store):
    wf = await store.create("r", {"topic": "tides"}, author="ann")

    async def work(ctx):
        return f"{ctx.input} of {ctx.state['topic']}"

    result = await run(store, step(work), id="r", state={"topic": "not used"}, input="a study")
    assert result.result == "a study of tides"
    assert (await run(store, step(work), id="r")).resumed == ["work"]
    assert await wf.get("/topic") == "tides"


async def test_an_agent_sees_the_state_without_the_run(store):
    seen = []

    async def work(ctx):
        seen.append((dict(ctx.state), "_run" in ctx.state, len(ctx.state)))
        ctx.state["n"] += 1
        return ctx.state

    team = sequence(*(step(work, name=f"s{i}") for i in range(3)))
    result = await run(store, team, id="r", state={"n": 0})
    assert seen == [({"n": i}, False, 1) for i in range(3)]
    assert result.result == {"n": 3}
    assert [entry["result"] for entry in result.state["_run"]["steps"].values()] == [{"n": 1}, {"n": 2}, {"n": 3}]


async def test_results_are_copied_when_they_are_asked_for(store):
    async def first(ctx):
        return {"rows": [1]}

    async def second(ctx):
        assert (list(ctx.results), len(ctx.results), repr(ctx.results)) == (["first"], 1, "{'first': {'rows': [1]}}")
        assert "second" not in ctx.results
        with pytest.raises(KeyError):
            ctx.results["second"]
        ctx.results["first"]["rows"].append(2)
        return ctx.results["first"]

    assert (await run(store, sequence(first, second), id="r")).result == {"rows": [1]}


async def test_a_finished_run_runs_nothing_again(store):
    log = []
    topology = sequence(agent("a", log))
    first = await run(store, topology, id="r")
    again = await run(store, topology, id="r")
    assert log == ["a"]
    assert (again.result, again.ran, again.resumed) == (first.result, [], ["a"])


async def test_what_is_wrong_is_said(store):
    log = []
    await run(store, sequence(agent("a", log)), id="r")
    with pytest.raises(Invalid, match="allow_topology_change"):
        await run(store, sequence(agent("b", log)), id="r")
    await run(store, sequence(agent("a", log), agent("b", log)), id="r", allow_topology_change=True)
    assert log == ["a", "b"]
    with pytest.raises(RunNotFound):
        await store.create("plain", {})
        await resume(store, sequence(agent("a", log)), id="plain")
    with pytest.raises(Invalid, match="same|two steps"):
        await run(store, parallel(agent("a", log), agent("a", log)), id="x")
    for same in (sequence(agent("a", log), name="x"), parallel(agent("a", log), name="x")):
        with pytest.raises(Invalid, match="two branches of parallel 'p' have the name 'x'"):
            await run(store, sequence(parallel(same, sequence(agent("b", log), name="x"), name="p")), id="x")
    with pytest.raises(Invalid, match="two branches of a parallel have the name '0'"):
        await run(store, parallel(sequence(agent("a", log)), agent("0", log)), id="x")
    assert not await store.workflow("x").exists()
    with pytest.raises(Invalid):
        sequence()
    with pytest.raises(Invalid):
        sequence(5)
    with pytest.raises(Invalid):
        step(lambda ctx: None)
    with pytest.raises(Invalid, match="_run"):
        await run(store, sequence(agent("a", log)), id="y", state={"_run": 1})

    async def meddle(ctx):
        ctx.state["_run"] = {"epoch": 99}

    with pytest.raises(StepFailed, match="_run"):
        await run(store, step(meddle), id="z")

    async def unstorable(ctx):
        return {1, 2}

    with pytest.raises(StepFailed, match="set"):
        await run(store, step(unstorable), id="v")


async def test_a_step_that_takes_too_long_fails(store):
    async def slow(ctx):
        await asyncio.Event().wait()

    with pytest.raises(StepFailed, match="TimeoutError"):
        await run(store, step(slow, timeout_s=0.01), id="r")
