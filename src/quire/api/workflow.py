"""A workflow's handle: everything one can ask of, and do to, one durable state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Unpack, cast

import msgspec

from quire.api import revisions, views, writes
from quire.api.checkpoints import Checkpoints
from quire.api.draft import DictDraft, recording
from quire.api.revisions import Revision
from quire.api.views import BlameLine, Event, Order
from quire.api.writes import Changes, Writing
from quire.core import history, record
from quire.core.diff import diff
from quire.core.fold import copied
from quire.core.names import check_id
from quire.core.path import get as get_path
from quire.core.path import parse, resolve
from quire.core.values import clean
from quire.engine.actor import Actor, Plan, Write
from quire.engine.engine import Engine
from quire.engine.idempotency import write_once
from quire.errors import AlreadyExists, ChangeError, InvalidKey, WorkflowNotFound
from quire.model import (
    WORKFLOWS,
    Append,
    Change,
    Checkpoint,
    Delete,
    Fork,
    Increment,
    Insert,
    Path,
    Record,
    Remove,
    Set,
    Splice,
    Version,
)

Pointer = str | Sequence[str | int]
"""A JSON Pointer such as `/notes/0`, or the same as a sequence of keys and indexes."""


class Edit:
    """`async with wf.edit() as state:` what is done to `state` becomes one version when the block ends.

    A block that raises writes nothing. After the block, `version` is what was written, None if nothing changed.
    """

    def __init__(self, workflow: Workflow, how: Writing) -> None:
        self._workflow = workflow
        self._how = how
        self._draft: DictDraft | None = None
        self._base = 0
        self.version: Version | None = None

    async def __aenter__(self) -> DictDraft:
        """Start from the head as it is now."""
        self._base, state = await self._workflow.snapshot()
        self._draft = recording(state, **self._workflow.bounds)
        return self._draft

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, unless the block raised."""
        assert self._draft is not None
        changes = self._draft.changes
        self._draft.close()
        if kind is None and (changes or self._how.get("if_version") is not None or self._how.get("allow_empty")):
            self.version = await self._workflow.rebase(changes, self._base, **self._how)


class Workflow:
    """A handle on one workflow. Making one does nothing; handles may be many and are cheap.

    Every writing method takes `Writing` options: author, message, kind, if_version, allow_empty, idempotency_key. It
    returns the new Version, or the head when nothing changed.
    Raises InvalidState, ChangeError, LimitExceeded for what cannot be stored; WorkflowNotFound; StorageError.
    """

    def __init__(self, engine: Engine, workflow_id: str) -> None:
        self.id = check_id(workflow_id, "workflow id")
        self.stream = WORKFLOWS + workflow_id
        self._engine = engine
        self.bounds = writes.limits(engine.settings)
        self._checkpoints = Checkpoints(engine, workflow_id)

    def __repr__(self) -> str:
        return f"<Workflow {self.id}>"

    # writing

    def edit(self, **how: Unpack[Writing]) -> Edit:
        """Return a context that records what is done to the state and commits it as one version.

        If others wrote meanwhile the changes are rebased onto theirs; on the same path the last writer wins.
        """
        return Edit(self, how)

    async def set(self, path: Pointer, value: Any, **how: Unpack[Writing]) -> Version:
        """Put a value at a path: adds or replaces an object key, replaces a list item. "" replaces the state."""
        tokens = writes.place(path, self.bounds)
        value = clean(value, path=tokens, **self.bounds)
        return await self._write(lambda state: [Set(resolve(state, tokens), value)], ["set", tokens, value], how)

    async def delete(self, path: Pointer, **how: Unpack[Writing]) -> Version:
        """Remove an object key, or a list item."""
        tokens = writes.place(path, self.bounds)

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            where = resolve(state, tokens)
            if where and isinstance(where[-1], int):
                return [Remove(where[:-1], where[-1], 1)]
            return [Delete(where)]

        return await self._write(plan, ["delete", tokens], how)

    async def append(self, path: Pointer, *values: Any, **how: Unpack[Writing]) -> Version:
        """Add values at the end of a list."""
        tokens = writes.place(path, self.bounds)
        new = self._values(values, tokens)
        return await self._write(lambda state: [Append(resolve(state, tokens), new)], ["append", tokens, new], how)

    async def insert(self, path: Pointer, index: int, *values: Any, **how: Unpack[Writing]) -> Version:
        """Insert values into a list before `index` (0 to its length)."""
        tokens = writes.place(path, self.bounds)
        new = self._values(values, tokens)
        return await self._write(
            lambda state: [Insert(resolve(state, tokens), index, new)], ["insert", tokens, index, new], how
        )

    async def remove(self, path: Pointer, index: int, count: int = 1, **how: Unpack[Writing]) -> Version:
        """Remove `count` items of a list from `index` on."""
        tokens = writes.place(path, self.bounds)
        return await self._write(
            lambda state: [Remove(resolve(state, tokens), index, count)], ["remove", tokens, index, count], how
        )

    async def splice(
        self, path: Pointer, position: int, delete: int = 0, insert: str = "", **how: Unpack[Writing]
    ) -> Version:
        """In a string, at code point `position`, delete `delete` code points and insert `insert`."""
        tokens = writes.place(path, self.bounds)
        new = str(clean(insert, path=tokens, **self.bounds))
        return await self._write(
            lambda state: [Splice(resolve(state, tokens), position, delete, new)],
            ["splice", tokens, position, delete, new],
            how,
        )

    async def inc(self, path: Pointer, amount: int | float = 1, **how: Unpack[Writing]) -> Version:
        """Add to a number; an absent key counts as 0. Concurrent increments all count."""
        tokens = writes.place(path, self.bounds)
        by = clean(amount, path=tokens, **self.bounds)
        return await self._write(lambda state: [Increment(resolve(state, tokens), by)], ["inc", tokens, by], how)

    async def apply(self, changes: Changes, **how: Unpack[Writing]) -> Version:
        """Apply several changes as one version: Quire changes, a JSON Patch (a list), or a merge patch (an object).

        All of them or none: a JSON Patch `test` that fails raises ChangeError and nothing is written.
        Source: RFC 6902, RFC 7396.
        """
        return await self._write(writes.plan_of(changes, self.bounds), changes, how)

    def change(self, changes: Changes, **how: Unpack[Writing]) -> Write:
        """Return a write that is not done yet, for `store.transact`. Takes what `apply` takes, but no key."""
        write, key = writes.write(self.stream, writes.plan_of(changes, self.bounds), how)
        if key is not None:
            raise InvalidKey("a transaction takes no idempotency key; give `if_version` to its parts instead")
        return write

    async def save(self, state: Mapping[str, Any], *, base: Revision = None, **how: Unpack[Writing]) -> Version:
        """Make the whole state what is given, storing only the difference.

        base: the version it was made from (None: the head now). What others changed since then stays, unless it is
        on the same path. Cost: one comparison with the base state, then the size of the difference.
        """
        actor = await self._live()
        number = await self._number(base)
        before = actor.state if base is None else await self._engine.state_at(self.stream, number)
        return await self.rebase(diff(before, dict(state)), number, **how)

    async def rebase(self, changes: Sequence[Change], base: int, **how: Unpack[Writing]) -> Version:
        """Apply changes that were made on version `base`, adjusted to what others changed since."""
        return await self._write(changes, changes, how, base=base)

    async def restore(self, version: Revision, **how: Unpack[Writing]) -> Version:
        """Make the state what it was, as a new version; history is never rewound."""
        number = await self._number(version)
        old = await self._engine.state_at(self.stream, number)
        how = {"message": f"restored version {number}", "kind": "restore", "allow_empty": True, **how}
        return await self._write(lambda state: diff(state, old), ["restore", number], how)

    async def fork(
        self, new_id: str, *, at: Revision = None, author: str = "system", message: str | None = None
    ) -> Workflow:
        """Start a new workflow whose history begins at a version of this one, without copying anything.

        Raises AlreadyExists for an id that is or was in use. Cost: one record, whatever the size of the state.
        """
        fork = Workflow(self._engine, new_id)
        number = await self._number(at)
        origin = await self._engine.record(self.stream, number)
        start = await self._engine.state_at(self.stream, number)
        if (await self._engine.current(fork.stream)).head.version:
            raise AlreadyExists(f"{new_id} exists, or existed: a fork needs an id that was never used")
        how = {"author": author, "message": f"forked from {self.id}@{number}" if message is None else message}
        plan = [Fork(self.id, number, origin.chain.hex())]
        write, _ = writes.write(fork.stream, plan, how, kind="fork", exists=False, start=start, allow_empty=True)
        write.if_version = 0
        await self._engine.write(write)
        return fork

    # reading

    async def exists(self) -> bool:
        """Tell whether the workflow is there."""
        return (await self._engine.current(self.stream)).exists

    async def version(self, version: Revision = None) -> Version:
        """Return one version; None is the head. Raises VersionNotFound, CheckpointNotFound."""
        return Version(await self._engine.record(self.stream, await self._number(version)))

    async def state(self, version: Revision = None) -> dict[str, Any]:
        """Return the state, or what it was: a plain dict, the caller's to keep. Cost: O(state)."""
        return cast("dict[str, Any]", copied(await self._at(version)))

    async def snapshot(self) -> tuple[int, dict[str, Any]]:
        """Return the head's number and its state. The state is the engine's own and must not be altered."""
        actor = await self._live()
        return actor.head.version, actor.state

    async def get(self, path: Pointer, default: Any = None, *, version: Revision = None) -> Any:
        """Return the value at a path, or `default` where there is none. Cost: O(depth + the value)."""
        return copied(get_path(await self._at(version), parse(path), default))

    async def history(
        self,
        limit: int | None = None,
        *,
        before: Revision = None,
        author: str | None = None,
        path: Pointer | None = None,
        kind: str | None = None,
        order: Order = "newest",
    ) -> list[Version]:
        """Return versions, newest first unless order="oldest".

        limit: how many at most.  before: only versions older than this.  author, kind: only theirs.  path: only
        versions that changed something at or below it. Cost: reads the records passed over, never the state.
        """
        actor = await self._live()
        top = actor.head.version if before is None else await self._number(before) - 1
        tokens = None if path is None else _tokens(actor.state, path)

        def matches(found: Record) -> bool:
            return (
                (author is None or found.author == author)
                and (kind is None or found.kind == kind)
                and (tokens is None or any(_touches(c, tokens) for c in record.decode(found)))
            )

        return await views.scan(self._engine, self.stream, top, order, matches, limit)

    async def diff(self, old: Revision, new: Revision = None) -> list[Change]:
        """Return changes that turn the state at `old` into the state at `new` (None: the head)."""
        before, after = await self._at(old), await self._at(new)
        changes = record.encode(diff(before, after))
        return msgspec.json.decode(changes, type=list[Change])  # fresh values: these are the caller's to keep

    async def blame(self, path: Pointer = "", *, version: Revision = None) -> list[BlameLine]:
        """Say for every value at or below a path who set it last, when and why, in document order.

        Raises ChangeError when there is nothing at the path. Cost: reads and folds the history once.
        """
        number = await self._number(version)
        state = await self._engine.state_at(self.stream, number)
        return await views.blame(self._engine, self.stream, number, state, resolve(state, parse(path)))

    async def watch(
        self,
        *,
        after: Revision = None,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[Event]:
        """Yield every version after `after` (None: from now on; 0: all), past ones first, then live ones, for ever.

        path, types, author: only matching changes (types: set, delete, append, insert, remove, splice, inc).
        cursor: a name under which the place is kept: each event then comes at least once, across restarts, and counts
        as done when the next one is asked for; `after` then only says where a new cursor starts.
        """
        sieve = views.sieve(path, types, author)
        start = 0 if after == 0 else await self._number(after)
        async with aclosing(views.watch_stream(self._engine, self.stream, start, sieve, cursor)) as events:
            async for event in events:
                yield event

    # checkpoints

    async def checkpoint(
        self,
        name: str,
        *,
        tags: Sequence[str] = (),
        kind: str = "manual",
        description: str = "",
        author: str = "system",
        version: Revision = None,
    ) -> Checkpoint:
        """Give a version a name. kind="snapshot" also keeps its state whole, with size and checksum.

        Raises AlreadyExists for a name in use, InvalidKey for one that could be mistaken for a version.
        """
        if revisions.is_reserved(check_id(name, "checkpoint name")):
            raise InvalidKey(f"checkpoint name {name!r} reads like a version number, id or date; add a word to it")
        return await self._checkpoints.create(
            name,
            await self._number(version),
            tags=[writes.name(t, "tag") for t in tags],
            kind=writes.name(kind, "kind"),
            description=writes.text(description),
            author=writes.name(author, "author"),
        )

    async def checkpoints(self, *, tag: str | None = None, kind: str | None = None) -> list[Checkpoint]:
        """Return the checkpoints, oldest first, of all tags and kinds or only one."""
        return [
            c
            for c in await self._checkpoints.all()
            if (tag is None or tag in c.tags) and (kind is None or c.kind == kind)
        ]

    async def drop_checkpoint(self, name: str, *, author: str = "system") -> None:
        """Remove a name; the version stays. Raises CheckpointNotFound."""
        await self._checkpoints.drop(name, writes.name(author, "author"))

    async def kept_state(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the state that a snapshot keeps whole. Raises CorruptRecord when it is damaged or gone."""
        return await self._checkpoints.kept_state(checkpoint)

    # inside

    async def _live(self) -> Actor:
        actor = await self._engine.current(self.stream)
        if not actor.exists:
            raise WorkflowNotFound(self.id)
        return actor

    async def _number(self, version: Revision) -> int:
        return await revisions.resolve(self._engine, await self._live(), version, self._checkpoints)

    async def _at(self, version: Revision) -> dict[str, Any]:
        if version is None:
            return (await self._live()).state
        return await self._engine.state_at(self.stream, await self._number(version))

    def _values(self, values: tuple[Any, ...], path: Path) -> list[Any]:
        return cast("list[Any]", clean(list(values), path=path, **self.bounds))

    async def _write(
        self, plan: Sequence[Change | Fork] | Plan, content: Any, how: Mapping[str, Any], **more: Any
    ) -> Version:
        write, key = writes.write(self.stream, plan, how, **more)
        if key is None:
            made = await self._engine.write(write)
        else:
            made = await write_once(self._engine, write, key, msgspec.json.encode(content))
        return made if made is not None else await self.version()


def _tokens(state: dict[str, Any], path: Pointer) -> Path:
    """Resolve a path against a state for filtering; what is not there now may still be in the history."""
    tokens = parse(path)
    try:
        return resolve(state, tokens)
    except ChangeError:
        return tokens


def _touches(change: Change | Fork, path: Path) -> bool:
    return isinstance(change, Fork) or history.touches(change, path)
