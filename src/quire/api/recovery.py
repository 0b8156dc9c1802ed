"""Bringing backups back, as callers see it: to which store, up to when, and what becomes of what is there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import msgspec

from quire.api.backups import Progress, moment_of, now_ms, source_of
from quire.config import Compression
from quire.engine.backing import recovering, taking
from quire.engine.backing.extending import About, Extension
from quire.engine.backing.plan import Plan, planned
from quire.engine.backing.recovering import Recovering, Recovery, View
from quire.engine.backing.shelf import Kept, Shelf, chosen
from quire.engine.clock import system_ids
from quire.errors import CorruptRecord, Invalid, QuireError
from quire.storage.base import Backend
from quire.storage.objects import open_objects
from quire.storage.open import Seal, elsewhere, open_bare, wrapped

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_ARCHIVE = "quire:archive"
_WITHIN = "store:"


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """What was brought back, or, with `dry_run`, would be.

    number: of the backup.  position: of the store it was taken of, up to which everything is there.
    versions, size_bytes: brought by this call; what an interrupted call had brought is not counted again.
    gone: workflows that were there before and are not any more.  back: those that went back, with the version before and
    after.  incomplete: streams that nobody can bring back as they were then, because they were trimmed before a backup.
    follows: versions right behind the position with the time of the last one: they may have been one transaction with it.
    before: number of the backup of what was replaced, None where nothing was, and its store.
    extended: versions that came from the archive, beyond the backup.
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
    extended: int = 0


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
    extend: bool = False,
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
    extend: go on with what the namespace's archive has of later versions, where it goes on from the end of a stream: for a
    store that was lost. Not with `at` or `dry_run`.
    dry_run: read and check everything, say what would be done, and change nothing.
    While it lasts nobody can open the namespace. Whoever was interrupted gives the same call again, and it is finished.
    Raises NotFound, Invalid where it is not clear what is meant, AlreadyExists where something is there, Denied without the
    key, CorruptRecord for damage in the backup or in what is to be saved, StorageError: call it again.
    Cost: reads the backup once and writes what it has; with dry_run it is only read.
    """
    if extend and (at is not None or dry_run):
        raise Invalid("extend goes on from the end of a backup: it is not for a point in time, nor for a dry run")
    shelf = Shelf(await open_objects(place))
    moment = _at(at)
    bare, key, compression = None, encryption_key, None
    if not dry_run or not _absent(url):
        bare, key, compression = await _opened(url, namespace or "default", encryption_key)
    try:
        kept, moment = await _meant(shelf, bare, of=of, namespace=namespace, number=number, at=moment)
        there = namespace or kept.manifest.namespace
        if bare is not None and there != (namespace or "default"):
            await bare.close()
            bare, key, compression = await _opened(url, there, encryption_key)
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

        extension = await _extension(plan, shown) if extend else None
        wrap = partial(wrapped, namespace=there, encryption_key=key, compression=compression, archived=False)
        work = Recovery(
            plan, shelf, bare, shown, wrap, elsewhere=elsewhere, extension=extension, now_ms=now_ms(), tell=tell
        )
        mark = await work.mark(replace=replace, before=saved)
        found = await work.done(mark)
        return _recovered(shelf, plan, found, before, mark, dry_run=False)
    finally:
        if bare is not None:
            await bare.close()


async def _opened(
    url: str, namespace: str, encryption_key: bytes | None
) -> tuple[Backend, bytes | None, Compression | str | None]:
    """Return what is at a URL, opened. Raises CorruptRecord that says what to do where that cannot be."""
    try:
        return await open_bare(url, namespace=namespace, encryption_key=encryption_key)
    except CorruptRecord as error:
        error.add_note(
            "it is too damaged to be opened, so nothing in it can be replaced: move its file or folder aside (of SQLite with "
            "its -wal and -shm), then recover again"
        )
        raise


async def _extension(plan: Plan, shown: Seal) -> Extension:
    """Return what the archive of a backed up namespace has. Raises Invalid where it has none of its own place."""
    cell = next((c for c in plan.cells if c.name == _ARCHIVE), None)
    try:
        about = None if cell is None else msgspec.json.decode(cell.value, type=About)
    except msgspec.MsgspecError as cause:
        raise CorruptRecord(f"the cell {_ARCHIVE} of the backup is damaged ({cause})", at=_ARCHIVE) from cause
    if about is None or about.place == _WITHIN:
        raise Invalid("extend needs an archive in a place of its own, and the backup knows of none")
    return Extension(await open_objects(about.place), about.id, shown, plan.last.manifest.namespace)


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
            now_ms=now_ms(),
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
        taken_at=moment_of(m.taken_at),
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
        extended=found.extended,
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
