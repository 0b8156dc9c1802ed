"""Two handles on one store, as two processes have: whoever writes what, both answer what the log says."""

import asyncio
from itertools import product
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from msgspec import UNSET

import quire
from quire.config import Settings
from quire.core.changes import apply
from quire.core.schema import Schemas
from quire.core.values import same
from quire.engine.actor import Actor
from quire.engine.write import Base, Write
from quire.errors import ChangeError, HeadMoved, MergeConflict, QuireError
from quire.model import Head, Insert, Remove, Set
from quire.testing.servers.fixtures import PLACES
from quire.testing.strategies import changes_for, states

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


# what no commit checks: refusals, and writes that change nothing

CALLS = {
    "create": lambda s, w, n: s.create("w", {"n": n, "o": {}}),
    "delete": lambda s, w, n: s.delete("w"),
    "set": lambda s, w, n: w.set("/n", n),
    "set on a version": lambda s, w, n: w.set("/n", n, if_version=n),
    "inc within bounds": lambda s, w, n: w.inc("/n", n - 2, minimum=0, maximum=4),
    "set a place": lambda s, w, n: w.set(f"/o/p{n % 2}", {}),
    "set inside it": lambda s, w, n: w.set(f"/o/p{n % 2}/q", n),
    "delete it": lambda s, w, n: w.delete(f"/o/p{n % 2}"),
    "add to it once": lambda s, w, n: w.inc(f"/o/p{n % 2}/q", n, idempotency_key=f"{n}"),
    "update": lambda s, w, n: w.update(lambda state: state.update(n=n)),
    "restore": lambda s, w, n: w.restore(n),
    "transact": lambda s, w, n: s.transact([each.change([quire.Set(("n",), n)]) for each in (w, s.workflow("v"))]),
}
"""Each is refused, or changes nothing, in one state of a workflow and is a new version in another."""


async def answers(stores, steps):
    """Return what calls answer, made one after the other in stores taking turns: numbers of versions, or refusals."""
    await stores[0].create("v", {"n": 0})
    found = []
    for who, what, number in steps:
        store = stores[who % len(stores)]
        try:
            made = await CALLS[what](store, store.workflow("w"), number)
        except QuireError as error:
            found.append((type(error), str(error)))
        else:
            found.append([getattr(each, "number", None) for each in (made if isinstance(made, list) else [made])])
    return found, await stores[0].workflow("v").state()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("place", [name for name in PLACES if name != "rocksdb"])
async def test_two_handles_answer_as_one_does(tmp_path, place, seed):
    random = Random(seed)
    steps = [(random.randrange(2), random.choice([*CALLS]), random.randrange(5)) for _ in range(250)]
    async with quire.open("memory:") as alone:
        expected = await answers([alone], steps)
    url = PLACES[place](tmp_path)
    async with quire.open(url) as one, quire.open(url) as other:
        found = await answers([one, other], steps)
        assert list(zip(steps, found[0], strict=True)) == list(zip(steps, expected[0], strict=True))
        assert found[1] == expected[1]
        assert (await one.verify()).ok


@pytest.mark.parametrize("place", [name for name in PLACES if name != "rocksdb"])
async def test_what_changes_nothing_is_answered_by_the_newest_version_also_behind_others(tmp_path, place):
    """One of two writes that wait for the same commit."""
    url = PLACES[place](tmp_path)
    async with quire.open(url) as one, quire.open(url) as other:
        here, there = await one.create("w", {"n": 0}), other.workflow("w")
        for number in range(1, 20):
            await there.set("/n", number)
            calls = [here.set("/n", number - 1), here.set("/m", number)]
            await asyncio.gather(*calls[:: 1 if number % 2 else -1])
            assert await there.state() == {"n": number - 1, "m": number}
            await here.set("/n", number)


# late writes that are refused again and again


async def beaten(path, rounds, ours, theirs, *, made=True, recent=64, **how):
    """Have `ours`, made on version 1, be beaten in as many rounds by `theirs`; return what became of it.

    recent: versions that need not be read again.
    """
    known = Settings(recent_records=recent)
    async with quire.open(path, settings=known) as one, quire.open(path) as other:
        if made:
            await one.create("w", {"plan": "first", "n": 0, "log": [], "o": {"k": 1}})
        wf = one.workflow("w")
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
@pytest.mark.parametrize("recent", [64, 1])
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
async def test_a_write_that_is_beaten_often_ends_as_if_it_met_all_at_once(
    tmp_path, rounds, recent, policy, plan, status
):
    newest, path = f"bob's {rounds - 1}", str(tmp_path / "s.db")
    state, met, tried = await beaten(path, rounds, plan_and_more, other_plan, recent=recent, on_conflict=policy)
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
    assert (conflict.theirs.value, conflict.theirs.version) == (newest, 2 * rounds)


@pytest.mark.parametrize("policy", ["theirs", "queue", "last", "ours"])
async def test_a_place_that_others_changed_and_changed_back_was_not_met(tmp_path, policy):
    async def theirs(wf, number):
        await wf.set("/plan", ["bob's", "first"][number % 2], author="bob")

    def ours(state):
        state["plan"] = "ann's"
        state["n"] = 1

    state, met, tried = await beaten(str(tmp_path / "s.db"), 4, ours, theirs, on_conflict=policy)
    assert (state["plan"], state["n"], tried) == ("ann's", 1, 5)
    assert policy in ("last", "ours") or not met


@pytest.mark.parametrize("policy", ["theirs", "queue"])
async def test_each_place_that_was_left_out_is_told_as_others_wrote_it_last(tmp_path, policy):
    async def theirs(wf, number):
        changes = [
            [quire.Set(("plan",), "bob's")],
            [quire.Set(("o", "k"), 3)],
            [quire.Set(("plan",), "cleo's"), quire.Append(("log",), ["cleo"])],
            [quire.Delete(("o",))],
        ]
        await wf.apply(changes[number], author="bob" if number < 2 else "cleo")

    def ours(state):
        state["plan"] = "ann's"
        state["o"]["k"] = 2
        state["n"] = 1

    state, met, tried = await beaten(str(tmp_path / "s.db"), 4, ours, theirs, on_conflict=policy)
    assert (state, tried) == ({"plan": "cleo's", "n": 1, "log": ["cleo"]}, 5)
    told = {c.path: (c.base.value, c.ours.value, c.theirs.value, c.theirs.author, c.theirs.version) for c in met}
    assert told == {"/plan": ("first", "ann's", "cleo's", "cleo", 4), "/o/k": (1, 2, UNSET, "cleo", 5)}


async def test_both_stay_side_by_side_however_often_the_write_is_beaten(tmp_path):
    state, met, _ = await beaten(str(tmp_path / "s.db"), 4, plan_and_more, other_plan, on_conflict="both")
    assert (state["plan"], state["plan~2"], state["n"]) == ("bob's 3", "ann's", 41)
    assert len(met) == 1


@pytest.mark.parametrize("recent", [64, 1])
@pytest.mark.parametrize("policy", ["theirs", "queue", "reject"])
async def test_a_write_that_meets_others_late_compares_with_all_since_its_base(tmp_path, policy, recent):
    """For a while it meets nobody; what it read of the log then is not all that came since its base."""

    async def theirs(wf, number):
        await wf.insert("/log", 0, number, author="bob")
        await wf.append("/log", number, author="bob")
        if number == 3:
            await wf.set("/plan", "bob's", author="bob")

    def ours(state):
        state["plan"] = "ann's"
        state["log"].insert(1, "ann")

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {"plan": "first", "log": ["a", "b"]})
    met = beaten(path, 4, ours, theirs, made=False, recent=recent, on_conflict=policy)
    if policy == "reject":
        with pytest.raises(MergeConflict, match="/plan was written by others, last by bob in version 10"):
            await met
    else:
        state, conflicts, tried = await met
        assert state == {"plan": "bob's", "log": [3, 2, 1, 0, "a", "ann", "b", 0, 1, 2, 3]}
        assert ([c.path for c in conflicts], tried) == (["/plan"], 5)


@pytest.mark.parametrize("policy", [None, "last", "ours"])
@pytest.mark.parametrize("new", [0, {"id": 1}, "bob's"])
async def test_items_that_have_the_same_place_in_the_end_are_told_apart(tmp_path, policy, new):
    """Two items that a draft takes out, each changed by others between two tries."""

    async def theirs(wf, number):
        await wf.set(*[("/l/1", "bob's"), ("/l/0", new)][number], author="bob")

    def ours(state):
        del state["l"][0]
        del state["l"][0]

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {"l": [9, 0, 5]})
    state, met, tried = await beaten(path, 2, ours, theirs, made=False, on_conflict=policy)
    assert (state, tried) == ({"l": [5]}, 3)
    told = sorted(((c.base.value, c.theirs.value) for c in met), key=repr)
    assert told == [(0, "bob's"), (9, new)]


@pytest.mark.parametrize("policy", ["last", "ours"])
@pytest.mark.parametrize("taken", range(4))
@pytest.mark.parametrize("apart", range(1, 4))
async def test_items_that_others_put_in_do_not_hide_that_one_was_taken(tmp_path, policy, taken, apart):
    """A draft reads a list and clears it; others insert between its items, then take one of them."""

    async def theirs(wf, number):
        if number == 0:
            await wf.apply([quire.Insert(("l",), apart, ["new"])], author="bob")
        else:
            await wf.apply([quire.Remove(("l",), taken + (taken >= apart), 1)], author="bob")

    def ours(state):
        assert state["l"].to_plain() == [0, 1, 2, 3]
        state["l"].clear()

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {"l": [0, 1, 2, 3]})
    state, met, tried = await beaten(path, 2, ours, theirs, made=False, on_conflict=policy)
    assert (state, tried) == ({"l": ["new"]}, 3)
    assert [(c.base.value, c.theirs.value, c.theirs.author) for c in met] == [(taken, UNSET, "bob")]


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


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("recent", [64, 1])
async def test_what_a_beaten_write_points_at_moves_with_what_others_insert(tmp_path, rounds, recent):
    """Nothing clashes, so nothing but the rebase of each try says where our items are now."""

    def ours(state):
        state["items"][1] = "ours"
        del state["items"][2]

    async def theirs(wf, number):
        await wf.insert("/items", 0, f"theirs {number}")

    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {"items": ["a", "b", "c"]})
    state, met, tried = await beaten(path, rounds, ours, theirs, made=False, recent=recent)
    assert state["items"] == [*(f"theirs {n}" for n in reversed(range(rounds))), "a", "ours"]
    assert not met
    assert tried == rounds + 1


def ended(base, mine, others, *, late):
    """Return what becomes of changes made on `base` that others came before, one after the other; None if they clash."""
    actor = Actor(Settings(), Schemas(), Head("workflows/w"), {}, state_size=0)
    grown(actor, [Set((), base)])
    write = Write("workflows/w", mine, base=Base(1, actor.state), late=late, allow_empty=True)
    try:
        for number, each in enumerate(others, 1):
            actor.abandon()  # the try before this one was refused
            grown(actor, each)
            if late or number == len(others):
                actor.prepare(write, 0)
    except (MergeConflict, ChangeError):
        return None
    actor.publish()
    return None if write.met else actor.state


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_beaten_step_by_step_is_beaten_at_once(data):
    base = data.draw(states)
    mine = data.draw(changes_for(base, 4))
    others, now = [], base
    for _ in range(data.draw(st.integers(1, 4))):
        others.append(data.draw(changes_for(now, 2)))
        now = apply(now, others[-1])
    ends = [ended(base, mine, others, late=late) for late in (True, False)]
    assert None in ends or same(*ends)


def test_beaten_step_by_step_is_beaten_at_once_wherever_others_insert_and_remove():
    base = {"l": ["a", "b", "c", "d"]}
    steps = [Insert(("l",), at, ["new"]) for at in range(4)] + [Remove(("l",), at, 1) for at in (0, 3)]
    compared = 0
    for ours in (Set(("l", 1), "ours"), Insert(("l",), 2, ["ours"]), Remove(("l",), 2, 1)):
        for others in product(steps, repeat=3):
            ends = [ended(base, [ours], [[each] for each in others], late=late) for late in (True, False)]
            if None not in ends:
                assert ends[0] == ends[1], (ours, others)
                compared += 1
    assert compared > 400


def grown(actor, changes):
    actor.prepare(Write("workflows/w", changes, exists=None, allow_empty=True), 0)
    actor.publish()


async def test_a_refused_write_keeps_nobody_from_being_told(tmp_path):
    """What another process wrote is taken in by the write that it refuses, and that makes no version of its own."""
    path = f"{tmp_path}/s.db"
    async with quire.open(path) as one, quire.open(path) as two:
        here, there = await one.create("w", {"n": 0}), two.workflow("w")
        events = here.watch(after=1)
        waiting = asyncio.ensure_future(asyncio.wait_for(numbers(events, 5), 20))
        for number in range(1, 6):
            await there.set("/n", number)
            with pytest.raises(HeadMoved):
                await here.set("/m", 1, if_version=number)
        assert await waiting == [2, 3, 4, 5, 6]
        await events.aclose()


async def numbers(events, count):
    return [(await anext(events)).version.number for _ in range(count)]


OF_KINDS = {
    "log edited": ("log", ["b1"], [("insert", 0, "t1"), ("set", 0, "t2")], ["b1", "t2", "ann"]),
    "log taken back": ("log", ["b1"], [("insert", 0, "t1"), ("remove", 0)], ["b1", "ann"]),
    "set taken back": ("set", ["a"], [("append", "ann"), ("remove", 1)], ["a", "ann"]),
}


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("case", OF_KINDS)
async def test_a_beaten_write_to_a_list_of_a_kind_ends_as_if_it_met_all_at_once(tmp_path, case, at_once):
    kind, items, others, ended = OF_KINDS[case]
    schemas = [quire.Schema("s", kinds={"/l": kind})]
    place = str(tmp_path / "s.db")
    async with quire.open(place, schemas=schemas) as one, quire.open(place, schemas=schemas) as other:
        wf, theirs = await one.create("w", {"l": items}, schema="s"), other.workflow("w")
        left, commit = list(others), one.engine.backend.commit

        async def write():
            how, *what = left.pop(0)
            if how == "set":
                await theirs.set(f"/l/{what[0]}", what[1])
            else:
                await getattr(theirs, how)("/l", *what)

        async def committing(batch):
            if left:
                await write()
            return await commit(batch)

        async with wf.edit() as mine:
            mine["l"].append("ann")
            while at_once and left:
                await write()
            one.engine.backend.commit = committing
        assert sorted(await wf.get("/l")) == sorted(ended)
        assert not await wf.conflicts()
