"""States under keys: what a generic store of sessions and checkpoints asks for, on any Quire store.

1. A key is a workflow's id, a save is a version: durable before it is answered, with author, message and time.
2. Nothing is kept here: the log has all of it, and `workflow(key)` shows it.
3. What cannot be read raises; None means that there is nothing under the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, cast

from quire.api import writes
from quire.api.face import AsyncFace
from quire.api.store import Store
from quire.api.workflow import Workflow
from quire.backends.expiry import Expiry
from quire.backends.places import Place, seconds
from quire.core.diff import diff
from quire.core.guards import reliant
from quire.core.names import check_id
from quire.core.values import clean
from quire.engine.committer import CellMoved
from quire.engine.write import Write
from quire.errors import HeadMoved, Invalid, InvalidState, StorageTimeout, WorkflowNotFound
from quire.model import WORKFLOWS, Change, Version
from quire.storage.base import CellWrite

ENDED = ("completed", "cancelled", "ended")
"""What `status` says of an entry that is over. One that failed or crashed is kept: it may be resumed."""
_ATTEMPTS = 100
"""How often a save that has to know its version is tried while others write first."""


class StorageBackend(AsyncFace):
    """JSON objects under keys, on a store: `save`, `load`, `load_and_version`, `delete`, `list_keys`, `exists`.

    storage: an open Store, or the URL of one, opened by `async with` or `start`.  expire_time: seconds, by the
    backend's clock, after which an entry is removed that was saved with `status` completed, cancelled or ended, and not
    since; None for never. What has not ended never expires.
    A key is a workflow's id: letters, digits and `.`, `_`, `-`. Raises InvalidKey, Closed, StorageError.

    >>> async with StorageBackend("sqlite:///state.db") as storage:              # doctest: +SKIP
    ...     await storage.save("session_1", {"status": "running"})
    """

    def __init__(self, storage: Store | str, *, namespace: str = "default", expire_time: float | None = None) -> None:
        super().__init__(storage, namespace)
        self._expire_s = seconds(expire_time)
        self._readable = False
        self._expiry: Expiry | None = None

    @classmethod
    def placed(cls, storage: Store | str, namespace: str, place: Place) -> StorageBackend:
        """Return one on a store, with what was asked of its place."""
        made = StorageBackend(storage, namespace=namespace, expire_time=place.expire_s)
        made._readable = place.readable
        return made

    async def _begin(self, store: Store) -> None:
        if self._readable and "compressed" in store.capabilities.note:
            raise Invalid(
                f"namespace {self._namespace} was begun compressed, so its files are not readable JSON; say "
                "use_json=False, or choose another base_path"
            )
        self._expiry = None if self._expire_s is None else Expiry(store.engine, self._expire_s)

    def workflow(self, key: str) -> Workflow:
        """Return the workflow under a key: history, blame, diff, checkpoints, restore. No I/O. Raises InvalidKey."""
        return self.store.workflow(check_id(key, "key"))

    async def save(
        self,
        key: str,
        data: Mapping[str, Any],
        *,
        base: int | None = None,
        author: str = "system",
        message: str = "saved",
    ) -> Version:
        """Put a JSON object under a key, whatever was there; return the version. Only the difference is stored.

        base: the version that it was made from, as `load_and_version` gives it, instead of whatever was there: what others
        saved since stays, and where both changed one place nothing is written and MergeConflict is raised. 0 is that there
        was nothing; where there is something by now AlreadyExists is raised.
        Raises InvalidState naming the path of what is not JSON, LimitExceeded; with a base WorkflowNotFound for what was
        deleted since, VersionNotFound. Cost: a comparison with what is there.
        """
        stream = WORKFLOWS + check_id(key, "key")
        if not isinstance(data, Mapping):
            raise InvalidState(f"{key}: an object is stored under a key, not {type(data).__name__}")
        whole = cast("dict[str, Any]", clean(dict(data), **writes.limits_of_wholes(self.store.engine.settings)))
        how: dict[str, Any] = {"author": author, "message": message, "allow_empty": True}
        if not base:
            if base is not None:
                await self._over(key)  # what is over is nothing
            write, _ = writes.write(stream, partial(_diff, whole), how, exists=None if base is None else False)
        else:
            made_from = await self.workflow(key).snapshot(base)
            how["on_conflict"] = self.store.engine.policy
            write, _ = writes.write(stream, reliant(_diff(whole, made_from.state)), how, base=made_from)
        ended = whole.get("status") in ENDED
        made = await self._timed(key, write, self._expiry, ended=ended)
        assert made is not None
        return made

    async def load(self, key: str) -> dict[str, Any] | None:
        """Return what is under a key, the caller's own; None where there is nothing. Raises CorruptRecord."""
        return (await self.load_and_version(key))[0]

    async def load_and_version(self, key: str) -> tuple[dict[str, Any] | None, int]:
        """Return what `load` does and the number of its version, the base of a later `save`; None and 0 for nothing."""
        workflow = self.workflow(key)
        if await self._over(key):
            return None, 0
        try:
            return await workflow.state_and_version()
        except WorkflowNotFound:
            return None, 0

    async def delete(self, key: str, *, author: str = "system", message: str = "deleted") -> None:
        """End what is under a key; nothing there is fine. Its history stays, and its numbers are never used again."""
        write = writes.ending(WORKFLOWS + check_id(key, "key"), author, message)
        with suppress(WorkflowNotFound):
            await self._timed(key, write, self._expiry, ended=False)

    async def exists(self, key: str) -> bool:
        """Tell whether there is something under a key."""
        workflow = self.workflow(key)
        return not await self._over(key) and await workflow.exists()

    async def list_keys(self, prefix: str = "") -> list[str]:
        """Return the keys that begin with `prefix`, sorted. Cost: reads no states."""
        await self.sweep(prefix)
        return await self.store.workflows(prefix)

    async def sweep(self, prefix: str = "") -> int:
        """Remove entries whose time is over, of keys that begin with `prefix`; return how many.

        Whatever asks for an entry does so too, of that entry.
        """
        return 0 if self._expiry is None else await self._expiry.sweep(prefix)

    async def _over(self, key: str) -> bool:
        return self._expiry is not None and await self._expiry.over(key)

    async def _timed(self, key: str, write: Write, expiry: Expiry | None, *, ended: bool) -> Version | None:
        """Write, and begin or end the time of the entry in the same commit."""
        engine = self.store.engine
        if expiry is None:
            return await engine.write(write)
        for _ in range(_ATTEMPTS):
            cells: list[CellWrite]
            if ended:  # the time is that of a version: it has to be known before
                write.if_version = (await engine.current(write.stream)).head.version
                cells = await expiry.armed(key, write.if_version + 1)
            else:
                cells = await expiry.disarmed(key)
            try:
                return await engine.write(write, cells)
            except (CellMoved, HeadMoved):
                await asyncio.sleep(0)  # somebody else saved it meanwhile: onto that
        raise StorageTimeout(f"{key}: others saved it first {_ATTEMPTS} times; nothing was written, try again")


def _diff(whole: dict[str, Any], state: dict[str, Any]) -> list[Change]:
    return diff(state, whole)
