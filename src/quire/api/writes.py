"""From what a caller says to a `Write`: options checked, values cleaned, forms of change told apart."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypedDict, TypeVar, cast

import msgspec

from quire.api.revisions import Revision
from quire.calls import call
from quire.config import Settings
from quire.core import patch
from quire.core.guards import Step, Within
from quire.core.meter import Meter
from quire.core.path import parse
from quire.core.resolve import Policy, check_policy
from quire.core.values import SMALL, clean
from quire.engine.actor import DELETED
from quire.engine.limits import REDACT
from quire.engine.write import Plan, Write
from quire.errors import Invalid, InvalidState, LimitExceeded
from quire.model import Append, Change, Delete, Ensure, Fork, Increment, Insert, Path, Remove, Set, Splice
from quire.threads import aside

T = TypeVar("T")

_QUICK_STEPS = 10_000
"""What is done on the event loop; more is done in a thread: see core/meter.py."""
_NAME_MAX = 200
_POINTERS_MAX, _POINTER_MAX = 4096, 256
"""How many checked pointers are remembered, and up to which length: agents write to the same few places."""
_OURS = frozenset(("create", DELETED, "fork", "merge", "migrate", REDACT))
"""Kinds of version that mean something to the engine."""
_ATOMS = (Delete, Ensure, Increment, Remove, Splice)

Changes = Sequence[Change] | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Quire changes, a JSON Patch (a list of objects) or a merge patch (an object)."""


class Writing(TypedDict, total=False):
    """What every writing method takes.

    author: who to blame, default "system".  message: why.  kind: a word for the version, default "change".
    if_version: write only if the head is exactly this, else HeadMoved.  allow_empty: make a version even if nothing
    changes.  idempotency_key: sent again with the same key the write is not repeated, the version it made is returned (the
    head that it met, where it changed nothing). A key is spent, until it expires, while the head descends from its version,
    following restores and forks: a later overwrite does not free it, a restore to before its version does. A spent key with
    another content raises KeyReused.
    on_conflict: what becomes of it where others wrote the same place since the version it was made on: "last", "ours",
    "theirs", "both", "queue", "reject" or a function of the conflict, see `core/resolve.py`. Default: the store's; without
    one a stale write is refused with MergeConflict, and of two blind ones the last stands.
    """

    author: str
    message: str
    kind: str
    if_version: int | None
    allow_empty: bool
    idempotency_key: str | None
    on_conflict: Policy | None


class BasedWriting(Writing, total=False):
    """The same, of a write that may have been made from an older version.

    base: that version, None for the state that it meets: what the write replaces or removes counts as read there, and
    where that changed since, it is stale.
    """

    base: Revision


class Bounds(TypedDict):
    """The bounds that `clean` enforces."""

    depth_max: int
    key_bytes_max: int
    bytes_max: int | None


def limits(settings: Settings) -> Bounds:
    """Return the bounds that `clean` enforces on what one write puts."""
    return {
        "depth_max": settings.depth_max,
        "key_bytes_max": settings.key_bytes_max,
        "bytes_max": settings.write_bytes_max,
    }


def limits_of_wholes(settings: Settings) -> Bounds:
    """Return the bounds of a whole state of which only the difference is written.

    A state may be over its limit, as long as it is made smaller: so twice that is where reading it ends.
    """
    most = settings.state_bytes_max
    return {**limits(settings), "bytes_max": None if most is None else max(2 * most, settings.write_bytes_max)}


def write(
    stream: str, plan: Sequence[Step | Fork] | Plan, how: Mapping[str, Any], **more: Any
) -> tuple[Write, str | None]:
    """Return the write and its idempotency key. Raises Invalid for an option that is not allowed."""
    options: dict[str, Any] = {}
    for option, value in how.items():
        check = _CHECKS.get(option)
        if check is None:
            raise Invalid(f"this write has no option {option!r}; it takes {', '.join(_CHECKS)}")
        options[option] = check(value)
    key = options.pop("idempotency_key", None)
    policy = options.pop("on_conflict", None)
    if policy is not None:
        options["policy"] = policy
    options.update(more)
    return Write(stream, plan, **options), key


async def planned(changes: Any, settings: Settings, where: str = "") -> tuple[Sequence[Step | Fork] | Plan, bool]:
    """Return what `plan_of` does, made in a thread where it takes long; and whether it did."""
    return await in_time(lambda meter: plan_of(changes, settings, where, meter), settings.write_bytes_max)


async def in_time(work: Callable[[Meter], T], bytes_max: int | None) -> tuple[T, bool]:
    """Do some work; in a thread, from its beginning, where it takes more than a few milliseconds. Return whether it did.

    work: charges the meter that it is given, and alters nothing.  bytes_max: of the meter.
    Raises Invalid where the program alters meanwhile what is read there.
    """
    try:
        return call(work, Meter(bytes_max, _QUICK_STEPS)), False
    except LimitExceeded as error:
        if error.limit != "write_steps_max":
            raise
    with unaltered():
        return await aside(call, work, Meter(bytes_max)), True


async def cleaned(value: Any, bounds: Bounds, path: Path = ()) -> tuple[Any, bool]:
    """Return what `clean` makes of a value, in a thread where it is large; and whether it is.

    path: where it will be.  Raises what `clean` and `in_time` raise.
    """
    if type(value) in SMALL:
        return clean(value, path=path, **bounds), False
    return await in_time(lambda meter: clean(value, path=path, **bounds, meter=meter), bounds["bytes_max"])


@contextmanager
def unaltered() -> Generator[None]:
    """Raise Invalid where an object of the program is altered while it is read in a thread."""
    try:
        yield
    except RuntimeError as error:
        if "during iteration" not in str(error):
            raise
        raise Invalid(
            f"the program altered the value while it was read ({error}); nothing was written: leave it as it is until the "
            "call returns, or give a copy"
        ) from error


def plan_of(
    changes: Any, settings: Settings, where: str = "", meter: Meter | None = None
) -> Sequence[Step | Fork] | Plan:
    """Return the plan for any of the three forms of change. where: the workflow, for errors.  meter: charged with it.

    Raises Invalid for anything else, LimitExceeded for what is larger than one write may be: as it is, or as it is
    found to be while the plan is made.
    """
    bounds, meter = limits(settings), meter or Meter(settings.write_bytes_max)
    if isinstance(changes, Mapping):
        merge = cast("dict[str, Any]", clean(dict(cast("Mapping[str, Any]", changes)), **bounds, meter=meter))
        return lambda state: patch.from_merge_patch(state, merge)
    if not isinstance(changes, Sequence) or isinstance(changes, str | bytes):
        raise Invalid(
            "changes are a list of Quire changes, a JSON Patch (a list of objects) or a merge patch (an object), "
            f"not {type(changes).__name__}"
        )
    items = list(cast("Sequence[Any]", changes))
    if items and all(isinstance(c, Mapping) for c in items):
        operations = cast("list[dict[str, Any]]", clean([dict(c) for c in items], **bounds, meter=meter))
        meter.add_steps(len(items))
        for operation in operations:
            if type(operation.get("path")) is str and operation["path"][:1] in ("", "/"):
                place(operation["path"], bounds)
        most_bytes, most_steps = settings.write_bytes_max, settings.write_steps_max
        return lambda state: patch.from_json_patch(state, operations, Meter(most_bytes, most_steps, where))
    return _all_cleaned(items, bounds, meter)


def content_of(changes: Any, plan: Sequence[Step | Fork] | Plan, bounds: Bounds, meter: Meter) -> Any:
    """Return what a key stands for: any form of change, in plain values. plan: what `plan_of` made of it."""
    if not callable(plan):
        return list(plan)
    whole = dict(changes) if isinstance(changes, Mapping) else [dict(change) for change in changes]
    return clean(whole, **bounds, meter=meter)


def _all_cleaned(changes: Sequence[Any], bounds: Bounds, meter: Meter) -> list[Step]:
    """Return changes with private values. Together they are held to the bytes of one write as they are copied."""
    meter.add_steps(4 * len(changes))
    return [_cleaned(change, bounds, meter) for change in changes]


def bounded(path: Path, minimum: Any, maximum: Any, bounds: Bounds) -> list[Within]:
    """Return the guard for the bounds of a number, none where there are none. Raises Invalid."""
    for bound in (minimum, maximum):
        if bound is not None and type(bound) not in (int, float):
            raise Invalid(f"a bound is a number, not {bound!r}")
    low, high = clean([minimum, maximum], path=path, **bounds)
    if low is not None and high is not None and low > high:
        raise Invalid(f"no number is at least {low} and at most {high}")
    return [] if low is None and high is None else [Within(path, low, high)]


def place(pointer: Any, bounds: Bounds) -> Path:
    """Return the tokens of a path to write at; its keys are held to the same rules as keys in values."""
    if type(pointer) is str and len(pointer) <= _POINTER_MAX:
        return _remembered(pointer, bounds["depth_max"], bounds["key_bytes_max"])
    return _checked(pointer, bounds)


@lru_cache(_POINTERS_MAX)
def _remembered(pointer: str, depth_max: int, key_bytes_max: int) -> Path:
    return _checked(pointer, {"depth_max": depth_max, "key_bytes_max": key_bytes_max, "bytes_max": None})


def _checked(pointer: Any, bounds: Bounds) -> Path:
    longest = (bounds["depth_max"] + 1) * (2 * bounds["key_bytes_max"] + 1)  # "/" is written "~1"
    if isinstance(pointer, str) and len(pointer) > longest:
        raise LimitExceeded(
            f"a path of {len(pointer):,} characters, none is longer than {longest:,}: keys have {bounds['key_bytes_max']} "
            f"bytes (key_bytes_max), {bounds['depth_max']} of them (depth_max); put what is long into a value",
            limit="key_bytes_max",
            allowed=longest,
            found=len(pointer),
        )
    tokens = parse(pointer)
    for depth, token in enumerate(tokens):
        if type(token) is str:
            clean({token: None}, path=tokens[:depth], **bounds)
    return tokens


def plain(state: Any) -> Mapping[str, Any]:
    """Return a state as plain JSON: what msgspec makes of a Struct, any other mapping as it is. Raises InvalidState."""
    made = msgspec.to_builtins(state) if isinstance(state, msgspec.Struct) else state
    if not isinstance(made, Mapping):
        raise InvalidState(f"a workflow's state is an object, not {type(made).__name__}")
    return cast("Mapping[str, Any]", made)


async def creation(
    stream: str, state: Mapping[str, Any] | msgspec.Struct, author: str, message: str, settings: Settings
) -> Write:
    """Return the write that starts a workflow."""
    whole, heavy = await cleaned(dict(plain(state)), limits(settings))
    how = {"author": author, "message": message}
    return write(stream, [Set((), whole)], how, kind="create", exists=False, allow_empty=True, heavy=heavy)[0]


def ending(stream: str, author: str, message: str) -> Write:
    """Return the write that ends a workflow; its history stays."""
    return write(stream, [Set((), {})], {"author": author, "message": message}, kind=DELETED, allow_empty=True)[0]


def name(value: Any, what: str) -> str:
    """Return a short printable name. Raises Invalid."""
    if not isinstance(value, str) or not 1 <= len(value) <= _NAME_MAX or not value.isprintable():
        raise Invalid(f"{what} {value!r}: 1 to {_NAME_MAX} printable characters are needed")
    return value


def _kind(value: Any) -> str:
    value = name(value, "kind")
    if value in _OURS:
        raise Invalid(f"kind {value!r} is a word of Quire's own, as are {', '.join(sorted(_OURS))}; choose another")
    return value


def _number(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise Invalid(f"if_version {value!r}: the number of a version is needed")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise Invalid(f"allow_empty {value!r}: True or False is needed")
    return value


def _key(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise Invalid(f"idempotency_key {value!r}: text is needed")
    return value


def text(value: Any) -> str:
    """Return text that can be stored. Raises InvalidState."""
    if not isinstance(value, str):
        raise InvalidState(f"a message is text, not {type(value).__name__}")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidState("a message with a lone surrogate cannot be stored; replace or remove it") from None
    return value


def _cleaned(change: Any, bounds: Bounds, meter: Meter) -> Step:
    if isinstance(change, Change):
        place(change.path, bounds)
    match change:
        case Set(path, value):
            return Set(path, clean(value, path=path, **bounds, meter=meter))
        case Append(path, values):
            return Append(path, clean(values, path=path, **bounds, meter=meter))
        case Insert(path, index, values):
            return Insert(path, index, clean(values, path=path, **bounds, meter=meter))
        case Within(path, minimum, maximum):
            place(path, bounds)
            return bounded(path, minimum, maximum, bounds)[0] if (minimum, maximum) != (None, None) else change
        case Ensure(_, value) if type(value) not in (dict, list) or value:
            raise Invalid(f"{change!r}: what is ensured is an empty object or list")
        case _ if isinstance(change, _ATOMS):
            clean([list(change.path), *msgspec.to_builtins(change)[2:]], **bounds, meter=meter)
            return change
        case _:
            raise Invalid(
                f"{change!r} is not a change; make one with quire.Set, quire.Append, ... or give a JSON Patch"
            )


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "author": lambda value: name(value, "author"),
    "message": text,
    "kind": _kind,
    "if_version": _number,
    "allow_empty": _flag,
    "idempotency_key": _key,
    "on_conflict": lambda value: None if value is None else check_policy(value),
}
