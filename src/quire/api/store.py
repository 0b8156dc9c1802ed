"""A store: an open handle on a URL and a namespace, and the way to everything else."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import Any

import msgspec
from blake3 import blake3

from quire.api import backups, measuring, moving, tables, trigger_desk, triggers, views, writes
from quire.api.backups import Backup
from quire.api.health import Health, HealthLimits
from quire.api.hooks import BeforeHooks, Hook, Proposed
from quire.api.imports import import_workflow
from quire.api.judging import Upkeep
from quire.api.keeping import Keeper
from quire.api.migrating import Migrated, migrated
from quire.api.reactions import Changed, Lens, Listener, Reactions
from quire.api.reading import Pointer
from quire.api.trigger_desk import TriggerState
from quire.api.triggers import Trigger
from quire.api.views import Event
from quire.api.workflow import Workflow
from quire.api.writes import Changes
from quire.calls import end
from quire.config import Backups, Compression, Retention, Settings
from quire.core.names import check_id
from quire.core.resolve import Policy, check_policy
from quire.core.schema import KEY, Schema, Schemas
from quire.engine.actor import DELETED
from quire.engine.backing.mending import Mended
from quire.engine.clock import Clock, SystemClock, system_ids
from quire.engine.engine import Engine
from quire.engine.moving.copying import Copied, Step
from quire.engine.moving.paging import names
from quire.engine.sweep import Holdings, Sweeper, Swept, holdings
from quire.engine.verify import Report, verify
from quire.engine.write import Write
from quire.errors import CorruptRecord, Invalid
from quire.model import WORKFLOWS, Gain, Version
from quire.storage.base import Capabilities, Durability
from quire.storage.open import archive_of, open_backend, train

_PAGE = 1000


class Stats(msgspec.Struct, frozen=True):
    """What a store holds and how it is doing."""

    backend: str
    durability: str
    note: str
    workflows: int
    versions: int
    keyframes: int
    blobs: int
    cells: int
    size_bytes: int
    position: int
    resident_workflows: int
    resident_bytes: int
    commits: int


class Opening:
    """What `quire.open` returns: `async with` it, or `await` it and close the store yourself."""

    def __init__(
        self,
        url: str,
        namespace: str,
        encryption_key: bytes | None,
        compression: Compression | str | None,
        archive: str | None,
        retention: Retention | None,
        backup: Backups | None,
        settings: Settings,
        clock: Clock,
        ids: Callable[[], str],
        policy: Policy | None,
        schemas: Schemas,
    ) -> None:
        self._backend = partial(
            open_backend,
            url,
            namespace=namespace,
            encryption_key=encryption_key,
            compression=compression,
            archive=archive,
            keeps=retention is not None,
        )
        self._retention = retention
        self._backup = backup
        self._arguments = (settings, clock, ids, policy, schemas)
        self._namespace = namespace
        self._store: Store | None = None

    def __await__(self) -> Generator[Any, None, Store]:
        return self._open().__await__()

    async def __aenter__(self) -> Store:
        """Open."""
        self._store = await self._open()
        return self._store

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish what is queued and close."""
        assert self._store is not None
        await self._store.close()

    async def _open(self) -> Store:
        settings, clock, ids, policy, schemas = self._arguments
        backend = await self._backend()
        try:
            seen = await backend.latest()
        except BaseException:
            await backend.close()
            raise
        return Store(
            Engine(backend, settings, clock, ids, seen, policy, schemas, archive_of(backend)),
            self._namespace,
            self._retention,
            self._backup,
        )


def open(  # noqa: A001 - reads as quire.open(...), like the built-in
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
) -> Opening:
    """Open the store at a URL: `sqlite:///state.db` (made if absent), a bare path for the same, or `memory:`.

    Others are `file:///folder`, `rocksdb:///folder`, `postgresql://user@host/db`, `redis://host/0`, `nats://host`; their
    options are in docs/backends.
    namespace: stores in one place that see nothing of each other.  settings: see quire.config.  clock, ids: where
    time and ids come from, for tests.  on_conflict: what becomes of writes that cannot both stand, unless a write says
    otherwise; None refuses those that are stale and lets the last of others stand: see `Writing`.  schemas: what states look like, how they merge, and how older ones are migrated.
    encryption_key: 32 random bytes; what a new namespace holds is encrypted with them (AES-256-GCM), and it is opened
    with the same from then on.  compression: zstd, gzip, lz4 or a `Compression`, for what is written from now on; None for
    what the namespace was begun with. In a URL: `?encryption_key_file=PATH`, `?encryption_key_env=NAME`, `?compression=zstd`.
    archive: where old versions go: a folder, `s3://bucket/prefix` and others of `open_objects`; from then on the namespace
    finds it by itself.  retention: which versions go there, now and then while the store is open; without an archive they
    are packed within the store.  backup: backups that are taken by themselves while the store is open.
    Raises InvalidKey for a URL, namespace or key that is not allowed, Invalid for no such compression, IncompatibleFormat
    for a file that is not a store or of a newer format, Denied for a wrong key, none where one is needed, or one for a
    namespace that holds plain data, StorageUnavailable, Unsupported where a driver is not installed.
    Cost: independent of what the store holds.

    >>> async with quire.open("sqlite:///state.db") as store:            # doctest: +SKIP
    ...     await store.create("research-42", {"topic": "tides"})
    """
    return Opening(
        url,
        namespace,
        encryption_key,
        compression,
        archive,
        retention,
        backup,
        settings or Settings(),
        clock or SystemClock(),
        ids or system_ids(),
        None if on_conflict is None else check_policy(on_conflict),
        Schemas(schemas),
    )


class Store:
    """An open store. Use it from the event loop it was opened on; `quire.sync` is the same for code without one."""

    def __init__(
        self, engine: Engine, namespace: str, retention: Retention | None = None, backup: Backups | None = None
    ) -> None:
        """backup: `keeper` takes them, and says how it goes."""
        self.engine = engine
        self.namespace = namespace
        self._sweeper = None if engine.archive is None else Sweeper(engine, engine.archive, retention or Retention())
        if self._sweeper is not None and retention is not None:
            self._sweeper.start()
        self.keeper = None if backup is None else Keeper(engine, namespace, backup)
        self.reactions = Reactions(engine)
        self._before = BeforeHooks(engine)
        self._looks = measuring.Looks()

    @property
    def capabilities(self) -> Capabilities:
        """What the backend promises."""
        return self.engine.backend.capabilities

    async def create(
        self,
        workflow_id: str,
        state: Mapping[str, Any] | msgspec.Struct,
        *,
        schema: str | None = None,
        author: str = "system",
        message: str = "created",
    ) -> Workflow:
        """Start a workflow with a state and return its handle.

        schema: the name of one given to `quire.open`; every state of this workflow then has to fit it.
        Raises AlreadyExists, InvalidKey for an id that is not allowed, InvalidState naming the path.
        """
        workflow = Workflow(self.engine, workflow_id)
        first = writes.plain(state)
        if schema is not None:
            first = {KEY: self.engine.schemas.named(schema).label, **first}
        await self.engine.write(await writes.creation(workflow.stream, first, author, message, self.engine.settings))
        return workflow

    async def import_workflow(
        self, lines: Iterable[Mapping[str, Any]], *, workflow_id: str | None = None, what: str = "the export"
    ) -> Version:
        """Make a workflow of what `quire export` wrote, all of it or nothing; return its newest version.

        lines: the export's lines as JSON objects, read beside the event loop.  workflow_id: another id than the one it was
        exported under.  what: how errors call it. Changes, authors, messages, kinds and checkpoints are the same, times are
        new. Hooks are not asked. A process that is killed meanwhile leaves no part of the workflow.
        Raises InvalidState naming the line for what is damaged, LimitExceeded, AlreadyExists for an id that is or was in use.
        Cost: the whole history in memory, once; one commit.
        """
        return await import_workflow(self.engine, lines, workflow_id=workflow_id, what=what)

    def workflow(self, workflow_id: str) -> Workflow:
        """Return a handle on a workflow, whether it exists or not. No I/O. Raises InvalidKey."""
        return Workflow(self.engine, workflow_id)

    async def workflows(self, prefix: str = "", *, after: str = "", limit: int | None = None) -> list[str]:
        """Return the ids of existing workflows that start with `prefix`, sorted, greater than `after`.

        limit: how many at most, None for all. Raises Invalid.
        """
        if limit is not None and (type(limit) is not int or limit < 0):
            raise Invalid(f"limit={limit!r} is not a number of workflows; leave it out for all of them")
        if not isinstance(prefix, str) or not isinstance(after, str):
            raise Invalid(f"prefix={prefix!r}, after={after!r}: text is needed")
        found: list[str] = []
        last = WORKFLOWS + after if after else ""
        page = _PAGE if limit is None else min(limit, _PAGE)
        while limit is None or len(found) < limit:
            names = await self.engine.backend.streams(WORKFLOWS + prefix, after=last, limit=page)
            heads = await self.engine.backend.heads(names)
            found += [h.stream.removeprefix(WORKFLOWS) for h in heads if h.version and h.kind != DELETED]
            if len(names) < page:
                break
            last, page = names[-1], min(4 * page, _PAGE)  # one that was deleted has a name still
        return found[:limit]

    async def delete(self, workflow_id: str, *, author: str = "system", message: str = "deleted") -> Version:
        """End a workflow: it counts as absent, its history stays and its numbers are never reused.

        `workflow(id).history()` and `state(version)` go on reading what was, `fork(new_id, at=version)` goes on from there.
        Raises WorkflowNotFound.
        """
        check_id(workflow_id, "workflow id")
        made = await self.engine.write(writes.ending(WORKFLOWS + workflow_id, author, message))
        assert made is not None
        return made

    async def transact(self, changes: Sequence[Write]) -> list[Version | None]:
        """Write to several workflows, all or nothing, durable together. Parts come from `workflow.change(...)`.

        Parts on one workflow are done in order, and meet each other like other writes: two that were made on one `base` and
        contradict each other are refused, unless they have an `on_conflict`. The `if_version` of each is the version before
        the transaction, or the one that the part before it makes.
        Returns a version for each part, None for one that changed nothing. Raises what any part raises, with nothing
        written.
        """
        if not changes or not all(isinstance(c, Write) for c in changes):
            raise Invalid("transact takes a list of `workflow.change(...)`")
        for part in (c for c in changes if c.made_from is not None):
            await self.workflow(part.stream.removeprefix(WORKFLOWS)).read_base(part)
        return await self.engine.write_all(list(changes))

    def watch(
        self,
        *,
        after: int | None = None,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        cursor: str | None = None,
    ) -> AsyncGenerator[Event]:
        """Yield every version of every workflow after a position (None: from now on; 0: all), for ever.

        Now is when `watch` is called: it shows all that comes after the position up to which this process knows the store
        at the call. Filters and cursor as in `Workflow.watch`; an event's `position` is where to go on from.
        Raises Invalid, InvalidKey for arguments at the call.
        """
        sieve = views.sieve(path, types, author)
        return views.watch_store(self.engine, self.engine.seen if after is None else after, sieve, cursor)

    async def drop_cursor(self, name: str) -> None:
        """Remove the place that `watch(cursor=name)` keeps, when nobody is to go on from there: `health` then forgets it.

        A watcher that still runs writes it anew; watching with the name later begins where `after` says.
        Raises NotFound, Conflict while a watcher keeps moving it.
        """
        await views.drop_cursor(self.engine, views.STORE, name)

    # hooks and triggers

    def before_change(
        self,
        fn: Callable[[Proposed], Changes | None] | None = None,
        *,
        path: Pointer | None = None,
        workflow: str | None = None,
        guard: bool = False,
    ) -> Hook:
        """Ask a plain function of every write in this process before it is applied; also as a decorator.

        It returns None to leave the write as it is, or the changes to make instead, in any form that `apply` takes; none
        at all, and nothing is changed. It raises `Denied` to refuse the write: nothing of it is stored. What else goes
        wrong in it is logged and counted, and the write goes on without it; with guard the write is refused with
        HookFailed. path, workflow: only writes that touch this path, of this workflow.
        It must not wait, as all writers wait for it, and may be asked again about a write that met another process's.
        Returns the hook: `remove()` ends it. Raises Invalid, InvalidKey, Closed.
        """
        self.engine.check_open("change what is written")
        return self._before.add(fn, path=path, workflow=workflow, guard=guard)

    def on_change(
        self,
        fn: Callable[[Changed], Any] | None = None,
        *,
        path: Pointer | None = None,
        types: Collection[str] | None = None,
        author: str | None = None,
        workflow: str | None = None,
    ) -> Listener:
        """Call a function, plain or async, after every version that is committed from now on; also as a decorator.

        Filters as in `watch`; with a path the event has the values there before and after. In order, one at a time, while
        the store is open; one that raises is called again with the same event after a growing pause.
        Returns the hook: `remove()` ends it. Raises Invalid, InvalidKey, Closed.
        """
        return self.reactions.listen(fn, path=path, types=types, author=author, workflow=workflow)

    async def trigger(
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
        """Call a function for every matching version at least once, in order, across restarts, in one process at a time.

        name: under which the store remembers how far it came.  when: a last filter, of the event.  own: also versions by
        the trigger's own author, which is who its writes are by unless they name another.  after: the position where a
        new trigger begins, None for now.  attempts: how often it is called with one event before it is parked there.
        lease_s: how long after the death of the process that runs it another one takes over, at most a third more.
        Returns it; `remove()` stops it in this process. Raises Invalid, InvalidKey, AlreadyExists if it runs here already.
        Cost: one durable commit for each event that the function was called with.
        """
        lens = Lens(self.engine, path, types, author, workflow)
        how: Any = {"when": when, "own": own, "after": after, "attempts": attempts, "lease_s": lease_s}
        return await triggers.start(self.engine, self.reactions, name, fn, lens, **how)

    async def triggers(self) -> list[TriggerState]:
        """Return how every trigger of the store stands, in whatever process it runs, by name."""
        return await trigger_desk.listed(self.engine)

    async def resume_trigger(self, name: str, *, skip: bool = False) -> None:
        """Let a parked trigger go on: with the event it stands at, or with skip after it. Raises NotFound."""
        await trigger_desk.Desk(self.engine, name).resume(skip=skip)

    async def drop_trigger(self, name: str) -> None:
        """Remove a trigger and what it remembers, for all processes; its history stays. Raises NotFound."""
        await trigger_desk.Desk(self.engine, name).drop()
        running = self.reactions.named.get(name)
        if running is not None:
            end(running)

    async def put_blob(self, data: bytes) -> str:
        """Keep bytes beside the log and return their name (blake3 in hex), to be put into a state. Raises LimitExceeded."""
        if not isinstance(data, bytes):
            raise Invalid(f"a blob is bytes, not {type(data).__name__}")
        await self.engine.take_blob(len(data))
        name = blake3(data).hexdigest()
        await self.engine.backend.put_blob(name, data)
        return name

    async def blob(self, name: str) -> bytes | None:
        """Return the bytes of a blob, or None. Raises CorruptRecord if they are not what was put."""
        if not isinstance(name, str):
            raise Invalid(f"the name of a blob is text, not {type(name).__name__}")
        data = await self.engine.backend.blob(name)
        if data is not None and blake3(data).hexdigest() != name:
            raise CorruptRecord(f"blob {name[:12]}: its bytes do not match its name; restore a backup", at=name)
        return data

    async def verify(self, workflow_id: str | None = None) -> Report:
        """Prove that logs, keyframes and blobs are whole, of one workflow or all. Cost: reads everything once."""
        prefix = "" if workflow_id is None else WORKFLOWS + check_id(workflow_id, "workflow id")
        return await verify(self.engine.backend, self.engine.residents, prefix=prefix)

    async def repair(self, place: str | None = None) -> Mended:
        """Mend what `verify` finds wrong, as far as it can be, and say what is left.

        Keyframes that are damaged are dropped, as they are made again. place: where backups of this store are; bodies of
        records, blobs, and keyframes that a log begins with are brought back from there, where they fit.
        A sound store stays as it is, and nothing is made worse. What is left needs `quire.recover`.
        Raises NotFound where the place has no backup of this store, InvalidKey, StorageError.
        Cost: reads and folds everything twice, and backups until all was found.
        """
        return await backups.mend(self.engine, self.namespace, place)

    async def migrate(self, prefix: str = "", *, plan: bool = False) -> list[Migrated]:
        """Migrate every workflow whose state is of an older version of a schema given to `quire.open`.

        prefix: only ids that start with it.  plan: write nothing, only say what would be done.
        One that fails is reported and does not stop the others. Cost: reads every workflow's state.
        """
        return [m async for m in migrated(self.engine, lambda: self.workflows(prefix), plan=plan)]

    async def sweep(self, *, plan: bool = False, retention: Retention | None = None) -> Swept:
        """Move to the archive what retention lets go, now instead of when it would be next.

        plan: move nothing, only say what would go.  retention: other rules than the store was opened with, for once.
        Raises Invalid where the store was opened without an archive.
        Cost: reads and writes what it moves; looks at each workflow that changed since, or may have grown old.
        """
        if self._sweeper is None:
            raise Invalid("this store has no archive: open it with archive= or retention=")
        return await self._sweeper.sweep(plan=plan, rules=retention)

    async def archived(self, *, check: bool = False) -> Holdings:
        """Return what went to the archive, by workflow, and where that is.

        check: read every segment there and say what is wrong with it. Raises Invalid where the store has no archive.
        Cost: reads a cell for each workflow that has something there; with check, everything that is there.
        """
        if self.engine.archive is None:
            raise Invalid("this store has no archive: open it with archive= or retention=")
        return await holdings(self.engine.archive, check=check)

    async def export_table(self, path: str, *, workflow_id: str | None = None, replace: bool = False) -> int:
        """Write every version, of one workflow or all, archived or not, to a Parquet file; return how many.

        A row has position, workflow, version, time, author, message, kind, changes (as JSON), redacted and chain (in hex).
        replace: a file that exists. Raises WorkflowNotFound, AlreadyExists, Unsupported without pyarrow, StorageError.
        Cost: reads everything once; about a hundred megabytes of memory at most, however large the store is.
        """
        if workflow_id is not None:
            await self.workflow(workflow_id).version()
        return await tables.export(self.engine, self._ids(workflow_id), path, replace=replace)

    async def _ids(self, workflow_id: str | None) -> AsyncGenerator[str]:
        if workflow_id is not None:
            yield workflow_id
            return
        async for page in names(self.engine.backend, WORKFLOWS):
            for name in page:
                yield name.removeprefix(WORKFLOWS)

    async def train(self, kind: str = "workflows") -> Gain:
        """Train a zstd dictionary on the newest changes of a kind of stream, and compress with it from now on.

        kind: what stands before the slash in the names of streams: workflows, events, checkpoints, ...
        Returns what it saves on changes that it did not learn from. Raises Unsupported for a namespace that is not
        compressed, Invalid for another algorithm, and where there are fewer than 50 changes.
        Cost: reads up to 4,000 of them; a second or so.
        """
        return await train(self.engine.backend, kind)

    async def backup(
        self, dest: str, *, full: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Backup | None:
        """Back up everything while writers go on: to a place that keeps many backups, or as one copy in a new file.

        dest: the URL of a place, `file:///folder`, `s3://bucket/prefix`, `gs://`, `az://`. The first backup there is full,
        the next ones add what changed since; full: a new one that needs none of those before it. `quire.recover` brings
        them back to any store. If nothing changed, the backup that has everything is returned, and none is made.
        A plain path: one consistent copy that opens as a store by itself, where the backend can make one; returns None.
        progress: called with the position reached and the one to reach; it must not wait.
        What is encrypted stays so. What was redacted since is in older backups still: `quire.prune_backups` removes them.
        Raises InvalidKey, Unsupported where the backend makes no copy, CorruptRecord for damage in what is to be kept,
        StorageError: call it again, and what was put is used.
        Cost: reads what it keeps once; memory for three segments of 8 MB and 200 bytes per stream.
        """
        if isinstance(dest, str) and backups.is_place(dest):
            return await backups.take(self.engine, self.namespace, dest, full=full, progress=progress)
        if full or progress is not None:
            raise Invalid(
                f"{dest!r} is a path, which gets one whole copy: full and progress are for a place, file:///{dest}"
            )
        await backups.copy_in_one(self.engine, dest)
        return None

    async def copy_to(
        self,
        url: str,
        *,
        namespace: str | None = None,
        encryption_key: bytes | None = None,
        compression: Compression | str | None = None,
        progress: Callable[[Step], None] | None = None,
    ) -> Copied:
        """Copy everything to the store at a URL, of whatever kind, and verify what arrived; writers may go on.

        It follows until it has caught up. Called again it brings what is new, goes on where an earlier call was killed,
        and takes over what was redacted or trimmed here; streams that were dropped stay there. To move, stop the
        writers, call it once more, and open the other URL.
        namespace: there; None for that of this store.  encryption_key, compression: as for `quire.open`.
        progress: called with a `Step` now and then; it must not wait.
        Versions, times, authors and checksums stay as they are; positions are the target's, and cursors are translated.
        Raises Conflict where the target holds another history, or is written to meanwhile, Invalid for this store itself,
        CorruptRecord for damage here or there, and what `quire.open` and the two stores raise.
        Cost: reads this store once and what it wrote once more.
        """
        there = self.namespace if namespace is None else namespace
        return await moving.copy_to(
            self.engine,
            url,
            namespace=there,
            encryption_key=encryption_key,
            compression=compression,
            progress=progress,
        )

    async def stats(self) -> Stats:
        """Return counts and sizes. Cost: counts rows."""
        backend, engine = self.engine.backend, self.engine
        found, promises = await backend.stats(), backend.capabilities
        return Stats(
            backend=promises.backend,
            durability=promises.durability,
            note=promises.note,
            workflows=(await backend.tally(WORKFLOWS, but=DELETED)).streams,
            versions=found.records,
            keyframes=found.keyframes,
            blobs=found.blobs,
            cells=found.cells,
            size_bytes=found.size_bytes,
            position=await backend.latest(),
            resident_workflows=len(engine.residents),
            resident_bytes=engine.residents.size_bytes,
            commits=engine.committer.commits,
        )

    async def health(
        self,
        *,
        deadline_s: float = 5.0,
        write: bool = True,
        expect_durability: Durability | None = None,
        limits: HealthLimits | None = None,
    ) -> Health:
        """Say how the store is doing: ok, degraded or unhealthy, with reasons and figures. Never later than the deadline.

        It reads, commits a cell of its own and removes it, asks the backend for disk, memory, replicas and settings, and
        looks how far watchers and triggers are. One that does not answer by then is unhealthy, and says so.
        write: False leaves the commit out; it makes no version, but costs what two durable writes cost.
        expect_durability: what acknowledged writes have to survive (none, process, power); None for a loss of power where a
        server's settings decide that, for what the URL says where it does.  limits: from where on a figure is not well.
        Raises Closed, Invalid for arguments that make no sense. Cost: some round trips, and two durable commits.
        """
        how: Any = {"deadline_s": deadline_s, "write": write, "expect_durability": expect_durability, "limits": limits}
        return await self._looks.through(measuring.health(self.engine, upkeep=self._upkeep, **how))

    async def watch_health(
        self,
        *,
        every_s: float = 10.0,
        deadline_s: float = 5.0,
        write: bool = True,
        expect_durability: Durability | None = None,
        limits: HealthLimits | None = None,
    ) -> AsyncGenerator[Health]:
        """Yield how the store is doing: now, and whenever a check changes its status, until the store is closed.

        every_s: the pause between two looks; the other arguments as for `health`. A failure is told `every_s` and the
        deadline after it began, at most; what only moves a figure is not told. Raises Closed, Invalid.
        """
        how: Any = {"deadline_s": deadline_s, "write": write, "expect_durability": expect_durability, "limits": limits}
        how["upkeep"] = self._upkeep
        async with aclosing(measuring.watch(self.engine, self._looks, every_s, **how)) as changes:
            async for change in changes:
                yield change

    def _upkeep(self) -> Upkeep:
        """Return what sweeper and keeper know, for health."""
        overdue = None if self._sweeper is None else self._sweeper.overdue
        keeper = self.keeper
        return Upkeep(overdue) if keeper is None else Upkeep(overdue, True, keeper.newest, keeper.last_error)

    async def close(self) -> None:
        """Finish queued writes and release everything. Idempotent. In the child of a fork it does nothing."""
        if os.getpid() != self.engine.pid:
            return
        await self._looks.end()
        await self.reactions.close()
        if self.keeper is not None:
            await self.keeper.close()
        if self._sweeper is not None:
            await self._sweeper.close()
        await self.engine.close()
