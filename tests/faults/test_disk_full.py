"""A disk that is really full: who writes is told so, what was acknowledged stays, and the open store goes on later."""

import pytest

import quire
from quire.errors import OutcomeUnknown, StorageError, StorageFull
from quire.testing.disk import disk_or_skip

REFUSALS = 20


async def filled(url, disk):
    """Write until there is no room, make room, and write on with the same store; return the errors met."""
    acked, unknown, met = [], [], []
    async with quire.open(url) as store:
        wf = await store.create("w", {"log": []})

        async def append(text):
            await wf.append("/log", text)
            acked.append(text)

        for i in range(50):
            await append(f"before {i}")
        disk.fill()
        for i in range(5000):
            text = f"{i} " + "tides " * 80
            try:
                await append(text)
            except OutcomeUnknown as error:
                unknown.append(text)
                met.append(error)
            except StorageError as error:
                met.append(error)
            if len(met) == REFUSALS:
                break
        assert [t for t in await wf.get("/log") if t not in unknown] == acked  # reading goes on
        assert len(met) == REFUSALS
        disk.free()
        for i in range(20):
            await append(f"after {i}")
        assert (await store.verify()).ok
        seen = await wf.get("/log")
    async with quire.open(url) as store:
        assert (await store.verify()).ok
        kept = await store.workflow("w").get("/log")
    assert kept == seen
    assert [text for text in kept if text not in unknown] == acked
    return met


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "file:///{}/s", "rocksdb:///{}/s"])
async def test_a_full_disk_is_said_and_the_same_store_goes_on_when_there_is_room(url):
    with disk_or_skip(24 << 20) as disk:
        met = await filled(url.format(disk.folder), disk)
    print([repr(e)[:150] for e in met])
    assert all(isinstance(error, StorageFull | OutcomeUnknown) for error in met), met
    assert sum(isinstance(error, OutcomeUnknown) for error in met) <= 1
