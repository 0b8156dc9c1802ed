"""Hooks before and after changes, and correlation ids, on both of the backends that need no server."""

import asyncio
import random
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire import orchestra
from quire.core.changes import apply
from quire.core.path import get
from quire.core.values import same
from quire.engine import lineage
from quire.engine.clock import FakeClock
from quire.errors import ChangeError, Denied, HookFailed, Invalid, InvalidKey, InvalidState, StepFailed
from quire.model import Point
from quire.testing import strategies as qs

WAYS = {
    "edit": lambda store, wf: edited(wf),
    "set": lambda store, wf: wf.set("/title", "secret"),
    "save": lambda store, wf: wf.save({"title": "secret", "n": 0, "notes": []}, overwrite=True),
    "apply": lambda store, wf: wf.apply({"title": "secret"}),
    "apply-once": lambda store, wf: wf.apply({"title": "secret"}, idempotency_key="k"),
    "transact": lambda store, wf: store.transact([wf.change([quire.Set(("title",), "secret")])]),
    "merge": lambda store, wf: merged(wf),
    "restore": lambda store, wf: restored(wf),
    "step": lambda store, wf: stepped(store, wf),
    "manager": lambda store, wf: managed(store, wf),
    "create": lambda store, wf: store.create("other", {"title": "secret"}),
}


async def edited(wf):
    async with wf.edit() as state:
        state["title"] = "secret"


async def merged(wf):
    fork = await wf.fork("fork", at=1)
    await fork.set("/title", "secret", author="forker")
    return await wf.merge("fork")


async def restored(wf):
    return await wf.restore(2)


async def stepped(store, wf):
    async def write(context):
        context.state["title"] = "secret"

    await orchestra.run(store, orchestra.step(write), id="run", state={"title": "open"})


async def managed(store, wf):
    async with quire.StateManager(store) as manager:
        state = {"id": "m", "name": "n", "status": "running", "createdAt": 1, "title": "secret"}
        await manager.persist_workflow_state("m", state, "ann", "why")


@pytest.fixture
async def wf(store):
    return await store.create("w", {"title": "open", "n": 0, "notes": []}, author="ann")


async def titles(store):
    return {w: await store.workflow(w).get("/title") for w in await store.workflows() if w != "fork"}


def hushed(change):
    if isinstance(change, quire.Set) and change.path == ():
        return quire.Set((), {**change.value, "title": "hush"})
    return quire.Set(("title",), "hush") if change.path == ("title",) else change


async def prepared(wf, way):
    """What has to be there before some ways of writing can be gone."""
    if way == "restore":
        await wf.set("/title", "secret")
        await wf.set("/title", "open")


@pytest.mark.parametrize("way", WAYS)
async def test_a_hook_that_refuses_holds_for_every_way_of_writing_and_nothing_is_stored(store, wf, way):
    await prepared(wf, way)

    def refuse(proposed):
        if proposed.workflow_id != "fork" and proposed.after("/title") == "secret":
            raise Denied("no secrets here")

    store.before_change(refuse)
    before = await titles(store)
    with pytest.raises(StepFailed if way == "step" else Denied, match="no secrets here"):
        await WAYS[way](store, wf)
    assert "secret" not in (await titles(store)).values()
    assert before.items() <= (await titles(store)).items()
    assert (await store.verify()).ok


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_hook_makes_of_a_write_is_what_watchers_blame_history_and_diff_see(store, wf, way):
    await prepared(wf, way)

    @store.before_change(path="/title")
    def whisper(proposed):
        if proposed.workflow_id == "fork" or proposed.after("/title") != "secret":
            return None
        return [hushed(c) for c in proposed.changes]

    seen = store.watch(after=0)
    await WAYS[way](store, wf)
    after = await titles(store)
    assert "secret" not in after.values()
    changed = next(w for w, title in after.items() if title == "hush")
    handle = store.workflow(changed)
    line = (await handle.blame("/title"))[0]
    assert line.value == "hush"
    assert "hush" in str((await handle.version(line.version)).changes)
    assert await handle.get("/title", version=line.version) == "hush"
    async for event in seen:
        if event.workflow_id == changed and event.version.number == line.version:
            assert "hush" in str(event.changes)
            break
    await seen.aclose()
    assert whisper.calls
    assert not whisper.failures
    assert (await store.verify()).ok


async def test_a_merge_that_a_hook_altered_can_be_merged_on_from(store, wf):
    fork = await wf.fork("fork")
    await fork.append("/notes", "from the fork")
    await fork.inc("/n", 5)

    def cap(proposed):
        if proposed.kind == "merge":
            return [c for c in proposed.changes if c.path != ("n",)] + [quire.Append(("notes",), ["checked"])]
        return None

    hook = store.before_change(cap, workflow="w")
    result = await wf.merge(fork)
    assert result.changes == [quire.Append(("notes",), ["from the fork"]), quire.Append(("notes",), ["checked"])]
    assert await wf.state() == {"title": "open", "n": 0, "notes": ["from the fork", "checked"]}
    hook.remove()
    await fork.append("/notes", "later")
    assert (await fork.merge(wf)).conflicts == []  # criss-cross: what came from the fork is not done again
    assert sorted((await fork.state())["notes"]) == ["checked", "from the fork", "later"]
    await wf.merge(fork)
    assert await wf.state() == await fork.state()
    assert (await store.verify()).ok


async def test_a_merge_whose_changes_a_hook_drops_counts_as_merged(store, wf):
    fork = await wf.fork("fork")
    await fork.set("/title", "theirs")
    hook = store.before_change(lambda proposed: [], workflow="w")
    assert (await wf.merge(fork)).changes == []
    hook.remove()
    assert await wf.get("/title") == "open"
    assert (await wf.merge(fork)).up_to_date
    assert not (await fork.merge(wf)).conflicts
    assert await fork.get("/title") == "open"


@pytest.mark.parametrize("seed", range(12))
async def test_however_hooks_alter_merges_each_leads_from_theirs_to_what_it_became(store, seed):
    """Random webs of forks, hooks that drop and add at random: later merges stand on these entries."""
    chance, names = random.Random(seed), ["w0"]
    await store.create("w0", {"n": 0, "log": []})

    def meddle(proposed):
        if proposed.kind != "merge":
            return None
        kept = [c for c in proposed.changes if chance.random() < 0.6]
        return [*kept, quire.Set((f"mark{chance.randint(0, 3)}",), chance.randint(0, 9))]

    hook = store.before_change(meddle)
    for step in range(40):
        name, what = chance.choice(names), chance.random()
        wf = store.workflow(name)
        if what < 0.15 and len(names) < 5:
            names.append(f"w{len(names)}")
            await wf.fork(names[-1])
        elif what < 0.6:
            async with wf.edit(author=name) as state:
                state.increment("n")
                state["log"].insert(chance.randint(0, len(state["log"])), step)
        else:
            await wf.merge(chance.choice([n for n in names if n != name] or names), author="merger")
    checked = 0
    for name in names:
        wf = store.workflow(name)
        for number, entry in (await lineage.merges(store.engine, Point(name, (await wf.version()).number))).items():
            theirs = await store.workflow(entry.workflow).state(entry.version)
            assert apply(theirs, entry.back) == await wf.state(number)
            assert len(entry.taken) == len((await wf.version(number)).changes)
            checked += 1
    assert hook.failures < hook.calls
    assert checked
    assert (await store.verify()).ok


async def test_cancelling_is_no_error_and_changes_nothing(store, wf):
    hook = store.before_change(lambda proposed: [])
    assert (await wf.set("/n", 1)).number == 1
    assert [v.number for v in await wf.history()] == [1]
    assert (await wf.set("/n", 1, allow_empty=True)).changes == []
    hook.remove()
    assert (await wf.set("/n", 1)).number == 3


class Reversible:
    """An agent's own mistake."""


RUBBISH = {
    "a number": 7,
    "text": "set /n 1",
    "no changes": [1, 2],
    "a set": {1},
    "a change that does not fit": [quire.Append(("n",), [1])],
    "a value that is not JSON": [quire.Set(("n",), Reversible())],
    "NaN": [quire.Set(("n",), float("nan"))],
    "a state that is no object": [quire.Set((), 3)],
    "a patch whose test fails": [{"op": "test", "path": "/n", "value": 9}],
    "too deep": [quire.Set(tuple("a" * 70), 1)],
    "too heavy": [quire.Set(("n",), "x" * (17 << 20))],
    "a generator": (c for c in ()),
}


@pytest.mark.parametrize("what", RUBBISH)
async def test_a_rubbish_answer_is_refused_by_a_guard_and_passed_over_otherwise(store, wf, what):
    def odd(proposed):
        return RUBBISH[what]

    hook = store.before_change(odd)
    assert (await wf.set("/n", 1)).changes == [quire.Set(("n",), 1)]
    assert (hook.calls, hook.failures) == (1, 1)
    hook.remove()
    guard = store.before_change(odd, guard=True)
    with pytest.raises(HookFailed, match="odd") as refused:
        await wf.set("/n", 2)
    assert refused.value.hook == guard.name
    assert refused.value.__cause__ is not None
    assert await wf.get("/n") == 1
    assert (await wf.version()).number == 2
    assert (await store.verify()).ok


def broken(proposed):
    raise ZeroDivisionError("division by zero")


def cancelled(proposed):
    raise asyncio.CancelledError


def endless(proposed):
    return endless(proposed)


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


def unspeakable(proposed):
    raise Unspeakable


def unencodable(proposed):
    raise ValueError("\ud800" * 5000)


@pytest.mark.parametrize("fn", [broken, cancelled, endless, unspeakable, unencodable])
async def test_a_guard_that_raises_refuses_and_another_hook_that_raises_changes_nothing(store, wf, fn, caplog):
    hook = store.before_change(fn)
    twin = store.before_change(lambda proposed: None)
    version = await wf.set("/n", 1)
    assert version.changes == [quire.Set(("n",), 1)]
    assert hook.failures == 1
    assert hook.last_error
    assert fn.__name__ in caplog.text
    assert twin.calls == 1
    store.before_change(fn, guard=True)
    with pytest.raises(HookFailed, match=f"{fn.__name__} failed"):
        await wf.set("/n", 2)
    assert await wf.get("/n") == 1
    assert twin.calls == 2
    # the parts of a transaction stand or fall together
    other = store.workflow("w2")
    with pytest.raises(HookFailed):
        await store.create("w2", {})
    assert not await other.exists()


async def test_one_refused_part_refuses_a_transaction(store, wf):
    other = await store.create("other", {"n": 0})

    @store.before_change(workflow="other")
    def no(proposed):
        raise Denied("not this one")

    with pytest.raises(Denied, match="not this one"):
        await store.transact([wf.change([quire.Increment(("n",), 1)]), other.change([quire.Increment(("n",), 1)])])
    assert (await wf.get("/n"), await other.get("/n")) == (0, 0)
    await wf.inc("/n")
    assert await wf.get("/n") == 1


async def test_writers_of_one_batch_are_refused_one_by_one(store, wf):
    @store.before_change
    def odd_only(proposed):
        if proposed.after("/n") % 2 == 0:
            raise Denied("even")

    async def write(i):
        try:
            return await wf.set("/n", i)
        except Denied:
            return None

    made = await asyncio.gather(*(write(i) for i in range(1, 41)))
    assert [m is None for m in made] == [i % 2 == 0 for i in range(1, 41)]
    assert [c.value for v in await wf.history(order="oldest") for c in v.changes][1:] == list(range(1, 41, 2))


async def test_hooks_are_asked_in_order_and_each_sees_what_the_one_before_left(store, wf):
    store.before_change(lambda proposed: [*proposed.changes, quire.Append(("notes",), ["one"])])
    store.before_change(lambda proposed: [*proposed.changes, quire.Append(("notes",), [len(proposed.after("/notes"))])])
    await wf.set("/n", 1)
    assert await wf.get("/notes") == ["one", 1]


async def test_a_hook_answers_in_any_form_of_change(store, wf):
    answers = iter([{"n": 10}, [{"op": "replace", "path": "/n", "value": 20}], [quire.Set(("n",), 30)]])
    store.before_change(lambda proposed: next(answers))
    for expected in (10, 20, 30):
        await wf.set("/n", 1)
        assert await wf.get("/n") == expected


async def test_what_a_hook_is_given_is_its_own(store, wf):
    given = {"deep": ["a"]}
    kept = []

    @store.before_change
    def vandal(proposed):
        assert (proposed.workflow_id, proposed.author, proposed.message, proposed.kind) == ("w", "bob", "m", "change")
        proposed.state["title"] = "broken"
        proposed.get("/notes").append("broken")
        for change in proposed.changes:
            change.value["deep"].append("broken")
        proposed.after("/notes").append("broken")
        kept.append(proposed)
        with pytest.raises(AttributeError):
            proposed.author = "somebody else"

    await wf.set("/value", given, author="bob", message="m")
    assert not vandal.failures, vandal.last_error
    assert await wf.state() == {"title": "open", "n": 0, "notes": [], "value": {"deep": ["a"]}}
    assert given == {"deep": ["a"]}
    await wf.append("/notes", "x", author="bob", message="m")
    assert kept[0].state == {"title": "open", "n": 0, "notes": []}  # what was published is never altered
    assert vandal.failures == 1  # an Append has no value


async def test_hooks_only_see_what_they_asked_for(store, wf):
    other = await store.create("other", {"n": 0, "notes": []})
    by_path = store.before_change(lambda p: None, path="/notes")
    by_workflow = store.before_change(lambda p: None, workflow="other")
    await wf.set("/n", 1)
    await wf.append("/notes", "a")
    await other.append("/notes", "a")
    await other.set("", {"all": "new"})
    assert (by_path.calls, by_workflow.calls) == (3, 2)


async def test_a_write_that_does_not_fit_fails_with_its_own_error(store, wf):
    def careful(proposed):
        proposed.after()

    hook = store.before_change(careful, guard=True)
    with pytest.raises(ChangeError, match="holds a string"):
        await wf.append("/title", "x")
    await wf.append("/notes", "x")
    assert hook.failures == 0  # it was not the hook's


@pytest.mark.parametrize("guard", [True, False])
async def test_an_answer_that_the_schema_does_not_allow_is_rubbish(guard):
    class Shape(msgspec.Struct):
        n: int

    async with quire.open("memory:", schemas=[quire.Schema("shape", model=Shape)]) as store:
        wf = await store.create("w", {"n": 0}, schema="shape")
        hook = store.before_change(lambda proposed: [quire.Set(("n",), "many")], guard=guard)
        if guard:
            with pytest.raises(HookFailed, match="many|int"):
                await wf.set("/n", 1)
        else:
            await wf.set("/n", 1)
        assert await wf.get("/n") == (0 if guard else 1)
        with pytest.raises(InvalidState):  # what was not the hook's fault is its caller's
            await wf.set("/n", "none")
        assert hook.failures == 1


async def test_a_fork_and_a_deletion_can_be_refused_but_not_altered(store, wf):
    hook = store.before_change(lambda proposed: [])
    fork = await wf.fork("fork")
    assert await fork.state() == await wf.state()
    await store.delete("fork")
    assert not await fork.exists()
    assert hook.failures == 2
    hook.remove()

    @store.before_change
    def keep(proposed):
        raise Denied("it stays as it is")

    with pytest.raises(Denied):
        await wf.fork("fork2")
    with pytest.raises(Denied):
        await store.delete("w")
    assert await wf.exists()


async def test_a_removed_hook_is_not_asked_and_the_last_one_leaves_nothing(store, wf):
    hook = store.before_change(lambda proposed: [])
    assert store.engine.committer.before is not None
    hook.remove()
    hook.remove()
    assert store.engine.committer.before is None
    await wf.set("/n", 1)
    assert hook.calls == 0
    assert await wf.get("/n") == 1


async def test_a_hook_runs_again_when_another_process_was_first(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store, quire.open(path) as other:
        wf = await store.create("w", {"n": 0, "log": []})
        await other.workflow("w").set("/n", 1)
        before = []

        @store.before_change
        def note(proposed):
            before.append(proposed.get("/n"))
            return [*proposed.changes, quire.Append(("log",), [f"saw {proposed.get('/n')}"])]

        store.engine.seen = 1 << 60  # as if nothing had told us yet: the commit finds out
        await store.engine.write(wf.change([quire.Set(("mine",), True)]))
        assert before == [0, 1]
        assert await other.workflow("w").state() == {"n": 1, "log": ["saw 1"], "mine": True}


async def test_a_hook_meets_what_rebasing_left(store, wf):
    await wf.append("/notes", "a", "b")
    seen = []
    store.before_change(lambda p: seen.append(p.changes), path="/notes")
    async with wf.edit(author="bob") as mine:
        await wf.insert("/notes", 0, "first", "second")
        mine["notes"].insert(1, "between")
    assert seen == [
        [quire.Insert(("notes",), 0, ["first", "second"])],
        [quire.Insert(("notes",), 3, ["between"])],
    ]
    assert await wf.get("/notes") == ["first", "second", "a", "between", "b"]


async def test_what_is_no_hook_is_refused(store):
    async def waits(proposed):
        return None

    with pytest.raises(Invalid, match="async"):
        store.before_change(waits)
    for call in (
        lambda: store.before_change(7),
        lambda: store.before_change(print, guard="yes"),
        lambda: store.on_change(print, types=["rename"]),
        lambda: store.on_change(7),
    ):
        with pytest.raises(Invalid):
            call()
    for call in (lambda: store.before_change(print, workflow="../x"), lambda: store.on_change(print, workflow="a b")):
        with pytest.raises(InvalidKey):
            call()
    assert store.engine.committer.before is None


async def test_a_coroutine_out_of_a_plain_hook_is_a_failure(store, wf):
    async def later():
        return []

    hook = store.before_change(lambda proposed: later())
    await wf.set("/n", 1)
    assert hook.failures == 1
    assert await wf.get("/n") == 1


# correlation


async def test_a_correlation_id_is_readable_from_the_log_by_every_process(tmp_path):
    path = str(tmp_path / "s.db")
    seen = []
    async with quire.open(path) as store:
        store.before_change(lambda p: seen.append((p.correlation_id, p.message)))
        with quire.correlation("request 7"):
            wf = await store.create("w", {"n": 0, "m": 0})
            await wf.set("/n", 1, message="because\nof this")
            await wf.set("/m", 1, message="")
        await wf.set("/n", 2)
    assert seen == [("request 7", "created"), ("request 7", "because\nof this"), ("request 7", ""), (None, "")]
    async with quire.open(path) as store:
        versions = await store.workflow("w").history(order="oldest")
        assert [quire.correlation_of(v) for v in versions] == ["request 7"] * 3 + [versions[3].id]
        assert versions[1].message == "because\nof this\n\nCorrelation-Id: request 7"
        assert versions[3].message == ""
        assert (await store.verify()).ok


async def test_writers_at_once_keep_their_own_ids(store, wf):
    async def write(i):
        with quire.correlation(f"r-{i}"):
            await asyncio.sleep(0)
            await wf.append("/notes", i)
            with quire.correlation(f"inner-{i}"):
                await wf.append("/notes", i, idempotency_key=f"k{i}")
        await wf.append("/notes", i, message="by itself")

    await asyncio.gather(*(write(i) for i in range(20)))
    for version in (await wf.history(order="oldest"))[1:]:
        number = version.changes[0].values[0]
        given = quire.correlation_of(version)
        assert given in (f"r-{number}", f"inner-{number}") or version.message == "by itself"
    assert len({quire.correlation_of(v) for v in await wf.history()}) == 61


@pytest.mark.parametrize("bad", ["", " x", "x\n", "x" * 201, None, 7, "a\x00b"])
def test_what_is_no_correlation_id_is_refused(bad):
    with pytest.raises(Invalid), quire.correlation(bad):
        pass


# after changes


class Told(list):
    """What a callback was told, and a way to wait for it."""

    def __init__(self):
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, event):
        self.append(event)
        self._more.set()

    async def count(self, number):
        async with asyncio.timeout(20):
            while len(self) < number:
                self._more.clear()
                await self._more.wait()
        return self


async def test_a_callback_is_told_of_every_change_in_order_with_old_and_new(store, wf):
    told = Told()
    store.on_change(told, path="/n")
    await asyncio.gather(*(wf.inc("/n") for _ in range(30)), *(wf.append("/notes", i) for i in range(30)))
    await wf.delete("/n")
    await told.count(31)
    assert [(e.old, e.new) for e in told[:30]] == [(i, i + 1) for i in range(30)]
    assert (told[30].old, told[30].new) == (30, msgspec.UNSET)
    assert [e.version.number for e in told] == sorted(e.version.number for e in told)
    assert {e.path for e in told} == {"/n"}
    assert all(e.correlation_id == e.version.id for e in told)
    assert len({e.id for e in told}) == 31


async def test_values_are_right_for_forks_deletions_and_other_processes(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store, quire.open(path) as other:
        told = Told()
        store.on_change(told, path="/n")
        wf = await other.create("w", {"n": 1})
        await wf.set("/n", 2)
        fork = await wf.fork("fork")
        await fork.inc("/n")
        await other.delete("w")
        await other.create("w", {"n": 9})
        await told.count(6)
        assert [(e.workflow_id, e.old, e.new) for e in told] == [
            ("w", msgspec.UNSET, 1),
            ("w", 1, 2),
            ("fork", msgspec.UNSET, 2),
            ("fork", 2, 3),
            ("w", 2, msgspec.UNSET),
            ("w", msgspec.UNSET, 9),
        ]


@given(st.data())
@settings(max_examples=60)
def test_old_and_new_are_what_the_versions_hold_and_what_is_not_told_did_not_change(data):
    async def run():
        async with quire.open("memory:", settings=quire.Settings(recent_records=2, feed_records=4)) as store:
            states = [data.draw(qs.states)]
            wf = await store.create("w", states[0])
            path, _ = data.draw(st.sampled_from(qs.places(states[0])))
            pointers = {"/".join(["", *(str(t).replace("~", "~0").replace("/", "~1") for t in path)]), ""}
            told = {p: Told() for p in pointers}
            for pointer, callback in told.items():
                store.on_change(callback, path=pointer)
            last = Told()
            store.on_change(last, path="/\u2021 the end")
            for _ in range(data.draw(st.integers(1, 6))):
                changes = data.draw(qs.changes_for(states[-1]))
                states.append(apply(states[-1], changes))
                await wf.apply(changes, allow_empty=True)
                if data.draw(st.booleans()):
                    for _ in range(20):
                        await asyncio.sleep(0)
            await wf.set("/\u2021 the end", 1)
            await last.count(1)
            for pointer, callback in told.items():
                tokens = path if pointer else ()
                at = [get(s, tokens, msgspec.UNSET) for s in states]
                by_version = {e.version.number: e for e in callback}
                for number in range(2, len(states) + 1):
                    old, new = at[number - 2], at[number - 1]
                    if number in by_version:
                        assert same(by_version[number].old, old)
                        assert same(by_version[number].new, new)
                    else:
                        assert same(old, new)

    asyncio.run(run())


async def test_what_a_callback_is_given_is_its_own(store, wf):
    told = Told()

    def vandal(event):
        event.new["notes"].append("broken")
        told(event)

    store.on_change(vandal, path="")
    await wf.append("/notes", "a")
    await wf.append("/notes", "b")
    await told.count(2)
    assert told[1].old["notes"] == ["a"]
    assert await wf.get("/notes") == ["a", "b"]


async def test_filters_keep_out_what_was_not_asked_for(store, wf):
    other = await store.create("w2", {"n": 0})
    by = {name: Told() for name in ("all", "workflow", "author", "types", "path")}
    store.on_change(by["all"])
    store.on_change(by["workflow"], workflow="w")
    store.on_change(by["author"], author="bob")
    store.on_change(by["types"], types=["inc"])
    store.on_change(by["path"], path="/n")
    await wf.append("/notes", "a", author="ann")
    await other.inc("/n", author="bob")
    await wf.set("/title", "t", author="bob")
    await wf.set("/n", 4, author="cleo")
    await by["all"].count(4)
    await by["path"].count(2)
    await by["workflow"].count(3)
    assert [e.version.number for e in by["workflow"]] == [2, 3, 4]
    assert [e.version.author for e in by["author"]] == ["bob", "bob"]
    assert [e.workflow_id for e in by["types"]] == ["w2"]
    assert [(e.workflow_id, e.old, e.new) for e in by["path"]] == [("w2", 0, 1), ("w", 0, 4)]
    assert by["all"][0].old is msgspec.UNSET


async def test_a_raising_callback_is_told_again_loses_no_order_and_disturbs_nobody(tmp_path):
    clock = FakeClock()
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        told, other, tries = Told(), Told(), []

        @store.on_change(path="/n")
        async def fails(event):
            tries.append(event.new)
            if event.new == 2 and tries.count(2) < 4:
                raise OSError("not yet")
            told(event)

        store.on_change(other, path="/n")
        for _ in range(5):
            await wf.inc("/n")
        await other.count(5)  # neither writers nor others wait for it
        await told.count(1)
        assert [e.new for e in told] == [1]
        for _ in range(3):
            while not clock.sleepers:
                await asyncio.sleep(0)
            await clock.wind(40)
        await told.count(5)
        assert tries == [1, 2, 2, 2, 2, 3, 4, 5]
        assert (fails.failures, fails.calls) == (3, 8)
        assert "not yet" in fails.last_error


async def test_a_removed_callback_is_told_nothing_more(store, wf):
    told, other = Told(), Told()
    hook = store.on_change(told)
    store.on_change(other)
    await wf.inc("/n")
    await told.count(1)
    hook.remove()
    hook.remove()
    await wf.inc("/n")
    await other.count(2)
    assert len(told) == 1


async def test_what_a_callback_writes_carries_the_correlation_id_of_what_it_was_told_of(store, wf):
    done = asyncio.Event()

    @store.on_change(path="/n")
    async def echo(event):
        await wf.append("/notes", event.new)
        done.set()

    with quire.correlation("r-7"):
        await wf.inc("/n")
    await done.wait()
    version = await wf.version()
    assert (version.number, quire.correlation_of(version)) == (3, "r-7")


async def test_a_store_closes_while_callbacks_wait_fail_or_close_it(tmp_path):
    store = await quire.open(str(tmp_path / "s.db"))
    wf = await store.create("w", {"n": 0})
    inside = [asyncio.Event() for _ in range(2)]

    @store.on_change
    async def waits(event):
        inside[0].set()
        await asyncio.Event().wait()

    @store.on_change
    def fails(event):
        raise ValueError("always")

    @store.on_change
    async def closes(event):
        await store.close()
        inside[1].set()

    await wf.inc("/n")
    async with asyncio.timeout(20):
        await inside[0].wait()
        await inside[1].wait()
    await store.close()
    with pytest.raises(quire.errors.Closed):
        store.on_change(print)


# the sync face


def test_hooks_without_an_event_loop(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        wf = store.create("w", {"n": 0, "log": []})
        done, threads = threading.Event(), set()

        @store.on_change(path="/n")
        def copy(event):
            threads.add(threading.current_thread())
            wf.append("/log", event.new)  # it may use the store, and wait for it
            done.set()

        @store.before_change(path="/n", guard=True)
        def cap(proposed):
            if proposed.after("/n") > 10:
                raise Denied("10 is the most")

        with quire.correlation("r-7"):
            wf.set("/n", 10)
        with pytest.raises(Denied):
            wf.set("/n", 11)
        assert done.wait(20)
        assert threads.isdisjoint({threading.main_thread()})
        assert wf.get("/log") == [10]
        assert {quire.correlation_of(v) for v in wf.history(2)} == {"r-7"}
        cap.remove()
        wf.set("/n", 12)


def test_a_sync_hook_that_asks_the_store_fails_instead_of_waiting_for_ever(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        wf = store.create("w", {"n": 0})
        hook = store.before_change(lambda proposed: wf.state())
        wf.set("/n", 1)
        assert "wait for itself" in hook.last_error
        assert wf.get("/n") == 1
