"""Folding: a state is what its changes leave behind.

Everything that reads an old version goes through `fold`; the engine's live states are the same fold, kept going.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quire.core import record as records
from quire.core.changes import Working
from quire.errors import ChangeError, CorruptRecord
from quire.model import Fork, Record


def fold(state: dict[str, Any], log: Iterable[Record]) -> dict[str, Any]:
    """Apply the changes of consecutive records to `state`, which is given up and may be altered.

    Raises CorruptRecord when a change does not fit: a sealed record always fits the state it was sealed on.
    Cost: O(total changes x depth); values are decoded once and not copied.
    """
    working = Working.owning(state)
    for record in log:
        for change in records.decode(record):
            if isinstance(change, Fork):
                continue  # the base of a forked log is given in `state`
            try:
                working.apply(change)
            except ChangeError as cause:
                raise CorruptRecord(
                    f"{record.stream} v{record.version}: {cause}; the versions before it can still be read",
                    at=f"{record.stream}@{record.version}",
                ) from cause
    return working.state
