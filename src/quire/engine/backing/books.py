"""What a backup is written as, beside its segments: a manifest and an inventory. Bytes in, values out; no I/O.

A **manifest** is one JSON object. Its name ends with the digest of its bytes, and it names everything else by digest, its
parent too: whoever has the name of a manifest can check all that hangs on it. An **inventory** says what there was at the
position where the backup ends: streams with where they begin and end, blobs, cells. It is JSON lines, compressed:

    {"quire": "inventory", "format": 1}
    {"stream": ..., "first": ..., "position": ..., "version": ..., "chain": ...}
    {"blob": ..., "object": ..., "bytes": ...}
    {"cell": ..., "value": ..., "expires": ...}
    {"end": {"lines": ..., "digest": ...}}

1. Nothing is believed before its digest fits, and nothing is expanded beyond a bound.
2. The same content gives the same bytes.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import zstandard
from blake3 import blake3

from quire.errors import CorruptRecord, IncompatibleFormat
from quire.model import Cell

FORMAT = 1
MANIFEST_MAX_BYTES = 64 * 1024 * 1024
INVENTORY_MAX_BYTES = 1024 * 1024 * 1024
"""What claims to be larger is not ours: a thousand million bytes are some millions of streams."""
_LEVEL = 9
_ID = re.compile(r"[0-9a-f]{16}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9]{12})-([0-9a-f]{64})\.json")

Kind = Literal["full", "incremental"]


class Piece(msgspec.Struct, frozen=True):
    """A segment in a manifest. name: digest of its bytes.  first, last: positions.  earliest, latest: UTC milliseconds."""

    name: str
    bytes: int
    records: int
    first: int
    last: int
    earliest: int
    latest: int


class Shelved(msgspec.Struct, frozen=True):
    """An object in a manifest or an inventory. name: digest of its bytes."""

    name: str
    bytes: int


class Mark(msgspec.Struct, frozen=True):
    """A record by which a log is recognised. chain: as stored, in hex."""

    position: int
    stream: str
    version: int
    chain: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """One backup. Positions are of the store it was taken from.

    id: names the namespace.  series: number of the full backup that this one builds on, its own if it is one.
    why: what people are told of it; of a full one, why it is not incremental.  parent: name of the manifest before it, "" for a full one.
    after, upto: it has what was committed at positions after < p <= upto.  records: in its segments.
    redactions: what had been taken out before it was begun; "" where that was not finished.
    marks: the newest records of some streams.  added_bytes: of the objects that it added.
    """

    quire: str = "backup"
    format: int = FORMAT
    id: str
    number: int
    series: int
    kind: Kind
    why: str
    parent: str
    namespace: str
    backend: str
    sealed: bool
    taken_at: int
    after: int
    upto: int
    records: int
    streams: int
    blobs: int
    cells: int
    added_bytes: int
    redactions: str
    marks: list[Mark]
    inventory: Shelved
    segments: list[Piece]


class Life(msgspec.Struct, frozen=True):
    """A stream in an inventory: from which version and position on it is in the backups, and where it ends.

    chain: of its newest record, as stored.
    """

    first: int
    position: int
    version: int
    chain: bytes


class Inventory(msgspec.Struct, frozen=True):
    """What there was at the end of a backup. blobs: by the name they are stored under."""

    streams: Mapping[str, Life]
    blobs: Mapping[str, Shelved]
    cells: tuple[Cell, ...]


class _End(msgspec.Struct, frozen=True):
    lines: int
    digest: str


class _Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    stream: str | None = None
    first: int = 0
    position: int = 0
    version: int = 0
    chain: str = ""
    blob: str | None = None
    object: str = ""
    bytes: int = 0
    cell: str | None = None
    value: str = ""
    expires: int | None = None
    end: _End | None = None


_encode = msgspec.json.Encoder().encode
_lines = msgspec.json.Encoder().encode_lines
_manifest = msgspec.json.Decoder(Manifest).decode
_line = msgspec.json.Decoder(_Line).decode_lines
_HEAD = b'{"quire":"inventory","format":%d}\n'


def manifest_name(number: int, data: bytes) -> str:
    """Return the name of a manifest: its number, so that names sort, and the digest of its bytes."""
    return f"{number:012d}-{blake3(data).hexdigest()}.json"


def number_of(name: str) -> int | None:
    """Return the number in the name of a manifest, None for a name that is none."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def write_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest."""
    return msgspec.json.format(_encode(manifest), indent=1) + b"\n"


def read_manifest(name: str, data: bytes) -> Manifest:
    """Return what a manifest says. Raises CorruptRecord, IncompatibleFormat for one of another format."""
    found = _NAME.fullmatch(name)
    if found is None or blake3(data).hexdigest() != found[2]:
        raise damaged(f"the manifest {name}", "it was cut off or altered")
    try:
        known: Any = msgspec.json.decode(data)
        if type(known) is dict and known.get("quire") == "backup" and known.get("format") != FORMAT:
            raise IncompatibleFormat(
                f"the manifest {name} is of format {known.get('format')}, this Quire reads {FORMAT}: upgrade quire",
                found=known.get("format"),
                supported=FORMAT,
            )
        manifest = _manifest(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as cause:
        raise damaged(f"the manifest {name}", str(cause)) from cause
    if not _makes_sense(manifest, int(found[1])):
        raise damaged(f"the manifest {name}", "what it says does not fit together")
    return manifest


def _makes_sense(m: Manifest, number: int) -> bool:
    """Whether what a manifest says of itself can be true; what it names is checked when it is read."""
    full = m.kind == "full"
    digests = [m.inventory.name, *(p.name for p in m.segments)]
    after = m.after
    for piece in m.segments:
        if not after < piece.first <= piece.last <= m.upto or piece.records < 1 or piece.bytes < 1:
            return False
        after = piece.last
    return (
        m.quire == "backup"
        and _ID.fullmatch(m.id) is not None
        and m.number == number
        and 1 <= m.series <= number
        and (m.series == number) == full
        and (m.parent == "") == full
        and (full or number_of(m.parent) is not None)
        and m.after >= 0
        and m.upto == after
        and (m.after == 0 or not full)
        and m.records == sum(p.records for p in m.segments)
        and all(_DIGEST.fullmatch(d) for d in digests)
        and m.inventory.bytes > 0
    )


def write_inventory(inventory: Inventory) -> bytes:
    """Return the bytes of an inventory."""
    lines = [
        _Line(stream=s, first=f.first, position=f.position, version=f.version, chain=f.chain.hex())
        for s, f in sorted(inventory.streams.items())
    ]
    lines += [_Line(blob=b, object=o.name, bytes=o.bytes) for b, o in sorted(inventory.blobs.items())]
    lines += [_Line(cell=c.name, value=b64encode(c.value).decode(), expires=c.expires) for c in inventory.cells]
    text = _HEAD % FORMAT + _lines(lines)
    end = _Line(end=_End(len(lines), blake3(text).hexdigest()))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(text + _lines([end]))


def read_inventory(data: bytes, what: str, *, max_bytes: int = INVENTORY_MAX_BYTES) -> Inventory:
    """Return what is in an inventory. what: how messages call it. Raises CorruptRecord, IncompatibleFormat."""
    text = _expanded(data, what, max_bytes)
    try:
        head, _, rest = text.partition(b"\n")
        known: Any = msgspec.json.decode(head)
        if type(known) is not dict or known.get("quire") != "inventory":
            raise damaged(what, "it is no inventory")
        if known.get("format") != FORMAT:
            raise IncompatibleFormat(
                f"{what} is of format {known.get('format')}, this Quire reads {FORMAT}: upgrade quire",
                found=known.get("format"),
                supported=FORMAT,
            )
        lines = _line(rest)
        end = lines.pop().end if lines else None
        whole = text[: text.rfind(b"\n", 0, -1) + 1]
        if end is None or end.lines != len(lines) or end.digest != blake3(whole).hexdigest():
            raise damaged(what, "it was cut off or altered")
        streams = {n.stream: _life(n) for n in lines if n.stream is not None}
        blobs = {n.blob: Shelved(_digest(n.object), n.bytes) for n in lines if n.blob is not None}
        cells = tuple(Cell(n.cell, b64decode(n.value, validate=True), n.expires) for n in lines if n.cell is not None)
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise damaged(what, str(cause)) from cause
    if len(streams) + len(blobs) + len(cells) != len(lines):
        raise damaged(what, "it names something twice, or nothing")
    return Inventory(streams, blobs, cells)


def _life(line: _Line) -> Life:
    chain = bytes.fromhex(line.chain)
    if not 1 <= line.first <= line.version or line.position < 1 or len(chain) != 32:
        raise ValueError("a line holds no stream")
    return Life(line.first, line.position, line.version, chain)


def _digest(name: str) -> str:
    if not _DIGEST.fullmatch(name):
        raise ValueError("a line names no object")
    return name


def _expanded(data: bytes, what: str, max_bytes: int) -> bytes:
    try:
        size = zstandard.frame_content_size(data)
        if not 0 < size <= max_bytes:
            raise damaged(what, f"it claims to be {size} bytes of text, at most {max_bytes} are read")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as cause:
        raise damaged(what, str(cause)) from cause


def damaged(what: str, why: str) -> CorruptRecord:
    """Say that a part of a backup cannot be used."""
    return CorruptRecord(
        f"{what} is damaged: {why}; nothing of it was used: bring another copy of it, or use an older backup", at=what
    )
