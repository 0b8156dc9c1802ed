"""Stores with something of everything in them, and what it means that one is a copy of another."""

from contextlib import asynccontextmanager, suppress

import msgspec

import quire
from quire import AsyncEventStore, StateScope, WorkflowStateManager
from quire.api.trigger_desk import Desk
from quire.core import keyframes
from quire.engine.actor import DELETED
from quire.engine.lineage import origin
from quire.engine.watch import Cursor
from quire.errors import AlreadyExists, Conflict, Invalid, NotFound
from quire.events.keyframes import Keyframes
from quire.model import Head

SECRET = "sk-hunter2-hunter2"
NAMES = ("a", "b", "c")
OPERATIONS = (
    *("create", "change", "change", "change", "many", "fork", "merge", "checkpoint", "snapshot", "unlabel"),
    *("redact", "wipe", "trim", "event", "trigger", "scope", "once", "cursor", "forget", "end", "blob", "frame"),
)


async def do(store, operation, name, number):
    """Do one of OPERATIONS to a workflow; what does not fit what is there does nothing."""
    wf = store.workflow(name)
    with suppress(AlreadyExists, NotFound, Invalid, Conflict):
        match operation:
            case "create":
                await store.create(name, {"n": 0, "log": [], "key": SECRET})
            case "change":
                await wf.append("/log", f"entry {number}", author="ann")
            case "many":
                for i in range(20):
                    await wf.inc("/n", i)
            case "fork":
                await wf.fork(f"{name}{number}")
            case "merge":
                await wf.merge(NAMES[number % 3], on_conflict="ours")
                await wf.merge(f"{name}{number}", on_conflict="ours")
            case "checkpoint" | "snapshot":
                await wf.checkpoint(f"{operation}{number}", kind="snapshot" if operation == "snapshot" else "manual")
            case "unlabel":
                await wf.drop_checkpoint(f"snapshot{number}")
            case "redact":
                await wf.redact(text=SECRET)
            case "wipe":
                await wf.redact(path="/key")
            case "trim":
                await trim(store, name)
            case "event":
                async with AsyncEventStore(store, name=name) as events:
                    made = await events.append("noted", {"n": number})
                    kept = Keyframes(store.engine, events.log.stream, "sums")
                    record = await store.engine.record(events.log.stream, made.version + 1)
                    head = Head(kept.name, record.version, record.chain)
                    await kept.keep(keyframes.make(head, {"sum": number, "key": SECRET}))
            case "trigger":
                await Desk(store.engine, name).register(None if number % 2 else number)
            case "scope":
                state = WorkflowStateManager(store).state(StateScope.agent(name))
                await state.set(f"k{number}", SECRET, ttl_s=3600)
            case "once":
                await wf.set("/once", number, idempotency_key=f"key{number}")
            case "cursor":
                await moved(store, f"store/{name}", await store.engine.backend.latest())
                await moved(store, f"workflows/{name}/reader", (await wf.version()).number)
            case "forget":
                await Cursor(store.engine, f"workflows/{name}/reader").forget()
                await Desk(store.engine, name).drop()
            case "end":
                await store.delete(name)
            case "blob":
                await store.put_blob(f"blob {number}".encode())
            case "frame":
                await frame(store, name)
            case _:
                raise AssertionError(operation)


async def moved(store, name, at):
    cursor = Cursor(store.engine, name)
    await cursor.load(at)
    await cursor.ack(at)
    await cursor.save()


async def frame(store, name):
    """Keep the newest state whole, as the engine does now and then."""
    actor = await store.engine.current(f"workflows/{name}")
    if actor.head.version:
        await store.engine.backend.put_keyframe(keyframes.make(actor.head, actor.state))


async def trim(store, name, back=1):
    """Remove a workflow's records but for the newest ones, as retention does: first a keyframe, then the records."""
    stream = f"workflows/{name}"
    head = (await store.engine.current(stream)).head
    backend = store.engine.backend
    version = head.version - back
    for other in await backend.streams("workflows/"):
        source = await origin(store.engine, other.removeprefix("workflows/"))
        if source is not None and source.workflow_id == name:
            version = min(version, source.version)  # what others began from is kept
    first = await backend.read(stream, limit=1)
    if version <= 1 or head.kind == DELETED or first[0].version >= version:
        return
    (record,) = await backend.read(stream, after=version - 1, upto=version)
    state = await store.engine.state_at(stream, version)
    await backend.put_keyframe(keyframes.make(Head(stream, version, record.chain, record.kind), state))
    await backend.trim(stream, version - 1)
    await backend.drop_keyframes(stream, [v for v in await backend.keyframes(stream) if v < version])


async def everything(backend):
    """What a copy has to have, positions aside."""
    streams = await backend.streams()
    cells = {
        c.name: (c.value, c.expires is None)
        for c in await backend.cells(limit=100_000)
        if not c.name.startswith(("copies/", "leases/"))
    }
    return {
        "records": [msgspec.structs.replace(r, position=0) for r in await backend.feed(limit=1_000_000)],
        "read": {s: [msgspec.structs.replace(r, position=0) for r in await backend.read(s)] for s in streams},
        "heads": await backend.heads(streams),
        "keyframes": {s: [await backend.keyframe(s, v) for v in await backend.keyframes(s)] for s in streams},
        "blobs": {name: await backend.blob(name) for name in await backend.blobs(limit=100_000)},
        "cells": {n: v for n, v in cells.items() if not n.startswith(("cursors/store/", "cursors/triggers/"))},
        "places": {
            n: [(r.stream, r.version) for r in await backend.feed(int(v[0]), limit=1_000_000)]
            for n, v in cells.items()
            if n.startswith(("cursors/store/", "cursors/triggers/"))
        },
    }


async def assert_copied(source, target):
    """Both hold the same, and fold to the same."""
    wanted, found = await everything(source.engine.backend), await everything(target.engine.backend)
    for part, value in wanted.items():
        assert found[part] == value, part
    for store in (source, target):
        report = await store.verify()
        assert report.ok, report.problems
    for name in await source.workflows():
        assert await target.workflow(name).state() == await source.workflow(name).state()
        ours, theirs = await source.workflow(name).history(), await target.workflow(name).history()
        assert [v.checksum for v in ours] == [v.checksum for v in theirs]
        for version in ours:
            assert await target.workflow(name).state(version.number) == await source.workflow(name).state(
                version.number
            )


@asynccontextmanager
async def filled(url, **how):
    """An open store with something of everything."""
    async with quire.open(url, **how) as store:
        for operation in dict.fromkeys(OPERATIONS):
            if operation not in ("trim", "redact", "wipe", "end", "forget", "unlabel"):
                for i, name in enumerate(NAMES):
                    await do(store, "create", name, i)
                    await do(store, operation, name, i)
        for _ in range(3):
            await do(store, "many", "b", 0)
            await do(store, "frame", "b", 0)
        await do(store, "unlabel", "c", 2)
        await do(store, "wipe", "a", 0)
        await trim(store, "b", 5)
        yield store
