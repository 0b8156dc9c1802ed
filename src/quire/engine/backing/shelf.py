"""Where backups lie: the names of their objects in a place, and reading them back with nothing taken on trust.

    backups/manifests/<id>/<number>-<digest>.json
    backups/objects/<id>/<series>/segments/<aa>/<digest>.jsonl.zst
    backups/objects/<id>/<series>/inventories/<aa>/<digest>.jsonl.zst
    backups/objects/<id>/<series>/blobs/<aa>/<digest>

1. An object is named by the digest of its bytes, and a manifest is put last: what was interrupted is not a backup, and
   what it had put is used by the next one.
2. A series, a full backup and the incremental ones on it, stands alone: no object is shared with another. So damage to
   one leaves the others whole, and a series can be removed without asking who else needs it.
3. Manifests lie apart from objects, so that listing backups does not list all they consist of.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import msgspec
from blake3 import blake3

from quire.core import segment
from quire.core.segment import Segment
from quire.engine.backing import books
from quire.engine.backing.books import Inventory, Manifest, Piece, Shelved, damaged
from quire.engine.moving.loading import at_once
from quire.errors import CorruptRecord, IncompatibleFormat, Invalid, NotFound, QuireError
from quire.threads import aside

MANIFESTS = "backups/manifests/"
OBJECTS = "backups/objects/"
SEGMENTS, INVENTORIES, BLOBS = "segments", "inventories", "blobs"
_SUFFIX = {SEGMENTS: segment.SUFFIX, INVENTORIES: segment.SUFFIX, BLOBS: ""}


class Place(Protocol):
    """A place for objects: see quire.storage.objects."""

    url: str

    async def put(self, name: str, data: bytes) -> bool:
        """Keep bytes, durably; False if the name is taken."""
        ...

    async def get(self, name: str, *, max_bytes: int) -> bytes | None:
        """The bytes, or None."""
        ...

    async def names(self, prefix: str = "") -> list[str]:
        """Names below a folder."""
        ...

    async def delete(self, name: str) -> None:
        """Remove it."""
        ...


class Kept(msgspec.Struct, frozen=True):
    """A manifest and its name."""

    name: str
    manifest: Manifest


class Shelf:
    """The backups in one place."""

    def __init__(self, place: Place) -> None:
        self.place = place

    # manifests

    async def names(self, of: str = "") -> list[tuple[str, str]]:
        """Return id and name of every manifest, of one id or all, oldest first."""
        prefix = f"{MANIFESTS}{of}/" if of else MANIFESTS
        found: list[tuple[str, str]] = []
        for path in await self.place.names(prefix):
            of_id, _, name = path.removeprefix(MANIFESTS).partition("/")
            if books.number_of(name) is not None:
                found.append((of_id, name))
        return sorted(found)

    async def manifest(self, of: str, name: str) -> Manifest:
        """Return a manifest. Raises CorruptRecord, NotFound."""
        data = await self.place.get(f"{MANIFESTS}{of}/{name}", max_bytes=books.MANIFEST_MAX_BYTES)
        if data is None:
            raise NotFound(f"{self.place.url}: the manifest {name} is not there any more")
        found = books.read_manifest(name, data)
        if found.id != of:
            raise damaged(f"the manifest {name}", f"it is of {found.id} and lies with {of}")
        return found

    async def all(self, of: str = "") -> tuple[list[Kept], list[QuireError]]:
        """Return every manifest that is whole, oldest first, and what is wrong with the others."""
        names = await self.names(of)

        async def one(of_id: str, name: str) -> tuple[Kept | None, QuireError | None]:
            try:
                return Kept(name, await self.manifest(of_id, name)), None
            except (CorruptRecord, NotFound, IncompatibleFormat) as error:
                return None, error

        found = await at_once(one(*n) for n in names)
        whole = [kept for kept, _ in found if kept is not None]
        problems = [error for _, error in found if error is not None]
        return sorted(whole, key=lambda k: (k.manifest.number, k.name)), problems

    async def chain(self, kept: Kept) -> list[Kept]:
        """Return what a backup builds on, the full one first, itself last. Raises CorruptRecord, NotFound."""
        found = [kept]
        while (now := found[0].manifest).parent:
            before = await self.manifest(now.id, now.parent)
            if (before.series, before.upto) != (now.series, now.after) or before.number >= now.number:
                raise damaged(f"the manifest {found[0].name}", f"it does not go on from {now.parent}")
            found.insert(0, Kept(now.parent, before))
        return found

    async def put_manifest(self, manifest: Manifest) -> str:
        """Put a manifest and return its name."""
        data = books.write_manifest(manifest)
        name = books.manifest_name(manifest.number, data)
        await self.place.put(f"{MANIFESTS}{manifest.id}/{name}", data)
        return name

    # objects

    async def put(self, manifest_id: str, series: int, kind: str, data: bytes) -> tuple[Shelved, int]:
        """Keep an object; return what names it, and how many bytes that added.

        One that is there already is read, and put anew if it is not what its name says.
        """
        name = segment.name_of(data)
        path = _path(manifest_id, series, kind, name)
        if await self.place.put(path, data):
            return Shelved(name, len(data)), len(data)
        try:
            there = await self.place.get(path, max_bytes=len(data))
        except CorruptRecord:
            there = None
        if there != data:
            await self.place.delete(path)
            await self.place.put(path, data)
        return Shelved(name, len(data)), 0

    async def get(self, of: Manifest, kind: str, wanted: Shelved | Piece) -> bytes:
        """Return an object whose digest fits. Raises CorruptRecord, also where it is missing."""
        path = _path(of.id, of.series, kind, wanted.name)
        data = await self.place.get(path, max_bytes=wanted.bytes)
        if data is None:
            raise damaged(f"{path} in {self.place.url}", "it is missing")
        if len(data) != wanted.bytes or segment.name_of(data) != wanted.name:
            raise damaged(f"{path} in {self.place.url}", "its bytes do not match its name")
        return data

    async def segment(self, of: Manifest, piece: Piece) -> Segment:
        """Return what is in a segment, and what the manifest says of it. Raises CorruptRecord."""
        what = f"{_path(of.id, of.series, SEGMENTS, piece.name)} in {self.place.url}"
        found = await aside(segment.decode, await self.get(of, SEGMENTS, piece), what)
        positions = [r.position for r in found.records]
        if (
            found.namespace != of.namespace
            or len(positions) != piece.records
            or (positions[0], positions[-1]) != (piece.first, piece.last)
            or any(a >= b for a, b in pairwise(positions))
        ):
            raise damaged(what, "it is not what its manifest says")
        return found

    async def inventory(self, of: Manifest) -> Inventory:
        """Return the inventory of a backup. Raises CorruptRecord."""
        what = f"{_path(of.id, of.series, INVENTORIES, of.inventory.name)} in {self.place.url}"
        data = await self.get(of, INVENTORIES, of.inventory)
        found = await aside(books.read_inventory, data, what)
        if (len(found.streams), len(found.blobs), len(found.cells)) != (of.streams, of.blobs, of.cells):
            raise damaged(what, "it is not what its manifest says")
        return found

    async def missing(self, chain: Sequence[Kept], inventory: Inventory) -> list[str]:
        """Return which objects of a backup are not there. Cost: one listing of its series; no object is read."""
        last = chain[-1].manifest
        there = set(await self.place.names(f"{OBJECTS}{last.id}/{last.series:012d}/"))
        wanted = {_path(last.id, last.series, SEGMENTS, p.name) for k in chain for p in k.manifest.segments}
        wanted |= {_path(last.id, last.series, INVENTORIES, k.manifest.inventory.name) for k in chain}
        wanted |= {_path(last.id, last.series, BLOBS, b.name) for b in inventory.blobs.values()}
        return sorted(wanted - there)

    async def series(self, of: str) -> dict[int, list[str]]:
        """Return the objects of every series of an id, by its number. Cost: one listing."""
        found: dict[int, list[str]] = {}
        for path in await self.place.names(f"{OBJECTS}{of}/"):
            number = path.removeprefix(f"{OBJECTS}{of}/").partition("/")[0]
            if number.isdigit():
                found.setdefault(int(number), []).append(path)
        return found


def chosen(kept: Sequence[Kept], url: str, *, store: str | None, namespace: str | None, number: int | None) -> Kept:
    """Return the backup that is meant: the newest, unless a number is given.

    store: the id of the namespace it was taken of; needed only where a place has those of several of one name.
    Raises NotFound, Invalid where it is not clear.
    """
    found = [k for k in kept if store is None or k.manifest.id.startswith(store)]
    if store is None:  # of that namespace, if there are any
        found = [k for k in found if k.manifest.namespace == namespace] or found
    found = [k for k in found if number is None or k.manifest.number == number]
    if not found:
        what = "no backup" if number is None else f"no backup {number}"
        of = f" of {store}" if store else ""
        raise NotFound(f"{url} has {what}{of}; `quire backups PLACE` lists what is there")
    ids = sorted({k.manifest.id for k in found})
    if len(ids) > 1:
        raise Invalid(
            f"{url} has backups of {len(ids)} stores ({', '.join(ids[:5])}): say which, with `of=` or --of; "
            "`quire backups PLACE` tells them apart"
        )
    return max(found, key=lambda k: (k.manifest.number, k.manifest.taken_at, k.name))


def _path(of: str, series: int, kind: str, digest: str) -> str:
    return f"{OBJECTS}{of}/{series:012d}/{kind}/{digest[:2]}/{digest}{_SUFFIX[kind]}"


def digest_of(values: object) -> str:
    """Return the digest of something that JSON can say."""
    return blake3(msgspec.json.encode(values, order="deterministic")).hexdigest()
