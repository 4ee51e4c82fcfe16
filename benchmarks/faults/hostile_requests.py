"""Requests to ``chunk-grpo serve-reward`` as nobody should send them."""

from __future__ import annotations

import base64
import json
import random
import zlib
from collections.abc import Callable

from .gates.pictures import png
from .mutate import damaged_bytes

__all__ = ["ACCEPTABLE", "REQUESTS", "WORDLESS", "post", "question"]


def post(body: bytes, *headers: str, path: str = "/compute", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", *headers]
    names = {line.partition(":")[0].lower() for line in headers}
    for name, value in {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(size),
        "Connection": "close",
    }.items():
        if name.lower() not in names:
            lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def _grey(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8
    row = b"\0" + bytes([100]) * channels * width
    packer = zlib.compressobj()
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return png(width, height, depth, colour, data)


def question(count: int, **changes: object) -> bytes:
    picture = base64.b64encode(_grey(8, 8)).decode()
    question = {"prompt": ["a"] * count, "image": [picture] * count, **changes}
    return json.dumps(question).encode()


def _image(body: bytes) -> bytes:
    return post(question(1, image=[base64.b64encode(body).decode()]))


def _with(**changes: object) -> Callable[[random.Random], bytes]:
    return lambda rng: post(question(1, **changes))


def _raw(body: bytes) -> Callable[[random.Random], bytes]:
    return lambda rng: body


def _damaged(rng: random.Random) -> bytes:
    body, _ = damaged_bytes(_grey(8, 8), rng)
    return _image(body + b"\0")


_SLOW = b"POST /compute HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
ACCEPTABLE = ("honest", "four pictures", "metadata", "health", "4,096 x 4,096 pixels")
WORDLESS = ("hung up at once", "no HTTP", "noise", "a body that never comes")
REQUESTS: dict[str, Callable[[random.Random], bytes | list[bytes]]] = {
    "honest": lambda rng: post(question(1)),
    "four pictures": lambda rng: post(question(4)),
    "metadata": _with(metadata=[{"a": [1, {"b": None}]}]),
    "health": _raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "five pictures": lambda rng: post(question(5)),
    "no pictures": lambda rng: post(question(0)),
    "more prompts than pictures": _with(prompt=["a", "b"]),
    "prompt as a text": _with(prompt="a"),
    "image as null": _with(image=None),
    "image as a number": _with(image=[5]),
    "image that is no base64": _with(image=["%%%"]),
    "image that is text": _with(image=["aGVsbG8="]),
    "metadata as a list": _with(metadata=[[]]),
    "metadata 50,000 deep": lambda rng: post(
        b'{"prompt":["a"],"image":["x"],"metadata":[' + b"[" * 50_000 + b"]" * 50_000 + b"]}"
    ),
    "JSON 100,000 deep": lambda rng: post(b"[" * 100_000),
    "a number of 5,000 digits": lambda rng: post(b'{"prompt": ' + b"9" * 5000 + b"}"),
    "NaN": lambda rng: post(b'{"prompt": NaN}'),
    "no JSON": lambda rng: post(b"prompt=a"),
    "nothing": lambda rng: post(b""),
    "not UTF-8": lambda rng: post(b'{"prompt": "\xff\xfe"}'),
    "half a million objects": lambda rng: post(b"[" + b"{}," * 500_000 + b"{}]"),
    "a damaged picture": _damaged,
    "a grey picture": lambda rng: _image(_grey(8, 8, colour=0)),
    "a 16-bit picture": lambda rng: _image(_grey(8, 8, depth=16)),
    "a picture with alpha": lambda rng: _image(_grey(8, 8, colour=6)),
    "60,000 x 60,000 pixels": lambda rng: _image(png(60_000, 60_000, 8, 2, b"")),
    "4,096 x 4,096 pixels": lambda rng: _image(_grey(4096, 4096)),
    "8,192 x 8,192 pixels": lambda rng: _image(_grey(8192, 8192)),
    "0 x 8 pixels": lambda rng: _image(png(0, 8, 8, 2, b"")),
    "a JPEG": lambda rng: _image(b"\xff\xd8\xff\xe0" + bytes(100)),
    "larger than allowed": lambda rng: post(b" " * 3_000_000),
    "a length of 10^30": lambda rng: post(b"{}", length=10**30),
    "a negative length": lambda rng: post(b"{}", length=-5),
    "a length as a word": lambda rng: post(b"{}", "Content-Length: many"),
    "two lengths": lambda rng: post(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "no length": _raw(_SLOW + b"\r\n{}"),
    "chunks": _raw(_SLOW + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    "length and chunks": _raw(
        _SLOW + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    ),
    "a body that never comes": lambda rng: post(b"{", length=1000),
    "another type": lambda rng: post(question(1), "Content-Type: text/plain"),
    "another path": lambda rng: post(question(1), path="/../etc/passwd"),
    "another host": lambda rng: post(question(1), "Host: evil.example"),
    "a host with a user": lambda rng: post(question(1), "Host: evil@localhost"),
    "two hosts": lambda rng: post(question(1), "Host: localhost", "Host: evil.example"),
    "an empty host": lambda rng: post(question(1), "Host:"),
    "another origin": lambda rng: post(
        question(1), "Content-Type: text/plain", "Origin: http://evil.example"
    ),
    "another method": _raw(b"DELETE /compute HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a method that there is not": _raw(b"NOPE / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "CONNECT": _raw(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    "HTTP/0.9": _raw(b"GET /health\r\n\r\n"),
    "HTTP/9.9": _raw(b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n"),
    "no HTTP": _raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "noise": lambda rng: rng.randbytes(2000) + b"\r\n\r\n",
    "a header of 200 KB": lambda rng: post(question(1), "X-A: " + "a" * 200_000),
    "10,000 headers": lambda rng: post(question(1), *(f"X-{n}: a" for n in range(10_000))),
    "a header with a zero byte": lambda rng: post(question(1), "X-A: a\0b"),
    "a line of 1 MB": _raw(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n"),
    "hung up at once": _raw(b""),
    "8 bodies that never come": lambda rng: [_SLOW + b"Content-Length: 9000\r\n\r\n{"] * 8,
    "30 that say nothing": lambda rng: [b""] * 30,
    "30 slow ones": lambda rng: [b"POST /compute HTTP/1.1\r\nX-A: "] * 30,
    "4 that hang up in the middle": lambda rng: [post(question(4))[:-50]] * 4,
}
