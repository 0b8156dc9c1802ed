"""StateManager: whole workflow states, versioned, with subscribers, snapshots and tasks. A thin face of the log.

It has nothing of its own to lose: versions are the workflow's, snapshots are checkpoints that keep their state,
subscriptions and conflicts are streams beside the workflow. So all of it is the same after a restart.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self, cast

import msgspec

from quire.api import conflicts, writes
from quire.api.managed import (
    StateChange,
    StateConflict,
    StateMetrics,
    StateSnapshot,
    StateVersion,
    is_open,
    ms_of,
    state_conflict,
    validate,
)
from quire.api.reading import private
from quire.api.store import Store
from quire.api.store import open as open_store
from quire.api.tasks import TaskResult, Tasks
from quire.api.whole_states import UPDATED_AT, WholeStates
from quire.api.workflow import Workflow
from quire.calls import call, call_async, end
from quire.core import record
from quire.core.changes import apply
from quire.core.diff import diff
from quire.core.path import format as pointer
from quire.core.path import get
from quire.core.updated_at import Tail, UpdatedAt, following
from quire.core.values import copied, is_large
from quire.engine.updated_at import of_version
from quire.engine.watch import Cursor, deliver, stream_records
from quire.engine.write import Write
from quire.errors import CorruptRecord, InvalidKey, InvalidState, NotFound, QuireError, VersionNotFound
from quire.model import (
    CHECKPOINTS,
    DELETED,
    SUBSCRIPTIONS,
    WORKFLOWS,
    Change,
    Checkpoint,
    Fork,
    Head,
    Record,
    Set,
    Version,
)
from quire.threads import beside

log = logging.getLogger("quire.manager")

_TYPES = {"tasks": "task-update", "agents": "agent-status", "metadata": "metadata-update"}

Handler = Callable[[dict[str, Any]], Awaitable[Any] | Any]


_LOOKS_MAX = 16
"""States that metrics read at once."""


class _Seen(NamedTuple):
    """A workflow's head, when metrics looked. size: bytes of its state as JSON."""

    version: int
    size: int
    active: bool


class StateManager:
    """Persist, read, watch, snapshot and restore whole workflow states.

    storage: an open Store, or the URL of one (opened by `async with`, or by `start`).  env: a mapping of settings:
    STATE_MANAGER_DEBUG ("true" logs every operation), "analytics" (called with each metric).
    """

    def __init__(self, storage: Store | str, env: Mapping[str, Any] | None = None) -> None:
        self._storage = storage
        self._env: dict[str, Any] = {"STATE_MANAGER_DEBUG": os.environ.get("STATE_MANAGER_DEBUG", ""), **(env or {})}
        self._store: Store | None = storage if isinstance(storage, Store) else None
        self._handlers: dict[str, Handler] = {}
        self._deliveries: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._closed = False
        self._starting = asyncio.Lock()
        """Held while a delivery is begun: of two for one agent, the second finds that of the first."""
        self._times: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        self._seen: dict[str, _Seen] = {}
        """What metrics tell of each workflow, as it was when they were last asked for."""
        self._tasks = Tasks(self)
        self._whole: WholeStates | None = None
        self.set_debug_mode(str(self._env["STATE_MANAGER_DEBUG"]).lower() == "true")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Open the store, if a URL was given, and go on delivering to subscribers known from before."""
        if self._store is None:
            self._store = await open_store(cast("str", self._storage))
        self._closed = False
        for agent_id in self._handlers:
            await self._deliver_to(agent_id)

    async def close(self) -> None:
        """Stop deliveries; close the store if it was opened here."""
        self._closed = True
        async with self._starting:  # one that is begun just now ends as well
            tasks = list(self._deliveries.values())
        self._deliveries.clear()
        for task in tasks:
            end(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._store is not None and not isinstance(self._storage, Store):
            await self._store.close()
            self._store = self._whole = None

    @property
    def store(self) -> Store:
        """The store underneath, for everything this face does not show."""
        if self._store is None:
            raise QuireError("the manager is not started: `async with StateManager(url)`, or `await manager.start()`")
        return self._store

    # versions

    async def persist_workflow_state(
        self,
        workflow_id: str,
        state: Mapping[str, Any],
        author: str = "system",
        change_description: str = "State update",
    ) -> StateVersion:
        """Store a whole state as a new version; only the difference is kept.

        `updatedAt` says which version the state was made from: `get_workflow_state` put it there. What others changed
        since stays. Where both changed one place, to the same value or not, the last write stands, and a conflict keeps
        both sides. In the dict that was given `updatedAt` is moved on to the new version, so that it can be changed and
        given again; over a wire go on with the state that is returned.
        A state without `updatedAt`, or with one that no version has, replaces everything; where its `updatedAt` is older
        than the newest version that is recorded as a conflict. Without a change there is a version, too.
        Raises InvalidState "State validation failed: ..." with nothing stored, and StorageError.
        Cost: one comparison of the state with its base, and reading the versions since that.
        """
        started = time.perf_counter()
        validate(state)
        workflow = self.store.workflow(workflow_id)
        whole, _ = await writes.cleaned(dict(state), writes.limits_of_wholes(self.store.engine.settings))
        how = {"author": author, "message": change_description, "allow_empty": True}
        states = self._states()
        made, since = await states.write(workflow.stream, whole, how)
        version = await self._version(workflow, made)
        await states.move_on(state, whole, made, since, version.state)
        self._measure("persist", started)
        return version

    async def get_workflow_state(self, workflow_id: str, version: str | int | None = None) -> dict[str, Any] | None:
        """Return the current state, or that of a version named by number or id; None where there is none.

        Its `updatedAt` names that version, whoever wrote it: milliseconds, with a fraction where several versions share
        one, and greater in every later version.
        """
        started = time.perf_counter()
        try:
            workflow = self.store.workflow(workflow_id)
            state, number = await workflow.state_and_version(version)
            return await self._states().shown(workflow.stream, state, number)
        except (NotFound, InvalidKey):
            return None
        finally:
            self._measure("get", started)

    async def get_workflow_history(self, workflow_id: str) -> list[StateVersion]:
        """Return every version with its state, newest first; none for an unknown workflow. Cost: O(history x state)."""
        workflow, engine = self.store.workflow(workflow_id), self.store.engine
        try:
            versions = await workflow.history(order="oldest")
        except NotFound:
            versions = []
        if not versions:
            return []
        first, stream = versions[0], workflow.stream
        state, at = await engine.state_at(stream, first.number), await of_version(engine, stream, first.number)
        tail, parent = Tail(at.time_ms, at.nth), await _parent(workflow, first)
        told: list[StateVersion] = []
        for version in versions:
            if version is not first:
                state = apply(state, [c for c in version.changes if not isinstance(c, Fork)])
                tail = following(tail, version.record.time)
            shown: dict[str, Any] = {**await private(state), UPDATED_AT: UpdatedAt(tail.time_ms, tail.nth or 0).number}
            told.append(_told(version, shown, parent))
            parent = version.id
        return told[::-1]

    async def validate_workflow(self, workflow_id: str) -> dict[str, Any]:
        """Check one workflow's log and its current state."""
        report = await self.store.verify(workflow_id)
        problems = list(report.problems)
        state = await self.get_workflow_state(workflow_id)
        try:
            validate(state or {})
        except InvalidState as error:
            problems.append(str(error))
        return {"isValid": not problems, "errors": problems, "versions": report.versions}

    # subscriptions

    def register_agent(self, agent_id: str, handler: Handler) -> None:
        """Say where an agent's messages go. Subscriptions from before a restart are delivered from then on."""
        writes.name(agent_id, "agent")
        self._handlers[agent_id] = handler
        if self._store is not None:
            task = asyncio.get_running_loop().create_task(self._deliver_to(agent_id))
            self._deliveries[("", agent_id)] = task

    async def subscribe_to_state_changes(self, workflow_id: str, agent_id: str) -> None:
        """Send the agent every change of the workflow from now on, at least once, across restarts. Repeating is harmless."""
        name = writes.name(agent_id, "agent")
        workflow = self.store.workflow(workflow_id)
        head = (await self.store.engine.current(workflow.stream)).head.version

        def plan(known: dict[str, Any]) -> list[Change]:
            return [] if name in known else [Set((name,), {"after": head})]

        await self.store.engine.write(
            Write(SUBSCRIPTIONS + workflow.id, plan, author=name, message=f"{name} subscribes", exists=None)
        )
        if name in self._handlers:
            await self._deliver(workflow.id, name)

    async def subscribers(self, workflow_id: str) -> list[str]:
        """Return the agents subscribed to a workflow."""
        stream = SUBSCRIPTIONS + self.store.workflow(workflow_id).id
        return list((await self.store.engine.current(stream)).state)

    async def _deliver_to(self, agent_id: str) -> None:
        for stream in await self.store.engine.backend.streams(SUBSCRIPTIONS):
            if agent_id in (await self.store.engine.current(stream)).state:
                await self._deliver(stream.removeprefix(SUBSCRIPTIONS), agent_id)

    async def _deliver(self, workflow_id: str, agent_id: str) -> None:
        async with self._starting:
            if not self._closed:
                await self._start(workflow_id, agent_id)

    async def _start(self, workflow_id: str, agent_id: str) -> None:
        running = self._deliveries.get((workflow_id, agent_id))
        if running is not None and not running.done():
            return
        engine = self.store.engine
        subscription = (await engine.current(SUBSCRIPTIONS + workflow_id)).state[agent_id]
        cursor = Cursor(engine, f"agents/{workflow_id}/{agent_id}")
        after = await cursor.load(int(subscription["after"]))
        records = stream_records(engine, WORKFLOWS + workflow_id, after, cursor.save)

        async def handle(found: Record) -> None:
            for change in await self._changes(found):
                message = {"type": "data", "payload": {"type": "state-change", "change": msgspec.to_builtins(change)}}
                await call_async(self._handlers[agent_id], message)

        self._deliveries[(workflow_id, agent_id)] = asyncio.get_running_loop().create_task(
            deliver(
                cast("AsyncIterator[Record]", records),
                handle,
                cursor,
                engine.clock,
                engine.settings.delivery_backoff_s,
                lambda found: found.version,
            )
        )

    async def _changes(self, found: Record) -> list[StateChange]:
        engine = self.store.engine
        before = await engine.state_at(found.stream, found.version - 1) if found.version > 1 else {}
        after = await engine.state_at(found.stream, found.version)
        changes: list[StateChange] = []
        for index, change in enumerate(record.decode(found)):
            path = () if isinstance(change, Fork) else change.path
            if path == (UPDATED_AT,):
                continue  # of an earlier Quire, which stored it: not a change anyone made
            changes.append(
                StateChange(
                    id=f"{Version(found).id}/{index}",
                    workflow_id=found.stream.removeprefix(WORKFLOWS),
                    type=_TYPES.get(str(path[0]) if path else "", "workflow-status"),
                    path=pointer(path) or "/",
                    old_value=copied(get(before, path)),
                    new_value=copied(get(after, path)),
                    timestamp=found.time,
                    agent_id=found.author,
                )
            )
        return changes

    # snapshots

    async def create_state_snapshot(self, workflow_id: str, description: str = "Manual snapshot") -> StateSnapshot:
        """Keep the current state whole. Raises NotFound "Workflow not found: ..."."""
        workflow = self.store.workflow(workflow_id)
        name = f"snap-{self.store.engine.ids()}"
        await workflow.checkpoint(name, kind="snapshot", description=description, author="state-manager")
        return await self.get_snapshot(workflow_id, name)

    async def get_snapshot(self, workflow_id: str, snapshot_id: str) -> StateSnapshot:
        """Return a snapshot. Raises NotFound "Snapshot not found: ...", CorruptRecord when its state is damaged."""
        label, state = await self._kept(workflow_id, snapshot_id)
        whole = await beside(is_large(state), record.canonical, state)
        return StateSnapshot(
            id=label.name,
            workflow_id=workflow_id,
            state=state,
            created_at=ms_of(label.created_at),
            description=label.description,
            size=len(whole),
            checksum=hashlib.sha256(whole).hexdigest(),
        )

    async def restore_from_snapshot(self, workflow_id: str, snapshot_id: str) -> None:
        """Make a snapshot's state current, as a new version that subscribers are told of: a restore of its version."""
        label, state = await self._kept(workflow_id, snapshot_id)
        how = {"author": "state-manager", "message": f"Restored from snapshot: {snapshot_id}", "kind": "restore"}
        write, _ = writes.write(
            self.store.workflow(workflow_id).stream,
            lambda current: diff(current, state),
            how,
            allow_empty=True,
            restored=label.version,
            heavy=is_large(state),
        )
        await self.store.engine.write(write)

    async def _kept(self, workflow_id: str, snapshot_id: str) -> tuple[Checkpoint, dict[str, Any]]:
        """Return a snapshot's label and its state. Raises as `get_snapshot`."""
        workflow = self.store.workflow(workflow_id)
        found = [c for c in await workflow.checkpoints(kind="snapshot") if c.name == snapshot_id]
        if not found:
            raise NotFound(f"Snapshot not found: {snapshot_id}")
        try:
            return found[0], await workflow.kept_state(found[0])
        except CorruptRecord as cause:
            raise CorruptRecord(f"Snapshot integrity check failed: {cause}", at=cause.at) from cause

    # conflicts

    async def list_conflicts(self, workflow_id: str | None = None) -> list[StateConflict]:
        """Return recorded conflicts, oldest first."""
        if workflow_id is None:
            return [state_conflict(c) for c in await conflicts.of_store(self.store.engine)]
        return [state_conflict(c) for c in await self.store.workflow(workflow_id).conflicts()]

    async def resolve_state_conflict(self, conflict_id: str) -> dict[str, Any]:
        """Settle a conflict by its strategy and return the state. Raises NotFound "Conflict not found: ..."."""
        found = [c for c in await conflicts.of_store(self.store.engine) if c.id == conflict_id]
        if not found:
            raise NotFound(f"Conflict not found: {conflict_id}")
        conflict, workflow = found[0], self.store.workflow(found[0].workflow_id)
        if is_open(conflict):  # what stands is what is current, or was written since
            choice = cast("conflicts.Choice", conflicts.standing_in(conflict))
            await workflow.resolve(conflict_id, choice, author="state-manager")
        state, number = await workflow.state_and_version()
        return await self._states().shown(workflow.stream, state, number)

    # metrics, tasks

    async def get_state_metrics(self) -> StateMetrics:
        """Return counts and average times.

        Cost: a head for each workflow; reads each state that changed since it was last asked here, at first all.
        """
        stats, backend = await self.store.stats(), self.store.engine.backend
        tally = await backend.tally(WORKFLOWS, but=DELETED)
        await self._look_at_states()
        known = await self.list_conflicts()
        labels = [label async for stream in self._each(CHECKPOINTS) for label in stream.values()]
        subscribed = [len(stream) async for stream in self._each(SUBSCRIPTIONS)]
        return StateMetrics(
            total_states=tally.streams,
            active_workflows=sum(seen.active for seen in self._seen.values()),
            versions_created=tally.versions,
            conflicts_resolved=sum(c.status == "resolved" for c in known),
            snapshots_created=sum(label["kind"] == "snapshot" for label in labels),
            subscriptions=sum(subscribed),
            average_state_size=sum(seen.size for seen in self._seen.values()) / max(1, len(self._seen)),
            average_retrieval_time=self._average("get"),
            average_persistence_time=self._average("persist"),
            resident_bytes=stats.resident_bytes,
        )

    async def _look_at_states(self) -> None:
        """Have `_seen` tell of all workflows as they are."""
        engine, there = self.store.engine, set[str]()
        turns = asyncio.Semaphore(_LOOKS_MAX)

        async def look(head: Head) -> None:
            with suppress(NotFound):  # removed meanwhile
                async with turns:
                    state = await engine.state_of(head)
                active = state.get("status") in ("pending", "running")
                self._seen[head.stream] = _Seen(head.version, len(msgspec.json.encode(state)), active)

        async for heads in engine.heads(WORKFLOWS):
            alive = [head for head in heads if head.kind != DELETED]
            there.update(head.stream for head in alive)
            changed = [h for h in alive if h.stream not in self._seen or self._seen[h.stream].version != h.version]
            await asyncio.gather(*map(look, changed))
        for gone in self._seen.keys() - there:
            del self._seen[gone]

    async def _each(self, prefix: str) -> AsyncGenerator[dict[str, Any]]:
        """Yield the states of the streams whose names begin so."""
        async for heads in self.store.engine.heads(prefix):
            for head in heads:
                yield await self.store.engine.state_of(head)

    def log_metrics(self, name: str, values: Mapping[str, Any]) -> None:
        """Record a metric of your own: {"duration": ms, "success": 1}. It goes to the analytics sink, if there is one."""
        sink: Any = self._env.get("analytics")
        log.debug("%s %s", name, dict(values))
        if sink is not None:
            try:
                call(sink, {"name": name, **values})
            except Exception:
                log.exception("the analytics sink failed; the operation itself is not affected")

    def set_debug_mode(self, enabled: bool) -> None:
        """Log every operation, or stop doing so."""
        log.setLevel(logging.DEBUG if enabled else logging.NOTSET)

    async def process_task(self, task: Mapping[str, Any]) -> TaskResult:
        """Do a task (see `tasks.Tasks`) in order of priority; a failing one is a result, never an exception."""
        return await self._tasks.submit(task)

    def _measure(self, name: str, started: float) -> None:
        ms = (time.perf_counter() - started) * 1000
        self._times[name][0] += 1
        self._times[name][1] += ms
        self.log_metrics(name, {"duration": ms, "success": 1})

    def _average(self, name: str) -> float:
        count, total = self._times[name]
        return total / count if count else 0.0

    async def _version(self, workflow: Workflow, version: Version) -> StateVersion:
        state = await self._states().shown(workflow.stream, await workflow.state(version.number), version.number)
        return _told(version, state, await _parent(workflow, version))

    def _states(self) -> WholeStates:
        if self._whole is None:
            self._whole = WholeStates(self.store.engine)
        return self._whole


async def _parent(workflow: Workflow, version: Version) -> str | None:
    """Return the id of the version before; None where there is none any more."""
    with suppress(VersionNotFound):
        return None if version.parent is None else (await workflow.version(version.parent)).id
    return None


def _told(version: Version, state: dict[str, Any], parent: str | None) -> StateVersion:
    return StateVersion(
        id=version.id,
        workflow_id=version.workflow_id,
        version=version.number,
        state=state,
        timestamp=ms_of(version.time),
        author=version.author,
        change_description=version.message,
        checksum=version.checksum,
        parent_version=parent,
    )
