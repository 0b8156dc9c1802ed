"""States under keys: save, load, delete, list, exists; each key is a workflow, each save a version.

`StorageBackend` works on any store. `FileStorageBackend`, `RedisStorageBackend` and `DatabaseStorageBackend` take the
arguments that a document of another system names, and open the matching store. What they cannot do as asked, they
refuse. `quire.sync` has the same without `await`.
"""

from quire.backends.documents import DatabaseStorageBackend, FileStorageBackend, RedisStorageBackend
from quire.backends.keyed import StorageBackend

__all__ = ["DatabaseStorageBackend", "FileStorageBackend", "RedisStorageBackend", "StorageBackend"]
