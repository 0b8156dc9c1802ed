"""An archive around a backend: old versions go to segments elsewhere, and are read as if they were still there.

1. It is the innermost wrapper. What goes to the archive is what is stored: sealed, where the namespace is encrypted.
2. A record is removed here only when its segment is durable there, was read back, and the catalogue that names it is
   committed. Whatever fails or is killed in between, the next call goes on; nothing is ever lost or twice.
3. A segment is named by its digest, never altered, and read only where the digest fits. What is redacted is put into a
   new one, and the old one removed.
4. What is here is answered from here. Only who asks for an old version waits for the archive, and is told if it is away.
5. Single versions can be kept within reach: a record and its state in a blob of the store itself.

`shelve` moves records; who decides which is engine/sweep.py.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import msgspec

from quire.core import segment
from quire.core.segment import Segment
from quire.errors import Invalid, InvalidKey, StorageError, StorageUnavailable
from quire.failpoints import hit
from quire.model import Cell, Keyframe, Record
from quire.storage.base import Backend, CellWrite, Committed, Item, StorageStats
from quire.storage.objects import Objects, open_objects
from quire.storage.wrap import ARCHIVE
from quire.storage.wrap._around import Around, claim_cell
from quire.storage.wrap._catalogue import (
    PREFIX,
    About,
    Catalogue,
    Entry,
    about_of,
    read_about,
    read_catalogue,
    stream_of,
    write,
)
from quire.storage.wrap._shelf import WITHIN, Shelf, path_of

log = logging.getLogger("quire.archive")

_SEGMENT_BYTES = 4 * 1024 * 1024
"""A segment is closed at so many bytes before compression: what reading one old version costs at most."""
_SMALL_BYTES = 256 * 1024
"""A segment of less takes in what goes after it, so that there are few of them however often a sweep comes by."""
_PAGE = 1000
_TRIES = 20
_replace = msgspec.structs.replace


async def open_archived(inner: Backend, *, namespace: str, place: str | None = None) -> Archived:
    """Return a backend whose old versions may lie in an archive. inner: an open handle on the namespace.

    place: a URL for `open_objects`, or `store:`; None for where the namespace's archive was before.
    One that does not answer now does not keep the store from being opened: only old versions cannot be read.
    Raises InvalidKey for another place than where the archive is; what `open_objects` raises.
    """
    objects: Objects | None = None
    if place is not None and place != WITHIN:
        try:
            objects = await open_objects(place)
            place = objects.url
        except StorageUnavailable as error:
            log.warning("the archive does not answer, old versions cannot be read and none are moved there: %s", error)
    fresh = About(id=secrets.token_hex(16), place=place or WITHIN)
    about = read_about(Cell(ARCHIVE, await claim_cell(inner, ARCHIVE, write(fresh))))
    if place is not None and place != about.place:
        about = await _moved(inner, about, place, objects)
    return Archived(inner, namespace, about, objects)


async def _moved(inner: Backend, about: About, place: str, objects: Objects | None) -> About:
    """Have the archive lie in another place from now on. Raises InvalidKey where its segments are not there."""
    cells = await _cells(inner)
    away = [e for cell in cells for e in read_catalogue(cell).entries if not e.within]
    if away:
        there = set() if objects is None else set(await objects.names(f"archives/{about.id}/"))
        missing = sum(path_of(about.id, e.name) not in there for e in away)
        if missing:
            raise InvalidKey(
                f"the archive of this namespace is in {about.place}, and {missing} of its {len(away)} segments are not "
                f"in {place}: copy archives/{about.id}/ there first, or open the store with the old place"
            )
    changed = _replace(about, place=place, changes=about.changes + 1)
    await inner.commit([Item(cells=(CellWrite(ARCHIVE, write(about), write(changed)),))])
    return read_about(Cell(ARCHIVE, await claim_cell(inner, ARCHIVE, write(changed))))


class Archived(Around):
    """A namespace with an archive. Made by `open_archived`."""

    own = ARCHIVE

    def __init__(self, inner: Backend, namespace: str, about: About, objects: Objects | None) -> None:
        where = "are packed" if about.place == WITHIN else f"go to {about.place}"
        super().__init__(inner, f"old versions {where}")
        self.turn: AbstractAsyncContextManager[Any] = nullcontext()
        """Held while this commits: whoever else commits to the same handle gives its own."""
        self.shelf = Shelf(inner, namespace, about, objects)
        self._moving: dict[str, asyncio.Lock] = {}
        self._all: tuple[int, dict[str, Catalogue]] = (-1, {})

    # what is known

    async def about(self) -> About:
        """Return what the namespace says of its archive."""
        return await about_of(self.inner)

    async def went(self, stream: str) -> int:
        """Return the newest version that went to the archive; 0 for none."""
        return (await self.catalogue(stream)).last

    async def catalogue(self, stream: str) -> Catalogue:
        """Return where the records of a stream went."""
        return read_catalogue(await self.inner.cell(PREFIX + stream))

    async def catalogues(self) -> dict[str, Catalogue]:
        """Return where everything went, by stream. Cost: reads a cell for each stream that has anything there."""
        return {stream_of(cell): read_catalogue(cell) for cell in await _cells(self.inner)}

    # log

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first, wherever they are."""
        found = await self.inner.read(stream, after=after, upto=upto, limit=limit)
        after = max(after, 0)
        if (found and found[0].version == after + 1) or (not found and upto is None) or limit == 0:
            return found
        stop = found[0].version - 1 if found else upto or 0
        catalogue = await self.catalogue(stream)
        old: list[Record] = []
        for entry in catalogue.reading(after, stop):
            records = (await self.shelf.get(entry, stream)).records
            old += [r for r in records if after < r.version <= stop]
            if limit is not None and len(old) >= limit:
                break
        return [*old, *found] if limit is None else [*old, *found][:limit]

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace in commit order, wherever they are."""
        page = await self.inner.feed(after, limit=limit)
        about = await self.about()  # after the page: what left meanwhile is named there
        if after >= about.top:
            return page
        bound = page[-1].position if len(page) == limit else about.top
        found = {r.position: r for r in page}
        for stream, entry in await self._by_position(about, after, bound):
            if len(found) >= limit and sorted(found)[limit - 1] < entry.low:
                break
            for r in (await self.shelf.get(entry, stream)).records:
                if after < r.position <= bound:
                    found[r.position] = r
        return [found[position] for position in sorted(found)[:limit]]

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records for good, here and in the archive, never the head's."""
        gone = await self.inner.trim(stream, upto)
        async with self._lock(stream):
            before = (await self.catalogue(stream)).held()

            def left(old: Segment) -> Segment:
                records = [r for r in old.records if r.version > upto]
                return _replace(old, records=records, keyframes=[k for k in old.keyframes if k.version > upto])

            await self._changed(stream, lambda e: e.first <= upto, left)
            return gone + before - (await self.catalogue(stream)).held()

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes, here and in the archive."""
        await self.inner.drop(stream)
        async with self._lock(stream):
            while True:
                cell = await self.inner.cell(PREFIX + stream)
                if cell is None:
                    return
                if await self._record(cell, stream, None, 0):
                    break
            old = read_catalogue(cell)
            await self.shelf.discard(old.all())

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records another body, wherever they are: those in the archive in new segments."""
        found = await self.inner.rewrite(records)
        by_stream: dict[str, dict[int, Record]] = {}
        for r in records:
            by_stream.setdefault(r.stream, {})[r.version] = r
        for stream, wanted in by_stream.items():
            here = {r.version for r in await self.inner.read(stream, after=min(wanted) - 1, upto=max(wanted))}
            async with self._lock(stream):
                gone = await self._rewritten(stream, wanted)
            found += len(gone - here)
        return found

    # keyframes

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version, wherever it is."""
        found = await self.inner.keyframe(stream, at)
        if found is not None or at is None:
            return found
        place = (await self.catalogue(stream)).framed(at)
        if place is None:
            return None
        frames = (await self.shelf.get(place[0], stream)).keyframes
        return next((k for k in frames if k.version == place[1]), None)

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending, wherever they are."""
        known = await self.catalogue(stream)
        there = (v for e in known.all() for v in e.keyframes)
        return sorted({*await self.inner.keyframes(stream), *there})

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, beside its record."""
        stream, version = keyframe.stream, keyframe.version
        if not any(e.holds(version) for e in (await self.catalogue(stream)).all()):
            await self.inner.put_keyframe(keyframe)
            return

        def new(old: Segment) -> Segment:
            others = [k for k in old.keyframes if k.version != version]
            return _replace(old, keyframes=sorted([*others, keyframe], key=lambda k: k.version))

        async with self._lock(stream):
            await self._changed(stream, lambda e: e.holds(version), new)

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those, wherever they are."""
        await self.inner.drop_keyframes(stream, versions)
        gone = frozenset(versions)
        if not any(gone.intersection(e.keyframes) for e in (await self.catalogue(stream)).all()):
            return
        async with self._lock(stream):
            await self._changed(
                stream,
                lambda e: not gone.isdisjoint(e.keyframes),
                lambda old: _replace(old, keyframes=[k for k in old.keyframes if k.version not in gone]),
            )

    # moving

    async def shelve(self, stream: str, upto: int, *, keep: Collection[int] = ()) -> int:
        """Move the records with version <= upto, never the head's, to the archive; return how many are no longer here.

        There has to be a keyframe of version upto + 1, which what stays begins with, and of each in `keep`.
        keep: versions to be kept within reach as well.
        Raises StorageError, with nothing lost; Invalid for a missing keyframe.
        Cost: reads what it moves, writes it compressed, reads that again; holds a segment in memory.
        """
        async with self._lock(stream):
            gone = 0
            while True:
                catalogue = await self.catalogue(stream)
                first = await self.inner.read(stream, limit=1)
                if not first or first[0].version > upto:
                    return gone
                if catalogue.last < first[0].version:
                    bounded = await self._page(stream, first[0].version, upto)
                    if not bounded:
                        return gone
                    await self._shelve(stream, bounded, frozenset(keep))
                    catalogue = await self.catalogue(stream)
                gone += await self._remove(stream, min(catalogue.last, upto))

    async def _page(self, stream: str, first: int, upto: int) -> list[Record]:
        """Return the oldest records here that fill a segment, but not the head's."""
        (head,) = await self.inner.heads([stream])
        upto = min(upto, head.version - 1)
        page: list[Record] = []
        while upto >= first and segment.weight(page) < _SEGMENT_BYTES:
            more = await self.inner.read(stream, after=first - 1, upto=upto, limit=_PAGE)
            page += more
            if len(more) < _PAGE:
                break
            first = more[-1].version + 1
        return page

    async def _shelve(self, stream: str, page: list[Record], keep: frozenset[int]) -> None:
        """Make a page of records durable elsewhere, and say so in the catalogue."""
        first, last = page[0].version, page[-1].version
        cell = await self.inner.cell(PREFIX + stream)
        old = read_catalogue(cell)
        frames = [
            await self.inner.keyframe(stream, v) for v in await self.inner.keyframes(stream) if first <= v <= last
        ]
        framed = {k.version: k for k in frames if k is not None}
        new, replaced = old, None
        for version in sorted(v for v in keep if first <= v <= last):
            if version not in framed:
                raise Invalid(f"{stream}: version {version} is to be kept, and has no keyframe")
            (record,) = (r for r in page if r.version == version)
            kept = await self.shelf.put(self.shelf.segment([record], [framed[version]]), within=True)
            new = _replace(new, kept=(*new.kept, kept))
        whole, states = page, list(framed.values())
        if old.entries and (tail := old.entries[-1]).last == first - 1 and tail.size < _SMALL_BYTES:
            replaced = tail
            before = await self.shelf.get(tail, stream)
            whole, states = [*before.records, *page], [*before.keyframes, *states]
        entry = await self.shelf.put(self.shelf.segment(whole, states), within=self.shelf.place == WITHIN)
        new = _replace(new, entries=(*(e for e in old.entries if e is not replaced), entry))
        hit("archive:stored")
        if not await self._record(cell, stream, new, max(r.position for r in page)):
            return  # another process was first: the caller looks again
        hit("archive:recorded")
        if replaced is not None:
            await self.shelf.discard([replaced])

    async def _remove(self, stream: str, upto: int) -> int:
        """Remove records that the catalogue has, but not what was redacted since it was written."""
        here = await self.inner.read(stream, upto=upto)
        if here:
            catalogue = await self.catalogue(stream)
            holding = [e for e in catalogue.all() if e.last >= here[0].version and e.first <= upto]
            there = {r.version: r for e in holding for r in (await self.shelf.get(e, stream)).records}
            changed = {r.version: r for r in here if r.version in there and there[r.version].body != r.body}
            if changed:
                await self._rewritten(stream, changed)
            frames = await self.inner.keyframes(stream)
            await self.inner.drop_keyframes(stream, [v for v in frames if here[0].version <= v <= upto])
        return await self.inner.trim(stream, upto)

    async def _rewritten(self, stream: str, wanted: dict[int, Record]) -> set[int]:
        """Give these versions other bodies in the segments that hold them; return which were found there."""
        found: set[int] = set()

        def new(old: Segment) -> Segment:
            found.update(r.version for r in old.records if r.version in wanted and wanted[r.version].chain == r.chain)
            return _replace(old, records=[_rewritten(r, wanted.get(r.version)) for r in old.records])

        await self._changed(stream, lambda e: any(map(e.holds, wanted)), new)
        return found

    async def _changed(self, stream: str, which: Callable[[Entry], bool], new: Callable[[Segment], Segment]) -> None:
        """Put others in the place of segments, or none in that of one that would be empty."""
        while True:
            cell = await self.inner.cell(PREFIX + stream)
            catalogue = read_catalogue(cell)
            swapped: dict[str, Entry | None] = {}
            for entry in filter(which, catalogue.all()):
                old = await self.shelf.get(entry, stream)
                left = new(old)
                if left != old:
                    swapped[entry.name] = await self.shelf.put(left, within=entry.within) if left.records else None
            if not swapped:
                return
            entries, kept = (
                tuple(e for each in some if (e := swapped.get(each.name, each)) is not None)
                for some in (catalogue.entries, catalogue.kept)
            )
            if await self._record(cell, stream, _replace(catalogue, entries=entries, kept=kept), 0):
                await self.shelf.discard(e for e in catalogue.all() if e.name in swapped)
                return

    async def _record(self, cell: Cell | None, stream: str, catalogue: Catalogue | None, top: int) -> bool:
        """Commit a catalogue in the place of the one in `cell`; False where another process changed something first."""
        for _ in range(_TRIES):
            about = await self.about()
            changed = _replace(about, top=max(about.top, top), changes=about.changes + 1)
            value = None if catalogue is None else write(catalogue)
            writes = (
                CellWrite(PREFIX + stream, None if cell is None else cell.value, value),
                CellWrite(ARCHIVE, write(about), write(changed)),
            )
            async with self.turn:
                try:
                    (outcome,) = await self.inner.commit([Item(cells=writes)])
                except StorageError:
                    await self.inner.recover()  # or nobody else could commit either
                    raise
            if isinstance(outcome, Committed):
                return True
            if PREFIX + stream in outcome.cells:
                return False
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    # inside

    async def _by_position(self, about: About, after: int, upto: int) -> list[tuple[str, Entry]]:
        """Return the segments that have records with after < position <= upto, in the order of their first."""
        if self._all[0] != about.changes:
            self._all = (about.changes, await self.catalogues())
        found: list[tuple[str, Entry]] = []
        for stream, catalogue in self._all[1].items():
            entries = catalogue.reading(0, catalogue.last + 1)
            found += [(stream, e) for e in entries if e.high > after and e.low <= upto]
        return sorted(found, key=lambda each: each[1].low)

    def _lock(self, stream: str) -> asyncio.Lock:
        return self._moving.setdefault(stream, asyncio.Lock())

    # care

    async def own_counts(self) -> tuple[int, int]:
        """The cell of the namespace, those of streams, and the segments that are blobs."""
        catalogues = (await self.catalogues()).values()
        blobs = {e.name for c in catalogues for e in c.all() if e.within}
        return 1 + len(catalogues), len(blobs)

    async def stats(self) -> StorageStats:
        """Counts of all, here and in the archive; the size is of what is here."""
        found = await super().stats()
        catalogues = (await self.catalogues()).values()
        return _replace(
            found,
            records=found.records + sum(c.held() for c in catalogues),
            keyframes=found.keyframes + sum(len({v for e in c.all() for v in e.keyframes}) for c in catalogues),
        )

    async def check(self) -> list[str]:
        """Problems of the backend within and of the archive: segments that are missing there. Reads none of them."""
        problems = await self.inner.check()
        try:
            catalogues = await self.catalogues()
            away = [(s, e) for s, c in catalogues.items() for e in c.entries if not e.within]
            if away:
                about = await self.about()
                there = set(await self.shelf.names())
                problems += [
                    f"{s}: the segment of versions {e.first} to {e.last} is gone from {self.shelf.place}"
                    for s, e in away
                    if path_of(about.id, e.name) not in there
                ]
        except StorageError as error:
            problems.append(f"the archive cannot be examined: {error}")
        return problems


async def _cells(inner: Backend) -> list[Cell]:
    """Return the cells of streams that have something in the archive."""
    found: list[Cell] = []
    while page := await inner.cells(PREFIX, after=found[-1].name if found else "", limit=_PAGE):
        found += page
    return found


def _rewritten(old: Record, new: Record | None) -> Record:
    return old if new is None or new.chain != old.chain else _replace(old, body=new.body)
