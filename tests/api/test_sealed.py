"""Encryption and compression as `quire.open` turns them on, on every backend, with and without await."""

import pytest

import quire
from quire.errors import Denied, Invalid, InvalidKey
from quire.testing.servers.fixtures import PLACES

KEY, OTHER = bytes(range(32)), bytes(32)
TEXT = "the tide comes and goes; " * 200


@pytest.mark.parametrize("place", [name for name in PLACES if name != "memory"])
async def test_a_store_is_sealed_with_a_key_and_opens_with_no_other(place, tmp_path):
    url = PLACES[place](tmp_path)
    async with quire.open(url, encryption_key=KEY, compression=quire.Compression("gzip", level=9)) as store:
        wf = await store.create("w", {"text": TEXT}, author="ann")
        await wf.set("/notes", ["ebb"])
        await wf.checkpoint("c")
    async with quire.open(url, encryption_key=KEY) as store:
        assert "gzip" in store.capabilities.note
        assert await store.workflow("w").state("c") == {"text": TEXT, "notes": ["ebb"]}
        assert (await store.verify()).ok
    for wrong in (OTHER, None):
        with pytest.raises(Denied):
            await quire.open(url, encryption_key=wrong)


def test_without_await_it_is_the_same(tmp_path):
    url = f"{tmp_path}/s.db"
    with quire.sync.open(url, encryption_key=KEY, compression="zstd") as store:
        store.create("w", {"text": TEXT})
    assert b"the tide" not in (tmp_path / "s.db").read_bytes()
    with pytest.raises(Denied):
        quire.sync.open(url)
    with quire.sync.open(url, encryption_key=KEY) as store:
        assert store.workflow("w").get("/text") == TEXT
        assert "zstd" in store.capabilities.note


@pytest.mark.parametrize("key", [b"", b"short", KEY.hex(), bytearray(KEY), 7])
async def test_what_is_no_key_never_leaves_a_store_open_to_all(key, tmp_path):
    with pytest.raises(InvalidKey, match="32 random bytes"):
        await quire.open(f"{tmp_path}/s.db", encryption_key=key)


@pytest.mark.parametrize("compression", ["", "brotli", True, {"algorithm": "zstd"}, quire.Compression(level=99)])
async def test_what_is_no_compression_is_refused(compression, tmp_path):
    with pytest.raises(Invalid, match="compression"):
        await quire.open(f"{tmp_path}/s.db", compression=compression)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [("compression=zstd", {"compression": "gzip"}), ("encryption_key_env=HOME", {"encryption_key": KEY})],
)
async def test_what_the_url_says_is_not_overruled_in_silence(options, arguments, tmp_path):
    with pytest.raises(InvalidKey, match="give it once"):
        await quire.open(f"{tmp_path}/s.db?{options}", **arguments)


async def test_plain_data_is_not_sealed_afterwards_but_compressed_from_then_on(tmp_path):
    url = f"{tmp_path}/s.db"
    async with quire.open(url) as store:
        await store.create("w", {"text": TEXT})
    with pytest.raises(Denied, match="not encrypted"):
        await quire.open(url, encryption_key=KEY)
    async with quire.open(url, compression="zstd") as store:
        before = (await store.stats()).size_bytes
        wf = store.workflow("w")
        await wf.set("/more", TEXT * 400)
        assert await wf.state() == {"text": TEXT, "more": TEXT * 400}
        assert (await store.stats()).size_bytes - before < len(TEXT) * 40
