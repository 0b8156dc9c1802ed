"""Real servers that are killed, stopped, set badly, full or left by a replica: `health` answers, and says what it is."""

import os
import shutil
import signal
import subprocess

import pytest

import quire
from quire.engine.clock import FakeClock
from quire.testing.servers.fixtures import started
from quire.testing.servers.nats import NatsCluster, NatsServer
from quire.testing.servers.postgres import PostgresServer, _reachable, programs
from quire.testing.servers.redis import RedisServer

PATIENT = quire.HealthLimits(read_slow_s=1e6, commit_slow_s=1e6)


def check(health, name):
    return next(c for c in health.checks if c.name == name)


async def until(store, condition):
    """Look until it is so: what servers tell of each other comes when it comes."""
    while True:
        health = await store.health(limits=PATIENT)
        if health.vitals is not None and condition(health):
            return health


def following(health):
    return sum(replica.in_sync is True for replica in health.vitals.replicas)


@pytest.fixture(params=[PostgresServer, RedisServer, NatsServer], ids=lambda kind: kind.name)
def server(request):
    server = started(request.param())
    yield server
    server.stop()


async def test_a_killed_server_is_unhealthy_and_well_again_when_it_is_back(server):
    async with quire.open(server.url) as store:
        wf = await store.create("w", {"n": 0})
        assert (await store.health(limits=PATIENT)).ok
        server.kill()
        for deadline_s in (2.0, 0.5):  # the first may find the broken connection, the second none at all
            health = await store.health(deadline_s=deadline_s)
            assert health.status == "unhealthy"
            assert str(server.port) in health.reasons[0]
        server.restart()
        looks = store.watch_health(every_s=0.05, limits=PATIENT)
        async for health in looks:
            if health.ok:
                break
        await looks.aclose()
        assert (await wf.state()) == {"n": 0}


async def test_a_server_that_is_stopped_and_does_not_refuse_is_unhealthy_by_the_deadline(server):
    async with quire.open(server.url) as store:
        await store.create("w", {})
        await store.health()
        processes = [server.pid, *map(int, children(server.pid))]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            health = await store.health(deadline_s=0.5)
            assert health.status == "unhealthy"
            assert "longer than 0.5 s" in health.reasons[0]
        finally:
            for pid in processes:
                os.kill(pid, signal.SIGCONT)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


# what servers are set to


async def test_a_redis_that_may_lose_writes_is_degraded_also_when_it_is_set_so_later():
    import redis

    server = started(RedisServer())
    try:
        async with quire.open(server.url) as store:
            assert (await store.health(limits=PATIENT)).ok
            admin = redis.Redis(port=server.port)
            admin.config_set("appendfsync", "everysec")
            health = await store.health(limits=PATIENT)
            assert (health.status, health.durability) == ("degraded", "process")
            assert "appendfsync is everysec" in health.reasons[0] and "set always" in health.reasons[0]
            assert (await store.health(limits=PATIENT, expect_durability="process")).ok
            admin.config_set("appendfsync", "always")
            assert (await store.health(limits=PATIENT)).ok
            admin.close()
    finally:
        server.stop()


async def test_a_redis_whose_memory_is_nearly_full_is_degraded_and_unhealthy_when_it_is():
    import redis

    server = started(RedisServer())
    try:
        async with quire.open(server.url) as store:
            await store.create("w", {"text": "x" * 1_000_000})
            admin = redis.Redis(port=server.port)
            used = admin.info("memory")["used_memory"]
            admin.config_set("maxmemory", int(used * 1.05))
            assert check(await store.health(limits=PATIENT), "memory").status == "degraded"
            admin.config_set("maxmemory", int(used * 0.9))
            health = await store.health(limits=PATIENT)
            assert (health.status, check(health, "memory").status) == ("unhealthy", "unhealthy")
            assert check(health, "writing").status == "unhealthy" and "out of memory" in check(health, "writing").reason
            admin.close()
    finally:
        server.stop()


async def test_a_redis_that_lost_its_replica_is_degraded_and_one_that_became_a_replica_is_unhealthy():
    import redis

    server = started(RedisServer({"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}))
    replica, admin = started(RedisServer()), redis.Redis(port=server.port)
    try:
        async with quire.open(server.url) as store:
            await store.create("w", {})
            other = redis.Redis(port=replica.port)
            other.replicaof("127.0.0.1", server.port)
            other.close()
            health = await until(store, following)
            assert check(health, "replicas").figure == "1 of 1 follow"
            assert str(replica.port) in health.vitals.replicas[0].name
            admin.config_set("min-replicas-to-write", 1)
            admin.config_set("min-replicas-max-lag", 0)  # it is never too late: only wanted
            replica.kill()
            health = await until(store, lambda health: not following(health))
            assert check(health, "replicas").status == "degraded"
            assert "0 of 1 follow" in check(health, "replicas").reason
            replica.restart()
            admin.replicaof("127.0.0.1", replica.port)
            health = await until(store, lambda health: health.vitals.read_only)
            assert health.status == "unhealthy"
    finally:
        admin.close()
        replica.stop()
        server.stop()


async def test_a_postgres_that_may_lose_writes_is_degraded():
    server = started(PostgresServer({"fsync": "off", "full_page_writes": "off"}))
    try:
        async with quire.open(server.url) as store:
            health = await store.health(limits=PATIENT)
            assert (health.status, health.durability) == ("degraded", "process")
            assert "fsync is off" in health.reasons[0]
    finally:
        server.stop()


async def test_a_postgres_that_does_not_wait_for_its_disk_by_default_does_for_us():
    server = started(PostgresServer({"synchronous_commit": "off"}))
    try:
        async with quire.open(server.url) as store:
            health = await store.health(limits=PATIENT)
            assert (health.status, health.durability) == ("ok", "power")
    finally:
        server.stop()


class Standby(PostgresServer):
    """A copy of another server that follows it, through a slot of its own."""

    def __init__(self, primary):
        super().__init__()
        self.primary = primary

    def build(self):
        self.run(
            *(_reachable(programs(), self.folder) / "pg_basebackup", "-D", self.data, "-R", "--checkpoint=fast"),
            *("-C", "-S", "second", "-d", f"host=127.0.0.1 port={self.primary.port} user=postgres"),
        )


async def test_a_postgres_whose_standby_is_gone_is_degraded():
    server = started(PostgresServer({"max_wal_senders": "4", "max_replication_slots": "4"}))
    standby = Standby(server)
    try:
        async with quire.open(server.url) as store:
            await store.create("w", {})
            standby.start()
            health = await until(store, lambda health: health.ok and following(health))
            (replica,) = health.vitals.replicas
            assert replica.in_sync and replica.behind_bytes >= 0
            standby.kill()
            health = await until(store, lambda health: health.vitals.warnings)
            assert health.status == "degraded"
            assert any("nobody reads the replication slot second" in reason for reason in health.reasons)
    finally:
        standby.stop()
        server.stop()


async def test_a_role_that_may_see_little_gets_what_it_may_see():
    import asyncpg

    server = started(PostgresServer())
    try:
        admin = await asyncpg.connect(server.url)
        await admin.execute("CREATE ROLE plain LOGIN")
        await admin.execute("CREATE DATABASE mine OWNER plain")
        await admin.close()
        async with quire.open(f"postgresql://plain@127.0.0.1:{server.port}/mine") as store:
            await store.create("w", {})
            health = await store.health(limits=PATIENT)
            assert health.ok, health.reasons
            assert health.vitals.sessions > 0 and health.vitals.used_bytes > 0
    finally:
        server.stop()


async def test_a_clock_that_differs_from_the_servers_is_told():
    server = started(RedisServer())
    try:
        async with quire.open(server.url, clock=FakeClock(start_ms=0)) as store:
            health = await store.health(limits=PATIENT)
            assert (health.status, check(health, "clock").status) == ("degraded", "degraded")
            assert health.clock_off_s > 1e9
    finally:
        server.stop()


# NATS


async def test_a_cluster_with_a_node_down_is_degraded_and_goes_on():
    started(NatsServer()).stop()  # skips, or fails, where there is none
    with NatsCluster() as cluster:
        async with quire.open(cluster.url) as store:
            wf = await store.create("w", {"n": 0})
            health = await until(store, lambda health: health.ok)
            assert check(health, "replicas").figure == "2 of 2 follow"
            gone = next(node for node in cluster.nodes if node is not cluster.leader_of("quire"))
            gone.kill()
            # before that, a stream whose leader is gone may not answer
            health = await until(store, lambda health: check(health, "replicas").status != "ok")
            assert health.status == "degraded"
            assert gone.node in check(health, "replicas").reason
            await wf.inc("/n")


async def test_a_limit_of_the_servers_storage_is_the_disk():
    server = started(NatsServer("max_payload: 1MB"))
    try:
        async with quire.open(server.url) as store:
            assert (await store.health()).vitals.disk_total_bytes is None
            await store.engine.backend._shelf.api(
                "STREAM.UPDATE",
                (await store.engine.backend._shelf.api("STREAM.INFO"))["config"] | {"max_bytes": 100_000},
            )
            vitals = (await store.health()).vitals
            assert vitals.disk_total_bytes == 100_000
            assert 0 < vitals.disk_free_bytes < 100_000
    finally:
        server.stop()


def test_children_are_found():
    """The control of what is stopped above: a process that has a child says so."""
    assert shutil.which("sh")
    child = subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE)
    assert str(child.pid) in children(os.getpid())
    child.communicate(b"\n")
