"""Leaving no trace in the tables of what was removed or rewritten.

PostgreSQL keeps old versions of a row until nobody can see them any more, and their bytes until the page is used
again. `VACUUM FULL` writes a table anew without them, but keeps what a transaction that is still open could see. So
those that began before the scrub are waited for.
"""

from __future__ import annotations

import asyncio
import logging

from quire.errors import StorageTimeout
from quire.storage._postgres_line import BUSY_S, Db, sqlstate

log = logging.getLogger("quire")

_VACUUM = (
    "VACUUM (FULL) streams",
    "VACUUM (FULL) records",
    "VACUUM (FULL) keyframes",
    "VACUUM (FULL) blobs",
    "VACUUM (FULL) cells",
    "VACUUM (FULL) meta",
)
_PAUSE_S = 0.05
_MARK = "SELECT pg_current_xact_id()::text::bigint % 4294967296"
_HOLDERS = """
SELECT count(*) FROM (
    SELECT backend_xmin AS held FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()
    UNION ALL SELECT transaction FROM pg_prepared_xacts
    UNION ALL SELECT xmin FROM pg_replication_slots
) AS h WHERE held IS NOT NULL AND age(held) >= age($1::bigint::text::xid)
"""


async def scrub(db: Db, shown: str) -> None:
    """Write all tables anew. Raises StorageTimeout while a transaction from before is open, or holds a table."""
    mark = await db.fetchval(_MARK)
    loop = asyncio.get_running_loop()
    until = loop.time() + BUSY_S
    while await db.fetchval(_HOLDERS, mark):
        if loop.time() > until:
            raise StorageTimeout(
                f"{shown}: a transaction that can still see what was removed has been open for {BUSY_S:g} s "
                "(pg_stat_activity.backend_xmin, pg_prepared_xacts, pg_replication_slots show whose): "
                "end it, then try again"
            )
        await asyncio.sleep(_PAUSE_S)
    for statement in _VACUUM:
        await db.execute(statement)
    try:
        await db.execute("CHECKPOINT")
    except Exception as error:
        if sqlstate(error) != "42501":
            raise
        log.warning(
            "%s: this role may not CHECKPOINT (GRANT pg_checkpoint): what was removed leaves the server's files at "
            "its next checkpoint",
            shown,
        )
