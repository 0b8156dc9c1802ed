"""Hypothesis strategies: JSON values, states, and lists of changes that fit a state."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from quire.core.changes import apply
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice


def _storable(text: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _has(value: Any, key: str) -> bool:
    return key in value


def _length(value: Any) -> int:
    return len(value)


keys = st.one_of(st.sampled_from(["a", "b", "c", "0", "1", "x/y", "~"]), st.text(max_size=4).filter(_storable))
texts = st.text(max_size=12).filter(_storable)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 0.0, -0.0, 1.0, True, False]),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=12,
)
states = st.dictionaries(keys, values, max_size=5)


def places(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """Return every place in a value, with what is there."""
    found: list[tuple[Path, Any]] = [(path, value)]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


@st.composite
def change_for(draw: st.DrawFn, state: dict[str, Any]) -> Change:
    """Draw one change that fits the state."""
    path, found = draw(st.sampled_from(places(state)))
    value: Any = found
    options: list[str] = []
    if path:
        options.append("set")
        if isinstance(path[-1], str):
            options.append("delete")
    if isinstance(value, dict):
        options += ["add", "add", "count", "ensure"]
    if isinstance(value, list):
        options += ["append", "insert", "remove"]
    if isinstance(value, str) and path:
        options.append("splice")
    if type(value) is int and path:
        options.append("inc")
    match draw(st.sampled_from(options)):
        case "set":
            return Set(path, draw(values))
        case "delete":
            return Delete(path)
        case "add":
            return Set((*path, draw(keys)), draw(values))
        case "count":
            fresh = draw(keys.filter(lambda k: not _has(value, k)))
            return Increment((*path, fresh), draw(st.integers(-5, 5)))
        case "ensure":
            fresh = draw(keys.filter(lambda k: type(found.get(k, [])) in (list, dict)))
            return Ensure((*path, fresh), type(found.get(fresh, draw(st.sampled_from([[], {}]))))())
        case "append":
            return Append(path, draw(st.lists(values, max_size=3)))
        case "insert":
            return Insert(path, draw(st.integers(0, _length(value))), draw(st.lists(values, max_size=3)))
        case "remove":
            start = draw(st.integers(0, _length(value)))
            return Remove(path, start, draw(st.integers(0, _length(value) - start)))
        case "splice":
            start = draw(st.integers(0, _length(value)))
            return Splice(path, start, draw(st.integers(0, _length(value) - start)), draw(texts))
        case _:
            return Increment(path, draw(st.integers(-(2**40), 2**40)))


@st.composite
def changes_for(draw: st.DrawFn, state: dict[str, Any], max_size: int = 6) -> list[Change]:
    """Draw a list of changes, each of which fits the state that the ones before it leave."""
    changes: list[Change] = []
    for _ in range(draw(st.integers(0, max_size))):
        change = draw(change_for(state))
        changes.append(change)
        state = apply(state, [change])
    return changes
