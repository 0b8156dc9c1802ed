"""What a URL of a store says: its options, paths, servers and keys, checked; and how it is shown without its secrets."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from quire.errors import InvalidKey

_WRAPPING = ("compression", "encryption_key_file", "encryption_key_env")
_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_USER = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*:)?+(?://)?+)([^/?#:@]*)(:.*)?@", re.DOTALL)
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


def read_key(file: str) -> bytes:
    """Return the encryption key that a file holds as 64 hex digits. Raises InvalidKey."""
    key = key_of({"encryption_key_file": file})
    assert key is not None
    return key


def wrapping(url: str) -> tuple[str, dict[str, str]]:
    """Return a URL without the options that are for wrappers, and those. Raises InvalidKey for one given twice."""
    place, _, query = url.partition("?")
    ours: list[str] = []
    others: list[str] = []
    for part in query.split("&") if query else []:
        (ours if part.partition("=")[0] in _WRAPPING else others).append(part)
    return "?".join(filter(None, (place, "&".join(others)))), options_of("&".join(ours), _WRAPPING, url)


def key_of(options: dict[str, str]) -> bytes | None:
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


def server(url: str, form: str, port: int) -> tuple[str, int, str, str | None, str | None, bool]:
    """Return host, port, path, user and password of a server's URL, and whether it is to be spoken to with TLS."""
    try:
        parts = urlsplit(url)
        found = (parts.hostname or "localhost", port if parts.port is None else parts.port)
    except ValueError as cause:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server ({cause}); write {form}") from cause
    if not url[len(parts.scheme) + 1 :].startswith("//") or parts.fragment or not 0 < found[1] < 65536:
        raise InvalidKey(f"{redact_url(url)}: this is no URL of a server; write {form}")
    user, password = (None if part is None else plain(part, url) for part in (parts.username, parts.password))
    return (*found, plain(parts.path, url), user or None, password, parts.scheme in ("rediss", "tls"))


def folder(scheme: str, place: str, url: str) -> str:
    """Return the path of a store that is a folder."""
    path = plain(place[3:], url) if place.startswith("///") else ""
    if not path.strip():
        raise InvalidKey(
            f"{redact_url(url)}: write {scheme}:///folder for one here, {scheme}:////var/folder for an absolute path"
        )
    if "\0" in path or not _encodes(path):
        raise InvalidKey(f"the path {path!r} holds a character that no file name can have; leave it out")
    if not Path(path).parent.exists() and Path("/", path).parent.exists():
        raise InvalidKey(f"{redact_url(url)}: for the absolute path /{path} write {scheme}:////{path}")
    return path


def check_path(path: str, url: str) -> None:
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


def options_of(query: str, known: Collection[str], url: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    for name in options:
        if name not in known:
            raise InvalidKey(
                f"{redact_url(url)}: unknown option {name!r}{nearest(name, {*known, *_WRAPPING})}; "
                f"known here: {', '.join(dict.fromkeys([*known, *_WRAPPING]))}"
            )
    if len(options) < len(pairs):
        raise InvalidKey(f"{redact_url(url)}: an option is given twice; give it once")
    return options


def nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f", did you mean {near[0]}?" if near else ""


def plain(path: str, url: str) -> str:
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
