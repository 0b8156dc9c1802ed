"""Objects as files of a folder, each synced before it has its name. Needs nothing that does not come with Python."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from quire.errors import Denied, InvalidKey, QuireError, StorageFull, StorageUnavailable
from quire.storage._inodes import Inode, inode_of
from quire.storage.objects.names import checked, oversized
from quire.threads import apart

T = TypeVar("T")

_TRIES = 100


class Folder:
    """A folder, made when something is put there, for its owner's eyes only.

    One that is removed, moved or replaced later, or a disk that is no longer mounted there, is not made again: what was put
    there before would be missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = f"file:///{self.root}"
        self._inode = self._found()

    async def put(self, name: str, data: bytes) -> bool:
        """Keep bytes: written aside, synced, linked to their name, the folders synced."""
        return await self._do(self._put, checked(name), data)

    async def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The bytes, or None."""
        return await self._do(self._get, checked(name), max_bytes)

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a folder, sorted."""
        return await self._do(self._names, prefix)

    async def delete(self, name: str) -> None:
        """Remove it."""
        await self._do(self._delete, checked(name))

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return await apart(self._worked, work, *args)
        except QuireError:
            raise
        except OSError as cause:
            raise _translated(self.url, cause) from cause

    def _worked(self, work: Callable[..., T], *args: Any) -> T:
        found = self._found()
        if self._inode is not None and found != self._inode:
            raise StorageUnavailable(
                f"{self.url} was {'replaced' if found else 'removed or moved away'} since it was opened; nothing was kept: "
                "bring the folder back, or open the store again if it is to be this one"
            )
        done = work(*args)
        if self._inode is None:
            self._inode = self._found()
        return done

    def _found(self) -> Inode | None:
        try:
            return inode_of(self.root.stat())
        except OSError:
            return None

    def _put(self, name: str, data: bytes) -> bool:
        target = self.root / name
        part = target.parent / f".part-{secrets.token_hex(8)}"
        try:
            with os.fdopen(self._begun(part), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(part, target)
                new = True
            except FileExistsError:
                new = False  # whoever made it may not have come to syncing the folder
        finally:
            part.unlink(missing_ok=True)
        _sync_folder(target.parent)
        return new

    def _begun(self, part: Path) -> int:
        """Open a new file in a folder that is made if need be; whoever removes its last file removes the folder too."""
        for _ in range(_TRIES):
            self._make(part.parent)
            with suppress(FileNotFoundError):
                return os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        raise StorageUnavailable(f"{self.url}: others keep removing the folder {part.parent.name}; try again")

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, durably."""
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(each.parent)

    def _get(self, name: str, max_bytes: int) -> bytes | None:
        try:
            with (self.root / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > max_bytes:
                    raise oversized(name, self.url, size, max_bytes)
                return file.read(max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _names(self, prefix: str) -> list[str]:
        top = self.root / prefix
        found = [Path(folder, file) for folder, _, files in os.walk(top) for file in files if file[0] != "."]
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def _delete(self, name: str) -> None:
        target = self.root / name
        with suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            _sync_folder(target.parent)
            if target.parent != self.root:
                with suppress(OSError):  # there is more in it
                    target.parent.rmdir()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _translated(url: str, cause: OSError) -> QuireError:
    said = f"{url}: {cause.strerror or cause}"
    if isinstance(cause, PermissionError):
        return Denied(f"{said}: archives and backups need a folder that can be written and read")
    if isinstance(cause, (NotADirectoryError, FileExistsError, IsADirectoryError)):
        return InvalidKey(f"{said}: name a folder")
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"{said}: nothing was kept; make room there")
    return StorageUnavailable(said)
