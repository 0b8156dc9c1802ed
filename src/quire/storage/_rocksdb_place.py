"""The database of a RocksDB store: how it is opened, shared by the handles of one process, and what its errors mean.

1. RocksDB lets one process in. Its handles, of any namespace and event loop, share one database, one thread that writes
   and one that reads.
2. Keys and values are bytes, never Python objects: the driver's way of storing those would be pickle.
3. Nothing of the driver may outlive a use of it (a snapshot, an iterator, a column family): only then can the database be
   closed and opened anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from quire.errors import (
    CorruptRecord,
    IncompatibleFormat,
    InvalidKey,
    InvalidState,
    QuireError,
    StorageFull,
    StorageUnavailable,
    Unsupported,
)
from quire.failpoints import hit
from quire.storage._inodes import Inodes
from quire.storage._jobs import Jobs

try:
    import rocksdict
except ImportError as cause:
    raise Unsupported(
        "this store needs the package rocksdict: pip install 'quire[rocksdb]'", capability="backend:rocksdb"
    ) from cause

log = logging.getLogger("quire.storage")

FAMILIES = ("log", "keyframes", "blobs", "cells")
MARK = "quire.json"
FORMAT = 1
_PART = "database"
_POSITION = b"position"
_WAL_MAX_BYTES = 64 * 1024 * 1024
_LOGS_KEPT = 2
_COMPLAINTS = (
    ("background-errors", "RocksDB failed to write its tables; its LOG says why, see disk and folder"),
    ("is-write-stopped", "RocksDB takes no writes until it has sorted its tables; see that the disk keeps up"),
)
"""Properties of RocksDB that are 0 where all is well, and what is said where they are not."""


def ours(error: BaseException, path: str) -> BaseException:
    """Return our exception for one of the driver's; any other comes back as it is."""
    said = _meaning(error, path)
    if said is not error:
        said.__cause__ = error
    return said


def _meaning(error: BaseException, path: str) -> BaseException:
    text = str(error)
    match error:
        case QuireError():
            return error
        case UnicodeEncodeError() | OverflowError():
            return InvalidState(f"{path}: a value cannot be stored ({error}); nothing of this commit was")
        case msgspec.MsgspecError() | UnicodeDecodeError():
            return CorruptRecord(f"{path} is damaged ({error}); run `quire verify`, restore a backup", at=path)
        case OSError():
            return StorageUnavailable(f"{path}: {error}; see that disk and folder are well, then try again")
        case _ if type(error) is not Exception:  # the driver raises no class of its own
            return error
        case _ if "LOCK" in text:
            return StorageUnavailable(
                f"{path} is open in another process, and RocksDB lets only one in: close it there, "
                "or keep the store in sqlite:/// or file:///, which several may use"
            )
        case _ if "Corruption" in text or "checksum" in text:
            return CorruptRecord(f"{path} is damaged ({text}); restore a backup", at=path)
        case _ if "No space" in text:
            return StorageFull(f"{path}: the disk is full ({text}); free some space and write again")
        case _:
            return StorageUnavailable(f"{path}: {text}; see that disk and folder are well, then try again")


class Place:
    """An open database. `write` and what it reads run in the writer's thread, other reads in the reader's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handles = 0
        self.position = 0
        self.broken = False
        self.waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.writer = Jobs("quire-rocksdb-writer", self._ours)
        self.reader = Jobs("quire-rocksdb-reader", self._ours)
        self._db: Any = None
        self._families: dict[str, Any] = {}
        self.inodes = Inodes(path)
        """Files that are not replaced while it is open; looked up by name, they are gone when the folder is."""

    def _ours(self, error: BaseException) -> BaseException:
        traceback.clear_frames(error.__traceback__)  # an error that is kept would keep the database open: rule 3
        return ours(error, self.path)

    def open(self) -> None:
        """Open the database, replaying what was synced and not yet sorted in. Blocks."""
        self._open(rocksdict.AccessType.read_write())

    def _open(self, access: Any) -> None:
        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.create_missing_column_families(True)
        options.set_paranoid_checks(True)
        options.set_max_total_wal_size(_WAL_MAX_BYTES)
        options.set_keep_log_file_num(_LOGS_KEPT)
        # the default takes whatever is damaged for the end of the log, and loses in silence what came after it
        options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.tolerate_corrupted_tail_records())
        families = {name: rocksdict.Options(raw_mode=True) for name in FAMILIES}
        self._db = rocksdict.Rdict(f"{self.path}/{_PART}", options, column_families=families, access_type=access)
        self._families = {name: self._db.get_column_family(name) for name in FAMILIES}
        stored = self._db.get(_POSITION)
        self.position = 0 if stored is None else int.from_bytes(stored, "big")
        self.inodes = Inodes(self.path, (f"{self.path}/{MARK}", f"{self.path}/{_PART}/LOCK"))

    @property
    def is_open(self) -> bool:
        """Whether anything can be read."""
        return self._db is not None

    def family(self, name: str) -> Any:
        """Return a column family, to be used and let go."""
        found = self._families.get(name)
        if found is None:
            raise StorageUnavailable(f"{self.path} could not be opened again after a failed write; call `recover`")
        return found

    def shut(self) -> None:
        """Close the database."""
        families, self._families = self._families, {}
        database, self._db = self._db, None
        failed: Exception | None = None
        for family in (*families.values(), database):
            if family is not None:
                try:
                    family.close()
                except Exception as error:  # noqa: BLE001 - the driver raises no class of its own; the others close first
                    failed = error
        if failed is not None:
            raise self._ours(failed)

    def write(self, fill: Callable[[Any, Callable[[str], Any]], int]) -> None:
        """Write what `fill` puts into a batch, durably, all or nothing.

        fill: given a batch and where to find a column family, it returns the newest position then.
        """
        if self._db is None:
            raise StorageUnavailable(f"{self.path} could not be opened again after a failed write; call `recover`")
        self.inodes.check()
        batch = rocksdict.WriteBatch(raw_mode=True)
        position = fill(batch, self._db.get_column_family_handle)
        if position != self.position:
            batch.put(_POSITION, position.to_bytes(8, "big"))
        how = rocksdict.WriteOptions()
        how.sync = True
        hit("commit:before")
        self._db.write(batch, how)
        self.position = position  # at once: from now on it can be read, and who looks for news must hear of it
        self.inodes.confirm()

    def reopen(self) -> None:
        """Close the database and open it anew, so that what is read is what is on the disk. In the writer's thread.

        Raises FilesChanged where it is not there any more: to open it would make another.

        Opening writes. Where the disk is full it fails, and the database is opened for reading only, until there is room.
        """
        self.inodes.check()
        with self.reader.paused():
            self.shut()
            try:
                self.open()
            except Exception as error:
                if isinstance(_meaning(error, self.path), StorageFull):
                    self._open(rocksdict.AccessType.read_only())
                raise
        self.broken = False

    def compact(self) -> None:
        """Write everything anew without what was removed. Cost: that of copying the store."""
        forced = rocksdict.CompactOptions()
        forced.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
        for family in (self._db, *self._families.values()):
            family.flush(True)
            family.compact_range(None, None, forced)

    def checkpoint(self, path: str) -> None:
        """Write a copy to a new folder: links where the file system has them, so it is quick. Raises InvalidKey."""
        if "\0" in path:
            raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
        target = Path(os.path.realpath(path))
        if os.path.lexists(target):
            raise InvalidKey(f"{target} exists; a backup is written to a new folder")
        part = target.with_name(f"{target.name}.part-{os.getpid()}-{threading.get_native_id()}")
        part.mkdir(0o700)
        try:
            rocksdict.Checkpoint(self._db).create_checkpoint(str(part / _PART))
            _write_mark(part)
            part.rename(target)
        except BaseException:
            _remove(part)
            raise
        _sync(target.parent)

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of the database's files, and of those that are its logs."""
        used = logs = 0
        with os.scandir(f"{self.path}/{_PART}") as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # compacted away just now
                    size = entry.stat(follow_symlinks=False).st_size
                    used += size
                    logs += size if entry.name.endswith(".log") else 0
        return used, logs

    def complaints(self) -> tuple[str, ...]:
        """Say what RocksDB could not do in the background."""
        if self._db is None:
            return (f"{self.path} could not be opened again after a failed write; see its disk, then write again",)
        found: list[str] = []
        for name, said in _COMPLAINTS:
            if self._db.property_int_value(f"rocksdb.{name}"):
                found.append(f"{self.path}: {said}")
        return tuple(found)

    def wake(self) -> None:
        """Let everybody who waits look again."""
        for loop, event in list(self.waiters):
            with suppress(RuntimeError):  # a loop that was closed has nobody left to wake
                loop.call_soon_threadsafe(event.set)


_open: dict[str, Place] = {}
_guard = threading.Lock()


def claim(path: str) -> Place:
    """Return the open database of a folder, making it if it is absent or empty. Blocks. Give it back with `release`.

    Raises InvalidKey, IncompatibleFormat, StorageUnavailable, CorruptRecord.
    """
    path = os.path.realpath(path)
    with _guard, _translated(path):
        place = _open.get(path)
        if place is None:
            _recognise(Path(path))
            place = Place(path)
            try:
                place.open()
            except BaseException:
                place.writer.stop()
                place.reader.stop()
                raise
            _open[path] = place
        place.handles += 1
        return place


def release(place: Place) -> None:
    """Give a database back; the last handle closes it. Blocks. Where its files are gone, what that raises is logged."""
    with _guard:
        place.handles -= 1
        if place.handles == 0:
            del _open[place.path]
            place.reader.stop()
            place.writer.stop()
            try:
                place.shut()
            except QuireError as error:
                said = place.inodes.trouble()
                if said is None:
                    raise
                log.warning("closing: %s: %s", said, error)


def forget_all() -> None:
    """In the child of a fork: what the parent has open is not ours, and a thread of it may have held the lock."""
    global _guard  # noqa: PLW0603 - made anew, as it cannot be released
    _open.clear()
    _guard = threading.Lock()


os.register_at_fork(after_in_child=forget_all)


@contextmanager
def _translated(path: str) -> Generator[None]:
    try:
        yield
    except Exception as error:
        said = ours(error, path)
        if said is error:
            raise
        raise said from error


def _recognise(folder: Path) -> None:
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        raise StorageUnavailable(f"{folder}: the folder {folder.parent} does not exist; make it first") from None
    if not folder.is_dir():
        raise InvalidKey(f"{folder} is a file; rocksdb:///FOLDER names a folder")
    there = {entry.name for entry in folder.iterdir() if not entry.name.startswith(f"{MARK}.")}
    if MARK not in there:
        if there:
            raise IncompatibleFormat(
                f"{folder} holds other things ({min(there)}) and is not a Quire store; nothing was changed",
                found="other",
                supported="an empty folder or a store",
            )
        _write_mark(folder)
        _sync(folder.parent)
        return
    try:
        said = msgspec.json.decode((folder / MARK).read_bytes(), type=dict[str, object])
    except msgspec.MsgspecError:
        said = {}
    if said.get("quire") != "rocksdb" or said.get("format") != FORMAT:
        raise IncompatibleFormat(
            f"{folder}: {MARK} says {said or 'nothing'}, this Quire reads rocksdb stores of format {FORMAT}; "
            "open it with the Quire that wrote it, or restore the file from a backup",
            found=said.get("format"),
            supported=FORMAT,
        )


def _write_mark(folder: Path) -> None:
    part = folder / f"{MARK}.{os.getpid()}"
    with part.open("wb") as file:
        file.write(msgspec.json.encode({"quire": "rocksdb", "format": FORMAT}) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o600)
    part.rename(folder / MARK)
    _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    for folder, _, files in os.walk(part, topdown=False):
        for file in files:
            (Path(folder) / file).unlink(missing_ok=True)
        Path(folder).rmdir()
