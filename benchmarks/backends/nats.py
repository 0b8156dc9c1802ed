"""NATS JetStream with sync_interval always: the bare driver's publishing, the backend alone, and the public API."""

import asyncio
import time

from nats.aio.client import Client

from benchmarks.backends.reading import read_states, rows
from benchmarks.backends.served import read_back, records_per_s, report
from benchmarks.backends.work import used
from benchmarks.measure import in_turns
from quire.testing.servers.nats import NatsServer

PAYLOAD = b'[["set",["n"],12]]' + b"x" * 100
HEADERS = {"Meta": '[1700000000000,"agent","step","change"]'}


async def raw_rows_per_s(port, batch, total):
    """Publish rows to JetStream, `batch` under way at once, each waited for."""
    client = Client()
    await client.connect(f"nats://127.0.0.1:{port}")
    stream = client.jetstream(publish_async_max_pending=2 * batch)
    await stream.add_stream(name="raw", subjects=["raw.*"])
    start = time.perf_counter()
    for _ in range(total // batch):
        acks = [await stream.publish_async(f"raw.{i}", PAYLOAD, headers=HEADERS) for i in range(batch)]
        await asyncio.gather(*acks)
    rate = total / (time.perf_counter() - start)
    await client.close()
    return rate


async def stored_bytes(port):
    """Return the bytes that JetStream says it holds."""
    client = Client()
    await client.connect(f"nats://127.0.0.1:{port}")
    bytes_ = (await client.jetstream().account_info()).storage
    await client.close()
    return bytes_


def main():
    """Measure on a private server."""
    with NatsServer() as server:
        count = iter(range(1000))

        def place():
            return server.place(next(count))

        def run(work):
            return asyncio.run(work)

        print("NATS JetStream, sync_interval always, one private server on the same machine")
        bare, many = in_turns(
            lambda: run(raw_rows_per_s(server.port, 100, 5000)),
            lambda: run(used(place(), 100, 1, 100)),
            repeats=5,
        )
        raw = bare.mid
        print(
            f"  public API, 100 workflows, of bare publishing: {many.mid / raw:.2f} (bar >= 0.4; {many}/s of {bare}/s)"
        )
        report("bare publishing, 100 under way", raw, raw)
        report("bare publishing, one at a time", run(raw_rows_per_s(server.port, 1, 500)), raw)
        report("backend alone: 100 streams, one record each, one call", run(records_per_s(place(), 100, 50)), raw)
        report("backend alone: 1,000 streams", run(records_per_s(place(), 1000, 10)), raw)
        report("backend alone: one stream, 100 records a call", run(records_per_s(place(), 1, 100, 100)), raw)
        report("backend alone: one record a call", run(records_per_s(place(), 1, 300)), raw)
        report("public API: 100 workflows at once", many.mid, raw)
        report("public API: 1,000 workflows at once", run(used(place(), 1000, 1, 10)), raw)
        report("public API: one hot workflow, 100 writers", run(used(place(), 1, 100, 100)), raw)
        report("public API: one sequential writer", run(used(place(), 1, 1, 200)), raw)
        url = place()
        before = run(stored_bytes(server.port))
        run(records_per_s(url, 10, 20, 100))
        packed = (run(stored_bytes(server.port)) - before) / 20_000
        feed, read, asked = run(read_back(url))
        before = run(stored_bytes(server.port))
        run(records_per_s(place(), 100, 50))
        single = (run(stored_bytes(server.port)) - before) / 5000
        report("feed, pages of 1,000", feed)
        report("one stream read whole (2,000 records)", read)
        print(f"  latest(): {asked:.0f} us")
        for row in rows(run(read_states(place())), 2000):
            print(f"  {row.what:<58} {row.measured:>10,.1f} {row.unit} (bar <= {row.bar:g})", flush=True)
        print(
            f"  bytes per version: {single:.0f} one to an item, {packed:.0f} a hundred to an item (18 of them the change)"
        )


if __name__ == "__main__":
    main()
