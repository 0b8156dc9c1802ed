"""A step: one agent, named, with what it may see and how often it may fail."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from quire.api.draft import DictDraft
from quire.calls import awaited, call_async
from quire.core.resolve import POLICIES
from quire.core.values import copied
from quire.errors import Invalid
from quire.scopes.step import StepState
from quire.threads import Call, Threads

Agent = Callable[["Context"], Any]
"""Any callable of a Context: `async def`, or plain (run in a thread, see `Settings.threads_max`)."""


class Retry(msgspec.Struct, frozen=True):
    """How often a failing step is tried: attempts in all, first pause in seconds, factor from pause to pause.

    A step whose result or changes cannot be stored is not tried again: its agent did its work, and would do the same.
    """

    attempts: int = 3
    pause_s: float = 0.5
    factor: float = 2.0


ONCE = Retry(attempts=1)


OnStale = Literal["queue", "rerun", "fail", "last", "ours", "theirs", "both", "reject"] | Callable[[Any], Any]
"""What becomes of a step whose changes were made from values that others changed while it worked, see `step`."""


class Step(msgspec.Struct, frozen=True):
    """An agent under a name. timeout_s: seconds for one attempt; see `step`."""

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

    timeout_s: seconds for one attempt, with waiting for a thread. A plain function that has not begun by then never does;
    one that has cannot be stopped: it is waited for, and the attempt fails all the same.
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


class Results(Mapping[str, Any]):
    """Results of finished steps, by key. Each is copied when it is asked for."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def __getitem__(self, key: str) -> Any:
        entry = self._entries[key]
        if entry["status"] != "done":
            raise KeyError(key)
        return copied(entry["result"])

    def __iter__(self) -> Iterator[str]:
        return (key for key, entry in self._entries.items() if entry["status"] == "done")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(dict(self))


class Context:
    """What an agent is given.

    state: its private draft of the workflow's state; what it changes there is committed with its result, or not at
    all.  key: names this step in this run, the same in every attempt: hand it to outside services as an idempotency
    key.  attempt: 1, 2, 3...  input: the result before it in the sequence (the run's input for the first).
    results: of the steps finished when this one started, by key, each copied when it is asked for.  state_accessor: the
    workflow's scoped state, None unless the run was given a StateBuilder; what is written there is committed with the
    result, like `state`.
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


async def call(step: Step, context: Context, threads: Threads) -> Any:
    """Run one attempt. A plain function runs in a thread; once begun it is waited for even when cancelled: no orphans.

    Raises what the agent raises, as an Exception (quire/calls.py); TimeoutError saying what became of the function.
    """
    agent = step.agent
    waits = inspect.iscoroutinefunction(agent) or inspect.iscoroutinefunction(getattr(agent, "__call__", None))  # noqa: B004
    thread = None if waits else threads.begin(agent, context)
    alarm = asyncio.timeout(step.timeout_s)
    try:
        async with alarm:
            return await (call_async(agent, context) if thread is None else _ended(thread, agent))
    except TimeoutError:
        if not alarm.expired():
            raise
        raise TimeoutError(f"timeout_s={step.timeout_s:g} passed{_left(thread, threads)}") from None


async def _ended(thread: Call[Any], agent: Agent) -> Any:
    try:
        answer = await thread.result()
    except asyncio.CancelledError:
        if not thread.withdraw():
            await thread.ended()  # a thread cannot be stopped; a run must not end while one of its agents lives
        raise
    return await awaited(answer, agent)


def _left(thread: Call[Any] | None, threads: Threads) -> str:
    """Return what to say of a function whose time is over."""
    if thread is None:
        return ""
    if not thread.begun:
        return f" before one of {threads.most} threads was free (Settings.threads_max); its function never began"
    return (
        " while its plain function ran, which cannot be stopped: it was waited for, its result was dropped, "
        "and what it did elsewhere is done"
    )
