"""The times of a log never go back, whatever the clocks of its writers say."""

import asyncio

import quire
from quire.core.updated_at import PARTS
from quire.engine.clock import FakeClock

NOW = 1_700_000_000_000


async def times(store, name="w"):
    return [v.record.time for v in await store.workflow(name).history(order="oldest")]


async def test_a_writer_whose_clock_is_behind_goes_on_from_the_newest_time(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path, clock=FakeClock(NOW)) as store:
        await store.create("w", {"n": 0})
    behind = FakeClock(NOW - 3_600_000)
    async with quire.open(path, clock=behind) as store:
        workflow = store.workflow("w")
        await workflow.set("/n", 1)
        await store.create("other", {})  # another log has times of its own
        assert await times(store) == [NOW, NOW]
        assert await times(store, "other") == [NOW - 3_600_000]
        assert [v.number for v in await workflow.history(since="2023-11-14T22:13:20Z")] == [2, 1]
        await behind.wind(3600)
        await workflow.set("/n", 2)
        await behind.wind(1)
        await workflow.set("/n", 3)
        assert await times(store) == [NOW, NOW, NOW, NOW + 1000]


async def test_two_stores_that_write_by_turns_agree(tmp_path):
    path = str(tmp_path / "s.db")
    one, two = FakeClock(NOW), FakeClock(NOW - 50)
    async with quire.open(path, clock=one) as ahead, quire.open(path, clock=two) as behind:
        await ahead.create("w", {"n": 0})
        for n in range(1, 6):
            await behind.workflow("w").inc("/n")
            await ahead.workflow("w").inc("/n")
            await one.wind(0.001 * n)
            await two.wind(0.001 * n)
        found = await times(ahead)
        assert found == sorted(found) == await times(behind)
        assert found[-1] == NOW + 10


async def test_in_one_commit_too(tmp_path):
    async with quire.open("memory:", clock=FakeClock(NOW)) as store:
        workflow = await store.create("w", {"n": 0})
        failing = [store.transact([workflow.change([]), store.workflow("absent").change([])])]
        writes = [workflow.inc("/n") for _ in range(2 * PARTS)]
        done = await asyncio.gather(*writes[:PARTS], *failing, *writes[PARTS:], return_exceptions=True)
        assert sum(isinstance(d, Exception) for d in done) == 1
        assert await times(store) == [NOW] * PARTS + [NOW + 1] * PARTS + [NOW + 2]


async def test_where_a_load_does_not_see_what_was_before_the_time_goes_on(tmp_path):
    """It begins at a keyframe of the head: how many versions had that time is not known, so the next has another."""
    path = str(tmp_path / "s.db")
    async with quire.open(path, clock=FakeClock(NOW)) as store:
        workflow = await store.create("w", {"n": 0})
        await workflow.inc("/n")
        await store.engine.frame(workflow.stream, 2)
    async with quire.open(path, clock=FakeClock(NOW)) as store:
        await store.workflow("w").inc("/n")
        await store.workflow("w").inc("/n")
        assert await times(store) == [NOW, NOW, NOW + 1, NOW + 1]


async def test_a_fork_is_later_than_what_it_was_forked_from():
    async with quire.open("memory:", clock=FakeClock(NOW)) as store:
        workflow = await store.create("w", {"n": 0})
        await workflow.inc("/n")
        fork = await workflow.fork("f", at=1)
        assert await times(store, fork.id) == [NOW + 1]
