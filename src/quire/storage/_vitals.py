"""What backends have in common in telling how they are: the disk that a store lies on, and a deadline.

Nothing here opens a file of a store: closing it again would drop SQLite's locks. What the system does not tell is left
out, never guessed.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from quire.errors import StorageTimeout

_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
_SHARED = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "fuse.ceph"),
        *("fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs", "lustre"),
        *("ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "smb2"),
        *("smb3", "smbfs", "vboxsf", "virtiofs"),
    }
)
"""Types of file systems that another machine may write to as well."""
_UNSHARED = _SHARED | {"drvfs", "fakeowner", "grpcfuse", "osxfs", "vmhgfs"}
"""Types whose files cannot be trusted as memory that processes share: another kernel has a cache of them too."""
_FUSE_LOCAL = frozenset({"fuse.fuse-overlayfs", "fuse.gocryptfs"})
"""Types of user-space file systems that only this kernel writes to, and that map files like a disk does."""
_VOLATILE = frozenset({"ramfs", "tmpfs"})


class Disk(NamedTuple):
    """What the system says of the disk under a path; None and "" where it does not."""

    free_bytes: int | None = None
    total_bytes: int | None = None
    read_only: bool | None = None
    file_system: str = ""

    def warnings(self, place: str) -> tuple[str, ...]:
        """Say what is wrong with keeping a store there."""
        if self.file_system in _SHARED:
            said = (
                "which machines share: locks and shared memory do not hold between them, and a store can be damaged; "
                "keep it on a local disk, or in PostgreSQL, Redis or NATS"
            )
        elif self.file_system in _VOLATILE:
            said = "in memory: all of it goes with the machine; keep it on a disk"
        else:
            return ()
        return (f"{place} lies on {self.file_system}, {said}",)


def disk_of(path: str) -> Disk:
    """Return what is known of the disk under a path, absolute, which need not exist: then of the folder above it.

    free_bytes: what we may still write, without what the system keeps for root. May block where a disk does not answer.
    """
    place = Path(path)
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        found = os.statvfs(place)
    except OSError:
        return Disk(file_system=file_system_of(str(place)))
    return Disk(
        free_bytes=found.f_bavail * found.f_frsize,
        total_bytes=found.f_blocks * found.f_frsize or None,
        read_only=bool(found.f_flag & os.ST_RDONLY),
        file_system=file_system_of(str(place)),
    )


def file_system_of(path: str, mounts: str | None = None) -> str:
    """Return the type of the file system that a path lies on, "" where the system does not tell.

    path: absolute.  mounts: lines as of /proc/self/mountinfo, by default those. Source: proc(5), mountinfo.

    >>> file_system_of("/srv/a b/s.db", r"1 0 0:1 / / rw - ext4 d rw" "\\n" r"2 1 0:2 / /srv/a\\040b rw - nfs4 h:/ rw")
    'nfs4'
    """
    if mounts is None:
        try:
            mounts = _MOUNTS.read_text()
        except OSError:  # not Linux, or hidden
            return ""
    real = os.path.realpath(path)
    best, found = "", ""
    for line in mounts.splitlines():
        about, _, kind = line.partition(" - ")
        fields = about.split(" ")
        if len(fields) < 5 or not kind:
            continue
        point = _ESCAPED.sub(lambda m: chr(int(m[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two at one place the later is on top
            best, found = point, kind.split(" ")[0]
    return found


def shares_memory(file_system: str) -> bool:
    """Return whether processes can share memory by mapping a file there. "", an unknown system, can.

    A FUSE type can only if it is known to be local: on Docker Desktop and its like it is another machine's folder.

    >>> shares_memory("ext4"), shares_memory("virtiofs"), shares_memory("fuse.sshfs"), shares_memory("fuseblk")
    (True, False, False, True)
    """
    if file_system == "fuse" or file_system.startswith("fuse."):
        return file_system in _FUSE_LOCAL
    return file_system not in _UNSHARED


def bytes_of(path: str) -> int | None:
    """Return the bytes of a file, None where there is none or it may not be looked at."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return None


@asynccontextmanager
async def within(timeout_s: float, place: object) -> AsyncGenerator[None]:
    """Give up what takes longer. Raises StorageTimeout."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except StorageTimeout:
        raise
    except TimeoutError as error:
        raise StorageTimeout(
            f"{place} did not say within {timeout_s:g} s how it is; see that disk or server is well, then try again"
        ) from error
