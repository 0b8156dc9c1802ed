"""Files of lines that a person can read: each line is a JSON object that ends with a checksum of itself.

1. A line's checksum also covers whose file it is, so that neither a changed bit nor a swapped file goes unnoticed.
2. Lines are only ever added at the end, and their keys (a version, a position) grow. So a line is found by halving the
   file, and no index is needed beside it.
3. Nothing leaves here that does not match its checksum. A writer may be adding to the end meanwhile: whoever meets
   damage looks again while nobody writes before believing it.
"""

from __future__ import annotations

import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from typing import Any, Self

import msgspec
from blake3 import blake3

from quire.errors import CorruptRecord
from quire.model import GENESIS, Head, Record
from quire.storage._files_disk import open_to_read

FORMAT = 1
_SUM = b',"sum":"'
_SUM_BYTES = 26
"""`,"sum":"`, 16 digits, `"}`."""
_CHUNK = 64 * 1024
_PROBE = 4096
"""What is read at once where one line is wanted."""
_SCAN = 16 * 1024
"""Stretches up to this are read through instead of halved."""

_encode = msgspec.json.Encoder().encode
_raw = msgspec.json.Decoder(msgspec.Raw).decode


class _Text(msgspec.Struct, gc=False):
    """A record whose body is JSON: the body stands in the line as it is, byte for byte."""

    version: int
    position: int
    time: int
    author: str
    message: str
    kind: str
    chain: str
    body: msgspec.Raw


class _Bytes(msgspec.Struct, gc=False):
    """A record whose body is anything else."""

    version: int
    position: int
    time: int
    author: str
    message: str
    kind: str
    chain: str
    base64: str


class _Line(msgspec.Struct, gc=False):
    """Either of them, or the first line of a file."""

    version: int = 0
    position: int = 0
    time: int = 0
    author: str = ""
    message: str = ""
    kind: str = ""
    chain: str = ""
    body: msgspec.Raw = msgspec.Raw(b"")
    base64: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def owner(namespace: str, name: str) -> bytes:
    """Return what the checksums of a file's lines cover besides the line: whose file it is."""
    return _encode([namespace, name])


def seal(whose: bytes, text: bytes) -> bytes:
    """Return a line of a JSON object: with its checksum, and its end."""
    text = text[:-1]
    return text + _SUM + blake3(whose + text).hexdigest(length=8).encode() + b'"}\n'


def sealed(whose: bytes, line: bytes) -> bool:
    """Whether a line (without its end) is as it was written."""
    text = line[:-_SUM_BYTES]
    return line[len(text) :] == _SUM + blake3(whose + text).hexdigest(length=8).encode() + b'"}' and bool(text)


def first_line(whose: bytes, namespace: str, name: str, kind: str) -> bytes:
    """Return the line that a file begins with: what it is, and of whom."""
    return seal(whose, _encode({"quire": FORMAT, "namespace": namespace, kind: name}))


def record_line(whose: bytes, r: Record, position: int) -> bytes:
    """Return the line of a record."""
    body = r.body
    if _is_json(body):
        line = _Text(r.version, position, r.time, r.author, r.message, r.kind, r.chain.hex(), msgspec.Raw(body))
    else:
        coded = b64encode(body).decode()
        line = _Bytes(r.version, position, r.time, r.author, r.message, r.kind, r.chain.hex(), coded)
    return seal(whose, _encode(line))


def _is_json(body: bytes) -> bool:
    """Whether a body can stand in a line: one JSON value in UTF-8, on one line, nothing around it."""
    try:
        if not body.isascii():
            body.decode()
        return len(bytes(_raw(body))) == len(body) and b"\n" not in body
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False


def record_of(stream: str, line: bytes) -> Record:
    """Return the record of a line that matches its checksum."""
    e = _decode(line)
    body = bytes(e.body) if e.base64 is None else b64decode(e.base64, validate=True)
    return Record(stream, e.version, e.time, e.author, e.message, e.kind, body, bytes.fromhex(e.chain), e.position)


class LineFile:
    """A file of lines, open for reading: use it as a context."""

    def __init__(self, handle: int, path: str, whose: bytes) -> None:
        self._handle = handle
        self.path = path
        self.whose = whose
        self.size = os.fstat(handle).st_size

    @classmethod
    def open(cls, path: str, whose: bytes) -> Self | None:
        """Return the file, or None where there is none, or nothing in it."""
        handle = open_to_read(path)
        if handle is None:
            return None
        found = cls(handle, path, whose)
        if found.size:
            return found
        found.close()
        return None

    @classmethod
    def claimed(cls, path: str) -> str | None:
        """Return the stream that a file says it is, None for an absent or empty one. It may be lying: see `line_at`."""
        file = cls.open(path, b"")
        if file is None:
            return None
        with file:
            first = file._pread(_CHUNK, 0).partition(b"\n")[0]
            try:
                return str(msgspec.json.decode(first, type=dict[str, Any])["stream"])
            except (msgspec.MsgspecError, KeyError):
                raise file.damage(0) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def damage(self, offset: int) -> CorruptRecord:
        """Return what to raise for the line at `offset`."""
        return CorruptRecord(
            f"{self.path} is damaged: what stands at byte {offset} does not match its checksum; "
            "`quire verify` lists all damage, a backup has the rest",
            at=f"{self.path}@{offset}",
        )

    def line_at(self, offset: int) -> bytes:
        """Return the line that begins at `offset`, without its end. Raises CorruptRecord."""
        data = b""
        want = _PROBE
        while (end := data.find(b"\n")) < 0:
            more = os.pread(self._handle, min(want, self.size - offset - len(data)), offset + len(data))
            if not more:
                raise self.damage(offset)
            data += more
            want = min(want * 4, 4 * 1024 * 1024)
        line = data[:end]
        if not sealed(self.whose, line):
            raise self.damage(offset)
        return line

    def forward(self, offset: int = 0) -> Iterator[tuple[int, bytes]]:
        """Yield where lines begin and what they are, from the line at `offset` on. Raises CorruptRecord."""
        data, start = b"", 0
        whose = self.whose
        at = offset
        while at < self.size:
            end = data.find(b"\n", start)
            if end < 0:
                rest = data[start:]
                more = self._pread(max(_CHUNK, len(rest)), at + len(rest))
                if not more:
                    raise self.damage(at)
                data, start = rest + more, 0
                continue
            line = data[start:end]
            if not sealed(whose, line):
                raise self.damage(at)
            yield at, line
            start = end + 1
            at += len(line) + 1

    def _pread(self, count: int, offset: int) -> bytes:
        return os.pread(self._handle, max(0, min(count, self.size - offset)), offset)

    def backward(self) -> Iterator[tuple[int, bytes]]:
        """Yield the same from the last line to the first. Raises CorruptRecord."""
        end = self.size
        want = _PROBE
        data, begin = b"", end  # what is read of [begin, end)
        while end > 0:
            cut = data.rfind(b"\n", 0, end - begin - 1) if end > begin else -1
            if cut < 0 and begin > 0:
                step = min(want, begin)
                data = os.pread(self._handle, step, begin - step) + data[: end - begin]
                begin -= step
                want = min(want * 4, 4 * 1024 * 1024)
                continue
            start = begin + cut + 1
            line = data[cut + 1 : end - begin]
            if not line.endswith(b"\n") or not sealed(self.whose, line[:-1]):
                raise self.damage(start)
            yield start, line[:-1]
            end = start

    def beyond(self, key: int, key_of: Callable[[bytes], int]) -> int:
        """Return where the first line begins whose key is greater than `key`; the size where there is none.

        Cost: reads as many lines as the file can be halved.
        """
        low, high = 0, self.size  # lines that begin before `low` are not beyond it
        while high - low > _SCAN:
            middle = (low + high) // 2
            start = self._next_line(middle)
            if start < high and key_of(line := self.line_at(start)) <= key:
                low = start + len(line) + 1
            else:
                high = middle
        return self._first_beyond(low, key, key_of)

    def _first_beyond(self, low: int, key: int, key_of: Callable[[bytes], int]) -> int:
        for start, line in self.forward(low):
            if key_of(line) > key:
                return start
        return self.size

    def _next_line(self, offset: int) -> int:
        """Return where the first line after `offset` begins, the size where none does."""
        while offset < self.size:
            part = self._pread(_CHUNK, offset)
            end = part.find(b"\n")
            if end >= 0:
                return offset + end + 1
            offset += len(part) or self.size
        return self.size


def version_of(line: bytes) -> int:
    """Return the key of a line of a stream; 0 for the first line of the file."""
    return _decode(line).version


def head_at(file: LineFile, stream: str, position: int) -> Head:
    """Return the head of a stream as of a position: lines beyond it were not committed yet."""
    for _, line in file.backward():
        e = _decode(line)
        if e.version and e.position <= position:
            return Head(stream, e.version, bytes.fromhex(e.chain), e.kind)
    return Head(stream, 0, GENESIS)


def first_of(file: LineFile) -> tuple[int, int]:
    """Return version and position of the oldest record of a stream, zeros where there is none."""
    for _, line in file.forward():
        e = _decode(line)
        if e.version:
            return e.version, e.position
    return 0, 0
