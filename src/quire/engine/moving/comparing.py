"""Comparing two stores: whether one may become a copy of the other, and whether it did.

A chain stands for all that is before it. So where the heads of a stream have the same chain, and what was written to the
target is read back and follows link by link, both hold the same history. What a chain does not cover, the body of a record
that something was taken out of, is compared byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.core import record
from quire.engine.moving.loading import differs
from quire.engine.moving.paging import at_once, feed, names
from quire.errors import Conflict, CorruptRecord
from quire.model import GENESIS, REDACTED, Head, Record
from quire.storage.base import Backend

_PAGE = 1000
_HEADS_MAX = 100_000
"""Chains remembered while reading back; beyond that all are forgotten and read again."""
_PROBLEMS_MAX = 20
"""Problems told of; who has more has seen enough."""


async def check_target(source: Backend, target: Backend, *, begun: bool) -> None:
    """Make sure that what the target has of the source's streams is the beginning of what the source has.

    begun: it was loaded from this source before, so it may have more of what was trimmed there.
    Raises Conflict. Cost: the heads of all streams, one record for each that is behind.
    """
    if not await target.streams(limit=1):
        return
    async for page in names(source):
        ours, theirs = await source.heads(page), await target.heads(page)
        behind: list[Head] = []
        for head, found in zip(ours, theirs, strict=True):
            if found.version > head.version:
                raise Conflict(
                    f"{found.stream}: the target is at version {found.version}, the source at {head.version}: the target "
                    "was written to; copy it the other way, or to a new store or namespace"
                )
            if found.version == head.version and found.chain != head.chain:
                raise differs(found.stream, found.version)
            if 0 < found.version < head.version:
                behind.append(found)
        same = await at_once(_is_there(source, found, begun=begun) for found in behind)
        for found, there in zip(behind, same, strict=True):
            if not there:
                raise differs(found.stream, found.version)


async def _is_there(source: Backend, found: Head, *, begun: bool) -> bool:
    """Whether a head of the target is in the history of the source. Trimmed there, it counts if the copy was begun."""
    known = await source.read(found.stream, after=found.version - 1, upto=found.version)
    return known[0].chain == found.chain if known else begun


class Comparison:
    """What was found when a copy was looked at. problems: sentences; empty when it is one."""

    def __init__(self, problems: Sequence[str] = ()) -> None:
        """problems: that are known already."""
        self.streams = 0
        self.verified = 0
        self.beyond: list[str] = []
        self.problems = list(problems)

    def found(self, problem: str) -> None:
        """Note a problem, if there are not too many of them yet."""
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(problem)

    async def heads(self, source: Backend, target: Backend, position: int) -> None:
        """Compare what the source had at a position with the target, stream by stream."""
        known: set[str] = set()
        async for page in names(source):
            known.update(page)
            for wanted, found in zip(await source.heads(page), await target.heads(page), strict=True):
                self.streams += found.version > 0
                if (wanted.version, wanted.chain) != (found.version, found.chain):
                    problem = await _problem(source, wanted, found, position)
                    if problem:
                        self.found(problem)
        async for page in names(target):
            self.beyond += [name for name in page if name not in known]

    async def read_back(self, source: Backend, target: Backend, after: int) -> int:
        """Read what the target holds after a position of its own, and check every link; return up to where.

        After `heads`, which tells what is not of the source.
        """
        chains: dict[str, tuple[int, bytes]] = {}
        others = set(self.beyond)
        async for page in feed(target, after):
            after = page[-1].position
            redacted: list[Record] = []
            for entry in page:
                if entry.stream in others:
                    continue
                version, chain = chains.get(entry.stream) or await _before(target, entry)
                try:
                    if version or entry.version == 1:  # a trimmed log begins with a link that nothing is known of
                        record.check(entry, version + 1, chain)
                except CorruptRecord as error:
                    self.found(f"in the target, {error}")
                chains[entry.stream] = (entry.version, entry.chain)
                self.verified += 1
                if entry.body.startswith(REDACTED):
                    redacted.append(entry)
            await self._same_bodies(source, redacted)
            if len(chains) > _HEADS_MAX:
                chains.clear()
        return after

    async def _same_bodies(self, source: Backend, entries: Sequence[Record]) -> None:
        wanted = await at_once(source.read(e.stream, after=e.version - 1, upto=e.version) for e in entries)
        for entry, known in zip(entries, wanted, strict=True):
            if known and known[0].chain == entry.chain and known[0].body != entry.body:
                self.found(f"{entry.stream} v{entry.version}: what a redaction left of it differs from the source")


async def _before(target: Backend, entry: Record) -> tuple[int, bytes]:
    """Return version and chain before a record; 0 where nothing is there."""
    if entry.version == 1:
        return 0, GENESIS
    found = await target.read(entry.stream, after=entry.version - 2, upto=entry.version - 1)
    return (found[0].version, found[0].chain) if found else (0, GENESIS)


async def _problem(source: Backend, wanted: Head, found: Head, position: int) -> str | None:
    """Return what is wrong with a stream whose heads differ; None where the source only went on after the position."""
    if wanted.version == 0:  # dropped while we looked
        return None
    if found.version > wanted.version:
        return f"{found.stream}: the target is at version {found.version}, the source at {wanted.version}"
    there = await source.read(found.stream, after=found.version - 1, upto=found.version) if found.version else []
    if (there and there[0].chain != found.chain) or found.version == wanted.version:
        return f"{found.stream}: version {found.version} of the target is another than that of the source"
    following = await source.read(found.stream, after=found.version, limit=1)
    if following and following[0].position <= position:
        return f"{found.stream}: the target ends at version {found.version}, the source went on before {position}"
    return None
