"""Rebasing: what fitted still fits, nothing is lost in silence, and the items meant are the items changed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import Gone, apply
from quire.core.merge import Clash, both, rebase
from quire.core.values import same
from quire.model import Append, Delete, Ensure, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import changes_for, states

L, T, N = ("l",), ("t",), ("n",)
BASE = {"l": [{"id": 0}, {"id": 1}, {"id": 2}], "t": "hello world", "n": 5, "o": {"k": 1}}


def merged(ours, theirs, base=BASE):
    changes, clashes = rebase(ours, theirs)
    return apply(apply(base, theirs), changes), clashes


SIDES = states.flatmap(lambda s: st.tuples(st.just(s), changes_for(s, 5), changes_for(s, 5)))


@given(SIDES)
@settings(max_examples=120)
def test_what_fitted_the_base_fits_after_the_others(sides):
    base, ours, theirs = sides
    apply(apply(base, theirs), rebase(ours, theirs)[0])
    apply(apply(base, theirs), rebase(ours, theirs, base=base)[0])


@given(SIDES)
@settings(max_examples=300)
def test_the_two_ways_round_meet(sides):
    base, ours, theirs = sides
    found = both(ours, theirs, base=base)
    one = apply(apply(base, theirs), [c for parts in found.ours for c in parts])
    assert same(apply(apply(base, ours), [c for parts in found.theirs for c in parts]), one)


@given(SIDES, st.data())
@settings(max_examples=200)
def test_whoever_is_preferred_wins_and_what_loses_is_reported(sides, data):
    base, ours, theirs = sides
    found = both(ours, theirs, base=base, stands=lambda mine, other: False)
    assert all(clash.dropped for clash in found.clashes)
    for clash in found.clashes:
        assert (ours[clash.number], theirs[clash.other]) == (clash.ours, clash.theirs)
    lost = {clash.number for clash in found.clashes}
    if not lost:
        assert same(
            apply(apply(base, theirs), [c for parts in found.ours for c in parts]),
            apply(apply(base, theirs), rebase(ours, theirs, base=base)[0]),
        )


@given(SIDES)
@settings(max_examples=100)
def test_nothing_given_is_altered(sides):
    base, ours, theirs = sides
    before = repr((base, ours, theirs))
    rebase(ours, theirs, base=base)
    assert repr((base, ours, theirs)) == before


@given(states, states, st.data())
@settings(max_examples=100)
def test_the_order_of_work_on_different_keys_does_not_matter(left, right, data):
    def below(key, changes):
        return [type(c)((key, *c.path), *[getattr(c, f) for f in c.__struct_fields__[1:]]) for c in changes]

    base = {"left": left, "right": right}
    ours = below("left", data.draw(changes_for(left, 4)))
    theirs = below("right", data.draw(changes_for(right, 4)))
    one, clashes = merged(ours, theirs, base)
    other, _ = merged(theirs, ours, base)
    assert not clashes
    assert same(one, other)
    assert same(one, {"left": apply(base, ours)["left"], "right": apply(base, theirs)["right"]})


@given(st.lists(st.integers(0, 9), max_size=3), st.lists(st.integers(10, 19)), st.lists(st.integers(20, 29)))
def test_appends_of_both_sides_are_all_there(base, left, right):
    ours = [Append(L, [v]) for v in left]
    theirs = [Append(L, [v]) for v in right]
    state, clashes = merged(ours, theirs, {"l": base})
    assert state["l"] == [*base, *right, *left]
    assert not clashes


@st.composite
def list_work(draw, length, side):
    """Draw inserts, removes, appends and edits by index; items have an id, edits carry their number."""
    changes, ids, fresh = [], list(range(length)), 100 * side
    state = {"l": [{"id": i} for i in ids]}
    for number in range(draw(st.integers(0, 5))):
        size = len(state["l"])
        kind = draw(st.sampled_from(["insert", "append", "remove", "edit"]))
        if kind in ("insert", "append"):
            new = [{"id": fresh + i} for i in range(draw(st.integers(1, 2)))]
            fresh += len(new)
            change = Append(L, new) if kind == "append" else Insert(L, draw(st.integers(0, size)), new)
        elif size == 0:
            continue
        elif kind == "remove":
            at = draw(st.integers(0, size - 1))
            change = Remove(L, at, draw(st.integers(1, size - at)))
        else:
            change = Set((*L, draw(st.integers(0, size - 1)), f"edit{side}"), number)
        state = apply(state, [change])
        changes.append(change)
    return changes


@given(st.integers(0, 5).flatmap(lambda n: st.tuples(st.just(n), list_work(n, 1), list_work(n, 2))))
@settings(max_examples=120)
def test_items_keep_their_edits_and_their_order_whoever_moves_them(drawn):
    length, ours, theirs = drawn
    base = {"l": [{"id": i} for i in range(length)]}
    alone = {1: apply(base, ours)["l"], 2: apply(base, theirs)["l"]}
    changes, clashes = rebase(ours, theirs, base=base)
    both = apply(apply(base, theirs), changes)["l"]
    order = [item["id"] for item in both]
    assert len(set(order)) == len(order)

    ids = {side: [item["id"] for item in items] for side, items in alone.items()}
    started = set(range(length))
    removed = (started - set(ids[1])) | (started - set(ids[2]))
    assert set(order) == (set(ids[1]) | set(ids[2])) - removed
    for side in (1, 2):
        assert [i for i in order if i in ids[side]] == [i for i in ids[side] if i not in removed]
        edits = {item["id"]: item.get(f"edit{side}") for item in alone[side]}
        assert all(item.get(f"edit{side}") == edits.get(item["id"]) for item in both)
    # ours lost an edit only if it was to an item that they removed: said so each time
    lost = sum(isinstance(c.ours, Set) and c.dropped for c in clashes)
    edited = [c for c in ours if isinstance(c, Set)]
    assert lost == len(edited) - sum(isinstance(c, Set) for c in changes)


@st.composite
def text_work(draw, text, letters):
    changes = []
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text)))
        gone = draw(st.integers(0, len(text) - at))
        put = "".join(letters.pop(0) for _ in range(draw(st.integers(0, 2))))
        changes.append(Splice(T, at, gone, put))
        text = text[:at] + put + text[at + gone :]
    return changes, text


@given(st.integers(0, 8), st.data())
@settings(max_examples=120)
def test_texts_lose_what_either_deleted_and_keep_what_either_wrote(length, data):
    base = "abcdefgh"[:length]
    ours, mine = data.draw(text_work(base, list("ABCDEF")))
    theirs, other = data.draw(text_work(base, list("UVWXYZ")))
    changes, clashes = rebase(ours, theirs)
    assert not clashes
    both = apply(apply({"t": base}, theirs), changes)["t"]
    removed = set(base) - (set(mine) & set(other))
    assert sorted(both) == sorted((set(mine) | set(other)) - removed)
    assert [c for c in both if c in mine] == [c for c in mine if c not in removed]
    assert [c for c in both if c in other] == [c for c in other if c not in removed]


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        (Splice(T, 5, 0, "!"), Splice(T, 0, 0, ">> "), ">> hello! world"),
        (Splice(T, 5, 0, "ours"), Splice(T, 5, 0, "theirs"), "hellotheirsours world"),
        (Splice(T, 0, 5, "bye"), Splice(T, 0, 5, "moin"), "moinbye world"),
        (Splice(T, 0, 6, ""), Splice(T, 3, 8, ""), ""),
        (Splice(T, 0, 11, "all"), Splice(T, 5, 1, "-"), "all-"),
        (Splice(T, 5, 1, "-"), Splice(T, 0, 11, "all"), "all-"),
    ],
)
def test_splices(ours, theirs, text):
    state, clashes = merged([ours], [theirs])
    assert state["t"] == text
    assert not clashes


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (Set((*L, 2, "x"), 1), Insert(L, 0, [0, 0]), [Set((*L, 4, "x"), 1)]),
        (Set((*L, 2, "x"), 1), Remove(L, 0, 2), [Set((*L, 0, "x"), 1)]),
        (Set((*L, 2, "x"), 1), Append(L, [0]), [Set((*L, 2, "x"), 1)]),
        (Insert(L, 1, [9]), Insert(L, 1, [8, 8]), [Insert(L, 3, [9])]),
        (Insert(L, 2, [9]), Remove(L, 1, 2), [Insert(L, 1, [9])]),
        (Remove(L, 0, 3), Remove(L, 1, 1), [Remove(L, 0, 2)]),
        (Remove(L, 1, 1), Remove(L, 0, 3), []),
        (Remove(L, 0, 3), Insert(L, 1, [9]), [Remove(L, 0, 1), Remove(L, 1, 2)]),
        (Increment(N, 2), Increment(N, 40), [Increment(N, 2)]),
        (Increment(N, 2), Set(N, 0), [Increment(N, 2)]),
        (Append(L, [1]), Set(L, [7]), [Append(L, [1])]),
        (Delete(("o", "k")), Delete(("o", "k")), [Gone(("o", "k"))]),
        (Ensure(("new",), {}), Ensure(("new",), {}), [Ensure(("new",), {})]),
        (Ensure(("new",), {}), Set(("new",), {"a": 1}), [Ensure(("new",), {})]),
        (Set(("new", "b"), 1), Ensure(("new",), {}), [Set(("new", "b"), 1)]),
        (Set(N, 7), Set(N, 7), [Set(N, 7)]),
        (Set(N, 7), Set(("o", "k"), 7), [Set(N, 7)]),
    ],
)
def test_what_merges_without_a_word(ours, theirs, expected):
    assert rebase([ours], [theirs]) == (expected, [])
    merged([ours], [theirs])


@pytest.mark.parametrize(
    ("ours", "theirs", "dropped"),
    [
        (Set(N, 7), Set(N, 8), False),
        (Set(N, 1), Set(N, 1.0), False),
        (Set(N, 7), Increment(N, 1), False),
        (Set(N, 7), Delete(N), False),
        (Delete(N), Set(N, 8), False),
        (Delete(("o",)), Set(("o", "k"), 2), False),
        (Set(("o",), {}), Delete(("o", "k")), False),
        (Remove(L, 0, 2), Set((*L, 1, "id"), 9), False),
        (Increment(N, 1), Delete(N), False),
        (Increment(N, 1), Set(N, "five"), True),
        (Increment(N, 1), Set(N, True), True),
        (Set(("o", "k"), 2), Delete(("o",)), True),
        (Delete(("o", "k")), Set(("o",), [1]), True),
        (Set((*L, 1, "id"), 9), Remove(L, 0, 2), True),
        (Set((*L, 1, "id"), 9), Set((*L, 1), None), True),
        (Insert(L, 1, [9]), Set(L, []), True),
        (Append(L, [9]), Set(L, "gone"), True),
        (Append(L, [9]), Delete(L), True),
        (Splice(T, 0, 1, ""), Set(T, "x"), True),
        (Set(("o", "k"), 2), Set((), {}), True),
        (Set((), {}), Set(("o", "k"), 2), False),
    ],
)
def test_what_cannot_both_stand_is_reported(ours, theirs, dropped):
    changes, clashes = rebase([ours], [theirs])
    assert clashes == [Clash(ours.path, ours, theirs, dropped=dropped)]
    assert changes == ([] if dropped else [ours])
    merged([ours], [theirs])


def test_what_ours_builds_on_its_own_win_is_kept():
    ours = [Set(("o",), {}), Set(("o", "new"), 1), Increment(N, 1), Delete(N), Set(N, "text")]
    theirs = [Set(("o",), 5), Increment(N, 1)]
    state, clashes = merged(ours, theirs)
    assert (state["o"], state["n"]) == ({"new": 1}, "text")
    assert not any(c.dropped for c in clashes)
    state, clashes = merged([Set(T, "new"), Splice(T, 3, 0, "er")], [Splice(T, 0, 5, "")])
    assert state["t"] == "newer"
    assert not any(c.dropped for c in clashes)


def test_a_sum_beyond_the_finite_numbers_is_left_out():
    assert rebase([Increment(N, 1e308)], [Set(N, 1e308)])[1][0].dropped
    assert rebase([Increment(N, 0.5)], [Set(N, 10**400)])[1][0].dropped
    assert rebase([Increment(N, 1)], [Set(N, 10**400)]) == ([Increment(N, 1)], [])


def test_an_edit_to_an_item_both_might_have_appended_is_left_out_unless_the_base_tells():
    base = {"l": []}
    ours = [Append(L, [{"a": 1}]), Set((*L, 0, "a"), 2)]
    theirs = [Append(L, ["a text, without keys"])]
    changes, clashes = rebase(ours, theirs)
    assert changes == [ours[0]]
    assert clashes == [Clash(ours[1].path, ours[1], theirs[0], dropped=True, number=1, other=0)]
    changes, clashes = rebase(ours, theirs, base=base)
    assert apply(apply(base, theirs), changes) == {"l": ["a text, without keys", {"a": 2}]}
    assert not clashes


def test_a_clash_names_the_changes_as_they_were_written():
    ours = Set((*L, 2, "id"), "ours")
    theirs = [Insert(L, 0, ["new"]), Set((*L, 3, "id"), "theirs")]
    changes, clashes = rebase([ours], theirs)
    assert changes == [Set((*L, 3, "id"), "ours")]
    assert clashes == [Clash(ours.path, ours, theirs[1], dropped=False, number=0, other=1)]


HELD = {"o": {"p": {"q": 1}}, "l": [1, 2]}


@pytest.mark.parametrize(
    ("ours", "theirs", "meets"),
    [
        ([Ensure(("o",), {}), Set(("o", "a"), 1)], [Delete(("o",))], {"o": {"a": 1}, "l": [1, 2]}),
        ([Ensure(("o",), {}), Set(("o", "p", "q"), 2)], [Delete(("o",))], {"o": {}, "l": [1, 2]}),
        ([Set(("o", "z"), 1), Ensure(("o",), {}), Set(("o", "y"), 2)], [Delete(("o",))], {"o": {"y": 2}, "l": [1, 2]}),
        ([Set(("o", "z"), 1), Ensure(("o",), {})], [Set(("o",), {"p": 3})], {"o": {"p": 3}, "l": [1, 2]}),
        ([Delete(("o", "p")), Ensure(("o",), {})], [Delete(("o",))], {"o": {}, "l": [1, 2]}),
        ([Ensure(L, []), Append(L, [9]), Set((*L, 2), 8)], [Delete(L)], {"o": {"p": {"q": 1}}, "l": [8]}),
        ([Append(L, [7]), Ensure(L, []), Append(L, [9]), Set((*L, 3), 8)], [Set(L, [5])], {**HELD, "l": [5, 7, 8]}),
        ([Remove(L, 0, 1), Ensure(L, []), Append(L, [9])], [Delete(L)], {"o": {"p": {"q": 1}}, "l": [9]}),
    ],
)
def test_what_both_may_make_is_as_they_left_it_with_what_ours_puts_there(ours, theirs, meets):
    found = both(ours, theirs, base=HELD)
    one = apply(apply(HELD, theirs), [c for parts in found.ours for c in parts])
    other = apply(apply(HELD, ours), [c for parts in found.theirs for c in parts])
    assert same(one, meets) and same(other, one)
