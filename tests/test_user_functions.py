"""Whatever a user's function raises, in whatever place: it is that function's failure, and everything else goes on.

One table of exceptions times one table of places, by the async API and by `quire.sync`, with plain and async functions.
Each place says what its result has to be; a hang fails by the timeout. In the main thread KeyboardInterrupt and SystemExit
end the program, which has tests of its own below; in the table they are raised on a loop in another thread.
"""

import asyncio
import contextlib
import threading
from inspect import isawaitable

import pytest

import quire
import quire.sync
from quire.config import Retention, Settings
from quire.core.schema import Schema
from quire.errors import FunctionFailed, HookFailed, InvalidEvent, MigrationFailed, ReducerFailed, StepFailed
from quire.orchestra import Retry, run, sequence, step
from quire.scripting import run_script
from quire.scripting.sync import run_script as run_script_sync
from quire.threads import Call, Threads

pytestmark = pytest.mark.timeout(60)


class Bare(BaseException):
    pass


class Unspeakable(Exception):
    def __str__(self):
        raise ValueError("no words")

    __repr__ = __str__


class Unutterable(BaseException):
    def __str__(self):
        raise Bare

    __repr__ = __str__


RAISED = {
    "RuntimeError": lambda: RuntimeError("as usual"),  # what the others are compared with
    "StopIteration": lambda: StopIteration("no more"),
    "StopAsyncIteration": StopAsyncIteration,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "Unspeakable": Unspeakable,
    "BaseExceptionGroup": lambda: BaseExceptionGroup("several", [GeneratorExit(), ValueError()]),
    "Bare": Bare,
    "Unutterable": Unutterable,
    "KeyboardInterrupt": KeyboardInterrupt,
    "SystemExit": lambda: SystemExit(3),
}
ENDS = ("KeyboardInterrupt", "SystemExit")
SETTINGS = Settings(delivery_backoff_s=(0.001, 0.001))


async def got(value):
    """Return what a call gives, by either API."""
    return await value if isawaitable(value) else value


async def until(true):
    for _ in range(4000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to that in time")


class Fails:
    """A user's function that raises so many times and then returns something. calls: what it was called with."""

    def __init__(self, name, times, result=None):
        self.name = name
        self.left = times
        self.result = result
        self.calls = []

    def plain(self, *args):
        self.calls.append(args)
        if self.left:
            self.left -= 1
            raise RAISED[self.name]()
        return self.result

    async def waiting(self, *args):
        await asyncio.sleep(0)
        return self.plain(*args)

    def named(self, text):
        """Whether a text names what was raised."""
        return self.name in text

    def is_reason(self, error):
        """Whether an error is what a caller gets where an ordinary exception is raised as it is."""
        if self.name in ("RuntimeError", "Unspeakable"):
            return type(error).__name__ == self.name
        if isinstance(error, RuntimeError) and str(error) == "coroutine raised StopIteration":
            return self.name == "StopIteration"  # Python's own, of an async function
        return isinstance(error, FunctionFailed) and self.named(str(error)) and self.is_cause(error.__cause__)

    def is_cause(self, error):
        return self.named(type(error).__name__) or self.named(str(error))


class Place:
    """Where a function is called. store: open, of the API that is tested."""

    def __init__(self, api, folder, name, how):
        self.api, self.folder, self.name, self.how = api, folder, name, how

    def fails(self, times=1, result=None):
        made = Fails(self.name, times, result)
        return made, made.waiting if self.how == "async" else made.plain

    @contextlib.asynccontextmanager
    async def open(self, **how):
        how = {"settings": SETTINGS, **how}
        url = f"{self.folder}/s.db"
        if self.api == "async":
            async with quire.open(url, **how) as store:
                yield store
        else:
            with quire.sync.open(url, **how) as store:
                yield store

    @contextlib.asynccontextmanager
    async def events(self, store, **how):
        if self.api == "async":
            async with quire.AsyncEventStore(store, **how) as events:
                yield events
        else:
            with quire.EventStore(store, **how) as events:
                yield events


async def error_of(call):
    try:
        await got(call())
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


async def others_go_on(w, state):
    """Everything is as it was, and the next write is made."""
    assert await got(w.state()) == state
    await got(w.set("/after", 1))
    assert await got(w.get("/after")) == 1


# places whose caller is told


async def an_update(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        other = w.inc("/n") if p.api == "sync" else asyncio.ensure_future(w.inc("/n"))
        assert made.is_reason(await error_of(lambda: w.update(fn)))
        await got(other)
        await others_go_on(w, {"n": 1})
        await got(w.update(fn))
        assert len(made.calls) == 2


async def a_policy(p):
    async with p.open() as store:
        w = await got(store.create("w", {"t": 0}))
        await got(w.set("/t", 1))
        made, fn = p.fails(result=7)
        assert made.is_reason(await error_of(lambda: w.set("/t", 2, base=1, on_conflict=fn)))
        await others_go_on(w, {"t": 1})
        assert await got(w.conflicts()) == []
        await got(w.set("/t", 2, base=1, on_conflict=fn))
        assert await got(w.get("/t")) == 7


async def a_policy_of_a_merge(p):
    async with p.open() as store:
        w = await got(store.create("w", {"t": 0}))
        fork = await got(w.fork("f"))
        await got(w.set("/t", 1))
        await got(fork.set("/t", 2))
        made, fn = p.fails(result=7)
        assert made.is_reason(await error_of(lambda: w.merge("f", on_conflict=fn)))
        await others_go_on(w, {"t": 1})
        await got(w.merge("f", on_conflict=fn))
        assert await got(w.get("/t")) == 7


async def a_guard(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        hook = store.before_change(fn, guard=True)
        error = await error_of(lambda: w.inc("/n"))
        assert isinstance(error, HookFailed) and made.named(str(error)) and made.is_cause(error.__cause__)
        await others_go_on(w, {"n": 0})
        assert (hook.failures, len(made.calls)) == (1, 2) and made.named(hook.last_error)


async def a_hook(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        hook = store.before_change(fn)
        await got(w.inc("/n"))
        await others_go_on(w, {"n": 1})
        assert (hook.failures, len(made.calls)) == (1, 2) and made.named(hook.last_error)


async def a_migration(p):
    async with p.open(schemas=[Schema("s")]) as store:
        await got(store.create("w", {"n": 0}, schema="s"))
        await got(store.create("v", {"n": 0}))
    made, fn = p.fails()
    async with p.open(schemas=[Schema("s", version=2, migrations={1: fn})]) as store:
        w, v = store.workflow("w"), store.workflow("v")
        error = await error_of(lambda: w.inc("/n"))
        assert isinstance(error, MigrationFailed) and made.named(str(error)) and made.is_cause(error.__cause__)
        assert await got(w.state(1)) == {"$schema": "s/1", "n": 0} and len(await got(w.history())) == 1
        await others_go_on(v, {"n": 0})
        await got(w.inc("/n"))
        assert await got(w.state()) == {"$schema": "s/2", "n": 1}


async def a_migration_that_is_only_planned(p):
    async with p.open(schemas=[Schema("s")]) as store:
        await got(store.create("w", {"n": 0}, schema="s"))
    made, fn = p.fails()
    async with p.open(schemas=[Schema("s", version=2, migrations={1: fn})]) as store:
        (done,) = await got(store.migrate(plan=True))
        assert made.named(done.error)


async def a_reducer(p):
    made, fn = p.fails(result={"n": 1})
    async with p.open() as store, p.events(store, reducers=fn) as events:
        await got(events.append("a", {}))
        error = await error_of(events.replay)
        assert isinstance(error, ReducerFailed) and made.named(str(error)) and made.is_cause(error.__cause__)
        assert (await got(events.append("a", {}))).version == 1
        assert await got(events.replay()) == {"n": 1}


async def an_upcaster(p):
    made, fn = p.fails(result={})
    async with p.open() as store:
        async with p.events(store) as events:
            await got(events.append("a", {}))
        schema = quire.EventSchema(version=2, upcast={1: fn})
        async with p.events(store, schemas={"a": schema}) as events:
            error = await error_of(events.get_all_events)
            assert isinstance(error, InvalidEvent) and made.named(str(error)) and made.is_cause(error.__cause__)
            (event,) = await got(events.get_all_events())
            assert event.data == {}


async def a_model_of_events(p):
    made, fn = p.fails()
    async with p.open() as store, p.events(store, schemas={"a": quire.EventSchema(fn)}) as events:
        error = await error_of(lambda: events.append("a", {}))
        assert isinstance(error, InvalidEvent) and made.named(str(error)) and made.is_cause(error.__cause__)
        assert await got(events.get_version()) == -1
        assert (await got(events.append("a", {}))).version == 0


async def a_replay(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        await got(w.inc("/n"))
        made, fn = p.fails()
        assert made.is_reason(await error_of(lambda: w.replay(fn)))
        await others_go_on(w, {"n": 1})
        assert await got(w.replay(fn)) == 3


async def a_bisection(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        await got(w.inc("/n"))
        made, fn = p.fails(result=False)
        assert made.is_reason(await error_of(lambda: w.bisect(fn)))
        await others_go_on(w, {"n": 1})


async def a_rule_of_retention(p):
    made, fn = p.fails(result=True)
    rules = Retention(goes=lambda name, version: name == "w" and fn(name, version), every_s=0)
    async with p.open(archive=f"{p.folder}/old", retention=rules) as store:
        for name in ("v", "w"):
            w = await got(store.create(name, {"n": 0}))
            await got(w.inc("/n"))
        swept = await got(store.sweep())
        assert swept.moved == {} and len(swept.problems) == 1 and made.named(swept.problems[0])
        assert (await got(store.sweep())).moved == {"w": 1}
        await others_go_on(w, {"n": 1})


async def the_progress_of_a_backup(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        place = f"file:///{p.folder}/backups"
        assert made.is_reason(await error_of(lambda: store.backup(place, progress=fn)))
        await others_go_on(w, {"n": 0})
        assert (await got(store.backup(place, progress=fn))).versions


async def the_progress_of_a_copy(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        target = f"{p.folder}/copy.db"
        assert made.is_reason(await error_of(lambda: store.copy_to(target, progress=fn)))
        await others_go_on(w, {"n": 0})
        assert (await got(store.copy_to(target, progress=fn))).versions


async def what_a_script_prints(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        script = run_script if p.api == "async" else run_script_sync
        source = "workflow.increment('n') print('x')"
        assert made.is_reason(await error_of(lambda: script(store, source, workflow="w", on_print=fn)))
        await others_go_on(w, {"n": 0})


async def the_block_of_an_edit(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails()
        try:
            if p.api == "async":
                async with w.edit() as state:
                    state["n"] = 9
                    fn()
            else:
                with w.edit() as state:
                    state["n"] = 9
                    fn()
        except BaseException as error:  # the user's own frame: it comes out as it is
            assert type(error) is type(RAISED[p.name]())
        await others_go_on(w, {"n": 0})


async def a_step(p):
    async with p.open() as store:
        made, fn = p.fails(times=2, result=5)

        async def before(ctx):
            ctx.state["before"] = 1

        team = sequence(before, step(fn, name="bad", retry=Retry(2, 0.001)))
        error = await error_of(lambda: run(store, team, id="r"))
        assert isinstance(error, StepFailed) and made.named(str(error)) and made.is_cause(error.__cause__)
        state = await store.workflow("r").state()
        assert made.named(state["_run"]["steps"]["bad"]["error"]) and state["before"] == 1
        assert state["_run"]["status"] == "failed" and state["_run"]["steps"]["bad"]["status"] == "failed"
        result = await run(store, team, id="r")
        assert (result.result, result.ran, len(made.calls)) == (5, ["bad"], 3)


async def a_step_with_a_timeout(p):
    async with p.open() as store:
        made, fn = p.fails()
        error = await error_of(lambda: run(store, step(fn, name="bad", timeout_s=30), id="r"))
        assert isinstance(error, StepFailed) and made.named(str(error)) and made.is_cause(error.__cause__)
        assert (await run(store, step(fn, name="bad", timeout_s=30), id="r")).ran == ["bad"]


# places that are told of events, and called again with the same one


async def told_again(w, made, *, event=lambda args: args[0].version.number):
    """The first event comes again until it is taken, then the second."""
    await got(w.inc("/n"))
    await got(w.inc("/n"))
    await until(lambda: len(made.calls) == 4)
    numbers = [event(args) for args in made.calls]
    assert numbers == [numbers[0]] * 3 + [numbers[0] + 1]
    await others_go_on(w, {"n": 2})


async def a_handler(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails(times=2)
        heard = []
        listener = store.on_change(fn, path="/n")
        store.on_change(heard.append, path="/n")
        await told_again(w, made)
        await until(lambda: len(heard) == 2)
        assert listener.failures == 2 and made.named(listener.last_error)


async def a_trigger(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails(times=2)
        trigger = await got(store.trigger("t", fn, path="/n"))
        await told_again(w, made)
        assert trigger.failures == 2 and made.named(trigger.last_error)


async def a_trigger_that_is_parked(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails(times=2)
        await got(store.trigger("t", fn, path="/n", attempts=2))
        await got(w.inc("/n"))
        await until(lambda: len(made.calls) == 2)
        while (state := (await got(store.triggers()))[0]).status != "parked":
            await asyncio.sleep(0.005)
        assert made.named(state.error) and state.attempts == 2
        await got(store.resume_trigger("t"))
        await until(lambda: len(made.calls) == 3)


async def the_condition_of_a_trigger(p):
    async with p.open() as store:
        w = await got(store.create("w", {"n": 0}))
        made, fn = p.fails(times=2, result=True)
        trigger = await got(store.trigger("t", lambda event: None, path="/n", when=fn))
        await told_again(w, made)
        await until(lambda: trigger.calls == 2)
        assert trigger.failures == 2 and made.named(trigger.last_error)


async def a_handler_of_a_manager(p):
    async with p.open() as store:
        manager = quire.StateManager(store)
        await manager.start()
        w = await store.create("w", {"n": 0})
        made, fn = p.fails(times=2)
        manager.register_agent("a", fn)
        await manager.subscribe_to_state_changes("w", "a")
        change = lambda args: args[0]["payload"]["change"]["newValue"]
        await told_again(w, made, event=change)
        await manager.close()


async def an_analytics_sink(p):
    async with p.open() as store:
        made, fn = p.fails()
        manager = quire.StateManager(store, {"analytics": fn})
        state = {"id": "w", "name": "w", "status": "running", "createdAt": 1}
        task = {"type": "persist-state", "payload": {"workflowId": "w", "state": state}}
        for _ in range(2):
            done = await manager.process_task(task)
            assert done.status == "success", done
        assert made.calls


async def a_subscription(p):
    async with p.open() as store, p.events(store) as events:
        made, fn = p.fails(times=2)
        heard = []
        told = await got(events.subscribe("a", fn))
        await got(events.subscribe("a", heard.append))
        for number in range(2):
            await got(events.append("a", {"n": number}))
        await until(lambda: len(made.calls) == 4)
        assert [args[0].version for args in made.calls] == [0, 0, 0, 1]
        await until(lambda: told.delivered == len(heard) == 2)
        assert (told.failures, told.last_error, len(heard)) == (2, None, 2)


async def an_upcaster_of_a_subscription(p):
    async with p.open() as store:
        async with p.events(store) as events:
            await got(events.append("a", {}))
        made, fn = p.fails(times=2, result={})
        schema = quire.EventSchema(version=2, upcast={1: fn})
        async with p.events(store, schemas={"a": schema}) as events:
            heard = []
            await got(events.subscribe("a", heard.append, after=-1))
            await until(lambda: heard)
            assert len(made.calls) == 3


BOTH, ASYNC = ("async", "sync"), ("async",)
PLAIN, EITHER = ("plain",), ("plain", "async")
PLACES = [
    (an_update, BOTH, PLAIN),
    (a_policy, BOTH, PLAIN),
    (a_policy_of_a_merge, BOTH, PLAIN),
    (a_guard, BOTH, PLAIN),
    (a_hook, BOTH, PLAIN),
    (a_migration, BOTH, PLAIN),
    (a_migration_that_is_only_planned, BOTH, PLAIN),
    (a_reducer, BOTH, PLAIN),
    (an_upcaster, BOTH, PLAIN),
    (a_model_of_events, BOTH, PLAIN),
    (a_replay, BOTH, EITHER),
    (a_bisection, BOTH, EITHER),
    (a_rule_of_retention, BOTH, PLAIN),
    (the_progress_of_a_backup, BOTH, PLAIN),
    (the_progress_of_a_copy, BOTH, PLAIN),
    (what_a_script_prints, BOTH, PLAIN),
    (the_block_of_an_edit, BOTH, PLAIN),
    (a_step, ASYNC, EITHER),
    (a_step_with_a_timeout, ASYNC, EITHER),
    (a_handler, BOTH, EITHER),
    (a_trigger, BOTH, EITHER),
    (a_trigger_that_is_parked, BOTH, EITHER),
    (the_condition_of_a_trigger, BOTH, PLAIN),
    (a_handler_of_a_manager, ASYNC, EITHER),
    (an_analytics_sink, ASYNC, PLAIN),
    (a_subscription, ASYNC, EITHER),
    (a_subscription, ("sync",), PLAIN),
    (an_upcaster_of_a_subscription, BOTH, PLAIN),
]
TABLE = [
    pytest.param(place, api, how, id=f"{place.__name__}-{api}-{how}")
    for place, apis, hows in PLACES
    for api in apis
    for how in hows
]


def elsewhere(work):
    """Run a coroutine on a loop in a thread that is not the main one."""
    ended = []

    def main():
        try:
            ended.append(asyncio.run(work))
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    thread.join(45)
    assert ended, "it did not end"
    if ended[0] is not None:
        raise ended[0]


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize(("place", "api", "how"), TABLE)
def test_what_a_function_raises_is_its_failure_and_the_rest_goes_on(tmp_path, place, api, how, name):
    work = asyncio.wait_for(place(Place(api, tmp_path, name, how)), 40)
    here = name not in ENDS or (api == "sync" and place is not a_model_of_events)  # which its caller's thread calls
    asyncio.run(work) if here else elsewhere(work)


# the check of the checks


class OldCall(Call):
    """A call as it was made before: by `asyncio.to_thread`."""

    __slots__ = ("task",)

    def __init__(self, fn, args):
        self.task = asyncio.ensure_future(asyncio.to_thread(fn, *args))

    begun = True

    async def result(self):
        return await asyncio.shield(self.task)

    def withdraw(self):
        return False

    async def ended(self):
        await asyncio.wait([self.task], timeout=0.1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_negative_control_with_the_old_way_of_calling_the_check_fails(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Threads, "begin", lambda self, fn, *args: OldCall(fn, args))

    async def late():
        checked = asyncio.ensure_future(a_step(Place("async", tmp_path, "StopIteration", "plain")))
        done, _ = await asyncio.wait([checked], timeout=3)
        checked.cancel()
        await asyncio.wait([checked])
        return done

    assert not asyncio.run(late()), "a step that raises StopIteration in a thread of asyncio should have hung"


# the main thread


async def ends_in_update(store, w, fn):
    await w.update(lambda state: fn())


async def ends_in_hook(store, w, fn):
    store.before_change(lambda proposed: fn())
    await w.inc("/n")


async def ends_in_handler(store, w, fn):
    store.on_change(lambda event: fn(), path="/m")
    await w.set("/m", 1)
    await asyncio.sleep(30)


async def ends_in_step(store, w, fn):
    async def agent(ctx):
        ctx.state["half"] = 1
        fn()

    await run(store, step(agent), id="r")


async def ends_in_callback(store, w, fn):
    await w.replay(lambda version, state: fn())


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("use", [ends_in_update, ends_in_hook, ends_in_handler, ends_in_step, ends_in_callback])
def test_in_the_main_thread_these_end_the_program_and_lose_nothing(tmp_path, use, error, grouped):
    closed = []

    def fn():
        raise BaseExceptionGroup("all", [ValueError(), error(3)]) if grouped else error(3)

    async def main():
        async with quire.open(f"{tmp_path}/s.db") as store:
            w = await store.create("w", {"n": 0})
            await w.inc("/n")
            try:
                await use(store, w, fn)
            finally:
                closed.append(1)

    with pytest.raises(error) as caught:
        asyncio.run(main())
    assert caught.value.args == (3,) and closed == [1]
    with quire.sync.open(f"{tmp_path}/s.db") as store:
        assert store.workflow("w").get("/n") == 1
        assert store.verify().ok
        store.workflow("w").inc("/n")
        if use is ends_in_step:
            assert "half" not in store.workflow("r").state()
            assert store.workflow("r").state()["_run"]["steps"] == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_task_of_the_users_that_ends_loops_leaves_no_caller_of_sync_waiting(tmp_path, error, caplog):
    with quire.sync.open(f"{tmp_path}/s.db") as store:
        w = store.create("w", {"n": 0})
        tried = threading.Event()

        async def bad():
            tried.set()
            raise error

        @store.on_change(path="/n")
        async def heard(event):
            heard.task = asyncio.get_running_loop().create_task(bad())
            heard.task.add_done_callback(lambda task: task.exception())

        w.inc("/n")
        assert tried.wait(10)
        for _ in range(3):
            w.inc("/n")
        assert w.get("/n") == 4


# real cancellations


async def test_a_run_that_is_cancelled_is_cancelled_and_its_steps_are_not_failed(tmp_path):
    async with quire.open("memory:") as store:
        begun = asyncio.Event()

        async def waits(ctx):
            begun.set()
            await asyncio.sleep(60)

        running = asyncio.ensure_future(run(store, step(waits, retry=Retry(3, 0)), id="r"))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await store.workflow("r").state())["_run"]["steps"] == {}


@pytest.mark.parametrize("kind", ["handler", "trigger", "manager", "events"])
@pytest.mark.parametrize("then", ["returns", "raises"])
async def test_a_handler_that_swallows_its_cancellation_does_not_hold_up_the_end(kind, then):
    begun = asyncio.Event()

    async def fn(event):
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if then == "raises":
                raise ValueError from None

    store = await quire.open("memory:", settings=SETTINGS)
    w = await store.create("w", {"n": 0})
    close = store.close
    if kind == "handler":
        store.on_change(fn)
    elif kind == "trigger":
        await store.trigger("t", fn)
    elif kind == "manager":
        manager = quire.StateManager(store)
        manager.register_agent("a", fn)
        await manager.subscribe_to_state_changes("w", "a")
        close = manager.close
    else:
        events = quire.AsyncEventStore(store)
        await events.start()
        close = (await events.subscribe(None, fn)).cancel
        await events.append("a", {})
    await w.inc("/n")
    await begun.wait()
    await asyncio.wait_for(close(), 10)
    await store.close()


# plain steps


def test_a_plain_step_whose_time_is_over_before_it_began_never_begins(tmp_path):
    async def main():
        async with quire.open("memory:", settings=Settings(threads_max=1)) as store:
            begun, go_on, ran = threading.Event(), threading.Event(), []

            def holds(ctx):
                begun.set()
                go_on.wait(30)

            def late(ctx):
                ran.append(ctx.key)

            holding = asyncio.ensure_future(run(store, step(holds), id="a"))
            await until(begun.is_set)
            with pytest.raises(StepFailed, match="before one of 1 threads was free.*never began"):
                await run(store, step(late, timeout_s=0.05), id="b")
            go_on.set()
            await holding
            await run(store, step(lambda ctx: None, name="c"), id="c")
            assert ran == []
            await run(store, step(late, timeout_s=5), id="b")
            assert ran == ["late"]

    asyncio.run(main())


async def test_a_plain_step_that_runs_when_its_time_is_over_is_waited_for_and_the_error_says_so():
    async with quire.open("memory:") as store:
        begun, go_on, ended = threading.Event(), threading.Event(), []

        def slow(ctx):
            begun.set()
            go_on.wait(30)
            ended.append(1)

        running = asyncio.ensure_future(run(store, step(slow, timeout_s=0.05), id="r"))
        await until(begun.is_set)
        await asyncio.sleep(0.1)
        assert not running.done()
        go_on.set()
        with pytest.raises(StepFailed, match="while its plain function ran, which cannot be stopped"):
            await running
        assert ended == [1]


@pytest.mark.parametrize(
    "bad", [object(), float("nan"), "x" * 20_000_000, {"a": {1, 2}}], ids=["o", "nan", "20MB", "set"]
)
@pytest.mark.parametrize("how", ["plain", "async"])
async def test_a_result_that_cannot_be_stored_is_not_paid_for_twice(bad, how):
    made = Fails("RuntimeError", 0, bad)
    async with quire.open("memory:") as store:
        with pytest.raises(StepFailed, match="what it made cannot be stored, so it was not tried again"):
            fn = made.waiting if how == "async" else made.plain
            await run(store, step(fn, name="s", retry=Retry(3, 0.001)), id="r")
        assert len(made.calls) == 1
        assert (await store.workflow("r").state())["_run"]["steps"]["s"]["status"] == "failed"


async def test_an_agent_that_is_refused_while_it_works_is_retried():
    calls = []

    async def agent(ctx):
        calls.append(1)
        ctx.state["when"] = object() if len(calls) == 1 else 1

    async with quire.open("memory:") as store:
        assert (await run(store, step(agent, retry=Retry(2, 0)), id="r")).state["when"] == 1


def test_a_callback_of_events_is_called_by_one_thread_always():
    with quire.sync.open("memory:") as store, quire.EventStore(store) as events:
        threads = []
        events.subscribe("a", lambda event: threads.append(threading.current_thread()))
        for _ in range(3):
            events.append("a", {})
            assert events.drain(10)
        assert len(set(threads)) == 1
