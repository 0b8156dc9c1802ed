"""Rebasing, blame, chains, keyframes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.core import history, keyframes, record
from quire.core.changes import apply
from quire.core.fold import fold
from quire.core.merge import rebase
from quire.core.path import get
from quire.core.values import same
from quire.errors import CorruptRecord
from quire.model import GENESIS, Append, Fork, Head, Increment, Insert, Remove, Set, Splice
from quire.testing import strategies as qs

two_sides = qs.states.flatmap(lambda s: st.tuples(st.just(s), qs.changes_for(s, 4), qs.changes_for(s, 4)))


@given(two_sides)
def test_what_is_rebased_always_fits(sides):
    base, ours, theirs = sides
    changes, _ = rebase(ours, theirs)
    apply(apply(base, theirs), changes)


@given(qs.states, qs.states, st.data())
def test_disjoint_work_is_kept_whole(left, right, data):
    base = {"l": left, "r": right}
    deeper = lambda side, cs: [type(c)((side, *c.path), *[getattr(c, f) for f in c.__struct_fields__[1:]]) for c in cs]
    ours = deeper("l", data.draw(qs.changes_for(left, 4)))
    theirs = deeper("r", data.draw(qs.changes_for(right, 4)))
    changes, clashes = rebase(ours, theirs)
    assert not clashes
    merged = apply(apply(base, theirs), changes)
    assert same(merged["l"], apply(base, ours)["l"])
    assert same(merged["r"], apply(base, theirs)["r"])


items = st.lists(st.integers(), max_size=5)


@given(items, st.data())
def test_both_sides_insertions_into_a_list_survive(base, data):
    def side(mark):
        length, changes = len(base), []
        for n in range(data.draw(st.integers(0, 3))):
            changes.append(Insert(("l",), data.draw(st.integers(0, length)), [f"{mark}{n}"]))
            length += 1
        return changes

    ours, theirs = side("o"), side("t")
    changes, clashes = rebase(ours, theirs)
    merged = apply(apply({"l": base}, theirs), changes)["l"]
    assert not clashes
    assert len(merged) == len(base) + len(ours) + len(theirs)
    assert [x for x in merged if isinstance(x, int)] == base
    for changes_of, mark in ((ours, "o"), (theirs, "t")):
        alone = [x for x in apply({"l": base}, changes_of)["l"] if isinstance(x, str)]
        assert [x for x in merged if isinstance(x, str) and x[0] == mark] == alone


@given(st.text("abc", max_size=8), st.data())
def test_both_sides_text_survives(base, data):
    def side(mark):
        start = data.draw(st.integers(0, len(base)))
        gone = data.draw(st.integers(0, len(base) - start))
        return Splice(("t",), start, gone, mark)

    ours, theirs = side("X"), side("Y")
    changes, _ = rebase([ours], [theirs])
    merged = apply(apply({"t": base}, [theirs]), changes)["t"]
    kept = [c for i, c in enumerate(base) if not any(s.position <= i < s.position + s.delete for s in (ours, theirs))]
    assert sorted(merged) == sorted([*kept, "X", "Y"])


def test_the_cases_people_meet():
    assert rebase([Set(("a",), 1)], [Set(("b",), 2)]) == ([Set(("a",), 1)], [])
    changes, clashes = rebase([Set(("a",), 1)], [Set(("a",), 2)])
    assert changes == [Set(("a",), 1)]
    assert [c.dropped for c in clashes] == [False]
    assert rebase([Set(("l", 2, "done"), True)], [Remove(("l",), 0, 1)])[0] == [Set(("l", 1, "done"), True)]
    assert rebase([Set(("l", 0, "done"), True)], [Remove(("l",), 0, 1)])[1][0].dropped
    assert rebase([Increment(("n",), 1)], [Increment(("n",), 5)]) == ([Increment(("n",), 1)], [])
    assert rebase([Append(("l",), [1])], [Append(("l",), [2])]) == ([Append(("l",), [1])], [])


def chained(changes_of_versions):
    records, parent = [], GENESIS
    for version, changes in enumerate(changes_of_versions, 1):
        records.append(
            record.seal("workflows/w", version, 1000 + version, "a", "m", "change", record.encode(changes), parent)
        )
        parent = records[-1].chain
    return records


@given(qs.states.flatmap(lambda s: st.tuples(st.just(s), st.lists(st.integers(0, 3), max_size=5), st.data())))
def test_blame_names_every_leaf_and_a_change_that_touched_it(drawn):
    state, sizes, data = drawn
    versions = [[Set((), state)]]
    for _ in sizes:
        changes = data.draw(qs.changes_for(state, 3))
        versions.append(changes)
        state = apply(state, changes)
    lines = history.blame(list(enumerate(versions)))
    leaves = [p for p, v in qs.places(state) if not isinstance(v, dict | list) or not v]
    assert [line.path for line in lines] == leaves
    for line in lines:
        assert versions[line.entry]


def test_blame_follows_items_that_move():
    versions = [[Set((), {"l": ["a", "b"]})], [Insert(("l",), 0, ["new"])], [Remove(("l",), 1, 1)]]
    assert [(line.path, line.entry) for line in history.blame(enumerate(versions), ("l",))] == [
        (("l", 0), 1),
        (("l", 1), 0),
    ]


def test_touches():
    assert history.touches(Set(("a",), 1), ("a", "b"))
    assert history.touches(Set(("a", "b"), 1), ("a",))
    assert not history.touches(Set(("a",), 1), ("b",))
    assert not history.touches(Insert(("l",), 3, [1]), ("l", 2))
    assert history.touches(Insert(("l",), 3, [1]), ("l", "4"))
    assert history.touches(Append(("l",), [1]), ("l",))
    assert not history.touches(Append(("l",), [1]), ("l", 0))


def test_a_summary_fits_a_line():
    changes = [Set(("a",), 1), Append(("l",), [1, 2]), Increment(("n",), -2)]
    assert history.summary(changes) == "set /a; append 2 to /l; +1 more"
    assert history.summary([Fork("w", 5, "")]) == "fork of w@5"


def test_a_chain_notices_any_alteration():
    records = chained([[Set((), {"a": 1})], [Set(("a",), 2)], [Set(("a",), 3)]])
    assert record.check_all(records, 0, GENESIS) == records[-1].chain
    import msgspec

    for field, value in [
        ("author", "x"),
        ("message", "x"),
        ("kind", "x"),
        ("time", 1),
        ("body", b"[]"),
        ("stream", "workflows/v"),
        ("chain", bytes(32)),
    ]:
        forged = [records[0], msgspec.structs.replace(records[1], **{field: value}), records[2]]
        with pytest.raises(CorruptRecord):
            record.check_all(forged, 0, GENESIS)
    with pytest.raises(CorruptRecord, match="missing"):
        record.check_all([records[0], records[2]], 0, GENESIS)


def test_the_format_is_the_one_released():
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())
    for entry in golden["records"]:
        body = entry["body"].encode()
        head = record.header(*entry["header"])
        assert head.decode() == entry["header_bytes"]
        assert record.link(head, body, bytes.fromhex(entry["parent"])).hex() == entry["chain"]
        sealed = record.seal(*entry["header"], body, bytes.fromhex(entry["parent"]))
        assert record.encode(record.decode(sealed)) == body
    assert record.state_hash(golden["state"]) == golden["state_hash"]


@given(qs.states)
def test_a_keyframe_gives_its_state_back_and_notices_damage(state):
    import msgspec

    frame = keyframes.make(Head("workflows/w", 7, bytes(32)), state)
    assert same(keyframes.state_of(frame), state)
    broken = bytearray(frame.body)
    broken[len(broken) // 2] ^= 1
    with pytest.raises(CorruptRecord):
        keyframes.state_of(msgspec.structs.replace(frame, body=bytes(broken)))


@given(st.lists(st.integers(1, 10_000), unique=True, max_size=200).map(sorted))
def test_old_keyframes_thin_out_to_a_logarithm(versions):
    dropped = keyframes.surplus(versions)
    kept = [v for v in versions if v not in dropped]
    assert len(kept) <= 2 + 2 * 15
    assert kept[-2:] == versions[-2:]


def test_a_fold_of_a_damaged_log_says_where():
    records = chained([[Set((), {})], [Set(("a", "b"), 1)]])
    with pytest.raises(CorruptRecord, match="v2"):
        fold({}, records)
    assert get({"a": [1]}, ("a", "0")) == 1
