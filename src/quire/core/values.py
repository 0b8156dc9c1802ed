"""Values: what may be stored, and when two are the same.

A state is a JSON object of objects, lists, strings, finite numbers, booleans and null. int and float stay apart: `1`,
`1.0` and `True` are three values, though Python calls them equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, cast

import msgspec

from quire.core.meter import CHARACTERS_PER_STEP, Meter
from quire.core.path import format as pointer
from quire.errors import InvalidState, LimitExceeded
from quire.model import Path

_encode = msgspec.json.Encoder().encode
_PLAIN = frozenset((int, bool, type(None)))
SMALL = frozenset((int, float, bool, type(None)))
"""Types of values that take no time to look at."""
_LEAVES = SMALL | {str}
_HINTS = {
    "bytes": "keep bytes in a blob (`store.put_blob`) and store its name",
    "bytearray": "keep bytes in a blob (`store.put_blob`) and store its name",
    "set": "store a sorted list",
    "frozenset": "store a sorted list",
    "datetime": "store `.isoformat()`",
    "date": "store `.isoformat()`",
    "Decimal": "store it as a string",
    "UUID": "store `str(...)`",
    "complex": "store a list of two numbers",
}
_QUICK_ITEMS = 5000
"""Items, or so many times `CHARACTERS_PER_STEP` characters, that are looked at in a few milliseconds."""
_ITEMS_PER_STEP = 2
"""Items that are looked at in a step."""
_DIGITS_MAX = 4000
"""Longer integers cannot be read back: Python refuses to parse them."""


def clean(
    value: Any,
    *,
    path: Path = (),
    depth_max: int = 64,
    key_bytes_max: int = 512,
    bytes_max: int | None = None,
    meter: Meter | None = None,
) -> Any:
    """Return a private plain copy of a JSON value; tuples become lists.

    path: where it will be, for messages and depth.  depth_max: nesting from the root.  key_bytes_max: UTF-8 bytes of
    a key.  bytes_max: of the whole value as JSON, None for no limit; a value that holds one list in many places, and
    would be a thousand times as large as it looks, is left as soon as its copy passes that.  meter: of several values
    together, instead.
    Raises InvalidState naming the place, LimitExceeded. Cost: O(value), one pass.
    """
    return _clean(value, path, depth_max, key_bytes_max, meter or Meter(bytes_max))


def _clean(value: Any, path: Path, depth_max: int, key_max: int, meter: Meter) -> Any:
    kind = type(value)
    if kind is str:
        _check_text(value, path)
        meter.add_bytes(len(value))
        return value
    if kind is float:
        if not math.isfinite(value):
            name = "NaN" if value != value else "Infinity"  # noqa: PLR0124 - NaN is what differs from itself
            raise _invalid(path, f"{name} is not JSON; store None or a string instead")
        return value
    if kind in _PLAIN:
        if kind is int and (value.bit_length() > 64) and len(f"{value:x}") > _DIGITS_MAX * 0.8:
            raise _invalid(path, f"an integer of more than {_DIGITS_MAX} digits; store it as a string")
        return value
    if kind is dict or isinstance(value, Mapping):
        if len(path) >= depth_max:
            raise _invalid(path, f"nested deeper than {depth_max}; flatten it, or keep it as a blob")
        meter.open(len(cast("Mapping[Any, Any]", value)), _ITEMS_PER_STEP)
        result: dict[str, Any] = {}
        for key, item in cast("Mapping[Any, Any]", value).items():
            if type(key) is not str:
                key = _key(key, path)  # noqa: PLW2901
            _check_text(key, path, what="key ")
            if len(key) * 4 > key_max and len(key.encode()) > key_max:
                raise LimitExceeded(
                    f"state{pointer(path)}: a key of {len(key.encode()):,} bytes, allowed are {key_max}; put it into a value",
                    limit="key_bytes_max",
                    allowed=key_max,
                    found=len(key.encode()),
                )
            meter.add_bytes(len(key))
            result[key] = _clean(item, (*path, key), depth_max, key_max, meter)
        return result
    if kind in (list, tuple):
        if len(path) >= depth_max:
            raise _invalid(path, f"nested deeper than {depth_max}; flatten it, or keep it as a blob")
        meter.open(len(value), _ITEMS_PER_STEP)
        return [_clean(v, (*path, i), depth_max, key_max, meter) for i, v in enumerate(cast("list[Any]", value))]
    return _clean(_plain(value, path), path, depth_max, key_max, meter)


def _plain(value: Any, path: Path) -> Any:
    """Return the plain value behind a subclass of a JSON type. Raises InvalidState for anything else."""
    if isinstance(value, Enum) and isinstance(value, str | int):
        return value.value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, list | tuple):
        return list(cast("list[Any]", value))
    to_plain = getattr(value, "to_plain", None)  # drafts
    if to_plain is not None:
        return to_plain()
    hint = _HINTS.get(type(value).__name__, "store plain objects, lists, strings, numbers, booleans and None")
    raise _invalid(path, f"{type(value).__name__} is not JSON; {hint}")


def _key(key: Any, path: Path) -> str:
    if isinstance(key, str):
        return str.__str__(key.value if isinstance(key, Enum) else key)
    raise _invalid(path, f"key {key!r} is {type(key).__name__}; keys are strings")


def _check_text(text: str, path: Path, what: str = "") -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as cause:
        raise _invalid(
            path,
            f"{what}text with a lone surrogate at {cause.start}; it is not Unicode, replace or remove it",
        ) from None


def _invalid(path: Path, what: str) -> InvalidState:
    where = pointer(path[:8]) + ("/..." if len(path) > 8 else "")
    return InvalidState(f"state{where}: {what}", path=pointer(path))


def copied(value: Any) -> Any:
    """Return a plain deep copy of a JSON value: what is handed to a caller never aliases a stored state."""
    kind: type[Any] = type(value)
    if kind is dict:
        return {k: v if type(v) in _LEAVES else copied(v) for k, v in cast("dict[str, Any]", value).items()}
    if kind is list:
        return [v if type(v) in _LEAVES else copied(v) for v in cast("list[Any]", value)]
    return value


def is_large(*values: Any) -> bool:
    """Tell whether values have so many items that copying or comparing them takes more than a few milliseconds.

    Cost: a look at the containers, until that is known.
    """
    left, todo = _QUICK_ITEMS, list(values)
    while todo:
        node = todo.pop()
        kind: type[Any] = type(node)
        if kind is str:
            left -= len(node) // CHARACTERS_PER_STEP
        elif kind is dict or kind is list or kind is tuple:
            left -= len(node)
            if left > 0:
                inside: Any = node.values() if kind is dict else node
                todo += [child for child in inside if type(child) not in SMALL]
        if left <= 0:
            return True
    return False


def same(a: Any, b: Any) -> bool:
    """Tell whether two JSON values are the same: order of keys does not matter, 1, 1.0 and True differ, so do 0.0 and -0.0.

    Cost: `==` in C finds most differences; equal ones are confirmed by comparing their encodings.
    """
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b) or a != b:
        return False
    if kind is str or kind in _PLAIN:
        return True
    if kind is float:
        return math.copysign(1.0, a) == math.copysign(1.0, b)
    return alike(a, b)


def equal(a: Any, b: Any) -> bool:
    """Tell whether two JSON values are equal as RFC 6902 says: numbers by value, so 1 equals 1.0; True is no number.

    Cost: `==` in C finds most differences; else each value is looked at.
    """
    if a != b or isinstance(a, bool) is not isinstance(b, bool):
        return False
    if type(a) is dict:
        theirs = cast("dict[str, Any]", b)
        return all(equal(value, theirs[key]) for key, value in cast("dict[str, Any]", a).items())
    if type(a) is list:
        return all(map(equal, cast("list[Any]", a), cast("list[Any]", b)))
    return True


def alike(a: Any, b: Any) -> bool:
    """Tell whether containers that Python calls equal are the same. Cost: two encodings."""
    try:
        if _encode(a) == _encode(b):
            return True
    except (TypeError, ValueError, RecursionError):
        return False  # not JSON: whoever asks will be told by `clean`
    return _same_slowly(a, b)


def _same_slowly(a: Any, b: Any) -> bool:
    """Compare equal containers whose encodings differ: by the order of keys, or by 1 against 1.0 somewhere."""
    if type(a) is dict and type(b) is dict:
        ours, theirs = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        return ours.keys() == theirs.keys() and all(_same_slowly(v, theirs[k]) for k, v in ours.items())
    if type(a) is list and type(b) is list:
        left, right = cast("list[Any]", a), cast("list[Any]", b)
        return len(left) == len(right) and all(map(_same_slowly, left, right))
    if type(a) is float and type(b) is float:
        return a == b and math.copysign(1.0, a) == math.copysign(1.0, b)
    return type(a) is type(b) and a == b
