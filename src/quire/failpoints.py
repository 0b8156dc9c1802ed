"""Named points where a test can make the process die, as if by kill -9, between two steps of a commit.

`QUIRE_FAILPOINT="commit:before:3"` kills at the third pass of that point; `arm` does the same from within.
Unarmed, a point costs one comparison.
"""

from __future__ import annotations

import os
import signal

_armed: tuple[str, int] | None = None
_passes = 0


def hit(name: str) -> None:
    """Pass the point `name`; the process dies here if it is armed and the count is reached."""
    if _armed is not None:
        _pass(name, *_armed)


def arm(spec: str | None) -> None:
    """Choose where to die, and count from nothing.

    spec: `point:n`, the n-th pass (1, 2, ...) of that point; None disarms.
    Raises ValueError for anything else: a test that armed nothing would prove nothing.
    """
    global _armed, _passes  # noqa: PLW0603 - one counter for the process, as there is one death
    _passes = 0
    _armed = None
    if spec is not None:
        point, _, number = spec.rpartition(":")
        if not point or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"failpoint {spec!r}: write point:n, such as commit:before:1")
        _armed = (point, int(number))


def _pass(name: str, point: str, number: int) -> None:
    global _passes  # noqa: PLW0603
    if name == point:
        _passes += 1
        if _passes >= number:
            os.kill(os.getpid(), signal.SIGKILL)


arm(os.environ.get("QUIRE_FAILPOINT") or None)
