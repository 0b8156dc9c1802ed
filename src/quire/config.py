"""Settings: frozen values with named bounds, and the presets people ask for by name.

Every queue, cache, retry and batch of the engine is bounded here; the comment says what happens at the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from quire.errors import Invalid
from quire.model import Version

MIB = 1024 * 1024

Algorithm = Literal["zstd", "gzip", "lz4"]


class Compression(msgspec.Struct, frozen=True):
    """How to compress what is stored. algorithm: zstd, gzip or lz4.  level: of the algorithm, None for its usual one.

    threshold_bytes: what is smaller stays plain, but where there is a trained dictionary.
    """

    algorithm: Algorithm = "zstd"
    level: int | None = None
    threshold_bytes: int = 1024


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What stays in the store itself; all older versions go to its archive, where they can still be read.

    A version goes when any rule says so, and every one before it goes too. The newest never does. Those that a checkpoint
    names, or a fork began from, are kept within reach as well. With no rule nothing goes.
    versions: so many newest of each workflow stay.  days: what is younger stays.
    bytes: of each workflow, as much of the newest as has so many bytes of changes.  store_bytes: the same of all together.
    goes: asked of each version of a workflow that would stay, from the oldest on, until it says False; it must only compute.
    checkpoints: so many newest automatic checkpoints of each workflow stay, others are dropped; those with tags stay.
    checkpoint_days: automatic checkpoints that are younger stay.
    every_s: how often the store looks, while it is open. 0: only when `sweep` is called.
    """

    versions: int | None = None
    days: float | None = None
    bytes: int | None = None
    store_bytes: int | None = None
    goes: Callable[[str, Version], bool] | None = None
    checkpoints: int | None = None
    checkpoint_days: float | None = None
    every_s: float = 300.0

    def __post_init__(self) -> None:
        """Raise Invalid for a number that means nothing."""
        for name in ("versions", "days", "bytes", "store_bytes", "checkpoints", "checkpoint_days"):
            value = getattr(self, name)
            least = 1 if name == "versions" else 0
            if value is not None and (type(value) not in (int, float) or not value >= least):
                raise Invalid(f"retention: {name} is a number from {least} on, not {value!r}")
        if type(self.every_s) not in (int, float) or not 0 <= self.every_s < 1e9:
            raise Invalid(f"retention: every_s is a number of seconds from 0 on, not {self.every_s!r}")


class Backups(msgspec.Struct, frozen=True, kw_only=True):
    """Backups that an open store takes by itself.

    place: where to: `file:///folder`, `s3://bucket/prefix` and others of `open_objects`.  every_s: seconds between them; a
    store in which nothing changed adds none.  full_every: every so-and-so-many-th is a full one.
    keep, days: older ones are removed: see `quire.prune_backups`; None for either keeps all.
    """

    place: str
    every_s: float = 3600.0
    full_every: int = 24
    keep: int | None = 10
    days: float | None = 30.0

    def __post_init__(self) -> None:
        """Raise Invalid for a number that means nothing."""
        for name, least in (("every_s", 0.001), ("full_every", 1), ("keep", 1), ("days", 0.001)):
            value: object = getattr(self, name)
            if value is None and name in ("keep", "days"):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < 1e9:
                raise Invalid(f"backups: {name} is a number from {least} on, not {value!r}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How an open store behaves. Durability is the backend's business and chosen in the URL."""

    batch_writes_max: int = 1024
    """Writes in one commit; more wait for the next one. A transaction of more is a commit of its own."""
    transaction_writes_max: int = 10_000
    """Writes that are one transaction; more raise LimitExceeded."""
    batch_bytes_max: int = 8 * MIB
    """Bytes of changes in one commit; more wait for the next one."""
    queue_writes_max: int = 100_000
    """Writes waiting at once; further writers wait for room before they queue."""
    write_bytes_max: int = 16 * MIB
    """Bytes of one write: its changes as JSON, with its author, message and kind; more raises LimitExceeded."""
    write_steps_max: int = 1_000_000
    """Work of one write, about a microsecond a step: each change, each 256 items of a list or object and each 8,192
    characters of a text that are copied or moved for it, and where it meets what others wrote each pair of changes of
    one place as four, of one inside of what the other alters as two, of others in one list or object as a quarter; more raises LimitExceeded."""
    merge_steps_max: int = 100_000_000
    """Work of merging two workflows, counted in the same way; more raises LimitExceeded. It is done in a thread."""
    depth_max: int = 64
    """Nesting of a stored value; more raises InvalidState."""
    key_bytes_max: int = 512
    """UTF-8 bytes of one object key; more raises LimitExceeded."""
    state_bytes_max: int | None = 100 * MIB
    """Bytes of a workflow's state as JSON, with all that is kept in it; a write that leaves more raises LimitExceeded,
    but for one that makes it smaller. None: as much as memory holds. Nothing is weighed until a state comes near."""
    state_keys_max: int | None = None
    """Keys of all objects in a workflow's state, at any depth; a write that leaves more raises LimitExceeded, as above."""
    value_bytes_max: int | None = None
    """Bytes as JSON of one value that a write puts: what is set at a path, each item added to a list, a text that was
    spliced, and where a whole state is set each value in it; more raises LimitExceeded, unless a larger one was there.
    What grows piece by piece is bounded by the state. Cost: an encoding of each value."""
    blob_bytes_max: int = 256 * MIB
    """Bytes of one blob; more raises LimitExceeded."""
    store_bytes_max: int | None = None
    """Bytes that the whole store may take, of all namespaces, as its backend counts them (`stats().size_bytes`); then
    writes raise LimitExceeded, but for those that end a workflow or redact. It is looked at seldom: a store may grow
    past it by a 64th, one commit and a keyframe, and by what other processes write meanwhile."""
    parallel_loads_max: int = 16
    """States being read from the store at once, each of which takes memory; more wait for their turn."""
    resident_bytes_max: int = 100 * MIB
    """Estimated memory of the states kept ready; the least recently used are dropped and read again when asked for.
    One state that is larger than that by itself stays besides; 0 keeps none."""
    threads_max: int = 64
    """Plain functions of the caller's that run in threads at once: steps, handlers of `quire.sync`, reducers; more wait
    for a thread to be free. What these call in turn counts for itself."""
    recent_records: int = 64
    """Newest records kept per live workflow for rebasing and watching; older ones are read from the log."""
    feed_records: int = 4096
    """Newest records kept per store for watchers of the whole store; older ones are read from the log."""
    keyframe_changes_min: int = 64
    """No keyframe before this many versions since the last."""
    keyframe_bytes_min: int = 64 * 1024
    """Nor before the records since the last weigh this much: folding less takes about a millisecond."""
    keyframe_ratio: float = 1.0
    """A keyframe is due when the records since the last weigh this many times its compressed size."""
    retry_seconds: float = 30.0
    """How long a write is rebased over other processes' commits before it gives up with StorageTimeout."""
    idempotency_seconds: float = 7 * 24 * 3600.0
    """How long an idempotency key is remembered after it was last used."""
    delivery_backoff_s: tuple[float, float] = (0.05, 30.0)
    """First and longest pause before a failed delivery to a subscriber is tried again."""
    verify_on_load: bool = True
    """Recompute the chain of every record that a state is built from."""

    def __post_init__(self) -> None:
        for name in _LIMITS:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise Invalid(
                    f"{name}={value!r}: a whole number of at least 1 is needed, or None where there is no limit"
                )
        if type(self.threads_max) is not int or self.threads_max < 1:
            raise Invalid(f"threads_max={self.threads_max!r}: a whole number of at least 1 is needed")


ARCHIVING = Retention(versions=100, days=30)
"""At most a hundred versions of a workflow stay, and none that is older than a month."""


_LIMITS = ("state_bytes_max", "state_keys_max", "value_bytes_max", "store_bytes_max")

DEVELOPMENT = Settings(resident_bytes_max=128 * MIB, state_bytes_max=50 * MIB, parallel_loads_max=4)
PRODUCTION = Settings(resident_bytes_max=512 * MIB, state_bytes_max=200 * MIB)
HIGH_THROUGHPUT = Settings(
    resident_bytes_max=1024 * MIB,
    state_bytes_max=500 * MIB,
    batch_writes_max=4096,
    batch_bytes_max=32 * MIB,
    parallel_loads_max=32,
)

_PRESETS = {"development": DEVELOPMENT, "production": PRODUCTION, "high_throughput": HIGH_THROUGHPUT}


def preset(name: str) -> Settings:
    """Return the settings of that name: development, production or high_throughput."""
    try:
        return _PRESETS[name]
    except KeyError:
        raise Invalid(f"no preset {name!r}; there are {', '.join(_PRESETS)}") from None
