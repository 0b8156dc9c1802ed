"""A workflow's handle: everything one can ask of, and do to, one durable state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import isasyncgen, isawaitable, iscoroutine, iscoroutinefunction, isgenerator
from types import TracebackType
from typing import Any, Literal, TypedDict, Unpack, cast

import msgspec

from quire.api import revisions, writes
from quire.api.conflicts import Choice, Conflicts
from quire.api.draft import DictDraft, recording
from quire.api.merging import MergeResult, merge
from quire.api.reading import Pointer, Reader, tokens_of
from quire.api.revisions import Revision
from quire.api.writes import BasedWriting, Changes, Writing
from quire.calls import call
from quire.core.changes import apply, are_large, invert, taken
from quire.core.diff import diff
from quire.core.guards import Read, Step, pure, reliant
from quire.core.names import check_id
from quire.core.path import get, parse, resolve
from quire.core.redact import ByPath, ByText
from quire.core.resolve import ABSENT, Policy
from quire.core.schema import KEY
from quire.core.values import clean, is_large, same
from quire.engine.actor import DELETED
from quire.engine.engine import Engine
from quire.engine.idempotency import write_once
from quire.engine.redaction import Redaction, forget, redact
from quire.engine.write import Base, Plan, Write
from quire.errors import AlreadyExists, HeadMoved, Invalid, InvalidKey, MergeConflict, StorageTimeout
from quire.model import (
    RUN,
    Append,
    Change,
    Checkpoint,
    Conflict,
    Delete,
    Fork,
    Increment,
    Insert,
    Point,
    Remove,
    Set,
    Splice,
    Version,
)
from quire.threads import beside

_ITEMS_UNCHECKED = 1000
"""Items that one change takes out of a list before it is looked whether they are there."""

Isolation = Literal["default", "serializable"]
Draft = Callable[[DictDraft], object]
"""A quick function that changes a draft, for `update`."""


class _Inside(TypedDict, total=False):
    """What a write of ours says beside the options of its caller.

    on: the base of a plan that has its guards.  newest: it is made on the newest state, there is no option `base`.
    restored: the version it brings back.  heavy: it is large, and prepared beside the event loop.
    """

    on: Base
    newest: bool
    restored: int
    heavy: bool


class Edit:
    """`async with wf.edit() as state:` what is done to `state` becomes one version when the block ends.

    A block that raises writes nothing. After the block, `version` is what was written, None if nothing changed.
    """

    def __init__(self, workflow: Workflow, isolation: Isolation, how: BasedWriting) -> None:
        if isolation not in ("default", "serializable"):
            raise Invalid(f"isolation {isolation!r}: default or serializable")
        self._workflow = workflow
        self._strict = isolation == "serializable"
        self._made_from = how.get("base")
        self._how = cast("Writing", {option: value for option, value in how.items() if option != "base"})
        self._draft: DictDraft | None = None
        self._base: Base | None = None
        self._open = False
        self.version: Version | None = None

    async def __aenter__(self) -> DictDraft:
        """Start from the head as it is now, or from the base that was given. Raises Invalid while the block runs."""
        if self._open:
            raise Invalid("this edit is open already; each block needs an `edit()` of its own")
        self._open, self.version = True, None
        self._base = await self._workflow.snapshot(self._made_from)
        self._draft = recording(self._base.state, **self._workflow.bounds, strict=self._strict)
        return self._draft

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit, unless the block raised."""
        assert self._draft is not None
        assert self._base is not None
        self._open = False
        steps = self._draft.steps
        if self._made_from is not None:
            steps = reliant(steps)
        self._draft.close()
        if kind is None and (pure(steps) or self._how.get("if_version") is not None or self._how.get("allow_empty")):
            self.version = await self._workflow.rebase(steps, self._base, **self._how)


class Workflow(Reader):
    """A handle on one workflow: a reader that can also write.

    Every writing method takes `Writing` options: author, message, kind, if_version, allow_empty, idempotency_key, base,
    on_conflict. It returns the new Version, or the head when nothing changed.
    A value of thousands of items is read in a thread: leave it as it is until the call returns.
    Raises InvalidState, ChangeError, LimitExceeded for what cannot be stored; Invalid for a value that was altered while it
    was read; WorkflowNotFound; StorageError.
    """

    def __init__(self, engine: Engine, workflow_id: str) -> None:
        super().__init__(engine, workflow_id)
        self.bounds = writes.limits(engine.settings)
        self._conflicts = Conflicts(engine, workflow_id)

    # writing

    def edit(self, *, isolation: Isolation = "default", **how: Unpack[BasedWriting]) -> Edit:
        """Return a context that records what is done to the state and commits it as one version.

        If others wrote meanwhile the changes are rebased onto theirs. A value that was read and then replaced or removed
        must still be what it was, else MergeConflict is raised and nothing is written; an `on_conflict` decides instead,
        and what it decides is recorded: see `conflicts`. Of two that replace what neither read, the last stands.
        isolation: "serializable" refuses the write also where something changed that it only read, whatever `on_conflict`.
        base: the draft begins with that version, and all that it replaces counts as read there.
        """
        return Edit(self, isolation, how)

    async def update(self, fn: Draft, **how: Unpack[Writing]) -> Version:
        """Have a function change the newest state, as one version; nothing that it reads can be out of date.

        fn: plain, quick, and free of side effects: it is called with a draft of the state that the write meets, while
        other writers of this process wait, and again whenever another process was first. What it raises is raised here,
        with nothing written; FunctionFailed for StopIteration and its like, see quire/calls.py. Raises
        StorageTimeout, saying how often it ran, when others were first for `retry_seconds`.
        """
        ran = 0

        def plan(state: dict[str, Any]) -> Sequence[Step]:
            nonlocal ran
            ran += 1
            draft = recording(state, **self.bounds)
            try:
                answer: object = call(fn, draft)
                if isawaitable(answer) or isgenerator(answer) or isasyncgen(answer):
                    if iscoroutine(answer) or isgenerator(answer):
                        answer.close()
                    raise Invalid("update takes a plain function, which cannot wait or yield; use `edit` for that")
                return draft.steps
            finally:
                draft.close()

        if not callable(fn) or iscoroutinefunction(fn):
            raise Invalid(f"update takes a plain function of a draft, not {fn!r}; use `edit` for what waits")
        try:
            return await self._write(plan, ["update"], how, newest=True)
        except StorageTimeout as late:
            raise StorageTimeout(f"{late}; the function ran {ran} times, nothing was written: try again") from late

    async def set(self, path: Pointer, value: Any, **how: Unpack[BasedWriting]) -> Version:
        """Put a value at a path: adds or replaces an object key, replaces a list item; `/list/-` adds one.

        "" replaces the state.
        """
        tokens = writes.place(path, self.bounds)
        value, heavy = await writes.cleaned(value, self.bounds, tokens)

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            where = resolve(state, tokens)
            if tokens[-1:] == ("-",) and type(where[-1]) is int:
                return [Append(where[:-1], [value])]
            return [Set(where, value)]

        return await self._write(plan, ["set", tokens, value], how, heavy=heavy)

    async def delete(self, path: Pointer, **how: Unpack[BasedWriting]) -> Version:
        """Remove an object key, or a list item."""
        tokens = writes.place(path, self.bounds)

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            where = resolve(state, tokens)
            if where and isinstance(where[-1], int):
                return [Remove(where[:-1], where[-1], 1)]
            return [Delete(where)]

        return await self._write(plan, ["delete", tokens], how)

    async def append(self, path: Pointer, *values: Any, **how: Unpack[BasedWriting]) -> Version:
        """Add values at the end of a list."""
        tokens = writes.place(path, self.bounds)
        new, heavy = await writes.cleaned(list(values), self.bounds, tokens)
        return await self._write(
            lambda state: [Append(resolve(state, tokens), new)], ["append", tokens, new], how, heavy=heavy
        )

    async def insert(self, path: Pointer, index: int, *values: Any, **how: Unpack[BasedWriting]) -> Version:
        """Insert values into a list before `index` (0 to its length)."""
        tokens = writes.place(path, self.bounds)
        new, heavy = await writes.cleaned(list(values), self.bounds, tokens)
        return await self._write(
            lambda state: [Insert(resolve(state, tokens), index, new)], ["insert", tokens, index, new], how, heavy=heavy
        )

    async def remove(self, path: Pointer, index: int, count: int = 1, **how: Unpack[BasedWriting]) -> Version:
        """Remove `count` items of a list from `index` on."""
        tokens = writes.place(path, self.bounds)
        heavy = type(count) is int and count > _ITEMS_UNCHECKED
        return await self._write(
            lambda state: [Remove(resolve(state, tokens), index, count)],
            ["remove", tokens, index, count],
            how,
            heavy=heavy,
        )

    async def splice(
        self, path: Pointer, position: int, delete: int = 0, insert: str = "", **how: Unpack[BasedWriting]
    ) -> Version:
        """In a string, at code point `position`, delete `delete` code points and insert `insert`."""
        tokens = writes.place(path, self.bounds)
        if not isinstance(insert, str):
            raise Invalid(f"splice puts a string in, not {type(insert).__name__}")
        new = str(clean(insert, path=tokens, **self.bounds))
        return await self._write(
            lambda state: [Splice(resolve(state, tokens), position, delete, new)],
            ["splice", tokens, position, delete, new],
            how,
        )

    async def inc(
        self,
        path: Pointer,
        amount: int | float = 1,
        *,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
        **how: Unpack[BasedWriting],
    ) -> Version:
        """Add to a number; an absent key counts as 0. Concurrent increments all count.

        minimum, maximum: where the number has to stay, both included, on the state that the write meets. Raises
        OutOfBounds, with nothing written.
        """
        tokens = writes.place(path, self.bounds)
        by = clean(amount, path=tokens, **self.bounds)

        def plan(state: dict[str, Any]) -> Sequence[Step]:
            where = resolve(state, tokens)
            return [Increment(where, by), *writes.bounded(where, minimum, maximum, self.bounds)]

        bounds = [] if minimum is None and maximum is None else [minimum, maximum]
        return await self._write(plan, ["inc", tokens, by, *bounds], how)

    async def apply(self, changes: Changes, **how: Unpack[BasedWriting]) -> Version:
        """Apply several changes as one version: Quire changes, a JSON Patch (a list), or a merge patch (an object).

        All of them or none: a JSON Patch `test` that fails raises ChangeError and nothing is written.
        Source: RFC 6902, RFC 7396.
        """
        plan, heavy = await writes.planned(changes, self._engine.settings, self.id)
        content: Any = None
        if how.get("idempotency_key") is not None:
            content, _ = await writes.in_time(
                lambda meter: writes.content_of(changes, plan, self.bounds, meter), self.bounds["bytes_max"]
            )
        return await self._write(plan, content, how, heavy=heavy)

    def change(self, changes: Changes, **how: Unpack[BasedWriting]) -> Write:
        """Return a write that is not done yet, for `store.transact`. Takes what `apply` takes, but no key."""
        made_from = how.pop("base", None)
        options = {"on_conflict": self._engine.policy, **how}
        plan = writes.plan_of(changes, self._engine.settings, self.id)
        heavy = is_large(changes) or (not callable(plan) and are_large(plan))
        write, key = writes.write(self.stream, plan, options, heavy=heavy)
        write.made_from = made_from
        if key is not None:
            raise InvalidKey("a transaction takes no idempotency key; give `if_version` to its parts instead")
        return write

    async def save(
        self,
        state: Mapping[str, Any] | msgspec.Struct,
        *,
        base: Revision = None,
        overwrite: bool = False,
        **how: Unpack[Writing],
    ) -> Version:
        """Make the whole state what is given, storing only the difference. Its schema stays unless another is named.

        base: the version that it was made from, as `state_and_version` gives it with the state. What others changed since
        stays; where both sides changed one place, the write is refused with MergeConflict, unless `on_conflict` decides.
        overwrite: whatever others wrote, instead of a base. Raises Invalid with neither.
        Cost: one comparison with the base state, then the size of the difference.
        """
        if (base is None) is not overwrite:
            raise Invalid(
                f"{self.id}: a whole state is saved onto the version that it was made from, or over everything: give "
                "base=version (`state_and_version()` returns both), or overwrite=True"
            )
        head = (await self._live()).state
        plain, bounds = writes.plain(state), writes.limits_of_wholes(self._engine.settings)
        heavy = is_large(plain, head)
        # what Quire keeps in a state has no place in a type, and is easily left out of a dict made anew
        ours = (KEY, RUN) if isinstance(state, msgspec.Struct) else (KEY,)

        def plan(before: dict[str, Any]) -> Sequence[Step]:
            with writes.unaltered():
                changes = diff(before, {**{k: before[k] for k in ours if k in before}, **plain}, **bounds)
            if overwrite:
                return changes
            # a text that both sides edited is one place that both changed
            return [step for c in changes for step in ([Read(c.path), c] if isinstance(c, Splice) else [c])]

        content = plain
        if how.get("idempotency_key") is not None:
            content, _ = await writes.cleaned(dict(plain), bounds)
        return await self._write(plan, ["save", content], {**how, "base": base}, heavy=heavy)

    async def rebase(self, changes: Sequence[Step], base: Base, **how: Unpack[Writing]) -> Version | None:
        """Apply changes that were made on `base`, adjusted to what others changed since; only those with guards are stale.

        None where they alter nothing on it.
        """
        content: list[Any] = list(pure(changes))
        if how.get("idempotency_key") is not None and (gone := taken(changes, base.state)):
            content = [content, gone]  # the same changes take something else from another state
        return await self._made(changes, content, how, on=base, heavy=are_large(changes))

    async def restore(self, version: Revision, **how: Unpack[Writing]) -> Version:
        """Make the state what it was, as a new version; history is never rewound.

        Its record says which version it brought back, so idempotency keys used since then are free, and those used until
        then are spent again: see `Writing`.
        """
        number = await self._number(version)
        old = await self._engine.state_at(self.stream, number)
        how = {"message": f"restored version {number}", "kind": "restore", "allow_empty": True, **how}
        heavy = is_large(old)
        return await self._write(
            lambda state: diff(state, old), ["restore", number], how, newest=True, restored=number, heavy=heavy
        )

    async def revert(self, version: Revision, **how: Unpack[Writing]) -> Version:
        """Undo what one version did, as a new version; what came after it stays.

        Where later versions changed the same places it raises MergeConflict, unless `on_conflict` says what to do.
        Raises Invalid for a version that began or ended the workflow.
        """
        found = await self.version(version)
        number = found.number
        if number == 1 or found.kind == DELETED:
            raise Invalid(f"{self.id}@{number} began or ended the workflow; use `delete`, or restore another version")
        before = await self._engine.state_at(self.stream, number - 1)
        after = await self._engine.state_at(self.stream, number)
        changes = invert(before, [c for c in found.changes if not isinstance(c, Fork)])
        options: Writing = {"message": f"reverted version {number}", "kind": "revert", "on_conflict": "reject", **how}
        base = Base(number, after)
        head = await self.snapshot()
        places = [(get(after, c.path, ABSENT), get(head.state, c.path, ABSENT)) for c in changes]
        if all(a is b or same(a, b) for a, b in places):
            base = head  # whatever was done to these places since was undone again
        try:
            return await self._write(changes, ["revert", number], options, on=base)
        except MergeConflict as error:
            raise MergeConflict(
                f"{self.id}@{number} cannot be undone by itself: later versions changed the same places; nothing was "
                "written: undo those first, or choose another `on_conflict`",
                conflicts=error.conflicts,
                changes=error.changes,
                base=error.base,
                workflow_id=self.id,
            ) from error

    async def fork(
        self, new_id: str, *, at: Revision = None, author: str = "system", message: str | None = None
    ) -> Workflow:
        """Start a new workflow whose history begins at a version of this one, without copying anything.

        An idempotency key that is spent at that version is spent in the fork too, and answered with the version it made here.
        Raises AlreadyExists for an id that is or was in use. Cost: one record, whatever the size of the state.
        """
        fork = Workflow(self._engine, new_id)
        number = await self._number(at)
        origin = await self._engine.record(self.stream, number)
        start, size = await self._engine.start_at(self.stream, number)
        how = {"author": author, "message": f"forked from {self.id}@{number}" if message is None else message}
        plan = [Fork(self.id, number, origin.chain.hex())]
        write, _ = writes.write(fork.stream, plan, how, kind="fork", exists=False, start=start, allow_empty=True)
        write.if_version, write.start_bytes, write.not_before_ms = 0, size, origin.time + 1
        try:
            await self._engine.write(write)
        except (AlreadyExists, HeadMoved):
            raise AlreadyExists(f"{new_id} exists, or existed: a fork needs an id that was never used") from None
        return fork

    async def merge(
        self,
        other: Workflow | str,
        *,
        at: Revision = None,
        on_conflict: Policy | None = None,
        author: str = "system",
        message: str = "",
        if_version: int | None = None,
        dry_run: bool = False,
    ) -> MergeResult:
        """Take in what another workflow did since the two parted, as one version; the other stays as it is.

        other, at: what is merged, up to a version of it (None: its head).  on_conflict: what becomes of what both
        changed: "last" lets the later change stand, "ours" what is here, "theirs" what is there, "both" keeps the two
        beside each other, "queue" keeps ours until somebody decides, "reject" raises; or a function of the conflict.
        dry_run: only say what would be done. Merging again takes in only what came since.
        Raises Invalid where the two have no common history, MergeConflict, HeadMoved, LimitExceeded.
        Cost: the changes of both sides since they parted, and twice the state; of changes of one list or object each of
        ours meets each of theirs (`merge_steps_max`). It is done in a thread.
        """
        await self._live()
        source = Workflow(self._engine, other.id if isinstance(other, Workflow) else other)
        how = {"author": author, "message": message, "if_version": if_version}
        policy = on_conflict or self._engine.policy or "last"
        write, _ = writes.write(self.stream, [], {**how, "on_conflict": policy}, kind="merge")
        return await merge(self._engine, write, Point(source.id, (await source.version(at)).number), dry_run=dry_run)

    async def redact(
        self,
        path: Pointer | None = None,
        *,
        text: str | None = None,
        keep_current: bool = False,
        author: str = "system",
        message: str = "",
    ) -> Redaction:
        """Take something out of every version there is, and out of the file: of this workflow, its forks, and all that
        is kept beside them. It cannot be undone; the chain stays whole, and `verify` knows what was taken out.

        path: of an object's key; whatever was at or below it becomes "[REDACTED]".  text: or a text, wherever it is in
        a string.  keep_current: only what the path held before it was last replaced whole.
        So is what went to the archive. Backups and copies elsewhere are not reached; nor are messages: `said` names versions
        that have the text.
        Raises Invalid for a path through a list, a text in a key, or what came from the workflow this was forked from;
        InvalidState where the schema does not allow the mark: set another value first, and keep the current one.
        Cost: reads every version of these workflows; with SQLite the file is written anew.
        """
        if (path is None) == (text is None) or (keep_current and path is None):
            raise Invalid("redact either a path or a text; keep_current goes with a path")
        what = "a text" if path is None else "/".join(("", *map(str, parse(path))))
        write, _ = writes.write(self.stream, [], {"author": author, "message": message or f"redacted {what}"})
        actor = await self._past()
        if path is None:
            return await redact(self._engine, self.id, ByText(cast("str", text)), write, what=what)
        rule = ByPath(tokens_of(actor.state, path))
        if keep_current:
            return (await forget(self._engine, self.id, rule, write, what=what))[0]
        return await redact(self._engine, self.id, rule, write, what=what)

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
        self._existing(await self._engine.current(self.stream))  # of one that was deleted only the past is there
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

    # conflicts

    async def conflicts(self, *, status: str | None = None) -> list[Conflict]:
        """Return what writes met and could not both keep, oldest first; status: only "pending" or "resolved" ones."""
        return [c for c in await self._conflicts.all() if status in (None, c.status)]

    async def resolve(
        self,
        conflict_id: str,
        choice: Choice = "ours",
        value: Any = ABSENT,
        *,
        author: str = "system",
        message: str = "",
        overwrite: bool = False,
    ) -> Version:
        """Decide a conflict: "ours" or "theirs" stands, or with "value" what is given. Returns the version, or the head.

        It is a write like any other and can be undone. It makes no new conflict, but where a step that waited as a whole
        is let in: then one for each other place at which it overrules what others wrote before.
        overwrite: also where others wrote since the two met.
        Raises ConflictNotFound, Invalid for another choice, ChangeError where the place is gone, MergeConflict where it is
        not as the conflict left it.
        """
        if choice not in ("ours", "theirs", "value"):
            raise Invalid(f"choice {choice!r}: ours, theirs or value")
        if choice == "value" and value is ABSENT:
            raise Invalid(f"{self.id}: resolve(..., 'value', VALUE) needs the value that is to stand")
        tokens = writes.place((await self._conflicts.get(conflict_id)).path, self.bounds)
        new = None if value is ABSENT else clean(value, path=tokens, **self.bounds)
        made = await self._conflicts.resolve(
            conflict_id, choice, new, writes.name(author, "author"), writes.text(message), overwrite=overwrite
        )
        return made if made is not None else await self.version()

    # inside

    async def _write(
        self, plan: Sequence[Step | Fork] | Plan, content: Any, how: Mapping[str, Any], **inside: Unpack[_Inside]
    ) -> Version:
        """Write, and return the version, or the head where nothing changed."""
        made = await self._made(plan, content, how, **inside)
        return made if made is not None else await self.version()

    async def _made(
        self, plan: Sequence[Step | Fork] | Plan, content: Any, how: Mapping[str, Any], **inside: Unpack[_Inside]
    ) -> Version | None:
        """Write, and return the version, None where nothing changed.

        With the option `base`, all that the plan replaces was read there.
        """
        options = {"on_conflict": self._engine.policy, **how}
        on = inside.get("on")
        made_from = None if inside.get("newest") or on is not None else options.pop("base", None)
        write, key = writes.write(
            self.stream, plan, options, base=on, restored=inside.get("restored"), heavy=inside.get("heavy", False)
        )
        if made_from is not None:
            write.made_from = made_from
            await self.read_base(write)
        if key is None:
            return await self._engine.write(write)
        return await write_once(self._engine, write, key, msgspec.json.encode(content))

    async def read_base(self, write: Write) -> None:
        """Read the version that a write was made from, and guard what it replaces there. For the inside."""
        write.base = await self.snapshot(write.made_from)
        steps = await beside(write.heavy, _guarded, write.plan, write.base.state)
        write.plan, write.made_from, write.heavy = steps, None, write.heavy or are_large(steps)


def _guarded(plan: Sequence[Step | Fork] | Plan, state: dict[str, Any]) -> list[Step]:
    """Return the steps of a plan on its base, with guards for what it replaces there."""
    steps = [step for step in (plan(state) if callable(plan) else plan) if not isinstance(step, Fork)]
    if any(isinstance(step, Remove) and step.count > _ITEMS_UNCHECKED for step in steps):
        apply(state, steps)  # each item has a guard: so they have to be there
    return reliant(steps)
