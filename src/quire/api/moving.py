"""Moving a store to another place: opens the target, copies, closes it."""

from __future__ import annotations

from collections.abc import Callable

from quire.config import Compression
from quire.engine.engine import Engine
from quire.engine.moving.copying import Copied, Step, copy
from quire.errors import Invalid
from quire.storage.open import open_backend


async def copy_to(
    engine: Engine,
    url: str,
    *,
    namespace: str,
    encryption_key: bytes | None,
    compression: Compression | str | None,
    progress: Callable[[Step], None] | None,
) -> Copied:
    """Copy what an engine holds to the store at a URL: see `Store.copy_to`."""
    engine.check_open("copy it")
    if isinstance(url, str) and url.partition("?")[0].lower() in ("memory:", "memory:/", "memory://"):
        raise Invalid("a private store in memory is gone as soon as it was copied to; give it a name: memory:NAME")
    if progress is not None and not callable(progress):
        raise Invalid("progress is a function of a Step")
    target = await open_backend(url, namespace=namespace, encryption_key=encryption_key, compression=compression)
    try:
        return await copy(engine.backend, target, ids=engine.ids, progress=progress)
    finally:
        await target.close()
