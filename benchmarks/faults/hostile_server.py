"""A reward server that answers as nobody should."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

__all__ = ["ANSWERS", "Answer", "HostileServer"]


@dataclass
class Talk:
    """One connection, after its request was read."""

    connection: socket.socket
    request: bytes
    over: threading.Event

    @property
    def count(self) -> int:
        """Pictures in the request."""
        with suppress(ValueError, KeyError, TypeError):
            return len(json.loads(self.request.partition(b"\r\n\r\n")[2])["image"])
        return 0

    def send(self, body: bytes, status: str = "200 OK", *headers: str, length: int = -1) -> None:
        """An answer with any status, headers and length."""
        length = len(body) if length < 0 else length
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", *headers]
        if not any(line.lower().startswith("content-type") for line in headers):
            lines.append("Content-Type: application/json")
        self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    def raw(self, body: bytes) -> None:
        """These bytes."""
        self.connection.sendall(body)


Answer = Callable[[Talk], None]


@dataclass
class HostileServer:
    """Listens on a free port until closed; honest to ``GET /health`` if ``is_healthy``."""

    answer: Answer
    is_healthy: bool = True
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Hang up and stop listening."""
        self.over.set()
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self.over.is_set():
                connection, _ = self._socket.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(30)
            request = _read_request(connection)
            talk = Talk(connection, request, self.over)
            if self.is_healthy and request.startswith(b"GET"):
                talk.send(b'{"status": "ok", "name": "hostile", "fingerprint": {}}')
            else:
                self.answer(talk)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        piece = connection.recv(65536)
        if not piece:
            break
        body += piece
    return head + b"\r\n\r\n" + body


def _json(make: Callable[[int], object]) -> Answer:
    return lambda talk: talk.send(json.dumps(make(talk.count)).encode())


def _text(body: bytes) -> Answer:
    return lambda talk: talk.send(body)


def _status(status: str, *headers: str) -> Answer:
    return lambda talk: talk.send(b'{"error": "no"}', status, *headers)


def _slowly(talk: Talk) -> None:
    talk.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while not talk.over.wait(0.05):
        talk.raw(b" ")


def _slow_headers(talk: Talk) -> None:
    talk.raw(b"HTTP/1.1 200 OK\r\n")
    while not talk.over.wait(0.02):
        talk.raw(b"X-A: b\r\n")


def _endless(talk: Talk) -> None:
    talk.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not talk.over.is_set():
        talk.raw(b"10000\r\n" + b" " * 65536 + b"\r\n")


def _endless_headers(talk: Talk) -> None:
    talk.raw(b"HTTP/1.1 200 OK\r\n")
    while not talk.over.is_set():
        talk.raw(b"X-A: " + b"a" * 60000 + b"\r\n")


def _hang(talk: Talk) -> None:
    talk.over.wait(30)


def _reset(talk: Talk) -> None:
    talk.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _cut(talk: Talk) -> None:
    talk.send(b'{"rewards": [0.5', length=1000)


def _late(talk: Talk) -> None:
    time.sleep(0.2)
    talk.send(json.dumps({"rewards": [0.5] * talk.count}).encode())


def _again(talk: Talk) -> None:
    """A redirect to itself."""
    talk.send(b"", "302 Found", "Location: /compute")


def _elsewhere(talk: Talk) -> None:
    talk.send(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:9/steal")


def _zip_bomb(talk: Talk) -> None:
    import gzip

    body = gzip.compress(b" " * 300_000_000)
    talk.send(body, "200 OK", "Content-Encoding: gzip")


_GOOD: dict[str, Answer] = {
    "honest": _json(lambda n: {"rewards": [0.5] * n}),
    "honest, late": _late,
    "honest, with extras": _json(lambda n: {"rewards": [0.5] * n, "extras": {"a": [1] * n}}),
    "extras with names of ours": _json(
        lambda n: {
            "rewards": [0.5] * n,
            "extras": {k: [9] * n for k in ("score", "image", "prompt")},
        }
    ),
    "null as extras": _json(lambda n: {"rewards": [0.5] * n, "extras": None}),
}
_BAD: dict[str, Answer] = {
    "all null": _json(lambda n: {"rewards": [None] * n}),
    "NaN": _text(b'{"rewards": [NaN]}'),
    "Infinity": _text(b'{"rewards": [Infinity]}'),
    "1e999": _text(b'{"rewards": [1e999]}'),
    "1e308": _text(b'{"rewards": [1e308]}'),
    "a number of 5,000 digits": _text(b'{"rewards": [' + b"9" * 5000 + b"]}"),
    "too many": _json(lambda n: {"rewards": [0.5] * (n + 1)}),
    "too few": _json(lambda n: {"rewards": []}),
    "texts": _json(lambda n: {"rewards": ["0.5"] * n}),
    "booleans": _json(lambda n: {"rewards": [True] * n}),
    "lists": _json(lambda n: {"rewards": [[0.5]] * n}),
    "a number": _json(lambda n: {"rewards": 0.5}),
    "an error": _json(lambda n: {"error": "out of coffee"}),
    "a long error": _json(lambda n: {"error": "x" * 100_000}),
    "an error with colours": _json(lambda n: {"error": "\x1b[31m\x07red\r\nerror: fake"}),
    "extras of another length": _json(lambda n: {"rewards": [0.5] * n, "extras": {"a": []}}),
    "extras as a list": _json(lambda n: {"rewards": [0.5] * n, "extras": [1]}),
    "extras as texts": _json(lambda n: {"rewards": [0.5] * n, "extras": {"a": ["x"] * n}}),
    "a list": _json(lambda n: [0.5] * n),
    "null": _text(b"null"),
    "nothing": _text(b""),
    "HTML": _text(b"<html>"),
    "cut JSON": _text(b'{"rewards": [0.5'),
    "100,000 deep": _text(b"[" * 100_000 + b"]" * 100_000),
    "not UTF-8": _text(b'{"rewards": [0.5], "a": "\xff\xfe"}'),
    "UTF-16": _text('{"rewards": null}'.encode("utf-16")),
    "40 MB of spaces": _text(b" " * 40_000_000 + b"{}"),
    "40 MB of lists": _text(b"[" + b"[]," * 13_000_000 + b"[]]"),
    "status 100 for ever": lambda talk: talk.raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 50_000),
    "status 204": _status("204 No Content"),
    "status 400": _status("400 Bad Request"),
    "status 401": _status("401 Unauthorized"),
    "status 404": _status("404 Not Found"),
    "status 429 for an hour": _status("429 Too Many Requests", "Retry-After: 3600"),
    "status 429 for ever": _status("429 Too Many Requests", "Retry-After: " + "9" * 500),
    "status 429 for less than nothing": _status("429 Too Many Requests", "Retry-After: -5"),
    "status 500": _status("500 Internal Server Error"),
    "status 503": _status("503 Service Unavailable"),
    "status 999": _status("999 What"),
    "status 0": _status("000 What"),
    "status as a word": lambda talk: talk.raw(b"HTTP/1.1 OK 200\r\n\r\n"),
    "no HTTP": lambda talk: talk.raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "noise": lambda talk: talk.raw(bytes(range(256)) * 50),
    "HTTP/0.9": lambda talk: talk.raw(b'{"rewards": [0.5]}'),
    "a redirect to itself": _again,
    "a redirect elsewhere": _elsewhere,
    "a length that is no number": lambda talk: talk.raw(
        b'HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{"rewards": [0'
    ),
    "a negative length": lambda talk: talk.raw(
        b'HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{"rewards": [0'
    ),
    "two lengths": lambda talk: talk.raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}"
    ),
    "a chunk of 2^63": lambda talk: talk.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\n{}"
    ),
    "a broken chunk": lambda talk: talk.raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"
    ),
    "gzip that is none": lambda talk: talk.send(b"{}", "200 OK", "Content-Encoding: gzip"),
    "a gzip of 300 MB": _zip_bomb,
    "a header of 1 MB": lambda talk: talk.send(b"{}", "200 OK", "X-A: " + "a" * 1_000_000),
    "endless headers": _endless_headers,
    "slow headers": _slow_headers,
    "slow": _slowly,
    "endless": _endless,
    "silent": _hang,
    "closed": lambda talk: None,
    "reset": _reset,
    "closed in the middle": _cut,
}
ANSWERS: dict[str, tuple[Answer, bool]] = {
    **{name: (answer, True) for name, answer in _GOOD.items()},
    **{name: (answer, False) for name, answer in _BAD.items()},
}
"""Name -> answer, and whether its scores are good."""
