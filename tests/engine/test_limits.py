"""Limits of states: no way of writing goes around them, nothing of a refused write is stored, and there is a way back."""

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quire
from quire import Append, Increment, Set, Settings
from quire.config import preset
from quire.core import weigh as weighing
from quire.core.changes import apply
from quire.core.schema import Schemas
from quire.engine import actor as acting
from quire.engine.actor import Actor
from quire.engine.write import Write
from quire.errors import ChangeError, Invalid, LimitExceeded, MigrationFailed
from quire.model import Head
from quire.testing.strategies import changes_for

SMALL = {"batch_bytes_max": 4000, "write_bytes_max": 4000}
"""So that a state of 20,000 bytes is far below a limit of 100,000: it is not weighed then."""


def size(state):
    return len(msgspec.json.encode(state))


async def held(workflow):
    """What may not change when a write is refused."""
    return await workflow.state(), (await workflow.version()).number


@pytest.fixture(params=["memory:", "{here}/s.db"])
def url(request, tmp_path):
    return request.param.format(here=tmp_path)


# the size of a state


async def test_a_state_may_fill_its_limit_to_the_byte_and_no_further(url):
    async with quire.open(url, settings=Settings(state_bytes_max=100)) as store:
        wf = await store.create("w", {"text": "x" * 89})  # {"text":""} are 11
        assert size(await wf.state()) == 100
        before = await held(wf)
        with pytest.raises(LimitExceeded) as caught:
            await wf.set("/text", "x" * 90)
        error = caught.value
        assert (error.limit, error.allowed, error.found, error.path) == ("state_bytes_max", 100, 101, "/text")
        assert "nothing was written" in str(error)
        assert await held(wf) == before
        await wf.set("/text", "y" * 89)
        with pytest.raises(LimitExceeded):
            await store.create("v", {"text": "x" * 90})
        assert await store.workflows() == ["w"]


BIG = "z" * 300
WAYS = {
    "set": lambda wf: wf.set("/new", BIG),
    "set the whole": lambda wf: wf.set("", {"list": [], "text": "", "n": 0, "new": BIG}),
    "append": lambda wf: wf.append("/list", BIG),
    "append by set": lambda wf: wf.set("/list/-", BIG),
    "insert": lambda wf: wf.insert("/list", 0, BIG),
    "splice": lambda wf: wf.splice("/text", 0, 0, BIG),
    "inc": lambda wf: wf.inc("/n", 10**299),
    "save": lambda wf: wf.save({"list": [BIG]}, overwrite=True),
    "save on an old version": lambda wf: wf.save({"list": [BIG]}, base=1, on_conflict="last"),
    "JSON Patch": lambda wf: wf.apply([{"op": "add", "path": "/new", "value": BIG}]),
    "merge patch": lambda wf: wf.apply({"new": BIG}),
    "an idempotency key": lambda wf: wf.set("/new", BIG, idempotency_key="k"),
    "many small ones": lambda wf: wf.apply([Append(("list",), ["z"])] * 100),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_no_way_of_writing_goes_around_a_limit(way):
    async with quire.open("memory:", settings=Settings(state_bytes_max=200)) as store:
        wf = await store.create("w", {"list": [], "text": "", "n": 0})
        await wf.set("/n", 1)
        before = await held(wf)
        with pytest.raises(LimitExceeded, match="state_bytes_max"):
            await way(wf)
        assert await held(wf) == before
        assert (await store.verify()).ok


async def test_edits_transactions_and_rebased_writes_are_held_to_it(url):
    async with quire.open(url, settings=Settings(state_bytes_max=200)) as store:
        a, b = await store.create("a", {"list": []}), await store.create("b", {"list": []})
        with pytest.raises(LimitExceeded):
            async with a.edit() as state:
                state["list"].append(BIG)
        with pytest.raises(LimitExceeded):
            await store.transact([a.change([Set(("n",), 1)]), b.change([Set(("n",), BIG)])])
        assert [await w.state() for w in (a, b)] == [{"list": []}] * 2
        with pytest.raises(LimitExceeded):  # either half would do, both do not
            async with a.edit() as state:
                await a.append("/list", "x" * 100)
                state["list"].append("y" * 100)
        assert await a.get("/list") == ["x" * 100]


async def test_restores_merges_and_forks_are_held_to_it(url):
    async with quire.open(url) as store:
        wf = await store.create("w", {"text": BIG, "n": 0})
        await wf.set("/text", "small")
        fork = await wf.fork("f", at=2)
        await fork.set("/other", BIG)
    async with quire.open(url if url != "memory:" else "memory:lost", settings=Settings(state_bytes_max=200)) as store:
        if url == "memory:":
            return
        wf = store.workflow("w")
        before = await held(wf)
        for act in (
            lambda: wf.restore(1),
            lambda: wf.revert(2),
            lambda: wf.merge("f"),
            lambda: wf.fork("g", at=1),
            lambda: store.workflow("f").fork("g"),
        ):
            with pytest.raises(LimitExceeded, match="state_bytes_max"):
                await act()
        assert await held(wf) == before
        assert await store.workflows() == ["f", "w"]
        over = store.workflow("f")  # it is over the limit, which came later
        await (await wf.fork("h")).set("/n", 1)
        with pytest.raises(LimitExceeded):
            await over.set("/n", 10)
        await over.set("/n", 1)  # as large as before
        await over.set("/other", BIG[:-1])  # smaller, though still over the limit
        await over.delete("/other")
        await over.set("/n", 10)


async def test_a_redaction_and_an_end_are_never_refused(tmp_path):
    url = str(tmp_path / "s.db")
    async with quire.open(url) as store:
        wf = await store.create("w", {"pin": "1234", "text": BIG})
    async with quire.open(url, settings=Settings(state_bytes_max=50, value_bytes_max=5)) as store:
        wf = store.workflow("w")
        await wf.redact("/pin")  # "[REDACTED]" is longer
        assert await wf.get("/pin") == "[REDACTED]"
        with pytest.raises(LimitExceeded):
            await wf.set("/pin", "[REDACTED]!")
        await store.delete("w")
        assert await store.workflows() == []


async def test_a_write_that_a_hook_alters_is_held_to_it():
    async with quire.open("memory:", settings=Settings(state_bytes_max=100)) as store:
        wf = await store.create("w", {})
        store.before_change(lambda proposed: [Set(("big",), BIG)])
        with pytest.raises(LimitExceeded):
            await wf.set("/n", 1)
        assert await wf.state() == {}


async def test_a_migration_that_passes_a_limit_says_so_and_leaves_the_state(tmp_path):
    url = str(tmp_path / "s.db")
    async with quire.open(url, schemas=[quire.Schema("r")]) as store:
        await store.create("w", {"n": 1}, schema="r")
    newer = quire.Schema("r", version=2, migrations={1: lambda state: {**state, "big": BIG}})
    async with quire.open(url, schemas=[newer], settings=Settings(state_bytes_max=100)) as store:
        with pytest.raises(MigrationFailed) as caught:
            await store.workflow("w").state()
        assert isinstance(caught.value.__cause__, LimitExceeded)
        assert await store.workflow("w").state(1) == {"$schema": "r/1", "n": 1}


async def test_two_processes_hold_one_workflow_to_one_limit(tmp_path):
    url, settings = str(tmp_path / "s.db"), Settings(state_bytes_max=1000)
    async with quire.open(url, settings=settings) as one, quire.open(url, settings=settings) as two:
        a = await one.create("w", {"list": []})
        b = two.workflow("w")

        async def fill(wf):
            count = 0
            try:
                while True:
                    await wf.append("/list", count)
                    count += 1
            except LimitExceeded:
                return count

        assert sum(await asyncio.gather(fill(a), fill(b))) == len(await a.get("/list"))
        assert 995 <= size(await a.state()) <= 1000
        assert a._engine.residents.peek("workflows/w").weight == weighing.weigh(await b.state())


async def test_other_streams_than_workflows_have_no_such_limits():
    async with quire.open("memory:", settings=Settings(state_bytes_max=100, value_bytes_max=100)) as store:
        wf = await store.create("w", {"n": 0})
        for number in range(20):
            await wf.checkpoint(f"c{number}", description="x" * 100)
        assert len(await wf.checkpoints()) == 20


# keys, values


async def test_keys_are_counted_at_any_depth():
    async with quire.open("memory:", settings=Settings(state_keys_max=4)) as store:
        wf = await store.create("w", {"a": {"b": [{"c": 1}]}})
        await wf.set("/d", 1)
        for pointer, value in (("/e", 1), ("/d", {"e": 1}), ("/a/b/-", {"e": 1}), ("", dict.fromkeys("abcde"))):
            with pytest.raises(LimitExceeded) as caught:
                await wf.set(pointer, value)
            assert (caught.value.limit, caught.value.allowed, caught.value.found) == ("state_keys_max", 4, 5)
        with pytest.raises(LimitExceeded):
            await wf.inc("/e")
        await wf.delete("/a")
        await wf.set("/e", {"f": {"g": 1}})


PUT = {
    "set": (lambda wf: wf.set("/t", "x" * 30), "/t"),
    "set of many small ones": (lambda wf: wf.set("/t", list(range(20))), "/t"),
    "append": (lambda wf: wf.append("/l", 1, "x" * 30), "/l/-"),
    "insert": (lambda wf: wf.insert("/l", 0, ["x" * 30]), "/l/-"),
    "splice": (lambda wf: wf.splice("/t", 5, 0, "x" * 11), "/t"),
    "the whole": (lambda wf: wf.set("", {"k": "x" * 30}), "/k"),
}


@pytest.mark.parametrize(("way", "path"), PUT.values(), ids=PUT)
async def test_a_value_that_is_too_large_is_refused_with_its_place(way, path):
    async with quire.open("memory:", settings=Settings(value_bytes_max=22)) as store:
        wf = await store.create("w", {"t": "t" * 10, "l": [1]})
        before = await held(wf)
        with pytest.raises(LimitExceeded) as caught:
            await way(wf)
        assert (caught.value.limit, caught.value.allowed, caught.value.path) == ("value_bytes_max", 22, path)
        assert caught.value.found > 22
        assert await held(wf) == before
        await wf.set("/t", "x" * 20)
        with pytest.raises(LimitExceeded):
            await store.create("v", {"k": "x" * 30})


async def test_a_value_over_its_limit_may_be_made_smaller_and_what_grew_may_be_restored(tmp_path):
    url = str(tmp_path / "s.db")
    async with quire.open(url) as store:
        await store.create("w", {"t": "x" * 100, "l": []})
    async with quire.open(url, settings=Settings(value_bytes_max=20)) as store:
        wf = store.workflow("w")
        for number in range(30):
            await wf.append("/l", number)  # piece by piece: the state bounds that
        await wf.set("/t", "x" * 50)
        await wf.splice("/t", 0, 10, "y")
        with pytest.raises(LimitExceeded):
            await wf.splice("/t", 0, 0, "y")
        good = await wf.set("/t", "fine")
        await wf.remove("/l", 0, 25)
        await wf.restore(good.number)  # its items come back one by one
        assert await wf.get("/l") == list(range(30))


# exact, and cheap


@given(st.data())
def test_a_write_is_taken_if_and_only_if_the_state_fits_or_shrinks(data):
    allowed = data.draw(st.integers(2, 120))
    keys = data.draw(st.one_of(st.none(), st.integers(1, 8)))
    settings = Settings(state_bytes_max=allowed, state_keys_max=keys)
    actor, state = Actor(settings, Schemas(), Head("workflows/w"), {}, state_size=0), {}
    for number in range(data.draw(st.integers(1, 8))):
        changes = data.draw(changes_for(state))
        after = apply(state, changes)
        old, new = weighing.weigh(state), weighing.weigh(after)
        fits = new.size_bytes <= max(allowed, old.size_bytes) and (keys is None or new.keys <= max(keys, old.keys))
        try:
            actor.prepare(Write("workflows/w", changes, exists=None), number)
        except LimitExceeded:
            assert not fits
        else:
            assert fits
            state = after
        if actor.pending and data.draw(st.booleans()):
            actor.publish()
            assert actor.weight == weighing.weigh(state)
    if actor.pending:
        actor.publish()
    assert actor.state == state


@pytest.fixture
def weighed(monkeypatch):
    """How often a state was weighed whole."""
    found = []

    def counting(value):
        found.append(size(value))
        return weighing.weigh(value)

    monkeypatch.setattr(acting, "weigh", counting)
    return found


async def test_a_state_far_below_its_limit_is_never_weighed_and_one_near_it_once(weighed):
    settings = Settings(state_bytes_max=100_000, keyframe_bytes_min=0, **SMALL)
    async with quire.open("memory:", settings=settings) as store:
        wf = await store.create("w", {"list": []})
        for _ in range(200):
            await wf.append("/list", "x" * 90)
        assert weighed == []
        with pytest.raises(LimitExceeded):
            while True:
                await wf.append("/list", "x" * 490)
        assert len(weighed) == 1
        for _ in range(50):
            with pytest.raises(LimitExceeded):
                await wf.append("/list", "x" * 490)
            await wf.set("/list/0", "y")
        assert len(weighed) == 1
        assert 99_000 < size(await wf.state()) <= 100_000
        assert store.engine.residents.peek("workflows/w").weight == weighing.weigh(await wf.state())


async def test_what_a_state_weighs_at_most_is_known_after_keyframes_forks_and_restarts(tmp_path, weighed):
    url = str(tmp_path / "s.db")
    settings = Settings(state_bytes_max=100_000, keyframe_changes_min=4, keyframe_bytes_min=0, **SMALL)
    async with quire.open(url, settings=settings) as store:
        wf = await store.create("w", {"list": []})
        for _ in range(20):
            await wf.append("/list", *["x" * 90] * 10)
        fork = await wf.fork("f")
        old = await wf.fork("o", at=15)
        sizes = {w: store.engine.residents.peek(f"workflows/{w}").state_size for w in ("w", "f", "o")}
        for each in (wf, fork, old):
            assert size(await each.state()) <= sizes[each.id] < 2 * size(await each.state())
    assert weighed == []
    async with quire.open(url, settings=settings) as store:
        for name in ("f", "o"):
            with pytest.raises(LimitExceeded):
                while True:
                    await store.workflow(name).append("/list", "x" * 3000)
            assert 97_000 < size(await store.workflow(name).state()) <= 100_000
    assert len(weighed) == 2


async def test_a_transaction_that_fills_a_state_at_once_is_weighed_on_its_way(weighed):
    async with quire.open("memory:", settings=Settings(state_bytes_max=100_000, **SMALL)) as store:
        wf, other = await store.create("w", {"list": []}), await store.create("v", {})
        parts = [wf.change([Append(("list",), ["x" * 3900])]) for _ in range(50)]
        with pytest.raises(LimitExceeded) as caught:
            await store.transact([*parts, other.change([Set(("n",), 1)])])
        assert caught.value.found > 100_000
        assert [await w.state() for w in (wf, other)] == [{"list": []}, {}]
        made = await store.transact(parts[:25])
        assert made[-1].number == 26
        assert size(await wf.state()) > 95_000
    assert len(weighed) < 5


async def test_sums_that_outgrow_what_was_added_do_not_slip_through(weighed):
    settings = Settings(state_bytes_max=60_000, **SMALL)
    async with quire.open("memory:", settings=settings) as store:
        wf = await store.create("w", {})
        for number in range(300):  # 0.1 + 0.2 is longer than both
            await wf.apply([Increment((f"{number}",), 0.1), Increment((f"{number}",), 0.2)])
        assert size(await wf.state()) <= store.engine.residents.peek("workflows/w").state_size * 2


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "100"])
@pytest.mark.parametrize("name", ["state_bytes_max", "state_keys_max", "value_bytes_max", "store_bytes_max"])
def test_a_limit_that_makes_no_sense_is_refused(name, wrong):
    with pytest.raises(Invalid, match=name):
        Settings(**{name: wrong})


def test_the_presets_bound_a_state_as_their_document_says():
    sizes = [preset(n).state_bytes_max for n in ("development", "production", "high_throughput")]
    assert [s // 1024**2 for s in sizes] == [50, 200, 500]
    assert Settings().state_bytes_max == 100 * 1024**2


async def test_what_does_not_fit_the_state_is_told_as_that(url):
    async with quire.open(url, settings=Settings(state_bytes_max=100, state_keys_max=5, value_bytes_max=50)) as store:
        wf = await store.create("w", {"n": 1})
        with pytest.raises(ChangeError):
            await wf.append("/n", "x")
