"""What is done to files: every write, sync and rename of a folder store goes through here.

1. Paths are relative to the store's folder and made by _files_names.py; nothing is followed out of it by a symbolic link.
2. A whole file is written to `temp/`, synced, and only then given its name.
3. Files are for their owner only: 0600, folders 0700.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quire.errors import StorageTimeout

TEMP = "temp"
LOCK_S = 30.0
"""How long a lock of another process is waited for."""
_HANDLES_MAX = 256
"""Files kept open for appending; the least recently used are closed."""
_SYNCS = 8
"""Files synced at once: the file system's journal takes them together."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


def pwrite(handle: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def sync(handle: int) -> None:
    """Make the content of a file durable, and its size."""
    os.fdatasync(handle)


def sync_folder(path: str) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_read(path: str) -> int | None:
    """Return a handle on a file, None where there is none."""
    try:
        return os.open(path, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None


def open_to_write(path: str) -> int:
    """Return a handle on a file, made if it is absent."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)


class Lock:
    """A file that one process holds, or several share. The kernel releases it when a process dies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle = open_to_write(path)
        self.held = False

    def take(self, *, within_s: float = LOCK_S) -> None:
        """Wait until it is ours. Raises StorageTimeout."""
        until = time.monotonic() + within_s
        pause = 0.00005
        while not self.take_now():
            if time.monotonic() > until:
                raise StorageTimeout(
                    f"{self._path}: another process held the lock for {within_s:g} s; try again, or find out who"
                )
            time.sleep(pause + secrets.randbelow(100) * 1e-6)  # jitter, so that nobody is always last
            pause = min(pause * 1.5, 0.002)

    def take_now(self) -> bool:
        """Take it if nobody has it."""
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.held = True
        return True

    def share(self) -> None:
        """Hold it with others."""
        fcntl.flock(self._handle, fcntl.LOCK_SH)

    def give(self) -> None:
        """Let go."""
        if self.held:
            self.held = False
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go for good."""
        os.close(self._handle)


class Disk:
    """The folder of a store."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._open: OrderedDict[str, int] = OrderedDict()
        self._temps = 0

    def at(self, path: str) -> str:
        """Return the absolute path of one in the store."""
        return f"{self.root}/{path}"

    def size(self, path: str) -> int:
        """Return the bytes of a file, 0 where there is none."""
        try:
            return os.lstat(self.at(path)).st_size
        except FileNotFoundError:
            return 0

    def write_at(self, path: str, offset: int, data: bytes) -> None:
        """Write into a file, made if it is absent."""
        pwrite(self._handle(path), data, offset)

    def expect(self, path: str, offset: int) -> None:
        """See that a file is there as it was left, up to `offset`. Raises FileNotFoundError; 0 may be a new file."""
        handle = self._open.get(path)
        if handle is None and offset == 0:
            return
        where = self.at(path)
        found = os.lstat(where)
        if handle is not None and not os.path.samestat(found, os.fstat(handle)):
            raise FileNotFoundError(errno.ENOENT, "the file was replaced while the store was open", where)
        if found.st_size < offset:
            raise FileNotFoundError(errno.ENOENT, f"the file ends before byte {offset}, where it ended", where)

    def cut(self, path: str, size: int) -> None:
        """End a file at `size`; at 0 it is as good as gone."""
        if self.size(path) > size:
            handle = self._handle(path)
            os.ftruncate(handle, size)
            sync(handle)

    def _handle(self, path: str) -> int:
        handle = self._open.get(path)
        if handle is not None:
            self._open.move_to_end(path)
            return handle
        handle = self._open[path] = open_to_write(self.at(path))
        if len(self._open) > _HANDLES_MAX:
            os.close(self._open.popitem(last=False)[1])
        return handle

    def sync(self, paths: Iterable[str]) -> None:
        """Make files durable, and that they are there."""
        wanted = sorted(set(paths))
        if len(wanted) > 1:
            with ThreadPoolExecutor(min(_SYNCS, len(wanted))) as pool:
                list(pool.map(self._sync, wanted))
        else:
            for path in wanted:
                self._sync(path)
        for folder in sorted({str(Path(self.at(path)).parent) for path in wanted}):
            sync_folder(folder)

    def _sync(self, path: str) -> None:
        handle = open_to_read(self.at(path))
        if handle is not None:
            try:
                sync(handle)
            finally:
                os.close(handle)

    def write_temp(self, parts: Sequence[bytes]) -> str:
        """Write a whole file under a name that nobody else has, durably; return that name."""
        self._temps += 1
        path = f"{TEMP}/{os.getpid()}-{self._temps}-{secrets.token_hex(8)}"
        handle = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            offset = 0
            for part in parts:
                pwrite(handle, part, offset)
                offset += len(part)
            sync(handle)
        except BaseException:
            self.remove(path)
            raise
        finally:
            os.close(handle)
        return path

    def publish(self, temp: str, path: str) -> None:
        """Give a whole file its name, durably, in place of what had it."""
        self.forget(path)
        Path(self.at(temp)).rename(self.at(path))
        sync_folder(str(Path(self.at(path)).parent))

    def make_folder(self, path: str) -> None:
        """Make a folder, durably, if it is absent. Raises NotADirectoryError where something else has the name."""
        folder = Path(self.at(path))
        try:
            folder.mkdir(0o700)
        except FileExistsError:
            if folder.is_symlink() or not folder.is_dir():
                raise NotADirectoryError(f"{folder} is not a folder") from None
            return
        sync_folder(str(folder.parent))

    def remove(self, path: str) -> None:
        """Remove a file, or a folder of files; absent is fine. Not durable before the folder around is synced."""
        self.forget(path)
        target = Path(self.at(path))
        try:
            if target.is_dir() and not target.is_symlink():
                for file in target.iterdir():
                    file.unlink(missing_ok=True)
                target.rmdir()
            else:
                target.unlink(missing_ok=True)
        except FileNotFoundError:
            return

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder durable."""
        sync_folder(self.at(path))

    def forget(self, path: str) -> None:
        """Close what is kept open of a file that is about to be another."""
        handle = self._open.pop(path, None)
        if handle is not None:
            os.close(handle)

    def forget_all(self) -> None:
        """Close all that is kept open."""
        while self._open:
            os.close(self._open.popitem()[1])
