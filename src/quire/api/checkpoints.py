"""Checkpoints: names for versions, kept in a stream of their own beside the workflow.

The stream `checkpoints/<workflow>` folds to {name: what it labels}. So a label is durable, attributed and itself
versioned, and costs one small record however large the state is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from blake3 import blake3

from quire.core.record import canonical
from quire.engine.engine import Engine
from quire.engine.write import Write
from quire.errors import AlreadyExists, CheckpointNotFound, CorruptRecord, InvalidKey
from quire.model import CHECKPOINTS, WORKFLOWS, Change, Checkpoint, Delete, Record, Set

SNAPSHOT = "snapshot"


def label_of(
    version: Record, now_ms: int, author: str, kind: str, description: str, tags: Sequence[str]
) -> dict[str, Any]:
    """Return what is kept of a checkpoint under its name."""
    return {
        "version": version.version,
        "created_at": now_ms,
        "author": author,
        "kind": kind,
        "description": description,
        "tags": list(tags),
        "checksum": version.chain.hex(),
    }


class Checkpoints:
    """The checkpoints of one workflow."""

    def __init__(self, engine: Engine, workflow_id: str) -> None:
        self._engine = engine
        self.workflow_id = workflow_id
        self._stream = CHECKPOINTS + workflow_id

    async def create(
        self, name: str, version: int, *, tags: Sequence[str], kind: str, description: str, author: str
    ) -> Checkpoint:
        """Label a version. Raises AlreadyExists for a name in use."""
        engine = self._engine
        origin = await engine.record(WORKFLOWS + self.workflow_id, version)
        label = label_of(origin, engine.clock.now_ms(), author, kind, description, tags)
        if kind == SNAPSHOT:
            whole = canonical(await engine.state_at(WORKFLOWS + self.workflow_id, version))
            label["blob"], label["size_bytes"] = blake3(whole).hexdigest(), len(whole)
            await engine.take_blob(len(whole))
            await engine.backend.put_blob(label["blob"], whole)

        def plan(labels: dict[str, Any]) -> list[Change]:
            if name in labels:
                raise AlreadyExists(
                    f"checkpoint {name!r} of {self.workflow_id} exists, on version {labels[name]['version']}; "
                    "choose another name, or drop that one first"
                )
            return [Set((name,), label)]

        message = f"checkpoint {name} on version {version}"
        await engine.write(Write(self._stream, plan, author=author, message=message, kind="checkpoint", exists=None))
        return _checkpoint(self.workflow_id, name, label)

    async def all(self) -> list[Checkpoint]:
        """Return them, oldest first."""
        labels = (await self._engine.current(self._stream)).state
        return [_checkpoint(self.workflow_id, name, label) for name, label in labels.items()]

    async def get(self, name: str) -> Checkpoint:
        """Return one. Raises CheckpointNotFound."""
        labels = (await self._engine.current(self._stream)).state
        if name not in labels:
            raise CheckpointNotFound(self.workflow_id, name)
        return _checkpoint(self.workflow_id, name, labels[name])

    async def kept_state(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the state that a snapshot keeps whole. Raises CorruptRecord when it is damaged or gone."""
        at = f"{self.workflow_id}@{checkpoint.name}"
        if checkpoint.blob is None:
            raise InvalidKey(f"{at} is a label, not a snapshot: restore it by its version")
        whole = await self._engine.backend.blob(checkpoint.blob)
        if whole is None or blake3(whole).hexdigest() != checkpoint.blob:
            raise CorruptRecord(
                f"{at}: the snapshot's bytes are {'gone' if whole is None else 'damaged'}; "
                f"version {checkpoint.version} of the log may still be read",
                at=at,
            )
        return msgspec.json.decode(whole, type=dict[str, Any])

    async def drop(self, name: str, author: str) -> None:
        """Remove a name. Raises CheckpointNotFound."""

        def plan(labels: dict[str, Any]) -> list[Change]:
            if name not in labels:
                raise CheckpointNotFound(self.workflow_id, name)
            return [Delete((name,))]

        await self._engine.write(
            Write(self._stream, plan, author=author, message=f"dropped checkpoint {name}", exists=None)
        )


def _checkpoint(workflow_id: str, name: str, label: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        name=name,
        workflow_id=workflow_id,
        version=label["version"],
        created_at=datetime.fromtimestamp(label["created_at"] / 1000, UTC),
        author=label["author"],
        kind=label["kind"],
        description=label["description"],
        tags=tuple(label["tags"]),
        checksum=label["checksum"],
        blob=label.get("blob"),
        size_bytes=label.get("size_bytes"),
    )
