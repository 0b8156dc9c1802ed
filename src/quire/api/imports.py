"""Importing a workflow: what `quire export` wrote, checked whole and then committed at once.

1. Nothing is written before all of it was read, folded, held to the limits of this store and sealed. That is done beside
   the event loop, on an actor that nobody else sees.
2. All versions and checkpoints are one item of a commit, and a backend stores an item whole or not at all. So a process
   that is killed leaves no half of a workflow; at most the states of snapshots, as blobs that nothing names.
3. An export stands alone: the first version of a fork holds the whole state that it began with, and may be as large as a
   state. What lies beside a workflow, its conflicts and what its merges took from where, is not part of an export.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count as count_from
from typing import Any, cast

import msgspec
from blake3 import blake3

from quire.api import revisions, writes
from quire.api.checkpoints import SNAPSHOT, label_of
from quire.calls import call, in_words
from quire.config import Settings
from quire.core.changes import Working
from quire.core.meter import too_large
from quire.core.names import check_id
from quire.core.record import canonical, decode
from quire.core.schema import Schemas
from quire.engine.actor import DELETED, Actor
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import AlreadyExists, ChangeError, Invalid, InvalidState, LimitExceeded
from quire.failpoints import hit
from quire.model import CHECKPOINTS, GENESIS, WORKFLOWS, Change, Fork, Head, Record, Set, Version
from quire.storage.base import Expect, Item, Refused
from quire.threads import aside

_NO_MORE: Any = object()
SCHEMA = 1
"""Version of the lines that are read."""


class _Version(msgspec.Struct):
    """A version as exported. restored: the version that a restore brought back."""

    version: int
    changes: list[Change]
    author: str
    message: str
    kind: str
    restored: int | None = None


class _Mark(msgspec.Struct):
    """A checkpoint as exported."""

    name: str
    version: int
    tags: list[str]
    description: str
    author: str
    kind: str


class _End(msgspec.Struct):
    """The last line of an export: how many versions and checkpoints it has, and blake3 of all lines before it in hex."""

    versions: int
    checkpoints: int
    digest: str


class _Read:
    """What an export holds, sealed: the versions, and the checkpoints with the numbers of their lines."""

    def __init__(self, actor: Actor) -> None:
        self.actor = actor
        self.marks: dict[str, _Mark] = {}

    @property
    def records(self) -> list[Record]:
        return self.actor.pending


async def import_workflow(
    engine: Engine, lines: Iterable[Mapping[str, Any]], *, workflow_id: str | None, what: str
) -> Version:
    """Make a workflow of an export: see `Store.import_workflow`."""
    if not isinstance(lines, Iterable):
        raise Invalid(f"import takes the lines of an export, as JSON objects, not {type(lines).__name__}")
    given = call(iter, lines)
    first = call(next, given, None)
    exported = check_head(first, what)
    name = check_id(exported if workflow_id is None else workflow_id)
    stream = WORKFLOWS + name
    if (await engine.current(stream)).head.version:
        raise AlreadyExists(f"workflow {name} exists, or existed; import it under another name")
    now_ms = engine.clock.now_ms()
    read: _Read = await engine.threads.call(_read, first, given, stream, engine.settings, now_ms, what)
    records, marks = read.records, await aside(_labels, read, name, engine.settings, now_ms)
    if records[-1].kind != DELETED:
        engine.schemas.check(name, _state(records))
    await _put_snapshots(engine, records, read.marks.values())
    expect = [Expect(stream, 0, GENESIS)]
    if marks:
        expect.append(Expect(CHECKPOINTS + name, 0, GENESIS))
    hit("import:commit")
    outcome = await engine.committer.put(Item(expect, [*records, *marks]))
    hit("import:committed")
    if isinstance(outcome, Refused):
        raise AlreadyExists(f"workflow {name} was made meanwhile; import it under another name")
    return Version(await engine.record(stream, records[-1].version))


def check_head(line: Any, what: str) -> Any:
    """Return the id that an export's first line names. Raises InvalidState for what is no export, or too new."""
    if not isinstance(line, Mapping) or (head := cast("Mapping[str, Any]", line)).get("quire") != "export":
        raise InvalidState(f"{what} is not an export of Quire; `quire export` writes one")
    if head.get("schema") != SCHEMA:
        raise InvalidState(f"{what} has schema {head.get('schema')}, this Quire reads {SCHEMA}: upgrade quire")
    return head.get("workflow")


def end_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line that an export of these lines ends with."""
    versions = checkpoints = 0
    digest = blake3()
    for line in lines:
        versions, checkpoints = versions + ("changes" in line), checkpoints + ("checkpoint" in line)
        digest.update(_line(line))
    return {"end": {"versions": versions, "checkpoints": checkpoints, "digest": digest.hexdigest()}}


def _line(line: Mapping[str, Any]) -> bytes:
    """Return what counts of a line. Raises InvalidState."""
    try:
        return canonical(dict(line)) + b"\n"
    except (TypeError, ValueError, OverflowError, RecursionError) as cause:
        raise InvalidState(f"it is not JSON: {in_words(cause)}") from None


def _read(
    head: Mapping[str, Any],
    lines: Iterator[Mapping[str, Any]],
    stream: str,
    settings: Settings,
    now_ms: int,
    what: str,
) -> _Read:
    """Seal every version. Raises InvalidState for what `export` does not write, LimitExceeded."""
    most = settings.state_bytes_max
    wide = msgspec.structs.replace(settings, write_bytes_max=max(settings.write_bytes_max, most or sys.maxsize))
    read: _Read | None = None
    end: _End | None = None
    try:
        digest = blake3(_line(head))
    except InvalidState as cause:
        raise InvalidState(f"{what} line 1 is damaged: {cause}") from None
    count = 0
    for number in count_from(2):
        line = call(next, lines, _NO_MORE)
        if line is _NO_MORE:
            break
        try:
            if end is not None or not isinstance(line, Mapping):
                raise InvalidState("it is behind the end" if end is not None else "it is no object")
            if "end" in line:
                end = msgspec.convert(line["end"], _End)
                continue
            digest.update(_line(line))
            if "checkpoint" in line:
                if read is not None:
                    _mark(read, msgspec.convert(line["checkpoint"], _Mark))
                continue
            found = msgspec.convert(line, _Version)
            count += 1
            if found.version != count:
                raise InvalidState(f"version {found.version} where {count} belongs")
            if read is None:
                read = _Read(Actor(wide, Schemas(), Head(stream), {}, state_size=0))
            _seal(read.actor, stream, found, wide if count == 1 else settings, now_ms)
        except LimitExceeded as cause:
            cause.add_note(f"{what} line {number}; nothing was imported")
            raise
        except (msgspec.ValidationError, ChangeError, Invalid) as cause:
            raise InvalidState(f"{what} line {number} is damaged: {cause}") from None
    if read is None:
        raise InvalidState(f"{what} holds no versions: it was cut off")
    if end is None:
        raise InvalidState(f"{what} was cut off: its last line, which says what belongs to it, is not there")
    if end != _End(count, len(read.marks), digest.hexdigest()):
        raise InvalidState(f"{what} is damaged: it has not the lines that were exported; export it again")
    return read


def _seal(actor: Actor, stream: str, found: _Version, settings: Settings, now_ms: int) -> None:
    kind = found.kind
    if found.version == 1:
        kind = "create"  # what a fork began with is here; what it was forked from may not be
    elif kind in ("fork", "create") and (kind == "fork" or actor.pending[-1].kind != DELETED):
        raise InvalidState(f"version {found.version} is a {kind}, which only begins a workflow")
    if found.restored is not None and not 1 <= found.restored < found.version:
        raise InvalidState(f"version {found.version} cannot restore version {found.restored}")
    changes = cast("Sequence[Change]", writes.plan_of(found.changes, settings))
    write = Write(
        stream,
        changes,
        author=writes.name(found.author, "author"),
        message=writes.text(found.message),
        kind=writes.name(kind, "kind"),
        exists=None,
        allow_empty=True,
        verbatim=True,
        restored=found.restored,
    )
    sealed = actor.prepare(write, now_ms)
    assert sealed is not None
    if sealed.size_bytes > settings.write_bytes_max:
        raise too_large(f"version {found.version}", sealed.size_bytes, settings.write_bytes_max)
    if kind == DELETED and actor.prepared_state:
        raise InvalidState(f"version {found.version} ends the workflow and leaves something in it")


def _mark(read: _Read, mark: _Mark) -> None:
    """Take in a checkpoint. Raises InvalidState, InvalidKey, Invalid."""
    if revisions.is_reserved(check_id(mark.name, "checkpoint name")) or mark.name in read.marks:
        raise InvalidState(f"checkpoint {mark.name!r} is there twice, or reads like a version")
    if not 1 <= mark.version <= len(read.records):
        raise InvalidState(f"checkpoint {mark.name!r} is on version {mark.version}, which comes later or never")
    for tag in mark.tags:
        writes.name(tag, "tag")
    writes.name(mark.kind, "kind")
    writes.name(mark.author, "author")
    writes.text(mark.description)
    read.marks[mark.name] = mark


def _labels(read: _Read, name: str, settings: Settings, now_ms: int) -> list[Record]:
    """Seal the checkpoints, in the order of the export. A snapshot has the checksum of its state as its blob's name."""
    stream, wholes = CHECKPOINTS + name, _snapshots(read.records, read.marks.values())
    digests = {version: (blake3(whole).hexdigest(), len(whole)) for version, whole in wholes}
    actor = Actor(settings, Schemas(), Head(stream), {}, state_size=0)
    for mark in read.marks.values():
        label = label_of(read.records[mark.version - 1], now_ms, mark.author, mark.kind, mark.description, mark.tags)
        if mark.kind == SNAPSHOT:
            label["blob"], label["size_bytes"] = digests[mark.version]
        message = f"checkpoint {mark.name} on version {mark.version}"
        write = Write(
            stream, [Set((mark.name,), label)], author=mark.author, message=message, kind="checkpoint", exists=None
        )
        actor.prepare(write, now_ms)
    return actor.pending


async def _put_snapshots(engine: Engine, records: Sequence[Record], marks: Iterable[_Mark]) -> None:
    """Put the states that snapshots keep whole, one after the other."""
    wholes = _snapshots(records, marks)
    while (found := cast("tuple[int, bytes] | None", await aside(next, wholes, None))) is not None:
        _, whole = found
        await engine.take_blob(len(whole))
        await engine.backend.put_blob(blake3(whole).hexdigest(), whole)
        hit("import:blob")


def _snapshots(records: Sequence[Record], marks: Iterable[_Mark]) -> Iterator[tuple[int, bytes]]:
    """Yield the versions that snapshots are of, each with its state as they keep it. Cost: folds the log once."""
    wanted = {mark.version for mark in marks if mark.kind == SNAPSHOT}
    working = Working.owning({})
    for entry in records[: max(wanted, default=0)]:
        _apply(working, entry)
        if entry.version in wanted:
            yield entry.version, canonical(working.state)


def _state(records: Sequence[Record]) -> dict[str, Any]:
    working = Working.owning({})
    for entry in records:
        _apply(working, entry)
    return working.state


def _apply(working: Working, entry: Record) -> None:
    for change in decode(entry):
        if not isinstance(change, Fork):
            working.apply(change)
