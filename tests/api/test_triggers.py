"""Triggers: at least once, in order, across restarts, one process at a time; parked when they keep failing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import apsw
import pytest

import quire
from quire.api.trigger_desk import Desk
from quire.engine.clock import FakeClock
from quire.errors import AlreadyExists, Conflict, Invalid, InvalidKey, NotFound, StorageUnavailable
from quire.storage.base import CellWrite

RUNNER = str(Path(__file__).parent / "trigger_runner.py")


class Told(list):
    """What a trigger was told, and a way to wait for it."""

    def __init__(self):
        super().__init__()
        self._more = asyncio.Event()

    def __call__(self, event):
        self.append(event)
        self._more.set()

    async def count(self, number):
        async with asyncio.timeout(60):
            while len(self) < number:
                self._more.clear()
                await self._more.wait()
        return [e.new for e in self]


async def until(check):
    """Look again each time the loop turns: what is waited for needs no clock."""
    async with asyncio.timeout(60):
        while not (found := await check()):
            await asyncio.sleep(0)
    return found


async def status(store, name="t"):
    return next(s for s in await store.triggers() if s.name == name)


@pytest.fixture
async def wf(store):
    return await store.create("w", {"n": 0, "log": []}, author="ann")


async def test_a_trigger_is_told_of_what_matches_from_now_on_in_order(store, wf):
    told = Told()
    await wf.inc("/n")
    made = await store.trigger("t", told, path="/n", when=lambda e: e.new % 2 == 0)
    await asyncio.gather(*(wf.inc("/n") for _ in range(20)), *(wf.append("/log", i) for i in range(20)))
    assert await told.count(10) == list(range(2, 22, 2))
    assert [e.old for e in told] == list(range(1, 21, 2))
    assert (made.calls, made.failures, made.author) == (10, 0, "trigger/t")


async def test_a_new_trigger_may_begin_with_all_history(store, wf):
    await wf.inc("/n", 5)
    told = Told()
    await store.trigger("t", told, path="/n", after=0)
    assert await told.count(2) == [0, 5]


async def test_what_happened_while_nobody_ran_it_is_delivered_after_a_restart(tmp_path):
    path = str(tmp_path / "s.db")
    first, second = Told(), Told()
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await store.trigger("t", first, path="/n")
        await wf.inc("/n")
        await wf.inc("/n")
        await first.count(2)
        await until(lambda: moved(store, 4))
    async with quire.open(path) as store:
        wf = store.workflow("w")
        for _ in range(700):
            await wf.set("/other", await wf.get("/n"))
            await wf.inc("/n")
    async with quire.open(path) as store:
        await store.trigger("t", second, path="/n")
        assert await second.count(700) == list(range(3, 703))
    assert [e.new for e in first] == [1, 2]


async def moved(store, at_least, name="t"):
    return (await status(store, name)).position >= at_least


async def test_each_event_that_succeeded_is_behind_the_cursor_before_the_next_is_told(store, wf):
    seen = []

    async def look(event):
        seen.append(((await status(store)).position, event.position))

    await store.trigger("t", look, path="/n")
    for _ in range(5):
        await wf.inc("/n")
    await until(lambda: moved(store, 7))
    assert [p for p, _ in seen[1:]] == [p for _, p in seen[:-1]]


async def test_a_trigger_does_not_see_what_it_writes_unless_it_asks_to(store, wf):
    async def count_up(event):
        await wf.inc("/n")  # the same path: it would set itself off for ever

    mine = await store.trigger("t", count_up, path="/n")
    await wf.inc("/n")
    await until(lambda: settled(wf, 2))
    await wf.set("/done", True)
    told = Told()
    await store.trigger("last", told, path="/done", after=0)
    await told.count(1)
    assert mine.calls == 1
    versions = await wf.history(path="/n", order="oldest")
    assert [v.author for v in versions] == ["ann", "system", "trigger/t"]
    assert quire.correlation_of(versions[2]) == versions[1].id  # what it was caused by
    mine.remove()

    loop = Told()

    async def three_times(event):
        loop(event)
        if event.new < 5:
            await wf.inc("/n")

    await store.trigger("own", three_times, path="/n", own=True)
    await wf.inc("/n")
    assert await loop.count(3) == [3, 4, 5]


async def settled(wf, n):
    return await wf.get("/n") == n


async def test_a_failing_trigger_is_tried_again_then_parked_then_resumed(tmp_path):
    clock, tries, told = FakeClock(), [], Told()
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        broken = True

        def fails(event):
            tries.append(event.new)
            if event.new == 2 and broken:
                raise OSError("the mail server is away \ud800")
            told(event)

        made = await store.trigger("t", fails, path="/n", attempts=3)
        for _ in range(4):
            await wf.inc("/n")
        for _ in range(2):
            await until(lambda: asleep(clock, 2))
            await clock.wind(1)
        await until(lambda: is_parked(store))
        assert tries == [1, 2, 2, 2]
        state = await status(store)
        assert (state.status, state.workflow_id, state.version, state.attempts) == ("parked", "w", 3, 3)
        assert "the mail server is away" in state.error
        assert (state.position, state.owned) == (3, True)
        assert state.behind >= 3
        assert (made.failures, made.last_error) == (3, "OSError: the mail server is away \\ud800")
        broken = False
        await store.resume_trigger("t")
        assert await told.count(4) == [1, 2, 3, 4]
        await until(lambda: moved(store, 6))
        assert (await status(store)).status == "active"
        await store.resume_trigger("t")  # nothing to do
        assert (await store.verify()).ok


async def asleep(clock, number):
    return clock.sleepers >= number


async def is_parked(store):
    return (await status(store)).status == "parked"


async def test_a_parked_trigger_stays_so_after_a_restart_and_can_be_resumed_after_its_event_by_another_process(
    tmp_path,
):
    path, told = str(tmp_path / "s.db"), Told()

    def fails(event):
        if event.new == 1:
            raise ValueError("a poisoned event")
        told(event)

    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        await store.trigger("t", fails, path="/n", attempts=1)
        await wf.inc("/n")
        await until(lambda: is_parked(store))
    async with quire.open(path) as store, quire.open(path) as other:
        await store.trigger("t", fails, path="/n", attempts=1)
        await store.workflow("w").inc("/n")
        await store.workflow("w").inc("/n")
        await until(lambda: is_owned(store))
        assert await is_parked(store)
        await other.resume_trigger("t", skip=True)
        assert await told.count(2) == [2, 3]


async def is_owned(store):
    return (await status(store)).owned


async def test_a_predicate_that_raises_counts_as_a_failure(store, wf):
    await store.trigger("t", print, path="/n", when=lambda e: e.new / 0, attempts=1)
    await wf.inc("/n")
    await until(lambda: is_parked(store))
    assert "division by zero" in (await status(store)).error


async def test_a_function_that_cancels_itself_is_a_failure_like_others(store, wf):
    async def gives_up(event):
        raise asyncio.CancelledError

    await store.trigger("t", gives_up, path="/n", attempts=1)
    await wf.inc("/n")
    await until(lambda: is_parked(store))


async def test_a_name_runs_once_in_a_store_and_is_free_again_after_remove(store, wf):
    made = await store.trigger("t", print)
    with pytest.raises(AlreadyExists):
        await store.trigger("t", print)
    made.remove()
    await asyncio.gather(made.task, return_exceptions=True)
    assert not (await status(store)).owned  # the lease is given back
    await store.trigger("t", print)


async def test_a_dropped_trigger_is_gone_and_a_new_one_of_its_name_begins_anew(store, wf):
    told, again = Told(), Told()
    await store.trigger("t", told, path="/n")
    await wf.inc("/n")
    await told.count(1)
    await store.drop_trigger("t")
    assert await store.triggers() == []
    for call in (store.drop_trigger("t"), store.resume_trigger("t"), store.drop_trigger("never")):
        with pytest.raises(NotFound):
            await call
    await wf.inc("/n")
    await until(lambda: gone(store))
    await store.trigger("t", again, path="/n")
    await wf.inc("/n")
    assert await again.count(1) == [3]
    assert len(told) == 1


async def gone(store):
    return not store.reactions.named


async def test_a_trigger_dropped_elsewhere_ends(tmp_path):
    path, told = str(tmp_path / "s.db"), Told()
    async with quire.open(path) as store, quire.open(path) as other:
        wf = await store.create("w", {"n": 0})
        await store.trigger("t", told, path="/n")
        await wf.inc("/n")
        await told.count(1)
        await until(lambda: moved(store, 2))
        await other.drop_trigger("t")
        await wf.inc("/n")
        await until(lambda: gone(store))
        assert len(told) == 1


async def test_an_owner_that_was_overtaken_cannot_move_the_cursor_and_the_event_comes_again(tmp_path, caplog):
    """As if the process had been stopped for longer than its lease: the new owner is the one that counts."""
    path = str(tmp_path / "s.db")
    async with quire.open(path) as store:
        wf = await store.create("w", {"n": 0})
        seen, go_on = [], asyncio.Event()

        async def act(event):
            seen.append(event.new)
            if len(seen) == 1:
                await go_on.wait()

        clock = FakeClock()
        store.engine.clock = clock
        made = await store.trigger("t", act, path="/n")
        await wf.inc("/n")
        await until(lambda: told_once(seen))
        desk = Desk(store.engine, "t")
        cell = await store.engine.backend.cell(desk.lease)
        await store.engine.committer.submit((), (CellWrite(desk.lease, cell.value, b"another", 60_000),))
        before = (await status(store)).position
        caplog.set_level("INFO", "quire.triggers")
        go_on.set()
        await until(lambda: lost(caplog))
        assert (await status(store)).position == before
        assert made.calls == 1
        await store.engine.committer.submit((), (CellWrite(desk.lease, b"another", None),))
        await until(lambda: winds(clock, seen))
        assert seen == [1, 1]


async def lost(caplog):
    return "its lease was lost" in caplog.text


async def told_once(seen):
    return bool(seen)


async def winds(clock, seen):
    await clock.wind(5)
    return len(seen) == 2


async def test_a_lease_that_ran_out_unseen_is_taken_again_without_telling_twice(store, wf):
    told = Told()
    desk = Desk(store.engine, "t")

    async def slow(event):
        cell = await store.engine.backend.cell(desk.lease)  # as if it had held up the loop for longer than the lease
        await store.engine.committer.submit((), (CellWrite(desk.lease, cell.value, None),))
        told(event)

    await store.trigger("t", slow, path="/n")
    for _ in range(3):
        await wf.inc("/n")
    assert await told.count(3) == [1, 2, 3]
    await until(lambda: moved(store, told[-1].position))
    assert (await status(store)).owned


async def test_heartbeat_and_work_do_not_take_a_lease_that_ran_out_from_each_other(tmp_path, caplog):
    caplog.set_level("INFO", "quire.triggers")
    clock, told, winding = FakeClock(), Told(), []
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf, desk = await store.create("w", {"n": 0}), Desk(store.engine, "t")

        async def beside_a_heartbeat(event):
            cell = await store.engine.backend.cell(desk.lease)
            await store.engine.committer.submit((), (CellWrite(desk.lease, cell.value, None),))
            told(event)
            winding.append(asyncio.ensure_future(clock.wind(6)))  # the heartbeat comes while the cursor is moved

        await store.trigger("t", beside_a_heartbeat, path="/n")
        await until(lambda: asleep(clock, 1))
        for i in range(1, 11):
            await wf.inc("/n")
            await told.count(i)
            await until(lambda: moved(store, told[-1].position))
            await until(lambda: asleep(clock, 1))
        assert [e.new for e in told] == list(range(1, 11))
        assert "lost" not in caplog.text


@pytest.mark.parametrize("call", ["cell", "latest", "commit"])
async def test_a_store_that_fails_for_a_while_is_asked_again(tmp_path, call):
    clock, told, failed = FakeClock(), Told(), asyncio.Event()
    async with quire.open(str(tmp_path / "s.db"), clock=clock) as store:
        wf = await store.create("w", {"n": 0})
        backend, real, down = store.engine.backend, getattr(store.engine.backend, call), True

        async def away(*arguments, **named):
            if down and asyncio.current_task() is not here and await concerns(arguments):
                failed.set()
                raise StorageUnavailable("away")
            return await real(*arguments, **named)

        async def concerns(arguments):
            return call != "commit" or any(not item.records for item in arguments[0])

        here = asyncio.current_task()
        setattr(backend, call, away)
        await store.trigger("t", told, path="/n")
        await wf.inc("/n")
        await failed.wait()
        await until(lambda: asleep(clock, 1))
        assert not told
        down = False
        await until(lambda: wound(clock, told))
        assert [e.new for e in told] == [1]


async def wound(clock, told):
    await clock.wind(5)
    return bool(told)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("../x", {}),
        ("", {}),
        ("a/b", {}),
        ("x" * 101, {}),
        ("t", {"workflow": "a b"}),
        ("t", {"attempts": 0}),
        ("t", {"attempts": True}),
        ("t", {"lease_s": 0}),
        ("t", {"lease_s": float("nan")}),
        ("t", {"after": -1}),
        ("t", {"when": "n > 1"}),
        ("t", {"own": 1}),
        ("t", {"types": ["rename"]}),
        ("t", {"path": "n"}),
    ],
)
async def test_what_is_no_trigger_is_refused_and_nothing_is_registered(store, name, how):
    with pytest.raises((Invalid, InvalidKey)):
        await store.trigger(name, print, **how)
    assert await store.triggers() == []


async def test_resuming_while_it_moves_is_refused_rather_than_skipping(store, wf):
    def fails(event):
        raise ValueError("no")

    await store.trigger("t", fails, path="/n", attempts=1)
    await wf.inc("/n")
    await until(lambda: is_parked(store))
    answers = await asyncio.gather(*(store.resume_trigger("t", skip=True) for _ in range(3)), return_exceptions=True)
    assert [a for a in answers if a is None]
    assert all(a is None or isinstance(a, Conflict) for a in answers)
    await until(lambda: moved(store, 2))


# several processes


class Runner:
    """A process that runs the trigger."""

    def __init__(self, path, mark, lease_s, failpoint=None):
        env = {**os.environ, **({"QUIRE_FAILPOINT": failpoint} if failpoint else {})}
        self.process = subprocess.Popen(
            [sys.executable, RUNNER, path, mark, str(lease_s)], stdout=subprocess.PIPE, env=env, text=True
        )

    def __enter__(self):
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def line(self):
        return self.process.stdout.readline()


def set_up(path):
    with quire.sync.open(path) as store:
        store.create("w", {"n": 0})
        store.create("effects", {"lines": []})


def effects(store):
    return store.workflow("effects").get("/lines")


@pytest.mark.parametrize("number", [1, 2, 5])
def test_kill_9_between_an_effect_and_the_cursor_skips_nothing(tmp_path, number):
    path = str(tmp_path / "s.db")
    set_up(path)
    with Runner(path, "first", 0.2, failpoint=f"trigger:called:{number}") as runner, quire.sync.open(path) as store:
        for _ in range(8):
            store.workflow("w").inc("/n")
        assert runner.process.wait(60) == -signal.SIGKILL
        assert effects(store) == [["first", i] for i in range(1, number + 1)]
    with Runner(path, "second", 0.2) as runner, quire.sync.open(path) as store:
        for i in range(number, 9):
            assert runner.line() == f"{i}\n"  # the one in work comes again, then the rest, in order
        assert effects(store) == [["first", i] for i in range(1, number + 1)] + [
            ["second", i] for i in range(number, 9)
        ]


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_any_moment_everything_comes_in_order_and_only_what_was_in_work_twice(tmp_path, seed):
    path, chance, cycles, each = str(tmp_path / "s.db"), random.Random(seed), 8, 12
    set_up(path)
    with quire.sync.open(path) as store:
        for cycle in range(cycles):
            with Runner(path, str(cycle), 0.1) as runner:
                for _ in range(each):
                    store.workflow("w").inc("/n")
                for _ in range(chance.randint(1, each)):
                    runner.line()
        with Runner(path, "last", 0.1):
            lines = store.workflow("effects").watch(after=1)
            while effects(store)[-1][1] < cycles * each:
                next(lines)
            lines.close()
        told = effects(store)
        for (mark, before), (again, after) in pairwise(told):
            assert after == before + 1 or (after == before and mark != again)
        assert {n for _, n in told} == set(range(1, cycles * each + 1))
        assert store.verify().ok


def test_two_processes_share_a_name_one_at_a_time_and_the_other_takes_over(tmp_path):
    path = str(tmp_path / "s.db")
    set_up(path)
    with quire.sync.open(path) as store:
        wf = store.workflow("w")
        with Runner(path, "a", 3.0) as a, Runner(path, "b", 3.0) as b:
            for _ in range(50):
                wf.inc("/n")
            watching = store.workflow("effects").watch(after=1)
            for _ in range(50):
                next(watching)
            lines = effects(store)
            assert [n for _, n in lines] == list(range(1, 51))  # each once
            owners = {mark for mark, _ in lines}
            assert len(owners) == 1
            owner, other = (a, "b") if owners == {"a"} else (b, "a")
            os.kill(owner.process.pid, signal.SIGKILL)
            for _ in range(50):
                wf.inc("/n")
            while len({n for _, n in effects(store)}) < 100:
                next(watching)
            lines = effects(store)
            assert {mark for mark, _ in lines[50:]} == {other}
            later = [n for _, n in lines[50:]]
            assert later in (list(range(51, 101)), list(range(50, 101)))  # in order; the one in work may come again
            watching.close()


def stop(runner, path):
    """Stop a process, but not while it holds the lock of the file: then nobody could write."""
    with closing(apsw.Connection(path)) as db:
        db.set_busy_timeout(0)
        while True:
            os.kill(runner.process.pid, signal.SIGSTOP)
            try:
                db.execute("begin immediate; rollback")
            except apsw.BusyError:
                os.kill(runner.process.pid, signal.SIGCONT)
            else:
                break


def test_a_process_that_was_stopped_for_longer_than_its_lease_steps_down_without_acting(tmp_path):
    path = str(tmp_path / "s.db")
    set_up(path)
    with quire.sync.open(path) as store:
        wf, lines = store.workflow("w"), store.workflow("effects").watch(after=1)
        with Runner(path, "a", 2.0) as a, Runner(path, "b", 2.0) as b:
            wf.inc("/n")
            next(lines)
            owner, other = (a, "b") if effects(store)[0][0] == "a" else (b, "a")
            stop(owner, path)
            for _ in range(20):
                wf.inc("/n")
            while effects(store)[-1][1] < 21:
                next(lines)
            os.kill(owner.process.pid, signal.SIGCONT)
            for _ in range(20):
                wf.inc("/n")
            while effects(store)[-1][1] < 41:
                next(lines)
            (_, first), *rest = effects(store)
            assert first == 1
            assert {mark for mark, _ in rest} == {other}
            assert [n for _, n in rest] in (
                list(range(2, 42)),
                list(range(1, 42)),
            )  # it may be stopped before the cursor
            lines.close()


def test_triggers_without_an_event_loop(tmp_path):
    with quire.sync.open(str(tmp_path / "s.db")) as store:
        wf = store.create("w", {"n": 0, "log": []})
        done = threading.Event()

        def copy(event):
            wf.append("/log", event.new)
            if event.new == 3:
                done.set()

        made = store.trigger("t", copy, path="/n")
        for _ in range(3):
            wf.inc("/n")
        assert done.wait(60)
        assert wf.get("/log") == [1, 2, 3]
        assert wf.version().author == "trigger/t"
        assert [s.name for s in store.triggers()] == ["t"]
        made.remove()
        store.drop_trigger("t")
        assert store.triggers() == []


async def test_one_that_was_parked_before_a_copy_is_resumed_after_its_event_and_skips_no_other(tmp_path):
    name = f"sqlite:///{tmp_path / 'source.db'}"
    async with quire.open(
        name, namespace="busy"
    ) as busy:  # positions are the whole store's: those of the copy are lower
        wf = await busy.create("w", {"n": 0})
        for number in range(1, 30):
            await wf.set("/n", number)

    def failing(_):
        raise RuntimeError("no")

    target = f"sqlite:///{tmp_path / 'copy.db'}"
    async with quire.open(name) as store:
        wf = await store.create("w", {"n": 0})
        await store.trigger("t", failing, attempts=1)
        await wf.set("/n", 1)
        await until(lambda: is_parked(store))
        await wf.set("/n", 2)
        await store.copy_to(target)
    told = Told()
    async with quire.open(target) as store:
        await store.trigger("t", told, path="/n")
        await store.resume_trigger("t", skip=True)
        assert await told.count(1) == [2]
