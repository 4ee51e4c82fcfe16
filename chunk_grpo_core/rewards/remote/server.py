"""Lend a reward to other processes and machines over HTTP (see ``rewards/remote/wire.py``).

One thread answers and another scores. Whoever may not come in is refused before the body is read,
and a body is read before it gets a place in the queue, so that one that never ends takes none.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from ...method.reward import Reward, RewardBatch, RewardFailed
from ...optional import require
from ...settings.declared import Range, check_settings, shortened
from ...version import __version__
from .address import is_local
from .wire import parse_question, to_answer

web: Any = require("aiohttp.web", "To lend a reward")

__all__ = ["RewardServer", "ServerLimits", "serve"]

log = logging.getLogger(__name__)

_CONNECTIONS = 64
"""Most connections at once; of more, the one that takes longest to say what it wants is cut."""
_ARRIVAL_TIME = 60.0
"""Seconds in which a request must have arrived as a whole."""
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?")


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What one client may ask of a server."""

    batch: Annotated[int, Range(1, 1024)] = 64
    """Pictures in a request."""
    megabytes: Annotated[float, Range(1e-3, 1024)] = 64.0
    """Size of a request's body."""
    queue: Annotated[int, Range(1, 1024)] = 8
    """Requests that wait or are scored at once; the next one gets 503."""
    timeout: Annotated[float, Range(1e-3, 86_400)] = 300.0
    """Seconds from request to answer."""

    def __post_init__(self) -> None:
        check_settings(self)


class _Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.headers = status, headers


class RewardServer:
    """``GET /health`` and ``POST /compute`` for one reward, while its ``with`` block lasts."""

    def __init__(
        self,
        reward: Reward,
        *,
        host: str = "127.0.0.1",
        port: int = 8181,
        token: str = "",
        limits: ServerLimits | None = None,
    ) -> None:
        """Take an address, port 0 for a free one (see ``url``).

        Clients must send ``token``; without one every local process may come in.

        Raises:
            ValueError: ``host`` has no address, or one that is not loopback without a token.
            OSError: The address cannot be listened on.
        """
        self.limits, self.token, self.reward = limits or ServerLimits(), token, reward
        facts = {"name": reward.name, "fingerprint": dict(reward.fingerprint)}
        self.health = {"status": "ok", **facts, "version": __version__}
        try:
            family, *_, (address, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (socket.gaierror, UnicodeError) as error:
            raise ValueError(
                f"host is {shortened(host)}, which has no address ({error}); name one of this "
                "machine's"
            ) from None
        if not token and not is_local(str(address)):
            raise ValueError(
                f"host is {host!r}, which other machines can reach; set a token (--token-env), or "
                "listen on 127.0.0.1 and let ssh -L forward the port"
            )
        self._socket = socket.create_server((str(address), port), family=family, backlog=64)
        self._socket.setblocking(False)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        name = f"[{self.address[0]}]" if ":" in self.address[0] else self.address[0]
        self.url = f"http://{name}:{self.address[1]}"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self._jobs: set[Future[dict[str, Any]]] = set()
        self._seconds = 1.0  # that the last request took
        self._arriving: dict[Any, asyncio.TimerHandle] = {}  # transports, first come first
        self._arriving_bytes = 0
        self._loop, self._stop = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    def __enter__(self) -> RewardServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Let the running request finish, refuse those that wait, and close."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._worker.shutdown()
        self._loop.close()

    async def _serve(self) -> None:
        quiet = logging.Logger("http", logging.CRITICAL)  # what is not HTTP is not news
        options = {"access_log": None, "logger": quiet, "auto_decompress": False}
        http = web.Server(self._answer, handler_cancellation=True, lingering_time=1.0, **options)
        accepting = asyncio.ensure_future(self._accept(http))
        await self._stop.wait()
        accepting.cancel()
        self._socket.close()
        self._worker.shutdown(wait=False, cancel_futures=True)
        while self._arriving:
            self._cut_slowest()
        http.pre_shutdown()
        await http.shutdown(self.limits.timeout)

    async def _accept(self, http: Any) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(self._socket)
                transport, _ = await self._loop.connect_accepted_socket(http, client)
            except OSError:  # whoever hangs up at once; too many open files
                await asyncio.sleep(0.05)
                continue
            for gone in [other for other in self._arriving if other.is_closing()]:
                self._arrived(gone)
            self._arriving[transport] = self._loop.call_later(_ARRIVAL_TIME, transport.abort)
            if len(http.connections) > _CONNECTIONS:
                self._cut_slowest()

    def _arrived(self, transport: Any) -> None:
        if timer := self._arriving.pop(transport, None):
            timer.cancel()

    def _cut_slowest(self) -> None:
        if slowest := next(iter(self._arriving), None):
            self._arrived(slowest)
            slowest.abort()

    async def _answer(self, request: Any) -> Any:
        status, headers = 200, None
        try:
            answer = await asyncio.wait_for(self._respond(request), self.limits.timeout)
        except asyncio.TimeoutError:
            status, answer = 504, {"error": "there was no score in time"}
        except _Refused as refusal:
            status, answer, headers = refusal.status, {"error": str(refusal)}, refusal.headers
        except RewardFailed as error:
            status, answer = 503, {"error": str(error)}
        except Exception:
            log.exception("%s failed", self.reward.name)
            status, answer = 500, {"error": "the reward failed; see the log of the server"}
        self._arrived(request.transport)
        log.info("%s %s %d", request.remote, ascii(request.raw_path[:200]), status)
        response = web.json_response(answer, status=status, headers=headers)
        response.charset = None
        response.force_close()
        return response

    async def _respond(self, request: Any) -> dict[str, Any]:
        self._admit(request)
        if request.method == "GET":
            return self.health
        self._check_queue()
        body = await self._read(request)
        self._check_queue()
        gone = threading.Event()
        try:
            job = self._worker.submit(self._score, body, gone)
            self._jobs.add(job)
            job.add_done_callback(self._jobs.discard)
            return await asyncio.wrap_future(job)
        except (RuntimeError, asyncio.CancelledError):
            if self._stop.is_set():
                raise _Refused(503, "the server is shutting down") from None
            raise
        finally:
            gone.set()

    def _admit(self, request: Any) -> None:
        """Refuse who may not come in, what is not here, and what may not be read."""
        headers, most = request.headers, self.limits.megabytes
        if self.token:
            given = headers.get("Authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
                raise _Refused(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        hosts = headers.getall("Host", [])
        host = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        # A web page whose host name was pointed at this machine sends its own name.
        if not host or not (self.token or is_local(host[1].strip("[]"))):
            raise _Refused(403, "one Host is needed, and without a token it must be a local one")
        if "Origin" in headers:
            raise _Refused(403, "web pages are not served")
        if request.method not in ("GET", "POST"):
            raise _Refused(501, "there is GET and POST")
        if (request.method, request.raw_path) not in (("GET", "/health"), ("POST", "/compute")):
            raise _Refused(404, "there is GET /health and POST /compute")
        if request.method == "GET":
            return
        # A web page of another site cannot send this type without asking first.
        if request.content_type != "application/json":
            raise _Refused(415, "Content-Type must be application/json")
        if request.content_length is None or "Transfer-Encoding" in headers:
            raise _Refused(411, "one Content-Length is needed")
        if request.content_length > most * 2**20:
            raise _Refused(413, f"a request may have {most:g} MiB")

    def _check_queue(self) -> None:
        if len(self._jobs) >= self.limits.queue:
            wait = min(max(math.ceil(self._seconds), 1), 60)
            raise _Refused(503, "the queue is full", {"Retry-After": str(wait)})

    async def _read(self, request: Any) -> bytearray:
        """Read the body; where too much is on its way at once, the slowest is cut."""
        body, most = bytearray(), self.limits.queue * self.limits.megabytes * 2**20
        try:
            async for block in request.content.iter_any():
                body += block
                self._arriving_bytes += len(block)
                if self._arriving_bytes > most:
                    self._cut_slowest()
        except ConnectionError as error:
            raise _Refused(400, "the connection broke off") from error
        finally:
            self._arriving_bytes -= len(body)
            self._arrived(request.transport)
        return body

    def _score(self, body: bytearray, gone: threading.Event) -> dict[str, Any]:
        """Score a request, in the one thread that does so, for as long as somebody waits."""
        start = time.monotonic()
        try:
            question, batches = parse_question(body, self.limits.batch), []
            for part in question.parts():
                if gone.is_set():
                    raise _Refused(503, "nobody waits for this any more")
                batches.append(self.reward.score(question.images(part), question.examples[part]))
            return to_answer(RewardBatch.joined(batches))
        except (ValueError, RecursionError) as error:
            raise _Refused(400, str(error)) from error
        finally:
            self._seconds = time.monotonic() - start


def serve(server: RewardServer) -> None:
    """Answer until SIGINT or SIGTERM; the running request may end, unless there is a second one.

    From the main thread.
    """
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            os._exit(128 + number)  # a thread may be deep in a network, where nothing else ends it

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with server:
        while not signals:
            time.sleep(0.1)
