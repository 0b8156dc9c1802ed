"""Whole states: what a caller gives, and the `updatedAt` in it, become a write onto the version that they were made from.

1. The version named by `updatedAt` is the base: what the caller changed since is merged with what others did, and where
   both changed one place the caller's value stands, with a conflict on record.
2. A state that names no version replaces everything. Where its `updatedAt` is not newer than the newest version, or says
   that it was made from something we do not know any more, that is recorded as a conflict with the whole of that version.
3. `updatedAt` itself is never stored: it is computed for whoever reads. So no two states differ by it.
4. A version that took in more than what was given is not what its caller holds. What they differ by is remembered under
   a number of its own, so that the caller's next state is taken for what it is. Forgotten, rule 2 applies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

from quire.api import writes
from quire.core import layout
from quire.core.changes import apply, are_large
from quire.core.diff import diff
from quire.core.guards import Step, reliant
from quire.core.history import touches
from quire.core.layout import Stamps
from quire.core.meter import Meter
from quire.core.record import decode
from quire.core.schema import KEY
from quire.core.updated_at import UpdatedAt, read
from quire.core.values import is_large
from quire.engine.actor import Actor
from quire.engine.engine import Engine
from quire.engine.updated_at import of_version, version_of
from quire.engine.write import Base, Meeting, Write
from quire.errors import MergeConflict, VersionNotFound, WorkflowNotFound
from quire.model import RUN, Change, Fork, Path, Record, Version
from quire.threads import beside

UPDATED_AT = "updatedAt"
_ATTEMPTS = 10
"""How often a write is made anew because its workflow was deleted meanwhile."""
_GIVEN_MAX = 1024
"""Differences between a version and what was given for it that are remembered; the oldest are forgotten."""


class _Given(NamedTuple):
    """What a version took in beside the state that was given for it.

    back: what turns the version's state into the one given.  since: the version that was made from.
    """

    back: list[Change]
    since: int


class WholeStates:
    """Writes whole states to the workflows of one store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._given: OrderedDict[tuple[str, int, int], _Given] = OrderedDict()
        """By stream, version and its time."""

    async def write(self, stream: str, state: dict[str, Any], how: Mapping[str, Any]) -> tuple[Version, int]:
        """Write a state that is the callee's own; return its version, and the one that it was written onto.

        Raises what a write raises, but no MergeConflict.
        """
        whole = {key: value for key, value in state.items() if key != UPDATED_AT}
        known, left = True, _ATTEMPTS
        while True:
            write = await self._made(stream, whole, state.get(UPDATED_AT), how, known=known)
            left -= 1
            try:
                made = await self._engine.write(write)
            except MergeConflict:
                if not known:
                    raise
                known = False  # what others did since its base cannot be read any more, or does not fit
            except WorkflowNotFound:
                if not left:
                    raise
            else:
                assert made is not None
                return made, made.number - 1 if write.base is None else write.base.version

    async def shown(self, stream: str, state: dict[str, Any], version: int) -> dict[str, Any]:
        """Put its `updatedAt` into the state of a version, and return it."""
        state[UPDATED_AT] = (await of_version(self._engine, stream, version)).number
        return state

    async def move_on(
        self, given: Any, whole: dict[str, Any], made: Version, since: int, shown: dict[str, Any]
    ) -> None:
        """Let the dict that was given name the version made of it, so that it can be changed and given again.

        whole: what it held then.  since: the version that was written onto.  shown: the state of the version.
        """
        claimed = whole.get(UPDATED_AT)
        if not isinstance(given, dict) or type(claimed) not in (int, float):
            return  # it is not the caller's to keep, or named nothing
        number = shown[UPDATED_AT]
        back = await beside(is_large(whole), diff, _bare(shown), _bare(whole))
        if given.get(UPDATED_AT) != claimed:
            return  # it names something else by now
        if back:
            at = cast("UpdatedAt", read(number))
            self._given[made.record.stream, made.number, at.time_ms] = _Given(back, since)
            if len(self._given) > _GIVEN_MAX:
                self._given.popitem(last=False)
            number = at._replace(given=True).number
        given[UPDATED_AT] = number

    async def _made(
        self, stream: str, whole: dict[str, Any], claimed: Any, how: Mapping[str, Any], *, known: bool
    ) -> Write:
        """Return the write of a whole state as the workflow is now. known: whether the base that it names is of use."""
        actor = await self._engine.live(stream)
        head, newest = Base(actor.head.version, actor.state), None
        claim = read(claimed)
        if known and claim is not None and actor.exists:
            write = await self._onto_base(actor, claim, whole, how)
            if write is not None:
                return write
        if head.version and type(claimed) in (int, float):
            newest = await of_version(self._engine, stream, head.version)
        stale = newest is not None and (not known or claimed <= newest.number or (claim is not None and claim.given))
        if not stale or not actor.exists:
            write, _ = writes.write(
                stream,
                lambda state: _changes(state, whole),
                {**how, "on_conflict": "last"},
                exists=None,
                heavy=is_large(whole),
            )
        else:
            write = _whole(stream, head, await _made_on(head.state, whole), how)
        if stale:
            write.replaces = await self._engine.record(stream, head.version)
        return write

    async def _onto_base(
        self, actor: Actor, claim: UpdatedAt, whole: dict[str, Any], how: Mapping[str, Any]
    ) -> Write | None:
        """Return the write onto the version that a state was made from; None where there is no telling which that is."""
        engine, stream = self._engine, actor.head.stream
        head = Base(actor.head.version, actor.state)
        version = await version_of(engine, actor, claim)
        if version is None:
            return None
        try:
            base = head if version == head.version else Base(version, await engine.state_at(stream, version))
        except VersionNotFound:
            return None
        if not claim.given:
            return _whole(stream, base, await _made_on(base.state, whole), how)
        known = self._given.get((stream, version, claim.time_ms))
        return None if known is None else await self._onto_given(stream, base, known, whole, how)

    async def _onto_given(
        self, stream: str, base: Base, known: _Given, whole: dict[str, Any], how: Mapping[str, Any]
    ) -> Write:
        """Return the write of a state that was made from what was given for a version, onto that version."""
        engine = self._engine
        given = apply(base.state, known.back)
        others = await beside(is_large(given), diff, given, base.state)
        ours = await _made_on(given, whole)
        settle = partial(
            layout.settle,
            ours,
            others,
            base=given,
            head=base.state,
            policy="last",
            where=stream,
            kinds=engine.schemas.kinds(base.state),
            stamps=lambda: Stamps(
                [f"~{number:06d}" for number in range(len(ours))],
                [f"{base.version:012d}.{number:06d}" for number in range(len(others))],
            ),
            whole=True,
            meter=Meter(steps_max=engine.settings.write_steps_max, where=stream),
        )
        settled = await beside(is_large(given) or are_large(ours), settle)
        write = _whole(stream, base, settled.changes, how)
        if settled.met:
            theirs = await engine.backend.read(stream, after=known.since, upto=base.version)
            write.passed = [Meeting(met, _writer(theirs, met.path), known.since) for met in settled.met]
        return write


async def _made_on(state: dict[str, Any], whole: dict[str, Any]) -> list[Step]:
    """Return what makes a whole state of another, with guards."""
    return await beside(is_large(state, whole), lambda: reliant(_changes(state, whole)))


def _whole(stream: str, base: Base, steps: Sequence[Step], how: Mapping[str, Any]) -> Write:
    write, _ = writes.write(stream, steps, {**how, "on_conflict": "last"}, base=base, heavy=are_large(steps))
    write.whole = True
    return write


def _writer(records: Sequence[Record], path: Path) -> Record:
    """Return the newest of several records, but the last, that changed something at a path; else the last."""
    return next(
        (r for r in reversed(records[:-1]) if any(not isinstance(c, Fork) and touches(c, path) for c in decode(r))),
        records[-1],
    )


def _bare(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != UPDATED_AT}


def _changes(before: dict[str, Any], whole: dict[str, Any]) -> list[Change]:
    """Return what turns a state into a whole one; what Quire keeps in it stays, it is easily left out of a dict made anew."""
    kept = {key: before[key] for key in (KEY, RUN, UPDATED_AT) if key in before}
    return diff(before, {**kept, **whole})
