"""Topologies: what runs after what, as values.

Every step has a key, the path of names from the root (`survey/parse/agent-2`), under which its result is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from blake3 import blake3

from quire.errors import Invalid
from quire.orchestra.steps import Agent, Step, step


class Sequence(msgspec.Struct, frozen=True):
    """One after the other; each gets the result of the one before. Its result is the last one's."""

    name: str
    parts: tuple[Node, ...]


class Parallel(msgspec.Struct, frozen=True):
    """All at once, at most `limit` at a time; each gets the same input. Its result is {name: result}."""

    name: str
    parts: tuple[Node, ...]
    limit: int | None = None


Node = Step | Sequence | Parallel
Part = Node | Agent


def sequence(*parts: Part, name: str = "") -> Sequence:
    """Return a topology that runs parts in order. Plain callables become steps named after themselves."""
    return Sequence(name, _nodes(parts))


def parallel(*parts: Part, name: str = "", limit: int | None = None) -> Parallel:
    """Return a topology that runs parts at the same time. limit: how many at once."""
    if limit is not None and limit < 1:
        raise Invalid(f"parallel limit {limit}: at least 1 is needed")
    return Parallel(name, _nodes(parts), limit)


def keyed(node: Node, prefix: str = "") -> str:
    """Return the key of a node below a prefix; a nameless node adds nothing."""
    return "/".join(p for p in (prefix, node.name) if p)


def steps(node: Node, prefix: str = "") -> Iterator[tuple[str, Step]]:
    """Yield (key, step) in order."""
    key = keyed(node, prefix)
    if isinstance(node, Step):
        yield key, node
        return
    for part in node.parts:
        yield from steps(part, key)


def check(node: Node) -> None:
    """Raise Invalid when two steps share a key, or two parts of a parallel a name: their results could not be told apart."""
    seen: set[str] = set()
    for key, _ in steps(node):
        if key in seen:
            raise Invalid(f"two steps have the key {key!r}; give one of them another name with step(agent, name=...)")
        seen.add(key)
    _check_branches(node)


def _check_branches(node: Node) -> None:
    if isinstance(node, Step):
        return
    if isinstance(node, Parallel):
        names: set[str] = set()
        for i in range(len(node.parts)):
            name = branch(node, i)
            if name in names:
                what = f"parallel {node.name!r}" if node.name else "a parallel"
                raise Invalid(f"two branches of {what} have the name {name!r} in its result; give one of them another")
            names.add(name)
    for part in node.parts:
        _check_branches(part)


def branch(node: Parallel, index: int) -> str:
    """Return the name under which the result of a part is given: its own, or else its index."""
    return node.parts[index].name or str(index)


def digest(node: Node) -> str:
    """Return a short hash of the shape: kinds and names, not the code of the agents."""
    return blake3(msgspec.json.encode(_shape(node))).hexdigest()[:16]


def _shape(node: Node) -> Any:
    if isinstance(node, Step):
        return ["step", node.name]
    return [type(node).__name__.lower(), node.name, [_shape(p) for p in node.parts]]


def _nodes(parts: tuple[Part, ...]) -> tuple[Node, ...]:
    if not parts:
        raise Invalid("a topology needs at least one part")
    return tuple(p if isinstance(p, Step | Sequence | Parallel) else step(p) for p in parts)
