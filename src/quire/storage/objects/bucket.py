"""Objects in a bucket of S3, of what is compatible with it, of GCS or Azure: by obstore.

Its calls are made in threads: what it offers for event loops (0.12) aborts the process when the interpreter ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import obstore
from obstore import exceptions as said
from obstore.store import MemoryStore, from_url

from quire.errors import Denied, InvalidKey, NotFound, QuireError, StorageUnavailable
from quire.storage.objects.names import checked, oversized, shown
from quire.threads import apart

T = TypeVar("T")

OPTIONS = ("endpoint", "region", "allow_http", "virtual_hosted_style")
"""Of the URL of a bucket; see the pages of S3, GCS or Azure for what they mean."""
_TIMEOUT_S = 30
"""Of one request."""
_RETRIES = 4
_PLACE = re.compile(r"//[A-Za-z0-9][A-Za-z0-9._-]+(/[A-Za-z0-9/._-]*)?")
_memories: dict[str, MemoryStore] = {}
"""`memory:name` is shared within the process, as for stores."""


class Bucket:
    """A bucket, or a prefix in it."""

    def __init__(self, store: Any, url: str) -> None:
        self._store = store
        self.url = url

    async def put(self, name: str, data: bytes) -> bool:
        """Keep bytes. A service that knows no creating without replacing replaces them by the same."""
        try:
            await self._do(obstore.put, self._store, checked(name), data, mode="create", use_multipart=False)
        except said.AlreadyExistsError:
            return False
        except said.NotSupportedError:
            await self._do(obstore.put, self._store, name, data, use_multipart=False)
        return True

    async def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The bytes, or None."""

        def read() -> bytes:
            found = obstore.get(self._store, name)
            size = found.meta["size"]
            if size > max_bytes:
                raise oversized(name, self.url, size, max_bytes)
            return bytes(found.bytes())

        checked(name)
        try:
            return await self._do(read)
        except FileNotFoundError:
            return None

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a prefix, sorted."""

        def listed() -> list[str]:
            return sorted(meta["path"] for page in obstore.list(self._store, prefix=prefix or None) for meta in page)

        try:
            return await self._do(listed)
        except FileNotFoundError as cause:
            raise NotFound(f"{self.url}: there is no such bucket; make it, or correct the URL") from cause

    async def delete(self, name: str) -> None:
        """Remove it."""
        with suppress(FileNotFoundError):
            await self._do(obstore.delete, self._store, checked(name))

    async def _do(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        try:
            return await apart(partial(work, *args, **named))
        except (QuireError, said.AlreadyExistsError, said.NotSupportedError):
            raise
        except FileNotFoundError as cause:
            if "NoSuchBucket" in str(cause):
                raise NotFound(f"{self.url}: there is no such bucket; make it, or correct the URL") from cause
            raise
        except (said.PermissionDeniedError, said.UnauthenticatedError) as cause:
            raise Denied(
                f"{self.url}: the service refuses: {_short(cause)}; check the credentials and rights"
            ) from cause
        except (said.BaseError, OSError) as cause:
            raise StorageUnavailable(
                f"{self.url}: the service does not answer as it should: {_short(cause)}"
            ) from cause


def open_bucket(scheme: str, place: str, options: dict[str, str], url: str) -> Bucket:
    """Return the bucket of a URL, or one in memory. Nothing is asked of the service yet. Raises InvalidKey."""
    if "@" in place or "#" in place:
        raise InvalidKey(f"{shown(url)}: credentials do not belong into the URL of a bucket; set them as variables")
    if scheme == "memory":
        name = place.strip("/")
        return Bucket(_memories.setdefault(name, MemoryStore()) if name else MemoryStore(), url)
    if not _PLACE.fullmatch(place) or ".." in place:
        raise InvalidKey(f"{shown(url)}: write {scheme}://bucket/prefix")
    config: Any = dict(options)
    client: Any = {"timeout": f"{_TIMEOUT_S}s", "allow_http": config.pop("allow_http", "false").lower() == "true"}
    retry: Any = {"max_retries": _RETRIES}
    try:
        return Bucket(from_url(f"{scheme}:{place}", config=config, client_options=client, retry_config=retry), url)
    except Exception as cause:  # what it does not take in a URL or in variables, by whatever exception
        raise InvalidKey(f"{shown(url)}: {_short(cause)}") from cause


def _short(cause: BaseException) -> str:
    """Return the first line of what obstore says, which goes on with its innards."""
    return str(cause).strip().partition("\n")[0][:300]
