"""A watcher outlives an outage of its store: whichever of its questions fails, it asks again, and sees every version once."""

import asyncio
import random
from itertools import cycle

import pytest

import quire
from quire.engine import engine
from quire.errors import Closed, CorruptRecord, FilesChanged, OutcomeUnknown, StorageTimeout, StorageUnavailable

QUESTIONS = ("latest", "read", "feed", "heads", "keyframe", "cell")
SETTINGS = quire.Settings(recent_records=2, feed_records=2, resident_bytes_max=0, delivery_backoff_s=(0.001, 0.01))


@pytest.fixture
async def pair():
    """Two handles on one place: one that writes, and one that watches through a backend that can fail."""
    async with (
        quire.open("memory:outages", settings=SETTINGS) as writer,
        quire.open("memory:outages", settings=SETTINGS) as watcher,
    ):
        yield writer, watcher


def failing(store, monkeypatch, questions, errors):
    """Have some of the answers be errors while the returned switch holds something: one of two, in no order."""
    monkeypatch.setattr(engine, "_POLL_S", 0.02)
    backend, on, chance = store.engine.backend, [], random.Random(1)
    for name in questions:
        ask = getattr(backend, name)

        async def asked(*args, _ask=ask, **kwargs):
            if on and chance.random() < 0.5:
                raise next(errors)("down")
            return await _ask(*args, **kwargs)

        monkeypatch.setattr(backend, name, asked)
    return on


@pytest.mark.parametrize("cursor", [None, "c"])
@pytest.mark.parametrize("whole", [False, True])
async def test_every_version_comes_once_through_an_outage(pair, monkeypatch, whole, cursor):
    writer, watcher = pair
    wf = await writer.create("w", {"n": 0})
    on = failing(watcher, monkeypatch, QUESTIONS, cycle([StorageUnavailable, StorageTimeout]))
    watched = watcher if whole else watcher.workflow("w")
    seen = []

    async def follow():
        async for event in watched.watch(after=0, cursor=cursor):
            seen.append(event.version.number)  # noqa: PERF401 - what came by then counts

    task = asyncio.ensure_future(follow())
    while not seen:
        await asyncio.sleep(0.001)
    for turn in range(4):
        on[:] = [1] if turn % 2 == 0 else []
        for _ in range(5):
            await wf.inc("/n")
            await asyncio.sleep(0.005)
        async with asyncio.timeout(20):
            while seen[-1] < 6 + 5 * turn:
                assert not task.done(), task.exception()
                await asyncio.sleep(0.001)
    assert seen == list(range(1, 22))
    task.cancel()


@pytest.mark.parametrize("error", [Closed, CorruptRecord, FilesChanged])
async def test_what_waiting_does_not_mend_ends_a_watcher(pair, monkeypatch, error):
    writer, watcher = pair
    wf = await writer.create("w", {"n": 0})
    on = failing(watcher, monkeypatch, ("read", "keyframe"), cycle([error]))
    events = watcher.workflow("w").watch(after=0)
    assert (await anext(events)).version.number == 1
    on.append(1)
    with pytest.raises(error):
        async with asyncio.timeout(20):
            for _ in range(20):
                await wf.inc("/n")
                await anext(events)


async def test_a_cursor_is_saved_again_after_a_save_that_may_have_happened(pair, monkeypatch):
    writer, watcher = pair
    wf = await writer.create("w", {"n": 0})
    submit, failures = watcher.engine.committer.submit, [1, 1]

    async def unsure(writes, cells=(), *args, **kwargs):
        answer = await submit(writes, cells, *args, **kwargs)
        if failures and any(cell.name.startswith("cursors/") for cell in cells):
            failures.pop()
            raise OutcomeUnknown("it may be stored")
        return answer

    monkeypatch.setattr(watcher.engine.committer, "submit", unsure)
    with pytest.raises(OutcomeUnknown):
        await anext(watcher.workflow("w").watch(after=0, cursor="c"))  # its first save is the caller's to repeat
    events = watcher.workflow("w").watch(after=0, cursor="c")
    assert (await anext(events)).version.number == 1
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.05)
    await wf.inc("/n")
    assert (await waiting).version.number == 2
    assert failures == []
    await events.aclose()
    again = watcher.workflow("w").watch(after=0, cursor="c")
    assert (await anext(again)).version.number == 2  # it was taken, and the next not asked for
    await again.aclose()
