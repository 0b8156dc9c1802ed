"""A connection to NATS on which questions are answered, and errors of ours.

The driver's own reconnecting is switched off: what it had not sent yet it would send again, and a commit that was
given up must not land later. A connection that broke fails everything that was under way on it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import AuthorizationError, NoServersError
from nats.errors import Error as NatsError

from quire.errors import (
    Closed,
    CorruptRecord,
    Denied,
    QuireError,
    StorageError,
    StorageFull,
    StorageTimeout,
    StorageUnavailable,
    Unsupported,
)

_WRONG_LAST = (10071, 10164)
_FULL = (10002, 10023, 10028, 10047, 10077)
_OFF = (10039, 10076)
_TRIES = 4
"""How often something repeatable is published within the time in which it must be answered."""
_PASSING = (10008, 10176, 10210)
"""No leader for the moment; a batch that a new leader knows the end of only; too many batches at once."""


class Moved(StorageError):
    """A subject's newest message is not the one that was expected: nothing of the batch is stored."""


class Again(StorageUnavailable):
    """Nothing was stored, for a reason that passes."""


class Refusal(StorageError):
    """The server said no, for a reason that none of our other errors names. number: its error code."""

    def __init__(self, message: str, *, number: int = 0) -> None:
        super().__init__(message)
        self.number = number


class Address:
    """Where the servers are, and who we are there. `shown` has no password."""

    def __init__(
        self, hosts: list[str], user: str | None, password: str | None, *, tls: bool = False, creds: str | None = None
    ) -> None:
        scheme = "tls" if tls else "nats"
        self.servers = [f"{scheme}://{host}" for host in hosts]
        self.shown = f"{scheme}://{','.join(hosts)}"
        self.options: dict[str, Any] = {}
        if password is not None:
            self.options |= {"user": user or "", "password": password}
        elif user is not None:
            self.options["token"] = user
        if creds is not None:
            self.options["user_credentials"] = creds


class _Client(Client):
    """The driver, with two of its habits put right.

    When it is closed, it drops what it has not sent yet. It would send that at the last moment: what was given up. And
    where the connection is broken it would fail in it, and tell nobody that it is.
    A pong that is not waited for any more, since the caller was cancelled, is passed over. The driver would fail in it, and
    hear nothing else on this connection.
    """

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._pending, self._pending_data_size = [], 0
        await super()._close(status, do_cbs)

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()


class Wire:
    """One connection at a time, opened by `open`."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        """timeout_s: how long an answer may take before the wire counts as broken."""
        self._address = address
        self._timeout_s = timeout_s
        self._opening = asyncio.Lock()
        self._client: Client | None = None
        self._inbox = ""
        self._asked: dict[str, tuple[asyncio.Future[list[Msg]], list[Msg], bool]] = {}
        self._known: list[str] = []
        self._complaint = ""
        self._heard: dict[str, Callable[[Msg], Awaitable[None]]] = {}

    @property
    def is_open(self) -> bool:
        """Whether questions can be asked."""
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """The open connection. Raises StorageUnavailable."""
        if self._client is None or not self._client.is_connected:
            raise StorageUnavailable(f"{self._address.shown}: the connection is gone; try again")
        return self._client

    def hear(self, subject: str, told: Callable[[Msg], Awaitable[None]]) -> None:
        """Be told of messages on a subject, on every connection from the next one on."""
        self._heard[subject] = told

    async def open(self) -> None:
        """Connect, unless connected, to any of the servers. Raises StorageUnavailable, Denied."""
        async with self._opening:
            if self.is_open:
                return
            await self.reset()
            client = _Client()
            self._complaint = ""
            servers = list(dict.fromkeys(self._address.servers + self._known))
            try:
                async with asyncio.timeout(self._timeout_s):
                    await client.connect(
                        servers,
                        **self._address.options,
                        allow_reconnect=False,
                        max_reconnect_attempts=1,
                        reconnect_time_wait=0,
                        connect_timeout=max(1, int(self._timeout_s)),
                        error_cb=self._complained,
                        disconnected_cb=self._disconnected,
                    )
                    self._inbox = f"_INBOX.{secrets.token_hex(8)}"
                    await client.subscribe(self._inbox + ".*", cb=self._answered, pending_bytes_limit=0)  # drop nothing
                    for subject, told in self._heard.items():
                        await client.subscribe(subject, cb=told)
                    await client.flush()
            except (NatsError, OSError, TimeoutError) as error:
                await _closed(client)
                raise self._ours(error) from error
            except BaseException:
                await _closed(client)
                raise
            self._client = client
            self._known = [uri.geturl() for uri in client.discovered_servers]

    async def _complained(self, error: Exception) -> None:
        self._complaint = str(error)

    async def _disconnected(self) -> None:
        self._fail(StorageUnavailable(f"{self._address.shown}: the connection broke; try again"))

    async def _answered(self, message: Msg) -> None:
        token = message.subject.rsplit(".", 1)[1]
        asked = self._asked.get(token)
        if asked is None:
            return
        waiting, found, many = asked
        found.append(message)
        if not (many and status(message) == ""):
            del self._asked[token]
            if not waiting.done():
                waiting.set_result(found)

    async def ask(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        many: bool = False,
        repeatable: bool = False,
    ) -> list[Msg]:
        """Publish, and return the answer; with `many` all answers up to the one with a status.

        repeatable: it may take effect twice, so that it is published again where no answer comes. A cluster that is
        choosing a leader drops what it is asked and says nothing.
        Raises StorageError: whether it took effect is then not known.
        """
        client = self.client
        token = secrets.token_hex(8)
        waiting: asyncio.Future[list[Msg]] = asyncio.get_running_loop().create_future()
        self._asked[token] = (waiting, [], many)
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    await client.publish(subject, payload, reply=f"{self._inbox}.{token}", headers=_own(headers))
                    done, _ = await asyncio.wait([waiting], timeout=self._timeout_s / _TRIES if repeatable else None)
                    if done:
                        return waiting.result()
        except (StorageError, Closed):
            raise
        except TimeoutError as error:
            raise self._late() from error
        except (NatsError, OSError) as error:
            raise self._ours(error) from error
        finally:
            self._asked.pop(token, None)

    async def tell(self, subject: str, payload: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Publish without waiting for an answer."""
        try:
            await self.client.publish(subject, payload, headers=_own(headers))
        except (NatsError, OSError) as error:
            raise self._ours(error) from error

    async def api(self, name: str, request: object = None) -> dict[str, Any]:
        """Ask JetStream something that may be asked twice; return its answer. Raises what its error means."""
        payload = b"" if request is None else json.dumps(request).encode()
        return self.judged((await self.ask(f"$JS.API.{name}", payload, repeatable=True))[0])

    def judged(self, message: Msg) -> dict[str, Any]:
        """Return what JetStream answered, or raise what its error means."""
        if status(message) == "503":
            raise Again(f"{self._address.shown}: nobody answers for JetStream now; try again")
        answer = json.loads(message.data or b"{}")
        error = answer.get("error")
        if error is None:
            return answer
        number, text = error.get("err_code", 0), error.get("description", "")
        if number in _WRONG_LAST:
            raise Moved(text)
        if number in _PASSING:
            raise Again(f"{self._address.shown}: {text}; try again")
        if number in _FULL or "maximum bytes" in text or "no space" in text:
            raise StorageFull(f"{self._address.shown}: JetStream is full ({text}); raise its limits, or trim and drop")
        if number in _OFF:
            raise Unsupported(
                f"{self._address.shown} runs without JetStream ({text}); start nats-server with -js",
                capability="jetstream",
            )
        raise Refusal(f"{self._address.shown}: JetStream refused ({text})", number=number)

    def _late(self) -> QuireError:
        if "ermissions" in self._complaint:
            return Denied(
                f"{self._address.shown}: this user may not do that ({self._complaint}); give it the subjects of the "
                "store, $JS.API.> and _INBOX.>"
            )
        return StorageTimeout(f"{self._address.shown} did not answer within {self._timeout_s:g} s; try again")

    def _ours(self, error: Exception) -> QuireError:
        text = str(error) or type(error).__name__
        said = f"{text} {self._complaint}".lower()
        if isinstance(error, AuthorizationError) or "authorization" in said or "authentication" in said:
            return Denied(
                f"{self._address.shown}: user, password or token is wrong; write nats://USER:PASSWORD@HOST:PORT "
                "or nats://TOKEN@HOST:PORT"
            )
        if isinstance(error, (NoServersError, ConnectionError)):
            return StorageUnavailable(
                f"{self._address.shown} cannot be reached ({text}); start nats-server there, or correct the URL"
            )
        return StorageUnavailable(f"{self._address.shown} cannot be reached ({text}); try again")

    async def reset(self) -> None:
        """Let the connection go; what is under way fails with StorageUnavailable."""
        await self._drop(StorageUnavailable(f"{self._address.shown}: connecting anew"))

    async def close(self) -> None:
        """Let the connection go; what is under way fails with Closed."""
        await self._drop(Closed("the store is closed; open it again"))

    async def _drop(self, failure: QuireError) -> None:
        client, self._client = self._client, None
        self._fail(failure)
        if client is not None:
            await _closed(client)

    def _fail(self, failure: QuireError) -> None:
        asked, self._asked = self._asked, {}
        for waiting, _, _ in asked.values():
            if not waiting.done():
                waiting.set_exception(failure)
                waiting.exception()  # seen: its caller may be gone


def _own(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if headers is None else dict(headers)


async def _closed(client: Client) -> None:
    with suppress(NatsError, OSError, TimeoutError):  # it is let go, however it ends
        await client.close()


def status(message: Msg) -> str:
    """Return the status that a server's answer carries: 204 ends many, 404 there is none, 503 nobody listens."""
    return "" if message.headers is None else message.headers.get("Status", "")


def damaged(what: str, at: str, how: str = "it is not what was stored") -> CorruptRecord:
    """Return the error that says so."""
    return CorruptRecord(f"{what} is damaged: {how}; `quire verify` lists all damage, a backup has the rest", at=at)
