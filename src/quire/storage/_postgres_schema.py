"""What a store is made of in PostgreSQL: its tables, its functions, its format, and how both are made and checked.

1. A schema that is not ours is never changed. Ours has `APPLICATION` in its table `meta` from its first commit on.
2. Every statement is a constant. Which schema is meant says `search_path`, which is set when a session begins.
3. Names are compared by code point, whatever the collation of the database.
4. `commit_items` takes one lock for the whole store and holds it until the commit is durable. So positions come in
   the order of commits, no reader finds one later that lies before what it has seen, and nobody can wait in a circle.
   `drop_stream` takes it too, because it moves a head.
5. LATERAL with OFFSET 0 says: one look into the index for each row asked about, whatever the planner believes about
   tables it has not seen yet.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from quire.errors import IncompatibleFormat, StorageUnavailable, Unsupported
from quire.storage._postgres_line import Db, Place, sqlstate

APPLICATION = 0x51554952  # "QUIR"
FORMAT = 1
RELEASE_MIN = 14
"""The oldest PostgreSQL: from 14 on, ending a session can be waited for."""
LOCK_COMMIT, LOCK_WATCH, LOCK_SESSION = APPLICATION, APPLICATION + 1, APPLICATION + 2
"""First keys of our advisory locks: the store's, the one that watchers share, the one that a session of commits holds."""

_TABLES = """
CREATE TABLE meta (key text PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE streams (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL, UNIQUE (namespace, name)
);
CREATE TABLE records (
    position bigint PRIMARY KEY, stream bigint NOT NULL, version bigint NOT NULL, time bigint NOT NULL,
    author text NOT NULL, message text NOT NULL, kind text NOT NULL, body text, packed bytea, chain bytea NOT NULL,
    UNIQUE (stream, version), CHECK ((body IS NULL) <> (packed IS NULL))
);
CREATE TABLE keyframes (
    stream bigint NOT NULL, version bigint NOT NULL, size bigint NOT NULL, chain bytea NOT NULL, digest bytea NOT NULL,
    body bytea NOT NULL, sum bytea NOT NULL, PRIMARY KEY (stream, version)
);
CREATE TABLE blobs (
    namespace text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL, body bytea NOT NULL, sum bytea NOT NULL,
    PRIMARY KEY (namespace, name)
);
CREATE TABLE cells (
    namespace text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL, expires bigint, value bytea NOT NULL,
    sum bytea NOT NULL, PRIMARY KEY (namespace, name)
);
CREATE INDEX cells_expires ON cells (expires) WHERE expires IS NOT NULL;
ALTER TABLE records ALTER COLUMN packed SET STORAGE EXTERNAL;
ALTER TABLE keyframes ALTER COLUMN body SET STORAGE EXTERNAL;
ALTER TABLE blobs ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE VIEW log AS
    SELECT position, namespace, name AS stream, version, to_timestamp(time / 1000.0) AS time,
           author, message, kind, body, packed, encode(chain, 'hex') AS chain
    FROM records JOIN streams ON streams.id = records.stream;
"""

_COMMIT = """
CREATE FUNCTION commit_items(
    space text, clock bigint,
    e_item int[], e_name text[], e_version bigint[], e_chain bytea[],
    r_expect int[], r_version bigint[], r_time bigint[], r_author text[], r_message text[], r_kind text[],
    r_body text[], r_packed bytea[], r_chain bytea[],
    c_item int[], c_name text[], c_expected bytea[], c_value bytea[], c_ttl bigint[], c_sum bytea[],
    OUT first_position bigint, OUT refused int[],
    OUT moved int[], OUT m_version bigint[], OUT m_chain bytea[], OUT m_kind text[], OUT held int[]
) LANGUAGE plpgsql AS $$
DECLARE
    store CONSTANT int := hashtext(current_schema());
    genesis CONSTANT bytea := decode(repeat('00', 32), 'hex');
    now_ms bigint;
    ids bigint[];
    top bigint;
    fresh bigint;
BEGIN
    -- each statement below sees what was committed before it began: the lock has to come first
    PERFORM pg_advisory_xact_lock(1364543826, store);

    SELECT array_agg(h.id ORDER BY h.n),
           array_agg(h.n ORDER BY h.n) FILTER (WHERE h.wrong),
           array_agg(h.version ORDER BY h.n) FILTER (WHERE h.wrong),
           array_agg(h.chain ORDER BY h.n) FILTER (WHERE h.wrong),
           array_agg(h.kind ORDER BY h.n) FILTER (WHERE h.wrong)
    INTO ids, moved, m_version, m_chain, m_kind
    FROM (
        SELECT e.n::int AS n, s.id, coalesce(r.version, 0) AS version, coalesce(r.chain, genesis) AS chain,
               coalesce(r.kind, '') AS kind,
               (coalesce(r.version, 0), coalesce(r.chain, genesis)) <> (e.version, e.chain) AS wrong
        FROM unnest(e_name, e_version, e_chain) WITH ORDINALITY AS e(name, version, chain, n)
        LEFT JOIN LATERAL (SELECT id FROM streams WHERE namespace = space AND name = e.name OFFSET 0) s ON true
        LEFT JOIN LATERAL (
            SELECT version, chain, kind FROM records WHERE stream = s.id ORDER BY version DESC LIMIT 1
        ) r ON true
    ) h;

    IF cardinality(c_item) > 0 THEN
        now_ms := coalesce(clock, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
        SELECT array_agg(c.n::int ORDER BY c.n) INTO held
        FROM unnest(c_name, c_expected) WITH ORDINALITY AS c(name, expected, n)
        LEFT JOIN LATERAL (
            SELECT value FROM cells
            WHERE namespace = space AND name = c.name AND (expires IS NULL OR expires > now_ms) OFFSET 0
        ) k ON true
        WHERE k.value IS DISTINCT FROM c.expected;
    END IF;

    IF moved IS NOT NULL OR held IS NOT NULL THEN
        SELECT array_agg(DISTINCT i) INTO refused
        FROM (SELECT e_item[n] FROM unnest(moved) AS n UNION ALL SELECT c_item[n] FROM unnest(held) AS n) AS w(i);
    END IF;

    IF cardinality(r_expect) > 0 THEN
        IF array_position(ids, NULL) IS NOT NULL THEN
            INSERT INTO streams (namespace, name)
            SELECT DISTINCT space, e_name[x] FROM unnest(r_expect) AS x
            WHERE ids[x] IS NULL AND (refused IS NULL OR e_item[x] <> ALL (refused));
            SELECT array_agg(s.id ORDER BY e.n) INTO ids
            FROM unnest(e_name) WITH ORDINALITY AS e(name, n)
            LEFT JOIN LATERAL (SELECT id FROM streams WHERE namespace = space AND name = e.name OFFSET 0) s ON true;
        END IF;
        SELECT greatest(
            (SELECT max(position) FROM records), (SELECT value FROM meta WHERE key = 'position_floor'), 0
        ) INTO top;
        INSERT INTO records (position, stream, version, time, author, message, kind, body, packed, chain)
        SELECT top + row_number() OVER (ORDER BY r.n), ids[r.x], r.version, r.time, r.author, r.message, r.kind,
               r.body, r.packed, r.chain
        FROM unnest(
            r_expect, r_version, r_time, r_author, r_message, r_kind, r_body, r_packed, r_chain
        ) WITH ORDINALITY AS r(x, version, time, author, message, kind, body, packed, chain, n)
        WHERE refused IS NULL OR e_item[r.x] <> ALL (refused);
        GET DIAGNOSTICS fresh = ROW_COUNT;
        first_position := top + 1;
        -- Telling holds up every other notifying commit of the whole server: only where somebody listens. Who begins
        -- to listen shares this lock, so it waits until we are done, and then looks for itself.
        IF fresh > 0 AND NOT pg_try_advisory_xact_lock(1364543827, store) THEN
            PERFORM pg_notify('quire_' || store, '');
        END IF;
    END IF;

    IF cardinality(c_item) > 0 THEN
        PERFORM set_cells(space, now_ms, refused, c_item, c_name, c_value, c_ttl, c_sum);
    END IF;
END $$;
"""

_CELLS = """
CREATE FUNCTION set_cells(
    space text, now_ms bigint, refused int[],
    c_item int[], c_name text[], c_value bytea[], c_ttl bigint[], c_sum bytea[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- two expired ones go for each that is written with an expiry: more than come, so they cannot pile up
    DELETE FROM cells WHERE (namespace, name) IN (
        SELECT namespace, name FROM cells WHERE expires <= now_ms ORDER BY expires
        LIMIT 2 * (SELECT count(*) FROM unnest(c_ttl) AS t WHERE t IS NOT NULL)
    );
    -- where an item writes a cell twice, the last one counts
    DELETE FROM cells WHERE namespace = space AND name = ANY (ARRAY(
        SELECT name FROM (
            SELECT DISTINCT ON (name) name, value
            FROM unnest(c_item, c_name, c_value) WITH ORDINALITY AS c(item, name, value, n)
            WHERE refused IS NULL OR item <> ALL (refused) ORDER BY name, n DESC
        ) c WHERE value IS NULL
    ));
    INSERT INTO cells (namespace, name, value, expires, sum)
    SELECT space, c.name, c.value, now_ms + c.ttl, c.sum
    FROM (
        SELECT DISTINCT ON (name) name, value, ttl, sum
        FROM unnest(c_item, c_name, c_value, c_ttl, c_sum) WITH ORDINALITY AS c(item, name, value, ttl, sum, n)
        WHERE refused IS NULL OR item <> ALL (refused) ORDER BY name, n DESC
    ) c
    WHERE c.value IS NOT NULL
    ON CONFLICT (namespace, name) DO UPDATE
    SET value = excluded.value, expires = excluded.expires, sum = excluded.sum;
END $$;
"""

_REMOVAL = """
CREATE FUNCTION drop_stream(space text, gone text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
    top bigint;
    removed bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(1364543826, hashtext(current_schema()));
    DELETE FROM streams WHERE namespace = space AND name = gone RETURNING id INTO found;
    IF found IS NULL THEN
        RETURN;
    END IF;
    SELECT max(position) INTO top FROM records;
    DELETE FROM records WHERE stream = found;
    GET DIAGNOSTICS removed = ROW_COUNT;
    DELETE FROM keyframes WHERE stream = found;
    INSERT INTO meta (key, value) VALUES ('records_removed', removed)
    ON CONFLICT (key) DO UPDATE SET value = meta.value + excluded.value;
    INSERT INTO meta (key, value) VALUES ('position_floor', top)
    ON CONFLICT (key) DO UPDATE SET value = greatest(meta.value, excluded.value);
END $$;
CREATE FUNCTION trim_stream(space text, old text, upto bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found bigint;
    removed bigint;
BEGIN
    SELECT id INTO found FROM streams WHERE namespace = space AND name = old FOR UPDATE;  -- one at a time
    DELETE FROM records WHERE stream = found AND version <= upto
        AND version < (SELECT max(version) FROM records WHERE stream = found);
    GET DIAGNOSTICS removed = ROW_COUNT;
    IF removed > 0 THEN
        INSERT INTO meta (key, value) VALUES ('records_removed', removed)
        ON CONFLICT (key) DO UPDATE SET value = meta.value + excluded.value;
    END IF;
    RETURN removed;
END $$;
"""

_FIRST = "INSERT INTO meta (key, value) SELECT * FROM unnest($1::text[], $2::bigint[])"
_MAKE_SCHEMA = """DO $$ BEGIN
    IF to_regnamespace(current_setting('quire.schema')) IS NULL THEN
        EXECUTE format('CREATE SCHEMA %I', current_setting('quire.schema'));
    END IF;
END $$"""
_SERVER = """
SELECT current_setting('server_version_num')::int / 10000 AS release, current_setting('server_version') AS named,
       pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS readonly,
       current_setting('server_encoding') AS encoding, current_setting('fsync') = 'on' AS fsync,
       current_setting('full_page_writes') = 'on' AS whole_pages,
       current_setting('synchronous_commit') <> 'off' AS waits, hashtext($1::text) AS store,
       (SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace($1::text)) AS relations,
       to_regclass($1::text || '.meta') IS NOT NULL AS meta
"""
_META = "SELECT key, value FROM meta WHERE key IN ('application', 'format')"

UPGRADES: dict[int, Callable[[Db], Coroutine[Any, Any, object]]] = {}
"""From a format to the function that makes it the next one. All run in one transaction at opening."""


class Server:
    """What a server said of itself. store: the second key of this store's locks, and part of its channel's name."""

    def __init__(self, row: Any) -> None:
        self.store: int = row["store"]
        self.risks: list[str] = [
            said
            for setting, said in (
                (row["fsync"], "fsync is off on this server"),
                (row["whole_pages"], "full_page_writes is off on this server"),
                (row["waits"], "synchronous_commit is off for this role or database"),
            )
            if not setting
        ]


async def look(db: Db, place: Place) -> tuple[Server, int]:
    """Return what the server is and the format of the store on it, 0 where there is none yet.

    Raises Unsupported for a server that is too old, StorageUnavailable for one that cannot be written,
    IncompatibleFormat for a schema that is not ours, or of a format that is not known here.
    """
    row = await db.fetchrow(_SERVER, place.schema)
    assert row is not None
    if row["release"] < RELEASE_MIN:
        raise Unsupported(
            f"{place}: this is PostgreSQL {row['named']}; Quire needs {RELEASE_MIN} or newer",
            capability=f"postgresql>={RELEASE_MIN}",
        )
    if row["standby"] or row["readonly"]:
        why = "a standby that follows another server" if row["standby"] else "set to read only"
        raise StorageUnavailable(f"{place} cannot be written: it is {why}; give the URL of the primary")
    if row["encoding"] != "UTF8":
        raise IncompatibleFormat(
            f"{place}: the database is encoded in {row['encoding']}; make one with ENCODING 'UTF8'",
            found=row["encoding"],
            supported="UTF8",
        )
    return Server(row), await _format(db, place, row)


async def _format(db: Db, place: Place, row: Any) -> int:
    if not row["relations"]:
        return 0
    meta: dict[str, int] = {}
    if row["meta"]:
        try:
            meta = dict(await db.fetch(_META))
        except Exception as error:
            if not sqlstate(error).startswith("42") or sqlstate(error) == "42501":
                raise  # only a table of another shape says that it is not ours
    if meta.get("application") != APPLICATION:
        raise IncompatibleFormat(
            f"{place}: the schema {place.schema} belongs to something else; nothing was changed: "
            "name another one with ?schema=NAME",
            found=meta.get("application"),
            supported=APPLICATION,
        )
    found = meta.get("format", 0)
    missing = [number for number in range(found, FORMAT) if number not in UPGRADES]
    if found > FORMAT:
        raise IncompatibleFormat(
            f"{place} has format {found}, this Quire reads up to {FORMAT}: upgrade quire to open it",
            found=found,
            supported=FORMAT,
        )
    if missing:
        raise IncompatibleFormat(
            f"{place} has format {found}; no upgrade from format {missing[0]} is known here: "
            "open it with the quire that wrote it",
            found=found,
            supported=FORMAT,
        )
    return found


async def prepare(db: Db, place: Place) -> Server:
    """Make the schema, or upgrade an older one; several processes may do so at once. Raises what `look` raises."""
    server, found = await look(db, place)
    if found == FORMAT:
        return server
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1, $2)", LOCK_COMMIT, server.store)
        _, found = await look(db, place)  # another process may have been first
        if found == 0:
            await db.execute("SELECT set_config('quire.schema', $1, true)", place.schema)
            await db.execute(_MAKE_SCHEMA)
            for part in (_TABLES, _COMMIT, _CELLS, _REMOVAL):
                await db.execute(part)
            await db.execute(_FIRST, ["application", "format"], [APPLICATION, FORMAT])
        elif found < FORMAT:
            for number in range(found, FORMAT):
                await UPGRADES[number](db)
            await db.execute("UPDATE meta SET value = $1 WHERE key = 'format'", FORMAT)
    return server
