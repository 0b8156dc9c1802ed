"""Quire for code without an event loop: `quire.sync.open`, the same words without `await`.

Every method runs its async twin on one background loop per store; safe from any thread. Signatures and docstrings are
held equal to the async ones by tests/test_parity.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

import msgspec

from quire import forks
from quire.api import store as _store
from quire.api import workflow as _workflow
from quire.api.backups import Backup
from quire.api.conflicts import Choice
from quire.api.draft import DictDraft
from quire.api.health import Health, HealthLimits
from quire.api.hooks import Hook, Proposed
from quire.api.merging import MergeResult
from quire.api.migrating import Migrated
from quire.api.reactions import Changed, Listener
from quire.api.reading import Pointer
from quire.api.revisions import Revision
from quire.api.store import Stats
from quire.api.trigger_desk import TriggerState
from quire.api.triggers import Trigger
from quire.api.views import BlameLine, Diff, Event, Order
from quire.api.workflow import Draft, Isolation
from quire.api.writes import BasedWriting, Changes, Writing
from quire.config import Backups, Compression, Retention, Settings
from quire.core.resolve import ABSENT, Policy
from quire.core.schema import Schema
from quire.engine.backing.mending import Mended
from quire.engine.clock import Clock
from quire.engine.lineage import Node
from quire.engine.moving.copying import Copied, Step
from quire.engine.redaction import Redaction
from quire.engine.sweep import Holdings, Swept
from quire.engine.verify import Report
from quire.engine.write import Write
from quire.errors import Closed, Invalid
from quire.model import Checkpoint, Conflict, Gain, Version
from quire.storage.base import Capabilities, Durability

T = TypeVar("T")

log = logging.getLogger("quire.sync")


class _Loop:
    """One event loop in one daemon thread. Whoever waits for it when it stops, or comes later, gets Closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._stopping = False
        self._pid = os.getpid()
        self._door = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._serve, name="quire-sync", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """Run the loop until `stop`. A task of the user's that raises SystemExit would end it, and leave callers waiting."""
        while not self._ended:
            try:
                self._loop.run_forever()
            except BaseException:
                log.exception("a task on the loop of a quire.sync store raised what ends loops; it goes on")

    def _end(self) -> None:
        self._ended = True
        self._loop.stop()

    def call(self, work: Callable[[], T]) -> T:
        async def called() -> T:
            return work()

        return self.run(called())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if os.getpid() != self._pid:
            work.close()
            forks.check(self._pid)
        if threading.current_thread() is self._thread:
            work.close()
            raise Invalid(
                "the store was asked to wait for itself: a hook before changes, a predicate or a merge policy must only "
                "compute; what a hook needs to read is in what it is given"
            )
        with self._door:
            if self._stopping:
                work.close()
                raise Closed("the store is closed; open it again")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException as error:
            future.cancel()  # an interrupted caller leaves nothing running; no effect on what is done
            if self._stopping and isinstance(error, CancelledError):
                raise Closed("the store was closed meanwhile; open it again") from None
            raise

    def iterate(self, begin: Callable[[], AsyncGenerator[T]]) -> Iterator[T]:
        """Make a generator on the loop, now, and return an iterator over it: what is fixed at its call is fixed here."""
        return self._iterated(self.call(begin))

    def _iterated(self, events: AsyncGenerator[T]) -> Iterator[T]:
        try:
            while True:
                try:
                    yield self.run(anext(events))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
        finally:
            with suppress(Closed):
                self.run(events.aclose())  # type: ignore[arg-type]

    def stop(self) -> None:
        if os.getpid() != self._pid:
            return
        with self._door:
            if self._stopping:
                return
            self._stopping = True
            ended = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        ended.result()
        self._loop.call_soon_threadsafe(self._end)
        self._thread.join()
        self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def open(  # noqa: A001 - reads as quire.sync.open(...)
    url: str,
    *,
    namespace: str = "default",
    settings: Settings | None = None,
    clock: Clock | None = None,
    ids: Callable[[], str] | None = None,
    on_conflict: Policy | None = None,
    schemas: Sequence[Schema] = (),
    encryption_key: bytes | None = None,
    compression: Compression | str | None = None,
    archive: str | None = None,
    retention: Retention | None = None,
    backup: Backups | None = None,
) -> Store:
    loop = _Loop()
    try:
        opening = _store.open(
            url,
            namespace=namespace,
            settings=settings,
            clock=clock,
            ids=ids,
            on_conflict=on_conflict,
            schemas=schemas,
            encryption_key=encryption_key,
            compression=compression,
            archive=archive,
            retention=retention,
            backup=backup,
        )

        async def opened() -> _store.Store:
            return await opening

        return Store(loop, loop.run(opened()))
    except BaseException:
        loop.stop()
        raise


class Store:
    """An open store, for threads."""

    def __init__(self, loop: _Loop, store: _store.Store) -> None:
        self._loop = loop
        self._store = store
        self.namespace = store.namespace
        self.keeper = store.keeper
        # what is called after changes may use this store, and wait for it
        store.reactions.threads = store.engine.threads

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def capabilities(self) -> Capabilities:
        return self._store.capabilities

    def create(
        self,
        workflow_id: str,
        state: Mapping[str, Any] | msgspec.Struct,
        *,
        schema: str | None = None,
        author: str = "system",
        message: str = "created",
    ) -> Workflow:
        self._loop.run(self._store.create(workflow_id, state, schema=schema, author=author, message=message))
        return self.workflow(workflow_id)

    def import_workflow(
        self, lines: Iterable[Mapping[str, Any]], *, workflow_id: str | None = None, what: str = "the export"
    ) -> Version:
        return self._loop.run(self._store.import_workflow(lines, workflow_id=workflow_id, what=what))

    def workflow(self, workflow_id: str) -> Workflow:
        return Workflow(self._loop, self._store.workflow(workflow_id))

    def workflows(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        return self._loop.run(self._store.workflows(prefix, after=after, limit=limit))

    def delete(self, workflow_id: str, *, author: str = "system", message: str = "deleted") -> Version:
        return self._loop.run(self._store.delete(workflow_id, author=author, message=message))

    def transact(self, changes: Sequence[Write]) -> list[Version | None]:
        return self._loop.run(self._store.transact(changes))

    def watch(
        self,
        *,
        after: int | None = None,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        cursor: str | None = None,
    ) -> Iterator[Event]:
        begin = partial(self._store.watch, after=after, path=path, types=types, author=author, cursor=cursor)
        return self._loop.iterate(begin)

    def drop_cursor(self, name: str) -> None:
        self._loop.run(self._store.drop_cursor(name))

    def before_change(
        self,
        fn: Callable[[Proposed], Changes | None] | None = None,
        *,
        path: Pointer | None = None,
        workflow: str | None = None,
        guard: bool = False,
    ) -> Hook:
        return self._store.before_change(fn, path=path, workflow=workflow, guard=guard)

    def on_change(
        self,
        fn: Callable[[Changed], Any] | None = None,
        *,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        workflow: str | None = None,
    ) -> Listener:
        listen = partial(self._store.on_change, fn, path=path, types=types, author=author, workflow=workflow)
        return self._loop.call(listen)

    def trigger(
        self,
        name: str,
        fn: Callable[[Changed], Any],
        *,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        workflow: str | None = None,
        when: Callable[[Changed], bool] | None = None,
        own: bool = False,
        after: int | None = None,
        attempts: int = 8,
        lease_s: float = 15.0,
    ) -> Trigger:
        made = self._store.trigger(
            name,
            fn,
            path=path,
            types=types,
            author=author,
            workflow=workflow,
            when=when,
            own=own,
            after=after,
            attempts=attempts,
            lease_s=lease_s,
        )
        return self._loop.run(made)

    def triggers(self) -> list[TriggerState]:
        return self._loop.run(self._store.triggers())

    def resume_trigger(self, name: str, *, skip: bool = False) -> None:
        self._loop.run(self._store.resume_trigger(name, skip=skip))

    def drop_trigger(self, name: str) -> None:
        self._loop.run(self._store.drop_trigger(name))

    def put_blob(self, data: bytes) -> str:
        return self._loop.run(self._store.put_blob(data))

    def blob(self, name: str) -> bytes | None:
        return self._loop.run(self._store.blob(name))

    def verify(self, workflow_id: str | None = None) -> Report:
        return self._loop.run(self._store.verify(workflow_id))

    def repair(self, place: str | None = None) -> Mended:
        return self._loop.run(self._store.repair(place))

    def migrate(self, prefix: str = "", *, plan: bool = False) -> list[Migrated]:
        return self._loop.run(self._store.migrate(prefix, plan=plan))

    def sweep(self, *, plan: bool = False, retention: Retention | None = None) -> Swept:
        return self._loop.run(self._store.sweep(plan=plan, retention=retention))

    def archived(self, *, check: bool = False) -> Holdings:
        return self._loop.run(self._store.archived(check=check))

    def export_table(self, path: str, *, workflow_id: str | None = None, replace: bool = False) -> int:
        return self._loop.run(self._store.export_table(path, workflow_id=workflow_id, replace=replace))

    def train(self, kind: str = "workflows") -> Gain:
        return self._loop.run(self._store.train(kind))

    def backup(
        self, dest: str, *, full: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Backup | None:
        return self._loop.run(self._store.backup(dest, full=full, progress=progress))

    def copy_to(
        self,
        url: str,
        *,
        namespace: str | None = None,
        encryption_key: bytes | None = None,
        compression: Compression | str | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> Copied:
        copied = self._store.copy_to(
            url, namespace=namespace, encryption_key=encryption_key, compression=compression, progress=progress
        )
        return self._loop.run(copied)

    def stats(self) -> Stats:
        return self._loop.run(self._store.stats())

    def health(
        self,
        *,
        deadline_s: float = 5.0,
        write: bool = True,
        expect_durability: Durability | None = None,
        limits: HealthLimits | None = None,
    ) -> Health:
        how: Any = {"deadline_s": deadline_s, "write": write, "expect_durability": expect_durability, "limits": limits}
        return self._loop.run(self._store.health(**how))

    def watch_health(
        self,
        *,
        every_s: float = 10.0,
        deadline_s: float = 5.0,
        write: bool = True,
        expect_durability: Durability | None = None,
        limits: HealthLimits | None = None,
    ) -> Iterator[Health]:
        how: Any = {"deadline_s": deadline_s, "write": write, "expect_durability": expect_durability, "limits": limits}
        return self._loop.iterate(partial(self._store.watch_health, every_s=every_s, **how))

    def close(self) -> None:
        try:
            self._loop.run(self._store.close())
        except Closed:
            return
        self._loop.stop()


class Edit:
    """`with wf.edit() as state:` what is done to `state` becomes one version when the block ends."""

    def __init__(self, loop: _Loop, edit: _workflow.Edit) -> None:
        self._loop = loop
        self._edit = edit

    @property
    def version(self) -> Version | None:
        """What was written, None if nothing changed."""
        return self._edit.version

    def __enter__(self) -> DictDraft:
        return self._loop.run(self._edit.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.run(self._edit.__aexit__(kind, error, trace))


class Workflow:
    """A handle on one workflow, for threads."""

    def __init__(self, loop: _Loop, workflow: _workflow.Workflow) -> None:
        self._loop = loop
        self._workflow = workflow
        self.id = workflow.id

    def __repr__(self) -> str:
        return repr(self._workflow)

    def edit(self, *, isolation: Isolation = "default", **how: Unpack[BasedWriting]) -> Edit:
        return Edit(self._loop, self._workflow.edit(isolation=isolation, **how))

    def update(self, fn: Draft, **how: Unpack[Writing]) -> Version:
        return self._loop.run(self._workflow.update(fn, **how))

    def set(self, path: Pointer, value: Any, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.set(path, value, **how))

    def delete(self, path: Pointer, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.delete(path, **how))

    def append(self, path: Pointer, *values: Any, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.append(path, *values, **how))

    def insert(self, path: Pointer, index: int, *values: Any, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.insert(path, index, *values, **how))

    def remove(self, path: Pointer, index: int, count: int = 1, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.remove(path, index, count, **how))

    def splice(
        self, path: Pointer, position: int, delete: int = 0, insert: str = "", **how: Unpack[BasedWriting]
    ) -> Version:
        return self._loop.run(self._workflow.splice(path, position, delete, insert, **how))

    def inc(
        self,
        path: Pointer,
        amount: int | float = 1,
        *,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
        **how: Unpack[BasedWriting],
    ) -> Version:
        return self._loop.run(self._workflow.inc(path, amount, minimum=minimum, maximum=maximum, **how))

    def apply(self, changes: Changes, **how: Unpack[BasedWriting]) -> Version:
        return self._loop.run(self._workflow.apply(changes, **how))

    def change(self, changes: Changes, **how: Unpack[BasedWriting]) -> Write:
        return self._workflow.change(changes, **how)

    def save(
        self,
        state: Mapping[str, Any] | msgspec.Struct,
        *,
        base: Revision = None,
        overwrite: bool = False,
        **how: Unpack[Writing],
    ) -> Version:
        return self._loop.run(self._workflow.save(state, base=base, overwrite=overwrite, **how))

    def restore(self, version: Revision, **how: Unpack[Writing]) -> Version:
        return self._loop.run(self._workflow.restore(version, **how))

    def revert(self, version: Revision, **how: Unpack[Writing]) -> Version:
        return self._loop.run(self._workflow.revert(version, **how))

    def fork(self, new_id: str, *, at: Revision = None, author: str = "system", message: str | None = None) -> Workflow:
        return Workflow(self._loop, self._loop.run(self._workflow.fork(new_id, at=at, author=author, message=message)))

    def merge(
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
        merging = self._workflow.merge(
            other if isinstance(other, str) else other.id,
            at=at,
            on_conflict=on_conflict,
            author=author,
            message=message,
            if_version=if_version,
            dry_run=dry_run,
        )
        return self._loop.run(merging)

    def exists(self) -> bool:
        return self._loop.run(self._workflow.exists())

    def version(self, version: Revision = None) -> Version:
        return self._loop.run(self._workflow.version(version))

    @overload
    def state(self, version: Revision = None) -> dict[str, Any]: ...

    @overload
    def state(self, version: Revision = None, *, type: type[T]) -> T: ...

    def state(self, version: Revision = None, *, type: Any = None) -> Any:  # noqa: A002 - as in the twin
        return self._loop.run(self._workflow.state(version, type=type))

    def state_and_version(self, version: Revision = None) -> tuple[dict[str, Any], int]:
        return self._loop.run(self._workflow.state_and_version(version))

    def get(self, path: Pointer, default: Any = None, *, version: Revision = None) -> Any:
        return self._loop.run(self._workflow.get(path, default, version=version))

    def history(
        self,
        limit: int | None = None,
        *,
        before: Revision = None,
        author: str | None = None,
        path: Pointer | None = None,
        kind: str | None = None,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        order: Order = "newest",
    ) -> list[Version]:
        found = self._workflow.history(
            limit, before=before, author=author, path=path, kind=kind, since=since, until=until, order=order
        )
        return self._loop.run(found)

    def diff(self, old: Revision = None, new: Revision = None, *, of: Workflow | str | None = None) -> Diff:
        return self._loop.run(self._workflow.diff(old, new, of=of._workflow if isinstance(of, Workflow) else of))

    def replay(
        self,
        callback: Callable[[Version, dict[str, Any]], Any],
        *,
        first: Revision = 1,
        last: Revision = None,
    ) -> int:
        return self._loop.run(self._workflow.replay(self._threaded(callback), first=first, last=last))

    def bisect(
        self, predicate: Callable[[dict[str, Any]], Any], *, good: Revision = 1, bad: Revision = None
    ) -> Version:
        return self._loop.run(self._workflow.bisect(self._threaded(predicate), good=good, bad=bad))

    def _threaded(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Have a function called in a thread: it may use this store, and wait for it."""
        return partial(self._workflow.threads.call, fn)

    def blame(self, path: Pointer = "", *, version: Revision = None) -> list[BlameLine]:
        return self._loop.run(self._workflow.blame(path, version=version))

    def graph(self, version: Revision = None) -> list[Node]:
        return self._loop.run(self._workflow.graph(version))

    def watch(
        self,
        *,
        after: Revision = None,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        cursor: str | None = None,
    ) -> Iterator[Event]:
        begin = partial(self._workflow.watch, after=after, path=path, types=types, author=author, cursor=cursor)
        return self._loop.iterate(begin)

    def drop_cursor(self, name: str) -> None:
        self._loop.run(self._workflow.drop_cursor(name))

    def redact(
        self,
        path: Pointer | None = None,
        *,
        text: str | None = None,
        keep_current: bool = False,
        author: str = "system",
        message: str = "",
    ) -> Redaction:
        return self._loop.run(
            self._workflow.redact(path, text=text, keep_current=keep_current, author=author, message=message)
        )

    def checkpoint(
        self,
        name: str,
        *,
        tags: Sequence[str] = (),
        kind: str = "manual",
        description: str = "",
        author: str = "system",
        version: Revision = None,
    ) -> Checkpoint:
        made = self._workflow.checkpoint(
            name, tags=tags, kind=kind, description=description, author=author, version=version
        )
        return self._loop.run(made)

    def checkpoints(self, *, tag: str | None = None, kind: str | None = None) -> list[Checkpoint]:
        return self._loop.run(self._workflow.checkpoints(tag=tag, kind=kind))

    def drop_checkpoint(self, name: str, *, author: str = "system") -> None:
        return self._loop.run(self._workflow.drop_checkpoint(name, author=author))

    def kept_state(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return self._loop.run(self._workflow.kept_state(checkpoint))

    def conflicts(self, *, status: str | None = None) -> list[Conflict]:
        return self._loop.run(self._workflow.conflicts(status=status))

    def resolve(
        self,
        conflict_id: str,
        choice: Choice = "ours",
        value: Any = ABSENT,
        *,
        author: str = "system",
        message: str = "",
        overwrite: bool = False,
    ) -> Version:
        how: Any = {"author": author, "message": message, "overwrite": overwrite}
        return self._loop.run(self._workflow.resolve(conflict_id, choice, value, **how))


def _document() -> None:
    """Give each method its async twin's docstring: written once, the same in both."""
    for ours, theirs in ((Store, _store.Store), (Workflow, _workflow.Workflow)):
        for name, method in vars(ours).items():
            twin = getattr(theirs, name, None)
            if not name.startswith("_") and twin is not None and callable(method):
                method.__doc__ = twin.__doc__
    open.__doc__ = _store.open.__doc__


_document()
