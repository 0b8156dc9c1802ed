"""Run the rows, print the table, keep the results, draw the plot."""

import argparse
import datetime
import json
import subprocess
from pathlib import Path

from benchmarks.answers import blaming, keystrokes, merging
from benchmarks.archiving import archiving
from benchmarks.faces import scripts, sharing
from benchmarks.growing import growing, peering
from benchmarks.measure import machine
from benchmarks.moving import moving
from benchmarks.scoped import reading, scoped
from benchmarks.states import large, living, starting
from benchmarks.targets import targets
from benchmarks.writing import steps, writing

HERE = Path(__file__).parent
GROUPS = (
    writing,
    steps,
    growing,
    peering,
    large,
    living,
    starting,
    targets,
    merging,
    blaming,
    keystrokes,
    archiving,
    scoped,
    reading,
    sharing,
    scripts,
    moving,
)


def main():
    names = ", ".join(g.__name__ for g in GROUPS)
    arguments = argparse.ArgumentParser(prog="python -m benchmarks")
    arguments.add_argument("--quick", action="store_true", help="fewer repeats")
    arguments.add_argument("--only", help=f"one group: {names}", choices=[g.__name__ for g in GROUPS], metavar="GROUP")
    arguments.add_argument("--list", action="store_true", help="say which groups there are")
    chosen = arguments.parse_args()
    if chosen.list:
        for group in GROUPS:
            print(f"{group.__name__:<10} {group.__doc__}")
        return
    results, here = [], machine()
    print(", ".join(f"{k} {v}" for k, v in here.items()))
    for group in GROUPS:
        if chosen.only in (None, group.__name__):
            print(f"\n{group.__doc__}")
            for row in group(chosen.quick):
                results.append({"group": group.__name__, **row._asdict(), "met": row.met})
                print(f"  {row.what:<58} {row.measured:>9,.2f} {row.unit:<2}", flush=True)
                bar = f"bar {row.sign} {row.bar:g}: {'met' if row.met else 'MISSED'}"
                print(f"      {bar}{'; ' if row.note else ''}{row.note}")
    if chosen.only is None:
        keep(results, here, quick=chosen.quick)


def keep(results, here, *, quick):
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    name = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{commit or 'unknown'}{'-quick' if quick else ''}.json"
    record = {"machine": here, "commit": commit, "rows": results}
    (folder / name).write_text(json.dumps(record, indent=1) + "\n")
    if not quick:
        draw(results, HERE.parent / "docs" / "benchmarks.png")


def draw(results, path):
    """Draw how far each row is from its bar: to the right of 1 is better than it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(reversed(results))
    better = [r["measured"] / r["bar"] if r["sign"] == ">=" else r["bar"] / max(r["measured"], 1e-9) for r in rows]
    figure, axes = plt.subplots(figsize=(10, 0.27 * len(rows) + 1.2))
    # blue and orange differ for every kind of colour vision
    axes.barh(
        range(len(rows)), [b - 1 for b in better], left=1, color=["#2c6fbb" if r["met"] else "#e07b39" for r in rows]
    )
    axes.set_yticks(range(len(rows)), [r["what"] for r in rows], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times better than its bar (log scale); orange, left of 1: missed")
    for place, (value, row) in enumerate(zip(better, rows, strict=True)):
        axes.text(max(value, 1), place, f" {row['measured']:.3g} {row['unit']}", va="center", fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
