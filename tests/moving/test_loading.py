"""Loading one step at a time, and that verification finds what a faulty loader does: the controls."""

import msgspec
import pytest

import quire
from quire.engine.moving.comparing import Comparison
from quire.engine.moving.copying import copy
from quire.engine.moving.loading import Loader
from quire.errors import Conflict, CorruptRecord, IncompatibleFormat, StorageUnavailable
from quire.storage.base import CellWrite, Item
from quire.storage.memory import open_memory

from .sources import do, everything, filled, trim


def placeholders(records):
    return [r for r in records if r.message.startswith("a placeholder")]


async def no_base(stream, version):
    raise CorruptRecord(f"{stream}@{version} does not begin late")


async def test_a_stream_that_begins_late_begins_there_in_the_target_too():
    async with quire.open("memory:") as source:
        for name in ("a", "b"):
            await do(source, "create", name, 0)
            await do(source, "many", name, 0)
        await trim(source, "a", 3)
        backend, target = source.engine.backend, await open_memory("", namespace="n")
        async with Loader(target, "s", backend.keyframe) as loader:
            await loader.begin()
            await loader.take(await backend.feed())
            await loader.flush()
        wanted, found = await everything(backend), await everything(target)
        assert (found["records"], found["heads"]) == (wanted["records"], wanted["heads"])
        assert [r.version for r in await target.read("workflows/a")][0] > 1
        assert await target.keyframes("workflows/a") == await backend.keyframes("workflows/a")


async def test_pages_may_be_cut_anywhere_and_taken_again():
    async with filled("memory:") as source:
        feed = await source.engine.backend.feed(limit=100_000)
        backend, target = source.engine.backend, await open_memory("", namespace="n")
        for start in range(0, len(feed), 7):  # a loader for each page, each beginning before where the last one stood
            async with Loader(target, "s", backend.keyframe) as loader:
                assert (await loader.begin()).position == (feed[start - 1].position if start else 0)
                await loader.take(feed[max(0, start - 10) : start + 7])
                await loader.flush()
        assert (await everything(target))["records"] == (await everything(backend))["records"]


@pytest.mark.parametrize(
    ("alter", "error"),
    [
        (lambda r: msgspec.structs.replace(r, body=b'[["inc",["n"],2]]'), CorruptRecord),
        (lambda r: msgspec.structs.replace(r, author="eve"), CorruptRecord),
        (lambda r: msgspec.structs.replace(r, chain=bytes(32)), CorruptRecord),
        (lambda r: msgspec.structs.replace(r, version=r.version + 1), CorruptRecord),
    ],
)
async def test_a_record_that_was_altered_on_the_way_is_not_written(alter, error):
    async with quire.open("memory:") as source:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        feed = await source.engine.backend.feed()
        target = await open_memory("", namespace="n")
        async with Loader(target, "s", no_base) as loader:
            await loader.begin()
            await loader.take(feed[:5])
            await loader.flush()
            with pytest.raises(error):
                await loader.take([alter(feed[5])])
        assert len(await target.feed()) == 5


async def test_a_keyframe_that_is_damaged_or_of_another_log_begins_nothing():
    async with quire.open("memory:") as source:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        await trim(source, "a", 3)
        backend = source.engine.backend
        frame = await backend.keyframe("workflows/a")
        for wrong in (
            msgspec.structs.replace(frame, body=frame.body[:-1] + b"x"),
            msgspec.structs.replace(frame, chain=bytes(32)),
            msgspec.structs.replace(frame, version=3),
        ):

            async def base(stream, version, wrong=wrong):
                return wrong

            target = await open_memory("", namespace="n")
            async with Loader(target, "s", base) as loader:
                await loader.begin()
                with pytest.raises(CorruptRecord):
                    await loader.take(await backend.feed())
            assert await target.feed() == []


async def test_two_that_load_at_once_refuse_each_other():
    async with quire.open("memory:") as source:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        feed = await source.engine.backend.feed()
        target = await open_memory("", namespace="n")
        async with Loader(target, "s", no_base) as one, Loader(target, "s", no_base) as other:
            await one.begin()
            await other.begin()
            await one.take(feed)
            await one.flush()
            with pytest.raises(Conflict, match="another copy"):
                await other.take(feed[:3])
                await other.flush()
        assert len(await target.feed()) == len(feed)


async def test_somebody_who_writes_to_the_target_ends_the_copy():
    async with quire.open("memory:") as source, quire.open("memory:written-to") as written:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        feed = await source.engine.backend.feed()
        target = written.engine.backend
        async with Loader(target, "s", no_base) as loader:
            await loader.begin()
            await loader.take(feed[:5])
            await loader.flush()
            await written.workflow("a").set("/mine", 1)
            with pytest.raises(Conflict, match="workflows/a"):
                await loader.take(feed[5:])
                await loader.flush()
        assert await written.workflow("a").get("/mine") == 1


@pytest.mark.parametrize(
    ("value", "error"),
    [(b"no", CorruptRecord), (b'{"format":1,"position":"x"}', CorruptRecord), (b'{"format":2}', IncompatibleFormat)],
)
async def test_progress_that_cannot_be_read_is_an_error(value, error):
    target = await open_memory("", namespace="n")
    await target.commit([Item(cells=(CellWrite("copies/s", None, value),))])
    with pytest.raises(error):
        await Loader(target, "s", no_base).begin()


async def test_a_commit_that_fails_is_told_and_the_next_loader_goes_on(monkeypatch):
    async with quire.open("memory:") as source:
        await do(source, "create", "a", 0)
        await do(source, "many", "a", 0)
        backend, target = source.engine.backend, await open_memory("", namespace="n")
        monkeypatch.setattr("quire.engine.moving.loading._RECORDS_MAX", 4)
        commit, calls = target.commit, []

        async def failing(items):
            calls.append(items)
            if len(calls) >= 3:
                raise StorageUnavailable("the network is gone")
            return await commit(items)

        target.commit = failing
        with pytest.raises(StorageUnavailable):
            await copy(backend, target, ids=lambda: "id")
        assert 0 < len(await target.feed()) < 20
        target.commit = commit
        copied = await copy(backend, target, ids=lambda: "id")
        assert 0 < copied.versions < 20 and copied.verified == 20


# controls: a loader that does wrong must be found out


def skipping(loader, entry, add):
    return None if entry.stream == "workflows/b" and entry.version == 20 else add(loader, entry)


def doubling(loader, entry, add):
    async def twice():
        await add(loader, entry)
        if entry.stream == "workflows/b" and entry.version == 20:
            await add(loader, msgspec.structs.replace(entry, version=entry.version + 1))

    return twice()


def altering(loader, entry, add):
    if entry.stream == "workflows/a" and entry.version == 5:
        entry = msgspec.structs.replace(entry, body=entry.body.replace(b"inc", b"set"))
    return add(loader, entry)


def renaming(loader, entry, add):
    return add(loader, msgspec.structs.replace(entry, author="eve") if entry.version == 3 else entry)


@pytest.mark.parametrize("fault", [skipping, doubling, altering, renaming])
async def test_verification_finds_what_a_faulty_loader_does(monkeypatch, fault):
    async with quire.open("memory:") as source:
        for name in ("a", "b"):
            await do(source, "create", name, 0)
            await do(source, "many", name, 0)
        add = Loader._add

        async def wrong(loader, entry):
            done = fault(loader, entry, add)
            if done is not None:
                await done

        monkeypatch.setattr(Loader, "_add", wrong)
        target = await open_memory("", namespace="n")
        with pytest.raises(CorruptRecord) as caught:
            await copy(source.engine.backend, target, ids=lambda: "id")
        assert "copy" in str(caught.value) and caught.value.__notes__
        assert (
            len((await target.cells("copies/"))[0].value)
            and b"verified" not in (await target.cells("copies/"))[0].value
        )
        monkeypatch.undo()
        assert (await copy(source.engine.backend, await open_memory("", namespace="n"), ids=lambda: "id")).verified


async def test_verification_finds_another_rest_of_a_redaction():
    """A chain does not cover what is left of a body that something was taken out of."""
    async with quire.open("memory:") as source:
        await do(source, "create", "a", 0)
        await do(source, "wipe", "a", 0)
        backend, target = source.engine.backend, await open_memory("", namespace="n")
        await copy(backend, target, ids=lambda: "id")
        (first,) = await target.read("workflows/a", upto=1)
        body = first.body.replace(b"[REDACTED]", b"[IMPROVED]")
        assert body != first.body
        await target.rewrite([msgspec.structs.replace(first, body=body)])
        seen = Comparison()
        await seen.read_back(backend, target, 0)
        assert len(seen.problems) == 1 and "redaction" in seen.problems[0]
        assert (await copy(backend, target, ids=lambda: "id")).redacted == 1  # and another copy mends it
        assert await everything(target) == await everything(backend)


async def test_verification_finds_a_blob_that_did_not_arrive(monkeypatch):
    async with quire.open("memory:") as source:
        await source.put_blob(b"tides")
        target = await open_memory("", namespace="n")

        async def lost(name, data):
            pass

        target.put_blob = lost
        with pytest.raises(CorruptRecord, match="blob"):
            await copy(source.engine.backend, target, ids=lambda: "id")


async def test_damage_in_the_source_is_told_and_not_carried_on():
    async with quire.open("memory:") as source:
        name = await source.put_blob(b"tides")
        source.engine.backend._space.blobs[name] = b"altered"
        target = await open_memory("", namespace="n")
        with pytest.raises(CorruptRecord, match="blob"):
            await copy(source.engine.backend, target, ids=lambda: "id")
        assert await target.blobs() == []
