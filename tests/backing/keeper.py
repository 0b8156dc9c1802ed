"""A process that backs up, recovers, replaces or prunes until it is killed. Run by test_kill.py.

argv: what to do, the store, the place. It says "ready" before it begins, and "done" after.
"""

import asyncio
import os
import sys

import quire
from quire.engine.backing import recovering, taking
from quire.engine.moving import loading


async def main(what, url, shelf):
    loading._RECORDS_MAX = 16
    taking._SEGMENT_BYTES = 4096
    taking._PAGE = recovering._PAGE = 20
    os.write(1, b"ready\n")
    if what in ("backup", "full"):
        async with quire.open(url) as store:
            await store.backup(shelf, full=what == "full")
    elif what == "prune":
        await quire.prune_backups(shelf, keep=1, days=30, dry_run=False)
    else:
        await quire.recover(
            shelf, url, replace=what == "replace", at=int(os.environ["AT"]) if "AT" in os.environ else None
        )
    os.write(1, b"done\n")


asyncio.run(main(*sys.argv[1:]))
