"""A file system that fails when told: for finding out what a store says, and keeps, when the disk does not obey.

plan = Plan("sync", at=3)
with failing_vfs(plan) as vfs:
    backend = await open_sqlite(path, namespace="default", vfs=vfs)
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Literal, cast

import apsw

from quire.api.store import Store
from quire.errors import OutcomeUnknown, StorageError, StorageFull

Kind = Literal["write", "sync", "full"]
_names = itertools.count(1)
_WRITES = 5


class Plan:
    """Which call fails. `armed` starts the count; `heal` ends the trouble.

    kind: "write" (EIO on a write), "sync" (EIO on fsync), "full" (ENOSPC on a write).  at: the n-th such call after
    arming.  lasting: every later one too, until healed.  through: the bytes reach the file although failure is
    reported, as an fsync that failed after the data was written.
    """

    def __init__(self, kind: Kind, at: int, *, lasting: bool = False, through: bool = False) -> None:
        self.kind = kind
        self.at = at
        self.lasting = lasting
        self.through = through
        self.armed = False
        self.fired = 0
        self._calls = 0

    def heal(self) -> None:
        """From now on everything works."""
        self.armed = False

    def due(self, kinds: tuple[Kind, ...]) -> bool:
        """Count a call; tell whether it fails."""
        if not self.armed or self.kind not in kinds:
            return False
        self._calls += 1
        fails = self._calls >= self.at if self.lasting else self._calls == self.at
        self.fired += fails
        return fails

    def error(self) -> apsw.Error:
        """Return what the driver is to see."""
        if self.kind == "full":
            return apsw.FullError("no space left (injected)")
        error: Any = apsw.IOError("input/output error (injected)")
        error.extendedresult = apsw.SQLITE_IOERR_FSYNC if self.kind == "sync" else apsw.SQLITE_IOERR_WRITE
        return cast("apsw.Error", error)


class _File(apsw.VFSFile):
    def __init__(self, plan: Plan, base: str, name: Any, flags: list[int]) -> None:
        super().__init__(base, name, flags)
        self._plan = plan

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - the driver's name
        fails = self._plan.due(("write", "full"))
        if not fails or self._plan.through:
            super().xWrite(data, offset)
        if fails:
            raise self._plan.error()

    def xSync(self, flags: int) -> None:  # noqa: N802 - the driver's name
        fails = self._plan.due(("sync",))
        if not fails or self._plan.through:
            super().xSync(flags)
        if fails:
            raise self._plan.error()


class _Vfs(apsw.VFS):
    def __init__(self, name: str, plan: Plan) -> None:
        super().__init__(name, "")
        self._plan = plan

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802 - the driver's name
        return _File(self._plan, "", name, flags)


@contextmanager
def failing_vfs(plan: Plan) -> Generator[str]:
    """Register a VFS that follows `plan`; yield its name."""
    name = f"quire-failing-{next(_names)}"
    vfs = _Vfs(name, plan)
    try:
        yield name
    finally:
        vfs.unregister()


async def trouble(
    first: AbstractAsyncContextManager[Store], again: AbstractAsyncContextManager[Store], plan: Plan
) -> tuple[list[str], list[str]]:
    """Write to a store that is opened by `first` with trouble on the way, go on, and see what `again` finds.

    Returns what failed with a known outcome, and with an unknown one. Raises AssertionError where what was acknowledged is
    lost, what failed is there, or the store did not come back by itself.
    """
    acked, failed, unknown = ["begin"], list[str](), list[str]()
    async with first as store:
        wf = await store.create("w", {"log": ["begin"]})
        plan.armed = True
        for i in range(_WRITES):
            try:
                await wf.append("/log", f"during-{i}")
                acked.append(f"during-{i}")
            except OutcomeUnknown:
                unknown.append(f"during-{i}")
            except StorageError as error:
                if plan.kind == "full" and not isinstance(error, StorageFull):
                    raise
                failed.append(f"during-{i}")
        plan.heal()
        for i in range(3):  # the same store object, no restart
            await wf.append("/log", f"after-{i}")
            acked.append(f"after-{i}")
        assert (await store.verify()).ok
        seen = await wf.get("/log")
    async with again as store:
        assert (await store.verify()).ok
        kept = await store.workflow("w").get("/log")
    assert kept == seen
    assert [e for e in kept if e not in unknown] == acked
    assert not set(failed) & set(kept)
    assert len(set(kept)) == len(kept)
    return failed, unknown
