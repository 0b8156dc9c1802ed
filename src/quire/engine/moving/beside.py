"""What lies beside the log of a store that is copied: cells and blobs. (Keyframes are derived, and go with their stream.)

1. Leases stay behind: who holds one works on the source. So do the cells in which copies are remembered.
2. Cursors that hold a position are translated: positions are given anew by each store.
3. A cell that expires keeps what is left of its time, by the clocks of both backends.
4. What the source has no more is removed from the target only where it belongs to a stream of the source: a cell by its
   name, a blob because a checkpoint or a cell of the source named it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from blake3 import blake3

from quire.engine.moving.loading import COPIES, Loader
from quire.engine.moving.paging import at_once, names, pages
from quire.errors import CorruptRecord, StorageTimeout
from quire.failpoints import hit
from quire.model import CHECKPOINTS, WORKFLOWS, Cell, Record
from quire.storage.base import Backend, CellWrite, Committed, Item

_PAGE = 1000
_LOOK = 20
"""Records read at a time to find where a cursor stands: the first is nearly always the one."""
_LEASES = "leases/"
_POSITIONS = ("cursors/store/", "cursors/triggers/")
_AREAS = ("cursors", "idempotency", "keyframes")
_CLOCK = f"{COPIES}clock"
_CLOCK_MS = 60_000
_ATTEMPTS = 100
"""How often the clock is asked while another copy asks at the same moment."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(rb'"([0-9a-f]{64})"')

CatchUp = Callable[[], Awaitable[None]]
"""Loads what the source committed meanwhile: no cell may tell of records that the target does not have."""


class Cells:
    """Copies cells. count: set or removed.  gone: names of blobs that a cell of the target named and no longer does."""

    def __init__(self, source: Backend, target: Backend, loader: Loader, catch_up: CatchUp) -> None:
        self.count = 0
        self.gone: set[str] = set()
        self._source = source
        self._target = target
        self._loader = loader
        self._catch_up = catch_up

    async def copy(self) -> None:
        """Bring all of them over."""
        after = ""
        while after is not None:
            page = await self._source.cells(after=after, limit=_PAGE)
            upto = page[-1].name if len(page) == _PAGE else None
            now = await _clock(self._source) if any(c.expires is not None for c in page) else 0
            await self._catch_up()
            await self._page([c for c in page if _goes_along(c.name)], now, after, upto)
            after = upto

    async def _page(self, page: Sequence[Cell], now: int, after: str, upto: str | None) -> None:
        """Bring over the cells of a range of names, and remove what is not in it any more."""
        there = {c.name: c async for c in _between(self._target, after, upto) if _goes_along(c.name)}
        writes: list[CellWrite] = []
        for cell in page:
            old = there.pop(cell.name, None)
            value = await self._translated(cell)
            left = None if cell.expires is None else cell.expires - now
            same = old is not None and old.value == value and (old.expires is None) == (cell.expires is None)
            if same or (left is not None and left <= 0):
                continue
            writes.append(CellWrite(cell.name, None if old is None else old.value, value, left))
        writes += [CellWrite(name, there[name].value, None) for name in await self._ours(list(there))]
        for write in writes:
            if write.name.startswith("keyframes/"):
                self.gone |= set(_found(write.expected or b"")) - set(_found(write.value or b""))
        await self._loader.set_cells(writes)
        self.count += len(writes)
        hit("copy:cells")

    async def _translated(self, cell: Cell) -> bytes:
        """Return a cell's value as it is to be in the target."""
        if not cell.name.startswith(_POSITIONS) or not cell.value.isdigit():
            return cell.value
        after = int(cell.value)
        while page := await self._source.feed(after, limit=_LOOK):
            for entry in page:  # the first is enough, unless it came after we caught up or was trimmed since
                if entry.position > self._loader.progress.position:
                    return b"%d" % await self._loader.place()
                place = await self._loader.place_before(entry)
                if place is not None:
                    return b"%d" % place
            after = page[-1].position
        return b"%d" % await self._loader.place()

    async def _ours(self, names: list[str]) -> list[str]:
        """Return those names whose stream the source has."""
        owners = {name: owner for name in names if (owner := _owner(name)) is not None}
        heads = await self._source.heads(list(owners.values())) if owners else []
        return [name for name, head in zip(owners, heads, strict=True) if head.version]


class Blobs:
    """Copies blobs. count, size_bytes: of those that were put.  dropped: how many were removed from the target."""

    def __init__(self, source: Backend, target: Backend) -> None:
        self.count = 0
        self.size_bytes = 0
        self.dropped = 0
        self._source = source
        self._target = target

    async def copy(self, gone: set[str]) -> None:
        """Bring over what the target does not have, each checked against its name; remove what the source has dropped.

        gone: blobs that nothing in the target names any more.
        Raises CorruptRecord for one that is damaged in the source.
        """
        beyond: set[str] = set()
        after: str | None = ""
        while after is not None:
            page = await self._source.blobs(after=after, limit=_PAGE)
            upto = page[-1] if len(page) == _PAGE else None
            there = {name async for name in _blobs_between(self._target, after, upto)}
            await at_once(self._one(name) for name in page if name not in there)
            beyond |= there.difference(page)
            after = upto
        if beyond:
            await self._drop(beyond, gone)

    async def _one(self, name: str) -> None:
        data = await self._source.blob(name)
        if data is None:
            return  # dropped meanwhile
        if _DIGEST.fullmatch(name) and blake3(data).hexdigest() != name:
            raise CorruptRecord(f"blob {name[:12]} of the source: its bytes do not match its name", at=name)
        await self._target.put_blob(name, data)
        self.count += 1
        self.size_bytes += len(data)
        hit("copy:blob")

    async def _drop(self, beyond: set[str], gone: set[str]) -> None:
        """Remove blobs that the source once named and does not have; what else the target has is not ours."""
        ours = beyond & gone
        async for page in names(self._source, CHECKPOINTS):
            for stream in page:
                async for entry in pages(self._source, stream):
                    ours |= beyond & set(_found(entry.body))
        await at_once(self._target.drop_blob(name) for name in sorted(ours))
        self.dropped += len(ours)

    async def missing(self) -> list[str]:
        """Return the names of the source's blobs that did not arrive. What was put meanwhile is brought over first."""
        late: list[str] = []
        after: str | None = ""
        while after is not None:
            page = await self._source.blobs(after=after, limit=_PAGE)
            upto = page[-1] if len(page) == _PAGE else None
            there = {name async for name in _blobs_between(self._target, after, upto)}
            late += [name for name in page if name not in there]
            after = upto
        await at_once(self._one(name) for name in late)
        return [name for name in late if await self._target.blob(name) is None and await self._source.blob(name)]


def _goes_along(name: str) -> bool:
    return not name.startswith((_LEASES, COPIES))


def _owner(name: str) -> str | None:
    """Return the stream that a cell belongs to, as its name says; None for those of nobody.

    >>> _owner("cursors/workflows/a/reader"), _owner("cursors/agents/a/ann"), _owner("cursors/store/mailer")
    ('workflows/a', 'workflows/a', None)
    """
    area, *rest = name.split("/")
    if area not in _AREAS or len(rest) < 2 or rest[0] == "store":
        return None
    kind, identity = rest[:2]
    return WORKFLOWS + identity if kind == "agents" else f"{kind}/{identity}"


def _found(text: bytes) -> list[str]:
    """Return the names of blobs in JSON."""
    return [name.decode() for name in _NAMED.findall(text)]


async def _clock(backend: Backend) -> int:
    """Return the time by the backend's own clock, UTC milliseconds: what it makes of a cell that expires."""
    for _ in range(_ATTEMPTS):
        found = await backend.cell(_CLOCK)
        value = secrets.token_bytes(16)
        write = CellWrite(_CLOCK, None if found is None else found.value, value, _CLOCK_MS)
        (outcome,) = await backend.commit([Item(cells=(write,))])
        if not isinstance(outcome, Committed):
            continue  # another copy asks at the same time
        cell = await backend.cell(_CLOCK)
        if cell is not None and cell.value == value and cell.expires is not None:
            return cell.expires - _CLOCK_MS
    raise StorageTimeout(
        f"the store's clock could not be read: others asked at the same moment {_ATTEMPTS} times; try again"
    )


async def _between(backend: Backend, after: str, upto: str | None) -> AsyncGenerator[Cell]:
    """Yield the cells whose names are greater than `after`, up to `upto`."""
    while page := await backend.cells(after=after, limit=_PAGE):
        for cell in page:
            if upto is not None and cell.name > upto:
                return
            yield cell
        after = page[-1].name


async def _blobs_between(backend: Backend, after: str, upto: str | None) -> AsyncGenerator[str]:
    while page := await backend.blobs(after=after, limit=_PAGE):
        for name in page:
            if upto is not None and name > upto:
                return
            yield name
        after = page[-1]


async def first_of(backend: Backend, stream: str) -> Record | None:
    """Return the oldest record of a stream that is still there."""
    found = await backend.read(stream, limit=1)
    return found[0] if found else None
