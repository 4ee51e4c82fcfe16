"""One request to a reward server: who may come in, and what is answered. All answers are JSON."""

from __future__ import annotations

import hmac
import json
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import Any, Protocol
from urllib.parse import urlsplit

from ...version import __version__
from .address import is_local
from .limits import ServerLimits

__all__ = ["Handler", "Refused", "Server"]

log = logging.getLogger(__name__)


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}


class Server(Protocol):
    """What a handler asks of the server it works for."""

    limits: ServerLimits
    token: str
    health: dict[str, Any]

    def submit(self, read: Callable[[], bytes]) -> Future[dict[str, Any]]:
        """Take a place in the queue, read the body, and have it scored."""
        ...

    def extend(self, request: Any, deadline: float) -> None:
        """Let a connection that may come in stay until ``deadline`` on the monotonic clock."""
        ...


class Handler(BaseHTTPRequestHandler):
    """One request; HTTP/1.0, so that a connection is one request."""

    server: Server  # type: ignore[assignment]
    server_version = f"chunk-grpo/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        self._deadline = time.monotonic() + self.server.limits.timeout
        super().setup()
        self.connection.settimeout(self.server.limits.timeout)

    def do_GET(self) -> None:
        self._answer(self._health)

    def do_POST(self) -> None:
        self._answer(self._score)

    def _health(self) -> dict[str, Any]:
        self._admit("/health")
        return self.server.health

    def _score(self) -> dict[str, Any]:
        self._admit("/compute")
        length = self._length()
        self.server.extend(self.request, self._deadline)
        job = self.server.submit(lambda: self._body(length))
        try:
            return job.result(max(self._deadline - time.monotonic(), 0.0))
        except FutureTimeout:
            job.cancel()
            raise Refused(504, "there was no score in time") from None
        except CancelledError:
            raise Refused(503, "the server is shutting down") from None

    def _admit(self, path: str) -> None:
        """Refuse who may not come in and what is not here."""
        if self.server.token:
            given = (self.headers.get("Authorization") or "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
                raise Refused(401, "a bearer token is needed", WWW_Authenticate="Bearer")
        # A web page whose host name was pointed at this machine sends its own name.
        elif not is_local(_host_name(self.headers.get("Host") or "localhost")):
            raise Refused(403, "without a token, only local host names are served")
        if self.path != path:
            raise Refused(404, "there is GET /health and POST /compute")

    def _length(self) -> int:
        """Length of the body, if it may be read at all."""
        # A web page of another site cannot send this type without asking first.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "Content-Type must be application/json")
        lengths = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(lengths) != 1:
            raise Refused(411, "one Content-Length is needed")
        text, limit = lengths[0].strip(), self.server.limits.megabytes
        if not (text.isascii() and text.isdecimal()):
            raise Refused(400, "Content-Length must be a number")
        if len(text) > 12 or int(text) > limit * 2**20:
            raise Refused(413, f"a request may have {limit:g} MiB")
        return int(text)

    def _body(self, length: int) -> bytes:
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(400, "the body is shorter than its Content-Length")
        return body

    def _answer(self, work: Callable[[], dict[str, Any]]) -> None:
        try:
            self._reply(200, work())
        except Refused as refusal:
            self._reply(refusal.status, {"error": str(refusal)}, refusal.headers)
            self._linger()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what the base class refuses, in JSON too."""
        self._reply(code, {"error": message or self.responses[code][0]})

    def _reply(self, status: int, answer: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer, allow_nan=False).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _linger(self) -> None:
        """Take in what still comes for a moment: closing on unread bytes would undo the answer."""
        end = time.monotonic() + 1.0
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := end - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(2**16):
                    return

    def log_message(self, format: str, *args: object) -> None:
        log.info("%s %s", self.client_address[0], ascii(format % args))


def _host_name(header: str) -> str:
    """Host of ``host:port``; empty if it is nonsense."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
