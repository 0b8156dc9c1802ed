"""What becomes of writes that cannot both stand: nothing of either side is lost in silence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.guards import pure, reliant
from quire.core.path import get
from quire.core.resolve import ABSENT, POLICIES, check_policy, settle
from quire.core.values import same
from quire.errors import Invalid, InvalidState, MergeConflict
from quire.model import Append, Delete, Increment, Insert, Remove, Set
from quire.testing.strategies import changes_for, places, states

BASE = {"plan": "a", "n": 5, "l": ["x", "y"], "o": {"k": 1}}
SIDES = states.flatmap(lambda s: st.tuples(st.just(s), changes_for(s, 5), changes_for(s, 5)))


def settled(ours, theirs, policy, base=BASE):
    head = apply(base, theirs)
    found = settle(ours, theirs, base=base, head=head, policy=policy, where="w")
    return apply(head, found.changes), found.met


@given(SIDES, st.sampled_from(POLICIES))
@settings(max_examples=400)
def test_what_does_not_clash_is_kept_and_what_does_is_told(sides, policy):
    base, ours, theirs = sides
    try:
        state, met = settled(ours, theirs, policy, base)
    except MergeConflict as refused:
        assert refused.conflicts
        return
    if not met:  # then no policy makes a difference
        assert same(state, settled(ours, theirs, "last", base)[0])
    for one in met:
        assert one.outcome != "pending" or policy == "queue"
        assert policy != "reject"


@given(SIDES)
@settings(max_examples=200)
def test_theirs_leaves_what_both_wrote_as_it_is(sides):
    base, _, theirs = sides
    state, met = settled(theirs, theirs, "theirs", base)  # the same work twice
    for one in met:
        assert one.outcome == "theirs"
    assert state is not None


@pytest.mark.parametrize(
    ("policy", "plan", "outcome"),
    [
        ("last", "ours", "ours"),
        ("ours", "ours", "ours"),
        ("theirs", "theirs", "theirs"),
        ("queue", "theirs", "pending"),
        (lambda met: f"{met.base}+{met.theirs}+{met.ours}", "a+theirs+ours", "value"),
    ],
)
def test_each_policy_on_two_values(policy, plan, outcome):
    state, (met,) = settled([Set(("n",), 6), Set(("plan",), "ours")], [Set(("plan",), "theirs")], policy)
    assert (state["plan"], state["n"], met.outcome) == (plan, 6, outcome)
    assert (met.path, met.base, met.theirs, met.ours) == (("plan",), "a", "theirs", "ours")


def test_both_keeps_the_two_beside_each_other():
    state, _ = settled([Set(("plan",), "ours")], [Set(("plan",), "theirs")], "both")
    assert (state["plan"], state["plan~2"]) == ("theirs", "ours")
    state, _ = settled([Set(("plan",), "ours")], [Set(("plan",), "theirs"), Set(("plan~2",), 0)], "both")
    assert (state["plan~2"], state["plan~3"]) == (0, "ours")
    state, _ = settled([Set(("l", 0), "ours")], [Set(("l", 0), "theirs"), Insert(("l",), 0, ["new"])], "both")
    assert state["l"] == ["new", "theirs", "ours", "y"]
    state, (met,) = settled([Delete(("plan",))], [Set(("plan",), "theirs")], "both")
    assert (state["plan"], met.outcome, met.ours) == ("theirs", "theirs", ABSENT)
    state, (met,) = settled([Set(("plan",), "ours")], [Delete(("plan",))], "both")
    assert (state["plan"], met.outcome) == ("ours", "ours")


def test_what_ours_wrote_below_its_own_loss_is_part_of_it():
    ours = [Set(("o",), {}), Set(("o", "a"), 1), Set(("o", "b"), 2), Increment(("n",), 1)]
    for policy in ("theirs", "queue", "both"):
        state, (met,) = settled(ours, [Set(("o",), "text")], policy)
        assert (state["o"], state["n"], met.ours) == ("text", 6, {"a": 1, "b": 2})
    assert state["o~2"] == {"a": 1, "b": 2}


def test_reject_and_a_place_that_is_gone_refuse_the_whole_write():
    with pytest.raises(MergeConflict, match="/plan was written by others") as refused:
        settled([Set(("n",), 6), Set(("plan",), "ours")], [Set(("plan",), "theirs")], "reject")
    assert [m.ours for m in refused.value.conflicts] == ["ours"]
    gone = [Set(("o", "k"), 2)], [Delete(("o",))]
    for policy in ("last", "ours", "both", "reject", lambda met: met.ours):
        with pytest.raises(MergeConflict, match="/o/k was removed or replaced"):
            settled(*gone, policy)
    for policy in ("theirs", "queue"):
        state, (met,) = settled(*gone, policy)
        assert ("o" not in state, met.ours, met.theirs) == (True, 2, ABSENT)


def test_what_commutes_needs_no_policy():
    for policy in POLICIES:
        ours = [Increment(("n",), 1), Append(("l",), ["ours"]), Set(("new",), 1), Set(("o", "k"), 7)]
        theirs = [Increment(("n",), 10), Append(("l",), ["theirs"]), Set(("other",), 1), Set(("o", "k"), 7)]
        state, met = settled(ours, theirs, policy)
        assert (state["n"], state["l"], met) == (16, ["x", "y", "theirs", "ours"], [])


def test_a_function_gives_a_value_that_can_be_stored():
    with pytest.raises(InvalidState, match="/plan: set is not JSON"):
        settled([Set(("plan",), 1)], [Set(("plan",), 2)], lambda met: {1, 2})


def test_a_policy_has_to_be_one():
    for wrong in ("lsat", None, 3):
        with pytest.raises(Invalid, match="there are last, ours, theirs, both, queue, reject"):
            check_policy(wrong)


def test_a_removal_that_met_an_edit():
    ours, theirs = [Remove(("l",), 0, 1)], [Set(("l", 0), "edited")]
    assert settled(ours, theirs, "last")[0]["l"] == ["y"]
    assert settled(ours, theirs, "queue")[0]["l"] == ["edited", "y"]
    assert settled(ours, theirs, "both")[0]["l"] == ["edited", "y"]


# whole states


def whole(ours, theirs, base):
    """Persist a state that was made from `base` where others have written: what stands, where, and what is told."""
    mine, head = apply(base, ours), apply(base, theirs)
    found = settle(reliant(diff(base, mine)), theirs, base=base, head=head, policy="last", where="w", whole=True)
    return mine, head, apply(head, pure(found.changes)), [one.path for one in found.met]


@given(SIDES)
@settings(max_examples=300)
def test_a_whole_state_is_never_refused_and_neither_side_loses_anything_in_silence(sides):
    base, ours, theirs = sides
    mine, head, state, told = whole(ours, theirs, base)
    keyed = {p for s in (base, mine, head) for p, _ in places(s) if p and all(type(t) is str for t in p)}
    for path in keyed:
        was, wanted, there, now = (get(s, path, ABSENT) for s in (base, mine, head, state))
        if any(type(v) in (list, dict) for v in (was, wanted, there, now)):
            continue  # what is in it is looked at by itself; lists are merged item by item
        known = any(path[: len(t)] == t or t[: len(path)] == path for t in told)
        if same(was, there):
            assert same(now, wanted) or known
        elif same(was, wanted):
            assert same(now, there) or known
        else:  # both changed it, be it to the same value
            assert same(now, wanted)
            assert known


@pytest.mark.parametrize(
    ("ours", "theirs", "stands", "where"),
    [
        ([Set(("o", "k"), 2)], [Delete(("o",))], {"o": {"k": 2, "m": [1]}}, ["/o"]),
        ([Append(("o", "m"), [2])], [Delete(("o", "m"))], {"o": {"k": 1, "m": [1, 2]}}, ["/o/m"]),
        ([Set(("o", "k"), 2)], [Set(("o",), {"k": 1, "n": 3})], {"o": {"k": 2, "n": 3}}, []),
        ([Set(("o", "k"), 2)], [Set(("o",), {"k": 9})], {"o": {"k": 2}}, ["/o/k"]),
        ([Set(("o", "k"), 2)], [Set(("o",), 5)], {"o": {"k": 2, "m": [1]}}, ["/o"]),
        ([Set(("o", "k"), 2)], [Set((), {})], {"o": {"k": 2, "m": [1]}}, ["/o"]),
        ([Set(("l", 1), "z")], [Remove(("l",), 1)], {"l": ["x", "z"]}, ["/l"]),
        ([Delete(("n",))], [Delete(("n",)), Set(("n",), 5)], {"n": ABSENT}, []),
        ([Delete(("n",))], [Delete(("n",)), Set(("n",), 6)], {"n": ABSENT}, ["/n"]),
        ([Delete(("n",))], [Delete(("n",))], {"n": ABSENT}, ["/n"]),
        ([Set(("new",), {"a": 1})], [Set(("new",), {"b": 2})], {"new": {"a": 1, "b": 2}}, []),
        ([Set(("new",), {"a": {"x": 1}})], [Set(("new",), {"a": {"y": 2}})], {"new": {"a": {"x": 1, "y": 2}}}, []),
        (
            [Set(("new",), {"a": 1, "c": [1]})],
            [Set(("new",), {"a": 2, "c": [2]})],
            {"new": {"a": 1, "c": [2, 1]}},
            ["/new/a"],
        ),
        ([Set(("new",), {"a": 1})], [Set(("new",), {"a": 1})], {"new": {"a": 1}}, ["/new"]),
        ([Set(("new",), {"a": 1})], [Set(("new",), [1])], {"new": {"a": 1}}, ["/new"]),
    ],
)
def test_what_a_whole_state_needs_is_put_back_as_it_is_there(ours, theirs, stands, where):
    base = {"n": 5, "l": ["x", "y"], "o": {"k": 1, "m": [1]}}
    _, _, state, told = whole(ours, theirs, base)
    assert {key: state.get(key, ABSENT) for key in stands} == stands
    assert ["/" + "/".join(map(str, path)) for path in told] == where


def test_other_writes_are_refused_where_their_place_is_gone():
    with pytest.raises(MergeConflict):
        settled([Set(("o", "k"), 2)], [Delete(("o",))], "last")


DECISIONS = ("last", "theirs", "queue", "both", lambda met: met.theirs, lambda met: met.ours, lambda _: 7)


def keys(path):
    return [token for token in path if isinstance(token, str)]


@given(SIDES, st.sampled_from(DECISIONS), st.booleans())
@settings(max_examples=300)
def test_whatever_a_policy_decides_fits_the_head_and_each_change_is_named_after_ours(sides, policy, guarded):
    base, ours, theirs = sides
    head = apply(base, theirs)
    ours = reliant(ours) if guarded else ours
    try:
        found = settle(ours, theirs, base=base, head=head, policy=policy)
    except MergeConflict:
        return
    apply(head, pure(found.changes))
    for number, change in zip(found.numbers, found.changes, strict=True):
        assert number is None or keys(change.path) == keys(ours[number].path)
    for met in found.met:
        assert keys(met.path) == keys(met.change.path)
