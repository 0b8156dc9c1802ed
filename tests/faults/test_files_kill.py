"""A folder of files under kill -9: at random moments, at every named step, beside processes that live on."""

import importlib.util
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import quire

_spec = importlib.util.spec_from_file_location("files_kill_tools", Path(__file__).with_name("test_kill.py"))
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)
tools.WRITER = str(Path(__file__).with_name("files_writer.py"))

POINTS = [
    *("commit:begin", "commit:torn", "commit:before", "commit:synced", "commit:write", "commit:written"),
    *("commit:after", "commit:renamed", "checkpoint:begin", "checkpoint:synced", "checkpoint:round"),
]


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    acked, lost = tools.attack(f"file:///{tmp_path}/store", 30, 0)
    assert len(acked) > 30
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(100, 120))
def test_nothing_acknowledged_is_lost_by_kill_9_in_ten_thousand_cycles(tmp_path, seed):
    _, lost = tools.attack(f"file:///{tmp_path}/store", 500, seed)
    assert not lost


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("number", [1, 7, 60])
def test_death_at_a_named_step(tmp_path, point, number):
    url = f"file:///{tmp_path}/store"
    with quire.sync.open(url) as store:
        store.create("other", {})
    acked, code = tools.live_and_die(url, 20, failpoint=f"{point}:{number}")
    assert code == -signal.SIGKILL
    assert not tools.losses(url, acked)
    with quire.sync.open(url) as store:  # and what died half done can be written on
        store.workflow("other").set("/n", 1)
        assert store.verify().ok


def side_by_side(url, cycles, seed, processes=2):
    """Run writers on one folder at the same time, killed at different moments; return what was lost."""
    chance, acked = random.Random(seed), {}
    with ThreadPoolExecutor(processes) as pool:
        for _ in range(cycles):
            points = [chance.choice([None, f"{chance.choice(POINTS)}:{chance.randrange(1, 40)}"]) for _ in range(2)]
            for said, _ in pool.map(
                lambda point: tools.live_and_die(url, chance.uniform(0.05, 0.4), failpoint=point), points
            ):
                assert not set(acked) & set(said), "a version was given to two writers"
                acked |= said
    return acked, tools.losses(url, acked)


@pytest.mark.timeout(300)
def test_who_dies_in_a_commit_harms_nobody_beside(tmp_path):
    acked, lost = side_by_side(f"file:///{tmp_path}/store", 8, 1)
    assert len(acked) > 100
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 12))
def test_who_dies_in_a_commit_harms_nobody_beside_a_thousand_times(tmp_path, seed):
    _, lost = side_by_side(f"file:///{tmp_path}/store", 100, seed, processes=2)
    assert not lost


def test_the_checker_catches_an_early_acknowledgement(tmp_path):
    for attempt in range(40):
        url = f"file:///{tmp_path}/s{attempt}"
        acked, _ = tools.live_and_die(url, 0.01 * (attempt % 5), honesty="early")
        try:
            if tools.losses(url, acked):
                return
        except quire.errors.NotFound:
            return
    pytest.fail("40 dishonest writers were killed and nothing was found missing: the checker does not check")


disk = tools.disk


def lose_power(where, cycles, seed):
    image, folder = where
    return tools.lose_power((image, folder), f"file:///{folder}/store", cycles, seed)


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_by_a_file_system_that_dies(disk):
    acked, lost = lose_power(disk, 15, 0)
    assert len(acked) > 15
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(1, 6))
def test_nothing_acknowledged_is_lost_by_a_file_system_that_dies_a_hundred_times(disk, seed):
    acked, lost = lose_power(disk, 100, seed)
    assert not lost


def test_without_the_sync_a_file_system_that_dies_takes_what_was_acknowledged(disk, tmp_path, monkeypatch):
    """The control: with a journal that is not synced, writes that were acknowledged are gone."""
    script = tmp_path / "careless.py"
    script.write_text(
        "import sys, runpy\n"
        "from quire.storage import _files_disk\n"
        "_files_disk.sync = lambda handle: None\n"
        f"runpy.run_path({tools.WRITER!r}, run_name='__main__')\n"
    )
    monkeypatch.setattr(tools, "WRITER", str(script))
    for seed in range(20):
        try:
            _, lost = lose_power(disk, 1, seed)
        except (quire.errors.NotFound, quire.errors.StorageError, AssertionError):
            return
        if lost:
            return
    pytest.fail("20 cuts took nothing: either they cut nothing, or the check does not check")
