"""What a folder of files promises beyond the protocol: names, lines, privacy, several processes, nothing left behind."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quire
from quire.errors import (
    Closed,
    CorruptRecord,
    IncompatibleFormat,
    Invalid,
    InvalidKey,
    StorageTimeout,
    StorageUnavailable,
)
from quire.storage import _files_disk, _files_journal, _files_write
from quire.storage._files_feed import FEED
from quire.storage._files_lines import LineFile, first_line, owner, record_line, version_of
from quire.storage._files_names import escape, file_of, hashed, stream_of, unescape
from quire.storage.base import CellWrite, Item
from quire.storage.files import open_files
from quire.testing._conformance_base import accepted, appended, begun, entry, everything, set_cell

NAMES = st.text(max_size=20) | st.text("aA.,%+~/_-", max_size=300)


# names


@given(NAMES)
def test_a_name_comes_back_from_its_file(name):
    file = escape(name)
    assert file.isascii()
    assert "/" not in file
    assert not file.startswith(".")
    assert len(file) <= 200
    assert file == file.lower()
    assert unescape(file) == (None if hashed(file) else name)


@given(st.lists(NAMES, unique=True, min_size=2, max_size=20))
def test_no_two_streams_share_a_file_even_where_case_does_not_count(names):
    streams = [*names, *(f"workflows/{name}" for name in names), *(f"streams/{name}" for name in names)]
    assert len({file_of(stream).lower() for stream in set(streams)}) == len(set(streams))


@given(NAMES)
def test_a_file_is_ours_only_if_it_is_named_as_we_would(name):
    for chosen in (".state", ".x"):
        for folder, ending in (("workflows", chosen), ("streams", ".log")):
            found = stream_of(folder, f"{name}{ending}", chosen)
            assert found is None or file_of(found, chosen) == f"{folder}/{name}{ending}"
            assert folder == "streams" or stream_of(folder, f"{name}.other", chosen) is None


async def test_hostile_names_stay_in_the_folder(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="Other-" + "N" * 190)
    hostile = [
        "../../x",
        "workflows/../../x",
        "/etc/passwd",
        "workflows/" + "../" * 50,
        "a" * 5000,
        "CON",
        "workflows/A",
    ]
    hostile += ["workflows/a", "workflows/" + "B" * 4000, ".", "..", "~", "x\n\0y", "-rf"]
    for name in hostile:
        await appended(backend, name, b"[]")
        await backend.put_blob(name, name.encode())
    assert await backend.streams() == sorted(hostile)
    assert await backend.blobs() == sorted(hostile)
    assert await backend.check() == []
    await backend.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]
    backend = await open_files(str(tmp_path / "s"), namespace="Other-" + "N" * 190)
    assert await backend.streams() == sorted(hostile)
    assert await backend.check() == []
    await backend.close()


# lines


@given(st.lists(st.integers(0, 30_000), min_size=1, max_size=40), st.data())
def test_a_line_is_found_by_halving(tmp_path_factory, sizes, data):
    path = tmp_path_factory.mktemp("lines") / "f"
    whose = owner("n", "s")
    lines = [record_line(whose, entry("s", v, b'"' + b"x" * size + b'"'), v) for v, size in enumerate(sizes, 1)]
    path.write_bytes(first_line(whose, "n", "s", "stream") + b"".join(lines))
    with LineFile.open(str(path), whose) as file:
        for after in {0, len(sizes), data.draw(st.integers(0, len(sizes)))}:
            found = [version_of(line) for _, line in file.forward(file.beyond(after, version_of))]
            assert found == list(range(after + 1, len(sizes) + 1))
        assert [version_of(line) for _, line in file.backward()] == list(range(len(sizes), -1, -1))


async def test_a_person_can_read_it(tmp_path):
    async with quire.open(f"file:///{tmp_path}/s") as store:
        wf = await store.create("research", {"topic": "tides"}, author="ann", message="begin")
        await wf.checkpoint("good")
        await wf.set("/topic", "neaps \u6f22")
    lines = (tmp_path / "s/workflows/research.state").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[1:])
    assert json.loads(lines[0])["stream"] == "workflows/research"
    assert (first["version"], first["author"], first["message"]) == (1, "ann", "begin")
    assert second["body"] == [["set", ["topic"], "neaps \u6f22"]]
    assert (tmp_path / "s/checkpoints/research.checkpoint").exists()


async def test_a_body_that_is_no_json_stands_there_coded(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    bodies = [
        b'{"a":1}',
        b"[1\n,2]",
        b' "x"',
        b"\xff",
        b'["\xff"]',
        b"nul",
        b'["\x00"]',
        b"1 2",
        b"[" * 3000 + b"]" * 3000,
    ]
    await appended(backend, "workflows/a", *bodies)
    assert [r.body for r in await backend.read("workflows/a")] == bodies
    lines = (tmp_path / "s/workflows/a.state").read_bytes().splitlines()
    assert len(lines) == len(bodies) + 1
    assert json.loads(lines[1])["body"] == {"a": 1}
    assert "base64" in json.loads(lines[2])
    await backend.close()


# the folder


async def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IncompatibleFormat, match=r"notes\.txt"):
        await open_files(str(tmp_path), namespace="default")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InvalidKey, match="is a file"):
        await open_files(str(tmp_path / "notes.txt"), namespace="default")
    with pytest.raises(StorageUnavailable, match="does not exist"):
        await open_files(str(tmp_path / "a/b/c"), namespace="default")


async def test_a_newer_format_is_refused(tmp_path):
    await (await open_files(str(tmp_path / "s"), namespace="default")).close()
    (tmp_path / "s/quire.json").write_text('{"quire": "files", "format": 3}')
    with pytest.raises(IncompatibleFormat, match="upgrade"):
        await open_files(str(tmp_path / "s"), namespace="default")
    (tmp_path / "s/quire.json").write_text("{}")
    with pytest.raises(IncompatibleFormat, match="damaged"):
        await open_files(str(tmp_path / "s"), namespace="default")


async def test_what_the_mark_says_of_endings_is_not_trusted(tmp_path):
    await (await open_files(str(tmp_path / "s"), namespace="default", extension=".json")).close()
    mark = tmp_path / "s/quire.json"
    assert mark.read_text() == '{"quire":"files","format":2,"extension":".json"}\n'
    for bad in ('"/../../x"', '""', "7", '".' + "x" * 17 + '"', "null"):
        mark.write_text(f'{{"quire": "files", "format": 2, "extension": {bad}}}')
        with pytest.raises(IncompatibleFormat, match="none of ours"):
            await open_files(str(tmp_path / "s"), namespace="default")
    await (await open_files(str(tmp_path / "t"), namespace="default", extension=".state")).close()
    assert (tmp_path / "t/quire.json").read_text() == '{"quire":"files","format":1}\n', "older ones go on reading it"


async def test_an_ending_goes_with_backups_scrubs_and_damage(tmp_path):
    url = f"file:///{tmp_path}/s"
    for bad in ("json", ".", ".a/b", "." + "x" * 17, "%2e%2e", ".%0a"):
        with pytest.raises(InvalidKey, match="a dot is needed"):
            await quire.open(f"{url}?extension={bad}")
    assert not (tmp_path / "s").exists()
    async with quire.open(f"{url}?extension=.jsonl", namespace="n") as store:
        long = "w" * 200
        for name in ("w", "W.jsonl", long):
            wf = await store.create(name, {"n": 0})
            await wf.set("/n", 1)
            await wf.checkpoint("c")
        await store.delete("w")
        await store.backup(str(tmp_path / "copy"))
        await store.engine.backend.scrub()
        assert (await store.verify()).problems == []
    files = [p.name for p in (tmp_path / "s/namespaces/n/workflows").iterdir()]
    assert len(files) == 3
    assert all(name.endswith(".jsonl") for name in files)
    for folder in ("s", "copy"):
        async with quire.open(f"file:///{tmp_path}/{folder}", namespace="n") as again:
            assert await again.workflows() == ["W.jsonl", long]
            assert await again.workflow(long).state(1) == {"n": 0}
            assert (await again.verify()).problems == []
        with pytest.raises(Invalid, match=r"end in \.jsonl, not in \.state"):
            await quire.open(f"file:///{tmp_path}/{folder}?extension=.state")
    file = tmp_path / "copy/namespaces/n/workflows/+w.jsonl.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"n"', b'"m"'))
    async with quire.open(f"file:///{tmp_path}/copy", namespace="n") as damaged:
        assert (await damaged.verify()).problems


async def test_making_that_was_cut_off_is_made_anew(tmp_path):
    await (await open_files(str(tmp_path / "s"), namespace="other")).close()
    (tmp_path / "s/quire.json").unlink()
    for area in (tmp_path / "s/namespaces").iterdir():
        shutil.rmtree(area)
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    await appended(backend, "workflows/a", b"[]")
    assert await backend.check() == []
    await backend.close()


async def test_files_are_for_their_owner_only(tmp_path):
    mask = os.umask(0)
    try:
        async with quire.open(f"file:///{tmp_path}/s", namespace="team") as store:
            wf = await store.create("w", {"n": 0})
            await wf.checkpoint("good", kind="snapshot")
            await store.backup(str(tmp_path / "copy"))
    finally:
        os.umask(mask)
    for place in ("s", "copy"):
        for path in [tmp_path / place, *(tmp_path / place).rglob("*")]:
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_no_symbolic_link_is_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    (tmp_path / "s/workflows/a.state").symlink_to(outside)
    with pytest.raises(IncompatibleFormat, match="symbolic link"):
        await backend.commit([begun("workflows/a", b"[]")])
    await backend.close()
    assert outside.read_bytes() == b""
    (tmp_path / "s/sessions").rmdir()
    (tmp_path / "s/sessions").symlink_to(tmp_path)
    with pytest.raises(StorageUnavailable, match="not a folder"):
        await open_files(str(tmp_path / "s"), namespace="default")


async def test_what_is_removed_leaves_no_trace_after_scrub(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    other = await open_files(str(tmp_path / "s"), namespace="other")
    secret = b'["SECRET-1"]'
    await appended(backend, "workflows/SECRET-2", secret, b"[]")
    records = await appended(backend, "workflows/a", secret, b"[]", secret)
    await set_cell(backend, "SECRET-3", b"SECRET-4")
    await set_cell(other, "SECRET-5", b"SECRET-6")
    await backend.put_blob("b", secret)
    await backend.rewrite(
        [msgspec.structs.replace(records[0], body=b"[]"), msgspec.structs.replace(records[2], body=b"1")]
    )
    await backend.drop("workflows/SECRET-2")
    await backend.drop_blob("b")
    await accepted(backend, Item(cells=(CellWrite("SECRET-3", b"SECRET-4", None),)))
    await accepted(other, Item(cells=(CellWrite("SECRET-5", b"SECRET-6", None),)))
    files = [p for p in (tmp_path / "s").rglob("*") if p.is_file()]
    assert any(b"SECRET" in p.read_bytes() or "secret" in p.name for p in files)
    await backend.scrub()
    for path in (tmp_path / "s").rglob("*"):
        assert "secret" not in path.name
        assert path.is_dir() or b"SECRET" not in path.read_bytes(), path
    assert await backend.check() == []
    assert [r.body for r in await backend.read("workflows/a")] == [b"[]", b"[]", b"1"]
    await backend.close()
    await other.close()


async def test_cells_that_come_and_go_do_not_pile_up(tmp_path, monkeypatch):
    monkeypatch.setattr("quire.storage._files_cells._SPARE", 10)
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    value = None
    for number in range(60):
        text = b"%d" % number
        await accepted(backend, Item(cells=(CellWrite("lease", value, text, 60_000),)))
        value = text
    await set_cell(backend, "brief", b"1", ttl_ms=0)
    file = tmp_path / "s/cells.log"
    before = file.stat().st_size
    await backend.close()  # which brings all in order
    assert file.stat().st_size < before / 10
    assert b"brief" not in file.read_bytes()
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    assert (await backend.cell("lease")).value == b"59"
    assert await backend.check() == []
    await backend.close()


async def test_who_began_to_read_before_cells_were_written_anew_finds_them(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    other = await open_files(str(tmp_path / "s"), namespace="default")
    await set_cell(backend, "lease", b"1")
    before = other._place.journal.published()
    await set_cell(backend, "cursor", b"2")
    await backend.scrub()  # which writes them anew
    assert other._cells.at(before)["lease"].value == b"1"
    assert [c.name for c in await other.cells()] == ["cursor", "lease"]
    await accepted(other, Item(cells=(CellWrite("lease", b"1", b"3"),)))
    assert (await backend.cell("lease")).value == b"3"
    await backend.close()
    await other.close()


async def test_the_journal_begins_anew_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(_files_journal, "JOURNAL_MAX_BYTES", 20_000)
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    for number in range(100):
        await appended(backend, f"s/{number % 7}", b'"' + b"x" * 1000 + b'"')
    await appended(backend, "s/big", b'"' + b"x" * 100_000 + b'"')
    before = await everything(backend)
    assert (tmp_path / "s/quire.journal").stat().st_size < 130_000
    assert await backend.check() == []
    await backend.close()
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    assert await everything(backend) == before
    await backend.close()


async def test_a_round_whose_beginning_was_torn_leaves_the_one_before(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    await appended(backend, "s/1", b"1", b"2")
    await backend.close()
    journal = (tmp_path / "s/quire.journal").read_bytes()
    feed = (tmp_path / "s/feed.log").read_bytes()
    newest = max((0, 1), key=lambda slot: journal[slot * 4096 + 8 : slot * 4096 + 16])
    torn = bytearray(journal)
    torn[newest * 4096 + 10 : newest * 4096 + 40] = bytes(30)
    (tmp_path / "s/quire.journal").write_bytes(torn)
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    assert [r.body for r in await backend.read("s/1")] == [b"1", b"2"]
    assert (tmp_path / "s/feed.log").read_bytes() == feed
    (record,) = await appended(backend, "s/1", b"3")
    assert record.position == 3
    assert await backend.check() == []
    await backend.close()


# processes

COUNTER = """
import asyncio, sys, quire
async def main(url, who, count):
    async with quire.open(url) as store:
        wf = store.workflow("w")
        for i in range(count):
            async with wf.edit(author=who) as state:
                state.increment("n")
                state["log"].append(f"{who}-{i}")
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_four_processes_lose_no_update_and_are_seen_at_once(tmp_path):
    url, count, who = f"file:///{tmp_path}/s", 40, [f"p{i}" for i in range(4)]
    async with quire.open(url) as store:
        wf = await store.create("w", {"n": 0, "log": []})
        processes = [subprocess.Popen([sys.executable, "-c", COUNTER, url, name, str(count)]) for name in who]
        seen = []
        async for event in store.watch(after=1):
            seen.append(event.version.number)
            if len(seen) == 4 * count:
                break
        assert [await asyncio.to_thread(p.wait) for p in processes] == [0] * 4
        assert seen == list(range(2, 4 * count + 2))
        state = await wf.state()
        assert state["n"] == 4 * count
        assert sorted(state["log"]) == sorted(f"{name}-{i}" for name in who for i in range(count))
        assert (await store.verify()).ok


WRITER = """
import asyncio, sys
from quire.storage.files import open_files
from quire.testing._conformance_base import accepted, after, together
async def main(path, count):
    backend = await open_files(path, namespace="n")
    streams = [f"s/{i}" for i in range(10)]
    for number in range(count):
        heads = await backend.heads(streams)
        await accepted(backend, together(*(after(head, b"[%d]" % number) for head in heads)))
        if number % 40 == 20:
            await backend.trim(streams[number % 10], number - 10)
            await backend.scrub()
    await backend.close()
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_a_reader_beside_a_writing_process_never_sees_half_of_a_commit(tmp_path):
    path, count = str(tmp_path / "s"), 300
    backend = await open_files(path, namespace="n")
    process = subprocess.Popen([sys.executable, "-c", WRITER, path, str(count)])
    streams, seen, stages = [f"s/{i}" for i in range(10)], [], set()
    while True:
        ended = process.poll() is not None
        heads = await backend.heads(streams)
        assert len({head.version for head in heads}) == 1, heads
        stages.add(heads[0].version)
        page = await backend.feed(seen[-1].position if seen else 0, limit=37)
        seen += page
        if max(stages):
            assert await backend.streams() == streams
        if ended and not page:
            break
    assert process.returncode == 0
    assert [r.position for r in seen] == sorted({r.position for r in seen})
    there = {r.position for r in await backend.feed(limit=1_000_000)}
    found = {r.position: (r.stream, r.version) for r in seen}
    every = {10 * (v - 1) + i + 1: (s, v) for v in range(1, count + 1) for i, s in enumerate(streams)}
    assert found.items() <= every.items()
    assert there <= set(found)  # the rest was removed before we came to it
    assert len(stages) > 20
    assert await backend.check() == []
    await backend.close()


async def test_who_waits_too_long_for_the_lock_is_told(tmp_path, monkeypatch):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    holder = _files_disk.Lock(str(tmp_path / "s/quire.lock"))
    holder.take()
    monkeypatch.setattr(_files_disk.Lock.take, "__kwdefaults__", {"within_s": 0.01})
    with pytest.raises(StorageTimeout, match="another process"):
        await backend.commit([begun("s/1", b"1")])
    holder.give()
    await accepted(backend, begun("s/1", b"1"))  # nothing was begun: there is nothing to recover
    await backend.close()
    holder.close()


async def test_a_reader_that_meets_a_line_being_written_waits_for_it(tmp_path, monkeypatch):
    """Half a line of a commit that was not published yet is neither seen nor called damage."""
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    other = await open_files(str(tmp_path / "s"), namespace="default")
    await appended(backend, "s/1", b"1", b"2")
    before = await everything(other)
    write_at = _files_disk.Disk.write_at
    looking = asyncio.get_running_loop()
    looks = []

    def slowly(disk, path, offset, data):
        write_at(disk, path, offset, data[:-9])
        if not looks:
            looks.append(asyncio.run_coroutine_threadsafe(everything(other), looking))
            event.wait()
        write_at(disk, path, offset, data)

    event = __import__("threading").Event()
    monkeypatch.setattr(_files_disk.Disk, "write_at", slowly)
    call = asyncio.create_task(appended(backend, "s/1", b"3"))
    while not other._worker.waiting:  # it met the half and asks for the lock
        await asyncio.sleep(0)
    event.set()
    await call
    found = await asyncio.wrap_future(looks[0])
    assert [r.body for r in found["records"]["s/1"]] in ([b"1", b"2"], [b"1", b"2", b"3"])
    assert found["feed"][:2] == before["feed"]
    await backend.close()
    await other.close()


async def test_damage_of_what_others_share_is_repaired_or_said(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    await appended(backend, "s/1", b"1")
    (tmp_path / "s/quire.state").write_bytes(b"nonsense")
    assert await backend.latest() == 1
    await appended(backend, "s/1", b"2")
    assert [r.body for r in await backend.read("s/1")] == [b"1", b"2"]
    path = tmp_path / "s" / FEED
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptRecord):
        await backend.feed()
    assert len(await backend.check()) >= 1
    assert len(await backend.read("s/1")) == 2
    await backend.scrub()  # the feed is made anew from the streams
    assert [r.position for r in await backend.feed()] == [1, 2]
    assert await backend.check() == []
    await backend.close()


async def test_a_fork_of_the_process_is_refused(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    backend._pid = os.getpid() + 1
    with pytest.raises(Closed, match="fork"):
        await backend.latest()
    backend._pid = os.getpid()
    await backend.close()


async def test_a_backup_never_replaces_anything(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidKey, match="exists"):
        await backend.backup(str(tmp_path / "there"))
    assert list((tmp_path / "there").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "there"]
    await backend.close()


async def test_a_backup_beside_removals_is_sound(tmp_path):
    backend = await open_files(str(tmp_path / "s"), namespace="default")
    for number in range(30):
        await appended(backend, f"s/{number}", b"[]", b"[]")
        await backend.put_blob(f"b{number}", b"x" * 1000)

    async def removing():
        for number in range(30):
            await backend.drop(f"s/{number}")
            await backend.drop_blob(f"b{number}")

    await asyncio.gather(removing(), *(backend.backup(str(tmp_path / f"copy{i}")) for i in range(4)))
    for i in range(4):
        copy = await open_files(str(tmp_path / f"copy{i}"), namespace="default")
        assert await copy.check() == []
        (record,) = await appended(copy, "s/new", b"1")
        assert record.position == 61
        await copy.close()
    await backend.close()


def test_the_writer_forgets_when_it_knows_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(_files_write, "_HEADS_MAX", 3)
    monkeypatch.setattr(_files_disk, "_HANDLES_MAX", 2)

    async def main():
        backend = await open_files(str(tmp_path / "s"), namespace="default")
        for _ in range(3):
            for number in range(9):
                await appended(backend, f"s/{number}", b"[]")
        assert len(backend._place.disk._open) <= 3
        assert await backend.check() == []
        assert len(await backend.feed()) == 27
        await backend.close()

    asyncio.run(main())


async def test_urls_name_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with quire.open("file:///s") as store:
        await store.create("w", {})
    assert (tmp_path / "s/workflows/w.state").exists()
    for url, said in {
        "file:s": "file:///folder",
        "file:///": "file:///folder",
        f"file://{tmp_path}/t": f"file:///{tmp_path}/t",
        "file:///s?durability=full": "unknown option",
        "file:///a%00b": "no file name",
    }.items():
        with pytest.raises(InvalidKey) as caught:
            await quire.open(url)
        assert said in str(caught.value)
    assert sorted(p.name for p in Path().iterdir()) == ["s"]


async def test_a_store_that_came_without_its_empty_folders_opens(tmp_path):
    """Git carries no empty folders."""
    here, there = tmp_path / "here", tmp_path / "there"
    async with quire.open(f"file:///{here}") as store:
        await store.create("w", {"n": 1})
    shutil.copytree(here, there)
    empty = [folder for folder, inside, files in os.walk(there) if not inside and not files]
    assert len(empty) > 3
    for folder in empty:
        os.rmdir(folder)
    async with quire.open(f"file:///{there}") as store:
        assert (await store.workflow("w").inc("/n")).number == 2
        assert (await store.verify()).ok
