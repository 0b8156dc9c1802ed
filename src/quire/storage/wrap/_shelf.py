"""Where the segments of an archive lie: in a place for objects, or as blobs of the store. Written, read back, kept ready.

1. No two segments have one name, whatever is in them: each has a salt. So who removes one can never remove what somebody
   else just wrote.
2. What was written is read back, expanded and compared before it counts as written.
3. The place is that of the namespace's cell, asked each time: another process may have moved the archive.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from quire.core import segment
from quire.core.segment import SUFFIX, Segment
from quire.errors import CorruptRecord, NotFound, StorageUnavailable
from quire.failpoints import hit
from quire.model import Keyframe, Record
from quire.storage.base import Backend
from quire.storage.objects import Objects, open_objects
from quire.storage.wrap import ARCHIVE
from quire.storage.wrap._catalogue import About, Catalogue, Entry, Loose, about_of
from quire.threads import aside

log = logging.getLogger("quire.archive")

WITHIN = "store:"
"""Instead of the URL of a place: segments are blobs of the store itself. Nothing leaves it, it only takes less room."""
_CACHE_BYTES = 64 * 1024 * 1024
"""Of segments that were read; beyond it the least recently used are fetched again."""


def path_of(archive_id: str, name: str) -> str:
    """Return the name of a segment's object."""
    return f"archives/{archive_id}/segments/{name[:2]}/{name}{SUFFIX}"


class Made(NamedTuple):
    """A segment that is not written yet. place: where it is to go, None for within."""

    entry: Entry
    content: Segment
    data: bytes
    place: str | None


class Shelf:
    """The segments of one namespace."""

    def __init__(self, inner: Backend, namespace: str, objects: Objects | None) -> None:
        """objects: None for what is opened when it is first needed."""
        self._inner = inner
        self._namespace = namespace
        self._objects = objects
        self._cache: OrderedDict[str, tuple[Segment, int]] = OrderedDict()
        self._cached_bytes = 0
        self._fetching: dict[str, asyncio.Task[Segment]] = {}

    async def make(
        self,
        records: Sequence[Record],
        frames: Sequence[Keyframe],
        *,
        within: bool | None = None,
        unplaced: bool = False,
    ) -> Made:
        """Return a segment and how it is to be catalogued. Nothing is written.

        within: None for where the namespace says.  unplaced: the positions are of another store, and mean nothing.
        """
        place = (await about_of(self._inner)).place
        within = place == WITHIN if within is None else within
        frames = sorted(frames, key=lambda k: k.version)
        content = Segment(self._namespace, list(records), frames, secrets.token_hex(8))
        data = await aside(segment.encode, content)
        versions = [r.version for r in records]
        positions = [0] if unplaced else [r.position for r in records]
        full = versions == list(range(versions[0], versions[-1] + 1))
        entry = Entry(
            name=segment.name_of(data),
            size=len(data),
            first=versions[0],
            last=versions[-1],
            low=min(positions),
            high=max(positions),
            keyframes=tuple(k.version for k in frames),
            versions=None if full else tuple(versions),
            within=within,
            weight=_weight(content),
        )
        return Made(entry, content, data, None if within else place)

    async def put(self, made: Made) -> None:
        """Write a segment and read it back. Raises StorageError; then it may be there or not."""
        name = made.entry.name
        if made.place is None:
            await self._inner.put_blob(f"{ARCHIVE}/{name}", made.data)
            hit("archive:put")
            found = await self._inner.blob(f"{ARCHIVE}/{name}")
        else:
            about = await about_of(self._inner)
            objects, path = await self._open(about), path_of(about.id, name)
            await objects.put(path, made.data)
            hit("archive:put")
            found = await objects.get(path, max_bytes=len(made.data))
        back = found == made.data and await aside(segment.decode, made.data, "what was just written")
        if back != made.content:
            where = made.place or "the store"
            raise StorageUnavailable(f"{where} does not give back what was written to it; nothing was removed")
        self._keep(name, made.content)

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
        found = await self.examine(entry, stream)
        self._keep(entry.name, found)
        return found

    async def frame(self, known: Catalogue, stream: str, at: int) -> Keyframe | None:
        """Return the newest keyframe at or before a version. Raises CorruptRecord, StorageUnavailable."""
        place = known.framed(at)
        if place is None:
            return None
        entry, version = place
        return next((k for k in (await self.get(entry, stream)).keyframes if k.version == version), None)

    async def examine(self, entry: Entry, stream: str) -> Segment:
        """Return a segment as it is there now, whatever was read before. Raises CorruptRecord, StorageUnavailable."""
        what = f"the segment of {stream} {entry.first} to {entry.last}"
        place = "the store"
        if entry.within:
            data = await self._inner.blob(f"{ARCHIVE}/{entry.name}")
        else:
            about = await about_of(self._inner)
            place = about.place
            try:
                data = await (await self._open(about)).get(path_of(about.id, entry.name), max_bytes=entry.size)
            except (StorageUnavailable, NotFound) as error:
                raise StorageUnavailable(
                    f"{what} is in the archive in {place}, which cannot be asked now: {error}"
                ) from error
            except CorruptRecord as error:
                raise _damaged(what, "damaged in", place, stream) from error
        if data is None or segment.name_of(data) != entry.name:
            raise _damaged(what, "gone from" if data is None else "damaged in", place, stream)
        found = await aside(segment.decode, data, what)
        if [r.version for r in found.records if r.stream == stream and entry.holds(r.version)] != _versions(entry):
            raise _damaged(what, "another one's in", place, stream)
        return found

    def _keep(self, name: str, content: Segment) -> None:
        self._forget(name)
        size = _weight(content)
        self._cache[name] = (content, size)
        self._cached_bytes += size
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1][1]

    def _forget(self, name: str) -> None:
        if (cached := self._cache.pop(name, None)) is not None:
            self._cached_bytes -= cached[1]

    async def remove(self, loose: Iterable[Loose]) -> None:
        """Remove segments that no catalogue names. Raises StorageError at the first that cannot be."""
        about = await about_of(self._inner)
        for each in loose:
            self._forget(each.name)
            if each.within:
                await self._inner.drop_blob(f"{ARCHIVE}/{each.name}")
            else:
                await (await self._open(about)).delete(path_of(about.id, each.name))

    async def _open(self, about: About) -> Objects:
        if about.place == WITHIN:
            raise StorageUnavailable("the archive of this namespace is the store itself; there is no other place")
        if self._objects is None or self._objects.url != about.place:
            self._objects = await open_objects(about.place, tried=False)
        return self._objects

    async def names(self) -> list[str]:
        """Return the names of all objects of this archive."""
        about = await about_of(self._inner)
        return await (await self._open(about)).names(f"archives/{about.id}/")


def _weight(content: Segment) -> int:
    return segment.weight(content.records) + segment.frame_weight(content.keyframes)


def _versions(entry: Entry) -> list[int]:
    return list(range(entry.first, entry.last + 1)) if entry.versions is None else list(entry.versions)


def _damaged(what: str, how: str, place: str, stream: str) -> CorruptRecord:
    return CorruptRecord(f"{what} is {how} {place}: bring it back from a backup of that", at=stream)
