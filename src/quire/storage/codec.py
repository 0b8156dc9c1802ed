"""How a body lies in a table: as text while it is small, compressed when that pays.

Text can be read by any tool that opens the file. Anything else begins with a tag byte: 0x00 raw, 0x01 zstd.
Rows outside the log carry `checksum`; the log has its chain.
"""

from __future__ import annotations

import zstandard
from blake3 import blake3

from quire.errors import CorruptRecord

_COMPRESS_MIN_BYTES = 2048
_WORTH = 0.9
"""A compressed body is kept only if it is at most this share of the plain one."""
_LEVEL = 3
_PLAIN_MAX_BYTES = 256 * 1024 * 1024
"""A frame that claims to be larger is damage or a bomb; a larger body is stored as it is."""
_RAW, _ZSTD = b"\x00", b"\x01"


def pack(body: bytes) -> str | bytes:
    """Return what is stored for a body: text, or tagged bytes.

    >>> pack(b'[["inc",["n"],1]]')
    '[["inc",["n"],1]]'
    >>> pack(b"[" + b"0," * 5000 + b"0]")[:1]
    b'\\x01'
    """
    size = len(body)
    if _COMPRESS_MIN_BYTES <= size <= _PLAIN_MAX_BYTES:
        frame = zstandard.ZstdCompressor(level=_LEVEL).compress(body)
        if len(frame) + 1 <= size * _WORTH:
            return _ZSTD + frame
    if b"\x00" not in body:  # most tools end a text at a NUL
        try:
            return body.decode()
        except UnicodeDecodeError:
            pass
    return _RAW + body


def unpack(column: object) -> bytes:
    """Return the body of what is stored.

    column: the value as SQLite gave it; it may be damaged in any way.
    Raises CorruptRecord for anything that `pack` does not write, before it takes more than 256 MiB.
    """
    if type(column) is str:
        return column.encode()
    if type(column) is not bytes:
        raise CorruptRecord(f"the body is neither text nor bytes, but {type(column).__name__}")
    tag, rest = column[:1], column[1:]
    if tag == _RAW:
        return rest
    if tag == _ZSTD:
        return _expand(rest)
    raise CorruptRecord(f"the body begins with {tag!r}, which is no known form")


def checksum(*parts: bytes) -> bytes:
    """Return 8 bytes that tell damage of the parts, their number or their lengths."""
    total = blake3()
    for part in parts:
        total.update(b"%d:" % len(part))
        total.update(part)
    return total.digest(length=8)


def _expand(frame: bytes) -> bytes:
    try:
        # Decompressing allocates what the frame declares, whatever limit is passed: look before.
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= _PLAIN_MAX_BYTES:
            raise CorruptRecord(f"the compressed body claims {size} bytes")
        body = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as cause:
        raise CorruptRecord(f"the body cannot be decompressed ({cause})") from cause
    if len(body) != size:
        raise CorruptRecord(f"the compressed body claims {size} bytes and has {len(body)}")
    return body
