"""Entries that end by themselves: a while after they were saved as ended, by the clock of the backend.

1. Two cells stand beside an entry, written in its own commit: `expiry/due/ID` holds its version and stays;
   `expiry/timer/ID` the backend forgets when the time is over. Due and without a timer means: its time is over.
2. It is ended by a version like any other, only if it is still of the version that is due. So what was saved since, by
   whatever way, stays; the history stays in any case.
3. Nobody's own clock is asked: processes whose clocks differ agree.
"""

from __future__ import annotations

from contextlib import suppress

from quire.api import writes
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.errors import HeadMoved, WorkflowNotFound
from quire.model import WORKFLOWS, Cell
from quire.storage.base import CellWrite

_DUE, _TIMER = "expiry/due/", "expiry/timer/"
_PAGE = 1000


class Expiry:
    """The entries of one store that end by themselves. ttl_s: how long after they were saved as ended."""

    def __init__(self, engine: Engine, ttl_s: float) -> None:
        self._engine = engine
        self._ttl_ms = max(1, round(ttl_s * 1000))

    async def armed(self, workflow_id: str, version: int) -> list[CellWrite]:
        """Return the cells to commit with the version that ends an entry, so that its time begins."""
        due, timer = await self._cells(workflow_id)
        value = str(version).encode()
        return [
            CellWrite(_DUE + workflow_id, due and due.value, value),
            CellWrite(_TIMER + workflow_id, timer and timer.value, value, self._ttl_ms),
        ]

    async def disarmed(self, workflow_id: str) -> list[CellWrite]:
        """Return the cells to commit with a version after which an entry stays. None where it had no time."""
        return [CellWrite(cell.name, cell.value, None) for cell in await self._cells(workflow_id) if cell is not None]

    async def over(self, workflow_id: str) -> bool:
        """Tell whether the time of an entry is over; then it was ended. Cost: one read where it has no time."""
        while True:
            due = await self._engine.backend.cell(_DUE + workflow_id)
            if due is None or await self._engine.backend.cell(_TIMER + workflow_id) is not None:
                return False
            with suppress(CellMoved):  # saved or ended meanwhile: look again
                return await self._ended(workflow_id, due)

    async def sweep(self, prefix: str = "") -> int:
        """End every entry whose time is over; return how many. Cost: reads the cells of those that have one."""
        timers = {cell.name.removeprefix(_TIMER) for cell in await self._all(_TIMER + prefix)}
        due = [cell.name.removeprefix(_DUE) for cell in await self._all(_DUE + prefix)]
        return sum([await self.over(workflow_id) for workflow_id in due if workflow_id not in timers])

    async def _ended(self, workflow_id: str, due: Cell) -> bool:
        write = writes.ending(WORKFLOWS + workflow_id, "quire", "its time was over")
        write.if_version = int(due.value)
        forget = CellWrite(due.name, due.value, None)
        try:
            await self._engine.write(write, (forget,))
        except HeadMoved:  # written since, by somebody who knows nothing of times: it stays
            await self._engine.committer.submit((), (forget,))
            return False
        except WorkflowNotFound:  # ended by hand
            await self._engine.committer.submit((), (forget,))
        return True

    async def _cells(self, workflow_id: str) -> tuple[Cell | None, Cell | None]:
        backend = self._engine.backend
        return await backend.cell(_DUE + workflow_id), await backend.cell(_TIMER + workflow_id)

    async def _all(self, prefix: str) -> list[Cell]:
        found: list[Cell] = []
        while True:
            page = await self._engine.backend.cells(prefix, after=found[-1].name if found else "", limit=_PAGE)
            found += page
            if len(page) < _PAGE:
                return found
