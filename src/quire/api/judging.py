"""From what was measured of a store to how it is doing. Pure: figures and limits in, checks out.

Every check says its figure. One that is not ok also says what is wrong, where, and what to do now. What is not known makes
no check: nothing is called well that nobody looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from quire.api.health import RANK, Check, Health, HealthLimits, Lag, Status
from quire.api.trigger_desk import TRIGGERS, TriggerState
from quire.errors import QuireError
from quire.storage.base import Capabilities, Durability, Vitals

_SURVIVES: dict[Durability, str] = {
    "none": "nothing",
    "process": "the end of the process, not a loss of power",
    "power": "a loss of power",
}
_NAMED_MAX = 3
"""Watchers that a reason names; how many more there are is said."""


class Upkeep(NamedTuple):
    """What the store's own housekeeping knows, without asking anybody.

    overdue: when the oldest version was written that should be in the archive and could not be moved.
    backups: whether they are taken by themselves.  newest_backup: when the newest was taken.  backup_error: why the last
    attempt failed.
    """

    overdue: datetime | None = None
    backups: bool = False
    newest_backup: datetime | None = None
    backup_error: str = ""


@dataclass(slots=True)
class Findings:
    """What was measured. took_s: durations of this process's newest commits. *_error: why a figure is not there."""

    read_s: float | None = None
    read_error: QuireError | None = None
    commit_s: float | None = None
    commit_error: QuireError | None = None
    broken: bool = False
    took_s: list[float] = field(default_factory=list[float])
    vitals: Vitals | None = None
    vitals_error: QuireError | None = None
    clock_off_s: float | None = None
    watchers: tuple[Lag, ...] = ()
    triggers: tuple[TriggerState, ...] = ()
    watchers_error: QuireError | None = None
    upkeep: Upkeep = Upkeep()


def judged(found: Findings, limits: HealthLimits, opened: Capabilities, expected: Durability | None) -> Health:
    """Return how a store is doing.

    opened: what the backend promised when it was opened.  expected: what acknowledged writes have to survive; None for
    a loss of power where a server's settings decide, for what the URL says where that does.
    """
    vitals = found.vitals or Vitals()
    promises = vitals.promises or opened
    wanted = expected or ("power" if vitals.promises else opened.durability)
    where = vitals.place or f"the {opened.backend} store"
    checks = [
        *_reading(found, limits, where),
        *_writing(found, vitals, limits, where),
        *_commits(found, limits, where),
        _durability(promises, wanted, where),
        *_surroundings(vitals, limits, where),
        *_server(found, vitals, limits, where),
        *_followers(vitals, limits, where),
        *_watchers(found, limits),
        *_upkeep(found.upkeep),
    ]
    bad = sorted((c for c in checks if c.status != "ok"), key=lambda check: -RANK[check.status])
    return Health(
        status=bad[0].status if bad else "ok",
        reasons=tuple(check.reason for check in bad),
        checks=tuple(checks),
        backend=opened.backend,
        durability=promises.durability,
        note=promises.note,
        read_s=found.read_s,
        commit_s=found.commit_s,
        commit_p50_s=_quantile(found.took_s, 0.5),
        commit_p99_s=_quantile(found.took_s, 0.99),
        clock_off_s=found.clock_off_s,
        vitals=found.vitals,
        watchers=found.watchers,
        triggers=found.triggers,
        oldest_unarchived=found.upkeep.overdue,
        newest_backup=found.upkeep.newest_backup,
    )


def size(count: int) -> str:
    """Return bytes for people.

    >>> size(512), size(3 * 1024**3)
    ('512 B', '3.0 GiB')
    """
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{count} B" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:,.0f} ms"


def _quantile(values: Sequence[float], part: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else None


def _upkeep(known: Upkeep) -> Iterator[Check]:
    if known.overdue is not None:
        said = (
            f"versions since {known.overdue:%Y-%m-%d %H:%M} should be in the archive and could not be moved: nothing is "
            "lost, the store grows; `quire sweep` says what is in the way"
        )
        yield Check("archive", "degraded", f"behind since {known.overdue:%Y-%m-%d}", said)
    if known.backups:
        newest = "none yet" if known.newest_backup is None else f"{known.newest_backup:%Y-%m-%d %H:%M}"
        said = f"the last backup could not be taken, and is tried again: {known.backup_error}"
        failed = bool(known.backup_error)
        yield Check("backups", "degraded" if failed else "ok", newest, said if failed else "")


def _reading(found: Findings, limits: HealthLimits, where: str) -> Iterator[Check]:
    if found.read_error is not None:
        yield Check("reading", "unhealthy", "no answer", _located(found.read_error, where))
    elif found.read_s is not None:
        slow = found.read_s > limits.read_slow_s
        said = f"{where}: a read took {_ms(found.read_s)}, more than {_ms(limits.read_slow_s)}: see what loads it"
        yield Check("reading", "degraded" if slow else "ok", _ms(found.read_s), said if slow else "")


def _writing(found: Findings, vitals: Vitals, limits: HealthLimits, where: str) -> Iterator[Check]:
    if found.commit_error is not None:
        yield Check("writing", "unhealthy", "failed", _located(found.commit_error, where))
    elif vitals.read_only:
        said = f"{where} cannot be written now: it is read only, or follows another; name the primary, or mount it anew"
        yield Check("writing", "unhealthy", "read only", said)
    elif found.commit_s is not None:
        slow = found.commit_s > limits.commit_slow_s
        said = (
            f"{where}: a durable commit took {_ms(found.commit_s)}, more than {_ms(limits.commit_slow_s)}: see how busy "
            "its disk is, and who else writes"
        )
        yield Check("writing", "degraded" if slow else "ok", _ms(found.commit_s), said if slow else "")
    elif found.broken:
        said = f"{where}: a commit failed and is not settled yet; the next write tries to, and tells what became of it"
        yield Check("writing", "degraded", "unsettled", said)


def _commits(found: Findings, limits: HealthLimits, where: str) -> Iterator[Check]:
    p50, p99 = _quantile(found.took_s, 0.5), _quantile(found.took_s, 0.99)
    if p50 is None or p99 is None:
        return
    slow = p99 > limits.commit_slow_s
    said = (
        f"{where}: of the last {len(found.took_s)} commits of this process one in a hundred took {_ms(p99)} or longer: "
        "see how busy its disk is, and who else writes"
    )
    yield Check("commits", "degraded" if slow else "ok", f"p50 {_ms(p50)}, p99 {_ms(p99)}", said if slow else "")


def _durability(promises: Capabilities, wanted: Durability, where: str) -> Check:
    figure = f"survives {_SURVIVES[promises.durability]}"
    strength: dict[Durability, int] = {"none": 0, "process": 1, "power": 2}
    if strength[promises.durability] >= strength[wanted]:
        return Check("durability", "ok", figure)
    said = f"{where}: acknowledged writes are to survive {_SURVIVES[wanted]}, and do not: {promises.note}"
    return Check("durability", "degraded", figure, said)


def _surroundings(vitals: Vitals, limits: HealthLimits, where: str) -> Iterator[Check]:
    free, total = vitals.disk_free_bytes, vitals.disk_total_bytes
    if free is not None:
        part = 1.0 if not total else free / total
        status: Status = "ok"
        if free < limits.disk_low_bytes and part < limits.disk_low_part:
            status = "degraded"
        if free < limits.disk_out_bytes and part < limits.disk_out_part:
            status = "unhealthy"
        figure = f"{size(free)} free" + (f" of {size(total)}" if total else "")
        said = f"{where}: {figure}; free some space, or move it to a larger one: writes fail when it is full"
        yield Check("disk", status, figure, said if status != "ok" else "")
    if vitals.log_bytes is not None:
        large = vitals.log_bytes > limits.log_large_bytes
        said = (
            f"{where}: its write-ahead log has grown to {size(vitals.log_bytes)}: something has been reading for long and "
            "keeps it from being copied into the files; find and end it"
        )
        yield Check("log", "degraded" if large else "ok", size(vitals.log_bytes), said if large else "")
    used, limit = vitals.memory_used_bytes, vitals.memory_limit_bytes
    if used is not None:
        yield _memory(used, limit, limits, where)


def _memory(used: int, limit: int | None, limits: HealthLimits, where: str) -> Check:
    if limit is None:
        return Check("memory", "ok", f"{size(used)}, no limit")
    figure = f"{size(used)} of {size(limit)}"
    if used >= limit:
        said = f"{where}: the server has reached its memory limit, {figure}, and takes no writes; raise it, or trim and drop"
        return Check("memory", "unhealthy", figure, said)
    if used > limits.memory_high_part * limit:
        said = f"{where}: the server uses {figure} of memory, and takes no writes when it is full; raise it, or trim"
        return Check("memory", "degraded", figure, said)
    return Check("memory", "ok", figure)


def _server(found: Findings, vitals: Vitals, limits: HealthLimits, where: str) -> Iterator[Check]:
    taken, most = vitals.sessions, vitals.sessions_max
    if taken is not None and most:
        high = taken > limits.sessions_high_part * most
        said = f"{where}: {taken} of {most} sessions of the server are taken; close some, or have it allow more"
        yield Check("sessions", "degraded" if high else "ok", f"{taken} of {most}", said if high else "")
    if found.clock_off_s is not None:
        off = abs(found.clock_off_s) > limits.clock_off_s
        figure = f"{found.clock_off_s:+.1f} s from ours" if found.clock_off_s else "as ours"
        said = (
            f"{where}: the server's clock is {found.clock_off_s:+.1f} s from ours; leases and cells expire by it, and "
            "versions are dated by ours: set both by NTP"
        )
        yield Check("clock", "degraded" if off else "ok", figure, said if off else "")
    if found.vitals_error is not None:
        yield Check("server", "degraded", "not told", _located(found.vitals_error, where))
    elif vitals.server:
        yield Check("server", "ok", vitals.server)
    for warning in vitals.warnings:
        yield Check("warning", "degraded", "", warning)


def _followers(vitals: Vitals, limits: HealthLimits, where: str) -> Iterator[Check]:
    if not vitals.replicas and not vitals.replicas_wanted:
        return
    following = sum(replica.in_sync is True for replica in vitals.replicas)
    unknown = sum(replica.in_sync is None for replica in vitals.replicas)
    lost = [r.name for r in vitals.replicas if r.in_sync is False]
    slow = [
        r.name
        for r in vitals.replicas
        if (r.behind_bytes or 0) > limits.replica_behind_bytes or (r.behind_s or 0) > limits.replica_silent_s
    ]
    wanted = vitals.replicas_wanted or 0
    figure = f"{following} of {max(wanted, len(vitals.replicas))} follow" + (f", {unknown} unknown" if unknown else "")
    reasons: list[str] = []
    if following + unknown < wanted or lost:
        missing = f" ({', '.join(lost)})" if lost else ""
        reasons.append(f"{figure}{missing}; start those that are down: the loss of one more may stop writing")
    behind = [name for name in slow if name not in lost]
    if behind:
        reasons.append(f"{', '.join(behind)} lags far behind; see its disk and the network to it")
    said = f"{where}: of its replicas {'; '.join(reasons)}" if reasons else ""
    yield Check("replicas", "degraded" if reasons else "ok", figure, said)


def _watchers(found: Findings, limits: HealthLimits) -> Iterator[Check]:
    if found.watchers_error is not None:
        yield Check("watchers", "degraded", "not known", str(found.watchers_error))
        return
    watchers = [lag for lag in found.watchers if not lag.name.startswith(TRIGGERS)]
    triggers = [lag for lag in found.watchers if lag.name.startswith(TRIGGERS)]
    if watchers:
        late = _late(watchers, limits)
        said = (
            f"{_named(late)} behind by more than {limits.watcher_behind} versions: see that whoever reads with that cursor "
            "runs, and keeps up; `drop_cursor` ends one that nobody uses any more"
        )
        yield Check("watchers", "degraded" if late else "ok", _worst(watchers), said if late else "")
    if found.triggers:
        late = _late(triggers, limits)
        parked = [state for state in found.triggers if state.status == "parked"]
        reasons = [
            f"trigger {t.name} is parked at {t.workflow_id}@{t.version} after {t.attempts} attempts ({t.error}): correct "
            f"it, then `resume_trigger({t.name!r})`, with skip=True to leave that event out"
            for t in parked
        ]
        if late:
            reasons.append(f"{_named(late)} behind by more than {limits.watcher_behind} versions: {_idle(found, late)}")
        figure = _worst(triggers) + (f", {len(parked)} parked" if parked else "")
        yield Check("triggers", "degraded" if reasons else "ok", figure, "; ".join(reasons))


def _late(lags: Iterable[Lag], limits: HealthLimits) -> list[Lag]:
    late = [lag for lag in lags if lag.behind > limits.watcher_behind or lag.more]
    return sorted(late, key=lambda lag: (-lag.behind, lag.name))


def _named(late: Sequence[Lag]) -> str:
    names = ", ".join(lag.name for lag in late[:_NAMED_MAX])
    rest = len(late) - _NAMED_MAX
    return f"{names}{f' and {rest} more' if rest > 0 else ''} {'is' if len(late) == 1 else 'are'}"


def _worst(lags: Sequence[Lag]) -> str:
    worst = max(lags, key=lambda lag: (lag.behind, lag.more), default=Lag("", 0))
    return f"{len(lags)}, up to {worst.behind}{' or more' if worst.more else ''} behind"


def _idle(found: Findings, late: Sequence[Lag]) -> str:
    names = {lag.name.removeprefix(TRIGGERS) for lag in late}
    idle = [t.name for t in found.triggers if t.name in names and not t.owned]
    if idle:
        return f"no process runs {', '.join(idle)}; start one, or `drop_trigger`"
    return "see what its function waits for"


def _located(error: QuireError, where: str) -> str:
    """Return what an error says, with the place where it does not name one."""
    said = str(error)
    return said if where.startswith("the ") or where in said else f"{where}: {said}"
