"""Where watchers start: after the head that this process has when `watch` is called.

A watcher is called now and iterated later, so its start is found in two steps. If the stream is in memory, the start is
its head. Otherwise it is the head that the next load of the stream finds, taken as that load ends.

Nothing that this process writes after the call is missed:
1. A head in memory is durable, and what is written later gets a higher number. A stale head may be too high, where a
   backup was restored under us: then the head that is loaded next counts, if it is lower.
2. Without a head in memory, a later write needs a load of its stream too, and is numbered after that. What a commit is
   being prepared on stays in memory, so this holds for writes of one commit as well.
It does not matter whether a load was on its way at the call, which caller began it, or who is resumed first when it ends.
A load that fails settles nothing, and leaves the start to the next one.
"""

from __future__ import annotations

from weakref import ref

_WAITING_MIN = 1000
"""Starts that wait for a load, before those of watchers that are gone are sought and forgotten."""


class Start:
    """Where one watcher starts.

    version: the number of the head; None until the stream is loaded, where it was not in memory.
    """

    __slots__ = ("__weakref__", "_most", "version")

    def __init__(self, version: int | None = None, *, most: int | None = None) -> None:
        """most: the start is not after this version, whatever head is loaded."""
        self.version = version
        self._most = most

    def settle(self, loaded: int) -> None:
        """Take the head that was loaded."""
        self.version = loaded if self._most is None else min(loaded, self._most)


class Starts:
    """The starts that wait for a load of their stream. A watcher that is gone is not kept."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[ref[Start]]] = {}
        self._count = 0
        self._count_max = _WAITING_MIN

    def __len__(self) -> int:
        return self._count

    def add(self, stream: str, start: Start) -> None:
        """Have the next load of a stream settle a start."""
        if self._count >= self._count_max:
            self._forget()
        self._waiting.setdefault(stream, []).append(ref(start))
        self._count += 1

    def settle(self, stream: str, loaded: int) -> None:
        """Settle the starts in a stream that was just loaded."""
        waiting = self._waiting.pop(stream, ())
        self._count -= len(waiting)
        for each in waiting:
            start = each()
            if start is not None:
                start.settle(loaded)

    def _forget(self) -> None:
        """Drop the starts of watchers that are gone. Cost: little for each that was added since."""
        left = {stream: [each for each in waiting if each() is not None] for stream, waiting in self._waiting.items()}
        self._waiting = {stream: waiting for stream, waiting in left.items() if waiting}
        self._count = sum(map(len, self._waiting.values()))
        self._count_max = max(_WAITING_MIN, 2 * self._count)
