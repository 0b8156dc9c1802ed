"""A process that runs a trigger until it is killed. Run by test_triggers.py.

argv: path, a mark for this process, and the seconds of its lease. For each event it appends one line to the workflow
`effects`, and says it on its stdout.
"""

import asyncio
import os
import sys

import quire


async def main(path, mark, lease_s):
    async with quire.open(path) as store:

        async def act(event):
            await store.workflow("effects").append("/lines", [mark, event.new], kind="effect")
            os.write(1, f"{event.new}\n".encode())

        await store.trigger("t", act, workflow="w", path="/n", lease_s=lease_s)
        os.write(1, b"ready\n")
        await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
