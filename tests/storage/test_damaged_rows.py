"""Whatever is wrong with a row, what reads it says so with an error of ours, or answers what was stored."""

import asyncio
import os
import random
import re
import shutil
import sqlite3
from contextlib import asynccontextmanager, closing, suppress

import apsw
import asyncpg
import nats
import pytest
import redis

import quire
from quire.config import Retention, Settings
from quire.errors import CorruptRecord, QuireError
from quire.storage import _sqlite_read
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

FRAMES = Settings(keyframe_changes_min=4, keyframe_bytes_min=0)
WRONG = {
    "NULL": "NULL",
    "bytes": "x'ff00'",
    "text": "'no number'",
    "text that is no UTF-8": "CAST(x'ff' AS TEXT)",
    "a float": "1.5",
    "a negative number": "-7",
    "a huge number": "4611686018427387904",
    "nothing": "''",
}


def columns(path):
    """Return the columns of a store's tables that may hold any type, once nothing is declared."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [
            (table, column)
            for table in tables
            for _, column, kind, _, _, key in db.execute(f"PRAGMA table_info({table})")
            if not (kind == "INTEGER" and key)
        ]


def damage(path, table, column, value):
    """Put a value of any type where SQLite would not take it: the declarations are taken away, and put back."""
    with closing(sqlite3.connect(path)) as db:
        declared = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall()
        db.execute("PRAGMA writable_schema = ON")
        for name, sql in declared:
            bare = sql.replace(" NOT NULL", "").replace("STRICT, WITHOUT", "WITHOUT").replace("STRICT", "")
            for kind in ("INTEGER PRIMARY KEY", "TEXT PRIMARY KEY"):
                bare = bare.replace(kind, kind.replace(" PRIMARY", "\0"))
            for kind in (" INTEGER", " TEXT", " BLOB", " ANY"):
                bare = bare.replace(f"{kind},", ",").replace(f"{kind}\n", "\n").replace(f"{kind} ", " ")
            db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (bare.replace("\0", " PRIMARY"), name))
        db.commit()
    with closing(sqlite3.connect(path)) as db:
        with suppress(sqlite3.IntegrityError):  # two rows would have one key
            db.execute(f"UPDATE {table} SET {column} = {value} WHERE {column} = (SELECT {column} FROM {table} LIMIT 1)")
        db.commit()
        db.execute("PRAGMA writable_schema = ON")
        for name, sql in declared:
            db.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, name))
        db.commit()


async def filled(url):
    """Make a store that has something in every place."""
    async with quire.open(url, settings=FRAMES) as store:
        wf = await store.create("w", {"n": 0, "log": []}, author="ann")
        for n in range(20):
            await wf.append("/log", f"entry {n}", idempotency_key=f"key {n}")
        await wf.checkpoint("half", version=10)
        await wf.fork("f", at=5)
        await store.put_blob(b"a picture")
        await store.create("v", {"x": 1})
        await store.delete("v")


async def asked(url, *, writes=True):
    """Put every question to a store; return what was answered with an error that is not ours."""
    found = []

    async def ask(name, call):
        try:
            return await call()
        except QuireError:
            return None
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            found.append(f"{name}: {type(error).__name__}: {error}")
            return None

    async def opening():
        return await quire.open(url, settings=FRAMES).__aenter__()

    store = await ask("open", opening)
    if store is None:
        return found
    wf, backend = store.workflow("w"), store.engine.backend
    questions = {
        "state": wf.state,
        "old state": lambda: wf.state(7),
        "fork": store.workflow("f").state,
        "history": wf.history,
        "blame": lambda: wf.blame("/log"),
        "checkpoints": wf.checkpoints,
        "workflows": store.workflows,
        "stats": store.stats,
        "health": store.health,
        "verify": store.verify,
        "check": backend.check,
        "feed": lambda: backend.feed(0),
        "latest": backend.latest,
        "streams": backend.streams,
        "keyframes": lambda: backend.keyframes("workflows/w"),
        "cells": backend.cells,
        "cells of a prefix": lambda: backend.cells("k"),
        "blobs": backend.blobs,
    }
    changes = {
        "write": lambda: wf.set("/n", 1, idempotency_key="key 3"),
        "create": lambda: store.create("new", {}),
        "keyed": lambda: wf.set("/n", 2, idempotency_key="key 19"),
        "sweep": lambda: store.sweep(retention=Retention(versions=3)),
    }
    for name, call in (questions | (changes if writes else {})).items():
        await ask(name, call)
    for name in await ask("names of blobs", backend.blobs) or []:
        await ask("blob", lambda name=name: backend.blob(name))
    await ask("close", store.close)
    return found


@pytest.mark.timeout(600)
async def test_a_value_of_any_type_in_any_column_is_an_error_of_ours(tmp_path):
    found, sound, path = [], str(tmp_path / "sound.db"), str(tmp_path / "s.db")
    await filled(sound)
    shutil.copy(sound, path)
    assert await asked(path) == []
    for table, column in columns(sound):
        for what, value in WRONG.items():
            for file in tmp_path.glob("s.db*"):
                file.unlink()
            shutil.copy(sound, path)
            damage(path, table, column, value)
            found += [f"{table}.{column} is {what}: {said}" for said in await asked(path)]
    print("\n".join(found))
    assert found == []


async def test_without_the_checks_of_types_they_are_bare_errors(tmp_path, monkeypatch):
    path = str(tmp_path / "s.db")
    await filled(path)
    damage(path, "cells", "name", WRONG["bytes"])
    damage(path, "blobs", "name", WRONG["bytes"])
    assert await asked(path, writes=False) == []
    monkeypatch.setattr(_sqlite_read, "_text", lambda name, _: name)
    found = await asked(path, writes=False)
    assert {each.split(":")[0] for each in found} >= {"cells", "check"}


# other stores


def spoilt(value, chance):
    """Return values that are like one that was stored, and wrong."""
    at = chance.randrange(len(value)) if value else 0
    flipped = value[:at] + bytes([value[at] ^ 1 << chance.randrange(8)]) + value[at + 1 :] if value else b"\x00"
    return [b"", b"\xff\xfe", b"garbage", flipped, value[: len(value) // 2]]


@pytest.mark.timeout(600)
async def test_whatever_a_hash_or_key_of_redis_holds_is_an_error_of_ours():
    server, chance, found = shared(RedisServer), random.Random(1), []
    url = server.place(f"damaged rows {os.getpid()}")
    await filled(url)
    with redis.Redis(port=server.port) as client:
        keys = client.keys(url.partition("prefix=")[2] + ":*")
        for key in keys:
            kind = client.type(key)
            if kind == b"hash":
                fields = sorted(client.hgetall(key).items())
                for field, value in [*fields[:2], *fields[-1:]]:
                    for bad in spoilt(value, chance):
                        client.hset(key, field, bad)
                        found += [f"{key} {field} {bad}: {said}" for said in await asked(url, writes=False)]
                    client.hset(key, field, value)
            elif kind == b"string" and b":session:" not in key:
                value = client.get(key)
                for bad in spoilt(value, chance):
                    client.set(key, bad)
                    found += [f"{key} {bad}: {said}" for said in await asked(url, writes=False)]
                client.set(key, value)
            elif kind == b"zset":
                for bad in (b"", b"\xff", b"garbage"):
                    client.zadd(key, {bad: 0})
                    found += [f"{key} {bad}: {said}" for said in await asked(url, writes=False)]
                    client.zrem(key, bad)
            for other in (lambda key=key: client.set(key, b"x"), lambda key=key: client.rpush(key, b"x")):
                kept = client.dump(key)
                client.delete(key)
                other()
                found += [f"{key} of another type: {said}" for said in await asked(url, writes=False)]
                client.delete(key)
                client.restore(key, 0, kept)
        print("\n".join(found))
        assert found == []
        assert (await asked(url)) == []


@pytest.mark.timeout(600)
async def test_whatever_a_row_of_postgres_holds_is_an_error_of_ours():
    server, found = shared(PostgresServer), []
    key = f"damaged rows {os.getpid()}"
    url, schema = server.place(key), server.schema(key)
    await filled(url)
    wrong = {
        "text": ["", "no name", "\x10", "\uffff"],
        "bytea": [b"", b"\xff", bytes(32)],
        "bigint": [-7, 0, 2**62],
    }
    db = await asyncpg.connect(server.url, server_settings={"search_path": schema})
    try:
        of = await db.fetch(
            "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = $1"
            " AND table_name IN ('meta', 'streams', 'records', 'keyframes', 'blobs', 'cells') AND is_identity = 'NO'",
            schema,
        )
        assert len(of) > 20
        for table, column, kind in of:
            for bad in wrong[kind]:
                async with reverted(db, table):
                    with suppress(asyncpg.IntegrityConstraintViolationError):
                        row = f"SELECT ctid FROM {table} ORDER BY {column} LIMIT 1"
                        await db.execute(f"UPDATE {table} SET {column} = $1 WHERE ctid = ({row})", bad)
                        told = await asked(url, writes=False)
                        found += [f"{table}.{column} is {bad!r}: {said}" for said in told]
    finally:
        await db.close()
    print("\n".join(found))
    assert found == []


@asynccontextmanager
async def reverted(db, table):
    """Put a table back as it was."""
    await db.execute(f"CREATE TABLE kept AS SELECT * FROM {table}")
    try:
        yield
    finally:
        await db.execute(f"TRUNCATE {table}")
        identity = "OVERRIDING SYSTEM VALUE" if table == "streams" else ""
        await db.execute(f"INSERT INTO {table} {identity} SELECT * FROM kept")
        await db.execute("DROP TABLE kept")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["file", "rocksdb"])
async def test_whatever_a_file_holds_is_an_error_of_ours(tmp_path, scheme):
    sound, path, chance, found = tmp_path / "sound", tmp_path / "f", random.Random(2), []
    await filled(f"{scheme}:///{sound}")
    files = sorted(p.relative_to(sound) for p in sound.rglob("*") if p.is_file() and p.stat().st_size)
    for file in files:
        data = (sound / file).read_bytes()
        for bad in [*spoilt(data, chance), *(_flipped(data, chance) for _ in range(4))]:
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(sound, path)
            (path / file).write_bytes(bad)
            found += [f"{file}: {said}" for said in await asked(f"{scheme}:///{path}")]
    print("\n".join(found))
    assert found == []


def _flipped(data, chance):
    bit = chance.randrange(len(data) * 8)
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


@pytest.mark.timeout(600)
async def test_whatever_a_message_of_nats_holds_is_an_error_of_ours():
    server, found = shared(NatsServer), []
    url = server.place(f"damaged rows {os.getpid()}")
    await filled(url)
    name = url.partition("stream=")[2]
    headers = [
        None,
        {"Quire": "no json"},
        {"Quire": "[]"},
        {"Quire": '{"first":"x"}'},
        {"Quire": '{"first":-1,"parts":9}'},
    ]
    client = await nats.connect(f"nats://127.0.0.1:{server.port}", allow_reconnect=False)
    try:
        stream = client.jetstream()
        for of in (name, f"{name}-side"):
            subjects = sorted((await stream.stream_info(of, subjects_filter=">")).state.subjects)
            assert len(subjects) > 2
            of_a_kind = {subject.split(".")[1]: subject for subject in subjects}
            for subject in of_a_kind.values():
                for header in headers:
                    for data in (b"", b"\xff\xfe", b"garbage"):
                        sequence = (await stream.publish(subject, data, headers=header)).seq
                        told = await asked(url, writes=False)
                        found += [f"{subject} {header} {data!r}: {said}" for said in told]
                        await stream.delete_msg(of, sequence)
    finally:
        await client.close()
    print("\n".join(found))
    assert found == []


async def memory_without(path):
    path["memory"]._place.spaces["default"].streams["workflows/w"].pop(GONE - 1)


async def sqlite_without(path):
    with closing(sqlite3.connect(path["sqlite"])) as db, db:
        assert db.execute(f"DELETE FROM records WHERE {OF_W}", (GONE,)).rowcount == 1


async def postgres_without(path):
    url, schema = path["postgres"]
    db = await asyncpg.connect(url, server_settings={"search_path": schema})
    assert await db.execute(f"DELETE FROM records WHERE {OF_W.replace('?', '$1')}", GONE) == "DELETE 1"
    await db.close()


async def files_without(path):
    found = [p for p in path["files"].rglob("*") if p.is_file() and b"entry 5" in p.read_bytes()]
    for file in found:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(line for line in lines if b"entry 5" not in line))
    assert found


async def nats_without(path):
    url, name = path["nats"]
    client = await nats.connect(url, allow_reconnect=False)
    stream = client.jetstream()
    last = (await stream.stream_info(name)).state.last_seq
    for sequence in range(1, last + 1):
        with suppress(nats.js.errors.NotFoundError):
            if b"entry 5" in ((await stream.get_msg(name, sequence)).data or b""):
                await stream.delete_msg(name, sequence)
                break
    else:
        pytest.fail("there is no such message")
    await client.close()


GONE = 7
OF_W = "stream = (SELECT id FROM streams WHERE name = 'workflows/w') AND version = ?"
WITHOUT = {
    "memory": memory_without,
    "sqlite": sqlite_without,
    "files": files_without,
    "postgres": postgres_without,
    "nats": nats_without,
}


@pytest.mark.parametrize("kind", WITHOUT)
async def test_a_version_that_is_gone_is_named_by_whatever_passes_it(tmp_path, kind):
    key = f"gone-{os.getpid()}"
    urls = {"memory": f"memory:{key}", "sqlite": str(tmp_path / "s.db"), "files": f"file:///{tmp_path / 'f'}"}
    place = {"sqlite": tmp_path / "s.db", "files": tmp_path / "f"}
    if kind == "postgres":
        urls[kind] = shared(PostgresServer).place(key)
        place[kind] = shared(PostgresServer).url, shared(PostgresServer).schema(key)
    if kind == "nats":
        urls[kind] = shared(NatsServer).place(key)
        place[kind] = f"nats://127.0.0.1:{shared(NatsServer).port}", urls[kind].partition("stream=")[2]
    async with quire.open(urls[kind], settings=FRAMES) as kept:  # what is in memory stays
        await filled(urls[kind])
        if not any(version > GONE for version in await kept.engine.backend.keyframes("workflows/w")):
            await kept.engine.frame("workflows/w", 21)  # the newest state is to be had without the log
        place["memory"] = kept.engine.backend
        await WITHOUT[kind](place)
        async with quire.open(urls[kind], settings=FRAMES) as store:
            wf = store.workflow("w")
            assert len(await wf.history(limit=5)) == 5
            told = {}
            for name, question in {
                "history": wf.history,
                "oldest first": lambda: wf.history(order="oldest"),
                "nobody's": lambda: wf.history(author="nobody"),
                "blame": lambda: wf.blame("/log"),
                "old state": lambda: wf.state(GONE),
                "table": lambda: store.export_table(str(tmp_path / "t.parquet")),
            }.items():
                try:
                    told[name] = await question()
                except QuireError as error:
                    told[name] = f"{type(error).__name__}: {error}"
            print(told)
            assert all(re.search(rf"CorruptRecord.*(version {GONE}\b|@{GONE}\b)", str(said)) for said in told.values())
            assert not (await store.verify()).ok


@pytest.mark.parametrize("query", ["_READ", "_FEED"])
async def test_an_index_that_goes_round_ends_no_loop_later_but_at_once(tmp_path, monkeypatch, query):
    """A flipped bit made `read` give the same page again and again, and what paged through it ran for ever."""
    path = str(tmp_path / "s.db")
    await filled(path)
    turned = getattr(_sqlite_read, query).replace("ORDER BY version", "ORDER BY version DESC")
    monkeypatch.setattr(_sqlite_read, query, turned.replace("ORDER BY position", "ORDER BY position DESC"))
    async with quire.open(path, settings=FRAMES) as store:
        async with asyncio.timeout(30):
            with pytest.raises(CorruptRecord, match="the order of records"):
                await (store.engine.backend.read("workflows/w") if query == "_READ" else store.engine.backend.feed())
            if query == "_READ":
                assert not (await store.verify()).ok
                assert not (await store.repair()).ok


async def test_names_that_go_round_are_an_error_of_ours(tmp_path):
    path = str(tmp_path / "s.db")
    await filled(path)
    async with quire.open(path) as store:
        await store.put_blob(b"another picture")

    class Turned:
        """A connection whose index gives rows the other way round."""

        def execute(self, query, *args):
            return reversed(list(db.execute(query, *args)))

    with closing(apsw.Connection(path)) as db:
        for what, asked_of in {
            "streams": lambda db: _sqlite_read.names(db, "default", "", "", None),
            "blobs": lambda db: _sqlite_read.blob_names(db, "default", "", 100),
            "cells": lambda db: _sqlite_read.cells(db, "default", "", 0, after="", limit=100),
        }.items():
            assert len(asked_of(db)) > 1, "as it is, it is in order"
            with pytest.raises(CorruptRecord, match=f"the order of {what}"):
                asked_of(Turned())
