"""Ids: one strict rule, so that an id can never become a path, a query or another id."""

from __future__ import annotations

import re
from typing import Any

from quire.errors import InvalidKey

_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MAX = 200
_SAID = "1 to 200 of A-Z a-z 0-9 . _ - are allowed, beginning with a letter or digit, without '..'"


def check_id(value: Any, what: str = "id") -> str:
    """Return an id that keeps the rule. Raises InvalidKey saying what is wrong with it.

    >>> check_id("research-42")
    'research-42'
    """
    if not isinstance(value, str):
        raise InvalidKey(f"{what} {value!r} is {type(value).__name__}, not text; {_SAID}")
    if _RULE.fullmatch(value) and len(value) <= _MAX and ".." not in value:
        return value
    shown = value if len(value) <= 40 else value[:40] + "..."
    if not value:
        problem = "is empty"
    elif len(value) > _MAX:
        problem = f"has {len(value)} characters"
    elif ".." in value:
        problem = "contains '..'"
    else:
        at = next((i for i, c in enumerate(value) if not re.match(r"[A-Za-z0-9._-]", c)), 0)
        problem = f"has {value[at]!r} at {at}"
    raise InvalidKey(f"{what} {shown!r} {problem}; {_SAID}")
