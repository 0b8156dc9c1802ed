"""Segments: records in a file of their own, for archives and backups. Bytes in, records out; nothing else is known here.

    one JSON text a line, UTF-8, the whole compressed with zstd
    {"quire": "segment", "format": 1, "namespace": ..., "salt": ...}   salt: only where the writer gave one
    {"keyframe": {...}}                                      a state that some of the records begin from
    {"position": ..., "stream": ..., "version": ..., ...}    records, each stream's in the order of its versions
    {"end": {"records": ..., "keyframes": ..., "digest": ...}}   blake3 of all lines before it

1. What goes in comes out byte for byte: bodies, chains and positions, also those that a wrapper sealed.
2. Anybody can read it: `zstdcat FILE | jq`, or DuckDB's `read_json('*.jsonl.zst')`. docs/format.md gives the fields.
3. What was cut off, altered or forged is found before any of it is used, and nothing is expanded beyond a bound.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import zstandard
from blake3 import blake3

from quire.errors import CorruptRecord, IncompatibleFormat
from quire.model import Keyframe, Record

FORMAT = 1
SUFFIX = ".jsonl.zst"
EXPANDED_MAX_BYTES = 1024 * 1024 * 1024
"""What claims to be larger is a bomb: writers close a segment long before."""
_RECORD_BYTES = 260
"""What a line takes beside its body and message."""
_LEVEL = 9
"""Written once and kept for years; five times slower than 3, and a fifth smaller."""


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    quire: str
    format: int
    namespace: str
    salt: str = ""


class _Frame(msgspec.Struct, frozen=True):
    stream: str
    version: int
    chain: str
    size: int
    digest: str
    body: str


class _End(msgspec.Struct, frozen=True):
    records: int
    keyframes: int
    digest: str


class _Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Any line but the first. body: what is text; packed: base64 of what is not."""

    position: int = 0
    stream: str = ""
    version: int = 0
    time: int = 0
    author: str = ""
    message: str = ""
    kind: str = ""
    chain: str = ""
    body: str | None = None
    packed: str | None = None
    keyframe: _Frame | None = None
    end: _End | None = None


class Segment(msgspec.Struct, frozen=True):
    """What a segment holds, as it is stored: of one namespace, in the order it was given.

    salt: means nothing; with another one the same content has another name.
    """

    namespace: str
    records: Sequence[Record]
    keyframes: Sequence[Keyframe] = ()
    salt: str = ""


_encoder = msgspec.json.Encoder()
_lines = msgspec.json.Encoder().encode_lines
_head = msgspec.json.Decoder(_Head).decode
_line = msgspec.json.Decoder(_Line).decode_lines


def weight(records: Iterable[Record]) -> int:
    """Return about how many bytes records take before they are compressed: what a writer closes a segment by."""
    return sum(len(r.body) + len(r.message) + _RECORD_BYTES for r in records)


def frame_weight(frames: Iterable[Keyframe]) -> int:
    """Return about how many bytes keyframes take: base64, and hardly any less when compressed again."""
    return sum(len(k.body) * 4 // 3 + _RECORD_BYTES for k in frames)


def name_of(data: bytes) -> str:
    """Return the name of an object: blake3 in hex, so that one name is one content for ever."""
    return blake3(data).hexdigest()


def encode(segment: Segment) -> bytes:
    """Return the bytes of a segment: the same for the same content."""
    head = _encoder.encode(_Head("segment", FORMAT, segment.namespace, segment.salt)) + b"\n"
    text = head + _lines([*map(_framed, segment.keyframes), *map(_recorded, segment.records)])
    end = _Line(end=_End(len(segment.records), len(segment.keyframes), blake3(text).hexdigest()))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(text + _lines([end]))


def decode(data: bytes, what: str, *, max_bytes: int = EXPANDED_MAX_BYTES) -> Segment:
    """Return what is in a segment. what: how messages call it. Raises CorruptRecord, IncompatibleFormat.

    Cost: at most `max_bytes` of memory for the text, and a few times that for what it says.
    """
    text = _expanded(data, what, max_bytes)
    first, _, rest = text.partition(b"\n")
    cut = text.rfind(b"\n", 0, -1) + 1
    try:
        head = _head(first)
        if head.quire != "segment":
            raise _damaged(what, "it is no segment")
        if head.format != FORMAT:
            raise IncompatibleFormat(
                f"{what} is a segment of format {head.format}, this Quire reads {FORMAT}: upgrade quire",
                found=head.format,
                supported=FORMAT,
            )
        lines = _line(rest)
        end = lines.pop().end if lines else None
        if end is None or end.digest != blake3(text[:cut]).hexdigest():
            raise _damaged(what, "it was cut off or altered")
        frames = [_frame(line.keyframe) for line in lines if line.keyframe is not None]
        records = [_record(line) for line in lines if line.keyframe is None]
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise _damaged(what, str(cause)) from cause
    if (len(records), len(frames)) != (end.records, end.keyframes):
        raise _damaged(what, f"it holds {len(records)} records of {end.records}")
    return Segment(head.namespace, records, frames, head.salt)


def _expanded(data: bytes, what: str, max_bytes: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= max_bytes:
            raise _damaged(what, f"it claims to be {size} bytes of text, at most {max_bytes} are read")
        text = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
    except (zstandard.ZstdError, MemoryError) as cause:
        raise _damaged(what, str(cause)) from cause
    return text


def _framed(k: Keyframe) -> _Line:
    body = b64encode(k.body).decode()
    return _Line(keyframe=_Frame(k.stream, k.version, k.chain.hex(), k.size, k.digest.hex(), body))


def _frame(f: _Frame) -> Keyframe:
    body = b64decode(f.body, validate=True)
    return Keyframe(f.stream, f.version, bytes.fromhex(f.chain), f.size, bytes.fromhex(f.digest), body)


def _recorded(r: Record) -> _Line:
    body: dict[str, Any]
    try:
        body = {"body": r.body.decode()}
    except UnicodeDecodeError:
        body = {"packed": b64encode(r.body).decode()}
    return _Line(r.position, r.stream, r.version, r.time, r.author, r.message, r.kind, r.chain.hex(), **body)


def _record(line: _Line) -> Record:
    if (line.body is None) == (line.packed is None):
        raise ValueError("a line holds no record")
    body = b64decode(line.packed, validate=True) if line.body is None else line.body.encode()  # type: ignore[arg-type]
    chain = bytes.fromhex(line.chain)
    if len(chain) != 32 or line.version < 1 or not line.stream:
        raise ValueError("a line holds no record")
    return Record(
        line.stream, line.version, line.time, line.author, line.message, line.kind, body, chain, line.position
    )


def _damaged(what: str, why: str) -> CorruptRecord:
    return CorruptRecord(f"{what} is damaged: {why}; nothing of it was used: bring another copy of it", at=what)
