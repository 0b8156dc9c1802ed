"""What a caller wants written: the one value that travels from the API through the committer to the actors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from quire.core.guards import Step
from quire.core.resolve import Met, Policy
from quire.model import Change, Fork, Record

Plan = Callable[[dict[str, Any]], Sequence[Step | Fork]]
"""Changes that depend on the state they meet: a diff, a JSON Patch with tests, a guard that raises to refuse."""


class Base(NamedTuple):
    """A version of a stream and its state, which is not to be altered."""

    version: int
    state: dict[str, Any]


class Meeting(NamedTuple):
    """Where a write met another: theirs is that one's record, base the version the write was made on."""

    met: Met
    theirs: Record
    base: int


class Write(msgspec.Struct, eq=False):
    """What a caller wants written to one stream.

    plan: the changes, with guards, or a function of the state that gives them.  base: what the changes were made on, when
    that matters: they are rebased over what came since, by `policy` (None: what is stale is refused, else the last write
    stands).  if_version: the head must be exactly this, or have been before other parts of the same transaction.
    exists: True needs the stream to exist, False to be absent.  allow_empty: make a version even without a change.
    """

    stream: str
    plan: Sequence[Step | Fork] | Plan
    author: str = "system"
    message: str = ""
    kind: str = "change"
    base: Base | None = None
    made_from: Any = None
    """How its caller names the base; whoever hands the write over reads it first."""
    policy: Policy | None = None
    whole: bool = False
    """The changes make a whole state of the base: what others took away and they need is put back as it is there."""
    if_version: int | None = None
    exists: bool | None = True
    allow_empty: bool = False
    heavy: bool = False
    """It is large and its plan is Quire's own code: it is prepared in a thread, while others go on reading."""
    verbatim: bool = False
    """Changes that alter nothing are kept too: they were part of a version elsewhere, where redaction made two values one."""
    restored: int | None = None
    """The version of this stream whose state it brings back; its record says so."""
    start: dict[str, Any] | None = None
    """The state a forked log starts from."""
    start_bytes: int = 0
    """What that weighs at most, as far as the parent's changes tell."""
    not_before_ms: int = 0
    """The time its version has at least: a fork comes after what it was forked from."""
    guard: Callable[[dict[str, Any]], None] | None = None
    """Looks at the state the write is about to meet, and raises to refuse it."""
    history: Sequence[Record] = ()
    """Records since the base, where the engine had to read them."""
    late: bool = False
    """It was refused: others write the same stream at the same time."""
    anew: bool = False
    """It is looked at from its first base on, each time it is tried."""
    asked: tuple[Sequence[Step], Base] | None = None
    """What it is in full: the steps that alter something on its first base, and that. None until it is rebased."""
    onto: int = 0
    """The version that it met when it was last prepared."""
    seen: int | None = None
    """The last version that its author has seen: later ones are not overwritten. None for no such rule."""
    unrecorded: bool = False
    """What it meets is no conflict of its own: it settles one."""
    replaces: Record | None = None
    """The version that it replaces whole, which its caller may not have known: that is recorded as a conflict."""
    passed: Sequence[Meeting] = ()
    """What it met on the way to its present base, where it is late."""
    met: Sequence[Meeting] = ()
    """What it met until it was last prepared."""
    put: Sequence[Step | Fork] = ()
    """The steps as they were last put onto what it met, before hooks were asked."""
    made: int | None = None
    """The version it makes, as it was last prepared; None for none."""
    hooked: Sequence[Change | Fork] | None = None
    """What hooks left of its changes when it was last prepared; None where there was none to ask."""


Before = Callable[[Write, Sequence[Change | Fork], dict[str, Any]], Sequence[Change | Fork]]
"""Asked of a write that is about to be applied: its changes, and the state they meet, which is not to be altered.

Returns the changes to apply, or raises to refuse the write. It may be asked again of the same write."""
