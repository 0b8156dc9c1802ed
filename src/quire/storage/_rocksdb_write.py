"""What a RocksDB store writes: the values behind its keys, and the draft of a commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from quire.model import GENESIS, Cell, Head, Record
from quire.storage._rocksdb_keys import Keys, name_key, name_of, number_key
from quire.storage.base import CellWrite, Committed, Expect, Item, Outcome, Refused

_EXPIRED_MAX = 2
"""Expired cells removed for each one written with an expiry: more than come, so they cannot pile up."""
_NO_RECORDS = Committed(0, 0)


class Top(msgspec.Struct, array_like=True, gc=False):
    """The newest version of a stream, and the oldest that is there."""

    version: int
    chain: bytes
    kind: str
    first: int


class Entry(msgspec.Struct, array_like=True, gc=False):
    """A record, without what its key says."""

    position: int
    time: int
    author: str
    message: str
    kind: str
    chain: bytes
    body: bytes


class Frame(msgspec.Struct, array_like=True, gc=False):
    """A keyframe, without what its key says."""

    chain: bytes
    size: int
    digest: bytes
    body: bytes


class Held(msgspec.Struct, array_like=True, gc=False):
    """A cell. expires: UTC milliseconds, None for never."""

    value: bytes
    expires: int | None


pack = msgspec.msgpack.Encoder().encode
top_of = msgspec.msgpack.Decoder(Top).decode
entry_of = msgspec.msgpack.Decoder(Entry).decode
frame_of = msgspec.msgpack.Decoder(Frame).decode
held_of = msgspec.msgpack.Decoder(Held).decode
pointer_of = msgspec.msgpack.Decoder(tuple[str, int]).decode


class Draft:
    """What a call of `commit` is going to store: what is there is looked up once, and overlaid."""

    def __init__(self, keys: Keys, log: Any, cells: Any, position: int, now_ms: int) -> None:
        self._keys = keys
        self._log = log
        self._cells = cells
        self._now_ms = now_ms
        self._position = position
        self._tops: dict[str, Top] = {}
        self._held: dict[str, Held | None] = {}
        self._records: list[tuple[Record, int]] = []
        self._writes: dict[str, Held | None] = {}
        self._written: set[str] = set()
        self._expiring = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to store."""
        return not self._records and not self._writes

    def _top(self, stream: str) -> Top:
        found = self._tops.get(stream)
        if found is None:
            value = self._log.get(self._keys.of(b"h", stream))
            found = self._tops[stream] = Top(0, GENESIS, "", 1) if value is None else top_of(value)
        return found

    def _cell(self, name: str) -> Held | None:
        if name not in self._held:
            value = self._cells.get(self._keys.of(b"c", name))
            self._held[name] = None if value is None else held_of(value)
        return self._writes[name] if name in self._writes else self._held[name]

    def add(self, item: Item) -> Outcome:
        """Check one item; if all that it expects holds, take it in."""
        moved = tuple(filter(None, map(self._moved, item.expect)))
        cells = tuple(w.name for w in item.cells if self._value(w.name) != w.expected)
        if moved or cells:
            return Refused(moved, cells)
        for write in item.cells:
            self._writes[write.name] = self._after(write)
        first = self._position + 1
        for r in item.records:
            top = self._top(r.stream)
            assert r.version == top.version + 1, "an item must expect what its records follow"
            self._position += 1
            top.version, top.chain, top.kind = r.version, r.chain, r.kind
            self._records.append((r, self._position))
            self._written.add(r.stream)
        return Committed(first, self._position) if item.records else _NO_RECORDS

    def _moved(self, e: Expect) -> Head | None:
        top = self._top(e.stream)
        if (top.version, top.chain) == (e.version, e.chain):
            return None
        return Head(e.stream, top.version, top.chain, top.kind)

    def _value(self, name: str) -> bytes | None:
        held = self._cell(name)
        return None if held is None or over(held, self._now_ms) else held.value

    def _after(self, write: CellWrite) -> Held | None:
        if write.value is None:
            return None
        self._expiring += write.ttl_ms is not None
        return Held(write.value, None if write.ttl_ms is None else self._now_ms + write.ttl_ms)

    def fill(self, batch: Any, family: Callable[[str], Any]) -> int:
        """Put it all into a batch; return the newest position."""
        keys, log, cells = self._keys, family("log"), family("cells")
        for r, position in self._records:
            entry = Entry(position, r.time, r.author, r.message, r.kind, r.chain, r.body)
            batch.put(keys.of(b"r", r.stream) + number_key(r.version), pack(entry), log)
            batch.put(keys.begin(b"f") + number_key(position), pack((r.stream, r.version)), log)
        for stream in self._written:
            batch.put(keys.of(b"h", stream), pack(self._tops[stream]), log)
        for key, name in self._expired() if self._expiring else ():
            batch.delete(key, cells)
            held = self._cell(name)
            if name not in self._writes and held is not None and over(held, self._now_ms):
                batch.delete(keys.of(b"c", name), cells)
        for name, held in self._writes.items():
            before = self._held[name]
            if before is not None and before.expires is not None:
                batch.delete(self._expiry(name, before.expires), cells)
            if held is None:
                batch.delete(keys.of(b"c", name), cells)
                continue
            batch.put(keys.of(b"c", name), pack(held), cells)
            if held.expires is not None:
                batch.put(self._expiry(name, held.expires), b"", cells)
        return self._position

    def _expiry(self, name: str, expires: int) -> bytes:
        return self._keys.begin(b"x") + number_key(expires) + name_key(name)

    def _expired(self) -> list[tuple[bytes, str]]:
        """Return some cells whose time is over: the key that says so, and the name."""
        begin = self._keys.begin(b"x")
        walk = self._cells.iter()
        walk.seek(begin)
        found: list[tuple[bytes, str]] = []
        while len(found) < self._expiring * _EXPIRED_MAX and walk.valid() and walk.key().startswith(begin):
            key = walk.key()
            if int.from_bytes(key[len(begin) : len(begin) + 8], "big") > self._now_ms:
                break
            found.append((key, name_of(key, len(begin) + 8)))
            walk.next()
        return found


def over(held: Held, now_ms: int) -> bool:
    """Whether a cell's time is over."""
    return held.expires is not None and held.expires <= now_ms


def cell_of(name: str, held: Held, now_ms: int) -> Cell | None:
    """Return a cell, None where its time is over."""
    return None if over(held, now_ms) else Cell(name, held.value, held.expires)
