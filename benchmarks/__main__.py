"""Run the rows, print the table, keep the results, draw the plot."""

import argparse
import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.rows import ROWS

HERE = Path(__file__).parent


def main():
    arguments = argparse.ArgumentParser(prog="python -m benchmarks")
    arguments.add_argument("--quick", action="store_true", help="fewer repeats")
    arguments.add_argument("--only", help="one group: " + ", ".join(r.__name__ for r in ROWS))
    chosen = arguments.parse_args()
    results = []
    for group in ROWS:
        if chosen.only in (None, group.__name__):
            for what, measured, (sign, bar), unit, note in group(chosen.quick):
                met = measured >= bar if sign == ">=" else measured <= bar
                results.append(
                    {
                        "what": what,
                        "measured": measured,
                        "sign": sign,
                        "bar": bar,
                        "unit": unit,
                        "met": met,
                        "note": note,
                    }
                )
                print(f"{what:<58} {measured:>8.2f} {unit:<2} {sign} {bar:<6g} {'' if met else 'MISSED'}")
                if note:
                    print(f"    {note}")
    if chosen.only is None:
        keep(results)


def keep(results):
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.system(),
        "release": platform.release(),
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    name = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{commit or 'unknown'}.json"
    (folder / name).write_text(json.dumps({"machine": machine, "commit": commit, "rows": results}, indent=1) + "\n")
    draw(results, HERE.parent / "docs" / "benchmarks.png")


def draw(results, path):
    """Draw how far each row is from its bar: to the right of 1 is better than it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(reversed(results))
    better = [r["measured"] / r["bar"] if r["sign"] == ">=" else r["bar"] / max(r["measured"], 1e-9) for r in rows]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.2))
    axes.barh([r["what"] for r in rows], better, color=["#2a7f62" if r["met"] else "#c0504d" for r in rows])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times better than its bar (log scale); left of 1 is missed")
    for place, (value, row) in enumerate(zip(better, rows, strict=True)):
        axes.text(max(value, 1), place, f" {row['measured']:.3g} {row['unit']}", va="center", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
