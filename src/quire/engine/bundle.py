"""What waits for a commit, and what goes into one item of it: writes whose streams a transaction ties together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from quire.engine.actor import Actor
from quire.engine.write import Write
from quire.model import Record, Version
from quire.storage.base import CellWrite, Expect, Item

Stamp = Callable[[list[Record | None], list[Actor]], CellWrite]
"""Makes the cell that goes with the records of writes, once their numbers are known, given the streams they are on.

What it raises refuses the writes: it may look at what their streams came to be since they were asked for."""


class Submission:
    """Writes that stand or fall together, and who waits for them.

    number: they are counted as they are made.  beside: what is recorded of what they met.  idle: as prepared, they bring
    nothing to commit.  refusal: why they cannot be made, if what they met is committed.
    """

    __slots__ = ("beside", "cells", "deadline", "future", "idle", "number", "records", "refusal", "stamp", "writes")

    def __init__(
        self,
        number: int,
        writes: Sequence[Write],
        cells: Sequence[CellWrite],
        stamp: Stamp | None,
        future: asyncio.Future[list[Version | None]],
    ) -> None:
        self.number = number
        self.writes = writes
        self.cells = cells
        self.stamp = stamp
        self.future = future
        self.records: list[Record | None] = []
        self.idle = True
        self.beside: list[tuple[Actor, Record]] = []
        self.deadline: float | None = None
        self.refusal: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits, unless they were told or left."""
        if not self.future.done():
            self.future.set_exception(error)

    def succeed(self) -> None:
        """Answer whoever waits: it is durable, or changed nothing, or is refused for what is durable."""
        if self.refusal is not None:
            self.fail(self.refusal)
        elif not self.future.done():
            self.future.set_result([None if r is None else Version(r) for r in self.records])


class Bundle:
    """What must be one item of a commit: a stream, or several that a transaction ties together."""

    __slots__ = ("actors", "cells", "records", "submissions")

    def __init__(self, actors: list[Actor]) -> None:
        self.actors = actors
        self.records: list[Record] = []
        self.cells: list[CellWrite] = []
        self.submissions: list[Submission] = []

    def take(self, other: Bundle) -> None:
        """Take over what another one has."""
        self.actors += other.actors
        self.records += other.records
        self.cells += other.cells
        self.submissions += other.submissions

    def item(self) -> Item:
        """Return it as a backend takes it: onto the heads that its actors have."""
        heads = [a.head for a in self.actors]
        return Item([Expect(h.stream, h.version, h.chain) for h in heads], self.records, self.cells)


def join(bundles: dict[str, Bundle], submission: Submission, actors: list[Actor]) -> None:
    """Put a prepared submission into the bundle of its streams, tying those together.

    One that is refused brings nothing, and is answered with what it met there.
    """
    made = submission.refusal is None
    if made and submission.beside:
        actors = [*actors, *(actor for actor, _ in submission.beside)]
    cells = submission.cells if made else ()
    if (submission.idle or not made) and not any(a.head.stream in bundles for a in actors):
        submission.succeed()  # it changed nothing, and nothing before it is undecided
        return
    names = [a.head.stream for a in actors] or [f"cells/{id(submission)}"]
    bundle = bundles.get(names[0])
    if bundle is None:
        bundle = bundles[names[0]] = Bundle(actors[:1])
    for name, actor in zip(names[1:], actors[1:], strict=False):
        other = bundles.get(name)
        if other is None:
            bundle.actors.append(actor)
            bundles[name] = bundle
        elif other is not bundle:
            bundle.take(other)
            for moved in other.actors:
                bundles[moved.head.stream] = bundle
    if made:
        bundle.records += [sealed for sealed in submission.records if sealed is not None]
        bundle.records += [noted for _, noted in submission.beside]
        bundle.cells += cells
    bundle.submissions.append(submission)
