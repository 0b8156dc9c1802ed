"""The reference backend keeps the protocol, and the suite notices backends that do not."""

import msgspec
import pytest

from quire.storage.memory import MemoryBackend, open_memory
from quire.testing.conformance import BackendConformance


class TestMemory(BackendConformance):
    async def open(self, namespace="default"):
        return await open_memory(f"test{id(self.place)}", namespace=namespace)


class Heedless(MemoryBackend):
    """Ignores what is expected."""

    def _refusal(self, space, item):
        return super()._refusal(space, msgspec.structs.replace(item, expect=()))


@pytest.mark.parametrize("promise", ["test_a_stale_item_is_refused_and_told_the_head", "test_one_of_many_wins_the_same_version", "test_another_chain_is_another_head"])
async def test_a_backend_that_ignores_heads_is_caught(promise, tmp_path):
    db = await open_memory(namespace="default")
    db.__class__ = Heedless
    with pytest.raises(AssertionError):
        await getattr(TestMemory(), promise)(db)
