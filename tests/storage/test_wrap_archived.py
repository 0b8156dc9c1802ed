"""An archive around memory, SQLite and under encryption and compression keeps the protocol, and answers as the reference does.

The machine moves old records there at any moment: nobody who reads may notice.
"""

import hypothesis.strategies as st
from hypothesis.stateful import rule

from quire.core import keyframes
from quire.model import Head
from quire.storage.memory import open_memory
from quire.storage.sqlite import open_sqlite
from quire.storage.wrap.archived import open_archived
from quire.storage.wrap.compressed import open_compressed
from quire.storage.wrap.encrypted import open_encrypted
from quire.testing.conformance import BackendConformance
from quire.testing.machine import MACHINE, BackendMachine


class TestArchivedMemory(BackendConformance):
    async def open(self, namespace="default"):
        inner = await open_memory(f"a{self.place}", namespace=namespace, now_ms=self.now_ms)
        return await open_archived(inner, namespace=namespace, place=f"memory:a{self.place}")


class TestPackedSqlite(BackendConformance):
    async def open(self, namespace="default", file="s.db"):
        inner = await open_sqlite(str(self.place / file), namespace=namespace, now_ms=self.now_ms)
        return await open_archived(inner, namespace=namespace, place="store:")

    async def open_copy(self, path):
        return await self.open(file=path)


class TestCompressedEncryptedArchivedSqlite(BackendConformance):
    async def open(self, namespace="default", file="s.db"):
        inner = await open_sqlite(str(self.place / file), namespace=namespace, now_ms=self.now_ms)
        inner = await open_archived(inner, namespace=namespace, place=str(self.place / "archive"))
        return await open_compressed(await open_encrypted(inner, namespace=namespace, key=bytes(32)))

    async def open_copy(self, path):
        return await self.open(file=path)


class ArchivedMachine(BackendMachine):
    open = TestArchivedMemory.open

    @rule(
        namespace=st.sampled_from(("one", "two")),
        pick=st.integers(0, 9),
        upto=st.integers(-1, 9),
        keep=st.sets(st.integers(1, 9), max_size=2),
    )
    def shelve(self, namespace, pick, upto, keep):
        """Old records go to the archive, some of them stay within reach; the reference knows nothing of it."""
        stream = self._there(namespace, pick)
        (head,) = self._run(self._model[namespace].heads([stream]))
        first = self._run(self._model[namespace].read(stream, limit=1))
        if not first:
            return
        upto = min(upto, head.version - 1)
        keep = {v for v in keep if first[0].version <= v <= upto}
        for version in (upto + 1, *sorted(keep)):
            self._same(namespace, "put_keyframe", frame(stream, version))
        shelve = self._subject[namespace].shelve
        self._run(shelve(stream, upto, keep=keep))
        assert self._run(shelve(stream, upto, keep=keep)) == 0

    @rule(namespace=st.sampled_from(("one", "two")), pick=st.integers(0, 9), upto=st.integers(-1, 9))
    def trim(self, namespace, pick, upto):
        """What is removed takes its keyframes along where it was in the archive."""
        stream = self._there(namespace, pick)
        self._same(namespace, "trim", stream, upto)
        self._same(namespace, "drop_keyframes", stream, range(-1, upto + 1))


def frame(stream, version):
    return keyframes.make(Head(stream, version, bytes(32), ""), {"v": version})


TestArchivedMachine = ArchivedMachine.TestCase
TestArchivedMachine.settings = MACHINE
