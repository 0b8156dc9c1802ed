"""Objects in a folder, in memory and in S3: kept once, given back, listed, removed, and what goes wrong said plainly."""

import asyncio
import os
import stat
import subprocess
import sys

import pytest

from quire.errors import CorruptRecord, Denied, InvalidKey, NotFound, StorageFull, StorageUnavailable, Unsupported
from quire.storage.objects import open_objects, probe
from quire.storage.objects.folder import Folder
from quire.testing.servers.s3 import S3Server

MAX = 1 << 20


@pytest.fixture(scope="module")
def s3():
    with S3Server() as server:
        yield server


@pytest.fixture(params=["folder", "memory", "s3"])
async def place(request, tmp_path):
    if request.param == "folder":
        return await open_objects(str(tmp_path / "a" / "b"))
    if request.param == "memory":
        return await open_objects("memory:")
    return await open_objects(request.getfixturevalue("s3").url("bucket", tmp_path.name))


async def test_what_is_put_is_given_back_and_listed_below_its_folder(place):
    assert await place.put("segments/aa/x.jsonl.zst", b"one")
    assert await place.put("segments/bb/y", b"")
    assert await place.put("other", b"\x00" * 70_000)
    assert await place.get("segments/aa/x.jsonl.zst", max_bytes=3) == b"one"
    assert await place.get("segments/bb/y", max_bytes=MAX) == b""
    assert await place.get("absent/or/not", max_bytes=MAX) is None
    assert await place.names("segments/") == ["segments/aa/x.jsonl.zst", "segments/bb/y"]
    assert await place.names("nothing/") == []
    await place.delete("segments/bb/y")
    await place.delete("segments/bb/y")
    assert await place.names() == ["other", "segments/aa/x.jsonl.zst"]


async def test_a_name_that_is_taken_keeps_what_it_has(place):
    assert await place.put("n", b"first")
    assert not await place.put("n", b"second")
    assert await place.get("n", max_bytes=MAX) == b"first"


async def test_of_many_who_put_one_name_at_once_one_succeeds(place):
    made = await asyncio.gather(*(place.put("raced/n", b"%d" % i) for i in range(16)))
    assert made.count(True) == 1
    assert await place.get("raced/n", max_bytes=MAX) == b"%d" % made.index(True)
    assert await place.names("raced/") == ["raced/n"]


async def test_what_is_larger_than_it_can_be_is_not_read(place):
    await place.put("big", b"0123456789")
    with pytest.raises(CorruptRecord, match="10 bytes, at most 9"):
        await place.get("big", max_bytes=9)


@pytest.mark.parametrize("name", ["", "/a", "a//b", "../a", "a/../b", "a/..", ".a", "a b", "a\n", "a\0", "ü", "a/"])
async def test_names_that_could_be_something_else_are_refused(place, name):
    for call in (place.put(name, b""), place.get(name, max_bytes=MAX), place.delete(name)):
        with pytest.raises(InvalidKey):
            await call


async def test_opening_leaves_nothing_behind(place):
    assert await place.names() == []


# folders


async def test_a_folder_is_for_its_owner_only_and_keeps_no_parts(tmp_path):
    place = await open_objects(f"file:///{tmp_path}/deep/er")
    await place.put("a/b", b"x")
    for each in (tmp_path / "deep", tmp_path / "deep/er", tmp_path / "deep/er/a"):
        assert stat.S_IMODE(each.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "deep/er/a/b").stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "deep/er/a") == ["b"]


async def test_a_relative_path_stays_where_it_was_when_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = await open_objects("here")
    monkeypatch.chdir("/")
    await place.put("n", b"x")
    assert (tmp_path / "here/n").read_bytes() == b"x"


async def test_a_file_is_synced_before_it_has_its_name_and_the_folder_after(tmp_path, monkeypatch):
    place = Folder(tmp_path)
    seen = []
    real = {name: getattr(os, name) for name in ("fsync", "link")}

    def fsync(handle):
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        real["fsync"](handle)

    def link(*args):
        seen.append("link")
        real["link"](*args)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    await place.put("n", b"x")
    assert seen == ["file", "link", "folder"]
    seen.clear()
    await place.put("n", b"x")  # it is there: but whoever made it may have died before the folder was synced
    assert seen[-1] == "folder"


async def test_a_failed_sync_is_an_error_and_leaves_no_name(tmp_path, monkeypatch):
    place = Folder(tmp_path)

    def fsync(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageFull):
        await place.put("n", b"x")
    assert os.listdir(tmp_path) == []


async def test_what_is_no_folder_or_not_ours_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidKey, match="name a folder"):
        await open_objects(str(tmp_path / "file"))
    with pytest.raises(InvalidKey, match="name a folder"):
        await open_objects(str(tmp_path / "file/below"))


# URLs


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("", InvalidKey, "named by a path or a URL"),
        (7, InvalidKey, "named by a path or a URL"),
        ("a\0b", InvalidKey, "named by a path or a URL"),
        ("ftp://host/x", InvalidKey, "unknown scheme 'ftp'"),
        ("file://host/x", InvalidKey, "write file:///folder"),
        ("s3://", InvalidKey, "write s3://bucket/prefix"),
        ("s3://b/../c", InvalidKey, "write s3://bucket/prefix"),
        ("s3://KEY:SECRET@bucket/x", InvalidKey, "set them as variables"),
        ("s3://bucket/x?access_key_id=SECRET", InvalidKey, "unknown option 'access_key_id'"),
        ("memory:x?region=y", InvalidKey, "unknown option"),
    ],
)
async def test_bad_urls_are_refused_and_secrets_not_repeated(url, error, said):
    with pytest.raises(error, match=said) as caught:
        await open_objects(url)
    assert "SECRET" not in str(caught.value)


async def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "quire.storage.objects.bucket", None)
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "quire.storage.objects.bucket")
    with pytest.raises(Unsupported, match=r"pip install 'quire\[archive\]'"):
        await open_objects("s3://bucket/x")


# S3


async def test_a_bucket_that_is_not_there_is_said(s3):
    with pytest.raises(NotFound, match="no such bucket"):
        await open_objects(s3.url("absent", make=False))


async def test_a_service_that_is_not_there_is_said(s3):
    with pytest.raises(StorageUnavailable, match="does not answer") as caught:
        await open_objects("s3://bucket/x?endpoint=http://127.0.0.1:9&allow_http=true&region=x")
    assert caught.value.retryable


async def test_tls_is_asked_for_unless_told_otherwise(s3):
    with pytest.raises((StorageUnavailable, InvalidKey)):
        await open_objects(s3.url("bucket").replace("&allow_http=true", ""))


def test_a_process_that_used_a_bucket_ends_well():
    """The bindings' own asynchronous calls abort the interpreter at its end; ours do not."""
    code = (
        "import asyncio\n"
        "from quire.storage.objects import open_objects\n"
        "async def main():\n"
        "    place = await open_objects('memory:x')\n"
        "    await place.put('a', b'1'); await place.names()\n"
        "asyncio.run(main())\n"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class _Forgetful(Folder):
    async def get(self, name, *, max_bytes):
        return None


async def test_a_place_that_does_not_keep_is_found_out_at_opening(tmp_path):
    with pytest.raises(StorageUnavailable, match="does not give back"):
        await probe(_Forgetful(tmp_path))
    assert not await Folder(tmp_path).names()


async def test_a_folder_that_may_not_be_written_is_denied(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)  # root, who runs tests in containers, may write everywhere
    with pytest.raises(Denied, match="can be written and read"):
        await open_objects(str(tmp_path))
