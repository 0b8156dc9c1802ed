"""Failing writes and syncs while a sweep commits its books beside writers: nobody is told what is not so."""

import asyncio

import pytest

from quire.api.store import Store
from quire.config import Retention, Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import OutcomeUnknown, StorageError
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap._books import Books
from quire.storage.wrap.archived import open_archived
from quire.testing.faults import Plan, failing_vfs

RULES = Retention(versions=2, every_s=0)
WRITERS = 3


async def opened(path, place, vfs=None):
    backend = await open_archived(
        await open_sqlite(path, namespace="n", vfs=vfs), namespace="n", place=place if vfs else None
    )
    engine = Engine(backend, Settings(), SystemClock(), system_ids(), await backend.latest(), archive=backend)
    return Store(engine, "n", RULES)


async def trouble(folder, plan):
    """Write and sweep at once with trouble on the way; return how many calls failed, after looking at what is left."""
    folder.mkdir()
    path, place = str(folder / "s.db"), str(folder / "old")
    acked, failed, unknown = [[] for _ in range(WRITERS)], set(), set()
    with failing_vfs(plan) as vfs:
        store = await opened(path, place, vfs)
        flows = [await store.create(f"w{w}", {"log": []}) for w in range(WRITERS)]
        for wf in flows:
            for n in range(4):
                await wf.append("/log", f"before-{n}")
        plan.armed = True

        async def write(w, wf):
            for n in range(4):
                mark = f"during-{w}-{n}"
                try:
                    await wf.append("/log", mark)
                    acked[w].append(mark)
                except OutcomeUnknown:
                    unknown.add(mark)
                except StorageError:
                    failed.add(mark)

        async def sweep():
            seen = 0
            for _ in range(3):
                try:
                    seen += len((await store.sweep()).problems)
                except StorageError:
                    seen += 1
            return seen

        *_, swept = await asyncio.gather(*(write(w, wf) for w, wf in enumerate(flows)), sweep())
        plan.heal()
        for w, wf in enumerate(flows):  # the same store object, no restart
            await wf.append("/log", "after")
            acked[w].append("after")
        assert not (await store.sweep()).problems
        assert (await store.verify()).ok
        seen = [await wf.get("/log") for wf in flows]
        await store.close()
    store = await opened(path, place)
    assert (await store.verify()).ok
    assert (await store.archived(check=True)).problems == []
    for w in range(WRITERS):
        wf = store.workflow(f"w{w}")
        kept = await wf.get("/log")
        assert kept == seen[w]
        assert [e for e in kept if e not in unknown] == [*(f"before-{n}" for n in range(4)), *acked[w]]
        assert not failed & set(kept)
        assert len(set(kept)) == len(kept)
        head = (await wf.version()).number
        assert [len((await wf.state(n))["log"]) for n in range(1, head + 1)] == list(range(head))
    await store.close()
    return len(failed) + len(unknown) + swept


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync"])
async def test_every_call_may_fail_while_writers_and_a_sweep_share_a_handle(tmp_path, kind, lasting, through):
    trouble_seen = fired = 0
    step = 1 if kind == "sync" else 5
    for at in range(1, 400, step):
        plan = Plan(kind, at, lasting=lasting, through=through)
        trouble_seen += await trouble(tmp_path / str(at), plan)
        if not plan.fired:
            break
        fired += 1
    assert fired > 3
    assert not plan.fired
    assert trouble_seen or through


@pytest.mark.parametrize("careless", [False, True])
async def test_the_handle_is_not_left_broken_for_whoever_writes_next(tmp_path, monkeypatch, careless):
    """And the control: books that do not reconnect leave it to whoever writes next to be told."""
    if careless:

        async def mend(self):
            pass

        monkeypatch.setattr(Books, "mend", mend)
    told = 0
    for at in range(1, 12):
        (tmp_path / str(at)).mkdir()
        plan = Plan("sync", at, lasting=True)
        with failing_vfs(plan) as vfs:
            store = await opened(str(tmp_path / str(at) / "s.db"), str(tmp_path / str(at) / "old"), vfs)
            w = await store.create("w", {"n": 0})
            for _ in range(5):
                await w.inc("/n")
            plan.armed = True
            await store.sweep()
            plan.heal()
            try:
                await w.inc("/n")
            except StorageError:
                told += 1
            await store.close()
    assert bool(told) is careless


async def test_a_turn_lasts_one_commit(tmp_path):
    """Writers wait for the books, never for the archive: nothing is asked of a place while the turn is held."""
    store = await opened(str(tmp_path / "s.db"), str(tmp_path / "old"), "unix")
    w = await store.create("w", {"n": 0})
    for _ in range(50):
        await w.inc("/n")
    archive, held = store.engine.archive, []
    turn, inner = archive.turn, archive.inner
    commit, put = inner.commit, archive.shelf.put

    async def counted(items):
        held.append((turn.locked(), len(items), sum(len(i.cells) for i in items)))
        return await commit(items)

    async def outside(made):
        assert not turn.locked()
        await put(made)
        assert (await w.inc("/n")).number  # a writer is served while a segment is written

    inner.commit, archive.shelf.put = counted, outside
    done = await store.sweep()
    assert done.versions == 49
    assert all(locked for locked, _, _ in held)
    assert all(count == 1 and cells <= 2 for _, count, cells in held if cells)
    assert isinstance(archive.books, Books)
    await store.close()
