"""Redaction: taking something out of what was stored, everywhere, without breaking a chain.

1. First what is present is taken out, by a version like any other; then what was, by rewriting the bodies of records, all
   of them at once. A rewritten body keeps the digest of what was sealed, which is what the chain covers.
2. What is rewritten is written down beforehand in the stream `redactions/<id>`, with the digest of each new body: a body
   that is not in there was altered by somebody else, and `verify` says so. One that is in there and was not rewritten
   was interrupted: redacting again finishes it.
3. Forks share the past of what they came from, and what was merged is in both: they are redacted together, with what
   conflicts, merges, checkpoints and other streams of these workflows keep.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec
from blake3 import blake3

from quire.core import keyframes, record
from quire.core.changes import Working
from quire.core.diff import diff
from quire.core.path import parse
from quire.core.redact import ByPath, ByText, Rule, follow
from quire.engine.engine import Engine
from quire.engine.limits import REDACT
from quire.engine.lineage import origin
from quire.engine.moving.paging import names, pages
from quire.engine.write import Write
from quire.errors import CorruptRecord, Invalid, NotFound, StorageTimeout
from quire.failpoints import hit
from quire.model import (
    CHECKPOINTS,
    CONFLICTS,
    MERGES,
    REDACTIONS,
    SUBSCRIPTIONS,
    WORKFLOWS,
    Change,
    Delete,
    Fork,
    Head,
    Keyframe,
    Point,
    Record,
    Set,
)
from quire.threads import aside

_PAGE = 500
_ROUNDS = 10
"""How often a redaction is done again because somebody wrote what it takes out meanwhile."""
_BESIDE = (CHECKPOINTS, CONFLICTS, SUBSCRIPTIONS)
_changes = msgspec.json.Decoder(list[Change]).decode


class Redaction(msgspec.Struct, frozen=True):
    """What a redaction did. versions: which were rewritten, by stream.  snapshots: checkpoints whose state was replaced.

    said: versions that have the text in their message or author, as `id@version`: the chain covers those, they stay.
    """

    versions: dict[str, list[int]]
    snapshots: list[str] = []
    said: list[str] = []


async def redact(engine: Engine, workflow_id: str, rule: Rule, write: Write, *, what: str) -> Redaction:
    """Take something out of a workflow, of its forks, and of all that is kept beside them.

    write: who and why.  what: how it is written down; not the text itself.
    Raises Invalid where it came with what the workflow was forked from, or is in a key; StorageError.
    Cost: reads every version of these workflows, holds what is rewritten in memory, and what `scrub` costs.
    """
    async with engine.key_lock("redact"):
        source = await origin(engine, workflow_id)
        if source is not None:
            before = await engine.state_at(WORKFLOWS + source.workflow_id, source.version)
            if rule.value((), before) is not before:
                raise Invalid(f"{workflow_id} was forked from {source}, which has it already: redact it there")
        family = await _family(engine, workflow_id, merged=True)
        done = Redaction({})
        for _ in range(_ROUNDS):
            work = _Work(engine, rule)
            heads = {name: await _present(engine, name, rule, write) for name in family}
            for name in family:  # what comes later is in somebody's memory: it is taken out by a version first
                await work.log(name, upto=heads[name])
                await work.merges(name)
                await work.beside(name)
            await work.done(workflow_id, write, what)
            done = Redaction(_joined(done.versions, work.versions), said=work.said)
            if not await _anew(engine, heads, rule):
                break
        for name in family:  # also what an interrupted one left
            for frame in (await _reframed(engine, WORKFLOWS + name, rule))[1]:
                await engine.backend.put_keyframe(frame)
        snapshots = await _snapshots(engine, family, rule, write)
        await engine.backend.scrub()
    return msgspec.structs.replace(done, snapshots=snapshots)


async def forget(
    engine: Engine, workflow_id: str, path: ByPath, write: Write, *, what: str, after: int = 0, scrub: bool = True
) -> tuple[Redaction, int]:
    """Take out what a path held before it was last replaced whole; the present value stays.

    So does what forks began from, and what merges took over. after: the version up to which it was done before.
    scrub: leave no trace in the store's files either.
    Returns also the newest version that it was done to. Raises StorageError. Cost: as `redact`, of what is after `after`.
    """
    async with engine.key_lock("redact"):
        work = _Work(engine, path)
        upto = await _replaced(engine, workflow_id, path.path, after)
        if upto > after:
            await work.log(workflow_id, after=after, upto=upto)
            await work.done(workflow_id, write, what, upto=upto)
        if scrub:
            await engine.backend.scrub()
    return Redaction(work.versions), max(upto, after)


async def _present(engine: Engine, workflow_id: str, rule: Rule, write: Write) -> int:
    """Take it out of the newest state; return a version whose state does not have it."""
    stream = WORKFLOWS + workflow_id
    for _ in range(_ROUNDS):
        actor = await engine.current(stream)
        if not actor.exists or not diff(actor.state, rule.value((), actor.state)):
            return actor.head.version
        await engine.write(
            Write(
                stream,
                lambda state: diff(state, rule.value((), state)),
                author=write.author,
                message=write.message,
                kind=REDACT,
            )
        )
    raise StorageTimeout(f"{workflow_id}: others keep writing what is to be taken out: stop them, and redact it again")


async def _anew(engine: Engine, heads: dict[str, int], rule: Rule) -> bool:
    """Tell whether somebody wrote it after these versions."""
    later = _Work(engine, rule)
    for name, head in heads.items():
        if (await engine.current(WORKFLOWS + name)).head.version > head:
            await later.log(name, after=head)
    return bool(later.versions)


def _joined(one: dict[str, list[int]], other: dict[str, list[int]]) -> dict[str, list[int]]:
    return {stream: sorted({*one.get(stream, ()), *other.get(stream, ())}) for stream in {**one, **other}}


async def _family(engine: Engine, workflow_id: str, *, merged: bool = False) -> list[str]:
    """Return a workflow and all that was forked from it; merged: or took something from them.

    Cost: the first record of every workflow.
    """
    children: dict[str, list[str]] = {}
    for stream in await engine.backend.streams(MERGES) if merged else ():
        for entry in (await engine.current(stream)).state.values():
            children.setdefault(entry["workflow"], []).append(stream.removeprefix(MERGES))
    async for page in names(engine.backend, WORKFLOWS):
        for name in page:
            forked = name.removeprefix(WORKFLOWS)
            source = await origin(engine, forked)
            if source is not None:
                children.setdefault(source.workflow_id, []).append(forked)
    found = [workflow_id]
    for name in found:
        found += [child for child in dict.fromkeys(children.get(name, ())) if child not in found]
    return found


async def _replaced(engine: Engine, workflow_id: str, path: tuple[Any, ...], after: int) -> int:
    """Return the newest version before a whole replacement of a path, that no fork begins from and no merge knows."""
    bound = (await engine.current(WORKFLOWS + workflow_id)).head.version
    for name in await _family(engine, workflow_id):
        source = await origin(engine, name)
        if source is not None and source.workflow_id == workflow_id:
            bound = min(bound, source.version)
        for number, entry in (await engine.current(MERGES + name)).state.items():
            known = entry["knows"].get(workflow_id, bound)
            bound = min(bound, known, int(number) - 1 if name == workflow_id else known)
    last = 0
    async for entry in pages(engine.backend, WORKFLOWS + workflow_id, after, bound):
        if any(isinstance(c, Set | Delete) and path[: len(c.path)] == c.path for c in record.decode(entry)):
            last = entry.version
    return max(last - 1, 0)


class _Work:
    """What is rewritten: gathered first, then written down, then done at once."""

    def __init__(self, engine: Engine, rule: Rule) -> None:
        self._engine = engine
        self._rule = rule
        self._records: list[Record] = []
        self.said: list[str] = []

    @property
    def versions(self) -> dict[str, list[int]]:
        """Which versions are rewritten, by stream."""
        found: dict[str, list[int]] = {}
        for entry in self._records:
            found.setdefault(entry.stream, []).append(entry.version)
        return found

    async def log(self, workflow_id: str, *, after: int = 0, upto: int | None = None) -> None:
        """Gather from a workflow's own log."""
        stream = WORKFLOWS + workflow_id
        working: Working | None = None
        if after:
            working = Working(await self._engine.state_at(stream, after))
        async for entry in pages(self._engine.backend, stream, after, upto):
            changes = record.decode(entry)
            if working is None and entry.version > 1:  # what was trimmed begins with a keyframe of its first record
                working = Working(await self._engine.state_at(stream, entry.version))
                self._gather(entry, changes, [c if isinstance(c, Fork) else self._rule.change(c) for c in changes])
                continue
            working = working or Working({})
            if isinstance(self._rule, ByText) and self._rule.within(entry.message, entry.author):
                self.said.append(f"{workflow_id}@{entry.version}")
            forks = [c for c in changes if isinstance(c, Fork)]
            for fork in forks:
                working = Working(await self._engine.state_at(WORKFLOWS + fork.workflow_id, fork.version))
            own = cast("list[Change]", changes[len(forks) :])
            self._gather(entry, changes, [*forks, *follow(self._rule, own, working)])

    async def merges(self, workflow_id: str) -> None:
        """Gather from what is kept of merges: changes that lead from the other side's state to the result."""
        async for entry in pages(self._engine.backend, MERGES + workflow_id, 0):
            changes = record.decode(entry)
            left: list[Change | Fork] = []
            for change in changes:
                assert isinstance(change, Set)
                at = Point(change.value["workflow"], change.value["version"])
                back = _changes(msgspec.json.encode(change.value["back"]))
                try:
                    state = await self._engine.state_at(WORKFLOWS + at.workflow_id, at.version)
                    back = follow(self._rule, back, Working(state))
                except NotFound:
                    back = [self._rule.change(c) for c in back]
                left.append(Set(change.path, {**change.value, "back": msgspec.to_builtins(back)}))
            self._gather(entry, changes, left)

    async def beside(self, workflow_id: str) -> None:
        """Gather from every other stream of a workflow: a text wherever it is, a path in what conflicts tell of it."""
        for kind in _BESIDE:
            working = Working({})
            async for entry in pages(self._engine.backend, kind + workflow_id, 0):
                changes = cast("list[Change]", record.decode(entry))
                if isinstance(self._rule, ByText):
                    self._gather(entry, changes, follow(self._rule, changes, working))
                elif kind == CONFLICTS:
                    self._gather(entry, changes, [self._conflict(c) for c in changes])

    async def done(self, workflow_id: str, write: Write, what: str, *, upto: int | None = None) -> None:
        """Write down what will be rewritten, then rewrite it, and forget what was derived from what it was.

        upto: later states are what they were.
        """
        if not self._records:
            return
        at: dict[str, dict[str, str]] = {}
        for entry in self._records:
            at.setdefault(entry.stream, {})[str(entry.version)] = blake3(entry.body).hexdigest()
        note = {"what": what, "at": at}
        await self._engine.write(
            Write(
                REDACTIONS + workflow_id,
                lambda notes: [Set((str(len(notes) + 1),), note)],
                author=write.author,
                message=write.message,
                kind=REDACT,
                exists=None,
            )
        )
        hit("redact:noted")
        backend = self._engine.backend
        new: list[Keyframe] = []
        for stream in self.versions:  # what is derived goes first: whatever stops us here, nothing tells of what was
            gone, left = await _reframed(self._engine, stream, self._rule, upto=upto)
            first = (await backend.read(stream, limit=1))[0].version
            trimmed = first if first > 1 else 0  # such a log begins with that keyframe: it is replaced, never absent
            await backend.drop_keyframes(stream, [v for v in gone if v != trimmed])
            new += left
        await backend.rewrite(self._records)
        hit("redact:rewritten")
        for frame in new:
            await backend.put_keyframe(frame)
        for stream in self.versions:
            await self._engine.outdate(stream, state=not stream.startswith(WORKFLOWS))

    def _gather(self, entry: Record, changes: list[Any], left: list[Any]) -> None:
        if record.encode(changes) != record.encode(left):
            body = record.redacted(entry.body, left)
            self._records.append(msgspec.structs.replace(entry, body=body))

    def _conflict(self, change: Change) -> Change:
        """Return what is left of an entry of a stream of conflicts."""
        if not isinstance(change, Set) or type(change.value) is not dict or "path" not in change.value:
            return change
        kept = cast("dict[str, Any]", change.value)
        path = parse(kept["path"])
        sides = {
            s: {**kept[s], "value": self._rule.value(path, kept[s]["value"])}
            for s in ("base", "ours", "theirs")
            if "value" in kept.get(s, {})
        }
        if kept.get("change"):
            (made,) = _changes(msgspec.json.encode([kept["change"]]))
            sides["change"] = msgspec.to_builtins(self._rule.change(made))
        return Set(change.path, {**kept, **sides})


async def _reframed(
    engine: Engine, stream: str, rule: Rule, *, upto: int | None = None
) -> tuple[list[int], list[Keyframe]]:
    """Return which keyframes of a stream must go, and what is left of those: of a workflow's log, the ones that had it."""
    gone = [v for v in await engine.backend.keyframes(stream) if upto is None or v <= upto]
    if not stream.startswith(WORKFLOWS):
        return gone, []
    had: list[int] = []
    new: list[Keyframe] = []
    for version in gone:
        try:
            frame = await engine.backend.keyframe(stream, version)
            state = None if frame is None or frame.version != version else keyframes.state_of(frame)
        except CorruptRecord:
            had.append(version)  # nobody can say what is in it
            continue
        if frame is None or state is None:
            continue
        left = rule.value((), state)
        if left is not state:
            had.append(version)
            new.append(await aside(keyframes.make, Head(stream, version, chain=frame.chain), left))
    return had, new


async def _snapshots(engine: Engine, family: list[str], rule: Rule, write: Write) -> list[str]:
    """Replace the states that checkpoints keep whole; return those that had it, as `id@name`."""
    old: set[str] = set()
    done: list[str] = []
    for workflow_id in family:
        changes: list[Change] = []
        for name, label in (await engine.current(CHECKPOINTS + workflow_id)).state.items():
            whole = await engine.backend.blob(label["blob"]) if "blob" in label else None
            state = None if whole is None else msgspec.json.decode(whole)
            left = rule.value((), state)
            if left is state:
                continue
            kept = record.canonical(left)
            blob = blake3(kept).hexdigest()
            await engine.backend.put_blob(blob, kept)
            changes += [Set((name, "blob"), blob), Set((name, "size_bytes"), len(kept))]
            old.add(label["blob"])
            done.append(f"{workflow_id}@{name}")
        if changes:
            stream = CHECKPOINTS + workflow_id
            await engine.write(
                Write(stream, changes, author=write.author, message=write.message, kind=REDACT, exists=None)
            )
    if old:  # blobs are named by their content: others may keep the same state
        for stream in await engine.backend.streams(CHECKPOINTS):
            old -= {label.get("blob") for label in (await engine.current(stream)).state.values()}
    for blob in old:
        await engine.backend.drop_blob(blob)
    return done
