"""Scripts: what they see, what they write, how they fail, and that a failed one leaves nothing."""

import asyncio
import inspect
import os
import select
import subprocess
import sys

import pytest

import quire
from quire import Policy, StateBuilder, StateScope, WorkflowStateManager, sync
from quire.errors import Invalid, LimitExceeded, MergeConflict, ScriptError, StepFailed, Unsupported, WorkflowNotFound
from quire.orchestra import parallel, run, sequence, step
from quire.scripting import Limits, lua_step, run_script
from quire.scripting import lua as scripts
from quire.scripting import process as processes
from quire.scripting import sync as sync_scripts


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        await opened.create("w", {"topic": "tides", "n": 1})
        yield opened


async def shared(store):
    return await WorkflowStateManager(store).global_().items()


async def test_the_words_of_a_script_are_the_scopes_of_python(store):
    manager = WorkflowStateManager(store)
    await manager.global_().set("from", "everybody")
    await manager.workflow_state("w").set("from", "workflow")
    await manager.workflow_state("w").step("s").set("from", "step")
    done = await run_script(
        store,
        """
        State.set("to", "everybody")
        workflow.state.set("to", "workflow")
        step.state.set("to", "step")
        workflow.set("to", "own")
        return { State.get("from"), workflow.state.get("from"), step.state.get("from"), workflow.get("topic"),
                 workflow.id, step.name, State.get("to"), workflow.state.get("to"), step.state.get("to"), workflow.get("to") }
        """,
        workflow="w",
        step="s",
    )
    places = ["everybody", "workflow", "step"]
    assert done.value == [*places, "tides", "w", "s", *places, "own"]
    found = [manager.global_(), manager.workflow_state("w"), manager.workflow_state("w").step("s")]
    assert [await state.get("to") for state in found] == places
    assert await store.workflow("w").state() == {"topic": "tides", "n": 1, "to": "own"}


async def test_every_verb_means_what_it_says(store):
    source = """
    local out = {}
    local function say(...) out[#out + 1] = table.pack(...) out[#out].n = nil list(out[#out]) end
    for _, s in ipairs({ State, workflow.state, step.state, workflow }) do
        say(s.get("absent") == nil, s.get("absent", 7), s.has("absent"), s.delete("absent"))
        s.set("a", { x = 1 }) s.set("nothing", nil)
        say(s.get("a").x, s.has("nothing"), s.get("nothing", 7) == nil, s.delete("a"), s.has("a"), s.get("absent", { 1 })[1])
        say(s.increment("n"), s.increment("n", 2.5), s.increment("new"))
        say(table.concat(s.list("n"), ","))
        if s.clear then say(s.clear(), #s.list()) end
    end
    say(workflow.append("l", "x"), workflow.append("l", null))
    return out
    """
    done = await run_script(store, source, workflow="w", step="s")
    first = [[True, 7, False, False], [1, True, True, True, False, 1]]
    scoped = [*first, [1, 3.5, 1], ["nothing,n,new"], [3, 0]]
    assert done.value == [*scoped, *scoped, *scoped, *first, [2, 4.5, 1], ["n,nothing,new"], [1, 2]]
    state = {"topic": "tides", "n": 4.5, "nothing": None, "new": 1, "l": ["x", None]}
    assert await store.workflow("w").state() == state


async def test_what_the_builder_says_holds_for_a_script(store):
    policy = Policy().allow("ann", StateScope.workflow("w"), "read", "write").allow("ann", StateScope.global_(), "read")
    setup = StateBuilder().guarded(policy).default("retries", 3).typed("progress", float).limit(keys_max=2)

    async def said(source, author="ann"):
        return (await run_script(store, source, workflow="w", step="s", author=author, scoped=setup)).value

    assert await said('workflow.state.set("k", 1) return workflow.state.get("retries")') == 3
    for wrong, because in (
        ('State.set("k", 2)', "may not write"),
        ('workflow.state.delete("k")', "may not delete"),
        ('workflow.state.set("progress", "half")', "not float"),
        ('workflow.state.set("../k", 1)', "not allowed in keys"),
    ):
        with pytest.raises(ScriptError, match=because):
            await said('workflow.state.set("other", 2) ' + wrong)
    with pytest.raises(ScriptError, match="may not read"):
        await said('return workflow.state.get("k")', author="bob")
    with pytest.raises(LimitExceeded) as caught:
        await said('for i = 1, 3 do workflow.state.set("k" .. i, i) end workflow.set("n", 5)')
    assert caught.value.limit == "keys_max"
    assert await WorkflowStateManager(store).workflow_state("w").items() == {"k": 1}
    assert (await store.workflow("w").state())["n"] == 1


async def test_what_it_did_is_one_attributed_version_of_each_workflow(store):
    source = 'for i = 1, 20 do State.set("k" .. i, i) workflow.increment("n") end'
    done = await run_script(store, source, name="count.lua", workflow="w", author="ann", message="counted")
    assert set(done.versions) == {"w", "scope-global"}
    version = await store.workflow("w").version()
    assert (version.number, version.author, version.message, version.kind) == (2, "ann", "counted", "script")
    other = done.versions["scope-global"]
    assert (other.number, other.author, other.message) == (1, "ann", "counted")
    assert abs(version.position - other.position) == 1
    assert len(await WorkflowStateManager(store).global_().list()) == 20


async def test_it_is_rebased_onto_what_others_wrote_meanwhile(store):
    told = asyncio.Event()
    wf, everybody = store.workflow("w"), WorkflowStateManager(store).global_()

    def heard(line):
        told.set()

    async def other():
        await told.wait()
        await wf.set("/other", True)
        await wf.inc("/n", 10)
        await everybody.increment("n", 10)

    source = """
    workflow.increment("n") State.increment("n") print("begun")
    for i = 1, 200 do State.get("x") end
    workflow.set("mine", true)
    """
    await asyncio.gather(run_script(store, source, workflow="w", on_print=heard), other())
    assert await wf.state() == {"topic": "tides", "n": 12, "other": True, "mine": True}
    assert await everybody.get("n") == 11


async def test_a_conflict_goes_to_the_policy_of_the_store():
    async with quire.open("memory:", on_conflict="reject") as store:
        wf = await store.create("w", {"n": 1})
        writes = []

        def heard(line):
            writes.append(asyncio.ensure_future(wf.set("/n", 5)))

        with pytest.raises(MergeConflict):
            await run_script(
                store,
                'workflow.set("n", 2) State.set("k", 1) print("now") for i = 1, 500 do State.get("x") end',
                workflow="w",
                on_print=heard,
            )
        await asyncio.gather(*writes)
        assert await wf.state() == {"n": 5}
        assert not await store.workflow("scope-global").exists()


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ('State.set("k", 1)\nerror("broke")', 2, "t.lua:2: broke"),
        ('State.set("k", 1)\n\nlocal x\nreturn x.y.z', 4, "attempt to index a nil value"),
        ('State.set("k", 1)\nlocal function f()\n error({ code = 5 })\nend\nf()', 3, 'error object {"code":5}'),
        ('State.set("k", 1)\nState.set("f", print)', 2, "State.set: a function is not JSON"),
        ('State.set("k", 1)\nState.set("l", { 1, nil, 3 })', 2, "a list with a hole"),
        ('State.set("k", 1)\nState.set("m", { 1, x = 2 })', 2, "a list has the keys 1 to n"),
        ('State.set("k", 1)\nState.set("m", { x = 1, [10] = 2 })', 2, None),
        ('State.set("k", 1)\nState.set("n", 0/0)', 2, "not JSON"),
        ('State.set("k", 1)\nState.set("b", "\\xff")', 2, "not UTF-8"),
        ('State.set("k", 1)\nlocal t = {} t.t = t\nState.set("t", t)', 3, "deeper than 64"),
        ('State.set("k", 1)\nState.set("", 1)', 2, "a key is empty"),
        ('State.set("k", 1)\nState.set(1, 1)', 2, "a key is text"),
        ('State.set("k", 1)\nworkflow.set("", 1)', 2, "a key is text that is not empty"),
        ('State.set("k", 1)\nworkflow.set("_run", 1)', 2, "Quire's own"),
        ('State.set("k", 1)\nworkflow.get("_run")', 2, "Quire's own"),
        ('State.set("k", 1)\nState.append("l", 1)', 2, "append"),
        ('State.set("k", 1)\nstep.state.set("x", 1)', 2, "started without a step"),
        ('State.set("k", 1)\nworkflow.increment("topic")', 2, "number"),
        ('State.set("k", 1)\nworkflow.append("topic", 1)', 2, "no list"),
        ('State.set("k", 1)\nworkflow.set(string.rep("k", 600), 1)', 2, "600 bytes, allowed are 512"),
        ("State.set('k', 1)\nif then", 2, "t.lua:2: unexpected symbol"),
        ('State.set("k", 1)\nreturn function() end', None, "what the script returns: a function"),
    ],
)
async def test_an_error_names_script_and_line_and_nothing_is_stored(store, source, line, said):
    with pytest.raises(ScriptError) as caught:
        await run_script(store, source, name="t.lua", workflow="w")
    assert (caught.value.script, caught.value.line) == ("t.lua", line)
    assert said is None or said in str(caught.value), str(caught.value)
    assert (await store.workflow("w").version()).number == 1
    assert not await store.workflow("scope-global").exists()


async def test_a_wrong_call_may_be_caught_and_changes_nothing(store):
    source = """
    local good, why = pcall(State.set, "f", print)
    local also = pcall(workflow.append, "fresh", { 1, x = 2 })
    local long = string.rep("k", 600)
    local others = pcall(workflow.set, long, 1) or pcall(step.state.increment, long) or pcall(step.state.set, long, 1)
    State.set("k", { good, why, also, others, State.has("f"), workflow.has("fresh") })
    """
    done = await run_script(store, source, workflow="w", step="s")
    assert await shared(store) == {"k": [False, "State.set: a function is not JSON", False, False, False, False]}
    assert set(done.versions) == {"scope-global"}


async def test_what_it_printed_is_kept_and_heard_live(store):
    heard = []
    done = await run_script(store, 'print("a", 1, nil, true) print("b")', on_print=heard.append)
    assert done.output == "a\t1\tnil\ttrue\nb\n" and heard == ["a\t1\tnil\ttrue", "b"]
    with pytest.raises(ScriptError) as caught:
        await run_script(store, 'print("so far") error("no")')
    assert caught.value.output == "so far\n"


async def test_calls_work_inside_coroutines_and_callbacks(store):
    source = """
    local walk = coroutine.wrap(function() for i = 1, 3 do workflow.append("l", i) coroutine.yield(workflow.get("l")[i]) end end)
    local sum = walk() + walk() + walk()
    table.sort({ 3, 1, 2 }, function(a, b) workflow.increment("compared") return a < b end)
    string.gsub("abc", ".", function(c) workflow.append("letters", c) end)
    return sum
    """
    assert (await run_script(store, source, workflow="w")).value == 6
    state = await store.workflow("w").state()
    assert state["l"] == [1, 2, 3] and state["letters"] == ["a", "b", "c"] and state["compared"] > 0


@pytest.mark.parametrize(
    ("limit", "allowed", "source"),
    [
        ("wall_ms", 500, "while true do State.get('x') end"),
        ("cpu_s", 1, "while true do end"),
        ("memory_bytes", 2_000_000, "local s = string.rep('x', 8000000)"),
        ("memory_bytes", 2_000_000, "local t = {} for i = 1, 1e9 do t[i] = i end"),
        ("output_bytes", 1000, "while true do print('abc') end"),
        ("calls", 100, "while true do pcall(State.set, 'k', 1) end"),
        ("traffic_bytes", 100_000, "for i = 1, 120 do State.set('k', string.rep('x', 1000)) end"),
        ("traffic_bytes", 100_000, "State.set('k', string.rep('x', 1000)) for i = 1, 120 do State.get('k') end"),
        ("source_bytes", 20, "-- " + "x" * 20),
    ],
)
async def test_each_limit_is_kept_by_name_and_nothing_is_stored(store, limit, allowed, source):
    limits = Limits(**{"wall_ms": 20_000, "calls": 1_000_000, limit: allowed})
    with pytest.raises(LimitExceeded) as caught:
        await run_script(store, "State.set('k', 1) " + source, limits=limits)
    assert (caught.value.limit, caught.value.allowed) == (limit, allowed) and caught.value.found >= allowed
    assert not await store.workflow("scope-global").exists()


async def test_a_value_too_large_to_read_is_an_error_the_script_can_catch(store):
    await store.workflow("w").set("/big", "x" * 5000)
    source = 'local good, why = pcall(workflow.get, "big") return { good, why, workflow.get("n") }'
    done = await run_script(store, source, workflow="w", limits=Limits(message_bytes=1000))
    assert done.value[0] is False and "5,00" in done.value[1] and done.value[2] == 1
    with pytest.raises(ScriptError, match="larger than 1000 bytes"):
        await run_script(store, "State.set('k', string.rep('x', 2000))", limits=Limits(message_bytes=1000))


async def test_an_integer_that_lua_cannot_hold_is_refused_not_rounded(store):
    await store.workflow("w").set("/huge", 2**64)
    with pytest.raises(ScriptError, match="18446744073709551616 does not fit"):
        await run_script(store, 'return workflow.get("huge")', workflow="w")
    assert (await run_script(store, 'return workflow.get("n")', workflow="w")).value == 1


async def test_bad_arguments_are_refused_before_a_process_is_started(store, monkeypatch):
    def never():
        raise AssertionError("a process was to be started")

    monkeypatch.setattr(processes, "environment", never)
    for wrong in (
        {"source": 5},
        {"source": "\ud800"},
        {"name": "x" * 60},
        {"name": "a\nb"},
        {"step": "s"},
        {"workflow": "w", "step": ""},
        {"author": ""},
        {"input": {1, 2}},
        {"source": "x" * 2_000_000},
    ):
        with pytest.raises(Invalid):
            await run_script(store, **{"source": "return 1", **wrong})
    with pytest.raises(WorkflowNotFound):
        await run_script(store, "return 1", workflow="absent")
    with pytest.raises(Invalid):
        Limits(calls=0)
    with pytest.raises(Invalid):
        Limits(wall_ms=0.5)


async def test_without_lupa_there_is_an_error_that_says_what_to_install(store, monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"install `quire\[lua\]`"):
        await run_script(store, "State.set('k', 1)")
    assert await shared(store) == {}


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("source", ['print("x") while true do end', 'print("x") while true do State.get("k") end'])
async def test_a_cancelled_script_leaves_no_process_and_no_change(store, monkeypatch, source):
    begun, pids = asyncio.Event(), []

    class Noting(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            pids.append(self.pid)

    monkeypatch.setattr(processes.subprocess, "Popen", Noting)
    script = run_script(
        store, 'State.set("k", 1) ' + source, on_print=lambda line: begun.set(), limits=Limits(calls=10**9, cpu_s=600)
    )
    working = asyncio.ensure_future(script)
    await begun.wait()
    assert not gone(pids[0])
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert gone(pids[0])
    assert not await store.workflow("scope-global").exists()


OWNER = """
import subprocess, sys
from quire import sync
from quire.scripting import Limits, process
from quire.scripting.sync import run_script

class Telling(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.told = print(self.pid, flush=True)

process.subprocess.Popen = Telling
with sync.open("memory:") as store:
    run_script(store, sys.argv[1], limits=Limits(cpu_s=int(sys.argv[2]), calls=10**9, wall_ms=10**6), on_print=lambda line: print(line, flush=True))
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for a process that is not our child: Linux")
@pytest.mark.parametrize(("deed", "cpu_s"), [("State.get('x')", 600), ("", 1)])
def test_a_script_whose_owner_is_killed_ends_by_itself(deed, cpu_s):
    script = f"print('begun') while true do {deed} end"
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, script, str(cpu_s)], stdout=subprocess.PIPE, text=True
    ) as owner:
        pid = int(owner.stdout.readline())
        handle = os.pidfd_open(pid)
        assert owner.stdout.readline() == "begun\n"
        assert not select.select([handle], [], [], 0)[0]
        owner.kill()
    assert select.select([handle], [], [], 60)[0]
    os.close(handle)


async def test_a_listener_that_raises_ends_the_script(store):
    def broken(line):
        raise KeyError(line)

    with pytest.raises(KeyError, match="hello"):
        await run_script(store, 'State.set("k", 1) print("hello") while true do end', on_print=broken)
    assert not await store.workflow("scope-global").exists()


async def test_a_step_commits_its_script_with_its_result(store):
    topology = sequence(
        lua_step("find", 'workflow.set("found", 3) State.increment("runs") return { n = input.from }'),
        lua_step("use", 'step.state.set("progress", 0.5) workflow.set("sum", input.n + workflow.get("found"))'),
        step(lambda context: [context.state["sum"], context.state_accessor.step("use").get("progress")], name="look"),
    )
    done = await run(store, topology, id="r", input={"from": 4}, scoped=StateBuilder())
    assert done.state["sum"] == 7 and done.result == [7, 0.5]
    steps = await store.workflow("r").history(kind="step", order="oldest")
    assert [v.author for v in steps][:2] == ["find", "use"]
    assert {c.path[0] for c in steps[0].changes} == {"found", "_run"}
    beside = await store.workflow("scope-global").version()
    assert beside.author == "find" and abs(beside.position - steps[0].position) == 1
    again = await run(store, topology, id="r", input={"from": 4}, scoped=StateBuilder())
    assert again.ran == [] and await shared(store) == {"runs": 1}


async def test_a_run_without_scoped_state_has_its_own_for_scripts(store):
    done = await run(store, lua_step("s", 'workflow.increment("n") return workflow.get("n")'), id="r")
    assert done.result == 1 and done.state["n"] == 1
    for word in ("State", "workflow.state", "step.state"):
        with pytest.raises(StepFailed, match=f"{word}.set: this run has no scoped state: begin it with"):
            await run(store, lua_step("s", word + '.set("k", 1)'), id="r-" + word)


async def test_a_failed_step_leaves_nothing_and_is_tried_again(store):
    source = 'workflow.set("half", true) State.set("half", true) if step.attempt == 1 then error("flaky") end return step.key'
    with pytest.raises(StepFailed, match="s:1: flaky") as caught:
        await run(store, lua_step("s", source), id="r", scoped=StateBuilder())
    assert isinstance(caught.value.__cause__, ScriptError)
    assert "half" not in await store.workflow("r").state() and await shared(store) == {}
    done = await run(store, lua_step("s", source), id="r", scoped=StateBuilder())
    assert done.result == "s" and done.state["half"] and await shared(store) == {"half": True}


async def test_a_step_that_is_stopped_at_a_limit_fails_with_that_limit(store):
    with pytest.raises(StepFailed) as caught:
        await run(store, lua_step("s", "while true do workflow.get('n') end", limits=Limits(calls=9)), id="r")
    assert caught.value.__cause__.limit == "calls"


async def test_steps_at_the_same_time_keep_their_own_and_count_together(store):
    source = """
    State.increment("n") workflow.increment("n") workflow.state.increment("n") step.state.set("mine", step.key)
    return State.has("absent")
    """
    topology = parallel(*(lua_step(f"p{i}", source) for i in range(4)), name="all")
    done = await run(store, topology, id="r", scoped=StateBuilder())
    manager = WorkflowStateManager(store)
    assert done.state["n"] == await manager.workflow_state("r").get("n") == (await shared(store))["n"] == 4
    assert [await manager.workflow_state("r").step(f"p{i}").get("mine") for i in range(4)] == [
        f"all/p{i}" for i in range(4)
    ]


def test_the_sync_twin_says_the_same_words():
    ours, theirs = inspect.signature(sync_scripts.run_script), inspect.signature(scripts.run_script)
    assert list(ours.parameters.values())[1:] == list(theirs.parameters.values())[1:]
    assert sync_scripts.run_script.__doc__ == scripts.run_script.__doc__
    with sync.open("memory:") as store:
        done = sync_scripts.run_script(store, 'return State.increment("n", input)', input=2)
        assert done.value == 2 and sync.WorkflowStateManager(store).global_().get("n") == 2
