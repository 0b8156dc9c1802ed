"""Mending a store: what is derived is dropped, what is damaged is brought back from backups, and the rest is said.

1. Nothing sound is touched: only what was found wrong is altered, and a mended store is verified again.
2. A body is brought back only where header and chain of the damaged record still are those of the backup, and the chain
   follows from the record before it: then it is the body that was sealed. One that was redacted since does not come back.
3. A blob is brought back only where its bytes have its name.
4. Keyframes are derived: a damaged one is dropped, but for the one that a trimmed log begins with. That one is brought back
   from a backup of after the last redaction.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

import msgspec
from blake3 import blake3

from quire.core import keyframes, record
from quire.core.changes import Working
from quire.core.values import same
from quire.engine.backing.finding import Finder, Where
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.engine.moving.paging import names
from quire.engine.verify import Redactions, Report, applied, verify
from quire.errors import ChangeError, CorruptRecord, NotFound
from quire.failpoints import hit
from quire.model import CHECKPOINTS, GENESIS, Record
from quire.storage.base import CellWrite

log = logging.getLogger("quire.backups")

_PAGE = 1000
_EVENT_FRAMES = "keyframes/"
_listed = msgspec.json.Decoder(list[tuple[int, str]]).decode


class Mended(msgspec.Struct, frozen=True):
    """What was done. before, after: what `verify` said.

    keyframes: dropped or brought back, as `stream@version`.  records, blobs: brought back from backups.
    """

    before: Report
    after: Report
    keyframes: list[str]
    records: list[str]
    blobs: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong now."""
        return self.after.ok


async def mend(engine: Engine, finder: Finder | None) -> Mended:
    """Mend what can be. finder: looks things up in backups; None where there are none.

    Never makes anything worse; a sound store stays as it is. Raises StorageError where a place or the store fails.
    Cost: reads and folds everything twice; with damage, reads backups until all of it was found.
    """
    before = await verify(engine.backend, engine.residents)
    if before.ok:
        return Mended(before, before, [], [], [])
    work = _Mending(engine, finder)
    await work.done()
    return Mended(before, await verify(engine.backend, engine.residents), work.keyframes, work.records, work.blobs)


class _Mending:
    """One call of `mend`."""

    def __init__(self, engine: Engine, finder: Finder | None) -> None:
        self.keyframes: list[str] = []
        self.records: list[str] = []
        self.blobs: list[str] = []
        self._engine = engine
        self._backend = engine.backend
        self._finder = finder
        self._redacted = Redactions()

    async def done(self) -> None:
        """Do it: records first, as keyframes are compared with them. Each part that cannot be read is left to `verify`."""
        try:
            await self._redacted.learn(self._backend, self._engine.residents)
        except CorruptRecord as error:
            log.warning("nothing is mended, as nobody can say what was redacted and must not come back: %s", error)
            return
        for part in (self._records, self._all_frames, self._blobs, self._event_frames):
            try:
                await part()
            except CorruptRecord as error:
                log.warning("not all can be read to be mended: %s", error)
        for stream in {at.rpartition("@")[0] for at in (*self.records, *self.keyframes)}:
            await self._engine.outdate(stream, state=True)

    async def _streams(self) -> AsyncGenerator[str]:
        async for page in names(self._backend):
            for name in page:
                yield name

    # records

    async def _records(self) -> None:
        """Bring back the bodies of records that do not fit."""
        if self._finder is None:
            return
        wanted: dict[Where, tuple[Record | None, bytes | None]] = {}
        async for stream in self._streams():
            try:
                wanted |= {(stream, v): found async for v, found in self._bad(stream)}
            except CorruptRecord as error:
                log.warning("%s cannot be read to be mended: %s", stream, error)
        async for there, parent in self._finder.records(set(wanted)):
            at = (there.stream, there.version)
            if at not in wanted:
                continue
            bad, before = wanted[at]
            fits = bad is None or msgspec.structs.replace(bad, body=there.body, position=there.position) == there
            follows = record.expected_chain(there, before or parent) == there.chain
            if not (fits and follows and self._redacted.problem(there) is None):
                continue
            if await self._backend.rewrite([there]):
                hit("mend:rewritten")
                self.records.append(f"{there.stream}@{there.version}")
                del wanted[at]

    async def _bad(self, stream: str) -> AsyncGenerator[tuple[int, tuple[Record | None, bytes | None]]]:
        """Yield the versions whose records do not fit: what can be read of each, and the chain before it if it is known."""
        chain: bytes | None = GENESIS
        (head,) = await self._backend.heads([stream])
        version = 0
        while version < head.version:
            page = await self._page(stream, version, min(head.version, version + _PAGE))
            for number, found in page:
                if version == 0 and number > 1:
                    chain = None
                try:
                    if found is None:
                        raise CorruptRecord(f"{stream}@{number} cannot be read")
                    if chain is not None:
                        record.check(found, number, chain)
                    record.decode(found)
                except CorruptRecord:
                    yield number, (found, chain)
                chain = None if found is None else found.chain
                version = number
            if not page:
                return

    async def _page(self, stream: str, after: int, upto: int) -> list[tuple[int, Record | None]]:
        """Return records that follow; None for one that cannot be read."""
        try:
            return [(r.version, r) for r in await self._backend.read(stream, after=after, limit=_PAGE)]
        except CorruptRecord:
            pass
        found: list[tuple[int, Record | None]] = []
        for version in range(after + 1, upto + 1):
            try:
                found += [(r.version, r) for r in await self._backend.read(stream, after=version - 1, upto=version)]
            except CorruptRecord:
                found.append((version, None))
        return found

    # keyframes

    async def _all_frames(self) -> None:
        async for stream in self._streams():
            try:
                await self._frames(stream)
            except CorruptRecord as error:
                log.warning("the keyframes of %s cannot be read to be mended: %s", stream, error)

    async def _frames(self, stream: str) -> None:
        """Drop keyframes that are damaged or differ from the log; bring back the one that it begins with."""
        frames = await self._backend.keyframes(stream)
        bad = {v for v in frames if not await self._whole(stream, v)}
        first = await self._backend.read(stream, limit=1)
        begins = first[0].version if first and first[0].version > 1 else 0
        if begins and (begins in bad or begins not in frames) and await self._brought_back(first[0]):
            bad.discard(begins)
            self.keyframes.append(f"{stream}@{begins}")
        if begins not in bad:
            bad |= await self._differing(stream, set(frames) - bad)
        gone = sorted(bad - {begins})
        if gone:
            await self._backend.drop_keyframes(stream, gone)
            hit("mend:dropped")
            self.keyframes += [f"{stream}@{v}" for v in gone]

    async def _whole(self, stream: str, version: int) -> bool:
        try:
            frame = await self._backend.keyframe(stream, version)
            if frame is not None:
                keyframes.state_of(frame)
        except CorruptRecord:
            return False
        return True

    async def _brought_back(self, first: Record) -> bool:
        """Put the keyframe of a record from a backup, if one has it."""
        frame = None if self._finder is None else await self._finder.keyframe(first)
        if frame is None:
            return False
        await self._backend.put_keyframe(frame)
        return True

    async def _differing(self, stream: str, frames: set[int]) -> set[int]:
        """Return the keyframes that are not what folding the log gives, up to where that can be folded."""
        differ: set[int] = set()
        working, version = Working.owning({}), 0
        try:
            while page := await self._backend.read(stream, after=version, limit=_PAGE):
                for entry in page:
                    if version == 0 and entry.version > 1:
                        frame = await self._backend.keyframe(stream, entry.version)
                        if frame is None:  # nobody can say what this log begins with
                            return differ
                        working = Working.owning(keyframes.state_of(frame))
                    else:
                        working = await applied(entry, working, self._engine.residents)
                    version = entry.version
                    frame = await self._backend.keyframe(stream, version) if version in frames else None
                    if frame is not None and (
                        frame.chain != entry.chain or not same(keyframes.state_of(frame), working.state)
                    ):
                        differ.add(version)
        except (CorruptRecord, ChangeError, NotFound):
            return differ  # what follows hangs on what cannot be read: its keyframes may be all there is
        return differ

    # blobs

    async def _blobs(self) -> None:
        """Bring back blobs that are damaged, and those that a checkpoint names and that are missing."""
        known: set[str] = set()
        bad: list[str] = []
        after = ""
        while names := await self._backend.blobs(after=after, limit=_PAGE):
            known.update(names)
            bad += [name for name in names if not await self._is_whole(name)]
            after = names[-1]
        async for stream in self._streams():
            if stream.startswith(CHECKPOINTS):
                labels = (await self._engine.current(stream)).state.values()
                bad += [b for label in labels if (b := label.get("blob")) and b not in known]
        for name in dict.fromkeys(bad):
            data = None if self._finder is None else await self._finder.blob(name)
            if data is not None:
                await self._backend.drop_blob(name)
                hit("mend:blob")
                await self._backend.put_blob(name, data)
                self.blobs.append(name)

    async def _is_whole(self, name: str) -> bool:
        try:
            data = await self._backend.blob(name)
        except CorruptRecord:
            return False
        return data is not None and blake3(data).hexdigest() == name

    async def _event_frames(self) -> None:
        """Forget keyframes of events whose blobs are not whole: they are made again."""
        after = _EVENT_FRAMES
        while page := await self._backend.cells(_EVENT_FRAMES, after=after, limit=_PAGE):
            for cell in page:
                try:
                    listed = _listed(cell.value)
                except msgspec.MsgspecError:
                    continue  # whoever reads it begins anew
                gone = [(v, b) for v, b in listed if not await self._is_whole(b)]
                if not gone:
                    continue
                left = msgspec.json.encode([each for each in listed if each not in gone])
                try:
                    await self._engine.committer.submit((), (CellWrite(cell.name, cell.value, left),))
                except CellMoved:
                    continue  # somebody made a new one meanwhile
                for version, blob in gone:
                    await self._backend.drop_blob(blob)
                    self.keyframes.append(f"{cell.name}@{version}")
            after = page[-1].name
