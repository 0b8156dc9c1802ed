"""One flipped bit anywhere in a small folder, at rest or as a crash left it: found, or without effect on what is read."""

import importlib.util
import random
import shutil
from pathlib import Path

import pytest

import quire
from quire.storage import _files_lines, _files_read

_spec = importlib.util.spec_from_file_location("files_flip_tools", Path(__file__).with_name("test_bitflips.py"))
tools = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tools)

FLIPS = 240


async def make(folder, crashed):
    """Make a store; with `crashed`, as it lies there while it is open: the journal holds what is not synced."""
    work = f"{folder}-work"
    url = f"file:///{work}"
    await tools.make(url)
    async with quire.open(url) as store:
        await store.create("last", {"n": 1})
        for n in range(2, 6):
            await store.workflow("last").set("/n", n)
        if crashed:
            shutil.copytree(work, folder)
    if not crashed:
        shutil.copytree(work, folder)


async def attack(tmp_path, flips, seed, *, crashed, unguarded=False):
    original = tmp_path / "s"
    await make(str(original), crashed)
    sound_copy = tmp_path / "sound"
    shutil.copytree(original, sound_copy)
    async with quire.open(f"file:///{sound_copy}") as store:
        assert (await store.verify()).ok
        sound = await tools.everything(store)
        assert sound["last"][0] == {"n": 5}
    files = [f for f in sorted(original.rglob("*")) if f.is_file() and f.stat().st_size]
    chance, tally = random.Random(seed), {}
    for turn in range(flips):
        victim = files[turn % len(files)]  # every file, small ones as often as large ones
        bit = chance.randrange(victim.stat().st_size * 8)
        place = tmp_path / f"{turn}"
        shutil.copytree(original, place)
        broken = place / victim.relative_to(original)
        data = bytearray(broken.read_bytes())
        data[bit // 8] ^= 1 << bit % 8
        broken.write_bytes(data)
        outcome = await tools.verdict(f"file:///{place}", sound, unguarded)
        tally.setdefault(outcome, []).append((str(victim.relative_to(original)), bit))
        shutil.rmtree(place)
    return tally


@pytest.mark.timeout(300)
@pytest.mark.parametrize("crashed", [False, True])
async def test_no_flipped_bit_is_read_in_silence(tmp_path, crashed):
    tally = await attack(tmp_path, FLIPS, seed=1, crashed=crashed)
    print({k: len(v) for k, v in tally.items()})
    assert "silent" not in tally, tally["silent"]
    assert len(tally.get("found", [])) + len(tally.get("verify", [])) > 10


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("crashed", [False, True])
@pytest.mark.parametrize("seed", range(2, 12))
async def test_no_flipped_bit_is_read_in_silence_of_many(tmp_path, seed, crashed):
    tally = await attack(tmp_path, 2000, seed, crashed=crashed)
    assert "silent" not in tally, tally["silent"]


@pytest.mark.timeout(300)
async def test_without_the_checksums_flips_would_pass(tmp_path, monkeypatch):
    """The control: were lines not checked, wrong values would be read in silence."""
    from quire.core import record

    for module in (_files_lines, _files_read):
        monkeypatch.setattr(module, "sealed", lambda *_: True)
    monkeypatch.setattr(record, "check", lambda *_: None)
    monkeypatch.setattr(record, "check_all", lambda *_: b"")
    assert "silent" in await attack(tmp_path, FLIPS, seed=1, crashed=False, unguarded=True)


@pytest.mark.parametrize("crashed", [False, True])
async def test_a_file_that_is_gone_or_empty_or_swapped_is_found(tmp_path, crashed):
    original = tmp_path / "s"
    await make(str(original), crashed)
    untouched = tmp_path / "untouched"
    shutil.copytree(original, untouched)
    async with quire.open(f"file:///{untouched}") as store:
        sound = await tools.everything(store)
    files = [f.relative_to(original) for f in sorted(original.rglob("*")) if f.is_file()]
    tally = {}
    for number, file in enumerate(files):
        twins = [f for f in files if f.parent == file.parent and f != file]
        for how in ("gone", "empty", "half", "swapped"):
            place = tmp_path / f"{number}-{how}"
            shutil.copytree(original, place)
            victim = place / file
            data = victim.read_bytes()
            if how == "gone":
                victim.unlink()
            elif how == "swapped" and twins:
                shutil.copy(original / twins[0], victim)
            else:
                victim.write_bytes(data[: len(data) // 2] if how == "half" else b"")
            outcome = await tools.verdict(f"file:///{place}", sound, False)
            tally.setdefault(outcome, []).append((str(file), how))
            shutil.rmtree(place)
    assert "silent" not in tally, tally["silent"]
    assert len(tally["found"]) > len(tally["harmless"]) // 4, tally
