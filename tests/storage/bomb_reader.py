"""Reads one hostile file in every place it could lie, in a process that may take only so much memory more.

    python bomb_reader.py HEADROOM_MIB plain|wrapped|keyframe|naive FILE

Prints the name of the exception for each reading, one a line.
"""

import asyncio
import resource
import sys
import zlib
from pathlib import Path

import lz4.frame
import zstandard  # noqa: F401 - loaded before memory is bounded

from quire.core import keyframes
from quire.model import Keyframe
from quire.storage import codec
from quire.storage.memory import open_memory
from quire.storage.wrap.compressed import open_compressed
from quire.testing._conformance_base import appended


def bound(headroom_mib):
    """Let this process have its present memory and so much more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + headroom_mib * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


async def wrapped(data, headroom_mib):
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(inner)
    await appended(inner, "s/1", data)
    await inner.put_blob("b", data)
    bound(headroom_mib)
    for call in (backend.read("s/1"), backend.feed(), backend.blob("b")):
        try:
            found = await call
            print(f"read {len(found)}")
        except Exception as error:
            print(type(error).__name__)


def attempt(read):
    try:
        read()
        print("read")
    except Exception as error:
        print(type(error).__name__)


def main():
    headroom_mib, where, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    data = Path(file).read_bytes()
    if where == "wrapped":
        asyncio.run(wrapped(data, headroom_mib))
        return
    bound(headroom_mib)
    if where == "plain":
        attempt(lambda: codec.unpack(data))
    elif where == "keyframe":
        for size in (1 << 30, 1 << 40, -1, 100, len(data)):
            attempt(lambda size=size: keyframes.state_of(Keyframe("s/1", 1, bytes(32), size, bytes(32), data[1:])))
    else:
        attempt(lambda: zlib.decompress(data[1:], wbits=31) if data[:1] == b"\x02" else lz4.frame.decompress(data[1:]))


main()
