"""When to keep a whole state, how it is kept, and which old ones may go.

The rule is by bytes: a keyframe when the records since the last one weigh as much as the compressed state. It bounds
storage at about twice the log, and reading a recent version at a few parses of the state; a keyframe every N versions
would cost 42 times as much on a 9.8 MB state. Old keyframes thin out (`surplus`), so an old version costs also the
changes since the keyframe before it: up to a fifth as many as came after it. Keyframes are derived: losing all of them
loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import zstandard
from blake3 import blake3

from quire.errors import CorruptRecord
from quire.model import Head, Keyframe

_LEVEL = 3
_STATE_MAX_BYTES = 1024 * 1024 * 1024
"""What claims to be larger is not expanded: it is damage, and the log is read instead."""
_RECORD_BYTES = 150
"""What a record weighs beside its body: chain, author, message, index. Small changes cost more to read than they say."""
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def due(*, changes: int, size: int, last_size: int, changes_min: int, bytes_min: int, ratio: float) -> bool:
    """Tell whether a keyframe is due.

    changes, size: number and body bytes of the versions since the last keyframe.  last_size: its compressed bytes,
    0 if there is none yet.
    """
    return changes >= changes_min and size + changes * _RECORD_BYTES >= max(bytes_min, ratio * last_size)


def make(head: Head, state: dict[str, Any]) -> Keyframe:
    """Return the keyframe of a state at a head. Cost: one encoding and one compression; safe in any thread."""
    text = msgspec.json.encode(state)
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(text)
    return Keyframe(head.stream, head.version, head.chain, len(text), blake3(text).digest(), body)


def state_of(keyframe: Keyframe) -> dict[str, Any]:
    """Return the state kept in a keyframe, a fresh object. Raises CorruptRecord when its digest does not match."""
    at = f"{keyframe.stream}@{keyframe.version}"
    try:
        # the declared size is checked against ours first: a frame may claim any size
        if not 0 <= keyframe.size <= _STATE_MAX_BYTES or zstandard.frame_content_size(keyframe.body) != keyframe.size:
            raise CorruptRecord(f"{at}: the keyframe's size is wrong; it will be rebuilt from the log", at=at)
        text = zstandard.ZstdDecompressor().decompress(keyframe.body, max_output_size=keyframe.size)
        if blake3(text).digest() != keyframe.digest:
            raise CorruptRecord(f"{at}: the keyframe's digest is wrong; it will be rebuilt from the log", at=at)
        return _decode(text)
    except (zstandard.ZstdError, msgspec.MsgspecError, MemoryError) as cause:
        raise CorruptRecord(f"{at}: the keyframe cannot be read ({cause})", at=at) from cause


def surplus(versions: Sequence[int], *, newest: int = 8, per_octave: int = 8) -> list[int]:
    """Return which of the keyframes at these ascending versions may go.

    The newest are all kept; older ones thin out geometrically: one for each part of a doubling of the distance from the
    newest, `per_octave` parts to each. So their number grows with the logarithm of the history, and the way to the next
    one with its age.

    >>> surplus([10, 20, 30, 40, 50, 60, 70, 80], newest=2, per_octave=1)
    [30, 40, 60]
    """
    if len(versions) <= newest:
        return []
    last = versions[-1]
    taken: set[int] = set()
    drop: list[int] = []
    for version in versions[:-newest]:  # oldest first: within a part the oldest stays, so that it can age
        part = int(math.log2(last - version) * per_octave)
        if part in taken:
            drop.append(version)
        taken.add(part)
    return drop
