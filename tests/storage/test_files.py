"""A folder of files keeps the protocol, and answers as the reference does."""

from quire.storage.files import open_files
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestFiles(BackendConformance):
    async def open(self, namespace="default", folder="store"):
        return await open_files(str(self.place / folder), namespace=namespace, now_ms=self.now_ms)

    async def open_copy(self, path):
        return await self.open(folder=path)


class TestFilesOfAnotherEnding(TestFiles):
    async def open(self, namespace="default", folder="store"):
        path = str(self.place / folder)
        return await open_files(path, namespace=namespace, now_ms=self.now_ms, extension=".json")


class FilesMachine(BackendMachine):
    open = TestFiles.open


TestFilesMachine = FilesMachine.TestCase
TestFilesMachine.settings = MACHINE
