"""One flipped bit anywhere in a small store: found, or without effect on anything that is read."""

import asyncio
import random
from pathlib import Path

import pytest

import quire
from quire.core import record
from quire.errors import QuireError

FLIPS = 400


async def make(path):
    async with quire.open(path, settings=quire.Settings(keyframe_changes_min=4, keyframe_bytes_min=0)) as store:
        wf = await store.create("w", {"notes": [], "topic": "tides"}, author="ann")
        for i in range(12):
            await wf.append(
                "/notes", {"i": i, "text": "spring tide at noon"}, author=f"agent-{i % 3}", message=f"note {i}"
            )
        await wf.checkpoint("good", kind="snapshot")
        fork = await wf.fork("f", at=5)
        await fork.set("/topic", "neaps", idempotency_key="k")
        while not await store.engine.backend.keyframes("workflows/w"):
            await asyncio.sleep(0.01)


async def everything(store):
    """Return all that can be read."""
    found = {}
    for name in await store.workflows():
        wf = store.workflow(name)
        found[name] = (
            await wf.state(),
            [(v.number, v.author, v.message, v.kind, v.time, v.checksum, v.changes) for v in await wf.history()],
            [await wf.state(v) for v in range(1, (await wf.version()).number + 1)],
            [(c.name, c.version, c.created_at, await wf.kept_state(c)) for c in await wf.checkpoints()],
        )
    return found


async def verdict(path, sound, unguarded):
    """Return "found", "verify" or "harmless"; "silent" is what must not be, and so is any error that is not ours."""
    try:
        async with quire.open(path) as store:
            try:
                same = await everything(store) == sound
            except QuireError:
                return "found"
            except (KeyError, TypeError, ValueError):
                if unguarded:
                    return "silent"
                raise
            if same:
                return "harmless"
            return "silent" if (await store.verify()).ok else "verify"
    except QuireError:
        return "found"


async def attack(tmp_path, flips, seed, *, unguarded=False):
    original = str(tmp_path / "s.db")
    await make(original)
    async with quire.open(original) as store:
        assert (await store.verify()).ok
        sound = await everything(store)
    data = Path(original).read_bytes()
    chance, tally = random.Random(seed), {}
    for bit in chance.sample(range(len(data) * 8), flips):
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        place = tmp_path / f"{bit}"
        place.mkdir()
        (place / "s.db").write_bytes(broken)
        outcome = await verdict(str(place / "s.db"), sound, unguarded)
        tally.setdefault(outcome, []).append(bit)
        for file in place.iterdir():
            file.unlink()
    return tally


@pytest.mark.timeout(300)
async def test_no_flipped_bit_is_read_in_silence(tmp_path):
    tally = await attack(tmp_path, FLIPS, seed=1)
    print({k: len(v) for k, v in tally.items()})
    assert "silent" not in tally, tally["silent"]
    assert len(tally.get("found", [])) + len(tally.get("verify", [])) > 10


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(2, 22))
async def test_no_flipped_bit_is_read_in_silence_of_many(tmp_path, seed):
    assert "silent" not in await attack(tmp_path, 2000, seed)


@pytest.mark.timeout(300)
async def test_without_the_chain_flips_would_pass(tmp_path, monkeypatch):
    """The control: were chains not checked, wrong values would be read in silence."""
    monkeypatch.setattr(record, "check", lambda *a: None)
    monkeypatch.setattr(record, "check_all", lambda *a: b"")
    assert "silent" in await attack(tmp_path, FLIPS, seed=1, unguarded=True)
