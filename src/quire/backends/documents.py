"""The three backends that a document of another system names, with its arguments. Each only says where the store is."""

from __future__ import annotations

import os
from functools import partial

from quire.backends import places
from quire.backends.keyed import StorageBackend
from quire.threads import apart


class FileStorageBackend(StorageBackend):
    """States under keys in a folder, one readable file for each: `workflows/KEY.state`.

    base_path: the folder.  use_json: plain lines of JSON that `less` and `jq` read; False compresses them.
    create_dirs: make the folder, and those around it, where it is missing; False raises NotFound then.
    file_extension: how those files end: a dot, then 1 to 16 letters and digits. A folder keeps the one it was made with.
    Raises InvalidKey, Invalid; Invalid at `start` for use_json on a folder that is compressed, and for another extension
    than the folder's.

    >>> async with FileStorageBackend("./state") as storage:                     # doctest: +SKIP
    ...     await storage.save("session_1", {"status": "running"})
    """

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
        super().__init__(place.url, namespace=namespace)
        self._readable = place.readable
        self._folder = base_path, create_dirs

    async def start(self) -> None:
        """Open the store. Idempotent."""
        path, create = self._folder
        await apart(partial(places.made, path, create_dirs=create))
        await super().start()


class RedisStorageBackend(StorageBackend):
    """States under keys in Redis, shared by many machines. It takes `pip install 'quire[redis]'`.

    host, port, db, password: of the server.  expire_time: seconds after which an entry that has ended is removed, see
    StorageBackend; None for never.  key_prefix: all keys in the database begin with it.
    The server's settings decide what it may lose: `store.capabilities.note` says.
    Raises InvalidKey, Invalid, Unsupported; at `start` StorageUnavailable, Denied.
    """

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
        super().__init__(place.url, namespace=namespace, expire_time=place.expire_s)


class DatabaseStorageBackend(StorageBackend):
    """States under keys in PostgreSQL, shared by many machines. It takes `pip install 'quire[postgres]'`.

    connection_string: as libpq takes it, postgresql://USER:PASSWORD@HOST/DB.  table_name: names the schema that the
    store's tables are in, beside others' in one database.  pool_size: connections it may have at most, 4 or more: one
    commits, one listens while somebody waits for news, one verifies or scrubs while that lasts, the others read (64 of
    them at most), begun as they are needed.
    Raises InvalidKey, Invalid, Unsupported; at `start` StorageUnavailable, Denied.
    """

    def __init__(
        self,
        connection_string: str,
        table_name: str = "marsys_state",
        pool_size: int = 10,
        *,
        namespace: str = "default",
    ) -> None:
        place = places.database(connection_string, table_name, pool_size)
        super().__init__(place.url, namespace=namespace)
