"""A central store: one map of keys to values that many agents read and write, with its whole history.

It is a workflow and nothing else, so that history, blame, watch, checkpoints and forks work on it.
`CentralizedStateStore` is for threads, `AsyncCentralizedStateStore` for the event loop.
"""

from __future__ import annotations

from quire.central.store import AsyncCentralizedStateStore
from quire.central.sync import CentralizedStateStore

__all__ = ["AsyncCentralizedStateStore", "CentralizedStateStore"]
