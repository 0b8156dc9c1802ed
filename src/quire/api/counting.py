"""Counting from 0: the central store and the event store number their versions as their documents do.

The log of a workflow counts from 1 and its errors say so. These faces are one lower, in what they take, what they give
and what they say; numbers cross here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypedDict

from quire.errors import HeadMoved, Invalid, VersionNotFound

Moment = int | datetime
"""A point in a history: a version counted from 0, or a time (the last version not after it)."""


class WritingFromZero(TypedDict, total=False):
    """What every writing method of these faces takes.

    author: who to blame, default "system".  message: why.  if_version: write only if this is the newest version, else
    HeadMoved.
    """

    author: str
    message: str
    if_version: int | None


def options_in_log(how: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same options for a write to the log. Raises Invalid for any other option."""
    known = WritingFromZero.__annotations__
    stray = next((option for option in how if option not in known), None)
    if stray is not None:
        raise Invalid(f"a write here takes no option {stray!r}; it takes {', '.join(known)}")
    if how.get("if_version") is None:
        return dict(how)
    return {**how, "if_version": in_log(how["if_version"])}


def in_log(version: object) -> int:
    """Return the log's number of a version counted from 0. Raises Invalid for what is no number."""
    if type(version) is not int:
        raise Invalid(f"{version!r} is not a version: give a whole number, or a datetime where a time is allowed")
    return version + 1


def in_utc(moment: datetime) -> datetime:
    """Return a moment with a zone; one without is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def revision(version: Moment) -> int | datetime:
    """Return how the log names a version counted from 0, or a time."""
    return in_utc(version) if isinstance(version, datetime) else in_log(version)


def missing(name: str, version: object, *, oldest: int, newest: int) -> VersionNotFound:
    """Return the error for a version that is not there, with the numbers that are."""
    error = VersionNotFound(name, f"{version}; versions here run from {oldest} to {newest}")
    error.version = version
    return error


@contextmanager
def from_zero(name: str) -> Generator[None]:
    """Tell of a head that moved in numbers counted from 0."""
    try:
        yield
    except HeadMoved as error:
        raise HeadMoved(name, expected=error.expected - 1, actual=error.actual - 1) from None
