"""Places followed through changes: as merging moves them, step by step."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import apply
from quire.core.guards import Guard, Read, reliant
from quire.core.merge import rebase
from quire.core.trail import Trail, moved
from quire.model import Append, Delete, Increment, Insert, Remove, Set
from quire.testing.strategies import changes_for, places, states

NESTED = {"l": [{"t": [0, 1, 2], "n": 1}, {"t": [3], "n": 2}, [[4, 5], [6]]], "o": {"l": ["x", "y"], "k": 1}}
CASES = st.one_of(states, st.just(NESTED)).flatmap(
    lambda state: st.tuples(st.just(state), changes_for(state, 8), st.booleans())
)


def paths(state):
    return [path for path, _ in places(state)]


def stepwise(path, steps):
    """Return where merging moves a place, one step at a time, and which step takes it away."""
    for number, step in enumerate(steps):
        depth = len(step.path)
        if isinstance(step, Guard) or path[:depth] != step.path or depth == len(path):
            continue
        if isinstance(step, Insert | Remove):
            left, _ = rebase([Read(path)], [step])
            if not left:
                return None, number
            path = left[0].path
        elif isinstance(step, Set | Delete) and any(type(token) is int for token in path[depth:]):
            return None, number
    return path, -1


def gap(path, steps):
    """Return where merging moves what is put in before an item."""
    changes = [step for step in steps if not isinstance(step, Guard)]
    left, _ = rebase([Insert(path[:-1], path[-1], [None])], changes)
    return (*left[0].path, left[0].index) if left else None


def newest(path, steps):
    """Return the change that made what is at a path in the end, looked for one step at a time."""
    for number, step in reversed(list(enumerate(steps))):
        if isinstance(step, Guard):
            continue
        if step.path[: len(path)] == path:
            return number
        then = Trail([step]).before(path)
        if then is None:
            return number
        path = then
    return None


@given(CASES)
@settings(max_examples=150)
def test_a_place_goes_where_merging_moves_it(case):
    state, changes, guarded = case
    steps = reliant(changes) if guarded else changes
    trail = Trail(steps)
    for path in [way for place in paths(state) for way in (place, (*place, "new"), (*place, 0))]:
        assert trail.after(path) == stepwise(path, steps)
    for path in paths(state):
        if path and type(path[-1]) is int:
            assert trail.after(path, gap=True)[0] == gap(path, steps)


@given(CASES, st.data())
@settings(max_examples=150)
def test_a_place_is_followed_through_some_of_the_steps(case, data):
    state, changes, _ = case
    start = data.draw(st.integers(0, len(changes)))
    end = data.draw(st.integers(start, len(changes)))
    trail = Trail(changes[:start])
    trail.extend(changes[start:])
    for path in paths(apply(state, changes[:start])):
        place, taken = stepwise(path, changes[start:end])
        assert trail.after(path, start, end) == (place, taken if taken < 0 else taken + start)
    for path in paths(apply(state, changes[:end])):
        assert trail.before(path, end) == Trail(changes[:end]).before(path)


@given(CASES)
@settings(max_examples=150)
def test_the_way_back_is_the_way_there(case):
    state, changes, _ = case
    trail = Trail(changes)
    for path in paths(apply(state, changes)):
        then = trail.before(path)
        assert then is None or trail.after(then) == (path, -1)
        assert trail.last(path) == newest(path, changes)
    if not any(isinstance(change, Set | Delete) for change in changes):
        for path in paths(state):
            there, _ = trail.after(path)
            assert there is None or trail.before(there) == path


@given(CASES)
def test_one_step_moves_a_place_as_a_trail_of_one(case):
    state, changes, _ = case
    for change in changes:
        if isinstance(change, Insert | Remove):
            assert [moved(p, change) for p in paths(state)] == [Trail([change]).after(p)[0] for p in paths(state)]
        state = apply(state, [change])


def test_what_takes_a_place_away():
    path = ("l", 1, "t", 0)
    assert Trail([Remove(("l",), 0), Remove(("l",), 0)]).after(path) == (None, 1)
    assert Trail([Insert(("l",), 1, [7]), Set(("l", 2), {})]).after(path) == (None, 1)
    assert Trail([Insert(("l",), 1, [7]), Set(("l", 1), {})]).after(path) == (("l", 2, "t", 0), -1)
    assert Trail([Remove(("l", 1, "t"), 0), Delete(("l",))]).after(path) == (None, 0)
    assert Trail([Remove(("l", 1, "t"), 0, 2), Insert(("l",), 0, [7])]).after(path, gap=True) == (("l", 2, "t", 0), -1)
    assert Trail([Remove(("l",), 1)]).after(path, gap=True) == (None, 0)  # with the list that it would be in
    assert Trail([Set(("o",), {}), Increment(("o", "k"), 1)]).after(("o", "k")) == (("o", "k"), -1)
    assert Trail([Set(("o",), []), Insert(("o",), 0, [7])]).after(("o", "k")) == (None, 1)  # there is a list by now


def test_which_change_touched_a_place_last():
    steps = [
        Set(("l", 0, "n"), 1),
        Insert(("l",), 0, [7]),
        Append(("l",), [8]),
        Set(("l", 1), 2),
        Insert(("l",), 0, [9]),
    ]
    assert [Trail(steps).last(path) for path in ((), ("l", 0), ("l", 1), ("l", 2), ("l", 3))] == [4, 4, 1, 3, None]
    assert [Trail(steps).touched(path) for path in (("l", 0), ("l", 0, "n"), ("l", 1), ("o",))] == [4, 4, 4, None]
