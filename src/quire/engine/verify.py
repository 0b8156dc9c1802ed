"""Verify: prove that the log is whole, and that folding it gives what the keyframes say.

Reads everything once. Damage is reported, never raised: a report of ten problems is worth more than the first one.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from blake3 import blake3

from quire.core import keyframes, record
from quire.core.changes import Working
from quire.core.values import same
from quire.engine.moving.paging import Stride, names
from quire.engine.resident import Residents
from quire.errors import ChangeError, CorruptRecord, NotFound, StorageError
from quire.model import GENESIS, REDACTED, REDACTIONS, WORKFLOWS, Fork, Keyframe, Record
from quire.storage.base import Backend
from quire.threads import beside

_PAGE = 1000
_LARGE_BYTES = 128 * 1024
"""JSON of a state whose values take more than a few milliseconds to compare: that is done in a thread."""
_SILENT_MAX = 3
"""Streams in a row that cannot be read because nobody answers; then nothing more is asked."""


class Report(msgspec.Struct, frozen=True):
    """What `verify` found. problems: sentences, each naming the place; empty when all is sound."""

    streams: int
    versions: int
    keyframes: int
    blobs: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


async def verify(backend: Backend, residents: Residents, *, prefix: str = "") -> Report:
    """Check the backend's structures, every chain, every fold, every keyframe and blob.

    prefix: only streams that start with it.  residents: read the states that forks start from.
    Cost: reads and folds the whole log once, one stream's state in memory at a time.
    """
    problems: list[str] = []
    redacted = Redactions()
    counts = {"streams": 0, "versions": 0, "keyframes": 0, "blobs": 0}
    silent = 0
    try:
        problems += await backend.check()
        await redacted.learn(backend, residents)
        async for page in names(backend, prefix):
            for name in page:
                counts["streams"] += 1
                seen = _Seen()
                try:
                    await _stream(backend, residents, name, problems, redacted, seen)
                    silent = 0
                except StorageError as error:
                    problems.append(f"{name}: reading stopped after version {seen.version}: {error}")
                    silent = silent + 1 if error.retryable else 0
                    if silent == _SILENT_MAX:
                        raise
                counts["versions"] += seen.versions
                counts["keyframes"] += seen.keyframes
        counts["blobs"] = await _blobs(backend, problems)
        cell = ""
        while found := await backend.cells(after=cell, limit=_PAGE):
            cell = found[-1].name
    except StorageError as error:
        problems.append(f"reading stopped: {error}")
    return Report(**counts, problems=problems)


class _Seen:
    """How far one stream was read. version: the newest that was proved."""

    def __init__(self) -> None:
        self.version = 0
        self.versions = 0
        self.keyframes = 0


class Redactions:
    """What was taken out of which record, as the streams of redactions say."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, int], list[str]] = {}

    async def learn(self, backend: Backend, residents: Residents) -> None:
        """Read what was written down."""
        for stream in await backend.streams(REDACTIONS):
            notes = (await residents.get(stream)).state.values()
            for name, versions in ((n, v) for note in notes for n, v in note["at"].items()):
                for version, digest in versions.items():
                    self._digests.setdefault((name, int(version)), []).append(digest)

    def problem(self, entry: Record) -> str | None:
        """Return what is wrong with a record's body."""
        known = self._digests.get((entry.stream, entry.version), ())
        at = f"{entry.stream} v{entry.version}"
        if not entry.body.startswith(REDACTED):
            return f"{at}: its redaction was interrupted; redact it again" if known else None
        if blake3(entry.body).hexdigest() in known:
            return None
        return f"{at}: something was taken out of it that no redaction tells of; restore a backup"


async def _stream(
    backend: Backend, residents: Residents, name: str, problems: list[str], redacted: Redactions, seen: _Seen
) -> None:
    """Replay one stream from its beginning, comparing with each keyframe on the way. Raises StorageError."""
    frames = await backend.keyframes(name)
    seen.keyframes = len(frames)
    chain, working, stride = GENESIS, Working.owning({}), Stride()
    while page := await backend.read(name, after=seen.version, limit=_PAGE):
        if seen.versions == 0 and page[0].version > 1:  # trimmed: the history begins at a keyframe
            try:
                base = await backend.keyframe(name, page[0].version)
                if base is None or (base.version, base.chain) != (page[0].version, page[0].chain):
                    raise CorruptRecord(f"{name}: begins at version {page[0].version} without a keyframe of it")
                seen.version, chain = base.version, base.chain
                working = Working.owning(keyframes.state_of(base))
                seen.versions, page = 1, page[1:]
            except CorruptRecord as error:
                problems.append(str(error))
                seen.versions = len(page)
                return
        for entry in page:
            await stride.past(entry)
            try:
                record.check(entry, seen.version + 1, chain)
                if (problem := redacted.problem(entry)) is not None:
                    problems.append(problem)
                working = await applied(entry, working, residents)
            except (CorruptRecord, ChangeError, NotFound) as error:
                problems.append(str(error))  # what follows hangs on this one: nothing more can be said of this stream
                return
            seen.versions, seen.version, chain = seen.versions + 1, entry.version, entry.chain
            if seen.version in frames:
                problems += await _frame(backend, name, seen.version, working)
        await asyncio.sleep(0)  # a store in memory answers without letting others go on


async def applied(entry: Record, working: Working, residents: Residents) -> Working:
    """Return what a record makes of a state."""
    for change in record.decode(entry):
        if isinstance(change, Fork):
            origin = WORKFLOWS + change.workflow_id
            working = Working.owning((await residents.materialise(origin, change.version))[0])
        else:
            working.apply(change)
    return working


async def _frame(backend: Backend, name: str, version: int, working: Working) -> list[str]:
    """Compare a keyframe with what the log gives."""
    try:
        frame = await backend.keyframe(name, version)
        if frame is None or frame.version != version:
            return []  # it was dropped since they were listed
        if not await beside(frame.size > _LARGE_BYTES, _is_of, frame, working.state):
            return [f"{name}@{version}: the keyframe differs from what the log gives"]
    except CorruptRecord as error:
        return [str(error)]
    return []


def _is_of(frame: Keyframe, state: dict[str, Any]) -> bool:
    return same(keyframes.state_of(frame), state)


async def _blobs(backend: Backend, problems: list[str]) -> int:
    count, after = 0, ""
    while names := await backend.blobs(after=after, limit=_PAGE):
        for name in names:
            count += 1
            try:
                data = await backend.blob(name)
            except CorruptRecord as error:
                problems.append(str(error))
                continue
            if data is None or blake3(data).hexdigest() != name:
                problems.append(f"blob {name[:12]}: its bytes do not match its name")
        after = names[-1]
    return count
