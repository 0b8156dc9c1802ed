"""What is sent is charged while it is worked on: a small patch cannot make much, nor much work, before it is refused.

Each test counts what was done, or how large the thing was when it was refused; none looks at a clock.
"""

import asyncio
import json

import msgspec
import pytest

import quire
from quire import Append, Insert, Remove, Set, Settings, Splice, threads
from quire.core.changes import Working
from quire.core.meter import Meter
from quire.core.patch import from_json_patch
from quire.core.values import clean, equal
from quire.errors import ChangeError, InvalidState, LimitExceeded, QuireError
from quire.model import Record

TIGHT = Settings(write_bytes_max=100_000, write_steps_max=10_000, state_bytes_max=1_000_000)


@pytest.fixture(params=["memory:", "{here}/s.db"])
async def store(request, tmp_path):
    async with quire.open(request.param.format(here=tmp_path), settings=TIGHT) as store:
        yield store


def doubling(times):
    ops = [{"op": "add", "path": "/b", "value": ["x" * 100]}]
    for _ in range(times):
        ops += [
            {"op": "copy", "from": "/b", "path": "/c"},
            {"op": "add", "path": "/b", "value": []},
            {"op": "copy", "from": "/c", "path": "/b/0"},
            {"op": "copy", "from": "/c", "path": "/b/1"},
            {"op": "remove", "path": "/c"},
        ]
    return ops


def swapping(times):
    ops = [{"op": "add", "path": "/a", "value": "x" * 50_000}]
    return ops + [{"op": "move", "from": "/ab"[:2], "path": "/b"}, {"op": "move", "from": "/b", "path": "/a"}] * times


async def refused(write, limit="write_bytes_max"):
    with pytest.raises(LimitExceeded) as caught:
        await write
    error = caught.value
    assert error.limit == limit and error.found > error.allowed
    assert f"{error.allowed:,}" in str(error) and limit in str(error)
    return error


@pytest.mark.parametrize("patch", [doubling(40), doubling(1000), swapping(5000)], ids=["40", "1000", "moves"])
async def test_a_patch_ends_where_it_outgrows_its_limit(store, patch):
    wf = await store.create("w", {"n": 1})
    error = await refused(wf.apply(patch))
    assert error.found < 3 * TIGHT.write_bytes_max, "it went on after it was too large"
    assert await wf.state() == {"n": 1} and (await wf.version()).number == 1


def test_a_copy_is_counted_before_it_is_made():
    meter = Meter(1000, 1000)
    with pytest.raises(LimitExceeded):
        from_json_patch({"n": 1}, doubling(1000), meter)
    assert meter.size_bytes < 3000 and meter.steps < 1000


def test_without_a_meter_the_document_doubles():
    ops = doubling(10)
    assert len(json.dumps(ops)) < 4000
    assert len(msgspec.json.encode(from_json_patch({}, ops))) > 100 * 2**10


async def test_one_object_in_many_places_is_weighed_as_it_will_be_stored(store):
    value = ["x" * 100]
    for _ in range(50):
        value = [value, value]  # a million million times its size, in a few kilobytes of memory
    wf = await store.create("w", {"l": [], "t": "a"})
    version = (await wf.version()).number
    writes = [
        lambda: wf.set("/a", value),
        lambda: wf.append("/l", value),
        lambda: wf.append("/l", *[["y" * 30_000]] * 5),
        lambda: wf.insert("/l", 0, value),
        lambda: wf.apply({"a": value}),
        lambda: wf.apply([{"op": "add", "path": "/a", "value": value}]),
        lambda: wf.apply([Set(("a",), value)]),
        lambda: wf.apply([Set((key,), "y" * 30_000) for key in "abcde"]),
        lambda: store.create("v", {"a": value}),
    ]
    for write in writes:
        error = await refused(write())
        assert error.found < 2 * TIGHT.write_bytes_max
    error = await refused(wf.save({"a": value}, base=version))
    assert error.found < 3 * TIGHT.state_bytes_max, "a whole state has the bounds of states"
    assert (await wf.version()).number == version


async def test_a_draft_ends_where_it_outgrows_its_limit(store):
    wf = await store.create("w", {"l": list(range(5000))})
    done = 0
    with pytest.raises(LimitExceeded) as caught:
        async with wf.edit() as s:
            for number in range(1000):
                s[f"k{number}"] = ["y" * 10_000]
                done = number + 1
    assert done < 10 and caught.value.limit == "write_bytes_max"
    with pytest.raises(LimitExceeded):
        async with wf.edit() as s:
            for _ in range(1000):
                s["l"].reverse()
                s["n"] = 1
                s["n"] = 2
    async with wf.edit() as s:  # what was written over since is no part of it
        for number in range(100):
            s["same"] = f"{number}" + "y" * 10_000
    assert (await wf.get("/same")).startswith("99y")
    async with wf.edit() as s:
        s["added"] = []
    async with wf.edit() as s:
        s["added"].append({})
        for number in range(100):
            s["added"][0]["k"] = f"{number}" + "y" * 10_000
    assert len((await wf.version()).changes) == 1


# steps


async def test_steps_are_counted_as_they_are_made(store):
    text = "x" * 40_000
    wf = await store.create("w", {"t": text, "l": [0] * 10_000})
    many = {
        "splices": [Splice(("t",), 0, 1, "yz"[n % 2]) for n in range(20_000)],
        "inserts": [Insert(("l",), 0, [n]) for n in range(2_000)],
        "takes": [step for _ in range(2_000) for step in (Remove(("l",), 0), Append(("l",), [0]))],
        "changes": [Set(("n",), n % 9) for n in range(12_000)],
    }
    for name, changes in many.items():
        if len(msgspec.json.encode(changes)) <= TIGHT.write_bytes_max:
            error = await refused(wf.apply(changes), "write_steps_max")
            assert error.found <= TIGHT.write_steps_max + 1_000, name
        meter = Meter(10**9, 1_000)
        working = Working(await wf.state(), meter)
        with pytest.raises(LimitExceeded):
            for change in changes:
                working.apply(change)
        assert meter.steps <= 1_000 + 200, name
    assert (await wf.version()).number == 1


async def test_a_million_operations_end_at_their_bytes(tmp_path):
    async with quire.open("memory:", settings=Settings(write_steps_max=10_000)) as store:
        wf = await store.create("w", {"o": {str(n): n for n in range(1000)}})
        ops = [{"op": "move", "from": "/o/1", "path": "/o/x"}, {"op": "move", "from": "/o/x", "path": "/o/1"}]
        error = await refused(wf.apply(ops * 20_000), "write_steps_max")
        assert error.found < 10_100


async def test_a_count_of_items_that_are_not_there_makes_no_guards(store):
    wf = await store.create("w", {"l": [1, 2, 3]})
    version = (await wf.version()).number
    for write in (
        lambda: wf.remove("/l", 0, 10**12, base=version),
        lambda: wf.apply([Remove(("l",), 0, 10**12)], base=version),
        lambda: wf.remove("/l", 0, 10**12),
        lambda: wf.remove("/l", 10**12, 1, base=version),
    ):
        with pytest.raises(ChangeError):
            await write()


@pytest.mark.parametrize(
    "pointer",
    ["/" * 500_000, "/a" * 500_000, "/" + "a" * 1_000_000, "/l/" + "9" * 500_000, "/l/99999999999999999999"],
    ids=["slashes", "deep", "long", "digits", "index"],
)
async def test_paths_and_indexes_are_bounded(store, pointer):
    wf = await store.create("w", {"l": [1, 2, 3]})
    for write in (
        lambda: wf.set(pointer, 1),
        lambda: wf.append(pointer, 1),
        lambda: wf.apply([{"op": "add", "path": pointer, "value": 1}]),
        lambda: wf.apply([{"op": "copy", "from": pointer, "path": "/x"}]),
        lambda: wf.apply([{"op": "move", "from": "/l", "path": pointer}]),
    ):
        with pytest.raises(QuireError) as caught:
            await write()
        assert isinstance(caught.value, ValueError)
    assert await wf.state() == {"l": [1, 2, 3]}


async def test_deep_values_and_huge_numbers_are_refused(store):
    wf = await store.create("w", {"n": 0})
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for write in (
        lambda: wf.set("/a", deep),
        lambda: wf.apply({"a": deep}),
        lambda: wf.set("/a", 10**1_000_000),
        lambda: wf.inc("/n", 10**1_000_000),
        lambda: wf.apply([{"op": "add", "path": "/a", "value": deep}]),
    ):
        with pytest.raises(InvalidState):
            await write()


# words


@pytest.mark.parametrize("size", [100_001, 30_000_000])
async def test_what_is_said_of_a_write_counts_with_it(store, size):
    wf = await store.create("w", {"n": 0})
    words = "x" * size
    for write in (
        lambda: wf.set("/n", 1, message=words),
        lambda: wf.apply({"n": 1}, message=words),
        lambda: wf.save({"n": 1}, overwrite=True, message=words),
        lambda: wf.restore(1, message=words),
        lambda: wf.fork("f", message=words),
        lambda: store.create("v", {}, message=words),
        lambda: store.delete("w", message=words),
        lambda: wf.checkpoint("c", description=words),
        lambda: wf.checkpoint("c", tags=["t" * 190] * 600),
    ):
        error = await refused(write())
        assert error.allowed == 100_000
    for word in ({"author": words}, {"kind": words}, {"idempotency_key": words}):
        with pytest.raises(ValueError, match="1 to 200") as caught:
            await wf.set("/n", 1, **word)
        assert isinstance(caught.value, QuireError)
    assert await store.workflows() == ["w"] and (await wf.version()).number == 1 and await wf.checkpoints() == []


async def test_a_message_and_the_changes_share_one_limit(store):
    wf = await store.create("w", {"n": 0})
    await wf.set("/n", "x" * 50_000, message="y" * 49_000)
    error = await refused(wf.set("/n", "z" * 50_000, message="y" * 51_000))
    assert "its message and other words 51,0" in str(error)
    error = await refused(wf.set("/n", 1, message="\u00e9" * 60_000))
    assert error.found > 120_000, "bytes are counted, not characters"


def test_a_record_weighs_what_is_said_of_it_too():
    r = Record("s", 1, 0, "\u00e9", "abc", "k", b"[]", b"")
    assert r.size_bytes == 2 + 2 + 3 + 1


# numbers by value


@pytest.mark.parametrize(
    ("a", "b", "are"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (0.0, -0.0, True),
        (2**53, float(2**53), True),
        (2**53 + 1, float(2**53), False),
        ([1, {"x": 2.0}], [1.0, {"x": 2}], True),
        ([1, {"x": True}], [1.0, {"x": 1}], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ([], {}, False),
        ("1", 1, False),
        (None, False, False),
    ],
)
def test_numbers_are_compared_by_value(a, b, are):
    assert equal(a, b) is are and equal(b, a) is are


async def test_a_test_compares_numbers_by_value_and_guards_what_is_there(store):
    wf = await store.create("w", {"n": 1, "l": [1, {"x": 2}]})
    await wf.apply([{"op": "test", "path": "/l", "value": [1.0, {"x": 2.0}]}, {"op": "add", "path": "/ok", "value": 1}])
    with pytest.raises(ChangeError):
        await wf.apply([{"op": "test", "path": "/n", "value": True}])
    assert (await wf.state()) == {"n": 1, "l": [1, {"x": 2}], "ok": 1}
    assert type(await wf.get("/n")) is int


def test_bytes_are_counted_low():
    for value in ({}, [], {"a": 1}, [1, 2], {"a": {"b": ["", "x", None, True, 1.5]}}, [[], [[]], {}], {"": ""}, 5, "x"):
        exact = len(msgspec.json.encode(value))
        assert clean(value, bytes_max=exact) == value
        assert Meter(exact, 100).copied(value) == value


# large writes beside the loop

MANY = [{"op": "add", "path": f"/o/k{n}", "value": {"n": n}} for n in range(6_000)]


async def test_a_large_write_is_prepared_beside_the_loop(tmp_path, monkeypatch):
    begun, own = [], threads._own.call

    async def counted(work, *arguments):
        begun.append(work)
        return await own(work, *arguments)

    monkeypatch.setattr(threads._own, "call", counted)
    async with quire.open("memory:") as store:
        wf, other = await store.create("w", {"o": {}, "l": []}), await store.create("other", {"n": 0})
        for write in (
            lambda: wf.apply(MANY),
            lambda: wf.apply({"m": {str(n): [n] for n in range(12_000)}}),
            lambda: wf.apply([Append(("l",), [[n]]) for n in range(6_000)]),
            lambda: wf.set("/s", [[n] for n in range(12_000)]),
            lambda: wf.append("/l", *([n] for n in range(12_000))),
            lambda: wf.insert("/l", 0, *([n] for n in range(12_000))),
        ):
            begun.clear()
            task = asyncio.ensure_future(write())
            turns = 0
            while not task.done():
                assert (await other.state())["n"] == 0, "readers go on"
                await asyncio.sleep(0)
                turns += 1
            await task
            assert len(begun) >= 2 and turns > 2
        begun.clear()
        await wf.apply(MANY[:5])
        await wf.set("/s", [1, 2, 3])
        assert not begun, "small ones are not worth a thread"


async def test_large_writes_of_two_handles_are_as_their_log(tmp_path):
    url = f"{tmp_path}/s.db"
    async with quire.open(url) as one, quire.open(url) as two:
        wf = await one.create("w", {"o": {}, "l": [], "n": 0})
        again = two.workflow("w")

        async def small(handle, count):
            for n in range(count):
                await handle.append("/l", n)
                await handle.inc("/n")

        bad = [*MANY, {"op": "test", "path": "/n", "value": "never"}]
        made = await asyncio.gather(
            *(wf.apply(MANY), again.apply(MANY[::-1]), small(wf, 20), small(again, 20), again.apply(bad)),
            return_exceptions=True,
        )
        assert [type(each).__name__ for each in made[:2]] == ["Version", "Version"]
        assert isinstance(made[4], ChangeError)
        state = await wf.state()
        assert state["n"] == 40 and len(state["o"]) == len(MANY) and sorted(state["l"]) == sorted([*range(20)] * 2)
        assert state == await again.state()
    async with quire.open(url) as store:
        assert await store.workflow("w").state() == state and (await store.verify()).ok


def crowded(count):
    return [Insert(("l",), 0, [n]) for n in range(count)]


async def test_a_write_that_meets_too_much_is_refused_and_holds_nobody(store):
    wf = await store.create("w", {"l": []})
    await wf.apply(crowded(100))
    error = await refused(wf.apply(crowded(100), base=1), "write_steps_max")
    assert error.found < TIGHT.write_steps_max + 100
    assert (await wf.version()).number == 2
    made = await wf.apply(crowded(10), base=1)
    assert made.number == 3 and len(await wf.get("/l")) == 110


@pytest.mark.parametrize("policy", ["last", "ours", "theirs", "both", "queue"])
async def test_a_merge_that_meets_too_much_is_refused_whole(policy):
    async with quire.open("memory:", settings=Settings(merge_steps_max=16_000)) as store:
        wf = await store.create("w", {"l": []})
        fork = await wf.fork("f")
        for each in (wf, fork):
            await each.apply(crowded(40))
            await each.apply(crowded(40))
        error = await refused(wf.merge(fork, on_conflict=policy), "merge_steps_max")
        assert "80 changes of ours since w@1 meet 80 of theirs" in str(error)
        assert (await wf.version()).number == 3 and len(await wf.get("/l")) == 80
        assert await wf.conflicts() == []
        await wf.merge(fork, at=2, on_conflict=policy)
        assert len(await wf.get("/l")) == 120
        await wf.merge(fork, on_conflict=policy)
        assert len(await wf.get("/l")) == 160
