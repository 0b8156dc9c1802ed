"""kill -9 of a process that copies: the next one goes on where it stood, nothing twice, nothing missing."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

import quire

from .sources import NAMES, OPERATIONS, assert_copied, do, filled, trim

LEAK = "it leaked: hunter3"
COPIER = str(Path(__file__).parent / "copier.py")
POINTS = [
    *("copy:checked:1", "load:commit:1", "load:commit:9", "load:committed:1", "load:committed:9"),
    *("load:placeholders:1", "load:framed:1", "load:trimmed:4", "copy:cells:1", "copy:blob:2", "copy:framed:3"),
    *("copy:verified:1",),
]
"""On the way of a first copy."""
LATER = [
    "copy:unclean:1",
    "copy:rewritten:1",
    "copy:rewritten:2",
    "copy:framed:9",
    "copy:framed:2",
    "copy:trimmed:1",
    "copy:cells:1",
]
"""Of one after redactions and trims."""


def copied_until(source, target, point=None, after_s=None):
    """Run a copier, kill it after a while if it is not done, return how it ended."""
    env = {**os.environ, **({"QUIRE_FAILPOINT": point} if point else {})}
    with subprocess.Popen([sys.executable, COPIER, source, target], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if after_s is not None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(after_s)
            process.send_signal(signal.SIGKILL)
        process.wait(60)
    return process.returncode


async def assert_beginning(source, target):
    """What is in the target is a beginning of the source, in its order, but for placeholders."""
    feeds = []
    for store in (source, target):
        feed = await store.engine.backend.feed(limit=1_000_000)
        feeds.append(
            [msgspec.structs.replace(r, position=0) for r in feed if not r.message.startswith("a placeholder")]
        )
    assert feeds[0][: len(feeds[1])] == feeds[1]


@pytest.mark.parametrize("point", POINTS)
async def test_death_at_a_named_step_of_a_first_copy(tmp_path, point):
    url, there = str(tmp_path / "s.db"), str(tmp_path / "t.db")
    async with filled(url) as source:
        assert copied_until(url, there, point=point) == -signal.SIGKILL
        async with quire.open(there) as target:
            await assert_beginning(source, target)
        await source.copy_to(there)
        async with quire.open(there) as target:
            await assert_copied(source, target)


@pytest.mark.parametrize("point", LATER)
async def test_death_at_a_named_step_of_a_later_copy(tmp_path, point):
    url, there = str(tmp_path / "s.db"), str(tmp_path / "t.db")
    async with filled(url) as source:
        for name in NAMES:
            await source.workflow(name).set("/leak", LEAK)
        await source.copy_to(there)
        for name in NAMES:
            await source.workflow(name).redact(text=LEAK)
            await do(source, "once", name, 7)
        await trim(source, "c", 2)
        await source.engine.backend.scrub()
        assert copied_until(url, there, point=point) == -signal.SIGKILL
        await source.copy_to(there)
        async with quire.open(there) as target:
            await assert_copied(source, target)
    assert LEAK.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("t.db*"))


async def killed_again_and_again(tmp_path, kind, cycles, seed):
    """The source goes on between the copies that are killed; the last one ends."""
    chance = random.Random(seed)
    url = str(tmp_path / "s.db")
    there = {"sqlite": str(tmp_path / "t.db"), "files": f"file:///{tmp_path}/t"}[kind]
    deaths = 0
    async with filled(url) as source:
        for _ in range(cycles):
            deaths += copied_until(url, there, after_s=chance.uniform(0, 0.25)) == -signal.SIGKILL
            for _ in range(6):
                await do(source, chance.choice(OPERATIONS), chance.choice(NAMES), chance.randrange(3))
            for name in NAMES:
                await do(source, "many", name, 0)
        await source.copy_to(there)
        async with quire.open(there) as target:
            await assert_copied(source, target)
    return deaths


@pytest.mark.parametrize("kind", ["sqlite", "files"])
async def test_a_copy_that_is_killed_at_random_ends_equal(tmp_path, kind):
    assert await killed_again_and_again(tmp_path, kind, 5, 0)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["sqlite", "files"])
@pytest.mark.parametrize("seed", range(100, 110))
async def test_a_copy_that_is_killed_at_random_ends_equal_for_long(tmp_path, kind, seed):
    assert await killed_again_and_again(tmp_path, kind, 30, seed)
