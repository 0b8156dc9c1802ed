"""What a value in Redis is made of, in both directions. Damage leaves here as CorruptRecord, never as a wrong value.

A row of the log is text that reads by itself: `POSITION CHAIN [time,"author","message","kind"]`, a line end, the body
as the codec packs it. Redis gives the position; the rest is made here. What lies outside the log carries a checksum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from quire.errors import CorruptRecord
from quire.model import GENESIS, Cell, Head, Keyframe, Record
from quire.storage.base import Item
from quire.storage.codec import checksum, pack, unpack

_SUM_BYTES = 8
_TAGS = (b"\x00", b"\x01")
_encode = msgspec.json.Encoder().encode
_header = msgspec.json.Decoder(tuple[int, str, str, str]).decode
_frame = msgspec.msgpack.Decoder(tuple[bytes, int, bytes, bytes]).decode
_plan = msgspec.msgpack.Encoder().encode


def plan(items: Sequence[Item]) -> tuple[bytes, list[bytes]]:
    """Return a commit as the script takes it: the plan, and the bytes that it names by index."""
    names: dict[str, int] = {}
    parts: list[bytes] = []
    rows: list[Any] = []
    for item in items:
        expects = [(names.setdefault(e.stream, len(names) + 1), start_of(e.version, e.chain)) for e in item.expect]
        records: list[Any] = []
        for r in item.records:
            assert r.stream in names, "an item must expect what its records follow"
            chain = r.chain.hex()
            header = _encode((r.time, r.author, r.message, r.kind))
            parts.append(b"%b %b\n%b" % (chain.encode(), header, body_as_stored(r.body)))
            records.append((names[r.stream], r.version, f"{r.version} {chain} {r.kind}", len(parts)))
        cells: list[Any] = []
        for w in item.cells:
            held = new = 0
            if w.expected is not None:
                parts.append(w.expected)
                held = len(parts)
            if w.value is not None:
                parts.append(w.value)
                new = len(parts)
            cells.append((w.name, held, new, False if w.ttl_ms is None else w.ttl_ms))
        rows.append((expects, records, cells))
    return _plan((list(names), rows)), parts


def start_of(version: int, chain: bytes) -> str:
    """Return what the stored head of a stream begins with; "" where there must be none."""
    return "" if version == 0 and chain == GENESIS else f"{version} {chain.hex()} "


def head_of(stream: str, stored: bytes | None) -> Head:
    """Return a head from what is stored of it, version 0 where nothing is."""
    if not stored:
        return Head(stream)
    try:
        version, chain, kind = stored.split(b" ", 2)
        return Head(stream, int(version), bytes.fromhex(chain.decode()), kind.decode())
    except ValueError as cause:
        raise damaged(f"the head of {stream}", stream) from cause


def record_of(stream: str, version: int, stored: bytes | None) -> Record:
    """Return a record from its row."""
    at = f"{stream}@{version}"
    if stored is None:
        raise damaged(f"{stream} v{version}", at, "it is not there")
    try:
        front, body = stored.split(b"\n", 1)
        position, chain, header = front.split(b" ", 2)
        time, author, message, kind = _header(header)
        digest = bytes.fromhex(chain.decode())
        return Record(stream, version, time, author, message, kind, body_of(body), digest, int(position))
    except (ValueError, msgspec.MsgspecError, CorruptRecord) as cause:
        raise damaged(f"{stream} v{version}", at, str(cause)) from cause


def text_of(stored: bytes, whose: str) -> str:
    """Return a name. whose: for what it is damage to."""
    try:
        return stored.decode()
    except UnicodeDecodeError as cause:
        raise damaged(f"the name of {whose} ({stored!r})", whose, "it is no text") from cause


def number_of(stored: bytes, what: str) -> int:
    """Return a number that is stored as digits."""
    if not stored.isdigit():
        raise damaged(what, what, f"{stored!r} is no number")
    return int(stored)


def body_as_stored(body: bytes) -> bytes:
    """Return a body as it lies in a row: text as it is, anything else behind a tag byte."""
    packed = pack(body)
    if isinstance(packed, bytes):
        return packed
    return b"\x00" + body if body[:1] in _TAGS else body


def body_of(stored: bytes) -> bytes:
    """Return the body of what `body_as_stored` made."""
    return unpack(stored) if stored[:1] in _TAGS else stored


def frame_as_stored(frame: Keyframe) -> bytes:
    """Return a keyframe with its checksum."""
    data = msgspec.msgpack.encode((frame.chain, frame.size, frame.digest, frame.body))
    return checksum(frame.stream.encode(), b"%d" % frame.version, data) + data


def frame_of(stream: str, version: int, stored: bytes) -> Keyframe:
    """Return a keyframe."""
    data = stored[_SUM_BYTES:]
    if checksum(stream.encode(), b"%d" % version, data) != stored[:_SUM_BYTES]:
        raise damaged(f"the keyframe of {stream}@{version}", f"{stream}@{version}", "it does not match its checksum")
    chain, size, digest, body = _frame(data)
    return Keyframe(stream, version, chain, size, digest, body)


def blob_as_stored(name: str, data: bytes) -> bytes:
    """Return a blob with its checksum."""
    return checksum(name.encode(), data) + data


def blob_of(name: str, stored: bytes) -> bytes:
    """Return a blob."""
    data = stored[_SUM_BYTES:]
    if checksum(name.encode(), data) != stored[:_SUM_BYTES]:
        raise damaged(f"the blob {name}", name, "it does not match its checksum")
    return data


def cell_of(name: str, stored: bytes) -> Cell:
    """Return a cell, expired or not. Its sum is of what the script made it: SHA-1 is what Redis has at hand."""
    expires, _, rest = stored.partition(b" ")
    total, _, value = rest.partition(b" ")
    wanted = hashlib.sha1(b"%b %b %b" % (expires, name.encode(), value), usedforsecurity=False).hexdigest()[:16]
    if wanted.encode() != total or not (expires.isdigit() or not expires):
        raise damaged(f"the cell {name}", name, "it does not match its checksum")
    return Cell(name, value, int(expires) if expires else None)


def damaged(what: str, at: str, how: str = "it is not what was stored") -> CorruptRecord:
    """Return the error that says so."""
    return CorruptRecord(f"{what} is damaged: {how}; `quire verify` lists all damage, a backup has the rest", at=at)
