"""What NATS promises beyond the protocol: what is refused, what late batches find, large values, removal, a cluster."""

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count
from urllib.parse import urlsplit

import nats
import pytest

import quire
from quire.errors import (
    CorruptRecord,
    Denied,
    IncompatibleFormat,
    LimitExceeded,
    OutcomeUnknown,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)
from quire.model import GENESIS, Head, Keyframe
from quire.storage import _nats_rows as rows
from quire.storage._nats_shelf import Out
from quire.storage._nats_wire import Address, Moved, Wire
from quire.storage.base import CellWrite, Committed, Expect, Item, Refused
from quire.storage.nats import open_nats
from quire.storage.open import open_backend
from quire.testing import scenes
from quire.testing._conformance_base import appended, begun
from quire.testing.conformance import bare, chain, entry
from quire.testing.scenes import following, opened
from quire.testing.servers.fixtures import shared, started
from quire.testing.servers.nats import NatsServer

places = count()


@contextmanager
def server(*args, **options):
    """Start a server of the test's own."""
    running = started(NatsServer(*args, **options))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def url():
    """Return the URL of an empty store on the shared server."""
    return shared(NatsServer).place(f"details {os.getpid()} {next(places)}")


def name_of(url):
    return url.partition("stream=")[2]


@asynccontextmanager
async def behind(url):
    """Give a connection and JetStream as anybody has them."""
    client = await nats.connect(f"nats://127.0.0.1:{urlsplit(url).port}", allow_reconnect=False)
    try:
        yield client.jetstream()
    finally:
        await client.close()


def files(running):
    """Return all bytes that the server keeps."""
    return b"".join(f.read_bytes() for f in sorted((running.folder / "data").rglob("*")) if f.is_file())


# what is given up


async def test_a_wait_for_news_that_is_given_up_leaves_the_connection_as_it_was(url):
    async with opened(url) as backend:
        for steps in range(12):
            backend._heard_on = None  # as on a new connection: it has to subscribe, and to hear that it has
            waiting = asyncio.ensure_future(backend.changed(0, timeout_s=5))
            await backend.latest()
            for _ in range(steps):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            async with asyncio.timeout(5):
                assert await backend.latest() == 0


# what is promised


async def test_durability_is_claimed_only_where_the_url_says_that_the_servers_sync(url):
    async with opened(url) as backend:
        assert backend.capabilities.durability == "power"
        assert "is what the URL says" in backend.capabilities.note
    async with opened(url.replace("sync=always&", "")) as backend:
        assert backend.capabilities.durability == "process"
        assert "may lose acknowledged writes" in backend.capabilities.note
        assert "sync=always" in backend.capabilities.note


@pytest.mark.parametrize(
    ("setting", "durability", "said"),
    [
        ({"max_age": 3600 * 10**9}, "none", "max_age=3600s"),
        ({"max_msgs": 1000, "discard": "old"}, "none", "max_msgs=1000"),
        ({"max_bytes": 10**6, "discard": "old"}, "none", "max_bytes=1000000"),
        ({"max_msgs_per_subject": 5, "discard": "old"}, "none", "max_msgs_per_subject=5"),
        ({"max_msgs_per_subject": 5, "discard": "new", "discard_new_per_subject": True}, "power", ""),
        ({"max_msgs": 1000, "max_bytes": 10**6}, "power", ""),  # then it is full, and says so
    ],
)
@pytest.mark.parametrize("of", ["", "-side"])
async def test_a_limit_by_which_the_server_removes_messages_ends_durability(url, setting, durability, said, of):
    async with opened(url) as backend:
        name = name_of(url) + of
        config = (await backend._shelf._wire.api(f"STREAM.INFO.{name}"))["config"]
        config["metadata"] = {"quire": "1"}
        await backend._shelf._wire.api(f"STREAM.UPDATE.{name}", config | setting)
        vitals = await backend.vitals(timeout_s=5)
        async with opened(url) as another:
            for found in (another.capabilities, vitals.promises):
                assert found.durability == durability
                assert said in found.note
                assert ("may lose" in found.note) == bool(said)


async def test_what_an_admin_purged_is_named_at_once(url):
    async with quire.open(url) as store, behind(url) as stream:
        wf = await store.create("w", {"n": 0})
        await wf.set("/n", 1)
        assert await stream.purge_stream(name_of(url))
        with pytest.raises((CorruptRecord, OutcomeUnknown)):
            await wf.set("/n", 2)
        with pytest.raises(CorruptRecord, match="purged"):
            await store.engine.backend.heads(["workflows/w"])
        assert any("were purged" in each for each in (await store.engine.backend.vitals(timeout_s=5)).warnings)
        with pytest.raises(CorruptRecord, match="messages 1 to [0-9]+ of [0-9]+ were purged"):
            await open_backend(url, namespace="default")


# what is refused at the door


@pytest.mark.parametrize(
    "rest",
    [
        "h:0",
        "h:99999",
        "h:x",
        "h/path",
        "h?stream=a.b",
        "h?stream=a*",
        "h?stream=",
        "h?replicas=2",
        "h?sync=maybe",
        "h?x=1",
    ],
)
async def test_a_bad_url_is_refused_with_a_remedy(rest):
    await scenes.bad_url("nats://" + rest)


async def test_password_and_token_are_checked_and_never_shown():
    for settings, right, wrong in (
        ('authorization { user: ann, password: "s3cret" }', "ann:s3cret@", ("", "ann:wr0ng@", "wr0ng@")),
        ('authorization { token: "s3cret" }', "s3cret@", ("", "wr0ng@")),
    ):
        with server(settings) as running:
            for who in wrong:
                with pytest.raises(Denied, match="wrong") as caught:
                    await open_backend(running.url.replace("nats://", "nats://" + who), namespace="default")
                assert "wr0ng" not in str(caught.value)
            async with opened(running.url.replace("nats://", "nats://" + right)) as backend:
                assert isinstance((await backend.commit([begun("s/1", b"1")]))[0], Committed)


async def test_a_server_that_is_not_there_is_told():
    with server() as running:
        url = running.url
    await scenes.nobody_there(url, remedy="start nats-server there")


async def test_a_server_without_jetstream_is_refused():
    with server(jetstream=False) as running:
        address = Address([f"127.0.0.1:{running.port}"], None, None)
        with pytest.raises((Unsupported, StorageUnavailable), match=r"JetStream"):
            await open_nats(address, namespace="default", patience_s=0.2)


async def test_more_replicas_than_servers_are_refused(url):
    with pytest.raises(Unsupported, match="replicas") as caught:
        await open_backend(url + "&replicas=3", namespace="default")
    assert caught.value.capability == "replicas"


async def test_a_stream_of_somebody_else_is_left_alone(url):
    async with behind(url) as stream:
        await stream.add_stream(name=name_of(url), subjects=["theirs.*"])
        await stream.publish("theirs.1", b"x")
        with pytest.raises(IncompatibleFormat, match=r"\?stream="):
            await open_backend(url, namespace="default")
        assert (await stream.stream_info(name_of(url))).state.messages == 1


async def test_subjects_of_somebody_else_are_left_alone(url):
    async with behind(url) as stream:
        await stream.add_stream(name="x" + name_of(url), subjects=[f"{name_of(url)}.>"])
        with pytest.raises(IncompatibleFormat, match=r"\?stream="):
            await open_backend(url, namespace="default")


def test_without_the_driver_the_extra_is_named():
    scenes.missing_driver("nats", "nats://h", extra="nats")


# room


async def test_a_full_stream_stores_nothing_and_says_so(url):
    async with opened(url) as backend, behind(url) as stream:
        await backend.commit([begun("s/1", b"1")])
        config = (await stream.stream_info(name_of(url))).config
        state = (await stream.stream_info(name_of(url))).state
        await backend._shelf.api(
            "STREAM.UPDATE",
            {
                **(await backend._shelf.api("STREAM.INFO"))["config"],
                "metadata": {"quire": "1"},
                "max_bytes": state.bytes + 2000,
            },
        )
        assert config.name == name_of(url)
        with pytest.raises(StorageError):
            await backend.commit([begun("s/2", os.urandom(5000)), following("s/1", 1)])
        with pytest.raises(StorageUnavailable, match="recover"):
            await backend.commit([following("s/1", 1)])
        assert await backend.streams() == ["s/1"]


async def test_large_values_are_kept_in_parts(url):
    data = os.urandom(3_000_000)
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1", data, b"3", cells=[CellWrite("c", None, b"1")])])
        await backend.put_keyframe(Keyframe("s/1", 2, bytes(32), 1, bytes(32), data))
        await backend.put_keyframe(Keyframe("s/1", 2, bytes(32), 1, bytes(32), data[::-1]))
        await backend.put_blob("b", data)
        assert [r.body for r in await backend.read("s/1")] == [b"1", data, b"3"]
        assert [r.body for r in await backend.feed()] == [b"1", data, b"3"]
        assert (await backend.keyframe("s/1")).body == data[::-1]
        assert await backend.blob("b") == data
        full = (await backend.stats()).size_bytes
        await backend.drop_blob("b")
        await backend.drop("s/1")
        assert (await backend.stats()).size_bytes < full - 8_900_000
        assert await backend.check() == []


async def test_an_item_that_no_batch_can_hold_is_refused(url):
    streams = [begun(f"s/{i}", b"1") for i in range(1001)]
    item = Item(tuple(i.expect[0] for i in streams), tuple(i.records[0] for i in streams))
    async with opened(url) as backend:
        with pytest.raises(LimitExceeded):
            await backend.commit([item])
        await backend.recover()
        assert await backend.streams() == []


# what comes late


async def test_a_batch_that_arrives_after_recovery_is_refused(url):
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        (newest,) = await backend._log.newest(["s/1"])
        subject, mark = backend._places.record("s/1"), backend._writer._mark_subject
        head = rows.header(rows.About(first=2, head=(2, bytes(32).hex(), "change")))
        late = [
            Out(mark, {"Nats-Rollup": "sub"}, b"", backend._writer._mark),
            Out(subject, head, rows.run_as_stored([(0, entry("s/1", 2, b"late"))]), newest[1]),
        ]
        await backend.recover()
        assert await backend.streams() == ["s/1"]
        with pytest.raises(Moved):
            await backend._shelf.put(late)
        assert len(await backend.read("s/1")) == 1
        assert isinstance((await backend.commit([following("s/1", 1)]))[0], Committed)


async def test_the_same_batch_lands_where_nobody_recovered(url):
    """The control of the test above."""
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        (newest,) = await backend._log.newest(["s/1"])
        head = rows.header(rows.About(first=2, head=(2, chain("s/1", 2).hex(), "change")))
        await backend._shelf.put(
            [
                Out(backend._writer._mark_subject, {"Nats-Rollup": "sub"}, b"", backend._writer._mark),
                Out(
                    backend._places.record("s/1"), head, rows.run_as_stored([(0, entry("s/1", 2, b"late"))]), newest[1]
                ),
            ]
        )
        assert [r.body for r in await backend.read("s/1")] == [b"1", b"late"]
        with pytest.raises(StorageUnavailable, match="session"):
            await backend.commit([begun("s/2", b"1")])


async def test_a_message_alone_that_arrives_after_recovery_is_refused(url):
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        sent, put = [], backend._own.put

        async def lost(out):
            sent.extend(out)
            raise StorageUnavailable("the connection broke")

        backend._own.put = lost
        with pytest.raises(StorageUnavailable):
            await backend.commit([following("s/1", 1, b"late")])
        backend._own.put = put
        assert len(sent) == 1
        await backend.recover()
        assert len(await backend.read("s/1")) == 1
        with pytest.raises(Moved):
            await backend._shelf.put(sent)
        assert await backend.heads(["s/1"]) == [Head("s/1", 1, chain("s/1", 1), "change")]
        assert isinstance((await backend.commit([following("s/1", 1)]))[0], Committed)
        assert await backend.check() == []
        assert [r.version for r in await backend.feed()] == [1, 2]


async def test_after_a_call_that_failed_none_of_those_behind_it_takes_effect(url):
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        await backend._shelf.purge(backend._writer._mark_subject)  # the server forgot the session
        await scenes.fail_in_a_row(backend, StorageUnavailable)
        assert isinstance((await backend.commit([following("s/1", 1)]))[0], Committed)


async def test_sessions_leave_no_mark(url):
    async with opened(url) as watcher:
        async with opened(url) as backend:
            await backend.commit([begun("s/1", b"1")])
            assert len(await watcher._shelf.subjects(f"{name_of(url)}.w.*")) == 1
        assert await watcher._shelf.subjects(f"{name_of(url)}.w.*") == {}


async def test_answers_of_others_do_not_wait_for_one_that_never_comes(url):
    wire = Wire(Address([f"127.0.0.1:{shared(NatsServer).port}"], None, None), 0.2)
    await wire.open()
    await wire.client.subscribe("silence")
    with pytest.raises(StorageTimeout):
        await wire.ask("silence")
    assert "account_info_response" in str(await wire.api("INFO"))
    await wire.close()
    with pytest.raises(StorageUnavailable):
        await wire.ask("silence")


async def test_what_may_be_asked_twice_is_asked_again_where_nobody_answers(url):
    """A cluster that is choosing a leader drops questions."""
    wire = Wire(Address([f"127.0.0.1:{shared(NatsServer).port}"], None, None), 2)
    await wire.open()
    heard = []

    async def answer_the_second(message):
        heard.append(message.data)
        if len(heard) == 2:
            await message.respond(b"here")

    await wire.client.subscribe("hard.of.hearing", cb=answer_the_second)
    assert (await wire.ask("hard.of.hearing", b"hello", repeatable=True))[0].data == b"here"
    with pytest.raises(StorageTimeout):
        await wire.ask("hard.of.hearing", b"once")
    assert heard == [b"hello", b"hello", b"once"]
    await wire.close()


async def test_heads_remembered_wrongly_do_no_harm(url):
    async with opened(url) as backend, opened(url) as other:
        await backend.commit([begun("s/1", b"1"), begun("s/2", b"1")])
        await other.commit([following("s/1", 1), following("s/2", 1)])
        stale = [following("s/1", 1, b"x"), begun("s/3", b"1"), following("s/2", 2)]
        outcomes = await backend.commit(stale)
        assert outcomes[0] == Refused((Head("s/1", 2, chain("s/1", 2), "change"),))
        assert [type(o) for o in outcomes[1:]] == [Committed, Committed]
        assert [r.body for r in await backend.read("s/1")] == [b"1", b"[]"]


async def refused(backend, times):
    """Have a handle come too late so often."""
    for _ in range(times):
        (outcome,) = await backend.commit([Item((Expect("s/1", 9, GENESIS),), (entry("s/1", 10),))])
        assert isinstance(outcome, Refused)


async def test_who_was_refused_twice_is_left_a_gap_and_says_when_it_is_used(url):
    async with opened(url) as busy, opened(url) as late:
        await busy.commit([begun("s/1", b"1")])
        await refused(late, 1)
        await late._writing.client.flush()
        await busy._writing.client.flush()
        assert not busy._floor._other
        await refused(late, 1)
        async with asyncio.timeout(10):
            while not busy._floor._other:
                await asyncio.sleep(0)
        waiting = asyncio.ensure_future(busy.commit([following("s/1", 1)]))
        (outcome,) = await late.commit([following("s/1", 1, b"2")])
        assert isinstance(outcome, Committed)
        (outcome,) = await waiting
        assert isinstance(outcome, Refused)
        assert not busy._floor._other


async def test_a_gap_that_nobody_uses_ends_and_those_who_need_one_leave_none(url):
    async with opened(url) as busy, opened(url) as late:
        await busy.commit([begun("s/1", b"1")])
        await refused(late, 2)
        async with asyncio.timeout(10):
            while not busy._floor._other:
                await asyncio.sleep(0)
            assert isinstance((await busy.commit([following("s/1", 1)]))[0], Committed)  # it only waited a while
            await refused(busy, 2)
            await refused(late, 1)
            while not busy._floor._other:
                await asyncio.sleep(0)
            assert isinstance((await busy.commit([following("s/1", 2)]))[0], Committed)
            assert busy._floor._other  # it did not wait


async def test_where_a_stream_was_read_to_is_remembered_and_does_no_harm_when_it_is_dropped(url):
    async with opened(url) as writer, opened(url) as reader:
        await appended(writer, "s/1", *[b"1"] * 5)
        assert [r.version for r in await reader.read("s/1")] == [1, 2, 3, 4, 5]
        for _ in range(3):
            await appended(writer, "s/1", b"2")
        assert [r.version for r in await reader.read("s/1", after=5)] == [6, 7, 8]
        assert [r.version for r in await reader.read("s/1", after=2)] == [3, 4, 5, 6, 7, 8]
        await writer.drop("s/1")
        assert await reader.read("s/1", after=8) == []
        for _ in range(12):
            await appended(writer, "s/1", b"3")
        assert [r.version for r in await reader.read("s/1", after=8)] == [9, 10, 11, 12]
        assert [r.version for r in await reader.read("s/1", after=9, upto=10)] == [10]


async def test_a_check_of_a_stream_that_is_not_written_holds_against_a_race(url):
    async with opened(url) as backend, opened(url) as other:
        await backend.commit([begun("s/1", b"1")])
        await other.commit([following("s/1", 1)])
        checked = Item((Expect("s/2", 0, GENESIS), Expect("s/1", 1, chain("s/1", 1))), (entry("s/2", 1),))
        (outcome,) = await backend.commit([checked])
        assert isinstance(outcome, Refused)
        assert await backend.streams() == ["s/1"]


async def test_a_replica_that_is_behind_is_asked_again_and_never_believed(url):
    """Its answers are those of a moment before: a message is not there yet, a page ends too soon."""
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1")])
        await backend.commit([following("s/1", 1, b"2")])
        await backend.put_blob("b", b"1")
        behind = set()

        def replicated(shelf):
            """Have one server play the leader, and replicas that are behind in their first answer of each kind."""
            ask, shelf.replicas = shelf._direct, 3

            async def late(request):
                answers = await ask(request)
                kind = "page" if "next_by_subj" in request else "message" if "batch" not in request else ""
                if not kind or "multi_last" in request or kind in behind:
                    return answers
                behind.add(kind)
                return [*answers[:-2], answers[-1]] if kind == "page" else [absent]

            shelf._direct = late

        absent = nats.aio.msg.Msg(None, headers={"Status": "404"})
        replicated(backend._shelf)
        replicated(backend._side)
        assert [r.body for r in await backend.read("s/1")] == [b"1", b"2"]
        assert await backend.blob("b") == b"1"
        assert behind == {"page", "message"}
        behind.clear()
        assert [r.version for r in await backend.feed()] == [1, 2]

        async def never(request):
            return [absent]

        backend._side._direct, backend._side._patience_s = never, 0
        with pytest.raises(StorageTimeout, match="behind"):
            await backend.blob("b")


# size


async def test_a_long_stream_among_others_is_found_in_few_questions(url):
    async with opened(url) as backend:
        for start in range(0, 3000, 100):
            records = tuple(entry("s/1", v) for v in range(start + 1, start + 101))
            other = following("s/2", start // 100) if start else begun("s/2", b"1")
            await backend.commit([Item((Expect("s/1", start, chain("s/1", start)),), records), other])
        asked, ask = [], backend._reading.ask

        async def counted(*args, **options):
            asked.append(args)
            return await ask(*args, **options)

        backend._reading.ask = counted
        for after in (0, 1, 99, 100, 101, 1555, 2899, 2900, 2999, 3000):
            asked.clear()
            found = await backend.read("s/1", after=after, limit=5)
            assert [r.version for r in found] == list(range(after + 1, min(after + 6, 3001)))
            assert len(asked) < 15
        assert bare(await backend.read("s/1")) == [entry("s/1", v) for v in range(1, 3001)]
        assert len(await backend.feed(limit=5000)) == 3030


async def test_an_item_over_more_streams_than_a_page_is_one_in_the_feed(url):
    streams = [f"s/{i:03}" for i in range(600)]
    records = tuple(entry(s, v) for v in (1, 2) for s in streams)  # all first ones, then all second ones
    async with opened(url) as backend:
        await backend.commit([begun("before", b"1")])
        (done,) = await backend.commit([Item(tuple(Expect(s, 0, GENESIS) for s in streams), records)])
        await backend.commit([begun("zafter", b"1")])
        feed = await backend.feed(limit=5000)
        assert bare(feed)[1:-1] == list(records)
        assert [r.position for r in feed][1:-1] == list(range(done.first, done.last + 1))
        for place in (1, 599, 600, 1100):
            assert await backend.feed(feed[place].position, limit=700) == feed[place + 1 : place + 701]


async def test_heads_of_large_records_come_in_several_answers(url):
    async with opened(url) as backend:
        for i in range(12):
            await backend.commit([begun(f"s/{i:02}", os.urandom(900_000))])
        streams = [f"s/{i:02}" for i in (*range(11, -1, -1), 99)]
        assert await backend.heads(streams) == [Head(s, 1, chain(s, 1), "change") for s in streams[:-1]] + [
            Head("s/99")
        ]
        found = await backend.feed()
        assert 4 <= len(found) < 12, "a page is bounded in bytes"
        while page := await backend.feed(found[-1].position):
            found += page
        assert len(found) == 12


async def test_many_streams_in_one_call(url):
    async with opened(url) as backend:
        items = [begun(f"s/{i:04}", b"1", b"2") for i in range(1500)]
        outcomes = await backend.commit(items)
        assert all(isinstance(o, Committed) for o in outcomes)
        assert len(await backend.streams()) == 1500
        assert {h.version for h in await backend.heads([f"s/{i:04}" for i in range(1500)])} == {2}
        feed = await backend.feed(limit=5000)
        assert [r.stream for r in feed] == [i.records[0].stream for i in items for _ in range(2)]


# removal


async def test_what_is_rewritten_trimmed_and_dropped_leaves_no_trace():
    with server() as running:
        async with opened(running.url) as backend:
            secret = [b'"one secret %d"' % i for i in range(1, 7)]
            await backend.commit([begun("s/1", *secret[:3]), begun("s/2", secret[3], b"kept"), begun("s/3", secret[4])])
            await backend.commit([following("s/1", 3, b"after"), following("s/3", 1, secret[5])])
            assert all(s in files(running) for s in secret)
            latest = await backend.latest()
            assert await backend.rewrite([entry("s/1", 2, b'"gone"'), entry("s/3", 2, b'"gone"')]) == 2
            assert await backend.latest() == latest
            assert await backend.trim("s/2", 1) == 1
            await backend.scrub()
            left = files(running)
            assert [secret[i] in left for i in range(6)] == [True, False, True, False, True, False]
            assert [r.body for r in await backend.read("s/1")] == [secret[0], b'"gone"', secret[2], b"after"]
            assert [r.body for r in await backend.read("s/3")] == [secret[4], b'"gone"']
            await backend.drop("s/1")
            await backend.drop("s/3")
            left = files(running)
            assert [s for s in secret if s in left] == []
            assert [r.body for r in await backend.feed()] == [b"kept"]
            assert await backend.check() == []


async def test_a_stale_writer_cannot_write_behind_a_rewritten_head(url):
    async with opened(url) as backend, opened(url) as other:
        await backend.commit([begun("s/1", b"1")])
        await other.commit([following("s/1", 1, b"2")])
        assert await other.rewrite([entry("s/1", 2, b"gone")]) == 1
        (outcome,) = await backend.commit([following("s/1", 1, b"stale")])
        assert outcome == Refused((Head("s/1", 2, chain("s/1", 2), "change"),))
        assert isinstance((await backend.commit([following("s/1", 2, b"3")]))[0], Committed)
        for handle in (backend, other):
            assert [r.body for r in await handle.read("s/1")] == [b"1", b"gone", b"3"]
            assert [r.body for r in await handle.feed()] == [b"1", b"gone", b"3"]


async def test_rewriting_that_was_interrupted_is_read_as_done_and_finished_by_scrubbing():
    with server() as running:
        async with opened(running.url) as backend:
            await backend.commit([begun("s/1", b"the secret", b"2")])

            async def interrupted(_=None):
                raise StorageUnavailable("cut off")

            backend._log.clear, clear = interrupted, backend._log.clear
            with pytest.raises(StorageUnavailable):
                await backend.rewrite([entry("s/1", 1, b"gone")])
            backend._log.clear = clear
            assert [r.body for r in await backend.read("s/1")] == [b"gone", b"2"]
            assert b"the secret" in files(running)
            await backend.scrub()
            assert b"the secret" not in files(running)
            assert [r.body for r in await backend.feed()] == [b"gone", b"2"]
            assert isinstance((await backend.commit([following("s/1", 2)]))[0], Committed)


async def test_a_run_is_rewritten_twice(url):
    async with opened(url) as backend:
        await backend.commit([begun("s/1", b"1", b"2", b"3")])
        for body in (b"x", b"y" * 2_000_000, b"z"):
            assert await backend.rewrite([entry("s/1", 2, body)]) == 1
            assert [r.body for r in await backend.read("s/1")] == [b"1", body, b"3"]
        assert await backend.trim("s/1", 2) == 2
        assert [r.body for r in await backend.feed()] == [b"3"]
        assert (await backend.stats()).size_bytes < 10_000


# damage


async def test_damage_is_found_and_never_answered(url):
    async with opened(url) as backend, behind(url) as stream:
        await backend.commit([begun("s/1", b"1", b"2"), begun("s/2", b"1", cells=[CellWrite("c", None, b"1")])])
        await backend.put_blob("b", b"1")
        await backend.put_keyframe(Keyframe("s/2", 1, bytes(32), 1, bytes(32), b"1"))
        assert await backend.check() == []
        await stream.publish(
            backend._places.record("s/1"), b"garbage", headers={"Quire": '{"first":3,"head":[3,"00","x"]}'}
        )
        await stream.publish(backend._places.cell("c"), b"garbage")
        await stream.publish(backend._places.beside("b", "b"), b"garbage")
        await stream.publish(backend._frame("s/2", 1), b"garbage")
        for call in (
            lambda: backend.read("s/1"),
            backend.feed,
            lambda: backend.cell("c"),
            lambda: backend.blob("b"),
            lambda: backend.keyframe("s/2"),
        ):
            with pytest.raises(CorruptRecord):
                await call()
        assert len(await backend.check()) == 4
        await stream.publish(backend._places.record("s/2"), b"garbage", headers={"Quire": "no json"})
        with pytest.raises(CorruptRecord):
            await backend.heads(["s/2"])


async def test_a_record_that_is_missing_is_found(url):
    async with opened(url) as backend, behind(url) as stream:
        await backend.commit([begun("s/1", b"1")])
        await backend.commit([following("s/1", 1)])
        await backend.commit([following("s/1", 2)])
        (_, newest) = (await backend._log.newest(["s/1"]))[0]
        await stream.delete_msg(name_of(url), newest - 1)
        assert any("s/1" in problem for problem in await backend.check())


# waiting, and the rest


async def test_who_waits_is_told_when_the_server_goes():
    with server() as running:
        address = Address([f"127.0.0.1:{running.port}"], None, None)
        backend = await open_nats(address, namespace="default", patience_s=0.2)
        await scenes.waiter_told(running, backend, lambda: backend._heard_on)
        await backend.close()


async def test_after_a_restart_writers_get_at_most_a_retryable_error_and_readers_none():
    with server() as running:
        async with quire.open(running.url) as store:
            wf = await store.create("w", {"n": 0})
            running.restart()
            try:
                await wf.set("/n", 1)
            except StorageError as error:
                assert error.retryable
                assert await wf.get("/n") == 0
                await wf.set("/n", 1)
            running.restart()
            assert await wf.get("/n") == 1


async def test_a_handle_from_before_a_fork_is_closed_in_the_child(url):
    async with opened(url) as backend:
        await scenes.forked(backend)


async def test_a_full_server_is_told(url):
    wire = Wire(Address([f"127.0.0.1:{shared(NatsServer).port}"], None, None), 5)
    message = nats.aio.msg.Msg(
        None, data=b'{"error":{"code":500,"err_code":10047,"description":"insufficient storage"}}'
    )
    with pytest.raises(StorageFull):
        wire.judged(message)
    with suppress(StorageError):
        await wire.close()


def test_two_processes_write_to_one_workflow_and_lose_nothing(url):
    scenes.rivals(url)
