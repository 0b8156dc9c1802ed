"""The report: what the analysts concluded, as Markdown with two charts that need nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from quire.demo.examine import STEPS

USED, SPREAD = "most-used.svg", "complexity.svg"
_WIDTH = 760
_INK, _SOFT, _BAR, _PAPER, _RULE = "#1f2933", "#616e7c", "#3568a8", "#ffffff", "#e4e7eb"
"""On paper of their own, so that they read on GitHub's light and dark pages alike."""


def markdown(summary: Mapping[str, Any], python: str, work: Mapping[str, Any]) -> str:
    """Return the report. summary: by analyst; work: steps, unreadable files, and steps by process."""
    parts = [
        f"# The standard library of Python {python}, surveyed by agents",
        _opening(summary, work),
        *_leaned_on(summary["imports"]),
        *_circles(summary["imports"]),
        *_largest(summary["sizes"]),
        *_cared_for(summary["care"]),
        *_tested(summary["tests"]),
        "---",
        _how(work),
    ]
    return "\n\n".join(parts) + "\n"


def _opening(summary: Mapping[str, Any], work: Mapping[str, Any]) -> str:
    sizes, care, tests = summary["sizes"], summary["care"], summary["tests"]
    rows = [
        ["modules", f"{sizes['modules']:,}"],
        ["lines", f"{sizes['lines']:,}"],
        ["functions, classes", f"{sizes['functions']:,}, {sizes['classes']:,}"],
        ["public names with a docstring", f"{care['documented_percent']} % of {care['public']:,}"],
        ["parameters and returns annotated", f"{care['annotated_percent']} % of {care['slots']:,}"],
        ["comments with TODO, FIXME, XXX, HACK", f"{care['marks']:,}"],
        ["test files, test functions", f"{tests['files']:,}, {tests['cases']:,}"],
        ["files that could not be read", f"{work['unreadable']:,} (tests ship some that are broken on purpose)"],
    ]
    return table(["what", "found"], rows)


def _leaned_on(imports: Mapping[str, Any]) -> list[str]:
    chain = imports["longest_chain"]
    return [
        "## What everything leans on",
        f"![Modules by how many others import them while they load]({USED})",
        (
            f"{imports['edges']:,} imports run when a module is loaded, {imports['deferred']:,} more wait inside functions. "
            "What comes along when one public module is loaded, following the former:"
        ),
        table(["module", "modules that come along"], [[code(m), n] for m, n in imports["heaviest"]]),
        f"The longest chain of modules, each importing the next, has {len(chain)}:",
        " → ".join(code(m) for m in chain),
    ]


def _circles(imports: Mapping[str, Any]) -> list[str]:
    circles = imports["circles"]
    if not circles:
        return ["## Circles", "No modules import each other in a circle while they load."]
    return [
        "## Circles",
        (
            f"{_many(len(circles), 'group')} of modules import each other in a circle while they load; "
            f"with the imports inside functions, {imports['circles_with_deferred']}."
        ),
        "\n".join(f"- {_few([code(m) for m in group], 6)}" for group in circles),
    ]


def _largest(sizes: Mapping[str, Any]) -> list[str]:
    tangled = sum(n for start, n in zip(STEPS, sizes["spread"], strict=True) if start > 10)
    share = 100 * tangled / max(1, sum(sizes["spread"]))
    return [
        "## What is large, what is tangled",
        f"![Functions by cyclomatic complexity]({SPREAD})",
        (
            "McCabe's number counts the ways through a function; he asked for 10 at most. "
            f"{tangled:,} functions, {share:.1f} %, have more. The most tangled:"
        ),
        table(
            ["function", "in", "line", "complexity"], [[code(f), code(m), at, n] for m, f, at, n in sizes["knottiest"]]
        ),
        "The longest functions, and the largest modules:",
        table(["function", "in", "line", "lines"], [[code(f), code(m), at, n] for m, f, at, n in sizes["longest"][:5]]),
        table(["module", "lines"], [[code(m), f"{n:,}"] for m, n in sizes["largest"][:5]]),
    ]


def _cared_for(care: Mapping[str, Any]) -> list[str]:
    said = [
        "## What waits for care",
        "Least documented, of the modules with 20 or more public names:",
        table(["module", "documented", "public names"], [[code(m), d, p] for m, d, p in care["least_documented"]]),
    ]
    if care["most_marks"]:
        rows = [[code(m), n, _cell(first)] for m, n, first in care["most_marks"]]
        said += ["Most comments to come back to:", table(["module", "comments", "the first (line: text)"], rows)]
    return said


def _tested(tests: Mapping[str, Any]) -> list[str]:
    if not tests["files"]:
        return ["## What the tests touch", "The library's own tests are not installed on this machine."]
    return [
        "## What the tests touch",
        (
            f"{tests['untouched']} of {tests['public_modules']} public modules are imported by no test file by their "
            "name (tests may still reach them through others). The largest of them:"
        ),
        table(["module", "lines"], [[code(m), f"{n:,}"] for m, n in tests["largest_untouched"]]),
    ]


def _how(work: Mapping[str, Any]) -> str:
    shares = work["by_process"]
    told = f"Before this report, {sum(shares)} of {work['steps']} steps were done, by {_many(len(shares), 'process', 'es')}"
    return f"{told} ({' + '.join(map(str, shares))}). Every figure above can be traced: `quire blame` says which agent found it."


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table; columns of numbers are aligned to the right."""
    numbers = [bool(rows) and all(str(row[i])[:1].isdigit() for row in rows) for i in range(len(head))]
    lines = [head, ["---:" if right else "---" for right in numbers], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def code(name: str) -> str:
    """Return a name as code."""
    return f"`{name}`"


def _cell(text: str) -> str:
    """Return foreign text for a table's cell: nothing in it may be taken for Markdown or HTML."""
    plain = text.replace("`", "'").replace("|", "\\|")
    return f"`{plain}`"


def _few(items: Sequence[str], most: int) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def _many(count: int, one: str, ending: str = "s") -> str:
    return f"{count} {one}{'' if count == 1 else ending}"


def charts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the SVG charts of the report by file name."""
    ends = [*(str(start - 1) for start in STEPS[1:]), ""]
    classes = [
        f"{a} to {b}" if b and int(b) > a else f"{a}" if b else f"{a} and more"
        for a, b in zip(STEPS, ends, strict=True)
    ]
    return {
        USED: bars("Modules by how many others import them while they load", summary["imports"]["most_used"]),
        SPREAD: bars("Functions by cyclomatic complexity", list(zip(classes, summary["sizes"]["spread"], strict=True))),
    }


def bars(title: str, rows: Sequence[Sequence[Any]]) -> str:
    """Return a horizontal bar chart of (name, number) rows as SVG."""
    left, step, top = 150, 24, 48
    height = top + step * len(rows) + 16
    most = max([number for _, number in rows] or [1]) or 1
    scale = (_WIDTH - left - 80) / most
    said = ", ".join(f"{name} {number}" for name, number in rows)
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" {font}>',
        f"<title>{escape(title)}</title><desc>{escape(said)}</desc>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="{_PAPER}" stroke="{_RULE}"/>',
        f'<text x="20" y="30" font-size="15" font-weight="600" fill="{_INK}">{escape(title)}</text>',
    ]
    for i, (name, number) in enumerate(rows):
        y = top + step * i
        width = max(1.0, number * scale)
        lines += [
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end" fill="{_INK}">{escape(str(name))}</text>',
            f'<rect x="{left}" y="{y + 2}" width="{width:.1f}" height="16" rx="3" fill="{_BAR}"/>',
            f'<text x="{left + width + 8:.1f}" y="{y + 14}" fill="{_SOFT}">{number:,}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
