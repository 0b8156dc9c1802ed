"""What one Python source file is like: sizes, complexity, documentation, annotations, marks, imports.

Run as a program it reads the names of files as JSON from standard input and writes what it found as JSON: so agents
work in processes of their own, and one whose caller was killed ends when nobody reads its answer.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

_MARKS = ("TODO", "FIXME", "XXX", "HACK")
_MARK = re.compile(rf"\b({'|'.join(_MARKS)})\b")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DEFINITIONS = (*_FUNCTIONS, ast.ClassDef)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.comprehension, ast.match_case)
_COMMENT_MAX = 120
_NEVER_LOADED = {"__name__", "TYPE_CHECKING"}
"""What is under an `if` of these does not run when a module is imported."""


STEPS = (1, 2, 4, 6, 11, 21)
"""Where the classes of complexity begin: 1, 2-3, 4-5, 6-10, 11-20, 21 and more. McCabe himself (IEEE Transactions on
Software Engineering, 1976) asked for 10 at most."""


class Function(msgspec.Struct):
    """A function by its dotted name: lines it spans, and McCabe's number: 1 and one for each place it can branch."""

    name: str
    line: int
    lines: int
    complexity: int


class Found(msgspec.Struct):
    """What is in a module.

    lines: physical.  functions, classes: counts.  public, documented: names without underscore, and those of them with
    a docstring.  slots, annotated: parameters and returns that could be annotated, and are.  longest, knottiest: the
    function with the most lines and the one with the highest complexity.  spread: functions by complexity, see STEPS.
    cases: functions named test...  marks: comments to come back to, `line: text`.
    imports: dotted names imported when the module is; deferred: those imported later, inside functions.
    """

    lines: int
    functions: int = 0
    classes: int = 0
    public: int = 0
    documented: int = 0
    slots: int = 0
    annotated: int = 0
    cases: int = 0
    longest: Function | None = None
    knottiest: Function | None = None
    spread: list[int] = msgspec.field(default_factory=lambda: [0] * len(STEPS))
    marks: list[str] = []
    imports: list[str] = []
    deferred: list[str] = []


def examine(source: str, module: str, *, package: bool = False) -> Found:
    """Return what is in a source text. Raises SyntaxError.

    module: its dotted name, from which relative imports count; package: whether it is an `__init__`.

    >>> examine("from . import path\\ndef f(x: int): 'doc'", "os.sub").imports
    ['os.path']
    """
    tree = ast.parse(source)
    found = Found(lines=source.count("\n") + (not source.endswith("\n")))
    imports: dict[bool, set[str]] = {False: set(), True: set()}
    for node, outer, later in _walk(tree):
        if isinstance(node, _DEFINITIONS):
            if not node.name.startswith("_"):
                found.public += 1
                found.documented += ast.get_docstring(node, clean=False) is not None
            if isinstance(node, ast.ClassDef):
                found.classes += 1
            else:
                _count(node, outer, found)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports[later].update(_imported(node, module, package=package))
    found.imports = sorted(imports[False])
    found.deferred = sorted(imports[True] - imports[False])
    found.marks = list(_marks(source))
    return found


def _walk(tree: ast.AST) -> Iterator[tuple[ast.AST, str, bool]]:
    """Yield every node with the name around it, and whether it runs later than the module's import."""
    todo: list[tuple[ast.AST, str, bool]] = [(tree, "", False)]
    while todo:
        node, outer, later = todo.pop()
        yield node, outer, later
        if isinstance(node, _DEFINITIONS):
            outer = f"{outer}{node.name}."
            later = later or isinstance(node, _FUNCTIONS)
        elif isinstance(node, ast.If) and _NEVER_LOADED & {
            n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)
        }:
            later = True
        todo += [(child, outer, later) for child in ast.iter_child_nodes(node)]


def _count(node: ast.FunctionDef | ast.AsyncFunctionDef, outer: str, found: Found) -> None:
    """Add a function to what was found."""
    found.functions += 1
    found.cases += node.name.startswith("test")
    arguments = node.args
    slots = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    slots += [a for a in (arguments.vararg, arguments.kwarg) if a is not None]
    slots = [a for a in slots if a.arg not in ("self", "cls")]
    found.slots += len(slots) + 1
    found.annotated += sum(a.annotation is not None for a in slots) + (node.returns is not None)
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    made = Function(outer + node.name, node.lineno, lines, _complexity(node))
    found.spread[bisect_right(STEPS, made.complexity) - 1] += 1
    if found.longest is None or made.lines > found.longest.lines:
        found.longest = made
    if found.knottiest is None or made.complexity > found.knottiest.complexity:
        found.knottiest = made


def _complexity(function: ast.AST) -> int:
    """Return McCabe's number of a function without those defined inside it."""
    number = 1
    todo = list(ast.iter_child_nodes(function))
    while todo:
        node = todo.pop()
        if isinstance(node, _BRANCHES):
            number += 1 + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        elif isinstance(node, ast.BoolOp):
            number += len(node.values) - 1
        if not isinstance(node, _DEFINITIONS):
            todo += ast.iter_child_nodes(node)
    return number


def _imported(node: ast.Import | ast.ImportFrom, module: str, *, package: bool) -> Iterator[str]:
    """Yield the dotted names of an import: `from a import b` is `a.b`, whether that is a module or something in `a`."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        home = module.split(".") if package else module.split(".")[:-1]
        home = home[: len(home) - node.level + 1]
        base = ".".join([*home, base] if base else home)
    if base:
        yield from (base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names)


def _marks(source: str) -> Iterator[str]:
    """Yield `line: text` of every comment with a TODO, FIXME, XXX or HACK; strings that say so do not count."""
    if not _MARK.search(source):
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and _MARK.search(token.string):
            yield f"{token.start[0]}: {token.string.lstrip('# ')[:_COMMENT_MAX]}"


def examine_files(root: Path, files: dict[str, str]) -> dict[str, Found | None]:
    """Return what is in each file, None for one that cannot be read or parsed. files: module name to path."""
    results: dict[str, Found | None] = {}
    for module, file in files.items():
        try:
            with tokenize.open(root / file) as source:
                results[module] = examine(source.read(), module, package=file.endswith("__init__.py"))
        except (SyntaxError, ValueError, OSError, RecursionError):
            results[module] = None  # the report counts it: a library ships files that are broken on purpose
    return results


def main() -> None:
    """Answer one question on standard input."""
    asked: dict[str, Any] = msgspec.json.decode(sys.stdin.buffer.read())
    sys.stdout.buffer.write(msgspec.json.encode(examine_files(Path(asked["root"]), asked["files"])))


if __name__ == "__main__":
    main()
