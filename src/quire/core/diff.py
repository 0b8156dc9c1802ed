"""Diff: the changes that turn one state into another.

Equal subtrees are skipped in C; what is walked is what differs. New values pass through `clean`, so that a value that
cannot be stored is found here, with its path. Lists are aligned first, so that an item is compared with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

from quire.core.alignment import TEXT_MIN, aligned, ends, in_place, text_ends
from quire.core.meter import Meter
from quire.core.values import alike, clean, same
from quire.model import Append, Change, Delete, Insert, Path, Remove, Set, Splice

_Clean = Callable[..., Any]


def diff(
    old: dict[str, Any],
    new: Mapping[str, Any],
    *,
    depth_max: int = 64,
    key_bytes_max: int = 512,
    bytes_max: int | None = None,
) -> list[Change]:
    """Return changes so that applying them to `old` gives `new`; none where they are the same.

    depth_max, key_bytes_max: what new values are held to.  bytes_max: of all of them together.
    Raises InvalidState for a new value that is not JSON, LimitExceeded. Cost: one comparison, plus the size of the difference.

    >>> diff({"n": [1]}, {"n": [1, 2]})
    [Append(path=('n',), values=[2])]
    """
    changes: list[Change] = []
    clean_new = partial(clean, depth_max=depth_max, key_bytes_max=key_bytes_max, meter=Meter(bytes_max))
    _walk(old, new, (), changes, clean_new)
    return changes


def _walk(old: Any, new: Any, path: Path, out: list[Change], clean: _Clean) -> None:
    if same(old, new):
        return
    if type(old) is dict and isinstance(new, Mapping):
        _objects(cast("dict[str, Any]", old), cast("Mapping[Any, Any]", new), path, out, clean)
    elif type(old) is list and isinstance(new, list | tuple):
        _lists(cast("list[Any]", old), list(cast("list[Any]", new)), path, out, clean)
    elif type(old) is str and type(new) is str and len(old) >= TEXT_MIN and len(new) >= TEXT_MIN:
        out.append(text_change(old, cast("str", clean(new, path=path)), path))
    else:
        value = clean(new, path=path)
        if not same(old, value):
            out.append(Set(path, value))


def _objects(old: dict[str, Any], new: Mapping[Any, Any], path: Path, out: list[Change], clean: _Clean) -> None:
    out.extend(Delete((*path, key)) for key in old if key not in new)
    for key in _altered(old, new):
        value = new[key]
        if type(key) is str and key in old:
            _walk(old[key], value, (*path, key), out, clean)
        else:
            ((name, plain),) = cast("dict[str, Any]", clean({key: value}, path=path)).items()
            if name in old:  # a subclass of str that equals a known key
                _walk(old[name], plain, (*path, name), out, clean)
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


def _lists(old: list[Any], new: list[Any], path: Path, out: list[Change], clean: _Clean) -> None:
    head, tail = ends(old, new)
    before, given = old[head : len(old) - tail], new[head : len(new) - tail]
    unmoved = in_place(before, given)
    known = set(unmoved)
    after = [v if j in known else clean(v, path=(*path, head + j)) for j, v in enumerate(given)]
    i, at = 0, 0
    for stays, place, equal in aligned(before, after, unmoved):
        _replaced(before[i:stays], after[at:place], path, head + at, out, last=False)
        if not equal:
            _walk(before[stays], after[place], (*path, head + place), out, clean)
        i, at = stays + 1, place + 1
    _replaced(before[i:], after[at:], path, head + at, out, last=not tail)


def _replaced(old: list[Any], new: list[Any], path: Path, at: int, out: list[Change], *, last: bool) -> None:
    """Have other items take the place of some, each as a whole. last: no item comes after them."""
    both = min(len(old), len(new))
    out.extend(Set((*path, at + i), new[i]) for i in range(both) if not same(old[i], new[i]))
    if len(old) > both:
        out.append(Remove(path, at + both, len(old) - both))
    elif len(new) > both:
        out.append(Append(path, new[both:]) if last else Insert(path, at + both, new[both:]))


def text_change(old: str, new: str, path: Path) -> Change:
    """Return the change that turns one text into another: a splice where that is smaller than the whole."""
    head, tail = text_ends(old, new)
    insert = new[head : len(new) - tail]
    if len(insert) * 2 > len(new):
        return Set(path, new)
    return Splice(path, head, len(old) - head - tail, insert)
