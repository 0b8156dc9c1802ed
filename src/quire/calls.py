"""Calls of user functions, and the exceptions that they raise.

User functions are steps, handlers, triggers and their conditions, hooks, guards, policies, reducers, upcasters, migrations,
`update` functions, a retention rule, callbacks. Each may raise anything. Every call of one goes through this module, so the
caller needs `except Exception` and no more, and reports the same error for all of them.

1. An ordinary exception is the function's failure. It is raised as it is.
2. Exceptions that coroutines, generators, futures and tasks take for a signal to themselves are its failure, too:
   StopIteration, StopAsyncIteration, GeneratorExit, a CancelledError although the task was not cancelled, a
   BaseExceptionGroup, any other BaseException. FunctionFailed is raised instead, with the original as its cause. Python
   itself turns a StopIteration out of a coroutine into a RuntimeError that names it (PEP 479).
3. KeyboardInterrupt and SystemExit, also inside a group, end the program if they are raised in the main thread: they pass.
   In any other thread rule 2 holds: Ctrl-C does not reach it, and its exit ends no program.
4. A cancellation of the task stays one: CancelledError passes if the task was cancelled since the call began. A task that
   Quire ends with `end` ends even if the user function swallows the cancellation: see `check_end`.

The thread pool for user functions that may block is in quire/threads.py.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar, cast
from weakref import WeakSet

from quire.errors import FunctionFailed

T = TypeVar("T")

_WORDS_MAX = 1000
"""Characters of an exception's message; longer ones are cut."""
_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def call(fn: Callable[..., T], *args: Any) -> T:
    """Call a plain function here and now. Raises what it raises, as an Exception: rules 1 to 3. Cost: 0.1 us.

    >>> call(next, iter([]))
    Traceback (most recent call last):
    quire.errors.FunctionFailed: next raised StopIteration; ...
    """
    try:
        return fn(*args)
    except BaseException as error:
        told = failure(error, fn)
        if told is error:
            raise
        raise told from error


async def call_async(fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function, plain or async, on the event loop and return its result. Raises as `call`, and rule 4."""
    return await awaited(call(fn, *args), fn)


async def awaited(answer: Any, fn: object = None) -> Any:
    """Return a function's answer, or what it gives when awaited if it is awaitable. Raises as `call_async`."""
    if not inspect.isawaitable(answer):
        return answer
    task = asyncio.current_task()
    assert task is not None
    asked = task.cancelling()
    try:
        return await answer
    except asyncio.CancelledError as error:
        if task.cancelling() > asked:
            raise
        raise failure(error, fn) from error
    except GeneratorExit as error:
        if _current() is not task:
            raise  # the loop is gone and the coroutine is being closed
        raise failure(error, fn) from error
    except BaseException as error:
        told = failure(error, fn)
        if told is error:
            raise
        raise told from error


def failure(error: BaseException, fn: object = None) -> BaseException:
    """Return the exception to raise for one that a user function raised in this thread: rules 1 to 3.

    fn: the function, for the message.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    ends = _ends_program(error)
    if ends is not None:
        return ends
    named = "a function given to Quire" if fn is None else name_of(fn)
    idle = " though nobody cancelled it" if isinstance(error, asyncio.CancelledError) else ""
    told = FunctionFailed(f"{named} raised {in_words(error)}{idle}; have it raise an exception of its own to fail")
    told.__cause__ = error
    return told


def raised(error: BaseException) -> BaseException:
    """Return the exception that the function itself raised: the cause of FunctionFailed, any other as it is."""
    return error.__cause__ if isinstance(error, FunctionFailed) and error.__cause__ is not None else error


def in_words(error: BaseException) -> str:
    """Return the type and message of an exception as one line of bounded length that can be stored and shown.

    >>> in_words(ValueError("no such\\n  tide")), in_words(StopIteration())
    ('ValueError: no such tide', 'StopIteration')
    """
    error = raised(error)
    name, message = type(error).__name__, message_of(error)
    return f"{name}: {message}" if message else name


def message_of(value: object) -> str:
    """Return `str(value)` as one line of bounded length; if `str` raises, a sentence that says so."""
    try:
        text = str.__str__(str(value))  # of the type itself: a subclass of str may do anything
    except BaseException as error:
        if _ends_program(error) is not None:
            raise
        return f"(its message cannot be shown: str() raised {type(error).__name__})"
    cut = text if len(text) <= _WORDS_MAX else text[: _WORDS_MAX - 1] + "…"
    line = _BREAKS.sub(" ", cut)
    return line if line.isprintable() else "".join(map(_printable, line))


def name_of(fn: Any) -> str:
    """Return the name of a function for messages."""
    with suppress(Exception):
        named, module = fn.__qualname__, fn.__module__
        if isinstance(named, str):
            return named if module in (None, "builtins") else f"{module}.{named}"
    return type(fn).__qualname__


def _printable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _ends_program(error: BaseException) -> BaseException | None:
    """Return the KeyboardInterrupt or SystemExit that an exception is or holds, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return next((e for e in _flat(error) if isinstance(e, KeyboardInterrupt | SystemExit)), None)


def _flat(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _flat(inner)
    else:
        yield error


def _current() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


_ending: WeakSet[asyncio.Task[Any]] = WeakSet()


def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task for good, such as one that delivers events to a user function: see `check_end`."""
    _ending.add(task)
    task.cancel()


def check_end() -> None:
    """Raise CancelledError if `end` was called for this task and its user function swallowed the cancellation."""
    if asyncio.current_task() in _ending:
        raise asyncio.CancelledError
