"""Every error Quire raises, split by whose promise was broken.

    QuireError
     ├ RequestError                     the caller
     │  ├ NotFound (LookupError)
     │  │  ├ WorkflowNotFound
     │  │  ├ VersionNotFound
     │  │  ├ CheckpointNotFound
     │  │  ├ ConflictNotFound
     │  │  └ RunNotFound
     │  ├ Invalid (ValueError)
     │  │  ├ InvalidState              a value that cannot be stored, with its JSON path
     │  │  │  └ InvalidEvent           data of an event that does not fit its schema
     │  │  ├ InvalidKey                an id or a name that is not allowed
     │  │  ├ ChangeError               a change that does not fit the state
     │  │  └ LimitExceeded
     │  ├ OutOfBounds                  a number would leave the bounds given for it
     │  ├ Conflict
     │  │  ├ AlreadyExists
     │  │  ├ HeadMoved                 `if_version` no longer holds
     │  │  ├ KeyReused                 an idempotency key came back with other content
     │  │  └ MergeConflict             writes that cannot both stand; it carries the refused one
     │  ├ ScriptError                   a script raised, does not parse, or its process died
     │  └ Denied (PermissionError)
     ├ StorageError                     the world
     │  ├ StorageUnavailable (ConnectionError)
     │  │  └ FilesChanged              the store's files were removed, moved or replaced while it was open
     │  ├ StorageTimeout (TimeoutError)
     │  ├ StorageFull (OSError)
     │  ├ OutcomeUnknown                the write may or may not be there
     │  ├ CorruptRecord                 stored bytes do not match their checksum
     │  ├ IncompatibleFormat            not a store, or a store of another version
     │  └ Unsupported                   this backend cannot do that
     ├ StepFailed                       an agent's own code raised
     ├ MigrationFailed                  a migration's own code raised
     ├ ReducerFailed                    a reducer of events raised
     ├ HookFailed                       a hook that guards writes raised something unexpected
     ├ FunctionFailed (RuntimeError)    another function raised what cannot be handed on as it is
     └ Closed (RuntimeError)

Each carries a stable `code` that the command line and servers show, and `retryable`: whether the same call may
succeed later without being changed. Messages say what, where and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class QuireError(Exception):
    """The root: catch this to catch everything Quire raises."""

    code: ClassVar[str] = "quire"
    retryable: ClassVar[bool] = False


class RequestError(QuireError):
    """The caller asked for something that cannot be done as asked."""

    code = "request"


class NotFound(RequestError, LookupError):
    """Something named does not exist."""

    code = "not_found"


class WorkflowNotFound(NotFound):
    """No workflow of this id in this namespace."""

    code = "workflow_not_found"

    def __init__(self, workflow_id: str) -> None:
        super().__init__(f"Workflow not found: {workflow_id}")
        self.workflow_id = workflow_id


class VersionNotFound(NotFound):
    """The workflow exists, the version asked for does not."""

    code = "version_not_found"

    def __init__(self, workflow_id: str, version: object, *, oldest: int = 1, newest: int | None = None) -> None:
        known = "" if newest is None else f"; versions run from {oldest} to {newest}"
        super().__init__(f"Version not found: {workflow_id}@{version}{known}")
        self.workflow_id = workflow_id
        self.version = version


class CheckpointNotFound(NotFound):
    """No checkpoint of this name on this workflow."""

    code = "checkpoint_not_found"

    def __init__(self, workflow_id: str, name: str) -> None:
        super().__init__(
            f"Checkpoint not found: {workflow_id}@{name}; `checkpoints()` or `quire log --checkpoints` lists them"
        )
        self.workflow_id = workflow_id
        self.name = name


class ConflictNotFound(NotFound):
    """No conflict of this id on this workflow."""

    code = "conflict_not_found"

    def __init__(self, workflow_id: str, conflict_id: str) -> None:
        super().__init__(f"Conflict not found: {workflow_id} {conflict_id}; `conflicts()` lists them")
        self.workflow_id = workflow_id
        self.conflict_id = conflict_id


class RunNotFound(NotFound):
    """The workflow holds no run of a topology."""

    code = "run_not_found"


class Invalid(RequestError, ValueError):
    """A value, id or option that is not allowed."""

    code = "invalid"


class InvalidState(Invalid):
    """A value that is not plain JSON. `path` is its JSON Pointer."""

    code = "invalid_state"

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class InvalidEvent(InvalidState):
    """The data of an event does not fit its schema. `field` is a dotted path; "" where the schema did not say.

    version: of the stored event, counted from 0; None when it was refused before it was stored.
    """

    code = "invalid_event"

    def __init__(self, event_type: str, why: str, *, field: str = "", version: int | None = None) -> None:
        where = f"event {event_type!r}" + ("" if version is None else f" of version {version}")
        super().__init__(f"{where}{f', field {field}' if field else ''}: {why}", path=field)
        self.event_type = event_type
        self.field = field
        self.version = version


class InvalidKey(Invalid):
    """An id, name or URL that breaks the rules for them."""

    code = "invalid_key"


class ChangeError(Invalid):
    """A change that does not fit the state it is applied to. `path` is its JSON Pointer."""

    code = "change_error"

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class LimitExceeded(Invalid):
    """A named limit was reached; nothing was stored. `path`: the JSON Pointer of what was too much, "" for all of it."""

    code = "limit_exceeded"

    def __init__(self, message: str, *, limit: str, allowed: int, found: int, path: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.limit = limit
        self.allowed = allowed
        self.found = found


class OutOfBounds(RequestError):
    """An increment would take a number out of the bounds given for it; nothing was written. `path`: its JSON Pointer.

    found: the number it would have been on the state that the write met.
    """

    code = "out_of_bounds"

    def __init__(
        self, message: str, *, path: str, found: Any, minimum: int | float | None, maximum: int | float | None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.found = found
        self.minimum = minimum
        self.maximum = maximum


class Conflict(RequestError):
    """Another write came first."""

    code = "conflict"


class AlreadyExists(Conflict):
    """A workflow or checkpoint of this name is there already."""

    code = "already_exists"


class HeadMoved(Conflict):
    """`if_version` named a version that is no longer the head."""

    code = "head_moved"
    retryable = True

    def __init__(self, workflow_id: str, *, expected: int, actual: int, advice: str = "") -> None:
        advice = advice or "read it again and retry, or leave out if_version to have the write rebased"
        super().__init__(f"{workflow_id} is at version {actual}, not {expected}: {advice}")
        self.workflow_id = workflow_id
        self.expected = expected
        self.actual = actual


class KeyReused(Conflict):
    """An idempotency key was used for a different write that the head descends from."""

    code = "key_reused"


class MergeConflict(Conflict):
    """Writes that cannot both stand; nothing was written. `conflicts` says where they met, and who wrote the other.

    reason: stale, read, gone, written, merge, parts or moved, see core/refusals.py.
    changes, base: the write that was refused, and the version of `workflow_id` it was made on, None where there was none.
    head: the version that it met.
    `wf.apply(error.changes, base=error.base, on_conflict=...)` applies it after all.
    """

    code = "merge_conflict"
    retryable = True

    def __init__(
        self,
        message: str,
        *,
        conflicts: list[Any],
        changes: Sequence[Any] = (),
        base: int | None = None,
        workflow_id: str = "",
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.workflow_id = workflow_id
        self.conflicts = conflicts
        self.changes = list(changes)
        self.base = base
        self.head = 0


class ScriptError(RequestError):
    """A script raised, does not parse, or its process died; nothing it did is stored.

    script: its name.  line: where, None if that is not known.  output: what it had printed.
    """

    code = "script_error"

    def __init__(self, message: str, *, script: str, line: int | None = None, output: str = "") -> None:
        super().__init__(message)
        self.script = script
        self.line = line
        self.output = output


class Denied(RequestError, PermissionError):
    """The caller may not do this."""

    code = "denied"


class StorageError(QuireError):
    """The world broke a promise: a disk, a server, a network."""

    code = "storage"


class StorageUnavailable(StorageError, ConnectionError):
    """The store cannot be reached or answered with an I/O error."""

    code = "storage_unavailable"
    retryable = True


class FilesChanged(StorageUnavailable):
    """The store's files were removed, moved or replaced while it was open; nothing of the write was begun."""

    code = "files_changed"


class StorageTimeout(StorageError, TimeoutError):
    """The store did not answer in time; for a lock: somebody else holds it."""

    code = "storage_timeout"
    retryable = True


class StorageFull(StorageError, OSError):
    """No space left. Nothing of the failed write is stored."""

    code = "storage_full"
    retryable = True


class OutcomeUnknown(StorageError):
    """A commit failed in a way that does not tell whether it is stored.

    Read the workflow before writing again, or write with an idempotency key and simply retry.
    """

    code = "outcome_unknown"


class CorruptRecord(StorageError):
    """Stored bytes do not match their checksum. `at` says where."""

    code = "corrupt_record"

    def __init__(self, message: str, *, at: str = "") -> None:
        super().__init__(message)
        self.at = at


class IncompatibleFormat(StorageError):
    """Not a Quire store, or one written by a version this one cannot read."""

    code = "incompatible_format"

    def __init__(self, message: str, *, found: object = None, supported: object = None) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class Unsupported(StorageError):
    """This backend cannot do what was asked. `capability` names it."""

    code = "unsupported"

    def __init__(self, message: str, *, capability: str) -> None:
        super().__init__(message)
        self.capability = capability


class StepFailed(QuireError):
    """A step of a run raised; the original exception is the cause."""

    code = "step_failed"


class MigrationFailed(QuireError):
    """A migration raised, or made something that does not fit; nothing was written, and older versions can be read."""

    code = "migration_failed"

    def __init__(self, where: str, before: str, after: str, why: str) -> None:
        super().__init__(
            f"{where}: the migration from {before} to {after} failed ({why}); nothing was written: correct it, or read "
            "the state as it is with `state(version)`"
        )
        self.where = where
        self.before = before
        self.after = after


class ReducerFailed(QuireError):
    """A reducer raised, or returned no state; what it raised is the cause. version: of the event, counted from 0."""

    code = "reducer_failed"

    def __init__(self, event_type: str, version: int, why: str) -> None:
        super().__init__(
            f"the reducer of event {event_type!r} failed on version {version}: {why}; "
            "the events are untouched: correct it and read again"
        )
        self.event_type = event_type
        self.version = version


class HookFailed(QuireError):
    """A hook declared a guard failed, so the write it was asked about was refused. `hook` names it; see the cause."""

    code = "hook_failed"

    def __init__(self, message: str, *, hook: str) -> None:
        super().__init__(message)
        self.hook = hook


class FunctionFailed(QuireError, RuntimeError):
    """A user function raised an exception that would end a generator, a task or the program, such as StopIteration.

    That is the cause. It is raised where an ordinary exception of the function is raised as it is: see quire/calls.py.
    """

    code = "function_failed"


class Closed(QuireError, RuntimeError):
    """The store was closed."""

    code = "closed"
