"""The work that every store is measured by, by its URL: ready items, the public API, and reading back."""

import asyncio
import time

import quire
from quire.model import GENESIS, Record
from quire.storage.base import Expect, Item
from quire.storage.open import open_backend

BODY = b'[["set",["n"],12]]'


def link(stream, version):
    """Return a stand-in for a chain."""
    return GENESIS if version == 0 else f"{stream}@{version}".encode().ljust(32, b".")


def item(flow, after, records=1):
    """Return an item that adds records to a stream."""
    name = f"workflows/w{flow}"
    made = tuple(
        Record(name, v, 1_700_000_000_000, "agent", "step", "change", BODY, link(name, v))
        for v in range(after + 1, after + records + 1)
    )
    return Item((Expect(name, after, link(name, after)),), made)


async def alone(url, flows, each, records=1):
    """Versions per second of `commit`: one call at a time, an item for each of `flows` streams."""
    calls = [[item(flow, turn * records, records) for flow in range(flows)] for turn in range(each)]
    backend = await open_backend(url, namespace="default")
    await backend.commit(calls[0])
    start = time.perf_counter()
    for items in calls[1:]:
        await backend.commit(items)
    rate = flows * records * (each - 1) / (time.perf_counter() - start)
    await backend.close()
    return rate


async def used(url, flows, writers, each):
    """Versions per second of the public API."""
    async with quire.open(url) as store:
        made = await asyncio.gather(*(store.create(f"w{i}", {"n": 0}) for i in range(flows)))

        async def write(wf, k):
            for i in range(each):
                await wf.set("/n", i * writers + k + 1, author="agent", message="step")

        start = time.perf_counter()
        await asyncio.gather(*(write(wf, k) for wf in made for k in range(writers)))
        return flows * writers * each / (time.perf_counter() - start)


async def back(url, count):
    """Return records per second of the feed, microseconds of `latest`, bytes of the store for each version."""
    backend = await open_backend(url, namespace="default")
    for turn in range(count // 1000):
        await backend.commit([item(flow, turn * 10, 10) for flow in range(100)])
    size = (await backend.stats()).size_bytes / count
    start, seen = time.perf_counter(), 0
    while page := await backend.feed(seen):
        seen = page[-1].position
    rate = count / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(2000):
        await backend.latest()
    asked = (time.perf_counter() - start) / 2000 * 1e6
    await backend.close()
    return rate, asked, size


async def opening(url, flows):
    """Return milliseconds of opening a store of so many workflows, and of one cold head in it."""
    backend = await open_backend(url, namespace="default")
    for first in range(0, flows, 1000):
        await backend.commit([item(flow, 0) for flow in range(first, min(first + 1000, flows))])
    await backend.close()
    start = time.perf_counter()
    backend = await open_backend(url, namespace="default")
    opened = time.perf_counter()
    await backend.heads([f"workflows/w{flows - 1}"])
    asked = time.perf_counter()
    await backend.close()
    return (opened - start) * 1e3, (asked - opened) * 1e3
