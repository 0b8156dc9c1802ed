"""What policies leave of a list that both sides changed, beside a model whose items keep their identity."""

import random

import pytest

from quire.core.changes import apply
from quire.core.guards import pure, reliant
from quire.core.path import get
from quire.core.resolve import ABSENT, settle
from quire.errors import MergeConflict
from quire.model import Append, Insert, Remove, Set

LIST = ("l",)


def written(rng, state, count, who, kinds):
    """Return random changes of the list that fit one after the other; every value is new."""
    changes = []
    for number in range(count):
        items, kind, value = state["l"], rng.choice(kinds), f"{who}{number}"
        if kind == "insert":
            change = Insert(LIST, rng.randint(0, len(items)), [value])
        elif kind == "append":
            change = Append(LIST, [value])
        elif not items:
            continue
        elif kind == "set":
            change = Set((*LIST, rng.randrange(len(items))), value)
        else:
            at = 0 if kind == "clear" else rng.randrange(len(items))
            change = Remove(LIST, at, {"remove": 1, "clear": len(items)}.get(kind) or rng.randint(1, len(items) - at))
        changes.append(change)
        state = apply(state, [change])
    return changes


def a_list(rng, least):
    return {"l": [f"base{i}" for i in range(rng.randint(least, 5))]}


def left_by(theirs, base):
    """Return the items after theirs, each with its number in the base, None for a new one."""
    items = list(enumerate(base["l"]))
    for change in theirs:
        match change:
            case Set(path, value):
                items[path[1]] = items[path[1]][0], value
            case Insert(_, at, values):
                items[at:at] = [(None, value) for value in values]
            case Append(_, values):
                items += [(None, value) for value in values]
            case Remove(_, at, count):
                del items[at : at + count]
    return items


@pytest.mark.parametrize(
    "policy", ["theirs", "queue", "both", lambda met: met.theirs], ids=["theirs", "queue", "both", "function"]
)
@pytest.mark.parametrize("form", ["all at once", "one by one", "some"])
def test_what_is_taken_out_is_gone_but_for_what_others_changed(policy, form):
    for seed in range(400):
        rng = random.Random(f"{form} {seed}")
        base = a_list(rng, 1)
        theirs = written(rng, base, rng.randint(1, 5), "theirs", ["set", "set", "insert", "append", "remove"])
        count = len(base["l"])
        start = rng.randrange(count) if form == "some" else 0
        end = rng.randint(start + 1, count) if form == "some" else count
        ours = [Remove(LIST, 0)] * count if form == "one by one" else [Remove(LIST, start, end - start)]
        ours += [Append(LIST, ["ours"])] if rng.random() < 0.5 else []
        head, items = apply(base, theirs), left_by(theirs, base)
        taken = [number is not None and start <= number < end for number, _ in items]
        same = [number is not None and base["l"][number] == value for number, value in items]
        wanted = [value for (_, value), gone, alike in zip(items, taken, same, strict=True) if not (gone and alike)]
        kept = {value for (_, value), gone, alike in zip(items, taken, same, strict=True) if gone and not alike}
        found = settle(reliant(ours) if rng.random() < 0.5 else ours, theirs, base=base, head=head, policy=policy)
        state = apply(head, pure(found.changes))
        assert state["l"] == wanted + (["ours"] if isinstance(ours[-1], Append) else []), (base, theirs, ours)
        told = [met for met in found.met if met.theirs is not ABSENT]
        assert {met.theirs for met in told} == kept
        assert all(get(state, met.path) == met.theirs for met in told)


@pytest.mark.parametrize("policy", ["last", "theirs", "queue", "both"])
def test_a_conflict_names_the_item_that_has_what_it_says_stands(policy):
    for seed in range(1500):
        rng = random.Random(f"{policy} {seed}")
        base = a_list(rng, 0)
        theirs = written(rng, base, rng.randint(1, 4), "theirs", ["set", "set", "insert", "append", "remove"])
        ours = written(rng, base, rng.randint(1, 3), "ours", ["set", "insert", "append", "remove", "many", "clear"])
        head = apply(base, theirs)
        try:
            found = settle(reliant(ours) if rng.random() < 0.5 else ours, theirs, base=base, head=head, policy=policy)
        except MergeConflict:
            continue
        state = apply(head, pure(found.changes))
        for met in found.met:
            stands = met.ours if met.outcome == "ours" else met.theirs
            assert stands is ABSENT or get(state, met.path, ABSENT) == stands, (base, theirs, ours, met)
