"""The feed of a folder store: a file of lines that says in which order the records of a namespace were committed.

A line stands for one commit: its first position, and how many versions of which streams follow one another. Records
that were removed stay in it; lines of their own say that they were. The records themselves are in the files of
their streams: this file can be made anew from those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from quire.model import Record
from quire.storage._files_lines import LineFile, owner, seal

FEED = "feed.log"
_RUNS_MAX = 1000
"""Runs in one line of a feed that is made anew."""
_Run = tuple[str, int, int]
"""A stream, its first version here, and how many."""


class _Commit(msgspec.Struct, gc=False):
    position: int
    runs: list[_Run]


class _Line(msgspec.Struct, gc=False):
    position: int = 0
    runs: list[_Run] = []
    dropped: str | None = None
    trimmed: str | None = None
    upto: int = 0


class Entry(NamedTuple):
    """A record in the feed."""

    position: int
    stream: str
    version: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


def whose_feed(namespace: str) -> bytes:
    """Return the owner of the feed of a namespace."""
    return owner(namespace, "\0feed")


def commit_line(whose: bytes, first: int, records: Iterable[Record]) -> bytes:
    """Return the line of a commit whose records have consecutive positions from `first` on."""
    runs: list[_Run] = []
    stream, version, count = "", 0, 0
    for r in records:
        if r.stream == stream and r.version == version + count:
            count += 1
            continue
        if count:
            runs.append((stream, version, count))
        stream, version, count = r.stream, r.version, 1
    runs.append((stream, version, count))
    return seal(whose, _encode(_Commit(first, runs)))


def lines_anew(whose: bytes, held: Iterable[tuple[int, str, int]]) -> Iterator[bytes]:
    """Yield the lines for records that are there.

    held: position, stream and version of each, in the order of positions.
    """
    runs: list[_Run] = []
    first, after = 0, -1
    for position, stream, version in held:
        if position != after or len(runs) >= _RUNS_MAX:
            if runs:
                yield seal(whose, _encode(_Commit(first, runs)))
            first, runs = position, []
        if runs and runs[-1][0] == stream and runs[-1][1] + runs[-1][2] == version:
            runs[-1] = (stream, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((stream, version, 1))
        after = position + 1
    if runs:
        yield seal(whose, _encode(_Commit(first, runs)))


def dropped_line(whose: bytes, position: int, stream: str) -> bytes:
    """Return the line that says that all records of a stream so far were removed."""
    return seal(whose, _encode({"position": position, "dropped": stream}))


def trimmed_line(whose: bytes, position: int, stream: str, upto: int) -> bytes:
    """Return the line that says that records of a stream up to a version were removed."""
    return seal(whose, _encode({"position": position, "trimmed": stream, "upto": upto}))


def last_position(line: bytes) -> int:
    """Return the newest position of a line, 0 for the first line of the file."""
    found = _decode(line)
    return found.position + max(0, sum(run[2] for run in found.runs) - 1)


def last_of(file: LineFile) -> int:
    """Return the newest position in a feed."""
    return next((last_position(line) for _, line in file.backward()), 0)


def entries(file: LineFile, after: int, upto: int) -> Iterator[Entry]:
    """Yield what was committed with after < position <= upto, removed or not."""
    for _, line in file.forward(file.beyond(after, last_position)):
        found = _decode(line)
        position = found.position
        if position > upto:
            return
        for stream, version, count in found.runs:
            for offset in range(max(0, after + 1 - position), count):
                if position + offset > upto:
                    return
                yield Entry(position + offset, stream, version + offset)
            position += count


def newest(file: LineFile, stream: str, upto: int) -> int:
    """Return the newest version of a stream as of a position; 0 where it was dropped, or is not in the feed.

    Cost: reads back to where the stream is mentioned last.
    """
    for _, line in file.backward():
        found = _decode(line)
        if found.position > upto:
            continue
        if found.dropped == stream:
            return 0
        versions = [version + count - 1 for name, version, count in found.runs if name == stream]
        if versions:
            return versions[-1]
    return 0


def remaining(file: LineFile, upto: int) -> dict[str, dict[int, int]]:
    """Return what must be there as of a position: for each stream its versions, and their positions."""
    held: dict[str, dict[int, int]] = {}
    for _, line in file.forward():
        found = _decode(line)
        position = found.position
        if position > upto:
            break
        for stream, version, count in found.runs:
            held.setdefault(stream, {}).update((version + i, position + i) for i in range(count))
            position += count
        if found.dropped is not None:
            held.pop(found.dropped, None)
        if found.trimmed is not None and found.trimmed in held:
            held[found.trimmed] = {v: p for v, p in held[found.trimmed].items() if v > found.upto}
    return held
