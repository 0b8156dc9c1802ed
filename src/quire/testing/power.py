"""Losing power, as a file system would: what was synced stays, what was not may be gone, out of order, or torn.

One run of a workload is recorded; from the record any number of crash images are built.

    trace = Trace()
    with recording_vfs(trace) as vfs:
        ...                      # write; after each acknowledgement: trace.ack(what)
    for image in images(trace, "tear", points=100, seed=1):
        ...                      # image.files: name -> bytes; image.acked: what had been acknowledged
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import apsw

Mode = Literal["drop", "reorder", "tear"]
_SECTOR = 512
_names = itertools.count(1)


class Trace:
    """What was done to files, in order, and what was acknowledged in between."""

    def __init__(self, *, lies: float = 0.0, seed: int = 0) -> None:
        """lies: share of the syncs that say they were done and were not: a control that must be caught."""
        self.events: list[tuple[Any, ...]] = []
        self._lies = lies
        self._chance = random.Random(seed)

    def ack(self, what: Any) -> None:
        """Note that the writer was told that `what` is stored."""
        self.events.append(("ack", what))

    def note(self, *event: Any) -> None:
        """Note an operation on a file."""
        if event[0] == "sync" and self._chance.random() < self._lies:
            return
        self.events.append(event)


class Image:
    """What a disk holds after power was lost. acked: what had been acknowledged by then."""

    def __init__(self, files: dict[str, bytes], acked: list[Any]) -> None:
        self.files = files
        self.acked = acked

    def write(self, folder: Path) -> None:
        """Put the files into a folder."""
        for name, data in self.files.items():
            (folder / name).write_bytes(data)


class _Disk:
    """Files as the platters have them, and the operations that are only in the cache."""

    def __init__(self) -> None:
        self.durable: dict[str, bytearray] = {}
        self.pending: dict[str, list[tuple[Any, ...]]] = {}

    def take(self, event: tuple[Any, ...]) -> None:
        kind, name = event[0], event[1]
        if kind == "sync":
            content = self.durable.setdefault(name, bytearray())
            for operation in self.pending.pop(name, []):
                _apply(content, operation)
        elif kind == "delete":  # the folder is synced by SQLite after deleting
            self.durable.pop(name, None)
            self.pending.pop(name, None)
        else:
            self.pending.setdefault(name, []).append(event)

    def image(self, mode: Mode, chance: random.Random) -> dict[str, bytes]:
        files = {name: bytearray(data) for name, data in self.durable.items()}
        for name, operations in self.pending.items():
            content = files.setdefault(name, bytearray())
            for operation in _survivors(operations, mode, chance):
                _apply(content, operation)
        return {name: bytes(data) for name, data in files.items()}


def _survivors(operations: list[tuple[Any, ...]], mode: Mode, chance: random.Random) -> list[tuple[Any, ...]]:
    if mode == "drop":
        return []
    if mode == "reorder":
        return [o for o in operations if chance.random() < 0.5]
    kept = operations[: chance.randrange(len(operations) + 1)]
    if kept and kept[-1][0] == "write":
        _, name, offset, data = kept[-1]
        sectors = range(0, len(data), _SECTOR)
        torn = [("write", name, offset + s, data[s : s + _SECTOR]) for s in sectors if chance.random() < 0.5]
        kept = [*kept[:-1], *torn]
    return kept


def _apply(content: bytearray, operation: tuple[Any, ...]) -> None:
    if operation[0] == "truncate":
        size = operation[2]
        del content[size:]
        content.extend(bytes(size - len(content)))
        return
    _, _, offset, data = operation
    if len(content) < offset + len(data):
        content.extend(bytes(offset + len(data) - len(content)))
    content[offset : offset + len(data)] = data


def images(trace: Trace, mode: Mode, *, points: int, seed: int) -> Iterator[Image]:
    """Yield `points` images of the moment after a random event, in order of time."""
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(trace.events)) for _ in range(points))
    disk, acked, done = _Disk(), [], 0
    for cut in cuts:
        for event in trace.events[done : cut + 1]:
            if event[0] == "ack":
                acked.append(event[1])
            else:
                disk.take(event)
        done = max(done, cut + 1)
        yield Image(disk.image(mode, chance), list(acked))


class _File(apsw.VFSFile):
    def __init__(self, trace: Trace, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        self._trace = trace
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._name = Path(path).name

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - the driver's name
        super().xWrite(data, offset)
        self._trace.note("write", self._name, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - the driver's name
        super().xTruncate(newsize)
        self._trace.note("truncate", self._name, newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802 - the driver's name
        super().xSync(flags)
        self._trace.note("sync", self._name)


class _Vfs(apsw.VFS):
    def __init__(self, name: str, trace: Trace) -> None:
        super().__init__(name, "")
        self._trace = trace

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802 - the driver's name
        return _File(self._trace, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - the driver's name
        super().xDelete(filename, syncdir)
        self._trace.note("delete", Path(filename).name)


@contextmanager
def recording_vfs(trace: Trace) -> Generator[str]:
    """Register a VFS that records into `trace`; yield its name."""
    name = f"quire-recording-{next(_names)}"
    vfs = _Vfs(name, trace)
    try:
        yield name
    finally:
        vfs.unregister()
