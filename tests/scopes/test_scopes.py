"""Scoped state: isolated, limited, guarded, and never losing a write."""

import asyncio
import logging
import re
import threading
from contextlib import asynccontextmanager
from typing import Literal

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import quire
from quire.api.store import Store
from quire.config import Settings
from quire.core.names import check_id
from quire.core.values import same
from quire.engine.clock import FakeClock, system_ids
from quire.engine.engine import Engine
from quire.errors import (
    AlreadyExists,
    ChangeError,
    Denied,
    Invalid,
    InvalidKey,
    InvalidState,
    LimitExceeded,
    WorkflowNotFound,
)
from quire.orchestra import run, sequence
from quire.scopes import (
    ABSENT,
    Policy,
    ScopeDenied,
    ScopeLimits,
    StateBuilder,
    StateScope,
    WorkflowStateManager,
)
from quire.scopes.permissions import RIGHTS
from quire.storage.memory import open_memory
from quire.storage.sqlite import open_sqlite


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory:" if request.param == "memory" else str(tmp_path / "s.db")


@pytest.fixture
def clock():
    return FakeClock()


async def opened(url, clock, *, time=None):
    """Open a store with a clock of its own, on a backend whose clock is `time`, or the same."""
    now_ms = (time or clock).now_ms
    if url.startswith("memory:"):
        backend = await open_memory(url.removeprefix("memory:"), namespace="n", now_ms=now_ms)
    else:
        backend = await open_sqlite(url, namespace="n", now_ms=now_ms)
    return Store(Engine(backend, Settings(), clock, system_ids(), await backend.latest()), "n")


@asynccontextmanager
async def closing(store):
    try:
        yield
    finally:
        await store.close()


@pytest.fixture
async def store(url, clock):
    made = await opened(url, clock)
    yield made
    await made.close()


@pytest.fixture
def manager(store):
    return WorkflowStateManager(store, agent="ann")


@pytest.fixture
def state(manager):
    return manager.workflow_state("w")


async def counted(store):
    """Check what every log counts against what it holds; return the number of logs."""
    logs = await store.workflows("scope-")
    for log_id in logs:
        held = await store.workflow(log_id).state()
        entries = [*held["values"].items(), *(e for step in held["steps"].values() for e in step.items())]
        assert held["keys"] == len(entries)
        assert held["bytes"] == sum(len(msgspec.json.encode(k) + msgspec.json.encode(e["value"])) for k, e in entries)
        assert all(held["steps"].values()), "a step that holds nothing is forgotten"
    return len(logs)


# names

NASTY = ["", ".", "..", "/", ":", "-", "a", "A", "a:b", "a/b", "a-b", "a.2fb", ".x", "é", "e\u0301", "\u0430", "а", "\0", "\n", " ", "\U0001f600", "𝐚", "scope-", "global", "workflow:a", "steps", "values"]  # fmt: skip
names = st.one_of(
    st.lists(st.sampled_from(NASTY), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200),
    st.integers(100, 512).map("a".__mul__),
).filter(lambda n: 1 <= len(n.encode()) <= 512)
scopes = st.one_of(
    st.just(StateScope.global_()),
    st.builds(StateScope.step, names, names),
    st.builds(
        lambda make, name: make(name),
        st.sampled_from(
            [
                StateScope.workflow,
                StateScope.session,
                StateScope.agent,
                StateScope.tool,
                StateScope.user,
                StateScope.custom,
            ]
        ),
        names,
    ),  # fmt: skip
)


@given(scopes, scopes)
@example(StateScope.custom("a/b"), StateScope.custom("a.2fb"))
@example(StateScope.custom("é"), StateScope.custom("e\u0301"))
@example(StateScope.custom("a"), StateScope.custom("A"))
@example(StateScope.custom("workflow:a"), StateScope.workflow("a"))
@example(StateScope.custom("a" * 120), StateScope.custom("a" * 121))
@example(StateScope.step("a", "b/c"), StateScope.step("a/b", "c"))
@example(StateScope.step("w", "values"), StateScope.workflow("w"))
@example(StateScope.custom("global"), StateScope.global_())
def test_two_scopes_never_share_a_place(a, b):
    for scope in (a, b):
        assert check_id(scope.log_id)
    assert ((a.log_id, a.place) == (b.log_id, b.place)) == (a == b)
    inside = a.place[: len(b.place)] == b.place or b.place[: len(a.place)] == a.place
    assert a == b or a.log_id != b.log_id or not inside


def unescaped(token):
    """The way back: what has one cannot be shared by two names."""
    return re.sub(rb"\.([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), token.encode()).decode()


@given(names)
def test_a_token_leads_back_to_its_name(name):
    token = StateScope.custom(name).log_id.removeprefix("scope-custom-")
    if not token.startswith(".x"):
        assert unescaped(token) == name
    else:
        assert len(name.encode()) > 40, "only what is long becomes a digest"


def test_a_digest_is_no_short_name():
    long = StateScope.custom("/" * 200).log_id
    assert StateScope.custom(long.removeprefix("scope-custom-")).log_id != long


@given(st.lists(scopes, min_size=2, max_size=6, unique=True))
def test_hostile_names_hold_their_own_and_only_that(found):
    async def body():
        async with quire.open("memory:") as store:
            manager = WorkflowStateManager(store)
            for i, scope in enumerate(found):
                await manager.state(scope).set("k", i)
            assert [await manager.state(s).items() for s in found] == [{"k": i} for i in range(len(found))]
            assert set(await manager.scopes()) == set(found)
            await manager.state(found[0]).clear()
            assert [await manager.state(s).list() for s in found] == [[], *[["k"]] * (len(found) - 1)]
            await counted(store)

    asyncio.run(body())


@pytest.mark.parametrize("bad", ["", "x" * 513, "é" * 257, "\ud800", None, 7, b"x"])
def test_names_that_are_not_allowed(bad):
    for make in (StateScope.workflow, StateScope.custom, lambda n: StateScope.step("w", n)):
        with pytest.raises(InvalidKey):
            make(bad)


def test_scopes_of_no_kind():
    for kind, more in (("hook", ("a",)), ("global", ("a",)), ("workflow", ("a", "b")), ([], ())):
        with pytest.raises(InvalidKey):
            StateScope(kind, *more)


async def test_only_scopes_are_taken_for_scopes(manager):
    with pytest.raises(Invalid, match="StateScope.workflow"):
        manager.state("w")


# what is there, what is missing


async def test_the_four_verbs(state):
    assert await state.get("config") is None
    assert await state.get("config", {"retries": 1}) == {"retries": 1}
    assert await state.delete("config") is False
    version = await state.set("config", {"retries": 3})
    assert (version.author, version.message, version.number) == ("ann", "set config", 1)
    assert (await state.set("config", {"retries": 3})).number == 1, "what changes nothing makes no version"
    await state.set("mode", None)
    assert await state.list() == ["config", "mode"]
    assert await state.list("co") == ["config"]
    assert await state.items() == {"config": {"retries": 3}, "mode": None}
    assert await state.delete("config") is True
    assert await state.get("mode", "x") is None, "a stored None is a value"
    assert await state.clear() == 1
    assert await state.clear() == 0
    assert await state.items() == {}


async def test_what_goes_in_and_comes_out_is_a_copy(state):
    given_ = {"list": [1]}
    await state.set("k", given_)
    given_["list"].append(2)
    (await state.get("k"))["list"].append(3)
    (await state.items())["k"]["list"].append(4)
    assert await state.get("k") == {"list": [1]}


async def test_nothing_falls_back_unless_asked(manager, state):
    step = state.step("draft")
    await manager.global_().set("a", "global")
    await state.set("b", "workflow")
    await step.set("c", "step")
    assert [await step.get(k) for k in "abc"] == [None, None, "step"]
    assert [await step.lookup(k) for k in "abcd"] == ["global", "workflow", "step", None]
    assert [await state.lookup(k, "-") for k in "abcd"] == ["global", "workflow", "-", "-"]
    assert await manager.state(StateScope.user("u")).lookup("a") == "global"
    assert await step.global_().get("a") == "global"
    assert await step.step("other").list() == []
    with pytest.raises(Invalid, match="no steps"):
        manager.global_().step("x")


async def test_a_step_and_its_workflow_share_one_log(manager, state, store):
    await manager.update({StateScope.workflow("w"): {"a": 1}, StateScope.step("w", "s"): {"b": 2}})
    assert await store.workflows() == ["scope-workflow-w"]
    assert (await store.workflow("scope-workflow-w").version()).number == 1
    assert await state.clear(steps=True) == 2
    with pytest.raises(Invalid):
        await state.step("s").clear(steps=True)


async def test_update_is_all_or_nothing(manager, state, store):
    await state.set("old", 1)
    version = await state.update({"a": 1, "b": [2]}, delete=["old", "never"])
    assert version.number == 2
    assert await state.items() == {"a": 1, "b": [2]}
    assert await state.update({"a": 1}) is None
    for bad in ({"c": 1, "..": 2}, {"c": 1, "d": object()}):
        with pytest.raises(Invalid):
            await state.update(bad)
        with pytest.raises(Invalid):
            await manager.update({StateScope.agent("x"): {"fine": 1}, state.scope: bad})
    with pytest.raises(Invalid):
        await state.update([("a", 1)])
    with pytest.raises(Invalid):
        await state.update({}, delete="ab")
    assert await manager.update({}) == []
    assert await state.list() == ["a", "b"]
    assert await store.workflows() == ["scope-workflow-w"]


async def test_compare_and_swap_keeps_1_and_1_0_and_true_apart(state):
    assert await state.compare_and_swap("k", ABSENT, 1)
    for wrong in (ABSENT, True, 1.0, None, "1"):
        assert not await state.compare_and_swap("k", wrong, 2)
    assert await state.compare_and_swap("k", 1, {"a": [1]})
    assert await state.compare_and_swap("k", {"a": [1]}, ABSENT)
    assert await state.list() == []
    assert not await state.compare_and_swap("k", None, 3), "nothing is not None"


async def test_increment(state):
    assert await state.increment("n") == 1
    assert await state.increment("n", 2.5) == 3.5
    await state.set("s", "x")
    with pytest.raises(ChangeError, match="needs a number"):
        await state.increment("s")
    await state.set("big", 1e308)
    with pytest.raises(ChangeError):
        await state.increment("big", 1e308)
    with pytest.raises(Invalid):
        await state.increment("n", "1")
    assert await state.items() == {"n": 3.5, "s": "x", "big": 1e308}


async def test_copy_and_move(manager, state, clock, store):
    await state.set("a", [1], ttl_s=10)
    await state.set("b", 2, secret=True)
    await state.step("s").set("c", 3)
    user = manager.state(StateScope.user("u"))
    await user.set("b", "old")
    await user.set("z", 26)
    assert await manager.copy_scope(state.scope, user.scope) == 2
    assert await user.items(redact=True) == {"b": "[REDACTED]", "z": 26, "a": [1]}
    assert await manager.move_scope(state.scope, state.step("t").scope) == 2
    assert await state.list() == []
    assert await state.step("t").items(redact=True) == {"a": [1], "b": "[REDACTED]"}
    assert await state.step("s").items() == {"c": 3}
    await clock.wind(10)
    assert await state.step("t").list() == ["b"]
    assert await user.list() == ["b", "z"]
    assert await manager.move_scope(StateScope.tool("empty"), user.scope) == 0
    with pytest.raises(Invalid, match="onto itself"):
        await manager.copy_scope(user.scope, user.scope)
    await counted(store)


async def test_what_ended_is_not_carried_over_what_is_there(manager, state, clock):
    user = manager.state(StateScope.user("u"))
    await state.set("k", "ended", ttl_s=1)
    await user.set("k", "there")
    await clock.wind(1)
    assert await manager.copy_scope(state.scope, user.scope) == 0
    assert await user.items() == {"k": "there"}


async def test_a_copy_is_not_changed_by_what_follows_in_the_same_batch(manager, state, store):
    await state.set("k", [1])
    log_id, path = manager.place(state.scope, "k")
    workflow, user = store.workflow(log_id), StateScope.user("u")
    await asyncio.gather(workflow.append(path, 2), manager.copy_scope(state.scope, user), workflow.append(path, 3))
    assert await state.get("k") == [1, 2, 3]
    assert await manager.state(user).get("k") == [1, 2]
    assert await store.workflow(user.log_id).state() == await store.workflow(user.log_id).state(1)


async def test_a_move_is_one_commit_in_two_logs(manager, state, store):
    await state.set("a", 1)
    await manager.move_scope(state.scope, StateScope.user("u"), message="hand over")
    left, came = [await store.workflow(s.log_id).version() for s in (state.scope, StateScope.user("u"))]
    assert left.position + 1 == came.position
    assert left.message == came.message == "hand over"


async def test_scopes_lists_what_holds_something(manager, state, store):
    await state.step("draft").set("a", 1)
    await manager.global_().set("a", 1)
    await manager.state(StateScope.tool("gone")).set("a", 1)
    await manager.state(StateScope.tool("gone")).delete("a")
    await store.create("scope-foreign", {"scope": ["global", ""]})
    await store.create("scope-odd", {"scope": "x"})
    assert await manager.scopes() == [StateScope.global_(), StateScope.step("w", "draft")]
    assert await manager.scopes("global") == [StateScope.global_()]


# time


async def test_temporary_state_ends_by_the_backends_clock(state, clock, store):
    await state.set("t", 1, ttl_s=1.5)
    await state.set("stays", 1)
    await clock.wind(1.499)
    assert await state.get("t") == 1
    await clock.wind(0.001)
    assert await state.get("t") is None
    assert await state.list() == ["stays"]
    assert await state.delete("t") is False, "nobody could see it any more"
    assert await state.clear() == 1
    await state.set("t", 2, ttl_s=1)
    assert await state.increment("t") == 3, "adding keeps the time"
    await clock.wind(1)
    assert await state.increment("t") == 1, "what ended counts as 0"
    await state.set("t", 5, ttl_s=1)
    await state.set("t", 6)
    await clock.wind(100)
    assert await state.get("t") == 6, "setting anew without a time ends the time"
    assert await state.compare_and_swap("t", 6, 7)
    await counted(store)


class Skewed(FakeClock):
    """A clock that says another time than it is, and may be set meanwhile. Elapsed time is right, as it always is."""

    off_ms = 0

    def now_ms(self):
        return super().now_ms() + self.off_ms

    async def sleep(self, seconds):
        await asyncio.sleep(0)  # a pause before a write is tried again


class Machines:
    """Two processes on one store: the backend's clock is right, one of theirs is in 1970, the other in 2286."""

    def __init__(self, url):
        self.url = url if url != "memory:" else f"memory:m{id(self)}"
        self.right, self.early, self.late = FakeClock(), Skewed(1), Skewed(10**13)

    async def open(self):
        self.stores = [await opened(self.url, c, time=self.right) for c in (self.early, self.late)]
        return [WorkflowStateManager(s).workflow_state("w") for s in self.stores]

    async def wind(self, seconds):
        for clock in (self.right, self.early, self.late):
            await clock.wind(seconds)

    async def clocks(self):
        return [c.name for c in await self.stores[0].engine.backend.cells("clock/")]


@pytest.fixture
async def machines(url):
    made = Machines(url)
    yield made
    for store in made.stores:
        await store.close()


async def test_nobodys_wrong_clock_makes_a_value_vanish_or_live_on(machines):
    early, late = await machines.open()
    await early.set("by early", 1, ttl_s=100)
    await late.set("by late", 2, ttl_s=200)
    for left in (["by early", "by late"], ["by late"], []):
        assert await early.list() == await late.list() == left
        await machines.wind(99.999)
        assert await early.list() == await late.list() == left
        await machines.wind(0.001)
    log_id = early.scope.log_id
    held = (await machines.stores[0].workflow(log_id).state())["values"]
    assert held["by early"]["expires"] == FakeClock().now_ms() + 100_000, "kept by the backend's clock"


async def test_a_clock_that_is_set_meanwhile_changes_nothing(machines):
    early, late = await machines.open()
    await early.set("t", 1, ttl_s=10)
    assert await late.get("t") == 1
    for off_ms in (86_400_000, -86_400_000, 500):
        machines.late.off_ms = off_ms
        assert await late.get("t") == 1
        await machines.wind(3)
    await machines.wind(1)
    assert await late.get("t") is None is await early.get("t")


async def test_a_machine_that_slept_asks_again(machines):
    early, late = await machines.open()
    await early.set("t", 1, ttl_s=30)
    assert await late.get("t") == 1
    await machines.right.wind(30)  # elapsed time stood still on the other two, their clocks did not
    machines.early.off_ms = machines.late.off_ms = 30_000
    assert await late.get("t") is None is await early.get("t")


async def test_a_backends_clock_that_is_set_is_followed_within_a_minute(machines):
    early, _ = await machines.open()
    await early.set("t", 1, ttl_s=600)
    await machines.right.wind(3600)
    assert await early.get("t") == 1, "not known yet"
    await machines.wind(60)
    assert await early.get("t") is None


async def test_who_sets_no_times_never_asks_for_the_time(machines):
    early, late = await machines.open()
    await early.set("n", 1)
    assert await late.increment("n") == 2
    assert await late.items() == {"n": 2}
    assert await machines.clocks() == []
    await early.set("t", 1, ttl_s=10)
    await early.delete("t")
    commits = machines.stores[1].engine.committer.commits
    assert await asyncio.gather(*(late.get("n") for _ in range(5))) == [2] * 5
    assert machines.stores[1].engine.committer.commits == commits
    await early.set("t", 1, ttl_s=10)
    assert await asyncio.gather(*(late.get("t") for _ in range(50))) == [1] * 50
    assert machines.stores[1].engine.committer.commits == commits + 1, "once, however many ask"
    assert await machines.clocks() == ["clock/now"]


async def test_values_of_steps_end_by_the_clock_of_the_backend(machines):
    await machines.open()

    def leave(context):
        context.state_accessor.set("t", 1, ttl_s=10)

    async def check(context):
        seen = [context.state_accessor.get("t")]
        await machines.wind(10)  # while the attempt goes on: it sees what was when it began
        return [*seen, context.state_accessor.get("t")]

    result = await run(machines.stores[1], sequence(leave, check), id="w", scoped=StateBuilder())
    assert result.result == [1, 1]
    assert [await WorkflowStateManager(s).workflow_state("w").get("t") for s in machines.stores] == [None, None]


async def test_what_is_carried_ends_by_the_clock_of_the_backend(machines):
    _, late = await machines.open()
    await late.set("t", 1, ttl_s=10)
    for values, store in enumerate(machines.stores, 1):
        manager = WorkflowStateManager(store)
        assert (
            await manager.copy_scope(late.scope, StateScope.user("u")) == values
        )  # the second sees what the first put in
        await manager.update({StateScope.tool("x"): {"k": 1}, late.scope: {"t2": 2}}, ttl_s=10)
    await machines.wind(10)
    for store in machines.stores:
        manager = WorkflowStateManager(store)
        assert await manager.copy_scope(late.scope, StateScope.tool("x")) == 0
        assert (
            await manager.state(StateScope.user("u")).items() == await manager.state(StateScope.tool("x")).items() == {}
        )


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "1", True])
async def test_times_that_are_none(state, bad):
    with pytest.raises(Invalid):
        await state.set("t", 1, ttl_s=bad)
    assert await state.list() == []


# rules and limits


@pytest.mark.parametrize("bad", ["", "a..b", "a\\b", "a//b", "a\0", "a\r", "a\nb", "__x", "$$x", "e\u0301", "\ud800", None, 1, b"k", "k" * 257, "€" * 200])  # fmt: skip
async def test_keys_that_are_not_allowed(manager, state, store, bad):
    for act in (
        state.get(bad),
        state.lookup(bad),
        state.set(bad, 1),
        state.update({bad: 1}),
        state.update({}, delete=[bad]),
        state.delete(bad),
        state.increment(bad),
        state.compare_and_swap(bad, ABSENT, 1),
    ):
        with pytest.raises((InvalidKey, LimitExceeded)):
            await act
    if bad is not None:
        with pytest.raises((InvalidKey, LimitExceeded)):
            state.watch(bad)
    assert await store.workflows() == []
    with pytest.raises((InvalidKey, LimitExceeded)):
        manager.place(state.scope, bad)


@pytest.mark.parametrize("good", ["a", "a.b", "a/b", "/", ":", "a:b", "a b", "é", "values", "-", "0", "_x", "$x", "k" * 256, "€" * 170])  # fmt: skip
async def test_keys_that_are_allowed(manager, state, store, good):
    await state.set(good, 1)
    assert await state.increment(good) == 2
    assert await state.list() == [good]
    log_id, path = manager.place(state.scope, good)
    assert await store.workflow(log_id).get(path) == 2


@pytest.mark.parametrize(
    ("limit", "allowed", "act", "found"),
    [
        ("value_bytes_max", 10, lambda s: s.set("k", "x" * 9), 11),
        ("value_bytes_max", 3, lambda s: s.increment("n", 900), 4),
        ("keys_max", 3, lambda s: s.update({"a": 1, "b": 2, "c": 3}), 4),
        ("keys_max", 1, lambda s: s.step("other").set("n", 1), 2),
        ("size_bytes_max", 12, lambda s: s.set("k", "xxxxx"), 16),
        ("ttl_s_max", 5, lambda s: s.set("k", 1, ttl_s=5.1), 6),
        ("key_chars_max", None, lambda s: s.set("k" * 300, 1), 300),
        ("key_bytes_max", None, lambda s: s.set("€" * 200, 1), 600),
    ],
)
async def test_limits_are_enforced_by_name_and_nothing_is_stored(store, limit, allowed, act, found):
    setup = StateBuilder() if allowed is None else StateBuilder().limit(**{limit: allowed})
    await WorkflowStateManager(store).workflow_state("w").set("n", 100)
    state = WorkflowStateManager(store, setup).workflow_state("w")
    with pytest.raises(LimitExceeded) as caught:
        await act(state)
    assert (caught.value.limit, caught.value.found) == (limit, found)
    assert caught.value.allowed == (allowed or {"key_chars_max": 256, "key_bytes_max": 512}[limit])
    assert limit in str(caught.value)
    assert (await store.workflow("scope-workflow-w").version()).number == 1
    assert await state.items() == {"n": 100}


async def test_what_ended_makes_room(store, clock):
    state = WorkflowStateManager(store, StateBuilder().limit(keys_max=2)).workflow_state("w")
    await state.set("a", 1, ttl_s=1)
    await state.step("s").set("b", 1, ttl_s=1)
    with pytest.raises(LimitExceeded):
        await state.set("c", 1)
    await clock.wind(1)
    await state.set("c", 1)
    assert (await store.workflow("scope-workflow-w").state())["keys"] == 1
    await counted(store)


async def test_a_lowered_limit_lets_things_shrink(store, state):
    await state.update({str(i): i for i in range(5)})
    tight = WorkflowStateManager(store, StateBuilder().limit(keys_max=1)).workflow_state("w")
    assert await tight.delete("0")
    await tight.set("1", "changed")
    with pytest.raises(LimitExceeded):
        await tight.set("new", 1)
    await counted(store)


def test_limits_and_rules_that_are_none():
    for make in (
        lambda: ScopeLimits(keys_max=0),
        lambda: ScopeLimits(value_bytes_max=1.5),
        lambda: StateBuilder().limit(keys=3),
        lambda: StateBuilder().default("..", 1),
        lambda: StateBuilder().default("k", {1, 2}),
        lambda: Policy().allow("ann", StateScope.global_()),
        lambda: Policy().allow("ann", StateScope.global_(), "admin"),
        lambda: Policy().allow("ann", "global", "read"),
        lambda: Policy().deny("", None, "read"),
    ):
        with pytest.raises(Invalid):
            make()


async def test_values_that_are_not_json_name_their_place(state):
    for bad in ({1: 2}, float("nan"), object(), b"x", {"a": [1, {"b": {1, 2}}]}):
        with pytest.raises(InvalidState, match="state/values/k/value"):
            await state.set("k", bad)
    assert await state.list() == []


async def test_defaults_and_types(store):
    class Config(msgspec.Struct):
        retries: int

    setup = StateBuilder().default("retry_count", 0).default("tags", []).typed("progress", float)
    state = WorkflowStateManager(store, setup).workflow_state("w")
    assert await state.get("retry_count") == 0
    assert await state.get("retry_count", 9) == 9
    assert await state.lookup("retry_count") == 0
    (await state.get("tags")).append("x")
    assert await state.get("tags") == []
    assert await state.list() == []
    await state.set("progress", 0.5)
    for act in (state.set("progress", "half"), state.compare_and_swap("progress", 0.5, [])):
        with pytest.raises(InvalidState, match="'progress' is not float"):
            await act
    await state.set("config", {"retries": 3})
    assert await state.get("config", type=Config) == Config(3)
    with pytest.raises(InvalidState, match="'config' is not int"):
        await state.get("config", type=int)
    assert await state.get("nothing", type=int) is None
    assert await state.get("progress") == 0.5


# permissions

W, STEP, OTHER = StateScope.workflow("w"), StateScope.step("w", "s"), StateScope.workflow("other")


@pytest.mark.parametrize(
    ("policy", "agent", "scope", "expected"),
    [
        (Policy(), "ann", W, ""),
        (Policy().allow("ann", W, "read", "list"), "ann", W, "read list"),
        (Policy().allow("ann", W, "read"), "bob", W, ""),
        (Policy().allow("ann", W, "read"), "ann", OTHER, ""),
        (Policy().allow("ann", W, "read"), "ann", STEP, "read"),
        (Policy().allow("ann", STEP, "read"), "ann", W, ""),
        (Policy().allow("ann", W, *RIGHTS).deny("ann", STEP, "write"), "ann", STEP, "read delete list"),
        (Policy().deny("ann", W, "read").allow("ann", STEP, "read"), "ann", STEP, "read"),
        (Policy().allow("*", None, "read"), "ann", OTHER, "read"),
        (Policy().allow("ann", None, "read").deny("*", W, "read"), "ann", W, ""),
        (Policy().allow("ann", W, "read").deny("*", W, "read"), "ann", W, ""),
        (Policy().allow("ann", StateScope.global_(), *RIGHTS), "ann", W, ""),
    ],
)
def test_the_policy_decides(policy, agent, scope, expected):
    assert [r for r in RIGHTS if policy.allows(agent, scope, r)] == [r for r in RIGHTS if r in expected.split()]


async def test_denied_names_agent_scope_and_right_and_stores_nothing(store, state):
    await state.set("k", 1)
    await state.step("s").set("k", 1)
    head = (await store.workflow("scope-workflow-w").version()).number
    target = StateScope.user("u")

    def acting(*rights):
        policy = Policy().allow("eve", W, *rights).allow("eve", target, *rights) if rights else Policy()
        return WorkflowStateManager(store, StateBuilder().guarded(policy), agent="eve")

    acts = [
        ("read", lambda m: m.state(W).get("k")),
        ("read", lambda m: m.state(STEP).lookup("k")),
        ("list", lambda m: m.state(W).list()),
        ("list", lambda m: m.state(W).items()),
        ("read", lambda m: m.state(W).items()),
        ("write", lambda m: m.state(W).set("k", 2)),
        ("write", lambda m: m.state(W).update({"k": 2})),
        ("delete", lambda m: m.state(W).update({}, delete=["k"])),
        ("delete", lambda m: m.state(W).delete("k")),
        ("delete", lambda m: m.state(W).clear()),
        ("read", lambda m: m.state(W).compare_and_swap("k", 1, 2)),
        ("write", lambda m: m.state(W).compare_and_swap("k", 1, 2)),
        ("delete", lambda m: m.state(W).compare_and_swap("k", 1, ABSENT)),
        ("read", lambda m: m.state(W).increment("k")),
        ("write", lambda m: m.state(W).increment("k")),
        ("read", lambda m: anext(m.state(W).watch("k"))),
        ("list", lambda m: anext(m.state(W).watch())),
        ("write", lambda m: m.update({W: {"k": 2}})),
        ("write", lambda m: m.update({W: {}})),
        ("list", lambda m: m.copy_scope(W, target)),
        ("read", lambda m: m.copy_scope(W, target)),
        ("write", lambda m: m.copy_scope(W, target)),
        ("delete", lambda m: m.move_scope(W, target)),
    ]
    for right, act in acts:
        with pytest.raises(ScopeDenied) as caught:
            await act(acting(*(r for r in RIGHTS if r != right)))
        error = caught.value
        assert (error.agent, error.right, error.code) == ("eve", right, "scope_denied")
        assert error.scope in (W, STEP, target)
        assert isinstance(error, Denied | PermissionError)
        assert all(part in str(error) for part in ("'eve'", right, str(error.scope)))
    for _, act in acts:
        with pytest.raises(ScopeDenied):
            await act(acting())
    assert (await store.workflow("scope-workflow-w").version()).number == head
    assert await acting().scopes() == []
    assert await acting("list").scopes() == [W, STEP]


async def test_clearing_steps_needs_the_right_in_each(store, state):
    await state.set("k", 1)
    await state.step("s").set("k", 1)
    policy = Policy().allow("eve", W, "delete").deny("eve", STEP, "delete")
    eve = WorkflowStateManager(store, StateBuilder().guarded(policy), agent="eve").state(W)
    with pytest.raises(ScopeDenied):
        await eve.clear(steps=True)
    assert await state.list() == ["k"], "all or nothing"
    assert await eve.clear() == 1
    assert await state.step("s").list() == ["k"]


# secrets


async def test_secrets_are_not_shown(store, caplog):
    caplog.set_level(logging.DEBUG)
    setup = StateBuilder().secret("api_key").typed("api_key", str).typed("pin", int)
    state = WorkflowStateManager(store, setup).workflow_state("w")
    await state.set("api_key", "sk-hidden")
    await state.set("pin", 4711, secret=True)
    await state.set("token_count", 5)
    plain = WorkflowStateManager(store).workflow_state("w")  # another process, not told which keys are secret
    shown = {"api_key": "[REDACTED]", "pin": "[REDACTED]", "token_count": 5}
    assert await plain.items(redact=True) == await state.items(redact=True) == shown
    assert await plain.get("api_key") == "sk-hidden"
    await plain.set("pin", 4712)
    events = []
    async for event in plain.watch(after=0):
        events.append(event)
        if event.value == 4712:
            break
    assert (events[-1].old, events[-1].secret) == (4711, True)
    messages = []
    await plain.set("hint", "hidden, too", secret=True)
    for act in (
        state.set("api_key", 42),
        state.set("pin", "not-a-pin", secret=True),
        plain.get("api_key", type=int),
        plain.get("pin", type=Literal[1, 2]),
        plain.get("hint", type=Literal["a", "b"]),
    ):
        with pytest.raises(InvalidState) as caught:
            await act
        messages.append(f"{caught.value!r} {caught.value.__cause__} {caught.value.__context__}")
    seen = f"{events!r} {messages} {caplog.text} {state!r} {setup!r}"
    for hidden in ("hidden", "4711", "4712", "not-a-pin"):
        assert hidden not in seen
    assert "ABSENT -> 5" in seen, "what is not secret is shown"
    assert "set api_key, by system, version 1" in caplog.text


async def test_a_secret_ends_when_it_is_deleted_or_past_its_time(state, clock):
    await state.set("k", 1, secret=True)
    await state.set("k", 2)
    await state.increment("k")
    assert await state.items(redact=True) == {"k": "[REDACTED]"}
    await state.delete("k")
    await state.set("k", 3)
    assert await state.items(redact=True) == {"k": 3}
    await state.set("k", 4, ttl_s=1, secret=True)
    await clock.wind(1)
    await state.set("k", 5)
    assert await state.items(redact=True) == {"k": 5}


# watching and history


async def seen(found, count):
    return [(e.key, e.old, e.value, e.author) for e in [await anext(found) for _ in range(count)]]


async def test_watching_a_scope_and_a_key(manager, store, state):
    await state.set("before", 0)
    everything, one, past = state.watch(), state.watch("b"), state.watch(after=0)
    first = asyncio.ensure_future(seen(everything, 4)), asyncio.ensure_future(seen(one, 2))
    await asyncio.sleep(0)
    await state.update({"a": 1, "b": [2]})
    await state.step("s").set("b", "elsewhere")
    await manager.global_().set("b", "elsewhere")
    await state.set("b", 3, ttl_s=60)
    await state.set("b", 3)
    await WorkflowStateManager(store, agent="bob").workflow_state("w").clear()
    got = [("before", ABSENT, 0, "ann"), ("a", ABSENT, 1, "ann"), ("b", ABSENT, [2], "ann"), ("b", [2], 3, "ann")]
    everything_got, one_got = await asyncio.gather(*first)
    assert everything_got[:3] == got[1:]
    assert one_got == got[2:]
    assert await seen(past, 4) == got
    cleared = await seen(past, 3)
    assert cleared == [("before", 0, ABSENT, "bob"), ("a", 1, ABSENT, "bob"), ("b", 3, ABSENT, "bob")]
    for each in (everything, one, past):
        await each.aclose()


async def test_a_watcher_goes_on_where_its_cursor_is(state):
    await state.set("a", 1)
    await state.set("a", 2)
    for expected in (1, 2):
        events = state.watch("a", after=0, cursor="mine")
        event = await anext(events)
        assert event.value == expected
        if expected == 1:
            await anext(events)  # asking for the next acknowledges this one
        await events.aclose()


async def test_history_restore_and_fork_work_on_a_scope(manager, store, state):
    await state.step("s").set("k", "old")
    await WorkflowStateManager(store, agent="bob").state(state.step("s").scope).set("k", "new")
    log_id, path = manager.place(StateScope.step("w", "s"), "k")
    workflow = store.workflow(log_id)
    assert [line.author for line in await workflow.blame(path)] == ["bob"]
    assert await workflow.get(path, version=1) == "old"
    events = state.step("s").watch("k")
    told = asyncio.ensure_future(seen(events, 1))
    await asyncio.sleep(0)
    await workflow.restore(1)
    assert await state.step("s").get("k") == "old"
    assert await told == [("k", "new", "old", "system")]
    await events.aclose()
    await workflow.fork("elsewhere")
    await store.delete(log_id)
    assert await state.step("s").get("k") is None
    assert await manager.scopes() == []
    await state.set("again", 1)
    assert await state.items() == {"again": 1}
    await counted(store)


async def test_a_workflow_that_is_no_scope_is_left_alone(store, state):
    await store.create("scope-workflow-w", {"mine": 1})
    for act in (state.get("k"), state.set("k", 1), state.list(), state.clear()):
        with pytest.raises(AlreadyExists, match="scope-workflow-w"):
            await act
    assert await store.workflow("scope-workflow-w").state() == {"mine": 1}


@pytest.mark.parametrize(
    "path", ["/values/k", "/values", "/steps", "/steps/s", "/steps/s/k", "/keys", "/bytes", "/values/k/expires"]
)
async def test_a_log_written_by_hand_is_said_to_be_broken(store, state, path):
    await state.set("k", 1)
    await state.step("s").set("k", 1)
    await store.workflow("scope-workflow-w").set(path, "mine")
    with pytest.raises(InvalidState, match="scope-workflow-w"):
        await asyncio.gather(state.items(), state.step("s").items())


# models and concurrency

KEYS, SCOPES = ["a", "b", "c"], [W, STEP, StateScope.global_(), StateScope.user("../w")]
json = st.recursive(st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, -0.0, 1.5, "", "é"]), lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(KEYS), v, max_size=2), max_leaves=4)  # fmt: skip
key, scope, times = st.sampled_from(KEYS), st.integers(0, len(SCOPES) - 1), st.none() | st.integers(1, 3)
act = st.one_of(
    st.tuples(st.just("set"), scope, key, json, times),
    st.tuples(st.just("delete"), scope, key),
    st.tuples(st.just("update"), scope, st.dictionaries(key, json), st.lists(key), times),
    st.tuples(st.just("clear"), scope),
    st.tuples(st.just("clear all"), st.just(0)),
    st.tuples(st.just("swap"), scope, key, json, json | st.just(ABSENT)),
    st.tuples(st.just("add"), scope, key, st.integers(-2, 2) | st.just(0.5)),
    st.tuples(st.just("copy"), scope, scope),
    st.tuples(st.just("move"), scope, scope),
    st.tuples(st.just("wind"), st.integers(1, 2)),
)  # fmt: skip


class Model:
    """Dictionaries: {scope: {key: (value, end of its time)}}."""

    def __init__(self):
        self.held = [{} for _ in SCOPES]
        self.now = 0

    def __getitem__(self, scope):
        self.held[scope] = {k: e for k, e in self.held[scope].items() if e[1] is None or e[1] > self.now}
        return self.held[scope]

    def until(self, ttl):
        return None if ttl is None else self.now + ttl

    def do(self, name, *how):
        held = self[how[0]] if name != "wind" else {}
        match name, *how:
            case "set", _, key, value, ttl:
                held[key] = value, self.until(ttl)
            case "delete", _, key:
                return held.pop(key, None) is not None
            case "update", _, values, gone, ttl:
                held |= {k: (v, self.until(ttl)) for k, v in values.items()}
                for key in gone:
                    held.pop(key, None)
            case "clear", _:
                return len(held), held.clear()
            case "clear all", _:
                return len(held) + len(self[1]), held.clear(), self[1].clear()
            case "swap", _, key, expected, value:
                if key not in held or not same(held[key][0], expected):
                    return False
                held[key] = value, None
                if value is ABSENT:
                    del held[key]
                return True
            case "add", _, key, by:
                value, until = held.get(key, (0, None))
                if type(value) not in (int, float):
                    return ChangeError
                held[key] = (by if key not in held else value + by), until
                return held[key][0]
            case (("copy" | "move"), source, target):
                if source == target:
                    return Invalid
                held, count = dict(held), len(held)
                self[target].update(held)
                if name == "move":
                    self[source].clear()
                return count
            case "wind", seconds:
                self.now += seconds
        return None


async def done(manager, name, *how):
    states = [manager.state(s) for s in SCOPES]
    match name, *how:
        case "set", i, key, value, ttl:
            await states[i].set(key, value, ttl_s=ttl)
        case "delete", i, key:
            return await states[i].delete(key)
        case "update", i, values, gone, ttl:
            await states[i].update(values, delete=gone, ttl_s=ttl)
        case "clear", i:
            return await states[i].clear()
        case "clear all", i:
            return await states[i].clear(steps=True)
        case "swap", i, key, expected, value:
            return await states[i].compare_and_swap(key, expected, value)
        case "add", i, key, by:
            return await states[i].increment(key, by)
        case "copy", a, b:
            return await manager.copy_scope(SCOPES[a], SCOPES[b])
        case "move", a, b:
            return await manager.move_scope(SCOPES[a], SCOPES[b])
    return None


@given(st.lists(act, min_size=1, max_size=25))
def test_scopes_are_dictionaries(acts):
    async def body():
        clock, model = FakeClock(), Model()
        store = await opened("memory:", clock)
        async with closing(store):
            manager = WorkflowStateManager(store)
            for each in acts:
                if each[0] == "wind":
                    await clock.wind(each[1])
                expected = model.do(*each)
                if isinstance(expected, type):
                    with pytest.raises(expected):
                        await done(manager, *each)
                    continue
                result = await done(manager, *each)
                assert same(result, expected[0] if isinstance(expected, tuple) else expected), each
                for i, scope in enumerate(SCOPES):
                    found, wanted = await manager.state(scope).items(), {k: v for k, (v, _) in model[i].items()}
                    assert same(found, wanted), (each, scope)
                    assert sorted(await manager.state(scope).list()) == sorted(wanted)
            await counted(store)
            for log_id in await store.workflows():
                versions = await store.workflow(log_id).history(order="oldest")
                assert [v.number for v in versions] == list(range(1, len(versions) + 1))

    asyncio.run(body())


async def test_concurrent_writers_of_two_handles_lose_nothing(tmp_path):
    """Two open stores on one file are as two processes are: each finds out at its commit that the other was first."""
    path = str(tmp_path / "s.db")
    async with quire.open(path) as one, quire.open(path) as two:

        async def writer(store, me):
            state = WorkflowStateManager(store, agent=f"w{me}").workflow_state("w")
            for i in range(20):
                await state.update({f"{me}-{i}": i, f"{me}": i})
                await state.increment("sum", i)
                while not await state.compare_and_swap("list", (old := await state.get("list", [])) or ABSENT, [*old, me]):  # fmt: skip
                    await state.increment("lost races")

        async with asyncio.TaskGroup() as group:
            for me in range(6):
                group.create_task(writer((one, two)[me % 2], me))
    async with quire.open(path) as three:
        items = await WorkflowStateManager(three).workflow_state("w").items()
        assert items["sum"] == 6 * sum(range(20))
        assert sorted(items["list"]) == [me for me in range(6) for _ in range(20)]
        assert all(items[f"{me}-{i}"] == i for me in range(6) for i in range(20))
        await counted(three)


async def test_moves_back_and_forth_lose_nothing(tmp_path):
    path = str(tmp_path / "s.db")
    there, here = StateScope.user("there"), StateScope.user("here")
    async with quire.open(path) as one, quire.open(path) as two:
        managers = WorkflowStateManager(one), WorkflowStateManager(two)
        await managers[0].state(here).update({str(i): i for i in range(10)})

        async def mover(manager):
            for _ in range(20):
                await manager.move_scope(here, there)
                await manager.move_scope(there, here)

        await asyncio.gather(*map(mover, managers))
    async with quire.open(path) as three:
        found = [await WorkflowStateManager(three).state(s).items() for s in (here, there)]
        assert {k: v for each in found for k, v in each.items()} == {str(i): i for i in range(10)}
        assert sum(map(len, found)) == 10
        await counted(three)


def test_reader_threads_do_not_wait_for_a_writer(tmp_path):
    """A commit is held up for as long as it takes eight threads to read a hundred times each."""
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        manager = quire.sync.WorkflowStateManager(store)
        state = manager.workflow_state("w")
        state.set("k", "old")
        backend = store._store.engine.backend
        held, release, commit = threading.Event(), threading.Event(), backend.commit

        async def slow(items):
            held.set()
            await asyncio.to_thread(release.wait)
            return await commit(items)

        backend.commit = slow
        writer = threading.Thread(target=state.set, args=("k", "new"))
        writer.start()
        assert held.wait(30)
        found = []
        readers = [threading.Thread(target=lambda: found.extend(state.get("k") for _ in range(100))) for _ in range(8)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(30)
        assert writer.is_alive()
        assert found == ["old"] * 800, "and nobody saw what was not durable"
        release.set()
        writer.join(30)
        assert state.get("k") == "new"


def test_the_sync_twin_says_the_same(tmp_path):
    path = str(tmp_path / "s.db")
    with quire.sync.open(path) as store:
        manager = quire.sync.WorkflowStateManager(store, StateBuilder().default("n", 0), agent="ann")
        state = manager.workflow_state("w")
        assert state.get("n") == 0
        assert state.increment("n", 2) == 2
        assert state.set("k", [1], ttl_s=1000, secret=True).author == "ann"
        assert state.compare_and_swap("k", [1], [2])
        assert state.update({"a": 1}, delete=["n"]).message == "update 2 keys"
        assert state.items(redact=True) == {"k": "[REDACTED]", "a": 1}
        assert state.list("a") == ["a"]
        assert state.step("s").lookup("a") == 1
        assert state.delete("a") is True
        assert manager.update({StateScope.global_(): {"g": 1}})[0].number == 1
        assert state.global_().get("g") == manager.global_().get("g", type=int) == 1
        assert manager.copy_scope(state.scope, StateScope.agent("x")) == 1
        assert manager.move_scope(StateScope.agent("x"), StateScope.tool("y")) == 1
        assert manager.scopes("tool") == [StateScope.tool("y")]
        assert manager.state(StateScope.tool("y")).clear() == 1
        assert manager.place(state.scope, "k") == ("scope-workflow-w", ("values", "k", "value"))
        assert next(state.watch("n", after=0)).value == 2
        assert repr(state) == "<State of workflow 'w' for ann>"
        assert repr(manager) == "<WorkflowStateManager for ann>"
    with quire.sync.open(path) as store:
        assert quire.sync.WorkflowStateManager(store).workflow_state("w").items() == {"k": [2]}
        with pytest.raises(WorkflowNotFound):
            store.workflow("w").state()
