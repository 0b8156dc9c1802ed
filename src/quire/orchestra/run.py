"""A run: one execution of a topology on a workflow.

1. A step's result, its bookkeeping and its changes of the state are one version. After kill -9 a step is either done,
   with all of that, or not started: nothing finished runs again, nothing finished is lost.
2. What an agent does outside the state happens at least once; `context.key` is stable for making it idempotent.
3. Whoever starts or resumes a run takes its epoch. Every commit of a step checks it, so an older owner that is still
   alive stops at its next commit instead of overwriting.
4. A run ends with no child alive: a failure cancels the siblings and waits for them.
5. Work that was done is neither repeated nor dropped unasked: a step whose changes cannot stand beside what others wrote
   meanwhile keeps its result, and its changes wait as a conflict. Where the store did not say whether a step is stored, the
   log is asked before anything runs again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import msgspec

from quire.api import writes
from quire.api.conflicts import Conflicts
from quire.api.draft import recording
from quire.api.store import Store
from quire.api.workflow import Workflow
from quire.calls import call, in_words, raised
from quire.core.guards import Step, bounded, pure
from quire.core.refusals import Reason, said
from quire.core.resolve import Policy
from quire.core.values import clean, copied
from quire.engine.conflicts import waiting
from quire.engine.write import Base, Plan, Write
from quire.errors import (
    AlreadyExists,
    Denied,
    HookFailed,
    Invalid,
    MergeConflict,
    OutcomeUnknown,
    QuireError,
    RunNotFound,
    StepFailed,
    StorageError,
)
from quire.errors import Conflict as ConflictError
from quire.model import RUN, Change, Conflict, Fork, Increment, Set
from quire.orchestra import steps, topology
from quire.orchestra.topology import Node
from quire.scopes.setup import StateBuilder
from quire.scopes.step import step_state

log = logging.getLogger("quire.orchestra")


class _StaleStep(Exception):
    """A step's changes cannot stand, and it is not to wait; the cause says why."""


class _UnknownStep(Exception):
    """A step may be stored or not, and the store cannot be asked; the cause says why."""


class _Unstorable(Exception):
    """What an agent made cannot be stored, and would cost again; the cause says why."""


@contextmanager
def _paid() -> Generator[None]:
    """Make final what refuses the work of an agent that is done: another attempt would make the same, at the same price."""
    try:
        yield
    except (Invalid, Denied, HookFailed) as refused:
        raise _Unstorable from refused


_LOOKS = steps.Retry(attempts=5, pause_s=0.5)
"""How often the store is asked whether a step is stored, after a commit that did not say so."""
_RERUNS_MAX = 9
"""How often a step is run once more because its changes are stale."""


class RunLost(ConflictError):
    """Another process took the run over; this one must stop."""

    code = "run_lost"


class RunResult(msgspec.Struct, frozen=True):
    """How a run ended: the topology's result, the state left behind, and which steps ran here and which before.

    conflicts: of steps whose changes wait as a whole, for `resolve` of the workflow that each names.
    """

    id: str
    result: Any
    state: dict[str, Any]
    ran: list[str]
    resumed: list[str]
    conflicts: list[Conflict] = []


async def run(
    store: Store,
    node: Node,
    *,
    id: str,  # noqa: A002 - the word users have for it
    state: Mapping[str, Any] | None = None,
    input: Any = None,  # noqa: A002 - likewise
    allow_topology_change: bool = False,
    scoped: StateBuilder | None = None,
) -> RunResult:
    """Run a topology on workflow `id`, continuing if that run was begun before.

    state: what the workflow starts with (not used when it exists).  input: given to the first step.  scoped: gives
    every step a `state_accessor` under these rules, as an agent of the step's name.
    On a workflow that exists and holds no run, the run begins with the state that is there. Of two that start one run at
    once, the later goes on with it, and the other is told so by RunLost.
    Raises StepFailed when an agent failed for good (run again to retry it), RunLost, Invalid when the topology is not
    the one the run began with.
    """
    topology.check(node)
    if RUN in (state or {}):
        raise Invalid(f"the key {RUN!r} is where a run keeps its books; choose another for your state")
    workflow, books = store.workflow(id), _books(node, input, store)
    if not await workflow.exists():
        with suppress(AlreadyExists):  # it was started elsewhere just now
            await store.create(id, {**(state or {}), RUN: books}, author="orchestra", message="run begins")
    epoch = await _claim(workflow, store, node, allow_topology_change, books)
    return await _Run(store, workflow, epoch, scoped).execute(node)


async def resume(
    store: Store,
    node: Node,
    *,
    id: str,  # noqa: A002
    allow_topology_change: bool = False,
    scoped: StateBuilder | None = None,
) -> RunResult:
    """Continue a run in this process: finished steps are answered from the state, the rest is run.

    scoped: as in `run`; it is not stored with the run.
    Raises RunNotFound when the workflow holds no run, and what `run` raises.
    """
    topology.check(node)
    workflow = store.workflow(id)
    epoch = await _claim(workflow, store, node, allow_topology_change, None)
    return await _Run(store, workflow, epoch, scoped).execute(node)


def _books(node: Node, given: Any, store: Store) -> dict[str, Any]:
    return {
        "topology": topology.digest(node),
        "status": "running",
        "epoch": 0,
        "input": given,
        "started_at": store.engine.clock.now_ms(),
        "steps": {},
    }


async def _claim(workflow: Workflow, store: Store, node: Node, allow_change: bool, new: dict[str, Any] | None) -> int:
    """Take the run's epoch; from then on older owners cannot commit. new: the books where there is no run yet."""
    shape = topology.digest(node)
    claimed = 0

    def plan(state: dict[str, Any]) -> Sequence[Change]:
        nonlocal claimed
        books: Any = state.get(RUN)
        if books is None and new is not None:
            claimed = 1
            return [Set((RUN,), {**new, "epoch": claimed})]
        if type(books) is not dict:
            raise RunNotFound(f"workflow {workflow.id} holds no run; start one with quire.orchestra.run(...)")
        if state[RUN]["topology"] != shape and not allow_change:
            raise Invalid(
                f"run {workflow.id} began with topology {books['topology']}, this one is {shape}: resume with the same "
                "steps, or pass allow_topology_change=True (finished steps are kept by key)"
            )
        claimed = int(state[RUN]["epoch"]) + 1
        return [
            Increment((RUN, "epoch"), 1),
            Set((RUN, "status"), "running"),
            Set((RUN, "topology"), shape),
        ]

    write, _ = writes.write(workflow.stream, plan, {"author": "orchestra", "message": "run claimed", "kind": "run"})
    await store.engine.write(write)
    return claimed


class _Run:
    """One execution in this process, from claim to end."""

    def __init__(self, store: Store, workflow: Workflow, epoch: int, scoped: StateBuilder | None) -> None:
        self._store = store
        self._workflow = workflow
        self._epoch = epoch
        self._scoped = scoped
        self._ran: list[str] = []
        self._resumed: list[str] = []

    async def execute(self, node: Node) -> RunResult:
        _, state = await self._workflow.snapshot()
        try:
            result = await self._node(node, "", state[RUN]["input"])
        except BaseExceptionGroup as group:
            raise _first(group) from None
        await self._commit([Set((RUN, "status"), "completed")], "orchestra", "run completed", "run")
        final = await self._workflow.state()
        return RunResult(self._workflow.id, copied(result), final, self._ran, self._resumed, await self._waiting(final))

    async def _waiting(self, state: dict[str, Any]) -> list[Conflict]:
        """Return the conflicts of steps that wait still."""
        found: list[Conflict] = []
        for entry in state[RUN]["steps"].values():
            for workflow_id, conflict_id in entry.get("conflicts", {}).items():
                conflict = await Conflicts(self._store.engine, workflow_id).get(conflict_id)
                found += [conflict] if conflict.status == "pending" else []
        return found

    async def _node(self, node: Node, prefix: str, given: Any) -> Any:
        key = topology.keyed(node, prefix)
        if isinstance(node, steps.Step):
            return await self._step(node, key, given)
        if isinstance(node, topology.Sequence):
            for part in node.parts:
                given = await self._node(part, key, given)
            return given
        gate = asyncio.Semaphore(node.limit or len(node.parts))

        async def gated(part: Node) -> Any:
            async with gate:
                return await self._node(part, key, given)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(gated(part)) for part in node.parts]
        return {topology.branch(node, i): task.result() for i, task in enumerate(tasks)}

    async def _step(self, step: steps.Step, key: str, given: Any) -> Any:
        """Run one step to its end, or answer from the books."""
        _, state = await self._workflow.snapshot()
        entry = state[RUN]["steps"].get(key)
        if _is_done(state, key):
            self._resumed.append(key)
            return copied(entry["result"])
        attempt = 0 if entry is None else int(entry["attempt"])
        pause = step.retry.pause_s
        for turn in range(step.retry.attempts):
            attempt += 1
            try:
                result = await self._rerun(step, key, attempt, given)
            except RunLost:
                raise
            except Exception as caught:  # noqa: BLE001 - an agent's own code: recorded, and raised again as the cause
                over = isinstance(caught, _StaleStep | _UnknownStep | _Unstorable)
                error = cast("BaseException", caught.__cause__) if over else raised(caught)
                last = turn == step.retry.attempts - 1 or over
                await self._failed(key, attempt, error, final=last)
                if last:
                    kept = "what it made cannot be stored, so it was not tried again: "
                    raise StepFailed(
                        f"step {key} of run {self._workflow.id} failed after {turn + 1} attempt(s): "
                        f"{kept if isinstance(caught, _Unstorable) else ''}{in_words(error)}; "
                        "run it again to retry from here"
                    ) from error
                await self._store.engine.clock.sleep(pause)
                pause *= step.retry.factor
            else:
                self._ran.append(key)
                return result
        raise AssertionError("a step has at least one attempt")

    async def _rerun(self, step: steps.Step, key: str, attempt: int, given: Any) -> Any:
        """Make one attempt; where the step asks for it, again on what is there now while its changes are stale."""
        for _ in range(_RERUNS_MAX if step.on_stale == "rerun" else 0):
            with suppress(_StaleStep):
                return await self._attempt(step, key, attempt, given)
            attempt += 1
        return await self._attempt(step, key, attempt, given)

    async def _attempt(self, step: steps.Step, key: str, attempt: int, given: Any) -> Any:
        clock = self._store.engine.clock
        started = clock.now_ms()
        base = await self._workflow.snapshot()
        draft = recording({k: v for k, v in base.state.items() if k != RUN}, **self._workflow.bounds)
        results = steps.Results(base.state[RUN]["steps"])
        accessor, desk = None, None
        if self._scoped is not None:
            accessor, desk = await step_state(self._store.engine, self._scoped, self._workflow.id, step.name)
        context = steps.Context(self._workflow.id, key, attempt, draft, copied(given), results, accessor)
        try:
            found = await steps.call(step, context, self._store.engine.threads)
            with _paid():
                result = call(partial(clean, path=(RUN, "steps", key, "result")), found)
            changes = draft.steps
        finally:
            draft.close()
            if desk is not None:
                desk.closed = True
        if any(not c.path or c.path[0] == RUN for c in pure(changes) if not isinstance(c, Fork)):
            books = Invalid(f"step {key} changed {RUN!r} or replaced the whole state; a run keeps its books there")
            raise _Unstorable from books
        entry: dict[str, Any] = {
            "status": "done",
            "attempt": attempt,
            "epoch": self._epoch,
            "result": result,
            "started_at": started,
            "ended_at": clock.now_ms(),
        }
        beside = [] if desk is None else desk.parts(f"{key} of {self._workflow.id}")
        waits = step.on_stale not in ("rerun", "fail")
        policy = step.on_stale if step.on_stale not in (None, "queue", "rerun", "fail") else None
        if step.on_stale is None:
            policy = self._store.engine.policy
        message = f"{key} done"
        while True:
            done = [*changes, Set((RUN, "steps", key), entry)]
            try:
                with _paid():
                    await self._commit(done, key, message, "step", base=base, beside=beside, policy=policy)
            except OutcomeUnknown:
                if not await self._was_stored(key):
                    raise
                return copied(result)
            except MergeConflict as stale:
                name = f"conflict-{self._store.engine.ids()}"
                now_ms = clock.now_ms()
                if waits and desk is not None and desk.knows(stale.workflow_id):
                    beside = desk.overruled(
                        stale, beside, name, key, now_ms
                    )  # the later one stands, and it is recorded
                    continue
                if not waits or policy is not None or not stale.changes:
                    raise _StaleStep from stale
                # all that it would have changed waits together
                entry["conflicts"] = {self._workflow.id: name}
                message = f"{key} done; its changes wait in {name}"
                why = said(cast("Reason", stale.reason), stale.conflicts[-1])
                log.warning("%s of run %s: its changes wait in %s: %s", key, self._workflow.id, name, why)
                stale.changes = list(bounded(changes))
                stale.conflicts = [msgspec.structs.replace(met, outcome="pending") for met in stale.conflicts]
                changes = []
                beside = [*beside, waiting(name, stale, author=key, now_ms=now_ms)]
            else:
                return copied(result)

    async def _was_stored(self, key: str) -> bool:
        """Look whether a step is stored, with all that was committed beside it. Raises _UnknownStep, RunLost."""
        pause, missing = _LOOKS.pause_s, None
        for turn in range(_LOOKS.attempts):
            if turn:
                await self._store.engine.clock.sleep(pause)
                pause *= _LOOKS.factor
            try:
                await self._store.engine.committer.clear_up()
                _, state = await self._workflow.snapshot()
            except StorageError as error:
                missing = error
            else:
                self._check_epoch(state)
                return _is_done(state, key)
        raise _UnknownStep from missing

    def _check_epoch(self, state: dict[str, Any]) -> None:
        """Raise RunLost if another process took the run over."""
        now = state[RUN]["epoch"]
        if now != self._epoch:
            raise RunLost(
                f"run {self._workflow.id} was taken over (epoch {now}, ours {self._epoch}): this process stops here"
            )

    async def _failed(self, key: str, attempt: int, error: BaseException, *, final: bool) -> None:
        """Note down that a step failed, unless it turns out to be stored."""
        text = in_words(error)
        entry = {"status": "failed", "attempt": attempt, "epoch": self._epoch, "error": text}

        def plan(state: dict[str, Any]) -> Sequence[Change]:
            changes: list[Change] = [] if _is_done(state, key) else [Set((RUN, "steps", key), entry)]
            return [*changes, Set((RUN, "status"), "failed")] if final else changes

        try:
            await self._commit(plan, key, f"{key} failed: {text[:80]}", "step")
        except QuireError:
            log.warning("the failure of step %s could not be recorded: %s", key, text)

    async def _commit(
        self,
        changes: Sequence[Step] | Plan,
        author: str,
        message: str,
        kind: str,
        base: Base | None = None,
        beside: Sequence[Write] = (),
        policy: Policy | None = None,
    ) -> None:
        """Write to the run's workflow, and to other logs beside it: all or nothing, and only under our epoch."""
        own = Write(
            self._workflow.stream,
            changes,
            author=author or "orchestra",
            message=message,
            kind=kind,
            base=base,
            policy=policy,
            guard=self._check_epoch,
        )
        await self._store.engine.write_all([own, *beside])


def _is_done(state: dict[str, Any], key: str) -> bool:
    entry = state[RUN]["steps"].get(key)
    return entry is not None and entry["status"] == "done"


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that says why a parallel part failed: the step's own rather than what followed from it."""
    flat: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
                collect(inner)  # pyright: ignore[reportUnknownArgumentType]
        else:
            flat.append(error)

    collect(group)
    return next((e for e in flat if isinstance(e, StepFailed)), flat[0])
