"""Finding single things in backups: a record, the keyframe a log begins with, a blob. The newest backup first.

What is found was checked against the digests of the backup; whether it fits into the store is for whoever asks to say.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from blake3 import blake3

from quire.core import keyframes
from quire.engine.backing.books import Inventory
from quire.engine.backing.plan import segments
from quire.engine.backing.shelf import BLOBS, Kept, Shelf
from quire.engine.backing.taking import Shown
from quire.errors import CorruptRecord, NotFound
from quire.model import GENESIS, Keyframe, Record

Where = tuple[str, int]
"""A stream and a version."""


class Finder:
    """Looks things up in the backups of one store. redactions: what stands for all that was redacted in it by now."""

    def __init__(self, shelf: Shelf, shown: Shown, kept: list[Kept], redactions: str) -> None:
        """kept: the newest backup of each series, the newest series first."""
        self._shelf = shelf
        self._shown = shown
        self._kept = kept
        self._redactions = redactions
        self._inventories: dict[str, Inventory] = {}

    async def records(self, wanted: set[Where]) -> AsyncGenerator[tuple[Record, bytes]]:
        """Yield records that backups have of these, each with the chain before it there; one may come several times."""
        streams = {stream for stream, _ in wanted}
        for chain in [c async for c in self._chains()]:
            before: dict[str, tuple[int, bytes]] = {}
            try:
                async for _, segment in segments(self._shelf, chain):
                    for entry in [r for r in segment.records if r.stream in streams]:
                        version, parent = before.get(entry.stream, (0, GENESIS))
                        if (entry.stream, entry.version) in wanted and entry.version == version + 1:
                            (seen,) = await self._shown.records([entry])
                            yield seen, self._shown.chain(parent, version)
                        before[entry.stream] = (entry.version, entry.chain)
            except CorruptRecord:
                continue  # an older series may have it

    async def keyframe(self, first: Record) -> Keyframe | None:
        """Return the keyframe of a record that a log begins with, None where no backup since the last redaction has it."""
        for chain in [c async for c in self._chains()]:
            if not self._redactions or chain[-1].manifest.redactions != self._redactions:
                continue
            try:
                async for _, segment in segments(self._shelf, chain):
                    for frame in segment.keyframes:
                        if (frame.stream, frame.version) == (first.stream, first.version):
                            seen = self._shown.keyframe(frame)
                            keyframes.state_of(seen)
                            if seen.chain == first.chain:
                                return seen
            except CorruptRecord:
                continue
        return None

    async def blob(self, name: str) -> bytes | None:
        """Return the bytes of a blob, whose name they have, None where no backup has them whole."""
        stored = self._shown.blob_name(name)
        for kept in self._kept:
            try:
                inventory = self._inventories.get(kept.name) or await self._shelf.inventory(kept.manifest)
                self._inventories[kept.name] = inventory
                if stored in inventory.blobs:
                    data = self._shown.blob(name, await self._shelf.get(kept.manifest, BLOBS, inventory.blobs[stored]))
                    if blake3(data).hexdigest() == name:
                        return data
            except CorruptRecord:
                continue
        return None

    async def _chains(self) -> AsyncGenerator[list[Kept]]:
        for kept in self._kept:
            try:
                yield await self._shelf.chain(kept)
            except (CorruptRecord, NotFound):
                continue
