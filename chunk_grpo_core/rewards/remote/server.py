"""Lend a reward to other processes and machines over HTTP, with the standard library alone.

One thread scores; requests wait for it in a queue of limited length. A request is refused before
its body is read if it may not come in: wrong token, no length, too large, queue full. What is said
on the wire is in ``rewards/remote/wire.py``.
"""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from ...method.reward import Reward, RewardFailed
from ...version import __version__
from .address import is_local
from .handler import Handler, Refused
from .limits import ServerLimits
from .wire import parse_question, to_answer

__all__ = ["RewardServer", "ServerLimits", "serve"]

log = logging.getLogger(__name__)

_CONNECTIONS = 64
"""Most connections at once; further ones are closed."""
_HEADERS_TIME = 10.0
"""Seconds in which a stranger must have said what they want."""
_GRACE = 2.0
"""Seconds for the last bytes of an answer."""


class RewardServer(ThreadingHTTPServer):
    """``GET /health`` and ``POST /compute`` for one reward."""

    daemon_threads = True
    request_queue_size = _CONNECTIONS

    def __init__(
        self,
        reward: Reward,
        *,
        host: str = "127.0.0.1",
        port: int = 8181,
        token: str = "",
        limits: ServerLimits | None = None,
    ) -> None:
        """Bind; :meth:`serve_forever` answers.

        Args:
            reward: What scores.
            host: Name or address to listen on.
            port: 0 takes a free one, see ``url``.
            token: What clients must send as bearer token; empty lets every local process in.
            limits: What a request may ask for.

        Raises:
            ValueError: The address is not loopback and there is no token.
            OSError: The address cannot be listened on.
        """
        self.limits, self.token, self.reward = limits or ServerLimits(), token, reward
        self.health = {
            "status": "ok",
            "name": reward.name,
            "fingerprint": dict(reward.fingerprint),
            "version": __version__,
        }
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = addresses[0][0], addresses[0][4]
        if not token and not is_local(str(address[0])):
            raise ValueError(
                f"host is {host!r}, which other machines can reach; set a token (--token-env), or "
                "listen on 127.0.0.1 and let ssh -L forward the port"
            )
        self._slots = threading.BoundedSemaphore(self.limits.queue)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self._open: dict[Any, float] = {}  # connection -> when it is cut
        self._seconds = 1.0
        super().__init__((str(address[0]), port), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        host = host if isinstance(host, str) else host.decode()
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def server_bind(self) -> None:
        """Bind without the look-up of a domain name, which can hang."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def submit(self, read: Callable[[], bytes]) -> Future[dict[str, Any]]:
        """Take a place in the queue, read the body, and have it scored.

        Raises:
            Refused: There is no place.
        """
        if not self._slots.acquire(blocking=False):
            wait = str(min(max(math.ceil(self._seconds), 1), 60))
            raise Refused(503, "the queue is full", Retry_After=wait)
        try:
            body = read()
            try:
                job = self._worker.submit(self._compute, body)
            except RuntimeError:
                raise Refused(503, "the server is shutting down") from None
        except BaseException:
            self._slots.release()
            raise
        job.add_done_callback(lambda _: self._slots.release())
        return job

    def _compute(self, body: bytes) -> dict[str, Any]:
        """Score one request, in the one thread that does so."""
        start = time.monotonic()
        try:
            question = parse_question(body, self.limits.batch)
            batch = self.reward.score(question.images, question.examples)
            return to_answer(batch)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        except RewardFailed as error:
            raise Refused(503, str(error)) from error
        except Exception as error:
            log.exception("%s failed", self.reward.name)
            raise Refused(500, "the reward failed; see the log of the server") from error
        finally:
            self._seconds = time.monotonic() - start

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection, unless there are too many."""
        if len(self._open) >= _CONNECTIONS:
            self.shutdown_request(request)
            return
        self._open[request] = time.monotonic() + _HEADERS_TIME
        super().process_request(request, client_address)

    def extend(self, request: Any, deadline: float) -> None:
        """Let a connection that may come in stay until ``deadline`` on the monotonic clock."""
        self._open[request] = deadline + _GRACE

    def shutdown_request(self, request: Any) -> None:
        """End a connection."""
        self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Hang up on those who take too long to speak or to listen."""
        now = time.monotonic()
        for request, deadline in list(self._open.items()):
            if deadline < now:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a handler did not expect; a client that hangs up is not news."""
        log.debug("connection from %s", client_address, exc_info=True)

    def server_close(self) -> None:
        """Let the running request finish, refuse those that wait, and close."""
        super().server_close()
        self._worker.shutdown(wait=True, cancel_futures=True)
        end = time.monotonic() + _GRACE
        while self._open and time.monotonic() < end:
            time.sleep(0.01)


def serve(server: RewardServer) -> None:
    """Answer until SIGINT or SIGTERM; from the main thread."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with server, suppress(KeyboardInterrupt):
            server.serve_forever()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
