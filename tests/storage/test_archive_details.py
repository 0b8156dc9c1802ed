"""What an archive promises beyond the protocol: few segments, nothing plain, nothing left of what was removed, on any store."""

import asyncio
import shutil

import msgspec
import pytest
import zstandard

import quire
from quire.api.store import Store
from quire.config import Retention, Settings
from quire.core import keyframes, segment
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import CorruptRecord, Invalid, StorageError, StorageUnavailable
from quire.model import Cell, Head, Record
from quire.storage.base import CellWrite, Item
from quire.storage.objects.folder import Folder
from quire.storage.open import archive_of, open_backend
from quire.storage.wrap import ARCHIVE, _moving
from quire.storage.wrap._catalogue import PREFIX, Catalogue, Entry, elsewhere, read_about, read_catalogue, write
from quire.storage.wrap.archived import open_archived
from quire.testing._conformance_base import appended
from quire.testing.places import FailingPlace, Fault
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer
from quire.testing.servers.s3 import S3Server

RULES = Retention(versions=2, every_s=0)
SECRET = "sk-hunter2"


async def store_on(backend, rules=RULES, settings=None):
    engine = Engine(
        backend,
        settings or Settings(),
        SystemClock(),
        system_ids(),
        await backend.latest(),
        archive=archive_of(backend),
    )
    return Store(engine, "default", rules)


async def grown(store, name="w", count=12, **state):
    w = await store.create(name, {"n": 0, "log": [], **state}, author="ann")
    for n in range(count - 1):
        await w.append("/log", f"entry {n}")
    return w


async def states(workflow):
    return [await workflow.state(n) for n in range(1, (await workflow.version()).number + 1)]


def objects(place):
    return sorted(place.rglob("*.zst"))


async def catalogue(store, name="w"):
    return read_catalogue(await store.engine.archive.inner.cell(f"{PREFIX}workflows/{name}"))


# segments


async def test_many_small_sweeps_leave_few_segments(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), archive=str(tmp_path / "old"), retention=RULES) as store:
        w = await grown(store)
        for _ in range(60):
            for _ in range(3):
                await w.inc("/n")
            await store.sweep()
        (held,) = (await store.archived()).streams
        assert held.versions == 12 + 180 - 2
        assert held.segments - len(held.kept) <= 8
        assert len(objects(tmp_path / "old")) == held.segments - 1  # the first version is kept within the store
        assert [v.number for v in await w.history(order="oldest")] == list(range(1, 193))
        assert (await store.archived(check=True)).problems == []


async def test_a_segment_is_closed_when_it_is_heavy(tmp_path, monkeypatch):
    monkeypatch.setattr(_moving, "_SEGMENT_BYTES", 20_000)
    async with quire.open(str(tmp_path / "s.db"), retention=RULES, settings=Settings(keyframe_changes_min=9)) as store:
        w = await grown(store, count=300)
        before = await states(w)
        await store.sweep()
        known = await catalogue(store)
        assert len(known.entries) > 3
        assert all(e.weight < 25_000 for e in known.entries)
        assert await states(w) == before


@pytest.mark.parametrize("weights", [[], [100], [100, 40], [900, 300, 100]])
def test_the_tail_that_is_rewritten_is_at_most_twice_what_comes(weights):
    entries, first = [], 1
    for n, weight in enumerate(weights):
        entries.append(Entry(str(n), 1, first, first + 9, first, first + 9, weight=weight))
        first += 10
    taken = Catalogue(entries=tuple(entries)).tail(first, 60, 1000)
    total = 60
    for e in reversed(taken):
        assert e.weight <= 2 * total
        total += e.weight
    assert total <= 1000
    assert not weights or len(taken) == {1: 1, 2: 2, 3: 2}[len(weights)]


async def test_what_is_packed_takes_a_fraction(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), retention=RULES) as store:
        w = await store.create("w", {"text": ""})
        for low in range(0, 3000, 500):
            await asyncio.gather(*(w.splice("/text", n, 0, "abcdefghij"[n % 10]) for n in range(low, low + 500)))
        done = await store.sweep()
        assert (await store.archived()).size_bytes / done.versions < 60


async def test_opening_a_folder_leaves_nothing_behind(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), archive=str(tmp_path / "old")):
        assert not (tmp_path / "old/probe").exists()


# what may not be read, and what may not be left


async def test_nothing_plain_is_in_the_objects_of_what_is_encrypted(tmp_path):
    place = tmp_path / "old"
    options = {"archive": str(place), "encryption_key": bytes(32), "retention": RULES}
    async with quire.open(str(tmp_path / "s.db"), settings=Settings(keyframe_changes_min=3), **options) as store:
        w = await grown(store, pin=SECRET)
        before = await states(w)
        await store.sweep()
        assert await states(w) == before
    data = b"".join(zstandard.decompress(p.read_bytes()) for p in objects(place))
    assert SECRET.encode() not in data
    assert b"entry" not in data
    assert b"ann" in data  # the control: names and authors stay readable, as in the store


def traces(path, place, text=SECRET):
    found = [p.name for p in path.parent.glob("s.db*") if text.encode() in p.read_bytes()]
    return found + [p.name for p in objects(place) if text.encode() in zstandard.decompress(p.read_bytes())]


@pytest.mark.parametrize("how", [{"text": SECRET}, {"path": "/pin"}])
async def test_redaction_leaves_no_trace_in_objects_and_keyframes(tmp_path, how):
    path, place = tmp_path / "s.db", tmp_path / "old"
    settings = Settings(keyframe_changes_min=3, keyframe_bytes_min=0)
    async with quire.open(str(path), archive=str(place), retention=RULES, settings=settings) as store:
        w = await grown(store, pin=SECRET)
        await w.checkpoint("kept", version=4)
        await store.sweep()
        await w.set("/pin", f"new {SECRET}")
        for _ in range(4):
            await w.inc("/n")
        await store.sweep()
        chains = [v.checksum for v in await w.history()]
        assert traces(path, place)
        await w.redact(**how)
        assert not traces(path, place)
        assert [v.checksum for v in await w.history()][-len(chains) :] == chains
        assert all(SECRET not in str(s) for s in await states(w))
        report = await store.verify()
        assert report.ok, report.problems
        assert (await store.archived(check=True)).problems == []


async def failing(tmp_path, rules=RULES, settings=None):
    place = FailingPlace(Folder(tmp_path / "old"))
    backend = await open_backend(str(tmp_path / "s.db"), namespace="default", archive=str(tmp_path / "old"))
    archive_of(backend).shelf._objects = place
    return place, await store_on(backend, rules, settings)


async def test_a_redaction_is_not_done_while_what_it_replaced_cannot_be_removed(tmp_path):
    place, store = await failing(tmp_path)
    w = await grown(store, pin=SECRET)
    await store.sweep()
    place.plan = Fault("delete", lasting=True)
    with pytest.raises(StorageUnavailable, match="injected"):
        await w.redact(text=SECRET)
    assert traces(tmp_path / "s.db", tmp_path / "old")
    assert (await catalogue(store)).gone  # nobody forgets it
    place.plan = None
    await w.redact(text=SECRET)
    assert not traces(tmp_path / "s.db", tmp_path / "old")
    assert not (await catalogue(store)).gone
    await store.close()


async def test_a_redaction_reaches_what_a_killed_sweep_wrote(tmp_path):
    place, store = await failing(tmp_path)
    await grown(store, pin=SECRET)

    async def die(*_args, **_options):
        raise asyncio.CancelledError

    store.engine.archive.books.record = die
    with pytest.raises(asyncio.CancelledError):
        await store.sweep()
    await store.close()
    place, store = await failing(tmp_path)
    assert objects(tmp_path / "old")
    await store.workflow("w").redact(text=SECRET)
    assert not objects(tmp_path / "old")
    assert not traces(tmp_path / "s.db", tmp_path / "old")
    await store.sweep()
    assert (await store.verify()).ok
    await store.close()


async def test_trimming_and_dropping_remove_the_objects(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), archive=str(tmp_path / "old"), retention=RULES) as store:
        for name in ("w", "v"):
            await grown(store, name)
        await store.sweep()
        backend = store.engine.backend
        assert await backend.trim("workflows/w", 5) == 5
        assert [r.version for r in await backend.read("workflows/w")] == list(range(6, 13))
        assert read_catalogue(await store.engine.archive.inner.cell(PREFIX + "workflows/w")).entries[0].first == 6
        await backend.drop("workflows/w")
        assert await backend.read("workflows/w", upto=9) == []
        assert len(objects(tmp_path / "old")) == 1  # that of the other
        await backend.drop("workflows/v")
        assert objects(tmp_path / "old") == []
        assert await store.engine.archive.inner.cells(PREFIX) == []
        store.engine.residents._actors.clear()
        w = await grown(store, "w", 5)  # the same name begins again, with nothing of the old
        await store.sweep()
        assert [v.number for v in await w.history(order="oldest")] == [1, 2, 3, 4, 5]
        assert (await store.verify()).ok


# places that fail


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("call", ["put", "get", "delete"])
async def test_every_call_may_fail_and_archiving_resumes(tmp_path, monkeypatch, call, lasting, through):
    monkeypatch.setattr(_moving, "_ABANDONED_MS", -60_000)  # what failed is not looked for again an hour later
    if through and call == "get":
        pytest.skip("reading has no other outcome")
    for at in range(1, 50):
        (tmp_path / str(at)).mkdir()
        place, store = await failing(tmp_path / str(at))
        w = await grown(store)
        await store.sweep()
        for n in range(20):
            await w.set("/n", n)
        before = await states(w)
        plan = place.plan = Fault(call, at=at, lasting=lasting, through=through)
        for _ in range(2):
            done = await store.sweep()
            assert not done.problems or plan.fired
            await w.set("/n", 100 + _)  # nobody who writes is in its way
        place.plan = None
        wanted = [*before, *(await states(w))[len(before) :]]
        await store.sweep()
        await store.close()
        store = await store_on(await open_backend(str(tmp_path / str(at) / "s.db"), namespace="default"))
        w = store.workflow("w")
        assert [v.number for v in await w.history(order="oldest")] == list(range(1, 34))
        assert await states(w) == wanted
        assert (await store.verify()).ok
        assert (await store.archived(check=True)).problems == []
        await store.sweep()
        known = await catalogue(store)
        assert not known.coming
        assert not known.gone
        assert len(objects(tmp_path / str(at) / "old")) == len([e for e in known.all() if not e.within])
        await store.close()
        if not plan.fired:
            break
    assert at > 1
    assert not plan.fired


async def test_nothing_is_removed_for_a_place_that_gives_back_something_else(tmp_path):
    place, store = await failing(tmp_path)
    w = await grown(store)
    for wrong in (
        lambda name, data: None,
        lambda name, data: data[:-1],
        lambda name, data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda name, data: b"",
    ):
        place.wrong = wrong
        done = await store.sweep()
        assert done.moved == {}
        assert "does not give back" in done.problems[0]
        assert len(await store.engine.archive.inner.read("workflows/w")) == 12
    place.wrong = None
    assert (await store.sweep()).versions == 10
    assert len(objects(tmp_path / "old")) == 1
    assert (await states(w))[0] == {"n": 0, "log": []}
    await store.close()


def truncate(data, _other):
    return data[: len(data) // 2]


def flip(data, _other):
    return data[:40] + bytes([data[40] ^ 4]) + data[41:]


def swap(_data, other):
    return other


def forge(data, _other):
    text = zstandard.decompress(data).replace(b"entry", b"forge")
    return zstandard.compress(text)


def bomb(_data, _other):
    return zstandard.compress(bytes(50_000_000))


def gone(_data, _other):
    return None


@pytest.mark.parametrize("damage", [truncate, flip, swap, forge, bomb, gone])
async def test_damage_is_said_of_each_stream_and_hides_nothing_else(tmp_path, damage):
    place = tmp_path / "old"
    async with quire.open(str(tmp_path / "s.db"), archive=str(place), retention=RULES) as store:
        for name in ("a", "b", "c"):
            await grown(store, name)
        await store.sweep()
        names = {n: (await catalogue(store, n)).entries[0].name for n in ("a", "b", "c")}
    files = {n: next(p for p in objects(place) if p.name.startswith(name)) for n, name in names.items()}
    others = {"a": files["c"].read_bytes(), "b": files["c"].read_bytes()}
    for name in ("a", "b"):
        data = damage(files[name].read_bytes(), others[name])
        files[name].unlink()
        if data is not None:
            files[name].write_bytes(data)
    async with quire.open(str(tmp_path / "s.db"), retention=RULES) as store:
        for name in ("a", "b"):
            w = store.workflow(name)
            with pytest.raises(CorruptRecord, match=f"the segment of workflows/{name} 1 to 10 is (damaged|gone)"):
                await w.state(5)
            assert len((await w.state())["log"]) == 11
            await w.inc("/n")
            assert (await w.version(1)).number == 1
        report = await store.verify()
        assert not report.ok
        assert all(any(f"workflows/{n}" in p for p in report.problems) for n in ("a", "b"))
        assert not any("workflows/c" in p for p in report.problems)
        assert len((await store.archived(check=True)).problems) == 2
        assert len(await states(store.workflow("c"))) == 12
        done = await store.sweep()  # what is new goes on its way
        assert done.moved == {"a": 1, "b": 1}
        assert not done.problems


async def test_a_damaged_version_that_was_kept_is_said(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), retention=RULES) as store:
        w = await grown(store)
        await store.sweep()
        inner = store.engine.archive.inner
        (kept,) = (await catalogue(store)).kept
        await inner.drop_blob(f"{ARCHIVE}/{kept.name}")
        store.engine.archive.shelf._forget(kept.name)
        assert any("segment of workflows/w 1 to 1 is gone" in p for p in (await store.verify()).problems)
        assert (await w.state(5))["log"] == [f"entry {n}" for n in range(4)]


async def test_a_forged_catalogue_is_found(tmp_path):
    async with quire.open(str(tmp_path / "s.db"), retention=RULES) as store:
        for name in ("a", "b"):
            await grown(store, name)
        await store.sweep()
        inner = store.engine.archive.inner
        mine, other = await inner.cell(PREFIX + "workflows/a"), await inner.cell(PREFIX + "workflows/b")
        await inner.commit([Item(cells=(CellWrite(mine.name, mine.value, other.value),))])
        with pytest.raises(CorruptRecord, match="another one's"):
            archive_of(store.engine.backend).shelf._cache.clear()
            await store.workflow("a").state(5)
        await inner.commit([Item(cells=(CellWrite(mine.name, other.value, b'{"entries": 5}'),))])
        with pytest.raises(CorruptRecord, match="damaged"):
            await store.workflow("a").state(5)
        assert any("workflows/a" in p for p in (await store.verify()).problems)


async def test_nothing_is_removed_that_the_archive_has_otherwise(tmp_path):
    """A catalogue that is left of another log of the same name."""
    backend = await open_backend(str(tmp_path / "s.db"), namespace="default", archive="store:")
    store = await store_on(backend)
    await grown(store)
    await store.sweep()
    await backend.inner.drop("workflows/w")  # as if killed in the middle of dropping it
    store.engine.residents._actors.clear()
    again = await grown(store, count=13)
    done = await store.sweep()
    assert "the archive has another one; nothing was removed" in done.problems[0]
    assert len(await states(again)) == 13
    await store.close()


# races


class Redacting:
    """Another handle on the store, that redacts at a point of a sweep."""

    def __init__(self, path):
        self.path = path
        self.done = False

    async def __call__(self):
        if not self.done:
            self.done = True
            async with quire.open(self.path) as store:
                await store.workflow("w").redact(text=SECRET)


@pytest.mark.parametrize(
    "where", ["shelf.put", "books.note", "books.record", "inner.trim", "inner.drop_keyframes", "inner.read"]
)
@pytest.mark.parametrize("after", [False, True])
async def test_a_redaction_at_any_point_of_a_sweep_leaves_nothing(tmp_path, where, after):
    path, place = str(tmp_path / "s.db"), tmp_path / "old"
    async with quire.open(
        path, archive=str(place), retention=RULES, settings=Settings(keyframe_changes_min=3)
    ) as store:
        w = await grown(store, pin=SECRET)
        archive, redact = store.engine.archive, Redacting(path)
        owner, _, name = where.partition(".")
        target = archive.mover._inner if owner == "inner" else getattr(archive, owner)
        real = getattr(target, name)

        async def raced(*args, **options):
            if not after:
                await redact()
            found = await real(*args, **options)
            if after:
                await redact()
            return found

        setattr(target, name, raced)
        await store.sweep()
        await store.sweep()
        assert redact.done
        assert SECRET not in str(await states(w))
        assert (await store.verify()).ok, (await store.verify()).problems
    async with quire.open(path) as store:
        await store.engine.backend.scrub()
        assert not traces(tmp_path / "s.db", place)
        assert (await store.verify()).ok


@pytest.mark.parametrize("careless", [False, True])
async def test_what_was_taken_out_between_reading_and_removing_is_not_brought_back(tmp_path, careless):
    """And the control: a mover that does not look again brings it back."""
    path = str(tmp_path / "s.db")
    async with quire.open(path, retention=RULES) as store, quire.open(path) as other:
        await grown(store, pin=SECRET)
        archive, real = store.engine.archive, store.engine.archive.shelf.put

        async def raced(made):  # as forgetting the history of a path does it, which scrubs nothing
            records = await other.engine.backend.read("workflows/w", upto=5)
            await other.engine.backend.rewrite([msgspec.structs.replace(r, body=b"[]") for r in records])
            await real(made)

        archive.shelf.put = raced
        if careless:

            async def change(*_args):
                pass

            archive.mover.change = change
        await store.sweep()
        bodies = [r.body for r in await store.engine.backend.read("workflows/w", upto=5)]
        assert (bodies == [b"[]"] * 5) is not careless


async def test_a_reader_in_another_process_follows_when_segments_are_replaced(tmp_path):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    async with quire.open(path, archive=place, retention=RULES) as store, quire.open(path) as reader:
        w = await grown(store)
        await store.sweep()
        shelf = reader.engine.archive.shelf
        real, swept = shelf.examine, []

        async def late(entry, stream):
            if not swept:
                swept.append(1)
                for _ in range(12):
                    await w.inc("/n")
                await store.sweep()  # takes the segment into another one, and removes it
            return await real(entry, stream)

        shelf.examine = late
        assert [r.version for r in await reader.engine.backend.read("workflows/w")][:12] == list(range(1, 13))
        swept.clear()
        shelf._cache.clear()
        positions = [r.position for r in await reader.engine.backend.feed(0)]
        assert positions == sorted(set(positions))
        assert len([r for r in await reader.engine.backend.feed(0) if r.stream == "workflows/w"]) == 36


async def test_the_feed_never_passes_over_what_others_write_while_it_reads(tmp_path):
    """What went to the archive since a page was read lies behind it, and so may what nobody moved."""
    path = str(tmp_path / "s.db")
    async with quire.open(path, retention=RULES) as store, quire.open(path, retention=RULES) as other:
        await grown(store, "a", 5)
        await store.sweep()
        books = store.engine.archive.books
        real, raced = books.about, []

        async def late():
            if not raced:
                raced.append(1)
                a = other.workflow("a")
                await grown(other, "b", 3)
                for _ in range(5):
                    await a.inc("/n")
                await other.sweep()
            return await real()

        books.about = late
        seen, after = [], 0
        while page := await store.engine.backend.feed(after):
            seen += [(r.stream, r.version) for r in page]
            after = page[-1].position
        assert raced
        assert sorted(seen) == sorted(
            [*(("workflows/a", n) for n in range(1, 11)), *(("workflows/b", n) for n in (1, 2, 3))]
        )


async def test_whoever_lags_does_not_wait_for_the_archive(tmp_path):
    path, place = str(tmp_path / "s.db"), tmp_path / "old"
    async with quire.open(path, archive=str(place), retention=RULES) as store, quire.open(path) as idle:
        w = await grown(store)
        assert (await idle.workflow("w").version()).number == 12
        for _ in range(30):
            await w.inc("/n")
        await store.sweep()
        shutil.rmtree(place)
        assert await idle.workflow("w").get("/n") == 30
        assert (await idle.workflow("w").inc("/n")).number == 43
        watching = idle.workflow("w").watch(after=12)
        with pytest.raises(CorruptRecord, match="gone"):  # this one asks for what is old
            await anext(watching)
        await watching.aclose()


async def test_closing_in_the_middle_of_a_sweep_harms_nobody(tmp_path):
    path = str(tmp_path / "s.db")
    for steps in range(0, 60, 3):
        store = await quire.open(path, retention=RULES)
        w = store.workflow("w") if await store.workflow("w").exists() else await grown(store)
        for _ in range(5):
            await w.inc("/n")
        task = asyncio.ensure_future(store.sweep())
        for _ in range(steps):
            await asyncio.sleep(0)
        writing = asyncio.ensure_future(w.inc("/n"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await writing
        await store.close()
    async with quire.open(path, retention=RULES) as store:
        await store.sweep()
        assert (await store.verify()).ok
        assert await store.workflow("w").get("/n") == 20 * 6


# copies


async def test_a_copy_never_removes_what_the_original_archived(tmp_path):
    place = tmp_path / "old"
    rules = {"archive": str(place), "retention": RULES}
    async with quire.open(str(tmp_path / "s.db"), **rules) as store:
        w = await grown(store, pin=SECRET)
        await store.sweep()
        before, first = await states(w), objects(place)
        await store.backup(str(tmp_path / "copy.db"))
        inner = store.engine.archive.inner
        cells = elsewhere([await inner.cell(ARCHIVE), *await inner.cells(PREFIX)])
    backend = await open_backend(str(tmp_path / "copy.db"), namespace="default")
    inner = archive_of(backend).inner
    await inner.commit([Item(cells=[CellWrite(c.name, (await inner.cell(c.name)).value, c.value) for c in cells])])
    assert read_about(cells[0]).top == 0
    copy = await store_on(backend)
    assert await states(copy.workflow("w")) == before
    assert [r.version for r in await backend.feed(0) if r.stream == "workflows/w"] == [11, 12]
    for _ in range(9):
        await copy.workflow("w").inc("/n")
    await copy.sweep()
    await copy.workflow("w").redact(text=SECRET)
    assert SECRET not in str(await states(copy.workflow("w")))
    await backend.drop("workflows/w")
    await copy.close()
    assert objects(place) == first
    async with quire.open(str(tmp_path / "s.db")) as store:
        assert await states(store.workflow("w")) == before


# protocol


async def test_a_version_to_be_kept_or_begun_with_needs_a_keyframe():
    backend = await open_archived(await open_backend("memory:", namespace="default"), namespace="default")
    await appended(backend, "s/1", *[b"x"] * 5)
    with pytest.raises(Invalid, match="what stays begins with version 4, which has no keyframe"):
        await backend.shelve("s/1", 3)
    await backend.put_keyframe(keyframes.make(Head("s/1", 4, bytes(32)), {}))
    with pytest.raises(Invalid, match="version 2 is to be kept, and has no keyframe"):
        await backend.shelve("s/1", 3, keep=[2])
    assert len(await backend.inner.read("s/1")) == 5
    assert await backend.shelve("s/1", 3) == 3
    with pytest.raises(Invalid, match="version 2 is to be kept, and has no keyframe"):
        await backend.hold("s/1", [2])
    await backend.put_keyframe(keyframes.make(Head("s/1", 2, bytes(32)), {}))
    assert await backend.hold("s/1", [2, 9]) == 1
    assert await backend.hold("s/1", [2]) == 0
    await backend.close()


def test_a_segment_says_who_it_is_by_a_salt():
    one, two = (
        segment.encode(segment.Segment("n", [Record("s", 1, 1, "", "", "", b"[]", bytes(32), 1)], [], salt))
        for salt in ("", "a")
    )
    assert segment.name_of(one) != segment.name_of(two)
    assert b"salt" not in zstandard.decompress(one)
    assert segment.decode(two, "s").salt == "a"


def test_a_catalogue_of_another_format_is_refused():
    cell = Cell(PREFIX + "s", write(Catalogue()).replace(b'"format":1', b'"format":2'))
    with pytest.raises(quire.errors.IncompatibleFormat, match="upgrade"):
        read_catalogue(cell)


# every store


@pytest.mark.parametrize("kind", [PostgresServer, RedisServer, NatsServer, "file", "rocksdb", "memory"])
async def test_every_store_can_have_an_archive(tmp_path, kind):
    if isinstance(kind, str):
        url = {"memory": "memory:archived"}.get(kind, f"{kind}:///{tmp_path}/store")
    else:
        url = shared(kind).place(tmp_path)
    place = str(tmp_path / "old")
    store = await quire.open(url, archive=place, retention=RULES)
    w = await grown(store, count=40)
    await w.checkpoint("kept", version=7)
    before, events = await states(w), [r.position for r in await store.engine.backend.feed(0)]
    done = await store.sweep()
    assert (done.moved, done.problems) == ({"w": 38}, [])
    for _ in range(3):
        await w.inc("/n")
        await store.sweep()
    assert (await states(w))[:40] == before
    assert [r.position for r in await store.engine.backend.feed(0)][: len(events)] == events
    await w.redact(text="entry 3")
    if kind != "memory":
        await store.close()
        store = await quire.open(url)
    assert "entry 3'" not in str(await states(store.workflow("w")))
    report = await store.verify()
    assert report.ok, report.problems
    await store.close()


async def test_an_archive_in_s3(tmp_path):
    with S3Server() as s3:
        url, path = s3.url("bucket", "deep/er"), str(tmp_path / "s.db")
        async with quire.open(path, archive=url, retention=RULES) as store:
            w = await grown(store, count=40, pin=SECRET)
            before = await states(w)
            assert (await store.sweep()).versions == 38
            for _ in range(30):
                await w.inc("/n")
            await store.sweep()
        async with quire.open(path) as store:
            w = store.workflow("w")
            assert (await states(w))[:40] == before
            assert (await store.verify()).ok
            await w.redact(text=SECRET)
            names = await store.engine.archive.shelf.names()
            held = await store.archived(check=True)
            assert held.problems == []
            assert held.place == url
            assert len(names) == held.streams[0].segments - 1
    async with quire.open(path) as store:  # it is away
        assert len((await store.workflow("w").state())["log"]) == 39
        assert (await store.workflow("w").inc("/n")).number == 72
        with pytest.raises(StorageError):
            store.engine.archive.shelf._objects = FailingPlace(Folder(tmp_path))
            store.engine.archive.shelf._objects.url = url
            store.engine.archive.shelf._objects.plan = Fault("get", lasting=True)
            await store.workflow("w").state(20)


@pytest.mark.parametrize("scrubbed", [True, False])
async def test_what_a_killed_sweep_stored_before_a_redaction_is_found_by_the_next(tmp_path, scrubbed):
    """Stored with the text, redacted here, and then killed: reading is answered from here, and nobody would look there."""
    path, place = str(tmp_path / "s.db"), tmp_path / "old"
    async with quire.open(path, archive=str(place), retention=RULES) as store:
        await grown(store, pin=SECRET)
        archive = store.engine.archive
        real = archive.books.record

        async def raced(*args, **options):
            records = await archive.inner.read("workflows/w")
            left = [r.body.replace(SECRET.encode(), b"x") for r in records]
            await archive.inner.rewrite(
                [msgspec.structs.replace(r, body=b) for r, b in zip(records, left, strict=True)]
            )
            await real(*args, **options)
            raise asyncio.CancelledError

        archive.books.record = raced
        with pytest.raises(asyncio.CancelledError):
            await store.sweep()
        archive.books.record = real
        assert traces(tmp_path / "s.db", place)
        assert SECRET not in str(await store.engine.backend.read("workflows/w"))
        await (store.engine.backend.scrub() if scrubbed else store.sweep())
        assert not [p for p in objects(place) if SECRET.encode() in zstandard.decompress(p.read_bytes())]


# keyframes that another process thins out


@pytest.mark.parametrize("moment", ["before it is looked for", "before what was before it goes", "after"])
async def test_what_stays_begins_with_a_keyframe_whoever_thins_them_out(tmp_path, monkeypatch, moment):
    async with quire.open(str(tmp_path / "s.db"), retention=RULES) as store:
        w = await grown(store)
        inner, times = store.engine.archive.inner, []
        shelve, trim = store.engine.archive.shelve, inner.trim

        async def thinned():
            if not times:
                times.append(1)
                assert 11 in await inner.keyframes("workflows/w")
                await inner.drop_keyframes("workflows/w", [11])

        async def shelving(*args, **kwargs):
            if moment == "before it is looked for":
                await thinned()
            return await shelve(*args, **kwargs)

        async def trimming(*args):
            if moment == "before what was before it goes":
                await thinned()
            gone = await trim(*args)
            if moment == "after":
                await thinned()
            return gone

        monkeypatch.setattr(store.engine.archive, "shelve", shelving)
        monkeypatch.setattr(inner, "trim", trimming)
        done = await store.sweep()
        assert times
        assert not done.problems
        assert done.moved == {"w": 10}
        assert [r.version for r in await inner.read("workflows/w")] == [11, 12]
        assert await inner.keyframes("workflows/w") == [11]
        assert len(await states(w)) == 12
        assert (await store.verify()).ok


async def killed(self, stream, upto):
    raise StorageUnavailable("killed here")


async def test_a_shorter_cut_finds_its_keyframe_where_another_process_stored_more_and_died(tmp_path, monkeypatch):
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    async with quire.open(path, archive=place, retention=RULES) as store:
        w = await grown(store)
        before = await states(w)
        with monkeypatch.context() as patch:
            patch.setattr(_moving.Mover, "_remove", killed)
            assert (await store.sweep()).problems
        assert (await store.archived()).versions == 10
        assert len(await store.engine.archive.inner.read("workflows/w")) == 12
        done = await store.sweep(retention=Retention(versions=6))
        assert not done.problems
        assert done.moved == {"w": 6}
        assert [r.version for r in await store.engine.archive.inner.read("workflows/w")] == [7, 8, 9, 10, 11, 12]
        assert 7 in await store.engine.archive.inner.keyframes("workflows/w")
        assert await states(w) == before
        assert (await store.verify()).ok


async def test_thinning_spares_what_a_sweep_elsewhere_made_the_beginning(tmp_path, monkeypatch):
    settings = Settings(keyframe_changes_min=1, keyframe_bytes_min=0, keyframe_ratio=0)
    path, place = str(tmp_path / "s.db"), str(tmp_path / "old")
    async with quire.open(path, archive=place, retention=RULES, settings=settings) as store:
        w = await grown(store, count=40)
        inner, dropped = store.engine.archive.inner, []
        drop = inner.drop_keyframes

        async def dropping(stream, versions):
            if stream == "workflows/w" and versions and not dropped:
                dropped.extend(versions)
                cut = versions[-1] - 1  # the other's sweep removes all before one that is to go now
                async with quire.open(path, settings=settings) as other:
                    await other.engine.archive.shelve(stream, cut)
            await drop(stream, versions)

        monkeypatch.setattr(inner, "drop_keyframes", dropping)
        for _ in range(40):
            await w.inc("/n")
        while store.engine._keyframer is not None:
            await asyncio.sleep(0.01)
        assert dropped
        first = (await inner.read("workflows/w", limit=1))[0].version
        assert first == dropped[-1]
        assert first in await inner.keyframes("workflows/w")
        assert (await store.verify()).ok
