"""Changes: applied, undone, and never reaching back into what they were given."""

import copy
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.changes import Working, apply, coalesce, invert
from quire.core.values import clean, same
from quire.errors import ChangeError, InvalidState, LimitExceeded, QuireError
from quire.model import Append, Delete, Increment, Insert, Remove, Set, Splice
from quire.testing import strategies as qs

state_and_changes = qs.states.flatmap(lambda s: st.tuples(st.just(s), qs.changes_for(s)))


def slowly_same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(slowly_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(slowly_same, a, b))
    return a == b and str(a) == str(b)


@given(state_and_changes)
def test_undo_after_do_is_the_identity(pair):
    state, changes = pair
    assert same(apply(apply(state, changes), invert(state, changes)), state)


@given(state_and_changes)
def test_neither_state_nor_changes_are_altered(pair):
    state, changes = pair
    before, spoken = copy.deepcopy(state), copy.deepcopy(changes)
    apply(state, changes)
    assert slowly_same(state, before)
    assert repr(changes) == repr(spoken)


@given(state_and_changes)
def test_an_owning_fold_gives_the_same(pair):
    state, changes = pair
    working = Working.owning(copy.deepcopy(state))
    for change in copy.deepcopy(changes):
        working.apply(change)
    assert same(working.state, apply(state, changes))


@given(state_and_changes)
def test_fewer_changes_have_the_same_effect(pair):
    state, changes = pair
    assert same(apply(state, coalesce(changes)), apply(state, changes))


@given(state_and_changes)
def test_a_change_without_effect_changes_nothing(pair):
    state, changes = pair
    for change in changes:
        working = Working(state)
        altered = working.apply(change)
        assert altered is not same(working.state, state)
        state = working.state


@given(qs.values, qs.values)
def test_same_agrees_with_a_slow_reference(a, b):
    assert same(a, b) == slowly_same(a, b)
    assert same(a, copy.deepcopy(a))


def test_one_and_one_point_nought_and_true_are_three_values():
    values = [1, 1.0, True, 0.0, -0.0, False, 0]
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            assert same({"x": [a]}, {"x": [b]}) is (i == j), (a, b)


@pytest.mark.parametrize(
    ("state", "change"),
    [
        ({}, Delete(("a",))),
        ({}, Delete(())),
        ({}, Set((), [])),
        ({}, Set(("a", "b"), 1)),
        ({"a": []}, Set(("a", 0), 1)),
        ({"a": [1]}, Set(("a", -1), 1)),
        ({"a": [1]}, Set(("a", "0"), 1)),
        ({"a": {}}, Set(("a", 0), 1)),
        ({"a": {}}, Append(("a",), [1])),
        ({"a": [1]}, Insert(("a",), 2, [1])),
        ({"a": [1]}, Remove(("a",), 0, 2)),
        ({"a": [1]}, Remove(("a",), 0, -1)),
        ({"a": "xy"}, Splice(("a",), 1, 2, "")),
        ({"a": "xy"}, Splice(("a",), -1, 0, "")),
        ({"a": 1}, Splice(("a",), 0, 0, "")),
        ({"a": "x"}, Increment(("a",), 1)),
        ({"a": True}, Increment(("a",), 1)),
        ({"a": 1e308}, Increment(("a",), 1e308)),
        ({"a": [1]}, Increment(("a", 1), 1)),
        ({}, Increment((), 1)),
    ],
)
def test_what_does_not_fit_is_refused_and_alters_nothing(state, change):
    before = copy.deepcopy(state)
    with pytest.raises(ChangeError):
        apply(state, [change])
    assert state == before


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def _cyclic():
    value = {}
    value["me"] = value
    return value


class Weird:
    pass


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        (float("nan"), "/x", "NaN"),
        (float("inf"), "/x", "Infinity"),
        ([1, float("-inf")], "/x/1", "Infinity"),
        ("\ud800", "/x", "surrogate"),
        ({"\udfff": 1}, "/x", "surrogate"),
        (b"x", "/x", "blob"),
        ({1, 2}, "/x", "list"),
        ({"a": {1: 2}}, "/x/a", "strings"),
        (Weird(), "/x", "Weird"),
        (_nested(100), None, "deeper than 64"),
        (_nested(sys.getrecursionlimit() * 2), None, "deeper than 64"),
        (_cyclic(), None, "deeper than 64"),
        pytest.param(10**5000, "/x", "digits", id="huge"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(value, path, said):
    with pytest.raises(InvalidState, match=said) as caught:
        clean({"x": value})
    if path is not None:
        assert caught.value.path == path


def test_a_long_key_is_refused():
    with pytest.raises(LimitExceeded) as caught:
        clean({"k" * 1_000_000: 1})
    assert caught.value.limit == "key_bytes_max"
    assert len(str(caught.value)) < 500


def test_what_is_kept_is_a_plain_private_copy():
    given_value = {"t": (1, [2])}
    kept = clean(given_value)
    assert kept == {"t": [1, [2]]}
    given_value["t"][1].append(3)
    assert kept == {"t": [1, [2]]}


@given(qs.values)
def test_clean_keeps_every_json_value(value):
    assert slowly_same(clean(value), value)
    json.dumps(value)


def test_errors_are_ours():
    assert issubclass(ChangeError, QuireError)
