"""A thread that does one job after the other, in the order they were asked for.

A commit that was asked for is done even if whoever asked stops waiting: what comes after it may count on it.
Answers come back with one wake-up of the event loop that asked.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_REST_S = 0.25
"""After this long without a job, what is left for quiet moments is done."""


class Jobs:
    """One thread and its queue."""

    def __init__(
        self,
        name: str,
        translate: Callable[[BaseException], BaseException],
        rest: Callable[[], None] | None = None,
    ) -> None:
        """translate: from the world's exceptions to ours.  rest: run once when it grows quiet after jobs."""
        self.waiting = 0
        """Jobs asked for and not answered yet."""
        self._translate = translate
        self._rest = rest
        self._queue: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any] | None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Queue a job; the future brings its result, or our exception for what it raised."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.waiting += 1
        self._queue.put((job, future))
        return future

    @contextmanager
    def paused(self) -> Generator[None]:
        """Wait until the job at work is done, and keep the next from beginning. Not from this thread itself."""
        idle, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            idle.set()
            go_on.wait()

        self._queue.put((wait, None))
        idle.wait()
        try:
            yield
        finally:
            go_on.set()

    def stop(self) -> None:
        """Finish what is queued and end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        quiet = True
        while True:
            try:
                asked = self._queue.get(timeout=None if quiet else _REST_S)
            except Empty:
                quiet = True
                # Whatever fails here is put off: the next job meets the same trouble and has somebody to tell.
                with suppress(Exception):
                    if self._rest is not None:
                        self._rest()
                continue
            if asked is None:
                return
            self._answer(*asked)
            quiet = self._rest is None
            del asked  # a result must not live until the next job comes

    def _answer(self, job: Callable[[], Any], future: asyncio.Future[Any] | None) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = job()
        except BaseException as caught:  # noqa: BLE001 - handed to whoever asked
            error = self._translate(caught)
        if future is None:
            return
        with suppress(RuntimeError):  # the loop is gone, and with it everybody who could be told
            future.get_loop().call_soon_threadsafe(self._settle, future, result, error)

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self.waiting -= 1
        if future.done():
            return  # whoever asked was cancelled
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
