"""StateManager: read the whole state, change something, persist it. Nobody's change is lost in silence."""

import asyncio
import subprocess
import sys
import tempfile
from contextlib import ExitStack, aclosing

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import quire
from quire import StateManager
from quire.core import updated_at
from quire.core.updated_at import PARTS
from quire.engine.clock import FakeClock
from quire.engine.updated_at import version_of
from quire.errors import NotFound
from quire.model import WORKFLOWS
from quire.orchestra import run, sequence
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

KINDS = ["sqlite", "files", "postgres", "redis", "nats"]


def state(**more):
    return {"id": "w", "name": "Data", "status": "running", "createdAt": 1_700_000_000_000, **more}


@pytest.fixture
async def manager():
    async with StateManager("memory:") as opened:
        yield opened


def url_of(kind, tmp_path, ends):
    local = {"sqlite": str(tmp_path / "s.db"), "files": f"file:///{tmp_path}/folder"}
    if kind in local:
        return local[kind]
    server = started({"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}[kind]())
    ends.callback(server.stop)
    return server.url


async def values(manager, *names):
    found = await manager.get_workflow_state("w")
    return tuple(found.get(name) for name in names)


# two callers


async def test_of_two_callers_that_change_different_fields_both_changes_stay(manager):
    await manager.persist_workflow_state("w", state(a=0, b=0))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    one["a"], two["b"] = 1, 2
    first = await manager.persist_workflow_state("w", one)
    second = await manager.persist_workflow_state("w", two)
    assert await values(manager, "a", "b") == (1, 2)
    assert (first.state["a"], first.state["b"], second.state["a"], second.state["b"]) == (1, 0, 1, 2)
    assert await manager.list_conflicts() == []


@pytest.mark.parametrize("mine", [1, 2])
async def test_what_both_change_is_the_last_write_and_on_record_also_if_it_is_equal(manager, mine):
    await manager.persist_workflow_state("w", state(n=0))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    one["n"], two["n"] = 1, mine
    await manager.persist_workflow_state("w", one, "ann")
    before = manager.store.engine.committer.commits
    await manager.persist_workflow_state("w", two, "bob")
    assert manager.store.engine.committer.commits == before + 1  # the version and the conflict are one commit
    assert await values(manager, "n") == (mine,)
    (conflict,) = await manager.list_conflicts("w")
    assert (conflict.status, conflict.resolution_strategy) == ("pending", "last-write-wins")
    assert conflict.conflicting_changes == [
        {"path": "/n", "version": 3, "author": "bob", "value": mine},
        {"path": "/n", "version": 2, "author": "ann", "value": 1},
    ]
    (known,) = await manager.store.workflow("w").conflicts()
    assert (known.base.value, known.base.version, known.policy, known.resolution) == (0, 1, "last", "ours")
    assert (await manager.resolve_state_conflict(conflict.id))["n"] == mine
    (conflict,) = await manager.list_conflicts()
    assert (conflict.status, (await manager.get_state_metrics()).conflicts_resolved) == ("resolved", 1)
    assert len(await manager.get_workflow_history("w")) == 3  # it was current, so there is no other version


async def test_a_conflict_can_still_be_decided_for_the_other_side(manager):
    await manager.persist_workflow_state("w", state(n=0))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    one["n"], two["n"] = 1, 2
    await manager.persist_workflow_state("w", one)
    await manager.persist_workflow_state("w", two)
    workflow = manager.store.workflow("w")
    (conflict,) = await workflow.conflicts()
    await workflow.resolve(conflict.id, "theirs")
    assert await values(manager, "n") == (1,)
    assert [c.status for c in await manager.list_conflicts()] == ["resolved"]


async def test_lists_that_both_add_to_have_all_of_it(manager):
    await manager.persist_workflow_state("w", state(log=["begun"], tasks={}))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    for mine, name in ((one, "a"), (two, "b")):
        mine["log"].append(name)
        mine["tasks"][name] = {"id": name, "type": "x"}
        await manager.persist_workflow_state("w", mine)
    log, tasks = await values(manager, "log", "tasks")
    assert (log, list(tasks)) == (["begun", "a", "b"], ["a", "b"])
    assert await manager.list_conflicts() == []


async def test_what_both_begin_has_all_of_it(manager):
    await manager.persist_workflow_state("w", state())
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    for mine, name in ((one, "a"), (two, "b")):
        mine.setdefault("tasks", {})[name] = {"id": name, "type": "x"}
        mine.setdefault("log", []).append(name)
        await manager.persist_workflow_state("w", mine)
    tasks, log = await values(manager, "tasks", "log")
    assert (tasks, log) == ({n: {"id": n, "type": "x"} for n in "ab"}, ["a", "b"])
    assert await manager.list_conflicts() == []


async def test_a_version_is_made_also_where_nothing_is_changed(manager):
    await manager.persist_workflow_state("w", state(n=0))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    one["n"] = 1
    await manager.persist_workflow_state("w", one)
    assert (await manager.persist_workflow_state("w", two)).version == 3  # and takes nothing back
    assert await values(manager, "n") == (1,)
    assert await manager.list_conflicts() == []


# where one side took away what the other changed


async def test_what_was_taken_away_is_put_back_as_the_last_write_has_it(manager):
    task = {"id": "t", "type": "x", "status": "open", "notes": ["n"]}
    await manager.persist_workflow_state("w", state(tasks={"t": task, "u": {**task, "id": "u"}}, o={"k": 1}))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    del one["tasks"]["t"], one["o"]
    one["tasks"]["v"] = {**task, "id": "v"}
    two["tasks"]["t"]["status"] = "done"
    two["tasks"]["t"]["notes"].append("m")
    await manager.persist_workflow_state("w", one, "ann")
    await manager.persist_workflow_state("w", two, "bob")
    tasks, o = await values(manager, "tasks", "o")
    assert tasks["t"] == {**task, "status": "done", "notes": ["n", "m"]}
    assert (sorted(tasks), o) == (["t", "u", "v"], None)  # what only one of them did stays
    (conflict,) = await manager.store.workflow("w").conflicts()
    assert (conflict.path, conflict.ours.value, conflict.theirs.author) == ("/tasks/t", tasks["t"], "ann")


async def test_an_item_that_was_taken_out_of_a_list_comes_back_with_its_list(manager):
    await manager.persist_workflow_state("w", state(items=[{"n": 1}, {"n": 2}], b=0))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    del one["items"][1]
    one["b"] = 1
    two["items"][1]["n"] = 5
    await manager.persist_workflow_state("w", one)
    await manager.persist_workflow_state("w", two)
    assert await values(manager, "items", "b") == ([{"n": 1}, {"n": 5}], 1)
    assert [c.path for c in await manager.store.workflow("w").conflicts()] == ["/items"]


async def test_a_container_that_others_replaced_takes_the_change(manager):
    await manager.persist_workflow_state("w", state(o={"a": 1, "b": 1}, l=[1]))
    mine = await manager.get_workflow_state("w")
    await manager.store.workflow("w").set("/o", {"a": 1, "b": 2}, author="ann")
    await manager.store.workflow("w").set("/l", {"not": "a list"}, author="ann")
    mine["o"]["a"] = 5
    mine["l"].append(2)
    await manager.persist_workflow_state("w", mine, "bob")
    assert await values(manager, "o", "l") == ({"a": 5, "b": 2}, [1, 2])
    assert [c.path for c in await manager.store.workflow("w").conflicts()] == ["/l"]


async def test_an_item_of_a_declared_list_comes_back_by_itself():
    schema = quire.Schema("s", kinds={"/items": "keyed(id)"})
    async with quire.open("memory:", schemas=[schema]) as store:
        manager = StateManager(store)
        items = [{"id": name, "n": 0} for name in "abc"]
        await manager.persist_workflow_state("w", state(items=items, **{"$schema": "s/1"}))
        one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
        one["items"] = [{"id": "a", "n": 0}, {"id": "c", "n": 7}, {"id": "d", "n": 0}]
        two["items"][1]["n"] = 5
        await manager.persist_workflow_state("w", one)
        await manager.persist_workflow_state("w", two)
        found = {item["id"]: item["n"] for item in (await values(manager, "items"))[0]}
        assert found == {"a": 0, "b": 5, "c": 7, "d": 0}
        assert len(await store.workflow("w").conflicts()) == 1
        made_anew = state(items=items, updatedAt=(await manager.get_workflow_state("w"))["updatedAt"])
        assert (await manager.persist_workflow_state("w", made_anew)).state["$schema"] == "s/1"


@pytest.mark.parametrize("theirs", ["The quick red fox" + " jumps over the lazy dog" * 4, "Something else." * 9])
async def test_a_text_that_both_rewrote_is_the_last_one_and_no_mixture(manager, theirs):
    text = "The quick brown fox" + " jumps over the lazy dog" * 4
    mine = "The quick brown cat" + " jumps over the lazy dog" * 4
    await manager.persist_workflow_state("w", state(text=text))
    one, two = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    one["text"], two["text"] = theirs, mine
    await manager.persist_workflow_state("w", one)
    await manager.persist_workflow_state("w", two)
    assert await values(manager, "text") == (mine,)
    (conflict,) = await manager.store.workflow("w").conflicts()
    assert (conflict.path, conflict.theirs.value, conflict.ours.value) == ("/text", theirs, mine)


# one caller, again and again


async def test_a_state_can_be_changed_and_persisted_again(manager):
    await manager.persist_workflow_state("w", state(busy=False, log=[], steps={}))
    mine = await manager.get_workflow_state("w")
    for busy in (True, False, True, False):  # back to what it was at first, too
        mine["busy"] = busy
        mine["log"].append(busy)
        version = await manager.persist_workflow_state("w", mine)
        assert await values(manager, "busy") == (busy,)
        assert mine == version.state
    assert await values(manager, "log") == ([True, False, True, False],)
    mine["log"][-1] = "ended"
    mine["steps"]["s"] = {"n": 1}
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "log", "steps") == ([True, False, True, "ended"], {"s": {"n": 1}})
    assert await manager.list_conflicts() == []


async def test_who_keeps_a_state_takes_nothing_back_of_what_others_do_meanwhile(manager):
    await manager.persist_workflow_state("w", state(a=0, b=0, c=0, log=[], flag=False))
    workflow = manager.store.workflow("w")
    mine = await manager.get_workflow_state("w")
    for n in range(1, 6):
        await workflow.set("/b", n, author="ann")
        await workflow.append("/log", f"ann {n}")
        mine["a"], mine["flag"] = n, bool(n % 2)
        mine["log"].append(f"me {n}")
        made = await manager.persist_workflow_state("w", mine)
        assert (mine["b"], made.state["b"]) == (0, n)
        assert mine["updatedAt"] > made.state["updatedAt"]  # it is not what was stored
    assert await values(manager, "a", "b", "flag") == (5, 5, True)
    log = (await values(manager, "log"))[0]
    assert sorted(log) == sorted(f"{who} {n}" for who in ("ann", "me") for n in range(1, 6))
    assert [e for e in log if e.startswith("me")] == [f"me {n}" for n in range(1, 6)]
    assert await manager.list_conflicts() == []
    mine["b"], mine["c"] = 7, 7  # where others wrote what is not in it
    await manager.persist_workflow_state("w", mine, "bob")
    assert await values(manager, "b", "c") == (7, 7)
    (conflict,) = await workflow.conflicts()
    assert (conflict.path, conflict.theirs.value, conflict.theirs.author, conflict.ours.value) == ("/b", 5, "ann", 7)


async def test_a_kept_state_that_nobody_knows_any_more_is_a_recorded_conflict(manager, monkeypatch):
    await manager.persist_workflow_state("w", state(a=0, b=0))
    mine = await manager.get_workflow_state("w")
    await manager.store.workflow("w").set("/b", 1, author="ann")
    mine["a"] = 1
    await manager.persist_workflow_state("w", mine)
    monkeypatch.setattr(manager, "_whole", None)  # as after a restart
    await manager.persist_workflow_state("w", mine, "bob")
    assert await values(manager, "a", "b") == (1, 0)
    (conflict,) = await manager.store.workflow("w").conflicts()
    assert (conflict.path, conflict.theirs.version, conflict.ours.version) == ("", 3, 4)


async def test_only_the_dict_that_was_given_moves_on(manager):
    first = state(n=1)
    await manager.persist_workflow_state("w", first)
    assert "updatedAt" not in first
    mine = await manager.get_workflow_state("w")
    older = dict(mine)
    await manager.persist_workflow_state("w", mine)
    assert mine["updatedAt"] > older["updatedAt"]
    with pytest.raises(quire.errors.InvalidState):
        await manager.persist_workflow_state("w", broken := {**mine, "status": "odd"})
    assert broken["updatedAt"] == mine["updatedAt"]


# several agents


@pytest.mark.parametrize("keeps", [False, True])
async def test_three_agents_on_tasks_of_their_own_lose_nothing(manager, keeps):
    agents = ("a", "b", "c")
    await manager.persist_workflow_state(
        "w", state(tasks={n: {"id": n, "type": "x", "done": []} for n in agents}, log=[])
    )

    async def work(name):
        mine = await manager.get_workflow_state("w")
        for number in range(20):
            if not keeps:
                mine = await manager.get_workflow_state("w")
            await asyncio.sleep(0)
            mine["tasks"][name]["done"].append(number)
            mine["tasks"][name]["at"] = number
            mine["log"].append(f"{name}{number}")
            await manager.persist_workflow_state("w", mine, name)

    await asyncio.gather(*map(work, agents))
    tasks, log = await values(manager, "tasks", "log")
    for name in agents:
        assert tasks[name] == {"id": name, "type": "x", "done": list(range(20)), "at": 19}
        assert [e for e in log if e[0] == name] == [f"{name}{n}" for n in range(20)]
    assert len(await manager.get_workflow_history("w")) == 61
    assert await manager.list_conflicts() == []


AGENT = """
import asyncio, sys
from quire import StateManager
async def main(url, name, keeps):
    async with StateManager(url) as manager:
        mine = await manager.get_workflow_state("w")
        for number in range(20):
            if keeps == "False":
                mine = await manager.get_workflow_state("w")
            mine["tasks"][name]["done"].append(number)
            mine["tasks"][name]["at"] = number
            mine["log"].append(f"{name}{number}")
            mine.setdefault("begun", {})[f"{name}{number}"] = number
            await manager.persist_workflow_state("w", mine, name)
asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_nor_do_three_processes(tmp_path, kind, keeps):
    agents = ("a", "b", "c")
    with ExitStack() as ends:
        url = url_of(kind, tmp_path, ends)
        async with StateManager(url) as manager:
            begun = {n: {"id": n, "type": "x", "done": []} for n in agents}
            await manager.persist_workflow_state("w", state(tasks=begun, log=[]))
            processes = [subprocess.Popen([sys.executable, "-c", AGENT, url, name, str(keeps)]) for name in agents]
            ends.callback(lambda: [p.kill() for p in processes])
            codes = [await asyncio.to_thread(p.wait, 200) for p in processes]
            assert codes == [0, 0, 0]
            tasks, log, made = await values(manager, "tasks", "log", "begun")
            assert made == {f"{name}{number}": number for name in agents for number in range(20)}
            for name in agents:
                assert tasks[name] == {"id": name, "type": "x", "done": list(range(20)), "at": 19}
                assert [e for e in log if e[0] == name] == [f"{name}{n}" for n in range(20)]
            history = await manager.get_workflow_history("w")
            numbers = [v.state["updatedAt"] for v in history]
            assert (len(history), numbers) == (61, sorted(set(numbers), reverse=True))
            assert await manager.list_conflicts() == []


# time


async def inverts(manager, workflow_id="w"):
    """Return the `updatedAt` of every version, oldest first; see that each grows and names its version."""
    history = (await manager.get_workflow_history(workflow_id))[::-1]
    numbers = [v.state["updatedAt"] for v in history]
    assert numbers == sorted(set(numbers))
    actor = await manager.store.engine.current(WORKFLOWS + workflow_id)
    for version, number in zip(history, numbers, strict=True):
        assert (await manager.get_workflow_state(workflow_id, version.version) or {}).get("updatedAt") == number
        assert await version_of(manager.store.engine, actor, updated_at.read(number)) == version.version
    return numbers


async def test_a_clock_that_goes_back_loses_nothing(tmp_path):
    path = str(tmp_path / "s.db")
    fast, slow = FakeClock(2_000_000_000_000), FakeClock(1_000_000_000_000)
    async with quire.open(path, clock=fast) as one, quire.open(path, clock=slow) as other:
        ahead, behind = StateManager(one), StateManager(other)
        await ahead.persist_workflow_state("w", state(a=0, b=0))
        for n in range(1, 4):
            mine, theirs = await ahead.get_workflow_state("w"), await behind.get_workflow_state("w")
            mine["a"], theirs["b"] = n, n
            await ahead.persist_workflow_state("w", mine)
            await behind.persist_workflow_state("w", theirs)
            await slow.wind(60)
            assert await values(behind, "a", "b") == (n, n)
        assert await ahead.list_conflicts() == []
        numbers = await inverts(behind)
        assert numbers[0] == 2_000_000_000_000
        assert [v.timestamp for v in await ahead.get_workflow_history("w")] == [2_000_000_000_000] * 7
        fork = await other.workflow("w").fork("f", at=3)
        assert (await fork.version()).time > (await other.workflow("w").version(3)).time


async def test_versions_of_one_millisecond_are_told_apart():
    async with quire.open("memory:", clock=FakeClock()) as store:
        manager = StateManager(store)
        await manager.persist_workflow_state("w", state(**{f"f{n}": 0 for n in range(50)}))
        held = [await manager.get_workflow_state("w") for _ in range(50)]

        async def change(n):
            held[n][f"f{n}"] = 1
            await manager.persist_workflow_state("w", held[n])

        await asyncio.gather(*map(change, range(50)))
        assert await values(manager, *(f"f{n}" for n in range(50))) == (1,) * 50
        assert await manager.list_conflicts() == []
        numbers = await inverts(manager)
        assert {int(n) for n in numbers} == {1_700_000_000_000}


async def test_a_clock_that_stands_still_for_long():
    async with quire.open("memory:", clock=FakeClock()) as store:
        manager = StateManager(store)
        await manager.persist_workflow_state("w", state(n=0, a=0))
        workflow, numbers = store.workflow("w"), set()
        for n in range(2 * PARTS):
            await workflow.set("/n", n + 1)
            numbers.add((await manager.get_workflow_state("w"))["updatedAt"])
            if n == PARTS:
                mine = await manager.get_workflow_state("w")
        assert len(numbers) == 2 * PARTS
        assert max(numbers) < 1_700_000_000_003
        mine["a"] = 1
        await manager.persist_workflow_state("w", mine)
        assert await values(manager, "n", "a") == (2 * PARTS, 1)
        assert await manager.list_conflicts() == []


async def test_a_log_whose_times_tell_nothing_apart_makes_conflicts_and_nothing_worse(monkeypatch):
    """As an earlier Quire wrote it: more versions in one millisecond than there are numbers."""
    monkeypatch.setattr("quire.engine.actor.next_time", lambda now_ms, tail: now_ms)
    for module in ("core", "engine"):
        monkeypatch.setattr(f"quire.{module}.updated_at.PARTS", 4)
    async with quire.open("memory:", clock=FakeClock()) as store:
        manager = StateManager(store)
        await manager.persist_workflow_state("w", state(n=0, a=0, log=[]))
        for n in range(9):
            await store.workflow("w").append("/log", n)
        for version, log in ((7, [0, 1, 2, 3, 4, 5]), (11, [0, 1, 2, 3, 4, 5])):
            mine = await manager.get_workflow_state("w", version)
            mine["a"] = version
            await manager.persist_workflow_state("w", mine, "bob")
            assert await values(manager, "a", "log") == (version, log)  # the last write, nothing twice
        assert [[c["version"] for c in found.conflicting_changes] for found in await manager.list_conflicts()] == [
            [11, 10],
            [12, 11],
        ]
        mine = await manager.get_workflow_state("w", 2)  # those that can be told are
        mine["b"] = 1
        await manager.persist_workflow_state("w", mine)
        assert await values(manager, "a", "b") == (11, 1)
        assert len(await manager.list_conflicts()) == 2


STEP = st.tuples(
    st.sampled_from(["persist", "persist", "older", "set", "delete", "restore", "fork", "empty"]),
    st.integers(0, 1),
    st.integers(-3, 3),
    st.integers(0, 30),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, min_size=5, max_size=30))
def test_updated_at_grows_with_every_version_and_names_it_whatever_happens(steps):
    async def run():
        with tempfile.TemporaryDirectory() as folder:
            clocks = [FakeClock(10_000), FakeClock(10_000)]
            url = f"{folder}/s.db"
            async with quire.open(url, clock=clocks[0]) as one, quire.open(url, clock=clocks[1]) as other:
                managers = [StateManager(one), StateManager(other)]
                await managers[0].persist_workflow_state("w", state(n=0))
                snapshot = await managers[0].create_state_snapshot("w")
                for number, (what, who, moved, back) in enumerate(steps):
                    clocks[who]._ms += moved
                    manager = managers[who]
                    workflow = manager.store.workflow("w")
                    head = (await manager.store.engine.current(workflow.stream)).head.version
                    if what in ("persist", "older"):
                        seen = await manager.get_workflow_state("w", max(1, head - back) if what == "older" else None)
                        await manager.persist_workflow_state("w", {**state(), **(seen or {}), f"k{back % 4}": number})
                    elif what == "restore":
                        await manager.restore_from_snapshot("w", snapshot.id) if await workflow.exists() else None
                    elif what == "fork":
                        fork = await workflow.fork(f"f{number}", at=max(1, head - back))
                        origin = await workflow.version(max(1, head - back))
                        assert (await fork.version()).time > origin.time
                        await inverts(manager, fork.id)
                    elif await workflow.exists():
                        if what == "set":
                            await workflow.set("/n", number)
                        elif what == "empty":
                            await workflow.set("/n", await workflow.get("/n"), allow_empty=True)
                        else:
                            await manager.store.delete("w")
                assert await inverts(managers[0]) == await inverts(managers[1])
                assert (await one.verify()).ok

    asyncio.run(run())


async def test_history_has_the_same_numbers_as_each_version_has_by_itself(tmp_path):
    async with StateManager(str(tmp_path / "s.db")) as manager:
        for n in range(5):
            await manager.persist_workflow_state("w", state(n=n))
            await manager.store.workflow("w").set("/m", n)
        await inverts(manager)
        history = await manager.get_workflow_history("w")
        assert [v.parent_version for v in history] == [*(v.id for v in history[1:]), None]
        for found in history:
            assert found == await manager._version(
                manager.store.workflow("w"), await manager.store.workflow("w").version(found.id)
            )


# what comes in between


async def test_an_old_version_that_is_persisted_later_takes_nothing_back(manager):
    for n in range(8):
        await manager.persist_workflow_state("w", state(n=n, **{f"f{n}": n}))
    mine = await manager.get_workflow_state("w", version=5)
    mine["mine"] = 1
    made = await manager.persist_workflow_state("w", mine)
    assert {k: v for k, v in made.state.items() if k not in ("updatedAt", *state())} == {"n": 7, "f7": 7, "mine": 1}
    assert await manager.list_conflicts() == []


async def test_a_restore_in_between_stays_and_what_it_did_not_touch_merges(manager):
    await manager.persist_workflow_state("w", state(a=0, b=0))
    snapshot = await manager.create_state_snapshot("w")
    changed = await manager.get_workflow_state("w")
    changed["a"] = 1
    await manager.persist_workflow_state("w", changed)
    mine, kept = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    await manager.restore_from_snapshot("w", snapshot.id)
    mine["b"] = 2
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b") == (0, 2)
    assert await manager.list_conflicts() == []
    kept["a"] = 3
    await manager.persist_workflow_state("w", kept)
    assert await values(manager, "a", "b") == (3, 2)
    assert [c["path"] for c in (await manager.list_conflicts())[0].conflicting_changes] == ["/a", "/a"]
    await inverts(manager)


async def test_writes_of_any_kind_in_between_are_kept(manager):
    await manager.persist_workflow_state("w", state(a=0, b=0, log=[]))
    workflow = manager.store.workflow("w")
    mine = await manager.get_workflow_state("w")
    await workflow.set("/b", 1)
    async with workflow.edit() as draft:
        draft["log"].append("edited")
    await workflow.save({**await workflow.state(), "c": 1}, overwrite=True)
    await workflow.set("/updatedAt", "mine")  # and what others keep there is theirs
    assert (await manager.get_workflow_state("w"))["updatedAt"] != "mine"
    await workflow.set("", {**await workflow.state(), "d": 1})
    fork = await workflow.fork("f")
    await fork.set("/e", 1)
    await workflow.merge(fork)
    mine["a"] = 1
    mine["log"].append("mine")
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b", "c", "d", "e") == (1, 1, 1, 1, 1)
    assert await workflow.get("/updatedAt") == "mine"
    await inverts(manager)


async def test_a_run_goes_on_beside_whole_states(manager):
    async def first(ctx):
        mine = await manager.get_workflow_state("r")
        made_anew = {**state(id="r", a=1), "updatedAt": mine["updatedAt"]}  # without what the run keeps there
        await manager.persist_workflow_state("r", made_anew)
        ctx.state["b"] = 1

    def second(ctx):
        ctx.state["c"] = ctx.state["a"]

    flow = sequence(first, second)
    result = await run(manager.store, flow, id="r", state=state(id="r", a=0))
    assert (result.ran, [result.state[k] for k in "abc"]) == (["first", "second"], [1, 1, 1])
    assert result.state["_run"]["status"] == "completed"
    assert await manager.list_conflicts() == []


async def test_a_fork_takes_states_of_its_own_and_puts_others_on_record(manager):
    for n in range(3):
        await manager.persist_workflow_state("w", state(n=n))
    fork = await manager.store.workflow("w").fork("f")
    theirs = await manager.get_workflow_state("w")
    mine = await manager.get_workflow_state("f")
    await fork.set("/n", 5)
    mine["a"] = 1
    await manager.persist_workflow_state("f", mine)
    assert (await manager.get_workflow_state("f"))["n"] == 5
    assert await manager.list_conflicts() == []
    await manager.persist_workflow_state("f", theirs)  # of a version that the fork has not
    assert (await manager.get_workflow_state("f"))["n"] == 2
    assert [c.workflow_id for c in await manager.list_conflicts()] == ["f"]


async def test_a_workflow_that_was_deleted_comes_back_whole_and_on_record(manager):
    await manager.persist_workflow_state("w", state(a=0, b=0))
    mine, kept = await manager.get_workflow_state("w"), await manager.get_workflow_state("w")
    await manager.store.delete("w", author="ann")
    assert await manager.get_workflow_state("w") is None
    mine["a"] = 1
    made = await manager.persist_workflow_state("w", mine, "bob")
    assert (made.version, await values(manager, "a", "b", "name")) == (3, (1, 0, "Data"))
    (conflict,) = await manager.store.workflow("w").conflicts()
    assert (conflict.path, conflict.theirs.author, conflict.theirs.version) == ("", "ann", 2)
    kept["b"] = 2  # and one from before that finds it again
    await manager.persist_workflow_state("w", kept)
    assert await values(manager, "a", "b") == (1, 2)
    await inverts(manager)


async def test_one_that_is_deleted_while_it_is_persisted_comes_back_whole(manager, monkeypatch):
    await manager.persist_workflow_state("w", state(a=0))
    mine = await manager.get_workflow_state("w")
    mine["b"] = 1
    engine, left = manager.store.engine, [1]
    real = engine.write

    async def slow(write, cells=()):
        if left.pop() if left else 0:
            await manager.store.delete("w")
        return await real(write, cells)

    monkeypatch.setattr(engine, "write", slow)
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b", "name") == (0, 1, "Data")
    assert len(await manager.list_conflicts()) == 1


async def test_what_others_write_while_it_is_persisted_is_merged(manager, monkeypatch):
    await manager.persist_workflow_state("w", state(a=0, b=0))
    mine = await manager.get_workflow_state("w")
    mine["a"] = 1
    real = manager.store.engine.write

    async def slow(write, cells=()):
        monkeypatch.undo()
        await manager.store.workflow("w").set("/b", 2)
        return await real(write, cells)

    monkeypatch.setattr(manager.store.engine, "write", slow)
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b") == (1, 2)


# states that name no version


async def test_without_updated_at_the_last_write_is_the_whole_state(manager):
    await manager.persist_workflow_state("w", state(a=1))
    for other in ({}, {"updatedAt": None}, {"updatedAt": "2026-01-31"}, {"updatedAt": True}):
        await manager.persist_workflow_state("w", state(b=1, **other))
        assert await values(manager, "a", "b") == (None, 1)
    assert await manager.list_conflicts() == []


@pytest.mark.parametrize("made_up", [5, 0, -1, 1_700_000_000_000.25, 5.3])
async def test_an_older_one_that_no_version_has_is_the_last_write_and_on_record(manager, made_up):
    await manager.persist_workflow_state("w", state(a=1), "ann")
    await manager.persist_workflow_state("w", state(b=1, updatedAt=made_up), "bob")
    assert await values(manager, "a", "b") == (None, 1)
    (conflict,) = await manager.list_conflicts()
    assert conflict.conflicting_changes == [
        {"path": "", "version": 2, "author": "bob"},
        {"path": "", "version": 1, "author": "ann"},
    ]
    workflow = manager.store.workflow("w")
    await workflow.resolve(conflict.id, "theirs")  # the whole state that was replaced
    assert await values(manager, "a", "b") == (1, None)
    assert [c.status for c in await manager.list_conflicts()] == ["resolved"]


async def test_a_newer_one_that_no_version_has_is_the_last_write(manager):
    await manager.persist_workflow_state("w", state(a=1))
    mine = state(b=1, updatedAt=9_000_000_000_000)
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b") == (None, 1)
    assert await manager.list_conflicts() == []
    await manager.store.workflow("w").set("/a", 5)
    mine["b"] = 2  # by now it names the version that was made
    await manager.persist_workflow_state("w", mine)
    assert await values(manager, "a", "b") == (5, 2)


async def test_a_state_from_elsewhere_begins_a_workflow(manager):
    made = await manager.persist_workflow_state("w", state(updatedAt=5))
    assert (made.version, made.state["updatedAt"] > 5) == (1, True)
    assert await manager.list_conflicts() == []


async def test_where_the_past_is_gone_the_last_write_is_on_record(tmp_path):
    async with StateManager(str(tmp_path / "s.db")) as manager:
        await manager.persist_workflow_state("w", state(a=0, b=0))
        old = await manager.get_workflow_state("w")
        workflow = manager.store.workflow("w")
        for n in range(70):
            await workflow.set("/a", n)
        newer = await manager.get_workflow_state("w", 66)
        engine = manager.store.engine
        await engine.frame(workflow.stream, 60)
        await engine.backend.trim(workflow.stream, 59)
    async with StateManager(str(tmp_path / "s.db")) as manager:
        newer["b"] = 1
        await manager.persist_workflow_state("w", newer)
        assert await values(manager, "a", "b") == (69, 1)
        assert await manager.list_conflicts() == []
        old["b"] = 2
        await manager.persist_workflow_state("w", old)
        assert await values(manager, "a", "b") == (0, 2)
        assert len(await manager.list_conflicts()) == 1
        history = await manager.get_workflow_history("w")
        assert [v.version for v in history] == list(range(72, 59, -1))
        assert history[-1].parent_version is None


# reading


async def test_the_newest_state_costs_no_read_of_the_log(manager, monkeypatch):
    await manager.persist_workflow_state("w", state(n=1))

    async def fails(*_, **__):
        raise AssertionError("the log was read")

    monkeypatch.setattr(manager.store.engine.backend, "read", fails)
    assert (await manager.get_workflow_state("w"))["n"] == 1


async def test_after_a_load_from_a_keyframe_it_is_read_once(tmp_path, monkeypatch):
    path = str(tmp_path / "s.db")
    async with quire.open(path, clock=FakeClock()) as store:
        manager = StateManager(store)
        for n in range(3):
            await manager.persist_workflow_state("w", state(n=n))
        await store.engine.frame("workflows/w", 3)
    async with quire.open(path, clock=FakeClock()) as store:
        manager = StateManager(store)
        first = await manager.get_workflow_state("w")
        assert first["updatedAt"] == 1_700_000_000_000 + 2 / PARTS

        async def fails(*_, **__):
            raise AssertionError("the log was read")

        with monkeypatch.context() as patched:
            patched.setattr(store.engine.backend, "read", fails)
            assert await manager.get_workflow_state("w") == first
        await store.workflow("w").set("/n", 7)
        assert await inverts(manager) == [1_700_000_000_000 + n / PARTS for n in range(4)]


async def test_the_number_is_that_of_the_record_also_after_a_restart(tmp_path):
    path = str(tmp_path / "s.db")
    async with StateManager(path) as manager:
        for n in range(200):  # with keyframes
            await manager.persist_workflow_state("w", state(n=n, text="x" * 2000 * (n % 2)))
        mine = await manager.get_workflow_state("w", 150)
    for where in (200, None):
        async with StateManager(path) as manager:
            found = await manager.get_workflow_state("w", where)
            assert found["updatedAt"] == (await manager.get_workflow_history("w"))[0].state["updatedAt"]
    async with StateManager(path) as manager:
        mine["more"] = 1
        await manager.persist_workflow_state("w", mine)
        assert await values(manager, "n", "more") == (199, 1)


async def test_nobody_is_told_of_updated_at(manager):
    got = []
    manager.register_agent("ann", lambda message: got.append(message["payload"]["change"]["path"]))
    await manager.persist_workflow_state("w", state(n=0))
    await manager.subscribe_to_state_changes("w", "ann")
    mine = await manager.get_workflow_state("w")
    await manager.persist_workflow_state("w", mine)  # nothing to tell
    mine["n"] = 1
    await manager.persist_workflow_state("w", mine)
    for _ in range(500):
        if got:
            break
        await asyncio.sleep(0.005)
    assert got == ["/n"]
    async with aclosing(manager.store.workflow("w").watch(after=0)) as events:
        assert all("updatedAt" not in str(c) for c in (await anext(events)).changes)


async def test_tasks_merge_too(manager):
    async def do(kind, **payload):
        result = await manager.process_task({"id": "t", "type": kind, "payload": {"workflowId": "w", **payload}})
        assert result.status == "success", result.error
        return result.result

    await do("persist-state", state=state(a=0, b=0))
    one, two = await do("get-state"), await do("get-state")
    one["a"], two["b"] = 1, 2
    await do("persist-state", state=one)
    made = await do("persist-state", state=two)
    assert (made["state"]["a"], made["state"]["b"]) == (1, 2)


async def test_a_conflict_of_a_workflow_that_is_not_there(manager):
    with pytest.raises(NotFound, match="Conflict not found: nope"):
        await manager.resolve_state_conflict("nope")


async def test_a_mistake_in_reading_back_would_be_noticed(manager, monkeypatch):
    """The negative control of `inverts`."""
    await manager.persist_workflow_state("w", state(n=0))
    await manager.persist_workflow_state("w", state(n=1))
    assert await inverts(manager)
    manager.store.engine.residents.peek("workflows/w").tail = updated_at.Tail(5, 0)
    with pytest.raises(AssertionError):
        await inverts(manager)


async def test_an_item_of_a_list_that_others_deleted_takes_nothing_else_along(manager):
    await manager.persist_workflow_state("w", state(items=["a", "b"], note="old"))
    mine = await manager.get_workflow_state("w")
    await manager.store.workflow("w").delete("/items", author="bob")
    mine["items"].pop()
    mine["note"], mine["new"] = "ann's", 1
    await manager.persist_workflow_state("w", mine, author="ann")
    assert await values(manager, "items", "note", "new") == (["a"], "ann's", 1)
