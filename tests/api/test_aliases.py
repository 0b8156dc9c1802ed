"""No value is in two places: what is changed here never changes there, and the state is what its log says.

The kind of fault: a list or object that two places of a state, a state and a change, or a state and a caller hold at once.
It shows when one of them is changed, often much later; `verify` cannot see it, since the log is sound.
"""

import asyncio
import copy

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import quire
from quire import (
    Append,
    CentralizedStateStore,
    Insert,
    Set,
    StateManager,
    StateScope,
    StorageBackend,
    WorkflowStateManager,
)
from quire.core.changes import Working
from quire.core.patch import from_json_patch
from quire.core.values import same

START = {"l": [1, [2]], "o": {"k": {"x": 1}}, "p": {}}
PLACES = ("/l", "/o", "/p", "/o/k", "/l/0", "/l/1", "/l/-", "/p/a", "/p/b", "/o/k/x", "/p/a/-", "/p/b/-", "/p/a/k")


def operations():
    place = st.sampled_from(PLACES)
    value = st.sampled_from([[], {}, 1, [[]], {"k": {}}])
    return st.one_of(
        st.builds(lambda a, b: {"op": "copy", "from": a, "path": b}, place, place),
        st.builds(lambda a, b: {"op": "move", "from": a, "path": b}, place, place),
        st.builds(lambda a, v: {"op": "add", "path": a, "value": v}, place, value),
        st.builds(lambda a: {"op": "remove", "path": a}, place),
    )


def plainly(state, patch):
    """RFC 6902 on plain Python objects, each of them copied whenever it is put somewhere. None where it does not fit."""
    state = copy.deepcopy(state)

    def parent(path):
        *above, last = path[1:].split("/")
        node = state
        for token in above:
            node = node[int(token)] if isinstance(node, list) else node[token]
        return node, last

    def take(path, *, away):
        node, last = parent(path)
        key = int(last) if isinstance(node, list) else last
        return node.pop(key) if away else node[key]

    def put(path, value):
        node, last = parent(path)
        if isinstance(node, list):
            at = len(node) if last == "-" else int(last)
            if at > len(node):
                raise IndexError
            node.insert(at, copy.deepcopy(value))
        elif isinstance(node, dict):
            node[last] = copy.deepcopy(value)
        else:
            raise KeyError

    try:
        for op in patch:
            match op["op"]:
                case "add":
                    put(op["path"], op["value"])
                case "remove":
                    take(op["path"], away=True)
                case "copy":
                    put(op["path"], take(op["from"], away=False))
                case _ if op["from"] == op["path"]:
                    take(op["from"], away=False)
                case _ if op["path"].startswith(op["from"] + "/"):
                    return None
                case _:
                    put(op["path"], take(op["from"], away=True))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):
        return None
    return state


async def replayed(name, workflow_id):
    """The state as a handle reads it that has seen none of the writes: from the log."""
    async with quire.open(name) as other:
        assert (await other.verify()).ok
        return await other.workflow(workflow_id).state()


_names = iter(range(10**9))


def place():
    return f"memory:alias-{next(_names)}"


@given(st.lists(st.lists(operations(), min_size=1, max_size=6), min_size=1, max_size=6))
@hypothesis_settings(max_examples=60, deadline=None)
def test_patches_do_what_they_do_on_copies(patches):
    async def check():
        name, wanted = place(), START
        async with quire.open(name) as store:
            wf = await store.create("w", START)
            for patch in patches:
                given = copy.deepcopy(patch)
                after = plainly(wanted, patch)
                try:
                    await wf.apply(patch)
                    assert after is not None, patch
                    wanted = after
                except quire.errors.ChangeError:
                    assert after is None, patch
                assert patch == given
                assert same(await wf.state(), wanted)
            assert same(await replayed(name, "w"), wanted)

    asyncio.run(check())


@given(st.lists(st.lists(operations(), min_size=1, max_size=4), min_size=2, max_size=8))
@hypothesis_settings(max_examples=60, deadline=None)
def test_patches_of_one_commit_are_as_their_log(patches):
    asyncio.run(as_their_log(patches))


async def as_their_log(patches):
    name = place()
    async with quire.open(name) as store:
        wf = await store.create("w", START)
        await asyncio.gather(*(wf.apply(patch) for patch in patches), return_exceptions=True)
        assert same(await wf.state(), await replayed(name, "w"))


async def test_without_copies_the_check_fails(monkeypatch):
    more = [{"op": "add", "path": "/l/-", "value": 3}]
    patches = [more, [{"op": "copy", "from": "/l", "path": "/p/a"}], more]
    await as_their_log(patches)
    monkeypatch.setattr(Working, "private", lambda _, change: change)
    monkeypatch.setattr("quire.core.meter.Meter.copied", lambda _, value: value)
    with pytest.raises(AssertionError):
        await as_their_log(patches)


def test_a_container_that_was_copied_here_is_copied_again_where_it_comes_in():
    state = {"a": {"n": 1}, "l": []}
    working = Working(state)
    working.apply(Set(("a", "m"), 2))
    working.apply(Set(("b",), {"in": working.state["a"]}))
    working.apply(Append(("l",), [working.state["a"]]))
    working.apply(Insert(("l",), 0, [[working.state["a"]]]))
    working.apply(Set(("a", "o"), 3))
    old = {"n": 1, "m": 2}
    assert working.state == {"a": {**old, "o": 3}, "b": {"in": old}, "l": [[old], old]}
    assert state == {"a": {"n": 1}, "l": []}


def test_what_a_patch_gives_back_is_not_changed_by_its_later_operations():
    patch = [{"op": "add", "path": "/l/-", "value": 3}, {"op": "move", "from": "/l", "path": "/m"}]
    changes = from_json_patch({"l": [1]}, [*patch, {"op": "add", "path": "/m/-", "value": 4}])
    assert Set(("m",), [1, 3]) in changes


# drafts and callers


async def test_a_draft_keeps_what_it_was_given_and_not_the_object(tmp_path):
    name = place()
    async with quire.open(name) as store:
        wf = await store.create("w", START)
        shared = ["mine"]
        async with wf.edit() as s:
            s["a"] = s["b"] = shared
            shared.append("later")
            s["c"] = s["l"]
            s["l"].append(3)
            s["d"] = s["c"]
            s["d"][1].append("deep")
            s["e"] = [s["c"], s["c"]]
            s["e"][0].append("one")
            s["b"].append("two")
        shared.append("after the block")
        wanted = {
            **START,
            "a": ["mine"],
            "b": ["mine", "two"],
            "c": [1, [2]],
            "l": [1, [2], 3],
            "d": [1, [2, "deep"]],
            "e": [[1, [2], "one"], [1, [2]]],
        }
        assert await wf.state() == wanted == await replayed(name, "w")


async def test_what_a_caller_does_to_what_it_gave_or_got_changes_nothing():
    name = place()
    async with quire.open(name) as store:
        first = {"l": [[1]]}
        wf = await store.create("w", first)
        first["l"][0].append("x")
        item = {"k": []}
        await wf.append("/l", item, item)
        item["k"].append("x")
        await wf.set("/a", item)
        item["k"].append("y")
        given = [Set(("b",), item), Set(("c",), item), Append(("l",), [item])]
        await wf.apply(given)
        item["k"].append("z")
        whole = await wf.state()
        whole["d"] = whole["e"] = whole["l"]
        await wf.save(whole, base=(await wf.version()).number)
        whole["l"].append("x")
        for got in (await wf.state(), await wf.get("/l"), (await wf.version()).changes, await wf.state(1)):
            got.clear()
        [version async for version in _some(wf)]
        wanted = {
            "l": [[1], {"k": []}, {"k": []}, {"k": ["x", "y"]}],
            "a": {"k": ["x"]},
            "b": {"k": ["x", "y"]},
            "c": {"k": ["x", "y"]},
        }
        wanted["d"] = wanted["e"] = wanted["l"]
        assert await wf.state() == wanted == await replayed(name, "w")
        async with wf.edit() as s:
            s["d"].append(1)
        assert (await wf.state())["e"] == wanted["l"] == (await replayed(name, "w"))["e"]


async def _some(wf):
    for version in await wf.history():
        version.changes.clear()
        yield version


# code of the program that is shown values, and gives them back


async def test_what_a_hook_gives_back_is_a_copy_of_what_it_was_shown():
    name = place()
    async with quire.open(name) as store:
        wf = await store.create("w", {"l": [[1]], "n": 0})
        kept = []

        def hook(proposed):
            kept.append(proposed.get("/l"))
            return [*proposed.changes, Set(("copy",), kept[0]), Set(("again",), kept[0])]

        registered = store.before_change(hook)
        await asyncio.gather(*(wf.append("/l", [n]) for n in range(4)))
        registered.remove()
        kept[0].append("x")
        await wf.append("/copy", "y")
        assert same(await wf.state(), await replayed(name, "w"))
        assert "x" not in (await wf.state())["again"]


async def test_what_a_policy_gives_back_is_a_copy_of_what_it_was_shown():
    name = place()
    seen = []

    def policy(meeting):
        seen.extend((meeting.ours, meeting.theirs))
        return {"ours": meeting.ours, "theirs": meeting.theirs, "both": [meeting.ours, meeting.theirs]}

    async with quire.open(name, on_conflict=policy) as store:
        wf = await store.create("w", {"v": {"k": []}})
        base = (await wf.version()).number
        await wf.set("/v", {"k": ["first"]})
        await wf.set("/v", {"k": ["second"]}, base=base)
        for value in seen:
            value["k"].append("x")
        await asyncio.gather(*(wf.append("/v/ours/k", n) for n in range(3)))
        state = await wf.state()
        assert state["v"]["both"] == [{"k": ["second"]}, {"k": ["first"]}]
        assert same(state, await replayed(name, "w"))


async def test_a_function_of_update_may_put_a_part_of_the_state_elsewhere():
    name = place()
    async with quire.open(name) as store:
        wf = await store.create("w", {"l": [[1]]})

        def move(s):
            s["copy"] = s["l"]
            s["l"][0].append(2)

        await asyncio.gather(*(wf.update(move) for _ in range(5)), wf.append("/l", 9))
        assert same(await wf.state(), await replayed(name, "w"))
        assert (await wf.state())["copy"][0] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("policy", ["last", "ours", "theirs", "both", "queue"])
async def test_merged_forks_share_nothing(policy):
    name = place()
    async with quire.open(name) as store:
        wf = await store.create("w", START)
        fork = await wf.fork("f")
        await fork.apply([{"op": "copy", "from": "/l", "path": "/p/a"}, {"op": "add", "path": "/l/-", "value": 5}])
        await fork.set("/o/k", {"x": [1]})
        await wf.set("/o/k", {"x": [2]})
        await wf.merge("f", on_conflict=policy)
        await asyncio.gather(wf.append("/l/1", "here"), fork.append("/l/1", "there"), wf.append("/p/a", 1))
        for one in ("w", "f"):
            assert same(await store.workflow(one).state(), await replayed(name, one))
        await wf.restore(1)
        await wf.append("/l", "restored")
        await wf.revert((await wf.version()).number)
        assert same(await wf.state(), await replayed(name, "w")) and await wf.state() == START


# the other faces


async def test_the_other_faces_keep_copies(tmp_path):
    name = place()
    shared = {"k": []}
    async with quire.open(name) as store:
        manager = StateManager(store)
        async with manager:
            told = {"id": "m", "name": "m", "status": "running", "createdAt": 1}
            await manager.persist_workflow_state("m", {**told, "a": shared, "b": shared})
            got = await manager.get_workflow_state("m")
            got["a"]["k"].append("got")
        async with StorageBackend(store) as backend:
            await backend.save("s", {"a": shared, "b": shared})
            (await backend.load("s"))["a"]["k"].append("got")
        scoped = WorkflowStateManager(store)
        state = scoped.state(StateScope.workflow("scoped"))
        await state.set("a", shared)
        (await state.get("a"))["k"].append("got")
        await state.update({"b": shared, "c": shared})
        shared["k"].append("later")
        assert (await manager.store.workflow("m").state())["a"] == {"k": []}
        async with StorageBackend(store) as backend:
            assert await backend.load("s") == {"a": {"k": []}, "b": {"k": []}}
        assert [await state.get(key) for key in "abc"] == [{"k": []}] * 3
        for one in await store.workflows():
            assert same(await store.workflow(one).state(), await replayed(name, one))


def test_the_central_store_keeps_copies():
    shared = ["x"]
    with CentralizedStateStore(place()) as central:
        central.update({"a": shared, "b": shared})
        shared.append("later")
        central.get("a").append("got")
        text = central.snapshot()
        central.set("a", 1)
        central.restore(text)
        assert central.get_all() == {"a": ["x"], "b": ["x"]}
