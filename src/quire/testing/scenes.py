"""What every store on a server has to stand, whatever the server is: written once, called by each backend's own tests.

A scene is given what is the backend's own (a URL, how to break it, how to see that it listens) and raises AssertionError,
or what pytest raises, where the promise is not kept.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import quire
from quire.errors import Closed, InvalidKey, StorageError, StorageUnavailable
from quire.model import Head
from quire.storage.base import Backend, Committed, Item
from quire.storage.open import open_backend
from quire.testing._conformance_base import after, begun, chain
from quire.testing.servers import Server

_RIVALS, _WRITERS, _WRITES = 2, 4, 5
_RIVAL = """
import asyncio, sys, quire
async def main(url, who, writers, writes):
    async with quire.open(url) as store:
        wf = store.workflow("w")
        async def one(k):
            for i in range(int(writes)):
                async with wf.edit(author=who) as state:
                    state.increment("n")
                    state["log"].append(f"{who}-{k}-{i}")
        await asyncio.gather(*(one(k) for k in range(int(writers))))
asyncio.run(main(*sys.argv[1:]))
"""
_WITHOUT = """
import asyncio, sys
sys.modules[sys.argv[1]] = None
from quire.storage.open import open_backend
try: asyncio.run(open_backend(sys.argv[2], namespace="default"))
except Exception as error: print(type(error).__name__, error)
"""


@asynccontextmanager
async def opened(url: str, namespace: str = "default") -> AsyncGenerator[Any]:
    """Open a backend, and close it again. Its own parts are looked into, so its type is nobody's business here."""
    backend = await open_backend(url, namespace=namespace)
    try:
        yield backend
    finally:
        await backend.close()


def following(stream: str, version: int, body: bytes = b"[]") -> Item:
    """Return an item that adds a record to a stream of the conformance suite's records."""
    return after(Head(stream, version, chain(stream, version)), body)


async def bad_url(url: str) -> None:
    """A URL that is none is refused, with a sentence on what to write instead."""
    with pytest.raises(InvalidKey) as caught:
        await open_backend(url, namespace="default")
    assert len(str(caught.value)) > 20


async def nobody_there(url: str, *, remedy: str) -> None:
    """Where nothing listens, opening says what to start."""
    with pytest.raises(StorageUnavailable, match=remedy):
        await open_backend(url, namespace="default")


def missing_driver(module: str, url: str, *, extra: str) -> None:
    """Without the driver's package, opening names the extra that brings it."""
    said = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", _WITHOUT, module, url], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("Unsupported ")
    assert f"pip install 'quire[{extra}]'" in said


async def forked(backend: Any) -> None:
    """A handle from before a fork is closed in the child."""
    backend._pid += 1
    with pytest.raises(Closed, match="fork"):
        await backend.streams()
    backend._pid -= 1


async def fail_in_a_row(backend: Backend, kind: type[StorageError], heal: Callable[[], object] = int) -> None:
    """After a call that failed, none of those behind it takes effect until `recover`; then writing goes on.

    backend: the next call of its `commit` fails with `kind`.  heal: ends what makes it fail.
    """
    before = await backend.streams()
    calls = [asyncio.create_task(backend.commit([begun(f"t/{i}", b"1")])) for i in range(5)]
    first, *others = await asyncio.gather(*calls, return_exceptions=True)
    heal()
    assert isinstance(first, kind)
    assert all(isinstance(error, StorageUnavailable) for error in others), others
    with pytest.raises(StorageUnavailable, match="recover"):
        await backend.commit([begun("t/6", b"1")])
    await backend.recover()
    assert await backend.streams() == before
    assert isinstance((await backend.commit([begun("t/6", b"1")]))[0], Committed)


async def waiter_told(server: Server, backend: Backend, listens: Callable[[], object]) -> None:
    """Who waits for news is told when the server goes. listens: whether the backend waits on the server by now."""
    waiting = asyncio.create_task(backend.changed(0, timeout_s=1000))
    while not listens():  # noqa: ASYNC110 - the backend tells nobody when it begins to listen
        await asyncio.sleep(0)
    server.kill()
    with pytest.raises(StorageUnavailable):
        await waiting


def rivals(url: str) -> None:
    """Two processes write to one workflow, and lose nothing."""
    with quire.sync.open(url) as store:
        store.create("w", {"n": 0, "log": []})
    command = [sys.executable, "-c", _RIVAL, url]
    crowd = [
        subprocess.Popen([*command, f"p{i}", str(_WRITERS), str(_WRITES)])  # noqa: S603 - our own command
        for i in range(_RIVALS)
    ]
    assert [rival.wait(60) for rival in crowd] == [0] * _RIVALS
    with quire.sync.open(url) as store:
        state = store.workflow("w").state()
        assert state["n"] == len(set(state["log"])) == _RIVALS * _WRITERS * _WRITES
        assert store.verify().ok
