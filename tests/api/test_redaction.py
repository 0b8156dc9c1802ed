"""Redaction: what was taken out is nowhere any more, everything else is as it was, and nobody can do it in secret."""

import asyncio
import subprocess
import sys

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quire
from quire import Append, Increment, Schema, Set, Splice
from quire.core import keyframes, record
from quire.core.changes import apply
from quire.core.redact import MARK, ByPath, ByText
from quire.core.values import same
from quire.engine import redaction
from quire.errors import Invalid, InvalidState
from quire.model import Head
from quire.testing.strategies import changes_for, states

SECRET = "sk-hunter2-hunter2"


async def told(workflow):
    """Everything that reading a workflow tells."""
    versions = await workflow.history(order="oldest")
    return {v.number: (v.checksum, v.author, v.message, v.kind, await workflow.state(v.number)) for v in versions}


def found_in_files(path):
    return [p.name for p in path.parent.glob(path.name + "*") if SECRET.encode() in p.read_bytes()]


async def leaked(store, *, everywhere=False):
    """A workflow into which a secret got, in all the ways there are."""
    w = await store.create("w", {"user": {"name": "ann", "key": SECRET}, "log": ["begin"], "n": 1})
    await w.checkpoint("early", kind="snapshot")
    await w.append("/log", f"key is {SECRET}" if everywhere else "used", author="bob")
    await w.set("/user/key", SECRET + "x")
    fork = await w.fork("f", at=2)
    await fork.set("/user/other", SECRET)
    await w.splice("/user/key", 0, 0, "new ")
    await w.inc("/n", 2)
    base = await w.state()
    await w.set("/user/key", "mine")
    await w.save({**base, "user": {**base["user"], "key": SECRET + "!"}}, base=6, on_conflict="queue")
    await fork.set("/user/key", SECRET + "?")
    await w.merge(fork, on_conflict="ours")
    return w, fork


@pytest.mark.parametrize("how", [{"path": "/user"}, {"text": SECRET}])
async def test_nothing_of_it_is_left_anywhere(tmp_path, how):
    path = tmp_path / "s.db"
    async with quire.open(str(path)) as store:
        w, fork = await leaked(store, everywhere="text" in how)
        before = {name: await told(store.workflow(name)) for name in ("w", "f")}
        assert found_in_files(path)
        done = await w.redact(**how, author="officer", message="it leaked")
        assert found_in_files(path) == []
        rule = ByPath(("user",)) if "path" in how else ByText(SECRET)
        for name in ("w", "f"):
            after = await told(store.workflow(name))
            for number, (checksum, *said, state) in before[name].items():
                assert after[number][:-1] == (checksum, *said), "who, when, why and the chain are as they were"
                assert same(after[number][-1], rule.value((), state))
            assert (await store.workflow(name).history(1))[0].message == "it leaked"
        assert done.versions["workflows/w"]
        assert done.versions["workflows/f"]
        assert done.versions["conflicts/w"]
        assert done.snapshots == ["w@early"]
        assert (await w.kept_state((await w.checkpoints())[0]))["user"] in (MARK, {"name": "ann", "key": MARK})
        assert all(SECRET not in str(c) for c in await w.conflicts())
        report = await store.verify()
        assert report.ok, report.problems
        one = await w.version(1)
        assert one.redacted
        assert not (await w.version(5)).redacted or "text" in how or await w.get("/n", version=5) == 3
    async with quire.open(str(path)) as store:
        w, fork = store.workflow("w"), store.workflow("f")
        assert same((await told(w))[1][-1], rule.value((), before["w"][1][-1]))
        await fork.append("/log", "after")
        assert (await w.merge(fork)).conflicts == []
        assert (await w.get("/log"))[-1] == "after"
        assert [line.value for line in await w.blame("/user")]
        assert (await store.verify()).ok


@st.composite
def histories(draw):
    state = first = draw(states)
    made = []
    for _ in range(draw(st.integers(1, 8))):
        changes = draw(changes_for(state, 4))
        made.append(changes)
        state = apply(state, changes)
    return first, made


async def _redacted_equals(history, rule, how):
    first, made = history
    async with quire.open("memory:") as store:
        w = await store.create("w", first)
        for changes in made:
            await w.apply(changes, allow_empty=True)
        before = await told(w)
        try:
            await w.redact(**how)
        except Invalid:
            return
        after = await told(w)
        for number, (checksum, *_, state) in before.items():
            assert after[number][0] == checksum
            assert same(after[number][-1], rule.value((), state)), number
        report = await store.verify()
        assert report.ok, report.problems


@given(histories(), st.data())
@settings(max_examples=150, deadline=None)
def test_every_state_is_what_the_rule_leaves_of_it_by_path(history, data):
    keys = sorted(
        {k for s in (history[0],) for k in s}
        | {c.path[0] for cs in history[1] for c in cs if c.path and type(c.path[0]) is str}
    )
    key = data.draw(st.sampled_from(keys or ["none"]))
    path = (key, data.draw(st.sampled_from(["a", "b", ""]))) if data.draw(st.booleans()) else (key,)
    asyncio.run(_redacted_equals(history, ByPath(path), {"path": list(path)}))


@given(histories(), st.sampled_from(["a", "b", " ", "aa", "é", "0"]))
@settings(max_examples=150, deadline=None)
def test_every_state_is_what_the_rule_leaves_of_it_by_text(history, text):
    asyncio.run(_redacted_equals(history, ByText(text), {"text": text}))


async def test_a_text_put_together_by_edits_is_out_when_it_is_whole():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"t": "my sk- key"})
        await w.apply([Splice(("t",), 6, 0, SECRET[3:])])
        await w.apply([Splice(("t",), 0, 2, "our")])
        await w.redact(text=SECRET)
        assert [await w.get("/t", version=v) for v in (1, 2, 3)] == ["my sk- key", f"my {MARK} key", f"our {MARK} key"]
        assert (await store.verify()).ok


@pytest.mark.parametrize(("point", "rewritten"), [("redact:noted", False), ("redact:rewritten", True)])
def test_interrupted_it_is_noticed_and_finished_by_doing_it_again(tmp_path, point, rewritten):
    path = str(tmp_path / "s.db")
    script = """
import sys, quire
with quire.sync.open(sys.argv[1]) as store:
    store.workflow("w").redact("/user")
"""

    async def begun():
        async with quire.open(path) as store:
            await leaked(store)

    asyncio.run(begun())
    done = subprocess.run([sys.executable, "-c", script, path], env={"QUIRE_FAILPOINT": f"{point}:1"}, timeout=60)
    assert done.returncode == -9

    async def finished():
        async with quire.open(path) as store:
            w = store.workflow("w")
            assert (await w.state())["user"] == MARK
            assert (await w.state(1))["log"] == ["begin"], "every version can be read, whatever was interrupted"
            report = await store.verify()
            assert report.ok is rewritten
            assert rewritten or any("interrupted; redact it again" in p for p in report.problems)
            await w.redact("/user")
            assert (await w.state(1))["user"] == MARK
            report = await store.verify()
            assert report.ok, report.problems

    asyncio.run(finished())
    assert found_in_files(tmp_path / "s.db") == []


async def test_what_is_taken_out_in_secret_is_noticed(tmp_path):
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        w = await store.create("w", {"debt": 1000})
        await w.set("/debt", 900)
    db = apsw.Connection(path)
    body = db.execute("SELECT body FROM records WHERE version = 2").get
    forged = record.redacted(body.encode(), [Set(("debt",), 0)]).decode()
    db.execute("UPDATE records SET body = ? WHERE version = 2", (forged,))
    db.close()
    async with quire.open(path) as store:
        assert await store.workflow("w").get("/debt") == 0, "the chain alone does not tell"
        report = await store.verify()
        assert any(
            "workflows/w v2: something was taken out of it that no redaction tells of" in p for p in report.problems
        )


async def test_old_values_go_and_the_present_one_stays(tmp_path):
    path = tmp_path / "s.db"
    async with quire.open(str(path)) as store:
        w = await store.create("w", {"scratch": SECRET, "kept": 1})
        await w.set("/scratch", {"deep": SECRET})
        await w.set("/scratch/deep", "later")
        await w.set("/scratch", {"now": "present"})
        await w.set("/scratch/now", "newest")
        done = await w.redact("/scratch", keep_current=True)
        assert [await w.get("/scratch", version=v) for v in range(1, 6)] == [
            MARK,
            MARK,
            MARK,
            {"now": "present"},
            {"now": "newest"},
        ]
        assert await w.get("/kept", version=1) == 1
        assert done.versions == {"workflows/w": [1, 2, 3]}
        assert len(await w.history()) == 5, "nothing present changed, so there is no version"
        assert found_in_files(path) == []
        assert (await store.verify()).ok
        assert (await w.redact("/scratch", keep_current=True)).versions == {}


async def test_what_a_fork_began_from_is_not_forgotten():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"s": 1})
        await w.set("/s", 2)
        fork = await w.fork("f")
        await w.set("/s", 3)
        await w.redact("/s", keep_current=True)
        assert await fork.get("/s") == 2
        assert [await w.get("/s", version=v) for v in (1, 2, 3)] == [MARK, 2, 3]


async def test_what_cannot_be_redacted_is_said_and_left():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"l": [SECRET], "o": {SECRET: 1}, "s": SECRET}, message=f"with {SECRET}")
        fork = await w.fork("f")
        for how, said in (
            ({"path": ""}, "whole state"),
            ({"path": "/l/0"}, "redact the whole list"),
            ({"text": SECRET}, "in a key at /o"),
            ({"text": ""}, "not empty"),
            ({}, "either a path or a text"),
            ({"path": "/l", "text": "x"}, "either a path or a text"),
            ({"text": "x", "keep_current": True}, "keep_current"),
        ):
            with pytest.raises(Invalid, match=said):
                await w.redact(**how)
        with pytest.raises(Invalid, match="f was forked from w@1, which has it already: redact it there"):
            await fork.redact("/s")
        assert len(await w.history()) == 1
        await w.redact("/o")
        assert (await w.redact(text=SECRET)).said == ["w@1"]
        assert (await store.verify()).ok


async def test_a_schema_keeps_no_history_of_what_it_says(tmp_path):
    path = tmp_path / "s.db"
    settings = quire.Settings(keyframe_changes_min=10, keyframe_bytes_min=100)
    schema = Schema("s", no_history=["/scratch"])
    async with quire.open(str(path), schemas=[schema], settings=settings) as store:
        w = await store.create("w", {"scratch": SECRET, "n": 0}, schema="s")
        for i in range(200):
            await w.apply([Set(("scratch",), f"{i} {SECRET}" + "x" * 500), Increment(("n",), 1)])
        kept = await w.get("/scratch")
    async with quire.open(str(path), schemas=[schema]) as store:
        w = store.workflow("w")
        assert await w.get("/scratch") == kept
        assert [await w.get("/n", version=v) for v in (1, 50, 150)] == [0, 49, 149]
        gone = [await w.get("/scratch", version=v) == "[NOT KEPT]" for v in range(1, 202)]
        assert gone == sorted(gone, reverse=True), "the old ones go"
        assert 100 < sum(gone) < 201
        assert (await store.verify()).ok


async def test_who_merged_it_is_redacted_as_well():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"a": 1})
        fork = await w.fork("f")
        await fork.set("/key", SECRET)
        await w.merge(fork)
        later = await w.fork("g")
        done = await fork.redact("/key")
        for name in ("w", "f", "g"):
            assert await store.workflow(name).get("/key") == MARK
        assert (await w.state(2))["key"] == MARK
        assert "merges/w" not in done.versions, "what leads to the result is empty"
        assert (await store.verify()).ok
        await later.set("/b", 2)
        assert (await w.merge(later)).conflicts == []


async def test_a_log_that_begins_with_a_keyframe_is_redacted_too():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"key": SECRET, "n": 0})
        for i in range(1, 6):
            await w.set("/n", i)
        backend, chain = store.engine.backend, (await w.version(4)).record.chain
        await backend.put_keyframe(keyframes.make(Head(w.stream, 4, chain), await w.state(4)))
        await backend.trim(w.stream, 3)
        await w.redact("/key")
        assert [(await w.state(v))["key"] for v in (4, 5, 6)] == [MARK] * 3
        report = await store.verify()
        assert report.ok, report.problems


async def test_what_was_deleted_can_be_redacted_still():
    async with quire.open("memory:") as store:
        w = await store.create("w", {"key": SECRET})
        await store.delete("w")
        await w.redact("/key")
        assert not await w.exists()
        again = await store.create("w", {})
        assert await again.state(1) == {"key": MARK}


async def test_a_schema_that_forbids_the_mark_is_heard():
    async with quire.open("memory:", schemas=[Schema("s", model={"properties": {"n": {"type": "integer"}}})]) as store:
        w = await store.create("w", {"n": 5}, schema="s")
        with pytest.raises(InvalidState, match="/n does not fit"):
            await w.redact("/n")
        assert await w.get("/n", version=1) == 5
        await w.set("/n", 0)
        await w.redact("/n", keep_current=True)
        assert [await w.get("/n", version=v) for v in (1, 2)] == [MARK, 0]


async def test_writers_go_on_while_it_is_redacted(tmp_path):
    async with quire.open(str(tmp_path / "s.db")) as store, quire.open(str(tmp_path / "s.db")) as other:
        w, same_w = await store.create("w", {"key": SECRET, "n": 0, "l": []}), other.workflow("w")
        for i in range(30):
            await w.append("/l", i)

        async def write(handle):
            for _ in range(40):
                async with handle.edit() as state:
                    state["n"] += 1
                await handle.inc("/m")

        await asyncio.gather(write(w), w.redact("/key"), write(same_w))
        state = await same_w.state()
        assert (state["key"], state["m"], state["l"]) == (MARK, 80, list(range(30)))
        assert (await same_w.state(1))["key"] == MARK
        report = await store.verify()
        assert report.ok, report.problems


@pytest.mark.parametrize(
    "change", [Append(("p", "l"), [1]), Increment(("p", "n"), 1), Set(("p", "n"), 5), Splice(("p", "t"), 0, 1, "x")]
)
def test_a_change_inside_becomes_the_mark(change):
    assert ByPath(("p",)).change(change) == Set(("p",), MARK)
    assert ByPath(("q",)).change(change) is change


async def test_what_another_process_writes_meanwhile_is_taken_out_as_well(tmp_path, monkeypatch):
    path, secret = str(tmp_path / "s.db"), "sk-1234567"
    real, calls = redaction._present, []
    async with quire.open(path) as store, quire.open(path) as other:
        wf = await store.create("w", {"a": secret})

        async def present(*args):
            clean = await real(*args)
            calls.append(args)
            if len(calls) == 1:
                await other.workflow("w").set("/b", secret)
            return clean

        monkeypatch.setattr(redaction, "_present", present)
        await wf.redact(text=secret)
        assert len(calls) == 2
        async with quire.open(path) as third:
            for each in (store, other, third):
                numbers = range(1, (await each.workflow("w").version()).number + 1)
                assert secret not in str([await each.workflow("w").state(n) for n in numbers])
            assert (await third.verify()).ok
