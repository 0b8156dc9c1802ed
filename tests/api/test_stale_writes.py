"""Writes made from what others changed since: refused with the work in the error, or settled as the caller says."""

import asyncio
import copy
import json

import pytest

import quire
from quire.api.draft import recording
from quire.core.guards import Guard, Read
from quire.errors import Invalid, MergeConflict, OutOfBounds, StorageTimeout
from quire.model import Append, Ensure, Increment, Set

STATE = {"n": 1, "t": "tide", "none": None, "l": [1, 2, 3], "o": {"a": 1, "in": {"x": 1}}, "rows": [{"by": None}]}


def guarded(act, state=STATE):
    """The places that a draft guards, as pointers."""
    draft = recording(state)
    act(draft)
    return ["/" + "/".join(map(str, s.path)) for s in draft.steps if isinstance(s, Guard)]


@pytest.mark.parametrize(
    "read",
    [
        lambda s: s["n"],
        lambda s: s.get("n"),
        lambda s: "n" in s,
        lambda s: list(s),
        lambda s: len(s),
        lambda s: list(s.keys()),
        lambda s: list(s.values()),
        lambda s: list(s.items()),
        lambda s: 5 in s.values(),
        lambda s: s == {},
        lambda s: repr(s),
        lambda s: f"{s}",
        lambda s: s.to_plain(),
        lambda s: s.copy(),
        lambda s: copy.deepcopy(s),
        lambda s: bool(s),
        lambda s: s.setdefault("n", 5),
        lambda s: next(iter(s)),
    ],
)
def test_what_shows_a_value_or_a_key_makes_the_write_to_it_rely_on_that(read):
    def act(s):
        read(s)
        s["n"] = 7

    assert guarded(act) == ["/n"]


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.__setitem__("n", 7),
        lambda s: (s["o"], s.__setitem__("n", 7)),
        lambda s: (s["t"], s.__setitem__("n", 7)),
        lambda s: s["o"].__setitem__("a", 7),
        lambda s: (s["o"].get("in"), s["o"].__setitem__("a", 7)),
        lambda s: ("o" in s, s["o"].__setitem__("a", 7)),
        lambda s: (list(s), s["o"].__setitem__("a", 7)),
        lambda s: s.update(n=7, t="x"),
        lambda s: s.__delitem__("n"),
        lambda s: s["l"].__delitem__(0),
        lambda s: s["l"].clear(),
        lambda s: s["o"].clear(),
        lambda s: (s.__setitem__("n", 7), s["n"], s.__setitem__("n", 8)),  # its own value
        lambda s: (s.__setitem__("o", {"a": 1}), s["o"]["a"], s["o"].__setitem__("a", 2)),
        lambda s: (s["l"].append(9), s["l"][-1], s["l"].__setitem__(-1, 8)),
        lambda s: s.increment("n"),
        lambda s: (s["l"], s["l"].append(4)),
        lambda s: s.setdefault("new", []).append(1),
        lambda s: s.setdefault("new", {}).update(a=1),
    ],
)
def test_what_shows_none_leaves_the_write_blind(act):
    assert guarded(act) == []


@pytest.mark.parametrize(
    ("act", "places"),
    [
        (lambda s: s.pop("n"), ["/n"]),
        (lambda s: s.pop("o"), ["/o"]),
        (lambda s: s["o"].popitem(), ["/o/in"]),
        (lambda s: s["l"].pop(), ["/l/2"]),
        (lambda s: s["l"].pop(0), ["/l/0"]),
        (lambda s: s["l"].remove(2), ["/l/1"]),
        (lambda s: s["l"].sort(reverse=True), ["/l"]),
        (lambda s: s["l"].reverse(), ["/l"]),
        (lambda s: (s["l"][0:2], s["l"].__setitem__(slice(0, 2), [9])), ["/l/0", "/l/1"]),
        (lambda s: (s["l"][1], s["l"].__delitem__(1)), ["/l/1"]),
        (lambda s: (s["l"][1], s["l"].insert(0, 9), s["l"].__setitem__(2, 8)), ["/l/2"]),
        (lambda s: (s["l"][1], s["l"].pop(0), s["l"].__setitem__(0, 8)), ["/l/0", "/l/0"]),
        (lambda s: s.setdefault("leader", "ann"), ["/leader"]),
        (lambda s: s.setdefault("plan", {"a": 1}), ["/plan"]),
        (lambda s: (s.get("plan"), s.__setitem__("plan", 1)), ["/plan"]),
        (lambda s: (s["o"]["a"], s.__setitem__("o", {})), ["/o"]),  # something in it was read
        (lambda s: (s["o"]["in"]["x"], s.__delitem__("o")), ["/o"]),
        (lambda s: (s["o"].to_plain(), s["o"]["in"].__setitem__("x", 2)), ["/o/in/x"]),  # all around it was read
        (lambda s: ([r["by"] for r in s["rows"]], s["rows"][0].__setitem__("by", "ann")), ["/rows/0/by"]),
        (lambda s: (s == {}, s.replace({"n": 7})), ["/t", "/none", "/l", "/o", "/rows", "/n"]),
        (lambda s: (s["n"], s.__setitem__("n", 7), s.__setitem__("n", 8)), ["/n"]),
    ],
)
def test_what_is_taken_out_or_replaced_after_reading_is_guarded(act, places):
    assert sorted(guarded(act)) == sorted(places)


@pytest.mark.parametrize(
    ("act", "places"),
    [
        (lambda s: (s["l"].pop(0), s.__setitem__("l", [])), ["/l/0", "/l"]),
        (lambda s: (s["l"].remove(2), s["l"].append(9), s.__delitem__("l")), ["/l/1", "/l"]),
        (lambda s: (s["rows"][0]["by"], s["rows"].clear(), s.__setitem__("rows", 1)), ["/rows/0", "/rows"]),
        (lambda s: (s["o"]["in"].pop("x"), s.__setitem__("o", 1)), ["/o/in/x", "/o"]),
        (lambda s: (s["l"].pop(0), s["l"].__setitem__(0, 7)), ["/l/0"]),  # another item
        (lambda s: (s["l"].__delitem__(0), s.__setitem__("l", [])), []),  # blind
    ],
)
def test_what_was_read_of_something_counts_also_where_it_was_taken_out_since(act, places):
    assert guarded(act) == places


def test_sums_are_recognised_and_what_is_not_one_is_a_guarded_set():
    draft = recording({**STATE, "f": 0.1, "b": True})
    draft["n"] += 2
    draft["n"] -= 5
    draft["f"] += 0.2
    draft["t"] += "s"
    draft["l"][0] += 1
    draft["o"]["a"] += 1.5
    assert draft.steps == [
        Increment(("n",), -3),
        Increment(("f",), 0.2),
        quire.Splice(("t",), 4, 0, "s"),
        Increment(("l", 0), 1),
        Increment(("o", "a"), 1.5),
    ]
    for act, changes in (
        ("s['n'] *= 2", [Read(("n",)), Set(("n",), 2)]),
        ("s['n'] = s['n'] + 1", [Read(("n",)), Set(("n",), 2)]),
        ("s['n'] += s['n']", [Read(("n",)), Set(("n",), 2)]),  # doubling is no sum
        ("s['b'] += 1", [Read(("b",)), Set(("b",), 2)]),
        ("s['n'] += True", [Increment(("n",), 1)]),
        ("s['f'] += 1e300", [Increment(("f",), 1e300)]),
        ("s['n'] += 10**400", [Increment(("n",), 10**400)]),
        ("x = s['l'] + [4]; s['l'] = x", [Append(("l",), [4])]),
        ("x = s['l'] + [4]; x.insert(0, 0); s['l'] = x", [Read(("l",)), Set(("l",), [0, 1, 2, 3, 4])]),
        ("x = s['l'] + [4]; s['l'].append(5); s['l'] = x", [Read(("l",)), Set(("l",), [1, 2, 3, 4])]),
        ("s['o']['l'] = s['l'] + [4]", [Set(("o", "l"), [1, 2, 3, 4])]),
        ("try:\n s['n'] += {}\nexcept TypeError: s['n'] = 5", [Read(("n",)), Set(("n",), 5)]),
        ("s['new'] = {}", [Ensure(("new",), {})]),
        ("s['o'] = {}", [Set(("o",), {})]),
    ):
        draft = recording({**STATE, "f": 0.1, "b": True})
        exec(act, {"s": draft})
        assert draft.steps == changes, act


def test_a_number_begun_at_zero_is_an_increment_only_with_increments():
    for act, changes in (
        (
            "s.setdefault('c', 0); s['c'] += 2; s['x'] = 1; s['c'] += 1",
            [Increment(("c",), 2), Set(("x",), 1), Increment(("c",), 1)],
        ),
        ("s.setdefault('c', 0.0); s['c'] += 1", [Increment(("c",), 1.0)]),
        ("s.setdefault('c', 0)", [Read(("c",)), Set(("c",), 0)]),
        ("s.setdefault('c', 0); s['c'] = 5", [Read(("c",)), Set(("c",), 0), Set(("c",), 5)]),
        ("s.setdefault('o', {}).setdefault('c', 0); s['o']['c'] += 1", [Increment(("o", "c"), 1)]),
    ):
        draft = recording(STATE)
        exec(act, {"s": draft})
        found = [s for s in draft.steps if s != Read(("c",))] if act.endswith("= 5") else draft.steps
        assert found in (changes, [c for c in changes if c != Read(("c",))][-1:]), act


# the whole way


async def test_the_error_says_what_was_read_and_who_wrote_and_carries_the_work(store):
    wf = await store.create("w", {"n": 1, "log": []})
    with pytest.raises(MergeConflict, match="w: /n was read as 1 and is 5 now, by ann in version 2") as refused:
        async with wf.edit(author="bob", message="double it") as state:
            state["n"] = state["n"] * 2
            state["log"].append("doubled")
            await wf.set("/n", 5, author="ann")
            await wf.append("/log", "set", author="cleo")
    error = refused.value
    assert (error.retryable, error.base, error.workflow_id) == (True, 1, "w")
    assert error.changes == [Set(("n",), 2), Append(("log",), ["doubled"])]
    (met,) = error.conflicts
    assert (met.path, met.base, met.theirs, met.ours, met.author, met.version) == (("n",), 1, 5, 2, "ann", 2)
    assert (await wf.version()).number == 3
    made = await wf.apply(error.changes, base=error.base, author="bob", on_conflict="last")
    assert (made.number, await wf.state()) == (4, {"n": 2, "log": ["set", "doubled"]})
    (conflict,) = await wf.conflicts()
    assert (conflict.theirs.author, conflict.ours.author, conflict.ours.version) == ("ann", "bob", 4)


async def test_a_base_makes_a_call_a_read_then_write(store):
    wf = await store.create("w", {"n": 1, "l": [1, 2], "t": "x" * 100})
    base = await wf.version()
    await wf.inc("/n", 1, author="ann")
    await wf.remove("/l", 0)
    calls = {
        "set": lambda **how: wf.set("/n", 5, **how),
        "delete": lambda **how: wf.delete("/n", **how),
        "item": lambda **how: wf.delete("/l/0", **how),
        "remove": lambda **how: wf.remove("/l", 0, **how),
        "apply": lambda **how: wf.apply([{"op": "replace", "path": "/n", "value": 9}], **how),
        "patch": lambda **how: wf.apply({"n": 9}, **how),
    }
    for name, call in calls.items():
        for revision in (base, base.number, base.id, "1"):
            with pytest.raises(MergeConflict):
                await call(base=revision)
        assert (await wf.version()).number == 3, name
    await wf.append("/l", 3, base=base)
    await wf.inc("/n", 1, base=1)
    await wf.insert("/l", 1, "new", base=1)
    await wf.splice("/t", 0, 0, "y", base=1)
    assert await wf.state() == {"n": 3, "l": ["new", 2, 3], "t": "y" + "x" * 100}
    await wf.set("/n", 0, base=1, on_conflict="last")
    assert await wf.get("/n") == 0
    async with wf.edit(base=1) as state:  # a draft may begin with an older version
        assert state.to_plain() == {"n": 1, "l": [1, 2], "t": "x" * 100}
        state["new"] = True
    assert await wf.get("/new") is True
    for call in (wf.restore(1, base=1), wf.update(lambda s: None, base=1), wf.revert(2, base=1)):
        with pytest.raises(Invalid, match="no option 'base'"):
            await call


async def test_parts_of_a_transaction_have_a_base_or_a_version_of_their_own(store):
    one, two = await store.create("one", {"n": 1}), await store.create("two", {"n": 1})
    await one.set("/n", 2)
    with pytest.raises(MergeConflict):
        await store.transact([one.change([Set(("n",), 3)], base=1), two.change([Set(("n",), 3)])])
    with pytest.raises(quire.errors.HeadMoved):
        await store.transact([one.change([Set(("n",), 3)], if_version=1), two.change([Set(("n",), 3)])])
    assert (await one.get("/n"), await two.get("/n")) == (2, 1)
    await store.transact([one.change([Set(("n",), 3)], base=2), two.change([Set(("n",), 3)], base=1)])
    assert (await one.get("/n"), await two.get("/n")) == (3, 3)


async def test_whole_states_know_their_base(store):
    wf = await store.create("w", {"a": 0, "b": 0, "l": []})
    (one, base), (two, again) = await wf.state_and_version(), await wf.state_and_version()
    assert base == again == 1
    one["a"], two["b"] = 1, 2
    one["l"].append("one")
    two["l"].append("two")
    await wf.save(one, base=base, author="one")
    await wf.save(two, base=base, author="two")
    assert await wf.state() == {"a": 1, "b": 2, "l": ["one", "two"]}
    with pytest.raises(MergeConflict, match="/a was read as 0"):
        await wf.save({"a": 1, "b": 0, "l": []}, base=base)  # both changed it to the same
    for how in ({}, {"base": 1, "overwrite": True}):
        with pytest.raises(Invalid, match="base=version"):
            await wf.save({"a": 9}, **how)
    assert (await wf.save({"a": 9}, overwrite=True)).number == 4
    assert await wf.state() == {"a": 9}
    assert await wf.state_and_version(2) == ({"a": 1, "b": 0, "l": ["one"]}, 2)


async def test_update_is_never_stale(store):
    wf = await store.create("w", {"n": 1, "q": list(range(20))})

    def double(state):
        state["n"] = state["n"] * 2

    await asyncio.gather(*(wf.update(double, author=f"a{i}") for i in range(20)))
    assert await wf.get("/n") == 2**20
    taken = []
    await asyncio.gather(*(wf.update(lambda s: taken.append(s["q"].pop(0))) for _ in range(20)))
    assert sorted(taken) == list(range(20))
    assert [v.author for v in await wf.history(order="oldest")][1:21] == [f"a{i}" for i in range(20)]


async def test_update_refuses_what_waits_and_passes_on_what_is_raised(store):
    wf = await store.create("w", {"n": 1})

    async def waits(state):
        state["n"] = 2

    with pytest.raises(Invalid, match="plain function"):
        await wf.update(waits)
    with pytest.raises(Invalid, match="plain function"):
        await wf.update(lambda s: waits(s))
    with pytest.raises(Invalid, match="plain function"):
        await wf.update(None)
    kept = []

    def wrong(state):
        kept.append(state)
        state["n"] = 2
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await wf.update(wrong)
    with pytest.raises(quire.errors.Closed):
        kept[0]["n"] = 3
    assert await wf.state() == {"n": 1}
    assert (await wf.update(lambda s: None)).number == 1


async def test_update_runs_again_when_another_process_was_first_and_says_how_often(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path, settings=quire.Settings(retry_seconds=0.2)) as one, quire.open(path) as other:
        wf = await one.create("w", {"n": 1})
        await other.workflow("w").state()
        commit, left = one.engine.backend.commit, [1, 1]

        async def committing(items):
            if left and any(r.stream == "workflows/w" for item in items for r in item.records):
                if left[0] is not None:
                    left.pop()
                await other.workflow("w").inc("/n", 10)
            return await commit(items)

        one.engine.backend.commit = committing
        ran = []
        await wf.update(lambda s: (ran.append(s["n"]), s.__setitem__("n", s["n"] * 2)))
        assert (ran, await wf.get("/n")) == ([1, 11, 21], 42)
        left[:] = [None]
        with pytest.raises(StorageTimeout, match="the function ran [0-9]+ times, nothing was written"):
            await wf.update(lambda s: s.__setitem__("n", 0))
        left.clear()


async def test_serializable_refuses_when_anything_read_has_changed(store):
    wf = await store.create("w", {"n": 1, "l": [1], "o": {"a": 1}})

    async def meanwhile(act, theirs, **how):
        async with wf.edit(isolation="serializable", **how) as state:
            act(state)
            await theirs()

    changes = [wf.set("/n", 2), wf.append("/l", 2), wf.set("/o/b", 1)]
    reads = [lambda s: s["n"], lambda s: len(s["l"]), lambda s: list(s["o"])]
    for read, change in zip(reads, changes, strict=True):

        def act(state, read=read):
            read(state)
            state["mine"] = True

        async def theirs(change=change):
            await change

        with pytest.raises(MergeConflict):
            await meanwhile(act, theirs, on_conflict="last")
    assert "mine" not in await wf.state()
    await meanwhile(lambda s: s.__setitem__("mine", s["n"]), lambda: wf.set("/o/a", 5))
    assert (await wf.state())["mine"] == 2
    await meanwhile(lambda s: s.increment("n"), lambda: wf.inc("/n"))
    assert await wf.get("/n") == 4
    with pytest.raises(Invalid, match="isolation"):
        wf.edit(isolation="strict")


async def test_bounds_are_checked_when_it_is_committed(store):
    wf = await store.create("w", {"budget": 100})

    async def spend():
        try:
            async with wf.edit() as state:
                state.increment("budget", -60, minimum=0)
                await asyncio.sleep(0)
        except OutOfBounds:
            return 0
        return 1

    assert sum(await asyncio.gather(*(spend() for _ in range(5)))) == 1
    assert await wf.get("/budget") == 40
    with pytest.raises(OutOfBounds, match="/budget would be -20"):
        await wf.inc("/budget", -60, minimum=0)
    with pytest.raises(OutOfBounds):
        async with wf.edit() as state:
            state.increment("budget", -60, minimum=0)
    with pytest.raises(Invalid, match="a bound is a number"):
        await wf.inc("/budget", 1, maximum="100")
    hook = store.before_change(lambda p: [*p.changes, Set(("seen",), True)])
    with pytest.raises(OutOfBounds):
        await wf.inc("/budget", -60, minimum=0)
    await wf.inc("/budget", -40, minimum=0)
    hook.remove()
    assert await wf.state() == {"budget": 0, "seen": True}


async def test_every_acknowledged_write_has_a_version_also_where_others_had_written_the_same(store):
    wf = await store.create("w", {"t": "a"})
    async with wf.edit(author="two", message="so it is") as two, wf.edit(author="one") as one:
        one["t"] = "b"
        two["t"] = "b"
    versions = await wf.history()
    assert [(v.author, v.message, len(v.changes)) for v in versions[:2]] == [("two", "so it is", 0), ("one", "", 1)]
    assert (await store.verify()).ok
    async with wf.edit(author="three") as state:  # nothing is different where it began: no version
        await wf.set("/t", "c")
        state["t"] = "b"
    assert (await wf.version()).number == 4


async def test_a_store_may_have_the_last_write_stand(tmp_path):
    async with quire.open("memory:", on_conflict="last") as store:
        wf = await store.create("w", {"n": 1})
        async with wf.edit(author="bob") as state:
            state["n"] = state["n"] * 2
            await wf.set("/n", 5, author="ann")
        assert await wf.get("/n") == 2
        (conflict,) = await wf.conflicts()
        assert (conflict.theirs.value, conflict.theirs.author, conflict.resolution) == (5, "ann", "ours")


async def test_blame_and_other_writers_are_untouched_by_a_restore_of_whatever_size(store):
    wf = await store.create("w", {"keep": 1}, author="ann")
    async with wf.edit(author="cleo") as state:
        for i in range(200):
            state[f"k{i}"] = json.dumps([i] * 5)
    async with wf.edit(author="bob") as state:
        state["mine"] = 1
        await wf.restore(1, author="dan")
    assert await wf.state() == {"keep": 1, "mine": 1}
    assert {line.path: line.author for line in await wf.blame()} == {"/keep": "ann", "/mine": "bob"}


ORDERED = {
    "/tags": "set",
    "/tasks": "keyed(id)",
    "/log": "log",
    "/agents/*/done": "set",
    "/tasks/*/labels": "set",
}
BOARD = {
    "tags": ["x", "y", "z"],
    "tasks": [{"id": "a", "labels": [1, 2]}, {"id": "b", "labels": []}],
    "log": ["first", "second"],
    "agents": {"ann": {"done": [1, 2]}},
    "first": None,
}


async def beside(theirs, ours, **how):
    """Have one write beside another on a workflow with lists of every kind; return the state."""
    async with quire.open("memory:", schemas=[quire.Schema("board", kinds=ORDERED)]) as store:
        wf = await store.create("w", BOARD, schema="board")
        async with wf.edit(author="ann", **how) as mine:
            ours(mine)
            async with wf.edit(author="bob") as other:
                theirs(other)
        return await wf.state()


def turned(*keys):
    """Return what puts the list at some keys in the other order."""

    def act(state):
        for key in keys:
            state = state[key]
        state.reverse()

    return act


def moved(state):
    state["tasks"].append(state["tasks"].pop(0))


def turned_around(state):
    state["agents"] = {"ann": {"done": state["agents"]["ann"]["done"].copy()[::-1]}}


ORDERS = [
    (turned("tags"), lambda s: s["tags"][0], "/tags"),
    (turned("tags"), lambda s: list(s["tags"]), "/tags"),
    (turned("tags"), lambda s: s["tags"][1:], "/tags"),
    (turned("tags"), lambda s: s["tags"].index("x"), "/tags"),
    (turned("tags"), lambda s: s.to_plain(), "/tags"),
    (turned("tasks"), lambda s: s["tasks"][0]["id"], "/tasks"),
    (moved, lambda s: s["tasks"].to_plain(), "/tasks"),
    (turned("log"), lambda s: s["log"][0], "/log"),
    (turned("agents", "ann", "done"), lambda s: s["agents"].to_plain(), "/agents/ann/done"),
    (turned("agents", "ann", "done"), lambda s: s["agents"]["ann"]["done"][0], "/agents/ann/done"),
    (turned_around, lambda s: s["agents"]["ann"]["done"][0], "/agents/ann/done"),
    (turned("tasks", 0, "labels"), lambda s: s["tasks"][0]["labels"][0], "/tasks/0/labels"),
]


@pytest.mark.parametrize(("theirs", "reads", "where"), ORDERS)
@pytest.mark.parametrize("policy", [None, "last", "theirs"])
async def test_an_order_that_a_serializable_edit_read_counts_in_lists_of_a_kind(theirs, reads, where, policy):
    def ours(state):
        reads(state)
        state["first"] = "seen"

    with pytest.raises(MergeConflict, match=", by bob in version 2") as refused:
        await beside(theirs, ours, isolation="serializable", on_conflict=policy)
    assert f"{where} was read as" in str(refused.value)
    assert refused.value.reason == "read"
    assert (await beside(theirs, ours))["first"] == "seen"  # nothing is refused that did not ask for it


@pytest.mark.parametrize(
    ("theirs", "reads"),
    [
        (turned("tags"), lambda s: s["tasks"].to_plain()),
        (turned("tags"), lambda s: len(s["tags"])),
        (turned("tags"), lambda s: s["tags"].append("w")),
        (lambda s: (turned("tags")(s), turned("tags")(s)), lambda s: s["tags"][0]),
        (lambda s: s["agents"].__setitem__("bob", {"done": []}), lambda s: s["agents"]["ann"]["done"][0]),
        (lambda s: s["tags"].append("w"), lambda s: s["tasks"][0]["id"]),
    ],
)
async def test_what_a_serializable_edit_did_not_read_of_lists_of_a_kind_does_not_count(theirs, reads):
    def ours(state):
        reads(state)
        state["first"] = "seen"

    assert (await beside(theirs, ours, isolation="serializable"))["first"] == "seen"


@pytest.mark.parametrize(
    ("theirs", "reads"),
    [
        (lambda s: s["tags"].append("w"), lambda s: s["tags"][0]),
        (lambda s: s["tags"].remove("z"), lambda s: s["tags"][0]),
        (lambda s: s["tags"].append("w"), lambda s: len(s["tags"])),
        (lambda s: s["tags"].append("w"), lambda s: s["tags"].pop()),
        (lambda s: s["tags"].append("w"), lambda s: s["tags"].clear()),
        (lambda s: s["tasks"].append({"id": "c"}), lambda s: s["tasks"][0]),
        (lambda s: s["log"].append("third"), lambda s: s["log"][0]),
    ],
)
async def test_what_a_serializable_edit_read_of_a_list_of_a_kind_counts_whatever_it_writes(theirs, reads):
    def ours(state):
        reads(state)
        state["first"] = "seen"

    with pytest.raises(MergeConflict, match="by bob in version 2"):
        await beside(theirs, ours, isolation="serializable", on_conflict="last")


async def test_that_a_container_is_there_which_the_edit_itself_makes_was_not_read():
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"groups": {}})
        async with wf.edit(isolation="serializable") as mine:
            mine["groups"].setdefault("a", []).append("ann")
            if "a" in mine["groups"]:
                mine["groups"]["a"].append("ann again")
            await wf.set("/groups/a", ["bob"])
        assert await wf.state() == {"groups": {"a": ["bob", "ann", "ann again"]}}
