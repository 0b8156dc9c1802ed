"""The reference backend keeps the protocol."""

from __future__ import annotations

from quire.storage.memory import open_memory
from quire.testing.conformance import BackendConformance


class TestMemory(BackendConformance):
    async def open(self, namespace="default"):
        return await open_memory(str(self.place), namespace=namespace, now_ms=self.now_ms)
