"""Events under attack: many threads, many processes, kill -9 in the middle of appends, bytes altered on the disk."""

import os
import signal
import subprocess
import sys

import apsw
import pytest

import quire
from quire import EventStore, StateView
from quire.errors import CorruptRecord

THREADS, COUNT = 8, 25

WRITER = f"""
import sys, threading
from quire import EventStore
path, who = sys.argv[1], sys.argv[2]
with EventStore(path) as store:
    def write(t):
        for i in range({COUNT}):
            store.append("counted", {{"who": f"{{who}}.{{t}}", "i": i}})
    running = [threading.Thread(target=write, args=(t,)) for t in range({THREADS})]
    [t.start() for t in running]
    [t.join() for t in running]
"""


def tally(state, event):
    who, i = event.data["who"], event.data["i"]
    assert state.get(who, -1) == i - 1, "out of order, lost, or twice"
    return {**state, who: i}


def test_threads_and_processes_lose_nothing(tmp_path):
    path = str(tmp_path / "s.db")
    with EventStore(path, reducers=tally, keyframes="tally") as store:
        seen = []
        store.subscribe("counted", lambda e: seen.append(e.version))
        view = StateView(store)
        processes = [subprocess.Popen([sys.executable, "-c", WRITER, path, f"p{p}"]) for p in range(2)]
        while any(p.poll() is None for p in processes):
            view.get_state()  # readers beside writers: `tally` raises at the first thing out of order
        assert [p.returncode for p in processes] == [0, 0]
        everybody = {f"p{p}.{t}": COUNT - 1 for p in range(2) for t in range(THREADS)}
        assert view.get_state() == store.replay() == store.replay(fresh=True) == everybody
        assert store.drain(30)
        assert seen == list(range(2 * THREADS * COUNT))
        assert len({e.event_id for e in store.get_all_events()}) == len(seen)
    with quire.sync.open(path) as below:
        assert below.verify().ok


MORTAL = """
import itertools, os, sys, threading
from quire import EventStore
path, honesty = sys.argv[1:]
with EventStore(path) as store:
    def write(t):
        for i in itertools.count():
            mark = f"{os.getpid()}.{t}.{i}"
            if honesty == "early":
                os.write(1, f"{mark} {store.get_version() + 1}\\n".encode())
            made = store.append("e", {"mark": mark, "pad": "x" * 200})
            if honesty == "honest":
                os.write(1, f"{mark} {made.version}\\n".encode())
    running = [threading.Thread(target=write, args=(t,)) for t in range(3)]
    [t.start() for t in running]
    [t.join() for t in running]
"""


def live_and_die(path, lines, honesty="honest"):
    """Let three threads append, kill them after so many acknowledgements, and return those: {mark: version}."""
    with subprocess.Popen([sys.executable, "-c", MORTAL, path, honesty], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read().split("\n")
        process.wait()
    whole = [line.split() for line in said if line.strip()]
    return {mark: int(version) for mark, version in (w for w in whole if len(w) == 2)}


def lost(path, acknowledged, honesty="honest"):
    """Return what was acknowledged and is not there, after checking that what is there is sound."""
    with EventStore(path) as store:
        events = store.get_all_events()
        assert [e.version for e in events] == list(range(len(events)))
        there = {e.data["mark"]: e.version for e in events}
        assert len(there) == len(events), "an event happened twice"
    with quire.sync.open(path) as below:
        assert below.verify().ok
    if honesty == "early":
        return [mark for mark in acknowledged if mark not in there]
    return [mark for mark, version in acknowledged.items() if there.get(mark) != version]


def test_kill_9_in_the_middle_of_appends_loses_nothing_acknowledged(tmp_path):
    path, acknowledged = str(tmp_path / "s.db"), {}
    for cycle in range(12):
        acknowledged |= live_and_die(path, 3 + 7 * cycle)
    assert len(acknowledged) > 400
    assert not lost(path, acknowledged)


def test_the_checker_catches_an_early_acknowledgement(tmp_path):
    for attempt in range(40):
        path = str(tmp_path / f"s{attempt}.db")
        if lost(path, live_and_die(path, 1 + attempt % 5, "early"), "early"):
            return
    pytest.fail("40 dishonest writers were killed and nothing was found missing: the checker does not check")


@pytest.mark.parametrize("change", ["substr(body, 1, 40) || 'y' || substr(body, 42)", "replace(body, 'pad', 'dap')"])
def test_an_altered_event_is_not_read_in_silence(tmp_path, change):
    path = str(tmp_path / "s.db")
    with EventStore(path) as store:
        store.append_many(("e", {"mark": i, "pad": "x" * 50}) for i in range(20))
    db = apsw.Connection(path)
    db.execute(f"update records set body = {change} where version = 10")
    assert db.changes() == 1
    db.close()
    with EventStore(path) as store:
        assert [e.version for e in store.get_events_since(-1, limit=9)] == list(range(9))
        for read in (
            store.get_all_events,
            store.replay,
            lambda: store.get_events_since(8),
            lambda: store.get_events_since(7, limit=2),
            StateView(store).get_state,
        ):
            with pytest.raises(CorruptRecord):
                read()


@pytest.mark.parametrize("signum", [signal.SIGKILL])
def test_a_durable_cursor_survives_the_death_of_its_process(tmp_path, signum):
    """At least once: what a killed subscriber had not finished comes to the next one."""
    path = str(tmp_path / "s.db")
    code = """
import os, sys, threading
from quire import EventStore
store = EventStore(sys.argv[1])
def told(event):
    os.write(1, f"{event.version}\\n".encode())
store.subscribe("e", told, cursor="c", after=-1)
threading.Event().wait()
"""
    with EventStore(path) as store:
        store.append_many(("e", {}) for _ in range(300))
    seen = []
    for lines in (5, 120, 40):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            got = [int(process.stdout.readline()) for _ in range(lines)]
            os.kill(process.pid, signum)
            got += [int(line) for line in process.stdout.read().split()]
        assert got == list(range(got[0], got[-1] + 1))
        assert got[0] <= (max(seen) + 1 if seen else 0)
        seen += got
    with EventStore(path) as store:
        store.subscribe("e", lambda e: seen.append(e.version), cursor="c")
        assert store.drain(30)
    assert set(seen) == set(range(300))
