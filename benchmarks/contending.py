"""Two processes edit the same three workflows as fast as they can, on each backend: `python -m benchmarks.contending`.

What is compared: the one that gets less with the one that gets more, and both together with one alone in the same run.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack

import quire
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

WRITER = """
import asyncio, os, sys, quire
async def main(url):
    async with quire.open(url) as store:
        async def edit(name):
            while True:
                async with store.workflow(name).edit(author=str(os.getpid())) as state:
                    state.increment("n")
                    state["last"] = os.getpid()
                os.write(1, b".")
        await asyncio.gather(*map(edit, ("a", "b", "c")))
asyncio.run(main(sys.argv[1]))
"""
SERVERS = {"PostgreSQL": PostgresServer, "Redis": RedisServer, "NATS": NatsServer}
PLACES = {"SQLite": "{}/store.db", "files": "file:///{}/folder"}


class Writer:
    """A process that writes. done: edits that were acknowledged.  waited_s: the longest time without one."""

    def __init__(self, ends: ExitStack, url: str) -> None:
        process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE)
        ends.enter_context(process)
        ends.callback(process.kill)
        self._out = os.dup(process.stdout.fileno())
        self.count_anew()
        threading.Thread(target=self._count, daemon=True).start()

    def count_anew(self) -> None:
        self.done, self.waited_s, self._last = 0, 0.0, time.perf_counter()

    def look(self) -> tuple[int, float]:
        return self.done, max(self.waited_s, time.perf_counter() - self._last)

    def _count(self) -> None:
        while more := len(os.read(self._out, 65536)):
            now = time.perf_counter()
            self.waited_s = max(self.waited_s, now - self._last)
            self._last = now
            self.done += more
        os.close(self._out)


def contend(url: str, seconds: float) -> tuple[float, list[tuple[int, float]]]:
    """Return how many edits a second one process makes alone, then what each of two makes in so many seconds."""
    with quire.sync.open(url) as store:
        for name in ("a", "b", "c"):
            store.create(name, {"n": 0})
    with ExitStack() as ends:
        writers = [Writer(ends, url)]
        _await(writers)
        alone = _counted(writers, seconds)[0][0] / seconds
        writers.append(Writer(ends, url))
        _await(writers)
        return alone, _counted(writers, seconds)


def _await(writers: list[Writer]) -> None:
    for writer in writers:
        writer.count_anew()
    while not all(writer.done for writer in writers):
        time.sleep(0.05)


def _counted(writers: list[Writer], seconds: float) -> list[tuple[int, float]]:
    for writer in writers:
        writer.count_anew()
    time.sleep(seconds)
    return [writer.look() for writer in writers]


def main(seconds: float = 8.0) -> None:
    """Print a row for each backend."""
    print("Two processes edit the same three workflows: edits/s")
    print("             alone    both   of alone   less/more   longest wait")
    for name in (*PLACES, *SERVERS):
        with ExitStack() as ends:
            if name in SERVERS:
                url = ends.enter_context(SERVERS[name]()).url
            else:
                url = PLACES[name].format(ends.enter_context(tempfile.TemporaryDirectory()))
            alone, (one, other) = contend(url, seconds)
        both = (one[0] + other[0]) / seconds
        less, more = sorted((one[0], other[0]))
        share, waited = less / max(1, more), max(one[1], other[1])
        print(
            f"{name:<10} {alone:>7,.0f} {both:>7,.0f} {both / alone:>10.2f} {share:>11.2f} {waited:>11.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
