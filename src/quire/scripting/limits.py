"""What a script may use, in one value. Reaching any of it ends the script's process; nothing it did is stored."""

from __future__ import annotations

import msgspec

from quire.errors import Invalid

_MIB = 1024 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one script. All are positive; `LimitExceeded.limit` is the name of the one that was reached.

    Raises Invalid for a value that is no positive whole number.
    """

    wall_ms: int = 10_000
    """Milliseconds from the start of the process to the script's end, whatever it waits for."""
    cpu_s: int = 5
    """Seconds of processor time of the process, its start (about 0.05) included; kept by the kernel."""
    memory_bytes: int = 64 * _MIB
    """What the script's values may take; the process as a whole may grow by this and `SLACK_BYTES`, on Linux."""
    output_bytes: int = 64 * 1024
    """UTF-8 bytes of what it prints."""
    calls: int = 10_000
    """Calls of State, workflow.state and step.state, and prints."""
    message_bytes: int = 4 * _MIB
    """JSON of one call with its arguments, or of its answer; a larger answer is an error that the script may catch."""
    traffic_bytes: int = 32 * _MIB
    """JSON of all calls and answers: what a script can make the process that owns the store handle."""
    source_bytes: int = _MIB
    """UTF-8 bytes of its source."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise Invalid(f"limit {name}={value!r}: a positive whole number is needed")


SLACK_BYTES = 32 * _MIB
"""What the process may take beside the script's values: messages on their way, and Python's own."""
