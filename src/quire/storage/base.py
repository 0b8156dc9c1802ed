"""What a backend must do: four areas (log, keyframes, blobs, cells), one protocol.

A backend stores bytes and checks expectations; it knows nothing of JSON states, changes or people. Everything else,
sessions and checkpoints included, is a stream in its log, so that a backend stays one small file. The promises below
are tested for every backend by `quire.testing.conformance`.

Rules that hold everywhere:

1. What `commit` answered with `Committed` is there after a crash, as far as `capabilities.durability` says.
2. An item of a commit is all or nothing. Items of one call are independent: one refused never stops another.
3. A stream's versions are consecutive from 1; a version once committed never changes, but that `rewrite` may take
   something out of its body.
4. Positions grow in commit order; the records of one item have consecutive positions. A reader that has seen
   position p never later finds a new record at or before p.
5. Nothing of one namespace is visible in another.
6. Driver exceptions are translated here into `quire.errors`; an error out of `commit` means the outcome is unknown
   until `recover` and a look. Only after FilesChanged it is known: nothing was begun.
7. `commit` may be called again before the call before it has answered. Calls take effect in the order they were made;
   after one that failed, none of the later ones does until `recover` has returned.
8. What `read` with a limit and `feed` return is a page: it is bounded in bytes too, so it may be shorter than its limit
   though more follows. It is empty only where nothing follows. So no reader takes more memory than `PAGE_BYTES` and one
   record, whatever the records weigh; `more_may_follow` saves it the last, empty page.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

import msgspec

from quire.model import Cell, Head, Keyframe, Record

PAGE_BYTES = 4 * 1024 * 1024
"""A page of records ends with the one that brings it to so many bytes, however many were asked for."""

Durability = Literal["none", "process", "power"]
"""What an acknowledged write survives: nothing, the death of the process, the loss of power."""


BACKUP = "quire:backup"
"""The cell of the bare backend that names a namespace in places with backups."""
RECOVERING = "quire:recovering"
"""The cell of the bare backend that is there while a namespace is put back from a backup: nobody may open it then."""
BENEATH = (BACKUP, RECOVERING)
"""Cells beneath all wrappers, which never show them."""


class Capabilities(msgspec.Struct, frozen=True):
    """What a backend can promise. `note` is a sentence for people, shown by `stats`."""

    backend: str
    durability: Durability
    multi_process: bool
    backup: bool
    note: str = ""


class Expect(msgspec.Struct, frozen=True, gc=False):
    """The head a stream must have for an item to be committed: version 0 and GENESIS for a new one."""

    stream: str
    version: int
    chain: bytes


class CellWrite(msgspec.Struct, frozen=True, gc=False):
    """Set a cell if it holds `expected` now (None: absent or expired). value None deletes. ttl_ms from the commit."""

    name: str
    expected: bytes | None
    value: bytes | None
    ttl_ms: int | None = None


class Item(msgspec.Struct, frozen=True, gc=False):
    """What is committed together. Records of several streams may be mixed; each stream's are in version order.

    Every stream written is also in `expect`, with the version before its first record here.
    """

    expect: Sequence[Expect] = ()
    records: Sequence[Record] = ()
    cells: Sequence[CellWrite] = ()


class Committed(msgspec.Struct, frozen=True, gc=False):
    """first, last: positions of the item's records (0, 0 where it had none)."""

    first: int
    last: int


class Refused(msgspec.Struct, frozen=True):
    """Nothing of the item is stored: these expectations did not hold. Here is what is there instead.

    heads: the actual head of every mismatching stream.  cells: names of the cells that mismatched.
    """

    heads: tuple[Head, ...] = ()
    cells: tuple[str, ...] = ()


Outcome = Committed | Refused


class StorageStats(msgspec.Struct, frozen=True):
    """Counts of one namespace; `size_bytes` is of the whole store."""

    streams: int
    records: int
    keyframes: int
    blobs: int
    cells: int
    size_bytes: int


class Tally(msgspec.Struct, frozen=True):
    """streams: how many.  versions: the sum of their heads' versions."""

    streams: int
    versions: int


def tally_of(heads: Iterable[Head], but: str) -> Tally:
    """Count streams by their heads. but: kind of the heads that are left out."""
    versions = [head.version for head in heads if head.version and head.kind != but]
    return Tally(len(versions), sum(versions))


class Replica(msgspec.Struct, frozen=True):
    """A copy that a server keeps elsewhere. in_sync: whether it follows now; None where we may not know.

    behind_bytes, behind_s: what it has not got yet, and how long it has not been heard of, where the server tells.
    """

    name: str
    in_sync: bool | None
    behind_bytes: int | None = None
    behind_s: float | None = None


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend knows of its surroundings. None, "" and () where it does not apply or may not be known.

    place: where the store is, for people, without a password.  server: product and release of what stores.
    promises: the capabilities in force now, where a server's settings decide them.
    clock_ms: the server's clock when it answered, UTC milliseconds; None where it is ours.
    read_only: whether writing is refused now.  used_bytes: what the store takes, where that is cheap to say.
    disk_free_bytes, disk_total_bytes: of the disk it lies on, or of the room that the server gives it.
    file_system: its type, as the system calls it.  memory_used_bytes, memory_limit_bytes: of the server.
    log_bytes: a write-ahead log that was not copied into the files yet.  sessions, sessions_max: of the server.
    replicas: copies beside what answers; replicas_wanted: how many the settings ask for.
    warnings: what else is wrong: sentences that say what, where and what to do.
    """

    place: str = ""
    server: str = ""
    promises: Capabilities | None = None
    clock_ms: int | None = None
    read_only: bool | None = None
    used_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_total_bytes: int | None = None
    file_system: str = ""
    memory_used_bytes: int | None = None
    memory_limit_bytes: int | None = None
    log_bytes: int | None = None
    sessions: int | None = None
    sessions_max: int | None = None
    replicas: tuple[Replica, ...] = ()
    replicas_wanted: int | None = None
    warnings: tuple[str, ...] = ()


def page_of(records: Iterable[Record], limit: int | None) -> list[Record]:
    """Return the first of some records: a page. limit: None for all of them, whatever they weigh."""
    if limit is None:
        return list(records)
    page: list[Record] = []
    size = 0
    if limit > 0:
        for entry in records:
            page.append(entry)
            size += entry.size_bytes
            if len(page) == limit or size >= PAGE_BYTES:
                break
    return page


def more_may_follow(page: Sequence[Record], limit: int | None) -> bool:
    """Tell whether a page may have ended for its bounds: then the next one is to be asked for.

    limit: None where only its bytes may have ended it. Half of those count: stored, a record may weigh more than as it is seen.
    """
    return (limit is not None and len(page) >= limit) or 2 * sum(r.size_bytes for r in page) >= PAGE_BYTES


class Backend(Protocol):
    """One open store in one namespace. All methods may be called concurrently from one event loop."""

    @property
    def capabilities(self) -> Capabilities:
        """What this backend promises."""
        ...

    # log
    async def commit(self, items: Sequence[Item]) -> list[Outcome]:
        """Store items in order, durably, and answer for each. Raises StorageError: outcome unknown for all."""
        ...

    async def read(
        self, stream: str, *, after: int = 0, upto: int | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records with after < version <= upto, oldest first. An unknown stream is empty.

        limit: at most so many, as one page: see rule 8. None: all of them, whatever they weigh.
        """
        ...

    async def heads(self, streams: Sequence[str]) -> list[Head]:
        """The head of each stream, in the order asked, all as of one moment; version 0 where there is none."""
        ...

    async def streams(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Names of streams that start with `prefix`, sorted by code point, greater than `after`."""
        ...

    async def tally(self, prefix: str, *, but: str) -> Tally:
        """Count the streams that start with `prefix`, without those whose newest record is of kind `but`.

        Cost: looks at each head; where it can be, in the place where they are kept.
        """
        ...

    async def feed(self, after: int = 0, *, limit: int = 1000) -> list[Record]:
        """A page of the records of this namespace with position > after, in commit order: see rule 8."""
        ...

    async def latest(self) -> int:
        """A position at or past every commit that had finished before the call. Cheap: called before reads."""
        ...

    async def changed(self, after: int, *, timeout_s: float) -> int:
        """Wait until `latest()` passes `after`, or the time is over; return `latest()`. Other processes count.

        Raises Closed when the backend is closed meanwhile.
        """
        ...

    async def trim(self, stream: str, upto: int) -> int:
        """Remove records with version <= upto, never the head's. Returns how many. Numbers stay used.

        A log is read on from the newest keyframe whose own record is there: what is left begins with one.
        """
        ...

    async def drop(self, stream: str) -> None:
        """Remove a stream with its records and keyframes. Positions stay used."""
        ...

    async def rewrite(self, records: Sequence[Record]) -> int:
        """Give records that are there another body, durably, all or none; return how many were found.

        A record is found by its stream, version and chain. Nothing but its body changes: not its position, and who
        waits for news is not woken.
        """
        ...

    # keyframes
    async def put_keyframe(self, keyframe: Keyframe) -> None:
        """Keep it, replacing one of the same stream and version; one of a stream that is not there is not kept."""
        ...

    async def keyframe(self, stream: str, at: int | None = None) -> Keyframe | None:
        """The newest with version <= at (None: the newest of all)."""
        ...

    async def keyframes(self, stream: str) -> list[int]:
        """Versions that have one, ascending."""
        ...

    async def drop_keyframes(self, stream: str, versions: Sequence[int]) -> None:
        """Remove those; absent ones are ignored."""
        ...

    # blobs
    async def put_blob(self, name: str, data: bytes) -> None:
        """Keep bytes under a name made from their content; putting it again changes nothing."""
        ...

    async def blob(self, name: str) -> bytes | None:
        """The bytes, or None."""
        ...

    async def drop_blob(self, name: str) -> None:
        """Remove it; absent is fine."""
        ...

    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]:
        """Names greater than `after`, sorted."""
        ...

    # cells (written through `commit`)
    async def cell(self, name: str) -> Cell | None:
        """The register, or None if absent or expired by the backend's clock."""
        ...

    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]:
        """Unexpired registers whose name starts with `prefix` and is greater than `after`, sorted by name."""
        ...

    # care
    async def check(self) -> list[str]:
        """Problems in the backend's own structures, in words; empty when sound."""
        ...

    async def stats(self) -> StorageStats:
        """Counts and size."""
        ...

    async def vitals(self, *, timeout_s: float) -> Vitals:
        """How its surroundings are: disk, memory, replicas, settings. Cheap, and it changes nothing.

        What cannot be known, or not by us, is left out. Raises StorageTimeout after `timeout_s`, StorageError where
        nobody answers, Closed.
        """
        ...

    async def scrub(self) -> None:
        """Leave no trace of what was removed or rewritten in what the backend itself keeps: free pages, logs, journals.

        Raises StorageTimeout while somebody's reading keeps it from that. Cost: may be that of copying the whole store.
        """
        ...

    async def backup(self, path: str) -> None:
        """Write a consistent copy that opens as a store, while writers go on. Raises Unsupported where it cannot."""
        ...

    async def recover(self) -> None:
        """After an error out of `commit`: reconnect, so that what is read now is what is durable.

        Raises StorageError while that cannot be said.
        """
        ...

    async def close(self) -> None:
        """Release everything. Idempotent."""
        ...


class Archived(msgspec.Struct, frozen=True, kw_only=True):
    """What of a stream is in an archive. first, last: the oldest and newest version of those.

    versions: how many of them.  kept: those that are within reach as well.  segments, size_bytes: as they lie there.
    """

    stream: str
    first: int
    last: int
    versions: int
    kept: tuple[int, ...]
    segments: int
    size_bytes: int


class Archive(Protocol):
    """What a backend can do besides whose old versions may lie elsewhere: see wrap/archived.py."""

    turn: AbstractAsyncContextManager[Any]
    """Held while this commits: whoever else commits to the same handle gives its own."""
    inner: Backend
    """What is here."""

    async def top(self) -> int:
        """The newest position that went to the archive; 0 for none."""
        ...

    async def went(self, stream: str) -> int:
        """The newest version that went to the archive; 0 for none."""
        ...

    async def kept(self, stream: str) -> set[int]:
        """Which of the versions that went are within reach as well."""
        ...

    async def place(self) -> str:
        """Where it is: a URL, or `store:`."""
        ...

    def holds(self) -> AsyncGenerator[Archived]:
        """What of each stream is there, by name."""
        ...

    def examined(self) -> AsyncGenerator[tuple[str, str | None]]:
        """Read every segment: its stream, and what is wrong with it, None for nothing."""
        ...

    async def shelve(self, stream: str, upto: int, *, keep: Collection[int] = ()) -> int:
        """Move records with version <= upto there; return how many are no longer here."""
        ...

    async def hold(self, stream: str, versions: Collection[int]) -> int:
        """Keep versions within reach that went there before; return how many were not. Each has a keyframe."""
        ...
