"""What stores on a server are measured by besides: several calls under way at once, and how quickly all is read back."""

import asyncio
import time

from benchmarks.backends.work import BODY
from quire.model import Head, Record
from quire.storage.base import Committed, Expect, Item
from quire.storage.open import open_backend


async def records_per_s(url, streams, calls, per_item=1, flights=1):
    """Records per second of `commit` alone, with items made before; `flights` calls are under way at once."""
    backend = await open_backend(url, namespace="default")
    heads = [Head(f"workflows/w{i}") for i in range(streams)]
    batches = []
    for _ in range(calls):
        items = []
        for i, head in enumerate(heads):
            records = []
            for number in range(head.version + 1, head.version + per_item + 1):
                chain = number.to_bytes(4, "big") * 8
                records.append(Record(head.stream, number, 1_700_000_000_000, "agent", "step", "change", BODY, chain))
            items.append(Item((Expect(head.stream, head.version, head.chain),), tuple(records)))
            heads[i] = Head(head.stream, records[-1].version, records[-1].chain, "change")
        batches.append(items)
    start = time.perf_counter()
    for first in range(0, calls, flights):
        for outcomes in await asyncio.gather(*map(backend.commit, batches[first : first + flights])):
            assert all(isinstance(o, Committed) for o in outcomes)
    rate = streams * calls * per_item / (time.perf_counter() - start)
    await backend.close()
    return rate


async def read_back(url):
    """Records per second of the feed, and of reading one stream whole; microseconds of `latest`."""
    backend = await open_backend(url, namespace="default")
    start, seen, last = time.perf_counter(), 0, 0
    while page := await backend.feed(last):
        seen, last = seen + len(page), page[-1].position
    feed = seen / (time.perf_counter() - start)
    start = time.perf_counter()
    stream = (await backend.streams())[0]
    count = len(await backend.read(stream))
    read = count / (time.perf_counter() - start)
    start = time.perf_counter()
    for _ in range(500):
        await backend.latest()
    asked = (time.perf_counter() - start) / 500 * 1e6
    await backend.close()
    return feed, read, asked


def report(what, rate, of=None):
    """Print a line of the table."""
    share = "" if of is None else f"  {rate / of:5.2f} x raw"
    print(f"  {what:<58} {rate:>10,.0f}/s{share}", flush=True)
