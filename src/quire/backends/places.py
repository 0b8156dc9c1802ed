"""From the arguments of another system's document to the place of a store, and what was asked of it.

Each argument is honoured or refused: none is taken and forgotten. No message shows a password.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from quire.core.names import is_ending
from quire.errors import Invalid, InvalidKey, NotFound, Unsupported
from quire.storage.open import redact_url

_BESIDE = 3
"""Connections that a store in PostgreSQL has beside those that read: one commits, one listens, one is for verifying."""
_READERS_MAX = 64
_POSTGRES = ("postgresql://", "postgres://")


class Place(NamedTuple):
    """Where a store is, and what was asked of it.

    url: for `quire.open`.  expire_s: seconds after which what has ended is removed, None for never.
    readable: what is stored has to be plain JSON.
    """

    url: str
    expire_s: float | None = None
    readable: bool = False


def folder(base_path: Any, *, use_json: Any, file_extension: Any) -> Place:
    """Return the place of a store in a folder. Raises Invalid, InvalidKey."""
    path = _path(base_path)
    if type(use_json) is not bool:
        raise Invalid(f"use_json={use_json!r}: True for readable files, False for compressed ones")
    if not is_ending(file_extension):
        raise Invalid(
            f"file_extension={file_extension!r}: a dot is needed, then 1 to 16 letters and digits, as in .json"
        )
    url = f"file:///{quote(str(path.absolute()))}?extension={file_extension}"
    return Place(url if use_json else f"{url}&compression=zstd", readable=use_json)


def made(base_path: Any, *, create_dirs: Any) -> None:
    """Make a folder with those around it, or see that it is there. Raises Invalid, InvalidKey, NotFound."""
    path = _path(base_path)
    if type(create_dirs) is not bool:
        raise Invalid(f"create_dirs={create_dirs!r}: True to make the folder where it is missing, or False")
    if create_dirs:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as cause:
            raise InvalidKey(f"the folder {path} cannot be made: {cause}; choose another base_path") from cause
    elif not path.is_dir():
        raise NotFound(f"there is no folder {path}; make it, or say create_dirs=True")


def redis(host: Any, port: Any, db: Any, password: Any, expire_time: Any, key_prefix: Any) -> Place:
    """Return the place of a store in Redis. Raises Invalid, InvalidKey."""
    if not isinstance(host, str) or not host or set(host) & set("/@?#[] "):
        raise InvalidKey(f"host={host!r}: the name or address of a server is needed")
    for name, number, most in (("port", port, 65535), ("db", db, 10**9 - 1)):
        if type(number) is not int or not 0 <= number <= most:
            raise InvalidKey(f"{name}={number!r}: a whole number from 0 to {most} is needed")
    if password is not None and not isinstance(password, str):
        raise InvalidKey("password: text, or None where there is none")
    if not isinstance(key_prefix, str) or not key_prefix.removesuffix(":"):
        raise InvalidKey(f"key_prefix={key_prefix!r}: text is needed; all keys of the store begin with it and a colon")
    where = f"[{host}]" if ":" in host else host
    who = f":{quote(password, safe='')}@" if password else ""
    prefix = quote(key_prefix.removesuffix(":"), safe="")
    return Place(f"redis://{who}{where}:{port}/{db}?prefix={prefix}", seconds(expire_time))


def database(connection_string: Any, table_name: Any, pool_size: Any) -> Place:
    """Return the place of a store in PostgreSQL. Raises Invalid, InvalidKey, Unsupported."""
    if not isinstance(connection_string, str):
        raise InvalidKey(f"connection_string is {type(connection_string).__name__}; write postgresql://USER@HOST/DB")
    scheme = next((s for s in _POSTGRES if connection_string.startswith(s)), None)
    if scheme is None:
        raise Unsupported(
            f"{redact_url(connection_string)}: DatabaseStorageBackend is for PostgreSQL, postgresql://USER@HOST/DB; "
            "for any other store give its URL to StorageBackend",
            capability="connection_string",
        )
    if not isinstance(table_name, str) or not table_name:
        raise InvalidKey(f"table_name={table_name!r}: a name is needed; the tables of the store are in a schema of it")
    if type(pool_size) is not int or pool_size < 1:
        raise Invalid(f"pool_size={pool_size!r}: a number of connections is needed")
    if pool_size <= _BESIDE:
        raise Unsupported(
            f"pool_size={pool_size}: a store commits, listens, verifies and reads on connections of their own; allow it "
            f"{_BESIDE + 1}",
            capability="pool_size",
        )
    readers = min(pool_size - _BESIDE, _READERS_MAX)
    rest = connection_string.removeprefix(scheme)
    joint = "&" if "?" in rest else "?"
    return Place(f"postgresql://{rest}{joint}schema={quote(table_name, safe='')}&readers={readers}")


def _path(base_path: Any) -> Path:
    if not isinstance(base_path, str | os.PathLike) or not str(base_path).strip():
        raise InvalidKey(f"base_path={base_path!r}: the path of a folder is needed")
    return Path(base_path)


def seconds(expire_time: Any) -> float | None:
    """Return a time to live. Raises Invalid."""
    if expire_time is None:
        return None
    if type(expire_time) not in (int, float) or not 0 < expire_time < math.inf:
        raise Invalid(f"expire_time={expire_time!r}: seconds above 0 are needed, or None for never")
    return float(expire_time)
