"""Backends that break one promise each. A checker that lets one of them pass proves nothing.

Each is the reference backend with one plausible mistake. `MUTANTS` says which promise of the conformance
suite has to notice it, and whether the state machine has to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any

import msgspec

from quire.model import Record
from quire.storage.base import Item, Outcome, Refused, Tally, Vitals
from quire.storage.memory import MemoryBackend


class IgnoresHeads(MemoryBackend):
    """Commits whatever the head is."""

    def _refusal(self, space: Any, item: Item) -> Refused | None:
        return super()._refusal(space, msgspec.structs.replace(item, expect=()))


class IgnoresChains(MemoryBackend):
    """Compares the version of a head and not its chain."""

    def _refusal(self, space: Any, item: Item) -> Refused | None:
        refused = super()._refusal(space, item)
        versions = {e.stream: e.version for e in item.expect}
        moved = tuple(h for h in refused.heads if h.version != versions[h.stream]) if refused else ()
        return Refused(moved, refused.cells) if refused and (moved or refused.cells) else None


class IgnoresCells(MemoryBackend):
    """Sets cells whatever they hold."""

    def _refusal(self, space: Any, item: Item) -> Refused | None:
        return super()._refusal(space, msgspec.structs.replace(item, cells=()))


class StoresHalf(MemoryBackend):
    """Sets the cells of an item that is refused for its streams."""

    def _refusal(self, space: Any, item: Item) -> Refused | None:
        refused = super()._refusal(space, item)
        if refused and not refused.cells:
            for write in item.cells:
                self._set(space, write)
        return refused


class StopsAtRefusal(MemoryBackend):
    """Leaves out the items that come after a refused one."""

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Commit until one is refused."""
        outcomes: list[Outcome] = []
        for item in items:
            stopped = any(isinstance(outcome, Refused) for outcome in outcomes)
            outcomes += [Refused()] if stopped else await super().commit([item])
        return outcomes


class OvertakesItself(MemoryBackend):
    """Lets a call that came later go first."""

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Wait once in every other call."""
        self._turn = not getattr(self, "_turn", False)
        if self._turn:
            await asyncio.sleep(0)
        return await super().commit(items)


class ReusesPositions(MemoryBackend):
    """Takes the newest record there is for the newest there was."""

    async def drop(self, stream: str) -> None:
        """Drop, and count on from what is left."""
        await super().drop(stream)
        spaces = self._place.spaces.values()
        self._place.position = max((r.position for space in spaces for r in space.feed), default=0)


class TrimsTheHead(MemoryBackend):
    """Trims as far as it is told."""

    async def trim(self, stream: str, upto: int) -> int:
        """Trim the head as well."""
        trimmed = await super().trim(stream, upto)
        with self._held() as space:
            left = space.streams.get(stream, [])
            if left and left[-1].version <= upto:
                space.streams[stream] = []
                space.feed = [r for r in space.feed if r.stream != stream]
                return trimmed + 1
        return trimmed


class KeepsKeyframes(MemoryBackend):
    """Drops a stream's records only."""

    async def drop(self, stream: str) -> None:
        """Drop, and leave the keyframes."""
        with self._held() as space:
            frames = space.keyframes.get(stream)
        await super().drop(stream)
        if frames:
            self._space.keyframes[stream] = frames


class RewritesByNumber(MemoryBackend):
    """Rewrites whatever has the version, another history's as well."""

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Take the chain that is there for the one that was meant."""
        found = {r.stream: await self.read(r.stream) for r in records}
        there = {(r.stream, r.version): r.chain for group in found.values() for r in group}
        meant = [msgspec.structs.replace(r, chain=there.get((r.stream, r.version), r.chain)) for r in records]
        return await super().rewrite(meant)


class RewritesOneView(MemoryBackend):
    """Rewrites the stream and forgets the feed."""

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Leave the feed as it was."""
        before = list(self._space.feed)
        count = await super().rewrite(records)
        self._space.feed = before
        return count


class ReadsPatterns(MemoryBackend):
    """Takes a prefix for a pattern."""

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """List by pattern, with SQL's wildcards."""
        pattern = prefix.replace("%", "*").replace("_", "?") + "*"
        names = await super().streams(after=after)
        return [name for name in names if fnmatch(name, pattern)][:limit]


class CountsWhatEnded(MemoryBackend):
    """Counts streams whatever their newest record is."""

    async def tally(self, prefix: str, *, but: str) -> Tally:  # noqa: ARG002 - that is the mistake
        """Count all."""
        return await super().tally(prefix, but="")


class FeedsAgain(MemoryBackend):
    """Begins the feed at a position instead of after it."""

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Feed one too many."""
        return await super().feed(after - 1, limit=limit)


class SharesBlobs(MemoryBackend):
    """Forgets the namespace when it looks for a blob."""

    async def blob(self, name: str) -> bytes | None:
        """Look everywhere."""
        with self._held():
            return next((s.blobs[name] for s in self._place.spaces.values() if name in s.blobs), None)


class NeverExpires(MemoryBackend):
    """Takes no notice of the clock."""

    def _expired(self, cell: object) -> bool:  # noqa: ARG002 - that is the mistake
        return False


class ReplacesText(MemoryBackend):
    """Takes bodies for text."""

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store what is left of the bytes as text."""
        return await super().commit([_as_text(item) for item in items])


class WaitsForNothing(MemoryBackend):
    """Answers at once instead of waiting for a commit."""

    async def changed(self, after: int, *, timeout_s: float) -> int:  # noqa: ARG002 - that is the mistake
        """Do not wait."""
        return await self.latest()


class LeavesATrace(MemoryBackend):
    """Writes something to see whether it can."""

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """Look, and leave a blob."""
        await self.put_blob("probe", b"1")
        return await super().vitals(timeout_s=timeout_s)


class MixesUpFigures(MemoryBackend):
    """Tells what is taken for what is free."""

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """Take one figure for the other."""
        found = await super().vitals(timeout_s=timeout_s)
        return msgspec.structs.replace(found, disk_free_bytes=2000, disk_total_bytes=1000)


class NeverCloses(MemoryBackend):
    """Goes on after it was closed."""

    @contextmanager
    def _held(self) -> Generator[Any]:
        with self._place.lock:
            yield self._space


MUTANTS: dict[type[MemoryBackend], tuple[str, bool]] = {
    IgnoresHeads: ("test_refused_where_the_version_is_another", True),
    IgnoresChains: ("test_refused_where_the_chain_is_another", True),
    IgnoresCells: ("test_cell_is_set_where_it_holds_what_is_expected", True),
    StoresHalf: ("test_item_refused_for_one_stream_stores_nothing", True),
    StopsAtRefusal: ("test_refused_item_does_not_stop_the_others_of_its_call", True),
    OvertakesItself: ("test_calls_take_effect_in_the_order_they_were_made", False),
    ReusesPositions: ("test_positions_are_not_reused_after_drop", True),
    TrimsTheHead: ("test_trim_never_removes_the_head", True),
    KeepsKeyframes: ("test_drop_removes_records_and_keyframes_of_that_stream_only", True),
    RewritesByNumber: ("test_rewriting_finds_records_by_stream_version_and_chain", False),
    RewritesOneView: ("test_rewritten_records_have_another_body_and_nothing_else", True),
    ReadsPatterns: ("test_streams_are_chosen_by_prefix_after_and_limit", True),
    CountsWhatEnded: ("test_a_tally_counts_streams_by_prefix_and_kind_of_head", True),
    FeedsAgain: ("test_feed_is_in_commit_order_and_pages", True),
    SharesBlobs: ("test_namespaces_see_nothing_of_each_other", False),
    NeverExpires: ("test_cell_expires_by_the_clock_of_the_backend", True),
    ReplacesText: ("test_bodies_may_be_any_bytes", True),
    WaitsForNothing: ("test_changed_wakes_on_a_commit_of_another_handle", False),
    LeavesATrace: ("test_asking_for_vitals_changes_nothing_even_when_given_up", False),
    MixesUpFigures: ("test_vitals_are_figures_that_can_be_true", False),
    NeverCloses: ("test_closed_handle_refuses_everything", False),
}
"""Mutant to the promise that must be found broken, and whether the machine must find it too."""


def _as_text(item: Item) -> Item:
    records = (msgspec.structs.replace(r, body=r.body.decode(errors="replace").encode()) for r in item.records)
    return msgspec.structs.replace(item, records=tuple(records))
