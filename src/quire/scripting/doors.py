"""What the words of a script mean in Python, and nothing else that a script could mean.

1. `State`, `workflow.state` and `step.state` are scoped state: of everybody, of the script's workflow, of its step.
   `workflow.get`, `workflow.set` and so on are the workflow's own state, one level deep: keys are names, not paths.
2. The tables below are all there is. A word, a verb or a number of arguments that is not there is refused.
3. The books that a run keeps in its workflow are not there for a script.
4. A call changes what is private to the script until it has ended well. One that is wrong changes nothing and is
   answered with a sentence, which the script may catch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from quire.api.draft import DictDraft, ListDraft
from quire.errors import Invalid, QuireError
from quire.orchestra.run import RUN
from quire.scopes import ABSENT
from quire.scopes.step import StepState

Verbs = dict[str, tuple[int, Callable[..., Any]]]
"""By name: how many arguments, and what to do with them."""


class Door(msgspec.Struct, frozen=True):
    """Something a script may use, and how."""

    target: Any
    verbs: Verbs


Doors = dict[str, Door | str]
"""By the words of a script; a sentence that says why not, where there is nothing behind a word."""

NOTHING: Doors = {
    "State": "this script was started without shared state",
    "workflow": "this script was started without a workflow",
    "workflow.state": "this script was started without a workflow",
    "step.state": "this script was started without a step",
}


def scope_door(state: StepState) -> Door:
    """Return the door to a scope."""
    return Door(state, _SCOPED)


def own_door(draft: DictDraft) -> Door:
    """Return the door to a workflow's own state."""
    return Door(draft, _OWN)


def answer(doors: Doors, call: Sequence[Any]) -> list[Any]:
    """Do one call, [word, verb, *arguments], and return [True, value] or [False, what is wrong]."""
    match call:
        case [str(word), str(verb), *arguments] if word in doors:
            door = doors[word]
        case _:
            return [False, "there is no such call"]
    if isinstance(door, str):
        return [False, door]
    count, act = door.verbs.get(verb, (-1, None))
    if act is None or len(arguments) != count:
        return [False, "there is no such call"]
    try:
        return [True, act(door.target, *arguments)]
    except (QuireError, TypeError, OverflowError) as error:
        return [False, str(error)]


def _scope_has(state: StepState, key: Any) -> bool:
    return state.get(key, ABSENT) is not ABSENT


def _scope_list(state: StepState, prefix: Any) -> list[str]:
    return state.list(_prefix(prefix))


def _scope_increment(state: StepState, key: Any, by: Any) -> int | float:
    return state.increment(key, 1 if by is None else by)


def _get(draft: DictDraft, key: Any, default: Any) -> Any:
    found: Any = draft.get(_key(key), default)
    return found.to_plain() if isinstance(found, DictDraft | ListDraft) else found


def _has(draft: DictDraft, key: Any) -> bool:
    return _key(key) in draft


def _set(draft: DictDraft, key: Any, value: Any) -> None:
    draft[_key(key)] = value


def _delete(draft: DictDraft, key: Any) -> bool:
    return draft.pop(_key(key), ABSENT) is not ABSENT


def _list(draft: DictDraft, prefix: Any) -> list[str]:
    return [k for k in draft if k.startswith(_prefix(prefix)) and k != RUN]


def _increment(draft: DictDraft, key: Any, by: Any) -> Any:
    amount = 1 if by is None else by
    if type(amount) not in (int, float):
        raise Invalid("what is added is a number")
    draft.increment(_key(key), amount)
    return draft[key]


def _append(draft: DictDraft, key: Any, value: Any) -> int:
    items: Any = draft.get(_key(key), ABSENT)
    if items is ABSENT:
        draft[key] = [value]
        return 1
    if not isinstance(items, ListDraft):
        raise Invalid(f"{key!r} is no list")
    items.append(value)
    return len(items)


def _key(key: Any) -> str:
    if type(key) is not str or not key:
        raise Invalid("a key is text that is not empty")
    if key == RUN:
        raise Invalid(f"the key {key!r} is Quire's own; choose another")
    return key


def _prefix(prefix: Any) -> str:
    if prefix is not None and type(prefix) is not str:
        raise Invalid("a prefix is text")
    return prefix or ""


_SCOPED: Verbs = {
    "get": (2, StepState.get),
    "has": (1, _scope_has),
    "set": (2, StepState.set),
    "delete": (1, StepState.delete),
    "list": (1, _scope_list),
    "clear": (0, StepState.clear),
    "increment": (2, _scope_increment),
}
_OWN: Verbs = {
    "get": (2, _get),
    "has": (1, _has),
    "set": (2, _set),
    "delete": (1, _delete),
    "list": (1, _list),
    "increment": (2, _increment),
    "append": (2, _append),
}
