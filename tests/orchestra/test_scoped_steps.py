"""Scoped state in the steps of a run: stored with the step's commit, once, or not at all."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap

import pytest

import quire
from quire.errors import ChangeError, Closed, Invalid, LimitExceeded, StepFailed
from quire.orchestra import Retry, RunLost, parallel, resume, run, sequence, step
from quire.scopes import Policy, ScopeDenied, StateBuilder, StateScope, WorkflowStateManager


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        yield opened


@pytest.fixture
def state(store):
    return WorkflowStateManager(store).workflow_state("r")


def scoped(store, *parts, setup=None, **more):
    return run(store, sequence(*parts), id="r", scoped=setup or StateBuilder(), **more)


async def test_a_run_without_scoped_state_has_no_accessor(store):
    result = await run(store, step(lambda ctx: ctx.state_accessor is None, name="a"), id="r")
    assert result.result is True


async def test_sequential_a_step_reads_what_the_one_before_wrote(store, state):
    async def process(ctx):
        ctx.state_accessor.set("processed_data", [1, 2])
        ctx.state_accessor.step("process").set("progress", 1.0)
        assert ctx.state_accessor.get("processed_data") == [1, 2]

    def use(ctx):  # in a thread
        ctx.state_accessor.set("step_result", sum(ctx.state_accessor.get("processed_data")))
        assert ctx.state_accessor.step("use").lookup("step_result") == 3
        assert ctx.state_accessor.list("step") == ["step_result"]

    await scoped(store, process, use)
    assert await state.items() == {"processed_data": [1, 2], "step_result": 3}
    assert await state.step("process").get("progress") == 1.0
    versions = await store.workflow("scope-workflow-r").history(order="oldest")
    assert [(v.author, v.message) for v in versions] == [("process", "process of r"), ("use", "use of r")]


async def test_parallel_branches_write_safely_and_the_next_step_sees_that_all_are_done(store, state):
    together = asyncio.Barrier(4)

    def branch(n):
        async def work(ctx):
            await together.wait()
            ctx.state_accessor.set(f"branch_{n}_done", True)
            ctx.state_accessor.increment("count")
            assert ctx.state_accessor.increment("count", n) == 1 + n, "what the others do is not seen yet"
            ctx.state_accessor.global_().update({f"seen-{n}": n, "last": n})
            await together.wait()

        return step(work, name=f"b{n}")

    def check(ctx):
        return all(ctx.state_accessor.get(f"branch_{n}_done") for n in range(4)), ctx.state_accessor.get("count")

    result = await scoped(store, parallel(*map(branch, range(4)), name="all"), check)
    assert result.result == [True, 4 + 6]
    assert sorted(await state.list("branch")) == [f"branch_{n}_done" for n in range(4)]
    assert len(await WorkflowStateManager(store).global_().list("seen")) == 4


async def test_conditional_a_step_decides_by_the_retry_count(store, state):
    took = []

    def attempt(n):
        def work(ctx):
            if ctx.state_accessor.get("retry_count", 0) < 3:
                ctx.state_accessor.increment("retry_count")
                took.append("retry")
            else:
                took.append("give up")

        return step(work, name=f"try{n}")

    await scoped(store, *map(attempt, range(5)))
    assert took == ["retry"] * 3 + ["give up"] * 2
    assert await state.get("retry_count") == 3


async def test_loop_the_iteration_is_counted_over_restarts(store, state):
    """The counter goes on where the run failed: a finished turn is not counted again."""
    broken = [True]

    def turn(n):
        def work(ctx):
            ctx.state_accessor.set("iteration", ctx.state_accessor.get("iteration", 0) + 1)
            if n == 3 and broken:
                broken.clear()
                raise ValueError("broke")

        return step(work, name=f"turn{n}")

    parts = [turn(n) for n in range(5)]
    with pytest.raises(StepFailed):
        await scoped(store, *parts)
    assert await state.get("iteration") == 3
    result = await resume(store, sequence(*parts), id="r", scoped=StateBuilder())
    assert await state.get("iteration") == 5
    assert result.resumed == ["turn0", "turn1", "turn2"]


async def test_an_attempt_that_fails_leaves_nothing(store, state):
    async def flaky(ctx):
        ctx.state_accessor.increment("n")
        ctx.state_accessor.global_().set("seen", ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("broke")

    await scoped(store, step(flaky, retry=Retry(attempts=3, pause_s=0)))
    assert await state.items() == {"n": 1}
    assert await state.global_().items() == {"seen": 3}
    assert (await store.workflow("scope-workflow-r").version()).number == 1


async def test_result_state_and_scopes_are_one_commit(store, state):
    async def work(ctx):
        ctx.state["plain"] = 1
        ctx.state_accessor.set("a", 1)
        ctx.state_accessor.global_().set("b", 2)

    await scoped(store, work)
    logs = ["r", "scope-workflow-r", "scope-global"]
    made = [v for log in logs for v in await store.workflow(log).history() if v.author == "work"]
    positions = sorted(v.position for v in made)
    assert len(made) == 3
    assert positions == list(range(positions[0], positions[0] + 3))


async def test_a_limit_met_at_the_commit_fails_the_step_with_nothing_stored(store, state):
    async def greedy(ctx):
        ctx.state["plain"] = 1
        ctx.state_accessor.update({str(i): i for i in range(4)})

    with pytest.raises(StepFailed) as caught:
        await scoped(store, greedy, setup=StateBuilder().limit(keys_max=3))
    assert isinstance(caught.value.__cause__, LimitExceeded)
    assert await state.items() == {}
    assert "plain" not in await store.workflow("r").state()


async def test_an_owner_that_lost_the_run_writes_nothing_beside_it(store, state):
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def slow(ctx):
        ctx.state_accessor.increment("n")
        if not at_work.is_set():
            at_work.set()
            await go_on.wait()

    first = asyncio.create_task(scoped(store, slow))
    await at_work.wait()
    await resume(store, sequence(slow), id="r", scoped=StateBuilder())
    go_on.set()
    with pytest.raises(RunLost):
        await first
    assert await state.get("n") == 1


async def test_a_step_is_an_agent_with_its_own_rights(store, state):
    policy = Policy().allow("writer", StateScope.workflow("r"), "read", "write").allow("reader", None, "read", "list")
    refused = []

    def writer(ctx):
        ctx.state_accessor.set("k", 1)
        for act in (ctx.state_accessor.clear, ctx.state_accessor.list, lambda: ctx.state_accessor.delete("k")):
            with pytest.raises(ScopeDenied) as caught:
                act()
            refused.append((caught.value.agent, caught.value.right))

    def reader(ctx):
        assert ctx.state_accessor.lookup("k") == 1
        with pytest.raises(ScopeDenied):
            ctx.state_accessor.set("k", 2)

    await scoped(store, writer, reader, setup=StateBuilder().guarded(policy))
    assert refused == [("writer", "delete"), ("writer", "list"), ("writer", "delete")]
    assert await state.items() == {"k": 1}


async def test_other_scopes_are_at_hand_when_named(store):
    user, tool = StateScope.user("u"), StateScope.tool("t")

    def work(ctx):
        mine = ctx.state_accessor.of(user)
        assert mine.get("name") == "Ann"
        mine.set("seen", True)
        assert mine.delete("name") is True
        with pytest.raises(Invalid, match="using"):
            ctx.state_accessor.of(tool).set("k", 1)
        with pytest.raises(Invalid, match="no steps"):
            mine.step("x")
        return repr(mine)

    manager = WorkflowStateManager(store)
    await manager.state(user).set("name", "Ann")
    result = await scoped(store, work, setup=StateBuilder().using(user))
    assert result.result == "<StepState of user 'u' for work>"
    assert await manager.state(user).items() == {"seen": True}


async def test_what_an_agent_catches_leaves_no_half_done_write(store, state):
    def work(ctx):
        acc = ctx.state_accessor
        acc.set("kept", 1)
        acc.set("n", 1)
        with pytest.raises(LimitExceeded):
            acc.increment("n", 10**6)
        with pytest.raises(ChangeError):
            acc.increment("text")
        assert (acc.get("kept"), acc.get("n"), acc.clear(), acc.get("n", "-")) == (1, 1, 3, "-")
        acc.set("n", 2)

    await state.set("text", "x")
    await scoped(store, work, setup=StateBuilder().limit(value_bytes_max=4))
    assert await state.items() == {"n": 2}


async def test_after_the_step_its_accessor_is_closed(store):
    kept = []
    await scoped(store, step(lambda ctx: kept.append(ctx.state_accessor), name="a"))
    for act in (lambda: kept[0].get("k"), lambda: kept[0].set("k", 1), lambda: kept[0].global_().list()):
        with pytest.raises(Closed):
            act()


RUNNER = """
    import asyncio, os, sys
    import quire
    from quire import StateBuilder, StateScope, WorkflowStateManager
    from quire.orchestra import run, sequence, step

    LOGS = StateScope.user("u"),

    def work(n):
        def agent(ctx):
            acc = ctx.state_accessor
            acc.increment("n")
            acc.set(f"k{n}", "x" * n)
            acc.step("s").increment("n")
            acc.global_().increment("n")
            acc.of(LOGS[0]).increment("n")
            ctx.state["n"] = ctx.state.get("n", 0) + 1
        return step(agent, name=f"s{n}")

    async def main():
        async with quire.open(sys.argv[1]) as store:
            steps = sequence(*map(work, range(30)))
            print("ready", flush=True)
            await run(store, steps, id="r", scoped=StateBuilder().using(*LOGS))

    asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["commit:begin", "commit:insert", "commit:before", "commit:after"])
def test_killed_at_any_step_of_a_commit_each_step_counts_once(tmp_path, point):
    """kill -9 at named points and on: in the end every log has seen each of the thirty steps exactly once."""
    path, script = str(tmp_path / "s.db"), tmp_path / "runner.py"
    script.write_text(textwrap.dedent(RUNNER))
    deaths = 0
    for number in (1, 2, 3, 5, 8, 13, 100_000):
        env = {**os.environ, "QUIRE_FAILPOINT": f"{point}:{number}"}
        done = subprocess.run(
            [sys.executable, str(script), path], env=env, capture_output=True, check=False, timeout=60
        )
        deaths += done.returncode == -signal.SIGKILL
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if not os.path.exists(path):
            continue
        with quire.sync.open(path) as store:
            assert store.verify().ok
            if not store.workflow("r").exists():
                continue
            finished = store.workflow("r").get("/n", 0)
            state = quire.sync.WorkflowStateManager(store).workflow_state("r")
            others = (
                state.step("s"),
                state.global_(),
                quire.sync.WorkflowStateManager(store).state(StateScope.user("u")),
            )
            assert [s.get("n", 0) for s in (state, *others)] == [finished] * 4
            assert len(state.list("k")) == finished
    assert done.returncode == 0
    assert finished == 30
    assert deaths >= 5
