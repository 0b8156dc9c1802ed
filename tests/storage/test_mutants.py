"""With one mistake in the reference backend, the suite and the machine notice: neither passes everything."""

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from quire.storage.memory import MemoryBackend, open_memory
from quire.testing.conformance import BackendConformance, broken_promises
from quire.testing.machine import MACHINE, BackendMachine
from quire.testing.mutants import MUTANTS

QUICK = settings(MACHINE, max_examples=500, phases=[Phase.generate], derandomize=True, database=None)


class Sound(BackendConformance):
    kind = MemoryBackend

    async def open(self, namespace="default"):
        backend = await open_memory(str(self.place), namespace=namespace, now_ms=self.now_ms)
        backend.__class__ = self.kind
        return backend


class SoundMachine(BackendMachine):
    kind, open = MemoryBackend, Sound.open


@pytest.mark.parametrize(("mutant", "promise"), [(m, p) for m, (p, _) in MUTANTS.items()])
def test_the_suite_notices(mutant, promise):
    assert broken_promises(type("Broken", (Sound,), {"kind": mutant}), [promise]) == [promise]
    assert broken_promises(Sound, [promise]) == []


@pytest.mark.parametrize("mutant", [m for m, (_, machine) in MUTANTS.items() if machine])
def test_the_machine_notices(mutant):
    with pytest.raises((AssertionError, KeyError)):
        run_state_machine_as_test(type("Broken", (SoundMachine,), {"kind": mutant}), settings=QUICK)
