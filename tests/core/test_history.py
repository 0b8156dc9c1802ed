"""Blame, touches, summary: who set it, whom it concerns, what happened."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import Working, apply
from quire.core.history import BASE, Blamed, blame, summary, touches
from quire.core.path import get
from quire.core.values import same
from quire.model import Append, Delete, Ensure, Fork, Increment, Insert, Remove, Set, Splice
from quire.testing.strategies import changes_for, places, states

L = ("l",)


def leaves(state, path=()):
    return [(*path, *p) for p, v in places(get(state, path)) if type(v) not in (dict, list) or not v]


@st.composite
def histories(draw):
    """A base, and one change per version; no-ops left out, as a log leaves them out."""
    base = draw(states)
    state, versions = base, []
    for change in draw(changes_for(base, 8)):
        if Working(state).apply(change):
            versions.append((len(versions) + 1, [change]))
        state = apply(state, [change])
    return base, versions, state


@given(histories())
@settings(max_examples=100)
def test_blame_covers_every_leaf_and_every_empty_container_in_document_order(drawn):
    base, versions, state = drawn
    assert [line.path for line in blame(versions, base=base)] == leaves(state)
    assert blame([(0, [Set((), base)]), *versions]) == [
        Blamed(line.path, 0 if line.entry == BASE else line.entry) for line in blame(versions, base=base)
    ]


@given(histories())
@settings(max_examples=100)
def test_every_version_blamed_has_a_change_touching_the_leaf_where_it_then_was(drawn):
    base, versions, state = drawn
    for line in blame(versions, base=base):
        # walk the leaf back from the end: the first change that made it is the one to be blamed
        path = line.path
        for number, (change,) in reversed(versions):
            before = origin(change, path, apply(base, [c for n, (c,) in versions if n < number]))
            if before is None:
                assert line.entry == number
                assert touches(change, path) or isinstance(change, Append)
                break
            path = before
        else:
            assert line.entry == BASE
            assert same(get(base, path), get(state, line.path))


def origin(change, path, before):
    """Where the leaf at `path` was before a change; None if the change made it what it is."""
    depth = len(change.path)
    if path[:depth] != change.path:
        emptied = change.path[:-1] == path and isinstance(change, Delete)
        return None if emptied else path
    if isinstance(change, Set | Ensure | Splice | Increment):
        return None
    if len(path) == depth:
        return None if isinstance(change, Remove) else path
    token, rest = path[depth], path[depth + 1 :]
    length = len(get(before, change.path))
    if isinstance(change, Append):
        return path if token < length else None
    if isinstance(change, Insert):
        if change.index <= token < change.index + len(change.values):
            return None
        return path if token < change.index else (*change.path, token - len(change.values), *rest)
    return path if token < change.index else (*change.path, token + change.count, *rest)


@given(histories(), st.data())
@settings(max_examples=50)
def test_blame_of_a_path_is_that_part_of_the_whole(drawn, data):
    base, versions, state = drawn
    path, _ = data.draw(st.sampled_from(places(state)))
    whole = blame(versions, base=base)
    assert blame(versions, path, base=base) == [b for b in whole if b.path[: len(path)] == path]


@given(states, st.data())
@settings(max_examples=100)
def test_what_a_change_does_not_touch_it_leaves_alone(state, data):
    changes = data.draw(changes_for(state, 1))
    after = apply(state, changes)
    for path, value in places(state):
        if not any(touches(change, path) for change in changes):
            assert same(get(after, path), value)


def test_blame_follows_items_that_move():
    versions = [
        (1, [Set(L, ["a", "b"])]),
        (2, [Insert(L, 0, ["new"])]),
        (3, [Remove(L, 1, 1), Append(L, ["end"])]),
        (4, [Splice((*L, 1), 0, 1, "B")]),
    ]
    assert blame(versions, L) == [Blamed((*L, 0), 2), Blamed((*L, 1), 4), Blamed((*L, 2), 3)]


def test_an_emptied_container_is_blamed_on_who_emptied_it():
    versions = [(1, [Set(("o",), {"k": 1}), Set(L, [1])]), (2, [Delete(("o", "k"))]), (3, [Remove(L, 0, 1)])]
    assert blame(versions) == [Blamed(("o",), 2), Blamed(L, 3)]


def test_a_count_is_blamed_on_the_last_to_count():
    versions = [(1, [Increment(("n",), 1)]), (2, [Increment(("n",), 1)]), (3, [Set(("m",), 1)])]
    assert blame(versions) == [Blamed(("n",), 2), Blamed(("m",), 3)]


def test_what_a_base_held_is_blamed_on_no_version():
    assert blame([(1, [Set(("b",), 1)])], base={"a": {"x": 0}}) == [
        Blamed(("a", "x"), BASE),
        Blamed(("b",), 1),
    ]


@pytest.mark.parametrize("path", [("b",), ("a", "x"), ("l", 1), ("l", "0"), (0,), ("l", -1)])
def test_nothing_is_blamed_where_nothing_is(path):
    assert blame([(1, [Set((), {"a": 1, "l": [1]})])], path) == []


@pytest.mark.parametrize(
    ("change", "path", "expected"),
    [
        (Set(("a",), 1), ("a",), True),
        (Set(("a",), 1), ("a", "b"), True),
        (Set(("a", "b"), 1), ("a",), True),
        (Set(("a",), 1), ("b",), False),
        (Set((), {}), ("a", "b"), True),
        (Set(("a",), 1), (), True),
        (Delete(("a",)), ("a", "b"), True),
        (Delete(("a", "c")), ("a", "b"), False),
        (Increment(("a", "n"), 1), ("a",), True),
        (Insert(L, 3, [1]), L, True),
        (Insert(L, 3, [1]), ("l", 2), False),
        (Insert(L, 3, [1]), ("l", 3, "x"), True),
        (Insert(L, 3, [1]), ("l", "4"), True),
        (Insert(L, 3, [1]), ("l", "-"), True),
        (Remove(L, 1, 2), ("l", 0), False),
        (Remove(L, 1, 2), ("l", 7), True),
        (Remove(("l", 1), 0, 1), ("l", 1, 0), True),
        (Remove(("l", 1), 0, 1), ("l", 2), False),
        (Append(L, [1]), L, True),
        (Append(L, [1]), (), True),
        (Append(L, [1]), ("l", 0), False),
        (Set(("l", 0), 1), ("l", "0"), True),
    ],
)
def test_touches(change, path, expected):
    assert touches(change, path) is expected


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ([], "no change"),
        ([Set((), {})], "set the state"),
        ([Set(("a", "b"), 1), Append(("notes",), [1, 2, 3])], "set /a/b; append 3 to /notes"),
        ([Delete(("a",)), Insert(L, 2, [1]), Set(("x",), 1)], "delete /a; insert 1 at /l/2; +1 more"),
        ([Remove(L, 0, 4), Splice(("t",), 0, 1, "")], "remove 4 at /l/0; edit text /t"),
        ([Increment(("n",), -2), Increment(("m",), 1.5)], "/n -2; /m +1.5"),
        ([Fork("w", 5, "")], "fork of w@5"),
        ([Set(("two\nlines", "\x1b[31m"), 1)], "set /two\\nlines/\\x1b[31m"),
        ([Set(("long" * 40,), 1)], "set /" + ("long" * 14) + "..."),
    ],
)
def test_a_summary_is_one_line_for_people(changes, line):
    assert summary(changes) == line
