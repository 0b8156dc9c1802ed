"""kill -9 while old versions go to the archive: at every named step, at random, and of one of two who sweep at once."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

import quire
from quire.config import Retention
from quire.storage.wrap._catalogue import PREFIX, read_catalogue

WRITER = str(Path(__file__).parent / "archive_writer.py")
WRITERS = 3
POINTS = ("intended", "put", "stored", "recorded", "removing", "cleared")


def live_and_die(path, place, *, lines=5000, failpoint=None, honesty="honest"):
    """Run a writer until it said so many lines or died of a failpoint; return what it acknowledged, and its end."""
    env = {**os.environ, **({"QUIRE_FAILPOINT": failpoint} if failpoint else {})}
    with subprocess.Popen(
        [sys.executable, WRITER, path, place, str(WRITERS), honesty],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        text=True,
    ) as process:
        acked = {}
        for said in process.stdout:
            if said == "ready\n" or not said.endswith("\n"):
                continue
            workflow, version, mark = said.split()
            acked[int(workflow), int(version)] = mark
            if len(acked) >= lines:
                process.kill()
                break
        for said in process.stdout:
            if said.endswith("\n") and said != "ready\n":
                workflow, version, mark = said.split()
                acked[int(workflow), int(version)] = mark
        errors = process.stderr.read()
    return acked, process.returncode, errors


def losses(path, acked):
    """Return what was acknowledged and cannot be read, after checking that what can is sound and there once."""
    with quire.sync.open(path) as store:
        report = store.verify()
        assert report.ok, report.problems
        lost = []
        for w in range(WRITERS):
            wf = store.workflow(f"w{w}")
            if not wf.exists():
                lost += [key for key in acked if key[0] == w]
                continue
            versions = wf.history(order="oldest")
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            marks = {v.number: next((c.value for c in v.changes if c.path == ("last",)), None) for v in versions}
            written = [m for m in marks.values() if m]
            assert len(set(written)) == len(written), "a write is there twice"
            assert wf.get("/n") == len(versions) - 1
            lost += [key for key, mark in acked.items() if key[0] == w and marks.get(key[1]) != mark]
    return lost


def strays(path, place):
    """Return the objects that no catalogue tells of, in any way."""
    with quire.sync.open(path) as store:
        archive = store._store.engine.archive

        async def named():
            found = set()
            for cell in await archive.inner.cells(PREFIX):
                known = read_catalogue(cell)
                found |= {each.name for each in (*known.all(), *known.coming, *known.gone)}
            return found

        names = store._loop.run(named())
    return [p.name for p in Path(place).rglob("*.zst") if p.name.partition(".")[0] not in names]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("number", [1, 5])
def test_death_at_a_named_step_of_moving(tmp_path, point, number):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    acked, code, _ = live_and_die(path, place, failpoint=f"archive:{point}:{number}")
    assert code == -signal.SIGKILL
    assert acked
    assert not losses(path, acked)
    assert not strays(path, place)
    more, _, errors = live_and_die(path, place, lines=60)  # the next one goes on
    assert not errors
    assert not losses(path, acked | more)
    assert not strays(path, place)


@pytest.mark.parametrize("point", POINTS)
def test_death_at_a_named_step_of_packing(tmp_path, point):
    path = str(tmp_path / "s.db")
    acked, code, _ = live_and_die(path, "-", failpoint=f"archive:{point}:3")
    assert code == -signal.SIGKILL
    assert not losses(path, acked)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_acknowledged_is_lost_by_kill_9_while_it_is_moved(tmp_path, seed):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    chance, acked = random.Random(seed), {}
    for _ in range(12):
        acked |= live_and_die(path, place, lines=chance.randrange(1, 200))[0]
    assert len(acked) > 300
    assert not losses(path, acked)
    assert not strays(path, place)


@pytest.mark.timeout(300)
def test_two_processes_sweep_one_store_and_one_is_killed(tmp_path):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    acked = live_and_die(path, place, lines=20)[0]
    with subprocess.Popen(
        [sys.executable, WRITER, path, place, str(WRITERS), "honest"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as other:
        try:
            for number in (1, 4):
                more, code, errors = live_and_die(path, place, failpoint=f"archive:stored:{number}")
                assert code == -signal.SIGKILL
                assert not errors
                acked |= more
            more, _, errors = live_and_die(path, place, lines=150)
            assert not errors
        finally:
            other.kill()
        said = other.stderr.read().decode()
    assert not said
    assert not losses(path, acked | more)
    assert not strays(path, place)


def test_the_checker_catches_who_removes_before_it_wrote(tmp_path):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    acked, code, _ = live_and_die(path, place, failpoint="archive:put:1", honesty="early")
    assert code == -signal.SIGKILL
    with pytest.raises(AssertionError):
        assert not losses(path, acked)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(100, 110))
def test_nothing_acknowledged_is_lost_in_a_thousand_deaths_while_it_is_moved(tmp_path, seed):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    chance, acked = random.Random(seed), {}
    for _ in range(100):
        acked |= live_and_die(path, place, lines=chance.randrange(1, 300))[0]
    assert not losses(path, acked)
    assert not strays(path, place)


def test_redactions_race_with_the_sweeps_of_another_process(tmp_path):
    """What is taken out while another process moves it is in no segment, and nothing else is harmed."""
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    live_and_die(path, place, lines=40)
    with subprocess.Popen(
        [sys.executable, WRITER, path, place, str(WRITERS), "honest"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        secret = f"{process.pid}-"
        said = [process.stdout.readline() for _ in range(20)]
        with quire.sync.open(path) as store:
            for _ in range(4):
                said.append(process.stdout.readline())
                with suppress(quire.errors.StorageTimeout):  # it could not clean up beside so many readers
                    store.workflow("w0").redact(text=secret)
            process.kill()
            rest, errors = process.communicate()
            # a keyframe is gone for a moment while it is put anew: the next sweep finds it
            assert [e for e in errors.splitlines() if "has no keyframe" not in e and "try again" not in e] == []
            acked = [line.split() for line in [*said, *rest.splitlines()] if line.startswith("0 ")]
        with quire.sync.open(path) as store:
            store.workflow("w0").redact(text=secret)
            assert store.verify().ok, store.verify().problems
            wf = store.workflow("w0")
            versions = wf.history(order="oldest")
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            assert len(versions) >= max(int(number) for _, number, mark in acked if mark)
            assert secret not in str([wf.state(v.number) for v in versions])
            assert not store.sweep(retention=Retention(versions=1)).problems
            assert store.archived(check=True).problems == []
    segments = [zstandard.decompress(p.read_bytes()) for p in Path(place).rglob("*.zst")]
    assert segments
    assert not any(b'"stream":"workflows/w0"' in text and secret.encode() in text for text in segments)
    assert any(secret.encode() in text for text in segments)  # the control: that of the others is there
