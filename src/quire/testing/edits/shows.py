"""What conflicts tell, compared with the log: values, versions and authors, of those recorded and those raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from quire.core.path import parse
from quire.model import Side
from quire.testing.edits.clients import Entry, held
from quire.testing.edits.log import Log
from quire.testing.edits.tree import ABSENT, find, same


def conflicts(log: Log) -> Iterator[tuple[str, str, int]]:
    """Yield what is wrong with the conflicts that are recorded: the kind, a text, and the version of the write."""
    for conflict in log.conflicts:
        path = parse(conflict.path)
        if conflict.ours.version is None:
            yield "names", f"{conflict.id}: ours names no version: {conflict}", log.head
            continue
        for side in ("base", "theirs", "ours"):
            told = getattr(conflict, side)
            if conflict.merged and side == "theirs":
                continue  # a version of the other workflow
            for kind, text in _side(log, path, side, told, shown=side != "ours" or conflict.resolution == "ours"):
                yield kind, f"{conflict.id}: {text}: {conflict}", conflict.ours.version


def _side(log: Log, path: tuple[Any, ...], side: str, told: Side, *, shown: bool) -> Iterator[tuple[str, str]]:
    if told.version is None or not 1 <= told.version <= log.head:
        yield "names", f"{side} names the version {told.version}"
        return
    version = log.version(told.version)
    if side != "base" and version.author != told.author:
        yield "names", f"{side} names {told.author} for a version by {version.author}"
    if shown and not _has(log, told.version, path, held(told.value)):
        there = find(log.state(told.version), path)
        yield "shows", f"{side} shows {told.value!r}, the version has {there!r}"


def refusal(log: Log, entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the conflicts that were raised: the kind, and a text."""
    for told in entry.shown:
        path, number = tuple(told["path"]), told["version"]
        if number is None or number > log.head:
            yield "names", f"{entry.key}: a conflict at {path} names the version {number}"
            continue
        version = log.version(number)
        if version.author != told["author"]:
            yield "names", f"{entry.key}: a conflict names {told['author']} for version {number} by {version.author}"
        if not _has(log, number, path, told["theirs"]):
            there = find(log.state(number), path)
            yield (
                "shows",
                f"{entry.key}: theirs shows {told['theirs']} at {path}, version {number} has {there!r}: {entry.said}",
            )
        elif not any(related(steady(change.path), steady(path)) for change in log.changes(number)):
            yield "shows", f"{entry.key}: a conflict says that version {number} wrote at {path}: {version.changes}"
        if not _has(log, entry.base or number, path, told["base"]):
            there = find(log.state(entry.base or number), path)
            yield (
                "shows",
                f"{entry.key}: base shows {told['base']} at {path}, version {entry.base} has {there!r}: {entry.said}",
            )


def _has(log: Log, number: int, path: tuple[Any, ...], value: list[Any]) -> bool:
    """True if a version has a value at a path, or may: an index is of the writer's own state."""
    node = log.state(number)
    for token in path:
        if isinstance(node, list):
            return True
        node = find(node, (token,))
    return same(node, value[0] if value else ABSENT)


def steady(path: Sequence[Any]) -> Sequence[Any]:
    """Return the part of a path that is the same in every version: up to an index."""
    return path[: next((depth for depth, token in enumerate(path) if isinstance(token, int)), len(path))]


def related(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """True if one path is part of the other."""
    shorter = min(len(one), len(other))
    return tuple(map(str, one[:shorter])) == tuple(map(str, other[:shorter]))
