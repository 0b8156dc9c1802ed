"""A team of agents surveys the Python standard library of this machine, is killed half-way, and goes on.

`agents` is the work: collect, parse (many at once), synthesise, report. `main` is the audience: it starts the work in a
process, watches it through the store, kills it with SIGKILL, starts it again, and then asks the log what happened.
"""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
import sysconfig
import time
from collections import Counter
from pathlib import Path
from typing import Any

import quire
from quire.api.store import Store
from quire.core.history import summary
from quire.orchestra import Context, Node, parallel, run, sequence, step

RUN = "stdlib-survey"
PARSERS = 24
AT_ONCE = 4
_KILL_AT = 0.45
"""Share of the steps after which the process is killed."""
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3", "turtledemo"}


# the work


def topology(modules: int | None) -> Node:
    """Return the four stages of the survey."""
    parsers = [step(_parser(i), name=f"agent-{i:02}") for i in range(PARSERS)]
    return sequence(
        step(_collector(modules), name="collect"),
        parallel(*parsers, name="parse", limit=AT_ONCE),
        step(synthesise),
        step(report),
    )


def _collector(most: int | None) -> Any:
    def collect(ctx: Context) -> int:
        """List the modules of the standard library with their files."""
        root = Path(sysconfig.get_paths()["stdlib"])
        found: dict[str, str] = {}
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            if not _SKIPPED & set(parts) and not any("-" in p for p in parts):
                found[".".join(parts).removesuffix(".__init__")] = str(file.relative_to(root))
        ctx.state["root"] = str(root)
        ctx.state["modules"] = dict(list(found.items())[:most])
        return len(ctx.state["modules"])

    return collect


def _parser(number: int) -> Any:
    def parse(ctx: Context) -> dict[str, int]:
        """Parse this agent's share of the modules and note what is in each."""
        share = list(ctx.state["modules"].items())[number::PARSERS]
        root, unreadable = Path(ctx.state["root"]), 0
        findings: dict[str, Any] = {}
        for module, file in share:
            try:
                findings[module] = examine((root / file).read_text(encoding="utf-8"))
            except (SyntaxError, UnicodeDecodeError, OSError, RecursionError):
                unreadable += 1
        ctx.state["findings"].update(findings)
        return {"read": len(findings), "unreadable": unreadable}

    return parse


def examine(source: str) -> dict[str, Any]:
    """Return size, definitions, share with docstrings, and imported top-level modules of a source text.

    >>> examine("import os.path\\ndef f(): 'doc'")["imports"]
    ['os']
    """
    tree = ast.parse(source)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [n for n in ast.walk(tree) if isinstance(n, kinds) and not n.name.startswith("_")]
    imports: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
    return {
        "lines": source.count("\n") + 1,
        "definitions": len(public),
        "documented": sum(ast.get_docstring(n) is not None for n in public),
        "imports": sorted(imports),
    }


def synthesise(ctx: Context) -> dict[str, Any]:
    """Draw the findings of all parsers together."""
    findings = ctx.state["findings"].to_plain()
    users: Counter[str] = Counter()
    for module, found in findings.items():
        users.update(set(found["imports"]) - {module.partition(".")[0]})
    definitions = sum(f["definitions"] for f in findings.values())
    documented = sum(f["documented"] for f in findings.values())
    largest = sorted(findings, key=lambda m: -findings[m]["lines"])[:10]
    ctx.state["summary"] = {
        "modules": len(findings),
        "lines": sum(f["lines"] for f in findings.values()),
        "definitions": definitions,
        "documented_percent": round(100 * documented / max(1, definitions), 1),
        "imports": sum(len(f["imports"]) for f in findings.values()),
        "most_used": [[name, count] for name, count in users.most_common(12)],
        "largest": [[name, findings[name]["lines"]] for name in largest],
    }
    return ctx.state["summary"].to_plain()


def report(ctx: Context) -> str:
    """Write the report as Markdown."""
    s = ctx.input
    top = max(count for _, count in s["most_used"])
    bars = [f"{name:<14} {'█' * round(40 * count / top)} {count}" for name, count in s["most_used"]]
    text = "\n".join(
        [
            "# The Python standard library, surveyed by agents",
            "",
            (
                f"Python {sys.version.split()[0]}: {s['modules']} modules, {s['lines']:,} lines, "
                f"{s['definitions']:,} public definitions, {s['documented_percent']} % of them documented, "
                f"{s['imports']:,} imports between modules."
            ),
            "",
            "## Most depended on (modules that import it)",
            "",
            "```",
            *bars,
            "```",
            "",
            "## Largest modules",
            "",
            "| module | lines |",
            "| --- | ---: |",
            *[f"| {name} | {lines:,} |" for name, lines in s["largest"]],
            "",
        ]
    )
    ctx.state["report"] = text
    return f"{len(text)} characters"


def agents(folder: str, modules: int | None) -> int:
    """Do the work, or go on with it: the process that is killed."""

    async def work() -> None:
        async with quire.open(str(Path(folder) / "survey.db")) as store:
            await run(store, topology(modules), id=RUN, state={"findings": {}})

    asyncio.run(work())
    return 0


# the audience


def main(folder: str, modules: int | None) -> int:
    """Watch the work, kill it, start it again, and prove that nothing was lost or repeated. Returns 0 if so."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for file in place.glob("survey.db*"):
        file.unlink()
    return asyncio.run(_audience(place, modules))


async def _audience(place: Path, modules: int | None) -> int:
    started = time.monotonic()
    print(f"Quire demo: a team of agents surveys the standard library of Python {sys.version.split()[0]}")
    print(f"The state of the work lives in {place / 'survey.db'}\n")
    async with quire.open(str(place / "survey.db")) as store:
        total = PARSERS + 3
        print("1. The agents start, in a process of their own")
        before = await _attend(store, place, modules, kill_at=round(total * _KILL_AT))
        print(f"\n2. Killed with SIGKILL after {len(before)} finished steps. A new process goes on from the log")
        await _attend(store, place, modules, kill_at=None)
        sound = await _prove(store, before)
        await _tell(store, place)
    print(
        f"\nDone in {time.monotonic() - started:.0f} s. Look around: quire --store {place / 'survey.db'} log {RUN} --oneline"
    )
    return 0 if sound else 1


async def _attend(store: Store, place: Path, modules: int | None, kill_at: int | None) -> set[str]:
    """Run the work in a process and show its progress until it ends or, after `kill_at` steps, is killed."""
    command = [sys.executable, "-m", "quire.cli.main", "demo", "--child", "--folder", str(place)]
    command += ["--modules", str(modules)] if modules else []
    worker = await asyncio.create_subprocess_exec(*command)
    watcher = asyncio.ensure_future(_follow(store, worker, kill_at))
    code = await worker.wait()
    if kill_at is None and code != 0:
        watcher.cancel()
        raise SystemExit(f"the agents ended with code {code}")
    if kill_at is not None and code != -signal.SIGKILL:
        print("   (they finished before they could be killed)")
    await asyncio.wait([watcher], timeout=2)
    watcher.cancel()
    return await _finished(store)


async def _follow(store: Store, worker: asyncio.subprocess.Process, kill_at: int | None) -> None:
    """Watch the run through the store, as any other process could."""
    bars = _Bars(PARSERS + 3)
    bars.show(await _finished(store))
    async for event in store.watch(after=0):
        if event.workflow_id != RUN or event.version.kind not in ("step", "run"):
            continue
        done = await _finished(store)
        bars.show(done)
        if kill_at is not None and len(done) >= kill_at:
            worker.send_signal(signal.SIGKILL)
            break
        if await store.workflow(RUN).get("/_run/status") == "completed":
            break
    bars.end()


async def _finished(store: Store) -> set[str]:
    workflow = store.workflow(RUN)
    if not await workflow.exists():
        return set()
    entries = await workflow.get("/_run/steps", {})
    return {key for key, entry in entries.items() if entry["status"] == "done"}


class _Bars:
    """One bar for each stage, redrawn in place on a terminal, one line at the end elsewhere."""

    def __init__(self, total: int) -> None:
        self._stages = {"collect": 1, "parse": total - 3, "synthesise": 1, "report": 1}
        self._live = sys.stdout.isatty()
        self._text = ""

    def show(self, done: set[str]) -> None:
        parts: list[str] = []
        for stage, size in self._stages.items():
            count = sum(key.partition("/")[0] == stage for key in done)
            width = 20 if size > 1 else 3
            filled = width * count // size
            parts.append(f"{stage} {'█' * filled}{'·' * (width - filled)} {count}/{size}")
        self._text = "   " + "  ".join(parts)
        if self._live:
            print(f"\r{self._text}", end="", flush=True)

    def end(self) -> None:
        print("" if self._live else self._text, flush=True)


async def _prove(store: Store, before: set[str]) -> bool:
    """Ask the log whether any step was lost or ran to its end twice."""
    workflow = store.workflow(RUN)
    steps = [v for v in await workflow.history(order="oldest") if v.kind == "step"]
    ends = Counter(v.author for v in steps)
    state = await workflow.state()
    repeated = [key for key, count in ends.items() if count > 1]
    lost = [key for key in before if state["_run"]["steps"].get(key, {}).get("status") != "done"]
    kept = [key for key in before if state["_run"]["steps"][key]["epoch"] == 1]
    checked = await store.verify()
    read = sum(entry["result"]["read"] for key, entry in state["_run"]["steps"].items() if key.startswith("parse/"))
    print("\n3. What the log says")
    print(f"   steps that ended twice:             {len(repeated)} of {len(ends)}")
    print(f"   steps lost by the kill:             {len(lost)} of {len(before)}")
    print(f"   answered from the log, not re-run:  {len(kept)}")
    print(f"   modules read / findings kept:       {read} / {len(state['findings'])}")
    print(f"   chain, folds and keyframes:         {'sound' if checked.ok else checked.problems}")
    return not repeated and not lost and len(kept) == len(before) and checked.ok and read == len(state["findings"])


async def _tell(store: Store, place: Path) -> None:
    """Show history, a diff and a blame, and where the report is."""
    workflow = store.workflow(RUN)
    versions = await workflow.history()
    print("\n4. History, newest first")
    for v in [*versions[:4], *versions[-3:]]:
        print(f"   @{v.number:<4} {v.author:<16} {v.message:<24.24} {summary(v.changes, most=1):.30}")
    claims = [v.number for v in versions if v.kind == "run" and v.message == "run claimed"]
    resumed = max(claims)
    print(f"\n5. What the second process added: diff of @{resumed} and the head")
    changes = await workflow.diff(resumed)
    for kind, count in Counter("/" + "/".join(str(t) for t in c.path[:1]) for c in changes).most_common(5):
        print(f"   {count:>4} changes under {kind}")
    findings = await workflow.get("/findings")
    used = [name for name, _ in await workflow.get("/summary/most_used")]
    found = next((name for name in used if name in findings), next(iter(findings)))  # some, like sys, have no source
    print(f"\n6. Who found out about {found}? blame of /findings/{found}")
    for line in (await workflow.blame(["findings", found]))[:3]:
        print(f"   @{line.version:<4} {line.author:<16} {line.path:<28} = {line.value!s:.24}")
    out = place / "report.md"
    out.write_text(await workflow.get("/report"), encoding="utf-8")
    os.chmod(out, 0o600)  # noqa: PTH101
    print(f"\n7. The report is in {out}")
    for text in (await workflow.get("/report")).split("\n")[2:12]:
        print(f"   {text}")
