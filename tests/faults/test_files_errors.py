"""Failing writes and syncs of a folder, at every call in turn, and a real disk that is full: what is acknowledged stays."""

import errno
import os
import subprocess

import pytest

import quire
from quire.errors import StorageError, StorageFull, StorageUnavailable
from quire.storage import _files_disk
from quire.storage.files import open_files
from quire.testing._conformance_base import after, appended, begun, head_of
from quire.testing.conformance import bare
from quire.testing.faults import Plan, trouble


@pytest.fixture
def failing(monkeypatch):
    """Have writes and syncs follow a plan."""
    pwrite, sync = _files_disk.pwrite, _files_disk.sync
    now = []

    def fail(kinds, work):
        plan = now[0] if now else None
        fails = plan is not None and plan.due(kinds)
        if not fails or plan.through:
            work()
        if fails:
            raise OSError(errno.ENOSPC if plan.kind == "full" else errno.EIO, "injected")

    def write(handle, data, offset):
        if now and now[0].armed and not now[0].through and now[0].kind == "full" and len(data) > 1:
            half = len(data) // 2  # a full disk takes a part
            pwrite(handle, data[:half], offset)
        fail(("write", "full"), lambda: pwrite(handle, data, offset))

    monkeypatch.setattr(_files_disk, "pwrite", write)
    monkeypatch.setattr(_files_disk, "sync", lambda handle: fail(("sync",), lambda: sync(handle)))
    return lambda plan: now.__setitem__(slice(None), [plan])


def troubled(url, plan):
    return trouble(quire.open(url), quire.open(url), plan)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync", "full"])
async def test_every_call_may_fail(tmp_path, failing, kind, lasting, through):
    trouble_seen = 0
    for at in range(1, 200):
        plan = Plan(kind, at, lasting=lasting, through=through)
        failing(plan)
        failed, unknown = await troubled(f"file:///{tmp_path}/{at}", plan)
        trouble_seen += len(failed) + len(unknown)
        if not plan.fired:
            break
    assert at > 2
    assert not plan.fired
    assert trouble_seen


async def test_after_a_failed_commit_none_lands_until_recovery(tmp_path, failing):
    backend = await open_files(str(tmp_path / "s"), namespace="n")
    plan = Plan("sync", 1)
    failing(plan)
    plan.armed = True
    items = [begun("s/1", b"1"), begun("s/2", b"1")]
    for item in items:
        with pytest.raises(StorageUnavailable):
            await backend.commit([item])
    assert await backend.streams() == []
    await backend.recover()
    assert await backend.streams() == []
    (done,) = await backend.commit([items[1]])
    assert bare(await backend.feed()) == list(items[1].records)
    assert done.first == 1
    await backend.close()


async def test_what_another_handle_finished_is_found_after_recovery(tmp_path, failing):
    """A frame that is whole though its sync failed: whoever writes next makes it durable, and both see it."""
    backend = await open_files(str(tmp_path / "s"), namespace="n")
    other = await open_files(str(tmp_path / "s"), namespace="n")
    plan = Plan("sync", 1)
    failing(plan)
    plan.armed = True
    item = begun("s/1", b"1")
    with pytest.raises(StorageUnavailable):
        await backend.commit([item])
    await appended(other, "s/2", b"1")
    await backend.recover()
    for handle in (backend, other):
        assert [(r.stream, r.position) for r in await handle.feed()] == [("s/1", 1), ("s/2", 2)]
    (outcome,) = await backend.commit([after(head_of(item), b"2")])
    assert outcome.first == 3
    assert await backend.check() == []
    await backend.close()
    await other.close()


@pytest.mark.parametrize("change", ["trim", "drop", "rewrite", "scrub", "put_blob"])
@pytest.mark.parametrize("kind", ["write", "sync"])
async def test_a_change_of_files_that_fails_is_whole_or_not_at_all(tmp_path, failing, change, kind):
    for at in range(1, 60):
        path = str(tmp_path / f"{at}")
        backend = await open_files(path, namespace="n")
        records = await appended(backend, "s/1", b"1", b"2", b"3")
        plan = Plan(kind, at)
        failing(plan)
        plan.armed = True
        calls = {
            "trim": lambda: backend.trim("s/1", 2),
            "drop": lambda: backend.drop("s/1"),
            "rewrite": lambda: backend.rewrite([records[0]]),
            "scrub": backend.scrub,
            "put_blob": lambda: backend.put_blob("b", b"1" * 10000),
        }
        try:
            await calls[change]()
        except StorageUnavailable:
            assert plan.fired
        plan.heal()
        assert await backend.check() == []
        assert len(await backend.read("s/1")) in {"trim": (1, 3), "drop": (0, 3)}.get(change, (3,))
        await appended(backend, "s/2", b"1")
        await calls[change]()
        await backend.close()
        backend = await open_files(path, namespace="n")
        assert await backend.check() == []
        assert len(await backend.read("s/1")) == {"trim": 1, "drop": 0}.get(change, 3)
        await backend.close()
        if not plan.fired:
            return
    pytest.fail("it never came to an end")


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of its own, of two megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "quire-small", folder], check=True)
    except (OSError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"needs root, to mount a small file system: {cause}")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_is_said_and_what_was_acknowledged_stays(small_disk):
    ballast = small_disk / "ballast"
    url = f"file:///{small_disk}/store"
    acked, refused = [], 0
    async with quire.open(url) as store:
        wf = await store.create("w", {"log": []})
        for i in range(2000):
            text = f"{i} " + "tides " * 80
            try:
                await wf.append("/log", text)
            except StorageFull:
                refused += 1
                if refused > 20:
                    break
                continue
            acked.append(text)
            if i == 100:
                ballast.write_bytes(os.urandom(1000 * 1024))
        assert refused > 20
        assert await wf.get("/log") == acked
        ballast.unlink()
        await wf.append("/log", "room again")
        assert (await store.verify()).ok
    async with quire.open(url) as store:
        assert await store.workflow("w").get("/log") == [*acked, "room again"]
        assert (await store.verify()).ok


async def test_the_check_notices_an_acknowledgement_that_was_none(tmp_path, failing, monkeypatch):
    """The control: a store that takes a failed commit for done is caught."""
    from quire.engine import committer
    from quire.storage.base import Committed

    async def hopeful(self, items, error):
        return [Committed(1, len(i.records)) for i in items]

    monkeypatch.setattr(committer.Committer, "_look", hopeful)
    with pytest.raises((AssertionError, StorageError)):
        for at in range(1, 12):
            plan = Plan("full", at)
            failing(plan)
            await troubled(f"file:///{tmp_path}/{at}", plan)
