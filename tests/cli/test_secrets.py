"""`quire train` and `quire rotate`: what they do, what they say, and what is left when they are killed."""

import json
import os
import signal
import subprocess
import sys

import pytest

import quire as library
from quire.errors import Denied

OLD, NEW, OTHER = "11" * 32, "22" * 32, "33" * 32


@pytest.fixture
def keys(tmp_path):
    for name, key in (("old", OLD), ("new", NEW), ("other", OTHER), ("short", "abc")):
        (tmp_path / f"{name}.key").write_text(key + "\n")


def filled(url, count=300):
    with library.sync.open(url) as store:
        wf = store.create("w", {"agents": {}, "log": []})
        for n in range(count):
            entry = {
                "agent": ("researcher", "writer", "critic")[n % 3],
                "status": "completed",
                "tokens": n * 7919 % 5000,
            }
            wf.set("/agents/last", entry, author="ann") if n % 2 else wf.append("/log", entry, author="bob")
        return wf.state()


def bytes_of(url):
    """What the newest changes take in the store, below the wrappers."""
    with library.sync.open(url) as store:
        inner = store._store.engine.backend.inner
        records = store._loop.run(inner.read("workflows/w", after=301))
        return sum(len(r.body) for r in records)


def more(url):
    with library.sync.open(url) as store:
        for n in range(40):
            store.workflow("w").append("/log", {"agent": "critic", "status": "completed", "tokens": n * 991})


# train


def test_training_turns_compression_on_says_the_gain_and_takes_effect(quire, tmp_path):
    before = filled("s.db")
    (tmp_path / "t.db").write_bytes((tmp_path / "s.db").read_bytes())
    said = quire("--store", "s.db?compression=zstd", "train")
    assert said.startswith("workflows: 150 changes of ")
    assert said.rstrip().endswith("% less")
    assert json.loads(quire("-s", "s.db", "show", "w")) == before
    more("s.db")
    more("t.db?compression=zstd")
    assert bytes_of("s.db") < bytes_of("t.db") * 0.75
    assert "sound" in quire("-s", "s.db", "verify")
    found = json.loads(quire("-s", "s.db", "train", "--json"))
    assert found["kind"] == "workflows"
    assert found["with_bytes"] < found["without_bytes"]
    assert 0.3 < found["saved"] < 1
    assert found["schema"] == 1


def test_training_what_cannot_be_trained_is_told(quire):
    filled("s.db", 20)
    quire("-s", "s.db", "train", code=6)
    quire("-s", "s.db?compression=zstd", "train", code=2)  # too little
    quire("-s", "s.db", "train", "--kind", "events", code=2)
    quire("-s", "none.db", "train", code=3)
    filled("g.db?compression=gzip")
    quire("-s", "g.db", "train", code=2)
    with library.sync.open("s.db") as store, pytest.raises(library.errors.Invalid, match="50 records"):
        store.train()


async def test_a_store_under_encryption_is_trained_as_well(tmp_path, keys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with library.open("s.db?compression=zstd&encryption_key_file=old.key") as store:
        wf = await store.create("w", {"log": []})
        for n in range(120):
            await wf.append("/log", {"agent": "critic", "status": "completed", "tokens": n * 991})
        gain = await store.train()
        assert gain.with_bytes < gain.without_bytes
        await wf.append("/log", {"agent": "critic", "status": "completed", "tokens": 1})
        assert (await store.verify()).ok
    async with library.open("s.db?encryption_key_file=old.key") as store:
        assert len(await store.workflow("w").get("/log")) == 121


async def test_without_compression_training_is_refused_in_words():
    async with library.open("memory:") as store:
        with pytest.raises(library.errors.Unsupported, match=r"compression=zstd"):
            await store.train()


# rotate


def rotation(old="old.key", new="new.key"):
    return "rotate", "--old-key-file", old, "--new-key-file", new


def opens_with(url):
    """The names of the keys that open a store."""
    found = []
    for name in ("old", "new", "other"):
        try:
            with library.sync.open(f"{url}?encryption_key_file={name}.key") as store:
                assert store.workflow("w").get("/agents/last/status") == "completed"
                found.append(name)
        except Denied:
            pass
    return found


def test_a_rotated_store_opens_with_the_new_key_only(quire, keys):
    filled("s.db?encryption_key_file=old.key", 4)
    assert opens_with("s.db") == ["old"]
    said = quire("-s", "s.db", *rotation())
    assert "new.key" in said
    assert opens_with("s.db") == ["new"]
    quire("-s", "s.db?encryption_key_file=old.key", "show", "w", code=7)
    assert "sound" in quire("-s", "s.db?encryption_key_file=new.key", "verify")
    quire("-s", "s.db", *rotation())  # once more: it is done already
    quire("-s", "s.db", *rotation("new.key", "other.key"))
    assert opens_with("s.db") == ["other"]


@pytest.mark.parametrize(
    ("url", "words", "code"),
    [
        ("s.db", rotation("other.key", "new.key"), 7),
        ("plain.db", rotation(), 7),
        ("s.db", rotation("old.key", "old.key"), 2),
        ("s.db", rotation("none.key"), 2),
        ("s.db", rotation("old.key", "short.key"), 2),
        ("s.db?encryption_key_file=old.key", rotation(), 2),
        ("none.db", rotation(), 3),
        ("s.db", rotation()[:3], 2),
    ],
)
def test_a_rotation_that_cannot_be_changes_nothing(url, words, code, quire, keys):
    filled("s.db?encryption_key_file=old.key", 4)
    filled("plain.db", 4)
    quire("-s", url, *words, code=code)
    assert opens_with("s.db") == ["old"]


@pytest.mark.parametrize("namespace", ["default", "tenant-1"])
def test_a_rotation_is_of_one_namespace(namespace, quire, keys):
    for name in ("default", "tenant-1"):
        with library.sync.open("s.db?encryption_key_file=old.key", namespace=name) as store:
            store.create("w", {"agents": {"last": {"status": "completed"}}})
    quire("-s", "s.db", "-n", namespace, *rotation())
    for name in ("default", "tenant-1"):
        key = "new" if name == namespace else "old"
        with library.sync.open(f"s.db?encryption_key_file={key}.key", namespace=name) as store:
            assert store.workflows() == ["w"]


def test_no_key_is_shown(quire, keys):
    filled("s.db?encryption_key_file=old.key", 4)
    process = [sys.executable, "-m", "quire", "-s", "s.db"]
    for words in (rotation("other.key"), rotation(), rotation("short.key")):
        done = subprocess.run([*process, *words], capture_output=True, text=True, check=False)
        assert not {OLD, NEW, OTHER} & set(done.stdout.split() + done.stderr.split())
        assert "11" * 8 not in done.stdout + done.stderr


@pytest.mark.parametrize("point", ["commit:begin:1", "commit:before:1", "commit:after:1"])
def test_a_rotation_killed_at_any_point_leaves_one_key_and_may_be_repeated(point, quire, keys):
    filled("s.db?encryption_key_file=old.key", 4)
    command = [sys.executable, "-m", "quire", "-s", "s.db", *rotation()]
    done = subprocess.run(command, env={**os.environ, "QUIRE_FAILPOINT": point}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert opens_with("s.db") == (["new"] if point == "commit:after:1" else ["old"])
    quire("-s", "s.db", *rotation())
    assert opens_with("s.db") == ["new"]
