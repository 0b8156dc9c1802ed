"""From the items of commits to the arguments of `commit_items`, and from its answer to outcomes. Pure.

The function looks at all heads and cells once, then writes. So what it gets in one call, a round, must not touch a
stream or a cell twice in different items; an item that does begins the next round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quire.errors import InvalidState
from quire.model import Head
from quire.storage.base import Committed, Item, Outcome, Refused
from quire.storage.codec import checksum, pack

ROUND_RECORDS_MAX = 2048
"""Records of one round, as far as items can be parted; more go into the next."""
_NO_RECORDS = Committed(0, 0)
_NUL, _ESCAPE = "\x00", "\x10"


class Round:
    """Items that can be committed by one call, in order."""

    __slots__ = ("_names", "items", "records")

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.records = 0
        self._names: set[str | tuple[str]] = set()

    def takes(self, item: Item) -> bool:
        """Add an item if it has nothing to do with those that are here, and there is room."""
        if self.records and self.records + len(item.records) > ROUND_RECORDS_MAX:
            return False
        streams = [e.stream for e in item.expect]
        cells = [(c.name,) for c in item.cells]
        names = self._names
        if not names.isdisjoint(streams) or not names.isdisjoint(cells):
            return False
        names.update(streams)
        names.update(cells)
        self.items.append(item)
        self.records += len(item.records)
        return True

    def joins(self, other: Round) -> bool:
        """Add all items of another round if they have nothing to do with those that are here, and there is room."""
        if self.records + other.records > ROUND_RECORDS_MAX or not self._names.isdisjoint(other._names):
            return False
        self.items += other.items
        self.records += other.records
        self._names |= other._names
        return True


def rounds(items: Sequence[Item]) -> list[Round]:
    """Part items into rounds, in order: items of one call are independent, so each round may be a commit of its own."""
    made = [Round()]
    for item in items:
        if not made[-1].takes(item):
            made.append(Round())
            made[-1].takes(item)
    return made


def arguments(items: Sequence[Item]) -> tuple[Any, ...]:
    """Return what `commit_items` takes after the namespace and the clock: columns of heads, of records, of cells.

    Raises InvalidState for a name that PostgreSQL cannot hold, before anything is sent.
    """
    heads: list[tuple[int, str, int, bytes]] = []
    records: list[tuple[Any, ...]] = []
    cells: list[tuple[Any, ...]] = []
    for number, item in enumerate(items, 1):
        places: dict[str, int] = {}
        versions: dict[str, int] = {}
        for e in item.expect:
            heads.append((number, e.stream, e.version, e.chain))
            places[e.stream] = len(heads)
            versions[e.stream] = e.version
        for r in item.records:
            name = r.stream
            assert versions.get(name) == r.version - 1, "an item must expect what its records follow"
            versions[name] = r.version
            body = pack(r.body)
            text, packed = (body, None) if type(body) is str else (None, body)
            said = (escaped(r.author), escaped(r.message), escaped(r.kind))
            records.append((places[name], r.version, r.time, *said, text, packed, r.chain))
        for c in item.cells:
            total = None if c.value is None else cell_sum(c.name, c.value)
            cells.append((number, c.name, c.expected, c.value, c.ttl_ms, total))
    for row in (*heads, *cells):
        if _NUL in row[1]:
            raise InvalidState(
                f"the name {row[1]!r} holds a NUL character, which PostgreSQL cannot store; leave it out"
            )
    return (*_columns(heads, 4), *_columns(records, 9), *_columns(cells, 6))


def _columns(rows: Sequence[tuple[Any, ...]], count: int) -> list[Sequence[Any]]:
    return list(zip(*rows, strict=True)) if rows else [()] * count


def outcomes(items: Sequence[Item], answer: Any) -> list[Outcome]:
    """Return the outcome of each item of a round.

    answer: the row of `commit_items`. Positions are consecutive over the records of all items that were not refused.
    """
    position: int = answer["first_position"] or 0
    refused: set[int] = set(answer["refused"] or [])
    shown = _refusals(items, answer) if refused else {}
    found: list[Outcome] = []
    for number, item in enumerate(items, 1):
        count = len(item.records)
        if number in refused:
            found.append(shown[number])
        elif count:
            found.append(Committed(position, position + count - 1))
            position += count
        else:
            found.append(_NO_RECORDS)
    return found


def _refusals(items: Sequence[Item], answer: Any) -> dict[int, Refused]:
    """Return what is there instead, by the number of the item: heads and cells in the order they were expected."""
    streams = [(number, e.stream) for number, item in enumerate(items, 1) for e in item.expect]
    cells = [(number, c.name) for number, item in enumerate(items, 1) for c in item.cells]
    heads: dict[int, list[Head]] = {}
    held: dict[int, list[str]] = {}
    columns = (answer[name] or () for name in ("moved", "m_version", "m_chain", "m_kind"))
    for place, version, chain, kind in zip(*columns, strict=True):
        number, stream = streams[place - 1]
        heads.setdefault(number, []).append(Head(stream, version, chain, unescaped(kind)))
    for place in answer["held"] or ():
        number, name = cells[place - 1]
        held.setdefault(number, []).append(name)
    return {n: Refused(tuple(heads.get(n, ())), tuple(held.get(n, ()))) for n in heads.keys() | held.keys()}


def cell_sum(name: str, value: bytes) -> bytes:
    """Return what guards a cell's row. When it expires is left out: the server counts that from its own clock."""
    return checksum(name.encode(), value)


def escaped(text: str) -> str:
    """Return a text without NUL, which PostgreSQL cannot store: NUL is DLE 0, DLE is DLE DLE.

    >>> unescaped(escaped("a" + chr(0) + chr(16))) == "a" + chr(0) + chr(16)
    True
    """
    if _NUL in text or _ESCAPE in text:
        return text.replace(_ESCAPE, _ESCAPE * 2).replace(_NUL, _ESCAPE + "0")
    return text


def unescaped(text: str) -> str:
    """Return the text that `escaped` was given."""
    if _ESCAPE not in text:
        return text
    return _ESCAPE.join(part.replace(_ESCAPE + "0", _NUL) for part in text.split(_ESCAPE * 2))


_BEYOND = "\U0010ffff"


def beyond(prefix: str) -> str:
    """Return a text that is greater than all that begin with `prefix`, and not much greater.

    >>> beyond("w/")
    'w0'
    """
    for index in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[index])
        if point < 0x10FFFF:
            following = 0xE000 if point == 0xD7FF else point + 1  # what lies between are surrogates
            return prefix[:index] + chr(following)
    return _BEYOND * (len(prefix) + 256)
