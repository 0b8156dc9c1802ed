"""EventStore and StateView, behaviour by behaviour. Names in comments are those of the features' list."""

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

import quire
from quire import AsyncEventStore, AsyncStateView, EventSchema, EventStore, StateView
from quire.config import Settings
from quire.engine.clock import FakeClock
from quire.errors import (
    AlreadyExists,
    Closed,
    HeadMoved,
    IncompatibleFormat,
    Invalid,
    InvalidEvent,
    InvalidKey,
    InvalidState,
    KeyReused,
    LimitExceeded,
    NotFound,
    ReducerFailed,
    VersionNotFound,
)

WAIT_S = 30
"""How long a test waits for what must happen."""


@pytest.fixture
def store():
    with EventStore() as opened:
        yield opened


def counting(state, event):
    return {"n": state.get("n", 0) + 1, "last": event.version}


def test_the_example_of_the_document(store):  # B1 B3 B5 B6
    seen = []
    store.subscribe("update_position", seen.append)
    first = store.append("update_position", {"x": 10, "y": 20})
    store.append("change_status", {"status": "moving"})
    store.append("update_position", {"x": 15, "y": 25})
    assert StateView(store).get_state() == {"position": {"x": 15, "y": 25}, "status": "moving"}
    assert (first.version, first.event_type, first.data) == (0, "update_position", {"x": 10, "y": 20})
    assert first.timestamp.tzinfo is UTC
    assert len({e.event_id for e in store.get_all_events()}) == 3
    assert store.drain(WAIT_S)
    assert [e.data["x"] for e in seen] == [10, 15]
    assert seen[0] == first == store.get_all_events()[0]


def test_an_empty_store_is_empty(store):  # fault: StateView on an empty store raised AttributeError
    view = StateView(store)
    assert view.get_state() == store.replay() == store.replay("any") == {}
    assert view.cached_version == store.get_version() == -1
    assert store.get_all_events() == store.get_events_since(-1) == []
    assert store.replay(upto=-1) == {}
    assert store.append_many([]) == []
    assert store.drain()


def test_since_is_exclusive_and_counts_from_zero(store):  # B4, fault
    for i in range(10):
        store.append("e", {"i": i})
    assert [[e.version for e in store.get_events_since(v)] for v in (-1, 0, 7, 9)] == [
        list(range(10)),
        list(range(1, 10)),
        [8, 9],
        [],
    ]
    assert [e.version for e in store.get_events_since(2, limit=3)] == [3, 4, 5]
    assert store.get_events_since(2, limit=0) == []
    for version in (-2, 10, 10**30):
        with pytest.raises(VersionNotFound, match="run from -1 to 9"):
            store.get_events_since(version)
    for bad in ("1", True, 1.0):
        with pytest.raises(Invalid):
            store.get_events_since(bad)
    with pytest.raises(Invalid):
        store.get_events_since(1, limit=-1)


def test_equal_events_are_two_events(store):
    for _ in range(3):
        store.append("e", {"same": [1]})
    assert [(e.version, e.data) for e in store.get_all_events()] == [(i, {"same": [1]}) for i in range(3)]


@pytest.mark.parametrize("name", ["fork", "delete", "create", "restore", "event:x", "a/b", "x y", "тип", "x" * 200])
def test_types_are_plain_names(name, tmp_path):
    path = str(tmp_path / "s.db")
    with EventStore(path, reducers=counting) as store:
        store.append(name, {"n": 1})
        store.append("other", {})
        assert store.get_all_events(event_type=name)[0].event_type == name
    with EventStore(path, reducers=counting) as store:
        assert store.append(name, {}).version == 2
        assert [e.version for e in store.get_events_since(-1, event_type=name)] == [0, 2]
        assert [e.version for e in store.get_events_since(-1, event_type=name, limit=1)] == [0]
        assert store.replay(name) == {"n": 2, "last": 2}


def test_bad_events_are_refused_and_nothing_is_stored(store):
    for name in ("", "x" * 201, "a\nb", None, 1):
        with pytest.raises(Invalid):
            store.append(name, {})
    for data, field in [([], ""), (None, ""), ({"a": {"b": {1}}}, "a.b"), ({"x": float("inf")}, "x")]:
        with pytest.raises(InvalidEvent, match="event 'e'") as caught:
            store.append("e", data)
        assert (caught.value.event_type, caught.value.field) == ("e", field)
    with pytest.raises(LimitExceeded):
        store.append("e", {"big": "x" * (17 << 20)})
    with pytest.raises(InvalidState):
        store.append_many([("e", {"fine": 1}), ("e", {"bad": b""})])
    with pytest.raises(LimitExceeded):
        store.append_many(("e", {}) for _ in range(10_001))
    for option in ("autor", "kind", "allow_empty", "on_conflict"):
        with pytest.raises(Invalid, match=f"no option '{option}'"):
            store.append("e", {}, **{option: "x"})
    with pytest.raises(Invalid, match="no option 'idempotency_key'"):  # never taken and then forgotten
        store.append_many([("e", {})], idempotency_key="k")
    for storage in (None, 1, AsyncEventStore()):
        with pytest.raises(Invalid, match="storage is"):
            EventStore(storage)
        with pytest.raises(Invalid, match="storage is"):
            AsyncEventStore(storage)
    with pytest.raises(InvalidKey):
        EventStore(name="../x")
    assert store.get_version() == -1


def test_several_events_are_all_or_none_and_consecutive(store):
    made = store.append_many((("e", {"i": i}) for i in range(5)), author="ann", if_version=-1)
    assert [(e.version, e.data["i"], e.author) for e in made] == [(i, i, "ann") for i in range(5)]
    with pytest.raises(HeadMoved, match="at version 4, not 3"):
        store.append_many([("e", {}), ("e", {})], if_version=3)
    assert store.get_version() == 4


def test_an_event_can_ask_for_a_version_and_be_sent_twice(store):
    assert store.append("e", {}, if_version=-1).version == 0
    with pytest.raises(HeadMoved):
        store.append("e", {}, if_version=-1)
    once = store.append("e", {"n": 1}, idempotency_key="k", author="ann", message="why")
    assert store.append("e", {"n": 1}, idempotency_key="k") == once
    with pytest.raises(KeyReused):
        store.append("e", {"n": 2}, idempotency_key="k")
    assert (store.get_version(), once.author, once.message) == (1, "ann", "why")


def test_nothing_given_or_returned_is_the_stored_event(store):  # B2
    mine, seen = {"deep": [1]}, []
    store.subscribe(None, lambda e: seen.append(e.data["deep"].append("subscriber")))
    store.append("e", mine).data["deep"].append(2)
    mine["deep"].append(3)
    store.get_all_events()[0].data["deep"].append(4)

    def greedy(state, event):
        event.data["deep"].append(5)
        return {"d": event.data["deep"]}

    view = StateView(store, reducers=greedy)
    view.get_state()["d"].append(6)
    assert view.get_state() == {"d": [1, 5]}
    assert store.drain(WAIT_S)
    assert store.get_all_events()[0].data == {"deep": [1]}
    assert not hasattr(store, "delete")


def test_a_state_and_its_event_are_written_together(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as below:
        wf, store = below.create("w", {"n": 0}), EventStore(below)
        below.transact([wf.change([quire.Set(("n",), 1)]), store.event("counted", {"n": 1})])
        with pytest.raises(HeadMoved):
            below.transact([wf.change([quire.Set(("n",), 2)], if_version=1), store.event("counted", {"n": 2})])
        assert (wf.get("/n"), [e.data for e in store.get_all_events()]) == (1, [{"n": 1}])


def test_logs_of_one_store_are_apart_and_survive_a_restart(tmp_path):
    path = str(tmp_path / "s.db")
    with quire.sync.open(path) as below:
        a, b = EventStore(below, name="a"), EventStore(below, name="b")
        for i in range(5):
            a.append("e", {"i": i})
        assert b.append("e", {}).version == 0
        told = a.get_all_events()
        a.close()
        with pytest.raises(Closed):
            a.append("e", {})
        b.append("e", {})
        assert below.workflows() == []
    b.close()  # after its store: nothing to do
    with EventStore(path, name="a") as a:
        assert a.get_all_events() == told
        assert a.append("e", {}).version == 5
    with quire.sync.open(path) as below:
        assert below.verify().ok


async def test_a_long_log_leaves_one_event_in_memory():
    async with AsyncEventStore() as store:
        await store.append_many(("e", {"i": i, "text": "x" * 100}) for i in range(5000))
        actor = await store._store.engine.current("events/events")
        assert actor.state == {"event": {"id": actor.state["event"]["id"], "data": {"i": 4999, "text": "x" * 100}}}


# reducers and views


def test_reducers_by_table_by_function_and_by_subclass(store):  # B7
    class Mine(EventStore):
        def _apply_event(self, state, event):
            return counting(super()._apply_event(state, event), event)

    class MineToo(AsyncEventStore):
        def _apply_event(self, state, event):
            return counting(state, event)

    async def other():
        async with MineToo() as mine:
            await mine.append("e", {})
            return await mine.replay()

    with Mine() as mine, EventStore(reducers={"e": counting}) as table, EventStore(reducers=counting) as one:
        for each in (mine, table, one):
            each.append("e", {})
            each.append("unknown", {})
        assert mine.replay() == {"n": 2, "last": 1}
        assert table.replay() == {"n": 1, "last": 0}
        assert one.replay() == {"n": 2, "last": 1}
    assert asyncio.run(other()) == {"n": 1, "last": 0}
    for bad in (1, {"e": 1}, {"e": None}):
        with pytest.raises(Invalid):
            EventStore(reducers=bad)


def test_a_view_folds_only_what_is_new(store):  # B8
    folded = []

    def reduce(state, event):
        folded.append(event.version)
        return counting(state, event)

    view = StateView(store, reducers=reduce)
    for i in range(3):
        store.append("e", {"i": i})
    assert view.get_state() == view.get_state() == {"n": 3, "last": 2}
    assert (folded, view.cached_version) == ([0, 1, 2], 2)
    store.append("e", {})
    view.get_state()["n"] = 100
    assert view.get_state()["n"] == 4
    assert folded == [0, 1, 2, 3]


def test_one_view_serves_many_threads(store):
    view, errors = StateView(store, reducers=counting), []

    def read():
        try:
            last = 0
            for _ in range(50):
                n = view.get_state().get("n", 0)
                assert n >= last
                last = n
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=read) for _ in range(4)]
    for thread in running:
        thread.start()
    for _ in range(100):
        store.append("e", {})
    for thread in running:
        thread.join()
    assert not errors
    assert view.get_state() == {"n": 100, "last": 99}


async def test_a_view_follows_its_store_when_that_is_opened_again():
    store = AsyncEventStore(reducers=counting)
    view = AsyncStateView(store)
    for count in (5, 2, 9):  # what "memory:" forgot is not in the view either
        async with store:
            await store.append_many(("e", {}) for _ in range(count))
            assert await view.get_state() == {"n": count, "last": count - 1}
            assert view.cached_version == count - 1
    for bad in (None, store):
        with pytest.raises(Invalid, match="a view is made of"):
            StateView(bad)
    with pytest.raises(Invalid, match="a view is made of"):
        AsyncStateView("memory:")


def test_a_failing_reducer_is_named_and_harms_nothing(store):
    broken = [True]

    def moody(state, event):
        state.setdefault("seen", []).append(event.version)  # altered before it fails
        if event.data.get("bad") and broken[0]:
            raise KeyError("gone")
        return state

    view = StateView(store, reducers={"e": moody})
    store.append("e", {})
    assert view.get_state() == {"seen": [0]}
    store.append("e", {})
    store.append("e", {"bad": True})
    for _ in range(2):
        with pytest.raises(ReducerFailed, match="'e' failed on version 2: KeyError: 'gone'") as caught:
            view.get_state()
        assert (caught.value.event_type, caught.value.version) == ("e", 2)
        assert isinstance(caught.value.__cause__, KeyError)
    broken[0] = False
    assert view.get_state() == {"seen": [0, 1, 2]}
    assert store.append("e", {}).version == 3
    for wrong in (None, [], 1):
        with pytest.raises(ReducerFailed, match="not the state"):
            StateView(store, reducers=lambda s, e, r=wrong: r).get_state()
    with pytest.raises(InvalidState, match="/x"):
        StateView(store, reducers=lambda s, e: {"x": {1, 2}}).get_state()


def test_a_reducer_may_read_the_store(store):
    """It runs in a thread of its own, so this is no deadlock."""
    store.append("e", {"i": 1})
    assert StateView(store, reducers=lambda s, e: {"head": store.get_version()}).get_state() == {"head": 0}


def test_the_state_at_any_time():  # B9 B10
    clock = FakeClock()
    start = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    with quire.sync.open("memory:", clock=clock) as below:
        store = EventStore(below, reducers=counting)
        for _ in range(3):
            clock._ms += 10_000
            store.append("e", {})
        assert [store.replay(upto=v).get("n", 0) for v in (-1, 0, 1, 2)] == [0, 1, 2, 3]
        at = [start + timedelta(seconds=s) for s in (0, 10, 29, 30, 99)]
        assert [store.replay(upto=t).get("n", 0) for t in at] == [0, 1, 2, 3, 3]
        assert [len(store.get_events_since(t)) for t in at] == [3, 2, 1, 0, 0]
        assert [len(store.get_all_events(upto=t.replace(tzinfo=None))) for t in at] == [0, 1, 2, 3, 3]
        with pytest.raises(VersionNotFound):
            store.replay(upto=3)


# schemas


class Moved(msgspec.Struct, forbid_unknown_fields=True):
    x: int
    y: int
    where: dict[str, str] = {}


def test_data_is_checked_by_a_struct(tmp_path):  # B13
    with EventStore(schemas={"moved": EventSchema(Moved)}) as store:
        assert store.append("moved", {"x": 1, "y": 2}).data == {"x": 1, "y": 2}
        assert store.append("moved", Moved(1, 2, {"a": "b"})).data == {"x": 1, "y": 2, "where": {"a": "b"}}
        for data, field in [
            ({"x": 1}, "y"),
            ({"x": 1, "y": "2"}, "y"),
            ({"x": 1, "y": 2, "where": {"a": 1}}, "where[...]"),
            ({"x": 1, "y": 2, "z": 3}, "z"),
        ]:
            with pytest.raises(InvalidEvent, match="event 'moved'") as caught:
                store.append("moved", data)
            assert (caught.value.event_type, caught.value.field, caught.value.version) == ("moved", field, None)
        assert store.append("free", {"any": 1}).version == 2


def test_data_is_checked_by_a_function():
    class Wrong(Exception):
        field = "amount"

    def check(data):
        if data["amount"] < 0:
            raise Wrong("less than nothing")
        data["amount"] = 0  # a check alters nothing

    with EventStore(schemas={"paid": EventSchema(check)}) as store:
        assert store.append("paid", {"amount": 5}).data == {"amount": 5}
        with pytest.raises(InvalidEvent, match="'paid', field amount: Wrong: less than nothing"):
            store.append("paid", {"amount": -5})
        with pytest.raises(InvalidEvent) as caught:
            store.append("paid", {})
        assert caught.value.field == "amount"
        assert store.get_version() == 0


def test_events_of_former_schemas_are_read_as_today(tmp_path):
    class V3(msgspec.Struct):
        first: str
        last: str
        age: int

    def split(data):
        data["first"], data["last"] = data.pop("name").split(" ")
        return data

    path = str(tmp_path / "s.db")
    schemas = [
        {"born": EventSchema(lambda d: d["name"])},
        {"born": EventSchema(version=2, upcast={1: split})},
        {"born": EventSchema(V3, version=3, upcast={1: split, 2: lambda d: {**d, "age": 0}})},
    ]
    given = [{"name": "Ada L"}, {"first": "Bo", "last": "M"}, {"first": "Cy", "last": "N", "age": 3}]
    for schema, data in zip(schemas, given, strict=True):
        with EventStore(path, schemas=schema) as store:
            store.append("born", data)
    with EventStore(path) as plain:
        stored = plain.get_all_events()
        assert [(e.data, e.schema) for e in stored] == [(d, i + 1) for i, d in enumerate(given)]
    with EventStore(path, schemas=schemas[2], reducers=lambda s, e: {**s, e.data["first"]: e.data["age"]}) as store:
        seen = []
        store.subscribe("born", lambda e: seen.append(e.data), after=-1)
        read = [
            {"first": "Ada", "last": "L", "age": 0},
            {"first": "Bo", "last": "M", "age": 0},
            {"first": "Cy", "last": "N", "age": 3},
        ]
        assert [e.data for e in store.get_all_events()] == read
        assert store.replay() == {"Ada": 0, "Bo": 0, "Cy": 3}
        assert store.drain(WAIT_S)
        assert seen == read
    with EventStore(path) as plain:  # reading rewrote nothing
        assert plain.get_all_events() == stored
    with EventStore(path, schemas=schemas[0]) as old:
        with pytest.raises(IncompatibleFormat, match="'born' of version 1 was made by schema 2, this process knows 1"):
            old.get_all_events()
        assert old.get_events_since(-1, limit=1)[0].data == {"name": "Ada L"}


def test_a_failing_upcaster_is_named(tmp_path):
    path = str(tmp_path / "s.db")
    with EventStore(path) as store:
        store.append("e", {"a": 1})
    for upcast, said, field in [
        (lambda d: d["b"], "the upcaster from schema 1 failed: KeyError", "b"),
        (lambda d: None, "returned NoneType", ""),
        (lambda d: {"x": 1}, "missing required field", "y"),
    ]:
        with EventStore(path, schemas={"e": EventSchema(Moved, version=2, upcast={1: upcast})}) as store:
            with pytest.raises(InvalidEvent, match=f"event 'e' of version 0.*{said}") as caught:
                store.get_all_events()
            assert (caught.value.field, caught.value.version) == (field, 0)
    for bad in (
        {"e": EventSchema(version=2)},
        {"e": EventSchema(version=0)},
        {"e": Moved},
        {"e": EventSchema(upcast={1: dict})},
    ):
        with pytest.raises(Invalid, match="schema of event 'e'"):
            EventStore(path, schemas=bad)


# subscribers


def test_a_raising_subscriber_reaches_neither_writer_nor_others():  # fault
    got, fine = [], []

    def moody(event):
        got.append(event.version)
        if got.count(event.version) < 3:
            raise RuntimeError("not today")

    with quire.sync.open("memory:", settings=Settings(delivery_backoff_s=(0.001, 0.01))) as below:
        store = EventStore(below)
        first = store.subscribe("e", moody)
        store.subscribe("e", fine.append)
        for i in range(3):
            assert store.append("e", {"i": i}).version == i
        assert store.drain(WAIT_S)
        assert got == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert [e.version for e in fine] == [0, 1, 2]
        assert (first.delivered, first.failures, first.last_error) == (3, 6, None)


async def test_a_failing_subscriber_is_tried_again_after_growing_pauses():
    clock, tries = FakeClock(), []

    def never(event):
        tries.append(clock.now_ms())
        raise ValueError("broken")

    async with quire.open("memory:", clock=clock, settings=Settings(delivery_backoff_s=(1.0, 4.0))) as below:
        store = AsyncEventStore(below)
        await store.start()
        subscription = await store.subscribe(None, never)
        await store.append("e", {})
        for pause in (1, 2, 4, 4):
            while not clock.sleepers:
                await asyncio.sleep(0)
            await clock.wind(pause)
        while len(tries) < 5:
            await asyncio.sleep(0)
        assert [b - a for a, b in zip(tries, tries[1:], strict=False)] == [1000, 2000, 4000, 4000]
        assert (subscription.failures, subscription.delivered) == (5, 0)
        assert isinstance(subscription.last_error, ValueError)
        assert not await store.drain(0)
        await store.close()
        assert not subscription.active


def test_a_slow_subscriber_holds_up_only_itself(store):
    gate, entered, fine = threading.Event(), threading.Event(), []

    def slow(event):
        entered.set()
        assert gate.wait(WAIT_S)

    stuck = store.subscribe("e", slow)
    store.append("e", {})
    assert entered.wait(WAIT_S)
    quick = store.subscribe("e", fine.append, after=-1)
    for _ in range(10):
        store.append("e", {})
    assert not store.drain(0.01)  # the slow one is still at its first
    gate.set()
    assert store.drain(WAIT_S)
    assert (stuck.delivered, quick.delivered, len(fine)) == (11, 11, 11)


def test_a_callback_may_append_and_subscribe(store):
    store.subscribe("ask", lambda e: store.append("answer", {"to": e.version}))
    answered = threading.Event()
    store.subscribe("answer", lambda e: answered.set() if e.data["to"] == 0 else None)
    store.append("ask", {})
    assert answered.wait(WAIT_S)
    assert [e.event_type for e in store.get_all_events()] == ["ask", "answer"]


def test_a_subscriber_gets_its_types_from_now_on_or_from_a_version(store):
    store.append("a", {})
    store.append("b", {})
    seen = {"new": [], "old": [], "all": []}
    store.subscribe("a", lambda e: seen["new"].append(e.version))
    store.subscribe("a", lambda e: seen["old"].append(e.version), after=-1)
    store.subscribe(None, lambda e: seen["all"].append(e.version), after=0)
    store.append("a", {})
    assert store.drain(WAIT_S)
    assert seen == {"new": [2], "old": [0, 2], "all": [1, 2]}
    with pytest.raises(VersionNotFound):
        store.subscribe("a", print, after=7)


def test_a_cursor_goes_on_after_a_restart(tmp_path):
    path, seen = str(tmp_path / "s.db"), []
    with EventStore(path) as store:
        store.append("e", {})
        store.subscribe("e", lambda e: seen.append(e.version), cursor="ann", after=-1)
        with pytest.raises(AlreadyExists, match="cancel it first"):
            store.drop_cursor("ann")
        store.append("e", {})
        assert store.drain(WAIT_S)
        with pytest.raises(AlreadyExists):
            store.subscribe("e", print, cursor="ann")
    with EventStore(path) as store:
        store.append("e", {})  # while nobody listens
    with EventStore(path) as store:
        subscription = store.subscribe("e", lambda e: seen.append(e.version), cursor="ann")
        store.append("e", {})
        assert store.drain(WAIT_S)
        subscription.cancel()
        assert not subscription.active
        store.append("e", {})
        store.subscribe("e", lambda e: seen.append(e.version), cursor="ann")
        assert store.drain(WAIT_S)
    assert seen == [0, 1, 2, 3, 4]
    with EventStore(path) as store:
        store.drop_cursor("ann")
        with pytest.raises(NotFound, match="has no cursor 'ann'"):
            store.drop_cursor("ann")
        store.subscribe("e", lambda e: seen.append(e.version), cursor="ann", after=3)
        assert store.drain(WAIT_S)
    assert seen == [0, 1, 2, 3, 4, 4]


def test_what_was_taken_but_not_finished_comes_again(tmp_path):
    path, seen = str(tmp_path / "s.db"), []

    def fails(event):
        seen.append(event.version)
        raise RuntimeError("died in the middle")

    with EventStore(path) as store:
        failed = threading.Event()
        store.subscribe("e", lambda e: (failed.set(), fails(e)), cursor="ann")
        store.append("e", {})
        assert failed.wait(WAIT_S)
    with EventStore(path) as store:
        store.subscribe("e", lambda e: seen.append(e.version), cursor="ann")
        assert store.drain(WAIT_S)
    assert set(seen) == {0}
    assert len(seen) >= 2


def test_events_of_another_process_are_delivered(tmp_path):
    path, got = str(tmp_path / "s.db"), threading.Event()
    with EventStore(path) as here, EventStore(path) as there:
        view = StateView(here, reducers=counting)
        assert view.get_state() == {}
        here.subscribe("e", lambda e: got.set())
        there.append("e", {})
        assert view.get_state() == {"n": 1, "last": 0}
        assert here.get_version() == 0
        assert got.wait(WAIT_S)


async def test_of_two_that_take_a_cursor_at_once_one_is_refused():
    async with AsyncEventStore() as store:
        asked = (store.subscribe("e", print, cursor="ann") for _ in range(5))
        made = await asyncio.gather(*asked, return_exceptions=True)
        assert sorted(type(m).__name__ for m in made) == ["AlreadyExists"] * 4 + ["Subscription"]


async def test_drain_does_not_count_those_who_were_cancelled():
    entered = asyncio.Event()

    async def never(event):
        entered.set()
        await asyncio.Event().wait()

    async with AsyncEventStore() as store:
        subscription = await store.subscribe(None, never)
        await store.append("e", {})
        await entered.wait()
        drained = asyncio.create_task(store.drain())
        while not subscription._waiting:
            await asyncio.sleep(0)
        await subscription.cancel()
        assert await drained is False


async def test_subscriptions_are_bounded(monkeypatch):
    monkeypatch.setattr("quire.events.store._SUBSCRIPTIONS_MAX", 2)
    async with AsyncEventStore() as store:
        first = await store.subscribe(None, print)
        await store.subscribe(None, print)
        with pytest.raises(LimitExceeded, match="2 subscriptions are active"):
            await store.subscribe(None, print)
        await first.cancel()
        await store.subscribe(None, print)


def test_what_cannot_be_called_cannot_subscribe(store):
    async def later(event):
        return None

    for bad in (None, 1, later):
        with pytest.raises(Invalid):
            store.subscribe("e", bad)
    with pytest.raises(Invalid):
        store.subscribe("", print)


async def test_the_async_twin_awaits_its_callbacks():
    got = asyncio.Event()

    async def callback(event):
        got.set()

    async with AsyncEventStore() as store:
        view = AsyncStateView(store)
        await store.subscribe("change_status", callback)
        await store.append("change_status", {"status": "moving"})
        await asyncio.wait_for(got.wait(), WAIT_S)
        assert await view.get_state() == {"status": "moving"}
    with pytest.raises(Closed):
        await store.get_version()
    with pytest.raises(Closed):
        await AsyncStateView(store).get_state()
