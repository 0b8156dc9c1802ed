"""Run a Lua script on a store and commit what it did, all or nothing.

The script sees the state as it was when it began, with its own changes on top. They are worked out again on what others
wrote meanwhile, like those of `edit` and of a step, and become one version of each log it changed, all in one commit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from quire.api import writes
from quire.api.draft import recording
from quire.api.store import Store
from quire.core.values import clean
from quire.engine.write import Write
from quire.errors import Invalid
from quire.model import Version
from quire.scopes import StateBuilder, StateScope
from quire.scopes.access import Access
from quire.scopes.step import Desk, StepState, step_state
from quire.scripting.doors import NOTHING, Doors, answer, own_door, scope_door
from quire.scripting.limits import Limits
from quire.scripting.talk import Conversation

LIMITS = Limits()
OPEN = StateBuilder()

_NAME_MAX = 55
"""Bytes of a script's name: Lua cuts longer ones in its messages."""


class ScriptResult(msgspec.Struct, frozen=True):
    """How a script ended: what it returned and printed, and the version of each log it changed, by workflow id."""

    value: Any
    output: str
    versions: dict[str, Version]


async def run_script(
    store: Store,
    source: str,
    *,
    name: str = "script",
    workflow: str | None = None,
    step: str | None = None,
    input: Any = None,  # noqa: A002 - the word users have for it
    author: str = "script",
    message: str | None = None,
    scoped: StateBuilder = OPEN,
    limits: Limits = LIMITS,
    on_print: Callable[[str], None] | None = None,
) -> ScriptResult:
    """Run a script and commit what it changed.

    source: Lua 5.4.  name: for messages, at most 55 bytes.  workflow: the id behind `workflow`, which must exist; None:
    the script has `State` only.  step: the name behind `step.state`.  input: a JSON value, `input` in the script.
    author: of the versions, and the agent whom the policy in `scoped` knows.  message: of the versions.  scoped: the
    rules of `State`, `workflow.state` and `step.state`.  on_print: called with each line printed, when it is printed.
    Raises ScriptError naming script and line; LimitExceeded; WorkflowNotFound; Unsupported where scripts cannot run;
    what a write raises. Then nothing of it is stored.
    Cost: starting a process, tens of milliseconds; about a tenth of one for each call.

    >>> await run_script(store, "State.increment('visits')")             # doctest: +SKIP
    """
    check(source, name, limits)
    if step is not None and workflow is None:
        raise Invalid(f"step {step!r}: a step is part of a workflow; name that too")
    how = {"author": author, "message": f"script {name}" if message is None else message, "kind": "script"}
    writes.write("", [], how)  # options are checked before the script runs, not after
    if workflow is None:
        doors, parts = await _for_everybody(store, scoped, how)
    else:
        doors, parts = await _for_a_workflow(store, workflow, step, scoped, how)
    context = {"workflow": workflow, "step": step, "key": step, "attempt": None, "input": input}
    value, output = await converse(doors, source, name, context, limits, on_print)
    made = await store.engine.write_all(changed) if (changed := parts()) else []
    return ScriptResult(value, output, {v.workflow_id: v for v in made if v is not None})


async def converse(
    doors: Doors,
    source: str,
    name: str,
    context: dict[str, Any],
    limits: Limits,
    on_print: Callable[[str], None] | None = None,
) -> tuple[Any, str]:
    """Run a script over doors; return what it returns and what it printed. What is behind the doors is changed."""
    talk = Conversation(name, partial(answer, doors), limits, on_print=on_print)
    value = await talk.hold(source, {**context, "input": clean(context["input"])})
    return clean(value), talk.output


def check(source: Any, name: Any, limits: Any) -> None:
    """Raise Invalid for a source, a name or limits that are none."""
    if type(source) is not str:
        raise Invalid(f"a script's source is text, not {type(source).__name__}")
    writes.text(source)
    if len(writes.name(name, "script name").encode()) > _NAME_MAX:
        raise Invalid(f"script name {name!r}: at most {_NAME_MAX} bytes; Lua cuts longer ones in its messages")
    if not isinstance(limits, Limits):
        raise Invalid(f"limits are a Limits, not {type(limits).__name__}")


Parts = Callable[[], list[Write]]
"""What to commit of what was done behind the doors, asked when the script has ended."""


async def _for_everybody(store: Store, scoped: StateBuilder, how: dict[str, Any]) -> tuple[Doors, Parts]:
    access = Access(store.engine, StateScope.global_(), scoped, how["author"])
    desk = Desk()
    await desk.lay(access)
    return {**NOTHING, "State": scope_door(StepState(desk, access))}, partial(desk.parts, how["message"])


async def _for_a_workflow(
    store: Store, workflow: str, step: str | None, scoped: StateBuilder, how: dict[str, Any]
) -> tuple[Doors, Parts]:
    handle = store.workflow(workflow)
    base = await handle.snapshot()
    draft = recording(base.state, **handle.bounds)
    state, desk = await step_state(store.engine, scoped, workflow, how["author"])
    doors = {
        **NOTHING,
        "State": scope_door(state.global_()),
        "workflow": own_door(draft),
        "workflow.state": scope_door(state),
    }
    if step is not None:
        doors["step.state"] = scope_door(state.step(step))

    def parts() -> list[Write]:
        options = {"on_conflict": store.engine.policy, **how}
        mine = [writes.write(handle.stream, draft.changes, options, base=base)[0]] if draft.changes else []
        return [*mine, *desk.parts(how["message"])]

    return doors, parts
