"""Any backend beside the reference: whatever the sequence of calls, both answer the same.

    class MyMachine(BackendMachine):
        async def open(self, namespace: str) -> Backend:
            return await open_mine(self.place / "store", namespace=namespace, now_ms=self.now_ms)

    TestMyMachine = MyMachine.TestCase

Positions may differ, because a backend is free to leave gaps between items; their order may not.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quire.model import Head, Keyframe, Record
from quire.storage.base import Backend, CellWrite, Committed, Expect, Item, Outcome
from quire.storage.memory import open_memory

T = TypeVar("T")

MACHINE = settings(max_examples=20, stateful_step_count=30, deadline=None)
"""Enough to run with every change; a soak raises both."""

NAMESPACES = ("one", "two")
STREAMS = ("w/a", "w/b", "w/%", "v/\u00e9\U0001f600")
CELLS = ("lease/a", "cursor")
PREFIXES = ("", "w/", "w/%", "w/_", "lease/", "lease/_", "x")
BODIES = (
    *(b"[]", b"", b"\x00", b"\xff", '["\u00e9"]'.encode()),
    *(b"tides " * 1000, sha256(b"").digest() * 100),  # one that compresses well, one that does not
)

# The sets are small and lean to what is there: calls that have nothing to do with each other prove nothing.
a_namespace = st.sampled_from(("one", "one", "one", "two"))
a_pick = st.integers(0, 9)
a_stream = st.sampled_from(STREAMS)
a_body = st.sampled_from(BODIES) | st.binary(max_size=20)
a_version = st.integers(-1, 9)
a_limit = st.none() | st.integers(0, 4)
a_page = st.just(1000) | st.integers(0, 4)
a_prefix = st.sampled_from(PREFIXES)

a_part = st.tuples(
    a_stream,
    st.sampled_from(["head", "head", "head", "behind", "ahead", "chain"]),
    st.lists(a_body, max_size=3),
    st.sampled_from(["create", "change", "delete"]),
)
a_cell = st.tuples(
    st.sampled_from(CELLS),
    st.sampled_from(["held", "held", "other"]),
    st.sampled_from([b"1", b"2", b"", None]),
    st.sampled_from([None, None, 100, 300, 0, -1]),
)
an_item = st.tuples(
    st.lists(a_part, max_size=3, unique_by=lambda part: part[0]),
    st.lists(a_cell, max_size=2, unique_by=lambda part: part[0]),
)

Part = tuple[str, str, list[bytes], str]
CellPart = tuple[str, str, bytes | None, int | None]


class BackendMachine(RuleBasedStateMachine):
    """Subclass it and give `open`; run its `TestCase`."""

    expiring: ClassVar[bool] = True
    """Whether cells expire by `now_ms`; where the backend has a clock of its own, no cell is given a time."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(prefix="quire-machine-")
        self.place = Path(self._folder.name)
        self._ms = 1_700_000_000_000
        self._serial = 0
        self._newest = 0
        self._positions = {0: 0}
        """The reference's position to the backend's."""
        self._model = {n: self._run(self._open_model(n)) for n in NAMESPACES}
        self._subject = {n: self._run(self.open(n)) for n in NAMESPACES}

    async def open(self, namespace: str) -> Backend:
        """Open a handle on the place of this run: the same at every call, another for every run."""
        raise NotImplementedError

    def now_ms(self) -> int:
        """The clock that both go by."""
        return self._ms

    async def _open_model(self, namespace: str) -> Backend:
        return await open_memory(f"machine {self.place}", namespace=namespace, now_ms=self.now_ms)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    def _both(self, namespace: str, call: str, *args: object, **options: object) -> tuple[Any, Any]:
        """Return what the reference and the backend answer to the same call."""
        model, subject = self._model[namespace], self._subject[namespace]
        return (
            self._run(getattr(model, call)(*args, **options)),
            self._run(getattr(subject, call)(*args, **options)),
        )

    def _same(self, namespace: str, call: str, *args: object, **options: object) -> None:
        wanted, found = self._both(namespace, call, *args, **options)
        assert found == wanted, f"{call}{args}{options}: {found}, the reference says {wanted}"

    def _there(self, namespace: str, pick: int) -> str:
        """Return a stream, mostly one that is there."""
        there = self._run(self._model[namespace].streams())
        return there[pick % len(there)] if there and pick > 1 else STREAMS[pick % len(STREAMS)]

    def _same_records(self, wanted: Sequence[Record], found: Sequence[Record]) -> None:
        placed = [msgspec.structs.replace(r, position=self._positions[r.position]) for r in wanted]
        assert list(found) == placed

    # what happens

    @rule(namespace=a_namespace, calls=st.lists(an_item, max_size=4))
    def commit(self, namespace: str, calls: list[tuple[list[Part], list[CellPart]]]) -> None:
        """Several items in one call: valid ones, stale ones, over several streams, with cells."""
        heads = {h.stream: h for h in self._run(self._model[namespace].heads(STREAMS))}
        cells = {c.name: c.value for c in self._run(self._model[namespace].cells())}
        items = [self._item(heads, cells, *call) for call in calls]
        wanted, found = self._both(namespace, "commit", items)
        assert len(found) == len(wanted)
        for expected, outcome in zip(wanted, found, strict=True):
            self._same_outcome(expected, outcome)

    @rule(namespace=a_namespace, stream=a_stream, texts=st.lists(a_body, min_size=1, max_size=4))
    def append(self, namespace: str, stream: str, texts: list[bytes]) -> None:
        """One valid item, so that there is something to look at."""
        self.commit(namespace, [([(stream, "head", texts, "change")], [])])

    @rule(namespace=a_namespace, write=a_cell)
    def write_cell(self, namespace: str, write: CellPart) -> None:
        """One cell alone, so that there is something to expire."""
        self.commit(namespace, [([], [write])])

    def _item(
        self, heads: dict[str, Head], cells: dict[str, bytes], streams: list[Part], writes: list[CellPart]
    ) -> Item:
        """Return an item; if it will be accepted, bring `heads` and `cells` up to date for the next one."""
        expect = tuple(_expectation(heads[stream], mode) for stream, mode, _, _ in streams)
        records: list[Record] = []
        for base, (stream, _, texts, kind) in zip(expect, streams, strict=True):
            records += [self._record(stream, base.version + i, kind, body) for i, body in enumerate(texts, 1)]
        changes = tuple(_cell_write(cells, part, expiring=self.expiring) for part in writes)
        fits = all((heads[e.stream].version, heads[e.stream].chain) == (e.version, e.chain) for e in expect)
        if fits and all(cells.get(c.name) == c.expected for c in changes):
            heads |= {r.stream: Head(r.stream, r.version, r.chain, r.kind) for r in records}
            for change in changes:
                cells.pop(change.name, None)
                if change.value is not None and (change.ttl_ms is None or change.ttl_ms > 0):
                    cells[change.name] = change.value
        return Item(expect, tuple(records), changes)

    def _record(self, stream: str, version: int, kind: str, body: bytes) -> Record:
        self._serial += 1  # no two chains are alike, though a dropped stream begins again with the same numbers
        chain = sha256(b"%d" % self._serial).digest()
        return Record(stream, version, self._ms, "ann", f"write {self._serial}", kind, body, chain)

    def _same_outcome(self, wanted: Outcome, found: Outcome) -> None:
        if not isinstance(wanted, Committed) or wanted.first == 0:
            assert found == wanted
            return
        assert isinstance(found, Committed)
        assert found.last - found.first == wanted.last - wanted.first
        assert found.first > self._newest, "a position was given again"
        for offset in range(wanted.last - wanted.first + 1):
            self._positions[wanted.first + offset] = found.first + offset
        self._newest = found.last

    @rule(namespace=a_namespace, pick=a_pick, upto=a_version)
    def trim(self, namespace: str, pick: int, upto: int) -> None:
        """Remove old records."""
        self._same(namespace, "trim", self._there(namespace, pick), upto)

    @rule(namespace=a_namespace, pick=a_pick)
    def drop(self, namespace: str, pick: int) -> None:
        """Remove a stream."""
        self._same(namespace, "drop", self._there(namespace, pick))

    @rule(namespace=a_namespace, pick=a_pick, number=st.integers(0, 9), count=st.integers(0, 3), body=a_body)
    def rewrite(self, namespace: str, pick: int, number: int, count: int, body: bytes) -> None:
        """Give records another body, some of them with a chain that is not theirs."""
        records = self._run(self._model[namespace].read(self._there(namespace, pick), after=number - 1, limit=count))
        wrong = [msgspec.structs.replace(r, chain=bytes(32)) for r in records[1:2]]
        rewritten = [msgspec.structs.replace(r, body=body) for r in records[:1] + wrong + records[2:]]
        self._same(namespace, "rewrite", rewritten)

    @rule(namespace=a_namespace)
    def scrub(self, namespace: str) -> None:
        """Clean up: nothing that is there goes."""
        self._same(namespace, "scrub")

    @rule(namespace=a_namespace, pick=a_pick, version=st.integers(1, 9), body=a_body)
    def put_keyframe(self, namespace: str, pick: int, version: int, body: bytes) -> None:
        """Keep a keyframe, also one that comes too late for its stream."""
        stream = self._there(namespace, pick)
        frame = Keyframe(stream, version, bytes([version]) * 32, len(body), bytes(32), body)
        self._same(namespace, "put_keyframe", frame)

    @rule(namespace=a_namespace, pick=a_pick, gone=st.lists(st.integers(1, 9), max_size=3))
    def drop_keyframes(self, namespace: str, pick: int, gone: list[int]) -> None:
        """Remove keyframes, absent ones too."""
        self._same(namespace, "drop_keyframes", self._there(namespace, pick), gone)

    @rule(namespace=a_namespace, kept=a_body, gone=a_body)
    def put_and_drop_blobs(self, namespace: str, kept: bytes, gone: bytes) -> None:
        """Keep a blob under a name made from its content, remove another."""
        self._same(namespace, "put_blob", sha256(kept).hexdigest(), kept)
        self._same(namespace, "drop_blob", sha256(gone).hexdigest())

    @rule(ms=st.integers(1, 400))
    def pass_time(self, ms: int) -> None:
        """Let cells age."""
        self._ms += ms

    @rule()
    def reopen(self) -> None:
        """Close the handles and open new ones; those come first where the place lives by its handles."""
        old = list(self._subject.values())
        lives_by_handles = old[0].capabilities.durability == "none"
        if not lives_by_handles:
            self._close(old)
        self._subject = {n: self._run(self.open(n)) for n in NAMESPACES}
        if lives_by_handles:
            self._close(old)
        for namespace in NAMESPACES:
            self._same(namespace, "recover")  # where nothing was wrong it changes nothing

    def _close(self, backends: list[Backend]) -> None:
        for backend in backends:
            self._run(backend.close())

    # what is seen

    @rule(namespace=a_namespace, pick=a_pick, after=a_version, upto=st.none() | a_version, limit=a_limit)
    def read(self, namespace: str, pick: int, after: int, upto: int | None, limit: int | None) -> None:
        """Read a range."""
        stream = self._there(namespace, pick)
        self._same_records(*self._both(namespace, "read", stream, after=after, upto=upto, limit=limit))

    @rule(namespace=a_namespace, prefix=a_prefix, after=st.just("") | a_stream, limit=a_limit)
    def streams(self, namespace: str, prefix: str, after: str, limit: int | None) -> None:
        """List streams."""
        self._same(namespace, "streams", prefix, after=after, limit=limit)

    @rule(namespace=a_namespace, back=st.integers(0, 6), limit=a_page)
    def feed(self, namespace: str, back: int, limit: int) -> None:
        """Read the feed on from a position that was seen."""
        after = max(0, len(self._positions) - 1 - back)
        wanted = self._run(self._model[namespace].feed(after, limit=limit))
        found = self._run(self._subject[namespace].feed(self._positions[after], limit=limit))
        self._same_records(wanted, found)

    @rule(namespace=a_namespace, pick=a_pick, at=st.none() | a_version)
    def keyframe(self, namespace: str, pick: int, at: int | None) -> None:
        """Find the keyframe before a version."""
        self._same(namespace, "keyframe", self._there(namespace, pick), at)

    @rule(namespace=a_namespace, prefix=a_prefix, after=st.just("") | st.sampled_from(CELLS), limit=a_page)
    def cells(self, namespace: str, prefix: str, after: str, limit: int) -> None:
        """List cells."""
        self._same(namespace, "cells", prefix, after=after, limit=limit)

    @invariant()
    def heads_and_counts_agree(self) -> None:
        """After every call: heads, counts, and every handle knows of every commit, whoever made it."""
        counted = (
            "streams",
            "records",
            "keyframes",
            "blobs",
        )  # expired cells may have been cleared away, or not
        for namespace, subject in self._subject.items():
            assert self._run(subject.latest()) >= self._newest
            self._same(namespace, "heads", (*STREAMS, "none", STREAMS[0]))
            self._same(namespace, "tally", "w/", but="delete")
            wanted, found = self._both(namespace, "stats")
            assert [getattr(found, name) for name in counted] == [getattr(wanted, name) for name in counted]

    def teardown(self) -> None:
        """Compare all there is, and leave nothing behind."""
        try:
            for namespace in NAMESPACES:
                self._same_whole(namespace)
        finally:
            self._close([*self._subject.values(), *self._model.values()])
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._folder.cleanup()

    def _same_whole(self, namespace: str) -> None:
        self._same_records(*self._both(namespace, "feed", limit=1_000_000))
        for prefix in PREFIXES:
            self._same(namespace, "streams", prefix)
            self._same(namespace, "cells", prefix)
        for stream in STREAMS:
            self._same_records(*self._both(namespace, "read", stream))
            self._same(namespace, "keyframes", stream)
        for name in self._run(self._model[namespace].blobs()):
            self._same(namespace, "blob", name)
        self._same(namespace, "blobs")
        self._same(namespace, "check")


def _expectation(head: Head, mode: str) -> Expect:
    if mode == "behind" and head.version:
        return Expect(head.stream, head.version - 1, head.chain)
    if mode == "ahead":
        return Expect(head.stream, head.version + 1, head.chain)
    if mode == "chain":
        return Expect(head.stream, head.version, bytes([head.chain[0] ^ 1]) + head.chain[1:])
    return Expect(head.stream, head.version, head.chain)


def _cell_write(cells: dict[str, bytes], part: CellPart, *, expiring: bool) -> CellWrite:
    name, mode, value, ttl_ms = part
    held = cells.get(name)
    expected = held if mode == "held" else (b"1" if held is None else None)
    return CellWrite(name, expected, value, ttl_ms if expiring else None)
