"""Steps whose commit does not say whether it is stored: the log is asked before an agent runs again."""

import asyncio

import pytest

import quire
from quire.engine.clock import FakeClock, system_ids
from quire.errors import OutcomeUnknown, StepFailed, StorageError
from quire.orchestra import Retry, RunLost, resume, run, sequence, step
from quire.scopes import StateBuilder, WorkflowStateManager
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer

URLS = {
    "memory": "memory:",
    "sqlite": "sqlite:///{}/s.db",
    "files": "file:///{}/s",
    "rocksdb": "rocksdb:///{}/s",
}
SERVERS = {"postgres": PostgresServer, "redis": RedisServer, "nats": NatsServer}
THRICE = Retry(attempts=3, pause_s=0)


@pytest.fixture(params=[*URLS, *SERVERS])
async def store(request, tmp_path):
    kind = request.param
    url = URLS[kind].format(tmp_path) if kind in URLS else shared(SERVERS[kind]).url
    async with quire.open(url, namespace=f"unheard-{system_ids()()}") as opened:
        yield opened


class Unheard:
    """Has one commit of a step fail, stored or not, and the store be away after it. away: how often it cannot be asked."""

    def __init__(self, store, *, away=1, stored=True):
        self.backend, self.away, self.stored, self.failed = store.engine.backend, away, stored, False
        self.commit, self.recover = self.backend.commit, self.backend.recover
        self.backend.commit, self.backend.recover = self.committing, self.recovering

    async def committing(self, items):
        steps = [r for item in items for r in item.records if r.kind == "step"]
        if self.failed or not steps:
            return await self.commit(items)
        self.failed = True
        if self.stored:
            await self.commit(items)
        raise StorageError("gone")

    async def recovering(self):
        if self.away:
            self.away -= 1
            raise StorageError("still gone")
        await self.recover()


def counting(ran):
    async def agent(ctx):
        ran.append(ctx.attempt)
        ctx.state["n"] += 1
        return "counted"

    return agent


@pytest.mark.parametrize("retry", [Retry(attempts=1), THRICE])
async def test_a_step_that_is_stored_is_not_run_again(store, retry):
    ran = []
    Unheard(store)
    result = await run(store, step(counting(ran), retry=retry), id="r", state={"n": 1})
    assert (ran, result.state["n"], result.result, result.ran) == ([1], 2, "counted", ["agent"])
    assert result.state["_run"]["steps"]["agent"]["status"] == "done"
    assert (await store.verify()).ok


async def test_a_step_that_is_not_stored_is_run_again_and_counts_once(store):
    ran = []
    Unheard(store, stored=False)
    result = await run(store, step(counting(ran), retry=THRICE), id="r", state={"n": 1})
    assert (ran, result.state["n"]) == ([1, 2], 2)
    assert (await store.verify()).ok


async def test_a_step_that_is_not_stored_and_is_not_tried_again_fails(store):
    ran = []
    Unheard(store, stored=False)
    with pytest.raises(StepFailed) as failed:
        await run(store, step(counting(ran)), id="r", state={"n": 1})
    assert isinstance(failed.value.__cause__, OutcomeUnknown)
    wf = store.workflow("r")
    assert (ran, await wf.get("/n")) == ([1], 1)
    assert (await wf.get("/_run/steps/agent/status"), await wf.get("/_run/status")) == ("failed", "failed")


async def test_all_that_waits_of_a_step_is_listed_once(store):
    ran = []

    async def agent(ctx):
        ran.append(ctx.attempt)
        ctx.state["n"] = ctx.state["n"] * 2
        if len(ran) == 1:
            await store.workflow("r").set("/n", 7)

    Unheard(store)
    result = await run(store, step(agent, retry=THRICE), id="r", state={"n": 1})
    (conflict,) = result.conflicts
    assert [conflict] == await store.workflow("r").conflicts()
    assert (ran, conflict.status, result.state["n"]) == ([1], "pending", 7)


async def test_what_a_step_wrote_to_scoped_state_is_there_once(store):
    ran = []

    async def agent(ctx):
        ran.append(ctx.attempt)
        ctx.state_accessor.increment("seen")

    Unheard(store)
    await run(store, step(agent, retry=THRICE), id="r", scoped=StateBuilder())
    assert (ran, await WorkflowStateManager(store).workflow_state("r").get("seen")) == ([1], 1)


async def test_a_step_that_runs_again_while_it_is_stale_is_not_run_once_it_is_stored(store):
    ran = []

    async def agent(ctx):
        ran.append(ctx.attempt)
        ctx.state["n"] = ctx.state["n"] * 2
        if len(ran) == 1:
            await store.workflow("r").set("/n", 7)

    Unheard(store)
    result = await run(store, step(agent, on_stale="rerun", retry=THRICE), id="r", state={"n": 1})
    assert (ran, result.state["n"]) == ([1, 2], 14)


async def wound(clock, running):
    """Let time pass until something is done; return how many seconds it took."""
    seconds = 0
    while not running.done():
        if clock.sleepers:
            await clock.wind(0.5)
            seconds += 0.5
        await asyncio.sleep(0)
    return seconds


async def test_a_store_that_is_away_for_longer_is_asked_again():
    clock, ran = FakeClock(), []
    async with quire.open("memory:", clock=clock) as store:
        Unheard(store, away=4)
        running = asyncio.ensure_future(run(store, step(counting(ran)), id="r", state={"n": 1}))
        assert await wound(clock, running) == 0.5 + 1 + 2
        assert (ran, running.result().state["n"]) == ([1], 2)


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("more", [0, 1])
async def test_an_agent_is_not_run_while_nobody_knows_and_going_on_finds_out(stored, more):
    """more: how often the store is away still when the failure is noted down."""
    clock, ran = FakeClock(), []
    async with quire.open("memory:", clock=clock) as store:
        Unheard(store, away=6 + more, stored=stored)
        both = sequence(step(counting(ran), retry=THRICE), step(counting(ran), name="next"))
        running = asyncio.ensure_future(run(store, both, id="r", state={"n": 1}))
        await wound(clock, running)
        assert isinstance(running.exception(), StepFailed)
        assert isinstance(running.exception().__cause__, StorageError)
        assert ran == [1]
        assert (await store.workflow("r").get("/n")) == 1 + stored
        result = await resume(store, both, id="r")
        assert (len(ran), result.state["n"]) == (2 if stored else 3, 3)
        assert result.resumed == (["agent"] if stored else [])


async def test_a_run_that_was_taken_over_meanwhile_stops():
    ran = []
    async with quire.open("memory:runs") as one, quire.open("memory:runs") as other:
        unheard = Unheard(one)
        recover = one.engine.backend.recover

        async def recovering():
            if unheard.away:
                await resume(other, step(counting(ran)), id="r")
            await recover()

        one.engine.backend.recover = recovering
        with pytest.raises(RunLost):
            await run(one, step(counting(ran), retry=THRICE), id="r", state={"n": 1})
        assert (ran, await other.workflow("r").get("/n")) == ([1], 2)
