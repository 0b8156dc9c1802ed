"""Compression of what is stored: zstd, gzip or lz4, and for zstd dictionaries trained on what a kind of stream holds.

1. A body or blob is compressed from a threshold on, and kept so only if that saves a tenth. What is stored says by its
   first byte how to read it; plain JSON stays as it is.
2. Reading needs no setting: a store that was written with other settings, or several, is read all the same.
3. A dictionary is a blob that is never removed while the namespace lives: what was compressed with it needs it. Small
   changes of agents repeat each other's words, and only a dictionary can use that.
4. Nothing is expanded beyond a bound: what claims or turns out to be larger is damage, or a bomb.

Cells are compared by the backend within and stay plain; keyframes are compressed already.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, cast, get_args

import msgspec
import zstandard
from blake3 import blake3

from quire.config import Algorithm, Compression
from quire.errors import CorruptRecord, Invalid, Unsupported
from quire.model import Gain, Record
from quire.storage.base import Backend, CellWrite, Committed, Item
from quire.storage.wrap import BOOK
from quire.storage.wrap._around import Around, claim_cell

FORMAT = 1
_TRAINED_BYTES = 48
"""The threshold where there is a dictionary."""
_WORTH = 0.9
"""What is compressed is kept only if it is at most this share of the plain bytes."""
_PLAIN_MAX_BYTES = 256 * 1024 * 1024
"""More than this is not compressed, and nothing is expanded to more."""
_DICTIONARY_BYTES = 16 * 1024
_SAMPLES_MAX, _SAMPLES_MIN = 4000, 50
_RAW, _ZSTD, _GZIP, _LZ4 = b"\x00", b"\x01", b"\x02", b"\x03"
_TAG_MAX = 0x03
_LEVELS: dict[str, tuple[int, int, int]] = {"zstd": (1, 22, 3), "gzip": (0, 9, 6), "lz4": (0, 16, 0)}
"""Lowest, highest and usual level."""

_json = msgspec.json.Encoder().encode


class _Book(msgspec.Struct, frozen=True):
    """What the cell says: how the store was begun, and the newest dictionary of each kind of stream."""

    format: int
    compression: Compression
    dictionaries: dict[str, str] = {}


def checked(compression: Compression | str) -> Compression:
    """Return settings that make sense. Raises Invalid, Unsupported without the package lz4 for that."""
    said = Compression(cast("Algorithm", compression)) if isinstance(compression, str) else compression
    if type(said) is not Compression:
        raise Invalid(f"compression {said!r}: it is {', '.join(get_args(Algorithm))}, or a Compression with settings")
    if said.algorithm not in get_args(Algorithm):
        raise Invalid(f"compression {said.algorithm!r}: it is {', '.join(get_args(Algorithm))}")
    low, high, usual = _LEVELS[said.algorithm]
    level = usual if said.level is None else said.level
    if not low <= level <= high:
        raise Invalid(f"compression level {level}: {said.algorithm} has {low} to {high}")
    if said.threshold_bytes < 0:
        raise Invalid(f"compression threshold {said.threshold_bytes}: it is a number of bytes from 0 on")
    if said.algorithm == "lz4":
        _lz4()
    return Compression(said.algorithm, level, said.threshold_bytes)


def _lz4() -> Any:
    try:
        import lz4.frame
    except ImportError as cause:
        raise Unsupported(
            "lz4 needs the package lz4: pip install 'quire[lz4]', or choose zstd", capability="compression:lz4"
        ) from cause
    return lz4.frame


async def open_compressed(inner: Backend, compression: Compression | str | None = None) -> Compressed:
    """Return a backend that compresses what it stores in `inner`, an open handle on a namespace.

    compression: for what is written from now on; None for what the namespace was begun with, or zstd. A namespace
    that holds plain data may be opened so: that stays as it is.
    Raises Invalid, Unsupported, CorruptRecord.
    """
    wanted = None if compression is None else checked(compression)
    stored = await claim_cell(inner, BOOK, _json(_Book(FORMAT, wanted or checked("zstd"))))
    book = _read_book(stored)
    backend = Compressed(inner, wanted or checked(book.compression))
    await backend.learn(book)
    return backend


def _read_book(stored: bytes) -> _Book:
    try:
        return msgspec.json.decode(stored, type=_Book)
    except msgspec.MsgspecError as cause:
        raise CorruptRecord(f"the cell {BOOK} is damaged ({cause}); restore a backup", at=BOOK) from cause


class Compressed(Around):
    """What is stored of a namespace, compressed. Made by `open_compressed`."""

    own = BOOK

    def __init__(self, inner: Backend, compression: Compression) -> None:
        super().__init__(inner, f"compressed with {compression.algorithm}")
        self._settings = compression
        self._names: dict[str, str] = {}
        """The newest dictionary of each kind, by its blob."""
        self._writers: dict[str, zstandard.ZstdCompressor] = {}
        """By kind, those with a dictionary."""
        self._readers: dict[int, zstandard.ZstdDecompressor] = {0: zstandard.ZstdDecompressor()}
        """By the number that a frame gives of its dictionary; 0 for none."""
        self._compress = _compressor(compression)

    # dictionaries

    async def learn(self, book: _Book) -> None:
        """Fetch the dictionaries that a book names."""
        for kind, name in book.dictionaries.items():
            if self._names.get(kind) != name:
                dictionary = await self._fetch(name)
                if self._settings.algorithm == "zstd":
                    level = self._settings.level or _LEVELS["zstd"][2]
                    self._writers[kind] = zstandard.ZstdCompressor(level=level, dict_data=dictionary)
                self._names[kind] = name

    async def _fetch(self, name: str) -> zstandard.ZstdCompressionDict:
        data = await self.inner.blob(name)
        if data is None or name != _dictionary_name(data):
            raise CorruptRecord(f"the dictionary {name} is gone or damaged; restore a backup", at=name)
        dictionary = zstandard.ZstdCompressionDict(data)
        self._readers[dictionary.dict_id()] = zstandard.ZstdDecompressor(dict_data=dictionary)
        return dictionary

    async def before_loading(self, records: Sequence[Record]) -> None:
        """Fetch dictionaries that another process trained since."""
        if all(_dictionary_of(r.body) in self._readers for r in records):
            return
        cell = await self.inner.cell(BOOK)
        if cell is not None:
            await self.learn(_read_book(cell.value))
        missing = {_dictionary_of(r.body) for r in records} - set(self._readers)
        for name in await self.inner.blobs(after=BOOK) if missing else ():  # one that was replaced meanwhile
            if name.startswith(BOOK):
                await self._fetch(name)

    async def train(self, kind: str, *, dictionary_bytes: int = _DICTIONARY_BYTES) -> Gain:
        """Train a dictionary on what streams of a kind hold, and use it from now on. Other handles read it at once.

        kind: what stands before the slash in the names of streams, such as "workflows".
        Half of the newest records are learned from, the other half measured.
        Raises Invalid where there are fewer than 50 of them, or the algorithm is not zstd.
        Cost: reads up to 4,000 records; a second or so.
        """
        if self._settings.algorithm != "zstd":
            raise Invalid(f"a dictionary needs zstd, not {self._settings.algorithm}")
        samples = await self._samples(f"{kind}/")
        if len(samples) < _SAMPLES_MIN:
            raise Invalid(
                f"a dictionary for {kind} needs {_SAMPLES_MIN} records to learn from; there are {len(samples)}"
            )
        try:
            trained = zstandard.train_dictionary(dictionary_bytes, cast("Any", samples[::2]))
        except zstandard.ZstdError as cause:
            raise Invalid(f"what {kind} hold is too small or too even for a dictionary ({cause})") from cause
        data = trained.as_bytes()
        name = _dictionary_name(data)
        await self.inner.put_blob(name, data)
        while True:
            cell = await self.inner.cell(BOOK)
            assert cell is not None, "opening it made one"
            book = _read_book(cell.value)
            book = _Book(FORMAT, book.compression, book.dictionaries | {kind: name})
            (outcome,) = await self.inner.commit([Item(cells=(CellWrite(BOOK, cell.value, _json(book)),))])
            if isinstance(outcome, Committed):
                break
        await self.learn(book)
        measured = samples[1::2]
        plainly = zstandard.ZstdCompressor(level=self._settings.level or _LEVELS["zstd"][2])
        return Gain(
            kind,
            len(measured),
            sum(map(len, measured)),
            sum(len(_smaller(s, plainly.compress)) for s in measured),
            sum(len(_smaller(s, self._writers[kind].compress)) for s in measured),
        )

    async def _samples(self, prefix: str) -> list[bytes]:
        streams = await self.streams(prefix, limit=_SAMPLES_MAX)
        share = max(1, _SAMPLES_MAX // max(1, len(streams)))
        found: list[bytes] = []
        for head in await self.heads(streams):
            found += [r.body for r in await self.read(head.stream, after=head.version - share) if r.body]
        return found

    # hooks

    def store_body(self, r: Record) -> bytes:
        """Compress a body where that pays."""
        kind, _, _ = r.stream.partition("/")
        trained = self._writers.get(kind)
        if trained is None:
            return self._store(r.body)
        return self._pack(r.body, _ZSTD, trained.compress, _TRAINED_BYTES)

    def load_body(self, r: Record) -> bytes:
        """Expand a body."""
        return self._load(r.body, f"{r.stream} v{r.version}")

    def store_blob(self, name: str, data: bytes) -> bytes:
        """Compress a blob where that pays."""
        del name
        return self._store(data)

    def load_blob(self, name: str, data: bytes) -> bytes:
        """Expand a blob."""
        return self._load(data, f"the blob {name}")

    def _store(self, data: bytes) -> bytes:
        tag, compress = self._compress
        return self._pack(data, tag, compress, self._settings.threshold_bytes)

    @staticmethod
    def _pack(data: bytes, tag: bytes, compress: Callable[[bytes], bytes], threshold: int) -> bytes:
        if threshold <= len(data) <= _PLAIN_MAX_BYTES:
            smaller = compress(data)
            if len(smaller) + 1 <= len(data) * _WORTH:
                return tag + smaller
        return _RAW + data if data and data[0] <= _TAG_MAX else data

    def _load(self, stored: bytes, what: str) -> bytes:
        if not stored or stored[0] > _TAG_MAX:
            return stored
        tag, rest = stored[:1], stored[1:]
        try:
            if tag == _RAW:
                return rest
            return (
                self._expand_zstd(rest) if tag == _ZSTD else _expand_gzip(rest) if tag == _GZIP else _expand_lz4(rest)
            )
        except (zstandard.ZstdError, zlib.error, RuntimeError, EOFError, _TooLarge) as cause:
            raise CorruptRecord(
                f"{what} cannot be expanded ({cause}); `quire verify` lists all damage, a backup has the rest", at=what
            ) from cause

    def _expand_zstd(self, frame: bytes) -> bytes:
        # Decompressing allocates what the frame declares, whatever limit is passed: look before.
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= _PLAIN_MAX_BYTES:
            raise _TooLarge(f"it claims {size} bytes")
        reader = self._readers.get(zstandard.get_frame_parameters(frame).dict_id)
        if reader is None:
            raise _TooLarge("its dictionary is unknown")
        data = reader.decompress(frame, max_output_size=size, allow_extra_data=False)
        if len(data) != size:
            raise _TooLarge(f"it claims {size} bytes and has {len(data)}")
        return data


class _TooLarge(Exception):
    """What is stored does not keep to what it claims, or to the bound."""


def _compressor(said: Compression) -> tuple[bytes, Callable[[bytes], bytes]]:
    level = _LEVELS[said.algorithm][2] if said.level is None else said.level
    if said.algorithm == "zstd":
        return _ZSTD, zstandard.ZstdCompressor(level=level).compress
    if said.algorithm == "gzip":
        return _GZIP, lambda data: zlib.compress(data, level, wbits=31)
    lz4 = _lz4()
    return _LZ4, lambda data: lz4.compress(data, compression_level=level)


def _claimed(size: int) -> int:
    """Return a size that a frame claims, so that no more is expanded than that."""
    if not 0 < size <= _PLAIN_MAX_BYTES:
        raise _TooLarge(f"it claims {size} bytes")
    return size


def _expand_gzip(data: bytes) -> bytes:
    size = _claimed(int.from_bytes(data[-4:], "little"))  # RFC 1952 section 2.3.1
    worker = zlib.decompressobj(wbits=31)
    found = worker.decompress(data, size + 1)
    if len(found) != size or worker.unconsumed_tail or worker.unused_data or not worker.eof:
        raise _TooLarge("it is cut off, of another size than it claims, or more than one")
    return found


def _expand_lz4(data: bytes) -> bytes:
    lz4 = _lz4()
    size = _claimed(lz4.get_frame_info(data)["content_size"])
    worker = lz4.LZ4FrameDecompressor()
    found = worker.decompress(data, max_length=size + 1)
    if len(found) != size or worker.unused_data or not worker.eof:
        raise _TooLarge("it is cut off, of another size than it claims, or more than one")
    return found


def _dictionary_of(stored: bytes) -> int:
    """Return the number of the dictionary that a stored body needs, 0 for none."""
    if not stored.startswith(_ZSTD):
        return 0
    try:
        return zstandard.get_frame_parameters(stored[1:19]).dict_id
    except zstandard.ZstdError:
        return 0  # reading it says what is wrong


def _dictionary_name(data: bytes) -> str:
    return f"{BOOK}/{blake3(data).hexdigest()}"


def _smaller(data: bytes, compress: Callable[[bytes], bytes]) -> bytes:
    return min(compress(data), data, key=len)
