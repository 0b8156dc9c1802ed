"""Ids: one strict rule, so that an id can never become a path, a query or another id."""

from __future__ import annotations

import re
import reprlib
from typing import Any, TypeGuard

from quire.errors import InvalidKey

_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CHARACTER = re.compile(r"[A-Za-z0-9._-]")
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,16}")
_LENGTH_MAX = 200
_SHOWN_MAX = 40
_SAID = "1 to 200 of A-Z a-z 0-9 . _ - are allowed, beginning with a letter or digit, without '..'"


def check_id(value: Any, what: str = "workflow id") -> str:
    """Return an id that keeps the rule.

    value: anything; only text of 1 to 200 letters, digits, `.`, `_` and `-` passes.
    what: how messages call it.
    Raises InvalidKey showing the first character that is not allowed, where it is, and the rule.

    >>> check_id("research-42")
    'research-42'
    """
    if not isinstance(value, str):
        raise InvalidKey(f"{what} {reprlib.repr(value)} is {type(value).__name__}, not text; {_SAID}")
    if _RULE.fullmatch(value) and len(value) <= _LENGTH_MAX and ".." not in value:
        return value
    shown = value if len(value) <= _SHOWN_MAX else value[:_SHOWN_MAX] + "..."
    raise InvalidKey(f"{what} {shown!r} {_problem(value)}; {_SAID}")


def check_namespace(value: Any) -> str:
    """Return a namespace that keeps the rule of ids. Raises InvalidKey as `check_id` does.

    >>> check_namespace("default")
    'default'
    """
    return check_id(value, "namespace")


def _problem(value: str) -> str:
    if not value:
        return "is empty"
    strange = next((i for i, c in enumerate(value) if not _CHARACTER.match(c)), None)
    if strange is not None:
        return f"has {value[strange]!r} at {strange}"
    if not value[0].isalnum():
        return f"begins with {value[0]!r}"
    if ".." in value:
        return f"has '..' at {value.index('..')}"
    return f"has {len(value)} characters"


def is_ending(text: Any) -> TypeGuard[str]:
    """Whether workflows' files may end so: a dot, then 1 to 16 letters and digits.

    >>> is_ending(".json"), is_ending("json"), is_ending("./x"), is_ending(".")
    (True, False, False, False)
    """
    return isinstance(text, str) and _ENDING.fullmatch(text) is not None
