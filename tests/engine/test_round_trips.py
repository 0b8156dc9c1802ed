"""How often a call asks the backend: on a server each question is a round trip."""

import secrets
from collections import Counter

import pytest

import quire
from quire.errors import AlreadyExists, VersionNotFound


@pytest.fixture
async def store():
    async with quire.open("memory:") as opened:
        yield opened


def asked_of(store, monkeypatch):
    """Count what is asked of a store's backend from now on."""
    backend, asked = store.engine.backend, Counter()
    for name in ("latest", "keyframe", "read", "heads", "streams", "feed", "commit", "cells"):
        ask = getattr(backend, name)

        def counted(*args, _ask=ask, _name=name, **kwargs):
            asked[_name] += 1
            return _ask(*args, **kwargs)

        monkeypatch.setattr(backend, name, counted)
    return asked


async def test_a_version_known_to_be_old_is_read_without_looking_for_news(store, monkeypatch):
    wf = await store.create("w", {"n": 0})
    for _ in range(20):
        await wf.inc("/n")
    asked = asked_of(store, monkeypatch)
    assert await wf.get("/n", version=10) == 9
    assert (await wf.state_and_version(10)) == ({"n": 9}, 10)
    assert asked == {"keyframe": 2, "read": 2}
    asked.clear()
    assert (await wf.version(10)).number == 10
    assert asked == {"read": 1}
    asked.clear()
    fork = await wf.fork("f", at=10)
    assert (asked["latest"], asked["commit"]) == (0, 1)
    assert await fork.state() == {"n": 9}
    with pytest.raises(VersionNotFound):
        await wf.state(22)


async def test_a_newer_version_of_another_process_is_looked_for(tmp_path):
    url = str(tmp_path / "s.db")
    async with quire.open(url) as one, quire.open(url) as two:
        mine = await one.create("w", {"n": 0})
        theirs = two.workflow("w")
        assert await theirs.get("/n") == 0
        await mine.inc("/n")
        assert await theirs.state(2) == {"n": 1}
        await mine.inc("/n")
        assert (await theirs.fork("f", at=3)).id == "f"
        with pytest.raises(AlreadyExists, match="f exists, or existed"):
            await mine.fork("f")
        await two.delete("f")
        with pytest.raises(AlreadyExists, match="f exists, or existed"):
            await mine.fork("f", at=1)


async def test_a_page_of_workflows_reads_as_many_names(store, monkeypatch):
    for n in range(60):
        await store.create(f"w{n:02}", {})
    for n in range(1, 40):
        await store.delete(f"w{n:02}")
    backend, limits = store.engine.backend, []
    streams = backend.streams

    def listing(*args, limit, **kwargs):
        limits.append(limit)
        return streams(*args, limit=limit, **kwargs)

    monkeypatch.setattr(backend, "streams", listing)
    assert await store.workflows(limit=3, after="w40") == ["w41", "w42", "w43"]
    assert limits == [3]
    assert await store.workflows(limit=3) == ["w00", "w40", "w41"]
    assert limits[1:] == [3, 12, 48]
    assert await store.workflows(limit=0) == []
    assert len(await store.workflows()) == 21


@pytest.mark.parametrize(
    "url", ["{here}/s.db", "file:///{here}/f", "rocksdb:///{here}/r", "{here}/s.db?compression=zstd"]
)
async def test_a_log_goes_on_behind_a_record_that_is_a_page_of_its_own(tmp_path, url):
    url = url.format(here=tmp_path)
    async with quire.open(url) as store:
        wf = await store.create("w", {"n": 0})
        await wf.set("/big", secrets.token_hex(2_500_000))
        await store.engine.frame("workflows/w", 2)
        for _ in range(5):
            await wf.inc("/n")
    async with quire.open(url) as store:
        wf = store.workflow("w")
        assert ((await wf.version()).number, await wf.get("/n"), len(await wf.history())) == (7, 5, 7)
        assert await wf.get("/n", version=4) == 2
        assert await (await wf.fork("f")).get("/n") == 5
        assert [line.version for line in await wf.blame("/n")] == [7]
        assert (await store.verify()).ok
