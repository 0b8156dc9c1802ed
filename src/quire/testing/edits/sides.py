"""The two sides of a write: its own state, and the state that it met, with what it has read and where its places are now.

`mine` is a copy of the write's base, as the writer saw it; `now` is a copy of the version before its own. Paths are of
`mine`. A place is followed to `now` by the identity of containers and items: what is not there any more is gone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from quire.testing.edits.reads import Kind, Path, Place, Reads, alike, at_place, place_of
from quire.testing.edits.tree import ABSENT, Arr, Obj, clone, find, plain

YIELDING = ("theirs", "queue")
"""Policies that keep what is there."""
DECIDING = (*YIELDING, "both", "smaller")
"""Policies by which not simply the later write stands."""


class Refused(Exception):
    """The write has to be refused. why: stale, gone, met (a conflict under a policy that rejects) or bounds."""

    def __init__(self, why: str, path: Path, detail: str = "") -> None:
        super().__init__(f"{why}: {path} {detail}")
        self.why = why


class Missing(Exception):
    """The draft itself raises: what was asked for is not in the writer's state."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a write was made with, and how it is looked at.

    policy: None refuses what is stale; "merge" is for the changes of a fork, which have read nothing, and of two at one
    place either may stand.  knows_all: what the write replaces was read.  differs: it is a whole state, and is what
    differs from its base.  strict: whatever was read has to be there still.
    after: the plain state that the log has after it, None for one that was refused: of what the rules leave open, it tells
    what became of it.  lenient: what they leave open is a reason to refuse.  touched, removed: where others wrote since the
    base, and where they removed something.
    """

    policy: str | None = None
    knows_all: bool = False
    differs: bool = False
    strict: bool = False
    after: Any = None
    lenient: bool = False
    touched: Collection[Path] = ()
    removed: Collection[Path] = ()


class Sides:
    """A write's own state and the one that it met. base, head: trees of one fold, not altered."""

    def __init__(self, base: Obj, head: Obj, terms: Terms) -> None:
        self.base, self.head = base, head
        self.mine: Obj = clone(base)
        self.now: Obj = clone(head)
        self.terms = terms
        self.zeros: list[Path] = []
        """Where the writer put a number at 0, and nothing behind it yet."""
        self.closed: list[Place] = []
        """What a policy left out: what the writer does there later is left out as well."""
        self.reads = Reads(lenient=terms.lenient)
        if terms.knows_all:
            self.reads.note("value", ())

    # reading

    def value(self, path: Path) -> Any:
        """Return what the writer's own state has at a path."""
        return plain(find(self.mine, path))

    def read(self, path: Path, kind: Kind = "value") -> None:
        """Note that a path was read."""
        if self.terms.policy == "merge":
            return
        place = place_of(self.mine, path)
        self.reads.note(kind, place)
        if self.terms.strict and not self.is_closed(place):
            before, there = at_place(self.mine, place), at_place(self.now, place)
            before = ABSENT if path in self.zeros else before
            ends = at_place(self.base, place), at_place(self.head, place)
            if not alike(kind, before, there) or (self.terms.lenient and not alike(kind, *ends)):
                raise Refused("stale", path, f"was read as {plain(before)!r}, is {plain(there)!r}")

    def reach(self, path: Path) -> Any:
        """Return the writer's own container at a path; raise Missing, having read what is not there."""
        node: Any = self.mine
        for depth, token in enumerate(path):
            if isinstance(token, int) or token in node:
                node = node[token]
            else:
                self.read(path[: depth + 1])
                raise Missing("KeyError")
        return node

    def index(self, path: Path, at: int) -> int:
        """Return the place of an index that may count from the end; raise Missing, having read the length."""
        self.locate(path)
        length = len(self.reach(path))
        place = at + length if at < 0 else at
        if not 0 <= place < length:
            self.read(path, "keys")
            raise Missing("IndexError")
        return place

    def locate(self, path: Path, kind: Kind = "value") -> None:
        """Note that a serializable write relies on where the items of a list are, or which keys there are."""
        if self.terms.strict:
            self.read(path, kind)

    # where a place is in what the write met

    def there(self, path: Path) -> tuple[Any, Any]:
        """Return the container of a path in `now`, and the key there, None for an item that is gone. Raises Refused."""
        mine, now = cast("Any", self.mine), cast("Any", self.now)
        for depth, token in enumerate(path[:-1]):
            mine, now = _inside(mine, now, token)
            is_last_list = (
                isinstance(mine, Arr) and depth == len(path) - 2
            )  # if it is another, none of its slots is ours
            it_may_differ = is_last_list and not self.terms.lenient
            if type(now) is not type(mine) or (now.id != mine.id and not it_may_differ):
                raise Refused("gone", path[: depth + 1])
        key = path[-1]
        if isinstance(mine, Arr) and isinstance(key, int):
            slot = mine.ids[key]
            return now, now.ids.index(slot) if slot in now.ids else None
        return now, key

    def found(self, path: Path) -> Any:
        """Return what `now` has at a path."""
        now, key = self.there(path)
        return ABSENT if key is None else now[key] if isinstance(now, Arr) else now.get(key, ABSENT)

    def at_last(self, path: Path) -> Any:
        """Return what the log has at a path after the write, ABSENT where that is not known."""
        return ABSENT if self.terms.after is None else find(self.terms.after, path)

    def is_closed(self, place: Place) -> bool:
        """True if a place lies in what a policy left out."""
        return any(place[: len(closed)] == closed for closed in self.closed)

    def was_touched(self, path: Path) -> bool:
        """True if others wrote at a path since the base, as far as a path tells: not through a list."""
        return _is_among(path, self.terms.touched)

    def was_removed(self, path: Path) -> bool:
        """True if others removed something there, likewise."""
        return _is_among(path, self.terms.removed)


def _inside(mine: Any, now: Any, token: str | int) -> tuple[Any, Any]:
    """Return what is at a key or in a slot on both sides."""
    if isinstance(token, int):
        slot = mine.ids[token]
        return mine[token], now[now.ids.index(slot)] if slot in now.ids else ABSENT
    return mine[token], now.get(token, ABSENT)


def _is_among(path: Path, others: Collection[Path]) -> bool:
    if any(isinstance(token, int) for token in path):
        return False
    return any(path[: len(other)] == other or other[: len(path)] == path for other in others)
