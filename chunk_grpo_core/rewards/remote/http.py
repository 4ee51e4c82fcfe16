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
import logging
import os
import random
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from ...method.reward import RewardFailed
from ...optional import require
from ...settings.declared import Range, check_settings, shortened
from ..safe_json import parse_json
from .address import token_for, warn_if_remote

aiohttp: Any = require("aiohttp", "To ask a reward server")

__all__ = ["JsonServer"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses of answers that may be better next time."""


class _NoAnswer(RewardFailed):
    """Why a request failed, whether repeating may help, and after how many seconds."""

    def __init__(self, reason: str, *, again: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
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
        token_for(self.token_env, self.url)

    def get(self, path: str) -> Any:
        """GET the URL with ``path`` added, and parse JSON; for errors see :meth:`post`."""
        return self._ask("GET", path, [None], lambda _, answer: answer)[0]

    def post(
        self, path: str, questions: Sequence[object], read: Callable[[Any, Any], T]
    ) -> list[T | None]:
        """POST every question as JSON to the URL with ``path`` (such as ``"/compute"``) added.

        ``read`` takes a question and the JSON of its answer; ValueError says why that is no answer.

        Returns:
            What was read for each question; None where a request failed, which a warning counts.
            Never takes much longer than ``timeout``.

        Raises:
            RewardFailed: All requests failed.
            ValueError: The token may not be sent to this host.
        """
        if not questions:
            return []
        warn_if_remote(self.url)
        return self._ask("POST", path, questions, read)

    def _ask(self, *request: Any) -> list[Any]:
        work = asyncio.run_coroutine_threadsafe(self._ask_all(*request), _loop(os.getpid()))
        try:
            answers = work.result()
        finally:
            work.cancel()  # what is left after an interrupt
        failures = [answer for answer in answers if isinstance(answer, RewardFailed)]
        if len(failures) == len(answers):
            raise RewardFailed(str(failures[0]))  # without its cause, which holds the token
        if failures:
            log.warning("%d of %d requests failed: %s", len(failures), len(answers), failures[0])
        return [None if isinstance(answer, RewardFailed) else answer for answer in answers]

    async def _ask_all(
        self, method: str, path: str, questions: Sequence[Any], read: Any
    ) -> list[Any]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Content-Type": "application/json"} if method == "POST" else {}
        if token := token_for(self.token_env, self.url):
            headers["Authorization"] = f"Bearer {token}"
        bodies = [json.dumps(item).encode() if method == "POST" else None for item in questions]
        url, clock = self.url.rstrip("/") + path, asyncio.get_running_loop().time
        turns, jitter = asyncio.Semaphore(self.concurrency), random.Random(0)
        end = clock() + self.timeout

        async def persist(body: bytes | None) -> Any:
            async with turns:
                for attempt in range(self.retries + 1):
                    file = None if body is None else io.BytesIO(body)
                    request = session.request(method, url, data=file, allow_redirects=False)
                    try:
                        return await self._answer(request)
                    except _NoAnswer as error:
                        pause = max(self.backoff * 2**attempt * jitter.uniform(0.5, 1), error.wait)
                        if not error.again or attempt == self.retries or pause >= end - clock():
                            raise
                    await asyncio.sleep(pause)

        async def ask(question: Any, body: bytes | None) -> Any:
            try:
                return read(question, await asyncio.wait_for(persist(body), self.timeout))
            except asyncio.TimeoutError:
                return RewardFailed(f"{self.url} did not answer within {self.timeout:g} s")
            except ValueError as error:
                return RewardFailed(f"{self.url}: {error}")
            except RewardFailed as error:
                return error

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            headers=headers,
        ) as session:
            return await asyncio.gather(*map(ask, questions, bodies))

    async def _answer(self, request: Any) -> Any:
        """Send a request and read the answer."""
        data, most = bytearray(), self.max_megabytes * 2**20
        try:
            async with request as response:
                async for block in response.content.iter_any():
                    data += block
                    if len(data) > most:
                        raise _NoAnswer(f"{self.url} sent more than {self.max_megabytes:g} MiB")
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # Unicode: the host's name
            reason = shortened(str(error) or type(error).__name__, 200)[1:-1]
            if isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
                reason = "connection refused; is the server running?"
            raise _NoAnswer(f"{self.url}: {reason}", again=True) from error
        status, headers = response.status, response.headers
        if 300 <= status < 400:
            place = shortened(headers.get("Location", "nowhere"), 200)
            raise _NoAnswer(f"{self.url} redirects to {place}; write the final address")
        if status == 200:
            try:
                return parse_json(data)
            except ValueError as error:
                raise _NoAnswer(f"{self.url} did not answer with JSON: {error}") from error
        text = data[:1000].decode("utf-8", "replace")
        with suppress(ValueError, TypeError, KeyError):
            text = parse_json(data)["error"]
        wait = headers.get("Retry-After", "")  # a date counts as 0
        raise _NoAnswer(
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
