"""Writing once: a write that carries a key happens at most once, however often it is sent.

1. A key is a cell set in the same commit as the version, so that both are there or neither is. The cell remembers which
   version the key made, or met where it changed nothing, and a digest of what was asked.
2. The key is spent while the head descends from that version (engine/lineage.py). A later overwrite does not free it; a
   restore to before that version does, and so does deleting the workflow and creating it anew: then what was written is
   not part of the state's past any more. The write is made again, and the cell is replaced, in one commit.
3. So a key may have been used several times, and a restore may bring back any of them. The cell remembers all of them; the
   head descends from one at most, since a use is only added where it descends from none.
4. A fork descends from what its parent was where it was forked, so it also asks for the parent's cell, and those above.
5. A key is forgotten `Settings.idempotency_seconds` after its last use.

A key is found to be free before its write is queued. A restore by others that comes in between may bring a use back: so
where one came, the write is refused as it is prepared, and the key looked up again (`_Stamp`). A use of the key by others
in between has set the cell anew, and the store refuses the write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from quire.core.descent import Descent
from quire.engine.actor import Actor
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.engine.lineage import descends, parents
from quire.engine.moving.paging import at_once
from quire.engine.write import Write
from quire.errors import Conflict, InvalidKey, KeyReused
from quire.model import WORKFLOWS, Record, Version, restored_in
from quire.storage.base import Cell, CellWrite

_KEY_MAX = 200
_USES_MAX = 256
"""Uses of one key that are remembered, about 40 bytes each; where there are more, the oldest are forgotten."""


class _Use(NamedTuple):
    """One use of a key. version: that it made, or met where it changed nothing; 0 where that was not noted down."""

    digest: str
    version: int


class _Restored(Conflict):
    """What a key was found free by is not so any more."""

    code = "restored"


async def write_once(engine: Engine, write: Write, key: str, content: bytes) -> Version | None:
    """Write unless `key` is spent on this stream; then return the version it made.

    content: bytes of what is asked, to notice a key used for something else (KeyReused).
    Returns the head that it met where it changed nothing; None where nobody knows any more which one that was.
    Cost: a read of a cell, one more for each workflow that this one was forked from. Where the key was used before, each
    record after its version is looked at once while the workflow stays in memory; those made meanwhile need no reading.
    """
    if not key or len(key) > _KEY_MAX or not key.isprintable():
        raise InvalidKey(f"idempotency key {key!r}: 1 to {_KEY_MAX} printable characters are allowed")
    digest = blake3(content).hexdigest()[:32]
    async with engine.key_lock(_name(write.stream, key)):  # of two of our tasks the second finds what the first made
        while True:
            known = await _Known.of(engine, write.stream, key)
            spent = await known.spent(engine)
            if spent is not None:
                stream, use = spent
                if use.digest != digest:
                    raise KeyReused(
                        f"idempotency key {key!r} was used on {stream.removeprefix(WORKFLOWS)} for a different write "
                        f"(version {use.version}); use a new key for a new write"
                    )
                return await _version(engine, stream, use)
            stamp = _Stamp(known, digest, round(engine.settings.idempotency_seconds * 1000))
            try:
                made = (await engine.committer.submit((write,), stamp=stamp))[0]
            except (CellMoved, _Restored):
                await asyncio.sleep(0)  # others used this key, or went back to a use of it: look again
                continue
            return made if made is not None else await _version(engine, write.stream, stamp.use)


async def _version(engine: Engine, stream: str, use: _Use) -> Version | None:
    return Version(await engine.record(stream, use.version)) if use.version else None


class _Known:
    """What is known of a key on a stream. name, cell: its own.  uses: there, oldest first.

    begun: whether there was anything in the stream.
    above: of the streams it was forked from, nearest first, what each descends from and the uses of the key there.
    head: the newest version when it was found to be free; None where it was never used.
    """

    def __init__(
        self, stream: str, name: str, cell: Cell | None, above: list[tuple[Descent, list[_Use]]], *, begun: bool
    ) -> None:
        self.stream = stream
        self.name = name
        self.cell = cell
        self.uses = _uses(cell)
        self.begun = begun
        self.above = above
        self.head: int | None = None

    @classmethod
    async def of(cls, engine: Engine, stream: str, key: str) -> _Known:
        """Read the cells."""
        name = _name(stream, key)
        cell = await engine.backend.cell(name)
        actor = engine.residents.peek(stream) or await engine.residents.get(stream)
        begun, forked = actor.head.version > 0, await parents(engine, actor)
        cells = await at_once(engine.backend.cell(_name(each.stream, key)) for each in forked)
        return cls(stream, name, cell, list(zip(forked, map(_uses, cells), strict=True)), begun=begun)

    async def spent(self, engine: Engine) -> tuple[str, _Use] | None:
        """Return the use that the head descends from, and its stream; None where the key is free."""
        if not self.uses and not any(uses for _, uses in self.above):
            return None
        actor = await engine.current(self.stream)  # after the cells: it knows the versions that they tell of
        head = actor.descent.head  # what comes while the rest is read is looked at when the write is prepared
        descents = [(actor.descent, self.uses), *self.above]
        for number, (descent, uses) in enumerate(descents):
            for use in reversed(uses):
                if await descends(engine, descent, use.version) if use.version else descent is actor.descent:
                    return descent.stream, use
            rest = descents[number + 1 :]
            if not any(uses for _, uses in rest) or not await descends(engine, descent, 1):
                break
        self.head = head
        return None

    def holds(self, actor: Actor, made: Record | None) -> bool:
        """Return whether what was found is still so for a write that is prepared. made: what it made; it may be a restore."""
        tip = (actor.pending[-1] if actor.pending else actor.head).version
        onto = tip if made is None else made.version - 1
        if not self.begun and onto:
            return False  # it may have been begun as a fork
        if self.head is None:
            return True
        others = (entry for entry in actor.pending if entry is not made)
        straight = actor.descent.straight(self.head) and all(restored_in(entry.body) is None for entry in others)
        return straight and not any(self.head < use.version <= onto for use in self.uses)


class _Stamp:
    """Makes the cell that remembers a use. use: the one that was noted last."""

    def __init__(self, known: _Known, digest: str, ttl_ms: int) -> None:
        self.use = _Use(digest, 0)
        self._known = known
        self._ttl_ms = ttl_ms

    def __call__(self, records: Sequence[Record | None], actors: Sequence[Actor]) -> CellWrite:
        """Return the cell. Raises _Restored where the key may not be free any more."""
        (made,), (actor,), known = records, actors, self._known
        if not known.holds(actor, made):
            raise _Restored(f"{known.stream}: it was restored meanwhile")
        met = actor.pending[-1] if actor.pending else actor.head  # what was made is the last of these
        self.use = _Use(self.use.digest, met.version)
        kept = [*known.uses, self.use][-_USES_MAX:]
        text = " ".join(f"{use.digest} {use.version}" for use in kept)
        return CellWrite(known.name, None if known.cell is None else known.cell.value, text.encode(), self._ttl_ms)


def _name(stream: str, key: str) -> str:
    return f"idempotency/{stream}/{key}"


def _uses(cell: Cell | None) -> list[_Use]:
    """Return what a cell remembers, oldest first: a digest and a version each, `5f0c... 2 5f0c... 4`."""
    words = [] if cell is None else cell.value.decode().split(" ")
    return [_Use(digest, int(version)) for digest, version in zip(words[::2], words[1::2], strict=True)]
