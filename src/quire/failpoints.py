"""Named points where a test can make the process die, as if by kill -9, between two steps of a commit.

`QUIRE_FAILPOINT="commit:before:3"` kills at the third pass of that point. Unset, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

_armed = os.environ.get("QUIRE_FAILPOINT")
_passes = 0


def hit(name: str) -> None:
    """Pass the point `name`; die here if it is armed and the count is reached."""
    if _armed is not None:
        _count(name)


def _count(name: str) -> None:
    global _passes  # noqa: PLW0603 - one counter for the process, as there is one death
    point, _, number = str(_armed).rpartition(":")
    if point == name:
        _passes += 1
        if _passes >= int(number):
            os.kill(os.getpid(), signal.SIGKILL)
