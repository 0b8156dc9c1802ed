"""The promises about the log once it is written: read, list, feed, wait, trim, drop."""

from __future__ import annotations

import asyncio
import random

import msgspec

from quire.errors import Closed
from quire.model import Head, Keyframe, Record
from quire.storage.base import PAGE_BYTES, Backend, Refused, Tally, more_may_follow
from quire.testing._conformance_base import (
    FAR_S,
    Suite,
    accepted,
    after,
    appended,
    bare,
    begun,
    head_of,
    promise,
)

ODD_NAMES = (
    *("a%b", "a*b", "a_b", "a?b", "a'b", 'a"b', "a b", "aXb", "aa", "a/b", "a\\b", "A", "b"),
    *("a\u00e9b", "ae\u0301b", "a\uffffb", "a\U0001f600b"),
)
"""Wildcards, quotes, and names whose order differs in UTF-16 or a locale from that by code point."""


class LogPromises(Suite):
    """What the log answers to whoever reads it or waits for it."""

    @promise
    async def test_read_answers_the_range_asked_for(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", *(b"%d" % number for number in range(1, 11)))

        async def versions(a: int = 0, upto: int | None = None, limit: int | None = None) -> list[int]:
            return [r.version for r in await backend.read("s/1", after=a, upto=upto, limit=limit)]

        assert await versions() == list(range(1, 11))
        assert await versions(3) == [4, 5, 6, 7, 8, 9, 10]
        assert await versions(3, 6) == [4, 5, 6]
        assert await versions(3, 6, 2) == [4, 5]
        assert await versions(0, None, 3) == [1, 2, 3]
        assert await versions(9, 99, 99) == [10]
        assert await versions(10) == await versions(99) == await versions(5, 4) == await versions(5, 5) == []
        assert await versions(0, 0) == await versions(0, None, 0) == []

    @promise
    async def test_a_page_is_bounded_in_bytes(self) -> None:
        backend = await self.handle()
        letters = random.Random(1)
        big = [b'"%b"' % letters.randbytes(700_000).hex().encode() for _ in range(3)]
        big += [b'"%b"' % (b"%d" % number * 3_000_000) for number in range(3)]  # nothing, once compressed
        one, two = begun("s/1", b"1", *big, b"2", *big), begun("s/2", *big, b"3")
        said = msgspec.structs.replace(one.records[1], message="m" * 3_000_000)
        one = msgspec.structs.replace(one, records=[one.records[0], said, *one.records[2:]])
        await accepted(backend, one, two)

        def bounded(page: list[Record]) -> list[Record]:
            assert sum(r.size_bytes for r in page[:-1]) < PAGE_BYTES
            return page

        async def fed() -> list[Record]:
            log: list[Record] = []
            more = True
            while page := bounded(await backend.feed(log[-1].position if log else 0, limit=1000)):
                assert more, "a page that is not full ends the feed"
                log += page
                more = more_may_follow(page, 1000)
            return bare(log)

        for stream, item in (("s/1", one), ("s/2", two)):
            found: list[Record] = []
            more = True
            while page := bounded(await backend.read(stream, after=len(found), limit=1000)):
                assert more, "a page that is not full ends the stream"
                found += page
                more = more_may_follow(page, 1000)
            assert bare(found) == bare(item.records)
            assert bare(await backend.read(stream)) == bare(item.records), "without a limit it is no page"
        assert await fed() == bare([*one.records, *two.records])
        await backend.put_keyframe(Keyframe("s/1", 3, one.records[2].chain, 2, bytes(32), b"{}"))
        assert await backend.trim("s/1", 2) == 2
        left = bare([*one.records[2:], *two.records])
        assert await fed() == left
        three = begun("s/3", b"3")
        await accepted(backend, three)
        assert await fed() == [*left, *bare(three.records)]

    @promise
    async def test_unknown_stream_is_empty(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        assert await backend.read("s/") == await backend.read("s/2") == await backend.read("") == []
        assert await backend.trim("s/2", 5) == 0
        await backend.drop("s/2")
        assert await backend.streams() == ["s/1"]

    @promise
    async def test_heads_come_in_the_order_asked(self) -> None:
        backend = await self.handle()
        one, two = begun("s/1", b"1", b"2"), after(Head("s/2"), b"1", kind="fork")
        await accepted(backend, one, two)
        asked = ["s/2", "none", "s/1", "s/2"]
        assert await backend.heads(asked) == [head_of(two), Head("none"), head_of(one), head_of(two)]
        assert await backend.heads([]) == []

    @promise
    async def test_streams_are_sorted_by_code_point(self) -> None:
        backend = await self.handle()
        for name in ODD_NAMES:
            await appended(backend, name, b"1")
        assert await backend.streams() == sorted(ODD_NAMES)
        assert [s for s in ODD_NAMES if (await backend.heads([s]))[0].version != 1] == []

    @promise
    async def test_streams_are_chosen_by_prefix_after_and_limit(self) -> None:
        backend = await self.handle()
        for name in ODD_NAMES:
            await appended(backend, name, b"1")
        for prefix in ("", "a", "a%", "a_", "a*", "a?", "a'", "a\u00e9", "a\U0001f600", "b", "a%b", "a%bc"):
            wanted = sorted(name for name in ODD_NAMES if name.startswith(prefix))
            assert await backend.streams(prefix) == wanted
            assert await backend.streams(prefix, limit=2) == wanted[:2]
            assert await backend.streams(prefix, limit=0) == []
            for mark in ("a", "a_", "a_b", "a\uffff", "zz"):
                later = [name for name in wanted if name > mark]
                assert await backend.streams(prefix, after=mark) == later
                assert await backend.streams(prefix, after=mark, limit=1) == later[:1]

    @promise
    async def test_a_tally_counts_streams_by_prefix_and_kind_of_head(self) -> None:
        backend = await self.handle()
        for name in ODD_NAMES:
            await appended(backend, name, b"1", b"2")
        await accepted(backend, after(head_of(begun("a_b", b"1", b"2")), b"3", kind="end\0"))
        for prefix in ("", "a", "a%", "a_", "a*", "a\u00e9", "b", "a%bc"):
            found = [name for name in ODD_NAMES if name.startswith(prefix)]
            ended = "a_b" in found
            assert await backend.tally(prefix, but="") == Tally(len(found), 2 * len(found) + ended)
            assert await backend.tally(prefix, but="end\0") == Tally(len(found) - ended, 2 * (len(found) - ended))
        assert await (await self.handle("other")).tally("", but="") == Tally(0, 0)

    @promise
    async def test_feed_is_in_commit_order_and_pages(self) -> None:
        backend, other = await self.handle(), await self.handle("other")
        for number in range(6):
            await accepted(backend, begun(f"s/{9 - number}", b"1"), begun(f"t/{number}", b"1"))
            await accepted(other, begun(f"s/{number}", b"hidden"))
        feed = await backend.feed()
        assert [r.stream for r in feed] == [name for n in range(6) for name in (f"s/{9 - n}", f"t/{n}")]
        assert feed == sorted(feed, key=lambda r: r.position)
        for start in range(len(feed)):
            assert await backend.feed(feed[start].position) == feed[start + 1 :]
            assert await backend.feed(feed[start].position - 1, limit=3) == feed[start : start + 3]
        assert await backend.feed(limit=0) == await backend.feed(feed[-1].position + 100) == []

    @promise
    async def test_feed_read_while_others_commit_misses_nothing(self) -> None:
        backend, other, reader = await self.handle(), await self.handle(), await self.handle()

        async def write(handle: Backend, name: str) -> None:
            for number in range(25):
                await accepted(handle, begun(f"{name}/{number}", b"1", b"2"))

        writers = asyncio.gather(write(backend, "a"), write(backend, "b"), write(other, "c"))
        seen: list[Record] = []
        while not writers.done():
            seen += await reader.feed(seen[-1].position if seen else 0, limit=7)
            await asyncio.sleep(0)  # a backend that never waits would let nobody else run
        await writers
        while more := await reader.feed(seen[-1].position if seen else 0, limit=7):
            seen += more
        assert len(seen) == 150
        assert seen == await backend.feed()

    @promise
    async def test_latest_is_at_or_past_every_finished_commit(self) -> None:
        backend, same, other = await self.handle(), await self.handle(), await self.handle("other")
        assert [await h.latest() for h in (backend, same, other)] == [0, 0, 0]
        for number, writer in enumerate((backend, same, other, backend)):
            (done,) = await accepted(writer, begun(f"s/{number}", b"1", b"2"))
            assert [await h.latest() >= done.last for h in (backend, same, other)] == [True, True, True]

    @promise
    async def test_changed_wakes_on_a_commit_of_another_handle(self) -> None:
        backend, other = await self.handle(), await self.handle()
        for writer in (other, backend):
            before = await backend.latest()
            waiting = asyncio.create_task(backend.changed(before, timeout_s=FAR_S))
            await asyncio.sleep(0)
            assert not waiting.done()
            await appended(writer, "s/1", b"1")
            assert await waiting > before

    @promise
    async def test_changed_waits_until_the_time_is_over(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        now = await backend.latest()
        assert await backend.changed(now, timeout_s=0.01) == now
        assert await backend.changed(now + 5, timeout_s=0) == now

    @promise
    async def test_changed_answers_at_once_where_there_is_news(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1")
        latest = await backend.latest()
        assert await backend.changed(0, timeout_s=FAR_S) == latest
        assert await backend.changed(0, timeout_s=0) == latest

    @promise
    async def test_changed_ends_when_the_handle_is_closed(self) -> None:
        backend = await self.handle()
        waiting = asyncio.create_task(backend.changed(0, timeout_s=FAR_S))
        await asyncio.sleep(0)
        await backend.close()
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(result, Closed)


class RemovalPromises(Suite):
    """What trimming, dropping and rewriting remove, and what they never give again."""

    @promise
    async def test_rewritten_records_have_another_body_and_nothing_else(self) -> None:
        backend, other = await self.handle(), await self.handle("other")
        for handle in (backend, other):
            await accepted(handle, begun("s/1", b"1", b"secret", b"3"), begun("s/2", b"secret"))
        latest, heads = await backend.latest(), await backend.heads(["s/1", "s/2"])
        records, others = await backend.feed(), await other.feed()
        rewritten = [msgspec.structs.replace(r, body=b"x" * 5000) if r.body == b"secret" else r for r in records]
        assert await backend.rewrite([r for r in rewritten if r.body == b"x" * 5000]) == 2
        for handle in (backend, await self.handle()):
            assert await handle.feed() == rewritten
            assert await handle.read("s/1") == [r for r in rewritten if r.stream == "s/1"]
        assert await backend.latest() == latest
        assert await backend.heads(["s/1", "s/2"]) == heads
        assert await other.feed() == others
        assert await (await self.reopened(backend)).feed() == rewritten

    @promise
    async def test_rewriting_finds_records_by_stream_version_and_chain(self) -> None:
        backend = await self.handle()
        records = await appended(backend, "s/1", b"1", b"2")
        strange = [
            msgspec.structs.replace(records[0], chain=b"\x01" * 32, body=b"x"),
            msgspec.structs.replace(records[1], version=3, body=b"x"),
            msgspec.structs.replace(records[0], stream="s/2", body=b"x"),
        ]
        assert await backend.rewrite(strange) == 0
        assert await backend.rewrite([]) == 0
        assert await backend.feed() == records
        assert await backend.streams() == ["s/1"]
        assert await backend.rewrite([*strange, msgspec.structs.replace(records[1], body=b"x")]) == 1
        assert [r.body for r in await backend.read("s/1")] == [b"1", b"x"]

    @promise
    async def test_trim_removes_what_is_old_and_says_how_much(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", *(b"%d" % number for number in range(1, 7)))
        other = await appended(backend, "s/2", b"1", b"2")
        (head,) = await backend.heads(["s/1"])
        assert [await backend.trim("s/1", upto) for upto in (-1, 0, 2, 2, 3)] == [0, 0, 2, 0, 1]
        assert [(r.version, r.body) for r in await backend.read("s/1")] == [(4, b"4"), (5, b"5"), (6, b"6")]
        assert [r.version for r in await backend.read("s/1", after=1, limit=2)] == [4, 5]
        assert [(r.stream, r.version) for r in await backend.feed(limit=3)] == [
            ("s/1", 4),
            ("s/1", 5),
            ("s/1", 6),
        ]
        assert await backend.read("s/2") == other
        assert await backend.heads(["s/1"]) == [head]

    @promise
    async def test_trim_never_removes_the_head(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/1", b"1", b"2", b"3")
        (head,) = await backend.heads(["s/1"])
        assert [await backend.trim("s/1", upto) for upto in (3, 99)] == [2, 0]
        assert [r.body for r in await backend.read("s/1")] == [b"3"]
        assert await backend.heads(["s/1"]) == [head]
        assert await backend.streams() == ["s/1"]

    @promise
    async def test_numbers_and_positions_are_not_reused_after_trim(self) -> None:
        backend = await self.handle()
        *_, newest = await appended(backend, "s/1", b"1", b"2", b"3")
        await backend.trim("s/1", 3)
        backend = await self.reopened(backend)
        assert await backend.latest() >= newest.position
        (record,) = await appended(backend, "s/1", b"4")
        assert record.version == 4
        assert record.position > newest.position
        assert await backend.check() == []

    @promise
    async def test_drop_removes_records_and_keyframes_of_that_stream_only(self) -> None:
        backend, other = await self.handle(), await self.handle("other")
        for handle in (backend, other):
            await accepted(handle, begun("s/1", b"1", b"2"), begun("s/11", b"1"))
            for stream in ("s/1", "s/11"):
                await handle.put_keyframe(Keyframe(stream, 1, bytes(32), 2, bytes(32), b"{}"))
        await backend.drop("s/1")
        assert await backend.streams() == ["s/11"]
        assert await backend.heads(["s/1", "s/11"]) == [Head("s/1"), head_of(begun("s/11", b"1"))]
        assert await backend.read("s/1") == []
        assert await backend.keyframes("s/1") == []
        assert await backend.keyframe("s/1") is None
        assert [r.stream for r in await backend.feed()] == ["s/11"]
        assert await backend.keyframes("s/11") == [1]
        assert await other.keyframes("s/1") == [1]
        assert len(await other.read("s/1")) == 2

    @promise
    async def test_positions_are_not_reused_after_drop(self) -> None:
        backend = await self.handle()
        await appended(backend, "s/2", b"1")
        *_, newest = await appended(backend, "s/1", b"1", b"2")
        await backend.drop("s/1")
        assert await backend.latest() >= newest.position
        backend = await self.reopened(backend)
        assert await backend.latest() >= newest.position
        (record,) = await appended(backend, "s/3", b"1")
        assert record.position > newest.position
        assert await backend.feed(newest.position) == [record]
        assert [r.stream for r in await backend.feed()] == ["s/2", "s/3"]
        assert await backend.check() == []

    @promise
    async def test_dropped_stream_can_begin_again_without_its_past(self) -> None:
        backend = await self.handle()
        before = begun("s/1", b"1", b"2")
        await accepted(backend, before)
        await backend.put_keyframe(Keyframe("s/1", 2, bytes(32), 2, bytes(32), b"old"))
        await backend.drop("s/1")
        assert await backend.commit([after(head_of(before), b"3")]) == [Refused((Head("s/1"),))]
        await backend.put_keyframe(Keyframe("s/1", 2, bytes(32), 2, bytes(32), b"late"))
        await accepted(backend, begun("s/1", b"new"))
        assert [(r.version, r.body) for r in await backend.read("s/1")] == [(1, b"new")]
        assert await backend.keyframe("s/1") is None
