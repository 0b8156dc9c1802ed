"""What a key may be, and how much a scope may hold.

The rules for keys keep them usable as parts of paths, log lines and file names elsewhere: nothing that climbs,
splits or hides. They are checked before anything is stored or read, so that a key that cannot be written cannot be
asked for either.
"""

from __future__ import annotations

import math
import reprlib
import unicodedata
from functools import lru_cache
from typing import Any

import msgspec

from quire.errors import Invalid, InvalidKey, LimitExceeded

KEY_CHARS_MAX = 256
KEY_BYTES_MAX = 512
_REMEMBERED_MAX = 4096
"""How many checked keys are remembered: agents use the same few."""
_FORBIDDEN = ("..", "\\", "//", "\0", "\r", "\n")
_RESERVED = ("__", "$$")


class ScopeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be kept; reaching one raises LimitExceeded naming it, with nothing stored.

    A workflow and its steps share one log and therefore one allowance of keys and bytes.
    """

    size_bytes_max: int = 8 * 1024 * 1024
    """Bytes of all keys and values of a log as JSON."""
    keys_max: int = 10_000
    """Keys in a log."""
    value_bytes_max: int = 1024 * 1024
    """Bytes of one value as JSON."""
    ttl_s_max: int = 30 * 24 * 3600
    """Seconds that a temporary value may live."""

    def __post_init__(self) -> None:
        for field in self.__struct_fields__:
            value = getattr(self, field)
            if type(value) is not int or value < 1:
                raise Invalid(f"{field}={value!r}: a whole number of at least 1 is needed")


def check_key(key: Any) -> str:
    """Return a key that keeps the rules: text in NFC, 1 to 256 characters, 512 bytes, and nothing dangerous.

    Raises InvalidKey naming the rule, LimitExceeded for one that is too long.

    >>> check_key("agent1.position")
    'agent1.position'
    """
    if type(key) is not str:
        raise InvalidKey(f"a key is text, not {type(key).__name__}")
    return _checked(key) if len(key) <= KEY_CHARS_MAX else _too_long("key_chars_max", KEY_CHARS_MAX, len(key))


@lru_cache(_REMEMBERED_MAX)
def _checked(key: str) -> str:
    if not key:
        raise InvalidKey("a key is empty; name what is kept")
    for part in _FORBIDDEN:
        if part in key:
            raise InvalidKey(f"key {reprlib.repr(key)} has {part!r} at {key.index(part)}; that is not allowed in keys")
    if key.startswith(_RESERVED):
        raise InvalidKey(f"key {reprlib.repr(key)} begins with {key[:2]!r}, which is reserved; choose another")
    try:
        raw = key.encode()
    except UnicodeEncodeError as cause:
        raise InvalidKey(f"a key has a lone surrogate at {cause.start}; it is not Unicode, remove it") from None
    if not unicodedata.is_normalized("NFC", key):
        raise InvalidKey(f"key {reprlib.repr(key)} is not in NFC; use unicodedata.normalize('NFC', key)")
    return key if len(raw) <= KEY_BYTES_MAX else _too_long("key_bytes_max", KEY_BYTES_MAX, len(raw))


def _too_long(limit: str, allowed: int, found: int) -> str:
    what = "characters" if limit == "key_chars_max" else "bytes"
    raise LimitExceeded(
        f"a key of {found:,} {what}, allowed are {allowed}; put the rest into the value",
        limit=limit,
        allowed=allowed,
        found=found,
    )


def check_ttl(ttl_s: Any, limits: ScopeLimits) -> int | None:
    """Return seconds to live as milliseconds, at least 1; None stays None. Raises Invalid, LimitExceeded."""
    if ttl_s is None:
        return None
    if type(ttl_s) not in (int, float) or not math.isfinite(ttl_s) or ttl_s <= 0:
        raise Invalid(f"ttl_s={ttl_s!r}: seconds above 0 are needed; leave it out for a value that stays")
    if ttl_s > limits.ttl_s_max:
        raise LimitExceeded(
            f"ttl_s={ttl_s:,}: allowed are {limits.ttl_s_max:,} seconds",
            limit="ttl_s_max",
            allowed=limits.ttl_s_max,
            found=math.ceil(ttl_s),
        )
    return max(1, round(ttl_s * 1000))
