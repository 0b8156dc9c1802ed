"""Merging two workflows that went their own ways from a common base.

1. Whichever of the two is merged into the other, what merges by itself gives the same state: who is moved past whom is
   decided by the branches' names, and what is inserted at one place is ordered by where it came from.
2. Nothing of either side is lost in silence: what does not stand is in `met`.
3. The result is one state, and for each branch the changes that lead to it, so that later merges can start from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, cast

import msgspec

from quire.core.changes import Working
from quire.core.diff import diff
from quire.core.kinds import Kinds
from quire.core.layout import Stamps, settle
from quire.core.meter import Meter
from quire.core.resolve import Merging, Met, Outcome, Policy
from quire.errors import ChangeError, MergeConflict
from quire.model import Change


class Branch(NamedTuple):
    """One side. name: orders the sides.  changes: what it did since the base.  state: the base after them.

    moments: when each change was made, in an order that both sides share.  origins: the name each change has for ever,
    None without one: what both sides took from a third is done once.
    """

    name: str
    changes: Sequence[Change]
    moments: Sequence[int]
    state: dict[str, Any]
    origins: Sequence[str | None]


class Lead(NamedTuple):
    """Changes that lead from a state to the result, and the origin of each."""

    changes: list[Change]
    origins: list[str | None]


class Merged(msgspec.Struct, frozen=True):
    """The outcome. changes: from our state to `state`.  back: from their state to it.  met: as each side had it."""

    state: dict[str, Any]
    changes: Lead
    back: Lead
    met: list[Met]


_SWAPPED: dict[str, Outcome] = {"ours": "theirs", "theirs": "ours", "both": "both", "value": "value"}


def three_way(
    base: dict[str, Any],
    ours: Branch,
    theirs: Branch,
    policy: Policy,
    *,
    where: str = "",
    kinds: Kinds | None = None,
    meter: Meter | None = None,
) -> Merged:
    """Merge their branch into ours. The states given are not altered.

    policy: "last" lets the later change stand; "ours", "theirs" one side; "queue" ours, the conflict stays pending;
    "both" keeps the two beside each other; "reject" raises; a function of the conflict returns the value that stands.
    Where one side removed or replaced what the other edited inside, that stands unless the policy is for the side that
    edited.
    kinds: what was declared of lists, numbers and texts.  meter: what counts the work.
    Raises MergeConflict for "reject", LimitExceeded.
    Cost: that of merge.both, plus applying both sides once.
    """
    settled = partial(_settled, base, ours, theirs, where=where, kinds=kinds, meter=meter)
    if policy == "theirs":
        return settled(ours_moves=True, policy="theirs")
    if policy in ("ours", "queue"):
        found = settled(ours_moves=False, policy="theirs")
        if policy == "ours":
            return found
        pending = [msgspec.structs.replace(m, outcome="pending") if m.outcome == "ours" else m for m in found.met]
        return msgspec.structs.replace(found, met=pending)
    # the branch whose name comes later is moved over the other
    return settled(ours_moves=ours.name > theirs.name, policy=policy)


def _settled(
    base: dict[str, Any],
    ours: Branch,
    theirs: Branch,
    *,
    ours_moves: bool,
    policy: Policy,
    where: str,
    kinds: Kinds | None,
    meter: Meter | None,
) -> Merged:
    """Move one branch over the other, and orient what comes of it."""
    mover, stayer = (ours, theirs) if ours_moves else (theirs, ours)
    if callable(policy) and not ours_moves:
        policy = _turned(policy)

    def later(number: int, other: int) -> bool:
        around = len(mover.changes[number].path) < len(stayer.changes[other].path)
        return around or mover.moments[number] > stayer.moments[other]

    def ahead(number: int, other: int) -> bool:
        return (mover.origins[number] or mover.name) < (stayer.origins[other] or stayer.name)

    def twins(number: int, other: int) -> bool:
        origin = mover.origins[number]
        return origin is not None and origin == stayer.origins[other]

    try:
        found = settle(
            mover.changes,
            stayer.changes,
            base=base,
            head=stayer.state,
            policy=policy,
            where=where,
            merging=Merging(later if policy == "last" else None, ahead, twins),
            kinds=kinds,
            stamps=lambda: _stamps(mover, stayer),
            mine=mover.state,
            meter=meter,
        )
    except MergeConflict as refused:
        if not ours_moves:
            refused.conflicts = [_turn(cast("Met", m)) for m in refused.conflicts]
        raise
    onto_stayer = [
        (cast("Change", c), None if n is None else mover.origins[n])
        for c, n in zip(found.changes, found.numbers, strict=True)
    ]
    onto_mover = [(c, stayer.origins[n]) for n, parts in enumerate(found.behind) for c in parts]
    state, there = _arrived(stayer.state, onto_stayer)
    here = _led(mover.state, onto_mover, state)
    if ours_moves:
        return Merged(state, here, there, found.met)
    return Merged(state, there, here, [_turn(m) for m in found.met])


def _stamps(mover: Branch, stayer: Branch) -> Stamps:
    """Return what orders additions to logs: when they were made, and of those with an origin where."""
    first: dict[str, int] = {}  # where the sides were told differently of a common origin, the earlier moment counts
    for branch in (mover, stayer):
        for origin, moment in zip(branch.origins, branch.moments, strict=True):
            if origin is not None:
                first[origin] = min(moment, first.get(origin, moment))

    def of(branch: Branch) -> list[str]:
        named = zip(branch.origins, branch.moments, strict=True)
        return [f"{first.get(o or '', m):020d} {o or f'{branch.name} {i}'}" for i, (o, m) in enumerate(named)]

    return Stamps(of(mover), of(stayer))


def _arrived(start: dict[str, Any], changes: list[tuple[Change, str | None]]) -> tuple[dict[str, Any], Lead]:
    """Return where changes lead, and those of them that alter something."""
    working = Working(start)
    kept = [(change, origin) for change, origin in changes if working.apply(change)]
    return working.state, Lead([c for c, _ in kept], [o for _, o in kept])


def _led(start: dict[str, Any], changes: list[tuple[Change, str | None]], goal: dict[str, Any]) -> Lead:
    """Return what leads to `goal` for certain: these changes, and whatever is missing after them."""
    working = Working(start)
    lead = Lead([], [])
    for change, origin in changes:
        with suppress(ChangeError):  # it stood on what a policy took away
            if working.apply(change):
                lead.changes.append(change)
                lead.origins.append(origin)
    missing = diff(working.state, goal)
    return Lead([*lead.changes, *missing], [*lead.origins, *[None] * len(missing)])


def _turn(met: Met) -> Met:
    """Return what was met, seen from the other side."""
    return msgspec.structs.replace(
        met,
        ours=met.theirs,
        theirs=met.ours,
        number=met.other,
        other=met.number,
        outcome=_SWAPPED[met.outcome],
    )


def _turned(policy: Callable[[Met], Any]) -> Callable[[Met], Any]:
    return lambda met: policy(_turn(met))
