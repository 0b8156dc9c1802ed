"""How a call of `commit` gets into JetStream: as few atomic batches as it can be.

1. Each stream and cell has a subject. A message is taken only if the newest on its subject is the one that was seen.
2. Each batch also moves a subject of this session on by one, from where the batch before it left it. So batches land
   in their order or not at all, and once `fence` has moved that subject, nothing that is still on its way can land. A
   single message on a stream that is there goes without: `fence` moves its own subject on.
3. What is remembered of heads only saves questions: a wrong memory fails at rule 1, and is asked for anew.
4. Items of a call that touch different subjects share a batch. Where it is refused, each goes alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from quire.errors import LimitExceeded, StorageTimeout, StorageUnavailable
from quire.model import Head
from quire.storage import _nats_rows as rows
from quire.storage._nats_rows import About, Stored
from quire.storage._nats_shelf import BATCH_MAX, Out, Shelf
from quire.storage._nats_wire import Again, Moved
from quire.storage.base import Committed, Expect, Item, Outcome, Refused

_HEADS_MAX = 100_000
"""Heads remembered; beyond that all are forgotten and asked for again."""
_BATCH_BYTES = 32 << 20
_TRIES_S = 10.0
_PAUSE_S = 0.01
_SESSION_TTL = "168h"
"""How long the server keeps the mark of a session that commits nothing."""


class Places:
    """The subjects of a namespace."""

    def __init__(self, stream: str, namespace: str) -> None:
        self._log, self._side, self._space = stream, f"{stream}-side", rows.token(namespace)

    def record(self, stream: str) -> str:
        """Of a stream's runs."""
        return f"{self._log}.r.{self._space}.{rows.tokens(stream)}"

    def part(self, stream: str) -> str:
        """Of what did not fit into a message of it."""
        return f"{self._log}.p.{self._space}.{rows.tokens(stream)}"

    def records(self, kind: str = "*") -> str:
        """Of all runs."""
        return f"{self._log}.r.{self._space}.{kind}.*"

    def cell(self, name: str) -> str:
        """Of a cell."""
        return f"{self._log}.c.{self._space}.{rows.token(name)}"

    def cells(self) -> str:
        """Of all cells."""
        return f"{self._log}.c.{self._space}.*"

    def note(self, stream: str) -> str:
        """Of messages that only check a stream's head."""
        return f"{self._log}.x.{self._space}.{rows.tokens(stream)}"

    def beside(self, area: str, rest: str) -> str:
        """Beside the log: k keyframes, b blobs, o what replaces a run; parts of them in q."""
        return f"{self._side}.{area}.{self._space}.{rest}"


class Writer:
    """The writing side of a handle. Calls come one at a time."""

    def __init__(self, shelf: Shelf, places: Places, now_ms: Callable[[], int] | None) -> None:
        self._shelf = shelf
        self._places = places
        self._now_ms = now_ms
        self._heads: dict[str, tuple[Head, int]] = {}
        self._session = secrets.token_hex(10)
        self._mark = 0
        self._lone: tuple[Out, Head] | None = None
        """A message that was sent without a mark and not answered, and the head that it was to follow."""

    def forget(self, stream: str | None = None) -> None:
        """Know nothing of a stream's head any more; without one, of none."""
        if stream is None:
            self._heads.clear()
        else:
            self._heads.pop(stream, None)

    @property
    def _mark_subject(self) -> str:
        return f"{self._shelf.name}.w.{self._session}"

    async def fence(self) -> None:
        """End the session: what was sent in it and has not landed never will."""
        await self._shelf.patiently(self._move_mark)
        if self._lone is not None:
            out, head = self._lone
            about = About(first=head.version + 1, head=(head.version, head.chain.hex(), head.kind), quiet=True)
            stand_in = out._replace(headers=rows.header(about), data=b"")
            with suppress(Moved):  # it landed, or somebody else wrote: it cannot land any more either
                await self._shelf.patiently(lambda: self._shelf.put([stand_in]))
            self._lone = None
        self._session, self._mark = secrets.token_hex(10), 0
        self.forget()

    async def _move_mark(self) -> None:
        await self._shelf.put([Out(self._mark_subject, {"Nats-Rollup": "sub", "Nats-TTL": _SESSION_TTL}, b"ended")])

    async def end(self) -> None:
        """Leave no mark of the session."""
        if self._mark:
            await self._shelf.purge(self._mark_subject)

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order and answer for each."""
        outcomes: dict[int, Outcome] = {}
        waiting: list[tuple[int, Item]] = []
        touched: set[str] = set()
        size = count = 0
        for number, item in enumerate(items):
            subjects = self._subjects(item)
            messages, weight = _weight(item)
            if touched & subjects or count + messages > BATCH_MAX // 2 or size + weight > _BATCH_BYTES:
                await self._flush(waiting, outcomes)
                waiting, size, count = [], 0, 0
                touched.clear()
            waiting.append((number, item))
            touched |= subjects
            size, count = size + weight, count + messages
        await self._flush(waiting, outcomes)
        return [outcomes[number] for number in range(len(items))]

    def _subjects(self, item: Item) -> set[str]:
        return {f"r{e.stream}" for e in item.expect} | {f"c{c.name}" for c in item.cells}

    async def _flush(self, waiting: list[tuple[int, Item]], outcomes: dict[int, Outcome]) -> None:
        """Decide items that touch nothing in common."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TRIES_S
        fresh = moved = False
        while waiting:
            streams = {e.stream for _, item in waiting for e in item.expect}
            checks_only = {e.stream for _, item in waiting if not item.records for e in item.expect}
            await self._learn(streams if fresh else {s for s in streams if s not in self._heads} | checks_only)
            cells, now = await self._cells([c.name for _, item in waiting for c in item.cells])
            refused = {n: found for n, item in waiting if (found := self._refusal(item, cells, now))}
            if refused and not fresh:  # it may be our memory that is wrong
                fresh = True
                continue
            if moved and not refused:
                await self._same_session()
                if len(waiting) > 1:
                    for one in waiting:
                        await self._flush([one], outcomes)
                    return
            moved = False
            outcomes |= refused
            waiting = [(n, item) for n, item in waiting if n not in refused]
            writing = [(n, item) for n, item in waiting if item.records or item.cells]
            outcomes |= {n: Committed(0, 0) for n, item in waiting if not (item.records or item.cells)}
            if not writing:
                return
            try:
                await self._send(writing, cells, outcomes)
                return
            except Moved:
                fresh = moved = True
            except Again:
                fresh = True
                await asyncio.sleep(_PAUSE_S)
            if loop.time() > until:
                raise StorageTimeout(f"{self._shelf.name}: others kept writing first for {_TRIES_S:g} s; try again")
            waiting = writing

    async def _same_session(self) -> None:
        """Raise StorageUnavailable if it was our own session that moved: fenced, or forgotten by the server."""
        mark = await self._shelf.newest(self._mark_subject)
        if (mark.sequence if mark else 0) != self._mark:
            raise StorageUnavailable(f"{self._shelf.name}: the session was ended; `recover` has to begin a new one")

    async def _learn(self, streams: set[str]) -> None:
        """Ask for heads."""
        if len(self._heads) + len(streams) > _HEADS_MAX:
            self._heads.clear()
        by_subject = {self._places.record(s): s for s in streams}
        found = await self._shelf.last(list(by_subject)) if streams else {}
        for subject, stream in by_subject.items():
            last = found.get(subject)
            self._heads[stream] = (rows.head_of(stream, last and last.about), last.sequence if last else 0)

    async def _cells(self, names: list[str]) -> tuple[dict[str, Stored], int]:
        """Ask for cells, and for the time where it matters."""
        if not names:
            return {}, 0
        found = await self._shelf.last([self._places.cell(name) for name in names])
        cells = {name: found[s] for name in names if (s := self._places.cell(name)) in found}
        if self._now_ms is not None:
            return cells, self._now_ms()
        expiring = any(c.about.ttl is not None for c in cells.values())
        return cells, await now_of(self._shelf) if expiring else 0

    def _refusal(self, item: Item, cells: dict[str, Stored], now: int) -> Refused | None:
        heads = [self._heads[e.stream][0] for e in item.expect]
        moved = tuple(
            h for h, e in zip(heads, item.expect, strict=True) if (h.version, h.chain) != (e.version, e.chain)
        )
        taken = tuple(c.name for c in item.cells if value_of(c.name, cells.get(c.name), now) != c.expected)
        return Refused(moved, taken) if moved or taken else None

    async def _send(
        self, writing: list[tuple[int, Item]], cells: dict[str, Stored], outcomes: dict[int, Outcome]
    ) -> None:
        """Put items as one batch, and remember where it left things."""
        mark = Out(self._mark_subject, {"Nats-Rollup": "sub", "Nats-TTL": _SESSION_TTL}, b"", self._mark)
        out = [mark]
        firsts: dict[int, int] = {}
        ends: list[tuple[int, str, Head]] = []
        for number, item in writing:
            firsts[number] = self._add(out, item, cells, ends)
        if len(out) > BATCH_MAX:
            raise LimitExceeded(
                f"an item needs {len(out)} messages, and a batch has room for {BATCH_MAX}; write less at once",
                limit="batch_messages",
                allowed=BATCH_MAX,
                found=len(out),
            )
        first = writing[0][1]
        if len(out) == 2 and first.records and out[1].expected:
            # One message on a stream that is there is its own fence: it lands behind the one it expects, or never.
            self._lone = (out[1], self._heads[first.expect[0].stream][0])
            sequences = [0, *await self._alone(out[1])]
        else:
            sequences = await self._shelf.put(out)
            self._mark = sequences[0]
        for place, stream, head in ends:
            self._heads[stream] = (head, sequences[place])
        for number, item in writing:
            base = sequences[firsts[number]] * rows.PLACES
            outcomes[number] = Committed(base, base + len(item.records) - 1) if item.records else Committed(0, 0)

    async def _alone(self, out: Out) -> list[int]:
        try:
            sequences = await self._shelf.put([out])
        except (Moved, Again):
            self._lone = None
            raise
        self._lone = None
        return sequences

    def _add(self, out: list[Out], item: Item, cells: dict[str, Stored], ends: list[tuple[int, str, Head]]) -> int:
        """Add the messages of an item; return which of all is that of its first run."""
        if len(item.records) > rows.PLACES:
            raise LimitExceeded(
                f"an item of {len(item.records)} records; write fewer than {rows.PLACES} at once",
                limit="item_records",
                allowed=rows.PLACES,
                found=len(item.records),
            )
        runs: dict[str, list[tuple[int, Any]]] = {}
        for place, record in enumerate(item.records):
            runs.setdefault(record.stream, []).append((place, record))
        out += [self._check(expect) for expect in item.expect if expect.stream not in runs]
        first = -1
        for stream, run in runs.items():
            newest = run[-1][1]
            head = Head(stream, newest.version, newest.chain, newest.kind)
            data = rows.run_as_stored(run)
            about = About(first=run[0][1].version, head=(head.version, head.chain.hex(), head.kind))
            pieces = self._shelf.pieces(self._places.record(stream), self._places.part(stream), about, data)
            place = len(out) + len(pieces) - 1
            first = place if first < 0 else first
            offset = place - first
            about = About(first=about.first, head=about.head, offset=offset, parts=len(pieces) - 1)
            last = pieces[-1]._replace(headers=rows.header(about), expected=self._heads[stream][1])
            out += [*pieces[:-1], last]
            ends.append((place, stream, head))
        for write in item.cells:
            held = cells.get(write.name)
            until = None
            if write.ttl_ms is not None and self._now_ms is not None:
                until = self._now_ms() + write.ttl_ms
            about = About(gone=write.value is None, ttl=write.ttl_ms, until=until)
            data = b"" if write.value is None else rows.summed(write.name, write.value)
            headers = rows.header(about) | {"Nats-Rollup": "sub"}
            out.append(Out(self._places.cell(write.name), headers, data, held.sequence if held else 0))
        return first

    def _check(self, expect: Expect) -> Out:
        """Return a message that is there only to check a head that the item does not move."""
        checked = self._places.record(expect.stream)
        sequence = self._heads[expect.stream][1]
        return Out(self._places.note(expect.stream), {"Nats-Rollup": "sub"}, b"", sequence, checked)


def _weight(item: Item) -> tuple[int, int]:
    """Return about how many messages an item takes, and how many bytes."""
    size = sum(r.size_bytes + 200 for r in item.records) + sum(len(c.value or b"") for c in item.cells)
    return len(item.expect) + len(item.cells) + size // 500_000, size


def expires_of(cell: Stored) -> int | None:
    """Return when a cell ends: UTC milliseconds by the server's clock, or by the one it was written with."""
    if cell.about.until is not None:
        return cell.about.until
    return None if cell.about.ttl is None else cell.time_ms + cell.about.ttl


def value_of(name: str, cell: Stored | None, now: int) -> bytes | None:
    """Return what a cell holds, None where it is absent or expired."""
    if cell is None or cell.about.gone:
        return None
    end = expires_of(cell)
    return None if end is not None and end <= now else rows.unsummed("cell", name, cell.data)


async def now_of(shelf: Shelf) -> int:
    """Return the time of the server that leads, UTC milliseconds."""
    return rows.milliseconds((await shelf.api("STREAM.INFO"))["ts"])
