"""Diff and the two patch formats of others."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.patch import from_json_patch, from_merge_patch, to_json_patch, to_merge_patch
from quire.core.values import same
from quire.errors import ChangeError, InvalidState
from quire.model import Append, Ensure, Insert, Remove, Set, Splice
from quire.testing import strategies as qs

near = qs.states.flatmap(lambda s: st.tuples(st.just(s), qs.changes_for(s).map(lambda c: apply(s, c))))


@given(st.one_of(near, st.tuples(qs.states, qs.states)))
def test_a_diff_leads_to_its_target(pair):
    old, new = pair
    before = copy.deepcopy(new)
    changes = diff(old, new)
    assert same(apply(old, changes), new)
    assert same(new, before)
    assert bool(changes) is not same(old, new)


@given(st.one_of(near, st.tuples(qs.states, qs.states)))
def test_a_json_patch_says_the_same_as_its_changes(pair):
    old, new = pair
    patch = to_json_patch(old, diff(old, new))
    assert same(apply(old, from_json_patch(old, patch)), new)


def _nulls(value):
    if isinstance(value, dict):
        return any(v is None or _nulls(v) for v in value.values())
    return False


@given(qs.states, qs.states)
def test_a_merge_patch_leads_to_its_target(old, new):
    if _nulls(new):
        return
    patch = to_merge_patch(old, new)
    assert same(apply(old, from_merge_patch(old, patch)), new)


def test_a_merge_patch_cannot_say_null():
    with pytest.raises(ChangeError, match="/a"):
        to_merge_patch({}, {"a": None})


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ({"n": [1, 2]}, {"n": [1, 2, 3]}, [Append(("n",), [3])]),
        ({"n": [1, 2]}, {"n": [0, 1, 2]}, [Insert(("n",), 0, [0])]),
        ({"n": [1, 2, 3]}, {"n": [1, 3]}, [Remove(("n",), 1, 1)]),
        ({"n": 1}, {"n": True}, [Set(("n",), True)]),
        ({"n": {"a": [1]}}, {"n": {"a": [1.0]}}, [Set(("n", "a", 0), 1.0)]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, []),
        ({"t": [1]}, {"t": (1,)}, []),
        ({"s": "x" * 100}, {"s": "x" * 50 + "y" + "x" * 50}, [Splice(("s",), 50, 0, "y")]),
    ],
)
def test_a_diff_is_small(old, new, changes):
    assert diff(old, new) == changes


def test_nan_in_the_new_state_is_never_swallowed():
    nan = float("nan")
    with pytest.raises(InvalidState, match="/a/0"):
        diff({"a": [1]}, {"a": [nan]})
    with pytest.raises(InvalidState, match="/b"):
        diff({"a": 1}, {"a": 1, "b": nan})


DOC = {"a": {"b": [1, 2]}, "x/y": 1, "~": 2, "": 3}


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ([{"op": "add", "path": "/n", "value": 1}], {**DOC, "n": 1}),
        ([{"op": "add", "path": "/a/b/-", "value": 3}], {**DOC, "a": {"b": [1, 2, 3]}}),
        ([{"op": "add", "path": "/a/b/0", "value": 0}], {**DOC, "a": {"b": [0, 1, 2]}}),
        ([{"op": "add", "path": "/a/b/2", "value": 3}], {**DOC, "a": {"b": [1, 2, 3]}}),
        ([{"op": "add", "path": "/a", "value": 1}], {**DOC, "a": 1}),
        ([{"op": "add", "path": "", "value": {"z": 1}}], {"z": 1}),
        ([{"op": "remove", "path": "/a/b/0"}], {**DOC, "a": {"b": [2]}}),
        ([{"op": "remove", "path": "/x~1y"}], {"a": {"b": [1, 2]}, "~": 2, "": 3}),
        ([{"op": "replace", "path": "/~0", "value": 9}], {**DOC, "~": 9}),
        ([{"op": "replace", "path": "/", "value": 9}], {**DOC, "": 9}),
        ([{"op": "move", "from": "/a/b/0", "path": "/a/b/1"}], {**DOC, "a": {"b": [2, 1]}}),
        ([{"op": "move", "from": "/a/b", "path": "/c"}], {**DOC, "a": {}, "c": [1, 2]}),
        ([{"op": "move", "from": "/a", "path": "/a"}], DOC),
        ([{"op": "copy", "from": "/a/b", "path": "/c"}], {**DOC, "c": [1, 2]}),
        ([{"op": "copy", "from": "/a/b/0", "path": "/a/b/-"}], {**DOC, "a": {"b": [1, 2, 1]}}),
        ([{"op": "test", "path": "/a/b", "value": [1, 2]}], DOC),
        (
            [{"op": "test", "path": "/a", "value": {"b": [1, 2]}}, {"op": "remove", "path": "/~0"}],
            {"a": {"b": [1, 2]}, "x/y": 1, "": 3},
        ),
        ([], DOC),
    ],
)
def test_rfc_6902_does(patch, expected):
    before = copy.deepcopy(DOC)
    assert same(apply(DOC, from_json_patch(DOC, patch)), expected)
    assert before == DOC


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "add", "path": "/a/b/3", "value": 1},
        {"op": "add", "path": "/a/b/-1", "value": 1},
        {"op": "add", "path": "/a/b/01", "value": 1},
        {"op": "add", "path": "/a/b/x", "value": 1},
        {"op": "add", "path": "/no/where", "value": 1},
        {"op": "add", "path": "/n"},
        {"op": "add", "path": "n", "value": 1},
        {"op": "add", "path": "/~2", "value": 1},
        {"op": "add", "value": 1},
        {"op": "add", "path": 7, "value": 1},
        {"op": "add", "path": "", "value": 1},
        {"op": "remove", "path": "/no"},
        {"op": "remove", "path": "/a/b/-"},
        {"op": "remove", "path": ""},
        {"op": "replace", "path": "/no", "value": 1},
        {"op": "move", "from": "/a", "path": "/a/b/0"},
        {"op": "move", "from": "/no", "path": "/z"},
        {"op": "move", "path": "/z"},
        {"op": "copy", "from": "/a/b/9", "path": "/z"},
        {"op": "test", "path": "/a/b/0", "value": 1.5},
        {"op": "test", "path": "/a/b/0", "value": True},
        {"op": "test", "path": "/no", "value": None},
        {"op": "spam", "path": "/a"},
        {"path": "/a"},
    ],
)
def test_rfc_6902_refuses_the_whole_patch_and_names_the_operation(operation):
    with pytest.raises(ChangeError, match="operation 1"):
        from_json_patch(DOC, [{"op": "add", "path": "/ok", "value": 1}, operation])


def test_rfc_7396_by_its_examples():
    for target, patch, result in [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ]:
        assert same(apply(target, from_merge_patch(target, patch)), result)


def test_ensure_reads_as_what_it_adds_or_as_nothing():
    ensure = [Ensure(("o",), {}), Ensure(("o", "l"), []), Append(("o", "l"), [1])]
    assert to_json_patch({}, ensure) == [
        {"op": "add", "path": "/o", "value": {}},
        {"op": "add", "path": "/o/l", "value": []},
        {"op": "add", "path": "/o/l/-", "value": 1},
    ]
    assert to_json_patch({"o": {"l": [0]}}, ensure) == [{"op": "add", "path": "/o/l/-", "value": 1}]
