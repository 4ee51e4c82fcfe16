"""JSON over HTTP, bounded in time, in size and in tries: for rewards that live in a server.

No redirect is followed, no proxy of the environment is used, and nothing but JSON is read.
"""

from __future__ import annotations

import http.client
import json
import math
import queue
import random
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .address import checked_url, token_for, warn_if_remote

__all__ = ["HttpFailed", "JsonServer"]

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of answers that may be better next time."""


class HttpFailed(Exception):
    """A request got no answer that can be used."""

    def __init__(self, message: str, *, again: bool = False, wait: float = 0.0) -> None:
        """Describe the failure.

        Args:
            message: What happened.
            again: It may work if repeated.
            wait: Seconds the server wants to be left alone for.
        """
        super().__init__(message)
        self.again, self.wait = again, wait


@dataclass(frozen=True, kw_only=True)
class JsonServer:
    """Where a server is and how patiently it is asked."""

    url: str
    """``http(s)://host[:port][/path]`` without user, password, query and fragment."""
    token_env: str = "CHUNK_GRPO_TOKEN"
    """Environment variable with the bearer token; nothing is sent where it is not set. Its name
    begins with ``CHUNK_GRPO_``. A host that is not local gets the token only if the variable
    ``<token_env>_HOST`` names it."""
    timeout: float = 120.0
    """Seconds that all requests of one call may take together, repetitions included; above 0."""
    retries: int = 3
    """Repetitions of a request that failed and may work next time, 0 to 10."""
    backoff: float = 0.5
    """Seconds before the first repetition; doubled for each further one, times 0.5 to 1 at random
    from a fixed seed. Above 0. A longer ``Retry-After`` of the server is honoured."""
    concurrency: int = 1
    """Requests under way at once, 1 to 64."""
    max_megabytes: float = 16.0
    """Size limit of an answer, above 0."""

    def __post_init__(self) -> None:
        address = checked_url(self.url)
        for name, low, high in (("retries", 0, 10), ("concurrency", 1, 64)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, {low} to {high}")
        for name in ("timeout", "backoff", "max_megabytes"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a number above 0")
        token_for(self.token_env, address.hostname or "")

    def post(self, path: str, payloads: Sequence[object]) -> list[Any | HttpFailed]:
        """POST every payload as JSON.

        Args:
            path: Added to the URL, for example ``"/compute"``.
            payloads: What JSON can hold.

        Returns:
            For each payload the parsed JSON of the answer, or why there is none. Never takes much
            longer than ``timeout``.

        Raises:
            ValueError: The token may not be sent to this host.
            TypeError: A payload holds what JSON cannot.
        """
        if payloads:
            warn_if_remote(self.url)
        return _Round(self, "POST", path, [json.dumps(p).encode() for p in payloads]).run()

    def get(self, path: str) -> Any:
        """GET and parse JSON.

        Raises:
            HttpFailed: There is no answer that can be used.
            ValueError: The token may not be sent to this host.
        """
        (answer,) = _Round(self, "GET", path, [None]).run()
        if isinstance(answer, HttpFailed):
            raise answer
        return answer


class _Round:
    """Requests that share a deadline.

    Threads do the waiting. The caller leaves at the deadline or at an interrupt, whatever they are
    stuck in, and cuts their connections; they are daemons and hold nothing up.
    """

    def __init__(
        self, server: JsonServer, method: str, path: str, bodies: Sequence[bytes | None]
    ) -> None:
        self._server, self._method, self._bodies = server, method, bodies
        address = urlsplit(server.url)
        self._host, self._port = address.hostname or "", address.port
        self._secure = address.scheme == "https"
        self._path = address.path.rstrip("/") + path
        token = token_for(server.token_env, self._host)
        self._headers = {"Accept": "application/json"}
        if method == "POST":
            self._headers["Content-Type"] = "application/json"
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        late = HttpFailed(f"{server.url} did not answer within {server.timeout:g} s")
        self._answers: list[Any | HttpFailed] = [late] * len(bodies)
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._over = threading.Event()
        self._sockets: list[socket.socket] = []
        self._jitter = random.Random(0)

    def run(self) -> list[Any | HttpFailed]:
        """Ask, and come back in time."""
        self._end = time.monotonic() + self._server.timeout
        for index in range(len(self._bodies)):
            self._todo.put(index)
        threads = [
            threading.Thread(target=self._work, daemon=True)
            for _ in range(min(self._server.concurrency, len(self._bodies)))
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join(self._left())
            return list(self._answers)
        finally:
            self._over.set()
            for sock in self._sockets:
                _cut(sock)

    def _left(self) -> float:
        return max(self._end - time.monotonic(), 0.0)

    def _work(self) -> None:
        with suppress(queue.Empty):
            while not self._over.is_set():
                index = self._todo.get_nowait()
                self._answers[index] = self._ask(self._bodies[index])

    def _ask(self, body: bytes | None) -> Any | HttpFailed:
        """Ask until there is an answer, no hope or no time."""
        attempt = 0
        while True:
            try:
                return self._once(body)
            except HttpFailed as failure:
                pause = self._server.backoff * 2**attempt * (0.5 + 0.5 * self._jitter.random())
                pause = max(pause, failure.wait)
                hopeless = not failure.again or attempt == self._server.retries
                if hopeless or pause >= self._left() or self._over.wait(pause):
                    return failure
            attempt += 1

    def _once(self, body: bytes | None) -> Any:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=max(self._left(), 0.001))
        try:
            connection.connect()
            # The connection forgets its socket while an answer is read from it.
            self._sockets.append(connection.sock)
            if self._over.is_set():
                raise HttpFailed("out of time")
            # A server may refuse, and hang up, before it has read everything.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(self._method, self._path, body, self._headers)
            return self._read(connection.getresponse())
        # UnicodeError: a host name that cannot be one.
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            what = str(error) or type(error).__name__
            raise HttpFailed(f"{self._server.url}: {what}", again=True) from error
        finally:
            connection.close()

    def _read(self, response: http.client.HTTPResponse) -> Any:
        url, limit = self._server.url, int(self._server.max_megabytes * 2**20)
        data = response.read(limit + 1)
        if len(data) > limit:
            raise HttpFailed(f"{url} sent more than {self._server.max_megabytes:g} MiB")
        if response.length:
            raise HttpFailed(f"{url} hung up in the middle of its answer", again=True)
        if 300 <= response.status < 400:
            place = response.getheader("Location", "nowhere")
            raise HttpFailed(f"{url} redirects to {place[:200]!r}; write the final address")
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            if response.status == 200:
                raise HttpFailed(f"{url} did not answer with JSON") from None
            answer = data.decode("utf-8", "replace")
        if response.status != 200:
            raise HttpFailed(
                f"{url} answered {response.status}: {_excerpt(answer)}",
                again=response.status in _AGAIN,
                wait=_seconds(response.getheader("Retry-After", "")),
            )
        return answer


def _cut(sock: socket.socket) -> None:
    """End whatever another thread waits for on this socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _excerpt(answer: object) -> str:
    """The ``error`` of an answer, or its beginning, on one line of plain characters."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return ascii(error)[:200]


def _seconds(text: str) -> float:
    """``Retry-After`` in seconds; a date counts as 0."""
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0
