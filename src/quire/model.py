"""The values that Quire passes around: frozen, comparable, without behaviour of their own.

The eight changes are the whole write language of the log. They are encoded as JSON arrays, `["set", ["a", 0], 1]`,
so that the stored text reads by itself. `Record` is one version as stored; `Version` is the same seen by a user.
They hold leaves and JSON trees, never cycles, and there are many of them: the garbage collector is spared (gc=False).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

import msgspec

from quire.errors import CorruptRecord

Path = tuple[str | int, ...]
"""Where in a state: object keys and list indexes from the root. `()` is the root."""

GENESIS = bytes(32)
"""The chain before the first version of a stream."""

WORKFLOWS = "workflows/"
"""The stream prefix of workflows. Beside each, under its id, are streams of other kinds:"""

CHECKPOINTS = "checkpoints/"
"""names of versions;"""
CONFLICTS = "conflicts/"
"""what writes met that could not both stand;"""
MERGES = "merges/"
"""what was merged into it;"""
REDACTIONS = "redactions/"
"""what was taken out of it;"""
SUBSCRIPTIONS = "subscriptions/"
"""who wants to be told, and what they have seen."""

DELETED = "delete"
"""Kind of the version that ends a workflow; it counts as absent until created again, numbers going on."""

RUN = "_run"
"""Where in a workflow's state a run keeps its books."""


def utf8(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


class Set(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="set"):
    """Put `value` at `path`: adds or replaces an object key, replaces a list item. `()` replaces the state."""

    path: Path
    value: Any


class Delete(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="del"):
    """Remove the object key at `path`."""

    path: Path


class Ensure(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="ensure"):
    """Put an empty container at `path` (an object key) where nothing is; a container of that kind there stays as it is.

    value: `[]` or `{}`. Several writers may make the same container, and share it.
    """

    path: Path
    value: list[Any] | dict[str, Any]


class Append(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="append"):
    """Add `values` at the end of the list at `path`."""

    path: Path
    values: list[Any]


class Insert(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="insert"):
    """Insert `values` before `index` (0..len) of the list at `path`."""

    path: Path
    index: int
    values: list[Any]


class Remove(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="remove"):
    """Remove `count` items starting at `index` of the list at `path`."""

    path: Path
    index: int
    count: int = 1


class Splice(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="splice"):
    """In the string at `path`, at code point `position`, delete `delete` code points and insert `insert`."""

    path: Path
    position: int
    delete: int
    insert: str


class Increment(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="inc"):
    """Add `amount` to the number at `path`; an absent object key counts as 0."""

    path: Path
    amount: int | float


class Fork(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="fork"):
    """The first entry of a forked log: history continues from `version` of `workflow_id`, whose chain was `chain`."""

    workflow_id: str
    version: int
    chain: str


class Redacted(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="redacted"):
    """The first entry of a body that something was taken out of. digest: blake3 in hex of the body as it was sealed."""

    digest: str


class Restored(msgspec.Struct, frozen=True, gc=False, array_like=True, tag="restored"):
    """The first entry of a restore's body, after `Redacted` where there is one: the state is that of `version` again."""

    version: int


class Point(NamedTuple):
    """A version of a workflow."""

    workflow_id: str
    version: int

    def __str__(self) -> str:
        return f"{self.workflow_id}@{self.version}"


Change = Set | Delete | Ensure | Append | Insert | Remove | Splice | Increment


class Record(msgspec.Struct, frozen=True, gc=False):
    """One version as stored.

    stream: `kind/id`.  version: 1, 2, 3... within the stream.  time: UTC milliseconds.  body: JSON text of the
    changes (UTF-8).  chain: 32 bytes, see core/record.py.  position: store-wide commit order, 0 until committed.
    """

    stream: str
    version: int
    time: int
    author: str
    message: str
    kind: str
    body: bytes
    chain: bytes
    position: int = 0

    @property
    def size_bytes(self) -> int:
        """What it weighs: its body, author, message and kind in UTF-8. Its name is bounded."""
        said = self.author + self.message + self.kind
        return len(self.body) + (len(said) if said.isascii() else utf8(said))


class Head(msgspec.Struct, frozen=True, gc=False):
    """The newest version of a stream: number, chain and kind. Version 0 with GENESIS where there is none."""

    stream: str
    version: int = 0
    chain: bytes = GENESIS
    kind: str = ""


class Keyframe(msgspec.Struct, frozen=True, gc=False):
    """A whole state kept to read fast: derived, disposable, checked by `digest` (blake3 of the JSON) and `chain`.

    body: zstd of the state's JSON.  size: bytes of the JSON.
    """

    stream: str
    version: int
    chain: bytes
    size: int
    digest: bytes
    body: bytes


class Cell(msgspec.Struct, frozen=True, gc=False):
    """A small register beside the log. expires: UTC milliseconds by the backend's clock, None for never."""

    name: str
    value: bytes
    expires: int | None = None


_decode = msgspec.json.Decoder(list[Change | Fork | Redacted | Restored]).decode


def changes_of(record: Record) -> list[Change | Fork]:
    """Return the changes of a record, fresh objects. Raises CorruptRecord if its body is not changes."""
    try:
        changes = _decode(record.body)
        if changes and type(changes[0]) is Redacted:
            del changes[0]
        if changes and type(changes[0]) is Restored:
            del changes[0]
        return cast("list[Change | Fork]", changes)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as cause:
        raise CorruptRecord(
            f"{record.stream} v{record.version}: the body is not a list of changes ({cause}); "
            "run `quire verify` to see how far the damage goes",
            at=f"{record.stream}@{record.version}",
        ) from cause


REDACTED = b'[["redacted",'
"""How a body begins that something was taken out of."""

RESTORED = b'[["restored",'
"""How a restore's body begins, until something is taken out of it."""

_MARKED = (RESTORED, REDACTED)
_restored = re.compile(rb'\[(?:\["redacted","[0-9a-f]{64}"\],)?\["restored",([0-9]{1,18})\]').match


def restored_in(body: bytes) -> int | None:
    """Return the version that a restore's body says it brought back; None for the body of any other write.

    Cost: nothing is decoded.
    """
    found = _restored(body) if body.startswith(_MARKED) else None
    return None if found is None else int(found[1])


class Version(msgspec.Struct, frozen=True, gc=False):
    """One accepted write, as a user sees it. Cheap to make: `changes` are decoded each time they are read."""

    record: Record

    def __repr__(self) -> str:
        return f"<Version {self.workflow_id}@{self.number} by {self.author}>"

    @property
    def number(self) -> int:
        """1, 2, 3... within the workflow; never reused."""
        return self.record.version

    @property
    def id(self) -> str:
        """Names this version of this workflow for ever: its number and the start of its checksum."""
        return f"{self.record.version}-{self.record.chain[:6].hex()}"

    @property
    def workflow_id(self) -> str:
        """The workflow it belongs to."""
        return self.record.stream.removeprefix(WORKFLOWS)

    @property
    def parent(self) -> int | None:
        """The version before; None for the first."""
        return self.record.version - 1 or None

    @property
    def position(self) -> int:
        """Its place in the store-wide order."""
        return self.record.position

    @property
    def author(self) -> str:
        """Who wrote it."""
        return self.record.author

    @property
    def message(self) -> str:
        """Why, in the author's words."""
        return self.record.message

    @property
    def time(self) -> datetime:
        """When, for people; order never comes from it."""
        try:
            return datetime.fromtimestamp(self.record.time / 1000, UTC)
        except (OverflowError, ValueError, OSError, TypeError) as cause:
            at = f"{self.workflow_id}@{self.number}"
            raise CorruptRecord(f"{at}: {self.record.time!r} is no time; run `quire verify`", at=at) from cause

    @property
    def kind(self) -> str:
        """create, change, restore, fork, delete, step, or what the writer named."""
        return self.record.kind

    @property
    def changes(self) -> list[Change | Fork]:
        """What changed, in order: fresh objects, the caller's to keep."""
        return changes_of(self.record)

    @property
    def redacted(self) -> bool:
        """Whether something was taken out of its changes since it was made."""
        return self.record.body.startswith(REDACTED)

    @property
    def restored(self) -> int | None:
        """The version whose state a restore brought back with this one; None for any other."""
        return restored_in(self.record.body)

    @property
    def checksum(self) -> str:
        """The chain in hex: proves this version and every one before it."""
        return self.record.chain.hex()

    @property
    def size_bytes(self) -> int:
        """Bytes of the changes as JSON."""
        return len(self.record.body)


class Checkpoint(msgspec.Struct, frozen=True):
    """A named label on a version.

    kind: manual, automatic, snapshot, ...  checksum: chain of the labelled version in hex.
    A snapshot also keeps its state whole: `blob` names it, `size_bytes` is its JSON's length.
    """

    name: str
    workflow_id: str
    version: int
    created_at: datetime
    author: str = "system"
    kind: str = "manual"
    description: str = ""
    tags: tuple[str, ...] = ()
    checksum: str = ""
    blob: str | None = None
    size_bytes: int | None = None


class Gain(msgspec.Struct, frozen=True):
    """What a trained dictionary saves on records it was not trained on.

    kind: of streams, such as "workflows".  samples: how many records.  plain_bytes, without_bytes, with_bytes: of their
    changes as they are, compressed without the dictionary, and with it.
    """

    kind: str
    samples: int
    plain_bytes: int
    without_bytes: int
    with_bytes: int


class Side(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one side of a conflict had, and who wrote it in which version. value: UNSET where there was nothing."""

    value: Any = msgspec.UNSET
    author: str = ""
    version: int | None = None


class Conflict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Two writes that met at one place, and what became of them.

    path: a JSON Pointer into `version`, the one that the write made, or met where nothing of it was written; an item of a
    list that is not there has its last index.
    base: before either.  theirs: what stood when ours came.  ours: the write that met it; its
    version is None where nothing of it was written.  change: our change as JSON.  policy: what decided.
    status: resolved, or pending: then theirs stands until somebody resolves it.
    resolution: ours, theirs, both, value; by whom, when, in which version, None where that changed nothing, and where in it.
    changes: all that the write would have changed, where it waits as a whole until somebody resolves it.
    merged: for a conflict of a merge the workflow that theirs is from. There ours is what this workflow had, and stands
    while the conflict is pending.
    """

    id: str
    workflow_id: str
    path: str
    base: Side
    theirs: Side
    ours: Side
    change: list[Any]
    policy: str
    status: str
    created_at: datetime
    resolution: str | None = None
    resolved_by: str | None = None
    resolved_at: datetime | None = None
    resolved_in: int | None = None
    resolved_path: str | None = None
    merged: str | None = None
    version: int = 0
    changes: list[Any] = []
