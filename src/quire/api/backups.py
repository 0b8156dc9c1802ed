"""Backups, as callers see them: taken of an open store, listed, checked, removed. Bringing them back is in recovery.py.

A place is named by a URL, `file:///folder` or `s3://bucket/prefix`; it may hold the backups of many stores. What a backup
is made of is told in quire.engine.backing, and in docs/format.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime

import msgspec

from quire.engine.backing import mending, pruning, taking
from quire.engine.backing.books import Kind
from quire.engine.backing.finding import Finder
from quire.engine.backing.mending import Mended
from quire.engine.backing.pruning import Pruned
from quire.engine.backing.shelf import Kept, Shelf, chosen
from quire.engine.backing.taking import Source
from quire.engine.engine import Engine
from quire.errors import CorruptRecord, InvalidKey, NotFound, QuireError, StorageError, Unsupported
from quire.storage.base import BACKUP, Backend
from quire.storage.objects import SCHEMES, open_objects
from quire.storage.open import Seal, stored

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_KEYRING = "quire:keyring"

Progress = Callable[[int, int], None]
"""Called with the position reached and the one to reach; must not wait."""


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """One backup in a place.

    store: id of what it was taken of, which stays the same.  number: 1, 2, 3... of that store.  series: number of the full
    one it builds on.  why: what is to be said of it.  position: it has everything committed up to there.
    versions: that it added.  workflows are among `streams`.  added_bytes: what it added to the place.
    problem: why it cannot be used; "" where nothing is known.
    """

    place: str
    store: str
    number: int
    series: int
    kind: Kind
    why: str
    namespace: str
    backend: str
    encrypted: bool
    taken_at: datetime
    position: int
    versions: int
    streams: int
    blobs: int
    cells: int
    added_bytes: int
    problem: str = ""


class Checked(msgspec.Struct, frozen=True):
    """What was found when backups were read. problems: sentences; empty when all are whole."""

    backups: int
    objects: int
    size_bytes: int
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def is_place(dest: str) -> bool:
    """Whether a destination names a place for backups, by its scheme; a plain path is one for a copy in one file.

    >>> is_place("file:///backups"), is_place("s3://bucket/x"), is_place("copy.db"), is_place("./a:b.db")
    (True, True, False, False)
    """
    found = _SCHEME.match(dest)
    return found is not None and found[1].lower() in SCHEMES


async def take(
    engine: Engine, namespace: str, dest: str, *, full: bool, progress: Progress | None, shelf: Shelf | None = None
) -> Backup:
    """Back up what an engine holds to a place: see `Store.backup`."""
    engine.check_open("back it up")
    shelf = shelf or Shelf(await open_objects(dest))
    async with engine.key_lock("backup"):
        taken = await taking.take(
            await source_of(engine.backend, namespace, engine.committer.turn),
            shelf,
            ids=engine.ids,
            now_ms=engine.clock.now_ms(),
            full=full,
            tell=progress,
        )
    return _backup(shelf, taken.kept)


async def copy_in_one(engine: Engine, path: str) -> None:
    """Write what the backend makes in one file or folder: see `Store.backup`."""
    if not path:
        raise InvalidKey("a backup needs the path of a new file, or the URL of a place such as file:///backups")
    if _SCHEME.match(path) and not path.startswith((".", "/")) and "://" in path:
        raise InvalidKey(
            f"{path.partition(':')[0]}: is no place for backups; known are {', '.join(SCHEMES)}, or a path"
        )
    try:
        await engine.backend.backup(path)
    except Unsupported as cause:
        raise Unsupported(
            f"{cause}; or back it up to a place: file:///{path} makes one of a folder", capability=cause.capability
        ) from cause


async def source_of(
    backend: Backend, namespace: str, turn: AbstractAsyncContextManager[object] | None = None
) -> Source:
    """Return what backups are taken of. turn: held by whoever commits to this handle."""
    bare = stored(backend)
    return Source(bare, Seal(backend), namespace, await bare.cell(_KEYRING) is not None, turn or nullcontext())


async def mend(engine: Engine, namespace: str, place: str | None) -> Mended:
    """Mend what an engine holds, with the backups in a place: see `Store.repair`."""
    engine.check_open("mend it")
    finder = None
    if place is not None:
        source = await source_of(engine.backend, namespace)
        shelf = Shelf(await open_objects(place))
        kept, problems = await shelf.all()
        cell = await source.bare.cell(BACKUP)
        of = None if cell is None else cell.value.decode(errors="replace")
        mine = [k for k in kept if of is None or k.manifest.id == of]
        newest = {k.manifest.series: k for k in mine if k.manifest.namespace == namespace}
        if not newest:
            raise problems[0] if problems else NotFound(f"{shelf.place.url} has no backup of this store")
        series = [newest[n] for n in sorted(newest, reverse=True)]
        finder = Finder(shelf, source.shown, series, await taking.redacted(source.bare))
    return await mending.mend(engine, finder)


async def backups(place: str, *, of: str | None = None) -> list[Backup]:
    """List the backups in a place, oldest first, of one store or of all. of: the id of a store, or how it begins.

    One that lacks another it builds on says so in `problem`; what its objects hold is not read, see `check_backups`.
    Raises InvalidKey, StorageError, CorruptRecord where none can be read. Cost: reads every manifest.
    """
    shelf = Shelf(await open_objects(place))
    kept, problems = await shelf.all()
    if problems and not kept:
        raise problems[0]
    names = {k.name for k in kept}
    found = [
        _backup(shelf, k, "" if k.manifest.parent in {"", *names} else f"{k.manifest.parent[:21]} is missing")
        for k in kept
        if of is None or k.manifest.id.startswith(of)
    ]
    return sorted(found, key=lambda b: (b.store, b.number, b.taken_at))


async def check_backups(place: str, *, of: str | None = None, number: int | None = None) -> Checked:
    """Read every object of the backups in a place and compare it with its digest, without any store or key.

    of, number: only of one store, only one backup with what it builds on.
    Every object that is missing, cut off or altered is named. Raises InvalidKey, StorageError where the place fails.
    Cost: reads everything there once.
    """
    shelf = Shelf(await open_objects(place))
    kept, wrong = await shelf.all()
    problems = [str(error) for error in wrong]
    mine = [k for k in kept if of is None or k.manifest.id.startswith(of)]
    if number is not None:
        mine = (await shelf.chain(chosen(mine, place, store=of, namespace=None, number=number))) if mine else []
    objects: dict[tuple[str, int, str], int] = {}
    for each in mine:
        await _check(shelf, each, objects, problems)
    return Checked(len(mine), len(objects), sum(objects.values()), list(dict.fromkeys(problems)))


async def _check(shelf: Shelf, kept: Kept, objects: dict[tuple[str, int, str], int], problems: list[str]) -> None:
    """Read what one backup consists of."""
    m = kept.manifest
    try:
        await shelf.chain(kept)
    except StorageError as error:
        _noted(error, problems)
    except QuireError as error:
        problems.append(str(error))
    for piece in m.segments:
        if (m.id, m.series, piece.name) not in objects:
            try:
                await shelf.segment(m, piece)
            except StorageError as error:
                _noted(error, problems)
            objects[m.id, m.series, piece.name] = piece.bytes
    try:
        inventory = await shelf.inventory(m)
    except StorageError as error:
        _noted(error, problems)
        return
    objects[m.id, m.series, m.inventory.name] = m.inventory.bytes
    for shelved in inventory.blobs.values():
        if (m.id, m.series, shelved.name) not in objects:
            try:
                await shelf.get(m, "blobs", shelved)
            except StorageError as error:
                _noted(error, problems)
            objects[m.id, m.series, shelved.name] = shelved.bytes


def _noted(error: StorageError, problems: list[str]) -> None:
    if error.retryable:
        raise error
    problems.append(str(error))


async def prune_backups(
    place: str, *, keep: int = 10, days: float = 30.0, of: str | None = None, dry_run: bool = True
) -> Pruned:
    """Remove backups that are not among the newest `keep` of their store, or are older than `days`.

    The newest stays, and so does every one that a wanted one builds on. dry_run: only say what would go; give False to do it.
    Raises Invalid, InvalidKey, StorageError: call it again. Cost: reads every manifest, lists the objects.
    """
    shelf = Shelf(await open_objects(place))
    return await pruning.prune(shelf, of=of or "", keep=keep, days=days, now_ms=now_ms(), done=not dry_run)


def _backup(shelf: Shelf, kept: Kept, problem: str = "") -> Backup:
    m = kept.manifest
    return Backup(
        place=shelf.place.url,
        store=m.id,
        number=m.number,
        series=m.series,
        kind=m.kind,
        why=m.why,
        namespace=m.namespace,
        backend=m.backend,
        encrypted=m.sealed,
        taken_at=moment_of(m.taken_at),
        position=m.upto,
        versions=m.records,
        streams=m.streams,
        blobs=m.blobs,
        cells=m.cells,
        added_bytes=m.added_bytes,
        problem=problem,
    )


def moment_of(ms: int) -> datetime:
    """Return the moment a manifest tells of. Raises CorruptRecord."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as cause:
        raise CorruptRecord(f"a manifest says that it was made at {ms!r}, which is no time", at="taken_at") from cause


def now_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1_000_000
