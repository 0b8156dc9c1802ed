"""What a message in JetStream is made of, in both directions.

A message on `STREAM.r.NAMESPACE.KIND.ID` holds the records of one stream that one item wrote, its run. Its header says
where the stream stands after it; `offset` is how far back the item's first run lies. A record's position is made of
the sequence of that first run and the record's place in the item, so that positions grow with sequences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from nats.aio.msg import Msg

from quire.errors import CorruptRecord
from quire.model import Head, Record
from quire.storage._nats_wire import damaged
from quire.storage.codec import checksum, pack, unpack

PLACES = 1 << 16
"""Records that an item may have: a position is SEQUENCE * PLACES + place."""
HEADER = "Quire"

_TAGS = (b"\x00", b"\x01")
_SUM_BYTES = 8
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_encode = msgspec.msgpack.Encoder().encode
_rows = msgspec.msgpack.Decoder(list[tuple[int, int, int, str, str, str, bytes, bytes]]).decode


class About(msgspec.Struct, frozen=True, omit_defaults=True):
    """The header of a message, as JSON.

    first: the first version it holds.  head: version, chain and kind after it.  offset: see above.  parts: how many
    messages right before it hold the beginning of what it holds.  of: the sequence of the message that it replaces.
    quiet: it holds no records, and stands where one stood that was replaced.
    gone, ttl, until: of cells: deleted; milliseconds from its time; the end by a clock of the writer's own.
    """

    first: int = 0
    head: tuple[int, str, str] | None = None
    offset: int = 0
    parts: int = 0
    of: int = 0
    quiet: bool = False
    gone: bool = False
    ttl: int | None = None
    until: int | None = None


class Stored(NamedTuple):
    """A message as it was read."""

    subject: str
    sequence: int
    time_ms: int
    about: About
    data: bytes


_about = msgspec.json.Decoder(About).decode


def header(about: About) -> dict[str, str]:
    """Return the header of a message: ASCII only."""
    return {HEADER: json.dumps(msgspec.to_builtins(about), separators=(",", ":"))}


def stored(message: Msg) -> Stored:
    """Return a message that a direct get answered with."""
    headers = message.headers or {}
    subject = headers.get("Nats-Subject", "")
    try:
        time = milliseconds(headers["Nats-Time-Stamp"])
        return Stored(subject, int(headers["Nats-Sequence"]), time, _about(headers.get(HEADER, "{}")), message.data)
    except (KeyError, ValueError, msgspec.MsgspecError) as cause:
        raise damaged(f"the message on {subject}", subject, str(cause)) from cause


def milliseconds(time: str) -> int:
    """Return a server's time as UTC milliseconds.

    >>> milliseconds("2026-01-02T03:04:05.678901234Z")
    1767323045678
    """
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 1000 + int(fraction.ljust(3, "0")[:3])


def token(name: str) -> str:
    """Return text as one token of a subject; others are never the same.

    >>> token("a.b c"), token("")
    ('a=2Eb=20c', '==')
    """
    return "".join(c if c in _PLAIN else "".join(f"={b:02X}" for b in c.encode()) for c in name) or "=="


def tokens(stream: str) -> str:
    """Return the two tokens of a stream: its kind and the rest.

    >>> tokens("workflows/a.b"), tokens("x")
    ('workflows.a=2Eb', 'x.=')
    """
    kind, slash, rest = stream.partition("/")
    return f"{token(kind)}.{token(rest) if slash else '='}"


def text(part: str) -> str:
    """Return what `token` was made of."""
    if part == "==":
        return ""
    pieces = part.split("=")
    raw = pieces[0].encode() + b"".join(bytes([int(p[:2], 16)]) + p[2:].encode() for p in pieces[1:])
    return raw.decode()


def stream_of(two: str) -> str:
    """Return what `tokens` was made of."""
    kind, rest = two.split(".")
    return text(kind) if rest == "=" else f"{text(kind)}/{text(rest)}"


def run_as_stored(records: Sequence[tuple[int, Record]]) -> bytes:
    """Return the payload of a run: records with their places in the item."""
    data = _encode(
        [(i, r.version, r.time, r.author, r.message, r.kind, r.chain, _body_as_stored(r.body)) for i, r in records]
    )
    return checksum(data) + data


def run_of(stream: str, sequence: int, about: About, data: bytes) -> list[Record]:
    """Return the records of a run. sequence: of the message, or of the one that it replaces."""
    if about.quiet:
        return []
    at = f"{stream}@{about.first}"
    try:
        if checksum(data[_SUM_BYTES:]) != data[:_SUM_BYTES]:
            raise CorruptRecord("it does not match its checksum")
        base = (sequence - about.offset) * PLACES
        return [
            Record(stream, version, time, author, message, kind, _body_of(body), chain, base + place)
            for place, version, time, author, message, kind, chain, body in _rows(data[_SUM_BYTES:])
        ]
    except (msgspec.MsgspecError, CorruptRecord) as cause:
        raise damaged(f"{stream} from v{about.first}", at, str(cause)) from cause


def head_of(stream: str, about: About | None) -> Head:
    """Return a stream's head from its newest message, version 0 where there is none."""
    if about is None:
        return Head(stream)
    try:
        assert about.head is not None
        version, chain, kind = about.head
        return Head(stream, version, bytes.fromhex(chain), kind)
    except (AssertionError, ValueError) as cause:
        raise damaged(f"the head of {stream}", stream) from cause


def summed(name: str, data: bytes) -> bytes:
    """Return bytes with a checksum of them and their name."""
    return checksum(name.encode(), data) + data


def unsummed(what: str, name: str, data: bytes) -> bytes:
    """Return the bytes of what `summed` made."""
    if checksum(name.encode(), data[_SUM_BYTES:]) != data[:_SUM_BYTES]:
        raise damaged(f"the {what} {name}", name, "it does not match its checksum")
    return data[_SUM_BYTES:]


def _body_as_stored(body: bytes) -> bytes:
    packed = pack(body)
    if isinstance(packed, bytes):
        return packed
    return b"\x00" + body if body[:1] in _TAGS else body


def _body_of(data: bytes) -> bytes:
    return unpack(data) if data[:1] in _TAGS else data


def frame_as_stored(parts: tuple[Any, ...]) -> bytes:
    """Return the values of a keyframe as bytes."""
    return _encode(parts)


frame_of = msgspec.msgpack.Decoder(tuple[bytes, int, bytes, bytes]).decode
