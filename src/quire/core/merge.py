"""Rebasing: changes made on a base, rewritten to fit the state that others have changed since.

Both sides' changes are lists in which each entry builds on the one before. So each of ours is moved past all of
theirs, and theirs past each of ours, as two people would who swap places one step at a time. Where both wrote the same
place ours, the later, wins; where theirs took away what ours needs, ours is left out and reported.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from quire.model import Append, Change, Delete, Increment, Insert, Path, Remove, Set, Splice


class Clash(msgspec.Struct, frozen=True):
    """Two changes that cannot both stand. dropped: ours could not be applied; otherwise it replaced theirs."""

    path: Path
    ours: Change
    theirs: Change
    dropped: bool


def rebase(changes: Sequence[Change], over: Sequence[Change]) -> tuple[list[Change], list[Clash]]:
    """Return our changes as they apply after `over`, and where the two sides clashed.

    changes, over: both made on the same base. The result applies to the base after `over`.
    Cost: O(len(changes) x len(over)); nothing for changes that share no first key.
    """
    mine = {c.path[:1] for c in changes}
    theirs = [o for o in over if not o.path or () in mine or o.path[:1] in mine]
    if not theirs:
        return list(changes), []
    result: list[Change] = []
    clashes: list[Clash] = []
    for change in changes:
        ours = [change]
        moved: list[Change] = []
        for other in theirs:
            before = ours
            ours = []
            for part in before:
                kept, clash = _past(part, other, second=True)
                ours += kept
                if clash is not None:
                    clashes.append(Clash(part.path, part, other, dropped=clash))
            others = [other]
            for part in before:
                others = [p for o in others for p in _past(o, part, second=False)[0]]
            moved += others
        theirs = moved
        result += ours
    return result, clashes


def _past(change: Change, other: Change, *, second: bool) -> tuple[list[Change], bool | None]:
    """Return `change` as it reads after `other`, and None, or whether it clashed by being dropped (True) or winning (False).

    second: where both insert at one place, `change` comes behind.
    """
    path, over = change.path, other.path
    if path == over:
        return _same_place(change, other, second=second)
    if path[: len(over)] == over:
        return _below(change, other)
    if over[: len(path)] == path and isinstance(change, Set | Delete):
        return [change], False  # ours replaces what theirs changed inside
    return [change], None


def _below(change: Change, other: Change) -> tuple[list[Change], bool | None]:
    """`other` changed the container that `change` goes through."""
    depth = len(other.path)
    token = change.path[depth]
    match other:
        case Set() | Delete():
            return [], True
        case Insert(_, index, values) if isinstance(token, int) and token >= index:
            return [_at(change, depth, token + len(values))], None
        case Remove(_, index, count) if isinstance(token, int) and token >= index:
            if token < index + count:
                return [], True
            return [_at(change, depth, token - count)], None
        case _:
            return [change], None


def _same_place(change: Change, other: Change, *, second: bool) -> tuple[list[Change], bool | None]:
    match change, other:
        case Set(), _:
            return [change], False
        case Delete(), Delete():
            return [], None
        case Delete(), _:
            return [change], False
        case Increment(), Increment() | Delete():
            return [change], None if isinstance(other, Increment) else False
        case Increment(), Set(_, value) if type(value) in (int, float):
            return [change], False
        case Append(), Set(_, value) if type(value) is list:
            return [change], False
        case Append(), Append() | Insert() | Remove():
            return [change], None
        case Insert(), Append() | Insert() | Remove():
            return [_insert(change, other, second=second)], None
        case Remove(), Append() | Insert() | Remove():
            return _remove(change, other), None
        case Splice(), Splice():
            return _splice(change, other, second=second), None
        case _:
            return [], True


def _insert(change: Insert, other: Change, *, second: bool) -> Insert:
    at = change.index
    if isinstance(other, Insert) and (other.index < at or (other.index == at and second)):
        at += len(other.values)
    elif isinstance(other, Remove) and other.index < at:
        at = max(other.index, at - other.count)
    return Insert(change.path, at, change.values)


def _remove(change: Remove, other: Change) -> list[Change]:
    start, end = change.index, change.index + change.count
    if isinstance(other, Insert):
        if other.index <= start:
            start, end = start + len(other.values), end + len(other.values)
        elif other.index < end:  # what they put in the middle of our range stays
            behind = start + len(other.values)
            return [
                Remove(change.path, start, other.index - start),
                Remove(change.path, behind, end - other.index),
            ]
    elif isinstance(other, Remove):
        start, end = _without(start, end, other.index, other.index + other.count)
    return [Remove(change.path, start, end - start)] if end > start or change.count == 0 else []


def _without(start: int, end: int, low: int, high: int) -> tuple[int, int]:
    """Return where the range start..end lies once low..high is gone."""
    gone_before = max(0, min(high, start) - low)
    gone_inside = max(0, min(end, high) - max(start, low))
    return start - gone_before, end - gone_before - gone_inside


def _splice(change: Splice, other: Splice, *, second: bool) -> list[Change]:
    start, end = change.position, change.position + change.delete
    low, high = other.position, other.position + other.delete
    grown = len(other.insert)
    begin, stop = _without(start, end, low, high)
    if low < start or (low == start and (second or other.delete) and not (start == end and not second and low == start)):
        begin, stop = begin + grown, stop + grown
    elif start < low < end:  # their text lies inside what we delete: delete around it
        left = low - start
        return [
            Splice(change.path, start, left, change.insert),
            Splice(change.path, start + len(change.insert) + grown, stop - begin - left, ""),
        ]
    return [Splice(change.path, begin, stop - begin, change.insert)]


def _at(change: Change, depth: int, token: int) -> Change:
    path = (*change.path[:depth], token, *change.path[depth + 1 :])
    return msgspec.structs.replace(change, path=path)
