"""Peers doing the same work, with settings as fair: WAL, synchronous=FULL, acknowledged after the sync.

Each returns a `Run`; that the settings hold and that what was written is what is read is asserted, not believed.
"""

import asyncio
import functools
import sqlite3
import time
from pathlib import Path
from typing import NamedTuple

import quire
from benchmarks.measure import size
from benchmarks.work import message


class Run(NamedTuple):
    """Seconds of each step, bytes stored, seconds of reading the newest and an old state in a fresh process's place."""

    times: list[float]
    stored: int
    latest: float
    old: float


def ours(steps, place):
    """Append a message of 1 KB a step to a growing list; one commit each."""
    path = str(Path(place) / "quire.db")
    times, latest, old = asyncio.run(appended(path, steps))
    return Run(times, size(path), latest, old)


async def appended(url, steps):
    """Do that on any store; return the seconds of each step, of reading the newest state, and of one half as old."""
    times = []
    async with quire.open(url) as store:
        wf = await store.create("w", {"messages": []})
        for i in range(steps):
            text = message(i)
            start = time.perf_counter()
            await wf.append("/messages", {"role": "agent", "content": text}, author="agent")
            times.append(time.perf_counter() - start)
    async with quire.open(url) as store:
        start = time.perf_counter()
        state = await store.workflow("w").state()
        latest = time.perf_counter() - start
        assert len(state["messages"]) == steps
        start = time.perf_counter()
        state = await store.workflow("w").state(steps // 2 + 1)
        old = time.perf_counter() - start
        assert state["messages"][-1]["content"] == message(steps // 2 - 1)
    return times, latest, old


def langgraph(steps, place):
    """The same as checkpoints of LangGraph's SQLite saver: `messages` is a channel that grows."""
    from langgraph.checkpoint.base import empty_checkpoint
    from langgraph.checkpoint.sqlite import SqliteSaver

    path = str(Path(place) / "langgraph.db")
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    saver = SqliteSaver(connection)
    saver.setup()
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    messages, times, configs = [], [], []
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
    connection.close()
    connection = sqlite3.connect(path, check_same_thread=False)
    saver = SqliteSaver(connection)
    start = time.perf_counter()
    found = saver.get_tuple({"configurable": {"thread_id": "t", "checkpoint_ns": ""}})
    latest = time.perf_counter() - start
    assert len(found.checkpoint["channel_values"]["messages"]) == steps
    start = time.perf_counter()
    found = saver.get_tuple(configs[steps // 2 - 1])
    old = time.perf_counter() - start
    assert found.checkpoint["channel_values"]["messages"][-1]["content"] == message(steps // 2 - 1)
    connection.close()
    return Run(times, size(path), latest, old)


@functools.cache  # the library names a class once in a process, and refuses the second of one name
def talk_of_events():
    """Return the aggregate of the `eventsourcing` library; a function, for the library is an extra of the benchmarks."""
    from eventsourcing.domain import Aggregate, event

    class Talk(Aggregate):
        @event("Started")
        def __init__(self):
            self.messages = []

        @event("Said")
        def say(self, role, content):
            self.messages.append({"role": role, "content": content})

    return Talk


def eventsourcing(steps, place):
    """The same as events of an aggregate of the `eventsourcing` library, one saved event a step; reading is replaying."""
    from eventsourcing.application import Application

    path, times = str(Path(place) / "eventsourcing.db"), []
    settings = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path}

    def app():
        opened = Application(env=settings)
        with opened.factory.datastore.transaction(commit=False) as cursor:
            cursor.execute("PRAGMA journal_mode")
            assert cursor.fetchone()[0] == "wal"
            cursor.execute("PRAGMA synchronous")
            assert cursor.fetchone()[0] == 2
        return opened

    writer = app()
    talk = talk_of_events()()
    writer.save(talk)
    for i in range(steps):
        text = message(i)
        start = time.perf_counter()
        talk.say(role="agent", content=text)
        writer.save(talk)
        times.append(time.perf_counter() - start)
    writer.close()
    reader = app()
    start = time.perf_counter()
    found = reader.repository.get(talk.id)
    latest = time.perf_counter() - start
    assert len(found.messages) == steps
    start = time.perf_counter()
    found = reader.repository.get(talk.id, version=steps // 2 + 1)
    old = time.perf_counter() - start
    assert found.messages[-1]["content"] == message(steps // 2 - 1)
    reader.close()
    return Run(times, size(path), latest, old)
