"""Backups by themselves: when they are due, what a failing place does to writers (nothing), and what is removed."""

import asyncio

import pytest

import quire
from quire.api import keeping
from quire.engine.clock import FakeClock
from quire.errors import Invalid, StorageUnavailable


async def asleep(clock):
    """Wait until the keeper waits, for whatever it does before takes threads."""
    async with asyncio.timeout(30):
        while not clock.sleepers:
            await asyncio.sleep(0.005)  # the place is written in threads, which nothing here can wait for


async def wound(clock, seconds):
    await asleep(clock)
    await clock.wind(seconds)
    await asleep(clock)


def said(tmp_path, **how):
    return quire.Backups(place=f"file:///{tmp_path}/place", **({"every_s": 60, "full_every": 3} | how))


async def test_they_are_taken_while_the_store_is_open(tmp_path):
    clock = FakeClock()
    async with quire.open(str(tmp_path / "s.db"), clock=clock, backup=said(tmp_path)) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(7):
            await wf.set("/n", n + 1)
            await wound(clock, 60)
        await asleep(clock)
        assert store.keeper.taken >= 7 and store.keeper.failures == 0
        found = await quire.backups(f"{tmp_path}/place")
        assert [b.kind for b in found] == (["full", "incremental", "incremental"] * 4)[: len(found)]
        before = len(found)
        await wound(clock, 60)
        await wound(clock, 60)
        assert len(await quire.backups(f"{tmp_path}/place")) <= before + 1, "nothing changed, nothing is added"
    await quire.recover(f"{tmp_path}/place", str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert await store.workflow("w").get("/n") == 7


async def test_the_place_says_when_the_next_is_due(tmp_path):
    clock = FakeClock()
    for _ in range(3):
        async with quire.open(str(tmp_path / "s.db"), clock=clock, backup=said(tmp_path)) as store:
            await asleep(clock)
            await store.workflow("w").exists() or await store.create("w", {})
        clock._sleepers.clear()
        await clock.wind(10)
    assert len(await quire.backups(f"{tmp_path}/place")) == 1


async def test_a_place_that_fails_is_tried_again_and_hurts_nobody(tmp_path, monkeypatch):
    clock = FakeClock()
    opened = keeping.open_objects

    async def down(_):
        raise StorageUnavailable("the place is down")

    monkeypatch.setattr(keeping, "open_objects", down)
    async with quire.open(str(tmp_path / "s.db"), clock=clock, backup=said(tmp_path)) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(3):
            await wound(clock, 30)
            await wf.set("/n", n)
        assert store.keeper.failures >= 3 and "down" in store.keeper.last_error
        monkeypatch.setattr(keeping, "open_objects", opened)
        await wound(clock, 60)
        await asleep(clock)
        assert store.keeper.taken == 1 and store.keeper.last_error == ""
    assert (await quire.check_backups(f"{tmp_path}/place")).ok


async def test_old_ones_are_removed_after_new_ones(tmp_path):
    clock = FakeClock()
    how = said(tmp_path, keep=2, days=30, full_every=2)
    async with quire.open(str(tmp_path / "s.db"), clock=clock, backup=how) as store:
        wf = await store.create("w", {"n": 0})
        for n in range(9):
            await wf.set("/n", n + 1)
            await wound(clock, 60)
        await asleep(clock)
    left = await quire.backups(f"{tmp_path}/place")
    assert 2 <= len(left) <= 4 and left[0].kind == "full" and left[-1].number >= 9
    assert (await quire.check_backups(f"{tmp_path}/place")).ok


async def test_closing_does_not_wait_for_the_next(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), backup=said(tmp_path, every_s=86_400)) as store:
        await store.create("w", {})
    with quire.sync.open(str(tmp_path / "s.db"), backup=said(tmp_path)) as store:
        assert store.keeper is not None
        assert store.repair().ok


@pytest.mark.parametrize(
    "how", [{"every_s": 0}, {"full_every": 0}, {"keep": 0}, {"days": -1}, {"every_s": "1"}, {"keep": True}]
)
def test_numbers_that_mean_nothing_are_refused(tmp_path, how):
    with pytest.raises(Invalid):
        said(tmp_path, **how)
