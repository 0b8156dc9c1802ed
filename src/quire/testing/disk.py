"""A disk of a test's own: its power can be cut, it can be full, it can be so slow that nothing ends.

    with Disk() as disk:
        server.start()          # in a folder on disk.folder
        disk.cut()              # from here on nothing more is written, and what was not synced is gone
        server.kill()
        disk.again()            # the journal is replayed
        server.restart()

It is an image with a file system, mounted while it is entered: the kernel itself refuses, forgets and waits. It needs
root, ext4 and loop devices. It is the nearest to a pulled plug that software can do.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

_SHUTDOWN = 0x8004587D
"""FS_IOC_SHUTDOWN: _IOR('X', 125, __u32) of linux/fs.h; ext4 and xfs know it."""
_WITHOUT_FLUSH = (2).to_bytes(4, sys.byteorder)
_FREEZE, _THAW = 0xC0045877, 0xC0045878
"""FIFREEZE and FITHAW: _IOWR('X', 119, int) and _IOWR('X', 120, int) of linux/fs.h."""
_NOTHING = bytes(4)
_GUARD = """
import fcntl, os, select, sys
folder, thaw, limit_s = sys.argv[1:]
if not select.select([sys.stdin], [], [], float(limit_s))[0]:
    handle = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(handle, int(thaw), bytes(4))
    sys.exit(1)
"""
"""Thaws a disk when nobody says in time that it is over."""
_BYTES = 256 << 20
_PIECE = 1 << 20
REQUIRE = "QUIRE_REQUIRE_DISKS"


class DiskMissing(Exception):
    """No such disk can be made here. The message says why."""


class DiskHeldUs(AssertionError):
    """Whoever froze a disk waited for it himself."""


class Disk:
    """An ext4 image, mounted while it is entered."""

    def __init__(self, size_bytes: int = _BYTES) -> None:
        """size_bytes: of the image; its file system takes some of it."""
        self._size_bytes = size_bytes
        self._place = Path()
        self._mounted = False

    @property
    def folder(self) -> Path:
        """Where it is mounted; anybody may make files there."""
        return self._place / "disk"

    @property
    def _image(self) -> Path:
        return self._place / "disk.img"

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def cut(self) -> None:
        """Throw away what the file system has in memory only, and refuse all further writing."""
        self._tell(_SHUTDOWN, _WITHOUT_FLUSH)

    def again(self) -> None:
        """Mount what is left. Nobody may have a file on it open."""
        self._unmount()
        self._mount()

    def fill(self) -> None:
        """Take all space that is free, to the last block."""
        with self._ballast.open("ab", buffering=0) as ballast:
            piece = _PIECE
            while piece:
                try:
                    ballast.write(bytes(piece))
                    os.fsync(ballast.fileno())
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    piece //= 2

    def free(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)

    @contextmanager
    def frozen(self, limit_s: float = 30.0) -> Generator[None]:
        """Let every write and sync wait, in the kernel, until this ends; reading goes on.

        limit_s: after so long it ends by itself, by another process, for whoever entered may be among those who wait.
        Raises DiskHeldUs then.
        """
        guard = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", _GUARD, str(self.folder), str(_THAW), str(limit_s)], stdin=subprocess.PIPE
        )
        assert guard.stdin is not None
        self._tell(_FREEZE, _NOTHING)
        try:
            yield
        finally:
            guard.stdin.close()
            if guard.wait() == 0:
                self._tell(_THAW, _NOTHING)
        if guard.returncode:
            raise DiskHeldUs(f"nothing ended within {limit_s:g} s, as if it were the event loop that wrote")

    def _tell(self, what: int, how: bytes) -> None:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, what, how)
        finally:
            os.close(handle)

    def _mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.folder)
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            _run("umount", self.folder)
            self._mounted = False

    def __enter__(self) -> Self:
        self._place = Path(tempfile.mkdtemp(prefix="quire-disk-"))
        self._place.chmod(0o755)  # a server that does not run as root has to come through
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(self._size_bytes)
        try:
            _run("mkfs.ext4", "-q", "-F", "-m", "0", self._image)
            self._mount()
        except (OSError, subprocess.CalledProcessError) as cause:
            shutil.rmtree(self._place)
            raise DiskMissing(f"this needs root, mkfs.ext4 and loop devices: {cause}") from cause
        self.folder.chmod(0o777)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # not frozen
            self._tell(_THAW, _NOTHING)
        self._unmount()
        shutil.rmtree(self._place)


@contextmanager
def disk_or_skip(size_bytes: int = _BYTES) -> Generator[Disk]:
    """Give a disk to a test. Where none can be made it is skipped with the reason, and fails with QUIRE_REQUIRE_DISKS=1."""
    disk = Disk(size_bytes)
    try:
        disk.__enter__()
    except DiskMissing as reason:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but {reason}", pytrace=False)
        pytest.skip(str(reason))
    try:
        yield disk
    finally:
        disk.__exit__()


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True)  # noqa: S603 - our own command
