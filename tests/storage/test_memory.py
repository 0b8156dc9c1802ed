"""The reference backend keeps the protocol, and the machine finds nothing between two of its kind."""

from quire.storage.memory import open_memory
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestMemory(BackendConformance):
    async def open(self, namespace="default"):
        return await open_memory(str(self.place), namespace=namespace, now_ms=self.now_ms)


class MemoryMachine(BackendMachine):
    open = TestMemory.open


TestMemoryMachine = MemoryMachine.TestCase
TestMemoryMachine.settings = MACHINE
