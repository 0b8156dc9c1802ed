"""States under keys, on every store: the same promises, whatever the arguments say where it is."""

import asyncio
import json
import stat

import pytest

import quire
from quire import DatabaseStorageBackend, FileStorageBackend, RedisStorageBackend, Settings, StorageBackend
from quire.api.store import Store
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import (
    AlreadyExists,
    Closed,
    Invalid,
    InvalidKey,
    InvalidState,
    LimitExceeded,
    MergeConflict,
    NotFound,
    StorageUnavailable,
    Unsupported,
    VersionNotFound,
    WorkflowNotFound,
)
from quire.storage.memory import open_memory
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer


def redis_on(folder, **more):
    server = shared(RedisServer)
    prefix = server.place(folder).partition("prefix=")[2]
    return RedisStorageBackend("127.0.0.1", server.port, key_prefix=f"{prefix}:", **more)


def database_on(folder, **more):
    url, _, schema = shared(PostgresServer).place(folder).partition("?schema=")
    return DatabaseStorageBackend(url, table_name=schema, **more)


PLACES = {
    "file": lambda folder: FileStorageBackend(folder / "state"),
    "file, compressed": lambda folder: FileStorageBackend(folder / "packed", use_json=False),
    "redis": redis_on,
    "database": database_on,
    "memory": lambda folder: StorageBackend("memory:"),
    "sqlite": lambda folder: StorageBackend(f"sqlite:///{folder}/s.db", expire_time=60),
    "rocksdb": lambda folder: StorageBackend(f"rocksdb:///{folder}/r"),
    "nats": lambda folder: StorageBackend(shared(NatsServer).place(folder)),
}
STATE = {"session_id": "a", "status": "running", "branches": [{"branch_id": "b", "steps": []}], "n": 1.0}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_every_backend_keeps_the_same_promises(place, tmp_path):
    async with place(tmp_path) as storage:
        assert await storage.load("session_a") is None
        assert not await storage.exists("session_a")
        await storage.delete("session_a")
        made = await storage.save("session_a", STATE, author="ann", message="started")
        assert (made.number, made.author, made.message) == (1, "ann", "started")
        found = await storage.load("session_a")
        assert found == STATE
        assert type(found["n"]) is float
        found["branches"].append("mine")
        assert await storage.load("session_a") == STATE
        await storage.save("session_a", {**STATE, "status": "paused"})
        await storage.save("session_b", {})
        await storage.save("checkpoint_a", {"status": "completed"})
        assert await storage.exists("session_a")
        assert await storage.list_keys() == ["checkpoint_a", "session_a", "session_b"]
        assert await storage.list_keys("session_") == ["session_a", "session_b"]
        await storage.delete("session_b")
        await storage.delete("session_b")
        assert await storage.load("session_b") is None
        assert await storage.list_keys("session_") == ["session_a"]
        assert (await storage.save("session_b", {"again": 1})).number == 3, "numbers are never used again"
        history = await storage.workflow("session_a").history()
        assert [(v.number, v.author) for v in history] == [(2, "system"), (1, "ann")]
        assert await storage.workflow("session_a").state(1) == STATE
        assert (await storage.store.verify()).ok
    if "memory" not in storage._storage:
        async with place(tmp_path) as storage:
            assert await storage.load("session_a") == {**STATE, "status": "paused"}
            assert await storage.load("checkpoint_a") == {"status": "completed"}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_many_who_save_at_once_are_all_in_the_history(place, tmp_path):
    async with place(tmp_path) as storage:
        ended = [{"status": "completed", "n": n} if n % 2 else {"status": "running", "n": n} for n in range(20)]
        await asyncio.gather(*(storage.save("k", data, author=f"a{data['n']}") for data in ended))
        history = await storage.workflow("k").history()
        assert sorted(v.author for v in history) == sorted(f"a{n}" for n in range(20))
        assert [await storage.workflow("k").get("/n", version=v.number) for v in history] == [
            int(v.author[1:]) for v in history
        ]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_two_who_load_and_save_onto_their_base_both_keep_their_change(place, tmp_path):
    async with place(tmp_path) as storage:
        assert await storage.load_and_version("k") == (None, 0)
        await storage.save("k", {"a": 0, "b": 0, "log": []}, base=0)
        with pytest.raises(AlreadyExists):
            await storage.save("k", {"mine": 1}, base=0)
        (one, version), (two, same) = [await storage.load_and_version("k") for _ in range(2)]
        assert version == same == 1
        one["a"], two["b"] = 1, 2
        one["log"].append("one")
        two["log"].append("two")
        await storage.save("k", one, base=version)
        await storage.save("k", {**two, "status": "completed"}, base=version)  # whose time begins, where one is given
        assert await storage.load("k") == {"a": 1, "b": 2, "log": ["one", "two"], "status": "completed"}
        with pytest.raises(MergeConflict, match="/a was read as 0 and is 1"):
            await storage.save("k", {**two, "a": 5}, base=version)
        assert (await storage.load_and_version("k"))[1] == 3
        assert (await storage.save("k", {"a": 7})).number == 4  # whatever was there
        assert (await storage.save("k", {"a": 7}, base=4)).number == 5  # each save is a version
        with pytest.raises(VersionNotFound):
            await storage.save("k", {"a": 7}, base=9)
        await storage.delete("k")
        assert await storage.load_and_version("k") == (None, 0)
        with pytest.raises(WorkflowNotFound):
            await storage.save("k", {"a": 8}, base=5)
        assert (await storage.save("k", {"a": 8}, base=0)).number == 7


async def test_what_the_store_does_about_conflicts_counts_for_saves_with_a_base_too():
    async with quire.open("memory:", on_conflict="theirs") as store, StorageBackend(store) as storage:
        await storage.save("k", {"a": 0})
        await storage.save("k", {"a": 1}, base=1)
        await storage.save("k", {"a": 2}, base=1)
        assert await storage.load("k") == {"a": 1}
        assert [c.policy for c in await store.workflow("k").conflicts()] == ["theirs"]


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "/etc/passwd", "a b", ".hidden", "x" * 300, 7, None])
async def test_a_key_that_could_be_something_else_is_refused(bad, tmp_path):
    async with FileStorageBackend(tmp_path / "s") as storage:
        for call in (
            lambda: storage.save(bad, {}),
            lambda: storage.load(bad),
            lambda: storage.delete(bad),
            lambda: storage.exists(bad),
        ):
            with pytest.raises(InvalidKey):
                await call()


async def test_what_is_not_json_is_refused_with_its_place_and_nothing_stored():
    async with StorageBackend("memory:") as storage:
        with pytest.raises(InvalidState) as caught:
            await storage.save("k", {"a": [{"b": {1, 2}}]})
        assert caught.value.path == "/a/0/b"
        with pytest.raises(InvalidState, match="object"):
            await storage.save("k", [1])
        assert await storage.list_keys() == []


async def test_an_open_store_is_lent_and_its_limits_hold():
    async with quire.open("memory:", settings=Settings(state_bytes_max=100)) as store:
        async with StorageBackend(store) as storage:
            await storage.save("k", {"a": 1})
            with pytest.raises(LimitExceeded):
                await storage.save("k", {"a": "x" * 100})
        assert await store.workflow("k").state() == {"a": 1}
        with pytest.raises(Closed):
            await storage.load("k")


# files


async def test_use_json_is_readable_and_named_as_the_document_says(tmp_path):
    async with FileStorageBackend(str(tmp_path / "deep" / "er"), True, True, ".state") as storage:
        await storage.save("session_1", {"text": "the tide comes and goes " * 100})
    lines = (tmp_path / "deep/er/workflows/session_1.state").read_text().splitlines()
    assert any("the tide comes and goes" in json.dumps(json.loads(line)) for line in lines)
    async with FileStorageBackend(tmp_path / "packed", use_json=False) as storage:
        await storage.save("session_1", {"text": "the tide comes and goes " * 100})
    assert b"the tide" not in (tmp_path / "packed/workflows/session_1.state").read_bytes()
    with pytest.raises(Invalid, match="use_json=False"):
        async with FileStorageBackend(tmp_path / "packed"):
            pass


async def test_create_dirs_decides_who_makes_the_folder(tmp_path):
    with pytest.raises(NotFound, match="create_dirs=True"):
        async with FileStorageBackend(tmp_path / "s", create_dirs=False):
            pass
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    async with FileStorageBackend(tmp_path / "s", create_dirs=False) as storage:
        await storage.save("k", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidKey, match="cannot be made"):
        async with FileStorageBackend(tmp_path / "file" / "s"):
            pass


@pytest.mark.parametrize("use_json", [True, False])
async def test_files_end_as_the_folder_was_made(tmp_path, use_json):
    how = {"use_json": use_json, "file_extension": ".json"}
    async with FileStorageBackend(tmp_path / "s", **how) as storage:
        await storage.save("k", {"a": 1})
        await storage.save("a.json", {"a": 2})
    assert sorted(p.name for p in (tmp_path / "s/workflows").iterdir()) == ["a.json.json", "k.json"]
    async with FileStorageBackend(tmp_path / "s", **how) as storage:
        assert await storage.list_keys() == ["a.json", "k"]
        assert await storage.load("k") == {"a": 1}
    for other in (".state", ".JSON", ".js"):
        with pytest.raises(Invalid, match=r"end in \.json"):
            await FileStorageBackend(tmp_path / "s", use_json=use_json, file_extension=other).start()


async def test_a_path_with_odd_characters_is_that_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with FileStorageBackend("a b?c=%20#é") as storage:
        await storage.save("k", {})
    assert (tmp_path / "a b?c=%20#é/workflows/k.state").exists()
    assert stat.S_ISDIR((tmp_path / "a b?c=%20#é").stat().st_mode)


# arguments


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: FileStorageBackend("s", file_extension="json"), Invalid, "a dot"),
        (lambda: FileStorageBackend("s", file_extension="./x"), Invalid, "a dot"),
        (lambda: FileStorageBackend("s", file_extension=".json\n"), Invalid, "a dot"),
        (lambda: FileStorageBackend("s", file_extension=None), Invalid, "a dot"),
        (lambda: FileStorageBackend("s", use_json="yes"), Invalid, "use_json"),
        (lambda: FileStorageBackend(""), InvalidKey, "base_path"),
        (lambda: FileStorageBackend(7), InvalidKey, "base_path"),
        (lambda: RedisStorageBackend(""), InvalidKey, "host"),
        (lambda: RedisStorageBackend("a@b"), InvalidKey, "host"),
        (lambda: RedisStorageBackend(port="6379"), InvalidKey, "port"),
        (lambda: RedisStorageBackend(port=70000), InvalidKey, "port"),
        (lambda: RedisStorageBackend(db=-1), InvalidKey, "db"),
        (lambda: RedisStorageBackend(password=b"x"), InvalidKey, "password"),
        (lambda: RedisStorageBackend(expire_time=0), Invalid, "expire_time"),
        (lambda: RedisStorageBackend(expire_time=float("nan")), Invalid, "expire_time"),
        (lambda: RedisStorageBackend(expire_time=True), Invalid, "expire_time"),
        (lambda: RedisStorageBackend(key_prefix=""), InvalidKey, "key_prefix"),
        (lambda: RedisStorageBackend(key_prefix=":"), InvalidKey, "key_prefix"),
        (lambda: DatabaseStorageBackend("mysql://u:s3cret@h/d"), Unsupported, "PostgreSQL"),
        (lambda: DatabaseStorageBackend(None), InvalidKey, "connection_string"),
        (lambda: DatabaseStorageBackend("postgresql://h/d", table_name=""), InvalidKey, "table_name"),
        (lambda: DatabaseStorageBackend("postgresql://h/d", pool_size=0), Invalid, "pool_size"),
        (lambda: DatabaseStorageBackend("postgresql://h/d", pool_size=3), Unsupported, "allow it 4"),
        (lambda: StorageBackend("memory:", expire_time=-1), Invalid, "expire_time"),
        (lambda: StorageBackend(None), Invalid, "storage"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused(make, error, said):
    with pytest.raises(error, match=said) as caught:
        make()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: RedisStorageBackend("127.0.0.1", 1, password="s3cret"), StorageUnavailable),
        (lambda: RedisStorageBackend("127.0.0.1", 1, key_prefix="a b:"), InvalidKey),
        (lambda: DatabaseStorageBackend("postgresql://u:s3cret@127.0.0.1:1/d"), StorageUnavailable),
        (lambda: DatabaseStorageBackend("postgresql://127.0.0.1:1/d", table_name="drop table"), InvalidKey),
        (lambda: DatabaseStorageBackend("postgresql://127.0.0.1:1/d?schema=a"), InvalidKey),
    ],
)
async def test_what_only_opening_shows_is_typed_and_tells_no_password(make, error):
    with pytest.raises(error) as caught:
        await make().start()
    assert "s3cret" not in str(caught.value)


async def test_keys_of_redis_begin_with_the_prefix_and_tables_lie_in_the_schema(tmp_path):
    from redis.asyncio import Redis

    async with redis_on(tmp_path) as storage:
        await storage.save("k", {"status": "completed"})
        prefix = storage._storage.partition("prefix=")[2]
    client = Redis(port=shared(RedisServer).port)
    keys = [key.decode() async for key in client.scan_iter(f"{prefix}*")]
    assert keys
    assert all(key.startswith(f"{prefix}:") for key in keys)
    await client.aclose()
    import asyncpg

    async with database_on(tmp_path) as storage:
        await storage.save("k", {})
        url, _, schema = shared(PostgresServer).place(tmp_path).partition("?schema=")
        db = await asyncpg.connect(url)
        count = "SELECT count(*) FROM information_schema.tables WHERE table_schema = $1 AND table_name = 'records'"
        assert await db.fetchval(count, schema) == 1
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE '%' || $1 || '%'"
        assert await db.fetchval(sessions, schema) <= 10
        await db.close()


async def test_the_documents_defaults_are_the_defaults():
    storage = RedisStorageBackend()
    assert storage._storage == "redis://localhost:6379/0?prefix=marsys"
    assert storage._expire_s == 86400
    assert (
        RedisStorageBackend("::1", password="a:b/@?")._storage == "redis://:a%3Ab%2F%40%3F@[::1]:6379/0?prefix=marsys"
    )
    assert DatabaseStorageBackend("postgres://h/d")._storage == "postgresql://h/d?schema=marsys_state&readers=7"
    assert DatabaseStorageBackend("postgresql://h/d", pool_size=4)._storage.endswith("&readers=1")
    assert DatabaseStorageBackend("postgresql://h/d", pool_size=500)._storage.endswith("&readers=64")


# time


class Wrong(SystemClock):
    """A clock that says always the same, and waits as any other."""

    def __init__(self, ms):
        self.ms = ms

    def now_ms(self):
        return self.ms


class Timed:
    """Two handles on one store in memory, whose clock is wound by hand; their own clocks are wrong on purpose."""

    async def open(self, expire_time=60):
        self.now = 1_000_000
        self.backends = [await open_memory(f"t{id(self)}", namespace="n", now_ms=lambda: self.now) for _ in range(2)]
        clocks = (Wrong(1), Wrong(10**13))
        self.stores = [
            Store(Engine(b, Settings(), c, system_ids(), await b.latest()), "n")
            for b, c in zip(self.backends, clocks, strict=True)
        ]
        made = [StorageBackend(s, expire_time=expire_time) for s in self.stores]
        for storage in made:
            await storage.start()
        return made

    async def close(self):
        for store in self.stores:
            await store.close()


async def log_of(storage, key):
    return await storage.store.engine.backend.read(f"workflows/{key}")


@pytest.fixture
async def timed():
    made = Timed()
    yield made
    await made.close()


async def test_only_what_has_ended_expires_and_by_the_clock_of_the_backend(timed):
    one, two = await timed.open()
    for status in ("running", "paused", "failed", "completed", "cancelled"):
        await one.save(f"s-{status}", {"status": status})
    timed.now += 59_000
    assert len(await two.list_keys()) == 5
    timed.now += 2_000
    assert await two.load("s-completed") is None
    assert not await one.exists("s-completed")
    assert await one.list_keys() == ["s-failed", "s-paused", "s-running"]
    assert await two.list_keys("s-c") == []
    last = (await log_of(one, "s-completed"))[-1]
    assert (last.version, last.kind, last.author) == (2, "delete", "quire")
    await one.save("s-completed", {})
    assert await one.workflow("s-completed").state(1) == {"status": "completed"}, "the history stays"
    assert await timed.backends[0].cells("expiry/") == []


async def test_saving_again_begins_or_ends_the_time(timed):
    one, two = await timed.open()
    await one.save("a", {"status": "completed"})
    await one.save("b", {"status": "completed"})
    timed.now += 40_000
    await two.save("a", {"status": "completed", "again": 1})
    await two.save("b", {"status": "running"})
    timed.now += 40_000
    assert await one.list_keys() == ["a", "b"]
    timed.now += 40_000
    assert await two.list_keys() == ["b"]
    assert await one.sweep() == 0


async def test_what_was_written_by_another_way_since_stays(timed):
    one, two = await timed.open()
    await one.save("a", {"status": "completed"})
    await two.workflow("a").set("/note", "still needed")
    timed.now += 100_000
    assert await one.load("a") == {"status": "completed", "note": "still needed"}
    assert await two.sweep() == 0
    assert await one.list_keys() == ["a"]


async def test_what_was_ended_by_hand_is_not_ended_twice(timed):
    one, two = await timed.open()
    for key in ("a", "b"):
        await one.save(key, {"status": "completed"})
    await two.delete("a")
    await timed.stores[0].delete("b")  # by who knows nothing of times
    timed.now += 100_000
    await two.sweep()
    assert [len(await log_of(one, key)) for key in ("a", "b")] == [2, 2]
    assert await timed.backends[0].cells("expiry/") == []


async def test_two_who_sweep_at_once_end_it_once(timed):
    one, two = await timed.open()
    for number in range(30):
        await one.save(f"s{number}", {"status": "ended"})
    timed.now += 61_000
    assert sum(await asyncio.gather(one.sweep(), two.sweep(), one.sweep())) >= 30
    assert await two.list_keys() == []
    for number in range(30):
        assert len(await log_of(one, f"s{number}")) == 2


async def test_without_a_time_nothing_expires(timed):
    one, _ = await timed.open(expire_time=None)
    await one.save("a", {"status": "completed"})
    timed.now += 10**12
    assert await one.list_keys() == ["a"]
    assert await one.sweep() == 0
    assert await timed.backends[0].cells("expiry/") == []


async def test_redis_itself_keeps_the_time(tmp_path):
    async with redis_on(tmp_path, expire_time=0.001) as storage:
        await storage.save("gone", {"status": "completed"})
        await storage.save("here", {"status": "running"})
        while await storage.exists("gone"):  # a millisecond, by the server's clock
            await asyncio.sleep(0)
        assert await storage.list_keys() == ["here"]


# without await


def test_without_await_it_is_the_same(tmp_path):
    with quire.sync.FileStorageBackend(tmp_path / "s") as storage:
        assert storage.save("k", {"a": 1}, author="ann").author == "ann"
        assert storage.load("k") == {"a": 1}
        assert storage.workflow("k").get("/a") == 1
        assert storage.exists("k")
        assert storage.list_keys() == ["k"]
        storage.delete("k")
        assert storage.load("k") is None
        assert storage.sweep() == 0
    with pytest.raises(NotFound):
        quire.sync.FileStorageBackend(tmp_path / "none", create_dirs=False)
    with pytest.raises(Invalid, match=r"end in \.state, not in \.json"):
        quire.sync.FileStorageBackend(tmp_path / "s", file_extension=".json")
    with quire.sync.FileStorageBackend(tmp_path / "p", use_json=False) as storage:
        storage.save("k", {"a": 1})
    with pytest.raises(Invalid, match="use_json=False"):
        quire.sync.FileStorageBackend(tmp_path / "p")


def test_without_await_on_servers(tmp_path):
    server = shared(RedisServer)
    with quire.sync.RedisStorageBackend("127.0.0.1", server.port, key_prefix=f"sync{tmp_path.name[-5:]}:") as storage:
        storage.save("k", {"status": "completed"})
        assert storage.list_keys() == ["k"]
        assert {c.name for c in storage.loop.run(storage.twin.store.engine.backend.cells("expiry/"))} == {
            "expiry/due/k",
            "expiry/timer/k",
        }
    url, _, schema = shared(PostgresServer).place(tmp_path).partition("?schema=")
    with quire.sync.DatabaseStorageBackend(url, schema) as storage:
        storage.save("k", {"a": 1})
        assert storage.load("k") == {"a": 1}
