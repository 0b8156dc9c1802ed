"""What holds for scoped state: the rules for keys, the limits, and what a workflow opts in to (StateBuilder).

The rules for keys keep them usable as parts of paths, log lines and file names elsewhere: nothing that climbs,
splits or hides. They are checked before reading too: a key that cannot be written cannot be asked for.

A StateBuilder holds for one manager or one run, in this process. Nothing of it is stored, but for secrets: what was
stored under a secret key is marked in the log, so that other processes do not show it either.
"""

from __future__ import annotations

import math
import reprlib
import unicodedata
from functools import lru_cache
from typing import Any

import msgspec

from quire.core.values import clean, copied
from quire.errors import Invalid, InvalidKey, LimitExceeded
from quire.scopes.names import StateScope
from quire.scopes.permissions import Policy

KEY_CHARS_MAX = 256
KEY_BYTES_MAX = 512
_REMEMBERED_MAX = 4096
"""How many checked keys are remembered: agents use the same few."""
_FORBIDDEN = ("..", "\\", "//", "\0", "\r", "\n")
_RESERVED = ("__", "$$")


class ScopeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be kept; passing one raises LimitExceeded naming it, with nothing stored.

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


def exceeded(limit: str, allowed: int, found: int, what: str) -> LimitExceeded:
    """Return the error that says that a limit was passed. what: begins the message."""
    return LimitExceeded(f"{what}; {allowed:,} are allowed ({limit})", limit=limit, allowed=allowed, found=found)


def check_key(key: Any) -> str:
    """Return a key that keeps the rules: text in NFC, 1 to 256 characters, 512 bytes, and nothing dangerous.

    Raises InvalidKey naming the rule, LimitExceeded for one that is too long.

    >>> check_key("agent1.position")
    'agent1.position'
    """
    if type(key) is not str:
        raise InvalidKey(f"a key is text, not {type(key).__name__}")
    if len(key) > KEY_CHARS_MAX:
        raise exceeded("key_chars_max", KEY_CHARS_MAX, len(key), f"a key has {len(key):,} characters")
    return _checked(key)


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
        size = len(key.encode())
    except UnicodeEncodeError as cause:
        raise InvalidKey(f"a key has a lone surrogate at {cause.start}; it is not Unicode, remove it") from None
    if not unicodedata.is_normalized("NFC", key):
        raise InvalidKey(f"key {reprlib.repr(key)} is not in NFC; use unicodedata.normalize('NFC', key)")
    if size > KEY_BYTES_MAX:
        raise exceeded("key_bytes_max", KEY_BYTES_MAX, size, f"a key has {size:,} bytes")
    return key


def check_ttl(ttl_s: Any, limits: ScopeLimits) -> int | None:
    """Return seconds to live as milliseconds, at least 1; None stays None. Raises Invalid, LimitExceeded."""
    if ttl_s is None:
        return None
    if type(ttl_s) not in (int, float) or not 0 < ttl_s < math.inf:
        raise Invalid(f"ttl_s={ttl_s!r}: seconds above 0 are needed; leave it out for a value that stays")
    if ttl_s > limits.ttl_s_max:
        raise exceeded("ttl_s_max", limits.ttl_s_max, math.ceil(ttl_s), f"ttl_s={ttl_s:,}")
    return max(1, round(ttl_s * 1000))


class StateBuilder(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, defaults, types, secrets and permissions. A value: every method returns a new one.

    policy: None allows everything.  scopes: what the steps of a run may use besides their workflow's and global.

    >>> setup = StateBuilder().default("retry_count", 0).typed("progress", float).secret("api_key")
    >>> setup.defaults, setup.secrets
    ({'retry_count': 0}, frozenset({'api_key'}))
    """

    limits: ScopeLimits = ScopeLimits()
    defaults: dict[str, Any] = {}
    types: dict[str, Any] = {}
    secrets: frozenset[str] = frozenset()
    policy: Policy | None = None
    scopes: tuple[StateScope, ...] = ()

    def limit(self, **limits: int) -> StateBuilder:
        """Change limits by name: size_bytes_max, keys_max, value_bytes_max, ttl_s_max. Raises Invalid."""
        unknown = set(limits) - set(ScopeLimits.__struct_fields__)
        if unknown:
            raise Invalid(f"no limit {min(unknown)!r}; there are {', '.join(ScopeLimits.__struct_fields__)}")
        return msgspec.structs.replace(self, limits=msgspec.structs.replace(self.limits, **limits))

    def default(self, key: str, value: Any) -> StateBuilder:
        """Answer for a key that is missing, in any scope; nothing is stored. Raises InvalidState."""
        return msgspec.structs.replace(self, defaults={**self.defaults, check_key(key): clean(value)})

    def typed(self, key: str, type: Any) -> StateBuilder:  # noqa: A002 - the word users have for it
        """Refuse values under this key that are not of a type: `int`, `list[str]`, a msgspec.Struct, ..."""
        return msgspec.structs.replace(self, types={**self.types, check_key(key): type})

    def secret(self, *keys: str) -> StateBuilder:
        """Keep values of these keys out of reprs and messages. They are stored like all others."""
        return msgspec.structs.replace(self, secrets=self.secrets | {check_key(k) for k in keys})

    def guarded(self, policy: Policy | None) -> StateBuilder:
        """Check every access against a policy: what no rule allows is denied. None allows everything."""
        return msgspec.structs.replace(self, policy=policy)

    def using(self, *scopes: StateScope) -> StateBuilder:
        """Make scopes available to the steps of a run, besides those of the workflow and global."""
        return msgspec.structs.replace(self, scopes=(*self.scopes, *scopes))

    def default_of(self, key: str, given: Any) -> Any:
        """Return what to answer for a missing key: what the caller gave, else a copy of the default."""
        return copied(self.defaults.get(key)) if given is None else given
