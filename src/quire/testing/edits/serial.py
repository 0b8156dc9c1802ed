"""The proof that the order of versions is a serial order: ledgers of clients, compared with the log that they wrote.

1. Each version but the first is one acknowledged write, by its author, and each acknowledged write that differs from its
   own base is one version.
2. Executed again by the rules on the version before, it gives the version, and each step is told what it was told.
3. A write that was refused had to be, on some version that it can have met. Nothing of it is in the log: by 1 and 2 all
   that is in the log is of acknowledged writes.
4. A conflict shows values that the versions it names have, and names their authors; none is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from quire.core.path import parse
from quire.model import Delete
from quire.testing.edits.clients import Entry
from quire.testing.edits.log import Log
from quire.testing.edits.reads import path_of
from quire.testing.edits.redo import redo
from quire.testing.edits.rules import Meeting
from quire.testing.edits.shows import conflicts, refusal, related, steady
from quire.testing.edits.sides import Refused, Terms
from quire.testing.edits.tree import ABSENT, find, plain, same


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it was promised. kind: which promise, one of KINDS.  places: keys of the state."""

    kind: str
    text: str
    entry: Entry | None = None
    places: tuple[str, ...] = ()


KINDS = {
    "serial": "a version is what its write makes of the version before",
    "lost": "versions and acknowledged writes are the same",
    "answer": "a write is told its own version",
    "refusal": "what is refused has to be",
    "early": "who is refused sees what refused it",
    "missing": "what was overruled is recorded as a conflict",
    "names": "a conflict names versions and their authors",
    "shows": "a conflict shows what the version it names has",
}


_PENDING_MAX = 50
"""Versions that one commit holds in a campaign, at most."""


def findings(log: Log, entries: Sequence[Entry]) -> Iterator[Finding]:
    """Yield what is wrong. entries: of this workflow."""
    known = {entry.key: entry for entry in entries}
    assert len(known) == len(entries)
    made: set[str] = set()
    for version in log.versions[1:]:
        entry = known.get(version.message)
        if entry is None:
            yield Finding("lost", f"version {version.number} is of no write that is known: {version.message!r}")
        elif version.message in made:
            yield Finding("lost", f"version {version.number} is a second one of {version.message}", entry)
        elif entry.version != version.number:
            yield Finding("lost", f"{entry.key} is version {version.number}, and was told another", entry)
        elif version.author != entry.author:
            yield Finding("lost", f"version {version.number} is by {version.author}", entry)
        else:
            yield from accepted(log, entry)
        made.add(version.message)
    for entry in entries:
        if entry.version is not None and entry.key not in made:
            yield Finding("lost", f"{entry.key} was told version {entry.version}, which it is not", entry)
        elif entry.error is not None:
            yield from refused(log, entry)
        elif entry.version is None:
            yield from idle(log, entry)
    for kind, text, number in conflicts(log):
        yield Finding(kind, text, known.get(log.version(number).message))


def accepted(log: Log, entry: Entry) -> Iterator[Finding]:
    """Yield what is wrong with a write that has a version."""
    number = entry.version
    assert number is not None
    after = log.state(number)
    if entry.how == "restore":
        if left := difference(log.state(entry.more["target"]), after):
            yield Finding("serial", f"version {number}: {'; '.join(left.values())}", entry, tuple(left))
        return
    base = number - 1 if entry.base is None else entry.base
    if base >= number or (entry.more.get("onto") == "if_version" and base != number - 1):
        yield Finding("serial", f"version {number} was made on {base}", entry)
        return
    rehearsal = _meeting(log, entry, base, base)
    redo(rehearsal, entry.program)
    meeting = _meeting(log, entry, base, number - 1, after=after, rehearsal=rehearsal)
    where = f"version {number}, made on {base}"
    try:
        told = redo(meeting, entry.program)
    except Refused as error:
        yield Finding("serial", f"{where}, had to be refused: {error}", entry)
        return
    if not same(told, entry.told):
        yield Finding("serial", f"{where}: steps were told {entry.told}, by the rules {told}", entry)
    recorded = [c for c in log.conflicts if c.ours.version == number or c.id.startswith(f"merge-{number}-")]
    by_rules, apart = plain(meeting.now), set[Any]()
    if entry.policy is not None or entry.how == "merge":
        apart = {parse(c.path)[0] for c in recorded if _in_a_list(after, c.path)}
    if entry.how == "merge":
        _decided(by_rules, log.state(number - 1), after, [c.path for c in recorded])
    if left := difference(by_rules, after, apart):
        yield Finding("serial", f"{where}: {'; '.join(left.values())}", entry, tuple(left))
    if entry.base is None or entry.how == "merge":
        return
    for met in meeting.met:
        path = path_of(meeting.now, met.place) or steady(met.path)
        if not any(related(path, parse(c.path)) for c in recorded):
            yield Finding("missing", f"{where}: no conflict tells of {met}", entry, (str(met.path[0]),))


def idle(log: Log, entry: Entry) -> Iterator[Finding]:
    """Yield what is wrong with an acknowledged write that has no version."""
    if "head" in entry.more and entry.how in ("edit", "strict", "old"):
        yield Finding("answer", f"{entry.key} made no version, and was told {entry.more['head']}", entry)
    bases = [entry.base] if entry.base is not None else range(entry.before, entry.more.get("head", log.head) + 1)
    for base in bases:
        meeting = _meeting(log, entry, base, base)
        redo(meeting, entry.program)
        if same(plain(meeting.now), log.state(base)):
            return
    yield Finding("lost", f"{entry.key} has no version, and differs from its base {entry.base}", entry)


def refused(log: Log, entry: Entry) -> Iterator[Finding]:
    """Yield what is wrong with a write that was refused."""
    if entry.how == "part":
        return  # for what the other part did
    if entry.error == "head_moved" and (entry.how == "merge" or entry.more.get("onto") == "if_version"):
        if (entry.after or 0) <= (entry.base or entry.before):
            yield Finding("early", f"{entry.key} was refused, and the head is where it was", entry)
        return
    if entry.error not in ("merge_conflict", "out_of_bounds"):
        yield Finding("refusal", f"{entry.key} raised {entry.error}: {entry.said}", entry)
        return
    if entry.base is not None and entry.error == "merge_conflict" and entry.more["error_base"] != entry.base:
        yield Finding("refusal", f"{entry.key} was made on {entry.base}, not {entry.more['error_base']}", entry)
    for kind, text in refusal(log, entry):
        yield Finding(kind, text, entry)
    first, after = entry.base or entry.before, entry.after or log.head
    if any(_refuses(log, entry, head) for head in range(after, first - 1, -1)):
        return
    for head in range(after + 1, min(log.head, after + _PENDING_MAX) + 1):
        if _refuses(log, entry, head):
            yield Finding("early", f"{entry.key} was refused by version {head}, and the newest was {after}", entry)
            return
    yield Finding("refusal", f"{entry.key} was refused for nothing: {entry.said}", entry)


def _refuses(log: Log, entry: Entry, head: int) -> bool:
    try:
        redo(_meeting(log, entry, head if entry.base is None else entry.base, head, lenient=True), entry.program)
    except Refused:
        return True
    return False


def pairs(entries: Sequence[Entry]) -> Iterator[Finding]:
    """Yield parts of transactions of which one was written and the other was not."""
    parts = {entry.key: entry for entry in entries if entry.how == "part"}
    for entry in entries:
        if entry.how == "move" and (entry.version is None) is not (parts[entry.key].version is None):
            yield Finding("lost", f"{entry.key} was done by half: {parts[entry.key]}", entry)


def _meeting(
    log: Log, entry: Entry, base: int, head: int, *, after: Any = None, lenient: bool = False, rehearsal: Any = None
) -> Meeting:
    over = [change for number in range(base + 1, head + 1) for change in log.changes(number)]
    terms = Terms(
        policy="merge" if entry.how == "merge" else entry.policy,
        knows_all=entry.how in ("save", "set", "move", "insist", "old", "decided") or "based" in entry.more,
        differs=entry.how == "save",
        strict=entry.how == "strict",
        after=after,
        lenient=lenient,
        touched={change.path for change in over},
        removed={change.path for change in over if isinstance(change, Delete)},
    )
    return Meeting(log.tree(base), log.tree(head), terms, rehearsal=rehearsal)


def _decided(wanted: Any, before: Any, after: Any, pointers: Sequence[str]) -> None:
    """Take over what a merge decided at these places, where it is what one of the sides has."""
    for pointer in pointers:
        *above, key = parse(pointer)
        chosen, parent = find(after, [*above, key]), find(wanted, above)
        if isinstance(parent, dict) and same(chosen, find(before, [*above, key])):
            if chosen is ABSENT:
                parent.pop(key, None)
            else:
                parent[key] = chosen


def _in_a_list(state: Any, pointer: str) -> bool:
    tokens = parse(pointer)
    return any(isinstance(find(state, tokens[: depth + 1]), list) for depth in range(len(tokens)))


def difference(wanted: Any, found: Any, apart: Collection[Any] = ()) -> dict[str, str]:
    """Return where two states differ, by key. apart: keys that are not compared, nor those beside them."""
    return {
        key: f"/{key}: by the rules {wanted.get(key, ABSENT)!r}, the log has {found.get(key, ABSENT)!r}"
        for key in sorted({*wanted, *found})
        if key.split("~")[0] not in apart and not same(wanted.get(key, ABSENT), found.get(key, ABSENT))
    }
