"""An archive around a backend: old versions go to segments elsewhere, and are read as if they were still there.

1. It is the innermost wrapper. What goes to the archive is what is stored: sealed, where the namespace is encrypted.
2. A record is removed here only when its segment is durable there, was read back, and the catalogue that names it is
   committed. Whatever fails or is killed in between, the next call goes on; nothing is ever lost or twice.
3. A segment is named by its digest, never altered, and read only where the digest fits. What is redacted is put into a
   new one, and the old one removed.
4. What is here is answered from here. Only who asks for an old version waits for the archive, and is told if it is away.
5. Single versions can be kept within reach: a record and its state in a blob of the store itself.

This file reads; _moving.py moves, _books.py keeps the cells, _shelf.py the segments. Who decides what goes is
engine/sweep.py.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

import msgspec

from quire.core.segment import Segment
from quire.errors import CorruptRecord, InvalidKey, QuireError, StorageUnavailable
from quire.model import Cell, Keyframe, Record
from quire.storage.base import Archived as Held
from quire.storage.base import Backend, CellWrite, Item, Outcome, StorageStats, more_may_follow, page_of
from quire.storage.objects import Objects, open_objects
from quire.storage.wrap import ARCHIVE
from quire.storage.wrap._around import Around, claim_cell
from quire.storage.wrap._books import Books
from quire.storage.wrap._catalogue import About, Catalogue, Entry, about_of, read_about, write
from quire.storage.wrap._moving import Mover
from quire.storage.wrap._shelf import WITHIN, Shelf, path_of

log = logging.getLogger("quire.archive")

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
    archived = Archived(inner, namespace, about, objects)
    while place is not None and place != about.place:
        about = await _moved(archived, inner, about, place, objects)
    return archived


async def _moved(archived: Archived, inner: Backend, about: About, place: str, objects: Objects | None) -> About:
    """Have the archive lie in another place from now on. Raises InvalidKey where its segments are not there."""
    away = [e.name async for _, known in archived.books.each() for e in known.entries if not e.within]
    if away and place == WITHIN:
        raise InvalidKey(
            f"the archive of this namespace has {len(away)} segments in {about.place}, and cannot be moved into the store"
        )
    if away:
        there = set() if objects is None else set(await objects.names(f"archives/{about.id}/"))
        missing = sum(path_of(about.id, name) not in there for name in away)
        if missing:
            raise InvalidKey(
                f"the archive of this namespace is in {about.place}, and {missing} of its {len(away)} segments are not "
                f"in {place}: copy archives/{about.id}/ there first, or open the store with the old place"
            )
    changed = _replace(about, place=place, changes=about.changes + 1)
    await inner.commit([Item(cells=(CellWrite(ARCHIVE, write(about), write(changed)),))])
    return await about_of(inner)  # refused where something was moved there meanwhile: then all is looked at again


class Archived(Around):
    """A namespace with an archive. Made by `open_archived`."""

    own = ARCHIVE

    def __init__(self, inner: Backend, namespace: str, about: About, objects: Objects | None) -> None:
        where = "are packed" if about.place == WITHIN else f"go to {about.place}"
        super().__init__(inner, f"old versions {where}")
        self.turn: AbstractAsyncContextManager[Any] = nullcontext()
        """Held while this commits: whoever else commits to the same handle gives its own."""
        self.shelf = Shelf(inner, namespace, objects)
        self.books = Books(inner, lambda: self.turn)
        self.mover = Mover(inner, self.books, self.shelf)
        self._placed: tuple[int, list[tuple[str, Entry]]] = (-1, [])
        """All segments by their first position, as of a number of changes. About 500 bytes for each."""

    # what is known

    async def top(self) -> int:
        """Return the newest position that went to the archive; 0 for none."""
        return (await self.books.about()).top

    async def went(self, stream: str) -> int:
        """Return the newest version that went to the archive; 0 for none."""
        return (await self.books.catalogue(stream)).last

    async def kept(self, stream: str) -> set[int]:
        """Return which of the versions that went are within reach as well."""
        return {e.first for e in (await self.books.catalogue(stream)).kept}

    async def place(self) -> str:
        """Return where it is now: what `open_archived` was given."""
        return (await self.books.about()).place

    async def holds(self) -> AsyncGenerator[Held]:
        """Yield what of each stream is in the archive, by name."""
        async for stream, known in self.books.each():
            if known.entries:
                yield Held(
                    stream=stream,
                    first=known.entries[0].first,
                    last=known.last,
                    versions=known.held(),
                    kept=tuple(e.first for e in known.kept),
                    segments=len(known.all()),
                    size_bytes=sum(e.size for e in known.all()),
                )

    async def examined(self) -> AsyncGenerator[tuple[str, str | None]]:
        """Read every segment as it is now; yield for each its stream, and what is wrong with it, None for nothing."""
        async for stream, _ in self.books.each():
            seen: set[str] = set()
            while (entry := _next((await self.books.catalogue(stream)).all(), seen)) is not None:
                seen.add(entry.name)
                try:
                    await self.shelf.examine(entry, stream)
                except QuireError as error:
                    if entry in (await self.books.catalogue(stream)).all():  # or another took its place meanwhile
                        yield stream, str(error)
                    continue
                yield stream, None

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, and answer for each."""
        await self.books.mend()
        return await super().commit(items)

    async def recover(self) -> None:
        """After a failed commit: reconnect."""
        await super().recover()
        self.books.mended()

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first, wherever they are."""
        found = await self.inner.read(stream, after=after, upto=upto, limit=limit)
        after = max(after, 0)
        if (found and found[0].version == after + 1) or (not found and upto is None) or limit == 0:
            return found
        stop = found[0].version - 1 if found else upto or 0

        async def look(known: Catalogue) -> list[Record]:
            old: list[Record] = []
            for entry in known.reading(after, stop):
                records = (await self.shelf.get(entry, stream)).records
                old += [r for r in records if after < r.version <= stop]
                if limit is not None and more_may_follow(old, limit):
                    break
            return old

        old = await self.books.settled(stream, look)
        if limit is not None and old and old[-1].version < stop and more_may_follow(old, limit):
            return page_of(old, limit)  # what is between is on the next page
        return page_of([*old, *found], limit)

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace in commit order, wherever they are.

        Cost: one segment in memory; but where many streams went at one time, reads one of each for every page.
        """
        for _ in range(_TRIES):
            page = await self.inner.feed(after, limit=limit)
            if _dense(after, page):
                return page
            about = await self.books.about()  # after the page: what left meanwhile is named there
            if after >= about.top or not page:
                return page
            try:
                return await self._merged(about, after, page, limit)
            except CorruptRecord:
                if (await self.books.about()).changes == about.changes:
                    raise
        raise StorageUnavailable("other processes kept changing the archive; try again")

    async def _merged(self, about: About, after: int, page: Sequence[Record], limit: int) -> list[Record]:
        """Return a page of the feed with what is in the archive in between."""
        bound = page[-1].position  # what went from beyond it, since the page was read, others may lie between
        found = {r.position: r for r in page}
        for stream, entry in await self._by_position(about):
            if entry.low > bound:
                break
            if entry.high <= after:
                continue
            for r in (await self.shelf.get(entry, stream)).records:
                if after < r.position <= bound:
                    found[r.position] = r
            kept = page_of((found[p] for p in sorted(found)), limit)
            if len(kept) < len(found):  # what is beyond is asked for again: it need not be kept in mind
                found = {r.position: r for r in kept}
                bound = max(found)
        return page_of((found[p] for p in sorted(found)), limit)

    async def _by_position(self, about: About) -> list[tuple[str, Entry]]:
        if self._placed[0] != about.changes:
            placed = [(s, e) async for s, known in self.books.each() for e in known.entries if e.low > 0]
            self._placed = (about.changes, sorted(placed, key=lambda each: each[1].low))
        return self._placed[1]

    async def trim(self, stream: str, upto: int) -> int:
        """Remove old records for good, here and in the archive, never the head's."""

        def left(old: Segment) -> Segment:
            records = [r for r in old.records if r.version > upto]
            return _replace(old, records=records, keyframes=[k for k in old.keyframes if k.version > upto])

        async with self.mover.alone(stream):
            before = (await self.books.catalogue(stream)).held()
            if before:
                await self.mover.change(stream, lambda e: e.first <= upto, left)
                before -= (await self.books.catalogue(stream)).held()
                await self.mover.tidied(stream)
        return await self.inner.trim(stream, upto) + before

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes, here and in the archive."""
        async with self.mover.alone(stream):
            for _ in range(_TRIES):
                await self.mover.empty(stream)
                await self.inner.drop(stream)
                if not (await self.books.catalogue(stream)).entries:  # or another process was just moving some of it
                    break
            await self.mover.tidied(stream)

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records another body, wherever they are: those in the archive in new segments, one after the other."""
        found = await self.inner.rewrite(records)
        by_stream: dict[str, dict[int, Record]] = {}
        for r in records:
            by_stream.setdefault(r.stream, {})[r.version] = r
        for stream, wanted in by_stream.items():
            here = {r.version for r in await self.inner.read(stream, after=min(wanted) - 1, upto=max(wanted))}
            async with self.mover.alone(stream):
                gone = await self.mover.rewrite(stream, wanted)
                await self.mover.tidied(stream)
            found += len(gone - here)
        return found

    # keyframes

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest at or before a version, wherever it is."""
        found = await self.inner.keyframe(stream, at)
        if found is not None or at is None:
            return found

        return await self.books.settled(stream, lambda known: self.shelf.frame(known, stream, at))

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending, wherever they are."""
        known = await self.books.catalogue(stream)
        there = (v for e in known.all() for v in e.keyframes)
        return sorted({*await self.inner.keyframes(stream), *there})

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, beside its record."""
        stream, version = keyframe.stream, keyframe.version
        known = await self.books.catalogue(stream)
        if not any(e.holds(version) for e in known.entries):
            await self.inner.put_keyframe(keyframe)
            return
        near = any(e.holds(version) for e in known.kept)  # then it goes there, and nowhere else

        def new(old: Segment) -> Segment:
            others = [k for k in old.keyframes if k.version != version]
            return _replace(old, keyframes=sorted([*others, keyframe], key=lambda k: k.version))

        async with self.mover.alone(stream):
            await self.mover.change(stream, lambda e: e.holds(version) and (len(e) == 1 or not near), new)
            await self.mover.tidied(stream)

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those, wherever they are."""
        await self.inner.drop_keyframes(stream, versions)
        gone = frozenset(versions)
        if not any(gone.intersection(e.keyframes) for e in (await self.books.catalogue(stream)).all()):
            return
        async with self.mover.alone(stream):
            await self.mover.change(
                stream,
                lambda e: not gone.isdisjoint(e.keyframes),
                lambda old: _replace(old, keyframes=[k for k in old.keyframes if k.version not in gone]),
            )
            await self.mover.tidied(stream)

    # moving

    async def shelve(self, stream: str, upto: int, *, keep: Collection[int] = ()) -> int:
        """Move the records with version <= upto, never the head's, to the archive; return how many are no longer here.

        There has to be a keyframe of version upto + 1, which what stays begins with, and of each in `keep`.
        keep: versions to be kept within reach as well.
        Raises StorageError, with nothing lost; Invalid for a missing keyframe.
        Cost: reads what it moves, writes it compressed, reads that again; holds a segment in memory.
        """
        async with self.mover.alone(stream):
            gone = await self.mover.shelve(stream, upto, frozenset(keep))
            await self.mover.tidied(stream)
        return gone

    async def hold(self, stream: str, versions: Collection[int]) -> int:
        """Keep versions within reach that went to the archive before; return how many were not. Each has a keyframe."""
        async with self.mover.alone(stream):
            return await self.mover.hold(stream, versions)

    # care

    async def scrub(self) -> None:
        """Leave no trace of what was removed, here and in the archive: also of what somebody was killed while moving."""
        async for stream, known in self.books.each():
            first = await self.inner.read(stream, limit=1)
            async with self.mover.alone(stream):
                if first and first[0].version <= known.last:
                    await self.mover.correct(stream, first[0].version, known.last)
                await self.mover.tidy(stream, everything=True)
        await self.inner.scrub()

    async def own_counts(self) -> tuple[int, int]:
        """The cell of the namespace, those of streams, and the segments that are blobs."""
        cells = 1
        async for _ in self.books.each():
            cells += 1
        blobs, last = 0, ARCHIVE
        while names := [n for n in await self.inner.blobs(after=last, limit=_PAGE) if n.startswith(ARCHIVE)]:
            blobs, last = blobs + len(names), names[-1]
        return cells, blobs

    async def stats(self) -> StorageStats:
        """Counts of all, here and in the archive; the size is of what is here."""
        found = await super().stats()
        records = keyframes = 0
        async for _, known in self.books.each():
            records += known.held()
            keyframes += len({v for e in known.all() for v in e.keyframes})
        return _replace(found, records=found.records + records, keyframes=found.keyframes + keyframes)

    async def check(self) -> list[str]:
        """Problems of the backend within and of the archive: segments that are missing there, versions kept near.

        Reads those alone; the others are read by whoever reads the logs.
        """
        problems = await self.inner.check()
        try:
            about = await self.books.about()
            there: set[str] | None = None
            async for stream, known in self.books.each():
                for e in known.entries:
                    if e.within:
                        continue
                    there = set(await self.shelf.names()) if there is None else there
                    if path_of(about.id, e.name) not in there and e in (await self.books.catalogue(stream)).entries:
                        where = f"versions {e.first} to {e.last} is gone from {about.place}"
                        problems.append(f"{stream}: the segment of {where}")
                problems += [f"{stream}: {said}" for e in known.kept if (said := await self._wrong(e, stream))]
        except QuireError as error:
            problems.append(f"the archive cannot be examined: {error}")
        return problems

    async def _wrong(self, entry: Entry, stream: str) -> str | None:
        try:
            await self.shelf.examine(entry, stream)
        except CorruptRecord as error:
            return str(error) if entry in (await self.books.catalogue(stream)).kept else None
        return None


def _dense(after: int, page: Sequence[Record]) -> bool:
    """Tell whether nothing can be missing in a page of the feed.

    A stream's head is always here, and so is older than none of its records: beyond the last one here nothing went.
    """
    return not page or (page[0].position == after + 1 and page[-1].position == after + len(page))


def _next(entries: Sequence[Entry], seen: set[str]) -> Entry | None:
    return next((e for e in entries if e.name not in seen), None)
