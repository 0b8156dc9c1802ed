"""What the difference between two lists costs: `python -m benchmarks.saving`.

A state with a list is saved whole; the ratio is to encoding both lists as JSON, which no comparison by content can do without.
Objects have an `id`, or no field that names them. Processor time, the median of some turns.
"""

import copy
import time

import msgspec

from benchmarks.measure import timed
from quire.core.diff import diff

TURNS = {10: 200, 1_000: 15, 100_000: 3}


def lists(count, named):
    """Return by name an old list and a new one."""
    old = [{"id" if named else "a": f"job-{i}", "status": "open", "n": i} for i in range(count)]
    another = {"id" if named else "a": "new", "status": "open", "n": -1}
    ends, all_of = copy.deepcopy(old), copy.deepcopy(old)
    ends[0]["status"] = ends[-1]["status"] = "done"
    for item in all_of:
        item["status"] = "done"
    return {
        "the first and the last edited": (old, ends),
        "the first taken, one added": (old, [*old[1:], another]),
        "every one edited": (old, all_of),
        "every one edited, the first taken": (old, all_of[1:]),
    }


def main():
    """Print a table."""
    print("| list of | changed | with ids | without | times encoding both |\n| --- | --- | --- | --- | --- |")
    for count, turns in TURNS.items():
        named, nameless = lists(count, True), lists(count, False)
        for name, (old, new) in named.items():
            limit = timed(lambda: (msgspec.json.encode(old), msgspec.json.encode(new)), turns, time.process_time)  # noqa: B023
            found = []
            for before, after in (named[name], nameless[name]):
                found.append(timed(lambda: diff({"l": before}, {"l": after}), turns, time.process_time))  # noqa: B023
            a, b = found
            print(
                f"| {count:,} | {name} | {a * 1e3:,.2f} ms | {b * 1e3:,.2f} ms | {a / limit:,.0f}, {b / limit:,.0f} |"
            )


if __name__ == "__main__":
    main()
