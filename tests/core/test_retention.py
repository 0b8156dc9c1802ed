"""The rules of retention as properties: what goes is a beginning, never all of it, and what stays keeps the rule."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quire.config import Retention
from quire.core import retention
from quire.errors import Invalid
from quire.model import Record

A_SIZE = st.integers(0, 400)


def log(times, sizes=None):
    return [
        Record("workflows/w", n, time, "ann", "", "change", b"x" * (sizes[n - 1] if sizes else 1), bytes(32), n)
        for n, time in enumerate(times, 1)
    ]


@given(st.integers(1, 200), st.none() | st.integers(1, 200))
def test_so_many_of_the_newest_stay(head, versions):
    cut = retention.by_count(Retention(versions=versions), head)
    assert 0 <= cut < head
    assert head - cut == (head if versions is None else min(head, versions))


@given(st.lists(st.integers(0, 50), min_size=1), st.integers(-1, 60))
def test_only_a_beginning_goes_by_age_and_the_first_that_stays_is_younger(times, before):
    records = log(times)
    cut = retention.by_age(before, records)
    assert all(r.time <= before for r in records[:cut])
    assert cut == len(records) or records[cut].time > before


@given(st.lists(A_SIZE, min_size=1), st.integers(0, 2000))
def test_what_stays_by_bytes_fits_and_one_more_would_not(sizes, allowed):
    given_ = list(enumerate(sizes, 1))
    cut = retention.by_bytes(allowed, given_)
    assert sum(size for v, size in given_ if v > cut) <= allowed
    if cut:
        assert sum(size for v, size in given_ if v >= cut) > allowed


@given(st.lists(st.tuples(st.integers(1, 20), A_SIZE), min_size=1), st.integers(0, 2000))
def test_what_is_younger_than_the_cutoff_fits_in_the_store(versions, allowed):
    time = retention.cutoff(allowed, versions)
    assert sum(size for t, size in versions if t > time) <= allowed
    if time:  # and nothing goes for nothing
        assert sum(size for t, size in versions if t >= time) > allowed


@given(st.integers(0, 20), st.integers(1, 15))
def test_the_callers_rule_is_asked_from_the_oldest_until_it_says_no(limit, head):
    asked = []

    def goes(workflow_id, version):
        asked.append((workflow_id, version.number))
        return version.number <= limit

    cut = retention.by_choice(Retention(goes=goes), "w", log(range(1, head + 1)))
    assert cut == min(limit, head)
    assert asked == [("w", n) for n in range(1, min(limit + 1, head) + 1)]


LABEL = st.fixed_dictionaries(
    {
        "version": st.integers(1, 9),
        "kind": st.sampled_from([*retention.AUTOMATIC, "manual", "snapshot"]),
        "tags": st.sampled_from([[], [], ["keep"]]),
        "created_at": st.integers(0, 20 * retention.DAY_MS),
    }
)


@given(st.lists(LABEL, max_size=12), st.none() | st.integers(0, 6), st.none() | st.integers(0, 15), st.integers(10, 25))
def test_only_automatic_checkpoints_without_a_tag_are_ever_dropped(labels, most, days, today):
    named = {f"c{n}": label for n, label in enumerate(sorted(labels, key=lambda label: label["created_at"]))}
    now = today * retention.DAY_MS
    gone = set(retention.outdated(Retention(checkpoints=most, checkpoint_days=days), now, named))
    automatic = [n for n, x in named.items() if x["kind"] in retention.AUTOMATIC and not x["tags"]]
    assert gone <= set(automatic)
    left = [n for n in automatic if n not in gone]
    assert most is None or len(left) <= most
    assert days is None or all(named[n]["created_at"] > now - days * retention.DAY_MS for n in left)
    assert most is not None or days is not None or not gone
    if days is None and most is not None:
        assert left == automatic[max(len(automatic) - most, 0) :]
    pinned = retention.pinned(named)
    assert pinned == {named[n]["version"] for n in named if n not in automatic}


@pytest.mark.parametrize(
    "rules",
    [
        {"versions": 0},
        {"versions": -1},
        {"versions": True},
        {"days": -0.1},
        {"days": float("nan")},
        {"bytes": "1"},
        {"store_bytes": -1},
        {"checkpoints": -1},
        {"checkpoint_days": None, "every_s": -1},
        {"every_s": float("nan")},
        {"every_s": 1e10},
    ],
)
def test_numbers_that_mean_nothing_are_refused(rules):
    with pytest.raises(Invalid, match="retention"):
        Retention(**rules)
