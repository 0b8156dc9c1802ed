"""Merging two branches: the same from both sides, exact for both, nothing lost in silence."""

from itertools import combinations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import apply
from quire.core.resolve import ABSENT
from quire.core.threeway import Branch, three_way
from quire.core.values import same
from quire.errors import MergeConflict
from quire.model import Append, Delete, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import changes_for, states

BASE = {"plan": "a", "n": 5, "l": ["x", "y"], "o": {"k": 1}, "t": "hello world"}


@st.composite
def parted(draw):
    """A base, and two branches of it whose changes happened in some order of time."""
    base = draw(states)
    sides = [draw(changes_for(base, 5)) for _ in range(2)]
    order = draw(st.permutations(range(len(sides[0]) + len(sides[1]))))
    moments = sorted(order[: len(sides[0])]), sorted(order[len(sides[0]) :])
    return base, *(branch(n, c, base, m) for n, c, m in zip("ab", sides, moments, strict=True))


def branch(name, changes, base=BASE, moments=None):
    origins = [f"{name}@1.{i}" for i in range(len(changes))]
    return Branch(name, changes, moments or list(range(len(changes))), apply(base, changes), origins)


def largest(met):
    return max((met.ours, met.theirs), key=lambda v: "" if v is ABSENT else msgspec.json.encode(v).decode())


def present(met):
    """A symmetric function that never invents: what is there, the larger of two."""
    found = largest(met)
    return None if found is ABSENT else found


@given(parted(), st.sampled_from(["last", "both", present]))
@settings(max_examples=400)
def test_it_does_not_matter_who_merges_whom(sides, policy):
    base, a, b = sides
    one, two = three_way(base, a, b, policy), three_way(base, b, a, policy)
    assert same(one.state, two.state)
    assert len(one.met) == len(two.met)
    assert [(m.ours, m.theirs) for m in one.met] == [(m.theirs, m.ours) for m in two.met]


@given(parted())
@settings(max_examples=200)
def test_preferring_one_side_is_the_same_from_the_other(sides):
    base, a, b = sides
    assert same(three_way(base, a, b, "ours").state, three_way(base, b, a, "theirs").state)
    assert same(three_way(base, a, b, "ours").state, three_way(base, a, b, "queue").state)


@given(parted(), st.sampled_from(["last", "ours", "theirs", "both", "queue", present]))
@settings(max_examples=300)
def test_both_sides_are_led_to_the_result(sides, policy):
    base, a, b = sides
    merged = three_way(base, a, b, policy)
    assert same(apply(a.state, merged.changes.changes), merged.state)
    assert same(apply(b.state, merged.back.changes), merged.state)
    if not merged.met:  # then no policy makes a difference, but that "reject" counts what a side replaced itself
        try:
            assert same(three_way(base, a, b, "reject").state, merged.state)
        except MergeConflict:
            pairs = [pair for side in (a, b) for pair in combinations(side.changes, 2)]
            assert any(first.path[: len(then.path)] == then.path for first, then in pairs)


def test_what_both_took_away_with_all_that_was_in_it_is_no_conflict():
    base = {"a": [1, None, 2]}
    made = [Set(("a", 0), [None]), Set(("a", 2), {"x": [1]}), Increment(("a", 2, "x", 0), 5), Delete(("a",))]
    for policy in ("last", "reject"):
        merged = three_way(base, branch("a", made, base), branch("b", made, base), policy)
        assert merged.state == {}
        assert not merged.met


@given(parted())
@settings(max_examples=200)
def test_one_side_alone_is_taken_as_it_is(sides):
    base, a, _ = sides
    idle = branch("z", [], base)
    for ours, theirs in ((a, idle), (idle, a)):
        merged = three_way(base, ours, theirs, "reject")
        assert same(merged.state, a.state)
        assert not merged.met


@given(states, states, st.data())
def test_work_on_different_keys_is_all_there(left, right, data):
    base = {"l": left, "r": right}

    def below(key, state):
        changes = data.draw(changes_for(state, 5))
        return [msgspec.structs.replace(c, path=(key, *c.path)) for c in changes]

    a, b = branch("a", below("l", left), base), branch("b", below("r", right), base)
    merged = three_way(base, a, b, "reject")
    assert same(merged.state, {"l": a.state["l"], "r": b.state["r"]})


def test_what_commutes():
    a = branch("a", [Increment(("n",), 1), Append(("l",), ["a"]), Splice(("t",), 0, 5, "howdy"), Set(("same",), 1)])
    b = branch("b", [Increment(("n",), 10), Append(("l",), ["b"]), Splice(("t",), 6, 5, "moon"), Set(("same",), 1)])
    for ours, theirs in ((a, b), (b, a)):
        merged = three_way(BASE, ours, theirs, "reject")
        state = {**BASE, "n": 16, "l": ["x", "y", "a", "b"], "t": "howdy moon", "same": 1}
        assert merged.state == state


def test_taking_away_inside_what_the_other_replaced_is_met_under_every_policy():
    base = {"o": {"x": {"y": 1}, "k": None}}
    a = branch("a", [Set(("o", "k"), None), Set(("o",), None)], base)
    b = branch("b", [Delete(("o", "k"))], base, [9])
    for policy in ("ours", "theirs", "last", "both", "queue"):
        assert three_way(base, a, b, policy).met
        assert three_way(base, b, a, policy).met


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_number_that_is_set_and_added_to_gets_both_whatever_the_names(names):
    a, b = branch(names[0], [Set(("n",), 100)]), branch(names[1], [Increment(("n",), 7)])
    for ours, theirs in ((a, b), (b, a)):
        merged = three_way(BASE, ours, theirs, "reject")
        assert merged.state["n"] == 107


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_a_text_put_behind_what_is_replaced_stays_behind_it(names):
    base = {"t": "It was a dark night."}
    a, b = (
        branch(names[0], [Splice(("t",), 9, 4, "bright")], base),
        branch(names[1], [Splice(("t",), 13, 0, ", wet")], base),
    )
    for ours, theirs in ((a, b), (b, a)):
        assert three_way(base, ours, theirs, "reject").state == {"t": "It was a bright, wet night."}


@pytest.mark.parametrize(
    ("policy", "value", "outcome"),
    [
        ("ours", "A", "ours"),
        ("theirs", "B", "theirs"),
        ("last", "B", "theirs"),
        ("queue", "A", "pending"),
        (lambda met: f"{met.base}{met.ours}{met.theirs}", "aAB", "value"),
    ],
)
def test_each_policy_on_two_values(policy, value, outcome):
    a, b = branch("a", [Set(("plan",), "A")], moments=[1]), branch("b", [Set(("plan",), "B")], moments=[2])
    merged = three_way(BASE, a, b, policy)
    (met,) = merged.met
    assert (merged.state["plan"], met.outcome) == (value, outcome)
    assert (met.base, met.ours, met.theirs, met.number, met.other) == ("a", "A", "B", 0, 0)
    turned = three_way(BASE, b, a, "last")
    assert (turned.state["plan"], turned.met[0].outcome, turned.met[0].ours) == ("B", "ours", "B")


def test_both_keeps_the_two_whoever_merges():
    a, b = branch("a", [Set(("plan",), "A")]), branch("b", [Set(("plan",), "B")])
    for ours, theirs in ((a, b), (b, a)):
        state = three_way(BASE, ours, theirs, "both").state
        assert (state["plan"], state["plan~2"]) == ("A", "B")


def test_an_edit_below_what_the_other_removed_is_told():
    edit, gone = [Set(("o", "k"), 2)], [Delete(("o",))]
    for first, second in (("a", "b"), ("b", "a")):
        for moments in ([1], [9]):
            ours, theirs = branch(first, edit, moments=moments), branch(second, gone, moments=[5])
            merged = three_way(BASE, ours, theirs, "last")
            assert "o" not in merged.state
            assert [m.outcome for m in merged.met] == ["theirs"]
        assert three_way(BASE, ours, theirs, "ours").state["o"] == {"k": 2}
        assert three_way(BASE, ours, theirs, "queue").met[0].outcome == "pending"
        with pytest.raises(MergeConflict) as refused:
            three_way(BASE, ours, theirs, "reject", where="w")
        assert len(refused.value.conflicts) == 1


def test_an_edit_of_an_item_finds_it_where_it_went():
    base = {"l": [{"id": 1}, {"id": 2}]}
    a = branch("a", [Set(("l", 1, "done"), True)], base)
    b = branch("b", [Insert(("l",), 0, [{"id": 0}]), Remove(("l",), 1, 1)], base)
    for ours, theirs in ((a, b), (b, a)):
        assert three_way(base, ours, theirs, "reject").state == {"l": [{"id": 0}, {"id": 2, "done": True}]}


def test_what_both_took_from_a_third_is_done_once():
    """Both merged the same two changes of another, in contexts of their own."""
    base = {"n": 1, "l": ["x"], "t": "ab"}
    third = ["c@2.0", "c@2.1", "c@2.2"]
    a = Branch(
        "a",
        [Increment(("n",), 5), Append(("l",), ["c"]), Splice(("t",), 1, 0, "c"), Append(("l",), ["a"])],
        [1, 1, 1, 4],
        {"n": 6, "l": ["x", "c", "a"], "t": "acb"},
        [*third, "a@9.0"],
    )
    b = Branch(
        "b",
        [
            Insert(("l",), 0, ["b"]),
            Increment(("n",), 5),
            Append(("l",), ["c"]),
            Splice(("t",), 1, 0, "c"),
            Increment(("n",), 100),
        ],
        [3, 1, 1, 1, 5],
        {"n": 106, "l": ["b", "x", "c"], "t": "acb"},
        ["b@7.0", *third, "b@8.0"],
    )
    for ours, theirs in ((a, b), (b, a)):
        merged = three_way(base, ours, theirs, "reject")
        assert merged.state == {"n": 106, "l": ["b", "x", "c", "a"], "t": "acb"}
        assert apply(ours.state, merged.changes.changes) == merged.state
        assert set(merged.changes.origins) == set(theirs.origins) - set(third)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_a_side_that_wrote_twice_the_newer_is_compared_with_the_other_side(names):
    """The older one lost, the newer one is the newest of all: it stands, whichever branch is moved over the other."""
    base = {"t": "base"}
    mine = Branch(names[0], [Set(("t",), "mine")], [2], {"t": "mine"}, ["x@2.0"])
    twice = Branch(names[1], [Set(("t",), "old"), Set(("t",), "new")], [1, 3], {"t": "new"}, ["y@2.0", "y@3.0"])
    for ours, theirs in ((mine, twice), (twice, mine)):
        merged = three_way(base, ours, theirs, "last")
        assert merged.state == {"t": "new"}
        (met,) = merged.met
        sides = {met.ours: (met.number, ours), met.theirs: (met.other, theirs)}
        assert {value: side.changes[number].value for value, (number, side) in sides.items()} == {
            "mine": "mine",
            "new": "new",
        }
