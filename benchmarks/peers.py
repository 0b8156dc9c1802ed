"""Peers doing the same work, with settings as fair: WAL, synchronous=FULL, acknowledged after the sync."""

import sqlite3
import time
from pathlib import Path

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver

from benchmarks.limits import size


def langgraph(steps, place):
    """Append a message of 1 KB a step; return seconds of each step, bytes stored, seconds of reading the middle one."""
    from benchmarks.rows import message

    path = str(Path(place) / "lg.db")
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA synchronous=FULL")
    saver = SqliteSaver(connection)
    saver.setup()
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
    start = time.perf_counter()
    saver.get_tuple(configs[steps // 2])
    old = time.perf_counter() - start
    stored = size(path)
    connection.close()
    return times, stored, old
