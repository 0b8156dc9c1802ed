"""The promises about `commit`: what is stored, what is refused, and what is said of it."""

from __future__ import annotations

import asyncio
import random

from quire.model import GENESIS, Head, Record
from quire.storage.base import Backend, CellWrite, Committed, Expect, Item, Refused
from quire.testing._conformance_base import (
    Suite,
    accepted,
    after,
    appended,
    bare,
    begun,
    entry,
    head_of,
    promise,
    set_cell,
    together,
)

ODD_TEXTS = (
    "",
    "plain",
    "é ü 漢字 😀",
    "a\x00b",
    "line\nline\r\n",
    "'; DROP TABLE records; --",
    "\u2028\ufeff",
)
ODD_BODIES = (
    b"",
    b"[]",
    b"\x00",
    b"a\x00b",
    b"\x01looks tagged",
    '["é 😀"]'.encode(),
    b"\xff\xfe\x80",
    bytes(range(256)),
    b'["set",["a"],"' + b"a" * 100_000 + b'"]',
)


class CommitPromises(Suite):
    """What `commit` stores and refuses."""

    @promise
    async def test_committed_records_read_back_as_they_were(self) -> None:
        backend = await self.handle()
        item = begun("s/1", b"one", b"two", b"three")
        (done,) = await accepted(backend, item)
        found = await backend.read("s/1")
        assert bare(found) == list(item.records)
        assert [r.position for r in found] == [done.first, done.first + 1, done.last]

    @promise
    async def test_bodies_may_be_any_bytes(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", *ODD_BODIES)
        backend = await self.reopened(backend)
        assert [r.body for r in await backend.read("s/1")] == list(ODD_BODIES)

    @promise
    async def test_bodies_may_be_big(self) -> None:
        backend = await self.handle()
        noise = random.Random(1).randbytes(5_000_000)
        text = ('["set",["text"],"' + "tides and neaps, 漢字 " * 250_000 + '"]').encode()
        await appended(backend, "s/1", noise, text)
        first = await backend.feed()  # one of them makes a page
        found = [r.body for r in (*first, *await backend.feed(first[-1].position))]
        assert found[0] == noise
        assert found[1:] == [text]

    @promise
    async def test_author_message_and_kind_may_be_any_text(self) -> None:
        backend = await self.handle()
        for number, text in enumerate(ODD_TEXTS):
            record = Record(f"s/{number}", 1, 0, text, text, text, b"[]", bytes([number]) * 32)
            await accepted(backend, Item((Expect(record.stream, 0, GENESIS),), (record,)))
            assert bare(await backend.read(record.stream)) == [record]
            assert await backend.heads([record.stream]) == [Head(record.stream, 1, record.chain, text)]

    @promise
    async def test_positions_are_consecutive_in_an_item_and_grow_from_commit_to_commit(self) -> None:
        backend, other = await self.handle(), await self.handle("other")
        one, two = await accepted(backend, begun("s/1", b"1", b"2"), begun("s/2", b"1"))
        (three,) = await accepted(other, together(begun("s/1", b"1", b"2"), begun("s/2", b"1")))
        (four,) = await accepted(backend, begun("s/3", b"1"))
        assert [done.last - done.first for done in (one, two, three, four)] == [1, 0, 2, 0]
        assert one.first > 0
        assert one.last < two.first
        assert two.last < three.first
        assert three.last < four.first

    @promise
    async def test_item_over_streams_and_cells_is_stored_whole(self) -> None:
        backend = await self.handle()
        cells = [CellWrite("lease", None, b"mine"), CellWrite("cursor", None, b"7")]
        await accepted(backend, together(begun("s/1", b"1", b"2"), begun("t/1", b"1", cells=cells)))
        assert [(r.stream, r.version) for r in await backend.feed()] == [("s/1", 1), ("s/1", 2), ("t/1", 1)]
        assert [(c.name, c.value) for c in await backend.cells()] == [("cursor", b"7"), ("lease", b"mine")]

    @promise
    async def test_records_of_several_streams_may_alternate_in_an_item(self) -> None:
        backend = await self.handle()
        expect = (Expect("s", 0, GENESIS), Expect("t", 0, GENESIS))
        records = (entry("s", 1), entry("t", 1), entry("s", 2), entry("t", 2))
        await accepted(backend, Item(expect, records))
        assert [(r.stream, r.version) for r in await backend.feed()] == [
            ("s", 1),
            ("t", 1),
            ("s", 2),
            ("t", 2),
        ]

    @promise
    async def test_item_refused_for_one_stream_stores_nothing(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        stale = begun("s/1", b"other")
        item = together(begun("t/1", b"1", cells=[CellWrite("c", None, b"1")]), stale)
        assert await backend.commit([item]) == [Refused(tuple(await backend.heads(["s/1"])))]
        assert await backend.streams() == ["s/1"]
        assert await backend.cells() == []
        assert len(await backend.feed()) == 1

    @promise
    async def test_item_refused_for_one_cell_stores_nothing(self) -> None:
        backend = await self.handle()
        await set_cell(backend, "taken", b"theirs")
        cells = [
            CellWrite("free", None, b"1"),
            CellWrite("taken", b"mine", b"2"),
            CellWrite("none", b"x", b"3"),
        ]
        assert await backend.commit([begun("s/1", b"1", cells=cells)]) == [Refused((), ("taken", "none"))]
        assert await backend.streams() == []
        assert [(c.name, c.value) for c in await backend.cells()] == [("taken", b"theirs")]

    @promise
    async def test_refused_where_the_version_is_another(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1", b"2")
        (head,) = await backend.heads(["s/1"])
        for version in (0, 1, 3):
            (outcome,) = await backend.commit([after(Head("s/1", version, head.chain), b"x")])
            assert outcome == Refused((head,))
        assert len(await backend.read("s/1")) == 2

    @promise
    async def test_refused_where_the_chain_is_another(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        (head,) = await backend.heads(["s/1"])
        for chain in (GENESIS, bytes(31) + b"\x01", head.chain[:31] + bytes([head.chain[31] ^ 1])):
            assert await backend.commit([after(Head("s/1", 1, chain), b"x")]) == [Refused((head,))]
        assert len(await backend.read("s/1")) == 1

    @promise
    async def test_refused_where_a_stream_is_expected_that_is_not_there(self) -> None:
        backend = await self.handle()
        item = after(Head("s/1", 4, bytes(32)), b"x")
        assert await backend.commit([item]) == [Refused((Head("s/1"),))]
        assert await backend.streams() == []

    @promise
    async def test_refusal_shows_every_head_and_cell_that_is_another(self) -> None:
        backend = await self.handle()
        await accepted(backend, after(Head("s/1"), b"1", kind="create"), begun("s/2", b"1"), begun("s/3", b"1"))
        await set_cell(backend, "c", b"1")
        heads = await backend.heads(["s/1", "s/2", "s/3"])
        cells = [CellWrite("c", None, b"x"), CellWrite("d", b"y", None)]
        item = together(begun("s/1", b"x"), after(heads[1], b"2"), begun("s/3", b"x", cells=cells))
        assert heads[0].kind == "create"
        assert await backend.commit([item]) == [Refused((heads[0], heads[2]), ("c", "d"))]

    @promise
    async def test_refused_item_does_not_stop_the_others_of_its_call(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        outcomes = await backend.commit([begun("t/1", b"1"), begun("s/1", b"x"), begun("t/2", b"1")])
        assert [type(outcome) for outcome in outcomes] == [Committed, Refused, Committed]
        assert [r.stream for r in await backend.feed()] == ["s/1", "t/1", "t/2"]

    @promise
    async def test_item_sees_the_items_before_it_in_the_same_call(self) -> None:
        backend = await self.handle()
        first = begun("s/1", b"1", cells=[CellWrite("c", None, b"1")])
        second = after(head_of(first), b"2", b"3", cells=[CellWrite("c", b"1", b"2")])
        third = after(head_of(first), b"late")
        outcomes = await backend.commit([first, second, third])
        assert [type(outcome) for outcome in outcomes] == [Committed, Committed, Refused]
        assert outcomes[2] == Refused((head_of(second),))
        assert [r.body for r in await backend.read("s/1")] == [b"1", b"2", b"3"]

    @promise
    async def test_refused_item_leaves_nothing_for_the_items_after_it(self) -> None:
        backend = await self.handle()
        await set_cell(backend, "c", b"1")
        first = begun("s/1", b"1", cells=[CellWrite("c", b"wrong", b"2")])
        outcomes = await backend.commit([first, after(head_of(first), b"2"), begun("s/1", b"other")])
        assert [type(outcome) for outcome in outcomes] == [Refused, Refused, Committed]
        assert [r.body for r in await backend.read("s/1")] == [b"other"]

    @promise
    async def test_version_is_committed_once(self) -> None:
        backend, other = await self.handle(), await self.handle()
        item = begun("s/1", b"1")
        before = await accepted(backend, item)
        for again in (backend, other):
            assert await again.commit([item]) == [Refused((head_of(item),))]
        assert [r.position for r in await backend.read("s/1")] == [before[0].first]

    @promise
    async def test_item_may_only_check(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        heads = await backend.heads(["s/1", "none"])
        holds = Item(tuple(Expect(h.stream, h.version, h.chain) for h in heads))
        fails = Item((Expect("s/1", 0, GENESIS),))
        assert await backend.commit([holds, fails]) == [Committed(0, 0), Refused((heads[0],))]
        assert await backend.streams() == ["s/1"]

    @promise
    async def test_nothing_to_commit_is_nothing(self) -> None:
        backend = await self.handle()
        assert await backend.commit([]) == []
        assert await backend.commit([Item()]) == [Committed(0, 0)]
        assert await backend.feed() == []

    @promise
    async def test_one_of_many_writers_wins_each_version(self) -> None:
        backend, other = await self.handle(), await self.handle()

        async def write(handle: Backend, body: bytes) -> None:
            while True:
                (head,) = await handle.heads(["s/1"])
                (outcome,) = await handle.commit([after(head, body)])
                if isinstance(outcome, Committed):
                    return

        bodies = [b"%d" % number for number in range(40)]
        await asyncio.gather(*(write((backend, other)[i % 2], body) for i, body in enumerate(bodies)))
        records = await backend.read("s/1")
        assert [r.version for r in records] == list(range(1, 41))
        assert sorted(r.body for r in records) == sorted(bodies)

    @promise
    async def test_calls_take_effect_in_the_order_they_were_made(self) -> None:
        backend = await self.handle()
        head = Head("s/1")
        items: list[Item] = []
        for number in range(20):  # each fits only after the one before it
            items.append(after(head, b"%d" % number))
            head = head_of(items[-1])
        calls = [asyncio.create_task(backend.commit([item])) for item in items]
        outcomes = [outcome for call in calls for outcome in await call]
        assert [type(outcome) for outcome in outcomes] == [Committed] * 20
        assert [r.body for r in await backend.read("s/1")] == [b"%d" % number for number in range(20)]

    @promise
    async def test_commits_at_the_same_time_are_all_there(self) -> None:
        backend = await self.handle()
        items = [begun(f"s/{number:03}", b"1", b"2") for number in range(100)]
        outcomes = await asyncio.gather(*(accepted(backend, item) for item in items))
        feed = await backend.feed()
        assert await backend.streams() == [f"s/{number:03}" for number in range(100)]
        for item, (done,) in zip(items, outcomes, strict=True):
            stored = [r for r in feed if r.stream == item.records[0].stream]
            assert [r.position for r in stored] == [done.first, done.last]
