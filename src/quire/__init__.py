"""Quire: durable, versioned, observable state for multi-agent workflows.

Everything public is here. Names load on first use, so that `import quire` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire import errors as errors
    from quire import sync as sync
    from quire.api.backups import Backup as Backup
    from quire.api.backups import Checked as Checked
    from quire.api.backups import backups as backups
    from quire.api.backups import check_backups as check_backups
    from quire.api.backups import prune_backups as prune_backups
    from quire.api.draft import DictDraft as DictDraft
    from quire.api.health import Health as Health
    from quire.api.health import HealthLimits as HealthLimits
    from quire.api.hooks import Hook as Hook
    from quire.api.hooks import Proposed as Proposed
    from quire.api.manager import StateManager as StateManager
    from quire.api.reactions import Changed as Changed
    from quire.api.recovery import Recovered as Recovered
    from quire.api.recovery import recover as recover
    from quire.api.store import Store as Store
    from quire.api.store import open as open  # noqa: A004
    from quire.api.trigger_desk import TriggerState as TriggerState
    from quire.api.triggers import Trigger as Trigger
    from quire.api.views import BlameLine as BlameLine
    from quire.api.views import Event as Event
    from quire.api.workflow import Workflow as Workflow
    from quire.backends import DatabaseStorageBackend as DatabaseStorageBackend
    from quire.backends import FileStorageBackend as FileStorageBackend
    from quire.backends import RedisStorageBackend as RedisStorageBackend
    from quire.backends import StorageBackend as StorageBackend
    from quire.central import AsyncCentralizedStateStore as AsyncCentralizedStateStore
    from quire.central import CentralizedStateStore as CentralizedStateStore
    from quire.config import Backups as Backups
    from quire.config import Compression as Compression
    from quire.config import Settings as Settings
    from quire.core.schema import Schema as Schema
    from quire.engine.correlation import correlation as correlation
    from quire.engine.correlation import correlation_of as correlation_of
    from quire.errors import QuireError as QuireError
    from quire.events import AsyncEventStore as AsyncEventStore
    from quire.events import AsyncStateView as AsyncStateView
    from quire.events import EventSchema as EventSchema
    from quire.events import EventStore as EventStore
    from quire.events import StateView as StateView
    from quire.model import Append as Append
    from quire.model import Checkpoint as Checkpoint
    from quire.model import Conflict as Conflict
    from quire.model import Delete as Delete
    from quire.model import Ensure as Ensure
    from quire.model import Increment as Increment
    from quire.model import Insert as Insert
    from quire.model import Remove as Remove
    from quire.model import Set as Set
    from quire.model import Splice as Splice
    from quire.model import Version as Version
    from quire.scopes import Policy as Policy
    from quire.scopes import ScopeLimits as ScopeLimits
    from quire.scopes import State as State
    from quire.scopes import StateBuilder as StateBuilder
    from quire.scopes import StateScope as StateScope
    from quire.scopes import WorkflowStateManager as WorkflowStateManager

__version__ = "0.1.0"

_HOMES = {
    "quire.api.backups": ("Backup", "Checked", "backups", "check_backups", "prune_backups"),
    "quire.api.draft": ("DictDraft",),
    "quire.api.health": ("Health", "HealthLimits"),
    "quire.api.hooks": ("Hook", "Proposed"),
    "quire.api.manager": ("StateManager",),
    "quire.api.reactions": ("Changed",),
    "quire.api.recovery": ("Recovered", "recover"),
    "quire.api.store": ("Store", "open"),
    "quire.api.trigger_desk": ("TriggerState",),
    "quire.api.triggers": ("Trigger",),
    "quire.api.views": ("BlameLine", "Event"),
    "quire.api.workflow": ("Workflow",),
    "quire.backends": ("DatabaseStorageBackend", "FileStorageBackend", "RedisStorageBackend", "StorageBackend"),
    "quire.central": ("AsyncCentralizedStateStore", "CentralizedStateStore"),
    "quire.config": ("Backups", "Compression", "Settings"),
    "quire.core.schema": ("Schema",),
    "quire.engine.correlation": ("correlation", "correlation_of"),
    "quire.errors": ("QuireError",),
    "quire.events": ("AsyncEventStore", "AsyncStateView", "EventSchema", "EventStore", "StateView"),
    "quire.model": (
        "Append",
        "Checkpoint",
        "Conflict",
        "Delete",
        "Ensure",
        "Increment",
        "Insert",
        "Remove",
        "Set",
        "Splice",
        "Version",
    ),
    "quire.scopes": (
        "Policy",
        "ScopeLimits",
        "State",
        "StateBuilder",
        "StateScope",
        "WorkflowStateManager",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {"errors": "quire.errors", "sync": "quire.sync"}

__all__ = [
    "Append",
    "AsyncCentralizedStateStore",
    "AsyncEventStore",
    "AsyncStateView",
    "Backup",
    "Backups",
    "BlameLine",
    "CentralizedStateStore",
    "Changed",
    "Checked",
    "Checkpoint",
    "Compression",
    "Conflict",
    "DatabaseStorageBackend",
    "Delete",
    "DictDraft",
    "Ensure",
    "Event",
    "EventSchema",
    "EventStore",
    "FileStorageBackend",
    "Health",
    "HealthLimits",
    "Hook",
    "Increment",
    "Insert",
    "Policy",
    "Proposed",
    "QuireError",
    "Recovered",
    "RedisStorageBackend",
    "Remove",
    "Schema",
    "ScopeLimits",
    "Set",
    "Settings",
    "Splice",
    "State",
    "StateBuilder",
    "StateManager",
    "StateScope",
    "StateView",
    "StorageBackend",
    "Store",
    "Trigger",
    "TriggerState",
    "Version",
    "Workflow",
    "WorkflowStateManager",
    "backups",
    "check_backups",
    "correlation",
    "correlation_of",
    "errors",
    "open",
    "prune_backups",
    "recover",
    "sync",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
