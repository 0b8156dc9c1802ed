"""An import is all or nothing, on every store, and reads whatever `quire export` writes."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import quire
from quire import Ensure, Set, Settings
from quire.api import imports
from quire.api.imports import end_of
from quire.cli.moving import _exported
from quire.config import Retention
from quire.core.values import same
from quire.errors import AlreadyExists, FunctionFailed, Invalid, InvalidState, LimitExceeded, QuireError
from quire.testing.servers.fixtures import PLACES

WRAPPED = {
    "compressed": {"compression": "zstd"},
    "encrypted": {"encryption_key": bytes(32)},
    "archived": {"retention": Retention(versions=3, every_s=0)},
}
IMPORTER = """
import json, sys, quire
with quire.sync.open(sys.argv[1]) as store:
    print("ready", flush=True)
    store.import_workflow(map(json.loads, open(sys.argv[2])), workflow_id="copy")
    print("done", flush=True)
"""


def told(store):
    """A workflow with versions of all kinds, as two of its exports."""
    w = store.create("w", {"a": "secret", "l": [1], "n": 1.0}, author="ann", message="first \u2028 line\nand another")
    w.apply([Ensure(("made",), []), Set(("t",), "text " * 9)])
    f = w.fork("f", author="bob")
    f.append("/l", 2, 3, message="there")
    f.splice("/t", 2, 1, "\U0001f600")
    w.inc("/n", 2)
    w.merge("f", author="cleo")
    w.checkpoint("seen", tags=["x", "y"], description="as it was\nthen", author="dora")
    w.checkpoint("whole", kind="snapshot")
    w.set("/a", "other")
    w.redact("/a")
    w.set("/a", "again", kind="step", idempotency_key="k")
    w.restore(2)
    w.revert(3)
    w.apply([{"op": "move", "from": "/l", "path": "/m"}, {"op": "remove", "path": "/m/0"}])
    w.set("/odd/..~1"[:4], {"": {"~": [None, True, 0.0, -0.0, 2**70]}})
    store.delete("w", author="eve")
    store.create("w", {"new": 1})
    w.set("/new", 2, allow_empty=True)
    w.set("/new", 2, allow_empty=True)
    f.checkpoint("end", kind="snapshot")
    f.checkpoint("again", kind="snapshot")
    store.create("gone", {"n": 1})
    store.workflow("gone").checkpoint("before")
    store.delete("gone")


@pytest.fixture(scope="module")
def source():
    with quire.sync.open("memory:import-source") as store:
        told(store)
        yield store


def exported(store, name):
    return json.loads(json.dumps(_exported(store.workflow(name))))


def ended(lines):
    """Put the end that belongs to them behind lines that were altered."""
    return [*lines[:-1], end_of(lines[:-1])]


def compared(lines):
    keys = ("version", "author", "message", "kind", "changes", "restored")
    found = [{key: line.get(key) for key in keys} for line in lines[1:] if "version" in line]
    found[0]["kind"] = "create"
    marks = [line["checkpoint"] for line in lines if "checkpoint" in line]
    kept = ("name", "version", "tags", "description", "author", "kind", "blob", "size_bytes")
    return found, [{key: mark.get(key) for key in kept} for mark in marks]


async def imported(store, source, name):
    there, was = store.workflow(name), source.workflow(name)
    made = await store.import_workflow(exported(source, name))
    versions = was.history(order="oldest")
    assert made.number == len(versions)
    for version in versions:
        assert same(await there.state(version.number), was.state(version.number))
    marks = [await there.checkpoints(), was.checkpoints()]
    assert len(marks[0]) == len(marks[1])
    for ours, theirs in zip(*marks, strict=True):
        assert ours.checksum == (await store.engine.record(f"workflows/{name}", ours.version)).chain.hex()
        if ours.kind == "snapshot":
            assert await there.kept_state(ours) == was.kept_state(theirs)
    assert compared(await asyncio.to_thread(_async_exported, store, name, asyncio.get_running_loop())) == compared(
        exported(source, name)
    )
    return there


def _async_exported(store, name, loop):
    """What `quire export` writes of a workflow of a store that runs on another loop."""

    class Shown:
        id = name

        def __getattr__(self, word):
            method = getattr(store.workflow(name), word)
            return lambda *a, **k: asyncio.run_coroutine_threadsafe(method(*a, **k), loop).result()

    return json.loads(json.dumps(_exported(Shown())))


@pytest.mark.parametrize("kind", [*PLACES, *WRAPPED])
async def test_every_kind_of_version_is_read_by_every_store(tmp_path, source, kind):
    url = PLACES.get(kind, PLACES["sqlite"])(tmp_path)
    async with quire.open(url, **WRAPPED.get(kind, {})) as store:
        for name in ("w", "f", "gone"):
            there = await imported(store, source, name)
        assert (await store.verify()).ok
        assert await store.workflows() == ["f", "w"]
        assert not await there.exists() and (await there.history())[0].kind == "delete"
        w = store.workflow("w")
        assert [line.path for line in await w.blame()] == ["/new"]
        assert len(await w.graph()) == len(await w.history())
        await w.set("/more", 1, idempotency_key="k")
        fork = await w.fork("w2", at=5)
        await fork.set("/x", 1)
        await store.workflow("w").restore(2)
        assert (await store.verify()).ok
        assert await store.workflow("w").state() == source.workflow("w").state(2)
        if kind == "memory":  # it is gone with its last handle
            return
    async with quire.open(url, **WRAPPED.get(kind, {})) as store:
        assert await store.workflow("w").state() == source.workflow("w").state(2)
        with pytest.raises(AlreadyExists):
            await store.import_workflow(exported(source, "w"))
        with pytest.raises(AlreadyExists):
            await store.import_workflow(exported(source, "gone"))


async def nothing_is_there(store):
    stats = await store.engine.backend.stats()
    assert (stats.streams, stats.records, stats.blobs) == (0, 0, 0)
    assert await store.workflows() == []


HOSTILE = {
    "author": {"author": "a\u001b[2J"},
    "author of 300": {"author": "a" * 300},
    "message": {"message": "\ud800"},
    "number": {"version": 9},
    "kind": {"kind": "fork"},
    "kind create": {"kind": "create"},
    "kind delete": {"kind": "delete"},
    "changes": {"changes": [["del", ["none"]]]},
    "change": {"changes": [["boom"]]},
    "fork": {"changes": [["fork", "w", 1, ""]]},
    "deep": {"changes": [["set", ["a"], json.loads("[" * 70 + "]" * 70)]]},
    "nested path": {"changes": [["set", ["a"] * 70, 1]]},
    "restored": {"restored": 99},
    "count": {"changes": [["remove", ["l"], 0, 10**12]]},
    "ensure": {"changes": [["ensure", ["e"], [1]]]},
}


@pytest.mark.parametrize("how", HOSTILE)
async def test_a_hostile_version_makes_no_workflow(source, how):
    lines = exported(source, "f")
    lines[2] = {**lines[2], **HOSTILE[how]}
    if how != "message":  # which no JSON can hold
        lines = ended(lines)
    async with quire.open("memory:") as store:
        with pytest.raises(InvalidState, match="line 3 is damaged"):
            await store.import_workflow(lines)
        await nothing_is_there(store)


@pytest.mark.parametrize("name", ["w", "f"])
async def test_an_export_that_was_cut_or_altered_makes_no_workflow(source, name):
    whole = exported(source, name)
    assert len(whole) > 5
    damaged = [whole[:kept] for kept in range(len(whole))]
    damaged += [[*whole[:number], *whole[number + 1 :]] for number in range(len(whole))]
    damaged += [[*whole, whole[-1]], [*whole, whole[2]], [*whole[:-2], whole[-1], whole[-2]]]
    for number, line in enumerate(whole):
        for key in line:
            damaged.append([*whole[:number], {**line, key: "stolen"}, *whole[number + 1 :]])
    async with quire.open("memory:") as store:
        for lines in damaged:
            with pytest.raises(InvalidState):
                await store.import_workflow(lines)
        await nothing_is_there(store)
        await store.import_workflow(whole)


class Failing:
    """Lines that raise something after some of them."""

    def __init__(self, lines, raised):
        self.lines, self.raised = iter(lines), raised

    def __iter__(self):
        return self

    def __next__(self):
        for line in self.lines:
            return line
        raise self.raised


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("raised", [SystemExit(3), GeneratorExit(), asyncio.CancelledError(), BaseException("x")])
async def test_what_the_lines_raise_is_the_failure_of_their_code(source, count, raised):
    async with quire.open("memory:") as store:
        ends = isinstance(raised, SystemExit) and count == 0  # it is raised in the main thread
        with pytest.raises(SystemExit if ends else FunctionFailed):
            await store.import_workflow(Failing(exported(source, "w")[:count], raised))
        await nothing_is_there(store)


@pytest.mark.parametrize("lines", [None, 5, object()])
async def test_what_is_no_lines_is_refused(lines):
    async with quire.open("memory:") as store:
        with pytest.raises(Invalid, match="lines"):
            await store.import_workflow(lines)


@given(st.data())
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_export_makes_no_workflow_or_a_whole_one(source, data):
    lines = exported(source, data.draw(st.sampled_from(["w", "f"])))
    number = data.draw(st.integers(0, len(lines) - 1))
    junk = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
    match data.draw(st.sampled_from(["drop", "twice", "junk", "key", "swap"])):
        case "drop":
            del lines[number]
        case "twice":
            lines.insert(number, lines[number])
        case "junk":
            lines[number] = data.draw(junk)
        case "swap":
            lines[number], lines[-1] = lines[-1], lines[number]
        case _:
            line = lines[number].get("checkpoint", lines[number])
            line[data.draw(st.sampled_from(sorted(line)))] = data.draw(junk)
    if data.draw(st.booleans()) and all(isinstance(line, dict) for line in lines):
        lines = ended(lines)

    async def check():
        async with quire.open("memory:") as store:
            try:
                made = await store.import_workflow(lines)
            except QuireError as error:
                assert isinstance(error, ValueError)
                await nothing_is_there(store)
            else:
                assert made.number == sum(isinstance(line, dict) and "changes" in line for line in lines)
                assert (await store.verify()).ok

    asyncio.run(check())


async def test_limits_hold_for_each_version_and_nothing_is_left(source):
    lines = exported(source, "f")
    lines[2]["changes"] = [["set", ["big"], "x" * 3000]]
    lines = ended(lines)
    for limits in ({"write_bytes_max": 2000}, {"state_bytes_max": 2500}, {"value_bytes_max": 2000}):
        async with quire.open("memory:", settings=Settings(**limits)) as store:
            with pytest.raises(LimitExceeded) as caught:
                await store.import_workflow(lines)
            assert caught.value.limit in limits and "line 3" in caught.value.__notes__[0]
            await nothing_is_there(store)
    lines[1]["changes"] = [["set", [], {"big": "x" * 3000}]]  # what a fork began with was no write of its own
    lines = ended(lines[:3])
    async with quire.open("memory:", settings=Settings(write_bytes_max=2000)) as store:
        assert (await store.import_workflow(lines)).number == 1


async def test_a_full_store_takes_no_import(source, tmp_path):
    async with quire.open(f"{tmp_path}/s.db", settings=Settings(store_bytes_max=10)) as store:
        with pytest.raises(LimitExceeded, match="store_bytes_max"):
            await store.import_workflow(exported(source, "w"))
        await nothing_is_there(store)


async def test_more_versions_than_a_transaction_may_have(tmp_path):
    head = {"quire": "export", "schema": 1, "workflow": "many"}
    said = {"author": "a", "message": "m", "kind": "change"}
    lines = [head] + [{"version": n, "changes": [["set", [], {"n": n}]], **said} for n in range(1, 12_001)]
    lines.append(end_of(lines))
    async with quire.open(f"{tmp_path}/s.db") as store:
        assert (await store.import_workflow(lines)).number == 12_000
        assert await store.workflow("many").state() == {"n": 12_000}
        times = [v.record.time for v in await store.workflow("many").history(order="oldest")]
        assert times == sorted(times) and (await store.verify()).ok


async def test_two_imports_at_once_make_one_workflow(source, tmp_path):
    async with quire.open(f"{tmp_path}/s.db") as one, quire.open(f"{tmp_path}/s.db") as two:
        made = await asyncio.gather(
            *(store.import_workflow(exported(source, "f")) for store in (one, two, one)), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in made) == ["AlreadyExists", "AlreadyExists", "Version"]
        assert (await one.verify()).ok
        assert await two.workflow("f").state() == source.workflow("f").state()


async def test_a_watcher_and_a_reader_see_it_whole_or_not(source):
    async with quire.open("memory:") as store:
        wf = store.workflow("f")
        assert not await wf.exists()
        seen = []

        async def look():
            while not seen or seen[-1] == 0:
                seen.append((await store.engine.current("workflows/f")).head.version)
                await asyncio.sleep(0)

        await asyncio.gather(look(), store.import_workflow(exported(source, "f")))
        assert set(seen) == {0, len(source.workflow("f").history())}


POINTS = ["import:blob:1", "import:commit:1", "import:committed:1", None]


@pytest.mark.parametrize("kind", ["sqlite", "files", "rocksdb", "postgresql", "redis", "nats"])
@pytest.mark.parametrize("point", POINTS)
async def test_a_killed_import_leaves_all_or_nothing(tmp_path, source, kind, point):
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in exported(source, "f")))
    url = PLACES[kind](tmp_path)
    env = {**os.environ, **({"QUIRE_FAILPOINT": point} if point else {})}
    done = subprocess.run([sys.executable, "-c", IMPORTER, url, str(file)], capture_output=True, env=env, check=False)
    assert done.stdout.startswith(b"ready"), done.stderr.decode()[-500:]
    whole = point in (None, "import:committed:1")
    assert (done.returncode == 0) is (point is None)
    async with quire.open(url) as store:
        assert await store.workflows() == (["copy"] if whole else [])
        stats = await store.engine.backend.stats()
        assert stats.streams == (2 if whole else 0)
        assert (await store.verify()).ok
        if not whole:
            await store.import_workflow(map(json.loads, Path(file).read_text().splitlines()), workflow_id="copy")
        assert await store.workflow("copy").state() == source.workflow("f").state()
        assert (await store.verify()).ok


async def test_in_pieces_the_killed_import_would_leave_half(source, monkeypatch):
    """A negative control: the same checks find an import that commits version by version."""
    put = imports.Item

    async with quire.open("memory:") as store:

        async def piecemeal(item):
            first = item.records[0]
            await store.engine.backend.commit([put(item.expect[:1], [first])])
            raise OSError("killed here")

        monkeypatch.setattr(store.engine.committer, "put", piecemeal)
        with pytest.raises(OSError, match="killed here"):
            await store.import_workflow(exported(source, "w"))
        with pytest.raises(AssertionError):
            await nothing_is_there(store)
