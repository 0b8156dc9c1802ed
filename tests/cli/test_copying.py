"""`quire copy`: between stores of any kind; a mistyped name makes none."""

import json
import os
import pty
import subprocess
import sys

import pytest


@pytest.fixture
def filled(quire):
    quire("--store", "s.db", "set", "w", "/n", "1")
    quire("--store", "s.db", "set", "w", "/n", "2")
    quire("--store", "s.db", "checkpoint", "w", "done")
    return quire


def test_a_store_is_copied_and_copied_again(filled):
    said = filled("copy", "s.db", "file:///t")
    assert "3 versions" in said and "2 streams" in said
    assert filled("--store", "file:///t", "show", "w@done") == filled("--store", "s.db", "show", "w")
    filled("--store", "s.db", "set", "w", "/n", "3")
    copied = json.loads(filled("copy", "s.db", "file:///t", "--json"))
    assert (copied["versions"], copied["verified"], copied["beyond"]) == (1, 1, [])
    filled("copy", "file:///t", "back.db")
    assert filled("--store", "back.db", "log", "w") == filled("--store", "s.db", "log", "w")


def test_namespaces_are_named_on_both_sides(quire):
    quire("--store", "s.db", "-n", "ann", "set", "w", "/n", "1")
    quire("--store", "s.db", "-n", "bob", "set", "secret", "/n", "1")
    quire("copy", "s.db", "t.db", "--namespace", "ann", "--to-namespace", "moved")
    quire("-n", "bob", "copy", "s.db", "t.db")
    assert json.loads(quire("--store", "t.db", "-n", "moved", "ls", "--json"))["workflows"][0]["workflow"] == "w"
    assert "secret" not in quire("--store", "t.db", "-n", "moved", "ls")
    assert "secret" in quire("--store", "t.db", "-n", "bob", "ls")


@pytest.mark.parametrize(
    ("source", "code"),
    [("typo.db", 3), ("sqlite:///typo.db", 3), ("file:///typo", 3), ("rocksdb:///typo", 3), ("memory:x", 2), ("", 2)],
)
def test_a_mistyped_source_makes_no_store(quire, tmp_path, source, code):
    quire("copy", source, "t.db", code=code)
    assert list(tmp_path.iterdir()) == []


def test_a_source_with_nothing_in_it_makes_no_target(filled, tmp_path):
    filled("copy", "s.db", "t.db", "--namespace", "typo", code=3)
    assert not (tmp_path / "t.db").exists()


def test_a_target_with_another_history_is_refused(filled):
    filled("--store", "t.db", "set", "w", "/other", "1")
    before = filled("--store", "t.db", "log", "w")
    filled("copy", "s.db", "t.db", code=4)
    filled("copy", "s.db", "s.db", code=2)
    assert filled("--store", "t.db", "log", "w") == before


def test_damage_ends_it_with_the_code_for_damage(filled, tmp_path):
    import apsw

    db = apsw.Connection(str(tmp_path / "s.db"))
    db.execute("UPDATE records SET author = 'eve' WHERE version = 1")
    db.close()
    filled("copy", "s.db", "t.db", code=5)


def test_bars_are_drawn_where_a_person_looks(filled, tmp_path):
    pytest.importorskip("rich")
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "quire", "copy", "s.db", "t.db", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=subprocess.PIPE, stderr=slave) as child:
        os.close(slave)
        said, seen = child.stdout.read(), b""
        while True:
            try:
                data = os.read(master, 65536)
            except OSError:  # the child closed the other end
                break
            if not data:
                break
            seen += data
    os.close(master)
    assert child.returncode == 0
    assert json.loads(said)["versions"] == 3
    assert b"versions" in seen and b"100%" in seen


def test_elsewhere_quarters_are_told(filled, tmp_path):
    command = [sys.executable, "-m", "quire", "copy", "s.db", "t.db"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "100 % of the versions" in done.stderr and "\x1b" not in done.stderr + done.stdout
