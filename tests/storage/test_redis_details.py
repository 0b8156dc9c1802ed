"""What Redis promises beyond the protocol: what its settings mean, what is refused, what late commands find, its repair."""

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha1
from itertools import count

import pytest
import redis

import quire
from quire.errors import (
    CorruptRecord,
    Denied,
    IncompatibleFormat,
    InvalidKey,
    LimitExceeded,
    OutcomeUnknown,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)
from quire.model import GENESIS, Head, Keyframe
from quire.storage import redis as backend_file
from quire.storage._redis_line import Address, Line
from quire.storage.base import CellWrite, Committed, Expect, Item, Refused
from quire.storage.open import open_backend
from quire.storage.redis import open_redis
from quire.testing import scenes
from quire.testing._conformance_base import begun
from quire.testing.conformance import bare, chain, entry
from quire.testing.scenes import following, opened
from quire.testing.servers.fixtures import shared, started
from quire.testing.servers.redis import RedisServer

places = count()


@contextmanager
def server(**settings):
    """Start a server of the test's own."""
    running = started(RedisServer({name.replace("_", "-"): value for name, value in settings.items()}))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def place():
    """Return the URL of an empty store on the shared server, and a client to look behind it."""
    running = shared(RedisServer)
    url = running.place(f"details {os.getpid()} {next(places)}")
    with redis.Redis(port=running.port) as client:
        client.prefix = url.partition("prefix=")[2]
        client.space = f"{client.prefix}:n:default:"
        yield url, client


# what is promised


@pytest.mark.parametrize(
    ("settings", "durability", "said"),
    [
        ({}, "power", "every acknowledged write"),
        ({"appendfsync": "everysec"}, "process", "may lose acknowledged writes: appendfsync is everysec"),
        ({"appendonly": "no"}, "none", "may lose acknowledged writes: appendonly is no"),
        ({"maxmemory_policy": "allkeys-lru"}, "none", "may lose acknowledged writes: maxmemory-policy is allkeys-lru"),
        ({"rename_command": 'CONFIG ""'}, "none", "cannot be known"),
    ],
)
async def test_durability_is_what_the_settings_of_the_server_give(settings, durability, said):
    if "rename_command" in settings:
        settings = {"rename_command CONFIG": ""}
    with server(**settings) as running:
        async with opened(running.url) as backend:
            assert backend.capabilities.durability == durability
            assert said in backend.capabilities.note


async def test_a_user_who_may_not_see_the_settings_is_told_that_nothing_is_known(place):
    url, client = place
    client.acl_setuser(
        "blind", enabled=True, passwords=["+pw"], keys=["*"], channels=["*"], commands=["+@all", "-config"]
    )
    async with opened(url.replace("redis://", "redis://blind:pw@")) as backend:
        assert backend.capabilities.durability == "none"
        assert "cannot be known" in backend.capabilities.note
        await backend.commit([begun("s/1", b"1")])
    client.acl_deluser("blind")


# what is refused at the door


@pytest.mark.parametrize(
    "rest",
    ["h:0/0", "h:99999/0", "h/x", "h/-1", "h/0?prefix=a*", "h/0?prefix=", "h/0?speed=1", "h/0#x", "h/0?ca=x", "["],
)
async def test_a_bad_url_is_refused_with_a_remedy(rest):
    await scenes.bad_url("redis://" + rest)


async def test_a_database_that_is_not_there_is_refused(place):
    url, _ = place
    with pytest.raises(InvalidKey, match="database"):
        await open_backend(url.replace("/0?", "/9999?"), namespace="default")


async def test_password_and_user_are_checked_and_never_shown():
    with server(requirepass="s3cret") as running:
        for who in ("", ":wr0ng@", "nobody:s3cret@"):
            with pytest.raises(Denied, match="password") as caught:
                await open_backend(running.url.replace("redis://", "redis://" + who), namespace="default")
            assert "wr0ng" not in str(caught.value)
            assert "s3cret" not in str(caught.value)
        async with opened(running.url.replace("redis://", "redis://:s3cret@")) as backend:
            assert await backend.commit([begun("s/1", b"1")]) == [Committed(1, 1)]


async def test_a_user_without_rights_is_told_so(place):
    url, client = place
    client.acl_setuser("weak", enabled=True, passwords=["+pw"], keys=["other*"], channels=["*"], commands=["+@all"])
    with pytest.raises(Denied, match="rights"):
        await open_backend(url.replace("redis://", "redis://weak:pw@"), namespace="default")
    client.acl_deluser("weak")


async def test_a_server_that_is_not_there_is_told():
    with server() as running:
        url = running.url
    await scenes.nobody_there(url, remedy="start Redis there")


async def test_something_else_that_listens_is_told():
    async def greet(_, writer):
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        writer.close()

    listener = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(StorageUnavailable, match="cannot be reached"):
            await open_backend(f"redis://127.0.0.1:{port}", namespace="default")


def test_without_the_driver_the_extra_is_named():
    scenes.missing_driver("hiredis", "redis://h", extra="redis")


async def test_foreign_keys_under_the_prefix_are_left_alone(place):
    url, client = place
    client.set(f"{client.prefix}:theirs", "x")
    with pytest.raises(IncompatibleFormat, match=r"\?prefix="):
        await open_backend(url, namespace="default")
    assert client.keys(f"{client.prefix}*") == [f"{client.prefix}:theirs".encode()]


async def test_stores_under_other_prefixes_of_a_database_are_not_foreign(place):
    url, client = place
    async with opened(url) as backend, opened(url + "x") as longer:
        await backend.commit([begun("s/1", b"1")])
        assert await longer.streams() == []
        assert await longer.latest() == 0
        assert len(client.keys(f"{client.prefix}x:*")) == 2  # its format and its session


async def test_a_store_of_another_format_is_refused(place):
    url, client = place
    client.set(f"{client.prefix}:format", "quire 99")
    with pytest.raises(IncompatibleFormat, match="quire 99"):
        await open_backend(url, namespace="default")


async def test_a_cluster_is_refused():
    with server(cluster_enabled="yes") as running:
        with pytest.raises(Unsupported) as caught:
            await open_backend(running.url, namespace="default")
        assert caught.value.capability == "cluster"


async def test_a_replica_is_refused_and_a_primary_that_becomes_one_stops_writing():
    with server() as primary, server() as other, redis.Redis(port=other.port) as client:
        async with opened(other.url) as backend:
            await backend.commit([begun("s/1", b"1")])
            client.replicaof("127.0.0.1", primary.port)
            with pytest.raises(StorageUnavailable, match="read-only replica"):
                await open_backend(other.url, namespace="default")
            with pytest.raises(StorageError) as caught:
                await backend.commit([following("s/1", 1)])
            assert caught.value.retryable
        other.kill()  # one that just became a replica does not end in good order while it writes its first log


# memory


async def test_out_of_memory_stores_nothing_and_leaves_the_way_out_open(place):
    with server() as running, redis.Redis(port=running.port) as client:
        async with opened(running.url) as backend:
            await backend.commit([begun("s/1", b"1", b"2"), begun("s/2", b"1")])
            await backend.put_blob("b", b"1" * 1000)
            client.config_set("maxmemory", "1")
            refused = [following("s/1", 2), Item(cells=(CellWrite("c", None, b"1"),))]
            with pytest.raises(StorageFull, match="maxmemory"):
                await backend.commit(refused)
            with pytest.raises(StorageUnavailable, match="recover"):
                await backend.commit(refused)
            await backend.recover()
            assert len(await backend.read("s/1")) == 2
            assert await backend.cell("c") is None
            with pytest.raises(StorageFull):
                await backend.put_blob("other", b"1")
            assert await backend.trim("s/1", 1) == 1  # who removes makes room
            await backend.drop("s/2")
            await backend.drop_blob("b")
            assert await backend.check() == []
            client.config_set("maxmemory", "0")
            assert await backend.commit(refused) == [Committed(4, 4), Committed(0, 0)]


async def test_after_a_call_that_failed_none_of_those_behind_it_takes_effect(place):
    with server() as running, redis.Redis(port=running.port) as client:
        async with opened(running.url) as backend:
            client.config_set("maxmemory", "1")
            await scenes.fail_in_a_row(backend, StorageFull, lambda: client.config_set("maxmemory", "0"))


# what comes late


class Post:
    """A carrier between client and server that can hold back what the client sends."""

    def __init__(self, port):
        self.port, self.released, self.tasks = port, asyncio.Event(), []
        self.released.set()
        self.delivered = 0

    async def carry(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def back():
            with suppress(OSError):
                while part := await up_reader.read(65536):
                    writer.write(part)

        answers = asyncio.create_task(back())
        with suppress(OSError):
            while part := await reader.read(65536):
                await self.released.wait()
                up_writer.write(part)
                await up_writer.drain()
                self.delivered += 1
        up_writer.write_eof()
        await answers
        for end in (up_writer, writer):
            end.close()


@asynccontextmanager
async def by_post(url):
    running = shared(RedisServer)
    post = Post(running.port)
    async with await asyncio.start_server(post.carry, "127.0.0.1", 0) as listener:
        address = Address("127.0.0.1", listener.sockets[0].getsockname()[1], 0, None, None, tls=False, ca=None)
        prefix = url.partition("prefix=")[2]
        backend = await open_redis(address, namespace="default", prefix=prefix, timeout_s=0.3, patience_s=0.3)
        try:
            yield backend, post
        finally:
            post.released.set()
            await backend.close()
            await asyncio.gather(*post.tasks)


@pytest.mark.parametrize("recovers", [True, False])
async def test_a_command_that_arrives_after_recovery_is_refused(place, recovers):
    """The control: without the recovery it lands, so the carrier does deliver it."""
    url, _ = place
    async with opened(url) as direct, by_post(url) as (backend, post):
        await backend.commit([begun("s/1", b"1")])
        post.released.clear()
        with pytest.raises(StorageTimeout):
            await backend.commit([following("s/1", 1, b"late")])
        assert len(await direct.read("s/1")) == 1
        if recovers:
            # the fence goes another way than what is held
            direct_line = Address("127.0.0.1", shared(RedisServer).port, 0, None, None, tls=False, ca=None)
            backend._writing = Line(direct_line, 5)
            await backend.recover()
        post.released.set()
        await asyncio.gather(*post.tasks[1:2])
        found = [r.body for r in await direct.read("s/1")]
        assert found == ([b"1"] if recovers else [b"1", b"late"])


async def test_a_number_out_of_turn_and_an_ended_session_are_refused(place):
    url, client = place
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        sha, session = backend_file._COMMIT_SHA, backend._session
        for number in (1, 3, 99):
            with pytest.raises(redis.ResponseError, match="FENCED"):
                client.evalsha(sha, 0, client.prefix, "default", session, number, "", 1000, b"\x92\x90\x90")
        await backend.recover()
        with pytest.raises(redis.ResponseError, match="FENCED"):
            client.evalsha(sha, 0, client.prefix, "default", session, 2, "", 1000, b"\x92\x90\x90")
        assert await backend.commit([following("s/1", 1)]) == [Committed(2, 2)]


async def test_a_session_that_redis_forgot_is_begun_anew(place):
    url, client = place
    async with opened(url) as backend:
        client.delete(f"{client.prefix}:session:{backend._session}")
        with pytest.raises(StorageUnavailable, match="recover"):
            await backend.commit([begun("s/1", b"1")])
        await backend.recover()
        assert await backend.commit([begun("s/1", b"1")]) == [Committed(1, 1)]


async def test_sessions_end_with_their_handles(place):
    url, client = place
    async with opened(url) as backend:
        await backend.recover()
        await backend.commit([begun("s/1", b"1")])
        (key,) = client.keys(f"{client.prefix}:session:*")
        assert 0 < client.pttl(key) <= 7 * 24 * 3600 * 1000
    assert client.keys(f"{client.prefix}:session:*") == []


async def test_scripts_that_the_server_forgot_are_given_anew(place):
    url, client = place
    async with quire.open(url) as store:
        wf = await store.create("w", {"n": 0})
        client.script_flush()
        with pytest.raises(StorageUnavailable) as caught:
            await wf.set("/n", 1)
        assert caught.value.retryable
        await wf.set("/n", 1)
        client.script_flush()
        assert await wf.get("/n") == 1
        assert [v.number for v in await wf.history()] == [2, 1]


async def test_a_line_that_was_cut_while_nothing_was_on_it_costs_nobody_an_error(place):
    url, client = place
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        client.client_kill_filter(_type="normal", skipme=True)
        while backend._writing.is_open or backend._reading.is_open:
            await asyncio.sleep(0)
        assert await backend.commit([following("s/1", 1)]) == [Committed(2, 2)]
        assert len(await backend.read("s/1")) == 2


async def test_a_cancelled_commit_does_not_disturb_the_next(place):
    url, _ = place
    async with opened(url) as backend:
        call = asyncio.create_task(backend.commit([begun("s/1", b"1")]))
        await asyncio.sleep(0)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        with suppress(StorageUnavailable):  # it may have been given up while it was sent
            await backend.commit([begun("s/2", b"1")])
        await backend.recover()
        assert isinstance((await backend.commit([begun("s/3", b"1")]))[0], Committed)


# waiting


async def test_who_waits_is_told_when_the_server_goes():
    with server() as running:
        async with opened(running.url) as backend:
            await scenes.waiter_told(running, backend, lambda: backend._news._task)


async def test_news_come_again_after_the_line_was_cut(place):
    url, client = place
    async with opened(url) as backend, opened(url) as other:
        waiting = asyncio.create_task(backend.changed(0, timeout_s=1000))
        while client.pubsub_numsub(f"{client.prefix}:news")[0][1] < 1:
            await asyncio.sleep(0)
        client.client_kill_filter(_type="pubsub")
        while client.pubsub_numsub(f"{client.prefix}:news")[0][1] < 1:
            await asyncio.sleep(0)
        await other.commit([begun("s/1", b"1")])
        assert await waiting == 1


# size


async def test_more_names_than_a_call_of_a_script_may_have(place):
    url, _ = place
    async with opened(url) as backend:
        items = [begun(f"s/{i:05}", b"1", b"2") for i in range(9000)]
        outcomes = await backend.commit(items)
        assert outcomes[-1] == Committed(17999, 18000)
        assert await backend.commit(items[:1]) == [Refused((Head("s/00000", 2, chain("s/00000", 2), "change"),))]
        assert len(await backend.feed(limit=20_000)) == 18_000
        assert len(await backend.heads([f"s/{i:05}" for i in range(9000)])) == 9000
        rewritten = [entry(f"s/{i:05}", 1, b"x") for i in range(9000)]
        assert await backend.rewrite(rewritten) == 9000
        assert [r.body for r in await backend.read("s/08999")] == [b"x", b"2"]
        assert await backend.check() == []


async def test_one_long_stream_is_read_trimmed_and_dropped(place):
    url, _ = place
    async with opened(url) as backend:
        records = tuple(entry("s/1", i) for i in range(1, 5001))
        await backend.commit([Item((Expect("s/1", 0, GENESIS),), records)])
        assert bare(await backend.read("s/1")) == list(records)
        assert bare(await backend.read("s/1", after=900, limit=2500)) == list(records[900:3400])
        assert await backend.trim("s/1", 3500) == 3500
        assert len(await backend.feed(limit=5000)) == 1500
        for version in range(3600, 3610):
            await backend.put_keyframe(Keyframe("s/1", version, bytes(32), 1, bytes(32), b"x"))
        await backend.drop_keyframes("s/1", range(9000))
        assert await backend.keyframes("s/1") == []
        await backend.drop("s/1")
        assert await backend.check() == []
        assert (await backend.stats()).records == 0


async def test_a_value_larger_than_redis_holds_is_refused(place, monkeypatch):
    monkeypatch.setattr(backend_file, "_VALUE_BYTES_MAX", 100)
    url, _ = place
    async with opened(url) as backend:
        with pytest.raises(LimitExceeded, match="Redis holds"):
            await backend.put_blob("b", b"1" * 100)
        assert await backend.blobs() == []


# damage


async def damaged_store(url):
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1", b"2", b"3", cells=[CellWrite("c", None, b"1", 3_600_000)])])
        await backend.put_keyframe(Keyframe("s/1", 2, bytes(32), 1, bytes(32), b"x"))
        await backend.put_blob("b", b"1")


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c.hset(c.space + "r:s/1", 3, b"garbage"),
        lambda c: c.hset(c.space + "r:s/1", 3, c.hget(c.space + "r:s/1", 2)),
        lambda c: c.hdel(c.space + "r:s/1", 2),
        lambda c: c.hset(c.space + "heads", "s/1", "x y z"),
        lambda c: c.hdel(c.space + "heads", "s/1"),
        lambda c: c.zrem(c.space + "streams", "s/1"),
        lambda c: c.xdel(c.space + "feed", "2-0"),
        lambda c: c.delete(c.space + "feed"),
        lambda c: c.set(c.prefix + ":position", 1),
        lambda c: c.hset(c.space + "k:s/1", 2, c.hget(c.space + "k:s/1", 2)[:-1] + b"y"),
        lambda c: c.hset(c.space + "k:s/1", 1, c.hget(c.space + "k:s/1", 2)),
        lambda c: c.set(c.space + "b:b", c.get(c.space + "b:b")[:-1] + b"2"),
        lambda c: c.set(c.space + "b:b", b""),
        lambda c: c.hset(c.space + "cells", "c", c.hget(c.space + "cells", "c")[:-1] + b"2"),
        lambda c: c.hset(c.space + "cells", "c", b"9" + c.hget(c.space + "cells", "c")),
        lambda c: c.hset(c.space + "cells", "c", b"garbage"),
        lambda c: c.hdel(c.space + "cells", "c"),
    ],
)
async def test_damage_is_found(place, damage):
    url, client = place
    await damaged_store(url)
    async with opened(url) as backend:
        assert await backend.check() == []
        damage(client)
        assert await backend.check()


async def test_damaged_values_are_never_answered(place):
    url, client = place
    await damaged_store(url)
    client.hset(client.space + "r:s/1", 2, b"garbage")
    client.hset(client.space + "heads", "s/1", "x y z")
    client.hset(client.space + "k:s/1", 2, b"garbage")
    client.set(client.space + "b:b", b"garbage")
    client.hset(client.space + "cells", "c", b"garbage")
    async with opened(url) as backend:
        for call in (
            lambda: backend.heads(["s/1"]),
            backend.feed,
            lambda: backend.keyframe("s/1"),
            lambda: backend.blob("b"),
            lambda: backend.cell("c"),
            backend.cells,
        ):
            with pytest.raises(CorruptRecord):
                await call()
        taken = [Item(cells=(CellWrite("c", None, b"2"),)), Item(cells=(CellWrite("c", b"1", b"2"),))]
        assert await backend.commit(taken) == [Refused((), ("c",))] * 2


LOSSES = {
    "the whole store": lambda c: c.delete(*c.keys(c.prefix + ":*")),
    "records of workflows/w: 0 of 6": lambda c: c.delete(c.space + "r:workflows/w"),
    "records of workflows/w: 5 of 6": lambda c: c.hdel(c.space + "r:workflows/w", 2),
    "the head of workflows/w": lambda c: c.delete(c.space + "heads"),
    "the heads of streams or their list": lambda c: c.delete(c.space + "streams"),
    "the feed": lambda c: c.delete(c.space + "feed"),
    "the newest position": lambda c: c.delete(c.prefix + ":position"),
    "cells or their list": lambda c: c.delete(c.space + "cells"),
}


async def written(store):
    """Return a workflow of six versions, with a key that is kept in a cell."""
    wf = await store.create("w", {"n": 0})
    for n in range(1, 6):
        await wf.set("/n", n, idempotency_key=f"key {n}")
    return wf


@pytest.mark.parametrize("what", LOSSES)
async def test_no_write_is_acknowledged_after_the_server_lost_a_key(place, what):
    url, client = place
    async with quire.open(url) as store:
        wf, other = await written(store), await store.create("other", {})
        LOSSES[what](client)
        for n in (6, 7):
            with pytest.raises((CorruptRecord, OutcomeUnknown)) as caught:
                await wf.set("/n", n)
            reasons = f"{caught.value} {caught.value.__cause__}"
            assert any(said in reasons for said in (what, "an older copy took its place", "it is not there"))
        if what.startswith("records of"):
            await other.set("/n", 1)  # what is whole goes on
    if what not in ("the whole store", "the newest position"):
        async with quire.open(url) as store:
            assert not (await store.verify()).ok


async def test_without_the_check_a_write_is_acknowledged_onto_nothing(place, monkeypatch):
    url, client = place
    script = backend_file._COMMIT.replace("if there ~= wanted", "if false")
    assert script != backend_file._COMMIT
    monkeypatch.setattr(backend_file, "_COMMIT", script)
    monkeypatch.setattr(backend_file, "_COMMIT_SHA", sha1(script.encode(), usedforsecurity=False).hexdigest())
    async with quire.open(url) as store:
        wf = await written(store)
        LOSSES["records of workflows/w: 0 of 6"](client)
        assert (await wf.set("/n", 6)).number == 7
    async with quire.open(url) as store:
        assert not (await store.verify()).ok


async def test_what_was_trimmed_dropped_or_expired_is_not_lost(place):
    url, _ = place
    async with quire.open(url) as store:
        wf, backend = await written(store), store.engine.backend
        await store.engine.frame("workflows/w", 4)
        assert await backend.trim("workflows/w", 3) == 3
        await wf.set("/n", 6)
        await store.create("gone", {})
        await backend.drop("workflows/gone")
        await wf.set("/n", 7, idempotency_key="another")
        await backend.drop("workflows/w")
        assert (await store.create("new", {})).id == "new"
        assert (await store.verify()).ok


async def test_a_key_that_is_something_else_is_damage(place):
    url, client = place
    await damaged_store(url)
    client.delete(client.space + "heads")
    client.set(client.space + "heads", "x")
    async with opened(url) as backend:
        with pytest.raises(CorruptRecord, match="replaced by something else"):
            await backend.heads(["s/1"])


# what is gone leaves no trace


def kept(running):
    return b"".join(f.read_bytes() for f in sorted(running.folder.rglob("*")) if f.is_file() and f.name != "server.log")


@pytest.mark.parametrize(("log", "snapshots"), [("yes", ""), ("yes", "3600 1"), ("no", "3600 1")])
async def test_scrubbing_leaves_no_trace_of_what_was_rewritten(log, snapshots):
    with server(appendonly=log) as running, redis.Redis(port=running.port) as client:
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("save", snapshots)
        async with opened(running.url) as backend:
            await backend.commit([begun("s/1", b'"the secret"'), begun("s/2", b"other")])
            client.save()  # one that somebody made, and that stays beside the log
            assert b"the secret" in kept(running)
            await backend.rewrite([entry("s/1", 1, b'"gone"')])
            await backend.scrub()
            assert b"the secret" not in kept(running)
            assert b"gone" in kept(running)
            assert b"the secret" not in repr(client.slowlog_get(1000)).encode()


async def test_a_server_that_does_not_let_us_scrub_says_who_has_to():
    with server(**{"rename-command BGREWRITEAOF": ""}) as running:
        async with opened(running.url) as backend:
            with pytest.raises(Unsupported, match="BGREWRITEAOF") as caught:
                await backend.scrub()
            assert caught.value.capability == "scrub"


async def test_a_handle_from_before_a_fork_is_closed_in_the_child(place):
    url, _ = place
    async with opened(url) as backend:
        await scenes.forked(backend)


def test_two_processes_write_to_one_workflow_and_lose_nothing(place):
    scenes.rivals(place[0])
