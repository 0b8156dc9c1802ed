"""Objects: named bytes that are written once, in a folder or in a bucket of S3, GCS or Azure. Archives and backups lie there.

1. Nothing is ever written over: a name has one content, most names are the digest of theirs, and putting the same again
   changes nothing. So two processes, or a call whose outcome is unknown, can do no harm.
2. `put` has returned when the bytes are durable: a folder is synced, a bucket has acknowledged.
3. What goes wrong is a `StorageError` that may be tried again, or says what to change; credentials never show. They are
   taken from where the tools of each service look for them (`AWS_ACCESS_KEY_ID`, ...), never from the URL.
"""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote

from quire.errors import InvalidKey, StorageUnavailable, Unsupported
from quire.storage.objects.names import shown

SCHEMES = ("file", "memory", "s3", "gs", "az")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)


class Objects(Protocol):
    """A place for objects. Names are of letters, digits, `.`, `_`, `-` and `/`; all methods may be called concurrently."""

    url: str
    """What it was opened with, fit to be shown and kept."""

    async def put(self, name: str, data: bytes) -> bool:
        """Keep bytes under a name, durably; False, and nothing is changed, if the name is taken."""
        ...

    async def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord for more than `max_bytes`, before it reads them."""
        ...

    async def names(self, prefix: str = "") -> list[str]:
        """Names in the folder `prefix`, which ends with a slash, and below, sorted."""
        ...

    async def delete(self, name: str) -> None:
        """Remove it; absent is fine."""
        ...


async def open_objects(url: str, *, tried: bool = True) -> Objects:
    """Return the place that a URL names, after finding out that it can be written, read, listed and removed from.

    A path or `file:///folder` (relative), `file:////var/folder` (absolute); `memory:name`, for tests; `s3://bucket/prefix`,
    `gs://bucket/prefix`, `az://container/prefix`, for a service that is compatible with S3 with
    `?endpoint=https://host&region=auto`, and `allow_http=true` for one without TLS.
    tried: False for whoever only reads, and may be allowed no more: nothing is asked of the place then.
    Raises InvalidKey for a URL that is not allowed, Unsupported where a driver is not installed, Denied, NotFound for a
    bucket that is not there, StorageUnavailable.
    Cost: six requests.
    """
    place = _opened(url)
    if tried:
        await probe(place)
    return place


async def probe(place: Objects) -> None:
    """Write, read, list and remove an object, and raise what fails: better now than when something is to be saved."""
    name = f"probe/{secrets.token_hex(16)}"
    data = name.encode()
    await place.put(name, data)
    try:
        await place.put(name, data)
        if await place.get(name, max_bytes=1000) != data or name not in await place.names("probe/"):
            raise StorageUnavailable(
                f"{place.url} does not give back what was just written to it: it cannot hold an archive or backups"
            )
    finally:
        await place.delete(name)


def _opened(url: str) -> Objects:
    if not isinstance(url, str) or not url.strip() or "\0" in url:
        raise InvalidKey(f"a place for objects is named by a path or a URL such as s3://bucket/prefix, not {url!r}")
    found = _SCHEME.fullmatch(url)
    scheme, rest = (found[1].lower(), found[2]) if found else ("file", f"///{url}")
    if scheme not in SCHEMES:
        raise InvalidKey(f"{shown(url)}: unknown scheme {scheme!r}; known are a path, {', '.join(SCHEMES)}")
    if scheme == "file":
        from quire.storage.objects.folder import Folder

        path = unquote(rest[3:]) if rest.startswith("///") else ""
        if not path.strip():
            raise InvalidKey(
                f"{shown(url)}: write file:///folder for one here, file:////var/folder for an absolute path"
            )
        return Folder(Path(path))
    try:
        from quire.storage.objects.bucket import OPTIONS, open_bucket
    except ModuleNotFoundError as cause:
        if cause.name != "obstore":
            raise
        raise Unsupported(
            f"{scheme}: needs a driver that is not installed (obstore): pip install 'quire[archive]'",
            capability=f"objects:{scheme}",
        ) from cause
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if scheme == "memory" or name not in OPTIONS:
            raise InvalidKey(f"{shown(url)}: unknown option {name!r}; for a bucket there are {', '.join(OPTIONS)}")
    return open_bucket(scheme, place, options, url)
