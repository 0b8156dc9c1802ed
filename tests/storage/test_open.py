"""URLs, ids, files that are not stores."""

import sqlite3
import stat
import subprocess
import sys

import apsw
import pytest

import quire
from quire.core.names import check_id
from quire.errors import IncompatibleFormat, InvalidKey, StorageUnavailable, Unsupported
from quire.storage import _sqlite_file
from quire.storage.open import open_backend, redact_url


@pytest.mark.parametrize("url", ["", " ", None, 5, "sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x.db", "sqlit:///x.db", "spam://x", "sqlite:///x.db?speed=max", "sqlite:///x.db?durability=none"])
async def test_a_bad_url_is_refused_with_a_remedy(url):
    with pytest.raises(InvalidKey) as caught:
        await open_backend(url, namespace="default")
    assert len(str(caught.value)) > 20


async def test_the_nearest_scheme_is_suggested():
    with pytest.raises(InvalidKey, match="did you mean sqlite"):
        await open_backend("sqllite:///x.db", namespace="default")


@pytest.mark.parametrize("url", ["postgresql://u:secret@h/db", "redis://h", "nats://h", "rocksdb:///d", "file:///d"])
async def test_a_backend_that_is_not_here_says_so_without_the_password(url):
    with pytest.raises(Unsupported) as caught:
        await open_backend(url, namespace="default")
    assert "secret" not in str(caught.value)
    assert redact_url("postgresql://u:secret@h/db") == "postgresql://u:***@h/db"


@pytest.mark.parametrize("bad", ["", "../x", "a:b", "%00", "a b", "é", "a/b", "-a", ".a", "a..b", "x" * 201, None, 5, b"a", "a\n", "\ud800"])
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
