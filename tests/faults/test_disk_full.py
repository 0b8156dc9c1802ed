"""A disk that is really full: who writes is told so, what was acknowledged stays, and the open store goes on later."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

import quire
from quire.errors import OutcomeUnknown, StorageError, StorageFull
from quire.testing.disk import disk_or_skip
from quire.testing.outage import served_from
from quire.testing.servers._process import nobody
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

REFUSALS = 12
TIDES = "tides " * 80


async def filled(url, disk, freed=None, reads=True, refusals=REFUSALS):
    """Write until there is no room, make room, and write on with the same store; return the errors met.

    freed: makes room; more than the disk's own `free` where a server has to be started again.
    reads: whether what is there can be read meanwhile.
    """
    acked, unknown, met = [], [], []
    async with quire.open(url) as store:
        wf = await store.create("w", {"log": []})

        async def append(text):
            await wf.append("/log", text)
            acked.append(text)

        for i in range(50):
            await append(f"before {i}")
        disk.fill()
        for i in range(100_000):
            text = f"{i} {TIDES}" if i % 2 else f"{i}"
            try:
                await append(text)
            except OutcomeUnknown as error:
                unknown.append(text)
                met.append(error)
            except StorageError as error:
                assert error.retryable
                met.append(error)
            if len(met) == refusals:
                break
        assert len(met) == refusals
        if reads:
            assert [text for text in await wf.get("/log") if text not in unknown] == acked
        (freed or disk.free)()
        for i in range(20):
            text = f"after {i}"
            try:
                await append(text)
            except StorageError as error:
                assert error.retryable
                assert i == 0, "the store that is open goes on, but for a first write that finds its session gone"
        assert (await store.verify()).ok
        seen = await wf.get("/log")
    async with quire.open(url) as store:
        assert (await store.verify()).ok
        kept = await store.workflow("w").get("/log")
    assert kept == seen
    assert [text for text in kept if text not in unknown] == acked
    return met


def told_of(met):
    """Full, but for the first, of which it may not be known what became of it."""
    return all(isinstance(error, StorageFull) for error in met[1:]) and isinstance(met[0], StorageFull | OutcomeUnknown)


@pytest.mark.parametrize("url", ["sqlite:///{}/s.db", "file:///{}/s", "rocksdb:///{}/s"])
async def test_a_full_disk_is_said_and_the_same_store_goes_on_when_there_is_room(url):
    with disk_or_skip(24 << 20) as disk:
        met = await filled(url.format(disk.folder), disk)
    assert told_of(met), met


def log_elsewhere(server):
    """Move PostgreSQL's write-ahead log to another disk; return the folder."""
    folder = Path(tempfile.mkdtemp(prefix="quire-wal-"))
    server.kill()
    shutil.move(server.data / "pg_wal", folder / "pg_wal")
    (server.data / "pg_wal").symlink_to(folder / "pg_wal")
    if os.geteuid() == 0:
        user = nobody()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
    server.restart()
    return folder


@pytest.mark.timeout(300)
async def test_postgresql_says_that_the_disk_of_its_tables_is_full():
    server = started(PostgresServer())  # skips, or fails where servers are required
    server.stop()
    with disk_or_skip(160 << 20) as disk, served_from(disk.folder, server):
        wal = log_elsewhere(server)
        try:
            met = await filled(server.url, disk)
        finally:
            server.kill()
            shutil.rmtree(wal)
    assert all(isinstance(error, StorageFull) for error in met), met


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "refusals"),
    [
        (PostgresServer, REFUSALS),
        (RedisServer, 1),
        pytest.param(NatsServer, 2, marks=pytest.mark.soak),  # it answers nothing, and that takes its time
    ],
)
async def test_a_server_whose_log_finds_no_room_may_end_and_nothing_acknowledged_is_lost(kind, refusals):
    """PostgreSQL and Redis end where they cannot write their log, so that nobody believes them; then they are started."""
    server = started(kind())
    server.stop()
    with disk_or_skip(160 << 20) as disk, served_from(disk.folder, server):

        def freed():
            disk.free()
            if server.running:
                server.kill()
            server.restart()

        await filled(server.url, disk, freed, reads=False, refusals=refusals)
