"""Letting one write whom others keep beating to it.

Batches of a busy handle follow each other so closely that whoever was refused, and reads what they wrote before trying
again, comes too late each time. So a handle that was refused twice in a row says so, and the others leave it a gap before
their next batch. Nobody has to: it only makes waiting fair, and what is stored does not depend on it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress

from nats.aio.msg import Msg

from quire.errors import StorageError
from quire.storage._nats_wire import Wire
from quire.storage.base import Outcome, Refused

_LOST_MAX = 2
_GAP_S = 0.05
"""How long others wait at most for one that asked: it may have died."""


class Floor:
    """What a handle says and hears about turns, on the connection it writes on."""

    def __init__(self, wire: Wire, subject: str) -> None:
        self._wire = wire
        self._subject = subject
        self._me = secrets.token_bytes(8)
        self._lost = 0
        self._other = b""
        """Who asked for the floor, and did not say yet that it is done."""
        self._free = asyncio.Event()
        wire.hear(subject, self._heard)

    async def wait(self) -> None:
        """Leave a gap if another asked for one, unless we were refused as well."""
        if self._other and self._lost < _LOST_MAX:
            with suppress(TimeoutError):
                async with asyncio.timeout(_GAP_S):
                    await self._free.wait()
            self._other = b""

    async def judge(self, outcomes: Sequence[Outcome]) -> None:
        """Ask for a gap after being refused too often, and say when it was used."""
        refused = any(isinstance(outcome, Refused) and outcome.heads for outcome in outcomes)
        asked = self._lost >= _LOST_MAX
        self._lost = self._lost + 1 if refused else 0
        with suppress(StorageError):  # the batch was answered: whoever needs the connection next finds out
            if self._lost >= _LOST_MAX:
                await self._wire.tell(self._subject, self._me + b"+")
            elif asked:
                await self._wire.tell(self._subject, self._me + b"-")

    async def _heard(self, message: Msg) -> None:
        who, asks = message.data[:-1], message.data[-1:] == b"+"
        if who == self._me:
            return
        if asks:
            self._other = who
            self._free.clear()
        elif who == self._other:
            self._other = b""
            self._free.set()
