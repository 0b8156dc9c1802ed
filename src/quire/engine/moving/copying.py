"""Copying: all of a namespace into another backend, while writers of the source go on, and proof that it arrived.

What is followed, when a copy is made again into the same target:
  - new versions, cells and blobs, in the order of their commits;
  - what was redacted since: bodies, keyframes and snapshots are replaced in the target, and it is scrubbed;
  - what was trimmed since, and cells and snapshots that were removed.
What is not:
  - streams that were dropped: the target keeps them, and `Copied.beyond` names them, as a name proves nothing;
  - leases, and positions in bodies: a parked trigger remembers one of the store it was parked in.

1. The source is known by a random id in its cell `copies/source`, made by its first copy; how far a copy came is a cell of
   the target (loading.py).
2. A target that holds other history under a stream's name is refused before anything is written to it.
3. Whoever reads the target meanwhile finds a beginning of the source; whoever writes there ends the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Literal

import msgspec
from blake3 import blake3

from quire.calls import call
from quire.core import record
from quire.engine.moving.beside import Blobs, Cells, first_of
from quire.engine.moving.comparing import Comparison, check_target
from quire.engine.moving.loading import COPIES, Loader
from quire.engine.moving.paging import at_once, feed, names, pages
from quire.errors import CorruptRecord, Invalid
from quire.failpoints import hit
from quire.model import REDACTIONS, Keyframe, Record, Set
from quire.storage.base import Backend, CellWrite, Item

_PAGE = 1000
_SOURCE = f"{COPIES}source"


class Step(msgspec.Struct, frozen=True):
    """How far a copy is. done, total: of versions, positions of the source; of what else, nothing can be said before."""

    what: Literal["versions", "cells", "streams", "blobs", "verify"]
    done: int
    total: int


class Copied(msgspec.Struct, frozen=True):
    """What a copy did. It was verified, or there would be an error instead.

    streams: in both.  versions, blobs, cells, size_bytes: brought over by this call, bodies and blobs together.
    redacted: versions whose bodies were replaced.  trimmed: versions that were removed.
    position: of the source, up to which the target holds everything.
    verified: versions that were read back from the target and checked by this call: all that were not before.
    beyond: streams of the target that the source does not have.
    """

    streams: int
    versions: int
    blobs: int
    cells: int
    size_bytes: int
    redacted: int
    trimmed: int
    position: int
    verified: int
    beyond: list[str]


async def copy(
    source: Backend, target: Backend, *, ids: Callable[[], str], progress: Callable[[Step], None] | None = None
) -> Copied:
    """Copy all that `source` holds into `target`, go on where an earlier copy stood, and verify what arrived.

    It follows the source until it has caught up; what is committed later is for the next call. For the last one, let
    writers stop before.  ids: names the source, if it has no name yet.  progress: told now and then, must not wait.
    Raises Invalid where both are one store, Conflict where the target has another history or is written to meanwhile,
    CorruptRecord for damage in the source, and where the target does not hold what it should: then each problem is a note
    of the error. StorageError: call it again with handles that work.
    Cost: reads the source once and what it wrote once more; memory for two commits of 4 MB, and 100 bytes per stream.
    """
    source_id = await _identity(source, ids)
    other = await target.cell(_SOURCE)
    if other is not None and other.value.decode() == source_id:
        raise Invalid("source and target are the same store, or one is a backup of the other; name a new store")
    work = _Copy(source, target, source_id, progress or (lambda _: None))
    async with work.loader:
        return await work.done()


async def _identity(source: Backend, ids: Callable[[], str]) -> str:
    """Return the name of what a namespace holds, giving it one if nobody did."""
    while True:
        found = await source.cell(_SOURCE)
        if found is not None:
            return found.value.decode()
        await source.commit([Item(cells=(CellWrite(_SOURCE, None, ids().encode()),))])


class _Copy:
    """One call of `copy`."""

    def __init__(self, source: Backend, target: Backend, source_id: str, tell: Callable[[Step], None]) -> None:
        self.loader = Loader(target, source_id, self._base)
        self._source = source
        self._target = target
        self._tell = partial(call, tell)
        self._redacted = 0
        self._trimmed = 0
        self._stale = False
        """Whether a keyframe holds what was redacted at the source, of a log whose records do not tell of it."""
        self._problems: list[str] = []

    async def done(self) -> Copied:
        """Do it."""
        source, target, loader = self._source, self._target, self.loader
        begun = await loader.begin()
        await check_target(source, target, begun=loader.begun)
        if not await self._same_positions():
            loader.again()
        hit("copy:checked")
        await self._follow()
        cells = Cells(source, target, loader, self._follow)
        await cells.copy()
        self._tell(Step("cells", cells.count, cells.count))
        await self._redact()
        await self._settle()
        blobs = Blobs(source, target)
        await blobs.copy(cells.gone)
        self._tell(Step("blobs", blobs.count, blobs.count))
        if blobs.dropped:
            await loader.note(unclean=True)
        if loader.progress.unclean:
            await target.scrub()
            await loader.note(unclean=False)
        seen = await self._verified(blobs, 0 if begun.verified > await target.latest() else begun.verified)
        return Copied(
            streams=seen.streams,
            versions=loader.versions,
            blobs=blobs.count,
            cells=cells.count,
            size_bytes=loader.size_bytes + blobs.size_bytes,
            redacted=self._redacted,
            trimmed=self._trimmed,
            position=loader.progress.position,
            verified=seen.verified,
            beyond=seen.beyond,
        )

    async def _same_positions(self) -> bool:
        """Whether the source still has its positions: one put back to an older copy of itself gives them again."""
        progress = self.loader.progress
        if progress.last is None:
            return True
        stream, version, chain = progress.last
        found = await self._source.read(stream, after=version - 1, upto=version)
        if found:
            return found[0].chain.hex() == chain and found[0].position <= progress.position
        (head,) = await self._source.heads([stream])
        return head.version > version  # trimmed; else it was never there, or dropped

    async def _follow(self) -> None:
        """Load what the source has committed by now."""
        goal, loader = await self._source.latest(), self.loader
        if loader.progress.position < goal:
            async with aclosing(feed(self._source, loader.progress.position)) as found:
                async for page in found:
                    await loader.take(page)
                    self._tell(Step("versions", min(loader.position, goal), goal))
                    if loader.position >= goal:
                        break
        await loader.flush()

    async def _base(self, stream: str, version: int) -> Keyframe | None:
        """Return the keyframe that a stream of the source begins with: see `loading.Base`."""
        frame = await self._source.keyframe(stream, version)
        if frame is not None and frame.version == version:
            return frame
        if not await self._source.read(stream, after=version - 1, upto=version):
            return None
        at = f"{stream}@{version}"
        raise CorruptRecord(f"{at}: the log begins here without a keyframe; run `quire verify` on the source", at=at)

    async def _redact(self) -> None:
        """Bring over the bodies of records that were redacted after they had been loaded."""
        async for notes in names(self._source, REDACTIONS):
            at: dict[str, dict[int, str]] = {}
            for note in notes:
                async for entry in pages(self._source, note):
                    _learn(entry, at)
            for stream, versions in at.items():
                await self._rewrite(stream, versions)

    async def _rewrite(self, stream: str, versions: dict[int, str]) -> None:
        """Replace the bodies that are not yet what a redaction left. versions: the digest of each."""
        old: dict[int, Record] = {}
        async for entry in pages(self._target, stream, min(versions) - 1, max(versions)):
            if entry.version in versions and blake3(entry.body).hexdigest() != versions[entry.version]:
                old[entry.version] = entry
        if not old:
            return
        new: list[Record] = []
        async for entry in pages(self._source, stream, min(old) - 1, max(old)):
            had = old.pop(entry.version, None)
            if had is None or had.chain != entry.chain or had.body == entry.body:
                continue
            if record.digest(entry.body) != record.digest(had.body):
                at = f"{stream}@{entry.version}"
                raise CorruptRecord(f"{at}: its body is not what is left of the one that was copied", at=at)
            new.append(msgspec.structs.replace(had, body=entry.body))
        if not new and not old:
            return  # what is still in `old` was redacted and then trimmed
        await self.loader.note(unclean=True)
        hit("copy:unclean")
        self._redacted += await self._target.rewrite(new)
        hit("copy:rewritten")

    async def _settle(self) -> None:
        """Bring over keyframes, and trim what the source has trimmed.

        After a redaction all keyframes are brought over anew: those of forks hold what was redacted, too.
        """
        renew = self.loader.progress.unclean
        while True:
            async for page in names(self._source):
                await at_once(self._stream(stream, renew=renew) for stream in page)
            if not self._stale:
                break
            self._stale, renew = False, True
            await self.loader.note(unclean=True)
            hit("copy:stale")
        self._tell(Step("streams", 1, 1))

    async def _stream(self, stream: str, *, renew: bool) -> None:
        source, target = self._source, self._target
        first, ours = await first_of(source, stream), await first_of(target, stream)
        if first is None or ours is None:
            return  # dropped, or begun after we caught up
        (head,) = await target.heads([stream])
        wanted = [v for v in await source.keyframes(stream) if v <= head.version]
        there = await target.keyframes(stream)
        for version in wanted:
            known = version in there
            if known and not renew and first.version == 1:
                continue  # what was redacted was in a record, which told of it
            frame = await source.keyframe(stream, version)
            if frame is None or frame.version != version:
                continue
            if known and not renew:
                old = await target.keyframe(stream, version)
                self._stale |= old is None or old.digest != frame.digest
            else:
                await target.put_keyframe(frame)
        hit("copy:framed")
        if ours.version < first.version <= head.version:
            if first.version not in await target.keyframes(stream):
                await self._base(stream, first.version)
                return  # trimmed again meanwhile: the next call does it
            self._trimmed += await target.trim(stream, first.version - 1)
            hit("copy:trimmed")
        elif ours.version > first.version:
            self._problems.append(
                f"{stream}: the target begins at version {ours.version}, the source at {first.version}: it was trimmed there"
            )
        begins = max(first.version, ours.version)
        surplus = [v for v in there if v not in wanted and v != begins]
        if surplus:
            await target.drop_keyframes(stream, surplus)

    async def _verified(self, blobs: Blobs, after: int) -> Comparison:
        """Prove that the target holds what the source held at our position. Raises CorruptRecord."""
        seen = Comparison(self._problems)
        self._tell(Step("verify", 0, 1))
        await seen.heads(self._source, self._target, self.loader.progress.position)
        upto = await seen.read_back(self._source, self._target, after)
        for name in await blobs.missing():
            seen.found(f"blob {name[:12]} is not in the target")
        if seen.problems:
            error = CorruptRecord(
                f"the copy is not what the source is, {len(seen.problems)} problem(s), the first: {seen.problems[0]}; "
                "the source is untouched: copy to a new store"
            )
            for problem in seen.problems:
                error.add_note(problem)
            raise error
        await self.loader.note(verified=upto)
        hit("copy:verified")
        self._tell(Step("verify", 1, 1))
        return seen


def _learn(note: Record, at: dict[str, dict[int, str]]) -> None:
    """Take in what one entry of a stream of redactions says: which versions have which digest by now."""
    for change in record.decode(note):
        if isinstance(change, Set) and type(change.value) is dict:
            for stream, versions in change.value.get("at", {}).items():
                at.setdefault(stream, {}).update({int(v): digest for v, digest in versions.items()})
