"""Removing old backups, whole series at a time: an incremental one is nothing without those before it.

Manifests go first, the newest of a series before what it builds on: whoever is killed leaves objects that no manifest
names, which the next call removes, and never a backup that lacks something. A backup that is being taken on a series
while that is removed notices, and fails; taking it again makes a full one.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from quire.engine.backing.shelf import MANIFESTS, Kept, Shelf
from quire.engine.moving.loading import at_once
from quire.errors import Invalid
from quire.failpoints import hit

_DAY_MS = 86_400_000


class Pruned(msgspec.Struct, frozen=True):
    """removed, kept: backups, as `(id, number)`.  objects: how many were removed, with those that no backup names.

    done: False where it was only asked what would be done.
    """

    removed: list[tuple[str, int]]
    kept: list[tuple[str, int]]
    objects: int
    done: bool


def surplus(kept: Sequence[Kept], *, keep: int, days: float, now_ms: int) -> list[Kept]:
    """Return the backups of one store that may go, newest first.

    One is wanted if it is among the newest `keep` and not older than `days`; the newest always is. A series stays as long
    as one of it is wanted.
    """
    ordered = sorted(kept, key=lambda k: (k.manifest.number, k.name), reverse=True)
    young = now_ms - days * _DAY_MS
    wanted = {k.manifest.series for i, k in enumerate(ordered) if i == 0 or (i < keep and k.manifest.taken_at >= young)}
    return [k for k in ordered if k.manifest.series not in wanted]


async def prune(shelf: Shelf, *, of: str = "", keep: int, days: float, now_ms: int, done: bool) -> Pruned:
    """Remove what is surplus, of one store or of all in the place; without `done` only say what would be removed.

    Raises Invalid for a bound that keeps nothing, StorageError: call it again.
    Cost: reads every manifest, and lists the objects of the stores it removes from.
    """
    if type(keep) is not int or keep < 1 or not days > 0:
        raise Invalid(f"keep={keep!r}, days={days!r}: at least 1 backup and some time are needed")
    kept, _ = await shelf.all(of)
    gone: list[Kept] = []
    objects = 0
    ids = sorted({k.manifest.id for k in kept})
    for each in ids:
        mine = [k for k in kept if k.manifest.id == each]
        goes = surplus(mine, keep=keep, days=days, now_ms=now_ms)
        gone += goes
        oldest = min(k.manifest.series for k in mine if k not in goes)
        if done:
            for one in goes:
                await shelf.place.delete(f"{MANIFESTS}{each}/{one.name}")
                hit("prune:manifest")
        objects += await _objects(shelf, each, {k.manifest.series for k in goes}, oldest, done=done)
    names = {k.name for k in gone}
    return Pruned(
        [(k.manifest.id, k.manifest.number) for k in gone],
        [(k.manifest.id, k.manifest.number) for k in kept if k.name not in names],
        objects,
        done,
    )


async def _objects(shelf: Shelf, of: str, goes: set[int], oldest: int, *, done: bool) -> int:
    """Remove the objects of series that are gone, and of those before the oldest that is left; return how many."""
    found = await shelf.series(of)
    in_use: set[int] = set()
    if done:  # looked at again: a backup may have been put on a series meanwhile
        left, damaged = await shelf.all(of)
        in_use = {k.manifest.series for k in left}
        if damaged:  # nobody can say what it needs
            return 0
    doomed = [
        path
        for series, paths in found.items()
        if (series in goes or series < oldest) and series not in in_use
        for path in paths
    ]
    if done:
        await at_once(shelf.place.delete(path) for path in doomed)
    return len(doomed)
