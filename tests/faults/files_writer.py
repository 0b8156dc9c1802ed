"""A process that writes to a folder of files and says what was acknowledged, until it is killed. Run by test_files_kill.py.

Its journal is small, so that rounds begin often, and beside the writers it rewrites, trims and drops streams.
argv: url, number of writers, "honest" or "early" (says so before it is true: the negative control).
"""

import asyncio
import os
import sys

import msgspec

import quire
from quire.storage import _files_journal
from quire.storage.base import Item
from quire.storage.files import open_files
from quire.testing._conformance_base import appended

_files_journal.JOURNAL_MAX_BYTES = 12_000


def say(text):
    os.write(1, text.encode())


async def write(w, wf, honesty):
    n = 0
    while True:
        n += 1
        mark = f"{os.getpid()}-{n}"
        changes = [quire.Increment(("n",), 1), quire.Set(("last",), mark)]
        if honesty == "early":
            say(f"{w} {(await wf.version()).number + 1} {mark}\n")
        version = await wf.apply(changes, author=f"p{os.getpid()}")
        if honesty == "honest":
            say(f"{w} {version.number} {mark}\n")


async def remove(backend):
    """Replace and remove files, in a namespace beside."""
    stream = f"rubbish/{os.getpid()}"
    while True:
        for _ in range(3):
            await appended(backend, stream, b"[]", b"secret", b"[1]")
        records = await backend.read(stream)
        wanted = [msgspec.structs.replace(r, body=b"gone") for r in records if r.body == b"secret"]
        assert await backend.rewrite(wanted) == 3
        await backend.trim(stream, records[4].version)
        assert await backend.commit([Item()])
        await backend.drop(stream)


async def main(url, writers, honesty):
    rubbish = await open_files(url.removeprefix("file:///"), namespace="rubbish")
    async with quire.open(url) as store:
        for w in range(writers):
            if not await store.workflow(f"w{w}").exists():
                try:
                    await store.create(f"w{w}", {"n": 0, "last": None})
                except quire.errors.AlreadyExists:
                    pass  # by the other one
        say("ready\n")
        async with asyncio.TaskGroup() as group:
            for w in range(writers):
                group.create_task(write(w, store.workflow(f"w{w}"), honesty))
            group.create_task(remove(rubbish))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
