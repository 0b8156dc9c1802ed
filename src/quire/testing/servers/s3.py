"""A private S3: moto's server, in a thread of this process, on a free loopback port. What it holds is gone with it."""

from __future__ import annotations

import logging
import os
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Any

from quire.testing.servers._process import ServerMissing

_SIGNED = "AWS4-HMAC-SHA256 Credential=testing/20200101/us-east-1/s3/aws4_request"


class S3Server:
    """One bucket after the other. While it runs, the variables of AWS hold credentials for it and for nothing else."""

    def __init__(self) -> None:
        self._server: Any = None
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> S3Server:
        """Start it. Raises ServerMissing."""
        if find_spec("moto") is None or find_spec("flask_cors") is None:
            raise ServerMissing("there is no S3 here: pip install 'moto[s3]' flask flask-cors")
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            self._before[name] = os.environ.get(name)
            os.environ[name] = "testing"
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._server.stop()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        host, port = self._server.get_host_and_port()
        return f"http://{host}:{port}"

    def url(self, bucket: str, prefix: str = "", *, make: bool = True) -> str:
        """Return the URL of a prefix in a bucket, which is made unless told otherwise."""
        if make:
            host, port = self._server.get_host_and_port()
            line = HTTPConnection(host, port, timeout=10)
            line.request("PUT", f"/{bucket}", headers={"Authorization": _SIGNED})
            line.getresponse().read()
            line.close()
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}&allow_http=true&region=us-east-1"
