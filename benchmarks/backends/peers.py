"""LangGraph's PostgreSQL checkpointer and our store doing the same work on one private server.

A message of 1 KB is appended each step, one durable commit each: fsync, full_page_writes and synchronous_commit are on,
asserted, not believed. Bytes are what PostgreSQL says of all tables with their indexes and what lies beside them.
python -m benchmarks.backends.peers [--quick]
"""

import asyncio
import itertools
import sys
import time
from statistics import median

import asyncpg
import psycopg
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from benchmarks.measure import Row
from benchmarks.peers import Run, appended
from benchmarks.work import message
from quire.testing.servers.postgres import PostgresServer

SIZE = (
    "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = $1 AND c.relkind = 'r'"
)
_places = itertools.count()


async def size(server, schema):
    """Return the bytes of all tables of a schema, with indexes and TOAST, after a checkpoint."""
    db = await asyncpg.connect(server.url)
    await db.execute("CHECKPOINT")
    found = await db.fetchval(SIZE, schema)
    await db.close()
    return found


def durable(server):
    """Fail unless the server syncs what it acknowledges."""
    with psycopg.connect(server.url) as db:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert db.execute(f"SHOW {name}").fetchone()[0] == "on"


def ours(server, steps):
    """Append a message a step to a growing list of a workflow."""
    place = f"ours{next(_places)}"
    times, latest, old = asyncio.run(appended(server.place(place), steps))
    return Run(times, asyncio.run(size(server, server.schema(place))), latest, old)


def langgraph(server, steps):
    """The same as checkpoints of LangGraph's PostgreSQL saver, made and connected to as its own documents do."""
    schema = f"langgraph{next(_places)}"
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(f"CREATE SCHEMA {schema}")

    def connect():
        return psycopg.connect(
            server.url, autocommit=True, prepare_threshold=0, row_factory=dict_row, options=f"-c search_path={schema}"
        )

    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    messages, times, configs = [], [], []
    with connect() as db:
        saver = PostgresSaver(db)
        saver.setup()
        for i in range(steps):
            text = message(i)
            start = time.perf_counter()
            messages.append({"role": "agent", "content": text})
            checkpoint = empty_checkpoint()
            checkpoint["channel_values"] = {"messages": messages}
            checkpoint["channel_versions"] = {"messages": i + 1}
            config = saver.put(config, checkpoint, {"step": i}, {"messages": i + 1})
            times.append(time.perf_counter() - start)
            configs.append(config)
    with connect() as db:
        saver = PostgresSaver(db)
        start = time.perf_counter()
        found = saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}})
        latest = time.perf_counter() - start
        assert len(found.checkpoint["channel_values"]["messages"]) == steps
        start = time.perf_counter()
        found = saver.get_tuple(configs[steps // 2 - 1])
        old = time.perf_counter() - start
        assert found.checkpoint["channel_values"]["messages"][-1]["content"] == message(steps // 2 - 1)
    stored = asyncio.run(size(server, schema))
    with psycopg.connect(server.url, autocommit=True) as db:
        db.execute(f"DROP SCHEMA {schema} CASCADE")
    return Run(times, stored, latest, old)


def peering(quick):
    """A growing list: our bytes of the content, then the peer's figures by ours, in turns."""
    with PostgresServer() as server:
        durable(server)
        for steps in (100, 1000) if quick else (100, 1000, 3000):
            pairs = [(ours(server, steps), langgraph(server, steps)) for _ in range(1 if quick or steps == 3000 else 3)]
            content = sum(len(message(i)) for i in range(steps))
            share = median(mine.stored for mine, _ in pairs) / content
            theirs = median(peer.stored for _, peer in pairs) / content
            if steps == 3000:
                yield Row(
                    f"bytes of {steps} steps, of the content", share, "<=", 3.0, note=f"LangGraph {theirs:,.0f} x"
                )
            for what, of, scale, unit in (
                ("time of all steps", lambda r: sum(r.times), 1e3, "ms"),
                ("bytes", lambda r: r.stored, 1e-6, "MB"),
                ("read the newest", lambda r: r.latest, 1e3, "ms"),
                ("read an old one", lambda r: r.old, 1e3, "ms"),
            ):
                mine, peer = (median(of(run) for run in side) * scale for side in zip(*pairs, strict=True))
                ratio = median(of(theirs) / of(mine) for mine, theirs in pairs)
                note = f"{peer:,.1f} to {mine:,.1f} {unit}"
                yield Row(f"LangGraph, {steps} steps: {what}, theirs / ours", ratio, ">=", 1.0, note=note)


if __name__ == "__main__":
    for row in peering("--quick" in sys.argv):
        print(f"{row.what:<58} {row.measured:>9,.2f} {row.unit:<2} bar {row.sign} {row.bar:g}  {row.note}", flush=True)
