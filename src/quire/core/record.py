"""Records: changes to bytes and back, and the chain that proves them.

    chain(v) = blake3( chain(v-1) || header(v) || blake3(body(v)) )

The header is the JSON array [format, stream, version, time, author, message, kind]. The body enters by its digest,
so that a log whose bodies were redacted or archived can still be checked. Position is not covered: it belongs to the
store a record sits in, not to the record. docs/format.md gives the bytes, golden files pin them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from blake3 import blake3

from quire.errors import CorruptRecord
from quire.model import REDACTED, Change, Fork, Record, Redacted, Restored, changes_of, restored_in

FORMAT = 1

_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="deterministic").encode
decode = changes_of


def encode(changes: Sequence[Change | Fork], *, restored: int | None = None) -> bytes:
    """Return the body of changes: a JSON array of arrays, UTF-8. restored: the version that they bring back."""
    return _encode(changes if restored is None else [Restored(restored), *changes])


def redacted(sealed: bytes, changes: Sequence[Change | Fork]) -> bytes:
    """Return a body with these changes instead of those in `sealed`, and the digest that its chain covers.

    A restore goes on saying which version it brought back.
    """
    left: list[Any] = [Redacted(digest(sealed).hex())]
    if (back := restored_in(sealed)) is not None:
        left.append(Restored(back))
    return _encode([*left, *changes])


def digest(body: bytes) -> bytes:
    """Return what a chain covers of a body: its blake3, or that of what it was before something was taken out."""
    if body.startswith(REDACTED):
        start = len(REDACTED) + 1
        with suppress(ValueError):  # damaged: then the chain does not fit, which is what there is to say
            return bytes.fromhex(body[start : start + 64].decode("ascii"))
    return blake3(body).digest()


def link(record_header: bytes, body: bytes, parent: bytes) -> bytes:
    """Return the chain over one version: 32 bytes."""
    return blake3(parent + record_header + digest(body)).digest()


def header(stream: str, version: int, time: int, author: str, message: str, kind: str) -> bytes:
    """Return the bytes of a header as they enter the chain."""
    return _encode([FORMAT, stream, version, time, author, message, kind])


def seal(
    stream: str, version: int, time: int, author: str, message: str, kind: str, body: bytes, parent: bytes
) -> Record:
    """Return the record of a version with its chain computed from the parent's."""
    chain = link(header(stream, version, time, author, message, kind), body, parent)
    return Record(stream, version, time, author, message, kind, body, chain)


def expected_chain(record: Record, parent: bytes) -> bytes:
    """Return the chain this record must carry after `parent`."""
    r = record
    return link(header(r.stream, r.version, r.time, r.author, r.message, r.kind), r.body, parent)


def check(record: Record, version: int, parent: bytes) -> None:
    """Raise CorruptRecord unless `record` is `version` and its chain follows from `parent`."""
    if record.version != version:
        raise missing(record.stream, version)
    wanted = expected_chain(record, parent)
    if record.chain != wanted:
        raise CorruptRecord(
            f"{record.stream} v{record.version}: chain {record.chain.hex()[:12]}, expected {wanted.hex()[:12]}; "
            "the record or the one before it was altered; `quire verify` lists all damage",
            at=f"{record.stream}@{record.version}",
        )


def missing(stream: str, version: int) -> CorruptRecord:
    """Return the error for a version that is not there though the log goes on."""
    return CorruptRecord(
        f"{stream}: version {version} is missing in its log; put it back from a backup with `quire verify --repair`, or read older "
        "versions with `quire show NAME@VERSION`",
        at=f"{stream}@{version}",
    )


def check_all(records: Iterable[Record], version: int, parent: bytes) -> bytes:
    """Check consecutive records that follow `version` and `parent`; return the last chain."""
    for record in records:
        version += 1
        check(record, version, parent)
        parent = record.chain
    return parent


def canonical(state: Any) -> bytes:
    """Return the one JSON text of a state: keys sorted, no spaces, 1 and 1.0 apart."""
    return _canonical(state)


def state_hash(state: Any) -> str:
    """Return blake3 of the canonical form in hex: equal for equal states of any workflow or store."""
    return blake3(_canonical(state)).hexdigest()
