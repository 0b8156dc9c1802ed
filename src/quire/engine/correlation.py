"""What a write was caused by: an id, and a name for whoever writes without giving one, that travel with a task.

1. The id becomes the last line of the version's message, as a commit of Git carries its trailers. So no record needs
   another field, the chain covers it, every reader of the log sees it, and whoever gives none pays nothing.
2. It is put there when a write is handed over, in the task of whoever writes: the committer runs in another.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from quire.engine.write import Write
from quire.errors import Invalid
from quire.model import Version

TRAILER = "Correlation-Id: "
"""How the last line of a message begins that holds an id."""
_NOBODY = "system"
"""The author of a write that names none."""
_LENGTH_MAX = 200


class Cause(NamedTuple):
    """Why the task that runs now writes. author: who is blamed where a write names nobody."""

    correlation_id: str | None = None
    author: str | None = None


CAUSE: ContextVar[Cause | None] = ContextVar("quire_cause", default=None)


@contextmanager
def correlation(correlation_id: str) -> Generator[None]:
    """Let every write inside carry an id, also those of tasks and threads started there: `with quire.correlation("r-7"):`.

    correlation_id: 1 to 200 printable characters, without blanks around it.
    It is the last line of the version's message; `correlation_of` reads it back, hooks and events show it. A message
    that ends in such a line already keeps its own. Raises Invalid.
    """
    before = CAUSE.get()
    token = CAUSE.set(Cause(_checked(correlation_id), None if before is None else before.author))
    try:
        yield
    finally:
        CAUSE.reset(token)


def correlation_of(version: Version) -> str:
    """Return the correlation id that a version was written with, otherwise its own id."""
    return split(version.message)[1] or version.id


def sign(writes: Sequence[Write], cause: Cause) -> None:
    """Put what caused them into writes that are about to be queued. Doing it again changes nothing."""
    name, given = cause.author, cause.correlation_id
    for write in writes:
        if name is not None and write.author == _NOBODY:
            write.author = name
        if given is not None and split(write.message)[1] is None:
            write.message = f"{write.message}\n\n{TRAILER}{given}" if write.message else TRAILER + given


def split(message: str) -> tuple[str, str | None]:
    r"""Return the words of a message and the correlation id at its end, None if there is none.

    >>> split("first notes\n\nCorrelation-Id: r-7")
    ('first notes', 'r-7')
    """
    words, _, last = message.rpartition("\n")
    if not last.startswith(TRAILER):
        return message, None
    return words.removesuffix("\n"), last[len(TRAILER) :]


def _checked(value: Any) -> str:
    if isinstance(value, str) and 1 <= len(value) <= _LENGTH_MAX and value.isprintable() and value == value.strip():
        return value
    raise Invalid(
        f"correlation id {value!r}: 1 to {_LENGTH_MAX} printable characters are needed, without blanks around them"
    )
