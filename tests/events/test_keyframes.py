"""Snapshots of what events make: they may be anywhere, missing, damaged or of another log, and never change an answer."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire import AsyncEventStore, AsyncStateView
from quire.config import Settings
from quire.core.values import same
from quire.errors import InvalidState
from quire.storage.base import CellWrite, Item
from quire.testing.strategies import keys, values

EAGER = Settings(keyframe_changes_min=1, keyframe_bytes_min=1, keyframe_ratio=0.0)
"""A snapshot after every read that folded anything."""


def put(state, event):
    if event.event_type == "forget":
        state.pop(event.data["key"], None)
        return state
    return {**state, event.data["key"]: event.data["value"]}


def folded(events):
    state = {}
    for event in events:
        state = put(state, event)
    return state


def counted(folds):
    def reduce(state, event):
        folds.append(event.version)
        return {"n": state.get("n", 0) + 1, "last": event.version}

    return reduce


async def listed(store, name="s"):
    cell = await store._store.engine.backend.cell(f"keyframes/events/events/{name}")
    return [] if cell is None else msgspec.json.decode(cell.value)


async def blobs(store):
    return set(await store._store.engine.backend.blobs())


happenings = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.fixed_dictionaries({"key": keys, "value": values})),
        st.tuples(st.just("forget"), st.fixed_dictionaries({"key": keys})),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(happenings, st.data())
async def test_replay_is_the_fold_wherever_snapshots_are(happened, data):  # B9 B12
    """Appends, replays at any version (each leaves a snapshot), and views, in any order."""
    async with quire.open("memory:", settings=EAGER) as below:
        store = AsyncEventStore(below, reducers=put, keyframes="s")
        await store.start()
        view = AsyncStateView(store)
        rest = list(happened)
        while rest:
            count = data.draw(st.integers(1, len(rest)), label="appended")
            await store.append_many(rest[:count])
            del rest[:count]
            events = await store.get_all_events()
            for version in data.draw(st.lists(st.integers(-1, len(events) - 1), max_size=4), label="replayed"):
                wanted = folded(await store.get_all_events(upto=version))
                assert same(await store.replay(upto=version), wanted)
                assert same(await store.replay(upto=version, fresh=True), wanted)
            if data.draw(st.booleans(), label="viewed"):
                assert same(await view.get_state(), folded(await store.get_all_events()))
        assert same(await store.replay(), folded(await store.get_all_events()))
        assert same(await view.get_state(), await store.replay(fresh=True))
        assert (await below.verify()).ok


async def test_a_snapshot_saves_the_work_also_after_a_restart(tmp_path):  # B12
    path, folds = str(tmp_path / "s.db"), []
    async with AsyncEventStore(path, reducers=counted(folds), keyframes="s") as store:
        await store.append_many(("e", {"text": "x" * 100}) for _ in range(1000))
        assert await store.replay() == {"n": 1000, "last": 999}
    del folds[:]
    async with AsyncEventStore(path, reducers=counted(folds), keyframes="s") as store:
        await store.append("e", {})
        assert await store.replay() == {"n": 1001, "last": 1000}
        assert await AsyncStateView(store).get_state() == {"n": 1001, "last": 1000}
        assert folds == [1000, 1000]
        assert await store.replay(upto=998) == {"n": 999, "last": 998}
    assert len(folds) == 2 + 999  # what lies before the first snapshot is folded once, and leaves one
    del folds[:]
    async with AsyncEventStore(path, reducers=counted(folds), keyframes="s") as store:
        assert await store.replay(upto=998) == {"n": 999, "last": 998}
        assert not folds


async def test_other_reducers_under_another_name_see_nothing_of_them():
    async with AsyncEventStore(reducers=counted([]), keyframes="s") as store:
        await store.append_many(("e", {"key": "k", "value": i, "text": "x" * 200}) for i in range(500))
        await store.replay()
        assert len(await listed(store)) == 1
        assert await AsyncStateView(store, reducers=put, keyframes="puts").get_state() == {"k": 499}
        assert await AsyncStateView(store, reducers=put).get_state() == {"k": 499}
        assert await store.replay("e") == {"n": 500, "last": 499}
        assert len(await listed(store, "puts")) == 1
        await store.drop_keyframes("s")
        assert (await listed(store), len(await blobs(store))) == ([], 1)


async def test_snapshots_stay_few_and_leave_no_blobs_behind():
    async with quire.open("memory:", settings=EAGER) as below:
        store = AsyncEventStore(below, reducers=counted([]), keyframes="s")
        await store.start()
        for i in range(400):
            await store.append("e", {})
            assert (await store.replay())["n"] == i + 1
        kept = await listed(store)
        assert len(kept) < 70
        assert [v for v, _ in kept[-8:]] == list(range(393, 401))
        assert {b for _, b in kept} == await blobs(store)


async def test_none_is_made_without_a_name_or_before_it_pays():
    async with AsyncEventStore(reducers=counted([])) as plain, AsyncEventStore(keyframes="s") as small:
        await plain.append_many(("e", {"text": "x" * 100}) for _ in range(1000))
        await small.append("e", {})
        await plain.replay()
        await small.replay()
        assert await blobs(plain) == await blobs(small) == set()


async def test_damaged_ones_are_passed_over(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), settings=EAGER) as below:
        store = AsyncEventStore(below, reducers=counted([]), keyframes="s")
        await store.start()
        backend = below.engine.backend
        for i in range(5):
            await store.append("e", {})
            await store.replay()
        newest, older, *_ = reversed(await listed(store))
        await backend.drop_blob(newest[1])  # gone
        await backend.drop_blob(older[1])
        await backend.put_blob(older[1], b"something else")  # altered
        folds = []
        again = AsyncEventStore(below, reducers=counted(folds), keyframes="s")
        await again.start()
        assert await again.replay() == {"n": 5, "last": 4}
        assert folds == [3, 4]
        cell = await backend.cell("keyframes/events/events/s")
        await backend.commit([Item(cells=[CellWrite(cell.name, cell.value, b"nonsense")])])
        assert await again.replay() == {"n": 5, "last": 4}
        assert folds == [3, 4, 0, 1, 2, 3, 4]
        assert len(await listed(store)) == 1


async def test_one_of_another_log_is_not_believed():
    """A log that was dropped and begun anew has the same numbers, but not the same chain."""
    async with quire.open("memory:", settings=EAGER) as below:
        store = AsyncEventStore(below, reducers=put, keyframes="s")
        await store.start()
        await store.append("put", {"key": "a", "value": 1})
        assert await store.replay() == {"a": 1}
        await below.engine.backend.drop("events/events")
        actor = await below.engine.current("events/events")
        actor.stale = True
        await store.append("put", {"key": "b", "value": 2})
        assert await store.replay() == {"b": 2}


async def test_a_state_that_is_not_json_is_refused_and_not_kept():
    async with quire.open("memory:", settings=EAGER) as below:
        store = AsyncEventStore(below, reducers=lambda s, e: {"x": {1, 2}}, keyframes="s")
        await store.start()
        await store.append("e", {})
        with pytest.raises(InvalidState, match="/x: set is not JSON"):
            await store.replay()
        assert await blobs(store) == set()


async def test_two_that_keep_at_once_lose_nothing_but_one_of_the_snapshots():
    async with quire.open("memory:", settings=EAGER) as below:
        stores = [AsyncEventStore(below, reducers=counted([]), keyframes="s") for _ in range(2)]
        for store in stores:
            await store.start()
        for i in range(20):
            await stores[0].append("e", {})
            both = await asyncio.gather(*(s.replay() for s in stores), stores[0].replay(upto=i // 2))
            assert both[:2] == [{"n": i + 1, "last": i}] * 2
        assert {b for _, b in await listed(stores[0])} <= await blobs(stores[0])
        assert (await below.verify()).ok
