"""A disk so slow that nothing ends, until it does: writers wait, none fails, no more than the bound are queued."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest

import quire
from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.storage import _files_disk
from quire.storage.sqlite import open_sqlite
from quire.testing.disk import DiskHeldUs, disk_or_skip
from quire.testing.outage import losses, served_from
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

BOUND, BATCH, WRITERS = 40, 8, 200
SETTINGS = Settings(queue_writes_max=BOUND, batch_writes_max=BATCH)


async def held_up(store, hold, reads=True):
    """Have more writers than may queue while `hold` keeps the disk busy; then let it go, and count.

    reads: whether who reads what is in memory need not wait.
    """
    committer = store.engine.committer
    flows = [await store.create(f"w{i}", {"log": []}) for i in range(10)]

    async def write(i):
        return (await flows[i % 10].append("/log", i)).number

    with hold():
        tasks = [asyncio.create_task(write(i)) for i in range(WRITERS)]
        waiting = WRITERS - BOUND - BATCH  # for room: a batch is on its way to the disk
        while (len(committer._queue), len(committer._room)) != (BOUND, waiting):
            assert len(committer._queue) <= BOUND
            await asyncio.sleep(0)
        for _ in range(1000):
            await asyncio.sleep(0)
            assert (len(committer._queue), len(committer._room)) == (BOUND, waiting)
        assert not any(task.done() for task in tasks)
        if reads:
            assert await flows[0].get("/log") == []
    numbers = await asyncio.gather(*tasks)
    assert len(numbers) == WRITERS
    logs = [await flow.get("/log") for flow in flows]
    assert sorted(sum(logs, [])) == list(range(WRITERS))
    assert (await store.verify()).ok


class Slow:
    """A sync that takes as long as the test says."""

    def __init__(self):
        self._go_on = threading.Event()
        self._go_on.set()

    @contextmanager
    def hold(self):
        self._go_on.clear()
        try:
            yield
        finally:
            self._go_on.set()

    def wait(self):
        assert self._go_on.wait(60)


@asynccontextmanager
async def slow_sqlite(path, slow):
    class File(apsw.VFSFile):
        def __init__(self, name, flags):
            super().__init__("", name, flags)

        def xSync(self, flags):
            slow.wait()
            super().xSync(flags)

    class Vfs(apsw.VFS):
        def xOpen(self, name, flags):
            return File(name, flags)

    vfs = Vfs("quire-slow", "")
    backend = await open_sqlite(str(path / "s.db"), namespace="n", vfs="quire-slow")
    store = Store(Engine(backend, SETTINGS, SystemClock(), system_ids(), await backend.latest()), "n")
    try:
        yield store
    finally:
        await store.close()
        vfs.unregister()


async def test_writers_wait_for_slow_syncs_of_sqlite(tmp_path):
    slow = Slow()
    async with slow_sqlite(tmp_path, slow) as store:
        await held_up(store, slow.hold)


async def test_writers_wait_for_slow_syncs_of_files(tmp_path, monkeypatch):
    slow, sync = Slow(), _files_disk.sync

    def slowly(handle):
        slow.wait()
        sync(handle)

    monkeypatch.setattr(_files_disk, "sync", slowly)
    async with quire.open(f"file:///{tmp_path}/s", settings=SETTINGS) as store:
        await held_up(store, slow.hold)


@pytest.mark.parametrize(("kind", "reads"), [(PostgresServer, True), (RedisServer, False), (NatsServer, False)])
async def test_writers_wait_for_a_server_whose_disk_is_frozen(kind, reads):
    """Redis and NATS answer nobody while they wait for their disk, so whoever reads waits too."""
    server = started(kind())  # skips, or fails where servers are required
    server.stop()
    with disk_or_skip() as disk, served_from(disk.folder, server):
        async with quire.open(server.url, settings=SETTINGS) as store:
            await held_up(store, disk.frozen, reads)


CLIENT = str(Path(__file__).parent / "crash_writer.py")


def heard(process, lines):
    """Return what a writer says until so many lines came, or it says nothing for a while (0)."""
    said = b""
    while (said.count(b"\n") < lines or lines == 0) and select.select([process.stdout], [], [], 60 if lines else 0.3)[
        0
    ]:
        part = os.read(process.stdout.fileno(), 65536)
        assert part, "the writer failed"
        said += part
    return said


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "file:///{}/s", "rocksdb:///{}/s"])
def test_a_process_on_a_frozen_disk_waits_and_goes_on(url):
    """In a process of its own: the kernel holds whoever maps a file of SQLite there, and RocksDB's driver its interpreter."""
    with disk_or_skip() as disk:
        url = url.format(disk.folder)
        with subprocess.Popen([sys.executable, CLIENT, url, "4", "honest"], stdout=subprocess.PIPE) as process:
            said = heard(process, 50)
            for _ in range(3):
                with disk.frozen():
                    said += heard(process, 0)
                said += heard(process, 50)
            process.send_signal(signal.SIGKILL)
            process.wait()
        acked = {}
        for line in said.decode().split("\n")[:-1]:
            if line != "ready":
                workflow, version, mark = line.split(" ")
                acked[int(workflow), int(version)] = mark
        assert len(acked) > 100
        assert not losses(url, acked, 4)


async def test_a_freeze_that_nobody_ends_is_ended():
    """The control: a loop that waits for its own disk is let go, and told so."""
    with disk_or_skip() as disk, pytest.raises(DiskHeldUs), disk.frozen(0.2):
        (disk.folder / "mine").write_bytes(b"1")
