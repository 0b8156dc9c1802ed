"""From a URL to a backend: the only place that knows which backends there are.

Each backend is imported when it is asked for, so that `import quire` stays fast. No message shows a password.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast
from urllib.parse import urlencode

from quire.config import Compression
from quire.core.names import check_id, check_namespace
from quire.errors import Denied, InvalidKey, StorageUnavailable, Unsupported
from quire.model import Gain
from quire.storage._urls import (
    check_path,
    folder,
    key_of,
    nearest,
    options_of,
    plain,
    read_key,
    redact_url,
    server,
    wrapping,
)
from quire.storage.base import RECOVERING, Archive, Backend
from quire.storage.wrap import ARCHIVE, BOOK, KEYRING
from quire.storage.wrap._around import Seal, layers, stored
from quire.storage.wrap._catalogue import elsewhere
from quire.threads import apart

__all__ = [
    "Seal",
    "archive_of",
    "elsewhere",
    "open_backend",
    "open_bare",
    "read_key",
    "redact_url",
    "stored",
    "wrapped",
]

_HERE = ("sqlite", "memory", "file", "rocksdb", "postgresql", "redis", "rediss", "nats", "tls")
_DURABILITIES = ("full", "relaxed")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)  # RFC 3986 section 3.1
_POSTGRES = (
    "schema",
    "readers",
    "host",
    "port",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "passfile",
    "target_session_attrs",
)
_COUNT = re.compile(r"[1-9][0-9]{0,2}")
_SCHEMA = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,62}")


async def open_backend(
    url: str,
    *,
    namespace: str,
    encryption_key: bytes | None = None,
    compression: Compression | str | None = None,
    archive: str | None = None,
    keeps: bool = False,
) -> Backend:
    """Return the open backend that a URL names, in the wrappers that are asked for or that the namespace was begun with.

    url: `sqlite:///state.db` (relative), `sqlite:////var/state.db` (absolute), a bare path for the same,
    `memory:` (private), `memory:name` (shared within the process), `file:///folder` (relative), `file:////var/folder`
    (absolute), `rocksdb:///folder`, `postgresql://user@host:port/db`, `redis://user:password@host:6379/0` (`rediss://`
    with TLS), `nats://user:password@host:4222,host:4222` (`tls://` with TLS). Options: SQLite `?durability=relaxed`; folders `?extension=.json`;
    PostgreSQL `?schema=quire&readers=3` and those of libpq for TLS; Redis `?prefix=quire`, with TLS
    `?ca=/path/of/certificates.pem`; NATS `?stream=quire&replicas=1`, `?sync=always` where the servers are set so,
    `?creds=/path/of/credentials`.
    namespace: what is seen of the store; keeps the rule of ids.
    encryption_key: 32 random bytes, for a new namespace or one that was begun with them: see wrap/encrypted.py.
    compression: zstd, gzip, lz4 or settings; a namespace begun so is read so without being asked.
    archive: where old versions go and are read from, see wrap/archived.py; a namespace that has one finds it by itself.
    keeps: without one, old versions are packed within the store.
    Options of any URL say the same of the two before: `?compression=zstd`, `?encryption_key_file=PATH`, `?encryption_key_env=NAME` (the
    file or variable holds 64 hex digits).
    Raises InvalidKey for a URL or namespace that is not allowed, Unsupported for a backend that is not in
    this build, Denied for a wrong encryption key or none where there is one, and what the backend raises when it opens.
    """
    backend, encryption_key, compression = await open_bare(
        url, namespace=namespace, encryption_key=encryption_key, compression=compression
    )
    try:
        if await backend.cell(RECOVERING) is not None:
            raise StorageUnavailable(
                f"namespace {namespace} is being put back from a backup, or that was interrupted: what is there is not "
                "whole; give the command again that began it, `quire recover PLACE`, and it is finished"
            )
        return await wrapped(backend, namespace, encryption_key, compression, archive, keeps=keeps)
    except BaseException:
        await backend.close()
        raise


async def open_bare(
    url: str, *, namespace: str, encryption_key: bytes | None = None, compression: Compression | str | None = None
) -> tuple[Backend, bytes | None, Compression | str | None]:
    """Return the backend alone, and the key and compression that the URL or the arguments say; as `open_backend` else."""
    if isinstance(url, str):
        url, options = wrapping(url)
        for name, given in (("compression", compression), ("encryption_key", encryption_key)):
            if given is not None and any(option.startswith(name) for option in options):
                raise InvalidKey(f"{redact_url(url)}: {name} is given in the URL and beside it; give it once")
        compression = options.get("compression", compression)
        if encryption_key is None:
            encryption_key = await apart(key_of, options)
    return await _open_bare(url, namespace), encryption_key, compression


def archive_of(backend: Backend) -> Archive | None:
    """Return the archive of an open namespace, None where it has none."""
    return next((cast("Archive", layer) for layer in layers(backend) if layer.own == ARCHIVE), None)


async def train(backend: Backend, kind: str) -> Gain:
    """Train a dictionary on what streams of a kind hold in an open namespace, and use it from now on.

    Raises Unsupported for a namespace that is not compressed, Invalid where there is too little to learn from.
    """
    from quire.storage.wrap.compressed import Compressed

    within = next((layer for layer in layers(backend) if isinstance(layer, Compressed)), None)
    if within is None:
        raise Unsupported(
            "this namespace is not compressed, so a dictionary is of no use; open it once with ?compression=zstd at the "
            "end of its URL, and what is written from then on is",
            capability="compression",
        )
    return await within.train(kind)


async def rotate_key(url: str, *, namespace: str, old: bytes, new: bytes) -> bool:
    """Have an encrypted namespace open with another key from now on: one small write, whole or not at all.

    Returns False where it opens with the new one already, so that a call that was killed may be repeated.
    Raises Denied for an old key that is not the one, and for a namespace that is not encrypted; InvalidKey.
    """
    url, options = wrapping(url)
    if any(name.startswith("encryption_key") for name in options):
        raise InvalidKey("the keys are given beside the URL when one is changed; leave encryption_key_... out of it")
    if old == new:
        raise InvalidKey("the new encryption key is the old one; make another")
    backend = await _open_bare(url, namespace)
    try:
        from quire.storage.wrap import encrypted

        if await encrypted.opens(backend, namespace=namespace, key=new):
            return False
        await encrypted.rotate(backend, namespace=namespace, old=old, new=new)
        return True
    finally:
        await backend.close()


async def wrapped(
    backend: Backend,
    namespace: str,
    encryption_key: bytes | None,
    compression: Compression | str | None = None,
    archive: str | None = None,
    *,
    keeps: bool = False,
    archived: bool = True,
) -> Backend:
    """Return a bare backend in the wrappers that are asked for or that its namespace was begun with.

    keeps: whether it is to have an archive, wherever that is.  archived: whether an archive may be among them; what is put back from a backup must not reach it.
    """
    names = (ARCHIVE, KEYRING, BOOK)
    cells = await asyncio.gather(*map(backend.cell, names))
    there = {name for name, cell in zip(names, cells, strict=True) if cell is not None}
    if archived and (archive is not None or keeps or ARCHIVE in there):
        from quire.storage.wrap.archived import open_archived

        backend = await open_archived(backend, namespace=namespace, place=archive)
    if encryption_key is not None:
        from quire.storage.wrap.encrypted import open_encrypted

        backend = await open_encrypted(backend, namespace=namespace, key=encryption_key)
    elif KEYRING in there:
        raise Denied(f"namespace {namespace} is encrypted: give the key it was begun with")
    if compression is not None or BOOK in there:
        from quire.storage.wrap.compressed import open_compressed

        backend = await open_compressed(backend, compression)
    return backend


async def _open_bare(url: str, namespace: str) -> Backend:
    """Return the backend alone."""
    if not isinstance(url, str) or not url.strip():
        raise InvalidKey(f"a store is named by a URL such as sqlite:///state.db or memory:, not {url!r}")
    check_namespace(namespace)
    found = _SCHEME.fullmatch(url)
    if found is None:
        path, _, query = url.partition("?")
        return await _open_sqlite(path, query, namespace, url)
    scheme, rest = found[1].lower(), found[2]
    place, _, query = rest.partition("?")
    if scheme == "memory":
        return await _open_memory(place, query, namespace, url)
    if scheme == "sqlite":
        if not place.startswith("///"):
            raise InvalidKey(
                f"{redact_url(url)}: write sqlite:///state.db for a file here, sqlite:////var/state.db "
                "for an absolute path"
            )
        return await _open_sqlite(plain(place[3:], url), query, namespace, url)
    if scheme in ("redis", "rediss"):
        return await _open_redis(query, namespace, url)
    if scheme in ("nats", "tls"):
        return await _open_nats(place, query, namespace, url)
    if scheme == "postgresql":
        return await _open_postgres(url, query, namespace)
    if scheme == "file":
        return await _open_files(folder(scheme, place, url), query, namespace, url)
    if scheme == "rocksdb":
        return await _open_rocksdb(folder(scheme, place, url), query, namespace, url)
    raise InvalidKey(
        f"{redact_url(url)}: unknown scheme {scheme!r}{nearest(scheme, _HERE)}; known are "
        f"{', '.join(_HERE)}, and a bare path for SQLite (./a:b.db for one with a colon)"
    )


async def _open_memory(place: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.memory import open_memory

    options_of(query, (), url)
    name = place.strip("/")
    return await open_memory(check_id(name, "memory name") if name else "", namespace=namespace)


async def _open_sqlite(path: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.sqlite import open_sqlite

    durability = options_of(query, ("durability",), url).get("durability", "full")
    if durability not in _DURABILITIES:
        raise InvalidKey(
            f"{redact_url(url)}: durability={durability!r}{nearest(durability, _DURABILITIES)}; "
            "it is full (default) or relaxed"
        )
    check_path(path, url)
    return await open_sqlite(path, namespace=namespace, durability=durability)


async def _open_redis(query: str, namespace: str, url: str) -> Backend:
    host, port, path, user, password, tls = server(url, "redis://HOST:PORT/DB", 6379)
    options = options_of(query, ("prefix", "ca") if tls else ("prefix",), url)
    prefix = check_id(options.get("prefix", "quire"), "prefix")
    db = path.strip("/") or "0"
    if not (db.isascii() and db.isdecimal()) or len(db) > 9:
        raise InvalidKey(f"{redact_url(url)}: the database is a number, as in redis://HOST:PORT/0, not {db!r}")
    try:
        from quire.storage._redis_line import Address
        from quire.storage.redis import open_redis
    except ModuleNotFoundError as cause:
        raise _extra("redis", cause) from cause
    address = Address(host, port, int(db), user, password, tls=tls, ca=options.get("ca"))
    return await open_redis(address, namespace=namespace, prefix=prefix)


async def _open_nats(place: str, query: str, namespace: str, url: str) -> Backend:
    form = "nats://HOST:PORT,HOST:PORT?stream=NAME"
    scheme = url.partition(":")[0].lower()
    *who, hosts = place.removeprefix("//").rstrip("/").rsplit("@", 1)
    servers: list[str] = []
    for host in hosts.split(","):
        name, port, *_ = server(f"{scheme}://{host}", form, 4222)
        servers.append(f"[{name}]:{port}" if ":" in name else f"{name}:{port}")
    if not place.startswith("//") or "/" in hosts or "#" in url:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server; write {form}")
    user, colon, password = who[0].partition(":") if who else ("", "", "")
    options = options_of(query, ("stream", "replicas", "sync", "creds"), url)
    stream = check_id(options.get("stream", "quire"), "stream")
    if "." in stream:
        raise InvalidKey(f"{redact_url(url)}: the name of a stream of NATS has no dot; use - instead")
    replicas, sync = options.get("replicas", "1"), options.get("sync", "")
    if replicas not in ("1", "3", "5"):
        raise InvalidKey(f"{redact_url(url)}: replicas={replicas!r}; it is 1, 3 or 5")
    if sync not in ("", "always"):
        raise InvalidKey(f"{redact_url(url)}: sync={sync!r}; say always where the servers are set so, or leave it out")
    try:
        from quire.storage._nats_wire import Address
        from quire.storage.nats import open_nats
    except ModuleNotFoundError as cause:
        raise _extra("nats", cause) from cause
    address = Address(
        servers,
        plain(user, url) or None,
        plain(password, url) if colon else None,
        tls=scheme == "tls",
        creds=options.get("creds"),
    )
    return await open_nats(address, namespace=namespace, stream=stream, replicas=int(replicas), synced=sync == "always")


def _extra(name: str, cause: ModuleNotFoundError, *, scheme: str = "") -> Exception:
    """Say which extra brings a driver that is not installed; one of our own files that is missing is a mistake."""
    if cause.name is None or cause.name.split(".")[0] == "quire":
        return cause
    return Unsupported(
        f"{scheme or name}:// needs a driver that is not installed ({cause.name}): pip install 'quire[{name}]'",
        capability=f"backend:{scheme or name}",
    )


async def _open_postgres(url: str, query: str, namespace: str) -> Backend:
    options = options_of(query, _POSTGRES, url)
    schema = options.pop("schema", "quire")
    if not _SCHEMA.fullmatch(schema):
        raise InvalidKey(
            f"{redact_url(url)}: schema={schema!r}; it is 1 to 63 lower case letters, digits and _, "
            "does not begin with a digit, nor with pg_"
        )
    try:
        from quire.storage.postgres import open_postgres
    except ModuleNotFoundError as cause:
        raise _extra("postgres", cause, scheme="postgresql") from cause
    readers = options.pop("readers", "3")
    if not _COUNT.fullmatch(readers):
        raise InvalidKey(f"{redact_url(url)}: readers={readers!r}; it is a number from 1 to 64")
    plain = url.partition("?")[0] + (f"?{urlencode(options)}" if options else "")
    shown = redact_url(url)
    return await open_postgres(plain, schema=schema, shown=shown, namespace=namespace, readers=int(readers))


async def _open_files(path: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.files import open_files

    extension = options_of(query, ("extension",), url).get("extension")
    return await open_files(path, namespace=namespace, extension=extension)


async def _open_rocksdb(path: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.rocksdb import open_rocksdb

    options_of(query, (), url)
    return await open_rocksdb(path, namespace=namespace)
