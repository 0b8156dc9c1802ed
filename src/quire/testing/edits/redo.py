"""Programs by the rules: each step of `steps.py` on a `Meeting`, and what it must have been told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quire.testing.edits.reads import Path
from quire.testing.edits.rules import Meeting
from quire.testing.edits.sides import Missing
from quire.testing.edits.steps import Step
from quire.testing.edits.tree import ABSENT


def redo(meeting: Meeting, program: Sequence[Step]) -> list[Any]:
    """Do a program by the rules. Return what each step must have been told; raise Refused where it must be refused."""
    told: list[Any] = []
    meeting.texts = [step[-1] for step in program if step[0] in ("grow", "weave")]
    for name, path, *given in program:
        try:
            where: Path = ()
            for token in path[:-1]:
                where = (*where, meeting.index(where, token) if isinstance(token, int) else token)
                meeting.reach(where)
            told.append(RULES[name](meeting, (*where, path[-1]), *given))
        except Missing as error:
            told.append(f"!{error}")
    meeting.finish()
    return told


def _there(meeting: Meeting, path: Path) -> Any:
    """Return what is at a key, or raise Missing having read that nothing is."""
    value = meeting.value(path)
    if value is ABSENT:
        meeting.read(path)
        raise Missing("KeyError")
    return value


def _add(meeting: Meeting, path: Path, by: int) -> None:
    _there(meeting, path)
    meeting.add(path, by)


def _add_again(meeting: Meeting, path: Path, by: int) -> None:
    value = _there(meeting, path)
    meeting.read(path)
    meeting.put(path, value + by)


def _add_within(meeting: Meeting, path: Path, by: int, low: int | None, high: int | None) -> None:
    meeting.add(path, by, low, high)


def _get(meeting: Meeting, path: Path) -> Any:
    value = _there(meeting, path)
    if type(value) in (dict, list):
        return "a container"
    meeting.read(path)
    return value


def _has(meeting: Meeting, path: Path) -> bool:
    value = meeting.value(path)
    meeting.read(path, "presence" if type(value) in (dict, list) else "value")
    return value is not ABSENT


def _keys(meeting: Meeting, path: Path) -> list[str]:
    value = _there(meeting, path)
    meeting.read(path, "keys")
    return sorted(value)


def _length(meeting: Meeting, path: Path) -> int:
    value = _there(meeting, path)
    meeting.read(path, "keys")
    return len(value)


def _whole(meeting: Meeting, path: Path) -> Any:
    value = _there(meeting, path)
    meeting.read(path)
    return value


def _values(meeting: Meeting, path: Path) -> int:
    value = _there(meeting, path)
    meeting.read(path)
    return len(value)


def _equals(meeting: Meeting, path: Path, value: Any) -> bool:
    found = _there(meeting, path)
    meeting.read(path)
    return bool(found == value)


def _set(meeting: Meeting, path: Path, value: Any) -> None:
    if value in ({}, []) and meeting.value(path) is ABSENT:
        meeting.ensure(path, value)
    else:
        meeting.put(path, value)


def _overwrite(meeting: Meeting, path: Path, value: Any) -> Any:
    seen = _get(meeting, path)
    meeting.put(path, value)
    return seen


def _claim(meeting: Meeting, path: Path, value: Any) -> Any:
    holder = meeting.value(path)
    meeting.read(path)
    if holder in (ABSENT, None):
        meeting.put(path, value)
        return None
    return holder


def _delete(meeting: Meeting, path: Path) -> None:
    _there(meeting, path)
    meeting.drop(path)


def _pop(meeting: Meeting, path: Path) -> Any:
    value = _there(meeting, path)
    meeting.read(path)
    meeting.drop(path)
    return value


def _pop_newest(meeting: Meeting, path: Path) -> Any:
    value = _there(meeting, path)
    meeting.read(path, "keys")
    if not value:
        raise Missing("KeyError")
    key = list(value)[-1]
    return [key, _pop(meeting, (*path, key))]


def _default(meeting: Meeting, path: Path, value: Any) -> Any:
    found = meeting.value(path)
    if found is not ABSENT:
        return _get(meeting, path)
    if value in ({}, []):
        meeting.ensure(path, value)
        return "a container"
    if value == 0:
        meeting.zero(path)
    else:
        meeting.read(path)
        meeting.put(path, value)
    return value


def _update(meeting: Meeting, path: Path, values: dict[str, Any]) -> None:
    _there(meeting, path)
    for key, value in values.items():
        _set(meeting, (*path, key), value)


def _clear(meeting: Meeting, path: Path) -> None:
    value = _there(meeting, path)
    if type(value) is dict:
        meeting.locate(path, "keys")
        for key in value:
            meeting.drop((*path, key))
    else:
        meeting.locate(path)
        for _ in value:
            meeting.take(path, 0)


def _list_below(meeting: Meeting, path: Path, value: Any) -> None:
    if meeting.value(path) is ABSENT:
        meeting.ensure(path, [])
    meeting.append(path, [value])


def _object_below(meeting: Meeting, path: Path, inner: str, value: Any) -> None:
    if meeting.value(path) is ABSENT:
        meeting.ensure(path, {})
    meeting.put((*path, inner), value)


def _list_if_none(meeting: Meeting, path: Path, value: Any) -> None:
    if not _has(meeting, path):
        meeting.ensure(path, [])
    meeting.append(path, [value])


def _number_below(meeting: Meeting, path: Path, by: int) -> None:
    if meeting.value(path) is ABSENT:
        meeting.zero(path)
    else:
        meeting.read(path)
    meeting.add(path, by)


def _append(meeting: Meeting, path: Path, value: Any) -> None:
    _there(meeting, path)
    meeting.append(path, [value])


def _extend(meeting: Meeting, path: Path, values: list[Any]) -> None:
    _there(meeting, path)
    meeting.append(path, values)


def _plus(meeting: Meeting, path: Path, values: list[Any]) -> None:
    _there(meeting, path)
    meeting.read(path)
    meeting.append(path, values)


def _insert(meeting: Meeting, path: Path, index: int, value: Any) -> None:
    length = len(_there(meeting, path))
    meeting.locate(path)
    meeting.insert(path, max(0, index + length) if index < 0 else min(index, length), [value])


def _item(meeting: Meeting, path: Path, index: int) -> int:
    _there(meeting, path)
    return meeting.index(path, index)


def _pop_item(meeting: Meeting, path: Path, index: int) -> Any:
    at = _item(meeting, path, index)
    value = meeting.value((*path, at))
    meeting.read((*path, at))
    meeting.take(path, at)
    return value


def _delete_item(meeting: Meeting, path: Path, index: int) -> None:
    meeting.take(path, _item(meeting, path, index))


def _set_item(meeting: Meeting, path: Path, index: int, value: Any) -> None:
    meeting.put((*path, _item(meeting, path, index)), value)


def _overwrite_item(meeting: Meeting, path: Path, index: int, value: Any) -> Any:
    return _overwrite(meeting, (*path, _item(meeting, path, index)), value)


def _sort(meeting: Meeting, path: Path, reverse: bool) -> None:
    value = _there(meeting, path)
    meeting.read(path)
    meeting.put(path, sorted(value, reverse=reverse))


def _slice(meeting: Meeting, path: Path, start: int, stop: int, values: list[Any]) -> None:
    value = _there(meeting, path)
    meeting.locate(path)
    where = range(*slice(start, stop).indices(len(value)))
    for _ in where:
        meeting.take(path, where.start)
    meeting.insert(path, where.start, values)


def _replace(meeting: Meeting, path: Path, whole: dict[str, Any]) -> None:
    keys = _there(meeting, path)
    meeting.locate(path)
    for key in keys:
        if key not in whole:
            meeting.drop((*path, key))
    for key, value in whole.items():
        meeting.put((*path, key), value)


def _grow(meeting: Meeting, path: Path, added: str) -> None:
    _there(meeting, path)
    meeting.grow(path, added)


def _weave(meeting: Meeting, path: Path, position: int, added: str) -> None:
    if position > len(_there(meeting, path)):
        raise Missing("ChangeError")
    meeting.grow(path, added, position)


RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "add again": _add_again,
    "add within": _add_within,
    "get": _get,
    "has": _has,
    "keys": _keys,
    "length": _length,
    "whole": _whole,
    "values": _values,
    "equals": _equals,
    "set": _set,
    "overwrite": _overwrite,
    "claim": _claim,
    "delete": _delete,
    "pop": _pop,
    "pop newest": _pop_newest,
    "default": _default,
    "update": _update,
    "or": _update,
    "clear": _clear,
    "list below": _list_below,
    "object below": _object_below,
    "list if none": _list_if_none,
    "number below": _number_below,
    "append": _append,
    "extend": _extend,
    "plus": _plus,
    "insert": _insert,
    "pop item": _pop_item,
    "remove item": _pop_item,
    "delete item": _delete_item,
    "set item": _set_item,
    "overwrite item": _overwrite_item,
    "sort": _sort,
    "slice": _slice,
    "replace": _replace,
    "grow": _grow,
    "weave": _weave,
}
"""What each step of `steps.STEPS` is by the rules, with the whole path."""
