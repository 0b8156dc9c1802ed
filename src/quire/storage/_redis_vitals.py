"""How a Redis server is: the settings in force now, memory, replicas, and what it failed to write.

Settings may be changed while it runs, so they are read anew. What it does not let us see is left out.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from quire.errors import Denied, Unsupported
from quire.storage._redis_line import Refusal
from quire.storage._redis_server import Ask, promised, settings_of
from quire.storage.base import Replica, Vitals

_SILENT = (Denied, Refusal, Unsupported)
"""What comes of asking for what this user may not know, or this server does not have."""
_REPLICA = re.compile(r"slave\d+")
_FAILURES = (
    ("aof_last_write_status", "Redis cannot write its log; see its disk, it takes no writes until it can"),
    ("aof_last_bgrewrite_status", "Redis failed to write its log anew, which goes on growing; its own log says why"),
    ("rdb_last_bgsave_status", "Redis failed to write its last snapshot; its own log says why"),
)


async def look(ask: Ask, shown: str) -> Vitals:
    """Return how the server is. Cost: one round trip, with a handful of questions in it."""
    about, clock, settings, wanted = await asyncio.gather(
        _or_none(ask, "INFO"), _or_none(ask, "TIME"), settings_of(ask), _wanted(ask)
    )
    info = _fields(about)
    limit = _number(info, "maxmemory")
    return Vitals(
        place=shown,
        server=f"Redis {info['redis_version']}" if "redis_version" in info else "Redis",
        promises=promised(settings),
        clock_ms=None if clock is None else int(clock[0]) * 1000 + int(clock[1]) // 1000,
        read_only=None if "role" not in info else info["role"] != "master",
        memory_used_bytes=_number(info, "used_memory"),
        memory_limit_bytes=limit or None,
        sessions=_number(info, "connected_clients"),
        sessions_max=_number(info, "maxclients"),
        replicas=_replicas(info),
        replicas_wanted=wanted,
        warnings=tuple(_warnings(info, shown)),
    )


async def _or_none(ask: Ask, *words: str) -> Any:
    try:
        return await ask(*words)
    except _SILENT:
        return None


async def _wanted(ask: Ask) -> int | None:
    """Return how many replicas the server wants before it takes a write, None where it does not tell."""
    pair = await _or_none(ask, "CONFIG", "GET", "min-replicas-to-write")
    return int(pair[1]) if pair is not None and len(pair) == 2 and pair[1].isdigit() else None


def _fields(answer: bytes | None) -> dict[str, str]:
    text = (answer or b"").decode(errors="replace")
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _number(info: Mapping[str, str], name: str) -> int | None:
    value = info.get(name, "")
    return int(value) if value.isdigit() else None


def _replicas(info: Mapping[str, str]) -> tuple[Replica, ...]:
    head = _number(info, "master_repl_offset") or 0
    found: list[Replica] = []
    for name, value in info.items():
        if _REPLICA.fullmatch(name):
            said = dict(part.split("=", 1) for part in value.split(",") if "=" in part)
            offset, silent = _number(said, "offset"), _number(said, "lag")
            behind = None if offset is None else max(0, head - offset)
            place = f"{said.get('ip', '?')}:{said.get('port', '?')}"
            found.append(Replica(place, said.get("state") == "online", behind, silent))
    return tuple(found)


def _warnings(info: Mapping[str, str], shown: str) -> list[str]:
    found = [f"{shown}: {said}" for field, said in _FAILURES if info.get(field, "ok") != "ok"]
    evicted = _number(info, "evicted_keys")
    if evicted:
        found.append(
            f"{shown}: Redis has evicted {evicted} keys since it started, which may be part of the store: run `quire "
            "verify`, set maxmemory-policy to noeviction"
        )
    return found
