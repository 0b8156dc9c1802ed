"""A Lua script as a step of a run: what it writes is part of the step's one commit.

So a script that was killed with its run has either happened, with its result and all its writes, or not begun.
"""

from __future__ import annotations

from typing import Any

from quire.orchestra.steps import ONCE, Context, Retry, Step, step
from quire.scripting.doors import NOTHING, Doors, own_door, scope_door
from quire.scripting.limits import Limits
from quire.scripting.lua import LIMITS, check, converse

_UNSCOPED = "this run has no scoped state: begin it with run(..., scoped=StateBuilder())"


def lua_step(
    name: str, source: str, *, retry: Retry = ONCE, timeout_s: float | None = None, limits: Limits = LIMITS
) -> Step:
    """Return a step that runs a Lua script; its result is what the script returns.

    In the script: `input` is the result of the step before, `workflow.id` the run's, `step.name`, `step.key` and
    `step.attempt` this step's. `workflow.get` and its like are `context.state`; `workflow.state`, `step.state` and
    `State` are `context.state_accessor` with its step and global, so they need a run with `scoped`.
    retry, timeout_s: of the step; `limits` hold for each attempt.
    Raises Invalid. A script that fails fails the step, with ScriptError or LimitExceeded as the cause.

    >>> lua_step("count", "workflow.increment('visits')").name
    'count'
    """
    check(source, name, limits)

    async def agent(context: Context) -> Any:
        state = context.state_accessor
        doors: Doors = {**NOTHING, "workflow": own_door(context.state)}
        if state is None:
            doors.update(dict.fromkeys(("State", "workflow.state", "step.state"), _UNSCOPED))
        else:
            doors["State"], doors["workflow.state"] = scope_door(state.global_()), scope_door(state)
            doors["step.state"] = scope_door(state.step(name))
        given = {
            "workflow": context.run_id,
            "step": name,
            "key": context.key,
            "attempt": context.attempt,
            "input": context.input,
        }
        value, _ = await converse(doors, source, name, given, limits)
        return value

    return step(agent, name=name, retry=retry, timeout_s=timeout_s)
