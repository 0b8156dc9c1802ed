"""kill -9 at random moments and at every named step of a commit, and a file system that dies: acknowledged survives, once."""

import fcntl
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import quire

WRITER = str(Path(__file__).parent / "crash_writer.py")
WRITERS = 4


def live_and_die(path, after_s, honesty="honest", failpoint=None, end=None):
    """Run a writer, kill it, and return what it acknowledged: {(workflow, version): mark}.

    end: called before the kill. What is said from then on does not count: while a disk is cut off by software, a sync that
    is under way may still say that it went well, to a process that without power would not be there.
    """
    env = {**os.environ, **({"QUIRE_FAILPOINT": failpoint} if failpoint else {})}
    with subprocess.Popen(
        [sys.executable, WRITER, path, str(WRITERS), honesty], stdout=subprocess.PIPE, env=env
    ) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        said, until = b"", None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    break
                if selector.select(0.5 if left is None else left):
                    part = process.stdout.read()
                    if not part:
                        break
                    said += part
                    if until is None and b"ready" in said:
                        until = time.monotonic() + after_s
        if end is not None:
            said += process.stdout.read() or b""
            end()
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.set_blocking(process.stdout.fileno(), True)
        if end is None:
            said += process.stdout.read() or b""
    acked = {}
    for line in said.decode().split("\n")[:-1]:
        if line != "ready":
            workflow, version, mark = line.split(" ")
            acked[(int(workflow), int(version))] = mark
    return acked, process.returncode


def losses(path, acked):
    """Return what was acknowledged and is not there, after checking that what is there is sound."""
    lost = []
    with quire.sync.open(path) as store:
        report = store.verify()
        assert report.ok, report.problems
        for w in range(WRITERS):
            wf = store.workflow(f"w{w}")
            if not wf.exists():
                lost += [key for key in acked if key[0] == w]
                continue
            versions = wf.history(order="oldest")
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            marks = {v.number: next((c.value for c in v.changes if c.path == ("last",)), None) for v in versions}
            written = [m for m in marks.values() if m]
            assert len(set(written)) == len(written), "a write happened twice"
            assert wf.get("/n") == len(versions) - 1
            lost += [key for key, mark in acked.items() if key[0] == w and marks.get(key[1]) != mark]
    return lost


def attack(path, cycles, seed):
    chance, acked, lost = random.Random(seed), {}, []
    for _ in range(cycles):
        said, _ = live_and_die(path, chance.uniform(0, 0.05))
        acked |= said
    lost = losses(path, acked)
    return acked, lost


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(10))
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path, seed):
    """A thousand cycles in all."""
    acked, lost = attack(str(tmp_path / "s.db"), 100, seed)
    assert len(acked) > 100
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(100, 190))
def test_nothing_acknowledged_is_lost_by_kill_9_in_ten_thousand_cycles(tmp_path, seed):
    _, lost = attack(str(tmp_path / "s.db"), 100, seed)
    assert not lost


def test_the_checker_catches_an_early_acknowledgement(tmp_path):
    for attempt in range(40):
        path = str(tmp_path / f"s{attempt}.db")
        acked, _ = live_and_die(path, 0.01 * (attempt % 5), honesty="early")
        try:
            if losses(path, acked):
                return
        except quire.errors.NotFound:
            return
    pytest.fail("40 dishonest writers were killed and nothing was found missing: the checker does not check")


@pytest.mark.parametrize("point", ["commit:begin", "commit:insert", "commit:before", "commit:after"])
@pytest.mark.parametrize("number", [1, 6, 30])
def test_death_at_a_named_step_of_a_commit(tmp_path, point, number):
    path = str(tmp_path / "s.db")
    with quire.sync.open(path) as store:
        store.create("other", {})
    acked, code = live_and_die(path, 20, failpoint=f"{point}:{number}")
    assert code == -signal.SIGKILL
    assert not losses(path, acked)


# a file system cut off by the kernel, its journal not flushed: the nearest to a pulled plug that software can do

FS_IOC_SHUTDOWN = 0x8004587D
"""_IOR('X', 125, __u32) of linux/fs.h; ext4 and xfs know it."""
WITHOUT_FLUSH = (2).to_bytes(4, sys.byteorder)


def shut_down(folder):
    """Throw away what the file system at `folder` has only in memory, and refuse all further writing."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.ioctl(handle, FS_IOC_SHUTDOWN, WITHOUT_FLUSH)
    finally:
        os.close(handle)


@contextmanager
def mounted(image, folder):
    """Mount a file as a disk."""
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """Return a fresh ext4 image and the folder it goes to."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(96 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        with mounted(image, folder):
            pass
    except (OSError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"needs root, mkfs.ext4 and loop devices: {cause}")
    return image, folder


def lose_power(disk, url, cycles, seed):
    """Write on a disk that is cut off at random moments; return what was acknowledged and what of it is lost."""
    image, folder = disk
    chance, acked = random.Random(seed), {}
    for _ in range(cycles):
        with mounted(image, folder):
            said, _ = live_and_die(url, chance.uniform(0, 0.2), end=lambda: shut_down(folder))
            acked |= said
    with mounted(image, folder):
        return acked, losses(url, acked)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_by_a_file_system_that_dies(disk, seed):
    """Five times a hundred power cuts by a real kernel, journal replayed at each mount."""
    acked, lost = lose_power(disk, str(disk[1] / "s.db"), 100, seed)
    assert len(acked) > 100
    assert not lost


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_file_system_that_dies_takes_what_was_not_synced(disk):
    """The control: with relaxed durability, writes that were acknowledged are gone."""
    url = f"sqlite:///{disk[1]}/s.db?durability=relaxed"
    for seed in range(20):
        try:
            _, lost = lose_power(disk, url, 1, seed)
        except quire.errors.NotFound:
            return
        if lost:
            return
    pytest.fail("20 cuts took nothing: either they cut nothing, or the check does not check")
