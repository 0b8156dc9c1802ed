"""Whether the files of an open store are still those that were opened: by path, device and inode.

A descriptor goes on working after its file was removed, moved or replaced, so a write to it succeeds and is lost. A store
compares before it writes, when nothing is begun yet, and once more before it acknowledges. Files stand for the folders they
are in: the inode of a folder may change by itself on overlay file systems, that of a file that is open does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from quire.errors import FilesChanged, StorageUnavailable

LOOK_S = 0.05
"""How long reads may go on in files that are gone: so often `look` looks."""

Inode = tuple[int, int]
"""Device and inode."""


def inode_of(found: os.stat_result) -> Inode:
    """Return what tells a file from any other that exists at the same time."""
    return found.st_dev, found.st_ino


class Inodes:
    """Files of one open store."""

    def __init__(self, place: str, paths: Iterable[str] = ()) -> None:
        """place: what the store is called.  paths: absolute, without symbolic links, and there."""
        self.place = place
        self.of: dict[str, Inode] = {path: inode_of(os.lstat(path)) for path in paths}
        self._looked = 0.0

    def trouble(self) -> str | None:
        """Say what is not as it was opened; None where all is. Cost: a look at each name, 1 to 2 microseconds."""
        for path, inode in self.of.items():
            try:
                found = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return f"{path} was removed or moved away while the store was open"
            except OSError as error:
                return f"{path} cannot be found any more ({error.strerror})"
            if (found.st_dev, found.st_ino) != inode:
                return f"{path} was replaced while the store was open"
        return None

    def check(self) -> None:
        """Raise FilesChanged unless all is in place: nothing was begun yet."""
        said = self.trouble()
        if said is not None:
            raise FilesChanged(
                f"{said}; nothing is read or written there: put back what was there, or close the store in all processes, "
                "then open what is to be used"
            )

    def confirm(self) -> None:
        """Raise StorageUnavailable unless what was just written is where others look."""
        said = self.trouble()
        if said is not None:
            raise StorageUnavailable(f"{said}; whether this write is stored has to be looked up")

    def look(self, every_s: float = LOOK_S) -> None:
        """Do what `check` does, unless that was done `every_s` ago: for reads."""
        now = time.monotonic()
        if now - self._looked >= every_s:
            self.check()
            self._looked = now
