"""From a URL to a backend: the only place that knows which backends there are.

Each backend is imported when it is asked for, so that `import quire` stays fast. No message shows a password.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import cast
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from quire.config import Compression
from quire.core.names import check_id, check_namespace
from quire.errors import Denied, InvalidKey, StorageUnavailable, Unsupported
from quire.model import Gain
from quire.storage.base import RECOVERING, Archive, Backend
from quire.storage.wrap import ARCHIVE, BOOK, KEYRING
from quire.storage.wrap._around import Seal, layers, stored
from quire.storage.wrap._catalogue import elsewhere

__all__ = ["Seal", "archive_of", "elsewhere", "open_backend", "open_bare", "redact_url", "stored", "wrapped"]

_HERE = ("sqlite", "memory", "file", "rocksdb", "postgresql", "redis", "rediss", "nats", "tls")
_DURABILITIES = ("full", "relaxed")
_WRAPPING = ("compression", "encryption_key_file", "encryption_key_env")
_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)  # RFC 3986 section 3.1
_USER = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?+(?://)?+)([^/?#:@]*)(:.*)?@", re.DOTALL)
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
_SECRET = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key|credential|auth)[^=&]*=)[^&#]*", re.IGNORECASE)


def redact_url(url: str) -> str:
    """Return a URL fit for messages and logs: passwords, tokens and keys in it are shown as ***.

    A user without a password may be a token, so it is hidden as well.

    >>> redact_url("postgresql://ada:s3cret@db/quire?sslpassword=x")
    'postgresql://ada:***@db/quire?sslpassword=***'
    """
    user = _USER.match(url)
    if user:
        start, name, password = user.groups()
        url = f"{start}{name}:***@{url[user.end() :]}" if password else f"{start}***@{url[user.end() :]}"
    return _SECRET.sub(r"\1***", url)


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
        url, options = _wrapping(url)
        for name, given in (("compression", compression), ("encryption_key", encryption_key)):
            if given is not None and any(option.startswith(name) for option in options):
                raise InvalidKey(f"{redact_url(url)}: {name} is given in the URL and beside it; give it once")
        compression = options.get("compression", compression)
        if encryption_key is None:
            encryption_key = await asyncio.to_thread(_key, options)
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
    url, options = _wrapping(url)
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


def read_key(file: str) -> bytes:
    """Return the encryption key that a file holds as 64 hex digits. Raises InvalidKey."""
    key = _key({"encryption_key_file": file})
    assert key is not None
    return key


def _wrapping(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without the options that are for wrappers, and those. Raises InvalidKey for one given twice."""
    place, _, query = url.partition("?")
    ours: list[str] = []
    others: list[str] = []
    for part in query.split("&") if query else []:
        (ours if part.partition("=")[0] in _WRAPPING else others).append(part)
    return "?".join(filter(None, (place, "&".join(others)))), _options("&".join(ours), _WRAPPING, url)


def _key(options: dict[str, str]) -> bytes | None:
    """Return the encryption key that options point to, None where none does."""
    file, variable = options.get("encryption_key_file"), options.get("encryption_key_env")
    if file is not None and variable is not None:
        raise InvalidKey("the encryption key is named twice, by encryption_key_file and encryption_key_env: use one")
    try:
        text = os.environ.get(variable) if variable is not None else Path(file).read_text() if file is not None else ""
    except (OSError, ValueError) as cause:
        raise InvalidKey(f"the encryption key cannot be read from the file {file}: {cause}") from cause
    where = f"the variable {variable}" if variable is not None else f"the file {file}"
    if text is None:
        raise InvalidKey(f"the encryption key is to be in {where}, which is not set")
    if file is None and variable is None:
        return None
    if _KEY.fullmatch(text.strip()) is None:
        raise InvalidKey(
            f"{where} does not hold an encryption key: 64 hex digits, as `python -c 'import secrets; "
            "print(secrets.token_hex(32))'` prints"
        )
    return bytes.fromhex(text.strip())


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
        return await _open_sqlite(_plain(place[3:], url), query, namespace, url)
    if scheme in ("redis", "rediss"):
        return await _open_redis(query, namespace, url)
    if scheme in ("nats", "tls"):
        return await _open_nats(place, query, namespace, url)
    if scheme == "postgresql":
        return await _open_postgres(url, query, namespace)
    if scheme == "file":
        return await _open_files(_folder(scheme, place, url), query, namespace, url)
    if scheme == "rocksdb":
        return await _open_rocksdb(_folder(scheme, place, url), query, namespace, url)
    raise InvalidKey(
        f"{redact_url(url)}: unknown scheme {scheme!r}{_nearest(scheme, _HERE)}; known are "
        f"{', '.join(_HERE)}, and a bare path for SQLite (./a:b.db for one with a colon)"
    )


async def _open_memory(place: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.memory import open_memory

    _options(query, (), url)
    name = place.strip("/")
    return await open_memory(check_id(name, "memory name") if name else "", namespace=namespace)


async def _open_sqlite(path: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.sqlite import open_sqlite

    durability = _options(query, ("durability",), url).get("durability", "full")
    if durability not in _DURABILITIES:
        raise InvalidKey(
            f"{redact_url(url)}: durability={durability!r}{_nearest(durability, _DURABILITIES)}; "
            "it is full (default) or relaxed"
        )
    _check_path(path, url)
    return await open_sqlite(path, namespace=namespace, durability=durability)


async def _open_redis(query: str, namespace: str, url: str) -> Backend:
    host, port, path, user, password, tls = _server(url, "redis://HOST:PORT/DB", 6379)
    options = _options(query, ("prefix", "ca") if tls else ("prefix",), url)
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
        name, port, *_ = _server(f"{scheme}://{host}", form, 4222)
        servers.append(f"[{name}]:{port}" if ":" in name else f"{name}:{port}")
    if not place.startswith("//") or "/" in hosts or "#" in url:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server; write {form}")
    user, colon, password = who[0].partition(":") if who else ("", "", "")
    options = _options(query, ("stream", "replicas", "sync", "creds"), url)
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
        _plain(user, url) or None,
        _plain(password, url) if colon else None,
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


def _server(url: str, form: str, port: int) -> tuple[str, int, str, str | None, str | None, bool]:
    """Return host, port, path, user and password of a server's URL, and whether it is to be spoken to with TLS."""
    try:
        parts = urlsplit(url)
        found = (parts.hostname or "localhost", port if parts.port is None else parts.port)
    except ValueError as cause:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server ({cause}); write {form}") from cause
    if not url[len(parts.scheme) + 1 :].startswith("//") or parts.fragment or not 0 < found[1] < 65536:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server; write {form}")
    user, password = (None if part is None else _plain(part, url) for part in (parts.username, parts.password))
    return (*found, _plain(parts.path, url), user or None, password, parts.scheme in ("rediss", "tls"))


async def _open_postgres(url: str, query: str, namespace: str) -> Backend:
    options = _options(query, _POSTGRES, url)
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

    extension = _options(query, ("extension",), url).get("extension")
    return await open_files(path, namespace=namespace, extension=extension)


async def _open_rocksdb(path: str, query: str, namespace: str, url: str) -> Backend:
    from quire.storage.rocksdb import open_rocksdb

    _options(query, (), url)
    return await open_rocksdb(path, namespace=namespace)


def _folder(scheme: str, place: str, url: str) -> str:
    """Return the path of a store that is a folder."""
    path = _plain(place[3:], url) if place.startswith("///") else ""
    if not path.strip():
        raise InvalidKey(
            f"{redact_url(url)}: write {scheme}:///folder for one here, {scheme}:////var/folder for an absolute path"
        )
    if "\0" in path or not _encodes(path):
        raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
    if not Path(path).parent.exists() and Path("/", path).parent.exists():
        raise InvalidKey(f"{redact_url(url)}: for the absolute path /{path} write {scheme}:////{path}")
    return path


def _check_path(path: str, url: str) -> None:
    """Refuse what SQLite would take for something else, or fail on with a riddle."""
    if not path.strip():
        raise InvalidKey(f"{redact_url(url)}: the path of the file is missing; write sqlite:///state.db")
    if path == ":memory:":
        raise InvalidKey(f"{redact_url(url)}: a store in memory is named memory:")
    if "\0" in path or not _encodes(path):
        raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
    if _is_folder(path):
        raise InvalidKey(f"{path} is a folder; name a file in it, such as {Path(path) / 'state.db'}")


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except OSError:  # too long, or not ours to look at: the backend says so when it opens
        return False


def _options(query: str, known: Collection[str], url: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    for name in options:
        if name not in known:
            raise InvalidKey(
                f"{redact_url(url)}: unknown option {name!r}{_nearest(name, known)}; "
                f"known here: {', '.join(known) or 'none'}"
            )
    if len(options) < len(pairs):
        raise InvalidKey(f"{redact_url(url)}: an option is given twice; give it once")
    return options


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f", did you mean {near[0]}?" if near else ""


def _plain(path: str, url: str) -> str:
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError as cause:
        raise InvalidKey(f"{redact_url(url)}: the path is not UTF-8 behind its % signs") from cause


def _encodes(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
