"""Diff: the changes that turn one state into another.

Equal subtrees are skipped in C; what is walked is what differs. New values pass through `clean`, so that a value that
cannot be stored is found here, with its path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from quire.core.values import alike, clean, same
from quire.model import Append, Change, Delete, Insert, Path, Remove, Set, Splice

_TEXT_MIN = 64
"""Shorter strings are replaced whole: a splice would not be smaller."""


def diff(old: dict[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """Return changes so that applying them to `old` gives `new`; none where they are the same.

    Raises InvalidState for a new value that is not JSON. Cost: one comparison, plus the size of the difference.

    >>> diff({"n": [1]}, {"n": [1, 2]})
    [Append(path=('n',), values=[2])]
    """
    changes: list[Change] = []
    _walk(old, new, (), changes)
    return changes


def _walk(old: Any, new: Any, path: Path, out: list[Change]) -> None:
    if same(old, new):
        return
    if type(old) is dict and isinstance(new, Mapping):
        _objects(cast("dict[str, Any]", old), cast("Mapping[Any, Any]", new), path, out)
    elif type(old) is list and isinstance(new, list | tuple):
        _lists(cast("list[Any]", old), list(cast("list[Any]", new)), path, out)
    elif type(old) is str and type(new) is str and len(old) >= _TEXT_MIN and len(new) >= _TEXT_MIN:
        out.append(text_change(old, cast("str", clean(new, path=path)), path))
    else:
        value = clean(new, path=path)
        if not same(old, value):
            out.append(Set(path, value))


def _objects(old: dict[str, Any], new: Mapping[Any, Any], path: Path, out: list[Change]) -> None:
    out.extend(Delete((*path, key)) for key in old if key not in new)
    for key in _altered(old, new):
        value = new[key]
        if type(key) is str and key in old:
            _walk(old[key], value, (*path, key), out)
        else:
            ((name, plain),) = cast("dict[str, Any]", clean({key: value}, path=path)).items()
            if name in old:  # a subclass of str that equals a known key
                _walk(old[name], plain, (*path, name), out)
            else:
                out.append(Set((*path, name), plain))


def _altered(old: dict[str, Any], new: Mapping[Any, Any]) -> Iterable[Any]:
    """Return the keys that may hold something else than before, in the new order.

    What `==` calls equal is confirmed in one go: two encodings of thousands of values cost less than thousands of two.
    """
    keys = [k for k, v in new.items() if type(k) is not str or k not in old or old[k] != v]
    passed = set(keys)
    equal = [k for k in new if k not in passed]
    return keys if alike([old[k] for k in equal], [new[k] for k in equal]) else new


def _lists(old: list[Any], new: list[Any], path: Path, out: list[Change]) -> None:
    head = _shared(old, new)
    tail = _shared(old[head:][::-1], new[head:][::-1])
    middle_old, middle_new = old[head : len(old) - tail], new[head : len(new) - tail]
    both = min(len(middle_old), len(middle_new))
    for i in range(both):
        _walk(middle_old[i], middle_new[i], (*path, head + i), out)
    at = head + both
    if len(middle_old) > both:
        out.append(Remove(path, at, len(middle_old) - both))
    elif len(middle_new) > both:
        values = [clean(v, path=(*path, at + i)) for i, v in enumerate(middle_new[both:])]
        out.append(Insert(path, at, values) if tail else Append(path, values))


def _shared(a: list[Any], b: list[Any]) -> int:
    """Return how many leading items are the same: a quick look with `==`, then one strict comparison of all."""
    limit = min(len(a), len(b))
    count = 0
    while count < limit and a[count] == b[count]:
        count += 1
    if same(a[:count], b[:count]):
        return count
    return next(i for i in range(count) if not same(a[i], b[i]))


def text_change(old: str, new: str, path: Path) -> Change:
    """Return the change that turns one text into another: a splice where that is smaller than the whole."""
    limit = min(len(old), len(new))
    head = _prefix(old, new, limit)
    tail = _prefix(old[head:][::-1], new[head:][::-1], limit - head)
    insert = new[head : len(new) - tail]
    if len(insert) * 2 > len(new):
        return Set(path, new)
    return Splice(path, head, len(old) - head - tail, insert)


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
