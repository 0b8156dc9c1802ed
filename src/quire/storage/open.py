"""From a URL to a backend. The only place that knows which backends there are; each is imported when asked for."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from quire.core.names import check_id
from quire.errors import InvalidKey, Unsupported
from quire.storage.base import Backend

_HERE = ("sqlite", "memory")
_PLANNED = ("file", "postgresql", "redis", "nats", "rocksdb")
_SECRET = re.compile(r"(://[^/@:]*:)[^/@]*@")


def redacted(url: str) -> str:
    """Return a URL fit for messages: a password is shown as ***."""
    return _SECRET.sub(r"\1***@", url)


async def open_backend(url: str, *, namespace: str) -> Backend:
    """Return the open backend that a URL names.

    `sqlite:///state.db` (relative), `sqlite:////var/state.db` (absolute), a bare path for the same, `memory:`,
    `memory:name` (shared within the process). Option: `?durability=relaxed` for sqlite.
    Raises InvalidKey for a URL or namespace that is not allowed, Unsupported for a backend that is not there, and what
    the backend raises.
    """
    if not isinstance(url, str) or not url.strip():
        raise InvalidKey(f"a store is named by a URL such as sqlite:///state.db, not {url!r}")
    check_id(namespace, "namespace")
    scheme, separator, rest = url.partition(":")
    if not separator or scheme in (".", "") or "/" in scheme or not scheme.isalnum():
        return await _sqlite(url, {}, namespace)
    if scheme == "memory":
        from quire.storage.memory import open_memory

        return await open_memory(rest.strip("/"), namespace=namespace)
    if scheme == "sqlite":
        parts = urlsplit(url)
        if parts.netloc or not rest.startswith("///"):
            raise InvalidKey(
                f"{redacted(url)}: write sqlite:///state.db for a file here, sqlite:////var/state.db for an absolute path"
            )
        return await _sqlite(unquote(parts.path[1:]), dict(parse_qsl(parts.query, keep_blank_values=True)), namespace)
    if scheme in _PLANNED:
        raise Unsupported(
            f"{redacted(url)}: this release has no {scheme} backend; use sqlite:///PATH or memory:",
            capability=f"backend:{scheme}",
        )
    near = difflib.get_close_matches(scheme, (*_HERE, *_PLANNED), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InvalidKey(f"{redacted(url)}: unknown scheme {scheme!r}{hint} Known are {', '.join(_HERE)} and a bare path")


async def _sqlite(path: str, options: dict[str, str], namespace: str) -> Backend:
    from quire.storage.sqlite import open_sqlite

    durability = options.pop("durability", "full")
    if options:
        raise InvalidKey(f"sqlite: unknown option {next(iter(options))!r}; known is durability=full|relaxed")
    if durability not in ("full", "relaxed"):
        raise InvalidKey(f"sqlite: durability={durability!r}; it is full (default) or relaxed")
    if not path or "\0" in path:
        raise InvalidKey("sqlite: the path of the file is missing; write sqlite:///state.db")
    if Path(path).is_dir():
        raise InvalidKey(f"{path} is a folder; name a file in it, such as {Path(path) / 'state.db'}")
    return await open_sqlite(path, namespace=namespace, durability=durability)
