"""Locks on the files of an open SQLite store that hold for the whole process, and whether those files are still there.

POSIX drops every fcntl lock that a process has on a file when the process closes any descriptor of it. So another SQLite
library in this process (Python's own `sqlite3`, pandas) drops the locks of ours when it closes the file, takes itself for
the last one, and removes the write-ahead log under us (https://sqlite.org/howtocorrupt.html section 2.2). Locks of an open
file description (`F_OFD_SETLK`, Linux) conflict with fcntl's, even within a process, and only their owner drops them:

1. A shared lock on the bytes that SQLite locks to remove a log, and on the byte that says that the shared memory is in
   use: no library, here or in another process, removes or empties either while a store is open.
2. A shared lock on a byte that stands for the log that is open: who would begin a new log sees that somebody holds another,
   which was removed and may not be in the database yet, and gives up.
3. An exclusive lock on a byte behind SQLite's, the turn, around every write of ours: two processes never write at once, even
   where SQLite's own lock was dropped.

Files can be removed, moved or replaced all the same, by hand. Each write compares device and inode of the three files,
within its turn before it begins, and again before it is acknowledged. Where the log is gone but the database is the same,
`rescue` copies what the log holds into the database. That is all that was acknowledged: `rescue` needs the turn, so it comes
before a commit, which then finds the log gone, or after it; and its locks keep everybody else out.

One object for each file and process, as closing a descriptor of ours would drop SQLite's locks too: it is closed after the
last connection.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw

from quire.errors import FilesChanged, StorageUnavailable
from quire.storage import _sqlite_worker as worker
from quire.storage._inodes import Inode, Inodes, inode_of
from quire.storage._sqlite_worker import Db

_PENDING = 0x40000000  # SQLite's bytes are in its src/os.h and os_unix.c
_SHARED, _SHARED_BYTES = _PENDING + 2, 510
_TURN = _PENDING + 512
_HOLDS, _HOLDS_BYTES = 0x50000000, 0x10000000
"""A byte in this range stands for a write-ahead log: see `_hold`."""
_HELD = (
    "{0}-wal was removed while another process has the store open; only that one can put back what it wrote: write something "
    "there, or close it there, then try again"
)
_IN_USE = 128
"""Of the shared memory's file: locked by all who use it (UNIX_SHM_DMS)."""
_INDEX = struct.Struct("=14xHI76xI")
"""How shared memory begins: how large pages are (1: 65,536 bytes), how many are in the log, and how many of those are in the
database, too (https://sqlite.org/walformat.html section 2)."""
_LOG_HEADER, _PAGE_HEADER = 32, 24
_HEADER = struct.Struct(">16xH10xI")
"""How the database begins: the size of its pages, and how many there are (https://sqlite.org/fileformat.html section 1.3)."""
_FLOCK = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, length, pid
_SET = getattr(fcntl, "F_OFD_SETLK", None)
_FORK_WAIT_S = 1.0
_LOCKS, _HANDLES = "/proc/locks", "/proc/self/fd"
_OPEN_FILE = "-1"
"""Stands in the first for the process, where an open file description holds a lock."""
_PART_BYTES = 1024 * 1024
_COARSE_NS, _COARSEST_NS = 50_000_000, 3_000_000_000
"""A folder that changed less than so long ago may change again and keep its time. Clocks of kernels go in steps of up to 10 ms;
some file systems count in steps of 2 s."""
_FINE_NS = 10_000_000
"""A time that is no multiple of this is of a file system that counts in smaller steps."""
_AWAIT_LOG_S, _LOOK_S = 2.0, 0.01
"""How long, and how often, it is looked whether a log is there that should be."""


class Presence(Inodes):
    """What this process has of one database file. Made by `enter`."""

    def __init__(self, path: str, *, wal: bool) -> None:
        super().__init__(path)
        self.path = path
        self.users = 0
        """Handles that have it open."""
        self._folder = str(Path(path).parent)
        self._unchanged: tuple[int, int, int, int] | None = None
        """Device, inode and times of the folder, as they were before all files were found in place."""
        self._wal = wal
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._others: list[int] = []
        """Further descriptors, to be closed with the first."""
        self.inode = inode_of(os.fstat(self._file))
        self._database = Inodes(path)
        self._database.of = self.of = {path: self.inode}
        self.one = threading.Lock()
        """Held by the handle whose turn it is."""
        self._locks = _SET is not None
        self._shared = self._log_file = -1
        """The shared memory and the log, once they are known."""
        self._size = 0
        """What the database had in bytes when it was looked at last."""
        self.cut: str | None = None
        """What is said of a database or a log that was cut off where it is."""

    # joining and leaving: with `_registry` held

    def lock(self) -> None:
        """Keep others from removing the write-ahead log. Waits for one who is about to. Raises BusyError."""
        self.of, self._unchanged = {self.path: self.inode}, None
        if self._locks:
            _try(self._file, fcntl.F_UNLCK, _HOLDS, _HOLDS_BYTES)
        if self._wal:
            self._take(self._file, fcntl.F_RDLCK, _SHARED, _SHARED_BYTES)

    def unlock(self) -> None:
        """Let SQLite remove the log as the last connection is closed. Never while the names may be another store's.

        Nor where the log was cut: half of it in the database would be neither what was nor what is.
        """
        if self.trouble() is None and self.cut is None:
            for handle in (self._file, *self._others) if self._locks else ():
                _try(handle, fcntl.F_UNLCK, 0, 0)

    def close(self) -> None:
        """Close all descriptors: after the last connection."""
        for handle in (self._file, *self._others):
            os.close(handle)
        self._others.clear()

    def adopt(self, twin: Presence) -> None:
        """Close the descriptor of another together with this."""
        self._others.append(twin._file)

    def note(self) -> None:
        """Remember which files a connection has opened since `lock`, and mark the shared memory as in use."""
        if not self._wal or len(self.of) > 1:
            return
        log, shared = f"{self.path}-wal", f"{self.path}-shm"
        try:
            self._shared = shm = os.open(shared, os.O_RDONLY | os.O_CLOEXEC)
            self._others.append(shm)
            self._log_file = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            self._others.append(self._log_file)
            self._take(shm, fcntl.F_RDLCK, _IN_USE, 1)
            of = {log: inode_of(os.fstat(self._log_file)), shared: inode_of(os.fstat(shm))}
            self._take(self._file, fcntl.F_RDLCK, _hold(of[log]), 1)
            if self._locks and self._is_surplus(log, of[log]):
                with self.turn():
                    self._end_surplus(log, of)
        except FileNotFoundError:
            raise StorageUnavailable(f"{log} was removed while it was opened; open the store again") from None
        self._unchanged = None
        self.of = self.of | of

    def _is_surplus(self, log: str, inode: Inode) -> bool:
        """Tell whether a log holds nothing and only we have it, while somebody has another, which may hold something."""
        return os.lstat(log).st_size == 0 and _another_is_held(self.path, inode)

    def _end_surplus(self, log: str, of: dict[str, Inode]) -> None:
        """Remove a log that should not have been begun, as the other could not be put back beside it. Raises StorageUnavailable."""
        if self._is_surplus(log, of[log]):
            for path, inode in of.items():
                if inode_of(os.lstat(path)) == inode:
                    os.unlink(path)  # noqa: PTH108 - as cheap as the rest here
            raise StorageUnavailable(_HELD.format(self.path))

    # while it is open

    def trouble(self) -> str | None:
        """Say what is not as it was opened. Cost: one look where the folder is as it was when all was in place.

        Whatever removes, moves or replaces a file in a folder sets the time of the folder; what moves the folder puts another
        one, or none, under its name.
        """
        if not self._wal or len(self.of) == 1:
            return super().trouble()  # on file systems of other machines, times are kept back
        try:
            found = os.lstat(self._folder)
        except OSError:
            return super().trouble()
        folder = found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns
        if folder == self._unchanged:
            return None
        said = super().trouble()
        coarse = _COARSE_NS if found.st_mtime_ns % _FINE_NS else _COARSEST_NS
        lately = time.time_ns() - max(folder[2:]) < coarse
        self._unchanged = None if said is not None or lately else folder
        return said

    def check(self) -> None:
        """Raise unless the files are those that were opened: StorageUnavailable for a log that can be put back, else FilesChanged."""
        if self.cut is None:
            self.cut = self._missing_of_file() or self._missing()
        if self.cut is not None:
            raise FilesChanged(self.cut)
        said = self.trouble()
        if said is not None:
            self.check_file()
            raise StorageUnavailable(f"{said}; nothing of this write is stored: write again, the log is put back first")

    def _missing_of_file(self) -> str | None:
        """Say what is missing of a database that is shorter than it was, and than its header says."""
        found = os.fstat(self._file).st_size
        if found < self._size:
            size, pages = _HEADER.unpack(os.pread(self._file, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
            if found < max(pages * (size if size > 1 else 65_536), _HEADER.size):
                return (
                    f"{self.path} was cut while the store was open: it has {found:,} bytes, {self._size:,} were there; nothing "
                    "more is written: close the store in all processes, then restore a backup"
                )
        self._size = found
        return None

    def _missing(self) -> str | None:
        """Say what is missing of a log that is shorter than the pages in it; None where they are all in the database, too.

        Others may write to the log, or empty it, while it is looked at.
        """
        if self._shared < 0:
            return None
        said, seen = None, b""
        while (index := os.pread(self._shared, _INDEX.size, 0)) != seen:
            if len(index) < _INDEX.size:
                return None
            size, pages, copied = _INDEX.unpack(index)
            if copied >= pages:
                return None
            needed = _LOG_HEADER + pages * (_PAGE_HEADER + (size if size > 1 else 65_536))
            found = os.fstat(self._log_file).st_size
            if found >= needed:
                return None
            said = (
                f"{self.path}-wal was cut while the store was open: it has {found:,} bytes, {needed:,} were written; nothing more is "
                "written: close the store in all processes, then restore a backup, or go on with what was in it before"
            )
            seen = index
        return said

    def check_file(self) -> None:
        """Raise FilesChanged unless the database is the file that was opened."""
        self._database.check()

    @contextmanager
    def turn(self, wait_s: float | None = None) -> Generator[None]:
        """Be the only handle of Quire that writes, in all processes. Raises BusyError after `BUSY_S` or `wait_s`."""
        limit_s = worker.BUSY_S if wait_s is None else wait_s
        if not self.one.acquire(timeout=limit_s):
            raise apsw.BusyError("another handle of this process is writing")
        try:
            self._take(self._file, fcntl.F_WRLCK, _TURN, 1, wait_s)
            try:
                yield
            finally:
                if self._locks:
                    _try(self._file, fcntl.F_UNLCK, _TURN, 1)
        finally:
            self.one.release()

    def rescue(self, db: Db) -> None:
        """Copy a write-ahead log that was removed into the database, durably, and remove what is left of it by name.

        db: a connection that was opened before.  Raises FilesChanged where the database is another, StorageUnavailable where
        the log cannot be copied any more: another program has begun a new one.
        """
        self.check_file()
        said = self.trouble()
        if said is None:
            return
        if not self._locks:
            raise StorageUnavailable(f"{said}; close the store in all processes, then open it again")
        with self.turn():
            if self._is_replaced() and self._is_empty():
                self._remember()
                return  # another process that had the same log copied it, emptied it and began anew: there is nothing left
            self._take(self._file, fcntl.F_WRLCK, _PENDING, 1)  # nobody opens the database meanwhile
            try:
                left = [path for path in self.of if path != self.path and self._is_ours(path, said)]
                # emptied, too: a log that was only moved away, and comes back, must not be played over what came since
                busy, pages, copied = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if busy or pages != copied:
                    raise StorageUnavailable(f"{said}, and a reader keeps it from being copied; write again later")
                self._remember()
                for path in left:  # who still uses them would not see what is written from now on
                    os.unlink(path)  # noqa: PTH108 - as cheap as the rest here
            finally:
                _try(self._file, fcntl.F_UNLCK, _PENDING, 1)

    def _is_replaced(self) -> bool:
        """Tell whether there is a write-ahead log that is not the one that we opened."""
        log = f"{self.path}-wal"
        with suppress(FileNotFoundError):
            return log in self.of and inode_of(os.lstat(log)) != self.of[log]
        return False

    def _is_empty(self) -> bool:
        """Tell whether the log that we opened holds nothing, wherever it is now. On systems without /proc it says no."""
        log = self._log()
        return log is not None and log.stat().st_size == 0

    def _log(self) -> Path | None:
        """Return where the log that SQLite has open here can be opened, whatever became of its name."""
        ours = self.of.get(f"{self.path}-wal")
        with suppress(OSError):
            for handle in Path(_HANDLES).iterdir():
                with suppress(OSError):
                    if inode_of(handle.stat()) == ours:
                        return handle
        return None

    def _remember(self) -> None:
        """Remember that the log which we opened holds nothing: others may hold it still, and need not put it back.

        It stays open here, so that no other log gets its inode.
        """
        log = self._log()
        if log is not None:
            handle = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
            left = _saved.setdefault(self.inode, {}).pop(_hold(self.of[f"{self.path}-wal"]), None)
            if left is not None:
                os.close(left)
            _saved[self.inode][_hold(self.of[f"{self.path}-wal"])] = handle

    def _is_stale(self, path: str) -> bool:
        """Tell whether what is there in the place of our log holds nothing else than that does, and nobody else may use it."""
        if path != f"{self.path}-wal" or not self._is_alone():
            return False
        end, at = Path(path).stat().st_size, 0
        with Path(path).open("rb") as file:
            while (
                at < end and (part := file.read(_PART_BYTES)) == os.pread(self._log_file, _PART_BYTES, at)[: len(part)]
            ):
                at += len(part)
        return at >= end

    def _is_alone(self) -> bool:
        """Tell whether no other process has the database open. Where that cannot be said it says no."""
        try:
            locks = _locked(os.lstat(self.path), Path(_LOCKS).read_text())
        except OSError:
            return False
        holders = [owner for owner, first, last in locks if first < _SHARED + _SHARED_BYTES and last >= _SHARED]
        return [owner for owner in holders if owner != str(os.getpid())] == [_OPEN_FILE]

    def _is_ours(self, path: str, said: str) -> bool:
        try:
            there = inode_of(os.lstat(path))
        except FileNotFoundError:
            return False
        if there != self.of[path] and not self._is_stale(path):
            raise StorageUnavailable(
                f"{said}, and another program has opened the database since, so that the log cannot be put back; close the "
                "store in all processes, open it again and run `quire verify`"
            )
        return True

    def _take(self, handle: int, kind: int, start: int, length: int, wait_s: float | None = None) -> None:
        if not self._locks:
            return
        try:
            if _try(handle, kind, start, length):
                return
            patience, attempts = worker.patience(wait_s), 0
            while patience(attempts):
                if _try(handle, kind, start, length):
                    return
                attempts += 1
            raise apsw.BusyError("another process has the file locked")
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            self._locks = False  # a file system without locks of open file descriptions


def _try(handle: int, kind: int, start: int, length: int) -> bool:
    """Set a lock of the open file description; return False where another has it. length 0: to the end."""
    if _SET is None:
        return True
    try:
        fcntl.fcntl(handle, _SET, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def await_log(path: str) -> None:
    """Raise StorageUnavailable where a file's write-ahead log was removed while another process has the file open.

    Opening the file would begin a new log, and then nobody could bring back what the other process wrote. Waits for one who is
    just opening or closing it. Blocks. On systems other than Linux it finds nothing.
    """
    with _registry, suppress(FileNotFoundError):
        found = _open.get(inode_of(os.lstat(path)))
        if found is not None:
            _check_shared(found, path)
    until = time.monotonic() + _AWAIT_LOG_S
    while _is_without_log(path):
        if time.monotonic() > until:
            raise StorageUnavailable(_HELD.format(path))
        time.sleep(_LOOK_S)


def _is_without_log(path: str) -> bool:
    """Tell whether there is no log, though somebody has a lock that says that the database is open."""
    if os.path.lexists(f"{path}-wal"):
        return False
    try:
        found = os.lstat(path)
        locks = Path(_LOCKS).read_text()
    except OSError:
        return False
    return any(first < _SHARED + _SHARED_BYTES and last >= _SHARED for _, first, last in _locked(found, locks))


def _locked(of: os.stat_result, locks: str) -> Generator[tuple[str, int, int]]:
    """Yield the process that holds each lock on a file, its first and its last byte. locks: what is in `/proc/locks`."""
    inode = f"{os.major(of.st_dev):02x}:{os.minor(of.st_dev):02x}:{of.st_ino}"
    for line in locks.splitlines():
        owner, place, *bounds = line.split()[-4:]
        if place == inode and "->" not in line:  # an arrow is before those who wait for a lock
            first, last = (sys.maxsize if bound == "EOF" else int(bound) for bound in bounds)
            yield owner, first, last


def _hold(log: Inode) -> int:
    """Return the byte that those lock who have a write-ahead log open."""
    return _HOLDS + log[1] % _HOLDS_BYTES


def _another_is_held(path: str, log: Inode) -> bool:
    """Tell whether somebody holds another log than this, which nobody else has, and may have to put it back.

    On systems other than Linux it says no.
    """
    try:
        found, locks = os.lstat(path), Path(_LOCKS).read_text()
    except OSError:
        return False
    held = [
        first for _, first, last in _locked(found, locks) if first == last and _HOLDS <= first < _HOLDS + _HOLDS_BYTES
    ]
    saved = _saved.get(inode_of(found), {})
    for byte in [byte for byte in saved if byte not in held]:
        os.close(saved.pop(byte))
    return held.count(_hold(log)) < 2 and not {*held} - {_hold(log)} <= saved.keys()


_open: dict[Inode, Presence] = {}
_saved: dict[Inode, dict[int, int]] = {}
"""Of each file, the bytes of logs that were removed and whose content is in the file, with a descriptor of each log."""
_registry = threading.Lock()


def enter(path: str, *, wal: bool) -> Presence:
    """Return what this process has of a file, locked. Call `leave` and `left`, before and after connections are closed.

    path: as SQLite has it.  wal: whether it is in that mode.  Raises StorageUnavailable, BusyError. Blocks.
    """
    with _registry:
        found = _open.get(inode_of(os.lstat(path)))
        if found is None:
            made = Presence(path, wal=wal)
            found = _open.get(made.inode)
            if found is None:
                found = _open[made.inode] = made
            else:
                found.adopt(made)
        try:
            _check_shared(found, path)
            if found.users == 0:
                found.lock()
            found.users += 1
        finally:
            _drop(found)
        return found


def _check_shared(found: Presence, path: str) -> None:
    if found.path != path:
        raise StorageUnavailable(
            f"{path} is open in this process as {found.path}; two names of one file damage it: close it there first"
        )
    if found.users and (said := found.trouble()) is not None:
        raise StorageUnavailable(f"{said}; close every handle that this process has on it, then open it again")


def note(presence: Presence) -> None:
    """Remember the files of a store whose first connection has read from it."""
    with _registry:
        presence.note()


def leave(presence: Presence) -> None:
    """Say that a handle is about to close its connections; the last one lets SQLite remove the log."""
    with _registry:
        presence.users -= 1
        if presence.users == 0:
            presence.unlock()


def left(presence: Presence) -> None:
    """Say that a handle has closed its connections."""
    with _registry:
        _drop(presence)


def _drop(presence: Presence) -> None:
    if presence.users == 0 and _open.get(presence.inode) is presence:
        del _open[presence.inode]
        presence.close()


class _Fork:
    """What is held while the process forks: no write is under way then, as SQLite in the child would wait for its end."""

    def __init__(self) -> None:
        self._registered = False
        self._turns: list[threading.Lock] = []

    def before(self) -> None:
        """Wait for writes that are under way, though not for ever."""
        self._registered = _registry.acquire(timeout=_FORK_WAIT_S)
        turns = [presence.one for presence in list(_open.values())]
        self._turns = [turn for turn in turns if turn.acquire(timeout=_FORK_WAIT_S)]

    def in_parent(self) -> None:
        """Go on."""
        for turn in self._turns:
            turn.release()
        if self._registered:
            _registry.release()

    def in_child(self) -> None:
        """Let go: the locks are the parent's, and would outlive it as long as a copy of its descriptors is open."""
        global _registry  # noqa: PLW0603 - another thread of the parent may have held it
        for presence in _open.values() if self._registered else ():
            presence.close()
        _open.clear()
        _registry = threading.Lock()


_fork = _Fork()
os.register_at_fork(before=_fork.before, after_in_parent=_fork.in_parent, after_in_child=_fork.in_child)
