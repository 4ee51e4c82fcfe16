"""HTTP servers that behave as told, and badly if told so."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy
from PIL import Image


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    data: Any
    time: float


@dataclass
class FakeServer:
    """What a test holds of a server."""

    url: str
    seen: list[Seen] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    """Set when the test is done: whoever hangs lets go."""
    cut: threading.Event = field(default_factory=threading.Event)
    """Set when a client hung up on a behaviour that was still talking."""


Behaviour = Callable[[BaseHTTPRequestHandler, FakeServer, Any], None]


@contextmanager
def fake_server(*behaviours: Behaviour) -> Iterator[FakeServer]:
    """Serve on a free port; the n-th request meets the n-th behaviour, later ones the last."""

    class Handler(BaseHTTPRequestHandler):
        def _meet(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            data = json.loads(body) if body else None
            fake.seen.append(
                Seen(self.command, self.path, dict(self.headers), data, time.monotonic())
            )
            behaviour = behaviours[min(len(fake.seen), len(behaviours)) - 1]
            try:
                behaviour(self, fake, data)
            except OSError:
                fake.cut.set()

        do_GET = do_POST = _meet

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake = FakeServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        fake.over.set()
        server.shutdown()
        server.server_close()


def reply(answer: Any, status: int = 200, **headers: str) -> Behaviour:
    """Answer with JSON, or with text as it is."""
    text = answer if isinstance(answer, str) else json.dumps(answer)

    def behave(handler: BaseHTTPRequestHandler, fake: FakeServer, data: Any) -> None:
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(text.encode())), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(text.encode())

    return behave


def hang(handler: BaseHTTPRequestHandler, fake: FakeServer, data: Any) -> None:
    """Say nothing."""
    fake.over.wait(30)


def drip(start: bytes) -> Behaviour:
    """Begin with ``start``, then send a byte now and then, for ever."""

    def behave(handler: BaseHTTPRequestHandler, fake: FakeServer, data: Any) -> None:
        handler.wfile.write(start)
        while not fake.over.wait(0.02):
            handler.wfile.write(b" ")

    return behave


def pixels(text: str) -> numpy.ndarray:
    """PNG in base64 -> (H, W, 3) uint8."""
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    assert image.format == "PNG"
    return numpy.array(image)


def red_score(handler: BaseHTTPRequestHandler, fake: FakeServer, data: Any) -> None:
    """Score the red channel of the first pixel, in 0..255: an honest server."""
    scores = [float(pixels(text)[0, 0, 0]) for text in data["image"]]
    reply({"rewards": scores, "extras": {"length": [len(p) for p in data["prompt"]]}})(
        handler, fake, data
    )
