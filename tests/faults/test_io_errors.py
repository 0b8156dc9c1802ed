"""Failing writes and syncs, at every call in turn: acknowledged survives, failed is said, the store goes on."""

import contextlib

import pytest

from quire.api.store import Store
from quire.config import Settings
from quire.engine.clock import SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import StorageError
from quire.storage.sqlite import open_sqlite
from quire.testing.faults import Plan, failing_vfs, trouble


@contextlib.asynccontextmanager
async def opened(path, vfs=None):
    backend = await open_sqlite(path, namespace="n", vfs=vfs)
    store = Store(Engine(backend, Settings(), SystemClock(), system_ids(), await backend.latest()), "n")
    yield store
    await store.close()


async def troubled(path, plan):
    with failing_vfs(plan) as vfs:
        return await trouble(opened(path, vfs), opened(path), plan)


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("kind", ["write", "sync", "full"])
async def test_every_call_may_fail(tmp_path, kind, lasting, through):
    trouble_seen = 0
    for at in range(1, 200):
        plan = Plan(kind, at, lasting=lasting, through=through)
        failed, unknown = await troubled(str(tmp_path / f"{at}.db"), plan)
        trouble_seen += len(failed) + len(unknown)
        if not plan.fired:
            break
    assert at > 2
    assert not plan.fired
    assert trouble_seen or through


async def test_the_check_notices_an_acknowledgement_that_was_none(tmp_path, monkeypatch):
    """The control: a store that takes a failed commit for done is caught."""
    from quire.engine import committer
    from quire.storage.base import Committed

    async def hopeful(self, items, error):
        return [Committed(1, len(i.records)) for i in items]

    monkeypatch.setattr(committer.Committer, "_look", hopeful)
    with pytest.raises((AssertionError, StorageError)):
        for at in range(1, 12):
            with contextlib.suppress(ValueError):
                await troubled(str(tmp_path / f"{at}.db"), Plan("full", at))
