"""The public API on both of the backends that need no server."""

import pytest

import quire


@pytest.fixture(params=["memory:", "file"])
async def store(request, tmp_path):
    url = request.param if request.param == "memory:" else str(tmp_path / "s.db")
    async with quire.open(url) as store:
        yield store
