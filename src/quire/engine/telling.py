"""What writers are told of an exception, and which exceptions end the task that meets them.

1. A writer is told an error of `quire.errors`, or what its own function raised.
2. Each writer gets an exception of its own: tracebacks grow on shared ones.
"""

from __future__ import annotations

import asyncio

from quire.errors import Closed, OutcomeUnknown, QuireError, StorageError

STOPPED = Closed("the store is shutting down; nothing of this write is stored")
INTERRUPTED = OutcomeUnknown(
    "the program was stopped while the write was on its way; "
    "read the workflow before writing again, or retry with the same idempotency key"
)


def stops(error: BaseException) -> bool:
    """Tell whether an exception is meant for this task: it is cancelled, or the program ends.

    A cancellation that nobody asked this task for is a driver's, whose connection went away.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return not isinstance(error, Exception)


def typed(error: BaseException, what: str) -> QuireError:
    """Return an exception of ours as it is, any other as the cause of a StorageError that names what was being done."""
    if isinstance(error, QuireError):
        return error
    told = StorageError(f"{what} ended with an unexpected {type(error).__name__}; see its cause")
    told.__cause__ = error
    return told


def twin(error: QuireError) -> QuireError:
    """Return an error that says the same."""
    made = type(error).__new__(type(error), *error.args)
    made.args = error.args
    made.__dict__.update(error.__dict__)
    made.__cause__ = error.__cause__ or error
    return made
