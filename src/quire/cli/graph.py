"""`log --graph`: a lane for each workflow, forks and merges as lines between them.

    *   w@5  merged f@3
    |\
    | * f@3  second draft
    * | w@4  a note
    |/
    * w@3  ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quire.cli.lines import SCHEMA, columns, fit, out, out_json, plain, printable, style

if TYPE_CHECKING:
    from quire.engine.lineage import Node

_LANES_MAX = 12
"""More workflows than that share the last lane."""


def show_graph(workflow_id: str, nodes: list[Node], *, as_json: bool) -> None:
    """Print versions, newest first, with what each was made from."""
    if as_json:
        entries = [{**plain(n.version), "parents": [str(p) for p in n.parents]} for n in nodes]
        out_json({"schema": SCHEMA, "versions": entries})
        return
    lanes: dict[str, int] = {workflow_id: 0}
    left = {n.version.workflow_id: 0 for n in nodes}
    for node in nodes:
        left[node.version.workflow_id] += 1
    active: set[str] = set()
    for node in nodes:
        v = node.version
        own = v.workflow_id
        active.add(own)
        lanes.setdefault(own, min(len(lanes), _LANES_MAX - 1))
        others = [p for p in node.parents if p.workflow_id != own]
        said = (v.message or v.kind).splitlines()[0] if v.message or v.kind else ""
        text = f"{v.workflow_id}@{v.number}  {v.author}: {said}"
        drawn = _row(lanes, active, own)
        line = f"{drawn} {text}"
        width = columns()
        cut = fit(line, width) if width else printable(line)
        out(style(cut[: len(drawn)], fg="red") + cut[len(drawn) :])
        left[own] -= 1
        if left[own] == 0:
            active.discard(own)
        for parent in others:
            lane = lanes.setdefault(parent.workflow_id, min(len(lanes), _LANES_MAX - 1))
            out(style(_joint(lanes, active, lanes[own], lane), fg="red"))
            if left.get(parent.workflow_id):
                active.add(parent.workflow_id)


def _row(lanes: dict[str, int], active: set[str], own: str) -> str:
    marks = [" "] * (max((lanes[w] for w in active), default=0) + 1)
    for name in active:
        marks[lanes[name]] = "|"
    marks[lanes[own]] = "*"
    return " ".join(marks)


def _joint(lanes: dict[str, int], active: set[str], own: int, other: int) -> str:
    """Draw the line from a version to its parent in another lane."""
    low, high = sorted((own, other))
    cells = [" "] * (2 * max([high, *(lanes[w] for w in active)]) + 1)
    for name in active:
        cells[2 * lanes[name]] = "|"
    for column in range(2 * low + 1, 2 * high):
        cells[column] = "-" if cells[column] == " " else cells[column]
    cells[2 * high - 1] = "\\" if other > own else "/"
    cells[2 * low] = "|"
    return "".join(cells).rstrip()
