"""An argument of a wrong type is a typed error that names what was wrong, and writes nothing."""

import pytest

import quire
from quire.errors import QuireError

CALLS = {
    "splice at": lambda store, wf, bad: wf.splice("/text", bad, 0, "x"),
    "splice count": lambda store, wf, bad: wf.splice("/text", 0, bad, "x"),
    "splice in": lambda store, wf, bad: wf.splice("/text", 0, 0, bad),
    "insert": lambda store, wf, bad: wf.insert("/list", bad, 1),
    "remove at": lambda store, wf, bad: wf.remove("/list", bad),
    "remove count": lambda store, wf, bad: wf.remove("/list", 0, bad),
    "apply remove": lambda store, wf, bad: wf.apply([quire.Remove(("list",), bad)]),
    "apply splice": lambda store, wf, bad: wf.apply([quire.Splice(("text",), bad, 0, "x")]),
    "path": lambda store, wf, bad: wf.set(bad, 1),
    "get": lambda store, wf, bad: wf.get(bad),
    "author": lambda store, wf, bad: wf.set("/n", 1, author=bad),
    "kind": lambda store, wf, bad: wf.set("/n", 1, kind=bad),
    "on_conflict": lambda store, wf, bad: wf.set("/n", 1, on_conflict=bad),
    "create": lambda store, wf, bad: store.create(bad, {}),
    "workflows": lambda store, wf, bad: store.workflows(bad),
    "blob": lambda store, wf, bad: store.blob(bad),
    "fork": lambda store, wf, bad: wf.fork(bad),
    "merge": lambda store, wf, bad: wf.merge(bad),
    "blame": lambda store, wf, bad: wf.blame(bad),
    "bisect": lambda store, wf, bad: wf.bisect(bad),
    "since": lambda store, wf, bad: wf.history(since=bad),
    "resolve": lambda store, wf, bad: wf.resolve(bad, "ours"),
}


@pytest.mark.parametrize("bad", [1.0, True, [None], {"a": 1}, b"x"], ids=repr)
@pytest.mark.parametrize("call", CALLS)
async def test_a_wrong_type_is_a_typed_error(call, bad):
    async with quire.open("memory:") as store:
        wf = await store.create("w", {"n": 0, "text": "abc", "list": [1, 2]})
        with pytest.raises(QuireError) as raised:
            await CALLS[call](store, wf, bad)
        assert str(raised.value)
        assert (await wf.version()).number == 1
