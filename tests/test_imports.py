"""Imports go down only."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "src" / "quire"
LEVEL = {
    "errors": 0,
    "calls": 0,
    "threads": 0,
    "failpoints": 0,
    "forks": 0,
    "locks": 0,
    "model": 1,
    "config": 1,
    "core": 2,
    "storage": 3,
    "engine": 4,
    "api": 5,
    "backends": 6,
    "central": 6,
    "events": 6,
    "scopes": 6,
    "orchestra": 7,
    "scripting": 8,
    "sync": 8,
    "demo": 8,
    "testing": 8,
    "cli": 9,
    "__main__": 10,
}
BACKENDS = {"memory", "sqlite", "files", "rocksdb", "postgres", "redis", "nats", "wrap"}
SHARED = {"base", "codec", "open", "objects", "_inodes", "_jobs", "_urls", "_vitals", "_waiting"}
DRIVERS = {
    "apsw": "storage",
    "asyncpg": "storage",
    "redis": "storage",
    "hiredis": "storage",
    "nats": "storage",
    "rocksdict": "storage",
    "cryptography": "storage",
    "lz4": "storage",
    "obstore": "storage",
    "click": "cli",
    "rich": "cli",
    "hypothesis": "testing",
    "lupa": "scripting",
    "pyarrow": "api",
    "pytest": "testing",
}
IMPURE = {"time", "random", "asyncio", "threading", "os", "pathlib", "secrets", "socket", "subprocess", "datetime"}
BANNED = {"pickle", "marshal", "shelve", "yaml", "dill"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files():
    return [(f, f.relative_to(ROOT).with_suffix("").parts) for f in sorted(ROOT.rglob("*.py"))]


def backend_of(module):
    """The backend a module of the storage room belongs to: `_nats_wire` to nats; "" for what they share."""
    return next((b for b in BACKENDS if re.fullmatch(rf"{b}|_{b}_\w+", module)), "")


def test_every_file_of_the_storage_room_is_shared_or_belongs_to_a_backend():
    names = {parts[1] for _, parts in files() if parts[0] == "storage" and len(parts) > 1} - {"__init__"}
    assert {n for n in names if not backend_of(n)} == SHARED
    assert {backend_of(n) for n in names} - {""} == BACKENDS


def test_rooms_import_only_what_lies_below():
    wrong = []
    for file, parts in files():
        if parts[0] in ("__init__", "__main__"):
            continue
        for name in imports(file):
            target = name.split(".")
            if target[0] != "quire" or len(target) < 2 or target[1] not in LEVEL:
                continue
            if LEVEL[target[1]] > LEVEL[parts[0]]:
                wrong.append(f"{'/'.join(parts)} imports {name}")
            backend = backend_of(target[2]) if len(target) > 2 and target[1] == "storage" else ""
            own = parts[0] == "storage" and len(parts) > 1 and backend_of(parts[1]) == backend
            if backend and not own and parts != ("storage", "open") and parts[0] != "testing":
                wrong.append(f"{'/'.join(parts)} chooses a backend: {name}")
            if parts[0] == "engine" and target[1] == "storage" and len(target) > 2 and target[2] != "base":
                wrong.append(f"{'/'.join(parts)} knows more than the protocol: {name}")
    assert not wrong


def test_the_core_is_pure_and_drivers_stay_in_their_rooms():
    wrong = []
    for file, parts in files():
        for name in imports(file):
            top = name.split(".")[0]
            if parts[0] == "core" and top in IMPURE:
                wrong.append(f"{'/'.join(parts)} imports {name}")
            if top in DRIVERS and parts[0] != DRIVERS[top] and not (top == "apsw" and parts[0] == "testing"):
                wrong.append(f"{'/'.join(parts)} imports {name}")
            if top in BANNED:
                wrong.append(f"{'/'.join(parts)} imports {name}")
    assert not wrong


def test_nothing_evaluates_text():
    for file, parts in files():
        calls = [
            n.func.id
            for n in ast.walk(ast.parse(file.read_text()))
            if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        ]
        assert not {"eval", "exec", "compile", "__import__"} & set(calls), parts
