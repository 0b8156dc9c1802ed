"""What the demo's agents compute: metrics of one file, the import graph, the report."""

import subprocess
import sys
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.demo import graph, report
from quire.demo.conclude import ANALYSTS
from quire.demo.examine import STEPS, examine, examine_files

SOURCE = '''
"""A module."""
import os, sys
from . import sibling
from ..above import name as other
if TYPE_CHECKING:
    import typing
try:
    import fast
except ImportError:
    pass


def public(a, b: int, *rest, **more) -> str:
    "documented"
    import json  # TODO: at the top
    for x in rest:
        if a and b or x:
            return [y for y in more if y if x]
    while a:
        a = b if b else None


class Thing:
    def _private(self): ...

    async def test_it(self, x):
        def inner():
            if x: return "FIXME: not a comment"
        match x:
            case 1: pass
            case _: pass

if __name__ == "__main__":
    import doctest
'''


def test_a_file_is_measured():
    found = examine(SOURCE, "pkg.sub.mod")
    assert found.imports == ["fast", "os", "pkg.above.name", "pkg.sub.sibling", "sys"]
    assert found.deferred == ["doctest", "json", "typing"]
    assert (found.functions, found.classes, found.cases) == (4, 1, 1)
    assert (found.public, found.documented) == (4, 1)  # public, Thing, test_it, inner
    assert (found.slots, found.annotated) == (9, 2)  # a b rest more ->; ->; x ->; ->
    assert found.marks == ["16: TODO: at the top"]
    # for, if, and, or, comprehension with two ifs, while, conditional: 1 + 1 + 1 + 2 + 3 + 1 + 1
    assert (found.knottiest.name, found.knottiest.complexity) == ("public", 10)
    assert sum(found.spread) == 4 and found.spread[STEPS.index(6)] == 1
    assert examine("from . import x", "pkg", package=True).imports == ["pkg.x"]


def test_what_cannot_be_parsed_is_counted_not_dropped(tmp_path):
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "bad.py").write_text("x = (\n")
    (tmp_path / "odd.py").write_bytes(b"# coding: spam\n")
    files = {name: f"{name}.py" for name in ("good", "bad", "odd", "gone")}
    asked = msgspec.json.encode({"root": str(tmp_path), "files": files})
    done = subprocess.run([sys.executable, "-m", "quire.demo.examine"], input=asked, capture_output=True, check=True)
    answer = msgspec.json.decode(done.stdout)
    assert answer == msgspec.to_builtins(examine_files(tmp_path, files))
    assert answer["good"]["lines"] == 1 and [answer[n] for n in ("bad", "odd", "gone")] == [None] * 3


names = st.sampled_from("abcdefgh")
graphs = st.dictionaries(names, st.sets(names, max_size=4), max_size=8)


def reachable(found, start):
    seen, todo = set(), [start]
    while todo:
        for target in found.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


@given(graphs)
def test_modules_are_in_one_circle_when_each_leads_to_the_other(found):
    groups = graph.cycles(found)
    together = {(a, b) for group in groups for a in group for b in group if a != b}
    assert together == {(a, b) for a in found for b in reachable(found, a) if a != b and a in reachable(found, b)}


@given(graphs)
def test_the_longest_chain_is_as_long_as_any_path_through_the_groups(found):
    group = {m: tuple(g) for g in graph.cycles(found) for m in g}
    nodes = set(found) | {t for targets in found.values() for t in targets}
    below = {}
    for m in nodes:
        inside = group.get(m, (m,))
        below[inside] = {group.get(t, (t,)) for i in inside for t in found.get(i, ())} - {inside}

    def length(node):
        return 1 + max(map(length, below[node]), default=0)

    chain = graph.longest_chain(found)
    assert len(chain) == max(map(length, below), default=0)
    for above, under in zip(chain, chain[1:]):
        assert any(t in group.get(under, (under,)) for t in found[above])


@given(graphs, names)
def test_what_comes_along_is_what_can_be_reached(found, module):
    assert graph.reach(found, module) == len(reachable(found, module) - {module})


@pytest.fixture
def summary():
    found = {"a": examine(SOURCE, "a"), "b": examine("import a\n" + "def f(): pass\n" * 25, "b")}
    findings = {m: {**msgspec.to_builtins(f), "imports": ["a"], "deferred": []} for m, f in found.items()}
    tested = {"test.a": {"cases": 3, "imports": ["a"]}}
    return {name: conclude(findings, tested) for name, conclude in ANALYSTS.items()}


def test_the_report_says_what_was_found(summary):
    text = report.markdown(summary, "3.99", {"steps": 9, "unreadable": 0, "by_process": [3, 5]})
    assert "| `b` | 0 | 25 |" in text  # least documented
    assert "8 of 9 steps were done, by 2 processes (3 + 5)" in text
    assert "1 of 2 public modules are imported by no test" in text
    assert "not installed" in report.markdown(
        summary | {"tests": {"files": 0, "cases": 0}}, "3", {"steps": 1, "unreadable": 0, "by_process": [1]}
    )


def test_foreign_text_stays_text(summary):
    summary["care"]["most_marks"] = [["m", 1, "1: `x` | <script> ![](http://x)"]]
    text = report.markdown(summary, "3", {"steps": 1, "unreadable": 0, "by_process": [1]})
    assert "| `1: 'x' \\| <script> ![](http://x)` |" in text
    chart = ElementTree.fromstring(report.bars("<&>", [('"><script>', 3), ("b", 0)]))
    assert chart.find("{http://www.w3.org/2000/svg}script") is None
    assert all(ElementTree.fromstring(svg) is not None for svg in report.charts(summary).values())
