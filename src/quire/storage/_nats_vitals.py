"""How the servers of a store in NATS are: who keeps a copy of its two streams and follows, and how much room is left."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from quire.errors import Denied
from quire.storage._nats_server import gone, promised
from quire.storage._nats_shelf import Shelf
from quire.storage._nats_wire import Refusal, Wire
from quire.storage.base import Replica, Vitals

_NS = 1_000_000_000


async def look(wire: Wire, shelves: tuple[Shelf, Shelf], shown: str, timeout_s: float, *, synced: bool) -> Vitals:
    """Return how the servers are. Cost: one round trip, with three questions in it.

    timeout_s: how long what may be kept from us is waited for.  synced: whether the servers are said to sync always.
    """
    *infos, account = await asyncio.gather(*(shelf.api("STREAM.INFO") for shelf in shelves), _account(wire, timeout_s))
    used = sum(info["state"]["bytes"] for info in infos)
    free, total = _room(infos, account)
    release = wire.client.connected_server_version
    return Vitals(
        place=shown,
        server=f"NATS {release.major}.{release.minor}.{release.patch}",
        promises=promised([info["config"] for info in infos], synced=synced),
        clock_ms=_clock(infos[0]),
        used_bytes=used,
        disk_free_bytes=free,
        disk_total_bytes=total,
        replicas=_replicas(infos),
        replicas_wanted=max(info["config"]["num_replicas"] for info in infos) - 1,
        warnings=tuple(_warnings(infos, shown)),
    )


async def _account(wire: Wire, timeout_s: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(timeout_s):
            return await wire.api("INFO")
    except (Denied, Refusal, TimeoutError):  # a subject that we may not ask on is met with silence
        return {}


def _room(infos: list[dict[str, Any]], account: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return free and total bytes of what limits the store most: its streams, or the account."""
    limits = [(info["config"]["max_bytes"], info["state"]["bytes"]) for info in infos]
    limits.append(((account.get("limits") or {}).get("max_storage", -1), account.get("storage", 0)))
    rooms = [(max(0, limit - used), limit) for limit, used in limits if limit > 0]
    return min(rooms) if rooms else (None, None)


def _clock(info: Mapping[str, Any]) -> int | None:
    try:
        return int(datetime.fromisoformat(info["ts"]).timestamp() * 1000)
    except (KeyError, ValueError):
        return None


def _replicas(infos: list[dict[str, Any]]) -> tuple[Replica, ...]:
    """Return the servers that follow a stream's leader, of the one of our streams that fewer follow."""
    found = [[_replica(peer) for peer in (info.get("cluster") or {}).get("replicas") or []] for info in infos]
    return tuple(min(found, key=lambda replicas: sum(replica.in_sync is True for replica in replicas)))


def _replica(peer: Mapping[str, Any]) -> Replica:
    follows = bool(peer.get("current")) and not peer.get("offline", False)
    return Replica(peer["name"], follows, behind_s=peer.get("active", 0) / _NS)


def _warnings(infos: list[dict[str, Any]], shown: str) -> list[str]:
    lost = [(info["config"]["name"], how) for info in infos if (how := gone(info))]
    return [f"{shown}: the stream {name} is damaged: {how}; restore a backup" for name, how in lost] + [
        f"{shown}: the stream {info['config']['name']} has no leader now, and takes no writes; see that most of its "
        "servers run"
        for info in infos
        if "cluster" in info and not info["cluster"].get("leader")
    ]
