"""Ten agents with steps of a minute on one state of 50 fields: what merges, what is refused: `python -m benchmarks.agents`.

Time is simulated: a step begins with the state as it is, works for 30 to 90 s, and commits. Nothing is measured in seconds;
the counts follow from the rules, the number of agents and the seed.
"""

import asyncio
import random
import sys

import quire
from quire.engine.clock import FakeClock
from quire.errors import MergeConflict

AGENTS, STEPS, FIELDS = 10, 30, 50


def begun():
    fields = {f"field{i}": i for i in range(FIELDS - 5)}
    tasks = [{"id": i, "owner": None} for i in range(AGENTS * STEPS)]
    return {**fields, "tokens": 0, "notes": [], "status": {}, "tasks": tasks, "report": ""}


def log(state, name, dice):
    state["tokens"] += dice.randrange(1000)
    state["notes"].append(f"{name} found something")
    state["status"][name] = f"step {dice.random()}"


def prompt(state, name, dice):
    words = len(repr(state.to_plain()))
    log(state, name, dice)
    state["report"] += f"{name}: {words}\n"


def own(state, name, dice):
    mine = f"field{int(name[1:])}"
    state[mine] = state[mine] + 1


def any_field(state, name, dice):
    one, other = dice.sample(range(FIELDS - 5), 2)
    state[f"field{one}"] = state[f"field{one}"] + state[f"field{other}"] + 1


def same_field(state, name, dice):
    state["field0"] = state["field0"] * 2 % 1_000_003 + 1


def claim(state, name, dice):
    free = next(task for task in state["tasks"] if task["owner"] is None)
    free["owner"] = name


def claim_any(state, name, dice):
    dice.choice([task for task in state["tasks"] if task["owner"] is None])["owner"] = name


WORK = {
    "counts tokens, appends a note, sets its own status": log,
    "the same, after it read the whole state for its prompt": prompt,
    "adds to a field of its own that it read": own,
    "rewrites one of 45 fields from what it and another say": any_field,
    "claims any task that is free": claim_any,
    "claims the first task that is free": claim,
    "rewrites the same field as all others from what it says": same_field,
}


async def worked(act, policy):
    """Return how many steps were written as they were, refused, and queued."""
    clock, merged, refused = FakeClock(), 0, 0
    async with quire.open("memory:", clock=clock, ids=lambda: "id") as store:
        wf = await store.create("w", begun())

        async def agent(number):
            nonlocal merged, refused
            dice = random.Random(number)
            for _ in range(STEPS):
                try:
                    async with wf.edit(author=f"a{number}", on_conflict=policy) as state:
                        act(state, f"a{number}", dice)
                        await clock.sleep(30 + 60 * dice.random())
                    merged += 1
                except MergeConflict:
                    refused += 1

        agents = asyncio.gather(*map(agent, range(AGENTS)))
        while not agents.done():
            await clock.wind(1)
        await agents
        queued = len({c.ours.version for c in await wf.conflicts(status="pending")})
        return merged - queued, refused, queued


async def table():
    print(f"{AGENTS} agents, {STEPS} steps each, of 30 to 90 s; of {AGENTS * STEPS} steps\n")
    print(f"{'each step':<58}{'merged':>8}{'refused':>9}{'or queued':>11}")
    for what, act in WORK.items():
        merged, refused, _ = await worked(act, None)
        _, none, queued = await worked(act, "queue")
        assert none == 0
        print(f"{what:<58}{merged:>8}{refused:>9}{queued:>11}")


if __name__ == "__main__":
    sys.exit(asyncio.run(table()))
