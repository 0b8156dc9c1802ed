"""Copies: everything of one namespace, byte for byte, between any two stores; again and again into the same one."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire.api.trigger_desk import Desk
from quire.engine.moving.copying import copy
from quire.errors import Conflict, Invalid, NotFound
from quire.storage.memory import open_memory
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

from . import sources
from .sources import NAMES, OPERATIONS, assert_copied, do, everything, filled, trim

EMBEDDED = ("memory", "sqlite", "files", "rocksdb")
SERVERS = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
KEY = bytes(range(32))


def place(kind, folder, name):
    if kind in SERVERS:
        return shared(SERVERS[kind]).place(f"{folder}/{name}")
    if kind == "rocksdb":
        pytest.importorskip("rocksdict")
    paths = {
        "memory": f"memory:{folder.name}-{name}",
        "sqlite": f"{folder}/{name}.db",
        "files": f"file:///{folder}/{name}-files",
        "rocksdb": f"rocksdb:///{folder}/{name}-rocks",
    }
    return paths[kind]


async def moved_there_and_compared(source, url, **how):
    """Copy and look; the target is opened first where it would be gone with its last handle."""
    if url.startswith("rocksdb:"):  # for one process and one handle
        copied = await source.copy_to(url, **how)
        async with quire.open(url, **{k: v for k, v in how.items() if k != "progress"}) as target:
            await assert_copied(source, target)
        return copied
    async with quire.open(url, **{k: v for k, v in how.items() if k != "progress"}) as target:
        copied = await source.copy_to(url, **how)
        await assert_copied(source, target)
    return copied


@pytest.mark.parametrize("target", EMBEDDED)
@pytest.mark.parametrize("source", EMBEDDED)
async def test_every_embedded_store_moves_to_every_other(tmp_path, source, target):
    async with filled(place(source, tmp_path, "from")) as store:
        copied = await moved_there_and_compared(store, place(target, tmp_path, "to"))
        assert copied.verified >= copied.versions > 100
        assert copied.blobs and copied.cells and not copied.beyond


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", SERVERS)
async def test_servers_are_moved_to_and_from(tmp_path, kind):
    async with filled(place("sqlite", tmp_path, "from")) as store:
        await moved_there_and_compared(store, place(kind, tmp_path, "there"))
        await store.workflow("c").redact(text=sources.SECRET)
        await trim(store, "c", 2)
        await do(store, "event", "a", 9)
        await moved_there_and_compared(store, place(kind, tmp_path, "there"))
    async with quire.open(place(kind, tmp_path, "there")) as store:
        await moved_there_and_compared(store, place("files", tmp_path, "back"))


async def test_wrappers_are_put_on_and_taken_off(tmp_path):
    async with filled(place("sqlite", tmp_path, "plain")) as store:
        await moved_there_and_compared(store, place("sqlite", tmp_path, "sealed"), encryption_key=KEY)
        async with quire.open(place("sqlite", tmp_path, "sealed"), encryption_key=KEY) as sealed:
            await moved_there_and_compared(sealed, place("files", tmp_path, "small"), compression="zstd")
            await moved_there_and_compared(sealed, place("memory", tmp_path, "bare"))
        async with quire.open(place("files", tmp_path, "small")) as small:
            await assert_copied(store, small)
    assert sources.SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("sealed.db*"))


A_STEP = st.tuples(st.sampled_from((*OPERATIONS, "copy", "copy")), st.sampled_from(NAMES), st.integers(0, 2))


async def followed(steps):
    """Do all steps, copy, and compare; then another copy finds nothing to do."""
    async with quire.open("memory:plan-from") as source, quire.open("memory:plan-to") as target:
        for name in NAMES:
            await do(source, "create", name, 0)
            await do(source, "many", name, 0)
        for operation, name, number in steps:
            if operation == "copy":
                await source.copy_to("memory:plan-to")
            else:
                await do(source, operation, name, number)
        await source.copy_to("memory:plan-to")
        await assert_copied(source, target)
        again = await source.copy_to("memory:plan-to")
        assert (again.versions, again.cells, again.blobs, again.redacted, again.trimmed) == (0, 0, 0, 0, 0)


@settings(max_examples=60)
@given(steps=st.lists(A_STEP, min_size=10, max_size=50))
def test_whatever_was_done_between_copies_the_last_one_is_equal(steps):
    """Forks, merges, redactions, trims, events, triggers, scopes, with copies in between."""
    asyncio.run(followed(steps))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@settings(max_examples=3000)
@given(steps=st.lists(A_STEP, min_size=10, max_size=120))
def test_whatever_was_done_between_copies_the_last_one_is_equal_for_long(steps):
    asyncio.run(followed(steps))


async def test_what_was_trimmed_or_thinned_since_goes_from_the_target_too():
    async with quire.open("memory:thin-from") as source, quire.open("memory:thin-to") as target:
        for name in NAMES:
            await do(source, "create", name, 0)
            for _ in range(3):
                await do(source, "many", name, 0)
                await do(source, "frame", name, 0)
        await source.copy_to("memory:thin-to")
        await trim(source, "a", 5)
        await source.engine.backend.drop_keyframes("workflows/b", [41])
        copied = await source.copy_to("memory:thin-to")
        assert copied.trimmed == (await source.workflow("a").version()).number - 6
        await assert_copied(source, target)
        for _ in range(2):  # trimmed past what was copied: what lies between is in neither
            await do(source, "many", "c", 1)
        await trim(source, "c", 2)
        await source.copy_to("memory:thin-to")
        await assert_copied(source, target)


async def test_keyframes_of_events_that_were_let_go_leave_no_blobs_behind():
    async with quire.open("memory:sums-from") as source, quire.open("memory:sums-to") as target:
        for i in range(12):
            await do(source, "event", "a", i)
        await source.copy_to("memory:sums-to")
        before = set(await target.engine.backend.blobs())
        for i in range(40):
            await do(source, "event", "a", i)
        await source.copy_to("memory:sums-to")
        assert before - set(await target.engine.backend.blobs())
        await assert_copied(source, target)


async def test_no_cell_tells_of_a_version_that_the_target_does_not_have(monkeypatch):
    """Somebody writes with a key between reading the cells and writing them."""
    async with quire.open("memory:late-from") as source, quire.open("memory:late-to") as target:
        wf = await source.create("w", {"n": 0})
        backend = source.engine.backend
        cells = backend.cells

        async def late(*args, **how):
            await wf.inc("/n", idempotency_key=f"late-{(await wf.version()).number}")
            return await cells(*args, **how)

        monkeypatch.setattr(backend, "cells", late)
        await source.copy_to("memory:late-to")
        keys = await target.engine.backend.cells("idempotency/")
        head = (await target.workflow("w").version()).number
        assert [int(c.value.split()[1]) for c in keys] == [head] == [2]


async def test_what_was_redacted_since_is_nowhere_in_the_target(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as source:
        await do(source, "create", "a", 0)
        await source.workflow("a").checkpoint("whole", kind="snapshot")
        await do(source, "fork", "a", 1)
        for name in ("a", "a1"):
            await do(source, "change", name, 1)
            await do(source, "frame", name, 1)
        await source.copy_to(str(tmp_path / "t.db"))
        assert sources.SECRET.encode() in (tmp_path / "t.db").read_bytes()
        await source.workflow("a").redact(text=sources.SECRET)
        copied = await source.copy_to(str(tmp_path / "t.db"))
        assert copied.redacted
        async with quire.open(str(tmp_path / "t.db")) as target:
            await assert_copied(source, target)
    assert sources.SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("t.db*"))


@pytest.mark.parametrize("trimmed", ["before", "between", "after"])
async def test_what_only_a_keyframe_knew_is_redacted_there_too(tmp_path, trimmed):
    """A trimmed log begins with a keyframe: what was in it no record tells of."""
    async with quire.open(str(tmp_path / "s.db")) as source:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        await do(source, "frame", "a", 0)
        for i in range(10):
            await do(source, "change", "a", i)
        if trimmed == "before":
            await trim(source, "a", 10)
        await source.workflow("a").delete("/key")
        await source.workflow("a").set("/other", 1)
        await source.copy_to(str(tmp_path / "t.db"))
        if trimmed == "between":
            await trim(source, "a", 5)
        await source.workflow("a").redact(text=sources.SECRET)
        if trimmed == "after":
            await trim(source, "a", 5)
        await source.copy_to(str(tmp_path / "t.db"))
        async with quire.open(str(tmp_path / "t.db")) as target:
            await assert_copied(source, target)
    if trimmed != "between":  # then nothing in the source tells that there was a redaction: only trimming is followed
        assert sources.SECRET.encode() not in b"".join(p.read_bytes() for p in tmp_path.glob("t.db*"))


async def test_writers_go_on_while_it_is_copied(tmp_path):
    url = str(tmp_path / "t.db")
    async with quire.open(str(tmp_path / "s.db")) as source:
        flows = [await source.create(f"w{i}", {"n": 0}) for i in range(8)]
        done = asyncio.Event()
        written = [0] * len(flows)

        async def write(i):
            while not done.is_set():
                await flows[i].inc("/n", idempotency_key=f"{i}-{written[i]}")
                written[i] += 1
                if written[i] % 5 == 0:
                    await flows[i].checkpoint(f"c{written[i]}", kind="snapshot")

        writers = [asyncio.create_task(write(i)) for i in range(len(flows))]
        while sum(written) < 200:
            await asyncio.sleep(0)
        live = [await source.copy_to(url) for _ in range(5)]
        done.set()
        await asyncio.gather(*writers)
        last = await source.copy_to(url)
        assert all(c.versions for c in live)
        assert last.position == (await source.stats()).position
        async with quire.open(url) as target:
            await assert_copied(source, target)
            for i, wf in enumerate(flows):
                assert await target.workflow(wf.id).get("/n") == written[i]


async def test_large_records_are_read_a_few_at_a_time(monkeypatch):
    """Memory is bounded by bytes, not by how many records there are."""
    async with quire.open("memory:large-from") as source, quire.open("memory:large-to") as target:
        wf = await source.create("w", {"text": ""})
        for i in range(40):
            await wf.set("/text", str(i) * 500_000)
        backend, asked = source.engine.backend, []
        feed = backend.feed

        async def watched(after=0, *, limit=1000):
            page = await feed(after, limit=limit)
            asked.append(sum(len(r.body) for r in page))
            return page

        monkeypatch.setattr(backend, "feed", watched)
        await source.copy_to("memory:large-to")
        assert max(asked[1:]) < 8 << 20 and max(asked) < 16 << 20 and len(asked) > 3
        monkeypatch.undo()
        await assert_copied(source, target)


async def test_a_writer_that_was_answered_twice_is_not_answered_a_third_time():
    """Keys of writes go along: what was written here is not written again there."""
    async with quire.open("memory:once-from") as source, quire.open("memory:once-to") as target:
        wf = await source.create("w", {"n": 0})
        made = await wf.inc("/n", idempotency_key="k")
        await source.copy_to("memory:once-to")
        assert (await target.workflow("w").inc("/n", idempotency_key="k")).number == made.number
        assert await target.workflow("w").get("/n") == 1


async def test_what_expires_keeps_what_is_left_of_its_time():
    now = 1_700_000_000_000
    source = await open_memory("", namespace="n", now_ms=lambda: now)
    target = await open_memory("", namespace="n", now_ms=lambda: 5_000)
    from quire.storage.base import CellWrite, Item

    cells = (CellWrite("idempotency/a", None, b"1", 1000), CellWrite("other", None, b"2"))
    leases = (CellWrite("leases/triggers/t", None, b"me", 9000), CellWrite("gone", None, b"3", 100))
    await source.commit([Item(cells=(*cells, *leases))])
    now += 400
    await copy(source, target, ids=lambda: "id")
    left = {c.name: (c.value, c.expires) for c in await target.cells() if not c.name.startswith("copies/")}
    assert left == {"idempotency/a": (b"1", 5_600), "other": (b"2", None)}


async def test_triggers_and_cursors_go_on_where_they_stood(tmp_path):
    """Positions are others there: the source has another namespace in between."""
    path, told = str(tmp_path / "s.db"), []
    async with quire.open(path) as source, quire.open(path, namespace="other") as other:
        wf = await source.create("w", {"n": 0})
        await Desk(source.engine, "t").register(0)
        for i in range(10):
            await (await other.create(f"o{i}", {})).set("/x", i)
            await wf.set("/n", i + 1)
        third = (await wf.version(3)).position
        await sources.moved(source, "store/mailer", third)
        await sources.moved(source, "triggers/t", third)
        target_url = str(tmp_path / "t.db")
        await source.copy_to(target_url)
    async with quire.open(target_url) as target:
        first = (await target.workflow("w").version(3)).position
        assert first != third
        async with asyncio.timeout(30):
            async for event in target.watch(cursor="mailer"):
                told.append(event.version.number)
                if len(told) == 8:
                    break
            assert told == [4, 5, 6, 7, 8, 9, 10, 11]
            seen, enough = [], asyncio.Event()

            def tell(event):
                seen.append(event.version.number)
                if len(seen) == 8:
                    enough.set()

            await target.trigger("t", tell)
            await enough.wait()
            assert seen == told


async def test_a_dropped_trigger_can_begin_again_in_the_target():
    async with quire.open("memory:drop-from") as source, quire.open("memory:drop-to") as target:
        await source.create("w", {})
        await Desk(source.engine, "t").register(0)
        await source.copy_to("memory:drop-to")
        await source.drop_trigger("t")
        await source.copy_to("memory:drop-to")
        assert await target.triggers() == []
        async with asyncio.timeout(30):
            await target.trigger("t", lambda event: None)


async def test_nothing_of_one_namespace_gets_into_another(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path, namespace="ann") as ann, quire.open(path, namespace="bob") as bob:
        await ann.create("w", {"of": "ann"})
        await ann.put_blob(b"ann's")
        await bob.create("w", {"of": "bob"})
        await bob.put_blob(b"bob's")
        await ann.copy_to(str(tmp_path / "t.db"))
        await bob.copy_to(str(tmp_path / "t.db"))
        await ann.copy_to(path, namespace="carol")  # within one file
        async with quire.open(path, namespace="carol") as carol:
            await assert_copied(ann, carol)
        for store, name in ((ann, "ann"), (bob, "bob")):
            async with quire.open(str(tmp_path / "t.db"), namespace=name) as target:
                await assert_copied(store, target)
                assert await target.workflow("w").state() == {"of": name}


async def test_what_the_source_does_not_have_stays_and_is_told():
    async with quire.open("memory:more-from") as source, quire.open("memory:more-to") as target:
        mine = await target.create("mine", {"n": 1})
        blob = await target.put_blob(b"mine")
        await source.create("w", {})
        copied = await source.copy_to("memory:more-to")
        assert copied.beyond == ["workflows/mine"]
        assert await mine.state() == {"n": 1} and await target.blob(blob) == b"mine"


@pytest.mark.parametrize("how", ["other", "ahead", "forked"])
async def test_a_target_with_another_history_is_refused_before_anything_is_written(how):
    async with quire.open("memory:no-from") as source, quire.open("memory:no-to") as target:
        flow = await source.create("a", {"n": 0})
        for _ in range(1100):  # what differs comes late: it has to be looked for beforehand
            await flow.inc("/n")
        await source.create("w", {"n": 0})
        if how == "other":
            await target.create("w", {"n": 1})
        else:
            await source.copy_to("memory:no-to")
            await target.workflow("w").set("/n", 2)
        if how != "other":
            for _ in range(1100):
                await flow.inc("/n")
        if how == "forked":
            for i in range(3, 6):
                await source.workflow("w").set("/n", i)
        for _ in range(1100):
            await flow.inc("/n")
        before = await everything(target.engine.backend)
        with pytest.raises(Conflict, match="w"):
            await source.copy_to("memory:no-to")
        assert await everything(target.engine.backend) == before


async def test_a_copy_that_was_worked_on_can_be_moved_back():
    async with quire.open("memory:back-a") as one, quire.open("memory:back-b") as other:
        wf = await one.create("w", {"n": 0})
        await one.copy_to("memory:back-b")
        await other.workflow("w").set("/n", 1)
        await other.copy_to("memory:back-a")
        assert await wf.get("/n") == 1
        await assert_copied(other, one)
        await one.copy_to("memory:back-b")


async def test_a_store_is_not_copied_to_itself_nor_to_nowhere(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        await store.create("w", {})
        for url in (path, f"sqlite:///{path}"):
            with pytest.raises(Invalid, match="same store"):
                await store.copy_to(url)
        for url in ("memory:", "MEMORY:?x=1"):
            with pytest.raises(Invalid, match="name"):
                await store.copy_to(url)


async def test_a_source_that_was_put_back_to_a_backup_is_noticed(tmp_path):
    """It gives positions again that the copy has seen: what it wrote since must not be taken for known."""
    old, now, there = (str(tmp_path / name) for name in ("old.db", "now.db", "there.db"))
    async with quire.open(now) as source:
        await source.create("a", {})
        await source.copy_to(there)
        await source.backup(old)
        for i in range(5):
            await source.create(f"lost{i}", {})
        await source.copy_to(there)
    async with quire.open(old) as source:
        for i in range(7):
            await source.create(f"new{i}", {})
        copied = await source.copy_to(there)
        assert len(copied.beyond) == 5
        async with quire.open(there) as target:
            assert len(await target.workflows()) == 13
        await source.create("lost0", {"other": 1})
        with pytest.raises(Conflict):
            await source.copy_to(there)


async def test_trimmed_streams_are_absent_or_whole_while_they_are_loaded():
    """At every commit of a copy, a reader of the target finds nothing or what is in the source."""
    async with quire.open("memory:trim-from") as source:
        await do(source, "create", "a", 0)
        for i in range(3):
            await do(source, "many", "a", i)
        await trim(source, "a", 3)
        wanted = await source.workflow("a").state()
        target = await open_memory("trim-to", namespace="default")
        looks, trim_of = [], target.trim

        async def looked(stream, upto):
            async with quire.open("memory:trim-to") as reader:
                looks.append(await reader.workflow("a").state())
            return await trim_of(stream, upto)

        put = target.put_keyframe

        async def before(frame):
            async with quire.open("memory:trim-to") as reader:
                with pytest.raises(NotFound):
                    await reader.workflow("a").state()
                await put(frame)
                with pytest.raises(NotFound):
                    await reader.workflow("a").state()
                looks.append(None)

        target.trim, target.put_keyframe = looked, before
        await copy(source.engine.backend, target, ids=lambda: "id")
        assert looks[0] is None and looks[-1] == wanted and len(looks) == 2
        await target.close()
