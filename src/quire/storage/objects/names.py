"""What every place for objects asks of names and sizes, and how its URL is shown."""

from __future__ import annotations

import re

from quire.errors import CorruptRecord, InvalidKey, StorageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def shown(url: str) -> str:
    """Return a URL without what may be a secret in it."""
    return re.sub(r"//[^/@]*@", "//***@", url.partition("?")[0])


def checked(name: str) -> str:
    """Return the name of an object that keeps the rule. Raises InvalidKey."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidKey(f"{name!r} cannot name an object: letters, digits, . _ - and / between them are allowed")
    return name


def oversized(name: str, url: str, size: int, allowed: int) -> StorageError:
    """Return what is raised for an object of a size that none of ours has."""
    return CorruptRecord(f"{name} in {url} has {size} bytes, at most {allowed} are read: it is not ours", at=name)
