"""Whatever is done to a store, with backups at any moment: every position can be gone back to, and is what it was."""

import asyncio
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.moving.sources import NAMES, OPERATIONS, do

import quire
from quire.storage.memory import open_memory

MORE = ("backup", "backup", "backup", "full", "drop")
A_STEP = st.tuples(st.sampled_from(OPERATIONS + MORE), st.sampled_from(NAMES), st.integers(0, 4))


class Then:
    """What a store was at a moment."""

    def __init__(self, position, heads, states, step):
        self.position = position
        self.heads = heads
        self.states = states
        self.step = step


async def seen(store, step):
    backend = store.engine.backend
    feed = await backend.feed(limit=1_000_000)
    streams = await backend.streams()
    heads = {h.stream: (h.version, h.chain) for h in await backend.heads(streams)}
    states = {name: await store.workflow(name).state() for name in await store.workflows()}
    return Then(max((r.position for r in feed), default=0), heads, states, step)


async def drop(store, name):
    """Drop a workflow that nobody was forked from, with what lies beside it; return the streams that went."""
    backend = store.engine.backend
    forks = [s for s in await backend.streams("workflows/") if s != f"workflows/{name}"]
    if any(s.startswith(f"workflows/{name}") for s in forks):
        return set()
    if await backend.streams("merges/") or await backend.streams("redactions/"):  # which tell of streams by name
        return set()
    gone = {
        s for s in await backend.streams() if s in (f"workflows/{name}", f"checkpoints/{name}", f"conflicts/{name}")
    }
    for stream in gone:
        await backend.drop(stream)
        await store.engine.outdate(stream, state=True)
    return gone


async def told(steps, pick):
    token = secrets.token_hex(8)
    shelf = f"memory:shelf-{token}"
    async with quire.open("memory:") as store:
        was = [await seen(store, 0)]
        redacted, dropped = 0, set()
        for number, (operation, name, value) in enumerate(steps, 1):
            if operation in ("backup", "full"):
                await store.backup(shelf, full=operation == "full")
                continue
            if operation == "drop":
                dropped |= await drop(store, name)
            else:
                await do(store, operation, name, value)
            redacted = number if operation in ("redact", "wipe") else redacted
            was.append(await seen(store, number))
        await store.backup(shelf)
        now = await seen(store, len(steps))
    assert (await quire.check_backups(shelf)).ok
    await whole_again(shelf, token, now)
    await as_it_was(shelf, f"{token}-then", was[pick % len(was)], redacted, dropped)


async def whole_again(shelf, token, now):
    holder = await open_memory(token, namespace="default")
    await quire.recover(shelf, f"memory:{token}")
    async with quire.open(f"memory:{token}") as store:
        found = await seen(store, 0)
        assert found.heads == now.heads
        assert found.states == now.states
        report = await store.verify()
        assert report.ok, report.problems
    await holder.close()


async def as_it_was(shelf, token, then, redacted, dropped):
    """dropped: streams of which only what a backup had before they went can come back."""
    if dropped and then.position > (await quire.backups(shelf))[-1].position:
        return  # the end of the log was dropped before a backup
    rehearsed = await quire.recover(shelf, f"memory:{token}", at=then.position, dry_run=True)
    holder = await open_memory(token, namespace="default")
    done = await quire.recover(shelf, f"memory:{token}", at=then.position)
    assert (done.streams, done.versions, done.incomplete) == (
        rehearsed.streams,
        rehearsed.versions,
        rehearsed.incomplete,
    )
    async with quire.open(f"memory:{token}") as store:
        found = await seen(store, 0)
        loose = {*done.incomplete, *dropped, *(s for s in found.heads if s.startswith("redactions/"))}
        ours, theirs = ({s: h for s, h in some.heads.items() if s not in loose} for some in (then, found))
        assert theirs == {s: h for s, h in ours.items() if not s.startswith("redactions/")}
        if not done.incomplete and not dropped:
            report = await store.verify()
            assert report.ok, report.problems
            if redacted <= then.step:
                assert found.states == then.states
    await holder.close()


@settings(max_examples=60)
@given(steps=st.lists(A_STEP, min_size=10, max_size=50), pick=st.integers(0, 10**6))
def test_every_moment_comes_back_as_it_was(steps, pick):
    asyncio.run(told([("create", n, 0) for n in NAMES] + steps, pick))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@settings(max_examples=3000)
@given(steps=st.lists(A_STEP, min_size=10, max_size=120), pick=st.integers(0, 10**6))
def test_every_moment_comes_back_as_it_was_for_long(steps, pick):
    asyncio.run(told([("create", n, 0) for n in NAMES] + steps, pick))


async def test_control_a_plan_that_ends_one_record_early_is_caught(monkeypatch):
    from quire.engine.backing.plan import Plan

    wanted = Plan.wanted
    monkeypatch.setattr(Plan, "wanted", lambda self, r: wanted(self, r) and r.position != self.cut)
    steps = [("create", n, 0) for n in NAMES] + [("backup", "a", 0), ("change", "a", 1), ("change", "b", 2)]
    with pytest.raises((AssertionError, quire.errors.CorruptRecord)):
        await told(steps, 4)
