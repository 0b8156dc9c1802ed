"""How a body lies in a table: as text while it is small, compressed when that pays.

Text can be read by any tool that opens the file. Anything else begins with a tag byte: 0x00 raw, 0x01 zstd.
"""

from __future__ import annotations

import zstandard

from quire.errors import CorruptRecord

_COMPRESS_MIN = 2048
_WORTH = 0.9
"""A compressed body is kept only if it is at most this share of the plain one."""
_PLAIN_MAX = 256 * 1024 * 1024
"""No body is larger; a frame that claims to be is damage or a bomb."""
_RAW, _ZSTD = b"\x00", b"\x01"


def pack(body: bytes) -> str | bytes:
    """Return what is stored for a body."""
    if len(body) >= _COMPRESS_MIN:
        small = zstandard.ZstdCompressor(level=3).compress(body)
        if len(small) + 1 <= len(body) * _WORTH:
            return _ZSTD + small
    if b"\x00" in body:
        return _RAW + body
    try:
        return body.decode()
    except UnicodeDecodeError:
        return _RAW + body


def unpack(stored: object) -> bytes:
    """Return the body of what is stored. Raises CorruptRecord for anything `pack` does not write."""
    if isinstance(stored, str):
        return stored.encode(errors="surrogatepass")
    if isinstance(stored, bytes) and stored[:1] == _RAW:
        return stored[1:]
    if isinstance(stored, bytes) and stored[:1] == _ZSTD:
        frame = stored[1:]
        try:
            size = zstandard.frame_content_size(frame)
            if not 0 <= size <= _PLAIN_MAX:
                raise CorruptRecord(f"a stored body claims {size} bytes")
            return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
        except (zstandard.ZstdError, MemoryError) as cause:
            raise CorruptRecord(f"a stored body cannot be decompressed ({cause})") from cause
    raise CorruptRecord(f"a stored body is neither text nor tagged bytes, but {type(stored).__name__}")
