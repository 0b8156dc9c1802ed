"""A disk whose power can be cut: an image with a file system of its own, whose kernel forgets what it had not written.

    with Disk() as disk:
        server.start()          # in a folder on disk.folder
        disk.cut()              # from here on nothing more is written, and what was not synced is gone
        server.kill()
        disk.again()            # the journal is replayed
        server.restart()

It needs root, ext4 and loop devices. It is the nearest to a pulled plug that software can do.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN: _IOR('X', 125, __u32) of linux/fs.h; ext4 and xfs know it."""
_WITHOUT_FLUSH = (2).to_bytes(4, sys.byteorder)
_BYTES = 256 << 20


class DiskMissing(Exception):
    """No such disk can be made here. The message says why."""


class Disk:
    """An ext4 image, mounted while it is entered."""

    def __init__(self) -> None:
        self._place = Path()
        self._mounted = False

    @property
    def folder(self) -> Path:
        """Where it is mounted."""
        return self._place / "disk"

    @property
    def _image(self) -> Path:
        return self._place / "disk.img"

    def cut(self) -> None:
        """Throw away what the file system has in memory only, and refuse all further writing."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, _WITHOUT_FLUSH)
        finally:
            os.close(handle)

    def again(self) -> None:
        """Mount what is left. Nobody may have a file on it open."""
        self._unmount()
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.folder)
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            _run("umount", self.folder)
            self._mounted = False

    def __enter__(self) -> Self:
        self._place = Path(tempfile.mkdtemp(prefix="quire-disk-"))
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(_BYTES)
        try:
            _run("mkfs.ext4", "-q", "-F", self._image)
            self._mount()
        except (OSError, subprocess.CalledProcessError) as cause:
            shutil.rmtree(self._place)
            raise DiskMissing(f"this needs root, mkfs.ext4 and loop devices: {cause}") from cause
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()
        shutil.rmtree(self._place)


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)  # noqa: S603 - our own command
