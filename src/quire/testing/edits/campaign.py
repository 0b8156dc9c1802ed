"""Campaigns: many clients write at once to the same workflows of one store, and the log is held against their ledgers.

What is written follows from the seed; who comes first follows from it only with tasks of one handle in memory.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
from msgspec import UNSET

import quire
from quire.core.resolve import Met
from quire.testing.edits.clients import Client, Entry
from quire.testing.edits.log import Log, read_log
from quire.testing.edits.programs import START
from quire.testing.edits.rules import smaller
from quire.testing.edits.serial import Finding, findings, pairs
from quire.testing.edits.tree import ABSENT

Crowd = Literal["tasks", "threads", "processes"]

WAYS = (
    "edit",
    "edit",
    "edit",
    "old",
    "update",
    "save",
    "set",
    "increment",
    "restore",
    "merge",
    "move",
    "move",
    "strict",
)
"""What clients choose from, unless told otherwise."""


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done. clients: of each handle.  handles: tasks share one, threads and processes have one each.

    writes: of each client.  ways, steps: what clients choose from, see clients.WAYS and programs.Maker.  policy: the store's, "smaller" for a function.  prefix: of the names of its workflows.
    """

    url: str
    seed: str
    crowd: Crowd = "tasks"
    handles: int = 2
    clients: int = 3
    writes: int = 30
    ways: tuple[str, ...] = WAYS
    steps: tuple[str, ...] = ()
    policy: str | None = None
    prefix: str = ""

    @property
    def workflows(self) -> list[str]:
        """The two workflows that are written to."""
        return [f"{self.prefix}w", f"{self.prefix}v"]

    def names(self, handle: int) -> list[str]:
        """Return the names of the clients of a handle."""
        return [f"c{handle}{number}" for number in range(self.clients)]


class Outcome(msgspec.Struct, frozen=True):
    """What became of a campaign: what is wrong, and what was done."""

    findings: list[Finding]
    entries: list[Entry]
    logs: list[Log]

    @property
    def summary(self) -> str:
        """One line for people."""
        errors = Counter(entry.error for entry in self.entries if entry.error)
        conflicts = sum(len(log.conflicts) for log in self.logs)
        said = ", ".join(f"{count} {code}" for code, count in sorted(errors.items())) or "none refused"
        versions = sum(log.head for log in self.logs)
        return f"{len(self.entries)} writes, {versions} versions, {conflicts} conflicts; {said}"


async def run(campaign: Campaign, folder: Path) -> Outcome:
    """Do a campaign and check it. folder: for the ledgers of processes. Raises AssertionError for a log that is not whole."""
    async with _open(campaign) as store:
        for workflow in campaign.workflows:
            await store.create(workflow, START, author="start")
        entries = await _CROWDS[campaign.crowd](campaign, folder)
        logs = [await read_log(store, workflow) for workflow in campaign.workflows]
        report = await store.verify()
        assert report.ok, report
    found = list(pairs(entries))
    for workflow, log in zip(campaign.workflows, logs, strict=True):
        found += findings(log, [entry for entry in entries if entry.workflow == workflow])
    return Outcome(found, entries, logs)


async def write(campaign: Campaign, handle: int, store: Any, keep: Any) -> None:
    """Let the clients of one handle write, as tasks."""
    async with _open(campaign) as beside:
        await asyncio.gather(*(_client(campaign, store, beside, name, keep) for name in campaign.names(handle)))


async def _client(campaign: Campaign, store: Any, beside: Any, name: str, keep: Any) -> None:
    how: dict[str, Any] = {"ways": campaign.ways, "steps": campaign.steps, "policy": campaign.policy}
    client = Client(store, beside, name, campaign.seed, keep, **how)
    first, second = campaign.workflows
    for number in range(campaign.writes):
        await client.write(*((second, first) if number % 4 == 3 else (first, second)))


def _open(campaign: Campaign) -> Any:
    return quire.open(campaign.url, on_conflict=_policy(campaign.policy))


def _policy(name: str | None) -> Any:
    return _smaller if name == "smaller" else name


def _smaller(met: Met) -> Any:
    value = smaller(met.theirs, met.ours)
    return UNSET if value is ABSENT else value


async def _tasks(campaign: Campaign, folder: Path) -> list[Entry]:  # noqa: ARG001 - the shape of all
    entries: list[Entry] = []

    async def handle(number: int) -> None:
        async with _open(campaign) as store:
            await write(campaign, number, store, entries.append)

    await asyncio.gather(*map(handle, range(campaign.handles)))
    return entries


async def _threads(campaign: Campaign, folder: Path) -> list[Entry]:  # noqa: ARG001 - the shape of all
    """Each client is a thread; those of one handle share it."""
    entries: list[Entry] = []
    failed: list[BaseException] = []

    def client(store: Any, beside: Any, name: str) -> None:
        try:
            asyncio.run(_client(campaign, store, beside, name, entries.append))
        except BaseException as error:  # noqa: BLE001 - it is raised below, in the thread that waits
            failed.append(error)

    def all_of_them() -> None:
        how = {"on_conflict": _policy(campaign.policy)}
        beside, *stores = [quire.sync.open(campaign.url, **how) for _ in range(campaign.handles + 1)]
        threads = [
            threading.Thread(target=client, args=(store, beside, name))
            for number, store in enumerate(stores)
            for name in campaign.names(number)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for store in (beside, *stores):
            store.close()

    await asyncio.to_thread(all_of_them)
    if failed:
        raise failed[0]
    return entries


async def _processes(campaign: Campaign, folder: Path) -> list[Entry]:
    """Each handle is a process, and its clients are tasks there."""
    ledgers = [
        folder / f"{campaign.prefix.replace('/', '-')}{campaign.seed}-{n}.jsonl" for n in range(campaign.handles)
    ]
    told = msgspec.json.encode(campaign).decode()
    command = [sys.executable, "-m", __name__, told]
    crowd = [
        subprocess.Popen([*command, str(number), str(ledger)])  # noqa: S603, ASYNC220 - our own command, at once
        for number, ledger in enumerate(ledgers)
    ]
    ended = await asyncio.gather(*(asyncio.to_thread(process.wait) for process in crowd))
    assert not any(ended), f"processes of a campaign ended with {ended}"
    return [msgspec.json.decode(line, type=Entry) for ledger in ledgers for line in ledger.read_bytes().splitlines()]


_CROWDS = {"tasks": _tasks, "threads": _threads, "processes": _processes}


async def _process(campaign: Campaign, handle: int, file: BinaryIO) -> None:
    async with _open(campaign) as store:

        def keep(entry: Entry) -> None:
            file.write(msgspec.json.encode(entry) + b"\n")

        await write(campaign, handle, store, keep)


def main(told: str, handle: str, ledger: str) -> None:
    """Be one process of a campaign."""
    with Path(ledger).open("wb") as file:
        asyncio.run(_process(msgspec.json.decode(told, type=Campaign), int(handle), file))


if __name__ == "__main__":
    main(*sys.argv[1:])
