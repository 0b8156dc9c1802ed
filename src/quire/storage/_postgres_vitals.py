"""How a PostgreSQL server is, as far as a plain role may know: settings in force, standbys, sessions, what the store takes.

The server does not tell anybody how full its disk is. What standbys do, it tells members of pg_monitor only: for others
they are there, and whether they follow is not known.
"""

from __future__ import annotations

import re
from typing import Any

from quire.storage._postgres_line import ANSWER_S, Db, Place
from quire.storage._postgres_schema import Server
from quire.storage.base import Capabilities, Replica, Vitals

_SERVER = """
SELECT current_setting('server_version') AS named,
       pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS readonly,
       current_setting('fsync') = 'on' AS fsync, current_setting('full_page_writes') = 'on' AS whole_pages,
       current_setting('synchronous_commit') <> 'off' AS waits, 0 AS store,
       floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock_ms,
       (SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
        WHERE relnamespace = to_regnamespace(current_schema()) AND relkind = 'r') AS used,
       (SELECT sum(numbackends)::int FROM pg_stat_database) AS sessions,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS sessions_max,
       current_setting('synchronous_standby_names') AS wanted,
       ARRAY(SELECT slot_name::text FROM pg_replication_slots WHERE NOT active AND slot_type = 'physical') AS slots
"""
_STANDBYS = """
SELECT coalesce(nullif(application_name, ''), 'a standby') AS name, state,
       CASE WHEN pg_is_in_recovery() THEN NULL
            ELSE greatest(pg_wal_lsn_diff(pg_current_wal_lsn(), flush_lsn), 0)::bigint END AS behind,
       greatest(extract(epoch FROM clock_timestamp() - reply_time), 0)::float8 AS silent_s
FROM pg_stat_replication ORDER BY 1
"""
_COUNT = re.compile(r"\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\(", re.IGNORECASE)


async def look(db: Db, place: Place) -> Vitals:
    """Return how the server is."""
    row = await db.fetchrow(_SERVER, timeout=ANSWER_S)
    standbys = await db.fetch(_STANDBYS, timeout=ANSWER_S)
    return Vitals(
        place=place.shown,
        server=f"PostgreSQL {row['named'].split(' ')[0]}",
        promises=promised(Server(row).risks),
        clock_ms=row["clock_ms"],
        read_only=row["readonly"],
        used_bytes=row["used"],
        sessions=row["sessions"],
        sessions_max=row["sessions_max"],
        replicas=tuple(map(_replica, standbys)),
        replicas_wanted=wanted_of(row["wanted"]),
        warnings=tuple(
            f"{place}: nobody reads the replication slot {slot}, and the server keeps its log for it until its disk is "
            "full; start that standby again, or drop the slot with pg_drop_replication_slot"
            for slot in row["slots"]
        ),
    )


def promised(risks: list[str]) -> Capabilities:
    """Return what a server promises whose settings bring these risks."""
    return Capabilities(
        backend="postgresql",
        durability="process" if risks else "power",
        multi_process=True,
        backup=False,
        note=f"may lose acknowledged writes when the server's machine loses power: {', '.join(risks)}"
        if risks
        else "every acknowledged write is on the server's disk",
    )


def wanted_of(names: str) -> int:
    """Return how many standbys a commit waits for, by the server's synchronous_standby_names.

    >>> wanted_of(""), wanted_of("a, b"), wanted_of("ANY 2 (a, b, c)")
    (0, 1, 2)
    """
    counted = _COUNT.match(names)
    return int(counted[1]) if counted else int(bool(names.strip()))


def _replica(row: Any) -> Replica:
    if row["state"] is None:  # not for us to see
        return Replica(row["name"], None)
    return Replica(row["name"], row["state"] == "streaming", row["behind"], row["silent_s"])
