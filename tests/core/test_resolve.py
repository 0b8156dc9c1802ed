"""What becomes of writes that cannot both stand: nothing of either side is lost in silence."""

from itertools import combinations

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
from quire.model import Append, Delete, Increment, Insert, Remove, Set, Splice
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
    if not met:  # then no policy makes a difference, but that others refuse what ours replaces itself later on
        try:
            last, _ = settled(ours, theirs, "last", base)
        except MergeConflict:
            assert any(a.path[: len(b.path)] == b.path for a, b in combinations(ours, 2))
        else:
            assert same(state, last)
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
    for met in found.met:  # of an item that is gone the whole item is told
        assert keys(met.path) == keys(met.change.path)[: len(keys(met.path))]


ITEMS = {"o": {"w": 0, "z": 0, "l": [1]}, "jobs": [{"a": 0, "b": 0}, {"a": 1, "b": 1}]}
OTHERS = [Set(("o", "z"), "A"), Set(("jobs", 0, "b"), "A")]
INSIDE = {
    "o": [Set(("o", "w"), "B"), Increment(("o", "sum"), 2), Append(("o", "l"), ["B"])],
    "jobs": [Set(("jobs", 0, "a"), "B"), Set(("jobs", 0, "n"), {}), Set(("jobs", 0, "n", "m"), 1)],
}
REPLACED = {
    "an object": ("o", [Set(("o",), {"new": 1})], ("o",)),
    "a deleted object": ("o", [Delete(("o",))], ("o",)),
    "twice": ("o", [Set(("o",), {"new": 1}), Set(("o", "more"), 2), Set(("o",), {"new": 2})], ("o",)),
    "an item": ("jobs", [Set(("jobs", 0), {"new": 1})], ("jobs", 0)),
    "a removed item": ("jobs", [Remove(("jobs",), 0, 1)], ("jobs", 0)),
    "an item that moved": ("jobs", [Insert(("jobs",), 0, [9]), Remove(("jobs",), 1, 1)], ("jobs", 1)),
    "items": ("jobs", [Remove(("jobs",), 0, 2)], ("jobs", 0)),
    "the list": ("jobs", [Set(("jobs",), [])], ("jobs",)),
}


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("policy", ["theirs", "queue", "both"])
def test_where_ours_gives_way_no_part_of_it_stands_that_it_had_replaced_itself(policy, what):
    """First ours writes into something, then it replaces or removes that, which others changed."""
    where, last, place = REPLACED[what]
    state, met = settled([*INSIDE[where], *last], OTHERS, policy, ITEMS)
    assert get(state, place) == get(apply(ITEMS, OTHERS), place if what != "an item that moved" else ("jobs", 0))
    assert len([m for m in met if m.path == place]) == 1
    other = "jobs" if where == "o" else "o"
    assert state[other] == apply(ITEMS, OTHERS)[other]


@pytest.mark.parametrize("policy", ["last", "ours"])
@pytest.mark.parametrize("what", REPLACED)
def test_where_ours_stands_it_stands_as_a_whole(policy, what):
    where, last, _ = REPLACED[what]
    ours = [*INSIDE[where], *last]
    state, _ = settled(ours, OTHERS, policy, ITEMS)
    assert get(state, (where,), ABSENT) == get(apply(ITEMS, ours), (where,), ABSENT)


def test_one_place_is_told_once():
    ours = [Set(("plan",), ["first"]), Set(("n",), 1), Set(("plan",), "ours")]
    _, met = settled(ours, [Set(("plan",), "theirs")], "last")
    assert [(m.path, m.base, m.theirs, m.ours) for m in met] == [(("plan",), "a", "theirs", "ours")]


def test_equal_items_of_a_list_are_two_places():
    base = {"l": ["same", "same"]}
    theirs = [Set(("l", 0), "new"), Set(("l", 1), "new")]
    _, met = settled([Remove(("l",), 0, 1), Remove(("l",), 0, 1)], theirs, "last", base)
    assert [(m.base, m.theirs) for m in met] == [("same", "new")] * 2


@pytest.mark.parametrize("value", [{"l": ["e"]}, {}])
@pytest.mark.parametrize("policy", ["last", "ours"])
def test_what_ours_put_into_a_value_that_theirs_put_there_too_is_not_lost(policy, value):
    """Both sides begin with the same value, theirs changes and removes it, ours goes on with it."""
    base = {"o": 1}
    begun = [Set(("o",), value), Set(("o", "a"), "theirs")]
    ours = [Set(("o",), value), Set(("o", "b"), "ours"), Set(("o", "m"), []), Append(("o", "m"), [1])]
    for theirs in (begun[:1], begun, [*begun, Delete(("o",))], [*begun, Set(("o",), 2)]):
        state, met = settled(ours, theirs, policy, base)
        assert state["o"] == {**value, "b": "ours", "m": [1]}
        assert [m.path for m in met] == ([] if len(theirs) == 1 else [("o",)])
        state, met = settled(ours, theirs, "theirs", base)
        went_on = {"b": "ours", "m": [1]} if len(theirs) == 1 else {}
        assert state == {
            k: {**v, **went_on} if k == "o" and type(v) is dict else v for k, v in apply(base, theirs).items()
        }


def texts(value):
    """All texts in a value."""
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in texts(item)]
    return [value] if isinstance(value, str) else []


def in_objects(rng, state, text):
    path = tuple(rng.choice("ab") for _ in range(rng.randrange(1, 4)))
    if not isinstance(get(state, path[:-1], None), dict):
        return None
    values = [text, {rng.choice("ab"): text}, {"a": {"b": text}}]
    gone = get(state, path, None) is not None and rng.random() < 0.3
    return Delete(path) if gone else Set(path, rng.choice(values))


def in_lists(rng, state, text):
    items = state["l"]
    at = rng.randrange(len(items) + 1)
    ways = [Append(("l",), [{"v": text}]), Insert(("l",), at, [{"v": text}])]
    if at < len(items):
        ways += [Remove(("l",), at, rng.randrange(1, min(2, len(items) - at) + 1)), Set(("l", at), {"v": text})]
        ways += [Set(("l", at, key), text) for key in "vw"]
    return rng.choice(ways)


WORLDS = {
    "objects": (in_objects, {"a": {"a": "x", "b": {"a": "y"}}, "b": {"a": {"b": "z"}, "b": "q"}}),
    "lists": (in_lists, {"l": [{"v": f"v{n}", "w": f"w{n}"} for n in range(3)]}),
}


@pytest.mark.parametrize("world", WORLDS)
@given(st.randoms(use_true_random=False), st.sampled_from(DECISIONS), st.booleans())
@settings(max_examples=300)
def test_the_result_has_nothing_that_neither_side_has_in_the_end_and_lacks_nothing_untold(world, rng, policy, guarded):
    step, base = WORLDS[world]
    sides = []
    for side in ("ours", "theirs"):
        changes, state = [], base
        for number in range(rng.randrange(1, 6)):
            change = step(rng, state, f"{side}-{number}")
            if change is not None:
                changes, state = [*changes, change], apply(state, [change])
        sides.append((changes, state))
    (ours, mine), (theirs, head) = sides
    try:
        found = settle(reliant(ours) if guarded else ours, theirs, base=base, head=head, policy=policy)
    except MergeConflict:
        return
    result = texts(apply(head, pure(found.changes)))
    assert set(result) <= set(texts(mine)) | set(texts(head))
    told = set(texts([[v for v in (m.base, m.ours, m.theirs) if v is not ABSENT] for m in found.met]))
    new = (set(texts(mine)) | set(texts(head))) - set(texts(base))
    kept = set(texts(base)) & set(texts(mine)) & set(texts(head))
    assert new | kept <= set(result) | told


@pytest.mark.parametrize("policy", ["theirs", "queue", "both"])
def test_what_is_removed_on_the_way_to_what_gives_way_does_not_stand_either(policy):
    """Something is put into an object, that is removed and made anew and filled: each is replaced by the next."""
    base = {"a": {"b": {"x": 1}}}
    ours = [
        Set(("a", "new"), {"k": "first"}),
        Delete(("a",)),
        Set(("a",), {"b": "second"}),
        Set(("a", "b"), "last"),
    ]
    theirs = [Set(("a", "b", "y"), "theirs")]
    state, met = settled(ours, theirs, policy, base)
    assert state["a"] == {"b": {"x": 1, "y": "theirs"}}
    assert [(m.path, m.ours) for m in met] == [(("a",), {"b": "last"})]


@pytest.mark.parametrize("policy", ["last", "ours", "theirs"])
@pytest.mark.parametrize(
    ("value", "more"),
    [
        ([1, 2, 3], [Remove(("v",), 2, 1), Insert(("v",), 0, [0]), Append(("v",), [9])]),
        (5, [Increment(("v",), 2)]),
        ("text", [Splice(("v",), 1, 2, "o"), Splice(("v",), 0, 0, "my ")]),
        ({}, [Set(("v", "k"), []), Append(("v", "k"), [1])]),
    ],
)
def test_ours_goes_on_with_a_value_that_theirs_put_there_too(policy, value, more):
    base, theirs = {"v": "old"}, [Set(("v",), value)]
    ours = [*theirs, *more]
    assert settled(ours, theirs, policy, base) == (apply(base, ours), [])
