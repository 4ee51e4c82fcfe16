"""Clients of ``chunk-grpo serve-reward`` as nobody should be one."""

from __future__ import annotations

import base64
import json
import random
import re
import signal
import socket
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from .gates.pictures import png
from .hostile_requests import ACCEPTABLE, REQUESTS, WORDLESS, post, question
from .outcomes import Kind, Outcome
from .warm import Child, Limits, Warm

__all__ = ["client_trials"]

_ROUND = 12
"""Requests that one server meets."""
_TIMEOUT = 8
_COMMAND = (
    *("serve-reward", "brightness", "--port", "0", "--max-megabytes", "2"),
    *("--timeout", str(_TIMEOUT), "--queue", "2", "--max-batch", "4"),
)
_MOST_MIB = {Kind.accepted: 900, Kind.clear: 100}
"""More than a server may grow by. At most 192 MiB are unpacked at once, as its documents promise,
and the reward takes three times as much on top; what is refused is not unpacked."""
_LEAK_MIB = 12
"""More than a server may keep of :data:`_REPEATED` requests of a megabyte."""
_REPEATED = 30
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

    def resident_mib(self, which: str = "VmHWM") -> float:
        """Largest memory so far, or with "VmRSS" that of now; 0 if it has ended."""
        with suppress(OSError):
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            if match := re.search(rf"{which}:\s+(\d+) kB", status):
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
        name = rng.choice(sorted(REQUESTS))
        start, before = time.monotonic(), server.resident_mib()
        kind, detail = _meet(server, REQUESTS[name](rng), name)
        grown = server.resident_mib() - before
        if kind in _MOST_MIB and grown > _MOST_MIB[kind]:
            kind, detail = Kind.timeout, f"memory grew by {grown:.0f} MiB"
        seconds = time.monotonic() - start
        outcomes.append(Outcome("clients", number, name, kind, detail, seconds, grown))
        if child.ended():
            return outcomes
    last = outcomes[-1]
    if kept := _leaks(server):
        last = replace(last, about="a server that only scores", kind=Kind.timeout, detail=kept)
        outcomes[-1] = last
    rng = random.Random(f"{seed}/clients/end/{first}")
    ends = rng.choice(_ENDS)
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
            answer = b"HTTP/1.1 400 crowd\r\n\r\ncrowd"
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
    # A turned bit may lie where it changes no pixel; the score says whether it does.
    is_whole = name == "a damaged picture" and b" 200 " in answer[:16]
    return judge_answer(answer, is_whole or name in ACCEPTABLE, name in WORDLESS)


def judge_answer(answer: bytes, is_right: bool, may_hang_up: bool) -> tuple[Kind, str]:
    """What kind of answer it is.

    Args:
        answer: All that came.
        is_right: Whether the request is to be answered.
        may_hang_up: Whether it says so little that no answer is one, too.
    """
    status = re.match(rb"HTTP/(?:0\.9|1\.[01]) (\d{3}) ", answer)
    said = answer.partition(b"\r\n\r\n")[2].strip()
    if b"Traceback" in answer or (status and status[1] == b"500"):
        return Kind.traceback, repr(answer[-300:])
    if status and status[1] == b"200":
        if not is_right:
            return Kind.silent, repr(answer[-100:])
        wrong = _wrong_scores(said)
        return (Kind.difference, wrong) if wrong else (Kind.accepted, "")
    if is_right:
        return Kind.difference, f"refused: {answer[:200]!r}"
    if not answer and may_hang_up:
        return Kind.clear, "hung up"
    if not status or not said or status[1][:1] not in (b"4", b"5"):
        return Kind.unclear, repr(answer[:300])
    return Kind.clear, repr(answer[-150:])


def _wrong_scores(body: bytes) -> str:
    """All our pictures are of the same grey, also in an answer to ``GET /health``."""
    with suppress(ValueError, AttributeError, TypeError):
        scores = json.loads(body).get("rewards", [])
        strange = [score for score in scores if abs(score - 100 / 255) > 1e-3]
        return f"the score is {strange[0]}" if strange else ""
    return f"no scores: {body[:100]!r}"


def _leaks(server: Server) -> str:
    """Whether scoring noise again and again takes more and more memory; how much, or nothing."""
    noise = random.Random(0).randbytes(256 * (256 * 3 + 1))
    rows = b"".join(b"\0" + noise[n * 769 + 1 : (n + 1) * 769] for n in range(256))
    picture = base64.b64encode(png(256, 256, 8, 2, zlib.compress(rows))).decode()
    request = post(question(4, image=[picture] * 4))
    kept = []
    for _ in range(3):  # an allocator keeps some once; what grows every time is a leak
        for _ in range(_REPEATED):
            with suppress(OSError):
                server.ask(request)
        kept.append(server.resident_mib("VmRSS"))
    grown = min(after - before for before, after in pairwise(kept))
    return f"{_REPEATED} equal requests left {grown:.0f} MiB" if grown > _LEAK_MIB else ""


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
            answer = server.ask(post(question(1)))
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
