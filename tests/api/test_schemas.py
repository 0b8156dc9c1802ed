"""Schemas: what may be stored, how it merges, and how older states become newer ones, whatever happens meanwhile."""

import asyncio
import subprocess
import sys

import msgspec
import pytest

import quire
from quire import Append, Remove, Schema, Set
from quire.core.schema import typed
from quire.errors import HeadMoved, Invalid, InvalidState, MigrationFailed, Unsupported


class Note(msgspec.Struct):
    text: str
    stars: int = 0


class Research(msgspec.Struct, forbid_unknown_fields=True):
    topic: str
    notes: list[Note] = []
    n: int = 0


FIRST = {"topic": "tides", "notes": [{"text": "a"}]}
JSON = {
    "type": "object",
    "required": ["topic"],
    "properties": {
        "topic": {"type": "string"},
        "notes": {"type": "array", "items": {"type": "object", "required": ["text"]}},
    },
}


def rename(state):
    """1 to 2: `subject` is called `topic`."""
    state["topic"] = state.pop("subject")


def stars(state):
    """2 to 3: notes are objects."""
    return {**state, "notes": [{"text": n, "stars": 1} for n in state["notes"]]}


ONE = Schema("research")
TWO = Schema("research", version=2, migrations={1: rename})
THREE = Schema(
    "research", version=3, model=Research, kinds={"/notes": "log", "/n": "counter"}, migrations={1: rename, 2: stars}
)
OLD = {"subject": "tides", "notes": ["a", "b"]}
NEW = {"$schema": "research/3", "topic": "tides", "notes": [{"text": "a", "stars": 1}, {"text": "b", "stars": 1}]}


def opened(tmp_path, *schemas, **options):
    return quire.open(str(tmp_path / "s.db"), schemas=schemas, **options)


@pytest.fixture
async def old(tmp_path):
    """A store with workflows made by an older program."""
    async with opened(tmp_path, ONE) as store:
        for name in ("w", "x"):
            await store.create(name, OLD, schema="research")
        await store.create("free", {"subject": 5})
    return tmp_path


@pytest.mark.parametrize("model", [Research, JSON])
async def test_what_does_not_fit_is_not_stored(tmp_path, model):
    async with opened(tmp_path, Schema("research", model=model)) as store:
        w = await store.create("w", FIRST, schema="research")
        assert (await w.state())["$schema"] == "research/1"
        with pytest.raises(InvalidState, match="w: /topic does not fit research/1") as caught:
            await w.set("/topic", 5)
        assert caught.value.path == "/topic"
        with pytest.raises(InvalidState, match="/notes/1"):
            await w.append("/notes", {"stars": 1})
        with pytest.raises(InvalidState, match="topic"):
            await w.delete("/topic")
        with pytest.raises(InvalidState):
            await store.create("v", {"notes": []}, schema="research")
        with pytest.raises(InvalidState):
            async with w.edit() as state:
                state["notes"] = "none"
        assert await w.append("/notes", {"text": "b"})
        assert len(await w.history()) == 2, "nothing of what was refused is in the log"
        assert [n["text"] for n in await w.get("/notes")] == ["a", "b"]
        assert not await store.workflow("v").exists()


async def test_one_bad_write_spoils_none_of_its_batch(tmp_path):
    async with opened(tmp_path, Schema("research", model=Research)) as store:
        w = await store.create("w", FIRST, schema="research")
        calls = [w.set("/n", i) if i % 2 else w.set("/n", f"bad {i}") for i in range(20)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(d).__name__ for d in done] == ["InvalidState", "Version"] * 10
        assert await w.get("/n") == 19
        assert (await store.verify()).ok


async def test_a_state_comes_as_its_type_and_goes_back(tmp_path):
    async with opened(tmp_path, Schema("research", model=Research)) as store:
        w = await store.create("w", Research("tides", [Note("a")]), schema="research")
        state = await w.state(type=Research)
        assert state == Research("tides", [Note("a")])
        state.notes[0].stars = 5
        await w.save(state, overwrite=True)
        assert await w.state() == {
            "$schema": "research/1",
            "topic": "tides",
            "notes": [{"text": "a", "stars": 5}],
            "n": 0,
        }
        assert (await w.history())[0].changes == [Set(("notes", 0, "stars"), 5)]
        with pytest.raises(InvalidState, match="does not fit Note"):
            await w.state(type=Note)


async def test_a_state_made_anew_is_of_its_schema_still(tmp_path):
    async with opened(tmp_path, Schema("research", model=Research)) as store:
        w = await store.create("w", FIRST, schema="research")
        await w.save({"topic": "neaps"}, overwrite=True)
        assert await w.state() == {"$schema": "research/1", "topic": "neaps"}
        with pytest.raises(InvalidState):
            await w.save({"topic": 5}, overwrite=True)
        await w.delete("/$schema")
        assert (await w.save({"topic": 5}, overwrite=True)).number == 4


async def test_a_workflow_without_a_schema_is_as_free_as_ever(tmp_path):
    async with opened(tmp_path, THREE) as store:
        w = await store.create("w", {"topic": 5})
        await w.set("/anything", [1])
        await w.set("/$schema", "of another program")
        assert await w.get("/anything") == [1]
        with pytest.raises(Invalid, match="no schema 'other' was given.*known: research"):
            await store.create("v", {}, schema="other")


async def test_declared_kinds_merge_writes_and_forks(tmp_path):
    schema = Schema("board", kinds={"/done": "set", "/tasks": "keyed(id)", "/tasks/*/log": "log", "/spent": "counter"})
    async with opened(tmp_path, schema) as store:
        task = [{"id": i, "who": "", "log": []} for i in ("a", "b", "c")]
        w = await store.create("w", {"done": [], "tasks": task, "spent": 0}, schema="board")
        fork = await w.fork("f")
        await w.apply([Remove(("tasks",), 0), Append(("done",), ["a"]), Set(("spent",), 10)])
        await w.append("/tasks/0/log", "ours")
        await fork.apply(
            [
                Set(("tasks", 1, "who"), "ann"),
                Append(("tasks", 1, "log"), ["theirs"]),
                Set(("spent",), 5),
                Append(("done",), ["a", "b"]),
            ]
        )
        merged = await w.merge(fork, on_conflict="reject")
        assert not merged.conflicts
        state = await w.state()
        assert [(t["id"], t["who"], t["log"]) for t in state["tasks"]] == [
            ("b", "ann", ["ours", "theirs"]),
            ("c", "", []),
        ]
        assert (state["spent"], sorted(state["done"])) == (15, ["a", "b"])
        assert (await fork.merge(w)).version and await fork.state() == state
        assert (await w.merge(fork)).up_to_date or await w.state() == state

        async with w.edit() as draft:  # a late write: others move what it edits
            draft["tasks"][0]["who"] = "bob"
            await w.apply(
                [
                    Append(("tasks",), [{"id": "z", "who": "", "log": []}]),
                    Remove(("tasks",), 0),
                    Append(("tasks",), [state["tasks"][0]]),
                ]
            )
        assert [(t["id"], t["who"]) for t in await w.get("/tasks")] == [("c", ""), ("z", ""), ("b", "bob")]
        assert await w.conflicts() == []


async def test_an_older_state_is_migrated_when_it_is_read(old):
    async with opened(old, THREE) as store:
        w = store.workflow("w")
        assert await w.state() == NEW
        head, second, first = await w.history()
        assert [(v.author, v.kind, v.message) for v in (second, head)] == [
            ("quire", "migrate", "migrated from research/1 to research/2"),
            ("quire", "migrate", "migrated from research/2 to research/3"),
        ]
        assert await w.state(1) == {"$schema": "research/1", **OLD}, "old versions are as they were"
        assert await store.workflow("free").state() == {"subject": 5}
        line = (await w.blame("/topic"))[0]
        assert (line.version, line.author) == (2, "quire")
        assert (await store.verify()).ok


async def test_reading_what_was_migrates_nothing(old):
    async with opened(old, THREE) as store:
        w = store.workflow("w")
        assert (await w.state(1))["subject"] == "tides"
        assert (await w.state("~0"))["subject"] == "tides"
        assert len(await w.history()) == 1
        assert (await w.version(1)).number == 1


async def test_an_older_state_is_migrated_before_it_is_written(old):
    async with opened(old, THREE) as store:
        await store.workflow("w").append("/notes", {"text": "c"})
        assert [v.kind for v in await store.workflow("w").history()] == ["change", "migrate", "migrate", "create"]
        a, b = store.workflow("w"), store.workflow("x")
        await store.transact([a.change([Set(("n",), 1)]), b.change([Set(("n",), 2)])])
        assert (await b.state())["n"] == 2
        with pytest.raises(HeadMoved):
            await a.set("/n", 3, if_version=1)


async def test_many_readers_migrate_once(old):
    async with opened(old, THREE) as one, opened(old, THREE) as two:
        states = await asyncio.gather(*(s.workflow("w").state() for s in (one, two) * 20))
        assert all(s == NEW for s in states)
        assert [v.kind for v in await one.workflow("w").history()] == ["migrate", "migrate", "create"]


async def test_a_migration_that_raises_is_named_and_harms_nothing(old):
    def bad(state):
        state["notes"].clear()
        raise ZeroDivisionError("oh")

    broken = Schema("research", version=3, migrations={1: rename, 2: bad})
    async with opened(old, broken) as store:
        w = store.workflow("w")
        for call in (w.state(), w.set("/n", 1), w.get("/topic")):
            with pytest.raises(
                MigrationFailed, match="w: the migration from research/2 to research/3 failed .ZeroDivisionError: oh"
            ) as caught:
                await call
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert (await w.state(2))["notes"] == ["a", "b"], "what was reached is there, and can be read"
        assert await store.workflow("free").state() == {"subject": 5}
    async with opened(old, THREE) as store:
        assert await store.workflow("w").state() == NEW, "mended, it goes on where it stood"


@pytest.mark.parametrize("result", [5, [], {"topic": float("nan")}, {"topic": 7, "notes": []}])
async def test_a_migration_whose_result_does_not_fit_is_refused(old, result):
    schema = Schema("research", version=2, model=Research, migrations={1: lambda _: result})
    async with opened(old, schema) as store:
        with pytest.raises(MigrationFailed):
            await store.workflow("w").state()
        assert len(await store.workflow("w").history()) == 1


async def test_a_migration_cannot_alter_what_is_stored(old):
    kept = []
    schema = Schema("research", version=2, migrations={1: kept.append})
    async with opened(old, schema) as store:
        w = store.workflow("w")
        await w.state()
        kept[0]["notes"].append("late")
        assert (await w.state())["notes"] == ["a", "b"]


async def test_an_older_program_does_not_write_over_a_newer_state(old):
    async with opened(old, THREE) as store:
        await store.workflow("w").state()
    async with opened(old, TWO) as store:
        w = store.workflow("w")
        assert (await w.state())["topic"] == "tides", "reading is fine"
        with pytest.raises(InvalidState, match="is of research/3, this program knows research/2"):
            await w.set("/topic", "neaps")
        await w.restore(2)  # the way back for a program that has to be rolled back
        await w.set("/topic", "neaps")
        assert (await w.state())["notes"] == ["a", "b"]
    async with opened(old, THREE) as store:
        assert (await store.workflow("w").state())["notes"][0] == {"text": "a", "stars": 1}


async def test_a_fork_of_an_old_version_is_migrated_by_itself(old):
    async with opened(old, THREE) as store:
        w = store.workflow("w")
        await w.append("/notes", {"text": "c"})
        fork = await w.fork("f", at=1)
        assert await fork.state() == NEW
        await fork.set("/n", 7)
        merged = await w.merge(fork)
        assert (await w.state())["n"] == 7
        assert [n["text"] for n in (await w.state())["notes"]].count("a") == 1, str(merged.summary)


async def test_migrate_plans_and_does_all(old):
    async with opened(old, THREE) as store:
        for plan in (True, False):
            found = await store.migrate(plan=plan)
            assert [(m.workflow_id, m.before, m.after, m.error) for m in found] == [
                ("w", "research/1", "research/3", None),
                ("x", "research/1", "research/3", None),
            ]
            assert len(await store.workflow("w").history()) == (1 if plan else 3)
        assert await store.migrate() == []
    bad = Schema("research", version=4, migrations={1: rename, 2: stars, 3: lambda s: s["none"]})
    async with opened(old, bad) as store:
        for plan in (True, False):
            (one,) = await store.migrate("x", plan=plan)
            assert (one.before, one.after) == ("research/3", "research/3")
            assert "KeyError" in one.error


KILLED = """
import asyncio, sys
import quire
from quire import Schema

async def main():
    schema = Schema("research", version=40, migrations={n: (lambda s, n=n: {**s, f"step{n}": n}) for n in range(1, 40)})
    async with quire.open(sys.argv[1], schemas=[schema]) as store:
        print((await store.workflow("w").state())["$schema"])

asyncio.run(main())
"""


@pytest.mark.parametrize("point", ["migrate:step", "commit:before", "commit:after"])
def test_a_migration_killed_anywhere_goes_on_where_it_stood(tmp_path, point):
    async def begun():
        async with opened(tmp_path, ONE) as store:
            await store.create("w", OLD, schema="research")

    asyncio.run(begun())
    path = str(tmp_path / "s.db")
    for count in (1, 2, 7, 5, 1000):
        env = {"QUIRE_FAILPOINT": f"{point}:{count}"}
        done = subprocess.run([sys.executable, "-c", KILLED, path], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == (0 if count == 1000 else -9), done.stderr
    assert done.stdout.strip() == "research/40"

    async def checked():
        async with opened(tmp_path) as store:
            w = store.workflow("w")
            kinds = [v.kind for v in await w.history(order="oldest")]
            assert kinds == ["create"] + ["migrate"] * 39, "each step once, none left out"
            state = await w.state()
            assert [state[f"step{n}"] for n in range(1, 40)] == list(range(1, 40))
            assert (await store.verify()).ok

    asyncio.run(checked())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"name": ""}, "schema name"),
        ({"name": "a/b"}, "schema name"),
        ({"version": 0}, "version 0"),
        ({"version": True}, "version True"),
        ({"version": 3, "migrations": {1: rename}}, "not for 2"),
        ({"migrations": {1: rename}}, "not for 1"),
        ({"model": {"type": "nothing"}}, "is no JSON Schema"),
        ({"model": {"$ref": "https://example.com/s.json"}}, "is no JSON Schema"),
        ({"kinds": {"/a": "heap"}}, "no kind 'heap'"),
        ({"kinds": {"a": "log"}}, "a"),
    ],
)
def test_a_schema_that_is_none_is_refused_at_once(how, said):
    with pytest.raises(Invalid, match=said):
        Schema(**{"name": "s", **how})


async def test_what_is_given_to_open_is_checked(tmp_path):
    for schemas in ([THREE, ONE], ["research"]):
        with pytest.raises(Invalid):
            await quire.open(str(tmp_path / "s.db"), schemas=schemas)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    with pytest.raises(Unsupported, match=r"quire\[jsonschema\]"):
        Schema("s", model=JSON)


@pytest.mark.parametrize(
    ("state", "path"),
    [({"topic": 1}, "/topic"), ({"topic": "t", "notes": [{"text": "a"}, {"text": 5}]}, "/notes/1/text"), ({}, "")],
)
def test_the_place_that_does_not_fit_is_named(state, path):
    with pytest.raises(InvalidState) as caught:
        typed(state, Research, "research/1")
    assert caught.value.path == path


def test_without_await(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db"), schemas=[THREE]) as store:
        w = store.create("w", Research("tides"), schema="research")
        assert w.state(type=Research).topic == "tides"
        assert store.migrate(plan=True) == []
