"""Thread pool for user functions that may block.

1. A function runs in a thread with its caller's context variables, at most `Settings.threads_max` at once. Further calls
   queue. A call whose caller is cancelled while it is queued never begins; one that has begun cannot be stopped.
2. A call made from within another, such as a `replay` that needs reducers in a handler, runs in a lane of its own, which
   has as many threads again. A call therefore never waits for a thread that waits for it: lane 1 serves lane 0, lane 2
   serves lane 1, and so on.
3. At close nothing more begins. Running functions are waited for up to `_CLOSE_S`; then they are named in the log and left
   alone. Threads are daemons: a function that hangs does not keep the program from ending. A program that ends without
   closing its store cuts running functions off.

Quire's own jobs that take long run in pools of their own, see `aside` and `apart`. What functions raise is quire/calls.py's to decide.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Generic, TypeVar, cast
from weakref import finalize

from quire.calls import awaited, call, name_of
from quire.errors import Closed, StorageUnavailable

T = TypeVar("T")

log = logging.getLogger("quire.threads")

_OWN_MOST = 8
"""Threads for what Quire itself computes beside the event loop."""
_APART_MOST = 32
"""Threads for what Quire itself waits for: files, locks, object stores."""
_CLOSE_S = 5.0
"""How long `close` waits for running functions; those that take longer are left alone."""
_IDLE_S = 10.0
"""A thread without work for so long ends, unless the pool keeps its threads."""


class Call(Generic[T]):
    """One call of a plain function in a thread of `Threads`."""

    __slots__ = ("__weakref__", "_context", "_done", "_lane", "_loop", "_work", "name")

    def __init__(self, lane: _Lane, fn: Callable[..., T], args: tuple[Any, ...]) -> None:
        self.name = name_of(fn)
        self._lane = lane
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[tuple[T | None, Exception | None]] = self._loop.create_future()
        self._context = copy_context()
        self._context.run(_within.set, (*_within.get(), self))
        self._work: tuple[Callable[..., T], tuple[Any, ...]] | None = (fn, args)

    async def result(self) -> T:
        """Return the function's result when it has ended. Cancelling this leaves the call as it is. Raises as `call`."""
        result, error = await asyncio.shield(self._done)
        if error is not None:
            raise error
        return cast("T", result)

    @property
    def begun(self) -> bool:
        """True if the function was called."""
        return self._work is None

    async def ended(self) -> None:
        """Wait until the function has ended, however it did."""
        await asyncio.wait([self._done])

    def withdraw(self) -> bool:
        """Drop the call if it is queued still; False if the function has begun: it cannot be stopped."""
        return self._lane.withdrawn(self)

    def run(self) -> None:
        """Call the function, in a thread of the lane. Raises nothing."""
        assert self._work is not None
        (fn, args), self._work = self._work, None
        result: T | None = None
        error: Exception | None = None
        try:
            result = self._context.run(call, fn, *args)
        except Exception as caught:  # noqa: BLE001 - of a user's function: it is the caller's
            error = caught
        del self._context  # which holds the call in turn
        self.answer(result, error)
        del error  # whose traceback holds this frame

    def answer(self, result: T | None, error: Exception | None) -> None:
        """Tell the caller. From any thread."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: T | None, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result((result, error))


_within: ContextVar[tuple[Call[Any], ...]] = ContextVar("quire_within", default=())
"""The calls within which this code runs, outermost first."""


class _Lane:
    """Daemon threads that take calls from one queue; they are started when needed and end when idle."""

    def __init__(self, most: int, name: str, idle_s: float | None) -> None:
        self._most = most
        self._name = name
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._queue: deque[Call[Any]] = deque()
        self._count = 0
        self._idle = 0
        self._stopped = False
        self.running: set[Call[Any]] = set()

    def put(self, made: Call[Any]) -> None:
        """Queue a call. Raises Closed, StorageUnavailable where the system has no thread for it."""
        with self._changed:
            if self._stopped:
                raise Closed("the store is closed; open it again")
            self._queue.append(made)
            if self._idle >= len(self._queue):
                self._changed.notify()
            elif self._count < self._most:
                thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True)
                try:
                    thread.start()
                except RuntimeError as cause:
                    if not self._count:
                        self._queue.remove(made)
                        raise StorageUnavailable(f"no thread for {made.name} could be started: {cause}") from cause
                else:
                    self._count += 1

    def withdrawn(self, made: Call[Any]) -> bool:
        """Take a call out of the queue; False if it is not there any more."""
        with self._changed:
            try:
                self._queue.remove(made)
            except ValueError:
                return False
            return True

    def stop(self) -> None:
        """Begin nothing more; queued calls fail with Closed."""
        with self._changed:
            self._stopped = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for made in left:
            made.answer(None, Closed(f"the store was closed before {made.name} began"))

    def _serve(self) -> None:
        while (made := self._next()) is not None:
            made.run()
            with self._changed:
                self.running.discard(made)
            del made  # a result must not live until the next call comes

    def _next(self) -> Call[Any] | None:
        """Return the next call; None when this thread is to end."""
        with self._changed:
            while not self._queue:
                self._idle += 1
                woken = not self._stopped and self._changed.wait(self._idle_s)
                self._idle -= 1
                if not self._queue and (self._stopped or not woken):
                    self._count -= 1
                    return None
            made = self._queue.popleft()
            self.running.add(made)
            return made


class Threads:
    """Thread pool of at most `most` threads in each lane. Starts a thread when a call needs it.

    A pool that is dropped without `close` ends its idle threads when it is collected.
    """

    def __init__(self, most: int, name: str = "quire", *, idle_s: float | None = _IDLE_S) -> None:
        """idle_s: a thread without work for so long ends; None: never, so with `most=1` one thread serves every call."""
        self.most = most
        self._name = name
        self._idle_s = idle_s
        self._lanes: list[_Lane] = []
        self._stopped = False
        finalize(self, _stop, self._lanes).atexit = False

    def begin(self, fn: Callable[..., T], *args: Any) -> Call[T]:
        """Queue a call from the event loop. Raises Closed, StorageUnavailable where no thread can be started."""
        if self._stopped:
            raise Closed("the store is closed; open it again")
        depth = len(_within.get())
        while len(self._lanes) <= depth:
            self._lanes.append(_Lane(self.most, f"{self._name}-{len(self._lanes)}", self._idle_s))
        made = Call(self._lanes[depth], fn, args)
        self._lanes[depth].put(made)
        return made

    async def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function in a thread, and wait on the loop for what it returns if that is awaitable.

        A caller that is cancelled leaves at once; a function that has begun goes on without it. Raises as `call_async`.
        """
        made = self.begin(fn, *args)
        try:
            answer = await made.result()
        except asyncio.CancelledError:
            made.withdraw()
            raise
        return await awaited(answer, fn)

    def stop(self) -> None:
        """Begin nothing more, and wait for nothing. From any thread; repeating is harmless."""
        self._stopped = True
        _stop(self._lanes)

    async def close(self) -> None:
        """Begin nothing more, and wait up to `_CLOSE_S` for running functions, except those that called this."""
        self.stop()
        running = {made for lane in self._lanes for made in list(lane.running)} - set(_within.get())
        if running:
            ends = [asyncio.ensure_future(made.ended()) for made in running]
            _, late = await asyncio.wait(ends, timeout=_CLOSE_S)
            for each in late:
                each.cancel()
            left = sorted(made.name for made, ended in zip(running, ends, strict=True) if ended in late)
            if left:
                log.warning("still running %g s after the store was to close, and left alone: %s", _CLOSE_S, left)


def _stop(lanes: list[_Lane]) -> None:
    for lane in list(lanes):
        lane.stop()


_own, _apart = Threads(_OWN_MOST, "quire-own"), Threads(_APART_MOST, "quire-apart")
_left: list[Threads] = []


def _begin_anew() -> None:
    """In the child of a fork, where the threads are not."""
    global _own, _apart
    _left.extend((_own, _apart))  # to end them would take a lock that a thread of the parent may have held
    _own, _apart = Threads(_OWN_MOST, "quire-own"), Threads(_APART_MOST, "quire-apart")


os.register_at_fork(after_in_child=_begin_anew)


async def aside(work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`, done in a thread, so that the event loop goes on. For code of Quire's own that waits for nobody.

    The loop's default pool would not do: the program may fill it with functions that wait for Quire.
    Raises StorageUnavailable where no thread can be started; then the work is not done.
    """
    return cast("T", await _own.call(work, *args))


async def apart(work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`, done in a thread as `aside` does, but that may wait: for a disk, a lock, a server."""
    return cast("T", await _apart.call(work, *args))


async def beside(large: bool, work: Callable[..., T], *args: Any) -> T:
    """Return `work(*args)`, done as `aside` where it is large."""
    return await aside(work, *args) if large else work(*args)
