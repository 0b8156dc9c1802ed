"""One table of all stores: what each promises, and how many promises of the conformance suite it was seen to keep.

    make stores        # or: python tests/stores.py

It runs every class of tests/storage that subclasses `BackendConformance`, so that a new backend is in the table by
having tests. The status is 1 where a promise was broken, or could not be looked at because a server is missing.
"""

import os
import re
import sys
from pathlib import Path

import pytest

from quire.storage.base import Capabilities
from quire.testing.conformance import BackendConformance
from quire.testing.servers.fixtures import REQUIRE

ROOT = Path(__file__).parent.parent
HEADINGS = ("store", "an acknowledged write survives", "processes", "backup", "promises kept")
SURVIVES = {"none": "nothing", "process": "the death of the process", "power": "the loss of power"}


class Row:
    """One class of tests. said: what its backend promises, None while it was not opened."""

    def __init__(self) -> None:
        self.said: Capabilities | None = None
        self.kept: set[str] = set()
        self.broken: set[str] = set()


class Table:
    """A plugin of pytest that runs conformance suites only, and counts."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.cls is not None and issubclass(item.cls, BackendConformance)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item):
        row, suite, keep = self.rows.setdefault(item.cls.__name__, Row()), item.instance, item.instance.kept

        def kept(backend):
            row.said = backend.capabilities
            return keep(backend)

        suite.kept = kept

    def pytest_runtest_logreport(self, report):
        _, suite, promise = report.nodeid.split("::")
        row = self.rows.setdefault(suite, Row())
        if not report.passed:
            row.broken.add(promise)
        elif report.when == "call":
            row.kept.add(promise)
        if report.when == "teardown":
            row.kept -= row.broken
            print(f"\r{suite}: {len(row.kept)}", end="\033[K", file=sys.stderr, flush=True)

    def lines(self):
        """Return the table in Markdown, and below it what was broken."""
        rows = [HEADINGS, tuple("---" for _ in HEADINGS), *(cells(suite, row) for suite, row in self.rows.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        yield from ("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows)
        yield from (f"broken: {suite} {name}" for suite, row in self.rows.items() for name in sorted(row.broken))


def cells(suite, row):
    name = re.sub(r"(?<!^)(?=[A-Z])", " ", suite.removeprefix("Test")).lower()
    kept = f"{len(row.kept)} of {len(row.kept | row.broken)}"
    if row.said is None:
        return name, "-", "-", "-", kept
    said = row.said
    return (
        name,
        SURVIVES[said.durability],
        "many" if said.multi_process else "one",
        "yes" if said.backup else "no",
        kept,
    )


def main():
    os.environ[REQUIRE] = "1"
    os.chdir(ROOT)
    table = Table()
    options = ["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/storage"]
    status = pytest.main(options, plugins=[table])
    print("\r\033[K", end="", file=sys.stderr)
    print(*table.lines(), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
