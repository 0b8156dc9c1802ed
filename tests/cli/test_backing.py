"""`backup`, `backups`, `recover` and `verify --repair`, as users call them."""

import json
from types import SimpleNamespace

import apsw
import pytest
from click.testing import CliRunner

from quire.api import sync
from quire.cli.main import main


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QUIRE_STORE", raising=False)

    def call(*args):
        done = CliRunner().invoke(main, list(args))
        assert "Traceback" not in done.output
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr)

    return call


def test_backups_are_taken_listed_checked_and_brought_back(run, tmp_path):
    assert run("set", "w", "/n", "1").code == 0
    made = run("backup", "file:///place")
    assert made.code == 0 and "full" in made.out
    assert run("set", "w", "/n", "2").code == 0
    told = json.loads(run("backup", "file:///place", "--json").out)
    assert (told["kind"], told["number"]) == ("incremental", 2)
    assert len(run("backups", "file:///place").out.splitlines()) == 2
    assert [b["number"] for b in json.loads(run("backups", "place", "--json").out)["backups"]] == [1, 2]
    assert "whole" in run("backups", "place", "--check").out
    refused = run("recover", "place")
    assert refused.code == 4 and "--replace" in refused.err
    planned = run("recover", "place", "--at", "1", "--dry-run", "--replace")
    assert planned.code == 0 and "would be" in planned.out and "from version 2 back to 1" in planned.out
    assert json.loads(run("show", "w").out) == {"n": 2}
    assert run("recover", "place", "--at", "1", "--replace").code == 0
    assert json.loads(run("show", "w").out) == {"n": 1}
    done = run("--store", "new.db", "recover", "place", "--number", "2", "--json")
    assert json.loads(done.out)["position"] == 2
    with sync.open("new.db") as store:
        assert store.workflow("w").get("/n") == 2
    assert run("--store", "other.db", "-n", "tenant", "recover", "place").code == 0
    with sync.open("other.db", namespace="tenant") as store:
        assert store.workflows() == ["w"]
    assert "would go" in run("backups", "place", "--prune", "--keep", "1", "--dry-run").out
    assert run("backups", "place", "--prune", "--keep", "1").code == 0
    assert run("backups", "place", "--prune", "--check").code == 2
    assert run("recover", "nothing").code == 3
    assert run("recover", "place", "--at", "noon").code == 2


def test_a_damaged_place_exits_with_5_and_names_the_object(run, tmp_path):
    run("set", "w", "/n", "1")
    run("backup", "file:///place")
    victim = next(f for f in (tmp_path / "place").rglob("*.zst") if "segments" in f.parts)
    victim.write_bytes(b"")
    found = run("backups", "place", "--check")
    assert found.code == 5 and victim.name in found.out
    assert run("--store", "t.db", "recover", "place").code == 5


def test_a_plain_path_is_one_copy(run, tmp_path):
    run("set", "w", "/n", "1")
    assert run("backup", "copy.db").code == 0
    with sync.open("copy.db") as store:
        assert store.workflow("w").get("/n") == 1
    assert run("backup", "copy.db").code != 0, "nothing is replaced"
    assert run("backup", "x.db", "--full").code == 2


def test_verify_repairs(run, tmp_path):
    for n in range(5):
        run("set", "w", "/n", str(n))
    run("backup", "file:///place")
    sound = run("verify", "--repair", "--from", "place")
    assert sound.code == 0 and "0 problem(s) found: sound" in sound.out
    with apsw.Connection("quire.db") as db:
        db.execute("update records set body = 'damaged' where position = 3")
    alone = run("verify", "--repair")
    assert alone.code == 5 and "recover" in alone.err
    done = run("verify", "--repair", "--from", "place")
    assert done.code == 0 and "record workflows/w@3: mended" in done.out
    assert json.loads(run("verify", "--repair", "--json").out)["ok"]
    assert run("verify", "w", "--repair").code == 2
    assert run("verify", "--from", "place").code == 2
