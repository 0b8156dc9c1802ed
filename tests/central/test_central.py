"""CentralizedStateStore, behaviour by behaviour. Names in comments are those of the features' list."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import quire
from quire import AsyncCentralizedStateStore, CentralizedStateStore
from quire.core.values import same
from quire.engine.clock import FakeClock
from quire.errors import (
    Closed,
    CorruptRecord,
    HeadMoved,
    Invalid,
    InvalidKey,
    InvalidState,
    LimitExceeded,
    VersionNotFound,
)
from quire.testing.strategies import keys, values


@pytest.fixture
def store():
    with CentralizedStateStore() as opened:
        yield opened


@pytest.fixture
def clocked():
    clock = FakeClock()
    with quire.sync.open("memory:", clock=clock) as below:
        yield CentralizedStateStore(below), clock


def wind(clock, seconds):
    clock._ms += round(seconds * 1000)  # the sync store's loop has nobody asleep


def test_the_example_of_the_document(store):  # A1 A2 A4 A6 A12
    assert store.get_version() == 0
    assert store.set("agent1.position", {"x": 10, "y": 20}) == 1
    assert store.get("agent1.position") == {"x": 10, "y": 20}
    assert store.update({"agent1.position": {"x": 15, "y": 25}, "agent1.status": "moving"}) == 2
    assert store.get_all() == {"agent1.position": {"x": 15, "y": 25}, "agent1.status": "moving"}
    assert store.get("missing") is None
    assert store.get("missing", 7) == 7
    assert store.delete("agent1.status") == 3
    assert store.get_version() == 3


@pytest.mark.parametrize("key", ["a.b", "a/b", "~", "~1", "/", "", "0", "-", "values", "ключ", "__proto__"])
def test_any_text_is_a_plain_key(store, key):  # A12
    store.update({key: {"a": 1}, "beside": [1]})
    assert store.get(key) == {"a": 1}
    assert store.get_timestamp(key) is not None
    assert store.get_all() == {key: {"a": 1}, "beside": [1]}
    store.delete(key)
    assert store.get_all() == {"beside": [1]}


def test_a_stored_null_is_there_and_a_missing_key_is_not(store):
    store.set("k", None)
    assert store.get("k", "default") is None
    assert store.get("other", "default") == "default"
    assert store.get_all() == {"k": None}


def test_get_versioned_tells_what_was(store):  # A7, fault: returned the present value
    store.set("k", "a")
    store.set("k", "b")
    store.delete("k")
    assert [store.get_versioned("k", v) for v in range(4)] == [None, "a", "b", None]
    assert [store.get_all(v) for v in range(4)] == [{}, {"k": "a"}, {"k": "b"}, {}]
    for version in (-1, 4, 10**30):
        with pytest.raises(VersionNotFound, match="run from 0 to 3") as caught:
            store.get_versioned("k", version)
        assert caught.value.version == version
    for version in ("1", 1.0, True, None):
        with pytest.raises(Invalid, match="is not a version"):
            store.get_versioned("k", version)


def test_a_past_time_reads_as_a_version_does(clocked):  # E6
    store, clock = clocked
    start = datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    for value in "abc":
        wind(clock, 10)
        store.set("k", value)
    assert store.get_versioned("k", start + timedelta(seconds=25)) == "b"
    assert store.get_all((start + timedelta(seconds=10)).replace(tzinfo=None)) == {"k": "a"}  # without a zone: UTC
    with pytest.raises(VersionNotFound):
        store.get_all(start - timedelta(days=1))


def test_every_key_has_the_time_it_was_written_at(clocked):  # A11
    store, clock = clocked
    store.set("a", 1)
    first = store.get_timestamp("a")
    assert first == datetime.fromtimestamp(clock.now_ms() / 1000, UTC)
    wind(clock, 60)
    store.set("b", 1)
    assert store.get_timestamp("a") == first
    assert store.get_timestamp("b") == first + timedelta(seconds=60)
    assert store.set("a", 1) == 3  # the same value: a version, for its time is new
    assert store.get_timestamp("a") == first + timedelta(seconds=60)
    assert store.get_timestamp("a", 1) == first
    assert store.get_timestamp("ghost") is None
    assert store.set("a", 1) == 4  # in the same millisecond even


def test_update_of_nothing_and_delete_of_nothing_make_no_version(store):  # fault: update({}) bumped the version
    store.set("k", 1)
    assert store.update({}) == 1
    assert store.delete("ghost") == 1
    assert store.get_version() == 1


def test_update_is_all_or_nothing(store):  # A4
    store.set("k", 1)
    for bad in ({"k": 2, "b": {1, 2}}, {"k": 2, "b": float("nan")}, {"k": 2, "b": {"deep": b"bytes"}}):
        with pytest.raises(InvalidState, match="/values/b"):
            store.update(bad)
    assert (store.get_all(), store.get_version()) == ({"k": 1}, 1)


def test_nothing_given_or_returned_is_the_stored_state(store):  # fault: get_all leaked nested mutation
    mine = {"deep": [1]}
    store.set("k", mine)
    mine["deep"].append(2)
    store.get("k")["deep"].append(3)
    store.get_all()["k"]["deep"].append(4)
    store.get_all(1)["k"]["deep"].append(5)
    store.get_versioned("k", 1)["deep"].append(6)
    assert store.get("k") == store.get_versioned("k", 1) == {"deep": [1]}


def test_snapshot_and_restore_bring_everything_back_as_a_new_version(clocked):  # A8 A9 E5 E7, fault: restore rewound
    store, clock = clocked
    store.update({"a": 1, "b": [1, {"c": 2}]})
    text = store.snapshot()
    taken = json.loads(text)
    assert (taken["state"], taken["version"]) == ({"a": 1, "b": [1, {"c": 2}]}, 1)
    assert {k: datetime.fromisoformat(t) for k, t in taken["timestamps"].items()} == {
        k: store.get_timestamp(k) for k in "ab"
    }
    wind(clock, 5)
    store.set("a", 2)
    store.delete("b")
    store.set("z", 0)
    assert store.restore(text) == 5
    assert store.get_version() == 5
    again = json.loads(store.snapshot())
    assert (again["state"], again["timestamps"], again["version"]) == (taken["state"], taken["timestamps"], 5)
    assert store.get_all(4) == {"a": 2, "z": 0}
    assert store.restore(text) == 6  # nothing to change, yet it happened
    assert json.loads(store.snapshot(3)) | {"checksum": ""} == {
        "state": {"a": 2},
        "version": 3,
        "timestamps": {"a": "2023-11-14T22:13:25Z"},
        "checksum": "",
    }


def test_a_snapshot_goes_to_another_store(store, tmp_path):
    store.update({"a": 1, "long": "x" * 1000, "big": 2**100})
    with CentralizedStateStore(str(tmp_path / "other.db")) as other:
        assert other.restore(store.snapshot()) == 1
        assert other.get_all() == store.get_all()


def test_snapshots_of_the_document_are_taken(store):
    """Their times are without a zone, and there is no checksum."""
    assert store.restore('{"state": {"k": 1}, "version": 9, "timestamps": {"k": "2024-05-01T12:00:00.123456"}}') == 1
    assert store.get_timestamp("k") == datetime(2024, 5, 1, 12, 0, 0, 123000, UTC)


def test_what_is_no_snapshot_changes_nothing(store):
    store.set("k", 1)
    good = store.snapshot()
    for bad in (
        "",
        "[]",
        "{}",
        '{"state": 1, "version": 1, "timestamps": {}}',
        "[" * 100_000,
        good[:-2],
        None,
        "\ud800",
    ):
        with pytest.raises(InvalidState, match="not a snapshot"):
            store.restore(bad)
    with pytest.raises(InvalidState, match="'ghost'"):
        store.restore('{"state": {}, "version": 1, "timestamps": {"ghost": "2024-05-01T12:00:00Z"}}')
    with pytest.raises(CorruptRecord, match="Snapshot integrity check failed"):
        store.restore(good.replace('"k":1', '"k":2'))
    assert (store.get_all(), store.get_version()) == ({"k": 1}, 1)


def test_rollback_appends(store):  # E8
    for value in range(5):
        store.set("k", value)
    written = store.get_timestamp("k", 2)
    assert store.rollback(2, author="ann", message="it was better") == 6
    assert (store.get("k"), store.get_timestamp("k"), store.get_versioned("k", 5)) == (1, written, 4)
    assert store.rollback(0) == 7
    assert store.get_all() == {}
    with pytest.raises(VersionNotFound, match="0 to 7"):
        store.rollback(8)


def test_a_write_can_ask_for_a_version(store):
    store.set("k", 1, if_version=0)
    with pytest.raises(HeadMoved, match="at version 1, not 0"):
        store.set("k", 2, if_version=0)
    assert store.update({"k": 3}, if_version=1, author="ann", message="why") == 2
    told = store.workflow.version()
    assert (told.author, told.message) == ("ann", "why")


def test_bad_keys_and_options_are_refused(store):
    for call in (
        store.get,
        store.delete,
        store.get_timestamp,
        lambda k: store.set(k, 1),
        lambda k: store.update({k: 1}),
    ):
        for key in (1, None, ("a",), b"a"):
            with pytest.raises((InvalidKey, TypeError)):
                call(key)
    with pytest.raises(LimitExceeded):
        store.set("k" * 1000, 1)
    with pytest.raises(InvalidState):
        store.set("\ud800", 1)
    with pytest.raises(InvalidState):
        store.update([("k", 1)])
    with pytest.raises(Invalid):
        store.set("k", 1, author="")
    for option in ("autor", "kind", "allow_empty", "on_conflict", "idempotency_key"):  # never taken and then forgotten
        with pytest.raises(Invalid, match=f"no option '{option}'"):
            store.set("k", 1, **{option: "x"})
    assert store.get_version() == 0


def test_another_kind_of_workflow_is_not_taken_for_a_store():
    with quire.sync.open("memory:") as below:
        below.create("notes", {"values": [1]})
        with pytest.raises(Invalid, match="another kind of state"):
            CentralizedStateStore(below, workflow_id="notes")
        a, b = CentralizedStateStore(below, workflow_id="a"), CentralizedStateStore(below, workflow_id="b")
        a.set("k", 1)
        assert (b.get("k"), b.get_version()) == (None, 0)
        a.close()  # it was lent the store: that stays open
        with pytest.raises(Closed):
            a.get("k")
        assert b.set("k", 2) == 1


def test_everything_is_there_after_a_restart(tmp_path):
    path = str(tmp_path / "s.db")
    with CentralizedStateStore(path) as store:
        for i in range(300):
            store.set(f"k{i % 7}", i)
        told = (store.get_all(), store.get_version(), [store.get_timestamp(f"k{i}") for i in range(7)])
    store.close()
    with pytest.raises(Closed):
        store.get("k1")
    with CentralizedStateStore(path) as store:
        assert (store.get_all(), store.get_version(), [store.get_timestamp(f"k{i}") for i in range(7)]) == told
        assert store.get_versioned("k3", 11) == 10
    with quire.sync.open(path) as below:
        assert below.verify().ok


async def test_the_async_twin_says_the_same():
    async with AsyncCentralizedStateStore("memory:") as store:
        assert await store.set("k", 1) == 1
        assert await store.restore(await store.snapshot()) == 2
        assert await store.get_versioned("k", 1) == 1
    with pytest.raises(Closed):
        await store.get("k")


# many threads, many processes


WRITER = """
import sys, threading
from quire import CentralizedStateStore
path, who, threads, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with CentralizedStateStore(path) as store:
    def write(t):
        for i in range(count):
            store.update({f"{who}.{t}": i, f"twin.{who}.{t}": i}, author=f"{who}.{t}")
    running = [threading.Thread(target=write, args=(t,)) for t in range(threads)]
    [t.start() for t in running]
    [t.join() for t in running]
"""


def test_threads_and_processes_lose_nothing(tmp_path):  # A10 E13
    path, threads, count = str(tmp_path / "s.db"), 8, 25
    quire.sync.open(path).close()  # the file is there; who makes the workflow in it is a race
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, f"p{p}", str(threads), str(count)]) for p in range(2)
    ]
    assert [p.wait(timeout=100) for p in processes] == [0, 0]
    with CentralizedStateStore(path) as store:
        everybody = [f"p{p}.{t}" for p in range(2) for t in range(threads)]
        assert store.get_all() == {k: count - 1 for who in everybody for k in (who, f"twin.{who}")}
        assert store.get_version() == 2 * threads * count
        for version in range(1, store.get_version(), 37):  # no reader ever sees half an update
            then = store.get_all(version)
            assert all(then.get(who) == then.get(f"twin.{who}") for who in everybody)
        seen = [v.author for v in store.workflow.history(order="oldest")[1:]]
        assert {who: seen.count(who) for who in everybody} == dict.fromkeys(everybody, count)


def test_readers_beside_writers_see_whole_updates(store):  # A10
    stop, torn, errors = threading.Event(), [], []
    store.update({"a": 0, "b": 0})

    def write():
        try:
            for i in range(200):
                store.update({"a": i, "b": i})
        except Exception as error:
            errors.append(error)
        finally:
            stop.set()

    def read():
        try:
            while not stop.is_set():
                both = store.get_all()
                if both["a"] != both["b"]:
                    torn.append(both)
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=t) for t in (write, read, read, read)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not torn
    assert not errors
    assert store.get_version() == 201


# beside a model: a list of dicts


class CentralBesideModel(RuleBasedStateMachine):
    """The store beside a list of the maps it should have been at every version."""

    @initialize()
    def open(self):
        self.store = CentralizedStateStore()
        self.past = [{}]
        self.kept = []

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()

    def expect(self, version, state):
        self.past.append(state)
        assert version == len(self.past) - 1

    @rule(key=keys, value=values)
    def set(self, key, value):
        self.expect(self.store.set(key, value), {**self.past[-1], key: value})

    @rule(updates=st.dictionaries(keys, values, max_size=4))
    def update(self, updates):
        version = self.store.update(updates)
        if updates:
            self.expect(version, {**self.past[-1], **updates})
        assert version == len(self.past) - 1

    @rule(key=keys)
    def delete(self, key):
        version = self.store.delete(key)
        if key in self.past[-1]:
            self.expect(version, {k: v for k, v in self.past[-1].items() if k != key})
        assert version == len(self.past) - 1

    @rule()
    def snapshot(self):
        self.kept.append((self.store.snapshot(), self.past[-1]))

    @rule(data=st.data())
    def restore(self, data):
        if self.kept:
            text, state = data.draw(st.sampled_from(self.kept))
            self.expect(self.store.restore(text), state)

    @rule(data=st.data())
    def rollback(self, data):
        version = data.draw(st.integers(0, len(self.past) - 1))
        self.expect(self.store.rollback(version), self.past[version])

    @rule(data=st.data())
    def look_back(self, data):
        version = data.draw(st.integers(0, len(self.past) - 1))
        assert same(self.store.get_all(version), self.past[version])
        for key in self.past[version].keys() | {"a", "ghost"}:
            assert same(self.store.get_versioned(key, version), self.past[version].get(key))

    @invariant()
    def the_present_is_right(self):
        if hasattr(self, "store"):
            assert same(self.store.get_all(), self.past[-1])
            assert self.store.get_version() == len(self.past) - 1
            assert all((self.store.get_timestamp(k) is None) == (k not in self.past[-1]) for k in ("a", "b", "x/y"))


TestCentralBesideModel = CentralBesideModel.TestCase
TestCentralBesideModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
