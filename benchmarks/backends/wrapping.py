"""What compression saves on real work of agents, and what wrappers cost.

Small changes are made up in the forms that agents write, and taken from runs of Orchestra; a dictionary is learned from
the first half of them and measured on the second.
python -m benchmarks.backends.wrapping [--quick]
"""

import asyncio
import json
import random
import sys
from pathlib import Path

import quire
from benchmarks.backends.work import alone
from benchmarks.measure import Row, folder, in_turns
from quire.model import Record
from quire.orchestra import run, sequence, step
from quire.storage.base import Expect, Item
from quire.storage.memory import open_memory
from quire.storage.open import open_backend
from quire.storage.wrap.compressed import Compression, open_compressed
from quire.storage.wrap.encrypted import open_encrypted


async def orchestrated(runs):
    """Return the bodies that runs of twenty steps of agents leave, books of the run included."""

    async def agent(ctx):
        await asyncio.sleep(0)
        ctx.state["notes"] = [*ctx.state.get("notes", []), f"{ctx.key} found {len(ctx.state)} things to look at"]
        return {"summary": f"did {ctx.key}", "tokens": len(ctx.key) * 37}

    team = sequence(
        *(step(agent, name=f"{name}-{i}") for i in range(5) for name in ("plan", "search", "write", "review"))
    )
    async with quire.open("memory:") as store:
        for number in range(runs):
            await run(store, team, id=f"r{number}")
        return [r.body for r in await store.engine.backend.feed(limit=1_000_000)]


def said_by_agents(count):
    """Return small changes of agents as they are: status, outputs, scores, in a few forms, with other words each time."""
    chance, bodies = random.Random(1), []
    words = "tide moon current gauge harbour neap spring ebb flood datum buoy chart wind swell pilot".split()  # noqa: SIM905
    for number in range(count):
        agent = chance.choice(["researcher", "writer", "critic", "planner", "reviewer"])
        text = " ".join(chance.choice(words) for _ in range(chance.randrange(4, 14)))
        forms = [
            [["set", ["agents", agent, "status"], chance.choice(["busy", "idle", "waiting"])]],
            [["append", ["notes"], [{"by": agent, "text": text, "score": round(chance.random(), 3)}]]],
            [
                ["inc", ["counters", "tokens_used"], chance.randrange(4000)],
                ["set", ["agents", agent, "last_step"], number],
            ],
            [
                ["set", ["steps", f"step-{number}", "status"], "completed"],
                ["set", ["steps", f"step-{number}", "output"], {"summary": text, "tokens": chance.randrange(900)}],
                ["set", ["steps", f"step-{number}", "finished_at"], 1_700_000_000_000 + chance.randrange(10**9)],
            ],
        ]
        bodies.append(json.dumps(chance.choice(forms), separators=(",", ":")).encode())
    return bodies


def repetitive(count):
    """Return whole states of a workflow of many steps, as saving without changes would store them."""
    steps = {
        f"step-{i}": {
            "id": f"step-{i}",
            "name": f"Analyse part {i}",
            "agentId": f"agent-{i % 5}",
            "status": "completed",
        }
        | {"dependencies": [f"step-{i - 1}"], "parallel": False, "maxRetries": 3, "startTime": 1_700_000_000_000 + i}
        for i in range(60)
    }
    return [json.dumps({"workflowId": "w", "progress": n, "steps": steps}).encode() for n in range(count)]


async def stored(bodies, *, trained, compression="zstd"):
    """Return the bytes kept for the second half of bodies, after a dictionary was learned from the first."""
    inner = await open_memory("", namespace="default")
    backend = await open_compressed(inner, compression)
    half = len(bodies) // 2
    for part, number in ((bodies[:half], 0), (bodies[half:], half)):
        made = tuple(
            Record("workflows/w", v, 0, "", "", "", body, v.to_bytes(4, "big") * 8)
            for v, body in enumerate(part, number + 1)
        )
        before = number.to_bytes(4, "big") * 8 if number else bytes(32)
        await backend.commit([Item((Expect("workflows/w", number, before),), made)])
        if trained and number == 0:
            await backend.train("workflows")
    return sum(len(r.body) for r in await inner.read("workflows/w", after=half)), sum(map(len, bodies[half:]))


def wrapping(quick):
    """What wrappers save and cost."""
    states = repetitive(40)
    for name in ("zstd", "gzip", "lz4"):
        kept, plain = asyncio.run(stored(states, trained=False, compression=Compression(name)))
        yield Row(f"saved on whole states of 60 steps, {name}", 100 * (1 - kept / plain), ">=", 65, "%")
    kinds = {"small changes of agents": said_by_agents(4000), "runs of twenty steps": asyncio.run(orchestrated(100))}
    for what, bodies in kinds.items():
        without, plain = asyncio.run(stored(bodies, trained=False, compression=Compression(threshold_bytes=48)))
        kept, _ = asyncio.run(stored(bodies, trained=True))
        mean = plain / (len(bodies) - len(bodies) // 2)
        note = (
            f"{mean:.0f} bytes each: {100 * (1 - without / plain):.0f} % without, {100 * (1 - kept / plain):.0f} % with"
        )
        yield Row(f"a dictionary saves more than none, {what}", 100 * (1 - kept / without), ">=", 40, "%", note)

    def writing(wrap):
        def once():
            with folder() as place:
                return asyncio.run(_alone(f"{place}/s.db", wrap, 30 if quick else 100))

        return once

    bare, sealed = in_turns(writing(None), writing("encrypted"), repeats=3)
    yield Row(
        "commit of 100 ready items encrypted, of plain", sealed.mid / bare.mid, ">=", 0.4, note=f"{sealed}/s, {bare}/s"
    )


async def _alone(url, wrap, each):
    if wrap is None:
        return await alone(url, 100, each)
    backend = await open_backend(url, namespace="default")
    await (await open_encrypted(backend, namespace="default", key=bytes(32))).close()
    key = Path(f"{url}.key")
    key.write_text(bytes(32).hex())
    return await alone(f"{url}?encryption_key_file={key}", 100, each)


if __name__ == "__main__":
    for row in wrapping("--quick" in sys.argv):
        print(f"{row.what:<62} {row.measured:>9,.2f} {row.unit:<2} bar {row.sign} {row.bar:g}  {row.note}", flush=True)
