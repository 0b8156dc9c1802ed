"""What an archive knows of itself, in cells of the namespace: about the whole, and for each stream where its records went."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from quire.errors import CorruptRecord, IncompatibleFormat
from quire.model import Cell
from quire.storage.base import Backend
from quire.storage.wrap import ARCHIVE

FORMAT = 1
PREFIX = ARCHIVE + "/"
"""Of the cells of streams."""
_json = msgspec.json.Encoder().encode


class About(msgspec.Struct, frozen=True, kw_only=True):
    """The cell of the namespace. id: of this archive among those in one place.  place: its URL.

    top: the newest position that went.  changes: how often anything about it changed.
    """

    format: int = FORMAT
    id: str
    place: str
    top: int = 0
    changes: int = 0


class Entry(msgspec.Struct, frozen=True):
    """A segment. name: blake3 of its bytes.  first, last: versions.  low, high: positions, 0 where they mean nothing here.

    versions: which of them it holds, None for all.  keyframes: versions it has states of.  within: a blob of the store.
    weight: about its bytes before compression.  shared: another store may name it too, so it is never removed from here.
    """

    name: str
    size: int
    first: int
    last: int
    low: int
    high: int
    keyframes: tuple[int, ...] = ()
    versions: tuple[int, ...] | None = None
    within: bool = False
    weight: int = 0
    shared: bool = False

    def __len__(self) -> int:
        return self.last - self.first + 1 if self.versions is None else len(self.versions)

    def holds(self, version: int) -> bool:
        """Tell whether it holds the record of a version."""
        return self.first <= version <= self.last and (self.versions is None or version in self.versions)


class Loose(msgspec.Struct, frozen=True):
    """A segment that is written and not catalogued yet, or not any more. time: since when, UTC milliseconds.

    late: whoever was writing it may still come to the end, so it is removed more than once.
    """

    name: str
    within: bool
    time: int
    late: bool = False


class Catalogue(msgspec.Struct, frozen=True):
    """The cell of a stream. entries: by version, without overlap.  kept: single versions of them, within reach as well.

    coming: about to be written.  gone: to be removed. So none is forgotten, whenever somebody is killed.
    """

    format: int = FORMAT
    entries: tuple[Entry, ...] = ()
    kept: tuple[Entry, ...] = ()
    coming: tuple[Loose, ...] = ()
    gone: tuple[Loose, ...] = ()

    @property
    def last(self) -> int:
        """The newest version that was moved."""
        return self.entries[-1].last if self.entries else 0

    def all(self) -> tuple[Entry, ...]:
        """Return every segment."""
        return (*self.entries, *self.kept)

    def held(self) -> int:
        """Return how many versions can be read from it."""
        return sum(map(len, self.entries))

    def reading(self, after: int, upto: int) -> list[Entry]:
        """Return the segments to read for versions in (after, upto], in their order. One that is within is preferred."""
        if upto == after + 1 and (near := next((e for e in self.kept if e.holds(upto)), None)) is not None:
            return [near]
        return [e for e in self.entries if e.last > after and e.first <= upto]

    def framed(self, at: int) -> tuple[Entry, int] | None:
        """Return the segment with the newest keyframe at or before a version, and that keyframe's version."""
        best: tuple[Entry, int] | None = None
        for entry in self.all():  # of equals the last one wins: it is within
            found = max((v for v in entry.keyframes if v <= at), default=0)
            if found and (best is None or found >= best[1]):
                best = (entry, found)
        return best

    def tail(self, first: int, weight: int, most: int) -> tuple[Entry, ...]:
        """Return the newest segments that go into one with what begins at `first`: each at most twice what follows it.

        So a log has few segments, by the logarithm of how often something went, and each byte is written as seldom.
        most: what is heavier together stays apart.
        """
        taken: list[Entry] = []
        for e in reversed(self.entries):
            fits = e.last == first - 1 and e.weight <= 2 * weight and e.weight + weight <= most
            if not fits or e.low == 0:  # where positions mean nothing they must not get to where they do
                break
            taken.append(e)
            first, weight = e.first, weight + e.weight
        return tuple(reversed(taken))

    def elsewhere(self) -> Catalogue:
        """Return what this is in a store that gave the records other positions: the feed knows nothing of them.

        The store it is from goes on with the same segments, so none is removed from here.
        """
        entries, kept = (
            tuple(_replace(e, low=0, high=0, shared=not e.within) for e in some) for some in (self.entries, self.kept)
        )
        return Catalogue(entries=entries, kept=kept)


_replace = msgspec.structs.replace


def write(value: About | Catalogue) -> bytes:
    """Return the value of a cell."""
    return _json(value)


def read_about(cell: Cell) -> About:
    """Return what a cell says of the archive. Raises CorruptRecord, IncompatibleFormat."""
    _check_format(cell)
    try:
        return msgspec.json.decode(cell.value, type=About)
    except msgspec.MsgspecError as cause:
        raise _damaged(cell, cause) from cause


async def about_of(inner: Backend) -> About:
    """Return what a namespace says of its archive."""
    cell = await inner.cell(ARCHIVE)
    if cell is None:
        raise CorruptRecord(f"the cell {ARCHIVE} is gone; restore a backup", at=ARCHIVE)
    return read_about(cell)


def read_catalogue(cell: Cell | None) -> Catalogue:
    """Return what a cell says of a stream; nothing went where there is none. Raises CorruptRecord, IncompatibleFormat."""
    if cell is None:
        return Catalogue()
    _check_format(cell)
    try:
        return msgspec.json.decode(cell.value, type=Catalogue)
    except msgspec.MsgspecError as cause:
        raise _damaged(cell, cause) from cause


def stream_of(cell: Cell) -> str:
    """Return the stream that a cell is about."""
    return cell.name.removeprefix(PREFIX)


def elsewhere(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells of an archive as they are to be in another store, where positions are others."""
    moved: list[Cell] = []
    for cell in cells:
        if cell.name == ARCHIVE:
            moved.append(Cell(cell.name, write(_replace(read_about(cell), top=0)), cell.expires))
        else:
            moved.append(Cell(cell.name, write(read_catalogue(cell).elsewhere()), cell.expires))
    return moved


class _Format(msgspec.Struct):
    format: int


def _check_format(cell: Cell) -> None:
    with suppress(msgspec.MsgspecError):
        found = msgspec.json.decode(cell.value, type=_Format).format
        if found != FORMAT:
            raise IncompatibleFormat(
                f"the cell {cell.name} is of format {found}, this Quire reads {FORMAT}: upgrade quire",
                found=found,
                supported=FORMAT,
            )


def _damaged(cell: Cell, cause: Exception) -> CorruptRecord:
    return CorruptRecord(f"the cell {cell.name} is damaged ({cause}); restore a backup", at=cell.name)
