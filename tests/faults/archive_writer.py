"""A process that writes, sweeps and says what was acknowledged, until it is killed. Run by test_archive_kill.py.

argv: url of the store, place of the archive or "-" for none, number of writers, "honest" or a control of `CONTROLS`.
"""

import asyncio
import os
import sys

import quire
from quire.config import Retention, Settings
from quire.storage.wrap import _moving


def say(text):
    os.write(1, text.encode())


async def early(self, stream, cell, page, frames, keep):
    """Removes records before their segment is catalogued."""
    await self._inner.trim(stream, page[-1].version)
    return await honest(self, stream, cell, page, frames, keep)


honest = _moving.Mover._store
CONTROLS = {"honest": honest, "early": early}


async def main(url, place, writers, honesty):
    _moving.Mover._store = CONTROLS[honesty]
    rules = Retention(versions=3, every_s=0)
    settings = Settings(keyframe_changes_min=8, keyframe_bytes_min=0)
    where = {} if place == "-" else {"archive": place}
    async with quire.open(url, retention=rules, settings=settings, **where) as store:
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
                edit = wf.edit(author=f"p{os.getpid()}")
                async with edit as state:
                    state.increment("n")
                    state["last"] = mark
                say(f"{w} {edit.version.number} {mark}\n")

        async def sweep():
            while True:
                done = await store.sweep()
                for problem in done.problems:
                    print(problem, file=sys.stderr)
                await asyncio.sleep(0)

        await asyncio.gather(sweep(), *(write(w, wf) for w, wf in enumerate(flows)))


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
