"""One JetStream stream: what is asked of it, and how messages are put there together.

Where it has replicas, any of them may answer a direct get, and one may be behind. So what has to be current is compared
with what the leader says, and asked again until it is.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from quire.errors import LimitExceeded, StorageTimeout, StorageUnavailable
from quire.storage._nats_rows import About, Stored, header, stored
from quire.storage._nats_wire import Again, Refusal, Wire, damaged, status

T = TypeVar("T")

BATCH_MAX = 1000
"""Messages of an atomic batch: a limit of the server."""
_LAST_MAX = 1000
"""Subjects asked for in one question; the server answers 1,024 at most."""
_PAGE_BYTES = 8 << 20
_HEADERS_BYTES = 2048
"""Room left in a message for headers."""
_AT_ONCE = 64
GONE = 10059
"""The server's number for a stream that it does not know."""
_NOT_THERE = (10037, 10043, 10057)
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.01, 0.25


class Out(NamedTuple):
    """A message to be put. expected: the sequence of the newest on its subject, None for whatever it is."""

    subject: str
    headers: dict[str, str]
    data: bytes
    expected: int | None = None
    checked: str = ""
    """The subject that `expected` is about, where it is another one."""


class Shelf:
    """A JetStream stream by its name, through a wire."""

    def __init__(self, wire: Wire, name: str, patience_s: float) -> None:
        """patience_s: how long a cluster is given to find a leader, and a replica to catch up."""
        self.name = name
        self.anchor = f"{name}.z"
        """A subject that always has a message: the first, so that every question about the newest has an answer."""
        self.replicas = 1
        self._wire = wire
        self._patience_s = patience_s

    async def patiently(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask something that may be asked twice: again on a new connection, and again while there is no leader."""
        loop = asyncio.get_running_loop()
        until, pause, reconnected = loop.time() + self._patience_s, _PAUSE_MIN_S, False
        while True:
            try:
                await self._wire.open()
                return await question()
            except Again:
                if loop.time() + pause > until:
                    raise
                await self._exists()
            except (StorageUnavailable, StorageTimeout):
                if reconnected or self._wire.is_open:
                    raise
                reconnected = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _PAUSE_MAX_S)

    async def _exists(self) -> None:
        """Raise CorruptRecord if nobody answers because the stream is gone, which no patience mends."""
        with suppress(StorageUnavailable, StorageTimeout):
            await self._known(self._wire.api(f"STREAM.INFO.{self.name}"))

    async def _known(self, asking: Awaitable[dict[str, Any]]) -> dict[str, Any]:
        try:
            return await asking
        except Refusal as error:
            if error.number == GONE:
                raise damaged(f"the stream {self.name}", self.name, "the server does not know it any more") from error
            raise

    async def api(self, what: str, request: object = None) -> dict[str, Any]:
        """Ask JetStream about this stream. Raises CorruptRecord where there is none any more."""
        return await self._known(self.ask(what, request))

    async def ask(self, what: str, request: object = None) -> dict[str, Any]:
        """Ask JetStream about this stream, which may not be there yet."""
        return await self.patiently(lambda: self._wire.api(f"{what}.{self.name}", request))

    async def last_sequence(self) -> int:
        """The newest sequence ever given, by the leader."""
        return (await self.api("STREAM.INFO"))["state"]["last_seq"]

    async def _direct(self, request: dict[str, Any]) -> list[Any]:
        async def ask() -> list[Any]:
            several = "batch" in request or "multi_last" in request
            answers = await self._wire.ask(
                f"$JS.API.DIRECT.GET.{self.name}", msgspec.json.encode(request), many=several, repeatable=not several
            )
            if status(answers[-1]) == "503":
                raise Again(f"{self.name}: nobody answers for the stream now; try again")
            if status(answers[-1]) not in ("", "204", "404"):
                raise Refusal(f"{self.name}: JetStream refused a question ({answers[-1].headers})")
            return answers

        return await self.patiently(ask)

    async def last(self, subjects: Sequence[str]) -> dict[str, Stored]:
        """Return the newest message on each subject that has one; all as of one moment, never half of a batch."""
        floor = await self.last_sequence() if self.replicas > 1 else 0
        found: dict[str, Stored] = {}
        moment = 0
        for start in range(0, len(subjects), _LAST_MAX):
            asked: dict[str, Any] = {"multi_last": [self.anchor, *subjects[start : start + _LAST_MAX]], "seq": 1}
            more = True
            while more:
                upto = {"up_to_seq": moment} if moment else {}
                messages, moment, more = await self._current(asked | upto, floor)
                found |= {m.subject: m for m in messages}
                asked["seq"] = messages[-1].sequence + 1  # they come in their order, up to some bytes
        found.pop(self.anchor, None)
        return found

    async def _current(self, request: dict[str, Any], floor: int) -> tuple[list[Stored], int, bool]:
        """Ask until who answers knows all up to `floor`; return also as of which sequence, and whether there is more."""
        until = asyncio.get_running_loop().time() + self._patience_s
        while True:
            *messages, end = await self._direct(request | {"max_bytes": _PAGE_BYTES})
            about = end.headers or {}
            moment = int(about.get("Nats-UpTo-Sequence", "0"))
            if moment >= floor and messages:  # the anchor, or what was announced before
                return [stored(m) for m in messages], moment, int(about.get("Nats-Num-Pending", "0")) > 0
            if moment >= floor and not await self._newest_of_leader(self.anchor):
                raise damaged(f"the stream {self.name}", self.name, "it was purged: its first messages are gone")
            await self._behind(until)

    async def newest(self, subject: str) -> Stored | None:
        """Return the newest message on a subject, which may have wildcards."""
        if self.replicas == 1:
            answer = (await self._direct({"last_by_subj": subject}))[0]
            return None if status(answer) else stored(answer)
        until = asyncio.get_running_loop().time() + self._patience_s
        while sequence := await self._newest_of_leader(subject):
            found = await self.get(sequence)
            if found is not None:
                return found
            await self._behind(until)  # or it was removed just now: then the leader names another
        return None

    async def _newest_of_leader(self, subject: str) -> int:
        """Return the sequence of the newest message on a subject as the leader has it, 0 where there is none."""
        try:
            return (await self.api("STREAM.MSG.GET", {"last_by_subj": subject}))["message"]["seq"]
        except Refusal as error:
            if error.number in _NOT_THERE:
                return 0
            raise

    async def _behind(self, until: float) -> None:
        """Give a replica time to catch up. Raises StorageTimeout when there is none left."""
        if asyncio.get_running_loop().time() > until:
            raise StorageTimeout(f"{self.name}: a replica is behind for longer than {self._patience_s:g} s")
        await asyncio.sleep(_PAUSE_MIN_S)

    async def get(self, sequence: int) -> Stored | None:
        """Return the message of a sequence, None if it was removed."""
        answer = (await self._direct({"seq": sequence}))[0]
        return None if status(answer) else stored(answer)

    async def following(self, subject: str, sequence: int, count: int) -> tuple[list[Stored], bool]:
        """Return up to `count` messages on a subject from a sequence on, and whether there are more behind them."""
        until = asyncio.get_running_loop().time() + self._patience_s
        while True:
            newest = await self._newest_of_leader(subject) if self.replicas > 1 else 0
            request = {"seq": max(1, sequence), "next_by_subj": subject, "batch": count, "max_bytes": _PAGE_BYTES}
            *messages, end = await self._direct(request)
            found = [stored(m) for m in messages]
            more = status(end) == "204" and int((end.headers or {}).get("Nats-Num-Pending", "0")) > 0
            reached = found[-1].sequence if found else sequence - 1
            if more or newest <= reached:
                return found, more
            await self._behind(until)

    async def whole(self, message: Stored) -> bytes:
        """Return all of what a message holds the end of."""
        first = message.sequence - message.about.parts
        parts = await asyncio.gather(*(self.get(s) for s in range(first, message.sequence)))
        if None in parts:
            raise damaged(f"the message on {message.subject}", message.subject, "a part of it is not there")
        return b"".join(p.data for p in parts if p is not None) + message.data

    async def subjects(self, pattern: str) -> dict[str, int]:
        """Return the subjects that match and have messages, and how many."""
        found: dict[str, int] = {}
        while True:
            state = await self.api("STREAM.INFO", {"subjects_filter": pattern, "offset": len(found)})
            page = state["state"].get("subjects") or {}
            found |= page
            if not page or len(found) >= state.get("total", 0):
                return found

    async def erase(self, sequences: Iterable[int]) -> None:
        """Remove messages, oldest first, and overwrite them on the disk; those that are gone are ignored."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(sequence: int) -> None:
            async with gate:
                try:
                    await self.api("STREAM.MSG.DELETE", {"seq": sequence, "no_erase": False})
                except Refusal as error:
                    if error.number not in _NOT_THERE:
                        raise

        ordered = sorted(sequences)
        await asyncio.gather(*(one(s) for s in ordered[:-1]))
        for last in ordered[-1:]:
            await one(last)

    async def purge(self, subject: str, *, before: int = 0) -> None:
        """Remove the messages on a subject, those before a sequence only where one is given."""
        await self.api("STREAM.PURGE", {"filter": subject} | ({"seq": before} if before else {}))

    def pieces(
        self,
        subject: str,
        parts_on: str,
        about: About,
        data: bytes,
        *,
        expected: int | None = None,
    ) -> list[Out]:
        """Return the messages that hold some bytes: as many parts as they need, and the one that counts."""
        size = self._wire.client.max_payload - _HEADERS_BYTES
        parts = max(0, -(-len(data) // size) - 1)
        if parts + 2 > BATCH_MAX:
            raise LimitExceeded(
                f"{len(data)} bytes do not fit into a batch of {BATCH_MAX} messages of {size} bytes; "
                "raise max_payload of the server, or keep it elsewhere",
                limit="value_bytes",
                allowed=(BATCH_MAX - 2) * size,
                found=len(data),
            )
        out = [Out(parts_on, {}, data[i * size : (i + 1) * size]) for i in range(parts)]
        heads = header(msgspec.structs.replace(about, parts=parts))
        return [*out, Out(subject, heads, data[parts * size :], expected)]

    async def put(self, messages: Sequence[Out]) -> list[int]:
        """Store messages together, all or none; return their sequences.

        Raises Moved where an expectation does not hold, Again where nothing was stored for now; after any other
        StorageError it is not known.
        """
        if len(messages) == 1:
            answer = await self._wire.ask(messages[0].subject, messages[0].data, _headers(messages[0]))
            return [self._wire.judged(answer[0])["seq"]]
        batch = secrets.token_hex(10)
        for number, out in enumerate(messages[:-1], 1):
            marks = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
            await self._wire.tell(out.subject, out.data, _headers(out) | marks)
        last = messages[-1]
        marks = {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(len(messages)), "Nats-Batch-Commit": "1"}
        answer = await self._wire.ask(last.subject, last.data, _headers(last) | marks)
        newest = self._wire.judged(answer[0])["seq"]
        return list(range(newest - len(messages) + 1, newest + 1))


def _headers(out: Out) -> dict[str, str]:
    headers = dict(out.headers)
    if out.expected is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(out.expected)
        if out.checked:
            headers["Nats-Expected-Last-Subject-Sequence-Subject"] = out.checked
    return headers
