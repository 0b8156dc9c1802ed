"""A folder of files that a person can read: one file of JSON lines for each workflow.

1. One thread writes (_files_write.py); a call of `commit` is one frame of a journal and one sync (_files_journal.py).
2. Reads go to other threads. They need no lock: they see what was committed when they began (_files_read.py).
3. `latest` is asked on the event loop's own thread: it is one small read of a file that the system has in memory.
4. What looks damaged to a reader is looked at again while nobody writes: only then it is damage.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from quire import forks
from quire.core.names import is_ending
from quire.errors import Closed, CorruptRecord, InvalidKey
from quire.model import Cell, Head, Keyframe, Record
from quire.storage import _files_care as care
from quire.storage import _files_place as places
from quire.storage._files_cells import CELLS, Cells, expired
from quire.storage._files_journal import State
from quire.storage._files_place import Place
from quire.storage._files_read import Reader
from quire.storage._files_write import Writer
from quire.storage._jobs import Jobs
from quire.storage._vitals import bytes_of, disk_of, within
from quire.storage._waiting import Polling
from quire.storage.base import Capabilities, Item, Outcome, StorageStats, Tally, Vitals, tally_of
from quire.threads import apart

T = TypeVar("T")

_READERS = 2
"""How often commits of other processes are looked for."""
_DAMAGED_MAX = 16
"""Damaged places that are remembered and looked at again for `vitals`."""
_COPIES = 3
"""How often a copy is begun beside writers that replace files; then they have to wait."""
_LAST_S = 0.5
"""How long closing waits for the lock, to bring the journal into the files; who opens next can do so too."""


async def open_files(
    path: str, *, namespace: str, extension: str | None = None, now_ms: Callable[[], int] | None = None
) -> FilesBackend:
    """Open a folder as a store, making it if it is absent or empty.

    path: the folder; the one around it must exist.  namespace: what is seen of it.
    extension: how workflows' files end, a dot and 1 to 16 letters and digits; `.state` for a new store where None. It
    stays, and is in `quire.json`.  now_ms: the clock that cells expire by, UTC milliseconds.
    Raises Invalid for another extension than the store's, InvalidKey, IncompatibleFormat, StorageUnavailable, StorageTimeout, StorageFull, CorruptRecord.
    Cost: independent of what it holds, after a crash at most what is in the journal.
    """
    clock = now_ms or (lambda: time.time_ns() // 1_000_000)
    if extension is not None and not is_ending(extension):
        raise InvalidKey(f"extension={extension!r}: a dot is needed, then 1 to 16 letters and digits, as in .json")
    backend = FilesBackend(path, namespace, clock, extension)
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend


class FilesBackend:
    """A namespace of a folder. Made by `open_files`."""

    capabilities = Capabilities(
        backend="files",
        durability="power",
        multi_process=True,
        backup=True,
        note="every acknowledged write is on the disk; the folder has to be on a local one",
    )

    def __init__(self, path: str, namespace: str, now_ms: Callable[[], int], extension: str | None) -> None:
        self._path = path = os.path.realpath(path)
        self._namespace = namespace
        self._now_ms = now_ms
        self._extension = extension
        self._pid = os.getpid()
        forks.keep(self)
        self._closed = False
        self._damaged: dict[str, Callable[[State], object]] = {}
        """Reads that met damage, by what was damaged."""
        self._place: Place | None = None
        translate = partial(places.ours, path=path)
        self._translate = translate
        self._worker = Jobs("quire-files-writer", translate, self._rest)
        self._readers = [Jobs(f"quire-files-reader-{i}", translate) for i in range(_READERS)]
        self._news = Polling()

    async def start(self) -> None:
        """Make the folder, or recognise it."""
        await self._worker.do(self._start)

    def _start(self) -> None:
        places.claim(self._path)
        self._place = place = Place(self._path, self._namespace, self._extension)
        place.open()
        self._reader = Reader(place.disk, self._namespace, place.ending)
        self._cells = Cells(place.disk.at(f"{place.base}{CELLS}"), self._namespace)
        self._writer = Writer(place, self._reader, self._cells, self._now_ms)

    def _rest(self) -> None:
        if self._place is not None and not self._closed:
            self._writer.rest()

    def _alive(self) -> Place:
        if self._closed or self._place is None:
            raise Closed("the store is closed; open it again")
        forks.check(self._pid)
        return self._place

    async def _read(self, job: Callable[[State], T]) -> T:
        """Run a job as of now; where it meets damage, once more while nobody writes."""
        place = self._alive()
        try:
            found = await min(self._readers, key=lambda r: r.waiting).do(lambda: job(place.journal.published()))
            place.inodes.look(0)  # afterwards, as what was not found by its name may be gone with the folder
            return found
        except CorruptRecord:
            self._alive()
            try:
                return await self._worker.do(lambda: self._held(job))
            except CorruptRecord as error:
                if len(self._damaged) < _DAMAGED_MAX:
                    self._damaged[error.at] = job
                raise

    def _damage(self, state: State) -> list[str]:
        """Return what was found damaged, and is so still, in words."""
        said = self._reader.gone(state)
        for at, job in list(self._damaged.items()):
            try:
                job(state)
                self._damaged.pop(at, None)
            except CorruptRecord as error:
                said.append(str(error))
        return list(dict.fromkeys(said))

    def _held(self, job: Callable[[State], T]) -> T:
        with self._alive().held() as state:
            return job(state)

    def _change(self, job: Callable[[], T]) -> asyncio.Future[T]:
        self._alive()
        return self._worker.do(job)

    # log

    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, in one frame of the journal."""
        outcomes = await self._change(lambda: self._writer.commit(items))
        self._news.wake()
        return outcomes

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first."""
        return await self._read(lambda state: self._reader.read(state, stream, after=after, upto=upto, limit=limit))

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment."""
        return await self._read(lambda state: self._reader.heads(state, streams))

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        return await self._read(lambda state: self._reader.streams(state, prefix, after=after, limit=limit))

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count streams by their heads. Cost: looks into every file."""
        return await self._read(
            lambda state: tally_of(self._reader.heads(state, self._reader.streams(state, prefix)), but)
        )

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """Records of this namespace with position > after, in commit order."""
        return await self._read(lambda state: self._reader.feed(state, after, limit))

    async def latest(self) -> int:
        """The newest position of the folder. A few microseconds."""
        place = self._alive()
        try:
            place.inodes.look()
            return place.journal.published().position
        except CorruptRecord:
            return await self._worker.do(lambda: self._held(lambda state: state.position))
        except OSError as error:
            raise self._translate(error) from error

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait for a commit: our own wakes at once, others' are looked for every 2 to 50 ms."""
        return await self._news.past(after, self.latest, timeout_s)

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's; return how many. Cost: writes the file anew."""
        return await self._change(lambda: self._writer.trim(stream, upto))

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes."""
        await self._change(lambda: self._writer.drop(stream))

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body; return how many were found. Cost: writes their files anew."""
        return await self._change(lambda: self._writer.rewrite(records))

    # keyframes

    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version."""
        await self._change(lambda: self._writer.put_keyframe(keyframe))

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at. Raises CorruptRecord if it does not match its checksum."""
        return await self._read(lambda _: self._reader.keyframe(stream, at))

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        return await self._read(lambda _: self._reader.keyframes(stream))

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        await self._change(lambda: self._writer.drop_keyframes(stream, versions))

    # blobs

    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content."""
        await self._change(lambda: self._writer.put_blob(name, data))

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None. Raises CorruptRecord if they do not match their checksum."""
        return await self._read(lambda _: self._reader.blob(name))

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        await self._change(lambda: self._writer.drop_blob(name))

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted. Cost: lists all of them."""
        return await self._read(lambda _: self._reader.blobs(after=after, limit=limit))

    # cells

    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired. Raises CorruptRecord where a checksum fails."""
        found = await self._read(lambda state: self._cells.at(state).get(name))
        return None if found is None or expired(found, self._now_ms()) else found

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        held = await self._read(self._cells.at)
        now = self._now_ms()
        wanted = sorted(name for name in held if name.startswith(prefix) and name > after)
        return [held[name] for name in wanted if not expired(held[name], now)][:limit]

    # care

    async def check(self) -> list[str]:
        """Problems of the whole folder in words. Cost: reads everything; twice, without writers, if there are any."""
        place = self._alive()

        def job(state: State) -> list[str]:
            return care.problems(place, state)

        return await self._read(job) and await self._change(lambda: self._held(job))

    async def stats(self) -> StorageStats:
        """Counts of this namespace; the size is of the whole folder. Cost: looks at every file."""
        return await self._read(lambda state: care.counts(self._reader, self._cells, state, self._path))

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How the disk is, and how large the journal. What all files take is not counted: that looks at each."""
        place = self._alive()

        def job() -> Vitals:
            disk = disk_of(self._path)
            return Vitals(
                place=self._path,
                read_only=disk.read_only,
                disk_free_bytes=disk.free_bytes,
                disk_total_bytes=disk.total_bytes,
                file_system=disk.file_system,
                log_bytes=bytes_of(place.journal.path),
                warnings=(*disk.warnings(self._path), *self._damage(place.journal.published())),
            )

        async with within(timeout_s, self._path):
            return await min(self._readers, key=lambda r: r.waiting).do(job)

    async def scrub(self) -> None:
        """Write feeds and cells anew, and empty the journal. Cost: reads everything."""
        await self._change(self._writer.scrub)

    async def backup(self, path: str) -> None:
        """Copy to a new folder while writers go on; it appears under its name only when it is whole.

        Raises InvalidKey if there is something of that name.
        """
        place = self._alive()

        def begin(state: State) -> tuple[dict[str, int], State]:
            return care.manifest(self._path), state

        for _ in range(_COPIES):
            moment = await self._change(lambda: self._held(begin))
            with suppress(care.Changed):
                return await self._readers[0].do(partial(care.copy, place, *moment, path))
        return await self._change(lambda: self._held(lambda s: care.copy(place, begin(s)[0], s, path)))

    async def recover(self) -> None:
        """After a failed commit, see to it that it is not stored, or find that another process finished it.

        Raises StorageError while that cannot be said; call it again then.
        """
        await self._change(self._writer.settle)

    async def close(self) -> None:
        """Finish what was begun, release everything. In the child of a fork it does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._news.wake()
        await apart(self._stop)

    def _stop(self) -> None:
        for jobs in (*self._readers, self._worker):
            jobs.stop()
        if self._place is not None:
            # what stays in the journal is as durable as in the files, and whoever opens the store next moves it there
            with suppress(Exception):
                self._writer.rest(within_s=_LAST_S)
            self._place.close()
