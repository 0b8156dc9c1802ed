"""How a store is doing: what `Store.health` returns, and from which figures on it is called degraded or unhealthy.

ok: it does what it promises.  degraded: it works, and promises less than was wanted, or will fail if nothing is done.
unhealthy: it cannot be read or written, or is about to be full.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from quire.api.trigger_desk import TriggerState
from quire.errors import Invalid
from quire.storage.base import Durability, Vitals

Status = Literal["ok", "degraded", "unhealthy"]
RANK: dict[Status, int] = {"ok": 0, "degraded": 1, "unhealthy": 2}
"""From best to worst."""


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True):
    """From where on a figure is not well. Give others to `health(limits=...)`. Raises Invalid for a negative one."""

    read_slow_s: float = 0.5
    """A read round trip that takes longer is degraded."""
    commit_slow_s: float = 1.0
    """So is a durable commit that takes longer, and a process of whose recent commits one in a hundred does."""
    disk_low_bytes: int = 1 << 30
    """Less free space than this,"""
    disk_low_part: float = 0.1
    """and less than this part of the disk, is degraded: small disks are judged by the part, large ones by the bytes."""
    disk_out_bytes: int = 64 << 20
    """Less than this,"""
    disk_out_part: float = 0.01
    """and less than this part, is unhealthy."""
    memory_high_part: float = 0.9
    """A server that uses more of its memory limit is degraded; one that has reached it takes no writes: unhealthy."""
    log_large_bytes: int = 256 << 20
    """A write-ahead log larger than this is degraded: a reader keeps it from being copied into the files."""
    sessions_high_part: float = 0.9
    """A server that has more of its sessions taken is degraded."""
    replica_silent_s: float = 30.0
    """A replica that was not heard of for longer is degraded. PostgreSQL's report every ten seconds by themselves."""
    replica_behind_bytes: int = 16 << 20
    """So is one that lacks more than this."""
    clock_off_s: float = 2.0
    """A server's clock that differs more from ours is degraded: cells and leases expire by it, versions have our time."""
    watcher_behind: int = 1000
    """A watcher or trigger that has not acknowledged more versions than this is degraded."""
    watchers_max: int = 1000
    """Cursors that are looked at, the first by name; the rest is not."""

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            if type(value) not in (int, float) or not value >= 0:
                raise Invalid(f"HealthLimits: {name}={value!r}; it is a number from 0 on")


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at. figure: for people.  reason: where it is not ok, what, where and what to do."""

    name: str
    status: Status
    figure: str
    reason: str = ""


class Lag(msgspec.Struct, frozen=True):
    """How many versions a watcher has not acknowledged yet.

    name: `store/CURSOR`, `workflows/ID/CURSOR`, `agents/ID/AGENT`, `triggers/NAME`, ...  more: there are more than that.
    """

    name: str
    behind: int
    more: bool = False


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is doing. status: the worst of the checks.  reasons: of those that are not ok, the worst first.

    durability, note: what acknowledged writes survive by the settings in force now.
    read_s: a read round trip, measured now.  commit_s: a durable commit, measured now; None where it was left out.
    commit_p50_s, commit_p99_s: of the newest 512 commits of this process, None before the first.
    clock_off_s: how far the server's clock is ahead of ours, at least; 0 where that is not certain, None where it is ours.
    vitals: what the backend knows of its surroundings, None where it could not be asked.
    watchers, triggers: how far each has come.
    oldest_unarchived: when the oldest version was written that should be in an archive and is not; None without one.
    newest_backup: when the newest backup was finished; None where none is known.
    """

    status: Status
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    backend: str
    durability: Durability
    note: str
    read_s: float | None = None
    commit_s: float | None = None
    commit_p50_s: float | None = None
    commit_p99_s: float | None = None
    clock_off_s: float | None = None
    vitals: Vitals | None = None
    watchers: tuple[Lag, ...] = ()
    triggers: tuple[TriggerState, ...] = ()
    oldest_unarchived: datetime | None = None
    newest_backup: datetime | None = None

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return self.status == "ok"
