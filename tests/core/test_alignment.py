"""Alignment: an item is compared with itself, wherever it is by now, and never with another one."""

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quire
from quire.core.alignment import aligned
from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.values import same
from quire.model import Append, Insert, Remove, Set, Splice
from quire.testing import strategies as qs

LONG = "A sentence that is long enough to be changed in its middle only, as texts are. "


def pairs(old, new):
    return [(i, j) for i, j, _ in aligned(old, new)]


@given(st.lists(qs.values, max_size=12), st.lists(qs.values, max_size=12))
def test_what_stays_keeps_its_order_and_equal_means_the_same(old, new):
    found = list(aligned(old, new))
    assert [i for i, _, _ in found] == sorted({i for i, _, _ in found})
    assert [j for _, j, _ in found] == sorted({j for _, j, _ in found})
    assert all(same(old[i], new[j]) for i, j, equal in found if equal)


@pytest.mark.parametrize("seed", range(200))
def test_items_with_names_are_never_taken_for_others(seed):
    rng = random.Random(seed)
    old = [{"id": i, "status": "open", "note": ""} for i in range(rng.randrange(1, 12))]
    new = copy.deepcopy(old)
    for step in range(rng.randrange(1, 8)):
        way = rng.choice("edit edit pop append insert".split())
        if way == "append":
            new.append({"id": f"n{step}", "status": "open", "note": ""})
        elif way == "insert":
            new.insert(rng.randrange(len(new) + 1), {"id": f"n{step}", "status": "open", "note": ""})
        elif new and way == "pop":
            new.pop(rng.randrange(len(new)))
        elif new:
            rng.choice(new)[rng.choice(["status", "note"])] = rng.choice(["done", "", "open"])
    staying = [(i, j) for i, a in enumerate(old) for j, b in enumerate(new) if a["id"] == b["id"]]
    assert pairs(old, new) == staying
    assert same(apply({"l": old}, diff({"l": old}, {"l": new})), {"l": new})


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([{"v": 1, "w": 1}, {"v": 2, "w": 2}], [{"v": 2, "w": 3}], [(1, 0)]),  # half of it is the same
        ([{"v": 1, "w": 1}], [{"v": 2, "w": 2}], []),
        ([{"id": 1, "w": 1, "x": 1}], [{"id": 2, "w": 1, "x": 1}], []),  # alike, but another one
        ([{"id": True, "w": 1, "x": 1}], [{"id": 1, "w": 1, "x": 1}], [(0, 0)]),  # True names nothing
        ([{"v": 1, "w": 0}], [{"v": 1, "w": 2}, {"v": 1, "w": 3}], []),  # which of the two cannot be told
        ([[1, 2], [3, 4]], [[3, 4], [1, 9]], [(1, 0)]),
        ([[1, 2], [3, 4]], [[0, 0], [3, 5]], [(1, 1)]),
        ([LONG, "b"], ["b", LONG + "More."], [(1, 0)]),
        ([LONG, 1], [LONG + "More.", 2], [(0, 0)]),
        ([1, 2, 3, 4], [1, 3, 2, 4], [(0, 0), (3, 3)]),  # what moved, and what it moved past
        ([{"id": 1}, {"id": 2}, {"id": 3}], [{"id": 3, "v": 1}, {"id": 1}, {"id": 2}], []),
        ([{"id": 1}, {"id": 2}, {"id": 3}], [{"id": 2}, {"id": 1, "v": 1}, {"id": 3}], [(2, 2)]),
        ([5, 5, 6], [5, 6], [(0, 0), (2, 1)]),
        ([1, 1.0, True, 2], [1.0, True, 2], [(1, 0), (2, 1), (3, 2)]),
        ([{"id": ""}, {"id": "", "v": 1}], [{"id": "", "v": 1}], [(1, 0)]),
        (  # a name that several have is none
            [{"name": "i", "file": "a", "by": ""}, {"name": "i", "file": "b", "by": ""}],
            [{"name": "i", "file": "b", "by": "", "tries": 1}, {"name": "i", "file": "c", "by": ""}],
            [(1, 0)],
        ),
        ([], [1], []),
    ],
)
def test_what_is_taken_for_the_same(old, new, expected):
    assert pairs(old, new) == expected


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("abc", "bcd", [Remove(("l",), 0, 1), Append(("l",), ["d"])]),
        ("abcd", "aXcY", [Set(("l", 1), "X"), Set(("l", 3), "Y")]),
        ("abc", "cba", [Set(("l", 0), "c"), Set(("l", 2), "a")]),
        ("abcd", "bXcd", [Remove(("l",), 0, 1), Insert(("l",), 1, ["X"])]),
        ([LONG, 1, 2], [1, LONG + "More."], [Remove(("l",), 0, 1), Set(("l", 1), LONG + "More.")]),
        ([0, LONG], [1, LONG + "More."], [Set(("l", 0), 1), Splice(("l", 1), len(LONG), 0, "More.")]),
    ],
)
def test_a_diff_of_lists_says_what_went_and_what_came(old, new, changes):
    assert diff({"l": list(old)}, {"l": list(new)}) == changes


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("how", ["save", "manager"])
async def test_what_another_wrote_into_an_item_stays_in_that_item(how, named):
    """Of three jobs the first is taken and one is added, while another agent writes into the second."""
    jobs = [{"id" if named else "task": name, "note": "", "tries": n} for n, name in enumerate("abc")]
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"id": "w", "name": "w", "status": "running", "createdAt": 1, "jobs": jobs})
        manager = quire.StateManager(store)
        state, base = await wf.state_and_version()
        shown = await manager.get_workflow_state("w")
        await wf.set("/jobs/1/note", "done", author="A")
        later = [*copy.deepcopy(jobs[1:]), {**jobs[0], "id" if named else "task": "d"}]
        later[1]["tries"] = 9  # the third is edited as well
        if how == "save":
            await wf.save({**state, "jobs": later}, base=base, author="B")
        else:
            await manager.persist_workflow_state("w", {**shown, "jobs": later}, "B")
        assert await wf.get("/jobs") == [{**jobs[1], "note": "done"}, later[1], later[2]]
        assert await wf.conflicts() == []


SORTED = [
    ([{"id": "a", "p": 2}, {"id": "b", "p": 1}], lambda jobs: jobs.sort(key=lambda job: job["p"])),
    ([{"p": 3}, {"p": 1}, {"p": 2}], lambda jobs: jobs.sort(key=lambda job: job["p"])),
    ([3, 1, 2, 0], lambda jobs: jobs.reverse()),
    ([1, 2, 3, 4], lambda jobs: jobs.append(jobs.pop(0))),
    ([{"id": n, "done": n == 2} for n in range(5)], lambda jobs: jobs.insert(0, {**jobs.pop(3), "done": True})),
]


@pytest.mark.parametrize(("jobs", "order"), SORTED)
@pytest.mark.parametrize("how", ["ours", "theirs", "queue", "fork", "manager"])
async def test_two_who_put_a_list_into_the_same_order_have_it_in_that_order(how, jobs, order):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"id": "w", "name": "w", "status": "running", "createdAt": 1, "jobs": jobs})
        fork = await wf.fork("f")
        manager = quire.StateManager(store)
        made = [await manager.get_workflow_state("w") for _ in range(2)]
        versions = [await wf.state_and_version(), await (fork if how == "fork" else wf).state_and_version()]
        for (state, base), shown, into in zip(versions, made, (wf, fork if how == "fork" else wf), strict=True):
            order(state["jobs"])
            order(shown["jobs"])
            if how == "manager":
                await manager.persist_workflow_state("w", shown)
            else:
                await into.save(state, base=base, on_conflict="last" if how == "fork" else how)
        if how == "fork":
            await wf.merge(fork)
        assert await wf.get("/jobs") == state["jobs"]


@pytest.mark.parametrize("policy", [None, "theirs", "queue", "both", "ours"])
async def test_an_item_that_moved_while_another_edited_it_is_there_once(policy):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"jobs": [{"id": "a", "p": 2, "by": ""}, {"id": "b", "p": 1, "by": ""}]})
        state, base = await wf.state_and_version()
        await wf.set("/jobs/1/by", "ann", author="ann")
        state["jobs"].reverse()
        try:
            await wf.save(state, base=base, on_conflict=policy)
        except quire.errors.MergeConflict:
            assert policy is None
        found = await wf.get("/jobs")
        told = [c.theirs.value for c in await wf.conflicts()]
        assert {"id": "b", "p": 1, "by": "ann"} in [*found, *told]
        if policy != "both":
            assert len(found) == 2
