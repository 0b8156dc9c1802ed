"""Writing once: a write that carries a key happens at most once, however often it is sent.

The key is a cell set in the same commit as the version, so that both are there or neither is. It remembers which
version it made and a digest of what was asked, and is forgotten after `Settings.idempotency_seconds`.
"""

from __future__ import annotations

import asyncio

from blake3 import blake3

from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import InvalidKey, KeyReused
from quire.model import WORKFLOWS, Record, Version
from quire.storage.base import CellWrite

_KEY_MAX = 200


async def write_once(engine: Engine, write: Write, key: str, content: bytes) -> Version | None:
    """Write unless `key` was used on this stream before; then return the version it made.

    content: bytes of what is asked, to notice a key used for something else (KeyReused).
    """
    if not key or len(key) > _KEY_MAX or not key.isprintable():
        raise InvalidKey(f"idempotency key {key!r}: 1 to {_KEY_MAX} printable characters are allowed")
    name = f"idempotency/{write.stream}/{key}"
    digest = blake3(content).hexdigest()[:32]

    def stamp(records: list[Record | None]) -> CellWrite:
        made = records[0].version if records[0] is not None else 0
        ttl_ms = round(engine.settings.idempotency_seconds * 1000)
        return CellWrite(name, None, f"{digest} {made}".encode(), ttl_ms)

    async with engine.key_lock(name):  # two of our own tasks with one key: the second finds what the first made
        while True:
            cell = await engine.backend.cell(name)
            if cell is not None:
                return await _remembered(engine, write, key, cell.value, digest)
            try:
                return (await engine.committer.submit((write,), stamp=stamp))[0]
            except CellMoved:
                await asyncio.sleep(0)  # another process was first with this key: look at what it made


async def _remembered(engine: Engine, write: Write, key: str, value: bytes, digest: str) -> Version | None:
    known, _, made = value.decode().partition(" ")
    if known != digest:
        raise KeyReused(
            f"idempotency key {key!r} was used on {write.stream.removeprefix(WORKFLOWS)} for a different write "
            f"(version {made}); use a new key for a new write"
        )
    return Version(await engine.record(write.stream, int(made))) if int(made) else None
