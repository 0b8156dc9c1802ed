"""A team of agents surveys the Python standard library of this machine, on one durable workflow.

Four stages: `collect` lists the files; readers, several at once and each in a process of its own, examine them;
four analysts draw conclusions; `report` writes them down. An agent says in the state that it begins, as a write of its
own; its findings, its result and its books are one commit. So after kill -9 it is either done, with all of that, or
begins again, and the state tells which.
"""

from __future__ import annotations

import asyncio
import os
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

import quire
from quire.api.store import Store
from quire.demo import report
from quire.demo.conclude import ANALYSTS, Findings
from quire.demo.examine import Found
from quire.demo.graph import resolve
from quire.errors import QuireError
from quire.orchestra import Context, Node, parallel, run, sequence, step

RUN = "stdlib-survey"
STORE = "survey.db"
READERS = [f"reader-{i:02}" for i in range(1, 21)]
TESTERS = [f"tester-{i:02}" for i in range(1, 13)]
STAGES = {"collect": 1, "read": len(READERS) + len(TESTERS), "analyse": len(ANALYSTS), "report": 1}
"""The stages in their order, each with its number of agents."""
BEGINNING: dict[str, Any] = {"findings": {}, "tested": {}, "agents": {}, "summary": {}}
STEPS = sum(STAGES.values())
_AT_ONCE = max(2, min(8, os.cpu_count() or 2))
_FOREIGN = {"site-packages", "dist-packages", "__pycache__", "turtledemo"}
_TESTS = {"test", "tests", "idle_test"}


def agents(folder: str, modules: int | None) -> int:
    """Do the work, or go on with it: the process that is killed. modules: survey only so many."""

    async def work() -> None:
        async with quire.open(str(Path(folder) / STORE)) as store:
            await run(store, topology(store, modules), id=RUN, state=BEGINNING)

    asyncio.run(work())
    return 0


def topology(store: Store, modules: int | None) -> Node:
    """Return the four stages."""
    readers = [step(_reader(store, name, "modules", i, len(READERS)), name=name) for i, name in enumerate(READERS)]
    testers = [step(_reader(store, name, "tests", i, len(TESTERS)), name=name) for i, name in enumerate(TESTERS)]
    team = [part for pair in zip(readers, testers, strict=False) for part in pair] + readers[len(testers) :]
    return sequence(
        step(_collector(modules), name="collect"),
        parallel(*team, name="read", limit=_AT_ONCE),
        parallel(*(step(_analyst(name), name=name) for name in ANALYSTS), name="analyse"),
        step(write, name="report"),
    )


def _collector(most: int | None) -> Any:
    def collect(ctx: Context) -> dict[str, Any]:
        """List the modules of the standard library, and the files of its tests if they are installed."""
        root = Path(sysconfig.get_paths()["stdlib"])
        found: dict[str, dict[str, str]] = {"modules": {}, "tests": {}}
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if not _FOREIGN & set(parts) and not any("-" in p for p in parts):  # config-3.12-x86_64 holds no modules
                kind = "tests" if _TESTS & set(parts) else "modules"
                found[kind][".".join(parts).removesuffix(".__init__")] = str(file.relative_to(root))
        ctx.state["root"] = str(root)
        for kind, files in found.items():
            ctx.state[kind] = dict(list(files.items())[:most])
        return {"modules": len(ctx.state["modules"]), "tests": len(ctx.state["tests"]), "pid": os.getpid()}

    return collect


def _reader(store: Store, name: str, kind: str, number: int, of: int) -> Any:
    """Return the agent that examines every so-manieth file of a kind."""

    async def read(ctx: Context) -> dict[str, Any]:
        key = f"read/{name}"
        begun = {"status": "reading", "pid": os.getpid()}
        await store.workflow(RUN).set(["agents", name], begun, author=key, message=f"{name} begins")
        share = dict(list(ctx.state[kind].to_plain().items())[number::of])
        found = await _examined(ctx.state["root"], share)
        names = set(ctx.state["modules"])
        read = {module: _noted(f, names) for module, f in found.items() if f is not None}
        if kind == "tests":
            ctx.state["tested"].update({m: {"cases": f["cases"], "imports": f["imports"]} for m, f in read.items()})
        else:
            ctx.state["findings"].update(read)
        ctx.state["agents"][name] = {"status": "done", "pid": os.getpid()}
        return {"read": len(read), "unreadable": len(found) - len(read), "pid": os.getpid()}

    return read


async def _examined(root: str, files: dict[str, str]) -> dict[str, Found | None]:
    """Examine files in a process of its own: parsing holds the interpreter's lock. It ends when we are gone."""
    command = [sys.executable, "-W", "ignore", "-m", "quire.demo.examine"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        answer, complaint = await process.communicate(msgspec.json.encode({"root": root, "files": files}))
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise QuireError(f"the examiner ended with code {process.returncode}: {complaint.decode()[-500:]}")
    return msgspec.json.decode(answer, type=dict[str, Found | None])


def _noted(found: Found, modules: set[str]) -> dict[str, Any]:
    """Return what is kept of a finding: its imports as modules of the library."""
    first = {resolve(name, modules, sys.stdlib_module_names) for name in found.imports}
    later = {resolve(name, modules, sys.stdlib_module_names) for name in found.deferred} - first
    return {
        **msgspec.to_builtins(found),
        "imports": sorted(name for name in first if name),
        "deferred": sorted(name for name in later if name),
    }


def _analyst(name: str) -> Any:
    def analyse(ctx: Context) -> dict[str, Any]:
        """Conclude one thing from everybody's findings, and note on the findings what it says about them."""
        findings: Findings = ctx.state["findings"].to_plain()
        concluded = ANALYSTS[name](findings, ctx.state["tested"].to_plain())
        ctx.state["summary"][name] = concluded
        if name == "imports":
            for module, count in concluded["most_used"]:
                if module in findings:
                    ctx.state["findings"][module]["used_by"] = count
        return {"pid": os.getpid()}

    return analyse


def write(ctx: Context) -> dict[str, Any]:
    """Write the report and its charts into the state."""
    state = ctx.state.to_plain()
    results = list(ctx.results.values())
    unread = sum(result.get("unreadable", 0) for result in results)
    by_process = Counter(result["pid"] for result in results)  # in the order in which they came
    work = {"steps": STEPS, "unreadable": unread, "by_process": list(by_process.values())}
    ctx.state["report"] = report.markdown(state["summary"], sys.version.split()[0], work)
    ctx.state["charts"] = report.charts(state["summary"])
    return {"characters": len(ctx.state["report"]), "pid": os.getpid()}
