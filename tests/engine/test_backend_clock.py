"""What we know of the backend's clock: how wrong it may be, when it is asked again, and what becomes of failures."""

import logging
import time

import pytest

import quire
from quire.config import Settings
from quire.engine.clock import FakeClock, SystemClock, system_ids
from quire.engine.engine import Engine
from quire.errors import StorageFull
from quire.storage.memory import MemoryBackend, open_memory
from quire.testing.servers.fixtures import shared
from quire.testing.servers.nats import NatsServer
from quire.testing.servers.postgres import PostgresServer
from quire.testing.servers.redis import RedisServer


class Slow:
    """A backend in memory whose commits take a while before and after they happen, and fail when they are to."""

    def __init__(self, inner: MemoryBackend, clock: FakeClock):
        self._inner = inner
        self._clock = clock
        self.before_s = self.after_s = 0.0
        self.full = False
        self.commits = 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    async def commit(self, items):
        self.commits += 1
        if self.full:
            raise StorageFull("no space left")
        await self._clock.wind(self.before_s)
        outcomes = await self._inner.commit(items)
        await self._clock.wind(self.after_s)
        return outcomes


@pytest.fixture
async def made():
    clock = FakeClock()
    inner = await open_memory(namespace="n", now_ms=lambda: clock.now_ms() + 5_000)
    backend = Slow(inner, clock)
    engine = Engine(backend, Settings(), clock, system_ids(), 0)
    yield engine, backend, clock
    await engine.close()


@pytest.mark.parametrize(("before_s", "after_s"), [(0, 0), (2, 0), (0, 2), (1, 3)])
async def test_the_first_reading_is_off_by_half_of_what_its_commit_took(made, before_s, after_s):
    engine, backend, clock = made
    backend.before_s, backend.after_s = before_s, after_s
    reading = await engine.backend_clock.reading()
    assert reading.off_ms == (before_s + after_s) * 500
    assert abs(reading.now_ms() - clock.now_ms() - 5_000) <= reading.off_ms
    await clock.wind(7)
    assert engine.backend_clock.now_ms() == reading.now_ms()


async def test_time_moves_only_as_far_as_a_later_reading_contradicts(made):
    engine, backend, clock = made
    backend.after_s = 2
    first = await engine.backend_clock.reading()
    backend.before_s, backend.after_s = 2, 0
    await clock.wind(60)
    before = first.now_ms()
    later = await engine.backend_clock.reading()
    assert later is not first
    assert later.now_ms() - before == 2_000 + 1_000, "no further than the new one asks for"
    assert abs(later.now_ms() - clock.now_ms() - 5_000) <= later.off_ms == 2_000
    backend.after_s = 9
    await clock.wind(60)
    slow = await engine.backend_clock.reading()
    assert slow.now_ms() == clock.now_ms() + 5_000, "one that is worse and agrees changes nothing"


async def test_a_first_reading_that_fails_is_told_and_a_later_one_is_counted_on_from(made, caplog):
    engine, backend, clock = made
    backend.full = True
    with pytest.raises(StorageFull):
        await engine.backend_clock.reading()
    backend.full = False
    first = await engine.backend_clock.reading()
    backend.full = True
    await clock.wind(3600)
    with caplog.at_level(logging.WARNING, "quire.engine"):
        assert await engine.backend_clock.reading() is first
    assert "no space left" in caplog.text
    assert first.now_ms() == clock.now_ms() + 5_000
    backend.full = False
    assert await engine.backend_clock.reading() is not first


async def test_a_fresh_reading_costs_nothing(made):
    engine, backend, clock = made
    await engine.backend_clock.reading()
    await clock.wind(59)
    await engine.backend_clock.reading()
    assert backend.commits == 1


class In1970(SystemClock):
    """A clock that is set wrong; elapsed time is right."""

    def now_ms(self):
        return super().now_ms() - 1_700_000_000_000


@pytest.mark.parametrize("kind", ["sqlite", "file", "rocksdb", PostgresServer, RedisServer, NatsServer])
async def test_every_store_tells_its_time_to_a_process_whose_clock_is_wrong(kind, tmp_path):
    url = f"{kind}:///{tmp_path}/s" if isinstance(kind, str) else shared(kind).place(tmp_path)
    async with quire.open(url, clock=In1970()) as store:
        reading = await store.engine.backend_clock.reading()
        before, told, after = time.time() * 1000, reading.now_ms(), time.time() * 1000
        assert before - reading.off_ms - 2 <= told <= after + reading.off_ms + 2  # whole milliseconds, on both sides
