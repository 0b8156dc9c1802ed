"""All versions of a store as a table in a Parquet file, archived or not: for DuckDB, Polars and whoever reads that.

One row for each version, by workflow and number. It is written a group of rows at a time, so what is in memory does not
grow with the store; the file has its name when it is whole and durable.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from quire.engine.engine import Engine
from quire.engine.moving.paging import pages
from quire.errors import AlreadyExists, Denied, InvalidKey, NotFound, StorageFull, StorageUnavailable, Unsupported
from quire.model import REDACTED, RESTORED, WORKFLOWS, Record, changes_of
from quire.threads import aside

_GROUP_ROWS = 50_000
_GROUP_BYTES = 32 * 1024 * 1024
"""Of changes and messages in one group of rows: what reading one costs, and writing holds in memory, a few times over."""


async def export(engine: Engine, ids: AsyncIterator[str], path: str, *, replace: bool) -> int:
    """Write the versions of workflows to a file; return how many. See `Store.export_table`."""
    if find_spec("pyarrow") is None:
        raise Unsupported(
            "writing Parquet needs a library that is not installed (pyarrow): pip install 'quire[parquet]'",
            capability="parquet",
        )
    if not path or "\0" in path:
        raise InvalidKey("a table needs the path of a file")
    target = Path(path)
    if await aside(os.path.lexists, target) and not replace:
        raise AlreadyExists(f"{path} exists; name another file, or say that it is to be replaced")
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        table = await aside(_Table, part)
        try:
            async for group in _groups(engine, ids):
                await aside(table.add, group)
        finally:
            await aside(table.close)
        await aside(_finished, part, target)
    except FileNotFoundError as cause:
        raise NotFound(f"{target.parent}: there is no such folder") from cause
    except PermissionError as cause:
        raise Denied(f"{path}: you may not write there") from cause
    except OSError as cause:
        kind = StorageFull if cause.errno == 28 else StorageUnavailable
        raise kind(f"{path}: {cause.strerror or cause}; no table was written") from cause
    finally:
        await aside(partial(part.unlink, missing_ok=True))
    return table.rows


async def _groups(engine: Engine, ids: AsyncIterator[str]) -> AsyncGenerator[list[Record]]:
    group: list[Record] = []
    size = 0
    async for workflow_id in ids:
        async for r in pages(engine.backend, WORKFLOWS + workflow_id):
            group.append(r)
            size += len(r.body) + len(r.message)
            if size >= _GROUP_BYTES or len(group) >= _GROUP_ROWS:
                yield group
                group, size = [], 0
    if group:
        yield group


class _Table:
    """The file that is written."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text: Any = pa.string()
        self._schema: Any = pa.schema(
            [
                pa.field("position", pa.int64(), nullable=False),
                pa.field("workflow", text, nullable=False),
                pa.field("version", pa.int64(), nullable=False),
                pa.field("time", pa.timestamp("ms", tz="UTC"), nullable=False),
                pa.field("author", text, nullable=False),
                pa.field("message", text, nullable=False),
                pa.field("kind", text, nullable=False),
                pa.field("changes", text, nullable=False),
                pa.field("redacted", pa.bool_(), nullable=False),
                pa.field("chain", text, nullable=False),
            ]
        )
        path.touch(mode=0o600)
        self._batch: Any = pa.record_batch
        self._writer: Any = pq.ParquetWriter(str(path), self._schema, compression="zstd")
        self.rows = 0

    def add(self, group: list[Record]) -> None:
        columns: list[list[Any]] = [
            [r.position for r in group],
            [r.stream.removeprefix(WORKFLOWS) for r in group],
            [r.version for r in group],
            [r.time for r in group],
            [r.author for r in group],
            [r.message for r in group],
            [r.kind for r in group],
            [_changes(r) for r in group],
            [r.body.startswith(REDACTED) for r in group],
            [r.chain.hex() for r in group],
        ]
        self._writer.write_batch(self._batch(columns, schema=self._schema))
        self.rows += len(group)

    def close(self) -> None:
        self._writer.close()


def _changes(r: Record) -> str:
    body = msgspec.json.encode(changes_of(r)) if r.body.startswith((REDACTED, RESTORED)) else r.body
    return body.decode()


def _finished(part: Path, target: Path) -> None:
    """Give a file its name, durably."""
    for each in (part, None, target.absolute().parent):
        if each is None:
            part.replace(target)
            continue
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
