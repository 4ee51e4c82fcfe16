"""JSON over HTTP, bounded in time, in size and in tries: for rewards that live in a server.

No redirect is followed, no proxy of the environment is used, nothing is decompressed, and nothing
but JSON is read. Requests run in an event loop of their own, in a thread of their own: whoever
calls needs no loop, and may well be inside one, as in ComfyUI.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import os
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ...optional import require
from ...settings.declared import Range, check_settings, shortened
from ..safe_json import parse_json
from .address import checked_url, token_for, warn_if_remote

aiohttp: Any = require("aiohttp", "To ask a reward server")

__all__ = ["HttpFailed", "JsonServer"]

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of answers that may be better next time."""


class HttpFailed(Exception):
    """A request got no answer that can be used."""

    def __init__(self, message: str, *, again: bool = False, wait: float = 0.0) -> None:
        """Say what happened, whether repeating may help, and after how many seconds."""
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
    timeout: Annotated[float, Range(1e-3, 86_400)] = 120.0
    """Seconds that all requests of one call may take together, repetitions included."""
    retries: Annotated[int, Range(0, 10)] = 3
    """Repetitions of a request that failed and may work next time."""
    backoff: Annotated[float, Range(1e-3, 3600)] = 0.5
    """Seconds before the first repetition; doubled for each further one, times 0.5 to 1 at random
    from a fixed seed. A longer ``Retry-After`` of the server is honoured."""
    concurrency: Annotated[int, Range(1, 64)] = 1
    """Requests under way at once."""
    max_megabytes: Annotated[float, Range(1e-3, 1024)] = 16.0
    """Size limit of an answer."""

    def __post_init__(self) -> None:
        check_settings(self)
        token_for(self.token_env, checked_url(self.url).hostname or "")

    def post(self, path: str, payloads: Sequence[object]) -> list[Any | HttpFailed]:
        """POST every payload as JSON to the URL with ``path`` (such as ``"/compute"``) added.

        Returns:
            For each payload the parsed JSON of the answer, or why there is none. Never takes much
            longer than ``timeout``.

        Raises:
            ValueError: The token may not be sent to this host.
            TypeError: A payload holds what JSON cannot.
        """
        if not payloads:
            return []
        warn_if_remote(self.url)
        return self._ask("POST", path, [json.dumps(payload).encode() for payload in payloads])

    def get(self, path: str) -> Any:
        """GET and parse JSON.

        Raises:
            HttpFailed: There is no answer that can be used.
            ValueError: The token may not be sent to this host.
        """
        (answer,) = self._ask("GET", path, [None])
        if isinstance(answer, HttpFailed):
            raise answer
        return answer

    def _ask(self, method: str, path: str, bodies: Sequence[bytes | None]) -> list[Any]:
        loop = _loop(os.getpid())
        work = asyncio.run_coroutine_threadsafe(self._ask_all(method, path, bodies), loop)
        try:
            return work.result()
        finally:
            work.cancel()  # what is left after an interrupt

    async def _ask_all(self, method: str, path: str, bodies: Sequence[bytes | None]) -> list[Any]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Content-Type": "application/json"} if method == "POST" else {}
        if token := token_for(self.token_env, checked_url(self.url).hostname or ""):
            headers["Authorization"] = f"Bearer {token}"
        url, clock = self.url.rstrip("/") + path, asyncio.get_running_loop().time
        turns, jitter = asyncio.Semaphore(self.concurrency), random.Random(0)
        end = clock() + self.timeout

        async def ask(body: bytes | None) -> Any | HttpFailed:
            async with turns:
                for attempt in range(self.retries + 1):
                    file = None if body is None else io.BytesIO(body)
                    request = session.request(method, url, data=file, allow_redirects=False)
                    try:
                        return await self._answer(request)
                    except HttpFailed as error:
                        failure = error
                    pause = self.backoff * 2**attempt * (0.5 + 0.5 * jitter.random())
                    pause = max(pause, failure.wait)
                    if not failure.again or attempt == self.retries or pause >= end - clock():
                        return failure
                    await asyncio.sleep(pause)

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            headers=headers,
        ) as session:
            tasks = [asyncio.ensure_future(ask(body)) for body in bodies]
            try:
                done, _ = await asyncio.wait(tasks, timeout=self.timeout)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        late = HttpFailed(f"{self.url} did not answer within {self.timeout:g} s")
        return [task.result() if task in done else late for task in tasks]

    async def _answer(self, request: Any) -> Any:
        """Send a request and read the answer."""
        data = bytearray()
        try:
            async with request as response:
                async for block in response.content.iter_any():
                    data += block
                    if len(data) > self.max_megabytes * 2**20:
                        raise HttpFailed(f"{self.url} sent more than {self.max_megabytes:g} MiB")
        # UnicodeError: a host name that cannot be one. The cause would show the token.
        except (aiohttp.ClientError, OSError, UnicodeError) as error:
            reason = shortened(str(error) or type(error).__name__, 200)[1:-1]
            if isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
                reason = "connection refused; is the server running?"
            raise HttpFailed(f"{self.url}: {reason}", again=True) from None
        status, headers = response.status, response.headers
        if 300 <= status < 400:
            place = shortened(headers.get("Location", "nowhere"), 200)
            raise HttpFailed(f"{self.url} redirects to {place}; write the final address")
        try:
            answer = parse_json(data)
        except ValueError as error:
            if status == 200:
                raise HttpFailed(f"{self.url} did not answer with JSON: {error}") from None
            answer = data[:1000].decode("utf-8", "replace")
        if status == 200:
            return answer
        text = answer.get("error", answer) if isinstance(answer, dict) else answer
        wait = headers.get("Retry-After", "")  # a date counts as 0
        raise HttpFailed(
            f"{self.url} answered {status}: {shortened(text, 200)}",
            again=status in _AGAIN,
            wait=float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0,
        )


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    """The loop in which all requests of a process run; a fork does not inherit its thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward-requests", daemon=True).start()
    return loop
