"""Moving records to an archive: made durable there, read back, catalogued, and only then removed here.

1. A segment is named in the catalogue before it is written, and after it was replaced until it is removed. So whoever is
   killed leaves nothing that nobody knows of; the next one who moves, or scrubs, clears it away.
2. What is removed here is in the archive with the same chain, and with what was redacted meanwhile taken out.
3. One segment is in memory at a time, whatever there is to move.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress

import msgspec

from quire.core import segment
from quire.core.segment import Segment
from quire.errors import CorruptRecord, Invalid, StorageError, StorageUnavailable
from quire.failpoints import hit
from quire.locks import NamedLocks
from quire.model import Cell, Keyframe, Record
from quire.storage.base import Backend, more_may_follow
from quire.storage.wrap._books import Books, Overtaken, pause
from quire.storage.wrap._catalogue import Catalogue, Entry, Loose, read_catalogue
from quire.storage.wrap._shelf import Made, Shelf

log = logging.getLogger("quire.archive")

_SEGMENT_BYTES = 4 * 1024 * 1024
"""A segment is closed at so many bytes before compression: what reading one old version costs at most."""
_PAGE = 1000
_FIRST_PAGE = 16
"""Records read before it is known how heavy they are."""
_ABANDONED_MS = 3600 * 1000
"""Whoever began to write a segment so long ago, and did not finish, was killed."""
_TRIES = 20
_replace = msgspec.structs.replace


def _now_ms() -> int:
    return int(time.time() * 1000)


class Mover:
    """Changes what lies where. One at a time for each stream in this process; the books say what others do."""

    def __init__(self, inner: Backend, books: Books, shelf: Shelf) -> None:
        self._inner = inner
        self._books = books
        self._shelf = shelf
        self._locks = NamedLocks()
        self._mine: dict[str, set[str]] = {}
        """Segments that this process began to write and did not finish: they are removed without waiting an hour."""

    def alone(self, stream: str) -> AbstractAsyncContextManager[None]:
        """One task at a time for each stream. All below is called within."""
        return self._locks.hold(stream)

    # to the archive

    async def shelve(self, stream: str, upto: int, keep: frozenset[int]) -> int:
        """Move records with version <= upto, but the head's; return how many are no longer here."""
        gone = tries = 0
        (head,) = await self._inner.heads([stream])
        upto = min(upto, head.version - 1)
        while tries < _TRIES:
            await pause(tries)
            if not await self._begins(stream, upto):
                return gone
            await self.tidy(stream)  # or each failure would leave one more behind
            cell = await self._books.cell(stream)  # before what is stored is read: who redacts that changes this too
            first = await self._inner.read(stream, limit=1)
            if first and read_catalogue(cell).last < first[0].version:
                page, frames = await self._page(stream, first[0].version, upto)
                if page and not await self._store(stream, cell, page, frames, keep):
                    tries += 1
                    continue
            removed = await self._remove(stream, upto)
            gone += removed
            tries = 0 if removed else tries + 1
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def _begins(self, stream: str, upto: int) -> bool:
        """Tell whether there is something to move. Raises Invalid if what stays would not begin with a keyframe."""
        framed = upto + 1 in await self._inner.keyframes(stream)
        first = await self._inner.read(stream, limit=1)
        if not first or first[0].version > upto:
            return False
        if not framed and not await self._framed(stream, upto + 1):
            raise Invalid(f"{stream}: what stays begins with version {upto + 1}, which has no keyframe")
        return True

    async def _framed(self, stream: str, version: int) -> bool:
        """Put here the keyframe that the archive has of a version, and tell whether it has one.

        There, and not here, is one of a version that somebody stored, and was killed before removing it here.
        """
        for tried in range(_TRIES):
            await pause(tried)
            cell = await self._books.cell(stream)
            frame = await self._books.settled(stream, lambda known: self._shelf.frame(known, stream, version))
            if frame is None or frame.version != version:
                return False
            await self._inner.put_keyframe(frame)
            if await self._books.cell(stream) == cell:
                return True
            await self._inner.drop_keyframes(stream, [version])  # something may have been taken out of it meanwhile
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def hold(self, stream: str, versions: Collection[int]) -> int:
        """Keep versions within reach that are in the archive; return how many were not before."""
        held = 0
        for version in sorted(versions):
            for tried in range(_TRIES):
                await pause(tried)
                cell = await self._books.cell(stream)
                known = read_catalogue(cell)
                entry = next((e for e in known.entries if e.holds(version)), None)
                if entry is None or any(e.holds(version) for e in known.kept):
                    break
                there = await self._shelf.get(entry, stream)
                records = [r for r in there.records if r.version == version]
                frames = [k for k in there.keyframes if k.version == version]
                if not frames:
                    raise Invalid(f"{stream}: version {version} is to be kept, and has no keyframe")
                made = await self._shelf.make(records, frames, within=True, unplaced=entry.low == 0)
                new = _replace(known, kept=(*known.kept, made.entry))
                if await self._swap(stream, cell, new, [made], ()):
                    held += 1
                    break
        return held

    async def _page(self, stream: str, first: int, upto: int) -> tuple[list[Record], list[Keyframe]]:
        """Return the oldest records here that fill a segment, with their keyframes."""
        framed = set(await self._inner.keyframes(stream))
        page: list[Record] = []
        frames: list[Keyframe] = []
        weight, limit = 0, _FIRST_PAGE
        while upto >= first and weight < _SEGMENT_BYTES:
            more = await self._inner.read(stream, after=first - 1, upto=upto, limit=limit)
            for r in more:
                page.append(r)
                weight += segment.weight([r])
                if r.version in framed and (frame := await self._inner.keyframe(stream, r.version)) is not None:
                    frames += [frame] if frame.version == r.version else []
                    weight += segment.frame_weight([frame])
                if weight >= _SEGMENT_BYTES:
                    break
            if not more_may_follow(more, limit):
                break
            first = more[-1].version + 1
            limit = min(max((_SEGMENT_BYTES - weight) * len(page) // weight, 1), _PAGE)
        return page, frames

    async def _store(
        self, stream: str, cell: Cell | None, page: list[Record], frames: list[Keyframe], keep: frozenset[int]
    ) -> bool:
        """Make a page of records durable elsewhere, and say so in the catalogue; False if another process was first."""
        old = read_catalogue(cell)
        framed = {k.version: k for k in frames}
        kept: list[Made] = []
        for r in page:
            if r.version in keep:
                if r.version not in framed:
                    raise Invalid(f"{stream}: version {r.version} is to be kept, and has no keyframe")
                kept.append(await self._shelf.make([r], [framed.pop(r.version)], within=True))
        weight = segment.weight(page) + segment.frame_weight(framed.values())
        tail = old.tail(page[0].version, weight, _SEGMENT_BYTES)
        try:
            before = [await self._shelf.get(e, stream) for e in tail]
        except CorruptRecord as error:
            if await self._books.cell(stream) != cell:
                return False
            log.warning("%s; what goes now is kept apart from it", error)
            tail, before = (), []
        main = await self._shelf.make(
            [*(r for each in before for r in each.records), *page],
            [*(k for each in before for k in each.keyframes), *framed.values()],
        )
        rest = old.entries[: len(old.entries) - len(tail)]
        new = _replace(old, entries=(*rest, main.entry), kept=(*old.kept, *(m.entry for m in kept)))
        if not await self._swap(stream, cell, new, [*kept, main], tail, top=max(r.position for r in page)):
            return False
        (head,) = await self._inner.heads([stream])
        if head.version < page[-1].version:  # it was dropped meanwhile: it must not come back by what we wrote
            await self.empty(stream)
            return False
        return True

    async def _remove(self, stream: str, upto: int) -> int:
        """Remove the oldest records here, as far as one segment has them, with what was redacted since taken out."""
        first, bound = await self._books.settled(stream, lambda known: self._compared(stream, known, upto))
        if not bound or not await self._begins(stream, upto):
            return 0
        await self.correct(stream, first, bound)
        hit("archive:removing")
        gone = await self._inner.trim(stream, bound)
        await self._inner.drop_keyframes(stream, [v for v in await self._inner.keyframes(stream) if v <= bound])
        return gone

    async def correct(self, stream: str, first: int, bound: int) -> None:
        """Take out of segments what was redacted here since it was read for them. first, bound: versions in both places."""
        here = {r.version: r for r in await self._inner.read(stream, upto=bound)}
        framed = [v for v in await self._inner.keyframes(stream) if first <= v <= bound]
        frames = {k.version: k for v in framed if (k := await self._inner.keyframe(stream, v)) is not None}

        def new(old: Segment) -> Segment:
            """Return what is here now: of what was read before it was stored, something may have been taken out since."""
            states = [frames.get(k.version) if first <= k.version <= bound else k for k in old.keyframes]
            return _replace(
                old,
                records=[_rewritten(r, here.get(r.version)) for r in old.records],
                keyframes=[k for k in states if k is not None],
            )

        await self.change(stream, lambda e: e.first <= bound and e.last >= first, new)

    async def _compared(self, stream: str, known: Catalogue, upto: int) -> tuple[int, int]:
        """Return the first and last version that can be removed, 0 and 0 for none. Raises CorruptRecord."""
        first = await self._inner.read(stream, limit=1)
        entry = next((e for e in known.entries if first and e.last >= first[0].version), None)
        if entry is None:
            return 0, 0
        bound = min(entry.last, upto)
        there = {r.version: r for r in (await self._shelf.get(entry, stream)).records}
        for r in await self._inner.read(stream, upto=bound):
            if r.version not in there or there[r.version].chain != r.chain:
                at = f"{stream}@{r.version}"
                raise CorruptRecord(f"{at}: the archive has another one; nothing was removed", at=at)
        return first[0].version, bound

    # in the archive

    async def rewrite(self, stream: str, wanted: dict[int, Record]) -> set[int]:
        """Give these versions other bodies in the segments that hold them; return which were found there."""
        found: set[int] = set()

        def new(old: Segment) -> Segment:
            found.update(r.version for r in old.records if r.version in wanted and wanted[r.version].chain == r.chain)
            return _replace(old, records=[_rewritten(r, wanted.get(r.version)) for r in old.records])

        await self.change(stream, lambda e: any(map(e.holds, wanted)), new)
        return found

    async def change(self, stream: str, which: Callable[[Entry], bool], new: Callable[[Segment], Segment]) -> None:
        """Put others in the place of segments, one by one, or none in that of one that would be empty."""
        seen: set[str] = set()
        tries = 0
        while tries < _TRIES:
            await pause(tries)
            cell = await self._books.cell(stream)
            known = read_catalogue(cell)
            entry = next((e for e in known.all() if e.name not in seen and which(e)), None)
            if entry is None:
                return
            try:
                old = await self._shelf.get(entry, stream)
            except CorruptRecord:
                if await self._books.cell(stream) == cell:
                    raise
                tries += 1
                continue
            left = new(old)
            if left == old:
                seen.add(entry.name)
                continue
            await self.tidy(stream)
            cell = await self._books.cell(stream)
            if entry not in (known := read_catalogue(cell)).all():
                tries += 1
                continue
            made = [await self._made_like(entry, left)] if left.records else []
            there = tuple(m.entry for m in made)
            entries, kept = (
                tuple(n for e in some for n in (there if e == entry else (e,))) for some in (known.entries, known.kept)
            )
            if await self._swap(stream, cell, _replace(known, entries=entries, kept=kept), made, (entry,)):
                seen |= {m.entry.name for m in made}
                tries = 0
            else:
                tries += 1
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def _made_like(self, entry: Entry, left: Segment) -> Made:
        within = True if entry.within else None
        return await self._shelf.make(left.records, left.keyframes, within=within, unplaced=entry.low == 0)

    async def empty(self, stream: str) -> None:
        """Let nothing of a stream be in the archive."""
        for tried in range(_TRIES):
            await pause(tried)
            cell = await self._books.cell(stream)
            known = read_catalogue(cell)
            if not known.all() and not known.coming:
                return
            now = _now_ms()
            coming = (_replace(c, late=True) for c in known.coming)
            gone = (*known.gone, *coming, *(Loose(e.name, e.within, now) for e in known.all() if not e.shared))
            try:
                await self._books.record(cell, stream, Catalogue(gone=gone))
            except Overtaken:
                continue
            return
        raise StorageUnavailable(f"{stream}: other processes kept changing the archive; try again")

    async def _swap(
        self,
        stream: str,
        cell: Cell | None,
        new: Catalogue,
        made: Sequence[Made],
        old: Sequence[Entry],
        *,
        top: int = 0,
    ) -> bool:
        """Write segments, and commit the catalogue that names them in the place of old ones.

        new: made from what is in `cell`. False, and nothing is changed, if another process was first.
        """
        now, before = _now_ms(), read_catalogue(cell)
        coming = [Loose(m.entry.name, m.entry.within, now) for m in made]
        self._mine.setdefault(stream, set()).update(c.name for c in coming)
        try:
            if coming:
                cell = await self._books.note(cell, stream, _replace(before, coming=(*before.coming, *coming)))
                hit("archive:intended")
            await self._put(stream, cell, made)
            hit("archive:stored")
            gone = [Loose(e.name, e.within, now) for e in old if not e.shared]
            await self._books.record(
                cell,
                stream,
                _replace(new, coming=before.coming, gone=(*before.gone, *gone)),
                top=top,
                places=[m.place for m in made if m.place is not None],
            )
        except Overtaken:
            with suppress(StorageError):
                await self._shelf.remove(coming)  # nobody named them
            return False
        hit("archive:recorded")
        return True

    async def _put(self, stream: str, cell: Cell | None, made: Sequence[Made]) -> None:
        """Write segments. Raises Overtaken where somebody who scrubs removed one meanwhile."""
        for each in made:
            try:
                await self._shelf.put(each)
            except StorageUnavailable:
                if await self._books.cell(stream) != cell:
                    raise Overtaken from None
                raise

    async def tidy(self, stream: str, *, everything: bool = False) -> None:
        """Remove what is loose. everything: also what somebody may be writing just now, who then has to begin again.

        Raises StorageError while it cannot be removed.
        """
        cell = await self._books.cell(stream)
        known = read_catalogue(cell)
        mine, before = self._mine.get(stream, ()), _now_ms() - _ABANDONED_MS
        stale = [c for c in known.coming if everything or c.name in mine or c.time < before]
        try:
            if stale:  # first nobody can catalogue it any more, then it is removed
                left = tuple(c for c in known.coming if c not in stale)
                known = _replace(known, coming=left, gone=(*known.gone, *(_replace(c, late=True) for c in stale)))
                cell = await self._books.note(cell, stream, known)
            if known.gone:
                await self._shelf.remove(known.gone)
                hit("archive:cleared")
                again = tuple(g for g in known.gone if g.late and g.time >= before)
                if again != known.gone:
                    await self._books.note(cell, stream, _replace(known, gone=again))
            self._mine.pop(stream, None)
        except Overtaken:
            log.debug("%s: another process changed the catalogue; whoever moves next clears up", stream)

    async def tidied(self, stream: str) -> None:
        """Remove what is loose, if that can be done now."""
        try:
            await self.tidy(stream)
        except StorageError as error:
            log.warning("%s: segments that were replaced could not be removed from the archive: %s", stream, error)


def _rewritten(old: Record, new: Record | None) -> Record:
    return old if new is None or new.chain != old.chain else _replace(old, body=new.body)
