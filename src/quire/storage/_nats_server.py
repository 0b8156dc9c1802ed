"""The two JetStream streams of a store: found, made or refused; and what their servers promise."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from quire.errors import IncompatibleFormat, Unsupported
from quire.storage._nats_shelf import GONE, Out, Shelf
from quire.storage._nats_wire import Moved, Refusal, damaged
from quire.storage.base import Capabilities

FORMAT = "1"

_IN_USE, _OVERLAPS = 10058, 10065
_NO_PEERS = (10005, 10074)
_NS = 1_000_000_000
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
    purged = gone(found)
    if purged:
        raise damaged(f"the stream {shelf.name} at {shown}", shelf.name, purged)
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


def gone(info: dict[str, Any]) -> str:
    """Say what the server removed of a stream, "" for nothing: its first message, the anchor, is never removed by us."""
    state = info["state"]
    first, last = state["first_seq"], state["last_seq"]
    return f"messages 1 to {first - 1} of {last} were purged, or removed by a limit of the stream" if first > 1 else ""


def _removing(config: dict[str, Any]) -> list[str]:
    """Return the settings of a stream by which the server removes messages by itself."""
    found: list[str] = []
    if config.get("max_age", 0) > 0:
        found.append(f"max_age={config['max_age'] / _NS:g}s")
    if config.get("discard") != "new":
        found += [f"{name}={config[name]}" for name in ("max_msgs", "max_bytes") if config.get(name, -1) > 0]
    if config.get("max_msgs_per_subject", -1) > 0 and not config.get("discard_new_per_subject"):
        found.append(f"max_msgs_per_subject={config['max_msgs_per_subject']}")
    if config.get("retention", "limits") != "limits":
        found.append(f"retention={config['retention']}")
    return found


def promised(configs: Sequence[dict[str, Any]], *, synced: bool) -> Capabilities:
    """Return what the streams promise by their configuration. synced: whether the servers are said to sync always."""
    replicas = min(config["num_replicas"] for config in configs)
    removing = [f"the stream {config['name']} has {', '.join(by)}" for config in configs if (by := _removing(config))]
    if removing:
        durability = "none"
        note = f"{_MAY_LOSE}: {'; '.join(removing)}, by which the server removes messages; take the limit off, or set discard=new"
    elif any(config.get("persist_mode", "default") not in ("", "default") for config in configs):
        durability, note = "none", f"{_MAY_LOSE}: persist_mode=async acknowledges before it writes"
    elif any(config["storage"] != "file" for config in configs):
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
