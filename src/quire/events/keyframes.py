"""Keyframes of what events make, so that a fold need not begin at the first event.

1. They are derived: one that is missing, damaged or of another log is passed over for an older one, down to none.
2. They hang on a name given by the caller, which stands for the reducers. One name, one set of reducers: whoever changes
   a reducer changes the name, and what the old reducers made is not used.
3. Each is a blob; a cell lists those of one name. Old ones thin out geometrically, as those of the log do, so that any
   version is near one and their number stays small. (The log's own keyframes are states of its records' changes, which
   `verify` proves. What reducers make cannot be proved without them, so it lives apart.)
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from blake3 import blake3

from quire.api.writes import name as checked_name
from quire.core import keyframes
from quire.engine.committer import CellMoved
from quire.engine.engine import Engine
from quire.errors import CorruptRecord
from quire.model import Keyframe
from quire.storage.base import CellWrite
from quire.threads import aside

log = logging.getLogger("quire.events")

_Listed = list[tuple[int, str]]
"""Version and blob, ascending."""


class Keyframes:
    """The keyframes of one fold of one log. name: of the cell that lists them, and what each says it belongs to."""

    def __init__(self, engine: Engine, stream: str, name: str) -> None:
        self.name = f"keyframes/{stream}/{checked_name(name, 'name of keyframes')}"
        self._engine = engine
        self._stream = stream

    async def nearest(self, number: int) -> tuple[Keyframe, dict[str, Any]] | None:
        """Return the newest at or before a number of the log, with its state; None where there is none that is whole."""
        listed, _ = await self._listed()
        for version, blob in reversed(listed):
            if version > number:
                continue
            try:
                frame = await self._read(version, blob)
                return frame, await aside(keyframes.state_of, frame)
            except CorruptRecord as error:
                log.warning("passed over a keyframe: %s", error)
        return None

    async def keep(self, frame: Keyframe) -> bool:
        """Keep one and let old ones go. False when another process changed the list meanwhile: then it is not kept."""
        body = msgspec.msgpack.encode(frame)
        blob = blake3(body).hexdigest()
        listed, before = await self._listed()
        blobs = {**dict(listed), frame.version: blob}
        gone = set(keyframes.surplus(sorted(blobs)))
        after = msgspec.json.encode([(v, blobs[v]) for v in sorted(blobs) if v not in gone])
        await self._engine.backend.put_blob(blob, body)
        try:
            await self._engine.committer.submit((), (CellWrite(self.name, before, after),))
        except CellMoved:
            if blob not in dict((await self._listed())[0]).values():
                await self._engine.backend.drop_blob(blob)
            return False
        for version, old in listed:
            if version in gone or (version == frame.version and old != blob):
                await self._engine.backend.drop_blob(old)
        return True

    async def drop(self) -> None:
        """Forget them all."""
        listed, before = await self._listed()
        if before is not None:
            await self._engine.committer.submit((), (CellWrite(self.name, before, None),))
        for _, blob in listed:
            await self._engine.backend.drop_blob(blob)

    async def _listed(self) -> tuple[_Listed, bytes | None]:
        cell = await self._engine.backend.cell(self.name)
        if cell is None:
            return [], None
        try:
            return msgspec.json.decode(cell.value, type=_Listed), cell.value
        except msgspec.MsgspecError as error:
            log.warning("%s: the list of keyframes is damaged, starting anew: %s", self.name, error)
            return [], cell.value

    async def _read(self, version: int, blob: str) -> Keyframe:
        """Return one that is whole and belongs to this log. Raises CorruptRecord."""
        at = f"{self.name}@{version}"
        body = await self._engine.backend.blob(blob)
        if body is None or blake3(body).hexdigest() != blob:
            raise CorruptRecord(f"{at}: its blob {'is gone' if body is None else 'is damaged'}", at=at)
        try:
            frame = msgspec.msgpack.decode(body, type=Keyframe)
        except msgspec.MsgspecError as cause:
            raise CorruptRecord(f"{at}: its blob is no keyframe ({cause})", at=at) from cause
        record = await self._engine.backend.read(self._stream, after=version - 1, upto=version)
        if (frame.stream, frame.version) != (self.name, version) or not record or record[0].chain != frame.chain:
            raise CorruptRecord(f"{at}: it belongs to another log", at=at)
        return frame
