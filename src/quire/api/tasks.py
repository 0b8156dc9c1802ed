"""Tasks: the manager's operations as messages {type, payload, priority, ...}, with results instead of exceptions."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import msgspec

from quire.calls import call_async, in_words
from quire.errors import QuireError

if TYPE_CHECKING:
    from quire.api.manager import StateManager

_RANK = {"critical": 0, "high": 1, "medium": 2, "low": 3}
_RETRIES = 3
_PAUSE_S = 0.05
_WAITING_MAX = 100_000
"""Tasks waiting at once; one more is answered with a failure."""


class TaskResult(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What became of a task. status: success or failure.  error: a sentence."""

    task_id: str
    status: str
    result: Any = None
    error: str | None = None
    metrics: dict[str, Any] = {}


class Tasks:
    """A queue by priority, served one after the other."""

    def __init__(self, manager: StateManager) -> None:
        self._manager = manager
        self._queue: list[tuple[int, int, Mapping[str, Any], asyncio.Future[TaskResult]]] = []
        self._count = 0
        self._server: asyncio.Task[None] | None = None

    async def submit(self, task: Mapping[str, Any]) -> TaskResult:
        """Queue a task and wait for its result."""
        if len(self._queue) >= _WAITING_MAX:
            return TaskResult(task_id=str(task.get("id", "")), status="failure", error="too many tasks are waiting")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[TaskResult] = loop.create_future()
        self._count += 1
        heapq.heappush(self._queue, (_RANK.get(str(task.get("priority")), 2), self._count, task, future))
        if self._server is None:
            self._server = loop.create_task(self._serve())
        return await future

    async def _serve(self) -> None:
        try:
            while self._queue:
                _, _, task, future = heapq.heappop(self._queue)
                result = await self._do(task)
                if not future.done():
                    future.set_result(result)
        finally:
            self._server = None

    async def _do(self, task: Mapping[str, Any]) -> TaskResult:
        started = time.perf_counter()
        task_id, retries, errors = str(task.get("id", "")), 0, 0
        most = task.get("maxRetries", _RETRIES)
        while True:
            try:
                result = await call_async(self._once, task)
                status, error = "success", None
                break
            except QuireError as caught:
                result, status, error, errors = None, "failure", str(caught), errors + 1
                if not caught.retryable or not isinstance(most, int) or retries >= most:
                    break
                retries += 1
                await self._manager.store.engine.clock.sleep(_PAUSE_S * 2**retries)
            except (KeyError, TypeError, ValueError, AttributeError) as caught:
                said = f"missing {caught}" if isinstance(caught, KeyError) else str(caught)
                result, status, error, errors = None, "failure", f"bad task: {said}", errors + 1
                break
            except Exception as caught:  # noqa: BLE001 - of the task's own values, or a mistake: whoever waits is told
                result, status, error, errors = None, "failure", in_words(caught), errors + 1
                break
        metrics = {
            "executionTimeMs": (time.perf_counter() - started) * 1000,
            "apiCallsCount": 1 + retries,
            "errorCount": errors,
            "retryCount": retries,
        }
        return TaskResult(task_id=task_id, status=status, result=result, error=error, metrics=metrics)

    async def _once(self, task: Mapping[str, Any]) -> Any:
        kind = task.get("type")
        work = _TYPES.get(kind) if isinstance(kind, str) else None
        if work is None:
            raise QuireError(f"Unknown task type: {kind}")
        payload = {**cast("dict[str, Any]", task.get("context") or {}), **cast("dict[str, Any]", task["payload"])}
        return msgspec.to_builtins(await work(self._manager, payload))


async def _subscribe(manager: StateManager, payload: dict[str, Any]) -> Any:
    await manager.subscribe_to_state_changes(payload["workflowId"], payload["agentId"])
    return {"subscribed": True}


async def _restore(manager: StateManager, payload: dict[str, Any]) -> Any:
    await manager.restore_from_snapshot(payload["workflowId"], payload["snapshotId"])
    return {"restored": True}


async def _archive(manager: StateManager, _payload: dict[str, Any]) -> Any:
    """Versions leave the log only when a copy is durable: without an archive nothing may be removed."""
    if manager.store.engine.archive is None:
        return {"archived": 0, "reason": "no archive is configured; every version stays in the log"}
    done = await manager.store.sweep()
    return {"archived": done.versions, "workflows": done.moved, "problems": done.problems}


_TYPES: dict[str, Callable[[StateManager, dict[str, Any]], Awaitable[Any]]] = {
    "persist-state": lambda m, p: m.persist_workflow_state(
        p["workflowId"], p["state"], p.get("author", "system"), p.get("changeDescription", "State update")
    ),
    "get-state": lambda m, p: m.get_workflow_state(p["workflowId"], p.get("version")),
    "get-history": lambda m, p: m.get_workflow_history(p["workflowId"]),
    "subscribe-changes": _subscribe,
    "create-snapshot": lambda m, p: m.create_state_snapshot(p["workflowId"], p.get("description", "Manual snapshot")),
    "restore-snapshot": _restore,
    "resolve-conflict": lambda m, p: m.resolve_state_conflict(p["conflictId"]),
    "validate-state": lambda m, p: m.validate_workflow(p["workflowId"]),
    "archive-old-versions": _archive,
    "get-metrics": lambda m, _: m.get_state_metrics(),
}
