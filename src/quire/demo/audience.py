"""The audience: starts the team in a process of its own, kills it with SIGKILL, starts it again, and asks the log.

1. It only watches: all it knows comes from the store, as it would for any other process.
2. The proof is read from the versions in the log, never from a counter kept beside it.
3. However it ends, no process of the team is left behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

import quire
from quire.api.store import Store
from quire.api.views import Event
from quire.demo.survey import RUN, STAGES, STEPS, STORE
from quire.errors import Invalid, QuireError, StorageUnavailable
from quire.model import Set, Version

REPORT = "report.md"
_KILL_AT = round(0.4 * STEPS)
"""Finished steps after which the process is killed."""
_KILLED = "killed"
"""The checkpoint that marks what was there then."""
_DONE = ("_run", "steps")


class Display(Protocol):
    """Where the audience looks."""

    def line(self, text: str = "") -> None:
        """Show a line."""
        ...

    def begin(self) -> None:
        """Show a bar for each stage."""
        ...

    def update(self, done: Mapping[str, int], reading: Sequence[str], versions: int) -> None:
        """Move the bars: steps done by stage, agents at work by name, versions acknowledged so far."""
        ...

    def end(self) -> None:
        """Leave the bars as they are."""
        ...


class Step(msgspec.Struct, frozen=True):
    """A step that the log says was done: its key, by which process in which epoch, in which version."""

    key: str
    pid: int
    epoch: int
    version: int


def steps_of(version: Version) -> list[Step]:
    """Return the steps that a version finished."""
    return [
        Step(str(change.path[2]), change.value["result"]["pid"], change.value["epoch"], version.number)
        for change in version.changes
        if isinstance(change, Set) and change.path[:2] == _DONE and change.value["status"] == "done"
    ]


def main(folder: str, modules: int | None, display: Display) -> int:
    """Show it all. Returns 0 if nothing was lost or repeated, 1 otherwise. Raises Invalid for an unfit folder."""
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise Invalid(f"{folder} is not a folder; name another with --folder")
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        asyncio.run(_clear(place))
        return asyncio.run(_attend(place, modules, display))


@contextmanager
def _alone(place: Path) -> Generator[None]:
    """Hold the folder against a second demo, which would remove our store."""
    handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StorageUnavailable(f"another demo runs in {place}; name another folder with --folder") from None
    finally:
        os.close(handle)


async def _clear(place: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    file = place / STORE
    if not file.exists():
        return
    async with quire.open(str(file)) as store:
        found = await store.workflows(limit=2)
    if found not in ([], [RUN]):
        raise Invalid(f"{file} holds workflows that are not the demo's; name another folder with --folder")
    for name in (STORE, f"{STORE}-wal", f"{STORE}-shm"):
        (place / name).unlink(missing_ok=True)


async def _attend(place: Path, modules: int | None, display: Display) -> int:
    started = time.monotonic()
    display.line(f"A team of agents surveys the standard library of Python {sys.version.split()[0]}.")
    display.line(f"The state of their work is in {place / STORE}")
    async with quire.open(str(place / STORE)) as store:
        show = _Show(store, place, modules, display)
        display.line("\n1. The team starts, in a process of its own")
        first = await show.run(kill_at=_KILL_AT)
        cut_off = show.reading
        await store.workflow(RUN).checkpoint(_KILLED, author="audience", description="the process was killed")
        display.line(f"\n2. Killed with SIGKILL after {len(show.done)} of {STEPS} steps. Another process goes on")
        second = await show.run()
        display.line("\n3. What the log says")
        sound = await _prove(store, (first, second), cut_off, display)
        charts = await _write_report(store, place)
        found = await _leaned_on(store)
    display.line("\n4. Ask it yourself")
    _ask(place / STORE, found, cut_off, display)
    display.line(
        f"\n5. The report, with {len(charts)} charts: {place / REPORT}  ({time.monotonic() - started:.0f} s in all)"
    )
    return 0 if sound else 1


class _Show:
    """What the audience has seen so far, and the process it watches."""

    def __init__(self, store: Store, place: Path, modules: int | None, display: Display) -> None:
        self._store = store
        self._display = display
        self._command = [sys.executable, "-m", "quire", "demo", "--child", "--folder", str(place)]
        self._command += ["--modules", str(modules)] if modules else []
        self._position = 0
        self._versions = 0
        self.done: dict[str, Step] = {}
        self.reading: list[str] = []

    async def run(self, kill_at: int | None = None) -> int:
        """Run the team until it ends, or is killed after so many steps. Returns its process id."""
        self._display.begin()
        team = await asyncio.create_subprocess_exec(*self._command)
        try:
            async with asyncio.TaskGroup() as group:
                following = group.create_task(self._follow(team, kill_at))
                code = await team.wait()
                if code not in (0, -signal.SIGKILL):
                    raise QuireError(f"the agents ended with code {code}")
                await self._catch_up()
                following.cancel()
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        finally:
            if team.returncode is None:
                team.kill()
                await team.wait()
            self._display.end()
        if kill_at is not None and code == 0:
            raise QuireError("the agents had finished before they could be killed; survey more modules")
        return team.pid

    async def _follow(self, team: asyncio.subprocess.Process, kill_at: int | None) -> None:
        async for event in self._store.watch(after=self._position):
            self._see(event)
            if kill_at is not None and len(self.done) >= kill_at and self.reading and team.returncode is None:
                team.send_signal(signal.SIGKILL)
                kill_at = None

    async def _catch_up(self) -> None:
        """See what was committed before the process ended."""
        newest = (await self._store.workflow(RUN).version()).position
        if newest > self._position:
            async for event in self._store.watch(after=self._position):
                self._see(event)
                if self._position >= newest:
                    return

    def _see(self, event: Event) -> None:
        """Take in one version."""
        version = event.version
        if version.workflow_id != RUN or version.position <= self._position:
            return
        self._position = version.position
        self._versions = version.number
        if version.kind == "run":
            self.reading = []  # whoever was at work before is gone
        for change in version.changes:
            if isinstance(change, Set) and change.path[:1] == ("agents",) and len(change.path) == 2:
                name = str(change.path[1])
                self.reading = [r for r in self.reading if r != name] + [name] * (change.value["status"] == "reading")
        self.done |= {step.key: step for step in steps_of(version)}
        counts = Counter(key.partition("/")[0] for key in self.done)
        self._display.update({stage: counts[stage] for stage in STAGES}, self.reading, self._versions)


class Proof(msgspec.Struct, frozen=True):
    """What the log says about two processes, of which the first was killed. times: how often each step was done."""

    before: list[Step]
    after: list[Step]
    times: dict[str, int]
    lost: list[str]
    strangers: list[Step]

    @property
    def holds(self) -> bool:
        """Whether every step was done exactly once, by the process that was alive then."""
        whole = len(self.times) == STEPS and set(self.times.values()) == {1}
        return whole and not self.lost and not self.strangers


def proof(history: Sequence[Version], killed: int, pids: tuple[int, int], kept: Collection[str]) -> Proof:
    """Read from the log which steps were done when and by whom.

    history: all versions.  killed: the newest version when the first process was dead.  pids: of both.  kept: keys of
    the steps that the state holds as done in the end.
    """
    steps = [step for version in history for step in steps_of(version)]
    before = [step for step in steps if step.version <= killed]
    after = [step for step in steps if step.version > killed]
    return Proof(
        before=before,
        after=after,
        times=dict(Counter(step.key for step in steps)),
        lost=[step.key for step in steps if step.key not in kept],
        strangers=[s for s in before if (s.pid, s.epoch) != (pids[0], 1)]
        + [s for s in after if (s.pid, s.epoch) != (pids[1], 2)],
    )


async def _prove(store: Store, pids: tuple[int, int], cut_off: Sequence[str], display: Display) -> bool:
    """Ask the log whether any step was lost, or done twice, and show it. Returns whether not."""
    workflow = store.workflow(RUN)
    killed = await workflow.version(_KILLED)
    state = await workflow.state()
    done = {key: e for key, e in state["_run"]["steps"].items() if e["status"] == "done"}
    found = proof(await workflow.history(), killed.number, pids, done)
    read = sum(entry["result"].get("read", 0) for entry in done.values())
    kept = len(state["findings"]) + len(state["tested"])
    report = await store.verify()
    rows = {
        f"process {pids[0]}, killed": f"{len(found.before)} steps done, {_named(cut_off)} cut off",
        f"process {pids[1]}": f"{len(found.after)} steps done, those cut off among them",
        "done more than once": f"{sum(n > 1 for n in found.times.values())} of {len(found.times)} steps",
        "lost by the kill": f"{len(found.lost)} of {len(found.before)} steps",
        "files read, kept": f"{read:,}, {kept:,}",
        f"log of {report.versions} versions": "chain and folds sound" if report.ok else "; ".join(report.problems),
    }
    for what, said in rows.items():
        display.line(f"   {what:<24} {said}")
    for step in found.strangers:
        display.line(f"   {step.key} in version {step.version} was done by process {step.pid}, epoch {step.epoch}")
    return found.holds and read == kept and report.ok


def _named(agents: Sequence[str]) -> str:
    return f"{len(agents)} agents" if len(agents) > 2 else " and ".join(agents)


async def _write_report(store: Store, place: Path) -> list[str]:
    """Write the report and its charts; return the names of the charts."""
    workflow = store.workflow(RUN)
    charts = await workflow.get("/charts")
    for name, text in {REPORT: await workflow.get("/report"), **charts}.items():
        (place / name).write_text(text, encoding="utf-8")
    return list(charts)


async def _leaned_on(store: Store) -> str:
    """Return the most used module that has functions: one to ask about."""
    workflow = store.workflow(RUN)
    findings = await workflow.get("/findings")
    used = [name for name, _ in await workflow.get("/summary/imports/most_used")]
    return next(name for name in (*used, *findings) if name in findings and findings[name]["knottiest"])


def _ask(file: Path, module: str, cut_off: Sequence[str], display: Display) -> None:
    """Run commands that the reader could type, and show them."""
    display.line(f"\n$ export QUIRE_STORE={shlex.quote(str(file))}")
    for words in (
        ["log", RUN, "--oneline", "--limit", "5"],
        ["diff", f"{RUN}@{_KILLED}", "--path", f"/agents/{cut_off[0]}"],
        ["blame", RUN, f"/findings/{module}/knottiest"],
    ):
        display.line(f"\n$ quire {' '.join(words)}")
        command = [sys.executable, "-m", "quire", *words]
        subprocess.run(command, env={**os.environ, "QUIRE_STORE": str(file)}, check=True)  # noqa: S603 - ourselves
