"""What the server itself is: whether it can hold a store, what it promises, how it cleans up, and what is wrong in it.

Durability is read from its settings, never assumed. Where they cannot be read, nothing is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from quire.errors import CorruptRecord, Denied, IncompatibleFormat, StorageTimeout, StorageUnavailable, Unsupported
from quire.model import Cell
from quire.storage import _redis_rows as rows
from quire.storage._redis_line import Refusal
from quire.storage.base import Capabilities

Ask = Callable[..., Awaitable[Any]]

_OLDEST = (6, 2)
_SCRUB_S = 600.0
_SCRUB_PAUSE_S = 0.05
_SCAN = 1000
_MAY_LOSE = "may lose acknowledged writes"


class _Line(Protocol):
    async def ask(self, *words: str | bytes | int) -> Any: ...


class _Store(Protocol):
    async def streams(self) -> list[str]: ...
    async def blobs(self, *, after: str = "", limit: int = 1000) -> list[str]: ...
    async def blob(self, name: str) -> bytes | None: ...
    async def keyframes(self, stream: str) -> list[int]: ...
    async def keyframe(self, stream: str, at: int | None = None) -> object: ...
    async def cells(self, prefix: str = "", *, after: str = "", limit: int = 1000) -> list[Cell]: ...


async def info(ask: Ask, section: str) -> dict[str, str]:
    """Return a section of INFO."""
    text = (await ask("INFO", section)).decode(errors="replace")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def survey(line: _Line, shown: str) -> Capabilities:
    """Refuse a server that cannot hold a store, and return what this one promises."""
    about: dict[str, str] = {}
    try:
        for section in ("server", "replication", "cluster"):
            about |= await info(line.ask, section)
        settings = await settings_of(line.ask)
    except Denied:
        settings = None
    if about.get("cluster_enabled") == "1":
        raise Unsupported(
            f"{shown} is a node of a Redis cluster, which cannot change the keys of a store together; "
            "name a server that is not part of one",
            capability="cluster",
        )
    if about.get("role", "master") != "master":
        raise StorageUnavailable(f"{shown} is a read-only replica; name the primary")
    version = tuple(int(n) for n in about.get("redis_version", "").split(".")[:2] if n.isdigit())
    if version and version < _OLDEST:
        raise Unsupported(f"{shown} is Redis {about['redis_version']}; 6.2 or newer is needed", capability="redis>=6.2")
    return promised(settings)


async def settings_of(ask: Ask) -> dict[str, str] | None:
    """Return what durability hangs on, or None where the server does not tell."""
    found: dict[str, str] = {}
    for name in ("appendonly", "appendfsync", "maxmemory-policy"):
        try:
            pair = await ask("CONFIG", "GET", name)
        except (Denied, Refusal, Unsupported):  # forbidden, renamed, or unknown here
            return None
        if len(pair) != 2:
            return None
        found[name] = pair[1].decode(errors="replace")
    return found


def promised(settings: Mapping[str, str] | None) -> Capabilities:
    """Return what a server of these settings promises; None for settings that it does not show."""
    durability, note = "none", ""
    if settings is None:
        note = f"{_MAY_LOSE}: the server does not show its settings (CONFIG GET), so it cannot be known"
    elif settings["appendonly"] != "yes":
        note = f"{_MAY_LOSE}: appendonly is {settings['appendonly']}, all since the last snapshot goes when Redis ends"
    elif settings["maxmemory-policy"] != "noeviction":
        note = f"{_MAY_LOSE}: maxmemory-policy is {settings['maxmemory-policy']}, Redis may evict them; set noeviction"
    elif settings["appendfsync"] != "always":
        durability = "process"
        note = (
            f"{_MAY_LOSE}: appendfsync is {settings['appendfsync']}, the last second or more goes with the machine; "
            "set always"
        )
    else:
        durability = "power"
        note = "every acknowledged write is in the log on the server's disk; replicas follow later"
    return Capabilities(backend="redis", durability=durability, multi_process=True, backup=False, note=note)


async def refuse_foreign(line: _Line, prefix: str, shown: str) -> None:
    """Raise IncompatibleFormat where the prefix is somebody else's: keys under it, and none says that they are ours.

    prefix: keeps the rule of ids, so it has none of the characters that mean something in a pattern.
    Cost: looks through the whole database, but only before a store is made.
    """
    if await line.ask("EXISTS", prefix + ":format"):
        return
    cursor: bytes = b"0"
    while True:
        cursor, keys = await line.ask("SCAN", cursor, "MATCH", prefix + ":*", "COUNT", _SCAN)
        if keys and not await line.ask("EXISTS", prefix + ":format"):  # another process may be making it just now
            raise IncompatibleFormat(
                f"{shown} has keys under {prefix}: that are no store of ours, such as {keys[0]!r}; "
                "choose another with ?prefix=",
                found=keys[0],
            )
        if cursor == b"0":
            return


async def scrub(ask: Ask, shown: str) -> None:
    """Write the log and the snapshot anew, without what was removed or rewritten."""
    loop = asyncio.get_running_loop()
    until = loop.time() + _SCRUB_S

    async def idle() -> dict[str, str]:
        while True:
            state = await info(ask, "persistence")
            busy = (state.get("aof_rewrite_in_progress"), state.get("rdb_bgsave_in_progress"))
            if "1" not in (*busy, state.get("aof_rewrite_scheduled")):
                return state
            if loop.time() > until:
                raise StorageTimeout(f"{shown}: writing the log anew took longer than {_SCRUB_S:g} s; try again later")
            await asyncio.sleep(_SCRUB_PAUSE_S)

    async def rewritten(command: str, status: str) -> None:
        while True:
            await idle()  # what runs already began before our change
            try:
                await ask(command)
                break
            except Refusal as error:
                if "progress" not in str(error) and "active" not in str(error):  # somebody else began one
                    raise
        if (await idle()).get(status, "ok") != "ok":
            raise StorageUnavailable(f"{shown}: Redis failed to write its files anew; its log says why")

    try:
        logs = (await idle()).get("aof_enabled") == "1"
        if logs:
            await rewritten("BGREWRITEAOF", "aof_last_bgrewrite_status")
        # beside a log an old snapshot may lie unused; without log and snapshots none may be made: it would be loaded
        if logs or (await ask("CONFIG", "GET", "save"))[1]:
            await rewritten("BGSAVE", "rdb_last_bgsave_status")
        await ask("SLOWLOG", "RESET")  # it shows the beginnings of what was sent
    except (Denied, Refusal, Unsupported) as cause:
        raise Unsupported(
            f"{shown} does not let us have its files written anew ({cause}); whoever runs it has to: "
            "BGREWRITEAOF, BGSAVE, SLOWLOG RESET",
            capability="scrub",
        ) from cause


async def problems(store: _Store, call: Ask) -> list[str]:
    """Return what is wrong in a namespace. What changes meanwhile is looked at one stream, one page at a time."""
    found: list[str] = []
    streams = await store.streams()
    for stream in streams:
        found += await _of_stream(store, call, stream)
    after: Any = 0
    while after != b"":
        after, _, wrong = await call("walk", after)
        found += [f"the feed names a record that is not there: {place.decode(errors='replace')}" for place in wrong]
    names, heads, cell_names, cells, feed, records, counted, frames, position, newest = await call("totals")
    pairs = (
        ("streams are listed", names, "have a head", heads),
        ("cells are listed", cell_names, "are there", cells),
        ("records are in the feed", feed, "are in their streams", records),
        ("keyframes were counted", counted, "are there", frames),
    )
    found += [f"{one} {what}, {other} {that}" for what, one, that, other in pairs if one != other]
    if newest > position:
        found.append(f"the newest record is at position {newest}, positions were given up to {position} only")
    found += await _beside(store)
    return found


async def _of_stream(store: _Store, call: Ask, stream: str) -> list[str]:
    stored, low, count, row, frames = await call("survey", stream)
    if stored is None:
        return [] if stream not in await store.streams() else [f"{stream} is listed and has no head"]
    found: list[str] = []
    try:
        head = rows.head_of(stream, stored)
        if count != head.version - low + 1:
            found.append(f"{stream}: {count} records for versions {low} to {head.version}")
        if rows.record_of(stream, head.version, row).chain != head.chain:
            found.append(f"{stream}: the newest record is not the one that its head names")
        versions = await store.keyframes(stream)
        if len(versions) != frames:
            versions = []  # one came or went just now
        for version in versions:
            await store.keyframe(stream, version)
    except CorruptRecord as error:
        found.append(str(error))
    return found


async def _beside(store: _Store) -> list[str]:
    found: list[str] = []
    after = ""
    while page := await store.blobs(after=after):
        for name in page:
            try:
                await store.blob(name)
            except CorruptRecord as error:
                found.append(str(error))
        after = page[-1]
    last = ""
    try:
        while cells := await store.cells(after=last):
            last = cells[-1].name
    except CorruptRecord as error:
        found.append(str(error))
    return found
