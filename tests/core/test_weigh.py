"""What a state weighs, kept change by change, is what weighing all of it says."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core.changes import Working
from quire.core.weigh import EMPTY, Weighed, Weight, keys_in, weigh
from quire.errors import ChangeError
from quire.model import Append, Delete, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import changes_for, states


def counted(value):
    """The keys of a value, counted in the plainest way."""
    if isinstance(value, dict):
        return len(value) + sum(map(counted, value.values()))
    return sum(map(counted, value)) if isinstance(value, list) else 0


@given(st.data())
def test_the_weight_is_that_of_the_whole_state_after_every_change(data):
    state = data.draw(states)
    working = Weighed(state, weigh(state))
    for change in data.draw(changes_for(state, max_size=12)):
        working.apply(change)
        assert working.weight == Weight(len(msgspec.json.encode(working.state)), counted(working.state)), change


AWKWARD = [
    Set(("a",), {"b": [1, {"c": None}], "": {}}),
    Append(("l",), [{}, {"k": 1}]),
    Append(("l",), []),
    Insert(("l",), 0, ['"\\\n\x01é😀']),
    Remove(("l",), 0, 2),
    Remove(("l",), 0, 0),
    Splice(("t",), 1, 2, '"\x00€'),
    Splice(("t",), 0, 0, ""),
    Increment(("n",), 10**30),
    Increment(("f",), 5e-324),
    Increment(("new",), -7),
    Delete(("a",)),
    Set(("l", 0), "x"),
    Set((), {"only": 1}),
    Delete(("only",)),
    Set(("first",), 1),
]


def test_what_is_awkward_to_weigh_is_weighed_as_exactly():
    state = {"l": [1], "t": "tides\n", "n": 9, "f": -1.2345678901234567e300}
    working = Weighed(state, weigh(state))
    for change in AWKWARD:
        working.apply(change)
        assert working.weight == Weight(len(msgspec.json.encode(working.state)), counted(working.state)), change
    assert weigh({}) == EMPTY
    assert keys_in([1, "a", None]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        Delete(("none",)),
        Append(("n",), [1]),
        Remove(("n",), 0, 1),
        Remove(("l",), -1, 1),
        Remove(("l",), 0, 9),
        Splice(("l",), 0, 0, "x"),
        Splice(("t",), 99, 0, "x"),
        Increment(("t",), 1),
        Set(("n", "x"), 1),
        Set(("l", 7), 1),
        Set((), 1),
    ],
)
def test_a_change_that_does_not_fit_raises_as_ever_and_weighs_nothing(wrong):
    state = {"l": [1], "t": "tides", "n": 9}
    working = Weighed(state, weigh(state))
    with pytest.raises(ChangeError) as plain:
        Working(state).apply(wrong)
    with pytest.raises(ChangeError) as weighed:
        working.apply(wrong)
    assert str(plain.value) == str(weighed.value)
    assert (working.state, working.weight) == (state, weigh(state))
