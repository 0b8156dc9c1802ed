"""What writing costs now and what it did at another commit: `python -m benchmarks.commits COMMIT [--turns 7]`.

Both run in turns, each in processes of its own, on a state of 1,000 keys, in memory and in a SQLite file. Run it on a machine
that does nothing else: differences of a few percent are told.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measure import folder

PROGRAM = """
import asyncio, gc, json, sys, time
import quire
KEYS = [str(i) for i in range(1000)]
async def main(url):
    async with quire.open(url) as store:
        wf = await store.create("w", {"of": {key: 0 for key in KEYS}, "x": 0, "y": 0, "z": 0})
        async def plain(i):
            await wf.set("/x", i)
        async def three(i):
            async with wf.edit() as state:
                state["x"], state["y"], state["z"] = i, i, i
        async def reads(i):
            async with wf.edit() as state:
                some = state["of"]
                for key in KEYS:
                    some[key]
                state["x"] = -i
        found = {}
        for name, work, count in (("set", plain, 3000), ("edit of 3 keys", three, 2000), ("edit with 1,000 reads", reads, 300)):
            for i in range(20):
                await work(-1 - i)
            gc.collect()
            gc.disable()
            start = time.perf_counter()
            for i in range(count):
                await work(i + 1)
            found[name] = (time.perf_counter() - start) / count * 1e6
            gc.enable()
        print(json.dumps(found))
asyncio.run(main(sys.argv[1]))
"""
ROOT = Path(__file__).parent.parent


def once(source, url):
    """Return microseconds of each operation with the library in a folder."""
    where = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", PROGRAM, url], env=where, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=__doc__.split("\n")[0])
    arguments.add_argument("commit")
    arguments.add_argument("--turns", type=int, default=7)
    given = arguments.parse_args()
    with folder() as place:
        then, now = Path(place) / "then", ROOT
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", "--quiet", then, given.commit], check=True)
        try:
            print(f"{'':<32}{'then':>10}{'now':>10}{'x':>7}{'x, quickest runs':>18}")
            for store in ("memory", "SQLite"):
                times = {then: [], now: []}
                for turn in range(given.turns):
                    for side in (then, now) if turn % 2 else (now, then):
                        url = "memory:" if store == "memory" else f"{place}/{side.name}-{turn}.db"
                        times[side].append(once(side / "src", url))
                for name in times[now][0]:
                    old, new = ([each[name] for each in times[side]] for side in (then, now))
                    ratios = median(new) / median(old), min(new) / min(old)
                    line = f"{median(old):>7.0f} us{median(new):>7.0f} us{ratios[0]:>7.2f}{ratios[1]:>18.2f}"
                    print(f"{store + ', ' + name:<32}{line}", flush=True)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", then], check=True)


if __name__ == "__main__":
    main()
