"""Where the segments of an archive lie: in a place for objects, or as blobs of the store. Written, read back, kept ready."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from quire.core import segment
from quire.core.segment import SUFFIX, Segment
from quire.errors import CorruptRecord, StorageError, StorageUnavailable
from quire.failpoints import hit
from quire.model import Keyframe, Record
from quire.storage.base import Backend
from quire.storage.objects import Objects, open_objects
from quire.storage.wrap import ARCHIVE
from quire.storage.wrap._catalogue import About, Entry, about_of

log = logging.getLogger("quire.archive")

WITHIN = "store:"
"""Instead of the URL of a place: segments are blobs of the store itself. Nothing leaves it, it only takes less room."""
_CACHE_BYTES = 64 * 1024 * 1024
"""Of segments that were read; beyond it the least recently used are fetched again."""


def path_of(archive_id: str, name: str) -> str:
    """Return the name of a segment's object."""
    return f"archives/{archive_id}/segments/{name[:2]}/{name}{SUFFIX}"


class Shelf:
    """The segments of one namespace."""

    def __init__(self, inner: Backend, namespace: str, about: About, objects: Objects | None) -> None:
        """objects: None for what is opened when it is first needed."""
        self.place = about.place
        self._inner = inner
        self._namespace = namespace
        self._objects = objects
        self._cache: OrderedDict[str, tuple[Segment, int]] = OrderedDict()
        self._cached_bytes = 0
        self._fetching: dict[str, asyncio.Task[Segment]] = {}

    def segment(self, records: Sequence[Record], frames: Sequence[Keyframe]) -> Segment:
        """Return a segment of this namespace."""
        return Segment(self._namespace, records, sorted(frames, key=lambda k: k.version))

    async def put(self, new: Segment, *, within: bool) -> Entry:
        """Write a segment, read it back, and return how it is catalogued."""
        data = await asyncio.to_thread(segment.encode, new)
        name = segment.name_of(data)
        if within:
            await self._inner.put_blob(f"{ARCHIVE}/{name}", data)
        else:
            objects, about = await self._open(), await about_of(self._inner)
            await objects.put(path_of(about.id, name), data)
            hit("archive:put")
            if await objects.get(path_of(about.id, name), max_bytes=len(data)) != data:
                raise StorageUnavailable(f"{self.place} does not give back what was written to it; nothing was removed")
        versions = [r.version for r in new.records]
        positions = [r.position for r in new.records]
        full = versions == list(range(versions[0], versions[-1] + 1))
        return Entry(
            name=name,
            size=len(data),
            first=versions[0],
            last=versions[-1],
            low=min(positions),
            high=max(positions),
            keyframes=tuple(k.version for k in new.keyframes),
            versions=None if full else tuple(versions),
            within=within,
        )

    async def get(self, entry: Entry, stream: str) -> Segment:
        """Return a segment, checked against its name. Raises CorruptRecord, StorageUnavailable."""
        cached = self._cache.get(entry.name)
        if cached is not None:
            self._cache.move_to_end(entry.name)
            return cached[0]
        task = self._fetching.get(entry.name)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(entry, stream))
            self._fetching[entry.name] = task
            task.add_done_callback(lambda _: self._fetching.pop(entry.name, None))
        return await asyncio.shield(task)

    async def _fetch(self, entry: Entry, stream: str) -> Segment:
        what = f"the segment of {stream} {entry.first} to {entry.last}"
        if entry.within:
            data = await self._inner.blob(f"{ARCHIVE}/{entry.name}")
        else:
            try:
                path = path_of((await about_of(self._inner)).id, entry.name)
                data = await (await self._open()).get(path, max_bytes=entry.size)
            except StorageUnavailable as error:
                raise StorageUnavailable(f"{what} is in the archive, which cannot be asked now: {error}") from error
        if data is None or segment.name_of(data) != entry.name:
            gone = "gone" if data is None else "damaged"
            raise CorruptRecord(f"{what} is {gone} in {self.place}: bring it back from a backup of that", at=stream)
        found = await asyncio.to_thread(segment.decode, data, what)
        size = segment.weight(found.records) + sum(len(k.body) for k in found.keyframes)
        self._cache[entry.name] = (found, size)
        self._cached_bytes += size
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1][1]
        return found

    async def discard(self, entries: Iterable[Entry]) -> None:
        """Remove segments that no catalogue names any more. One that cannot be removed is only in the way."""
        about = await about_of(self._inner)
        for entry in entries:
            if (cached := self._cache.pop(entry.name, None)) is not None:
                self._cached_bytes -= cached[1]
            try:
                if entry.within:
                    await self._inner.drop_blob(f"{ARCHIVE}/{entry.name}")
                else:
                    await (await self._open()).delete(path_of(about.id, entry.name))
            except StorageError as error:
                log.warning("segment %s of archive %s should be removed, and is not: %s", entry.name, about.id, error)

    async def _open(self) -> Objects:
        if self.place == WITHIN:
            raise StorageUnavailable("the archive of this namespace is the store itself; there is no other place")
        if self._objects is None:
            self._objects = await open_objects(self.place)
        return self._objects

    async def names(self) -> list[str]:
        """Return the names of all objects of this archive."""
        return await (await self._open()).names(f"archives/{(await about_of(self._inner)).id}/")
