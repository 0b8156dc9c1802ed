"""Alignment: which items of an old list are still there in a new one, unchanged or edited.

Only states are known here, not how one became the other. Items are taken for the same where they are equal, where
both have a name (`id`, `key`, ...) and it is the same, or where nothing else in either list is as similar. All others
are different items: an edit of one must never be applied to another.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, cast

import msgspec

from quire.core.values import alike, same

TEXT_MIN = 64
"""Shorter strings have no inside: one takes the place of another as a whole."""
_NAMES = ("id", "_id", "uuid", "key", "name")
_SIMILAR = 0.5
"""The part of two containers that must be the same for one to be an edited form of the other."""
_COMPARED = 200_000
"""About how many bytes of items are compared in search of the most similar ones; at least each with its neighbours."""
_COMPARED_MAX = 100_000_000
"""Where more would have to be, none are."""
_encode = msgspec.json.Encoder(order="deterministic").encode

Pair = tuple[int, int]
_Gap = tuple[int, int, int, int]


def aligned(old: Sequence[Any], new: Sequence[Any], unmoved: Sequence[int] = ()) -> Iterator[tuple[int, int, bool]]:
    """Yield the index of each item that stays, in the old list and in the new one, and whether it is equal in both.

    Both indices ascend. Where items changed their order, nothing between their old and their new places is taken for the
    same: who moves an item does not put one in and take one out. Both lists hold plain JSON values.
    unmoved: what `in_place` said of them.
    Cost: an encoding of each item that is not unmoved; up to 0.2 MB of those without a match are compared, or each with
    three others, which is what 100 MB may take.

    >>> list(aligned([{"id": 1}, {"id": 2}], [{"id": 2, "done": True}, {"id": 3}]))
    [(1, 0, False)]
    """
    if not old or not new:
        return
    equal = _anchored(old, new, _encode, [(i, i) for i in unmoved], trim=True)
    names = _common_names(old, new, equal)
    named = _anchored(old, new, partial(_name, among=names), equal) if names else equal
    similar = [pair for gap in _gaps(named, _whole(old, new)) for pair in _most_similar(old, new, gap)]
    pairs = sorted([*named, *similar])
    unchanged = set(equal)
    for i, j in _settled(pairs, _moves(old, new, pairs, names)):
        yield i, j, (i, j) in unchanged


def _left(pairs: Sequence[Pair], side: int, length: int) -> list[int]:
    """Return which items of one side are in no pair."""
    places = [-1, *(pair[side] for pair in pairs), length]
    return [i for before, after in pairwise(places) if before + 1 < after for i in range(before + 1, after)]


def _common_names(old: Sequence[Any], new: Sequence[Any], pairs: Sequence[Pair]) -> set[object]:
    """Return the names of items in no pair that exactly one item has, in each of the lists."""
    sides = [[values[i] for i in _left(pairs, side, len(values))] for side, values in enumerate((old, new))]
    names = set(map(_name, sides[0])) & set(map(_name, sides[1])) - {None}
    for values in (old, new) if names else ():
        often = Counter(name for value in values if (name := _name(value)) in names)
        names &= {name for name, count in often.items() if count == 1}
    return names


def _moves(old: Sequence[Any], new: Sequence[Any], pairs: Sequence[Pair], names: set[object]) -> list[Pair]:
    """Return where items that are in both lists, and in no pair, were and are."""
    were, are = _left(pairs, 0, len(old)), _left(pairs, 1, len(new))
    if not were or not are:
        return []
    found: list[Pair] = []
    for label in (_encode, partial(_name, among=names)):
        places = {label(old[i]): i for i in were}
        found += [(places[it], j) for j in are if (it := label(new[j])) is not None and it in places]
    return found


def _settled(pairs: Sequence[Pair], moves: Iterable[Pair]) -> Iterator[Pair]:
    """Yield the ascending pairs that no item moved past."""
    crossed = [0] * (len(pairs) + 1)
    for i, j in moves:
        before, after = sorted((bisect_left(pairs, (i,)), bisect_left(pairs, j, key=lambda pair: pair[1])))
        crossed[before] += 1
        crossed[after] -= 1
    for pair, across in zip(pairs, accumulate(crossed), strict=False):
        if not across:
            yield pair


def in_place(old: Sequence[Any], new: Sequence[Any]) -> list[int]:
    """Return where items are the same in the same place if most are: then none were put in or taken out."""
    if len(old) != len(new):
        return []
    places = [i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a == b]
    if 2 * len(places) < len(old) or not alike([old[i] for i in places], [new[i] for i in places]):
        return []
    return places


def _anchored(
    before: Sequence[Any],
    after: Sequence[Any],
    label: Callable[[Any], object],
    known: Sequence[Pair],
    *,
    trim: bool = False,
) -> list[Pair]:
    """Add to `known` pairs the items between them whose labels are the same; None is no label.

    trim: the labels that both parts of a gap begin or end with are paired first. Then those that are there just once, in
    the longest order that both lists share; then the gaps between these in the same way.
    """
    found = list(known)
    todo = list(_gaps(known, _whole(before, after)))
    old: dict[int, object] = {i: label(before[i]) for start, end, _, _ in todo for i in range(start, end)}
    new: dict[int, object] = {j: label(after[j]) for _, _, start, end in todo for j in range(start, end)}
    while todo:
        i, i_end, j, j_end = todo.pop()
        while trim and i < i_end and j < j_end and old[i] == new[j]:
            found.append((i, j))
            i, j = i + 1, j + 1
        while trim and i < i_end and j < j_end and old[i_end - 1] == new[j_end - 1]:
            i_end, j_end = i_end - 1, j_end - 1
            found.append((i_end, j_end))
        places = _unique(old, i, i_end)
        others = _unique(new, j, j_end)
        anchors = _ascending((places[label], at) for label, at in others.items() if label in places)
        if anchors:
            found += anchors
            todo += _gaps(anchors, (i, i_end, j, j_end))
    return sorted(found)


def _unique(labels: dict[int, object], start: int, end: int) -> dict[object, int]:
    """Return where each label is that is in a part of the list just once."""
    often = Counter(labels[i] for i in range(start, end))
    return {labels[i]: i for i in range(start, end) if labels[i] is not None and often[labels[i]] == 1}


def _whole(old: Sequence[object], new: Sequence[object]) -> _Gap:
    return 0, len(old), 0, len(new)


def _gaps(pairs: Iterable[Pair], within: _Gap) -> Iterator[_Gap]:
    """Yield the parts of both lists between ascending pairs where both have items."""
    i_start, i_end, j_start, j_end = within
    for (i, j), (i_next, j_next) in pairwise([(i_start - 1, j_start - 1), *pairs, (i_end, j_end)]):
        if i + 1 < i_next and j + 1 < j_next:
            yield i + 1, i_next, j + 1, j_next


def _ascending(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the most pairs of which both sides ascend; they come in the order of the second."""
    tails: list[int] = []
    links: list[tuple[Pair, Any]] = []
    for pair in pairs:
        at = bisect_left(tails, pair[0])
        link = (pair, links[at - 1] if at else None)
        tails[at : at + 1] = [pair[0]]
        links[at : at + 1] = [link]
    found: list[Pair] = []
    last = links[-1] if links else None
    while last is not None:
        found.append(last[0])
        last = last[1]
    return found[::-1]


def _name(value: Any, among: Container[object] | None = None) -> object:
    """Return what names an item, None if nothing does. among: names that count."""
    if type(value) is dict:
        for field in _NAMES:
            name = cast("dict[str, Any]", value).get(field)
            if type(name) in (str, int) and name != "":
                return (field, name) if among is None or (field, name) in among else None
    return None


def _most_similar(old: Sequence[Any], new: Sequence[Any], gap: _Gap) -> list[Pair]:
    """Return the pairs of containers, and of long texts, that are more similar to each other than to all others."""
    i_start, i_end, j_start, j_end = gap
    ours, theirs = (
        [i for i in range(start, end) if type(v := side[i]) in (dict, list) or (type(v) is str and len(v) >= TEXT_MIN)]
        for side, start, end in ((old, i_start, i_end), (new, j_start, j_end))
    )
    if not ours or not theirs:
        return []
    names = {_name(old[i]) for i in ours}, {_name(new[j]) for j in theirs}
    if None not in names[0] | names[1] and not names[0] & names[1]:
        return []  # all are named, and none alike
    wider = (j_end - j_start) - (i_end - i_start)
    size = sum(len(_encode(old[i])) for i in ours)
    slack = max(1, (_COMPARED // size - abs(wider)) // 2)
    if size * (abs(wider) + 3) > _COMPARED_MAX:
        return []
    rows: dict[int, list[tuple[float, int]]] = {}
    columns: dict[int, list[tuple[float, int]]] = {}
    for i in ours:
        middle = i - i_start + j_start
        low = bisect_left(theirs, middle + min(0, wider) - slack)
        for j in theirs[low : bisect_right(theirs, middle + max(0, wider) + slack)]:
            found = _similarity(old[i], new[j])
            if found >= _SIMILAR:
                rows.setdefault(i, []).append((found, j))
                columns.setdefault(j, []).append((found, i))
    mutual = [(i, j) for j, column in columns.items() if (i := _best(column)) is not None and _best(rows[i]) == j]
    return _ascending(sorted(mutual, key=lambda pair: pair[1]))


def _best(candidates: list[tuple[float, int]]) -> int | None:
    """Return the one that is more similar than all others, None if there is none."""
    top = max(candidates)
    return top[1] if sum(found == top[0] for found, _ in candidates) == 1 else None


def _similarity(a: Any, b: Any) -> float:
    """Return which part of two values is the same, from 0 to 1; 0 for objects with different names."""
    if same(a, b):
        return 1.0
    if type(a) is dict and type(b) is dict:
        left, right = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        named = _name(left), _name(right)
        if None not in named and named[0] != named[1]:
            return 0.0
        return sum(_similarity(v, right[k]) for k, v in left.items() if k in right) / max(len(left), len(right))
    if type(a) is list and type(b) is list:
        return sum(ends(cast("list[Any]", a), cast("list[Any]", b))) / max(len(a), len(b))
    if type(a) is str and type(b) is str and min(len(a), len(b)) >= TEXT_MIN:
        return sum(text_ends(a, b)) / max(len(a), len(b))
    return 0.0


def ends(a: list[Any], b: list[Any]) -> Pair:
    """Return how many items two lists begin with are the same, and how many of the others that they end with."""
    head = _shared(a, b)
    return head, _shared(a[head:][::-1], b[head:][::-1])


def _shared(a: list[Any], b: list[Any]) -> int:
    """Return how many leading items are the same: a quick look with `==`, then one strict comparison of all."""
    limit = min(len(a), len(b))
    count = 0
    while count < limit and a[count] == b[count]:
        count += 1
    if same(a[:count], b[:count]):
        return count
    return next(i for i in range(count) if not same(a[i], b[i]))


def text_ends(a: str, b: str) -> Pair:
    """Return the length of what two texts both begin with, and of what the rest of both ends with."""
    limit = min(len(a), len(b))
    head = _prefix(a, b, limit)
    return head, _prefix(a[head:][::-1], b[head:][::-1], limit - head)


def _prefix(a: str, b: str, limit: int) -> int:
    """Return the length of the common prefix, by halving: slices compare in C."""
    low, high = 0, limit
    while low < high:
        mid = (low + high + 1) // 2
        if a[low:mid] == b[low:mid]:
            low = mid
        else:
            high = mid - 1
    return low
