"""States under keys for code without an event loop: the same words, from any thread.

Each method runs its twin on the loop of a `quire.sync` store. Signatures and docstrings are held equal by
tests/test_parity.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from quire.api import sync
from quire.api.face import Face, twin_of
from quire.backends import keyed, places
from quire.model import Version


@twin_of(keyed.StorageBackend)
class StorageBackend(Face[keyed.StorageBackend]):
    """JSON objects under keys, on a store, safe from many threads: see `quire.StorageBackend`.

    >>> with StorageBackend("memory:") as storage:
    ...     storage.save("session_1", {"status": "running"}, author="ann").number
    ...     storage.load("session_1")
    1
    {'status': 'running'}
    """

    def __init__(
        self, storage: sync.Store | str, *, namespace: str = "default", expire_time: float | None = None
    ) -> None:
        self._open(storage, namespace, places.Place("", expire_time))

    def _open(self, storage: sync.Store | str, namespace: str, place: places.Place) -> None:
        super().__init__(storage, namespace, lambda store: keyed.StorageBackend.placed(store, namespace, place))

    def workflow(self, key: str) -> sync.Workflow:
        return self.store.workflow(self.twin.workflow(key).id)

    def save(
        self,
        key: str,
        data: Mapping[str, Any],
        *,
        base: int | None = None,
        author: str = "system",
        message: str = "saved",
    ) -> Version:
        return self.loop.run(self.twin.save(key, data, base=base, author=author, message=message))

    def load(self, key: str) -> dict[str, Any] | None:
        return self.loop.run(self.twin.load(key))

    def load_and_version(self, key: str) -> tuple[dict[str, Any] | None, int]:
        return self.loop.run(self.twin.load_and_version(key))

    def delete(self, key: str, *, author: str = "system", message: str = "deleted") -> None:
        return self.loop.run(self.twin.delete(key, author=author, message=message))

    def exists(self, key: str) -> bool:
        return self.loop.run(self.twin.exists(key))

    def list_keys(self, prefix: str = "") -> list[str]:
        return self.loop.run(self.twin.list_keys(prefix))

    def sweep(self, prefix: str = "") -> int:
        return self.loop.run(self.twin.sweep(prefix))


class FileStorageBackend(StorageBackend):
    """States under keys in a folder: see `quire.FileStorageBackend`."""

    def __init__(
        self,
        base_path: str | os.PathLike[str],
        use_json: bool = True,
        create_dirs: bool = True,
        file_extension: str = ".state",
        *,
        namespace: str = "default",
    ) -> None:
        place = places.folder(base_path, use_json=use_json, file_extension=file_extension)
        places.made(base_path, create_dirs=create_dirs)
        self._open(place.url, namespace, place)


class RedisStorageBackend(StorageBackend):
    """States under keys in Redis: see `quire.RedisStorageBackend`."""

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        db: int = 0,
        password: str | None = None,
        expire_time: float | None = 86400,
        key_prefix: str = "marsys:",
        *,
        namespace: str = "default",
    ) -> None:
        place = places.redis(host, port, db, password, expire_time, key_prefix)
        self._open(place.url, namespace, place)


class DatabaseStorageBackend(StorageBackend):
    """States under keys in PostgreSQL: see `quire.DatabaseStorageBackend`."""

    def __init__(
        self,
        connection_string: str,
        table_name: str = "marsys_state",
        pool_size: int = 10,
        *,
        namespace: str = "default",
    ) -> None:
        place = places.database(connection_string, table_name, pool_size)
        self._open(place.url, namespace, place)
