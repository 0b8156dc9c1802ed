"""The cells of a folder store: a file of lines, each of which sets or removes one; the last word counts.

They are few and small, so a handle keeps them in memory and reads on in the file when somebody wrote. A file with
more old lines than cells is written anew.
"""

from __future__ import annotations

import threading
from base64 import b64decode, b64encode

import msgspec

from quire.errors import CorruptRecord
from quire.model import Cell
from quire.storage._files_journal import State
from quire.storage._files_lines import LineFile, owner, seal
from quire.storage.base import CellWrite

CELLS = "cells.log"
_SPARE = 1000
"""Lines that a file may have beyond twice its cells before it is written anew."""


class _Line(msgspec.Struct, gc=False, omit_defaults=True):
    """seq: the commit it came with, 0 in a file written anew. A value that is text stands there as such, any other in base64; None removes."""

    cell: str = ""
    seq: int = 0
    value: str | None = None
    base64: str | None = None
    expires: int | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def whose_cells(namespace: str) -> bytes:
    """Return the owner of the cells of a namespace."""
    return owner(namespace, "\0cells")


def cell_line(whose: bytes, name: str, seq: int, value: bytes | None, expires: int | None) -> bytes:
    """Return the line that sets a cell, or removes it."""
    line = _Line(name, seq, expires=expires)
    if value is not None:
        try:
            line.value = value.decode()
        except UnicodeDecodeError:
            line.base64 = b64encode(value).decode()
    return seal(whose, _encode(line))


def _value(line: _Line) -> bytes | None:
    if line.base64 is not None:
        return b64decode(line.base64, validate=True)
    return None if line.value is None else line.value.encode()


class Cells:
    """The cells of a namespace as of a state of the store. Used by several threads."""

    def __init__(self, path: str, namespace: str) -> None:
        self.namespace = namespace
        self._path = path
        self._whose = whose_cells(namespace)
        self._lock = threading.Lock()
        self._least = (0, 0)
        """A generation, and so many bytes the file has had in it."""
        self._forget()

    def _forget(self) -> None:
        self._cells: dict[str, Cell] = {}
        self._offset = 0
        self._lines = 0
        self._seen: tuple[int, int] | None = None
        """Commit and generation that this is of."""

    def at(self, state: State) -> dict[str, Cell]:
        """Return the cells as of a state, expired ones too; not to be altered. Raises CorruptRecord."""
        with self._lock:
            seen = (state.seq, state.generation)
            if self._seen != seen:
                if self._seen is not None and self._seen[1] != state.generation:
                    self._forget()  # the file may be another
                try:
                    cells = self._read_on(state)
                except BaseException:
                    self._forget()
                    raise
                self._seen = seen
                self._cells = cells
            return self._cells

    def _read_on(self, state: State) -> dict[str, Cell]:
        cells = dict(self._cells)  # who reads the old ones goes on undisturbed
        with self.open(state) as file:
            for start, line in file.forward(self._offset):
                found = _decode(line)
                if found.seq > state.seq:
                    break
                self._offset = start + len(line) + 1
                if start:  # not the first line of the file
                    self._lines += 1
                    value = _value(found)
                    if value is None:
                        cells.pop(found.cell, None)
                    else:
                        cells[found.cell] = Cell(found.cell, value, found.expires)
        self.reached(state, self._offset)
        return cells

    def open(self, state: State) -> LineFile:
        """Return the file. Raises CorruptRecord where it is gone, or shorter than it was in this generation."""
        file = LineFile.open(self._path, self._whose)
        generation, least = self._least
        if file is not None and (generation != state.generation or file.size >= least):
            return file
        what = "is gone" if file is None else f"ends at byte {file.size}, but was written up to {least}"
        if file is not None:
            file.close()
        raise CorruptRecord(
            f"{self._path} {what}, which holds leases, keys and counters: put back the file that was there, or restore a "
            "backup",
            at=self._path,
        )

    def reached(self, state: State, size: int) -> None:
        """Remember how long the file is as of a state."""
        generation, least = self._least
        self._least = state.generation, max(size, least if generation == state.generation else 0)

    def crowded(self, now_ms: int) -> bool:
        """Whether the file holds much more than it need."""
        with self._lock:
            if self._lines <= _SPARE:
                return False
            return self._lines > 2 * sum(not expired(c, now_ms) for c in self._cells.values()) + _SPARE


def expired(cell: Cell, now_ms: int) -> bool:
    """Whether a cell's time is over."""
    return cell.expires is not None and cell.expires <= now_ms


def value_of(cells: dict[str, Cell], name: str, now_ms: int) -> bytes | None:
    """Return what a cell holds now."""
    cell = cells.get(name)
    return None if cell is None or expired(cell, now_ms) else cell.value


def after_write(write: CellWrite, now_ms: int) -> Cell | None:
    """Return the cell that a write makes."""
    if write.value is None:
        return None
    return Cell(write.name, write.value, None if write.ttl_ms is None else now_ms + write.ttl_ms)
