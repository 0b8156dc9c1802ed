"""What four analysts conclude from the findings of all readers: each a function from findings to a small summary.

findings: {module: as `examine.Found`, imports resolved to modules}; tested: {test file: {cases, imports}}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from quire.demo import graph

Findings = Mapping[str, Mapping[str, Any]]
_MOST = 10
_SHARED_MIN = 20
"""Modules with fewer public names say little about a habit of documenting."""


def imports(findings: Findings, _tested: Findings) -> dict[str, Any]:
    """Say who is leaned on, which modules import each other in circles, and how long chains get."""
    first = {module: f["imports"] for module, f in findings.items()}
    whole = {module: [*f["imports"], *f["deferred"]] for module, f in findings.items()}
    circles = graph.cycles(first)
    weights = Counter({module: graph.reach(first, module) for module in first if module.isalnum()})
    return {
        "edges": sum(map(len, first.values())),
        "deferred": sum(len(f["deferred"]) for f in findings.values()),
        "most_used": _ranked(graph.users(first), 15),
        "circles": circles[:_MOST],
        "circles_with_deferred": len(graph.cycles(whole)),
        "longest_chain": graph.longest_chain(first),
        "heaviest": _ranked(weights, 8),
    }


def sizes(findings: Findings, _tested: Findings) -> dict[str, Any]:
    """Say how much there is, and where it is largest and most tangled."""
    lines = Counter({module: f["lines"] for module, f in findings.items()})
    spread = [sum(column) for column in zip(*(f["spread"] for f in findings.values()), strict=True)]
    return {
        "modules": len(findings),
        "lines": sum(lines.values()),
        "functions": sum(f["functions"] for f in findings.values()),
        "classes": sum(f["classes"] for f in findings.values()),
        "largest": _ranked(lines, _MOST),
        "longest": _top(findings, "longest", "lines"),
        "knottiest": _top(findings, "knottiest", "complexity"),
        "spread": spread,
    }


def _top(findings: Findings, which: str, by: str) -> list[list[Any]]:
    """Return [module, function, line, number] of the functions with the greatest numbers."""
    found = [(f[which][by], module, f[which]) for module, f in findings.items() if f[which] is not None]
    found.sort(key=lambda row: (-row[0], row[1]))
    return [[module, function["name"], function["line"], number] for number, module, function in found[:_MOST]]


def care(findings: Findings, _tested: Findings) -> dict[str, Any]:
    """Say how much is documented and annotated, and what was left to come back to."""
    public = sum(f["public"] for f in findings.values())
    documented = sum(f["documented"] for f in findings.values())
    slots = sum(f["slots"] for f in findings.values())
    annotated = sum(f["annotated"] for f in findings.values())
    shares = {m: f["documented"] / f["public"] for m, f in findings.items() if f["public"] >= _SHARED_MIN}
    marks = Counter({module: len(f["marks"]) for module, f in findings.items() if f["marks"]})
    least = sorted(shares, key=lambda m: (shares[m], -findings[m]["public"], m))[:_MOST]
    return {
        "public": public,
        "documented_percent": _percent(documented, public),
        "least_documented": [[m, findings[m]["documented"], findings[m]["public"]] for m in least],
        "slots": slots,
        "annotated_percent": _percent(annotated, slots),
        "marks": sum(marks.values()),
        "most_marks": [[m, n, findings[m]["marks"][0]] for m, n in _ranked(marks, 5)],
    }


def tests(findings: Findings, tested: Findings) -> dict[str, Any]:
    """Say which modules the library's own tests import, and which they do not."""
    users = Counter(target for f in tested.values() for target in set(f["imports"]) if target in findings)
    public = [m for m in findings if not any(part.startswith("_") for part in m.split("."))]
    alone = sorted((m for m in public if not users[m]), key=lambda m: (-findings[m]["lines"], m))
    return {
        "files": len(tested),
        "cases": sum(f["cases"] for f in tested.values()),
        "most_tested": _ranked(users, _MOST),
        "public_modules": len(public),
        "untouched": len(alone),
        "largest_untouched": [[m, findings[m]["lines"]] for m in alone[:_MOST]],
    }


ANALYSTS = {"imports": imports, "sizes": sizes, "care": care, "tests": tests}


def _ranked(counts: Counter[str], most: int) -> list[list[Any]]:
    """Return [name, count] of the most, equal counts by name."""
    return [[name, count] for name, count in sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:most]]


def _percent(part: int, whole: int) -> float:
    return round(100 * part / max(1, whole), 1)
