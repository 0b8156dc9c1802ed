"""Everything public for code without an event loop: the same words without `await`.

What comes from a room above `api` loads on first use, as in `quire`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from quire.api.sync import Store, Workflow, open  # noqa: A004

if TYPE_CHECKING:
    from quire.backends.sync import (
        DatabaseStorageBackend,
        FileStorageBackend,
        RedisStorageBackend,
        StorageBackend,
    )
    from quire.central.sync import CentralizedStateStore
    from quire.events.sync import EventStore, StateView
    from quire.scopes.sync import State, WorkflowStateManager
    from quire.scripting.sync import run_script

_HOME = {
    "CentralizedStateStore": "quire.central.sync",
    "DatabaseStorageBackend": "quire.backends.sync",
    "EventStore": "quire.events.sync",
    "FileStorageBackend": "quire.backends.sync",
    "RedisStorageBackend": "quire.backends.sync",
    "State": "quire.scopes.sync",
    "StateView": "quire.events.sync",
    "StorageBackend": "quire.backends.sync",
    "WorkflowStateManager": "quire.scopes.sync",
    "run_script": "quire.scripting.sync",
}

__all__ = [
    "CentralizedStateStore",
    "DatabaseStorageBackend",
    "EventStore",
    "FileStorageBackend",
    "RedisStorageBackend",
    "State",
    "StateView",
    "StorageBackend",
    "Store",
    "Workflow",
    "WorkflowStateManager",
    "open",
    "run_script",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'quire.sync' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
