"""What the error says of a write that is refused: where, what was read, what is there now, who wrote it, what to do.

The reasons: "stale", what the write replaces was read and has changed; "read", a serializable write read something that has
changed; "gone", the place is not there any more; "written", others wrote there and the policy is "reject"; "merge", both
sides of a merge wrote there and the policy is "reject"; "parts", two parts of one transaction contradict each other;
"moved", a conflict is decided at a place that others wrote since; "unseen", a write that waited would overwrite what others
wrote while it did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import UNSET, structs

from quire.core.path import format as pointer
from quire.core.values import copied
from quire.errors import MergeConflict

if TYPE_CHECKING:
    from quire.core.resolve import Met

Reason = Literal["stale", "read", "gone", "written", "merge", "parts", "moved", "unseen"]

_SHOWN_MAX = 60
"""Characters of a value in a message."""
_REMEDIES: dict[Reason, str] = {
    "stale": "read it again and decide, have `update` do that, or give an `on_conflict`",
    "read": "run it again, or have `update` do that",
    "gone": "read the state again and decide; of the policies only `theirs` and `queue` can leave it out",
    "written": "read the state again and decide, or choose another `on_conflict`",
    "merge": "change one of them first, or choose another `on_conflict`",
    "moved": "look at both, then `resolve` it with `overwrite=True`",
    "unseen": "look at both, then `resolve` it with `overwrite=True`",
    "parts": "make one part of the changes of one workflow, or give an `on_conflict`",
}


def refusal(where: str, reason: Reason, met: list[Met]) -> MergeConflict:
    """Return the error for a write that met others. met: where it met them; the message is about the last."""
    # what is handed out is the caller's: the values met are the engine's own
    met = [structs.replace(m, **{name: copied(getattr(m, name)) for name in ("base", "ours", "theirs")}) for m in met]
    meeting = met[-1]
    more = f" (and {len(met) - 1} more)" if len(met) > 1 and reason in ("stale", "read") else ""
    message = f"{where}: {said(reason, meeting)}{more}; nothing was written: {_REMEDIES[reason]}"
    return MergeConflict(message, conflicts=met, reason=reason)


def between_parts(refused: MergeConflict, upto: int) -> MergeConflict:
    """Return the error for a part of a transaction, without versions that are not written now.

    upto: the version that the transaction meets; a later one is what a part before this one would have made.
    """
    met: list[Met] = refused.conflicts
    versions = [getattr(m, "version", None) for m in met]  # a hook's refusal may list anything
    own = [version is not None and version > upto for version in versions]
    if not any(own):
        return refused
    met = [structs.replace(m, version=None) if mine else m for m, mine in zip(met, own, strict=True)]
    error = refusal(refused.workflow_id, "parts", met) if own[-1] else refused
    error.conflicts = met
    error.changes, error.base, error.workflow_id = refused.changes, refused.base, refused.workflow_id
    return error


def said(reason: Reason, met: Met) -> str:
    """Return in words where a write met another, and what is there."""
    at = pointer(met.path) or "the whole state"
    by = f" by {met.author} in version {met.version}" if met.version is not None else ""
    match reason:
        case "stale" | "read" if met.theirs is UNSET and met.path and type(met.path[-1]) is int:
            return f"the item read at {at}, {_shown(met.base)}, was removed{by}"
        case "stale" | "read":
            return f"{at} was read as {_shown(met.base)} and is {_shown(met.theirs)} now{',' if by else ''}{by}"
        case "gone":
            return f"{at} was removed or replaced{by} since the version this write was made on"
        case "written":
            return f"{at} was written by others{f', last{by},' if by else ''} since the version this write was made on"
        case "merge":
            return f"both sides changed {at}"
        case "moved":
            return f"{at} was {_shown(met.base)} when they met and is {_shown(met.theirs)} now{',' if by else ''}{by}"
        case "unseen":
            return f"{at} is {_shown(met.theirs)} now{',' if by else ''}{by}, written while this write was waiting"
        case "parts":
            return f"two parts of one transaction contradict each other at {at}"


def _shown(value: Any) -> str:
    """Return a value for a message, shortened."""
    if value is UNSET:
        return "nothing"
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."
