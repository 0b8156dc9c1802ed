"""The promises of `quire.storage.base`, as tests for any backend.

    class TestMine(BackendConformance):
        async def open(self, namespace: str = "default") -> Backend:
            return await open_mine(self.place / "store", namespace=namespace, now_ms=self.now_ms)

Each test has an empty folder of its own in `self.place`, and several handles may be open at once. A backend
with a clock of its own overrides `pass_time`, one that can be backed up `open_copy`. It needs pytest only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from quire.testing._conformance_base import Suite, bare, chain, entry
from quire.testing._conformance_beside import BlobPromises, CellPromises, KeyframePromises
from quire.testing._conformance_care import CarePromises
from quire.testing._conformance_commit import CommitPromises
from quire.testing._conformance_log import LogPromises, RemovalPromises

__all__ = ["BackendConformance", "Suite", "bare", "broken_promises", "chain", "entry", "promises"]


class BackendConformance(
    CommitPromises,
    LogPromises,
    RemovalPromises,
    KeyframePromises,
    BlobPromises,
    CellPromises,
    CarePromises,
):
    """Every promise. Subclass it and give `open`."""


def promises(suite: type[Suite] = BackendConformance) -> list[str]:
    """Return the names of the tests, sorted."""
    return sorted(name for name in dir(suite) if name.startswith("test_"))


def broken_promises(suite: type[Suite], names: Sequence[str] | None = None) -> list[str]:
    """Run a suite without pytest's collection and return which promises its backend broke.

    suite: as for pytest.  names: the promises to look at, all by default.
    For checking the checker: a backend that is known to be wrong must not get an empty list.
    """
    broken: list[str] = []
    for name in promises(suite) if names is None else names:
        with tempfile.TemporaryDirectory() as folder:
            subject = suite()
            subject.begin(Path(folder))
            try:
                getattr(subject, name)()
            except (Exception, pytest.fail.Exception):  # noqa: BLE001 - whatever it raises, it was not kept
                broken.append(name)
    return broken
