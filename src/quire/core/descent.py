"""Descent: which versions of one log its newest comes from, where restores went back and deletions began anew.

A version continues the one before it. One that a restore made continues the version that was restored, so what lies
between the two is left out; one that ended the workflow continues nothing. After `restore(2)` made version 5:

    1 - 2 - 3 - 4
         \\
          5 - 6        6 descends from 5, 2 and 1, not from 3 and 4

Only the versions that do not continue the one before them are remembered. To tell whether version v is among those that
the newest comes from, the records after v have to be known, and none before it: a walk from the newest down meets v, or
goes back behind it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from quire.model import DELETED, Record, restored_in

_TURNS_MAX = 100_000
"""Restores and deletions remembered of one log, 16 bytes each; where there are more, the older half is read again."""


class Descent:
    """What the newest version of a log descends from, as far as its records were looked at.

    stream: whose log.  head: its newest version.  known: the records after this version were looked at.
    """

    __slots__ = ("_back", "_turns", "head", "known", "stream")

    def __init__(self, stream: str, head: int) -> None:
        self.stream = stream
        self.head = head
        self.known = head
        self._turns = array("q")
        """Versions that do not continue the one before them, ascending."""
        self._back = array("q")
        """For each of them the version that it continues, 0 for none."""

    def follow(self, records: Sequence[Record]) -> None:
        """Take in the records after the head. Cost: no body is decoded."""
        for turn, back in _turns(records):
            self._turns.append(turn)
            self._back.append(back)
        self.head = records[-1].version
        if len(self._turns) > _TURNS_MAX:
            half = len(self._turns) // 2
            self.known = self._turns[half - 1]
            del self._turns[:half], self._back[:half]

    def learn(self, records: Iterable[Record], after: int, upto: int) -> None:
        """Take in the records after `after`, up to `upto`. Ignored where others were learned meanwhile."""
        if upto == self.known:
            found = list(_turns(records))
            self._turns = array("q", [turn for turn, _ in found]) + self._turns
            self._back = array("q", [back for _, back in found]) + self._back
            self.known = after

    def includes(self, version: int) -> bool | None:
        """Return whether the head is a version or descends from it; None where records before `known` decide that.

        Cost: O(restores on the way x log of all that are known).
        """
        at = self.head
        while at > version:
            last = bisect_right(self._turns, at) - 1
            if last < 0:
                return True if self.known <= version else None
            turn = self._turns[last]
            if turn <= version:
                return True
            at = min(self._back[last], turn - 1)  # the second only in a damaged log: the walk has to end
        return at == version

    def straight(self, after: int) -> bool:
        """Return whether every version after `after` is known to continue the one before it."""
        return self.known <= after and (not self._turns or self._turns[-1] <= after)


def _turns(records: Iterable[Record]) -> Iterable[tuple[int, int]]:
    """Yield the versions that do not continue the one before them, and which they continue."""
    for entry in records:
        back = 0 if entry.kind == DELETED else restored_in(entry.body)
        if back is not None:
            yield entry.version, back
