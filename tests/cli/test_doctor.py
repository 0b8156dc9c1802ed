"""`quire doctor`: what is well and what is not, at 80 columns or as JSON, whether the store opens or not."""

import json
import os
import subprocess
import sys

import pytest

from quire.cli import environment
from quire.testing.servers.fixtures import started
from quire.testing.servers.redis import RedisServer

RUN = [sys.executable, "-m", "quire"]


@pytest.fixture
def doctor(tmp_path):
    def call(*args, store="quire.db", **environ):
        env = {**os.environ, **environ}
        command = [*RUN, "--store", store, "doctor", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=env, timeout=60)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def checks(done):
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def test_a_sound_store_and_what_is_around_it(quire, doctor, tmp_path):
    quire("init")
    done = doctor("--json")
    found, said = checks(done), json.loads(done.stdout)
    assert done.returncode == {"ok": 0, "degraded": 1}[said["status"]]  # a busy machine may be slow
    for name in ("python", "driver", "rights", "reading", "writing", "durability", "disk", "log", "server"):
        assert name in found
    assert found["rights"] == {"name": "rights", "status": "ok", "figure": "0600", "reason": ""}
    assert found["driver"]["figure"].startswith("apsw 3.")
    assert found["server"]["figure"].startswith("SQLite 3.")
    assert said["health"]["vitals"]["disk_free_bytes"] > 0
    assert (said["schema"], said["store"]) == (1, "quire.db")
    assert "writing" not in checks(doctor("--json", "--no-write"))
    assert quire("ls") == ""


def test_the_table_fits_80_columns_and_says_what_to_do(quire, doctor, tmp_path):
    quire("init")
    (tmp_path / "quire.db").chmod(0o644)
    done = doctor()
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    (rights,) = (i for i, line in enumerate(lines) if line.startswith("rights "))
    assert lines[rights].split() == ["rights", "degraded", "0644"]
    assert "chmod 600" in " ".join(line.strip() for line in lines[rights + 1 : rights + 4])
    assert lines[-1].startswith("degraded: ")


def test_a_store_that_is_not_there_is_not_made(doctor, tmp_path):
    for store in ("quire.db", "file:///folder", "rocksdb:///folder"):
        done = doctor("--json", store=store)
        assert done.returncode == 6
        found = checks(done)
        assert found["store"]["status"] == "unhealthy" and "init` makes one" in found["store"]["reason"]
        assert found["python"]["status"] == "ok" and found["disk"]["figure"]
        assert json.loads(done.stdout)["health"] is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_unhealthy(doctor, tmp_path):
    (tmp_path / "quire.db").write_text("not a store, but a text that is long enough to be taken for one" * 9)
    done = doctor()
    assert done.returncode == 6
    assert "incompatible_format" in done.stdout and "is not a Quire store" in " ".join(done.stdout.split())


@pytest.mark.parametrize("store", ["file:///folder", "rocksdb:///folder"])
def test_folders_are_examined_too(quire, doctor, store):
    quire("--store", store, "init")
    done = doctor("--json", store=store)
    assert done.returncode in (0, 1)
    assert checks(done)["rights"]["figure"] == "0700"


def test_a_url_that_is_none_is_a_mistake_of_the_caller(doctor):
    assert doctor(store="spam://x").returncode == 2
    for deadline in ("0", "nan", "soon"):
        assert doctor("--deadline", deadline, store="memory:").returncode == 2


def test_a_deadline_that_is_too_short_is_met_all_the_same(quire, doctor):
    quire("init")
    done = doctor("--deadline", "0.000001")
    assert done.returncode == 6 and "took longer than 1e-06 s" in " ".join(done.stdout.split())


def test_a_driver_that_is_missing_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setitem(environment._DRIVERS, "redis", ("redis", ("redis", "a-package-that-nobody-made")))
    (_, driver) = environment.examined("redis://host/0")
    assert driver.status == "unhealthy"
    assert "pip install 'quire[redis]'" in driver.reason


def test_durability_that_is_less_than_expected_is_degraded(doctor, quire):
    quire("init")
    done = doctor("--json", "--expect-durability", "power", store="sqlite:///quire.db?durability=relaxed")
    assert done.returncode == 1 and checks(done)["durability"]["status"] == "degraded"


def test_a_server_that_is_not_there_is_unhealthy_and_no_password_is_shown(doctor):
    server = started(RedisServer())
    server.stop()
    done = doctor(store=f"redis://ann:s3cret@127.0.0.1:{server.port}/0")
    assert done.returncode == 6
    assert "s3cret" not in done.stdout + done.stderr
    assert "storage_unavailable" in done.stdout


def test_a_server_that_may_lose_writes_is_degraded(doctor):
    server = started(RedisServer({"appendfsync": "everysec"}))
    try:
        done = doctor("--json", store=server.url)
    finally:
        server.stop()
    found = checks(done)
    assert done.returncode == 1
    assert found["durability"]["status"] == "degraded" and "set always" in found["durability"]["reason"]
    assert found["clock"]["status"] == "ok" and found["server"]["figure"].startswith("Redis ")
