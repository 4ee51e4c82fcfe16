"""Clients of ``chunk-grpo serve-reward`` as nobody should be one."""

from __future__ import annotations

import base64
import json
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .gates.pictures import png
from .outcomes import Kind, Outcome
from .warm import Child, Limits, Warm

__all__ = ["client_trials"]

_ROUND = 12
"""Requests that one server meets."""
_TIMEOUT = 3
_COMMAND = (
    *("serve-reward", "brightness", "--port", "0", "--max-megabytes", "2"),
    *("--timeout", str(_TIMEOUT), "--queue", "2", "--max-batch", "4"),
)
_MIB = 900
"""More than a server may grow by: its documents promise 768 MiB of decoded pictures."""
_ENDS = (("SIGTERM",), ("SIGINT",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"))


@dataclass
class Server:
    """One that runs."""

    child: Child
    port: int

    def ask(self, request: bytes, seconds: float = _TIMEOUT + 4.0) -> bytes:
        """Send bytes, and read whatever comes until the end.

        Raises:
            TimeoutError: It does not hang up.
        """
        end = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            with suppress(OSError):
                connection.sendall(request)
            data = b""
            while request and time.monotonic() < end:
                connection.settimeout(max(0.05, end - time.monotonic()))
                try:
                    piece = connection.recv(65536)
                except TimeoutError:
                    break
                except OSError:
                    return data
                if not piece:
                    return data
                data += piece
                if len(data) > 100_000 or _is_whole(data):
                    return data
            if not request:
                return data
        raise TimeoutError("it does not hang up")

    def resident_mib(self) -> float:
        """Memory now; 0 if it has ended."""
        with suppress(OSError):
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            if match := re.search(r"VmHWM:\s+(\d+) kB", status):
                return int(match[1]) / 1024
        return 0.0


def _is_whole(data: bytes) -> bool:
    head, split, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(split and length and len(body) >= int(length[1]))


def client_trials(warm: Warm, folder: Path, count: int, seed: int) -> list[Outcome]:
    """``count`` hostile requests, each followed by an honest one, to a server for every few."""
    outcomes: list[Outcome] = []
    while len(outcomes) < count:
        size = min(_ROUND, count - len(outcomes))
        outcomes += _round(warm, folder, len(outcomes), size, seed)
    return outcomes


def _round(warm: Warm, folder: Path, first: int, size: int, seed: int) -> list[Outcome]:
    place = folder / f"clients-{first}"
    place.mkdir(parents=True, exist_ok=True)
    child = warm.start(_COMMAND, place, Limits(seconds=300, memory_mib=2000))
    server = Server(child, _port(child))
    outcomes = []
    for number in range(first, first + size):
        rng = random.Random(f"{seed}/clients/{number}")
        name = rng.choice(sorted(_REQUESTS))
        start, before = time.monotonic(), server.resident_mib()
        kind, detail = _meet(server, _REQUESTS[name](rng), name)
        grown = server.resident_mib() - before
        if kind in (Kind.clear, Kind.accepted) and grown > _MIB:
            kind, detail = Kind.timeout, f"memory grew by {grown:.0f} MiB"
        seconds = time.monotonic() - start
        outcomes.append(Outcome("clients", number, name, kind, detail, seconds, grown))
        if child.ended():
            return outcomes
    rng = random.Random(f"{seed}/clients/end/{first}")
    ends = rng.choice(_ENDS)
    last = outcomes[-1]
    if wrong := _ends_badly(child, ends):
        outcomes[-1] = Outcome("clients", last.number, "+".join(ends), *wrong, last.seconds, 0.0)
    return outcomes


def _port(child: Child) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end and not child.ended():
        if match := re.search(r"http://127\.0\.0\.1:(\d+)", child.text("stdout")):
            return int(match[1])
        time.sleep(0.02)
    raise RuntimeError(f"the server does not start: {child.text('stderr')}")


def _meet(server: Server, request: bytes | list[bytes], name: str) -> tuple[Kind, str]:
    """One hostile request; then an honest one must get the right answer."""
    try:
        if isinstance(request, list):
            _crowd(server, request)
            answer = b"HTTP/1.1 400 crowd"
        else:
            answer = server.ask(request)
    except TimeoutError as error:
        return Kind.timeout, str(error)
    except OSError as error:
        return Kind.traceback, f"cannot be reached: {error}"
    if server.child.ended():
        return Kind.traceback, f"the server ended: {server.child.text('stderr')[-300:]}"
    if wrong := _honest(server):
        return Kind.difference, f"afterwards: {wrong}"
    is_right = name in _ACCEPTABLE
    if answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")):
        return (Kind.accepted, "") if is_right else (Kind.silent, repr(answer[-100:]))
    if is_right:
        return Kind.difference, f"refused: {answer[:200]!r}"
    if b"Traceback" in answer:
        return Kind.traceback, repr(answer[-300:])
    return Kind.clear, repr(answer[-150:])


def _crowd(server: Server, requests: list[bytes]) -> None:
    """Connections that say a little and then nothing; they stay open while others ask."""
    crowd = []
    for request in requests:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
        with suppress(OSError):
            connection.sendall(request)
        crowd.append(connection)
    try:
        if wrong := _honest(server):
            raise TimeoutError(f"while {len(crowd)} others hold a connection: {wrong}")
    finally:
        for connection in crowd:
            connection.close()


def _honest(server: Server) -> str:
    """Ask for the brightness of a grey picture; what is wrong with the answer, or nothing."""
    wrong = "no answer"
    for _ in range(20):
        try:
            answer = server.ask(_post(_question(1)))
        except OSError as error:
            wrong = str(error)
            continue
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " in head.partition(b"\r\n")[0]:
            with suppress(ValueError, KeyError, TypeError):
                score = json.loads(body)["rewards"][0]
                return "" if abs(score - 100 / 255) < 1e-3 else f"the score is {score}"
        wrong = repr(answer[:200])
        time.sleep(0.25)  # 503 until what was hostile is done
    return wrong


def _ends_badly(child: Child, ends: tuple[str, ...]) -> tuple[Kind, str] | None:
    for name in ends:
        child.send(signal.Signals[name])
        time.sleep(0.05)
    ended = child.wait(_TIMEOUT + 8.0)
    if ended.code is None:
        return Kind.timeout, "does not end"
    if "Traceback" in ended.stderr or ended.code not in (0, 130, 143):
        said = ended.stderr[max(0, ended.stderr.find("Traceback")) :]
        return Kind.traceback, f"status {ended.code}: {said[:2000]}"
    return None


def _post(body: bytes, *headers: str, path: str = "/compute", length: int | None = None) -> bytes:
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
    import zlib

    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth // 8
    row = b"\0" + bytes([100]) * channels * width
    packer = zlib.compressobj()
    data = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    return png(width, height, depth, colour, data)


def _question(count: int, **changes: object) -> bytes:
    picture = base64.b64encode(_grey(8, 8)).decode()
    question = {"prompt": ["a"] * count, "image": [picture] * count, **changes}
    return json.dumps(question).encode()


def _image(body: bytes) -> bytes:
    return _post(_question(1, image=[base64.b64encode(body).decode()]))


def _with(**changes: object) -> Callable[[random.Random], bytes]:
    return lambda rng: _post(_question(1, **changes))


def _raw(body: bytes) -> Callable[[random.Random], bytes]:
    return lambda rng: body


def _damaged(rng: random.Random) -> bytes:
    from .mutate import damaged_bytes

    body, _ = damaged_bytes(_grey(8, 8), rng)
    return _image(body + b"\0")


_SLOW = b"POST /compute HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
_ACCEPTABLE = ("honest", "four pictures", "metadata", "a query behind the path, honestly", "health")
_REQUESTS: dict[str, Callable[[random.Random], bytes | list[bytes]]] = {
    "honest": lambda rng: _post(_question(1)),
    "four pictures": lambda rng: _post(_question(4)),
    "metadata": _with(metadata=[{"a": [1, {"b": None}]}]),
    "health": _raw(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "five pictures": lambda rng: _post(_question(5)),
    "no pictures": lambda rng: _post(_question(0)),
    "more prompts than pictures": _with(prompt=["a", "b"]),
    "prompt as a text": _with(prompt="a"),
    "image as null": _with(image=None),
    "image as a number": _with(image=[5]),
    "image that is no base64": _with(image=["%%%"]),
    "image that is text": _with(image=["aGVsbG8="]),
    "metadata as a list": _with(metadata=[[]]),
    "metadata 50,000 deep": lambda rng: _post(
        b'{"prompt":["a"],"image":["x"],"metadata":[' + b"[" * 50_000 + b"]" * 50_000 + b"]}"
    ),
    "JSON 100,000 deep": lambda rng: _post(b"[" * 100_000),
    "a number of 5,000 digits": lambda rng: _post(b'{"prompt": ' + b"9" * 5000 + b"}"),
    "NaN": lambda rng: _post(b'{"prompt": NaN}'),
    "no JSON": lambda rng: _post(b"prompt=a"),
    "nothing": lambda rng: _post(b""),
    "not UTF-8": lambda rng: _post(b'{"prompt": "\xff\xfe"}'),
    "half a million objects": lambda rng: _post(b"[" + b"{}," * 500_000 + b"{}]"),
    "a damaged picture": _damaged,
    "a grey picture": lambda rng: _image(_grey(8, 8, colour=0)),
    "a 16-bit picture": lambda rng: _image(_grey(8, 8, depth=16)),
    "a picture with alpha": lambda rng: _image(_grey(8, 8, colour=6)),
    "60,000 x 60,000 pixels": lambda rng: _image(png(60_000, 60_000, 8, 2, b"")),
    "8,192 x 8,192 pixels": lambda rng: _image(_grey(8192, 8192)),
    "0 x 8 pixels": lambda rng: _image(png(0, 8, 8, 2, b"")),
    "a JPEG": lambda rng: _image(b"\xff\xd8\xff\xe0" + bytes(100)),
    "larger than allowed": lambda rng: _post(b" " * 3_000_000),
    "a length of 10^30": lambda rng: _post(b"{}", length=10**30),
    "a negative length": lambda rng: _post(b"{}", length=-5),
    "a length as a word": lambda rng: _post(b"{}", "Content-Length: many"),
    "two lengths": lambda rng: _post(b"{}", "Content-Length: 2", "Content-Length: 3"),
    "no length": _raw(_SLOW + b"\r\n{}"),
    "chunks": _raw(_SLOW + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
    "length and chunks": _raw(
        _SLOW + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    ),
    "a body that never comes": lambda rng: _post(b"{", length=1000),
    "another type": lambda rng: _post(_question(1), "Content-Type: text/plain"),
    "another path": lambda rng: _post(_question(1), path="/../etc/passwd"),
    "another host": lambda rng: _post(_question(1), "Host: evil.example"),
    "a host with a user": lambda rng: _post(_question(1), "Host: evil@localhost"),
    "two hosts": lambda rng: _post(_question(1), "Host: localhost", "Host: evil.example"),
    "an empty host": lambda rng: _post(_question(1), "Host:"),
    "another origin": lambda rng: _post(
        _question(1), "Content-Type: text/plain", "Origin: http://evil.example"
    ),
    "another method": _raw(b"DELETE /compute HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "a method that there is not": _raw(b"NOPE / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "CONNECT": _raw(b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n"),
    "HTTP/0.9": _raw(b"GET /health\r\n\r\n"),
    "HTTP/9.9": _raw(b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n"),
    "no HTTP": _raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)),
    "noise": lambda rng: rng.randbytes(2000) + b"\r\n\r\n",
    "a header of 200 KB": lambda rng: _post(_question(1), "X-A: " + "a" * 200_000),
    "10,000 headers": lambda rng: _post(_question(1), *(f"X-{n}: a" for n in range(10_000))),
    "a header with a zero byte": lambda rng: _post(_question(1), "X-A: a\0b"),
    "a line of 1 MB": _raw(b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n"),
    "hung up at once": _raw(b""),
    "8 bodies that never come": lambda rng: [_SLOW + b"Content-Length: 9000\r\n\r\n{"] * 8,
    "30 that say nothing": lambda rng: [b""] * 30,
    "30 slow ones": lambda rng: [b"POST /compute HTTP/1.1\r\nX-A: "] * 30,
    "4 that hang up in the middle": lambda rng: [_post(_question(4))[:-50]] * 4,
}
