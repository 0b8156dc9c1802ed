"""Guards move with their changes, hold by value, and are never stored."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import apply, coalesce, effective
from quire.core.guards import Guard, Read, Within, pure, reliant, sought
from quire.core.merge import rebase
from quire.core.path import get
from quire.core.resolve import settle
from quire.core.values import same
from quire.errors import MergeConflict, OutOfBounds
from quire.model import Append, Delete, Ensure, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import changes_for, places, states

L = {"l": [10, 20, 30], "n": 1, "t": "tide"}


def settled(base, ours, theirs, policy=None):
    head = apply(base, theirs)
    found = settle(ours, theirs, base=base, head=head, policy=policy, where="w")
    return apply(head, found.changes), found


@given(states, st.data())
@settings(max_examples=300, deadline=None)
def test_a_guarded_set_is_refused_just_where_the_value_differs(base, data):
    """Without indexes in its path, the place is where it was."""
    theirs = data.draw(changes_for(base, 5))
    path = data.draw(
        st.sampled_from([p for p, _ in places(base) if p and all(type(t) is str for t in p)] or [("new",)])
    )
    head = apply(base, theirs)
    missing = object()
    stale = not same(get(base, path, missing), get(head, path, missing))
    around = any(isinstance(c, Set | Delete) and path[: len(c.path)] == c.path != path for c in theirs)
    try:
        settled(base, [Read(path), Set(path, "mine")], theirs)
        refused = False
    except MergeConflict:
        refused = True
    if not same(get(base, path), "mine"):
        assert refused is stale or around  # what is around the place was replaced: then it is gone


@given(states, st.data())
@settings(max_examples=200, deadline=None)
def test_guards_change_nothing_that_is_not_stale(base, data):
    ours, theirs = data.draw(changes_for(base, 4)), data.draw(changes_for(base, 4))
    ours = effective(base, ours)
    try:
        guarded = settled(base, reliant(ours), theirs)[0]
    except MergeConflict:
        return
    assert same(guarded, settled(base, ours, theirs)[0])


def test_a_guard_follows_its_item_and_is_gone_with_it():
    guard = Read(("l", 1))
    for theirs, place in (
        ([Insert(("l",), 0, [5])], ("l", 2)),
        ([Remove(("l",), 0, 1)], ("l", 0)),
        ([Append(("l",), [40])], ("l", 1)),
        ([Insert(("l",), 2, [5])], ("l", 1)),
    ):
        moved, clashes = rebase([guard], theirs, base=L)
        assert (moved, clashes) == ([Read(place)], [])
    moved, (clash,) = rebase([guard], [Remove(("l",), 1, 1)], base=L)
    assert (moved, clash.dropped) == ([], True)


def test_changed_and_changed_back_is_not_stale():
    ours = [Read(("n",)), Set(("n",), 5)]
    assert settled(L, ours, [Set(("n",), 9), Set(("n",), 1)])[0]["n"] == 5
    assert settled(L, ours, [Increment(("n",), 3), Increment(("n",), -3)])[0]["n"] == 5
    with pytest.raises(MergeConflict, match="/n was read as 1 and is 9 now"):
        settled(L, ours, [Set(("n",), 9)])


def test_equal_values_are_no_agreement_for_what_is_stale():
    ours, theirs = [Read(("n",)), Set(("n",), 2)], [Set(("n",), 2)]
    with pytest.raises(MergeConflict):
        settled(L, ours, theirs)
    for policy, outcome in (("last", "ours"), ("theirs", "theirs"), ("queue", "pending")):
        state, found = settled(L, ours, theirs, policy)
        assert (state["n"], [m.outcome for m in found.met]) == (2, [outcome])


def test_a_policy_decides_what_is_stale():
    ours, theirs = [Read(("n",)), Set(("n",), 2)], [Set(("n",), 7)]
    for policy, n in (("last", 2), ("ours", 2), ("theirs", 7), ("queue", 7), (lambda met: met.ours + met.theirs, 9)):
        state, found = settled(L, ours, theirs, policy)
        assert (state["n"], len(found.met)) == (n, 1)
    assert settled(L, ours, theirs, "both")[0] | {"n": 0} == {**L, "n": 0, "n~2": 2}
    with pytest.raises(MergeConflict):
        settled(L, ours, theirs, "reject")
    # what another took is gone under any policy; that both took it is recorded
    taken = [Read(("l", 0)), Remove(("l",), 0, 1)], [Remove(("l",), 0, 1)]
    state, found = settled(L, *taken, "last")
    assert (state["l"], len(found.met)) == ([20, 30], 1)


def test_a_strict_read_is_refused_whatever_the_policy():
    for policy in (None, "last", "theirs", lambda met: met.ours):
        with pytest.raises(MergeConflict):
            settled(L, [Read(("n",), strict=True), Set(("t",), "x")], [Set(("n",), 2)], policy)
    for of, theirs, holds in (
        ("keys", [Set(("n",), 2)], True),
        ("keys", [Set(("m",), 2)], False),
        ("keys", [Set(("m",), 2), Delete(("m",))], True),
        ("value", [Set(("m",), 2)], False),
    ):
        ours = [Read((), of, strict=True), Set(("t",), "x")]
        if holds:
            assert settled(L, ours, theirs)[0]["t"] == "x"
        else:
            with pytest.raises(MergeConflict):
                settled(L, ours, theirs)


def test_own_changes_before_a_guard_are_not_theirs():
    ours = [Insert(("l",), 0, [5]), Read(("l", 1)), Set(("l", 1), 11)]
    assert settled(L, ours, [Append(("l",), [40])])[0]["l"] == [5, 11, 20, 30, 40]
    with pytest.raises(MergeConflict):
        settled(L, ours, [Set(("l", 0), 12)])
    assert settled(L, ours, [Set(("l", 1), 21)])[0]["l"] == [5, 11, 21, 30]


def test_bounds_are_checked_on_the_state_that_is_met():
    ours = [Increment(("n",), -1), Within(("n",), minimum=0)]
    assert apply(L, ours)["n"] == 0
    with pytest.raises(OutOfBounds, match="/n would be -1, allowed is at least 0") as error:
        settled(L, ours, [Increment(("n",), -1)])
    assert (error.value.path, error.value.found, error.value.minimum) == ("/n", -1, 0)
    with pytest.raises(OutOfBounds, match="at most 3"):
        apply(L, [Increment(("n",), 4), Within(("n",), maximum=3)])
    with pytest.raises(OutOfBounds, match="allowed is 0 to 3"):
        apply(L, [Within(("l",), 0, 3)])


def test_what_relies_on_its_base():
    changes = [Set(("n",), 2), Delete(("t",)), Remove(("l",), 1, 2), Append(("l",), [1]), Increment(("n",), 1)]
    steps = reliant([*changes, Ensure(("new",), []), Splice(("t",), 0, 0, "x"), Splice(("t",), 0, 2, "")])
    assert [s.path for s in steps if isinstance(s, Guard)] == [("n",), ("t",), ("l", 1), ("l", 2), ("t",)]
    assert [steps[target] for _, target in sought(steps)] == [changes[0], changes[1], changes[2], changes[2], steps[-1]]
    assert pure(steps) == [s for s in steps if not isinstance(s, Guard)]


def test_a_change_without_effect_is_left_out_with_its_guard():
    steps = [Read(("n",)), Set(("n",), 1), Read(("t",)), Set(("t",), "x"), Read(("l",), strict=True)]
    assert effective(L, steps) == steps[2:]
    assert coalesce([Read(("n",)), Set(("n",), 1), Set(("n",), 2)]) == [Read(("n",)), Set(("n",), 2)]


# ensure


def test_ensure_makes_one_container_for_all():
    assert apply({}, [Ensure(("l",), []), Append(("l",), [1]), Ensure(("l",), [])]) == {"l": [1]}
    for theirs in ([Ensure(("o",), {}), Set(("o", "a"), 1)], [Set(("o",), {"a": 1})]):
        state, found = settled({}, [Ensure(("o",), {}), Set(("o", "b"), 2)], theirs)
        assert (state, found.met) == ({"o": {"a": 1, "b": 2}}, [])
    state, found = settled({}, [Ensure(("x",), {}), Set(("x", "b"), 2)], [Ensure(("x",), []), Append(("x",), [1])])
    assert (state, len(found.met)) == ({"x": {"b": 2}}, 1)
    state, found = settled({}, [Ensure(("x",), {})], [Set(("x",), 5)], "theirs")
    assert (state, len(found.met)) == ({"x": 5}, 1)
