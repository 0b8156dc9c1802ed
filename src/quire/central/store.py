"""The map of a central store, its past and the times of its keys, in the state of one workflow.

1. The state is {"values": {key: value}, "times": {key: ms}}. The time of a key is kept with its value, so that a historic
   read, a snapshot and a restore give both back, and a log whose old records were archived loses none.
2. Keys are plain: "agent1.position" and "a/b" are names, not paths.
3. Versions count from 0, the empty store. Nothing rewinds them: a restore is one more.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Unpack, cast

import msgspec

from quire.api import writes
from quire.api.counting import Moment, WritingFromZero, from_zero, in_log, in_utc, missing, options_in_log, revision
from quire.api.face import AsyncFace
from quire.api.store import Store
from quire.api.workflow import Workflow
from quire.core.diff import diff
from quire.core.names import check_id
from quire.core.record import state_hash
from quire.core.values import clean, same
from quire.engine.write import Plan
from quire.errors import (
    AlreadyExists,
    CorruptRecord,
    Invalid,
    InvalidKey,
    InvalidState,
    NotFound,
    StorageError,
    VersionNotFound,
)
from quire.model import Change, Delete, Set

_VALUES, _TIMES = "values", "times"


class _Snapshot(msgspec.Struct):
    """A snapshot as text. checksum: of the values; one made by hand may leave it out."""

    state: dict[str, Any]
    version: int
    timestamps: dict[str, datetime]
    checksum: str | None = None


class AsyncCentralizedStateStore(AsyncFace):
    """A map of keys to JSON values, versioned as a whole.

    storage: an open Store, or the URL of one, opened by `async with` or `start`.  workflow_id: the workflow that holds
    the map; it is made if absent.  Values given and returned are the caller's: altering them alters nothing stored.
    Raises InvalidKey, InvalidState, LimitExceeded for what cannot be stored; Invalid at `start` when the workflow holds
    another kind of state; Closed; StorageError. Cost: a write copies the map's keys once, not their values.
    """

    def __init__(
        self, storage: Store | str = "memory:", *, workflow_id: str = "central", namespace: str = "default"
    ) -> None:
        super().__init__(storage, namespace)
        self.id = check_id(workflow_id, "workflow id")

    async def _begin(self, store: Store) -> None:
        workflow = store.workflow(self.id)
        if not await workflow.exists():
            with suppress(AlreadyExists):  # another process was first: it is there now
                await store.create(self.id, {_VALUES: {}, _TIMES: {}})
        state = (await workflow.snapshot()).state
        if not all(type(state.get(part)) is dict for part in (_VALUES, _TIMES)):
            raise Invalid(
                f"workflow {self.id} holds another kind of state; give the central store a workflow_id of its own"
            )

    @property
    def workflow(self) -> Workflow:
        """The workflow underneath, for everything this face does not show: history, blame, watch, checkpoints."""
        return self.store.workflow(self.id)

    # reading

    async def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` where there is none. Cost: O(value)."""
        return await self.workflow.get((_VALUES, _named(key)), default)

    async def get_all(self, version: Moment | None = None) -> dict[str, Any]:
        """Return every key and value: now, or as of a version or a time. Raises VersionNotFound."""
        return cast("dict[str, Any]", await self._as_of((_VALUES,), {}, version))

    async def get_version(self) -> int:
        """Return the version of the store: 0 when nothing was ever written."""
        return (await self.workflow.snapshot()).version - 1

    async def get_versioned(self, key: str, version: Moment, default: Any = None) -> Any:
        """Return the value a key had at a version or a time, or `default` where it had none. Raises VersionNotFound."""
        return await self.workflow.get((_VALUES, _named(key)), default, version=await self._number(version))

    async def get_timestamp(self, key: str, version: Moment | None = None) -> datetime | None:
        """Return when a key was written last (UTC): as of now, or of a version. None where there is no such key."""
        found = await self._as_of((_TIMES, _named(key)), None, version)
        return None if found is None else _moment(found)

    # writing

    async def set(self, key: str, value: Any, **how: Unpack[WritingFromZero]) -> int:
        """Give a key a value and return the new version. The same value again is a version too: its time is new."""
        return await self.update({key: value}, **how)

    async def update(self, updates: Mapping[str, Any], **how: Unpack[WritingFromZero]) -> int:
        """Set several keys as one version, all or none, and return it. No keys make no version."""
        if not isinstance(updates, Mapping):
            raise InvalidState(f"updates are a mapping of keys to values, not {type(updates).__name__}")
        bounds = self.workflow.bounds
        new = {_named(k): clean(v, path=(_VALUES, k), **bounds) for k, v in updates.items()}
        clean(dict.fromkeys(new), path=(_VALUES,), **bounds)  # the keys themselves

        def plan(_: dict[str, Any]) -> list[Change]:
            now = self._clock_ms()
            return [c for k, v in new.items() for c in (Set((_VALUES, k), v), Set((_TIMES, k), now))]

        return await self._write(plan, how, kind="change", allow_empty=bool(new))

    async def delete(self, key: str, **how: Unpack[WritingFromZero]) -> int:
        """Remove a key and return the new version. A key that is not there makes no version."""
        name = _named(key)

        def plan(state: dict[str, Any]) -> list[Change]:
            return [Delete((part, name)) for part in (_VALUES, _TIMES) if name in state.get(part, {})]

        return await self._write(plan, how, kind="change", allow_empty=False)

    # whole states

    async def snapshot(self, version: Moment | None = None) -> str:
        """Return the store as JSON text: state, version, timestamps (ISO 8601) and a checksum of the state.

        version: as it was then. Cost: O(state), of an old version as in `Workflow.state`.
        """
        if version is None:
            number, state = await self.workflow.snapshot()
        else:
            number = await self._number(version)
            state = await self.workflow.state(number)
        times = {k: _moment(ms) for k, ms in state.get(_TIMES, {}).items()}
        values = state.get(_VALUES, {})
        return msgspec.json.encode(_Snapshot(values, number - 1, times, state_hash(values))).decode()

    async def restore(self, snapshot: str, **how: Unpack[WritingFromZero]) -> int:
        """Make the store what a snapshot says, times of the keys too, as one new version, and return it.

        Numbers go on from where they are. A time without a zone is UTC; a key without one gets the present.
        Raises InvalidState when the text is not a snapshot, CorruptRecord when it was altered; then nothing changes.
        Cost: O(state), and reading the version that the text names, if there is one.
        """
        text = _parsed(snapshot)
        bounds = writes.limits_of_wholes(self.store.engine.settings)
        values = cast("dict[str, Any]", clean(text.state, path=(_VALUES,), **bounds))
        times = {k: _ms(t) for k, t in text.timestamps.items()}
        how = {"message": f"restored a snapshot of version {text.version}", **how}
        return await self._replace(values, times, how, restored=await self._version_of(text.version, values, times))

    async def rollback(self, version: Moment, **how: Unpack[WritingFromZero]) -> int:
        """Make the store what it was at a version or a time, as one new version, and return it. Raises VersionNotFound."""
        number = await self._number(version)
        old = await self.workflow.state(number)
        how = {"message": f"rolled back to version {number - 1}", **how}
        return await self._replace(old.get(_VALUES, {}), old.get(_TIMES, {}), how, restored=number)

    # inside

    async def _as_of(self, path: tuple[str, ...], default: Any, version: Moment | None) -> Any:
        number = None if version is None else await self._number(version)
        return await self.workflow.get(path, default, version=number)

    async def _number(self, version: Moment) -> int:
        try:
            return (await self.workflow.version(revision(version))).number
        except VersionNotFound:
            raise missing(self.id, version, oldest=0, newest=await self.get_version()) from None

    async def _version_of(self, version: int, values: dict[str, Any], times: dict[str, int]) -> int | None:
        """Return the log's number of a version if it held just that; None where the text is of another store, or edited."""
        number = in_log(version)
        try:
            old = await self.store.engine.state_at(self.workflow.stream, number)
        except (NotFound, StorageError):
            return None  # a snapshot is restored also where the version that it was made of cannot be read
        return number if same(old, {_VALUES: values, _TIMES: times}) else None

    async def _replace(
        self, values: dict[str, Any], times: dict[str, int], how: WritingFromZero, *, restored: int | None
    ) -> int:
        def plan(state: dict[str, Any]) -> list[Change]:
            now = self._clock_ms()
            return list(diff(state, {_VALUES: values, _TIMES: {k: times.get(k, now) for k in values}}))

        return await self._write(plan, how, kind="restore", allow_empty=True, restored=restored)

    async def _write(self, plan: Plan, how: WritingFromZero, **more: Any) -> int:
        workflow, engine = self.workflow, self.store.engine
        write, _ = writes.write(workflow.stream, plan, options_in_log(how), **more)
        with from_zero(self.id):
            made = await engine.write(write)
        return await self.get_version() if made is None else made.number - 1

    def _clock_ms(self) -> int:
        return self.store.engine.clock.now_ms()


def _named(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidKey(f"key {key!r} is {type(key).__name__}; keys are strings")
    return key


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _ms(moment: datetime) -> int:
    return round(in_utc(moment).timestamp() * 1000)


def _parsed(text: str) -> _Snapshot:
    """Return a snapshot from its text. Raises InvalidState, CorruptRecord."""
    try:
        found = msgspec.json.decode(text, type=_Snapshot)
    except (msgspec.MsgspecError, RecursionError, UnicodeError, TypeError) as cause:
        raise InvalidState(
            f"this is not a snapshot of a central store: {cause}; give what `snapshot` returned"
        ) from cause
    strays = sorted(found.timestamps.keys() - found.state.keys())
    if strays:
        raise InvalidState(
            f"the snapshot has a timestamp for {strays[0]!r}, but no such key", path=f"/timestamps/{strays[0]}"
        )
    if found.checksum is not None and found.checksum != state_hash(found.state):
        raise CorruptRecord(
            "Snapshot integrity check failed: its state does not match its checksum; take another copy, "
            "or leave the checksum out if it was edited on purpose",
            at="snapshot",
        )
    return found
