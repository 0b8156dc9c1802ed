"""One script's conversation: what it asks for, what it is answered, and every limit that is counted on this side.

What comes over the pipe is judged here as if an attacker wrote it. Processor time and memory are the kernel's to limit.

Lines from the script, each a JSON array: ["call", word, verb, ...], ["print", text], ["done", value],
["failed", "error" | "memory", message, line or null]. Each call gets one answer: [true, value] or [false, message].
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from quire.calls import call
from quire.errors import LimitExceeded, ScriptError
from quire.scripting.limits import SLACK_BYTES, Limits
from quire.scripting.process import Process

Answer = Callable[[Sequence[Any]], list[Any]]
"""Does one call, [word, verb, ...], and returns its answer."""

_DEPTH_MAX = 64
"""Of a table that a script hands over; what the store allows is checked there."""
_HINTS = {
    "wall_ms": "milliseconds",
    "cpu_s": "seconds of processor time",
    "memory_bytes": "bytes of memory",
    "output_bytes": "bytes printed",
    "calls": "calls",
    "message_bytes": "bytes in one call",
    "traffic_bytes": "bytes of calls and answers",
    "source_bytes": "bytes of source",
}


class Conversation:
    """A script's process and what it has used so far."""

    def __init__(
        self,
        name: str,
        answer: Answer,
        limits: Limits,
        *,
        on_print: Callable[[str], None] | None = None,
    ) -> None:
        self._name = name
        self._answer = answer
        self._limits = limits
        self._on_print = None if on_print is None else partial(call, on_print)
        self._used = dict.fromkeys(limits.__struct_fields__, 0)
        self._printed: list[str] = []

    @property
    def output(self) -> str:
        """What the script printed so far."""
        return "".join(self._printed)

    async def hold(self, source: str, context: dict[str, Any]) -> Any:
        """Run the script to its end and return its value. Raises ScriptError, LimitExceeded, Unsupported."""
        limits = self._limits
        self._charge("source_bytes", len(source.encode()))
        order = {
            "source": source,
            "name": self._name,
            "context": msgspec.json.encode(context).decode(),
            "memory_bytes": limits.memory_bytes,
            "slack_bytes": SLACK_BYTES + 4 * limits.message_bytes,
            "cpu_s": limits.cpu_s,
            "message_bytes": limits.message_bytes,
            "depth_max": _DEPTH_MAX,
        }
        process = await Process.start(name=self._name, line_max=limits.message_bytes)
        clock = asyncio.get_running_loop().time
        began = clock()
        alarm = asyncio.timeout(limits.wall_ms / 1000)
        try:
            async with alarm:
                return await self._talk(process, msgspec.json.encode(order) + b"\n")
        except TimeoutError:
            if not alarm.expired():
                raise
            raise self._exceeded("wall_ms", round((clock() - began) * 1000)) from None
        finally:
            await process.end()

    async def _talk(self, process: Process, order: bytes) -> Any:
        await process.send(order)
        while True:
            try:
                line = await process.line()
            except asyncio.LimitOverrunError as cause:
                raise self._exceeded("message_bytes", cause.consumed) from None
            if not line:
                raise await self._died(process)
            self._charge("traffic_bytes", len(line))
            match _read(line):
                case ["call", *asked]:
                    self._charge("calls", 1)
                    reply = self._replied(asked)
                    self._charge("traffic_bytes", len(reply))
                    await process.send(reply)
                case ["print", str(text)]:
                    self._charge("calls", 1)
                    self._charge("output_bytes", len(text.encode()) + 1)
                    self._printed.append(text + "\n")
                    if self._on_print is not None:
                        self._on_print(text)
                case ["done", value]:
                    return value
                case ["failed", "memory", _, _]:
                    raise self._exceeded("memory_bytes", self._limits.memory_bytes)
                case ["failed", "error", str(message), int() | None as where]:
                    raise self._failed(message, where)
                case _:
                    raise self._failed("its process said what no script can say; it was stopped", None)

    def _replied(self, asked: list[Any]) -> bytes:
        reply = msgspec.json.encode(self._answer(asked))
        if len(reply) > self._limits.message_bytes:
            said = (
                f"the value is {len(reply):,} bytes as JSON; a script may read {self._limits.message_bytes:,} at once"
            )
            reply = msgspec.json.encode([False, said])
        return reply + b"\n"

    async def _died(self, process: Process) -> Exception:
        code, last = await process.end()
        if code == -signal.SIGXCPU:
            return self._exceeded("cpu_s", self._limits.cpu_s)
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        return self._failed(f"its process ended with {ended}" + (f": {last}" if last else ""), None)

    def _charge(self, limit: str, amount: int) -> None:
        self._used[limit] += amount
        if self._used[limit] > getattr(self._limits, limit):
            raise self._exceeded(limit, self._used[limit])

    def _exceeded(self, limit: str, found: int) -> LimitExceeded:
        allowed = getattr(self._limits, limit)
        return LimitExceeded(
            f"script {self._name} was stopped at {allowed:,} {_HINTS[limit]} (limit {limit}); nothing of it is stored; "
            "let it do less, or give it other Limits",
            limit=limit,
            allowed=allowed,
            found=max(found, allowed),
        )

    def _failed(self, message: str, line: int | None) -> ScriptError:
        where = self._name if line is None else f"{self._name}:{line}"
        text = message.removeprefix(f"{where}: ")
        return ScriptError(
            f"{where}: {text}; nothing of it is stored", script=self._name, line=line, output=self.output
        )


def _read(line: bytes) -> Any:
    """Return what a line says, None if it is not JSON: then nobody's script wrote it."""
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
