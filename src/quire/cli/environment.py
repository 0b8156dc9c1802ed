"""What `quire doctor` examines around a store, without opening it: Python, the driver, files and their rights, the disk."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import unquote

import quire
from quire.api.health import Check
from quire.cli.base import file_of
from quire.errors import NotFound

_DRIVERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "sqlite": ("", ("apsw",)),
    "postgresql": ("postgres", ("asyncpg",)),
    "redis": ("redis", ("redis", "hiredis")),
    "rediss": ("redis", ("redis", "hiredis")),
    "nats": ("nats", ("nats-py",)),
    "tls": ("nats", ("nats-py",)),
    "rocksdb": ("rocksdb", ("rocksdict",)),
}
"""By scheme: the extra that brings its driver, and the packages that are it."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def examined(url: str) -> list[Check]:
    """Return what is to be said of this machine for a store at a URL. Opens nothing."""
    about = f"{platform.python_version()} {platform.python_implementation()}, Quire {quire.__version__}"
    return [Check("python", "ok", about), *_driver(scheme_of(url)), *_rights(url)]


def scheme_of(url: str) -> str:
    """Return the scheme of a URL; a bare path is one of SQLite."""
    return "sqlite" if file_of(url) is not None else url.partition(":")[0].lower()


def folder_of(url: str) -> str | None:
    """Return the path of a store that is a folder, None for any other."""
    place = url.partition("?")[0]
    scheme, _, rest = place.partition(":///")
    return unquote(rest) if scheme.lower() in ("file", "rocksdb") and rest else None


def required(url: str) -> None:
    """Raise NotFound where a folder is not there: whoever examines a store does not make it."""
    folder = folder_of(url)
    if folder is not None and not Path(folder).exists():
        raise NotFound(f"there is no store at {folder}; `quire --store {url} init` makes one")


def _driver(scheme: str) -> Iterator[Check]:
    extra, packages = _DRIVERS.get(scheme, ("", ()))
    found: list[str] = []
    missing: list[str] = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        said = f"{scheme}:// needs {', '.join(missing)}, not installed here: pip install 'quire[{extra}]'"
        yield Check("driver", "unhealthy", f"{', '.join(missing)} missing", said)
    elif found:
        yield Check("driver", "ok", ", ".join(found))


def _rights(url: str) -> Iterator[Check]:
    """Say who may read and write the files of an embedded store."""
    file, folder = file_of(url), folder_of(url)
    if file is not None:
        names, wanted = [file, f"{file}-wal", f"{file}-shm"], "600"
    elif folder is not None:
        names, wanted = [folder], "700"
    else:
        return
    open_to: list[str] = []
    foreign: list[str] = []
    mode = ""
    for name in names:
        try:
            about = Path(name).stat()
        except (OSError, ValueError):  # not there, or not for us to see: opening it says which
            continue
        mode = mode or f"{stat.S_IMODE(about.st_mode):04o}"
        open_to += [name] if about.st_mode & _OTHERS else []
        foreign += [name] if about.st_uid != os.geteuid() else []
    if not mode:
        return
    reasons: list[str] = []
    if open_to:
        reasons.append(
            f"{', '.join(open_to)}: others than the owner may look into it; chmod {wanted} if they are not meant to"
        )
    if foreign:
        reasons.append(f"{', '.join(foreign)}: it belongs to another user; what they make we may not be able to write")
    yield Check("rights", "degraded" if reasons else "ok", mode, "; ".join(reasons))
