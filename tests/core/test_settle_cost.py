"""What settling costs, counted in calls: a write of a thousand changes holds up everybody else."""

import sys

import pytest

from quire.core.changes import apply
from quire.core.guards import reliant
from quire.core.meter import Meter
from quire.core.resolve import settle
from quire.errors import LimitExceeded, MergeConflict
from quire.model import Append, Insert, Remove, Set

LIST = ("items",)


def calls(ours, theirs, base, policy):
    """Return how many calls settling takes, those of functions in C among them."""
    head = apply(base, theirs)
    count = 0

    def counted(_frame, event, _arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        settle(ours, theirs, base=base, head=head, policy=policy)
    except MergeConflict as refused:
        assert (refused.reason, policy in ("last", "both")) == ("gone", True)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    "policy", ["last", "queue", "both", lambda met: met.theirs], ids=["last", "queue", "both", "fn"]
)
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("form", ["items", "keys"])
def test_conflicts_at_places_that_nothing_moves_cost_the_same_each(form, guarded, policy):
    def each(count):
        values = [{"x": i} for i in range(count)]
        base = {"items": values if form == "items" else {str(i): value for i, value in enumerate(values)}}
        names = list(range(count)) if form == "items" else list(base["items"])
        ours, theirs = ([Set((*LIST, name, "x"), side) for name in names] for side in ("ours", "theirs"))
        return calls(reliant(ours) if guarded else ours, theirs, base, policy) / count

    assert each(200) < 1.2 * each(50)


def edited(count, value):
    return [Set((*LIST, i, "x"), value) for i in range(count)]


def emptied(count, _value):
    return [Remove(LIST, 0)] * count


def grown(count, value):
    return [c for i in range(count // 2) for c in (Set((*LIST, i, "x"), value), Insert(LIST, count, [value]))]


def extended(count, value):
    return [Append(LIST, [value])] * count


@pytest.mark.parametrize("policy", ["last", "theirs", "queue", "both"])
@pytest.mark.parametrize(
    ("mine", "other"), [(emptied, edited), (edited, emptied), (grown, grown), (extended, extended)]
)
def test_two_changes_of_a_list_pass_each_other_in_few_calls(mine, other, policy):
    count = 100
    base = {"items": [{"x": i} for i in range(count)]}
    assert calls(mine(count, "ours"), other(count, "theirs"), base, policy) < 40 * count**2


@pytest.mark.parametrize("policy", ["last", "ours", "theirs", "queue"])
def test_each_item_of_a_removal_that_met_a_conflict_costs_the_same(policy):
    def each(count):
        base = {"items": [{"n": n} for n in range(2 * count)]}
        ours = reliant([Remove(LIST, 0, count)])
        return calls(ours, [Set((*LIST, 3, "x"), 1)], base, policy) / count

    assert each(1000) < 1.2 * each(100)


def counted(ours, theirs, base, policy, steps_max):
    meter = Meter(steps_max=steps_max)
    settle(ours, theirs, base=base, head=apply(base, theirs), policy=policy, meter=meter)
    return meter.steps


MANY = {
    "conflicts": (edited, edited),
    "items gone": (emptied, edited),
    "items moved": (grown, grown),
    "insertions": (grown, emptied),
    "appends": (extended, extended),
    "one removal": (lambda count, _: reliant([Remove(LIST, 0, count)]), edited),
}


@pytest.mark.parametrize("policy", ["theirs", "both", lambda met: met.theirs], ids=["theirs", "both", "fn"])
@pytest.mark.parametrize("sides", MANY)
def test_work_that_grows_with_the_product_of_both_sides_is_charged(sides, policy):
    mine, other = (side(200, name) for side, name in zip(MANY[sides], ("ours", "theirs"), strict=True))
    base = {"items": [{"x": i} for i in range(200)]}
    try:
        steps = counted(mine, other, base, policy, 10**9)
    except MergeConflict:
        return  # of which nothing stands
    made = calls(mine, other, base, policy)
    assert made < 20 * (steps + 40 * len(mine + other))  # besides what each change costs by itself
    with pytest.raises(LimitExceeded):
        counted(mine, other, base, policy, steps // 2)
