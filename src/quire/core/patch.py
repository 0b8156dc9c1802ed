"""JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7396), in and out: the forms of change that others speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from quire.core.changes import Working
from quire.core.guards import Read, Step
from quire.core.meter import Meter
from quire.core.path import describe, get, parse, resolve
from quire.core.path import format as pointer
from quire.core.values import copied, equal, same
from quire.errors import ChangeError, InvalidKey
from quire.model import Append, Change, Delete, Ensure, Increment, Insert, Path, Remove, Set, Splice

_MISSING: Any = object()


def from_json_patch(
    state: dict[str, Any], patch: Sequence[Mapping[str, Any]], meter: Meter | None = None
) -> list[Step]:
    """Return the changes that a JSON Patch makes to a state: all of them, or ChangeError naming the operation.

    A `test` leaves a strict guard: it has to hold on the state that the changes are rebased onto. It compares numbers by
    value, as RFC 6902 section 4.6 says: 1 equals 1.0, though Quire keeps them apart.
    state: not modified.  patch: cleaned operations.  meter: charged with each operation, and with what `copy` copies
    before it is copied; raises LimitExceeded. Source: RFC 6902.
    """
    working = Working(state, meter)
    changes: list[Step] = []
    for number, operation in enumerate(patch):
        try:
            for change in _operation(working, operation):
                kept = working.private(change)
                working.apply(kept)
                changes.append(kept)
        except (ChangeError, InvalidKey) as error:
            raise ChangeError(
                f"JSON Patch operation {number} ({operation.get('op')!r}): {error}",
                path=str(operation.get("path", "")),
            ) from None
    return changes


def _operation(working: Working, operation: Mapping[str, Any]) -> list[Step]:
    name = operation.get("op")
    make = _OPERATIONS.get(name) if isinstance(name, str) else None
    if make is None:
        raise ChangeError(f"unknown op {name!r}; RFC 6902 has {', '.join(_OPERATIONS)}")
    return make(working, _place(working.state, operation, "path"), operation)


def _place(state: dict[str, Any], operation: Mapping[str, Any], member: str) -> Path:
    text = operation.get(member)
    if not isinstance(text, str):
        raise ChangeError(f"needs a JSON Pointer in {member!r}, found {describe(text)}")
    return resolve(state, parse(text))


def _value(operation: Mapping[str, Any]) -> Any:
    if "value" not in operation:
        raise ChangeError("needs a 'value'")
    return operation["value"]


def _existing(state: dict[str, Any], path: Path) -> Any:
    value = get(state, path, _MISSING)
    if value is _MISSING:
        raise ChangeError(f"{pointer(path)}: there is nothing", path=pointer(path))
    return value


def _put(state: dict[str, Any], path: Path, value: Any) -> list[Step]:
    """Return the change of an `add`: into a list it inserts, elsewhere it sets."""
    if path and isinstance(path[-1], int):
        items = get(state, path[:-1])
        if path[-1] == len(items):
            return [Append(path[:-1], [value])]
        return [Insert(path[:-1], path[-1], [value])]
    return [Set(path, value)]


def _take(path: Path) -> list[Step]:
    if not path:
        raise ChangeError("the whole state cannot be removed; replace it by an object")
    return [Remove(path[:-1], path[-1], 1)] if isinstance(path[-1], int) else [Delete(path)]


def _add(working: Working, path: Path, operation: Mapping[str, Any]) -> list[Step]:
    return _put(working.state, path, _value(operation))


def _remove(working: Working, path: Path, _: Mapping[str, Any]) -> list[Step]:
    _existing(working.state, path)
    return _take(path)


def _replace(working: Working, path: Path, operation: Mapping[str, Any]) -> list[Step]:
    _existing(working.state, path)
    return [Set(path, _value(operation))]


def _move(working: Working, path: Path, operation: Mapping[str, Any]) -> list[Step]:
    source = _place(working.state, operation, "from")
    value = _existing(working.state, source)
    if source == path:
        return []
    if path[: len(source)] == source:
        raise ChangeError(f"cannot move {pointer(source)} into itself")
    after = Working(working.state, working.meter)
    taken = _take(source)
    after.apply(taken[0])
    # the target is meant as it reads once the source is gone
    return [*taken, *_put(after.state, resolve(after.state, parse(operation["path"])), value)]


def _copy(working: Working, path: Path, operation: Mapping[str, Any]) -> list[Step]:
    value = _existing(working.state, _place(working.state, operation, "from"))
    return _put(working.state, path, copied(value) if working.meter is None else working.meter.copied(value))


def _test(working: Working, path: Path, operation: Mapping[str, Any]) -> list[Step]:
    if not equal(_existing(working.state, path), _value(operation)):
        raise ChangeError(f"{pointer(path) or 'the state'} is not what the test expects")
    return [Read(path, strict=True)]


_OPERATIONS: dict[str, Callable[[Working, Path, Mapping[str, Any]], list[Step]]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copy,
    "test": _test,
}


def to_json_patch(state: dict[str, Any], changes: Sequence[Change]) -> list[dict[str, Any]]:
    """Return the JSON Patch with the same effect on `state`, the state before the changes.

    What JSON Patch cannot say (a splice, an increment) is said by its result.
    """
    working = Working(state)
    patch: list[dict[str, Any]] = []
    for change in changes:
        there = get(working.state, change.path, _MISSING) is not _MISSING
        working.apply(change)
        at = pointer(change.path)
        match change:
            case Delete():
                patch.append({"op": "remove", "path": at})
            case Append():
                patch += [{"op": "add", "path": f"{at}/-", "value": v} for v in change.values]
            case Insert():
                patch += [
                    {"op": "add", "path": f"{at}/{change.index + i}", "value": v} for i, v in enumerate(change.values)
                ]
            case Remove():
                patch += [{"op": "remove", "path": f"{at}/{change.index}"}] * change.count
            case Ensure() if there:
                pass
            case Set() | Ensure() | Splice() | Increment():
                value = get(working.state, change.path)
                patch.append({"op": "replace" if there else "add", "path": at, "value": value})
    return patch


def from_merge_patch(state: dict[str, Any], patch: Mapping[str, Any]) -> list[Change]:
    """Return the changes that a merge patch makes: null deletes, objects merge, the rest replaces. Source: RFC 7396."""
    changes: list[Change] = []
    _merge(state, patch, (), changes)
    return changes


def _merge(node: dict[str, Any], patch: Mapping[str, Any], path: Path, out: list[Change]) -> None:
    for key, value in patch.items():
        here = (*path, key)
        if value is None:
            if key in node:
                out.append(Delete(here))
        elif type(value) is dict and type(node.get(key)) is dict:
            _merge(node[key], cast("dict[str, Any]", value), here, out)
        else:
            out.append(Set(here, _without_nulls(value)))


def _without_nulls(value: Any) -> Any:
    if type(value) is not dict:
        return value
    return {k: _without_nulls(v) for k, v in cast("dict[str, Any]", value).items() if v is not None}


def to_merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the merge patch from one state to another.

    Raises ChangeError when there is none: a null in an object of `new` reads as a deletion.
    """
    return _merging(old, new, ())


def _merging(old: dict[str, Any], new: dict[str, Any], path: Path) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        here = (*path, key)
        before = old.get(key, _MISSING)
        if same(before, value):
            continue
        if type(before) is dict and type(value) is dict:
            patch[key] = _merging(cast("dict[str, Any]", before), cast("dict[str, Any]", value), here)
        else:
            _refuse_null(value, here)
            patch[key] = value
    return patch


def _refuse_null(value: Any, path: Path) -> None:
    if value is None:
        raise ChangeError(f"{pointer(path)}: a merge patch cannot set null; use a JSON Patch", path=pointer(path))
    if type(value) is dict:
        for key, inner in cast("dict[str, Any]", value).items():
            _refuse_null(inner, (*path, key))
