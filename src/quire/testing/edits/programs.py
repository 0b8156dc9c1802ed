"""Programs of random steps: what the clients of a campaign do, small enough in its places that they often meet."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from quire.testing.edits.steps import Program, Step

START: dict[str, Any] = {
    "n": 0,
    "m": 0,
    "budget": 100,
    "text": "",
    "plan": "none",
    "log": [],
    "queue": ["q0", "q1", "q2"],
    "rows": [{"id": "r0", "v": 0, "w": "w0"}, {"id": "r1", "v": 0, "w": "w1"}],
    "pool": {"a": "a0", "b": "b0"},
    "tree": {"x": {"p": "p0", "q": "q0"}, "y": {"p": "p1"}},
    "groups": {},
}
"""What a workflow of a campaign begins with."""


class Maker:
    """Maker of programs from random numbers. Values are unique: `who` and a count.

    kinds: of steps, names of the methods below; none for all.
    """

    def __init__(self, rng: Random, who: str, kinds: Sequence[str] = ()) -> None:
        self._rng = rng
        self._kinds = [getattr(self, kind) for kind in kinds or _KINDS]
        self._who = who
        self._made = 0

    def value(self) -> str:
        """Return a value that nothing else ever is."""
        self._made += 1
        return f"{self._who}.{self._made}"

    def program(self) -> Program:
        """Return one to four steps."""
        return [self.step() for _ in range(self._rng.choice((1, 1, 1, 2, 2, 3, 4)))]

    def step(self) -> Step:
        """Return a step."""
        return self._rng.choice(self._kinds)()

    def saved(self) -> Program:
        """Return steps that a plain state takes, and that its differences tell in full."""
        steps = [self._rng.choice((self.pool, self.lead, self._number, self._item))() for _ in range(3)]
        fit = ("set", "overwrite", "delete", "pop", "default", "claim", "add", "append", "extend")
        return [step for step in steps if step[0] in fit and step[-1] not in ({}, [])]

    def forked(self) -> Program:
        """Return steps for a fork: what merges whatever else is done, and blind sets."""
        steps = [self._number, self._item, self._item, self.blind]
        return [self._rng.choice(steps)() for _ in range(2)]

    def place(self) -> list[str]:
        """Return a path that can always be set."""
        return self._of(["plan"], ["leader"], *(["pool", key] for key in "abcd"))

    def _number(self) -> Step:
        return ["add", [self._of("n", "m")], self._rng.randint(1, 9)]

    def _item(self) -> Step:
        return ["append", [self._of("log", "queue")], self.value()]

    def _of(self, *choices: Any) -> Any:
        return self._rng.choice(choices)

    def count(self) -> Step:
        """Return a step on a number."""
        path, by = [self._of("n", "m")], self._rng.randint(-3, 5)
        kind = self._of("add", "add", "add", "add again", "get", "overwrite", "add within")
        if kind == "add within":
            return [kind, ["budget"], self._of(-60, -7, -1, 5), *self._of((0, None), (0, 120), (None, 110))]
        more = {"add": [by], "add again": [by], "get": [], "overwrite": [self._rng.randint(100, 999)]}
        return [kind, path, *more[kind]]

    def write(self) -> Step:
        """Return a step on a text."""
        kind = self._of("grow", "grow", "weave", "get")
        more = {"grow": [f"<{self.value()}>"], "weave": [self._rng.randint(0, 9), f"<{self.value()}>"], "get": []}
        return [kind, ["text"], *more[kind]]

    def queue(self) -> Step:
        """Return a step on a list of texts."""
        path, at, new = [self._of("queue", "queue", "queue", "log")], self._rng.randint(-3, 2), self.value()
        if path == ["log"]:
            kind = self._of("append", "extend", "plus", "length", "whole")
        else:
            kind = self._of(
                *("append", "append", "extend", "plus", "insert", "insert", "pop item", "pop item", "remove item"),
                *("delete item", "set item", "overwrite item", "sort", "slice", "length", "whole", "clear"),
            )
        more: dict[str, list[Any]] = {
            "append": [new],
            "extend": [[new, self.value()]],
            "plus": [[new]],
            "insert": [at, new],
            "pop item": [at],
            "remove item": [at],
            "delete item": [at],
            "set item": [at, new],
            "overwrite item": [at, new],
            "sort": [self._of(True, False)],
            "slice": [at, at + self._rng.randint(0, 2), [new]],
        }
        return [kind, path, *more.get(kind, [])]

    def row(self) -> Step:
        """Return a step on a list of objects."""
        at, new = self._rng.randint(-2, 2), self.value()
        match self._of("new", "add", "add", "set", "overwrite", "get", "pop", "grow"):
            case "new":
                row = {"id": new, "v": 0, "w": new}
                return self._of(["append", ["rows"], row], ["insert", ["rows"], at, row])
            case "add":
                return ["add", ["rows", at, "v"], self._rng.randint(1, 5)]
            case "pop":
                return ["pop item", ["rows"], at]
            case "get":
                return ["get", ["rows", at, self._of("v", "w")]]
            case "grow":
                return ["grow", ["rows", at, "w"], f"+{new}"]
            case kind:
                return [kind, ["rows", at, "w"], new]

    def pool(self) -> Step:
        """Return a step on an object of texts."""
        key, new = self._of("a", "b", "c", "d"), self.value()
        kind = self._of(
            *("set", "set", "set", "overwrite", "delete", "pop", "default", "claim", "has", "get", "add again"),
            *("keys", "whole", "values", "pop newest", "update", "or", "clear", "length", "equals"),
        )
        if kind in ("keys", "whole", "values", "pop newest", "clear", "length"):
            return [kind, ["pool"]]
        if kind in ("update", "or"):
            return [kind, ["pool"], {key: new, self._of("b", "c", "e"): self.value()}]
        if kind == "equals":
            return [kind, ["pool"], {}]
        more = {} if kind in ("delete", "pop", "has", "get") else {0: new}
        return [kind, ["pool", key], *more.values()]

    def tree(self) -> Step:
        """Return a step on objects within objects."""
        outer, inner, new = self._of("x", "y", "z"), self._of("p", "q"), self.value()
        match self._of("set", "set", "get", "whole", "keys", "put", "delete", "root", "replace", "overwrite"):
            case "put":
                return ["set", ["tree", outer], {inner: new}]
            case "delete":
                return [self._of("delete", "pop"), ["tree", outer]]
            case "root":
                return [self._of("whole", "keys"), ["tree"]]
            case "whole" | "keys" as kind:
                return [kind, ["tree", outer]]
            case "replace":
                return ["replace", ["tree", outer], {inner: new}]
            case kind:
                return [kind, ["tree", outer, inner], *([] if kind == "get" else [new])]

    def group(self) -> Step:
        """Return a step on what agents begin when they need it."""
        new, number = self.value(), self._of("0", "1")
        match self._of("l", "l", "d", "d", "c", "c"):
            case "l":
                path = ["groups", "l" + number]
                kind = self._of(
                    "list below", "list below", "list if none", "set", "extend", "delete", "whole", "pop item"
                )
                more: dict[str, Any] = {"set": [[]], "extend": [[new]], "delete": [], "whole": [], "pop item": [0]}
                return [kind, path, *more.get(kind, [new])]
            case "d":
                path = ["groups", "d" + number]
                kind = self._of("object below", "object below", "object below", "set", "pop", "keys", "default")
                more = {"set": [{}], "pop": [], "keys": [], "default": [{}]}
                return [kind, path, *more.get(kind, [self._of("i", "j"), new])]
            case _:
                path = ["groups", "c" + number]
                kind = self._of("number below", "number below", "default", "add", "get", "delete", "has")
                more = {"number below": [2], "default": [0], "add": [3]}
                return [kind, path, *more.get(kind, [])]

    def blind(self) -> Step:
        """Return a step that sets what it has not read."""
        return ["set", self.place(), self.value()]

    def lead(self) -> Step:
        """Return a step on who leads, or what is planned."""
        new = self.value()
        return self._of(
            ["claim", ["leader"], new],
            ["overwrite", ["plan"], new],
            ["set", ["plan"], new],
            ["set", ["leader"], None],
            ["pop", ["leader"]],
            ["default", ["leader"], new],
        )


_KINDS = ("count", "count", "write", "queue", "queue", "row", "pool", "pool", "tree", "group", "group", "lead")
