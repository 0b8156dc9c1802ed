"""A step: one agent, named, with what it may see and how often it may fail."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec

from quire.api.draft import DictDraft
from quire.core.resolve import POLICIES
from quire.errors import Invalid
from quire.scopes.step import StepState

Agent = Callable[["Context"], Any]
"""Any callable of a Context: `async def`, or plain (run in a thread of its own)."""


class Retry(msgspec.Struct, frozen=True):
    """How often a failing step is tried: attempts in all, first pause in seconds, factor from pause to pause."""

    attempts: int = 3
    pause_s: float = 0.5
    factor: float = 2.0


ONCE = Retry(attempts=1)


OnStale = Literal["queue", "rerun", "fail", "last", "ours", "theirs", "both", "reject"] | Callable[[Any], Any]
"""What becomes of a step whose changes were made from values that others changed while it worked, see `step`."""


class Step(msgspec.Struct, frozen=True):
    """An agent under a name. timeout_s: seconds for one attempt; a plain function cannot be stopped, only waited for."""

    name: str
    agent: Agent
    retry: Retry = ONCE
    timeout_s: float | None = None
    on_stale: OnStale | None = None


def step(
    agent: Agent,
    *,
    name: str | None = None,
    retry: Retry = ONCE,
    timeout_s: float | None = None,
    on_stale: OnStale | None = None,
) -> Step:
    """Return a step; its name is the function's unless given. Names are part of keys: letters, digits, `._-`.

    on_stale: what becomes of a step that changed what others changed since it began. "queue" keeps its result, and all
    its changes wait together as a conflict that somebody resolves; the run goes on, and its result lists them. "rerun"
    runs it again on what is there now, at most ten times; "fail" fails it; any other is the policy that decides, as
    `on_conflict` of a write. None: the store's policy, "queue" where it has none.

    >>> step(print).name
    'print'
    """
    found = name if name is not None else getattr(agent, "__name__", None)
    if not callable(agent):
        raise Invalid(f"an agent is a callable of one context, not {type(agent).__name__}")
    if not found or not all(c.isalnum() or c in "._-" for c in found):
        raise Invalid(f"step name {found!r}: letters, digits, '.', '_' and '-' are allowed; give one with name=...")
    if retry.attempts < 1:
        raise Invalid(f"step {found}: attempts={retry.attempts}, at least 1 is needed")
    if on_stale not in (None, "rerun", "fail", *POLICIES) and not callable(on_stale):
        words = ", ".join(("queue", "rerun", "fail", *(p for p in POLICIES if p != "queue")))
        raise Invalid(f"on_stale {on_stale!r}: there are {words}, or a function of the conflict")
    return Step(found, agent, retry, timeout_s, on_stale)


class Context:
    """What an agent is given.

    state: its private draft of the workflow's state; what it changes there is committed with its result, or not at
    all.  key: names this step in this run, the same in every attempt: hand it to outside services as an idempotency
    key.  attempt: 1, 2, 3...  input: the result before it in the sequence (the run's input for the first).
    results: of the steps finished when this one started, by key.  state_accessor: the workflow's scoped state, None
    unless the run was given a StateBuilder; what is written there is committed with the result, like `state`.
    """

    __slots__ = ("attempt", "input", "key", "results", "run_id", "state", "state_accessor")

    def __init__(
        self,
        run_id: str,
        key: str,
        attempt: int,
        state: DictDraft,
        given: Any,
        results: Mapping[str, Any],
        state_accessor: StepState | None = None,
    ) -> None:
        self.run_id = run_id
        self.key = key
        self.attempt = attempt
        self.state = state
        self.input = given
        self.results = results
        self.state_accessor = state_accessor


async def call(step: Step, context: Context) -> Any:
    """Run one attempt. A plain function runs in a thread and is waited for even when cancelled: no orphans."""
    if inspect.iscoroutinefunction(step.agent) or inspect.iscoroutinefunction(getattr(step.agent, "__call__", None)):  # noqa: B004
        work: Awaitable[Any] = step.agent(context)
    else:
        work = _threaded(step.agent, context)
    if step.timeout_s is None:
        return await work
    async with asyncio.timeout(step.timeout_s):
        return await work


async def _threaded(agent: Agent, context: Context) -> Any:
    thread = asyncio.ensure_future(asyncio.to_thread(agent, context))
    try:
        result = await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])  # a thread cannot be killed; a run must not end while one of its agents lives
        raise
    return await result if inspect.isawaitable(result) else result
