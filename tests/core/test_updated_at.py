"""`updatedAt` as a number: it grows with every version, says which one it is, and times never go back."""

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from quire.core.updated_at import EMPTY, PARTS, Tail, UpdatedAt, following, next_time, read, tail_of

TIMES = st.integers(0, 2**42 - 1)
SAYINGS = st.builds(UpdatedAt, TIMES, st.integers(0, PARTS - 1), st.booleans())


@given(SAYINGS)
def test_what_it_says_is_read_back_also_from_json(saying):
    assert read(saying.number) == saying
    assert read(msgspec.json.decode(msgspec.json.encode(saying.number))) == saying


@given(SAYINGS, SAYINGS)
def test_it_is_ordered_as_versions_are(one, other):
    assert (one.number < other.number) == (one < other)


@pytest.mark.parametrize(
    "other", [None, True, "5", [5], {}, -1, -0.5, 5.3, 1e-9, float("inf"), float("-inf"), float("nan")]
)
def test_anything_else_says_nothing(other):
    assert read(other) is None


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 5))
def test_times_never_go_back_whatever_the_clock_says(clock, start):
    tail, numbers = EMPTY, []
    for now_ms in clock:
        time_ms = next_time(now_ms + start, tail)
        assert time_ms >= max(now_ms + start, tail.time_ms)
        tail = following(tail, time_ms)
        numbers.append(UpdatedAt(*tail).number)
    assert numbers == sorted(set(numbers))


def test_a_clock_that_stands_still_goes_on_by_a_millisecond_before_versions_look_alike():
    tail, seen = EMPTY, []
    for _ in range(3 * PARTS):
        tail = following(tail, next_time(7, tail))
        seen.append(UpdatedAt(*tail).number)
    assert (len(set(seen)), seen == sorted(seen), tail) == (3 * PARTS, True, Tail(9, PARTS - 1))


def test_where_the_versions_in_front_are_not_known_the_time_goes_on_at_once():
    assert next_time(7, Tail(7, None)) == 8
    assert next_time(9, Tail(7, None)) == 9
    assert following(Tail(7, None), 7) == Tail(7, None)
    assert tail_of(Tail(7, None), [7, 8, 8]) == Tail(8, 1)
