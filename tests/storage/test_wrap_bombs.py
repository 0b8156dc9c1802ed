"""What expands without end, or claims to, is refused with a bounded memory: measured in a child that may take no more."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import lz4.frame
import msgspec
import pytest
import zstandard
from blake3 import blake3

from quire.config import Compression
from quire.errors import CorruptRecord
from quire.storage.memory import open_memory
from quire.storage.wrap.compressed import open_compressed
from quire.storage.wrap.encrypted import open_encrypted
from quire.testing._conformance_base import appended

READER = Path(__file__).parent / "bomb_reader.py"
GIB = 1 << 30
ZEROS = bytes(1 << 24)


def zstd(*, says=True):
    """A GiB of zeros as a zstd frame."""
    worker = zstandard.ZstdCompressor(write_content_size=says).compressobj(size=GIB if says else -1)
    return b"".join([*(worker.compress(ZEROS) for _ in range(64)), worker.flush()])


def gzip():
    worker = zlib.compressobj(1, wbits=31)
    return b"".join([*(worker.compress(ZEROS) for _ in range(64)), worker.flush()])


def lz4_frame(*, says=True):
    worker = lz4.frame.LZ4FrameCompressor()
    parts = [worker.begin(source_size=GIB if says else 0)]
    return b"".join([*parts, *(worker.compress(ZEROS) for _ in range(64)), worker.flush()])


def zstd_claiming(frame, size):
    """The frame with another size in its header (RFC 8878 section 3.1.1.1): four bytes, after descriptor and window."""
    assert frame[4] >> 6 == 2
    at = 5 if frame[4] & 0x20 else 6
    return frame[:at] + size.to_bytes(4, "little") + frame[at + 4 :]


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bombs")
    honest, packed, block = zstd(), gzip(), lz4_frame()
    huge = bytes.fromhex("28b52ffde0") + (1 << 62).to_bytes(8, "little") + bytes.fromhex("010000")
    found = {
        "zstd": b"\x01" + honest,
        "zstd that claims little": b"\x01" + zstd_claiming(honest, 100),
        "zstd that claims 200 MiB": b"\x01" + zstd_claiming(honest, 200 << 20),
        "zstd that does not say": b"\x01" + zstd(says=False),
        "zstd of nothing that claims it all": b"\x01" + huge,
        "gzip": b"\x02" + packed,
        "gzip that claims little": b"\x02" + packed[:-4] + (100).to_bytes(4, "little"),
        "gzip that claims 100 MiB": b"\x02" + packed[:-4] + (100 << 20).to_bytes(4, "little"),
        "lz4": b"\x03" + block,
        "lz4 that does not say": b"\x03" + lz4_frame(says=False),
    }
    for number, data in enumerate(found.values()):
        (folder / str(number)).write_bytes(data)
    return {name: folder / str(number) for number, name in enumerate(found)}


def read(where, file, headroom_mib):
    done = subprocess.run(
        [sys.executable, str(READER), str(headroom_mib), where, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


NAMES = [
    "zstd",
    "zstd that claims little",
    "zstd that claims 200 MiB",
    "zstd that does not say",
    "zstd of nothing that claims it all",
    "gzip",
    "gzip that claims little",
    "gzip that claims 100 MiB",
    "lz4",
    "lz4 that does not say",
]
MODEST = {"zstd that claims 200 MiB": 300, "gzip that claims 100 MiB": 300}
"""What claims a size that is allowed may take that, once or twice; all others next to nothing."""


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_is_damage_and_takes_no_memory(name, bombs):
    assert read("wrapped", bombs[name], MODEST.get(name, 32)) == ["CorruptRecord"] * 3


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("zstd")])
def test_a_bomb_in_a_plain_store_or_a_keyframe_is_damage_as_well(name, bombs):
    assert read("plain", bombs[name], MODEST.get(name, 32)) == ["CorruptRecord"]
    assert set(read("keyframe", bombs[name], 32)) == {"CorruptRecord"}


@pytest.mark.parametrize("name", ["gzip", "lz4"])
def test_the_control_whoever_just_expands_it_runs_out(name, bombs):
    assert read("naive", bombs[name], 300) == ["MemoryError"]


@pytest.mark.parametrize("algorithm", ["zstd", "gzip", "lz4", "encrypted"])
async def test_what_was_cut_off_anywhere_is_damage(algorithm):
    inner = await open_memory("", namespace="default")
    if algorithm == "encrypted":
        backend = await open_encrypted(inner, namespace="default", key=bytes(32))
    else:
        backend = await open_compressed(inner, algorithm)
    body = b"the tide comes and goes; " * 60
    await appended(backend, "s/1", body)
    (whole,) = await inner.read("s/1")
    for length in range(1, len(whole.body)):
        await inner.rewrite([msgspec.structs.replace(whole, body=whole.body[:length])])
        with pytest.raises(CorruptRecord):
            await backend.read("s/1")
    await inner.rewrite([whole])
    assert (await backend.read("s/1"))[0].body == body


@pytest.mark.parametrize("algorithm", ["zstd", "gzip", "lz4"])
@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1 << 16, (1 << 16) + 1, 3_000_000])
async def test_whatever_its_size_it_comes_back(algorithm, size):
    backend = await open_compressed(
        await open_memory("", namespace="default"), Compression(algorithm, threshold_bytes=0)
    )
    for data in (bytes(size), b"tide" * (size // 4), os.urandom(size)):
        name = blake3(data).hexdigest()
        await backend.put_blob(name, data)
        assert await backend.blob(name) == data
