"""URLs, ids, files that are not stores."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading

import apsw
import pytest

import quire
from quire.core.names import check_id, check_namespace
from quire.errors import IncompatibleFormat, InvalidKey, StorageUnavailable
from quire.model import GENESIS
from quire.storage import _sqlite_file
from quire.storage.base import Expect, Item
from quire.storage.open import open_backend, redact_url
from quire.testing.conformance import entry


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        None,
        5,
        "sqlite:",
        "sqlite://",
        "sqlite:///",
        "sqlite://host/x.db",
        "sqlit:///x.db",
        "spam://x",
        "sqlite:///x.db?speed=max",
        "sqlite:///x.db?durability=none",
    ],
)
async def test_a_bad_url_is_refused_with_a_remedy(url):
    with pytest.raises(InvalidKey) as caught:
        await open_backend(url, namespace="default")
    assert len(str(caught.value)) > 20


async def test_the_nearest_scheme_is_suggested():
    with pytest.raises(InvalidKey, match="did you mean sqlite"):
        await open_backend("sqllite:///x.db", namespace="default")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:p@ss@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql://u:p/w?x@h/db", "postgresql://u:***@h/db"),
        ("nats://token@h:4222", "nats://***@h:4222"),
        ("u:secret@h/db", "u:***@h/db"),
        ("s3://b?region=x&secret_key=abc&ssl=1", "s3://b?region=x&secret_key=***&ssl=1"),
        ("postgresql://h:5432/db?sslmode=require", "postgresql://h:5432/db?sslmode=require"),
        ("sqlite:///a:b@c.db?durability=full", "sqlite:///a:b@c.db?durability=full"),
        ("./a@b.db", "./a@b.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url, shown):
    assert redact_url(url) == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://u:secret@h/db", "did you mean postgresql"),
        ("postgresql+asyncpg://u:secret@h/db", "unknown scheme"),
        ("u:secret@h/db", "unknown scheme"),
        ("sqlite:state.db?key=secret", "sqlite:///state.db"),
        ("sqlite:///state.db?durabilty=full&password=secret", "did you mean durability"),
        ("sqlite:///state.db?durability=relax", "did you mean relaxed"),
        ("sqlite:///s.db?durability=full&durability=relaxed", "twice"),
        ("state.db?speed=max", "unknown option 'speed'"),
        ("memory:?durability=relaxed", "known here: compression"),
        ("memory:a/b", "memory name"),
        (":memory:", "named memory:"),
        ("sqlite:///:memory:", "named memory:"),
        ("sqlite:///a%00b", "no file name"),
        ("sqlite:///a%FFb", "UTF-8"),
        ("\ud800.db", "no file name"),
        (" ?durability=full", "missing"),
    ],
)
async def test_a_mistake_in_a_url_is_named_and_makes_no_file(url, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidKey) as caught:
        await open_backend(url, namespace="default")
    assert said in str(caught.value)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("state.db", "state.db"),
        ("./x/state.db", "x/state.db"),
        ("{here}/state.db", "state.db"),
        ("sqlite:///state.db", "state.db"),
        ("sqlite:///x/state.db", "x/state.db"),
        ("sqlite:///{here}/state.db", "state.db"),
        ("SQLite:///state.db", "state.db"),
        ("sqlite:///a%20b%23.db", "a b#.db"),
        ("sqlite:///a#b.db", "a#b.db"),
        ("a%20b.db", "a%20b.db"),
        ("./a:b.db", "a:b.db"),
        ("state.db?durability=relaxed", "state.db"),
    ],
)
async def test_a_url_names_its_file(url, file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    backend = await open_backend(url.format(here=tmp_path), namespace="default")
    await backend.close()
    assert [str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()] == [file]
    assert backend.capabilities.durability == ("process" if "relaxed" in url else "power")


async def test_a_named_memory_is_shared_until_its_last_handle_closes():
    one = await open_backend("memory:shared", namespace="one")
    two = await open_backend("memory://shared/", namespace="two")
    await one.put_blob("b", b"1")
    await one.close()
    again = await open_backend("memory:shared", namespace="one")
    assert await again.blob("b") == b"1"
    assert await two.blob("b") is None
    for last in (again, two):
        await last.close()
    fresh = await open_backend("memory:shared", namespace="one")
    assert await fresh.blob("b") is None
    await fresh.close()


async def test_a_nameless_memory_is_private():
    one, two = [await open_backend("memory:", namespace="default") for _ in range(2)]
    await one.put_blob("b", b"1")
    assert await two.blobs() == []


async def test_a_shared_memory_wakes_handles_on_loops_of_other_threads():
    here = await open_backend("memory:threads", namespace="default")
    waits, seen = threading.Event(), []

    async def wait():
        there = await open_backend("memory:threads", namespace="default")
        asyncio.get_running_loop().call_soon(waits.set)  # runs when `changed` has nothing more to do but wait
        seen.append(await there.changed(0, timeout_s=1000))
        await there.close()

    thread = threading.Thread(target=asyncio.run, args=(wait(),))
    thread.start()
    assert await asyncio.to_thread(waits.wait, 60)
    await here.commit([Item((Expect("s/1", 0, GENESIS),), (entry("s/1", 1),))])
    await asyncio.to_thread(thread.join)
    assert seen == [1]
    await here.close()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("", "empty"),
        ("../x", "'/' at 2"),
        ("a:b", "':' at 1"),
        ("%00", "'%' at 0"),
        ("é", "'é' at 0"),
        ("a b", "' ' at 1"),
        ("a..b", "'..' at 1"),
        ("-a", "begins with '-'"),
        ("a" * 201, "201 characters"),
        (None, "NoneType, not text"),
        (5, "int, not text"),
        (b"a", "bytes, not text"),
    ],
)
def test_a_refused_id_shows_what_is_wrong_and_the_rule(bad, said):
    for check, what in ((check_id, "workflow id"), (check_namespace, "namespace")):
        with pytest.raises(InvalidKey) as caught:
            check(bad)
        assert str(caught.value).startswith(what)
        assert said in str(caught.value)
        assert "1 to 200 of A-Z" in str(caught.value)


@pytest.mark.parametrize("good", ["a", "0", "research-42", "A.b_c-d", "a" * 200, "a."])
def test_an_id_that_keeps_the_rule_is_itself(good):
    assert check_id(good) == check_namespace(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "../x",
        "a:b",
        "%00",
        "a b",
        "é",
        "a/b",
        "-a",
        ".a",
        "a..b",
        "x" * 201,
        None,
        5,
        b"a",
        "a\n",
        "\ud800",
    ],
)
async def test_hostile_ids_are_refused(bad):
    with pytest.raises(InvalidKey):
        check_id(bad)
    async with quire.open("memory:") as store:
        with pytest.raises(InvalidKey):
            await store.create(bad, {})
        assert await store.workflows() == []
    with pytest.raises(InvalidKey):
        await open_backend("memory:", namespace=bad)


async def test_a_folder_or_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InvalidKey, match="folder"):
        await quire.open(str(tmp_path))
    with pytest.raises(StorageUnavailable, match="folder"):
        await quire.open(str(tmp_path / "no" / "s.db"))


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "s.db"])
async def test_a_name_too_long_for_the_system_is_our_error(name, tmp_path):
    with pytest.raises(StorageUnavailable, match="too long"):
        await open_backend(str(tmp_path / name), namespace="default")


async def test_foreign_files_are_refused_and_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_bytes(b"dear diary, this is not a database at all, it is far too long for that")
    db = tmp_path / "other.db"
    with sqlite3.connect(db) as other:
        other.execute("create table t(x)")
    other.close()
    for file in (text, db):
        before = file.read_bytes()
        with pytest.raises(IncompatibleFormat, match=file.name):
            await quire.open(str(file))
        assert file.read_bytes() == before


async def test_a_newer_format_is_refused_and_an_older_one_upgraded(tmp_path, monkeypatch):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {"a": 1})
    db = apsw.Connection(path)
    db.pragma("user_version", 99)
    with pytest.raises(IncompatibleFormat, match="upgrade quire") as caught:
        await quire.open(path)
    assert (caught.value.found, caught.value.supported) == (99, 1)
    db.pragma("user_version", 1)
    db.close()
    monkeypatch.setattr(_sqlite_file, "SCHEMA_VERSION", 2)
    with pytest.raises(IncompatibleFormat, match="no upgrade"):
        await quire.open(path)
    monkeypatch.setitem(_sqlite_file.UPGRADES, 1, lambda db: db.execute("CREATE TABLE extra (x)"))
    async with quire.open(path) as store:
        assert await store.workflow("w").state() == {"a": 1}
    db = apsw.Connection(path)
    assert db.pragma("user_version") == 2
    assert db.table_exists("main", "extra")


async def test_the_file_is_private_and_readable_by_its_owner(tmp_path):
    path = tmp_path / "s.db"
    async with quire.open(str(path)) as store:
        wf = await store.create("w", {"a": 1}, author="ann", message="begin")
        await wf.set("/a", 2, author="bob", message="more")
        for name in ("s.db", "s.db-wal", "s.db-shm"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    with sqlite3.connect(path) as db:
        story = db.execute("select author, message, body from log").fetchall()
    db.close()
    assert story == [("ann", "begin", '[["set",[],{"a":1}]]'), ("bob", "more", '[["set",["a"],2]]')]


async def test_relaxed_says_what_it_may_lose(tmp_path):
    async with quire.open(f"sqlite:///{tmp_path / 's.db'}?durability=relaxed") as store:
        assert store.capabilities.durability == "process"
        assert "lost" in store.capabilities.note


def test_importing_quire_imports_no_driver():
    code = "import sys, quire; sys.exit(any(m in sys.modules for m in ('apsw', 'asyncio', 'msgspec', 'click')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
