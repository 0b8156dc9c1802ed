"""The log as it is read from JetStream, and what is taken out of it again.

A message cannot be changed. So a run that is rewritten, or trimmed in its middle, gets a replacement in the stream
beside the log, and is erased; where it was the newest on its subject, a message without records takes its place first,
so that heads and expectations go on from there. The replacement decides: from when it is there, it is what is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from quire.model import Head, Record
from quire.storage import _nats_rows as rows
from quire.storage._nats_rows import PLACES, About, Stored
from quire.storage._nats_shelf import Out, Shelf
from quire.storage._nats_wire import Moved
from quire.storage._nats_writer import Places
from quire.storage.base import PAGE_BYTES, more_may_follow

_PAGE = 256
_ENDS_MAX = 100_000
"""Streams of which the newest run that was read is remembered."""
_QUIET = "quire-quiet"
"""Where the stream's metadata say which of its last messages are no news."""


class Run(NamedTuple):
    """The records of a message, or of what replaces it. of: the sequence of the message, which may be gone."""

    stream: str
    of: int
    about: About
    records: list[Record]

    @property
    def item(self) -> int:
        """The sequence of the first run of its item."""
        return self.of - self.about.offset


class Log:
    """Reading and removing, in one namespace."""

    def __init__(self, log: Shelf, side: Shelf, places: Places) -> None:
        self._log = log
        self._side = side
        self._places = places
        self._replaced: dict[int, tuple[str, int]] = {}
        """The sequence of a run to its stream's tokens and the sequence of what replaces it."""
        self._seen = 0
        self._ends: dict[str, tuple[int, int]] = {}
        """The newest run of a stream that was read: the last version in it, and its sequence."""

    # what replaces

    async def _refresh(self) -> None:
        """Learn of replacements that came since."""
        pattern = self._places.beside("o", "*.*.*")
        newest = await self._side.newest(pattern)
        if newest is None or newest.sequence < self._seen:
            self._replaced, self._seen = {}, 0
        more = newest is not None and newest.sequence > self._seen
        while more:
            page, more = await self._side.following(pattern, self._seen + 1, _PAGE)
            for message in page:
                self._replaced[message.about.of] = (_tokens(message.subject, 1), message.sequence)
                self._seen = message.sequence

    async def _replacement(self, of: int) -> Stored | None:
        found = await self._side.get(self._replaced[of][1])
        if found is None:
            del self._replaced[of]  # dropped, or replaced once more: then the next refresh knows
        return found

    async def _run(self, stream: str, message: Stored, shelf: Shelf) -> Run:
        of = message.about.of or message.sequence
        data = await shelf.whole(message) if message.about.parts else message.data
        return Run(stream, of, message.about, rows.run_of(stream, of, message.about, data))

    async def _page(self, pattern: str, start: int, count: int, only: str | None) -> tuple[list[Run], int, bool]:
        """Return runs from a sequence on, where the next page starts, and whether there is one."""
        await self._refresh()
        page, more = await self._log.following(pattern, start, count)
        runs: dict[int, Run] = {}
        size = 0
        for number, message in enumerate(page, 1):
            if not message.about.quiet and message.sequence not in self._replaced:
                stream = rows.stream_of(_tokens(message.subject))
                runs[message.sequence] = await self._run(stream, message, self._log)
                size += sum(r.size_bytes for r in runs[message.sequence].records)
            if size >= PAGE_BYTES and number < len(page):  # a message may have parts, that its page does not count
                page, more = page[:number], True
                break
        end = page[-1].sequence + 1 if more else 1 << 62
        replaced = [of for of, (two, _) in self._replaced.items() if start <= of < end and only in (None, two)]
        for of in replaced:
            two = self._replaced[of][0]
            message = await self._replacement(of)
            if message is not None:
                runs[of] = await self._run(rows.stream_of(two), message, self._side)
        return [runs[of] for of in sorted(runs)], end, more

    # reading

    async def newest(self, streams: Sequence[str]) -> list[tuple[Head, int]]:
        """Return heads with the sequences of their messages, as of one moment."""
        found = await self._log.last([self._places.record(s) for s in dict.fromkeys(streams)])
        messages = [found.get(self._places.record(s)) for s in streams]
        return [
            (rows.head_of(s, m and m.about), m.sequence if m else 0) for s, m in zip(streams, messages, strict=True)
        ]

    async def runs(self, stream: str, after: int, upto: int | None, limit: int | None) -> list[Run]:
        """Return the runs that hold versions after < version <= upto, until `limit` of them are found."""
        ((head, newest),) = await self.newest([stream])
        last = head.version if upto is None else min(upto, head.version)
        if last <= after:
            return []
        known, sequence = self._ends.get(stream, (0, 0))
        if 0 < known <= after < known + _PAGE:
            found = await self._from(stream, sequence, after, last, limit)
            if found and found[0].about.first <= after + 1:
                return found
        start = await self._start(self._places.record(stream), after, head.version, newest)
        return await self._from(stream, start, after, last, limit)

    async def _from(self, stream: str, start: int, after: int, last: int, limit: int | None) -> list[Run]:
        """Return the runs that hold versions after < version <= last, until `limit` are found, from a sequence on."""
        subject, only = self._places.record(stream), rows.tokens(stream)
        found: list[Run] = []
        count = size = 0
        more = True
        while more and (limit is None or size < PAGE_BYTES):
            page, start, more = await self._page(subject, start, _PAGE, only)
            for run in page:
                inside = sum(after < r.version <= last for r in run.records)
                if inside:
                    found.append(run)
                    count += inside
                    size += sum(r.size_bytes for r in run.records)
                    self._note(stream, run)
                if count >= (last - after if limit is None else limit) or (
                    run.records and run.records[-1].version >= last
                ):
                    return found
        return found

    def _note(self, stream: str, run: Run) -> None:
        if len(self._ends) >= _ENDS_MAX:
            self._ends.clear()
        if run.of > self._ends.get(stream, (0, 0))[1]:
            self._ends[stream] = (run.records[-1].version, run.of)

    async def _start(self, subject: str, after: int, version: int, newest: int) -> int:
        """Return a sequence before which no version > after lies: found by halving, guided by the versions."""
        low, high, low_version = 1, newest, 0
        while after > 0 and low < high:
            share = (after + 1 - low_version) / max(1, version - low_version)
            middle = min(high, max(low + 1, low + int((high - low) * share), low + (high - low) // 64))
            page, _ = await self._log.following(subject, middle, 1)
            if page and page[0].about.first <= after + 1 and page[0].sequence <= high:
                low, low_version = page[0].sequence, page[0].about.first
                if page[0].about.head and page[0].about.head[0] > after:
                    break
            else:
                high = middle - 1
        return low

    async def feed(self, after: int, limit: int) -> list[Record]:
        """Return records of all streams in the order of their positions."""
        found: list[Record] = []
        held: list[Run] = []
        start, more = max(1, after // PLACES), True
        while more and len(found) < limit and not more_may_follow(found, limit):
            page, start, more = await self._page(self._places.records(), start, _PAGE, None)
            runs = held + page
            last = runs[-1].item if runs and more else 0
            held = [run for run in runs if run.item == last]  # the rest of that item may be on the next page
            whole = (r for run in runs if run.item != last for r in run.records if r.position > after)
            found += sorted(whole, key=lambda r: r.position)
        return found[:limit]

    async def streams(self, kind: str | None) -> list[str]:
        """Return the names of streams, of one kind or all, in no order."""
        pattern = self._places.records("*" if kind is None else rows.token(kind))
        return [rows.stream_of(_tokens(subject)) for subject in await self._log.subjects(pattern)]

    async def low(self, stream: str) -> int:
        """Return the first version that is kept."""
        runs, _, _ = await self._page(self._places.record(stream), 1, 8, rows.tokens(stream))
        return next((run.records[0].version for run in runs if run.records), 0)

    async def last_sequence(self) -> int:
        """Return the newest sequence, but for those at the end that are no news."""
        info = await self._log.api("STREAM.INFO")
        last = info["state"]["last_seq"]
        first, _, end = (info["config"].get("metadata") or {}).get(_QUIET, "0-0").partition("-")
        return int(first) - 1 if int(first) <= last <= int(end) else last

    # removing

    async def replace(self, runs: Sequence[Run]) -> None:
        """Put other records in the place of runs, all or none, and erase what was there."""
        if not runs:
            return

        def out() -> list[Out]:
            return [piece for run in runs for piece in self._pieces(run)]

        await self._refresh()
        before = [await self._replacement(run.of) for run in runs if run.of in self._replaced]
        await self._side.patiently(lambda: self._side.put(out()))
        for old in before:
            if old is not None:
                await self._side.erase(range(old.sequence - old.about.parts, old.sequence + 1))
        await self.clear([run.of for run in runs])

    def _pieces(self, run: Run) -> list[Out]:
        """Return the messages that replace a run."""
        place = f"{rows.tokens(run.stream)}.{run.of}"
        base = run.item * PLACES
        data = rows.run_as_stored([(r.position - base, r) for r in run.records])
        about = About(first=run.records[0].version, head=run.about.head, offset=run.about.offset, of=run.of)
        return self._side.pieces(self._places.beside("o", place), self._places.beside("q", place), about, data)

    async def clear(self, of: Sequence[int] | None = None) -> None:
        """Erase messages that are replaced: those given, or all that are left."""
        await self._refresh()
        quiet: list[int] = []
        for sequence in list(self._replaced) if of is None else of:
            message = await self._log.get(sequence)
            if message is None or not message.subject:
                continue
            newest = await self._log.newest(message.subject)
            if newest is not None and newest.sequence == sequence:
                head = message.about.head
                about = About(first=(head[0] if head else 0) + 1, head=head, quiet=True)
                mark = Out(message.subject, rows.header(about), b"", sequence)
                with suppress(Moved):  # somebody wrote behind it, which does as well
                    quiet += await self._log.patiently(partial(self._log.put, [mark]))
            await self._log.erase(range(sequence - message.about.parts, sequence + 1))
        if quiet:
            await self._hush(quiet)

    async def _hush(self, quiet: list[int]) -> None:
        """Write down that the last messages are no news. Losing that wakes who waits, and does no other harm."""
        config = (await self._log.api("STREAM.INFO"))["config"]
        first, _, end = config["metadata"].get(_QUIET, "0-0").partition("-")
        begin = quiet[-1]
        while begin - 1 in quiet:
            begin -= 1
        if int(end) == begin - 1:
            begin = int(first)
        config["metadata"][_QUIET] = f"{begin}-{quiet[-1]}"
        config["metadata"] = {k: v for k, v in config["metadata"].items() if not k.startswith("_nats.")}
        await self._log.api("STREAM.UPDATE", config)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many."""
        ((head, _),) = await self.newest([stream])
        upto = min(upto, head.version - 1)
        runs = await self.runs(stream, 0, upto, None) if upto > 0 else []
        count = sum(r.version <= upto for run in runs for r in run.records)
        if not count:
            return 0
        cut = [
            run._replace(records=[r for r in run.records if r.version > upto])
            for run in runs
            if run.records[0].version <= upto < run.records[-1].version
        ]
        await self.replace(cut)
        await self._erase([run for run in runs if run.records[-1].version <= upto])
        return count

    async def drop(self, stream: str) -> None:
        """Remove a stream, oldest records first, its keyframes before them."""
        ((_, newest),) = await self.newest([stream])
        if not newest:
            return
        two = rows.tokens(stream)
        await self.erase_all(self._side, self._places.beside("k", f"{two}.*"))
        await self._erase(await self.runs(stream, 0, None, None))
        await self.erase_all(self._side, self._places.beside("o", f"{two}.*"))
        await self.erase_all(self._log, self._places.record(stream), newest)
        await self._refresh()
        self._replaced = {of: found for of, found in self._replaced.items() if found[0] != two}

    async def _erase(self, runs: Sequence[Run]) -> None:
        """Erase runs and what replaces them, from the oldest on."""
        for run in runs:
            replaced = self._replaced.pop(run.of, None)
            if replaced is not None:
                await self._side.erase(range(replaced[1] - run.about.parts, replaced[1] + 1))
        await self._log.erase(s for run in runs for s in range(run.of - run.about.parts, run.of + 1))

    async def erase_all(self, shelf: Shelf, pattern: str, upto: int = 1 << 62) -> None:
        """Erase the messages on a subject with their parts, up to a sequence."""
        start, more = 1, True
        while more:
            page, more = await shelf.following(pattern, start, _PAGE)
            if not page:
                return
            start = page[-1].sequence + 1
            await shelf.erase(
                s for m in page if m.sequence <= upto for s in range(m.sequence - m.about.parts, m.sequence + 1)
            )


def _tokens(subject: str, behind: int = 0) -> str:
    """Return the two tokens of the stream in a subject, `behind` tokens before its end."""
    parts = subject.split(".")
    return ".".join(parts[len(parts) - 2 - behind : len(parts) - behind])
