"""Putting a store back from backups, into an empty namespace or in the place of what is there.

1. While it lasts, the cell `quire:recovering` of the target says what is being put back; whoever opens the store is refused.
   It is set before anything is changed, and removed when everything is there and was compared: so a store can be
   opened either as it was or as it is to be, and whoever was killed does the same again.
2. What is there is backed up before it is replaced. The cell keeps the name of that backup.
3. Records are loaded through the wrappers they were sealed by, so that every chain is checked; cells and blobs that wrappers
   need come first. A backup of an encrypted namespace therefore needs its key to be put back.
4. Positions are given anew by the target, and cursors are translated.
5. An archive is not touched: cells that say what is in it come last, so that nothing is trimmed there on the way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from typing import Literal

import msgspec
from blake3 import blake3

from quire.calls import call
from quire.core import record
from quire.engine.backing.books import damaged
from quire.engine.backing.extending import Extension
from quire.engine.backing.plan import ARCHIVE, OWN, Plan, segments
from quire.engine.backing.shelf import BLOBS, Shelf
from quire.engine.backing.taking import Shown, Tell
from quire.engine.moving.loading import Loader, at_once
from quire.engine.moving.paging import names
from quire.errors import AlreadyExists, Conflict, CorruptRecord
from quire.failpoints import hit
from quire.model import GENESIS, REDACTIONS, WORKFLOWS, Cell, Keyframe, Record
from quire.storage.base import BENEATH, RECOVERING, Backend, Capabilities, CellWrite, Committed, Item

_PAGE = 1000
_POSITIONS = ("cursors/store/", "cursors/triggers/")

Heads = dict[str, tuple[int, bytes]]
"""Version and chain of the newest record of each stream."""


class Recovering(msgspec.Struct, frozen=True):
    """What the cell in the target says. before: the backup of what was there, "" where nothing was."""

    place: str
    id: str
    manifest: str
    cut: int
    phase: Literal["dropping", "loading"]
    before: str = ""


class Found(msgspec.Struct, frozen=True):
    """What was brought back, or would be. heads: of all streams.  extended: versions that an archive had beyond the backup."""

    heads: Heads
    versions: int
    blobs: int
    cells: int
    size_bytes: int
    extended: int = 0


class View:
    """A backup as wrappers look at a bare backend: what they need of it to read what is sealed, and no more."""

    capabilities = Capabilities(backend="backup", durability="none", multi_process=False, backup=False)

    def __init__(self, plan: Plan, shelf: Shelf) -> None:
        self._plan = plan
        self._shelf = shelf
        self._cells = {c.name: c for c in plan.cells}

    async def cell(self, name: str) -> Cell | None:
        """A cell of the backup."""
        return self._cells.get(name)

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Cells of the backup."""
        return [self._cells[n] for n in sorted(self._cells) if n.startswith(prefix) and n > after][:limit]

    async def blob(self, name: str) -> bytes | None:
        """A blob of the backup."""
        shelved = self._plan.blobs.get(name)
        return None if shelved is None else await self._shelf.get(self._plan.last.manifest, BLOBS, shelved)

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names of blobs of the backup."""
        return sorted(n for n in self._plan.blobs if n > after)[:limit]


class Reader:
    """Reads what a plan brings back, as it is to be seen. frames: keyframes that streams begin with, as they were met."""

    def __init__(self, plan: Plan, shelf: Shelf, shown: Shown, tell: Tell) -> None:
        self._plan = plan
        self._shelf = shelf
        self._shown = shown
        self._tell = partial(call, tell)
        self._frames: dict[tuple[str, int], Keyframe] = {}

    async def records(self, after: int = 0) -> AsyncGenerator[list[Record]]:
        """Yield records in pages, in commit order. Raises CorruptRecord."""
        plan = self._plan
        async for piece, segment in segments(self._shelf, plan.chain, after=after):
            beyond = piece.first > plan.cut and not any(r.stream.startswith(REDACTIONS) for r in segment.records)
            for frame in segment.keyframes:
                life = plan.lives.get(frame.stream)
                if life is not None and life.first == frame.version > 1:
                    self._frames[frame.stream, frame.version] = frame
            wanted = [] if beyond else [r for r in segment.records if r.position > after and plan.wanted(r)]
            for start in range(0, len(wanted), _PAGE):
                yield list(await self._shown.records(wanted[start : start + _PAGE]))
            self._tell(min(piece.last, plan.cut), plan.cut)

    async def base(self, stream: str, version: int) -> Keyframe | None:
        """Return the keyframe that a stream begins with. Raises CorruptRecord where the backup has none."""
        found = self._frames.pop((stream, version), None)
        if found is None:  # it was kept later than its record, because the log was trimmed while it was read
            async for _, segment in segments(self._shelf, self._plan.chain):
                found = next((f for f in segment.keyframes if (f.stream, f.version) == (stream, version)), found)
        if found is None:
            raise damaged(f"the backup {self._plan.last.name}", f"{stream} begins at {version} without a keyframe")
        return self._shown.keyframe(found)

    async def before(self, position: int) -> Record | None:
        """Return the last record that is brought back at or before a position."""
        for kept in reversed(self._plan.chain):
            for piece in reversed(kept.manifest.segments):
                if piece.first <= position:
                    found = await self._shelf.segment(kept.manifest, piece)
                    for entry in reversed(found.records):
                        if entry.position <= position and self._plan.wanted(entry):
                            return entry
        return None


async def rehearse(plan: Plan, shelf: Shelf, shown: Shown, tell: Tell) -> Found:
    """Read and check everything that would be brought back, and change nothing. Raises CorruptRecord."""
    reader = Reader(plan, shelf, shown, tell)
    heads: Heads = {}
    versions = size = 0
    async for page in reader.records():
        for entry in page:
            version, chain = heads.get(entry.stream, (0, GENESIS))
            life = plan.lives[entry.stream]
            if version or life.first == 1:
                record.check(entry, version + 1, chain)
            else:
                frame = await reader.base(entry.stream, entry.version)
                if frame is None or frame.chain != entry.chain:
                    raise damaged(f"the backup {plan.last.name}", f"the keyframe of {entry.stream} is of another log")
            heads[entry.stream] = (entry.version, entry.chain)
            versions, size = versions + 1, size + len(entry.body)
    _compare(plan, shown, heads)

    async def blob(name: str) -> int:
        return len(await shelf.get(plan.last.manifest, BLOBS, plan.blobs[name]))

    size += sum(await at_once(map(blob, plan.blobs)))
    for cell in plan.cells:
        if not cell.name.startswith(OWN):
            shown.cell(cell.name, cell.value)
    return Found(heads, versions, len(plan.blobs), sum(not c.name.startswith(OWN) for c in plan.cells), size)


def _compare(plan: Plan, shown: Shown, heads: Heads, *, extended: bool = False) -> None:
    """Make sure that streams end where the inventory says; extended: or later. Raises CorruptRecord."""
    for stream, life in plan.lives.items():
        wanted = (life.version, shown.chain(life.chain, life.version))
        found = heads.get(stream, (0, GENESIS))
        later = extended and found[0] > wanted[0]
        if (plan.whole and found != wanted and not later) or found[0] == 0:
            raise damaged(
                f"the backup {plan.last.name}", f"{stream} ends at version {found[0]}, the inventory says {wanted[0]}"
            )
    unknown = heads.keys() - plan.lives.keys()
    if unknown and not extended:
        raise damaged(f"the backup {plan.last.name}", f"{min(unknown)} is not in the inventory")


async def holds(bare: Backend) -> bool:
    """Whether there is anything in a namespace that somebody put there."""
    cells = [c for c in await bare.cells() if not c.name.startswith(OWN)]
    return bool(cells or await bare.streams(limit=1) or await bare.blobs(limit=1))


async def begun(bare: Backend) -> Recovering | None:
    """Return what is being put back into a namespace, None if nothing is."""
    cell = await bare.cell(RECOVERING)
    if cell is None:
        return None
    try:
        return msgspec.json.decode(cell.value, type=Recovering)
    except msgspec.MsgspecError as cause:
        raise CorruptRecord(
            f"the cell {RECOVERING} is damaged ({cause}): recover into a new store", at=RECOVERING
        ) from cause


class Recovery:
    """Puts a plan's content into one target."""

    def __init__(
        self,
        plan: Plan,
        shelf: Shelf,
        bare: Backend,
        shown: Shown,
        wrap: Callable[[Backend], Awaitable[Backend]],
        *,
        elsewhere: Callable[[Iterable[Cell]], list[Cell]],
        extension: Extension | None = None,
        now_ms: int,
        tell: Tell,
    ) -> None:
        """bare: the target within all wrappers, which `wrap` puts around it once it has what they need.

        elsewhere: makes cells of an archive what they are to be where positions are others.  extension: what an archive has
        of later versions.
        """
        self._extension = extension
        self._elsewhere = elsewhere
        self._plan = plan
        self._shelf = shelf
        self._bare = bare
        self._shown = shown
        self._wrap = wrap
        self._now_ms = now_ms
        self._tell = partial(call, tell)

    async def mark(self, *, replace: bool, before: Callable[[], Awaitable[str]]) -> Recovering:
        """Have the target say what is being put back. before: backs up what is there and returns that backup's name.

        Raises AlreadyExists where something is there that is not to be replaced.
        """
        last = self._plan.last
        now = await begun(self._bare)
        wanted = Recovering(self._shelf.place.url, last.manifest.id, last.name, self._plan.cut, "dropping")
        if now is not None and (now.id, now.manifest, now.cut) == (wanted.id, wanted.manifest, wanted.cut):
            return now
        if now is not None:
            if not replace:
                raise AlreadyExists(
                    f"backup {now.manifest[:21]} of {now.place} is being put back there, up to {now.cut}, and is not "
                    "finished: give that command again, or say that it is to be replaced"
                )
            wanted = msgspec.structs.replace(wanted, before=now.before)
        elif await holds(self._bare):
            if not replace:
                raise AlreadyExists(
                    "the namespace holds something: recover into an empty one, or say that it is to be replaced "
                    "(--replace), after a backup of what is there"
                )
            wanted = msgspec.structs.replace(wanted, before=await before())
        await self._set(now, wanted)
        hit("recover:marked")
        return wanted

    async def done(self, now: Recovering) -> Found:
        """Put everything there, compare it, and let the store be opened."""
        if now.phase == "dropping":
            await self._drop()
            hit("recover:dropped")
            loading = msgspec.structs.replace(now, phase="loading")
            await self._set(now, loading)
            now = loading
        await self._own()
        blob_bytes = await self._blobs()
        hit("recover:beside")
        target = await self._wrap(self._bare)
        found = await self._load(target, now)
        hit("recover:compared")
        await self._set(now, None)
        return msgspec.structs.replace(found, size_bytes=found.size_bytes + blob_bytes)

    async def _set(self, old: Recovering | None, new: Recovering | None) -> None:
        expected = None if old is None else msgspec.json.encode(old)
        value = None if new is None else msgspec.json.encode(new)
        (outcome,) = await self._bare.commit([Item(cells=(CellWrite(RECOVERING, expected, value),))])
        if not isinstance(outcome, Committed):
            raise Conflict("somebody else is putting a backup back there: let one of them finish")

    async def _drop(self) -> None:
        """Remove everything, but what is beneath the wrappers."""
        bare = self._bare
        while names := await bare.streams(limit=_PAGE):
            await at_once(bare.drop(name) for name in names)
            hit("recover:dropping")
        while names := await bare.blobs(limit=_PAGE):
            await at_once(bare.drop_blob(name) for name in names)
        while True:
            cells = [c for c in await bare.cells(limit=_PAGE + len(BENEATH)) if c.name not in BENEATH]
            if not cells:
                return
            await bare.commit([Item(cells=(CellWrite(c.name, c.value, None),)) for c in cells[:_PAGE]])

    async def _own(self) -> None:
        """Put what wrappers need to read the rest."""
        await self._put(c for c in self._plan.cells if c.name.startswith(OWN) and not c.name.startswith(ARCHIVE))

    async def _put(self, cells: Iterable[Cell]) -> None:
        """Put cells as they are stored, unless they are there."""
        for cell in cells:
            if await self._bare.cell(cell.name) is None:
                await self._bare.commit([Item(cells=(CellWrite(cell.name, None, cell.value),))])

    async def _blobs(self) -> int:
        """Put all blobs, as they are stored; return how many bytes they have."""

        async def put(name: str) -> int:
            shelved = self._plan.blobs[name]
            if name not in there:
                await self._bare.put_blob(name, await self._shelf.get(self._plan.last.manifest, BLOBS, shelved))
            return shelved.bytes

        there: set[str] = set()
        while names := await self._bare.blobs(after=max(there, default=""), limit=_PAGE):
            there.update(names)
        return sum(await at_once(map(put, self._plan.blobs)))

    async def _load(self, target: Backend, now: Recovering) -> Found:
        reader = Reader(self._plan, self._shelf, self._shown, self._tell)
        key = blake3(f"{now.id} {now.manifest} {now.cut}".encode()).hexdigest()[:16]
        async with Loader(target, f"backup-{key}", reader.base) as loader:
            progress = await loader.begin()
            async for page in reader.records(progress.position):
                await loader.take(page)
                hit("recover:page")
            await loader.flush()
            hit("recover:loaded")
            cells = await self._cells(target, reader, loader)
            heads = await _heads(target)
            _compare(self._plan, self._shown, heads, extended=self._extension is not None)
            extended = 0
            if self._extension is not None:
                before = dict(heads)
                async for page in self._extension.records(heads):
                    await loader.take(page)
                    hit("recover:extended")
                await loader.flush()
                heads = await _heads(target)
                extended = sum(version - before.get(s, (0, GENESIS))[0] for s, (version, _) in heads.items())
            await self._put(self._elsewhere(c for c in self._plan.cells if c.name.startswith(ARCHIVE)))
            cell = await target.cell(loader.cell)
            if cell is not None:
                await target.commit([Item(cells=(CellWrite(cell.name, cell.value, None),))])
            return Found(heads, loader.versions, len(self._plan.blobs), cells, loader.size_bytes, extended)

    async def _cells(self, target: Backend, reader: Reader, loader: Loader) -> int:
        """Put the cells, cursors translated; one that expires keeps what is left of its time."""
        writes: list[CellWrite] = []
        for cell in self._plan.cells:
            if cell.name.startswith(OWN):
                continue
            left = None if cell.expires is None else cell.expires - self._now_ms
            if left is not None and left <= 0:
                continue
            value = await self._translated(cell.name, self._shown.cell(cell.name, cell.value), target, reader)
            old = await target.cell(cell.name)
            if old is None or old.value != value:
                writes.append(CellWrite(cell.name, None if old is None else old.value, value, left))
        await loader.set_cells(writes)
        return len(writes)

    async def _translated(self, name: str, value: bytes, target: Backend, reader: Reader) -> bytes:
        """Return a cell's value as it is to be in the target: a position of the source becomes one of the target."""
        if not name.startswith(_POSITIONS) or not value.isdigit():
            return value
        last = await reader.before(int(value))
        if last is None:
            return b"0"
        there = await target.read(last.stream, after=last.version - 1, upto=last.version)
        return b"%d" % (there[0].position if there else 0)


async def _heads(backend: Backend) -> Heads:
    found: Heads = {}
    async for page in names(backend):
        found |= {h.stream: (h.version, h.chain) for h in await backend.heads(page)}
    return found


async def workflows(bare: Backend) -> dict[str, int]:
    """Return the workflows that a namespace has, by id, with their newest version."""
    found: dict[str, int] = {}
    async for page in names(bare, WORKFLOWS):
        found |= {h.stream.removeprefix(WORKFLOWS): h.version for h in await bare.heads(page)}
    return found
