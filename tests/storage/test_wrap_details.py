"""What wrappers promise beyond the protocol: nothing to read without the key, keys that change, bombs, dictionaries."""

import asyncio
import os
import signal
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import msgspec
import pytest
import zstandard
from blake3 import blake3

import quire
from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import CorruptRecord, Denied, Invalid, InvalidKey, Unsupported
from quire.model import Keyframe
from quire.storage.base import CellWrite, Committed, Item, Refused
from quire.storage.memory import open_memory
from quire.storage.open import open_backend
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap import BOOK, KEYRING, compressed
from quire.storage.wrap.compressed import Compression, open_compressed
from quire.storage.wrap.encrypted import key_id, new_key, open_encrypted, rotate
from quire.testing._conformance_base import accepted, appended, begun, entry, set_cell

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


async def store_on(backend):
    return Store(Engine(backend, Settings(), SystemClock(), system_ids(), await backend.latest()), "default")


async def whole(backend):
    """Use all of a store; return what can be read."""
    store = await store_on(backend)
    if not await store.workflow("w").exists():
        wf = await store.create("w", {"pin": "SECRET-1", "n": 0}, author="ann")
        for n in range(20):
            await wf.set("/n", n, idempotency_key=f"k{n}")
        await wf.checkpoint("good", kind="snapshot")
        await (await wf.fork("f", at=3)).set("/pin", "SECRET-2")
    report = await store.verify()
    assert report.ok, report.problems
    wf = store.workflow("w")
    found = [await wf.state(), [(v.checksum, v.changes) for v in await wf.history()], await wf.state("good")]
    found.append(await store.workflow("f").state())
    await store.close()
    return found


# encryption


async def test_nothing_can_be_read_without_the_key(tmp_path):
    path = str(tmp_path / "s.db")
    backend = await open_backend(path, namespace="default", encryption_key=KEY)
    await set_cell(backend, "lease", b"SECRET-3")
    chains = [r.chain for r in await appended(backend, "raw/1", b"SECRET-4")]
    await backend.put_keyframe(Keyframe("raw/1", 1, chains[0], 9, blake3(b"SECRET-5").digest(), b"SECRET-5"))
    await backend.drop("raw/1")
    seen = await whole(backend)
    chains += [bytes.fromhex(checksum) for checksum, _ in seen[1]]
    data = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert b"SECRET" not in data
    assert b"ann" in data  # the control: what is said to be visible is
    assert not [c for c in chains if c in data or c.hex().encode() in data]
    backend = await open_backend(path, namespace="default", encryption_key=KEY)
    names = await backend.blobs()
    await backend.close()
    data = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert names
    assert not [name for name in names if name.encode() in data]


@pytest.mark.parametrize("url", ["{here}/s.db", "file:///{here}/s", "memory:wrapped"])
async def test_encryption_and_compression_work_on_any_backend(tmp_path, url):
    url = url.format(here=tmp_path)
    keep = await open_backend(url, namespace="default")
    options = {"namespace": "default", "encryption_key": KEY, "compression": Compression("zstd", threshold_bytes=0)}
    seen = await whole(await open_backend(url, **options))
    again = await open_backend(url, namespace="default", encryption_key=KEY)  # that it is compressed, it knows
    assert "compressed" in again.capabilities.note
    assert await whole(again) == seen
    await keep.close()


async def test_a_wrong_key_or_none_is_refused(tmp_path):
    path = str(tmp_path / "s.db")
    await (await open_backend(path, namespace="default", encryption_key=KEY)).close()
    with pytest.raises(Denied, match=key_id(KEY)):
        await open_backend(path, namespace="default", encryption_key=OTHER)
    with pytest.raises(Denied, match="give the key"):
        async with quire.open(path):
            pass
    await (await open_backend(path, namespace="other", encryption_key=OTHER)).close()
    await (await open_backend(path, namespace="plain")).close()
    for bad in (b"short", "text" * 8, bytes(33)):
        with pytest.raises(InvalidKey, match="32 random bytes"):
            await open_backend(path, namespace="default", encryption_key=bad)


async def test_a_namespace_of_plain_data_is_not_mixed(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {})
    with pytest.raises(Denied, match="not encrypted"):
        await open_backend(path, namespace="default", encryption_key=KEY)
    async with quire.open(path) as store:
        assert await store.workflow("w").state() == {}


async def test_what_was_moved_or_altered_does_not_decrypt():
    inner = await open_memory("", namespace="default")
    backend = await open_encrypted(inner, namespace="default", key=KEY)
    records = await appended(backend, "s/1", b"one", b"two")
    await appended(backend, "s/2", b"other")
    stored = {(r.stream, r.version): r for r in await inner.feed()}
    victim = stored["s/1", 1]
    flipped = bytes([stored["s/1", 1].body[20] ^ 1])
    for body in (
        stored["s/1", 2].body,
        stored["s/2", 1].body,
        b"",
        b"one",
        victim.body[:20] + flipped + victim.body[21:],
        victim.body[:-1],
    ):
        await inner.rewrite([msgspec.structs.replace(victim, body=body)])
        with pytest.raises(CorruptRecord, match="s/1 v1"):
            await backend.read("s/1")
    await inner.rewrite([victim])
    assert await backend.read("s/1") == records
    for name in ("a", "b"):
        await set_cell(backend, name, name.encode())
        await backend.put_blob(name, name.encode())
    cells = {c.name: c.value for c in await inner.cells()}
    await accepted(inner, Item(cells=(CellWrite("a", cells["a"], cells["b"]),)))
    with pytest.raises(CorruptRecord, match="cell a"):
        await backend.cell("a")
    names = await inner.blobs()
    data = await inner.blob(names[0])
    await inner.drop_blob(names[1])
    await inner.put_blob(names[1], data)
    with pytest.raises(CorruptRecord):
        await asyncio.gather(backend.blob("a"), backend.blob("b"))


async def test_no_nonce_is_used_twice():
    inner = await open_memory("", namespace="default")
    backend = await open_encrypted(inner, namespace="default", key=KEY)
    for stream in range(10):
        records = await appended(backend, f"s/{stream}", *[b"same"] * 500)
        nonces = {r.body[:12] for r in await inner.read(f"s/{stream}")}
        assert await backend.rewrite(records) == 500
        nonces |= {r.body[:12] for r in await inner.read(f"s/{stream}")}
        assert len(nonces) == 1000


async def test_equal_cells_of_two_names_or_namespaces_look_different(tmp_path):
    found = set()
    for namespace in ("one", "two"):
        inner = await open_sqlite(str(tmp_path / "s.db"), namespace=namespace)
        backend = await open_encrypted(inner, namespace=namespace, key=KEY)
        for name in ("a", "b"):
            await set_cell(backend, name, b"same")
            found.add((await inner.cell(name)).value)
        await backend.close()
    assert len(found) == 4


async def test_the_cells_of_wrappers_are_not_for_others():
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(await open_encrypted(inner, namespace="default", key=KEY))
    for name in (KEYRING, BOOK, f"{BOOK}/x"):
        assert await backend.cell(name) is None
        with pytest.raises(InvalidKey, match="wrapper"):
            await backend.commit([Item(cells=(CellWrite(name, None, b"1"),))])
    with pytest.raises(InvalidKey, match="wrapper"):
        await backend.put_blob(f"{BOOK}/x", b"1")
    await backend.drop_blob(f"{BOOK}/x")
    assert await backend.cells() == []
    assert (await backend.stats()).cells == 0


async def test_a_changed_key_opens_and_the_old_one_does_not(tmp_path):
    path = str(tmp_path / "s.db")
    before = await open_backend(path, namespace="default", encryption_key=KEY)
    await appended(before, "s/1", b"1")
    inner = await open_sqlite(path, namespace="default")
    with pytest.raises(Denied):
        await rotate(inner, namespace="default", old=OTHER, new=KEY)
    await rotate(inner, namespace="default", old=KEY, new=OTHER)
    with pytest.raises(Denied, match=key_id(OTHER)):
        await open_backend(path, namespace="default", encryption_key=KEY)
    after = await open_backend(path, namespace="default", encryption_key=OTHER)
    await appended(before, "s/1", b"2")  # who has it open goes on
    assert [r.body for r in await after.read("s/1")] == [b"1", b"2"]
    for handle in (before, after, inner):
        await handle.close()
    plain = await open_sqlite(path, namespace="other")
    with pytest.raises(Denied, match="not encrypted"):
        await rotate(plain, namespace="other", old=KEY, new=OTHER)
    await plain.close()


ROTATING = """
import asyncio, os, sys
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap.encrypted import rotate
KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
async def main():
    inner = await open_sqlite(sys.argv[1], namespace="default")
    now = KEY if sys.argv[2] == "key" else OTHER
    while True:
        new = OTHER if now == KEY else KEY
        await rotate(inner, namespace="default", old=now, new=new)
        now = new
        os.write(1, b".")
asyncio.run(main())
"""


def test_changing_the_key_survives_kill_9(tmp_path):
    path, now = str(tmp_path / "s.db"), "key"

    async def opens():
        for name, key in (("key", KEY), ("other", OTHER)):
            try:
                backend = await open_backend(path, namespace="default", encryption_key=key)
            except Denied:
                continue
            bodies = [r.body for r in await backend.read("s/1")]
            await backend.close()
            return name, bodies
        return None

    async def begin():
        backend = await open_backend(path, namespace="default", encryption_key=KEY)
        await appended(backend, "s/1", b"1")
        await backend.close()

    asyncio.run(begin())
    seen = set()
    for failpoint in [f"commit:{step}:{n}" for step in ("begin", "before", "after") for n in (1, 2, 5, 8)]:
        process = subprocess.Popen(
            [sys.executable, "-c", ROTATING, path, now],
            env={**os.environ, "QUIRE_FAILPOINT": failpoint},
            stdout=subprocess.DEVNULL,
        )
        assert process.wait(60) == -signal.SIGKILL
        now, bodies = asyncio.run(opens())
        seen.add(now)
        assert bodies == [b"1"]
    assert seen == {"key", "other"}


async def test_who_looks_while_another_begins_to_encrypt_takes_its_key():
    async def other_first(cell, name):
        found = await cell(name)
        if not others:
            others.append(await open_encrypted(await open_memory("looks", namespace="n"), namespace="n", key=KEY))
            await appended(others[0], "s/1", b"1")
        return found

    others, inner = [], await open_memory("looks", namespace="n")
    inner.cell = partial(other_first, inner.cell)
    ours = await open_encrypted(inner, namespace="n", key=KEY)
    assert [r.body for r in await ours.feed()] == [b"1"]
    for handle in (ours, *others):
        await handle.close()


async def test_many_who_open_a_new_namespace_agree_on_its_key(tmp_path):
    path = str(tmp_path / "s.db")
    handles = await asyncio.gather(
        *(open_backend(path, namespace="default", encryption_key=KEY, compression="zstd") for _ in range(8))
    )
    for number, handle in enumerate(handles):
        await appended(handle, f"s/{number}", b"1")
    for handle in handles:
        assert [r.body for r in await handle.feed()] == [b"1"] * 8
        await handle.close()


# compression


@pytest.mark.parametrize("algorithm", ["zstd", "gzip", "lz4"])
async def test_what_is_large_and_repeats_is_stored_small(algorithm):
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(inner, algorithm)
    bodies = [b"tides " * 1000, os.urandom(5000), b"small", b"x" * 1023, b"x" * 1024]
    await appended(backend, "s/1", *bodies)
    sizes = [len(r.body) for r in await inner.read("s/1")]
    assert [r.body for r in await backend.read("s/1")] == bodies
    assert sizes[0] < 600
    assert sizes[1] in (5000, 5001)
    assert sizes[2:4] == [5, 1023]
    assert sizes[4] < 100
    await backend.put_blob("b", bodies[0])
    assert len(await inner.blob("b")) < 600
    assert await backend.blob("b") == bodies[0]


@pytest.mark.parametrize(
    "wrong", ["brotli", Compression("zstd", 23), Compression("gzip", 10), Compression("zstd", threshold_bytes=-1)]
)
async def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(Invalid):
        await open_compressed(await open_memory("", namespace="default"), wrong)


async def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    with pytest.raises(Unsupported, match=r"quire\[lz4\]"):
        await open_compressed(await open_memory("", namespace="default"), "lz4")


def test_encryption_without_its_package_is_named():
    code = (
        "import sys; sys.modules['cryptography.exceptions'] = None\n"
        "import asyncio, quire\n"
        "from quire.storage.open import open_backend\n"
        "try: asyncio.run(open_backend('memory:', namespace='n', encryption_key=bytes(32)))\n"
        "except quire.errors.Unsupported as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "quire[encryption]" in said


async def test_what_was_written_with_other_settings_is_read():
    inner = await open_memory("", namespace="default")
    body, streams = b"tides " * 1000, []
    for algorithm in ("zstd", "gzip", "lz4"):
        backend = await open_compressed(inner, Compression(algorithm))
        await appended(backend, f"s/{algorithm}", body)
        streams.append(f"s/{algorithm}")
    for algorithm in (None, "gzip"):
        backend = await open_compressed(inner, algorithm)
        assert [(await backend.read(s))[0].body for s in streams] == [body] * 3


async def test_a_plain_namespace_may_be_compressed_from_now_on():
    inner = await open_memory("", namespace="default")
    await appended(inner, "s/1", b'["plain"]')
    backend = await open_compressed(inner)
    await appended(backend, "s/1", b"tides " * 1000)
    assert [len(r.body) for r in await backend.read("s/1")] == [9, 6000]


def bombs():
    zeros = bytes(4_000_000)
    claims = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    return {
        "zstd": b"\x01" + zstandard.ZstdCompressor().compress(zeros),
        "zstd that does not say": b"\x01" + claims,
        "gzip": b"\x02" + zlib.compress(zeros, wbits=31),
        "lz4": b"\x03" + __import__("lz4.frame").frame.compress(zeros),
        "zstd cut": b"\x01" + zstandard.ZstdCompressor().compress(b"tides" * 999)[:-4],
        "gzip cut": b"\x02" + zlib.compress(b"tides" * 999, wbits=31)[:-4],
        "lz4 cut": b"\x03" + __import__("lz4.frame").frame.compress(b"tides" * 999)[:-4],
        "zstd twice": b"\x01" + zstandard.ZstdCompressor().compress(b"tides" * 999) * 2,
        "gzip twice": b"\x02" + zlib.compress(b"tides" * 999, wbits=31) * 2,
        "zstd of nothing": b"\x01",
        "gzip of noise": b"\x02\x1f\x8bnoise",
        "lz4 of noise": b"\x03noise",
        "a dictionary nobody has": b"\x01" + bytes.fromhex("28b52ffd23ffffff7f0a"),
    }


@pytest.mark.parametrize("name", bombs())
async def test_a_bomb_or_a_broken_frame_is_refused_within_bounds(name, monkeypatch):
    monkeypatch.setattr(compressed, "_PLAIN_MAX_BYTES", 1_000_000)
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(inner)
    await appended(inner, "s/1", bombs()[name])
    await inner.put_blob("b", bombs()[name])
    for call in (backend.read("s/1"), backend.feed(), backend.blob("b")):
        with pytest.raises(CorruptRecord):
            await call


def changes(number):
    """Return small changes of agents, as they are: the same words, other values."""
    agents = ("researcher", "writer", "critic")
    text = f'[["set",["agents","{agents[number % 3]}","status"],"{("busy", "idle", "waiting")[number % 7 % 3]}"],'
    text += f'["set",["steps","{number}"],{{"agent":"{agents[number % 3]}","attempt":{number % 3},"output_tokens":'
    text += f'{number * 7919 % 5000},"status":"completed","started_at":{1_700_000_000_000 + number * 991}}}]]'
    return text.encode()


async def test_a_trained_dictionary_saves_on_small_changes_and_everybody_reads_them(tmp_path):
    path = str(tmp_path / "s.db")
    backend = await open_compressed(await open_sqlite(path, namespace="default"))
    other = await open_compressed(await open_sqlite(path, namespace="default"))
    await appended(backend, "workflows/a", *map(changes, range(600)))
    gain = await backend.train("workflows")
    assert gain.with_bytes < gain.without_bytes * 0.6
    records = await appended(backend, "workflows/a", *map(changes, range(600, 700)))
    inner = await open_sqlite(path, namespace="default")
    stored = sum(len(r.body) for r in await inner.read("workflows/a", after=600))
    assert stored < sum(len(r.body) for r in records) * 0.6
    assert await other.read("workflows/a", after=600) == records  # it was open before there was a dictionary
    await backend.train("workflows")
    await appended(backend, "workflows/a", *map(changes, range(700, 710)))
    third = await open_compressed(await open_sqlite(path, namespace="default"))
    assert [r.body for r in await third.read("workflows/a")] == [changes(n) for n in range(710)]
    assert await third.blobs() == []
    assert (await third.stats()).blobs == 0
    for handle in (backend, other, third, inner):
        await handle.close()


async def test_a_dictionary_that_is_gone_is_said():
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(inner)
    with pytest.raises(Invalid, match="learn from"):
        await backend.train("workflows")
    await appended(backend, "workflows/a", *map(changes, range(600)))
    await backend.train("workflows")
    for name in await inner.blobs():
        await inner.drop_blob(name)
    with pytest.raises(CorruptRecord, match="dictionary"):
        await open_compressed(inner)
    gzip = await open_compressed(await open_memory("", namespace="default"), "gzip")
    with pytest.raises(Invalid, match="zstd"):
        await gzip.train("workflows")


async def test_refused_items_show_the_heads_that_callers_know():
    inner = await open_memory("", namespace="default")
    backend = await open_encrypted(inner, namespace="default", key=new_key())
    await accepted(backend, begun("s/1", b"1"))
    (outcome,) = await backend.commit([begun("s/1", b"2")])
    assert isinstance(outcome, Refused)
    assert outcome.heads[0].chain == entry("s/1", 1).chain
    assert outcome.heads == tuple(await backend.heads(["s/1"]))
    (outcome,) = await backend.commit([Item()])
    assert isinstance(outcome, Committed)


def test_no_key_is_in_what_is_shown(tmp_path):
    async def main():
        backend = await open_backend(str(tmp_path / "s.db"), namespace="default", encryption_key=KEY)
        shown = [repr(backend), str(backend.capabilities)]
        await backend.close()
        return shown

    assert not [s for s in asyncio.run(main()) if KEY.hex() in s or repr(KEY)[2:-1] in s]
    assert Path(tmp_path / "s.db").exists()


# in a URL


async def test_a_url_turns_wrappers_on_and_names_where_the_key_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text(KEY.hex() + "\n")
    monkeypatch.setenv("THE_KEY", KEY.hex())
    for url in ("s.db?durability=full&", "sqlite:///t.db?", "file:///f?", "rocksdb:///r?"):
        async with quire.open(f"{url}compression=gzip&encryption_key_file=key") as store:
            await store.create("w", {"text": "tides " * 1000})
            assert "gzip" in store.capabilities.note
        async with quire.open(f"{url}encryption_key_env=THE_KEY") as store:
            assert (await store.workflow("w").state())["text"].startswith("tides")
            assert (await store.verify()).ok
            assert "gzip" in store.capabilities.note
        with pytest.raises(Denied):
            await quire.open(url.rstrip("?&"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("encryption_key_file=none", "cannot be read"),
        ("encryption_key_env=NOT_SET_ANYWHERE", "not set"),
        ("encryption_key_file=short", "64 hex digits"),
        ("encryption_key_file=short&encryption_key_env=HOME", "named twice"),
        ("encryption_key_env=A&encryption_key_env=B", "twice"),
        ("encryption_key=00", "unknown option"),
        ("compression=brotli", "zstd, gzip, lz4"),
        ("compression=", "zstd, gzip, lz4"),
    ],
)
async def test_a_mistake_about_wrappers_in_a_url_is_named(options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("abc")
    with pytest.raises((InvalidKey, Invalid)) as caught:
        await quire.open(f"s.db?{options}")
    assert said in str(caught.value)
    assert "abc" not in str(caught.value)
