"""What settling costs, counted in calls: a write of a thousand changes holds up everybody else."""

import sys

import pytest

from quire.core.changes import apply
from quire.core.guards import reliant
from quire.core.resolve import settle
from quire.errors import MergeConflict
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
