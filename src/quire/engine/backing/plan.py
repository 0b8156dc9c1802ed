"""What a recovery brings back: which backups, up to which position, and which streams from where to where.

A point in time is a prefix of the commit order:
  - a position p: every record at or before p;
  - a moment t: every record before the first whose time is later than t. What is committed together has one time, so a
    moment never cuts a transaction in two. A position can: `Plan.follows` counts the records behind it with its time.

Of other things than records:
  - cells (cursors, idempotency keys) are those of the newest backup not after the cut, as nobody wrote down when they
    changed: none may tell of versions that are not there;
  - blobs are all that the backups have: what no version names harms nobody;
  - what was redacted stays redacted, and what tells of it is brought back whole, whenever that was;
  - a stream that was dropped between two backups counts as dropped at the second. What it did between them is in no
    backup, nor are versions that were trimmed before one was taken: `Plan.incomplete` names such streams.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime

import msgspec

from quire.core.segment import Segment
from quire.engine.backing.books import Inventory, Life, Piece, Shelved
from quire.engine.backing.shelf import Kept, Shelf
from quire.errors import Invalid
from quire.model import REDACTIONS, Cell, Record
from quire.storage.base import BENEATH

OWN = "quire:"
"""How cells begin that wrappers need to read a namespace at all."""
ARCHIVE = "quire:archive"
"""How those begin that say what is in an archive: needed only when the rest is there."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """chain: the backups to read, oldest first.  cut: position of the source up to which records are brought back.

    whole: whether that is all that the last of them has.  lives: the streams, with where each begins.
    follows: records right behind the cut with the time of the last one before it: they may belong together.
    """

    chain: list[Kept]
    cut: int
    whole: bool
    lives: dict[str, Life]
    blobs: dict[str, Shelved]
    cells: tuple[Cell, ...]
    follows: int
    incomplete: list[str]

    @property
    def last(self) -> Kept:
        """The newest backup that is read."""
        return self.chain[-1]

    def wanted(self, record: Record) -> bool:
        """Whether a record is brought back."""
        life = self.lives.get(record.stream)
        return (
            life is not None
            and record.position >= life.position
            and record.version >= life.first
            and (record.position <= self.cut or record.stream.startswith(REDACTIONS))
        )


async def planned(shelf: Shelf, kept: Kept, at: int | datetime | None) -> Plan:
    """Return the plan for bringing back what a backup has, or what there was at a position or moment before its end.

    Raises Invalid for a position beyond the backup, CorruptRecord for damage.
    """
    chain = await shelf.chain(kept)
    upto = kept.manifest.upto
    cut = upto if at is None else at if isinstance(at, int) else await _moment(shelf, chain, at)
    if type(cut) is not int or cut < 0:
        raise Invalid(f"at={at!r}: a position in the store is needed, or a moment")
    if cut > upto:
        raise Invalid(f"position {cut} is after the end of backup {kept.manifest.number}, which is {upto}")
    used = chain
    if at is not None:  # the first that has it; those after it may know of what was only dropped since
        used = chain[: 1 + next(i for i, k in enumerate(chain) if k.manifest.upto >= cut)]
    last = used[-1]
    now = await shelf.inventory(last.manifest)
    before = await shelf.inventory(used[-2].manifest) if len(used) > 1 else None
    whole = cut == last.manifest.upto
    lives, incomplete = _lives(now, before, last.manifest.after, cut, whole=whole)
    return Plan(
        chain=used,
        cut=cut,
        whole=whole,
        lives=lives,
        blobs={**({} if before is None else before.blobs), **now.blobs},
        cells=_cells(now, before, whole=whole),
        follows=0 if whole else await _following(shelf, used, cut),
        incomplete=incomplete,
    )


def _lives(
    now: Inventory, before: Inventory | None, upto: int, cut: int, *, whole: bool
) -> tuple[dict[str, Life], list[str]]:
    """Return the streams at a cut, and those of which nobody can say what they were then. upto: where `before` ends."""
    found: dict[str, Life] = {}
    incomplete: list[str] = []
    older = {} if before is None else before.streams
    for stream in now.streams.keys() | older.keys():
        life, old = now.streams.get(stream), older.get(stream)
        if life is not None and (life.position <= cut or stream.startswith(REDACTIONS)):
            found[stream] = life
        elif not whole:
            if old is not None:
                found[stream] = old
            if (life is not None and life.first > 1) or (old is not None and cut > upto):
                incomplete.append(stream)  # what it did until it was dropped or trimmed is in no backup
    return found, sorted(incomplete)


def _cells(now: Inventory, before: Inventory | None, *, whole: bool) -> tuple[Cell, ...]:
    if whole:
        return tuple(c for c in now.cells if c.name not in BENEATH)
    own = {c.name: c for c in now.cells if c.name.startswith(OWN)}
    older = {} if before is None else {c.name: c for c in before.cells}
    return tuple(c for c in {**older, **own}.values() if c.name not in BENEATH)


async def segments(shelf: Shelf, chain: Sequence[Kept], *, after: int = 0) -> AsyncGenerator[tuple[Piece, Segment]]:
    """Yield the segments of backups with records after a position, in order."""
    for kept in chain:
        for piece in kept.manifest.segments:
            if piece.last > after:
                yield piece, await shelf.segment(kept.manifest, piece)


async def _moment(shelf: Shelf, chain: Sequence[Kept], at: datetime) -> int:
    """Return the position of the last record before the first that is later than a moment."""
    if at.tzinfo is None:
        raise Invalid(f"at={at.isoformat()} has no time zone: give one, such as UTC")
    at_ms = int(at.timestamp() * 1000)
    last = 0
    for kept in chain:
        for piece in kept.manifest.segments:
            if piece.latest <= at_ms:
                last = piece.last
                continue
            for entry in (await shelf.segment(kept.manifest, piece)).records:
                if entry.time > at_ms:
                    return last
                last = entry.position
    return chain[-1].manifest.upto


async def _following(shelf: Shelf, chain: Sequence[Kept], cut: int) -> int:
    """Return how many records right behind the cut have the time of the last one before it."""
    time: int | None = None
    count = 0
    async for _, segment in segments(shelf, chain, after=cut - 1):
        for entry in segment.records:
            if entry.position <= cut:
                time = entry.time
            elif time is None or entry.time != time:
                return count
            else:
                count += 1
    return count
