"""A process that copies, in small commits, until it is killed. Run by test_kill.py.

argv: the source, the target. It says "ready" before it begins.
"""

import asyncio
import os
import sys

import quire
from quire.engine.moving import loading


async def main(source, target):
    loading._RECORDS_MAX = 16
    async with quire.open(source) as store:
        os.write(1, b"ready\n")
        await store.copy_to(target)
        os.write(1, b"done\n")


asyncio.run(main(sys.argv[1], sys.argv[2]))
