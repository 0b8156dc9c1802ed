"""SQLite beside the reference backend: whatever the sequence of calls, they answer the same."""

import asyncio
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quire.model import GENESIS, Keyframe
from quire.storage.base import CellWrite, Committed, Expect, Item
from quire.storage.memory import open_memory
from quire.storage.sqlite import open_sqlite
from quire.testing.conformance import bare, chain, entry

streams = st.sampled_from(["w/a", "w/b", "c/a"])
names = st.sampled_from(["x", "y"])
values = st.sampled_from([None, b"1", b"2"])


class Beside(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self.folder.name) / "s.db")
        self.memory = self.run(open_memory(namespace="n"))
        self.sqlite = self.run(open_sqlite(self.path, namespace="n"))

    def run(self, work):
        return self.loop.run_until_complete(work)

    def both(self, call):
        a, b = self.run(call(self.memory)), self.run(call(self.sqlite))
        return a, b

    @rule(
        items=st.lists(
            st.tuples(
                st.lists(
                    st.tuples(streams, st.integers(-1, 1), st.integers(1, 2)),
                    min_size=1,
                    max_size=2,
                    unique_by=lambda t: t[0],
                ),
                st.lists(st.tuples(names, values, values), max_size=1),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def commit(self, items):
        made = []
        for parts, cells in items:
            expect, records = [], []
            for stream, off, count in parts:
                head = self.run(self.memory.heads([stream]))[0].version
                after = max(0, head + off)
                expect.append(Expect(stream, after, chain(stream, after) if after else GENESIS))
                records += [entry(stream, after + 1 + i) for i in range(count)]
            made.append(Item(tuple(expect), tuple(records), tuple(CellWrite(*c) for c in cells)))
        a, b = self.both(lambda db: db.commit(made))
        assert [type(o) for o in a] == [type(o) for o in b]
        for x, y in zip(a, b, strict=True):
            if isinstance(x, Committed):
                assert x == y
            else:
                assert [(h.stream, h.version, h.chain) for h in x.heads] == [
                    (h.stream, h.version, h.chain) for h in y.heads
                ]
                assert x.cells == y.cells

    @rule(
        stream=streams,
        after=st.integers(0, 6),
        upto=st.none() | st.integers(0, 6),
        limit=st.none() | st.integers(1, 3),
    )
    def read(self, stream, after, upto, limit):
        a, b = self.both(lambda db: db.read(stream, after=after, upto=upto, limit=limit))
        assert a == b

    @rule(stream=streams, upto=st.integers(0, 6))
    def trim(self, stream, upto):
        a, b = self.both(lambda db: db.trim(stream, upto))
        assert a == b

    @rule(stream=streams)
    def drop(self, stream):
        self.both(lambda db: db.drop(stream))

    @rule(stream=streams, data=st.binary(max_size=3))
    def keyframe(self, stream, data):
        head = self.run(self.memory.heads([stream]))[0]
        if head.version:
            frame = Keyframe(stream, head.version, head.chain, 1, b"d", data)
            self.both(lambda db: db.put_keyframe(frame))

    @rule(stream=streams, at=st.none() | st.integers(0, 6))
    def find_keyframe(self, stream, at):
        a, b = self.both(lambda db: db.keyframe(stream, at))
        assert a == b

    @rule()
    def reopen(self):
        self.run(self.sqlite.close())
        self.sqlite = self.run(open_sqlite(self.path, namespace="n"))

    @invariant()
    def same_log(self):
        a, b = self.both(lambda db: db.feed())
        assert bare(a) == bare(b)
        assert [r.position for r in a] == [r.position for r in b]
        a, b = self.both(lambda db: db.cells())
        assert a == b
        a, b = self.both(lambda db: db.streams())
        assert [s for s in a if self.run(self.memory.read(s))] == b

    def teardown(self):
        self.run(self.sqlite.close())
        self.loop.close()
        self.folder.cleanup()


TestBeside = Beside.TestCase
TestBeside.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
