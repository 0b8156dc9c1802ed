"""Backups, as callers see them: taken of an open store, listed, checked, removed, and brought back to any store.

A place is named by a URL, `file:///folder` or `s3://bucket/prefix`; it may hold the backups of many stores. What a backup
is made of is told in quire.engine.backing, and in docs/format.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import msgspec

from quire.engine.backing import mending, pruning, recovering, taking
from quire.engine.backing.books import Kind
from quire.engine.backing.finding import Finder
from quire.engine.backing.mending import Mended
from quire.engine.backing.plan import Plan, planned
from quire.engine.backing.pruning import Pruned
from quire.engine.backing.recovering import Recovering, Recovery, View
from quire.engine.backing.shelf import Kept, Shelf, chosen
from quire.engine.backing.taking import Source
from quire.engine.clock import system_ids
from quire.engine.engine import Engine
from quire.errors import Closed, CorruptRecord, Invalid, InvalidKey, NotFound, QuireError, StorageError, Unsupported
from quire.storage.base import BACKUP, Backend
from quire.storage.objects import SCHEMES, open_objects
from quire.storage.open import Seal, elsewhere, open_bare, stored, wrapped

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


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What was brought back, or, with `dry_run`, would be.

    number: of the backup.  position: of the store it was taken of, up to which everything is there.
    versions, size_bytes: brought by this call; what an interrupted call had brought is not counted again.
    gone: workflows that were there before and are not any more.  back: those that went back, with the version before and
    after.  incomplete: streams that nobody can bring back as they were then, because they were trimmed before a backup.
    follows: versions right behind the position with the time of the last one: they may have been one transaction with it.
    before: number of the backup of what was replaced, None where nothing was, and its store.
    """

    place: str
    store: str
    number: int
    taken_at: datetime
    position: int
    streams: int
    versions: int
    blobs: int
    cells: int
    size_bytes: int
    gone: list[str]
    back: dict[str, tuple[int, int]]
    incomplete: list[str]
    follows: int
    before: int | None
    before_store: str
    dry_run: bool


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
    if engine.closed:
        raise Closed("the store is closed; open it again to back it up")
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
    if engine.closed:
        raise Closed("the store is closed; open it again to mend it")
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
    return await pruning.prune(shelf, of=of or "", keep=keep, days=days, now_ms=_now_ms(), done=not dry_run)


async def recover(
    place: str,
    url: str,
    *,
    namespace: str | None = None,
    encryption_key: bytes | None = None,
    of: str | None = None,
    number: int | None = None,
    at: int | datetime | str | None = None,
    replace: bool = False,
    unsaved: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Recovered:
    """Bring a backup back to the store at a URL, of whatever kind; nobody else may have that namespace open.

    namespace: where to; None for the one it was taken of, and an encrypted one goes nowhere else.  encryption_key: of an
    encrypted one, also `?encryption_key_file=` of the URL.  of: the id of the store it was taken of, needed where the
    place has those of several of that namespace.  number: of the backup; None for the newest.
    at: back to a point in time before its end: a position (`version.position`), or a moment, a datetime with its zone or a
    text such as "2026-01-31T12:00", in UTC where it names no zone. See `plan.py` for what that says of cells and blobs.
    replace: put it in the place of what is there, which is backed up to the same place before; without, the namespace must
    be empty.  unsaved: replace even what cannot be backed up because it is damaged.
    dry_run: read and check everything, say what would be done, and change nothing.
    While it lasts nobody can open the namespace. Whoever was interrupted gives the same call again, and it is finished.
    Raises NotFound, Invalid where it is not clear what is meant, AlreadyExists where something is there, Denied without the
    key, CorruptRecord for damage in the backup or in what is to be saved, StorageError: call it again.
    Cost: reads the backup once and writes what it has; with dry_run it is only read.
    """
    shelf = Shelf(await open_objects(place))
    moment = _at(at)
    bare, key, compression = None, encryption_key, None
    if not dry_run or not _absent(url):
        bare, key, compression = await open_bare(url, namespace=namespace or "default", encryption_key=encryption_key)
    try:
        kept, moment = await _meant(shelf, bare, of=of, namespace=namespace, number=number, at=moment)
        there = namespace or kept.manifest.namespace
        if bare is not None and there != (namespace or "default"):
            await bare.close()
            bare, key, compression = await open_bare(url, namespace=there, encryption_key=encryption_key)
            kept, moment = await _meant(shelf, bare, of=of, namespace=namespace, number=number, at=moment)
        _fits(kept, there, key, compression)
        plan = await planned(shelf, kept, moment)
        view = cast("Backend", View(plan, shelf))
        shown = Seal(await wrapped(view, kept.manifest.namespace, key, archived=False))
        tell = progress or taking.silent
        before = {} if bare is None else await recovering.workflows(bare)
        if dry_run:
            found = await recovering.rehearse(plan, shelf, shown, tell)
            return _recovered(shelf, plan, found, before, None, dry_run=True)
        assert bare is not None, "only a rehearsal does without a target"

        async def saved() -> str:
            return await _saved(shelf, bare, there, key, unsaved=unsaved, tell=tell)

        wrap = partial(wrapped, namespace=there, encryption_key=key, compression=compression, archived=False)
        work = Recovery(plan, shelf, bare, shown, wrap, elsewhere=elsewhere, now_ms=_now_ms(), tell=tell)
        mark = await work.mark(replace=replace, before=saved)
        found = await work.done(mark)
        return _recovered(shelf, plan, found, before, mark, dry_run=False)
    finally:
        if bare is not None:
            await bare.close()


async def _meant(
    shelf: Shelf,
    bare: Backend | None,
    *,
    of: str | None,
    namespace: str | None,
    number: int | None,
    at: int | datetime | None,
) -> tuple[Kept, int | datetime | None]:
    """Return the backup that is meant; where a recovery was interrupted and nothing else is asked for, that one's."""
    kept, problems = await shelf.all()
    now = None if bare is None else await recovering.begun(bare)
    if now is not None and number is None:
        same = [k for k in kept if (k.manifest.id, k.name) == (now.id, now.manifest)]
        if same and (at is None or now.cut == at):
            return same[0], now.cut
    if problems and not kept:
        raise problems[0]
    return chosen(kept, shelf.place.url, store=of, namespace=namespace, number=number), at


def _fits(kept: Kept, there: str, key: bytes | None, compression: object) -> None:
    """Make sure that a backup can be read and written as is asked. Raises Invalid."""
    m = kept.manifest
    if m.sealed and there != m.namespace:
        raise Invalid(
            f"backup {m.number} is of the encrypted namespace {m.namespace} and is bound to that name: recover it there, "
            "and copy it to another afterwards"
        )
    if not m.sealed and key is not None:
        raise Invalid(
            f"backup {m.number} is not encrypted: recover it without a key, and copy it to an encrypted store afterwards"
        )
    del compression


async def _saved(
    shelf: Shelf, bare: Backend, namespace: str, key: bytes | None, *, unsaved: bool, tell: Progress
) -> str:
    """Back up what is about to be replaced; return the name of that backup."""
    try:
        backend = await wrapped(bare, namespace, key, archived=False)
        taken = await taking.take(
            await source_of(backend, namespace),
            shelf,
            ids=system_ids(),
            now_ms=_now_ms(),
            why="taken before it was replaced",
            checked=False,
            tell=tell,
        )
    except (CorruptRecord, QuireError) as error:
        if error.retryable or unsaved:
            if unsaved:
                return ""
            raise
        error.add_note(
            "what is there cannot be backed up, so nothing was replaced: set a copy of its file or folder aside, and say "
            "that it may be replaced unsaved (--unsaved)"
        )
        raise
    return f"{taken.kept.manifest.id}/{taken.kept.name}"


def _recovered(
    shelf: Shelf,
    plan: Plan,
    found: recovering.Found,
    before: dict[str, int],
    mark: Recovering | None,
    *,
    dry_run: bool,
) -> Recovered:
    m = plan.last.manifest
    now = {s.removeprefix("workflows/"): v for s, (v, _) in found.heads.items() if s.startswith("workflows/")}
    store, _, name = ("" if mark is None else mark.before).partition("/")
    return Recovered(
        place=shelf.place.url,
        store=m.id,
        number=m.number,
        taken_at=_time(m.taken_at),
        position=plan.cut,
        streams=len(found.heads),
        versions=found.versions,
        blobs=found.blobs,
        cells=found.cells,
        size_bytes=found.size_bytes,
        gone=sorted(before.keys() - now.keys()),
        back={w: (v, now[w]) for w, v in sorted(before.items()) if w in now and now[w] < v},
        incomplete=plan.incomplete,
        follows=plan.follows,
        before=int(name[:12]) if name else None,
        before_store=store,
        dry_run=dry_run,
    )


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
        taken_at=_time(m.taken_at),
        position=m.upto,
        versions=m.records,
        streams=m.streams,
        blobs=m.blobs,
        cells=m.cells,
        added_bytes=m.added_bytes,
        problem=problem,
    )


def _at(at: object) -> int | datetime | None:
    """Return a position or a moment. Raises Invalid."""
    if at is None or (type(at) is int and at >= 0):
        return at
    if isinstance(at, str) and at.isascii() and at.isdecimal():
        return int(at)
    try:
        moment = at if isinstance(at, datetime) else datetime.fromisoformat(at) if isinstance(at, str) else None
    except ValueError:
        moment = None
    if moment is None:
        raise Invalid(f"at={at!r}: it is a position in the store, or a moment such as 2026-01-31T12:00")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _absent(url: str) -> bool:
    """Whether a store certainly is not there, so that opening it to look would make one."""
    found = re.fullmatch(r"(?:(sqlite|file|rocksdb):///)?([^?]*)(?:\?.*)?", url, re.DOTALL)
    if found is None or (found[1] is None and _SCHEME.match(url)):
        return False
    path = unquote(found[2]) if found[1] else found[2]
    return "\0" not in path and not Path(path).exists()


def _time(ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as cause:
        raise CorruptRecord(f"a manifest says that it was made at {ms!r}, which is no time", at="taken_at") from cause


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
