"""Taking a backup while writers go on: what is stored, in commit order, up to the position of the last record read.

1. Records are read in commit order, so the log in a backup is a prefix of the store's, never one with holes. Where a
   stream was trimmed while it was read, reading goes on until what is kept of it is whole again.
2. No cell says more than the log that is kept: cells are read before it, and of what was committed meanwhile only the
   idempotency keys, which belong to records, are added. Leases stay behind, and so does how far copies into this store are.
3. The manifest is put last. Whatever interrupts us before leaves objects, which the next backup uses; never half a backup.
4. A backup is full when an incremental one could not say the truth: where something was redacted or the log is not what
   the last backup knows. It says why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol

import msgspec
from blake3 import blake3

from quire.calls import call
from quire.core import record
from quire.core.segment import Segment, encode, weight
from quire.engine.backing.books import FORMAT, Inventory, Life, Manifest, Mark, Piece, Shelved, write_inventory
from quire.engine.backing.shelf import BLOBS, INVENTORIES, SEGMENTS, Kept, Shelf, digest_of
from quire.engine.moving.loading import COPIES, at_once, pages
from quire.engine.moving.paging import names
from quire.errors import CorruptRecord, QuireError, StorageError, StorageUnavailable
from quire.failpoints import hit
from quire.model import GENESIS, REDACTED, REDACTIONS, Cell, Head, Keyframe, Record, Set
from quire.storage.base import BACKUP, BENEATH, Backend, CellWrite, Item, more_may_follow
from quire.threads import aside

_PAGE = 1000
_SEGMENT_BYTES = 8 * 1024 * 1024
"""Text of a segment before it is compressed; a batch of commits may pass it by one page."""
_MARKS = 8
_PARENTS_MAX = 20
"""Backups that are looked at for one that this log goes on from."""
_SETTLE_MAX = 20
"""How often reading goes on because somebody trimmed what was being read."""
_AHEAD = 2
"""Segments compressed and sent while the next is read."""
_KEYS = "idempotency/"
_LEASES = "leases/"
_SOURCE = f"{COPIES}source"

Tell = Callable[[int, int], None]
"""Told how far reading came: position reached, position to reach."""


class Shown(Protocol):
    """What is stored, as the open store sees it: `Seal` of the storage room."""

    async def records(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records."""
        ...

    def chain(self, chain: bytes, version: int) -> bytes:
        """A chain."""
        ...

    def keyframe(self, frame: Keyframe) -> Keyframe:
        """A keyframe."""
        ...

    def cell(self, name: str, value: bytes) -> bytes:
        """The value of a cell."""
        ...

    def blob(self, name: str, data: bytes) -> bytes:
        """The bytes of a blob, by the name that is seen."""
        ...

    def blob_name(self, name: str) -> str:
        """The name under which a blob is stored."""
        ...


class Source(msgspec.Struct, frozen=True):
    """What a backup is taken of. bare: the backend within all wrappers, which `shown` knows to read.

    sealed: whether what is stored can be put back only under this namespace's name.  turn: held by whoever commits to this
    handle.
    """

    bare: Backend
    shown: Shown
    namespace: str
    sealed: bool
    turn: AbstractAsyncContextManager[object]


class Taken(msgspec.Struct, frozen=True):
    """What was done. added: False where nothing had changed, and `kept` is the backup that has everything."""

    kept: Kept
    added: bool


async def identity(source: Source, ids: Callable[[], str]) -> str:
    """Return the id of a namespace in places with backups, giving it one if it has none."""
    while True:
        found = await source.bare.cell(BACKUP)
        if found is not None:
            return found.value.decode(errors="replace")
        value = blake3(ids().encode()).hexdigest()[:16].encode()
        async with source.turn:
            try:
                await source.bare.commit([Item(cells=(CellWrite(BACKUP, None, value),))])
            except StorageError:
                await source.bare.recover()  # or nobody else could commit either
                raise


async def take(
    source: Source,
    shelf: Shelf,
    *,
    ids: Callable[[], str],
    now_ms: int,
    full: bool = False,
    why: str = "",
    checked: bool = True,
    tell: Tell | None = None,
) -> Taken:
    """Take a backup, full or of what changed since the last one.

    why: what people are told of it.  checked: whether every record must follow from the one before it; without, a damaged
    store is kept as far as it can be read.

    Raises CorruptRecord for a store that cannot be read whole, StorageError for a place or store that fails: what was put
    is used by the next call.
    Cost: reads what it keeps once; memory for three segments of 8 MB, 200 bytes per stream and what cells hold.
    """
    of = await identity(source, ids)
    work = _Taking(source, shelf, of, now_ms, tell or silent, checked=checked)
    return await work.done(full=full, said=why)


class _Taking:
    """One call of `take`."""

    def __init__(self, source: Source, shelf: Shelf, of: str, now_ms: int, tell: Tell, *, checked: bool) -> None:
        self._checked = checked
        self._source = source
        self._bare = source.bare
        self._shelf = shelf
        self._of = of
        self._now_ms = now_ms
        self._tell = partial(call, tell)
        self._streams: dict[str, Life] = {}
        self._added = 0
        self._pieces: list[Piece] = []
        self._records: list[Record] = []
        self._frames: list[Keyframe] = []
        self._weight = 0
        self._sending: list[asyncio.Task[None]] = []
        self._marks: dict[str, Mark] = {}
        self._keyless: dict[str, Life] = {}

    async def done(self, *, full: bool, said: str) -> Taken:
        """Do it."""
        parent, inventory, why = (None, None, "asked for") if full else await self._parent()
        redactions = await self._redactions("" if parent is None else parent.manifest.redactions)
        if parent is not None and parent.manifest.redactions != redactions:
            parent, inventory, why = None, None, "something was redacted since the last backup"
        names = await self._shelf.names(self._of)
        self._number = max((n for _, name in names if (n := int(name[:12]))), default=0) + 1
        self._series = self._number if parent is None else parent.manifest.series
        after = 0 if parent is None else parent.manifest.upto
        if parent is not None and inventory is not None:
            self._streams = dict(inventory.streams)
            self._marks = {m.stream: m for m in parent.manifest.marks}
        cells = {c.name: c for c in await self._cells()}
        try:
            upto = await self._log(after)
            upto = await self._settle(upto)
            await self._send()
            await asyncio.gather(*self._sending)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)
        cells |= {c.name: c for c in await self._keys(cells)}
        blobs = await self._blobs({} if inventory is None else dict(inventory.blobs))
        now = Inventory(self._streams, blobs, tuple(sorted(cells.values(), key=lambda c: c.name)))
        if parent is not None and inventory is not None and not self._pieces and _same(now, inventory):
            return Taken(parent, added=False)
        data = await aside(write_inventory, now)
        kept_inventory = await self._put(INVENTORIES, data)
        hit("backup:inventory")
        manifest = Manifest(
            format=FORMAT,
            id=self._of,
            number=self._number,
            series=self._series,
            kind="incremental" if parent else "full",
            why=said or ("" if parent else why),
            parent=parent.name if parent else "",
            namespace=self._source.namespace,
            backend=self._bare.capabilities.backend,
            sealed=self._source.sealed,
            taken_at=self._now_ms,
            after=after,
            upto=upto,
            records=sum(p.records for p in self._pieces),
            streams=len(now.streams),
            blobs=len(now.blobs),
            cells=len(now.cells),
            added_bytes=self._added,
            redactions=redactions,
            marks=list(self._marks.values()),
            inventory=kept_inventory,
            segments=self._pieces,
        )
        hit("backup:manifest")
        name = await self._shelf.put_manifest(manifest)
        return Taken(await self._proved(Kept(name, manifest), now), added=True)

    async def _proved(self, kept: Kept, inventory: Inventory) -> Kept:
        """Make sure that nobody removed what this backup builds on while it was taken."""
        try:
            missing = await self._shelf.missing(await self._shelf.chain(kept), inventory)
        except QuireError as error:
            missing = [str(error)]
        if missing:
            path = f"backups/manifests/{self._of}/{kept.name}"
            await self._shelf.place.delete(path)
            raise StorageUnavailable(
                f"{self._shelf.place.url}: {missing[0]} was removed while the backup was taken, so it is none; take it again"
            )
        return kept

    # what it goes on from

    async def _parent(self) -> tuple[Kept | None, Inventory | None, str]:
        """Return the newest backup that this log goes on from, and what it had; or why there is none."""
        names = [name for _, name in await self._shelf.names(self._of)]
        why = "it is the first"
        for name in reversed(names[-_PARENTS_MAX:]):
            try:
                kept = Kept(name, await self._shelf.manifest(self._of, name))
                if kept.manifest.namespace != self._source.namespace or not await self._goes_on(kept.manifest):
                    why = "the log does not go on from the last backup"
                    continue
                chain = await self._shelf.chain(kept)
                inventory = await self._shelf.inventory(kept.manifest)
                missing = await self._shelf.missing(chain, inventory)
            except (CorruptRecord, QuireError) as error:
                if error.retryable:
                    raise
                why = str(error)
                continue
            if not missing:
                return kept, inventory, ""
            why = f"{missing[0]} is missing"
        return None, None, why

    async def _goes_on(self, last: Manifest) -> bool:
        """Whether the log still has what a backup remembers of it, and nothing else up to where that ends.

        A mark that is not there was trimmed, or its stream dropped; it may also be that the store was put back to an older
        copy of itself. Then there are records of others behind the newest mark that is there, or none is.
        """
        heads = {h.stream: h.version for h in await self._bare.heads([m.stream for m in last.marks])}
        known = 0
        for mark in last.marks:
            if 0 < heads[mark.stream] < mark.version:
                return False
            found = await self._bare.read(mark.stream, after=mark.version - 1, upto=mark.version)
            if found and (found[0].position, found[0].chain.hex()) != (mark.position, mark.chain):
                return False
            known = mark.position if found else known
        gone = {m.stream for m in last.marks if m.position > known}
        after = known
        while known and (page := await self._bare.feed(after, limit=_PAGE)):
            if any(r.position <= last.upto and r.stream not in gone for r in page):
                return False
            after = page[-1].position
            if after >= last.upto:
                break
        return known > 0

    async def _redactions(self, known: str) -> str:
        """Return what stands for all that was redacted, "" where one is not finished. known: what was looked at before."""
        heads = await redacted(self._bare)
        for stream in await self._bare.streams(REDACTIONS) if heads != known else ():
            async for note in pages(self._bare, stream):
                for seen in await self._source.shown.records([note]):
                    if not await self._finished(seen):
                        return ""
        return heads

    async def _finished(self, note: Record) -> bool:
        """Whether every body that a redaction wrote down is what it said, or is gone."""
        for change in record.decode(note):
            if not isinstance(change, Set) or type(change.value) is not dict:
                continue
            for stream, versions in change.value.get("at", {}).items():
                numbers = [int(v) for v in versions]
                async for entry in pages(self._bare, stream, min(numbers) - 1, max(numbers)):
                    if entry.version in numbers:
                        (seen,) = await self._source.shown.records([entry])
                        if not seen.body.startswith(REDACTED):
                            return False
        return True

    # the log

    async def _log(self, after: int) -> int:
        """Read what was committed by now; return the position of the last record."""
        goal = await self._bare.latest()
        while page := await self._bare.feed(after, limit=_PAGE):
            if self._weight >= _SEGMENT_BYTES:  # not after the last page: what `_settle` adds needs a segment to go to
                await self._send()
            for entry, seen in zip(page, await self._source.shown.records(page), strict=True):
                await self._record(entry, seen)
            self._weight += weight(page)
            self._remember(page)
            after = page[-1].position
            self._tell(min(after, goal), goal)
            if after >= goal or not more_may_follow(page, _PAGE):
                break
        return after

    async def _record(self, entry: Record, seen: Record) -> None:
        """Take in a record. One that does not follow begins its stream anew: with a keyframe unless it is the first."""
        life = self._streams.get(entry.stream)
        begins = life is None or entry.version != life.version + 1
        if self._checked and (entry.version == 1 or (life is not None and not begins)):
            parent = GENESIS if life is None or begins else self._source.shown.chain(life.chain, life.version)
            record.check(seen, entry.version, parent)
        if life is None or begins:
            life = Life(entry.version, entry.position, entry.version, entry.chain)
            if entry.version > 1 and not await self._framed(entry):
                self._keyless[entry.stream] = life
            elif entry.version > 1:
                self._keyless.pop(entry.stream, None)
        else:
            life = Life(life.first, life.position, entry.version, entry.chain)
        self._streams[entry.stream] = life
        self._records.append(entry)

    def _remember(self, page: Sequence[Record]) -> None:
        """Keep the newest record of each of the last few streams, to know this log again by."""
        new: dict[str, Mark] = {}
        for entry in reversed(page):
            if entry.stream not in new:
                new[entry.stream] = Mark(entry.position, entry.stream, entry.version, entry.chain.hex())
            if len(new) == _MARKS:
                break
        old = [m for m in self._marks.values() if m.stream not in new]
        both = sorted([*old, *new.values()], key=lambda m: m.position)[-_MARKS:]
        self._marks = {m.stream: m for m in both}

    async def _framed(self, entry: Record) -> bool:
        """Keep the keyframe of a record; False if there is none."""
        frame = await self._bare.keyframe(entry.stream, entry.version)
        if frame is None or (frame.version, frame.chain) != (entry.version, entry.chain):
            return False
        self._frames.append(frame)
        self._weight += len(frame.body)
        return True

    async def _settle(self, upto: int) -> int:
        """Go on until every stream is whole: forget those that were dropped, follow those that were trimmed."""
        for _ in range(_SETTLE_MAX):
            there: set[str] = set()
            torn = False
            async for heads in self._heads():
                there.update(h.stream for h in heads)
                ahead = [h for h in heads if (life := self._streams.get(h.stream)) and h.version > life.version]
                torn |= not all(await at_once(self._follows(h.stream) for h in ahead))
            for stream in self._streams.keys() - there:
                del self._streams[stream]
            for stream in list(self._keyless):
                torn |= not await self._reframed(stream)
            if not torn:
                return upto
            upto = await self._log(upto)
        if self._keyless:
            stream = next(iter(self._keyless))
            at = f"{stream}@{self._keyless[stream].first}"
            raise CorruptRecord(f"{at}: the log begins here without a keyframe; run `quire verify`", at=at)
        raise StorageUnavailable("the log is trimmed faster than it can be read; take the backup again")

    async def _heads(self) -> AsyncGenerator[Sequence[Head]]:
        async for page in names(self._bare):
            yield await self._bare.heads(page)

    async def _follows(self, stream: str) -> bool:
        """Whether the version after the last that was read is there: then it was committed later than we read."""
        version = self._streams[stream].version
        found = await self._bare.read(stream, after=version, limit=1)
        return not found or found[0].version == version + 1

    async def _reframed(self, stream: str) -> bool:
        """Find a later keyframe for a stream that was trimmed again before we had the one it began with."""
        life = self._streams.get(stream)
        if life is None:
            del self._keyless[stream]
            return True
        for version in await self._bare.keyframes(stream):
            if life.first <= version <= life.version:
                found = await self._bare.read(stream, after=version - 1, upto=version)
                if found and await self._framed(found[0]):
                    self._streams[stream] = Life(version, found[0].position, life.version, life.chain)
                    del self._keyless[stream]
                    return True
        return False

    async def _send(self) -> None:
        """Put what was gathered as a segment, beside those that are on their way."""
        records, frames = self._records, self._frames
        if not records:
            return
        self._records, self._frames, self._weight = [], [], 0
        while len(self._sending) >= _AHEAD:
            await self._sending.pop(0)
        number = len(self._pieces)
        times = [r.time for r in records]
        self._pieces.append(
            Piece("", 0, len(records), records[0].position, records[-1].position, min(times), max(times))
        )
        self._sending.append(asyncio.get_running_loop().create_task(self._segment(number, records, frames)))

    async def _segment(self, number: int, records: list[Record], frames: list[Keyframe]) -> None:
        data = await aside(encode, Segment(self._source.namespace, records, frames))
        hit("backup:segment")
        found = await self._put(SEGMENTS, data)
        self._pieces[number] = msgspec.structs.replace(self._pieces[number], name=found.name, bytes=found.bytes)

    async def _put(self, kind: str, data: bytes) -> Shelved:
        found, added = await self._shelf.put(self._of, self._series, kind, data)
        self._added += added
        return found

    # beside the log

    async def _cells(self) -> list[Cell]:
        """Return the cells that go along."""
        found: list[Cell] = []
        async for cell in _all_cells(self._bare):
            mine = cell.name.startswith(_LEASES) or cell.name in BENEATH
            if not mine and (cell.name == _SOURCE or not cell.name.startswith(COPIES)):
                found.append(cell)
        return found

    async def _keys(self, known: Mapping[str, Cell]) -> list[Cell]:
        """Return idempotency keys that were set, or used again, while the log was read, of versions that were read.

        The last word of such a cell is the newest version that it remembers.
        """
        found: list[Cell] = []
        async for cell in _all_cells(self._bare, _KEYS):
            if cell == known.get(cell.name):
                continue
            stream = "/".join(cell.name.removeprefix(_KEYS).split("/", 2)[:2])
            made = self._source.shown.cell(cell.name, cell.value).decode(errors="replace").rpartition(" ")[2]
            life = self._streams.get(stream)
            if made.isdigit() and life is not None and int(made) <= life.version:
                found.append(cell)
        return found

    async def _blobs(self, known: dict[str, Shelved]) -> dict[str, Shelved]:
        """Keep blobs that no backup of the series has; return all there are, by the name they are stored under."""
        found: dict[str, Shelved] = {}
        after = ""
        while names := await self._bare.blobs(after=after, limit=_PAGE):
            found |= {name: known[name] for name in names if name in known}
            put = await at_once(self._blob(name) for name in names if name not in known)
            found |= {name: shelved for name, shelved in put if shelved is not None}
            after = names[-1]
        return found

    async def _blob(self, name: str) -> tuple[str, Shelved | None]:
        data = await self._bare.blob(name)
        return name, None if data is None else await self._put(BLOBS, data)


async def redacted(bare: Backend) -> str:
    """Return what stands for all that was redacted in a namespace."""
    heads = await bare.heads(await bare.streams(REDACTIONS))
    return digest_of([(h.stream, h.version, h.chain.hex()) for h in heads])


def silent(done: int, total: int) -> None:
    """Tell nobody."""
    del done, total


def _same(one: Inventory, other: Inventory) -> bool:
    return (one.streams, one.blobs, one.cells) == (other.streams, other.blobs, other.cells)


async def _all_cells(backend: Backend, prefix: str = "") -> AsyncGenerator[Cell]:
    after = ""
    while page := await backend.cells(prefix, after=after, limit=_PAGE):
        for cell in page:
            yield cell
        after = page[-1].name
