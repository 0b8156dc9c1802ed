"""Backups that are damaged, forged or hard to reach: found before anything is used, named, and nobody is told a lie."""

import asyncio
import json

import msgspec
import pytest
import zstandard
from blake3 import blake3
from tests.moving.sources import do, everything, filled

import quire
from quire.api import backups as api
from quire.api import recovery
from quire.core import segment
from quire.engine.backing import books, recovering
from quire.engine.backing.shelf import Shelf
from quire.errors import CorruptRecord, IncompatibleFormat, NotFound, QuireError, StorageUnavailable
from quire.storage.objects import open_objects


async def shelved(folder):
    """A place with a full and an incremental backup of a store; return its URL and what the store holds."""
    shelf = f"file:///{folder}/place"
    async with filled(str(folder / "s.db")) as store:
        await store.backup(shelf)
        await do(store, "many", "a", 1)
        await do(store, "snapshot", "a", 9)
        await store.backup(shelf)
        return shelf, await everything(store.engine.backend)


def objects(folder):
    return sorted(f for f in (folder / "place").rglob("*") if f.is_file())


async def assert_found(shelf, folder, file, number):
    """Damage of one object is named by a check, and no recovery that needs it leaves a store behind that can be opened."""
    checked = await quire.check_backups(shelf)
    assert not checked.ok
    assert any(file.name in problem or file.name[:12] in problem for problem in checked.problems), (
        file,
        checked.problems,
    )
    url = str(folder / f"t{number}.db")
    with pytest.raises((CorruptRecord, NotFound)):
        await quire.recover(shelf, url, number=2, dry_run=True)
    with pytest.raises((CorruptRecord, NotFound)):
        await quire.recover(shelf, url, number=2)
    try:
        async with quire.open(url) as store:
            assert await store.workflows() == []
    except StorageUnavailable:
        pass


@pytest.mark.parametrize("how", ["missing", "truncated", "altered", "longer", "empty"])
async def test_every_damaged_object_is_found_and_named(tmp_path, how):
    shelf, wanted = await shelved(tmp_path)
    for number, file in enumerate(objects(tmp_path)):
        data = file.read_bytes()
        if how == "missing":
            file.unlink()
        else:
            middle = len(data) // 2
            altered = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            file.write_bytes({"truncated": data[:-1], "altered": altered, "longer": data + b"x", "empty": b""}[how])
        if how == "missing" and file.name.startswith("000000000002"):
            assert [b.number for b in await quire.backups(shelf)] == [1], "a backup without a manifest is none"
        elif "inventories" in file.parts and not (await quire.check_backups(shelf)).ok:
            pass  # of the full one, which only a check reads
        else:
            await assert_found(shelf, tmp_path, file, number)
        file.write_bytes(data)
    assert (await quire.check_backups(shelf)).ok
    await quire.recover(shelf, str(tmp_path / "whole.db"))
    async with quire.open(str(tmp_path / "whole.db")) as store:
        assert (await everything(store.engine.backend))["records"] == wanted["records"]


async def test_damage_to_one_series_leaves_the_others_whole(tmp_path):
    shelf, wanted = await shelved(tmp_path)
    async with quire.open(str(tmp_path / "s.db")) as store:
        await store.backup(shelf, full=True)
    for file in (tmp_path / "place" / "backups" / "objects").rglob("*"):
        if file.is_file() and f"{1:012d}" in file.parts:
            file.write_bytes(b"")
    await quire.recover(shelf, str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert (await everything(store.engine.backend))["records"] == wanted["records"]


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_backup_builds_only_on_what_is_there(tmp_path, lost):
    shelf, _ = await shelved(tmp_path)
    (piece,) = json.loads(manifests(tmp_path)[lost].read_bytes())["segments"]
    next(f for f in objects(tmp_path) if f.name.startswith(piece["name"])).unlink()
    async with quire.open(str(tmp_path / "s.db")) as store:
        await do(store, "many", "a", 2)
        made = await store.backup(shelf)
        assert (made.kind, made.number) == (("full", 3) if lost == 0 else ("incremental", 3))
        assert "missing" in made.why or lost
        wanted = await everything(store.engine.backend)
    await quire.recover(shelf, str(tmp_path / "t.db"))
    async with quire.open(str(tmp_path / "t.db")) as store:
        assert (await everything(store.engine.backend))["heads"] == wanted["heads"]


async def test_a_damaged_store_is_not_backed_up_as_if_it_were_sound(tmp_path):
    import apsw

    shelf, _ = await shelved(tmp_path)
    with apsw.Connection(str(tmp_path / "s.db")) as db:
        db.execute("update records set body = '[]' where position = 12")
    async with quire.open(str(tmp_path / "s.db")) as store:
        with pytest.raises(CorruptRecord):
            await store.backup(shelf, full=True)
    assert len(await quire.backups(shelf)) == 2


# forged


def manifests(folder):
    return sorted((folder / "place" / "backups" / "manifests").rglob("*.json"))


def forge(folder, **changes):
    """Put another newest manifest beside the true ones, its digest right."""
    true = manifests(folder)[-1]
    said = json.loads(true.read_bytes()) | changes
    data = json.dumps(said).encode()
    (true.parent / books.manifest_name(said["number"] if isinstance(said["number"], int) else 3, data)).write_bytes(
        data
    )
    true.unlink()


FORGED = [
    {"number": 1},
    {"series": 7},
    {"series": 0},
    {"kind": "full"},
    {"kind": "other"},
    {"parent": ""},
    {"parent": "../../etc/passwd"},
    {"parent": f"000000000001-{'0' * 64}.json"},
    {"after": -1},
    {"after": 3},
    {"upto": 1},
    {"upto": 10**6},
    {"records": 0},
    {"records": 10**9},
    {"streams": 0},
    {"id": "0" * 16},
    {"id": "../../../etc"},
    {"namespace": "other"},
    {"quire": "segment"},
    {"segments": []},
    {"segments": [{"name": "../x", "bytes": 1, "records": 1, "first": 153, "last": 172, "earliest": 0, "latest": 0}]},
    {
        "segments": [
            {"name": "a" * 64, "bytes": 2**60, "records": 20, "first": 153, "last": 172, "earliest": 0, "latest": 0}
        ]
    },
    {"inventory": {"name": "b" * 64, "bytes": 2**60}},
    {"inventory": {"name": "b" * 64, "bytes": -1}},
    {"taken_at": 10**18},
    {"taken_at": "now"},
    {"marks": 5},
]


@pytest.mark.parametrize("changes", FORGED, ids=str)
async def test_a_forged_manifest_is_found(tmp_path, changes):
    shelf, _ = await shelved(tmp_path)
    forge(tmp_path, **changes)
    with pytest.raises(QuireError):
        await quire.recover(shelf, str(tmp_path / "t.db"), number=2)
    if "taken_at" not in changes:
        assert not (await quire.check_backups(shelf)).ok
    else:
        with pytest.raises(QuireError) if changes["taken_at"] != "now" else pytest.raises(QuireError):
            await quire.recover(shelf, str(tmp_path / "t.db"), number=2)


async def test_a_later_format_says_so(tmp_path):
    shelf, _ = await shelved(tmp_path)
    forge(tmp_path, format=99)
    with pytest.raises((IncompatibleFormat, NotFound)):
        await quire.recover(shelf, str(tmp_path / "t.db"), number=2)
    assert any("upgrade quire" in p for p in (await quire.check_backups(shelf)).problems)


async def test_a_swapped_segment_is_not_taken_for_the_one_it_replaced(tmp_path):
    """Digests are right everywhere; what they stand for is of another log."""
    shelf, _ = await shelved(tmp_path)
    true = json.loads(manifests(tmp_path)[-1].read_bytes())
    place = Shelf(await open_objects(shelf))
    manifest = msgspec.json.decode(manifests(tmp_path)[-1].read_bytes(), type=books.Manifest)
    old = await place.segment(manifest, manifest.segments[0])
    forged = [msgspec.structs.replace(r, body=b'[["set",["n"],666]]') for r in old.records]
    kept, _ = await place.put(
        manifest.id, manifest.series, "segments", segment.encode(segment.Segment("default", forged))
    )
    forge(tmp_path, segments=[true["segments"][0] | {"name": kept.name, "bytes": kept.bytes}])
    assert (await quire.check_backups(shelf)).ok, "no key, no chain: digests fit"
    for dry_run in (True, False):
        with pytest.raises(CorruptRecord, match="chain"):
            await quire.recover(shelf, str(tmp_path / "t.db"), dry_run=dry_run)


def bomb(size=2**31):
    worker = zstandard.ZstdCompressor(level=19).compressobj(size=size)
    return b"".join(worker.compress(bytes(2**20)) for _ in range(size // 2**20)) + worker.flush()


async def test_bombs_are_not_expanded(tmp_path):
    shelf, _ = await shelved(tmp_path)
    data = bomb()
    name = blake3(data).hexdigest()
    of = manifests(tmp_path)[-1].parent.name
    for kind in ("segments", "inventories"):
        path = tmp_path / "place" / "backups" / "objects" / of / f"{1:012d}" / kind / name[:2] / f"{name}.jsonl.zst"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    forge(tmp_path, inventory={"name": name, "bytes": len(data)})
    with pytest.raises(CorruptRecord, match="claims to be"):
        await quire.recover(shelf, str(tmp_path / "t.db"), number=2)


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"not json\n",
        b'{"stream":"workflows/a","first":0,"position":1,"version":1,"chain":"00"}\n',
        b'{"stream":"workflows/a","first":5,"position":1,"version":1,"chain":"' + b"0" * 64 + b'"}\n',
        b'{"blob":"x","object":"../../etc/passwd","bytes":1}\n',
        b'{"cell":"x","value":"!"}\n',
        b"{}\n",
    ],
)
def test_a_forged_inventory_is_found(lines):
    text = b'{"quire":"inventory","format":1}\n' + lines
    end = b'{"end":{"lines":%d,"digest":"%s"}}\n' % (lines.count(b"\n"), blake3(text).hexdigest().encode())
    data = zstandard.ZstdCompressor().compress(text + end)
    if lines:
        with pytest.raises(CorruptRecord):
            books.read_inventory(data, "it")
    else:
        assert books.read_inventory(data, "it") == books.Inventory({}, {}, ())
    with pytest.raises(CorruptRecord):
        books.read_inventory(data + b"x", "it")
    with pytest.raises(CorruptRecord):
        books.read_inventory(zstandard.ZstdCompressor().compress(text), "it")


# places that fail


class Flaky:
    """A place whose every n-th call fails: before it does anything, or after."""

    def __init__(self, place, every, after):
        self.url = place.url
        self._place = place
        self._every = every
        self._after = after
        self.calls = 0

    async def _do(self, work):
        self.calls += 1
        fails = self.calls % self._every == 0
        if fails and not self._after:
            work.close()
            raise StorageUnavailable("injected")
        done = await work
        if fails:
            raise StorageUnavailable("injected")
        return done

    async def put(self, name, data):
        return await self._do(self._place.put(name, data))

    async def get(self, name, *, max_bytes):
        return await self._do(self._place.get(name, max_bytes=max_bytes))

    async def names(self, prefix=""):
        return await self._do(self._place.names(prefix))

    async def delete(self, name):
        return await self._do(self._place.delete(name))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("every", [2, 3, 5, 11, 29])
async def test_a_place_that_fails_now_and_then_loses_nothing(tmp_path, monkeypatch, every, after):
    """A call that failed is given again until it succeeds; no backup is listed that is not whole."""
    place = await open_objects(f"file:///{tmp_path}/place")
    grows = every

    async def flaky(_):
        nonlocal grows
        grows += 1  # each attempt comes further, or nothing would ever be finished
        return Flaky(place, grows, after)

    async def until_done(call):
        for _ in range(400):
            try:
                return await call()
            except StorageUnavailable:
                assert not api_whole or (await whole()).ok
        raise AssertionError("it never came through")

    async def whole():
        with monkeypatch.context() as patch:
            patch.setattr(api, "open_objects", lambda _: asyncio.sleep(0, place))
            return await api.check_backups("x")

    api_whole = True
    async with filled(str(tmp_path / "s.db")) as store:
        with monkeypatch.context() as patch:
            patch.setattr(api, "open_objects", flaky)
            patch.setattr(recovery, "open_objects", flaky)
            await until_done(lambda: store.backup("file:///x"))
            await do(store, "many", "a", 1)
            grows = every
            await until_done(lambda: store.backup("file:///x"))
            wanted = await everything(store.engine.backend)
            grows = every
            await until_done(lambda: quire.recover("x", str(tmp_path / "t.db"), number=2))
            grows = every
            await until_done(lambda: quire.prune_backups("x", keep=1, days=1, dry_run=False))
    assert (await whole()).ok
    async with quire.open(str(tmp_path / "t.db")) as store:
        found = await everything(store.engine.backend)
        assert (found["records"], found["blobs"]) == (wanted["records"], wanted["blobs"])


# controls


async def test_control_a_shelf_that_does_not_compare_digests_is_caught(tmp_path, monkeypatch):
    shelf, _ = await shelved(tmp_path)
    file = next(f for f in objects(tmp_path) if "blobs" in f.parts)
    data = file.read_bytes()
    file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert not (await quire.check_backups(shelf)).ok
    monkeypatch.setattr("quire.core.segment.name_of", lambda _: file.name)
    assert file.name not in "".join((await quire.check_backups(shelf)).problems)


async def test_control_a_recovery_that_leaves_a_record_out_is_caught(tmp_path, monkeypatch):
    shelf, _ = await shelved(tmp_path)
    records = recovering.Reader.records

    async def skipping(self, after=0):
        async for page in records(self, after):
            yield [r for r in page if (r.stream, r.version) != ("workflows/a", 25)]

    async def cut(self, after=0):
        async for page in records(self, after):
            yield [r for r in page if not (r.stream == "workflows/a" and r.version >= 25)]

    for faulty in (skipping, cut):
        monkeypatch.setattr(recovering.Reader, "records", faulty)
        with pytest.raises(CorruptRecord):
            await quire.recover(shelf, str(tmp_path / f"{faulty.__name__}.db"))
