"""The recording draft: does what dicts and lists do, and what it wrote down leads to the same state."""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.api.draft import DictDraft, ListDraft, recording
from quire.core.changes import apply
from quire.core.merge import rebase
from quire.core.values import same
from quire.errors import ChangeError, Closed, InvalidState, LimitExceeded
from quire.model import Append, Delete, Ensure, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import keys, scalars, states, values

N = ("notes",)


def three():
    return recording({"items": [{"id": 0}, {"id": 1}, {"id": 2}]})


# like dicts and lists


def dict_step(draw, node, key):
    """Draw something to do to an object; returns a function to be called on the draft and on a plain copy."""
    value, other = draw(values), draw(st.dictionaries(keys, values, max_size=2))
    return draw(
        st.sampled_from(
            [
                lambda d: d.__setitem__(key, value),
                lambda d: d.__delitem__(key),
                lambda d: d.pop(key),
                lambda d: d.pop(key, None),
                lambda d: d.popitem(),
                lambda d: d.setdefault(key, value),
                lambda d: d.update(other, z=value),
                lambda d: d.__ior__(other),
                lambda d: d.get(key),
                lambda d: d.clear(),
            ]
        )
    )


def list_step(draw, node):
    small = st.integers(-4, 4)
    bound = st.one_of(st.none(), small)
    at, value, more = draw(small), draw(values), draw(st.lists(values, max_size=3))
    part = slice(draw(bound), draw(bound), draw(st.sampled_from([None, 1, -1, 2, -2])))
    return draw(
        st.sampled_from(
            [
                lambda d: d.append(value),
                lambda d: d.append(value),
                lambda d: d.extend(more),
                lambda d: d.__iadd__(more),
                lambda d: d.insert(at, value),
                lambda d: d.__setitem__(at, value),
                lambda d: d.__setitem__(part, more),
                lambda d: d.__delitem__(at),
                lambda d: d.__delitem__(part),
                lambda d: d.pop(),
                lambda d: d.pop(at),
                lambda d: d.remove(value),
                lambda d: d.index(value),
                lambda d: d.reverse(),
                lambda d: d.sort(key=repr),
                lambda d: d.sort(key=repr, reverse=True),
                lambda d: d[part],
                lambda d: d.clear(),
            ]
        )
    )


def walk(draw, plain):
    """Draw a container in a plain state: the keys to it, and itself."""
    path = []
    while True:
        inner = list(plain.items()) if isinstance(plain, dict) else list(enumerate(plain))
        inner = [(k, v) for k, v in inner if isinstance(v, dict | list)]
        if not inner or draw(st.booleans()):
            return path, plain
        key, plain = draw(st.sampled_from(inner))
        path.append(key)


def outcome(step, node):
    """What a step gives, drafts in it as plain, or the name of what it raises."""
    try:
        result = step(node)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        return type(error).__name__
    if result is node:
        return "itself"
    if isinstance(result, list):
        return [v.to_plain() if isinstance(v, DictDraft | ListDraft) else v for v in result]
    return result.to_plain() if isinstance(result, DictDraft | ListDraft) else result


@pytest.fixture(autouse=True)
def plain_reprs(monkeypatch):
    """Let `sort(key=repr)` see the same text of an item whether it is a draft or plain."""
    for kind in (DictDraft, ListDraft):
        monkeypatch.setattr(kind, "__repr__", lambda self: repr(self.to_plain()))


@given(states, st.data())
@settings(max_examples=200, deadline=None)
def test_a_draft_does_what_dicts_and_lists_do_and_its_changes_lead_there(base, data):
    state = {**base, "list": [1, [2, {"deep": []}], "three"]}
    before = copy.deepcopy(state)
    plain, draft = copy.deepcopy(state), recording(state)
    for _ in range(data.draw(st.integers(1, 10))):
        path, node = walk(data.draw, plain)
        if isinstance(node, dict):
            key = data.draw(st.one_of(st.sampled_from([*node, "new"]), keys))
            step = dict_step(data.draw, node, key)
        else:
            step = list_step(data.draw, node)
        twin = draft
        for key in path:
            twin = twin[key]
        assert same([outcome(step, twin)], [outcome(step, node)])
        assert same(draft.to_plain(), plain)
    assert same(state, before)
    assert same(apply(state, draft.changes), plain)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_drafts_of_two_agents_rebase_without_taking_theirs_for_ours(start, data):
    base = {"l": [{"by": "base", "n": n} for n in start]}

    def work(name):
        draft = recording(base)
        for number in range(data.draw(st.integers(0, 6))):
            items = draft["l"]
            kind = data.draw(st.sampled_from(["append", "append", "edit", "drop", "insert"]))
            if kind == "append":
                items.append({"by": name, "n": number})
            elif kind == "insert":
                items.insert(data.draw(st.integers(0, len(items))), {"by": name, "n": number})
            elif len(items):
                at = data.draw(st.integers(0, len(items) - 1))
                if kind == "drop":
                    del items[at]
                else:
                    items[at][name] = True
        return draft

    ours, theirs = work("ours"), work("theirs")
    changes, clashes = rebase(ours.changes, theirs.changes)
    both = apply(apply(base, theirs.changes), changes)["l"]
    for name, side in (("ours", ours), ("theirs", theirs)):
        assert [i for i in both if i["by"] == name] == [i for i in side.to_plain()["l"] if i["by"] == name]
    assert all(c.theirs.path == ("l",) for c in clashes if c.dropped)  # only what they removed


# what is recorded


@pytest.mark.parametrize(
    ("act", "changes"),
    [
        (lambda s: s["notes"].append("x"), [Append(N, ["x"])]),
        (lambda s: s["notes"].extend("xy"), [Append(N, ["x", "y"])]),
        (lambda s: s["notes"].insert(0, "x"), [Insert(N, 0, ["x"])]),
        (lambda s: s["notes"].insert(9, "x"), [Append(N, ["x"])]),
        (lambda s: s["notes"].remove("b"), [Remove(N, 1, 1)]),
        (lambda s: s["notes"].clear(), [Remove(N, 0, 3)]),
        (lambda s: s["notes"].__delitem__(slice(None, None, -1)), [Remove(N, 0, 3)]),
        (lambda s: s["notes"].__setitem__(slice(0, 2), ["x"]), [Remove(N, 0, 2), Insert(N, 0, ["x"])]),
        (lambda s: s["notes"].__setitem__(-1, "x"), [Set((*N, 2), "x")]),
        (lambda s: s["notes"].sort(reverse=True), [Set(N, ["c", "b", "a"])]),
        (lambda s: s["notes"].splice(0, 1, 0, "!"), [Splice((*N, 0), 1, 0, "!")]),
        (lambda s: s.increment("n"), [Increment(("n",), 1)]),
        (lambda s: s.increment("new", 2.5), [Increment(("new",), 2.5)]),
        (lambda s: s["nums"].increment(-1, 3), [Increment(("nums", 1), 3)]),
        (lambda s: s.splice("text", 5, 0, "!"), [Splice(("text",), 5, 0, "!")]),
        (lambda s: s.pop("text"), [Delete(("text",))]),
        (lambda s: s.update(n=5, text="hello"), [Set(("n",), 5)]),
        (lambda s: s.__setitem__("n", 4), []),
        (lambda s: s.__setitem__("n", 4.0), [Set(("n",), 4.0)]),
        (lambda s: s["notes"].sort(), []),
        (lambda s: s.setdefault("new", []).append(1), [Ensure(("new",), []), Append(("new",), [1])]),
        (lambda s: s.replace({**s.copy(), "n": 5}), [Set(("n",), 5)]),
        (lambda s: s["o"].replace({"k": {"x": 2}}), [Set(("o", "k", "x"), 2)]),
    ],
)
def test_changes_keep_their_intent(act, changes):
    state = {"notes": ["a", "b", "c"], "n": 4, "nums": [0, 1], "text": "hello", "o": {"k": {"x": 1}}}
    draft = recording(state)
    act(draft)
    assert draft.changes == changes


def test_operators():
    draft = recording({"n": 1, "notes": ["a"], "text": "a"})
    draft["n"] += 1
    draft["notes"] += ["b"]
    draft["text"] += "b"
    draft |= {"new": True}
    assert draft.changes == [
        Increment(("n",), 1),
        Splice(("text",), 1, 0, "b"),
        Set(("new",), True),
        Append(N, ["b"]),
    ]
    assert draft["notes"] + ["c"] == ["a", "b", "c"]
    assert ["c"] + draft["notes"] == ["c", "a", "b"]
    assert draft["notes"] + draft["notes"] == ["a", "b", "a", "b"]


def test_what_was_appended_is_edited_before_it_is_written_down():
    draft = recording({"tasks": [{"id": 0}]})
    tasks = draft["tasks"]
    tasks.append({"id": 1, "tags": []})
    tasks[-1]["status"] = "open"
    tasks[1]["tags"].append("new")
    tasks.append("mistake")
    tasks.pop()
    tasks[0]["status"] = "done"
    tasks.insert(0, {"id": -1})
    tasks[2]["status"] = "late"
    assert draft.changes == [
        Set(("tasks", 0, "status"), "done"),
        Insert(("tasks",), 0, [{"id": -1}]),
        Append(("tasks",), [{"id": 1, "tags": ["new"], "status": "late"}]),
    ]


def test_a_removal_across_the_appended_is_only_of_what_was_there():
    draft = recording({"l": [0, 1, 2]})
    draft["l"] += [3, 4]
    del draft["l"][2:4]
    assert draft.changes == [Remove(("l",), 2, 1), Append(("l",), [4])]


def test_what_was_appended_follows_its_list():
    draft = recording({"rows": [{"l": [0]}, {"l": [0]}, {"l": [0]}]})
    for row in draft["rows"]:
        row["l"].append(1)
    del draft["rows"][0]
    draft["rows"][1]["l"][1] = 2
    draft["rows"][0] = {}
    draft["rows"][0:0] = [{}, {}]
    draft["rows"][3]["l"].append(3)
    assert draft.changes == [
        Remove(("rows",), 0, 1),
        Set(("rows", 0), {}),
        Insert(("rows",), 0, [{}, {}]),
        Append(("rows", 3, "l"), [2, 3]),
    ]
    assert apply({"rows": [{"l": [0]}] * 3}, draft.changes) == {"rows": [{}, {}, {}, {"l": [0, 2, 3]}]}


# what is given uses the draft itself


class Taking(Mapping):
    """An object with one value, which is made when it is read."""

    def __init__(self, take):
        self.take = take

    def __getitem__(self, key):
        return self.take()

    def __iter__(self):
        return iter(["x"])

    def __len__(self):
        return 1


def pops(items, count=1):
    return (items.pop(0) for _ in range(count))


@pytest.mark.parametrize(
    ("act", "there"),
    [
        (lambda s: s["l"].extend(pops(s["l"], 2)), {"l": [3, 1, 2]}),
        (lambda s: s["l"].__iadd__(pops(s["l"], 3)), {"l": [1, 2, 3]}),
        (lambda s: s["l"].__setitem__(slice(1, 2), pops(s["l"])), {"l": [2, 1]}),
        (lambda s: s["l"].__setitem__(slice(3, None), pops(s["l"], 2)), {"l": [3, 1, 2]}),
        (lambda s: s["l"].__setitem__(slice(None, None, 2), pops(s["l"])), {"l": [1, 3]}),
        (lambda s: s["l"].__setitem__(1, Taking(s["l"].pop)), {"l": [1, {"x": 3}]}),
        (lambda s: s["l"].append(Taking(s["l"].pop)), {"l": [1, 2, {"x": 3}]}),
        (lambda s: s["l"].insert(3, Taking(s["l"].clear)), {"l": [{"x": None}]}),
        (lambda s: s["l"].insert(-1, Taking(s["l"].pop)), {"l": [1, {"x": 3}, 2]}),
        (lambda s: s.__setitem__("l", s["l"] + [Taking(s["l"].pop)]), {"l": [1, 2, {"x": 3}]}),
        (lambda s: s["rows"][1].__setitem__("n", Taking(lambda: s["rows"].pop(0))), {"rows": [{"n": {"x": {"n": 0}}}]}),
        (lambda s: s["rows"][1].update(n=Taking(lambda: s["rows"].pop(0))), {"rows": [{"n": {"x": {"n": 0}}}]}),
        (
            lambda s: s["rows"][1].setdefault("m", Taking(lambda: s["rows"].pop(0)["n"])),
            {"rows": [{"n": 1, "m": {"x": 0}}]},
        ),
        (lambda s: s["rows"][1].replace(Taking(lambda: s["rows"].pop(0)["n"])), {"rows": [{"x": 0}]}),
        (lambda s: s["o"].update((k + "'", s["o"].pop(k)) for k in list(s["o"])), {"o": {"a'": 1, "b'": 2}}),
        (lambda s: s["o"].__ior__((k + "'", s["o"].pop(k)) for k in "ba"), {"o": {"b'": 2, "a'": 1}}),
        (lambda s: s["o"].__setitem__("c", Taking(lambda: s["o"].pop("a"))), {"o": {"b": 2, "c": {"x": 1}}}),
        (lambda s: s["o"].setdefault("c", Taking(lambda: s["o"].setdefault("c", 5))), {"o": {"a": 1, "b": 2, "c": 5}}),
        (lambda s: s["o"].replace(Taking(lambda: s["o"].pop("a"))), {"o": {"x": 1}}),
    ],
)
def test_what_is_given_is_taken_before_the_place_is_looked_up(act, there):
    state = {"l": [1, 2, 3], "rows": [{"n": 0}, {"n": 1}], "o": {"a": 1, "b": 2}}
    draft = recording(state)
    act(draft)
    assert draft.to_plain() == {**state, **there} == apply(state, draft.changes)


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s["l"].extend(s.pop("l")),
        lambda s: s["l"].__setitem__(slice(0, 1), (s.pop(k) for k in ["l"])),
        lambda s: s["l"].insert(0, Taking(lambda: s.pop("l"))),
        lambda s: s["o"].__setitem__("a", Taking(lambda: s.pop("o"))),
    ],
)
def test_what_takes_its_own_place_away_says_so(act):
    draft = recording({"l": [1, 2, 3], "o": {"a": 1}})
    with pytest.raises(ChangeError, match="removed or replaced"):
        act(draft)


# drafts of what is inside


def test_a_draft_of_an_item_stays_with_it():
    state = three()
    last = state["items"][2]
    state["items"].insert(0, {"id": -1})
    del state["items"][1]
    state["items"][0:1] = [{"id": -3}, {"id": -2}, {"id": -1}]
    last["found"] = True
    assert [item.get("found", False) for item in state["items"]] == [False] * 4 + [True]
    assert state["items"][-1] is last


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s["items"].pop(1),
        lambda s: s["items"].clear(),
        lambda s: s["items"].__delitem__(slice(0, 2)),
        lambda s: s["items"].__setitem__(1, {"id": "new"}),
        lambda s: s["items"].__setitem__(slice(None, None, 2), [0, 0]) or s["items"].pop(1),
        lambda s: s["items"].reverse(),
        lambda s: s.__setitem__("items", []),
        lambda s: s.pop("items"),
        lambda s: s.replace({"items": []}),
    ],
)
def test_a_draft_of_what_is_gone_says_so(act):
    state = three()
    item = state["items"][1]
    act(state)
    for use in (lambda: item["id"], lambda: item.update(id=5), lambda: len(item), lambda: item == {}):
        with pytest.raises(ChangeError, match="removed or replaced"):
            use()
    assert "removed or replaced" in object.__repr__(item) + type(item).__mro__[1].__repr__(item)


def test_a_closed_draft_says_so_but_still_tells_what_was_done():
    state = three()
    items = state["items"]
    del state["items"][0]
    state.close()
    uses = [lambda: state["items"], lambda: items.append(1), lambda: state.update(a=1), lambda: list(items)]
    for use in uses:
        with pytest.raises(Closed, match="edit"):
            use()
    assert state.changes == [Remove(("items",), 0, 1)]


# nothing aliases


def test_nothing_given_or_returned_is_shared():
    published = {"a": {"list": [1, {"x": 1}]}, "b": [[1], [0]]}
    before = copy.deepcopy(published)
    draft = recording(published)
    mine = {"list": [1]}
    draft["mine"] = mine
    draft["b"].append(mine)
    mine["list"].append("not stored")
    draft["again"] = draft["mine"]
    draft["again"]["list"].append(2)
    draft["a"]["list"].append({"y": []})
    draft["b"].sort(key=lambda v: 0 if isinstance(v, DictDraft) else v[0] + 1)
    inner = draft["a"]
    taken = [draft.to_plain(), inner.copy(), copy.copy(inner), copy.deepcopy(inner), draft["b"].pop()]
    expected = draft.to_plain()
    for value in taken:
        spoil(value)
    for change in draft.changes:
        spoil(getattr(change, "value", getattr(change, "values", None)))
    assert draft.to_plain() == expected
    assert expected["mine"] == {"list": [1]}
    assert expected["again"] == {"list": [1, 2]}
    assert published == before
    assert apply(published, draft.changes) == expected


def spoil(value):
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in list(inner):
        spoil(item)
    if isinstance(value, list):
        value.append("spoiled")
    elif isinstance(value, dict):
        value["spoiled"] = True


def test_what_is_popped_is_plain_and_survives():
    published = {"items": [{"id": 0}, {"id": 1}, {"id": 2}]}
    for spoiler in (recording(published)["items"].pop(), recording(published).pop("items")):
        spoil(spoiler)
    state = recording(published)
    item = state["items"].pop(0)
    items = state.pop("items")
    assert (type(item), item) == (dict, {"id": 0})
    assert (type(items), items) == (list, [{"id": 1}, {"id": 2}])
    state["again"] = item
    assert state.popitem() == ("again", {"id": 0})
    with pytest.raises(KeyError):
        state.popitem()
    assert state.pop("items", 7) == 7


# errors


@pytest.mark.parametrize(
    ("act", "error", "path"),
    [
        (lambda s: s.__setitem__("bad", {"x": [1, float("nan")]}), InvalidState, "/bad/x/1"),
        (lambda s: s["items"].append({"x": {1, 2}}), InvalidState, "/items/3/x"),
        (lambda s: s["items"].insert(1, b""), InvalidState, "/items/1"),
        (lambda s: s["items"].extend([1, object()]), InvalidState, "/items/4"),
        (lambda s: s["items"].__setitem__(slice(0, 1), [1, 2, 1j]), InvalidState, "/items/2"),
        (lambda s: s["items"].__setitem__(slice(0, 3, 2), [1, 1j]), InvalidState, "/items/2"),
        (lambda s: s["items"][0].__setitem__("x", "\ud800"), InvalidState, "/items/0/x"),
        (lambda s: s["items"][0].__setitem__(5, 1), InvalidState, "/items/0"),
        (lambda s: s.increment("n", float("inf")), InvalidState, "/n"),
        (lambda s: s.increment("items"), ChangeError, "/items"),
        (lambda s: s.increment("n", True), ChangeError, "/n"),
        (lambda s: s["items"][0].splice("id", 0), ChangeError, "/items/0/id"),
        (lambda s: s.splice("text", 0, 1, 5), ChangeError, "/text"),
        (lambda s: s.splice("text", 9, 1), ChangeError, "/text"),
        (lambda s: s.replace({"items": [b""]}), InvalidState, "/items/0"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path_and_alters_nothing(act, error, path):
    draft = recording({"items": [{"id": 0}, 1, 2], "n": 1, "text": "abc"})
    before = draft.to_plain()
    with pytest.raises(error) as raised:
        act(draft)
    assert raised.value.path == path
    assert draft.changes == []
    assert draft.to_plain() == before


def test_bounds_hold():
    draft = recording({"a": {}}, depth_max=2, key_bytes_max=3)
    draft["a"]["b"] = 1
    with pytest.raises(InvalidState, match="deeper than 2"):
        draft["a"]["b"] = [[]]
    with pytest.raises(LimitExceeded):
        draft["a"]["long key"] = 1


def test_errors_are_those_of_dicts_and_lists():
    draft = recording({"l": [1]})
    for error, use in [
        (KeyError, lambda: draft["none"]),
        (KeyError, lambda: draft.pop("none")),
        (KeyError, lambda: draft.__delitem__("none")),
        (IndexError, lambda: draft["l"][1]),
        (IndexError, lambda: draft["l"].__setitem__(-2, 0)),
        (IndexError, lambda: draft["l"].pop(1)),
        (IndexError, recording({"l": []})["l"].pop),
        (TypeError, lambda: draft["l"]["0"]),
        (ValueError, lambda: draft["l"].remove(9)),
        (ValueError, lambda: draft["l"].__setitem__(slice(None, None, 2), [1, 2])),
        (TypeError, lambda: {draft: 1}),
        (TypeError, lambda: json.dumps(draft)),
    ]:
        with pytest.raises(error):
            use()
    assert draft.changes == []
    assert json.loads(json.dumps(draft.to_plain())) == draft


# reading


@given(states, scalars)
@settings(max_examples=50)
def test_reading_is_like_reading_the_plain_state(state, value):
    state = {**state, "l": [value, [value], {"k": value}]}
    draft = recording(state)
    assert draft == state
    assert draft == recording(state)
    assert list(draft) == list(state)
    assert dict(draft.items()) == state
    assert [*draft["l"]] == state["l"]
    assert draft["l"][::-1] == state["l"][::-1]
    assert (value in draft["l"], draft["l"].count(value)) == (value in state["l"], state["l"].count(value))
    assert {"k": value} in draft["l"]
    assert draft["l"][2] in draft["l"]
    assert draft["l"].index([value]) == state["l"].index([value])
    assert (bool(draft), len(draft), "absent" in draft) == (True, len(state), False)
    assert draft != {}
    assert draft.changes == []


def test_a_key_that_is_an_enum_is_its_text():
    class Key(enum.StrEnum):
        NOTES = "notes"

    draft = recording({"notes": {"a": 1}})
    draft[Key.NOTES]["b"] = Key.NOTES
    assert draft.changes == [Set(("notes", "b"), "notes")]
    del draft[Key.NOTES]
    assert type(draft.changes[-1].path[0]) is str


def test_items_that_were_put_in_another_order_can_be_changed_afterwards():
    for reorder in (lambda items: items.reverse(), lambda items: items.sort(key=len)):
        draft = recording({"list": [[2, 2], [1]]})
        draft["list"][1].append("before")
        reorder(draft["list"])
        draft["list"][0].append("after")
        draft["list"][1].append("after")
        assert apply({"list": [[2, 2], [1]]}, draft.changes) == draft.to_plain()
