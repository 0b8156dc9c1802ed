"""Segments come out as they went in, byte for byte; damage of any kind is found before anything is used."""

import json
import random

import msgspec
import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from quire.core import segment
from quire.core.segment import Segment, decode, encode
from quire.errors import CorruptRecord, IncompatibleFormat
from quire.model import Keyframe, Record

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HASH = st.binary(min_size=32, max_size=32)
BIG = st.integers(0, 2**63 - 1)
BODY = st.one_of(st.binary(max_size=60), st.just(b'[["set",["a"],1]]'), TEXT.map(str.encode))
RECORDS = st.builds(
    Record,
    stream=st.sampled_from(["workflows/a", "events/b"]),
    version=st.integers(1, 2**63 - 1),
    time=BIG,
    author=TEXT,
    message=TEXT,
    kind=TEXT,
    body=BODY,
    chain=HASH,
    position=BIG,
)
FRAMES = st.builds(Keyframe, stream=TEXT, version=BIG, chain=HASH, size=BIG, digest=HASH, body=st.binary(max_size=60))


@given(TEXT, st.lists(RECORDS, max_size=8), st.lists(FRAMES, max_size=3))
def test_what_goes_in_comes_out_byte_for_byte(namespace, records, frames):
    given_ = Segment(namespace, records, frames)
    data = encode(given_)
    assert decode(data, "s") == given_
    assert encode(given_) == data


def sample(count=40):
    records = [
        Record("workflows/a", n, 1_700_000_000_000 + n, "ann", "why", "change", b'[["inc",["n"],1]]', bytes(32), n + 7)
        for n in range(1, count + 1)
    ]
    return Segment("default", records, [Keyframe("workflows/a", 1, bytes(32), 2, bytes(32), b"\xff\x00")])


def test_it_is_json_lines_that_anybody_can_read(tmp_path):
    file = tmp_path / f"x{segment.SUFFIX}"
    file.write_bytes(encode(sample()))
    lines = [json.loads(line) for line in zstandard.decompress(file.read_bytes()).splitlines()]
    assert lines[0] == {"quire": "segment", "format": 1, "namespace": "default"}
    assert lines[1]["keyframe"]["version"] == 1
    assert lines[2] == {
        "position": 8,
        "stream": "workflows/a",
        "version": 1,
        "time": 1_700_000_000_001,
        "author": "ann",
        "message": "why",
        "kind": "change",
        "chain": "00" * 32,
        "body": '[["inc",["n"],1]]',
    }
    assert lines[-1]["end"]["records"] == 40
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"select version, author, body from read_json('{file}') where stream is not null").fetchall()
    assert found == [(n, "ann", '[["inc",["n"],1]]') for n in range(1, 41)]


def test_every_flipped_bit_and_every_cut_is_found():
    data, whole = encode(sample()), sample()
    rng = random.Random(7)
    for _ in range(600):
        at = rng.randrange(len(data) * 8)
        bad = bytearray(data)
        bad[at // 8] ^= 1 << at % 8
        try:
            assert decode(bytes(bad), "s") == whole  # zstd's header has bits that mean nothing
        except CorruptRecord:
            pass
    for cut in range(len(data)):
        with pytest.raises(CorruptRecord):
            decode(data[:cut], "s")


def test_every_altered_byte_of_the_text_is_found():
    text = zstandard.decompress(encode(sample(3)))
    for at in range(len(text)):
        bad = bytearray(text)
        bad[at] ^= 1
        with pytest.raises((CorruptRecord, IncompatibleFormat)):
            decode(zstandard.compress(bytes(bad)), "s")


def forged(*lines):
    """Return a segment of these lines with an end that fits them."""
    text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    records = sum("stream" in line for line in lines)
    end = {"end": {"records": records, "keyframes": 0, "digest": blake3(text).hexdigest()}}
    return zstandard.compress(text + msgspec.json.encode(end) + b"\n")


HEAD = {"quire": "segment", "format": 1, "namespace": "n"}
LINE = {"stream": "s", "version": 1, "time": 1, "chain": "00" * 32, "body": "[]"}


def test_the_forger_is_a_fair_one():
    assert decode(forged(HEAD, LINE), "s").records[0].body == b"[]"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{**HEAD, "quire": "export"}],
        [HEAD, {**LINE, "chain": "00"}],
        [HEAD, {**LINE, "chain": "zz" * 32}],
        [HEAD, {**LINE, "version": 0}],
        [HEAD, {**LINE, "packed": "AA=="}],
        [HEAD, {k: v for k, v in LINE.items() if k != "body"}],
        [HEAD, {**{k: v for k, v in LINE.items() if k != "body"}, "packed": "not base64"}],
        [HEAD, {**LINE, "version": "1"}],
        [HEAD, {}],
        [HEAD, {"keyframe": {"stream": "s"}}],
    ],
)
def test_what_a_writer_never_makes_is_refused(lines):
    with pytest.raises(CorruptRecord, match="here.zst is damaged"):
        decode(forged(*lines), "here.zst")


def test_a_newer_format_is_said():
    with pytest.raises(IncompatibleFormat, match="format 2, this Quire reads 1: upgrade"):
        decode(forged({**HEAD, "format": 2}), "s")


def test_a_bomb_is_not_expanded():
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(50_000_000))
    assert len(bomb) < 10_000
    with pytest.raises(CorruptRecord, match="claims to be 50000000 bytes"):
        decode(bomb, "s", max_bytes=1_000_000)
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(50_000_000))
    with pytest.raises(CorruptRecord):
        decode(hidden, "s", max_bytes=1_000_000)


def test_the_format_is_pinned():
    digest = blake3(zstandard.decompress(encode(sample(2)))).hexdigest()
    assert digest == "45afa5795eed33305969eddffcb02b12fb4c7869bccba1abd459d7b8ce7f590f"
