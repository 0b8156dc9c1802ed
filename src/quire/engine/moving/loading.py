"""Loading: records of another store, in their order, into this one, byte for byte but for their positions.

It does not know where records come from: from an open store (copying.py), or from what a backup kept.

1. How far it came is a cell of the target, `copies/<source>`, that changes in the same commit as the records. So whoever
   is killed goes on where it stood: nothing twice, nothing missing; and two that load at once refuse each other.
2. A record is checked against the one before it before it is written. One that is there already is passed over if its
   chain is the same, and refused if it is not.
3. A backend begins every stream at 1. Where the source begins later, placeholders stand for what it has no more, of the
   kind of a deletion: meanwhile such a workflow counts as absent. Then come its keyframe, its records, and the
   placeholders are trimmed. A keyframe that comes before its record is passed over by whoever reads.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from quire.core import keyframes, record
from quire.engine.actor import DELETED
from quire.engine.moving.paging import at_once, pages
from quire.errors import Conflict, CorruptRecord, IncompatibleFormat
from quire.failpoints import hit
from quire.model import Head, Keyframe, Record
from quire.storage.base import Backend, CellWrite, Expect, Item, Refused
from quire.threads import aside

COPIES = "copies/"
"""How the names of cells begin that tell of copies."""
FORMAT = 1

_RECORDS_MAX = 1000
_STREAMS_MAX = 400
"""In one commit: JetStream takes a thousand messages at once, and a stream may need several."""
_BYTES_MAX = 4 << 20
_AHEAD = 2
"""Commits on their way at once."""
_HEADS_MAX = 100_000
"""Heads remembered; beyond that all are forgotten and asked for again."""
_WHY = "a placeholder: what was here had been removed before the copy"

Base = Callable[[str, int], Awaitable[Keyframe | None]]
"""Asked for the keyframe of a version that a stream begins with. None: that record is gone from the source by now, what
it begins with instead is still to come. Raises CorruptRecord where the record is there and the keyframe is not."""


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the cell in the target says.

    position: of the source; everything up to there was loaded.  batch: counts commits, so that no two values are alike.
    last: stream, version and chain in hex of the last record.  verified: position of the target up to which was read
    back.  unclean: something was taken out whose traces are still to be scrubbed.
    """

    format: int = FORMAT
    position: int = 0
    batch: int = 0
    last: tuple[str, int, str] | None = None
    verified: int = 0
    unclean: bool = False


class _Gap(NamedTuple):
    """A stream whose records before this one are gone, and the keyframe that stands for them."""

    first: Record
    frame: Keyframe


class Loader:
    """Loads into one target. `async with` it, `begin`, then `take` pages, then `flush`.

    After an error it is done with: the target is to `recover`, and a new one goes on where this one stood.
    """

    def __init__(self, target: Backend, source_id: str, base: Base) -> None:
        """source_id: names the source, the same each time it is loaded."""
        self.cell = COPIES + source_id
        self.versions = 0
        self.size_bytes = 0
        self.progress = Progress()
        self._target = target
        self._base = base
        self._stored: bytes | None = None
        self._heads: dict[str, Head] = {}
        self._flying: deque[asyncio.Task[None]] = deque()
        self._latest: Record | None = None
        self._clear()

    def _clear(self) -> None:
        self._batch: list[Record] = []
        self._size = 0
        self._before: dict[str, Head] = {}
        self._trims: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        """Nothing yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is on its way."""
        await asyncio.gather(*self._flying, return_exceptions=True)

    @property
    def begun(self) -> bool:
        """Whether the target was loaded from this source before."""
        return self._stored is not None

    async def begin(self) -> Progress:
        """Return how far loading came before. Nothing is written. Raises IncompatibleFormat."""
        found = await self._target.cell(self.cell)
        self._stored = None if found is None else found.value
        self.progress = Progress() if found is None else _progress(self.cell, found.value)
        return self.progress

    def again(self) -> None:
        """Go on from the source's beginning, passing over what is there: its positions are not what they were."""
        self.progress = msgspec.structs.replace(self.progress, position=0, last=None)
        self._latest = None

    # records

    async def take(self, records: Sequence[Record]) -> None:
        """Load records that follow, in the order of the source's positions.

        Raises CorruptRecord for one that does not follow from what is before it, Conflict where the target has other
        records or somebody else writes there, StorageError.
        """
        if not records:
            return
        await self._learn({r.stream for r in records})
        left = await self._unknown(records)
        gaps, left = await self._gaps(left)
        await self._bridge(gaps)
        firsts = {gap.first.stream: gap.first for gap in gaps}
        for entry in left:
            head = self._heads[entry.stream]
            if firsts.get(entry.stream) is entry:
                self._trims[entry.stream] = head.version
            else:
                record.check(entry, head.version + 1, head.chain)
            self._latest = entry
            await self._add(entry)
            self.versions += 1
            self.size_bytes += entry.size_bytes
        self._latest = records[-1]

    @property
    def position(self) -> int:
        """Up to where records of the source were taken; `flush` has them in the target."""
        return self.progress.position if self._latest is None else self._latest.position

    async def flush(self) -> None:
        """Have everything that was taken in the target, durably."""
        if self._batch or self.position != self.progress.position or not self.begun:
            await self._send()
        while self._flying:
            await self._landed()

    async def _learn(self, streams: set[str]) -> None:
        """Know the head of each stream."""
        if len(self._heads) + len(streams) > _HEADS_MAX:
            await self.flush()
            self._heads.clear()
        missing = sorted(streams - self._heads.keys())
        if missing:
            self._heads |= {h.stream: h for h in await self._target.heads(missing)}

    async def _unknown(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that the target does not have. Raises Conflict where it has others instead."""
        there: dict[str, list[Record]] = {}
        for entry in records:
            if entry.version <= self._heads[entry.stream].version:
                there.setdefault(entry.stream, []).append(entry)
        if not there:
            return list(records)
        await self.flush()
        for stream, known in there.items():
            after, upto = known[0].version - 1, known[-1].version
            chains = {r.version: r.chain async for r in pages(self._target, stream, after, upto)}
            for entry in known:
                if chains.get(entry.version, entry.chain) != entry.chain:
                    raise differs(stream, entry.version)
        return [r for r in records if r.version > self._heads[r.stream].version]

    async def _gaps(self, records: list[Record]) -> tuple[list[_Gap], list[Record]]:
        """Return where something is missing before a record, and what is to be loaded."""
        gaps: dict[str, _Gap] = {}
        met: set[str] = set()
        left: list[Record] = []
        for entry in records:
            if entry.stream not in met:
                if await self._follows(entry):
                    met.add(entry.stream)
                else:
                    frame = await self._base(entry.stream, entry.version)
                    if frame is None:
                        continue
                    met.add(entry.stream)
                    gaps[entry.stream] = _Gap(entry, await aside(_fitting, entry, frame))
            left.append(entry)
        return list(gaps.values()), left

    async def _follows(self, entry: Record) -> bool:
        """Whether a record follows what the target has; it does not where that is a placeholder."""
        head = self._heads[entry.stream]
        if entry.version != head.version + 1:
            return False
        if head.version == 0 or head.kind != DELETED or record.expected_chain(entry, head.chain) == entry.chain:
            return True
        await self.flush()
        last = await self._target.read(entry.stream, after=head.version - 1, upto=head.version)
        return not last or not _stands_in(last[0])

    async def _bridge(self, gaps: Sequence[_Gap]) -> None:
        """Put placeholders and keyframes where streams begin later than at 1."""
        if not gaps:
            return
        for gap in gaps:
            head = self._heads[gap.first.stream]
            while head.version < gap.first.version - 1:
                stand_in = _placeholder(head)
                await self._add(stand_in)
                head = self._heads[gap.first.stream]
        await self.flush()
        hit("load:placeholders")
        await at_once(self._target.put_keyframe(gap.frame) for gap in gaps)
        hit("load:framed")

    async def _add(self, entry: Record) -> None:
        head = self._heads[entry.stream]
        if entry.stream not in self._before:
            self._before[entry.stream] = head
        self._heads[entry.stream] = Head(entry.stream, entry.version, entry.chain, entry.kind)
        self._batch.append(entry)
        self._size += entry.size_bytes
        if len(self._batch) >= _RECORDS_MAX or self._size >= _BYTES_MAX or len(self._before) >= _STREAMS_MAX:
            await self._send()

    async def _send(self) -> None:
        """Commit what was gathered, beside what is on its way."""
        batch, before, trims = self._batch, self._before, self._trims
        now, latest = self.progress, self._latest
        if latest is not None:
            last = (latest.stream, latest.version, latest.chain.hex())
            now = msgspec.structs.replace(now, position=latest.position, last=last)
        expect = [Expect(h.stream, h.version, h.chain) for h in before.values()]
        self._fly(now, expect, batch, trims=trims)
        self._clear()
        while len(self._flying) > (0 if trims else _AHEAD):
            await self._landed()

    def _fly(
        self,
        now: Progress,
        expect: Sequence[Expect] = (),
        records: Sequence[Record] = (),
        cells: Sequence[CellWrite] = (),
        trims: dict[str, int] | None = None,
    ) -> None:
        """Begin a commit that also says how far we are; calls take effect in their order."""
        now = msgspec.structs.replace(now, batch=self.progress.batch + 1)
        value = msgspec.json.encode(now)
        item = Item(expect, records, (CellWrite(self.cell, self._stored, value), *cells))
        self.progress, self._stored = now, value
        self._flying.append(asyncio.get_running_loop().create_task(self._commit(item, trims or {})))

    async def _commit(self, item: Item, trims: dict[str, int]) -> None:
        hit("load:commit")
        (outcome,) = await self._target.commit([item])
        if isinstance(outcome, Refused):
            raise self._refused(outcome)
        hit("load:committed")
        await at_once(self._target.trim(stream, upto) for stream, upto in trims.items())
        hit("load:trimmed")

    def _refused(self, outcome: Refused) -> Conflict:
        if self.cell in outcome.cells:
            return Conflict("another copy from the same source is writing to this store: let one of them finish")
        names = ", ".join([*(h.stream for h in outcome.heads), *outcome.cells][:3])
        return Conflict(f"somebody else wrote to {names} while it was copied: stop who writes there, and copy again")

    async def _landed(self) -> None:
        """Wait for the commit that was sent first. Those behind one that failed do not happen."""
        await asyncio.shield(self._flying[0])
        self._flying.popleft()

    # beside the records

    async def note(self, *, verified: int | None = None, unclean: bool | None = None) -> None:
        """Write down what was reached beside the position."""
        await self.flush()
        now = self.progress
        now = now if verified is None else msgspec.structs.replace(now, verified=verified)
        now = now if unclean is None else msgspec.structs.replace(now, unclean=unclean)
        self._fly(now)
        await self.flush()

    async def set_cells(self, writes: Sequence[CellWrite]) -> None:
        """Set cells that hold what is expected. Raises Conflict if one does not."""
        await self.flush()
        for start in range(0, len(writes), _STREAMS_MAX):
            self._fly(self.progress, cells=writes[start : start + _STREAMS_MAX])
            await self.flush()

    async def place_before(self, entry: Record) -> int | None:
        """Return the position in the target just before a record of the source; None where it is not there."""
        found = await self._target.read(entry.stream, after=entry.version - 1, upto=entry.version)
        return found[0].position - 1 if found and found[0].chain == entry.chain else None

    async def place(self) -> int:
        """Return the position in the target of the last record that was loaded."""
        if self.progress.last is not None:
            stream, version, chain = self.progress.last
            found = await self._target.read(stream, after=version - 1, upto=version)
            if found and found[0].chain.hex() == chain:
                return found[0].position
        return await self._target.latest()


def differs(stream: str, version: int) -> Conflict:
    """Say that the two stores do not hold the same history."""
    return Conflict(
        f"{stream}: the target has another version {version} than the source, so it is no copy of it; "
        "nothing of it was touched: copy to a new store or namespace"
    )


def _progress(cell: str, value: bytes) -> Progress:
    try:
        found = msgspec.json.decode(value, type=Progress)
    except msgspec.MsgspecError as cause:
        raise CorruptRecord(f"{cell} holds no progress of a copy ({cause}); copy to a new store", at=cell) from cause
    if found.format != FORMAT:
        raise IncompatibleFormat(
            f"{cell} is of format {found.format}: upgrade quire to go on with this copy",
            found=found.format,
            supported=FORMAT,
        )
    return found


def _placeholder(head: Head) -> Record:
    """Return what stands for the version after a head; its chain follows."""
    return record.seal(head.stream, head.version + 1, 0, "quire", _WHY, DELETED, b"[]", head.chain)


def _stands_in(entry: Record) -> bool:
    return (entry.author, entry.message, entry.kind, entry.body) == ("quire", _WHY, DELETED, b"[]")


def _fitting(first: Record, frame: Keyframe) -> Keyframe:
    """Return the keyframe that a stream begins with, which is whole and of its first record. Raises CorruptRecord."""
    if (frame.stream, frame.version, frame.chain) != (first.stream, first.version, first.chain):
        at = f"{first.stream}@{first.version}"
        raise CorruptRecord(f"{at}: the keyframe that this log begins with does not belong to it", at=at)
    keyframes.state_of(frame)
    return frame
