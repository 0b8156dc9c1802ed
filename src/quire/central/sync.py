"""The central store for code without an event loop: the same words, from any thread.

Each method runs its twin on the loop of a `quire.sync` store. Signatures and docstrings are held equal by
tests/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Unpack

from quire.api import sync
from quire.api.counting import Moment, WritingFromZero
from quire.api.face import Face, twin_of
from quire.central.store import AsyncCentralizedStateStore


@twin_of(AsyncCentralizedStateStore)
class CentralizedStateStore(Face[AsyncCentralizedStateStore]):
    """A map of keys to JSON values, versioned as a whole, safe from many threads and processes.

    storage: an open `quire.sync` store, or a URL; "memory:" forgets everything when it is closed.  workflow_id: the
    workflow that holds the map; it is made if absent.

    >>> with CentralizedStateStore() as store:
    ...     store.set("agent1.position", {"x": 10, "y": 20})
    ...     store.get("agent1.position")["x"]
    1
    10
    """

    def __init__(
        self, storage: sync.Store | str = "memory:", *, workflow_id: str = "central", namespace: str = "default"
    ) -> None:
        super().__init__(storage, namespace, lambda store: AsyncCentralizedStateStore(store, workflow_id=workflow_id))
        self.id = workflow_id

    @property
    def workflow(self) -> sync.Workflow:
        """The workflow underneath, for everything this face does not show: history, blame, watch, checkpoints."""
        return self.store.workflow(self.id)

    def get(self, key: str, default: Any = None) -> Any:
        return self.loop.run(self.twin.get(key, default))

    def get_all(self, version: Moment | None = None) -> dict[str, Any]:
        return self.loop.run(self.twin.get_all(version))

    def get_version(self) -> int:
        return self.loop.run(self.twin.get_version())

    def get_versioned(self, key: str, version: Moment, default: Any = None) -> Any:
        return self.loop.run(self.twin.get_versioned(key, version, default))

    def get_timestamp(self, key: str, version: Moment | None = None) -> datetime | None:
        return self.loop.run(self.twin.get_timestamp(key, version))

    def set(self, key: str, value: Any, **how: Unpack[WritingFromZero]) -> int:
        return self.loop.run(self.twin.set(key, value, **how))

    def update(self, updates: Mapping[str, Any], **how: Unpack[WritingFromZero]) -> int:
        return self.loop.run(self.twin.update(updates, **how))

    def delete(self, key: str, **how: Unpack[WritingFromZero]) -> int:
        return self.loop.run(self.twin.delete(key, **how))

    def snapshot(self, version: Moment | None = None) -> str:
        return self.loop.run(self.twin.snapshot(version))

    def restore(self, snapshot: str, **how: Unpack[WritingFromZero]) -> int:
        return self.loop.run(self.twin.restore(snapshot, **how))

    def rollback(self, version: Moment, **how: Unpack[WritingFromZero]) -> int:
        return self.loop.run(self.twin.rollback(version, **how))
