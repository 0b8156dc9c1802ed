"""The two JetStream streams of a store: found, made or refused; and what their servers promise."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from quire.errors import IncompatibleFormat, Unsupported
from quire.storage._nats_shelf import GONE, Out, Shelf
from quire.storage._nats_wire import Moved, Refusal
from quire.storage.base import Capabilities

FORMAT = "1"

_IN_USE, _OVERLAPS = 10058, 10065
_NO_PEERS = (10005, 10074)
_MAY_LOSE = "may lose acknowledged writes"


async def claim(shelf: Shelf, replicas: int, shown: str) -> dict[str, Any]:
    """Return the configuration of a stream of ours, made if it is not there."""
    try:
        found = await shelf.ask("STREAM.INFO")
    except Refusal as error:
        if error.number != GONE:
            raise
        found = await _make(shelf, replicas, shown)
    config = found["config"]
    known = (config.get("metadata") or {}).get("quire")
    if known != FORMAT:
        raise IncompatibleFormat(
            f"{shown}: the stream {shelf.name} is "
            + ("none of ours" if known is None else f"of format {known}, which this version cannot read")
            + "; choose another with ?stream=, or upgrade quire",
            found=known,
            supported=FORMAT,
        )
    if not found["state"]["last_seq"]:
        anchor = Out(shelf.anchor, {}, b"the first message of a store of Quire", 0)
        with suppress(Moved):  # somebody else was first
            await shelf.patiently(lambda: shelf.put([anchor]))
    return config


async def _make(shelf: Shelf, replicas: int, shown: str) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "name": shelf.name,
        "subjects": [f"{shelf.name}.>"],
        "description": "a store of Quire: do not publish here",
        "retention": "limits",
        "discard": "new",
        "storage": "file",
        "num_replicas": replicas,
        "max_msgs": -1,
        "max_bytes": -1,
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "allow_atomic": True,
        "allow_msg_ttl": True,
        "metadata": {"quire": FORMAT},
    }
    try:
        return await shelf.ask("STREAM.CREATE", wanted)
    except Refusal as error:
        if error.number == _IN_USE:  # made by somebody else meanwhile
            return await shelf.api("STREAM.INFO")
        if error.number == _OVERLAPS:
            raise IncompatibleFormat(
                f"{shown}: another stream has the subjects {shelf.name}.>; choose another with ?stream="
            ) from error
        if error.number in _NO_PEERS:
            raise Unsupported(
                f"{shown} has no {replicas} servers with room for replicas; start more, or say ?replicas=1",
                capability="replicas",
            ) from error
        raise


def promised(config: dict[str, Any], *, synced: bool) -> Capabilities:
    """Return what a stream of this configuration promises. synced: whether the servers are said to sync always."""
    replicas = config["num_replicas"]
    if config["storage"] != "file":
        durability, note = "none", f"{_MAY_LOSE}: the stream is kept in memory"
    elif synced:
        durability, note = "power", f"{replicas} on disk; that the servers sync always is what the URL says"
    else:
        durability = "process"
        note = (
            f"{_MAY_LOSE}: NATS writes to the disk every two minutes unless sync_interval is always, and does not tell; "
            "set it and say ?sync=always"
        )
    return Capabilities(backend="nats", durability=durability, multi_process=True, backup=False, note=note)
