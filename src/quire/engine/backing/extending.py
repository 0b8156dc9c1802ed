"""Going on where a backup ends, with what an archive has of later versions: for a store that was lost since.

An archive holds versions that had grown old, so those that were written since the backup are there only where the store
swept after it. What goes on from a stream's end, by chain, is brought; what begins later is not, for lack of what is between.
A segment is one stream's, so these versions come back stream by stream, not in the order of their commits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

import msgspec

from quire.core import record, segment
from quire.core.segment import EXPANDED_MAX_BYTES, SUFFIX
from quire.engine.backing.shelf import Place
from quire.engine.backing.taking import Shown
from quire.errors import CorruptRecord
from quire.model import GENESIS, Record
from quire.threads import aside

_SEGMENT_MAX_BYTES = EXPANDED_MAX_BYTES


class About(msgspec.Struct, frozen=True):
    """What the cell of an archive says, as far as is needed here: its id, and the URL of its place."""

    id: str
    place: str


class Extension:
    """The segments of one archive."""

    def __init__(self, place: Place, archive_id: str, shown: Shown, namespace: str) -> None:
        self._place = place
        self._prefix = f"archives/{archive_id}/segments/"
        self._shown = shown
        self._namespace = namespace

    async def records(self, heads: dict[str, tuple[int, bytes]]) -> AsyncGenerator[list[Record]]:
        """Yield records that go on from these heads, stream by stream; `heads` is brought up to date.

        Raises CorruptRecord for a segment whose bytes do not have its name. Cost: reads every segment once, and those
        that are needed twice; memory for one.
        """
        found: dict[str, list[tuple[int, int, str]]] = {}
        for name in await self._place.names(self._prefix):
            records = await self._read(name)
            if records:
                found.setdefault(records[0].stream, []).append((records[0].version, records[-1].version, name))
        for stream, pieces in sorted(found.items()):
            for first, last, name in sorted(pieces):
                version, chain = heads.get(stream, (0, GENESIS))
                if not first <= version + 1 <= last:
                    continue
                page: list[Record] = []
                for entry in await self._shown.records([r for r in await self._read(name) if r.version > version]):
                    if record.expected_chain(entry, chain) != entry.chain or entry.version != version + 1:
                        break  # of another history than the backup
                    page.append(entry)
                    version, chain = entry.version, entry.chain
                heads[stream] = (version, chain)
                if page:
                    yield page

    async def _read(self, name: str) -> list[Record]:
        data = await self._place.get(name, max_bytes=_SEGMENT_MAX_BYTES)
        if data is None:
            return []  # put together with another one meanwhile
        digest = name.rpartition("/")[2].removesuffix(SUFFIX)
        if segment.name_of(data) != digest:
            raise CorruptRecord(f"{name} in {self._place.url}: its bytes do not match its name", at=name)
        found = await aside(segment.decode, data, name)
        return list(found.records) if found.namespace == self._namespace else []
