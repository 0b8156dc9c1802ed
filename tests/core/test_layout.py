"""Merging by declared kind: what both sides meant is there, wherever it stands, and it does not matter who merges whom."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.kinds import Kinds
from quire.core.layout import Stamps, settle
from quire.core.resolve import ABSENT
from quire.core.threeway import Branch, three_way
from quire.core.values import same
from quire.errors import Invalid
from quire.model import Append, Delete, Increment, Insert, Remove, Set
from quire.testing.strategies import changes_for, states

KINDS = Kinds(
    {
        "/log": "log",
        "/tags": "set",
        "/agents": "keyed(id)",
        "/agents/*/done": "counter",
        "/agents/*/marks": "set",
        "/n": "counter",
        "/text": "text",
        "/deep/*": "log",
    }
)
IDS = "abcdef"
TEXT = "the quick brown fox jumps over the lazy dog, again and again and again"


def agent(name, note="", done=0, marks=()):
    return {"id": name, "note": note, "done": done, "marks": list(marks)}


def first(ids="abc"):
    return {
        "log": [0, 1],
        "tags": ["x", "y"],
        "agents": [agent(i) for i in ids],
        "n": 5,
        "text": TEXT,
        "deep": {"one": ["first"]},
        "plain": [1, 2, 3],
    }


def branch(name, base, changes, moments=None):
    origins = [f"{name}@1.{i}" for i in range(len(changes))]
    return Branch(name, changes, moments or list(range(len(changes))), apply(base, changes), origins)


def index(state, name):
    return next(i for i, a in enumerate(state["agents"]) if a["id"] == name)


@st.composite
def an_edit(draw, state, who):
    """One thing that people do to such a state, as the changes it makes."""
    there = [a["id"] for a in state["agents"]]
    absent = [i for i in IDS if i not in there]
    verbs = ["log", "rewrite", "tag", "untag", "n", "inc", "deep", *(["add"] if absent else [])]
    verbs += ["note", "done", "mark", "drop", "move", "swap"] if there else []
    verb = draw(st.sampled_from(verbs))
    pick = draw(st.sampled_from(there)) if there else ""
    at = index(state, pick) if there else 0
    value = f"{who}{draw(st.integers(0, 99))}"
    match verb:
        case "log":
            return [Append(("log",), [value, value])]
        case "rewrite":
            return [Set(("log",), [*state["log"], value])]
        case "tag":
            fresh = draw(st.sampled_from("uvwxyz"))
            return (
                [] if fresh in state["tags"] else [Insert(("tags",), draw(st.integers(0, len(state["tags"]))), [fresh])]
            )
        case "untag":
            return [Remove(("tags",), draw(st.integers(0, len(state["tags"]) - 1)))] if state["tags"] else []
        case "n":
            return [Set(("n",), draw(st.integers(-5, 20)))]
        case "inc":
            return [Increment(("n",), draw(st.integers(-5, 5)))]
        case "deep":
            key = draw(st.sampled_from(["one", "two"]))
            return [Append(("deep", key), [value])] if key in state["deep"] else [Set(("deep", key), [value])]
        case "add":
            return [Append(("agents",), [agent(draw(st.sampled_from(absent)), "new")])]
        case "note":
            return [Set(("agents", at, "note"), value)]
        case "done":
            return [Set(("agents", at, "done"), draw(st.integers(0, 9)))]
        case "mark":
            marks = state["agents"][at]["marks"]
            fresh = draw(st.sampled_from("pqr"))
            return [] if fresh in marks else [Append(("agents", at, "marks"), [fresh])]
        case "drop":
            return [Remove(("agents",), at)]
        case "move":
            return [
                Remove(("agents",), at),
                Insert(("agents",), draw(st.integers(0, len(there) - 1)), [state["agents"][at]]),
            ]
        case _:
            items = list(state["agents"])
            return diff({"agents": items}, {"agents": items[::-1]})


def larger(met):
    """A symmetric function: of what is there the larger."""
    return max((v for v in (met.ours, met.theirs) if v is not ABSENT), key=str)


@st.composite
def parted(draw):
    base = first(draw(st.sampled_from(["", "a", "abc", "abcde"])))
    made = {}
    for name in "ab":
        state, changes = base, []
        for _ in range(draw(st.integers(0, 6))):
            new = draw(an_edit(state, name))
            state, changes = apply(state, new), changes + new
        made[name] = changes
    order = draw(st.permutations(range(sum(map(len, made.values())))))
    moments = sorted(order[: len(made["a"])]), sorted(order[len(made["a"]) :])
    return base, *(branch(n, base, made[n], m) for n, m in zip("ab", moments, strict=True))


def kept(base, a, b):
    """What has to be there of things that are there or not: gone is what either side took out."""
    return {x for x in base if x in a and x in b} | {x for x in (*a, *b) if x not in base}


@given(parted(), st.sampled_from(["last", "both", larger]))
@settings(max_examples=600, deadline=None)
def test_what_both_sides_meant_is_there(sides, policy):
    base, a, b = sides
    merged = three_way(base, a, b, policy, kinds=KINDS)
    state = merged.state
    added = [x for side in (a, b) for x in side.state["log"][2:]]
    assert state["log"][:2] == [0, 1]
    assert sorted(state["log"][2:]) == sorted(added)
    assert len(state["tags"]) == len(set(state["tags"]))
    assert set(state["tags"]) == kept(base["tags"], a.state["tags"], b.state["tags"])
    ids = [[x["id"] for x in s["agents"]] for s in (base, a.state, b.state)]
    found = [x["id"] for x in state["agents"]]
    assert len(found) == len(set(found)) or callable(policy) or policy == "both"
    if not any(m.path[:1] == ("agents",) for m in merged.met):
        assert set(found) == kept(*ids)
    assert state["n"] == a.state["n"] + b.state["n"] - base["n"]
    for name in found:
        if all(name in there for there in ids) and not any(m.path[:1] == ("agents",) for m in merged.met):
            done = [s["agents"][index(s, name)]["done"] for s in (base, a.state, b.state, state)]
            assert done[3] == done[1] + done[2] - done[0]


@given(
    parted(),
    st.sampled_from(["last", "both", "queue", "ours", "theirs", larger]),
)
@settings(max_examples=600, deadline=None)
def test_both_sides_are_led_to_one_result_whoever_merges(sides, policy):
    base, a, b = sides
    merged = three_way(base, a, b, policy, kinds=KINDS)
    assert same(apply(a.state, merged.changes.changes), merged.state)
    assert same(apply(b.state, merged.back.changes), merged.state)
    if policy not in ("ours", "theirs", "queue"):
        other = three_way(base, b, a, policy, kinds=KINDS)
        assert same(other.state, merged.state)
        assert len(other.met) == len(merged.met)


@given(parted())
@settings(max_examples=300, deadline=None)
def test_what_was_taken_over_is_not_done_again(sides):
    """Both sides took the same from a third: with the origins it has, all of it is there once."""
    base, a, b = sides
    merged = three_way(base, a, b, "last", kinds=KINDS)
    one = Branch(
        "a",
        [*a.changes, *merged.changes.changes],
        [*a.moments, *_moments(merged.changes, a, b)],
        merged.state,
        [*a.origins, *merged.changes.origins],
    )
    two = Branch(
        "b",
        [*b.changes, *merged.back.changes],
        [*b.moments, *_moments(merged.back, a, b)],
        merged.state,
        [*b.origins, *merged.back.origins],
    )
    again = three_way(base, one, two, "last", kinds=KINDS)
    assert again.state["log"] == merged.state["log"]
    assert again.state["n"] == merged.state["n"]
    assert sorted(again.state["tags"]) == sorted(merged.state["tags"])


def _moments(lead, *branches):
    known = {o: m for side in branches for o, m in zip(side.origins, side.moments, strict=True)}
    return [known.get(o, 1000) for o in lead.origins]


@given(states, st.data())
@settings(max_examples=300, deadline=None)
def test_anything_at_all_still_leads_both_sides_to_one_result(base, data):
    """Kinds that the states mostly do not have: what does not fit is merged by position."""
    keys = [k for k in base if k]
    kinds = Kinds(
        {
            "/" + k.replace("~", "~0").replace("/", "~1"): data.draw(
                st.sampled_from(["log", "set", "keyed(id)", "counter", "text"])
            )
            for k in keys[:3]
        }
    )
    a, b = (branch(n, base, data.draw(changes_for(base, 5))) for n in "ab")
    one, two = (three_way(base, x, y, "last", kinds=kinds) for x, y in ((a, b), (b, a)))
    assert same(one.state, two.state)
    assert same(apply(a.state, one.changes.changes), one.state)
    assert same(apply(b.state, one.back.changes), one.state)


def merge(base, ours, theirs, kinds=KINDS, policy="reject", moments=(None, None)):
    a, b = branch("a", base, ours, moments[0]), branch("b", base, theirs, moments[1])
    return three_way(base, a, b, policy, kinds=kinds)


def test_an_edit_finds_its_item_wherever_it_went():
    base = first()
    moved = [Remove(("agents",), 0), Append(("agents",), [base["agents"][0]])]
    merged = merge(base, moved, [Set(("agents", 0, "note"), "for a")])
    assert [(a["id"], a["note"]) for a in merged.state["agents"]] == [("b", ""), ("c", ""), ("a", "for a")]
    assert not merged.met
    positional = merge(base, moved, [Set(("agents", 0, "note"), "for a")], kinds=None, policy="last")
    assert positional.met, "the control: by position the edit and the move cannot both stand"


def test_an_item_both_sides_add_is_one_item():
    base = first()
    merged = merge(
        base,
        [Append(("tags",), ["new"]), Append(("agents",), [agent("d")])],
        [Append(("tags",), ["new"]), Append(("agents",), [agent("d")])],
    )
    assert merged.state["tags"] == ["x", "y", "new"]
    assert [a["id"] for a in merged.state["agents"]] == list("abcd")
    assert merge(base, [Append(("tags",), ["new"])], [Append(("tags",), ["new"])], kinds=None).state["tags"] == [
        "x",
        "y",
        "new",
        "new",
    ]


def test_an_item_both_sides_add_differently_is_a_conflict_at_its_place():
    base = first()
    merged = merge(
        base, [Append(("agents",), [agent("d", "ours")])], [Append(("agents",), [agent("d", "theirs")])], policy="ours"
    )
    (met,) = merged.met
    assert met.path == ("agents", 3)
    assert (met.ours["note"], met.theirs["note"], merged.state["agents"][3]["note"]) == ("ours", "theirs", "ours")


def test_a_function_of_the_conflict_is_shown_lists_and_may_return_them():
    seen = []

    def join(met):
        seen.append(met)
        return {**met.ours, "marks": met.ours["marks"] + met.theirs["marks"]}

    base = first()
    merged = merge(
        base,
        [Append(("agents",), [agent("d", "o", marks="p")])],
        [Append(("agents",), [agent("d", "t", marks="q")])],
        policy=join,
    )
    assert merged.state["agents"][3] == agent("d", "o", marks="pq")
    assert all(isinstance(m.ours["marks"], list) for m in seen)


def test_a_log_is_in_the_order_of_time():
    base = first()
    a, b = (
        [Append(("log",), ["a1"]), Append(("log",), ["a4"])],
        [Append(("log",), ["b2", "b3"]), Append(("log",), ["b5"])],
    )
    assert merge(base, a, b, moments=([1, 4], [2, 5])).state["log"] == [0, 1, "a1", "b2", "b3", "a4", "b5"]


def test_setting_a_counter_is_adding_the_difference():
    assert merge(first(), [Set(("n",), 7)], [Set(("n",), 15), Increment(("n",), 1)]).state["n"] == 18
    assert merge(first(), [Set(("n",), "seven")], [Set(("n",), 15)], policy="last").met, "what is no number is no count"


def test_setting_a_text_is_editing_it():
    a, b = TEXT.replace("quick", "slow"), TEXT.replace("lazy", "sleepy")
    merged = merge(first(), [Set(("text",), a)], [Set(("text",), b)])
    assert merged.state["text"] == a.replace("lazy", "sleepy")


def test_a_list_both_sides_begin_is_one_list():
    merged = merge(
        {},
        [Set(("tags",), ["p", "q"]), Set(("log",), ["a"])],
        [Set(("tags",), ["q", "r"]), Set(("log",), ["b"])],
        moments=([1, 2], [3, 4]),
    )
    assert sorted(merged.state["tags"]) == ["p", "q", "r"]
    assert merged.state["log"] == ["a", "b"]


@pytest.mark.parametrize("unfit", [[agent("a"), agent("a")], [{"name": "no id"}], ["text"], [agent("a"), 5]])
def test_a_list_that_is_not_as_declared_is_merged_by_position(unfit):
    base = {**first(), "agents": unfit}
    ours, theirs = (
        [Append(("agents",), [1]), Append(("tags",), ["t"])],
        [Insert(("agents",), 0, [2]), Append(("tags",), ["t"])],
    )
    merged = merge(base, ours, theirs)
    assert merged.state["agents"] == [2, *unfit, 1]
    assert merged.state["tags"] == ["x", "y", "t"], "the others are merged as they were declared"


def test_a_removal_wins_over_a_move_and_a_deleted_list_is_a_conflict():
    base = first()
    moved = [Remove(("agents",), 0), Append(("agents",), [base["agents"][0]])]
    assert [a["id"] for a in merge(base, moved, [Remove(("agents",), 0)]).state["agents"]] == ["b", "c"]
    merged = merge(base, [Delete(("tags",))], [Append(("tags",), ["z"])], policy="last")
    assert merged.met


def test_the_order_one_side_made_stands():
    base = first("abcd")
    reversed_ = diff({"agents": base["agents"]}, {"agents": base["agents"][::-1]})
    merged = merge(
        base, reversed_, [Insert(("agents",), 1, [agent("e")]), Set(("agents", 0, "note"), "n")], policy="last"
    )
    assert [a["id"] for a in merged.state["agents"]] == list("dcbae")
    assert merged.state["agents"][3]["note"] == "n"


def test_a_late_write_is_rebased_by_kind():
    base = first()
    head = apply(base, [Append(("log",), ["theirs"]), Remove(("agents",), 0), Append(("tags",), ["t"])])
    theirs = diff(base, head)
    ours = [
        Append(("log",), ["ours"]),
        Set(("agents", 1, "note"), "b's"),
        Append(("tags",), ["t", "u"]),
        Set(("n",), 6),
    ]
    found = settle(
        ours,
        theirs,
        base=base,
        head=head,
        policy="reject",
        kinds=KINDS,
        stamps=lambda: Stamps([f"~{i}" for i in range(len(ours))], [f"{i}" for i in range(len(theirs))]),
    )
    state = apply(head, found.changes)
    assert state["log"] == [0, 1, "theirs", "ours"]
    assert state["tags"] == ["x", "y", "t", "u"]
    assert [(a["id"], a["note"]) for a in state["agents"]] == [("b", "b's"), ("c", "")]
    assert state["n"] == 6
    assert not found.met
    assert all(len(msgspec.json.encode(c)) < 60 for c in found.changes), "what is written is what was changed"


@pytest.mark.parametrize("kind", ["sets", "keyed", "keyed()", "", "LOG", "keyed(a)(b)"])
def test_a_kind_that_is_none_is_refused(kind):
    with pytest.raises(Invalid, match="there are log, set"):
        Kinds({"/a": kind})
