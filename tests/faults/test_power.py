"""Power is lost at any moment: what was acknowledged is on the disk, unless durability is relaxed."""

import asyncio

import pytest

from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.storage.sqlite import open_sqlite
from quire.testing.power import Trace, images, recording_vfs

COMMITS = 60


async def opened(path, **how):
    backend = await open_sqlite(path, namespace="n", **how)
    settings = Settings(keyframe_changes_min=8, keyframe_bytes_min=0)
    return Store(Engine(backend, settings, SystemClock(), system_ids(), await backend.latest()), "n")


async def record(folder, durability, lies=0.0):
    trace = Trace(lies=lies)
    with recording_vfs(trace) as vfs:
        store = await opened(str(folder / "s.db"), vfs=vfs, durability=durability)
        flows = [await store.create(f"w{i}", {"log": []}) for i in range(3)]
        for i in range(3):
            trace.ack((i, 1, None))

        async def write(which, wf):
            for i in range(COMMITS):
                version = await wf.append("/log", f"{which}-{i}")
                trace.ack((which, version.number, f"{which}-{i}"))

        await asyncio.gather(*(write(i, wf) for i, wf in enumerate(flows)))
        recorded = list(trace.events)  # power goes before anything is closed
        await store.close()
    trace.events = recorded
    return trace


async def lost(image, folder):
    """Return how much of what was acknowledged is gone; fails if what is there is not sound."""
    folder.mkdir()
    image.write(folder)
    if not image.acked:
        return 0
    store = await opened(str(folder / "s.db"))
    try:
        report = await store.verify()
        assert report.ok, report.problems
        kept = {}
        for i in range(3):
            wf = store.workflow(f"w{i}")
            kept[i] = (await wf.get("/log"), (await wf.version()).number) if await wf.exists() else ([], 0)
            log, newest = kept[i]
            assert log == [f"{i}-{n}" for n in range(len(log))]
            assert newest in (0, len(log) + 1)
        return sum(version > kept[i][1] for i, version, _ in image.acked)
    finally:
        await store.close()


async def losing(trace, tmp_path, mode, points, seed):
    count = 0
    for number, image in enumerate(images(trace, mode, points=points, seed=seed)):
        count += await lost(image, tmp_path / f"{mode}-{number}") > 0
    return count


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["drop", "reorder", "tear"])
async def test_nothing_acknowledged_is_lost_with_the_power(tmp_path, mode):
    """A thousand crash images in each mode."""
    (tmp_path / "run").mkdir()
    trace = await record(tmp_path / "run", "full")
    assert sum(e[0] == "sync" for e in trace.events) > COMMITS
    assert await losing(trace, tmp_path, mode, 1000, seed=1) == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("durability", "lies"), [("relaxed", 0.0), ("full", 0.2)])
async def test_the_images_catch_a_store_that_does_not_sync(tmp_path, durability, lies):
    """The controls: relaxed durability, and a disk that lies about one sync in five, are caught losing."""
    (tmp_path / "run").mkdir()
    trace = await record(tmp_path / "run", durability, lies)
    assert await losing(trace, tmp_path, "drop", 60, seed=1) > 0


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 32))
@pytest.mark.parametrize("mode", ["drop", "reorder", "tear"])
async def test_nothing_acknowledged_is_lost_with_the_power_in_many_images(tmp_path, mode, seed):
    (tmp_path / "run").mkdir()
    trace = await record(tmp_path / "run", "full")
    assert await losing(trace, tmp_path, mode, 1000, seed) == 0
