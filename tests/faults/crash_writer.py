"""A process that writes and says what was acknowledged, until it is killed. Run by test_kill.py.

argv: path, number of writers, "honest" or "early" (says so before it is true: the negative control).
"""

import asyncio
import os
import sys

import quire


def say(text):
    os.write(1, text.encode())


async def main(path, writers, honesty):
    async with quire.open(path) as store:
        flows = []
        for w in range(writers):
            wf = store.workflow(f"w{w}")
            flows.append(wf if await wf.exists() else await store.create(f"w{w}", {"n": 0, "last": None}))
        say("ready\n")

        async def write(w, wf):
            n = await wf.get("/n")
            while True:
                n += 1
                mark = f"{os.getpid()}-{n}"
                if honesty == "early":
                    say(f"{w} {(await wf.version()).number + 1} {mark}\n")
                async with wf.edit(author=f"p{os.getpid()}") as state:
                    state.increment("n")
                    state["last"] = mark
                if honesty == "honest":
                    say(f"{w} {(await wf.version()).number} {mark}\n")

        await asyncio.gather(*(write(w, wf) for w, wf in enumerate(flows)))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
