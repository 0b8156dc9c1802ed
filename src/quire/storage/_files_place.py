"""The folder of a store: how it is made, recognised, opened by several processes, and what the world's errors mean.

1. A folder that is not ours is never changed: ours has `quire.json`, which is written last when it is made.
2. `quire.lock` is held by whoever writes; opening and closing count as writing.
3. `quire.json` is held, shared, by everyone who has the store open. Who opens it and finds nobody else does the journal
   again: what lay in memory only may have been lost with the power since.
4. A folder that was removed, moved or replaced while it was open is neither written nor read any more (_inodes.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from quire.core.names import is_ending
from quire.errors import (
    Closed,
    CorruptRecord,
    IncompatibleFormat,
    Invalid,
    InvalidKey,
    InvalidState,
    QuireError,
    StorageFull,
    StorageUnavailable,
)
from quire.storage import _files_journal as journals
from quire.storage import _files_names as names
from quire.storage._files_cells import CELLS, whose_cells
from quire.storage._files_disk import TEMP, Disk, Lock, sync_folder
from quire.storage._files_feed import FEED, last_of, whose_feed
from quire.storage._files_journal import Journal, State
from quire.storage._files_lines import LineFile, first_line
from quire.storage._inodes import Inodes

MARK, LOCK = "quire.json", "quire.lock"
NAMESPACES = "namespaces"
DEFAULT = "default"
KEYFRAMES, BLOBS = "keyframes", "blobs"
FORMAT = 1
FORMAT_ENDING = 2
"""Of a store whose workflows' files end otherwise: to a Quire that only knows the first format it would look empty."""
_NAME = "namespace.json"
"""Says the name of a namespace that is too long for the folder's."""
_AREAS = (*names.FOLDERS, KEYFRAMES, BLOBS)
_BEGUN = {LOCK, TEMP, NAMESPACES, journals.JOURNAL, journals.STATE}
"""What a store has whose making was cut off before its mark."""
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def ours(error: BaseException, path: str) -> BaseException:
    """Return our exception for one of the operating system's; any other comes back as it is."""
    said = _meaning(error, path)
    if said is not error:
        said.__cause__ = error
    return said


def _meaning(error: BaseException, path: str) -> BaseException:
    match error:
        case QuireError():
            return error
        case UnicodeEncodeError() | OverflowError():
            return InvalidState(f"{path}: a value cannot be stored ({error}); nothing of this commit was")
        case msgspec.MsgspecError() | UnicodeDecodeError() | ValueError():
            return CorruptRecord(f"{path} is damaged ({error}); run `quire verify`, restore a backup", at=path)
        case OSError():
            said = f"{error.filename or path}: {error.strerror or error}"
            if error.errno in _FULL:
                return StorageFull(f"{said}; free some space and write again")
            if error.errno in _DENIED:
                return StorageUnavailable(f"{said}; check the rights of the folder {path} and of what is in it")
            if error.errno == errno.ELOOP:
                return IncompatibleFormat(f"{said}; a store holds no symbolic links", found="a symbolic link")
            return StorageUnavailable(f"{said}; see that disk and folder {path} are well, then try again")
        case _:
            return error


def claim(path: str) -> None:
    """Make the folder of a store if it is absent, for its owner only; refuse one that holds anything else.

    path: absolute, without symbolic links.
    Raises InvalidKey, IncompatibleFormat, StorageUnavailable, StorageFull.
    """
    folder = Path(path)
    try:
        folder.mkdir(0o700)
        sync_folder(str(folder.parent))
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise StorageUnavailable(f"{path}: the folder {folder.parent} does not exist; make it first") from None
    if not stat.S_ISDIR(folder.stat().st_mode):
        raise InvalidKey(f"{path} is a file; file:///FOLDER names a folder, sqlite:///FILE a file")
    there = {entry.name for entry in folder.iterdir()}
    if MARK in there:
        _recognise(folder / MARK)
    elif not there <= _BEGUN:
        raise IncompatibleFormat(
            f"{path} holds other things ({min(there - _BEGUN)}) and is not a Quire store; nothing was changed",
            found="other",
            supported="an empty folder or a store",
        )


def _recognise(mark: Path) -> str:
    """Return the ending of workflows' files in a store. Raises IncompatibleFormat for what is none of ours."""
    text = mark.read_bytes()[:4096]
    try:
        said = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.MsgspecError:
        said = {}
    if said.get("quire") != "files" or type(said.get("format")) is not int:
        raise IncompatibleFormat(
            f"{mark} is damaged or of another program; nothing was changed: restore it from a backup",
            found=text[:40],
            supported=FORMAT,
        )
    if said["format"] not in (FORMAT, FORMAT_ENDING):
        raise IncompatibleFormat(
            f"{mark.parent} has format {said['format']}, this Quire reads {FORMAT} and {FORMAT_ENDING}: upgrade quire "
            "to open it",
            found=said["format"],
            supported=FORMAT_ENDING,
        )
    ending = said.get("extension", names.STATE)
    if not is_ending(ending):
        raise IncompatibleFormat(
            f"{mark} says that files end in {ending!r}, which none of ours does; nothing was changed: restore it from a "
            "backup",
            found=ending,
            supported="a dot and 1 to 16 letters and digits",
        )
    return ending


def mark(ending: str) -> bytes:
    """Return what says that a folder is a store, and how its workflows' files end."""
    said: dict[str, object] = {"quire": "files", "format": FORMAT}
    if ending != names.STATE:
        said |= {"format": FORMAT_ENDING, "extension": ending}
    return msgspec.json.encode(said) + b"\n"


def base_of(namespace: str) -> str:
    """Return where a namespace lies in the store: "" or a path that ends with a slash."""
    return "" if namespace == DEFAULT else f"{NAMESPACES}/{names.escape(namespace)}/"


class Place:
    """An open store and one namespace of it."""

    def __init__(self, path: str, namespace: str, ending: str | None = None) -> None:
        """path: what `claim` let pass.  ending: of workflows' files; None for the store's, or `.state` for a new one."""
        self.path = path
        self.ending = ending or names.STATE
        self._asked = ending
        self.namespace = namespace
        self.base = base_of(namespace)
        self.disk = Disk(path)
        self._lock = Lock(self.disk.at(LOCK))
        self._presence: Lock | None = None
        self._journal: Journal | None = None
        self.inodes = Inodes(path)
        """Files that are not replaced while it is open; looked up by name, they are gone when the folder is."""

    @property
    def journal(self) -> Journal:
        """The journal. Raises Closed."""
        if self._journal is None:
            raise Closed("the store is closed; open it again")
        return self._journal

    def open(self) -> None:
        """Make what is missing, finish what was begun. Raises Invalid for another ending than the store's. Blocks."""
        self._lock.take()
        try:
            if not Path(self.disk.at(MARK)).exists():
                self._make()
            self.ending = _recognise(Path(self.disk.at(MARK)))
            if self._asked not in (None, self.ending):
                raise Invalid(
                    f"the files of {self.path} end in {self.ending}, not in {self._asked}: the store was made so; say "
                    f"{self.ending}, or name another folder"
                )
            self._make_folders()
            self._presence = Lock(self.disk.at(MARK))
            self._journal = Journal(self.disk)
            if self._presence.take_now():
                self._journal.restart(unfinished=self._unfinished)
                self._clear()
            self._presence.share()
            self._furnish()
            kept = (MARK, LOCK, journals.JOURNAL, journals.STATE)
            self.inodes = Inodes(self.path, map(self.disk.at, kept))
        finally:
            self._lock.give()

    def _make(self) -> None:
        self._make_folders()
        journals.create(self.disk)
        self.disk.publish(self.disk.write_temp([mark(self.ending)]), MARK)

    def _make_folders(self) -> None:
        """Make the folders that may be empty: what carried a store here (git, an archive) may have left them out."""
        for folder in (TEMP, NAMESPACES):
            self.disk.make_folder(folder)

    def _furnish(self) -> None:
        areas = [f"{self.base}{area}" for area in _AREAS]
        if self.base:
            self.disk.make_folder(self.base.rstrip("/"))
        if not any(Path(self.disk.at(area)).exists() for area in areas):
            for file, whose in ((FEED, whose_feed(self.namespace)), (CELLS, whose_cells(self.namespace))):
                first = first_line(whose, self.namespace, file, "file")
                self.disk.publish(self.disk.write_temp([first]), f"{self.base}{file}")
        for area in areas:
            self.disk.make_folder(area)
        name = f"{self.base}{_NAME}"
        if names.hashed(self.base) and not Path(self.disk.at(name)).exists():
            self.disk.publish(self.disk.write_temp([msgspec.json.encode(self.namespace)]), name)

    def _clear(self) -> None:
        for entry in list(os.scandir(self.disk.at(TEMP))):
            self.disk.remove(f"{TEMP}/{entry.name}")

    def _unfinished(self, position: int) -> str | None:
        """Return a feed that holds more than there is up to a position: the journal must have said so once."""
        for namespace in self.namespaces():
            path = self.disk.at(f"{base_of(namespace)}{FEED}")
            file = LineFile.open(path, whose_feed(namespace))
            if file is not None:
                with file:
                    if last_of(file) > position:
                        return path
        return None

    def namespaces(self) -> list[str]:
        """Return all namespaces of the store; one whose making was cut off holds nothing yet."""
        others = (self._namespace(entry.name) for entry in os.scandir(self.disk.at(NAMESPACES)))
        found = [DEFAULT, *sorted(name for name in others if name is not None)]
        return [name for name in found if Path(self.disk.at(f"{base_of(name)}{_AREAS[-1]}")).exists()]

    def _namespace(self, folder: str) -> str | None:
        if not names.hashed(folder):
            return names.unescape(folder)
        file = Path(self.disk.at(f"{NAMESPACES}/{folder}/{_NAME}"))
        return msgspec.json.decode(file.read_bytes(), type=str) if file.exists() else None

    @contextmanager
    def held(self, *, within_s: float | None = None) -> Generator[State]:
        """Hold the store's lock; yield where it stands, with everything finished that anyone had begun."""
        with self.locked(within_s=within_s):
            yield self.journal.enter()

    @contextmanager
    def locked(self, *, within_s: float | None = None) -> Generator[None]:
        """Hold the store's lock. Raises FilesChanged where what is locked is not the store any more."""
        if within_s is None:
            self._lock.take()
        else:
            self._lock.take(within_s=within_s)
        try:
            self.inodes.check()
            yield
        finally:
            self._lock.give()

    def close(self) -> None:
        """Let go of everything."""
        self.disk.forget_all()
        for thing in (self._journal, self._presence, self._lock):
            if thing is not None:
                thing.close()
        self._journal = self._presence = None
