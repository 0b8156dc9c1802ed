"""Backups by themselves: while a store is open, one is taken now and then.

1. Writers never wait for it, and never fail because of it. One that fails is logged, counted, and tried again after a
   growing pause; what it had put is used by the next.
2. When the next is due is said by the place, not by this process: whoever opens a store every hour does not begin anew
   each time, and of several processes that have it open each finds what the others took.
3. Old ones are removed after one was taken, never before.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime

from quire.api import backups
from quire.api.backups import Backup
from quire.config import Backups
from quire.engine.backing import pruning
from quire.engine.backing.shelf import Shelf
from quire.engine.backing.taking import identity
from quire.engine.engine import Engine
from quire.errors import QuireError
from quire.storage.objects import open_objects

log = logging.getLogger("quire.backups")

_PAUSE_S = 5.0
"""Before a failed one is tried again; doubled each time, up to `every_s`."""


class Keeper:
    """Takes the backups of one open store. taken, failures: so many by this process.  last: the newest it took.

    newest: when the newest was taken that the place has.  last_error: why the last attempt failed, "" if it did not.
    """

    def __init__(self, engine: Engine, namespace: str, said: Backups) -> None:
        self.taken = 0
        self.failures = 0
        self.last: Backup | None = None
        self.newest: datetime | None = None
        self.last_error = ""
        self._engine = engine
        self._namespace = namespace
        self._said = said
        self._shelf: Shelf | None = None
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; what is being taken is given up, and no backup."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = min(_PAUSE_S, self._said.every_s)
        while True:
            try:
                wait = await self._turn()
                self.last_error = ""
                pause = min(_PAUSE_S, self._said.every_s)
            except QuireError as error:
                self.failures += 1
                self.last_error = str(error)
                log.warning("no backup could be taken to %s, trying again in %.0f s: %s", self._url, pause, error)
                wait = pause
                pause = min(pause * 2, self._said.every_s)
            await self._engine.clock.sleep(wait)

    @property
    def _url(self) -> str:
        return "its place" if self._shelf is None else self._shelf.place.url

    async def _turn(self) -> float:
        """Take one if it is due; return how many seconds there are to the next."""
        said, engine = self._said, self._engine
        if self._shelf is None:
            self._shelf = Shelf(await open_objects(said.place))
        source = await backups.source_of(engine.backend, self._namespace, engine.committer.turn)
        of = await identity(source, engine.ids)
        kept, _ = await self._shelf.all(of)
        now_s = engine.clock.now_ms() / 1000
        newest = max((k.manifest.taken_at / 1000 for k in kept), default=None)
        self.newest = None if newest is None else datetime.fromtimestamp(newest, UTC)
        if newest is not None and 0 <= now_s - newest < said.every_s:
            return newest + said.every_s - now_s
        since_full = next((n for n, k in enumerate(reversed(kept)) if k.manifest.kind == "full"), 0)
        before = {k.name for k in kept}
        self.last = await backups.take(
            engine,
            self._namespace,
            said.place,
            full=bool(kept) and since_full + 1 >= said.full_every,
            progress=None,
            shelf=self._shelf,
        )
        self.newest = datetime.fromtimestamp(now_s, UTC)
        if (await self._shelf.names(of)) != sorted((of, name) for name in before):
            self.taken += 1
        if said.keep is not None and said.days is not None:
            now_ms = engine.clock.now_ms()
            await pruning.prune(self._shelf, of=of, keep=said.keep, days=said.days, now_ms=now_ms, done=True)
        return said.every_s
