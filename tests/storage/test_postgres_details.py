"""What PostgreSQL promises beyond the protocol: its schema, its locks, its failures, its news, its traces."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quire
from quire.errors import (
    Closed,
    CorruptRecord,
    Denied,
    IncompatibleFormat,
    InvalidKey,
    InvalidState,
    NotFound,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)
from quire.model import GENESIS, Keyframe, Record
from quire.storage import _postgres_line, _postgres_log, _postgres_read, _postgres_schema, _postgres_scrub
from quire.storage._postgres_items import arguments, beyond, escaped, rounds, unescaped
from quire.storage._postgres_schema import LOCK_COMMIT, LOCK_WATCH
from quire.storage.base import CellWrite, Committed, Expect, Item
from quire.storage.open import open_backend
from quire.storage.postgres import open_postgres
from quire.testing import _conformance_base
from quire.testing.conformance import BackendConformance, broken_promises
from quire.testing.servers import free_port
from quire.testing.servers.fixtures import shared, started
from quire.testing.servers.postgres import PostgresServer

STORE_LOCK = "SELECT pg_advisory_lock($1, hashtext($2))"


def link(version):
    return GENESIS if version == 0 else version.to_bytes(32, "big")


def writing(stream, after, body=b"[]", author="ann", cells=()):
    record = Record(stream, after + 1, 1_700_000_000_000, author, "why", "change", body, link(after + 1))
    return Item((Expect(stream, after, link(after)),), (record,), tuple(cells))


@pytest.fixture
def server():
    return shared(PostgresServer)


@pytest.fixture
def url(server, tmp_path):
    return server.place(tmp_path)


@asynccontextmanager
async def opened(url, namespace="n"):
    backend = await open_backend(url, namespace=namespace)
    try:
        yield backend
    finally:
        await backend.close()


@asynccontextmanager
async def session(server, schema=None, **options):
    """A bare session of the superuser."""
    settings = {"search_path": schema} if schema else {}
    db = await asyncpg.connect(options.pop("url", server.url), server_settings=settings, **options)
    try:
        yield db
    finally:
        await db.close()


@pytest.fixture
def schema(server, tmp_path):
    return server.schema(tmp_path)


def database(server, name):
    return f"{server.url.rpartition('/')[0]}/{name}"


async def waiting_for(db, count):
    """Wait until so many sessions wait for a lock of ours."""
    while await db.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") < count:
        await asyncio.sleep(0)


# opening


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("schema=Quire", "lower case"),
        ("schema=a-b", "lower case"),
        ("schema=pg_own", "pg_"),
        ("schema=", "lower case"),
        ("schema=" + "a" * 64, "lower case"),
        ("schema=x;drop schema public", "lower case"),
        ("shema=quire", "did you mean schema"),
        ("search_path=public", "unknown option"),
        ("schema=a&schema=b", "twice"),
        *((f"readers={bad}", "1 to 64") for bad in ("0", "65", "-1", "two", "", "1.5", "03", "1000")),
    ],
)
async def test_a_bad_option_is_refused_before_anything_is_asked(query, said):
    with pytest.raises(InvalidKey, match=said):
        await open_backend(f"postgresql://u:secret@nowhere.invalid/db?{query}", namespace="n")


async def test_an_unreachable_server_says_so_without_the_password():
    with pytest.raises(StorageUnavailable, match="see that the server runs") as caught:
        await open_backend(f"postgresql://u:secret@127.0.0.1:{free_port()}/db", namespace="n")
    assert "secret" not in str(caught.value)


async def test_a_wrong_password_is_denied(server):
    async with session(server) as db:
        await db.execute("DROP ROLE IF EXISTS locked_out; DROP ROLE IF EXISTS locked; CREATE ROLE locked")
        await db.execute("CREATE ROLE locked_out LOGIN PASSWORD 'right' IN ROLE locked")
    for given_password in ("locked_out:wr0ng", "locked_out"):
        with pytest.raises(Denied, match="password") as caught:
            await open_backend(server.url.replace("postgres@", f"{given_password}@"), namespace="n")
        assert "wr0ng" not in str(caught.value)


async def test_an_unknown_database_is_not_found(server):
    with pytest.raises(NotFound, match="createdb"):
        await open_backend(database(server, "none"), namespace="n")


async def test_a_role_without_rights_is_told_which(server, tmp_path):
    async with session(server) as db:
        await db.execute("DROP ROLE IF EXISTS guest")
        await db.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(Denied, match="GRANT"):
        await open_backend(server.place(tmp_path).replace("postgres@", "guest@"), namespace="n")


async def test_a_role_needs_no_more_than_a_schema_of_its_own(server, tmp_path, schema, caplog):
    async with session(server) as db:
        await db.execute("DROP ROLE IF EXISTS tenant")
        await db.execute("CREATE ROLE tenant LOGIN")
        await db.execute(f"CREATE SCHEMA {schema} AUTHORIZATION tenant")
    async with opened(server.place(tmp_path).replace("postgres@", "tenant@")) as backend:
        await backend.commit([writing("w/a", 0)])
        await backend.recover()
        await backend.scrub()
        assert [r.version for r in await backend.read("w/a")] == [1]
        assert await backend.check() == []
    assert "pg_checkpoint" in caplog.text
    async with session(server) as db:
        await db.execute(f"DROP SCHEMA {schema} CASCADE; DROP ROLE tenant")


def test_a_missing_driver_says_what_to_install():
    code = """
        import asyncio, sys
        sys.modules["asyncpg"] = None
        from quire.errors import Unsupported
        from quire.storage.open import open_backend
        try:
            asyncio.run(open_backend("postgresql://u:secret@h/db", namespace="n"))
        except Unsupported as error:
            print(error, error.capability)
    """
    said = subprocess.run([sys.executable, "-c", "if 1:" + code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'quire[postgres]'" in said
    assert "backend:postgresql" in said
    assert "secret" not in said


async def test_a_schema_of_something_else_is_refused_and_left_alone(server, schema, url):
    async with session(server, schema) as db:
        await db.execute(f"CREATE SCHEMA {schema}; CREATE TABLE meta (id int)")
        for statement in ("SELECT 1", "DROP TABLE meta; CREATE TABLE notes (id int)"):
            await db.execute(statement)
            with pytest.raises(IncompatibleFormat, match="nothing was changed"):
                await open_backend(url, namespace="n")
        tables = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    assert [name for (name,) in tables] == ["notes"]


async def test_an_empty_schema_is_taken(server, schema, url):
    async with session(server) as db:
        await db.execute(f"CREATE SCHEMA {schema}")
    async with opened(url) as backend:
        assert await backend.latest() == 0


async def test_a_newer_format_is_refused_and_an_older_one_upgraded(server, schema, url, monkeypatch):
    async with opened(url) as backend:
        await backend.commit([writing("w/a", 0)])
    async with session(server, schema) as db:
        await db.execute("UPDATE meta SET value = 99 WHERE key = 'format'")
        with pytest.raises(IncompatibleFormat, match="upgrade quire") as caught:
            await open_backend(url, namespace="n")
        assert (caught.value.found, caught.value.supported) == (99, 1)
        await db.execute("UPDATE meta SET value = 1 WHERE key = 'format'")
        monkeypatch.setattr(_postgres_schema, "FORMAT", 2)
        with pytest.raises(IncompatibleFormat, match="no upgrade"):
            await open_backend(url, namespace="n")
        monkeypatch.setitem(_postgres_schema.UPGRADES, 1, lambda db: db.execute("CREATE TABLE extra (x int)"))
        async with opened(url) as backend:
            assert [r.version for r in await backend.read("w/a")] == [1]
        assert await db.fetchval("SELECT value FROM meta WHERE key = 'format'") == 2
        assert await db.fetch("SELECT * FROM extra") == []


async def test_many_open_a_new_store_at_once(url):
    backends = await asyncio.gather(*(open_backend(url, namespace="n") for _ in range(8)))
    await asyncio.gather(*(b.commit([writing(f"w/{i}", 0)]) for i, b in enumerate(backends)))
    assert [r.position for r in await backends[0].feed()] == list(range(1, 9))
    for backend in backends:
        await backend.close()


async def test_a_server_that_is_too_old_says_so(url, monkeypatch):
    monkeypatch.setattr(_postgres_schema, "RELEASE_MIN", 99)
    with pytest.raises(Unsupported, match="99 or newer"):
        await open_backend(url, namespace="n")


async def test_a_database_of_another_encoding_is_refused(server):
    async with session(server) as db:
        await db.execute("DROP DATABASE IF EXISTS latin")
        await db.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
        with pytest.raises(IncompatibleFormat, match="UTF8"):
            await open_backend(database(server, "latin"), namespace="n")
        await db.execute("DROP DATABASE latin")


async def test_a_server_that_can_only_be_read_is_refused_at_once_or_when_it_turns_so(server, url, monkeypatch):
    monkeypatch.setattr(_postgres_log, "PATIENCE_S", 0.5)
    async with session(server) as db:
        await db.execute("DROP ROLE IF EXISTS reader")
        await db.execute("CREATE ROLE reader LOGIN SUPERUSER")
        async with opened(url.replace("postgres@", "reader@")) as backend:
            await db.execute("ALTER ROLE reader SET default_transaction_read_only = on")
            with pytest.raises(StorageUnavailable, match="read only"):
                await open_backend(url.replace("postgres@", "reader@"), namespace="n")
            with pytest.raises(StorageUnavailable, match="read only"):
                await backend.recover()
            with pytest.raises(StorageUnavailable):
                await backend.commit([writing("w/a", 0)])
            await db.execute("ALTER ROLE reader RESET default_transaction_read_only")
            await backend.recover()
            assert await backend.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_what_a_server_may_lose_is_said(tmp_path):
    server = started(PostgresServer({"fsync": "off", "full_page_writes": "off"}))
    try:
        async with quire.open(server.place(tmp_path)) as store:
            assert store.capabilities.durability == "process"
            assert "fsync is off" in store.capabilities.note
            assert "full_page_writes is off" in store.capabilities.note
    finally:
        server.stop()


async def test_sessions_wait_for_the_disk_whatever_the_role_is_set_to(server, url):
    async with session(server) as db:
        await db.execute("DROP ROLE IF EXISTS hasty")
        await db.execute("CREATE ROLE hasty LOGIN SUPERUSER")
        await db.execute("ALTER ROLE hasty SET synchronous_commit = off")
        await db.execute("ALTER ROLE hasty SET default_transaction_isolation = 'serializable'")
    async with opened(url.replace("postgres@", "hasty@")) as backend:
        assert backend.capabilities.durability == "power"
        assert "disk" in backend.capabilities.note
        for setting, wanted in (("synchronous_commit", "on"), ("transaction_isolation", "read committed")):
            assert await backend._log._db.fetchval("SELECT current_setting($1)", setting) == wanted


async def test_the_log_reads_by_itself(server, schema, url):
    async with quire.open(url) as store:
        wf = await store.create("w", {"a": 1}, author="ann", message="begin")
        await wf.set("/a", 2, author="bob", message="more")
    async with session(server, schema) as db:
        story = await db.fetch("SELECT author, message, body FROM log ORDER BY position")
    assert [tuple(row) for row in story] == [
        ("ann", "begin", '[["set",[],{"a":1}]]'),
        ("bob", "more", '[["set",["a"],2]]'),
    ]


# what is sent


@given(st.text(alphabet=st.sampled_from("\x00\x100ab")) | st.text())
def test_every_text_comes_back(text):
    assert "\x00" not in escaped(text)
    assert unescaped(escaped(text)) == text


@given(st.text(min_size=1), st.text(max_size=3))
def test_what_begins_with_a_prefix_lies_before_what_is_beyond_it(prefix, rest):
    assert prefix + rest < beyond(prefix)


@given(st.lists(st.tuples(st.lists(st.sampled_from("abcd"), max_size=3, unique=True), st.integers(0, 3)), max_size=8))
def test_rounds_keep_the_order_and_no_two_items_of_one_touch(plan):
    items = [
        Item(tuple(Expect(s, n, b"") for s in streams), (), (CellWrite(str(n), None, b""),)) for streams, n in plan
    ]
    made = rounds(items)
    assert [item for each in made for item in each.items] == items
    for each in made:
        names = [e.stream for item in each.items for e in item.expect] + [c.name for i in each.items for c in i.cells]
        assert len(names) == len(set(names))


async def test_a_value_that_cannot_be_stored_leaves_the_line_in_order(url):
    async with opened(url) as backend:
        for bad in (writing("w/\x00", 0), writing("w/\ud800", 0), writing("w/a", 0, author="\ud800")):
            with pytest.raises(InvalidState):
                await backend.commit([bad])
        assert await backend.commit([writing("w/a", 0)]) == [Committed(1, 1)]
    assert len(arguments([])) == 19


async def test_a_cell_written_twice_in_an_item_holds_the_last(url):
    async with opened(url) as backend:
        cells = (CellWrite("c", None, b"1"), CellWrite("c", None, b"2", 1000), CellWrite("d", None, b"1"))
        await backend.commit([Item(cells=(*cells, CellWrite("d", None, None)))])
        assert [(c.name, c.value) for c in await backend.cells()] == [("c", b"2")]


async def test_calls_that_wait_go_together(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute(STORE_LOCK, LOCK_COMMIT, schema)
        first = asyncio.create_task(backend.commit([writing("w/first", 0)]))
        await waiting_for(db, 1)
        others = [asyncio.create_task(backend.commit([writing(f"w/{i}", 0)])) for i in range(50)]
        again = asyncio.create_task(backend.commit([writing("w/3", 1), writing("w/3", 2)]))
        await asyncio.sleep(0)
        await db.execute("SELECT pg_advisory_unlock_all()")
        await asyncio.gather(first, *others)
        assert [type(o) for o in await again] == [Committed] * 2
        written = await db.fetchval("SELECT count(DISTINCT xmin::text) FROM records")
    assert written == 4  # the first, the fifty that waited, and two that each needed the one before


# the function that commits: with one mistake in it the suite notices

MISTAKES = [
    ("PERFORM pg_advisory_xact_lock(1364543826, store)", "NULL", "test_one_of_many_writers_wins_each_version"),
    ("(coalesce(r.version, 0), coalesce(r.chain, genesis)) <> (e.version, e.chain)",
     "coalesce(r.version, 0) <> e.version", "test_refused_where_the_chain_is_another"),
    ("(coalesce(r.version, 0), coalesce(r.chain, genesis)) <> (e.version, e.chain)",
     "coalesce(r.chain, genesis) <> e.chain", "test_refused_where_the_version_is_another"),
    ("WHERE refused IS NULL OR e_item[r.x] <> ALL (refused)", "", "test_item_refused_for_one_cell_stores_nothing"),
    ("refused, c_item, c_name", "NULL, c_item, c_name", "test_item_refused_for_one_stream_stores_nothing"),
    ("e_item[n] FROM unnest(moved)", "i FROM unnest(moved) AS n, unnest(e_item) AS i UNION SELECT e_item[n] FROM unnest(moved)",
     "test_refused_item_does_not_stop_the_others_of_its_call"),
    (" AND (expires IS NULL OR expires > now_ms)", "", "test_cell_expires_by_the_clock_of_the_backend"),
    ("namespace = space AND name = e", "name = e", "test_namespaces_see_nothing_of_each_other"),
    (", (SELECT value FROM meta WHERE key = 'position_floor')", "", "test_positions_are_not_reused_after_drop"),
    ("OVER (ORDER BY r.n)", "OVER (ORDER BY r.n DESC)", "test_committed_records_read_back_as_they_were"),
    ("PERFORM pg_notify", "PERFORM concat", "test_changed_wakes_on_a_commit_of_another_handle"),
]  # fmt: skip


@pytest.mark.parametrize(("right", "wrong", "promise"), MISTAKES, ids=[promise for *_, promise in MISTAKES])
def test_the_suite_notices_a_mistake(right, wrong, promise, monkeypatch):
    class Suite(BackendConformance):
        async def open(self, namespace="default"):
            server = shared(PostgresServer)
            return await open_postgres(
                server.url, schema=server.schema(self.place), shown="db", namespace=namespace, now_ms=self.now_ms
            )

    assert broken_promises(Suite, [promise]) == []
    monkeypatch.setattr(_conformance_base, "LIMIT_S", 2.0)
    text = _postgres_schema._COMMIT
    assert right in text
    monkeypatch.setattr(_postgres_schema, "_COMMIT", text.replace(right, wrong))
    # where it is a race that the mistake opens, not every run loses it
    assert any(broken_promises(Suite, [promise]) == [promise] for _ in range(20))


# time


async def test_cells_expire_by_the_clock_of_the_server(server, url):
    async with opened(url) as backend, session(server) as db:
        before = await db.fetchval("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        cells = [CellWrite("gone", None, b"1", -1), CellWrite("long", None, b"1", 60_000)]
        await backend.commit([Item(cells=(cell,)) for cell in cells])
        after = await db.fetchval("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        (held,) = await backend.cells()
        assert before + 60_000 <= held.expires <= after + 60_000
        assert await backend.cell("gone") is None
        assert await backend.commit([Item(cells=(CellWrite("gone", None, b"2"),))]) == [Committed(0, 0)]


# order


@pytest.mark.parametrize(
    ("query", "types", "values", "rows"),
    [
        (_postgres_read.RECORDS, "text, text, bigint, bigint, bigint", "'n', 'w/a', 5, 7, NULL", 2),
        (_postgres_read.RECORDS, "text, text, bigint, bigint, bigint", "'n', 'w/a', 5, NULL, 3", 3),
        (_postgres_read.KEYFRAME, "text, text, bigint", "'n', 'w/a', 2", 1),
        (_postgres_read.HEADS, "text, text[]", "'n', '{w/a,none}'", 2),
        (_postgres_read.LATEST, "", "", 1),
        (_postgres_read.FEED, "text, bigint, bigint", "'n', 1000, 2", 2),
        (_postgres_read.CELL, "text, text, bigint", "'n', 'c', NULL", 0),
        (_postgres_read.STREAMS, "text, text, text, text, bigint", "'n', 'w/', 'w0', '', 5", 1),
    ],
)
async def test_a_question_touches_no_more_rows_than_it_answers(server, schema, url, query, types, values, rows):
    """With the plan that sessions keep, made while the planner knows nothing of the tables."""
    async with opened(url) as backend:
        await backend.commit([writing("w/a", 0), writing("v/a", 0)])
        for first in (1, 801):
            records = [writing("w/a", first + i).records[0] for i in range(800)]
            await backend.commit([Item((Expect("w/a", first, link(first)),), records)])
        for version in range(1, 40):
            await backend.put_keyframe(Keyframe("w/a", version, bytes(32), 2, bytes(32), b"{}"))
        db = backend._log._db
        await db.execute(f"PREPARE ours{f' ({types})' if types else ''} AS {query}")
        plan = [line for (line,) in await db.fetch(f"EXPLAIN (ANALYZE) EXECUTE ours{f' ({values})' if values else ''}")]
    touched = [int(float(n)) * int(k) for n, k in re.findall(r"actual .*?rows=([\d.]+) loops=(\d+)", "\n".join(plan))]
    assert touched[0] == rows, plan
    assert max(touched) <= 2 * max(rows, 1), plan
    assert not re.search("Seq Scan|Removed by Filter: [1-9]", "\n".join(plan)), plan


async def test_a_commit_waits_for_the_one_that_has_positions_already(server, schema, url):
    """What a feed rests on: who comes later in the order is not there before."""
    async with opened(url) as backend, opened(url) as reader, session(server, schema) as db, session(server) as eye:
        transaction = db.transaction()
        await transaction.start()
        row = await db.fetchrow(_postgres_log._COMMIT, "n", None, *arguments([writing("w/slow", 0)]))
        assert row["first_position"] == 1
        later = asyncio.create_task(backend.commit([writing("w/quick", 0)]))
        await waiting_for(eye, 1)
        assert (await reader.latest(), await reader.feed()) == (0, [])
        await transaction.commit()
        assert await later == [Committed(2, 2)]
        assert [r.stream for r in await reader.feed()] == ["w/slow", "w/quick"]


async def test_a_position_that_was_given_and_not_committed_is_given_again(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        transaction = db.transaction()
        await transaction.start()
        await db.fetchrow(_postgres_log._COMMIT, "n", None, *arguments([writing("w/none", 0)]))
        await transaction.rollback()
        assert await backend.commit([writing("w/a", 0)]) == [Committed(1, 1)]
        assert await backend.check() == []


async def test_a_commit_looks_up_what_it_touches_and_nothing_else(server, schema, url):
    """Whatever the planner believed of tables that were empty when it made its plan."""
    read = (
        "SELECT sum(idx_tup_read)::int FROM pg_stat_user_indexes"
        " WHERE schemaname = $1 AND relname IN ('streams', 'cells')"
    )

    def items(count, turn):
        cells = [CellWrite(f"c{i}", b"1" if turn else None, b"1") for i in range(count)]
        return [writing(f"w/{i}", turn, cells=[cell]) for i, cell in enumerate(cells)]

    async with opened(url) as backend:
        db = backend._log._db
        await backend.commit(items(1000, 0))
        for turn in range(1, 4):
            await db.fetch("SELECT pg_stat_force_next_flush()")
            before = await db.fetchval(read, schema)
            await backend.commit(items(5, turn))
            await db.fetch("SELECT pg_stat_force_next_flush()")
            assert await db.fetchval(read, schema) - before <= 5 * 6, turn


CROWD = """
import asyncio, random, sys
from quire.model import Record
from quire.storage.base import CellWrite, Committed, Expect, Item
from quire.storage.open import open_backend

async def main(url, name, count):
    chance, won = random.Random(name), 0
    db = await open_backend(url, namespace="n")
    sys.stdin.readline()
    while won < int(count):
        streams = chance.sample(["w/a", "w/b", "w/c", "w/d", "w/e"], 3)
        heads = await db.heads(streams)
        cell = await db.cell("turn")
        records = [Record(h.stream, h.version + 1, 0, name, str(won), "change", b"[]", (h.version + 1).to_bytes(32, "big")) for h in heads]
        expect = [Expect(h.stream, h.version, h.chain) for h in heads]
        write = CellWrite("turn", cell and cell.value, b"%d" % ((int(cell.value) if cell else 0) + 1))
        outcomes = await db.commit([Item(expect, records, (write,)), Item((), (), (CellWrite(f"own/{name}", None, None),))])
        won += isinstance(outcomes[0], Committed)
    await db.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_that_want_the_same_take_turns(url):
    """Four processes, items over three of five streams and a cell, in any order: no deadlock, nothing lost."""
    args = [sys.executable, "-c", CROWD, url]
    crowd = [subprocess.Popen([*args, f"p{i}", "25"], stdin=subprocess.PIPE) for i in range(4)]
    for process in crowd:
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [await asyncio.to_thread(process.wait, 100) for process in crowd] == [0] * 4
    async with opened(url) as backend:
        feed = await backend.feed()
        assert [r.position for r in feed] == list(range(1, 301))
        assert (await backend.cell("turn")).value == b"100"
        for stream in await backend.streams():
            assert [r.version for r in await backend.read(stream)] == list(
                range(1, sum(r.stream == stream for r in feed) + 1)
            )
        assert await backend.check() == []


# news


async def test_readers_at_once_share_a_question(url, monkeypatch):
    async with opened(url) as backend:
        asked = 0
        fetch = backend._lines.fetch

        async def counted(*args, **options):
            nonlocal asked
            asked += 1
            return await fetch(*args, **options)

        monkeypatch.setattr(backend._lines, "fetch", counted)
        assert await asyncio.gather(*(backend.latest() for _ in range(100))) == [0] * 100
        assert asked == 1
        await asyncio.gather(backend.latest(), backend.latest())
        assert asked == 2


@pytest.mark.parametrize("readers", [1, 5])
async def test_no_more_sessions_read_than_are_allowed(server, schema, url, readers):
    waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'cells'::regclass AND NOT granted"
    async with opened(f"{url}{'&' if '?' in url else '?'}readers={readers}") as backend, session(server, schema) as db:
        async with db.transaction():
            await db.execute("LOCK TABLE cells")
            asking = [asyncio.ensure_future(backend.cell(f"c{i}")) for i in range(20)]
            while await db.fetchval(waiting) < readers:
                await asyncio.sleep(0)
            assert [line.waiting for line in backend._lines._lines] == [20 // readers] * readers
            assert await db.fetchval(waiting) == readers
        assert await asyncio.gather(*asking) == [None] * 20


async def test_a_question_that_left_before_a_commit_does_not_answer_who_asks_after_it(url, monkeypatch):
    async with opened(url) as backend, opened(url) as other:
        gate, fetch = asyncio.Event(), backend._lines.fetch

        async def slow(*args, **options):
            found = await fetch(*args, **options)
            await gate.wait()
            return found

        monkeypatch.setattr(backend._lines, "fetch", slow)
        early = asyncio.create_task(backend.latest())
        while backend._newest._asked is None:
            await asyncio.sleep(0)
        await other.commit([writing("w/a", 0)])
        late = asyncio.create_task(backend.latest())
        await asyncio.sleep(0)
        gate.set()
        assert await late == 1
        assert await early in (0, 1)


WATCH = """
import asyncio, sys
from quire.storage.open import open_backend

async def main(url):
    db = await open_backend(url, namespace="n")
    seen = 0
    while seen < 3:
        waits = asyncio.create_task(db.changed(seen, timeout_s=1000))
        while not db._listener._waiters or db._listener._db is None:
            await asyncio.sleep(0)
        print("waits", flush=True)
        seen = await waits
        print(seen, flush=True)
    await db.close()

asyncio.run(main(sys.argv[1]))
"""


async def test_a_commit_wakes_another_process(url):
    async with opened(url) as backend:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", WATCH, url, stdout=asyncio.subprocess.PIPE)
        for number in range(3):
            assert await process.stdout.readline() == b"waits\n"
            await backend.commit([writing("w/a", number)])
            assert await process.stdout.readline() == b"%d\n" % (number + 1)
        assert await process.wait() == 0


async def test_a_commit_tells_only_where_somebody_listens(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        heard, store = asyncio.Queue(), await db.fetchval("SELECT hashtext(current_schema())")
        await db.add_listener(f"quire_{store}", lambda *told: heard.put_nowait(told))
        await backend.commit([writing("w/a", 0)])
        await db.execute("SELECT 1")  # whatever was told has come with the answer
        assert heard.empty()
        await db.execute("SELECT pg_advisory_lock_shared($1, $2)", LOCK_WATCH, store)
        await backend.commit([Item(cells=(CellWrite("c", None, b""),)), writing("w/a", 0)])  # refused: no news
        await db.execute("SELECT 1")
        assert heard.empty()
        await backend.commit([writing("w/a", 1)])
        await asyncio.wait_for(heard.get(), 60)


async def test_who_waits_goes_on_waiting_when_its_session_is_lost(server, url):
    async with opened(url) as backend, opened(url) as other, session(server) as db:
        waits = asyncio.create_task(backend.changed(0, timeout_s=1000))
        while backend._listener._db is None:
            await asyncio.sleep(0)
        lost = backend._listener._db
        await db.execute("SELECT pg_terminate_backend($1)", lost.get_server_pid())
        while backend._listener._db in (None, lost):
            await asyncio.sleep(0)
        assert not waits.done()
        await other.commit([writing("w/a", 0)])
        assert await waits == 1


# failures


async def test_a_commit_that_was_cut_off_cannot_land_after_recovery(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute(STORE_LOCK, LOCK_COMMIT, schema)
        cut = asyncio.create_task(backend.commit([writing("w/a", 0)]))
        await waiting_for(db, 1)
        later = asyncio.create_task(backend.commit([writing("w/b", 0)]))
        backend._log._db.terminate()  # the server does not notice: it waits for a lock, not for us
        for task in (cut, later):
            with pytest.raises(StorageUnavailable):
                await task
        with pytest.raises(StorageUnavailable, match="recover"):
            await backend.commit([writing("w/c", 0)])
        await waiting_for(db, 1)
        await backend.recover()
        await db.execute("SELECT pg_advisory_unlock_all()")
        assert await backend.commit([writing("w/d", 0)]) == [Committed(1, 1)]
        assert await backend.streams() == ["w/d"]


async def test_without_recovery_it_would_land(server, schema, url):
    """The control of the test above."""
    async with opened(url) as backend, opened(url) as other, session(server, schema) as db:
        await db.execute(STORE_LOCK, LOCK_COMMIT, schema)
        cut = asyncio.create_task(backend.commit([writing("w/a", 0)]))
        await waiting_for(db, 1)
        backend._log._db.terminate()
        with pytest.raises(StorageUnavailable):
            await cut
        await db.execute("SELECT pg_advisory_unlock_all()")
        await asyncio.wait_for(other.changed(0, timeout_s=60), 60)
        assert await other.streams() == ["w/a"]


async def test_recovery_that_cannot_end_the_old_session_says_so_and_can_be_repeated(server, schema, url, monkeypatch):
    monkeypatch.setattr(_postgres_log, "_END", "SELECT $1::bigint + $2::bigint")  # ends nothing
    monkeypatch.setitem(_postgres_line._SETTINGS, "lock_timeout", "50ms")
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute("ALTER ROLE postgres SET lock_timeout = 0")
        backend._log._db.terminate()
        await backend.recover()
        await db.execute(STORE_LOCK, LOCK_COMMIT, schema)
        await backend._log._db.execute("SET lock_timeout = 0")
        cut = asyncio.create_task(backend.commit([writing("w/a", 0)]))
        await waiting_for(db, 1)
        backend._log._db.terminate()
        with pytest.raises(StorageUnavailable):
            await cut
        for _ in range(2):
            with pytest.raises(StorageTimeout):
                await backend.recover()
            with pytest.raises(StorageUnavailable, match="recover"):
                await backend.commit([writing("w/b", 0)])
        monkeypatch.undo()
        await backend.recover()
        await db.execute("SELECT pg_advisory_unlock_all()")
        assert await backend.commit([writing("w/c", 0)]) == [Committed(1, 1)]


async def test_a_lock_that_is_not_had_is_a_timeout_and_nothing_lands(server, schema, url, monkeypatch):
    monkeypatch.setitem(_postgres_line._SETTINGS, "lock_timeout", "50ms")
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute(STORE_LOCK, LOCK_COMMIT, schema)
        with pytest.raises(StorageTimeout, match="lock"):
            await backend.commit([writing("w/a", 0)])
        await db.execute("SELECT pg_advisory_unlock_all()")
        await backend.recover()
        assert await backend.streams() == []
        assert await backend.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_a_full_disk_stores_nothing_and_passes(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;"
            "CREATE TRIGGER no_room AFTER INSERT ON records EXECUTE FUNCTION no_room()"
        )
        with pytest.raises(StorageFull, match="free some space"):
            await backend.commit([writing("w/a", 0)])
        await db.execute("DROP TRIGGER no_room ON records")
        await backend.recover()
        assert await backend.streams() == []
        assert await backend.commit([writing("w/a", 0)]) == [Committed(1, 1)]


async def test_sessions_ended_by_the_server_are_begun_anew(server, url):
    async with quire.open(url) as store, session(server) as db:
        wf = await store.create("w", {"n": 0})
        for number in range(5):
            await db.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'quire'"
            )
            assert await wf.get("/n") == number
            try:
                await wf.set("/n", number + 1)
            except StorageError as error:
                assert error.retryable
                await wf.set("/n", number + 1)
        assert (await store.verify()).ok


async def test_tables_that_go_away_are_damage_and_not_a_riddle(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
        with pytest.raises(CorruptRecord, match="not as Quire made them"):
            await backend.streams()
        with pytest.raises(CorruptRecord):
            await backend.commit([writing("w/a", 0)])


def test_a_store_from_before_a_fork_is_refused_in_the_child(url):
    async def main():
        async with opened(url) as backend:
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    backend._alive()
                except Closed:
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert await backend.latest() == 0

    asyncio.run(main())


# damage


async def test_check_finds_what_is_wrong(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await backend.commit([writing("w/a", 0), writing("w/b", 0)])
        await backend.commit([writing("w/a", 1), Item(cells=(CellWrite("c", None, b"1"),))])
        await backend.commit([writing("w/a", 2)])
        await backend.put_blob("b", b"1")
        await backend.put_keyframe(Keyframe("w/a", 1, bytes(32), 2, bytes(32), b"{}"))
        assert await backend.check() == []
        for damage, said in (
            ("DELETE FROM records WHERE version = 2", "2 records for versions 1 to 3"),
            ("DELETE FROM streams WHERE name = 'w/b'", "nobody knows whose"),
            ("UPDATE cells SET value = '2'", "the cell c is damaged"),
            ("UPDATE blobs SET body = '2'", "the blob b is damaged"),
            ("UPDATE keyframes SET body = '2'", "the keyframe of w/a@1 is damaged"),
        ):
            await db.execute(damage)
            found = await backend.check()
            assert any(said in problem for problem in found), (damage, found)
        assert any("4 records were committed" in problem for problem in found)
        for ask in (backend.cell("c"), backend.blob("b"), backend.keyframe("w/a")):
            with pytest.raises(CorruptRecord):
                await ask


async def test_a_body_that_is_no_body_is_damage(server, schema, url):
    async with opened(url) as backend, session(server, schema) as db:
        await backend.commit([writing("w/a", 0, b"\xff")])
        for packed in (b"", b"\x02", b"\x01nonsense"):
            await db.execute("UPDATE records SET packed = $1", packed)
            with pytest.raises(CorruptRecord, match="w/a v1"):
                await backend.read("w/a")


# traces


def found_in(server, secret):
    """Whether any file of the server's tables holds the bytes."""
    return any(secret in file.read_bytes() for file in (server.data / "base").rglob("*") if file.is_file())


async def test_scrubbing_leaves_no_trace_in_the_tables(server, url):
    secret, kept = os.urandom(600).hex().encode(), b"kept " * 10
    async with opened(url) as backend, session(server) as db:
        await backend.commit([writing("w/a", 0, secret), writing("w/b", 0, secret * 3), writing("w/c", 0, kept)])
        await backend.put_blob("b", secret)
        await backend.put_keyframe(Keyframe("w/a", 1, bytes(32), 2, bytes(32), secret))
        await db.execute("CHECKPOINT")
        assert found_in(server, secret)
        (record,) = await backend.read("w/a")
        assert await backend.rewrite([msgspec.structs.replace(record, body=b"[]")]) == 1
        await backend.drop("w/b")
        await backend.drop_blob("b")
        await backend.drop_keyframes("w/a", [1])
        await db.execute("CHECKPOINT")
        assert found_in(server, secret)
        await backend.scrub()
        assert not found_in(server, secret)
        assert [r.body for r in await backend.feed()] == [b"[]", kept]
        assert await backend.check() == []


async def test_scrubbing_waits_for_who_can_still_see_and_says_so(server, schema, url, monkeypatch):
    monkeypatch.setattr(_postgres_scrub, "BUSY_S", 0.1)
    async with opened(url) as backend, session(server, schema) as db:
        await backend.commit([writing("w/a", 0)])
        reading = db.transaction(isolation="repeatable_read", readonly=True)
        await reading.start()
        await db.fetch("SELECT 1 FROM meta")
        with pytest.raises(StorageTimeout, match="pg_stat_activity"):
            await backend.scrub()
        await reading.rollback()
        await backend.scrub()


async def test_a_backup_names_the_tools_that_make_one(url, tmp_path):
    async with opened(url) as backend:
        with pytest.raises(Unsupported, match="pg_dump"):
            await backend.backup(str(tmp_path / "x"))
