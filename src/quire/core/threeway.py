"""Merging two workflows that went their own ways from a common base.

1. Whichever of the two is merged into the other, what merges by itself gives the same state: the branches are put in
   an order of their own (`Branch.name`) before they are moved past each other.
2. Nothing of either side is lost in silence: what does not stand is in `met`.
3. The result is one state, and for each branch the changes that lead to it, so that later merges can start from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import msgspec

from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.resolve import Merging, Met, Outcome, Policy, settle
from quire.core.values import same
from quire.errors import ChangeError, MergeConflict
from quire.model import Change


class Branch(NamedTuple):
    """One side. name: orders the sides.  changes: what it did since the base.  moments: when, one for each change, in
    an order that both sides share.  state: the base after them."""

    name: str
    changes: Sequence[Change]
    moments: Sequence[int]
    state: dict[str, Any]


class Merged(msgspec.Struct, frozen=True):
    """The outcome. changes: from our state to `state`.  back: from their state to it.  met: as each side had it."""

    state: dict[str, Any]
    changes: list[Change]
    back: list[Change]
    met: list[Met]


_SWAPPED: dict[str, Outcome] = {"ours": "theirs", "theirs": "ours", "both": "both", "value": "value"}


def three_way(base: dict[str, Any], ours: Branch, theirs: Branch, policy: Policy, *, where: str = "") -> Merged:
    """Merge their branch into ours. The states given are not altered.

    policy: "last" lets the later change stand; "ours", "theirs" one side; "queue" ours, the conflict stays pending;
    "both" keeps the two beside each other; "reject" raises; a function of the conflict returns the value that stands.
    Where one side removed or replaced what the other edited inside, that stands unless the policy is for the side that
    edited.
    Raises MergeConflict for "reject".
    Cost: that of merge.both, plus applying both sides once.
    """
    first = ours.name <= theirs.name
    if policy == "theirs":
        return _settled(base, ours, theirs, ours_moves=True, policy="theirs", ahead=first, where=where)
    if policy in ("ours", "queue"):
        found = _settled(base, ours, theirs, ours_moves=False, policy="theirs", ahead=not first, where=where)
        if policy == "ours":
            return found
        pending = [msgspec.structs.replace(m, outcome="pending") if m.outcome == "ours" else m for m in found.met]
        return msgspec.structs.replace(found, met=pending)
    # whoever comes second in the order of names is moved over the first
    return _settled(base, ours, theirs, ours_moves=not first, policy=policy, ahead=False, where=where)


def _settled(
    base: dict[str, Any],
    ours: Branch,
    theirs: Branch,
    *,
    ours_moves: bool,
    policy: Policy,
    ahead: bool,
    where: str,
) -> Merged:
    """Move one branch over the other, and orient what comes of it."""
    mover, stayer = (ours, theirs) if ours_moves else (theirs, ours)
    if callable(policy) and not ours_moves:
        policy = _turned(policy)

    def later(number: int, other: int) -> bool:
        around = len(mover.changes[number].path) < len(stayer.changes[other].path)
        return around or mover.moments[number] > stayer.moments[other]

    try:
        found = settle(
            mover.changes,
            stayer.changes,
            base=base,
            head=stayer.state,
            policy=policy,
            where=where,
            merging=Merging(later if policy == "last" else None, ahead),
        )
    except MergeConflict as refused:
        if not ours_moves:
            refused.conflicts = [_turn(cast("Met", m)) for m in refused.conflicts]
        raise
    state, onto_stayer = _arrived(stayer.state, found.changes, None)
    _, onto_mover = _arrived(mover.state, found.behind, state)
    if ours_moves:
        return Merged(state, onto_mover, onto_stayer, found.met)
    return Merged(state, onto_stayer, onto_mover, [_turn(m) for m in found.met])


def _arrived(
    start: dict[str, Any], changes: list[Change], goal: dict[str, Any] | None
) -> tuple[dict[str, Any], list[Change]]:
    """Return where changes lead, and changes that lead to `goal` for certain: these if they do, else a difference."""
    try:
        state = apply(start, changes)
    except ChangeError:
        if goal is None:
            raise
        return goal, diff(start, goal)
    if goal is None or same(state, goal):
        return state, changes
    return goal, diff(start, goal)


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
