"""Steps of a write: what agents do to a draft, as JSON.

A program is a list of steps, such as `["pop", ["pool", "a"]]`. What each is by the rules is in `redo.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quire.errors import ChangeError

Step = list[Any]
Program = list[Step]

_FAILED = (KeyError, IndexError, ValueError, ChangeError)


def run(draft: Any, program: Sequence[Step]) -> list[Any]:
    """Do a program to a draft, or to plain objects and lists.

    Returns what each step was told. One that finds nothing to do it to is told the name of the error, and the rest goes on.
    """
    told: list[Any] = []
    for name, path, *given in program:
        try:
            box = draft
            for token in path[:-1]:
                box = box[token]
            told.append(STEPS[name](box, path[-1], *given))
        except _FAILED as error:
            told.append(f"!{type(error).__name__}")
    return told


# what is done to a draft


def _add(box: Any, key: Any, by: int) -> None:
    box[key] += by


def _add_again(box: Any, key: Any, by: int) -> None:
    box[key] = box[key] + by


def _add_within(box: Any, key: Any, by: int, low: int | None, high: int | None) -> None:
    box.increment(key, by, minimum=low, maximum=high)


def _get(box: Any, key: Any) -> Any:
    return _shown(box[key])


def _has(box: Any, key: Any) -> bool:
    return key in box


def _keys(box: Any, key: Any) -> list[str]:
    return sorted(box[key])


def _length(box: Any, key: Any) -> int:
    return len(box[key])


def _whole(box: Any, key: Any) -> Any:
    return box[key].to_plain()


def _values(box: Any, key: Any) -> int:
    return len([_shown(v) for v in box[key].values()])


def _equals(box: Any, key: Any, value: Any) -> bool:
    return bool(box[key] == value)


def _set(box: Any, key: Any, value: Any) -> None:
    box[key] = value


def _overwrite(box: Any, key: Any, value: Any) -> Any:
    seen = _shown(box[key])
    box[key] = value
    return seen


def _claim(box: Any, key: Any, value: Any) -> Any:
    holder = box.get(key)
    if holder is None:
        box[key] = value
    return holder


def _delete(box: Any, key: Any) -> None:
    del box[key]


def _pop(box: Any, key: Any) -> Any:
    return box.pop(key)


def _pop_newest(box: Any, key: Any) -> Any:
    return list(box[key].popitem())


def _default(box: Any, key: Any, value: Any) -> Any:
    return _shown(box.setdefault(key, value))


def _update(box: Any, key: Any, values: dict[str, Any]) -> None:
    box[key].update(values)


def _or(box: Any, key: Any, values: dict[str, Any]) -> None:
    box[key] |= values


def _clear(box: Any, key: Any) -> None:
    box[key].clear()


def _list_below(box: Any, key: Any, value: Any) -> None:
    box.setdefault(key, []).append(value)


def _object_below(box: Any, key: Any, inner: str, value: Any) -> None:
    box.setdefault(key, {})[inner] = value


def _list_if_none(box: Any, key: Any, value: Any) -> None:
    if key not in box:
        box[key] = []
    box[key] += [value]


def _number_below(box: Any, key: Any, by: int) -> None:
    box.setdefault(key, 0)
    box[key] += by


def _append(box: Any, key: Any, value: Any) -> None:
    box[key].append(value)


def _extend(box: Any, key: Any, values: list[Any]) -> None:
    box[key] += values


def _plus(box: Any, key: Any, values: list[Any]) -> None:
    box[key] = box[key] + values


def _insert(box: Any, key: Any, index: int, value: Any) -> None:
    box[key].insert(index, value)


def _pop_item(box: Any, key: Any, index: int) -> Any:
    return box[key].pop(index)


def _remove_item(box: Any, key: Any, index: int) -> Any:
    item = box[key][index]
    box[key].remove(item)
    return item


def _delete_item(box: Any, key: Any, index: int) -> None:
    del box[key][index]


def _set_item(box: Any, key: Any, index: int, value: Any) -> None:
    box[key][index] = value


def _overwrite_item(box: Any, key: Any, index: int, value: Any) -> Any:
    seen = box[key][index]
    box[key][index] = value
    return seen


def _sort(box: Any, key: Any, reverse: bool) -> None:
    box[key].sort(reverse=reverse)


def _slice(box: Any, key: Any, start: int, stop: int, values: list[Any]) -> None:
    box[key][start:stop] = values


def _replace(box: Any, key: Any, whole: dict[str, Any]) -> None:
    box[key].replace(whole)


def _weave(box: Any, key: Any, position: int, added: str) -> None:
    box.splice(key, position, 0, added)


def _shown(value: Any) -> Any:
    """Return what a read tells: of a container nothing, getting one is no read."""
    kind = type(value)
    return value if kind in (str, int, float, bool, type(None)) else "a container"


STEPS: dict[str, Callable[..., Any]] = {
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
    "or": _or,
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
    "remove item": _remove_item,
    "delete item": _delete_item,
    "set item": _set_item,
    "overwrite item": _overwrite_item,
    "sort": _sort,
    "slice": _slice,
    "replace": _replace,
    "grow": _add,
    "weave": _weave,
}
"""What each step does to the container at its path, its last key, and what is given with it."""
