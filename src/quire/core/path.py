"""Paths: where in a state. JSON Pointers (RFC 6901) at the edge, tuples of keys and indexes inside.

A pointer does not say whether `0` is a key or an index; only the state does. `parse` leaves such tokens as text and
`resolve` decides by the container it finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from quire.errors import ChangeError, InvalidKey
from quire.model import Path

_INDEX = re.compile(r"0|[1-9][0-9]{0,17}")
_BAD_ESCAPE = re.compile(r"~(?![01])")
END = "-"
"""The pointer token for one past the end of a list."""


def parse(pointer: str | Sequence[str | int]) -> Path:
    """Return the tokens of a pointer; a sequence of keys and indexes is taken as it is. Raises InvalidKey.

    >>> parse("/notes/0/a~1b")
    ('notes', '0', 'a/b')
    """
    if isinstance(pointer, str):
        if pointer == "":
            return ()
        if not pointer.startswith("/"):
            raise InvalidKey(f"path {pointer!r} must start with '/' (or be empty for the whole state)")
        if "~" not in pointer:
            return tuple(pointer[1:].split("/"))
        if found := _BAD_ESCAPE.search(pointer):
            raise InvalidKey(f"path {pointer!r}: '~' at {found.start()} must be written ~0, and '/' in a key ~1")
        return tuple(t.replace("~1", "/").replace("~0", "~") for t in pointer[1:].split("/"))
    if (
        not isinstance(pointer, Sequence)
        or isinstance(pointer, bytes | bytearray)
        or not all(type(t) in (str, int) for t in pointer)
    ):
        raise InvalidKey(f"path {pointer!r}: give a JSON Pointer such as '/notes/0', or a sequence of keys and indexes")
    return tuple(pointer)


def format(path: Sequence[str | int]) -> str:  # noqa: A001 - the counterpart of parse
    """Return the JSON Pointer of a path.

    >>> format(("notes", 0, "a/b"))
    '/notes/0/a~1b'
    """
    return "".join("/" + str(t).replace("~", "~0").replace("/", "~1") for t in path)


def resolve(state: Any, path: Sequence[str | int]) -> Path:
    """Return the path with list indexes as ints, by the containers it passes in `state`.

    The last token need not exist, and may be `-` or the length of a list (one past the end). Raises ChangeError where
    an earlier one does not exist or an index is malformed.
    """
    node = state
    done: list[str | int] = []
    for depth, token in enumerate(path):
        last = depth == len(path) - 1
        if type(node) is list:
            items = cast("list[Any]", node)
            place = index(token, len(items), path)
            if place > len(items) or (place == len(items) and not last):
                raise ChangeError(
                    f"{format(path)}: index {place} is outside the list at {format(done) or 'the root'}, "
                    f"which has {len(items)} items",
                    path=format(path),
                )
            done.append(place)
            node = items[place] if place < len(items) else None
        elif type(node) is dict:
            key = str(token)
            fields = cast("dict[str, Any]", node)
            if not last and key not in fields:
                raise ChangeError(f"{format(path)}: there is no {format([*done, key])}", path=format(path))
            done.append(key)
            node = fields.get(key)
        else:
            raise ChangeError(
                f"{format(path)}: {format(done) or 'the root'} holds {describe(node)}, nothing can be below it",
                path=format(path),
            )
    return tuple(done)


def index(token: str | int, length: int, path: Sequence[str | int]) -> int:
    """Return a list index from a token; `-` is the length. Raises ChangeError."""
    if type(token) is int:
        if token >= 0:
            return token
    elif token == END:
        return length
    elif _INDEX.fullmatch(cast("str", token)):
        return int(token)
    raise ChangeError(
        f"{format(path)}: {token!r} is not a list index; write 0, 1, 2 ... or '-' for the end",
        path=format(path),
    )


def get(state: Any, path: Sequence[str | int], default: Any = None) -> Any:
    """Return the value at a path, or `default`. Never a copy. Tokens may be unresolved. Cost: O(depth)."""
    node = state
    for token in path:
        if type(node) is dict:
            fields = cast("dict[str, Any]", node)
            key = token if type(token) is str else str(token)
            if key not in fields:
                return default
            node = fields[key]
        elif type(node) is list:
            items = cast("list[Any]", node)
            if type(token) is not int:
                if not _INDEX.fullmatch(cast("str", token)):
                    return default
                token = int(token)  # noqa: PLW2901 - the same token, as the list needs it
            if not 0 <= token < len(items):
                return default
            node = items[token]
        else:
            return default
    return node


def describe(value: Any) -> str:
    """Return what kind of JSON value this is, in words."""
    if value is None:
        return "null"
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)
