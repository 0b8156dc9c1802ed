"""Two handles on one store, as two processes have: whoever writes what, both answer what the log says."""

import asyncio

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

import quire
from quire.engine.actor import Actor
from quire.errors import MergeConflict, QuireError

STEP = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["set", "same", "fails", "inc", "append", "both", "stale", "read"]),
    st.integers(0, 3),
)


async def step(store, what, number):
    wf = store.workflow("w")
    try:
        if what == "set":
            await wf.set(f"/k{number}", number)
        elif what == "same":  # changes nothing, and makes no version
            await wf.set("/n", await wf.get("/n"))
        elif what == "fails":
            await wf.set("/no/such/place", 1)
        elif what == "inc":
            await wf.inc("/n", number)
        elif what == "append":
            await wf.append("/log", number)
        elif what == "both":  # the second part fails, so does the first
            await store.transact([wf.change([quire.Set(("t",), number)]), store.workflow("absent").change([])])
        elif what == "stale":
            await wf.set("/s", number, if_version=number)
        else:
            await wf.state()
    except QuireError:
        pass


@settings(max_examples=80, deadline=None)
@given(st.lists(STEP, min_size=8, max_size=25))
def test_both_answer_what_the_log_says(steps):
    async def run():
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/s.db"
            async with quire.open(path) as one, quire.open(path) as other:
                await one.create("w", {"n": 0, "log": []})
                for which, what, number in steps:
                    await step((one, other)[which], what, number)
                states = [await each.workflow("w").state() for each in (one, other)]
                async with quire.open(path) as fresh:
                    assert states == [await fresh.workflow("w").state()] * 2
                    assert (await fresh.verify()).ok

    asyncio.run(run())


async def test_a_write_that_changed_nothing_does_not_hide_what_another_process_wrote(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as other:
        wf = await one.create("w", {"n": 1})
        await wf.set("/n", 1)
        await other.workflow("w").set("/m", 1)
        assert await wf.state() == {"n": 1, "m": 1}
        await wf.set("/k", 1)
        assert await wf.state() == {"n": 1, "m": 1, "k": 1} == await other.workflow("w").state()


async def test_of_many_who_write_and_read_at_once_each_reads_what_was_acknowledged_before(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as other:
        await one.create("w", {"n": 0})
        acknowledged = 0

        async def write(store):
            nonlocal acknowledged
            for _ in range(60):
                version = await store.workflow("w").inc("/n")
                acknowledged = max(acknowledged, version.number)

        async def read(store):
            for _ in range(200):
                before = acknowledged
                assert (await store.workflow("w").version()).number >= before
                await asyncio.sleep(0)

        await asyncio.gather(write(one), write(other), read(one), read(other))
        assert await one.workflow("w").get("/n") == 120


# late writes that are refused again and again


async def beaten(path, rounds, ours, theirs, **how):
    """Have `ours`, made on version 1, be beaten in as many rounds by `theirs`; return what became of it."""
    async with quire.open(path) as one, quire.open(path) as other:
        wf = await one.create("w", {"plan": "first", "n": 0, "log": [], "o": {"k": 1}})
        commit, left, tried = one.engine.backend.commit, [*range(rounds)], []

        async def committing(items):
            if any(r.stream == "workflows/w" for item in items for r in item.records):
                tried.append(1)
                if left:
                    await theirs(other.workflow("w"), left.pop(0))
            return await commit(items)

        one.engine.backend.commit = committing
        try:
            async with wf.edit(author="ann", **how) as state:
                ours(state)
        finally:
            one.engine.backend.commit = commit
        async with quire.open(path) as fresh:
            assert (await fresh.verify()).ok
        return await wf.state(), await wf.conflicts(), len(tried)


def plan_and_more(state):
    state["plan"] = "ann's"
    state.increment("n")
    state["log"].append("ann")


async def other_plan(wf, number):
    await wf.apply([quire.Set(("plan",), f"bob's {number}"), quire.Increment(("n",), 10)], author="bob")
    await wf.append("/log", number, author="bob")


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize(
    ("policy", "plan", "status"),
    [
        ("last", "ann's", "resolved"),
        ("ours", "ann's", "resolved"),
        ("theirs", None, "resolved"),
        ("queue", None, "pending"),
        (lambda met: f"{met.base}+{met.ours}+{met.theirs}", "first+ann's+bob's {}", "resolved"),
    ],
)
async def test_a_write_that_is_beaten_often_ends_as_if_it_met_all_at_once(tmp_path, rounds, policy, plan, status):
    newest = f"bob's {rounds - 1}"
    state, met, tried = await beaten(str(tmp_path / "s.db"), rounds, plan_and_more, other_plan, on_conflict=policy)
    assert tried == rounds + 1
    assert state == {
        "plan": newest if plan is None else plan.format(rounds - 1),
        "n": 10 * rounds + 1,
        "log": [*range(rounds), "ann"],
        "o": {"k": 1},
    }
    (conflict,) = met  # one meeting, however often it was met
    assert (conflict.path, conflict.status) == ("/plan", status)
    assert (conflict.base.value, conflict.base.version) == ("first", 1)
    assert (conflict.ours.value, conflict.theirs.author) == ("ann's", "bob")
    if policy in ("last", "ours") or callable(policy):
        assert (conflict.theirs.value, conflict.theirs.version) == (newest, 2 * rounds)


async def test_both_stay_side_by_side_however_often_the_write_is_beaten(tmp_path):
    state, met, _ = await beaten(str(tmp_path / "s.db"), 4, plan_and_more, other_plan, on_conflict="both")
    assert (state["plan"], state["plan~2"], state["n"]) == ("bob's 3", "ann's", 41)
    assert len(met) == 1


async def test_a_beaten_write_is_refused_when_its_place_is_taken_away_at_last(tmp_path):
    def ours(state):
        state["o"]["k"] = 2

    async def theirs(wf, number):
        if number < 2:
            await wf.inc("/n")
        else:
            await wf.delete("/o")

    with pytest.raises(MergeConflict, match="/o/k was removed or replaced"):
        await beaten(str(tmp_path / "s.db"), 3, ours, theirs)


async def test_each_try_meets_only_what_came_since_the_one_before(tmp_path, monkeypatch):
    met = []
    rebased = Actor._rebased

    def counting(self, write, base, head, records):
        met.append(len(records))
        return rebased(self, write, base, head, records)

    monkeypatch.setattr(Actor, "_rebased", counting)
    await beaten(str(tmp_path / "s.db"), 30, plan_and_more, other_plan)
    assert len(met) == 30
    assert max(met) == 2
