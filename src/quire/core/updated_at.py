"""`updatedAt`: the number by which a whole state names the version of its workflow that it was made from.

    updatedAt(v) = time(v) + (2 nth(v) + given) / 2048          time: of the record, UTC milliseconds

    version    1       2         3          4      times 70, 70, 70, 71; a caller is shown
    updatedAt  70      70 1/1024 70 2/1024  71

1. Times never go back within a log, whatever the clocks of its writers say: `next_time` decides them. `nth` counts the
   versions right in front of one that have the same time. So the number grows with every version, and it is found from
   a version's record and those of the same millisecond, and turned back into the version by a search.
2. At most PARTS versions in a row have one time; the next one gets the millisecond after. Only a log that an earlier
   Quire wrote may have more of them, and go back: then a number may stand for several versions, or none.
3. given: 1 for a state that is not the version itself but what a caller gave when the version also took in what others
   had written. It lies between the version and the next.
4. A double holds the number exactly until 2^42 ms, the year 2109. (With 4096 parts it would be 2039.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

PARTS = 1024
"""Versions that can be told apart in one millisecond."""
_STEPS = 2 * PARTS


class UpdatedAt(NamedTuple):
    """What the number says. nth: which of the versions of that millisecond, from 0.  given: see rule 3."""

    time_ms: int
    nth: int = 0
    given: bool = False

    @property
    def number(self) -> int | float:
        """As a state holds it: a whole number for the first version of a millisecond.

        >>> UpdatedAt(1_700_000_000_000, 512).number
        1700000000000.5
        """
        steps = 2 * self.nth + self.given
        return self.time_ms + steps / _STEPS if steps else self.time_ms


def read(value: Any) -> UpdatedAt | None:
    """Return what a state's `updatedAt` says; None for anything that `number` never gives.

    >>> read(1_700_000_000_000.5), read("2026-01-31")
    (UpdatedAt(time_ms=1700000000000, nth=512, given=False), None)
    """
    if type(value) is int:
        return UpdatedAt(value) if value >= 0 else None
    if type(value) is not float or not value >= 0:
        return None
    steps = (value % 1) * _STEPS
    if not steps.is_integer():  # nor is it for infinity, whose remainder is no number
        return None
    nth, given = divmod(int(steps), 2)
    return UpdatedAt(int(value // 1), nth, bool(given))


class Tail(NamedTuple):
    """What is known of the newest version's time. nth: None where the versions in front of it were not read."""

    time_ms: int = -1
    nth: int | None = 0


EMPTY = Tail()
"""Of a log without a version."""


def following(tail: Tail, time_ms: int) -> Tail:
    """Return the tail once a version with this time is written. Beyond PARTS of them all are called the last."""
    if time_ms != tail.time_ms:
        return Tail(time_ms)
    return Tail(time_ms, None if tail.nth is None else min(tail.nth + 1, PARTS - 1))


def tail_of(tail: Tail, times_ms: Iterable[int]) -> Tail:
    """Return the tail behind versions with these times, oldest first."""
    for time_ms in times_ms:
        tail = following(tail, time_ms)
    return tail


def next_time(now_ms: int, tail: Tail) -> int:
    """Return the time of the version that comes next: now, unless the newest is not older (rules 1 and 2).

    >>> next_time(71, Tail(70)), next_time(69, Tail(70)), next_time(69, Tail(70, PARTS - 1))
    (71, 70, 71)
    """
    if now_ms > tail.time_ms:
        return now_ms
    return tail.time_ms + (tail.nth is None or tail.nth + 1 >= PARTS)
