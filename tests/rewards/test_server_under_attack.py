"""The reward server among clients that stall, flood, vanish and lie: it serves the others."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from fakes import Brightness

from chunk_grpo_core.method.reward import RewardBatch
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards.png import png_base64
from chunk_grpo_core.rewards.remote import server, wire
from chunk_grpo_core.rewards.remote.server import RewardServer, ServerLimits
from chunk_grpo_core.rewards.remote.wire import Question, parse_question

ROOT = Path(__file__).resolve().parents[2]
HEAD = b"POST /compute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

pytestmark = pytest.mark.usefixtures("usual_signals")


@contextmanager
def serving(reward, **limits):
    with RewardServer(reward, port=0, limits=ServerLimits(**limits)) as lent:
        yield lent


def question(count=1, size=2):
    texts = png_base64(torch.rand(count, size, size, 3))
    return json.dumps({"prompt": ["a"] * count, "image": texts}).encode()


def begin(lent, body, length):
    """Send the start of a request and leave it at that."""
    client = socket.create_connection(lent.address, timeout=20)
    client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + body)
    return client


def ask(lent, body=None, timeout=20):
    """Send a whole request -> its status."""
    connection = http.client.HTTPConnection(*lent.address, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/compute", body or question(), headers)
        return connection.getresponse().status
    finally:
        connection.close()


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


class Slow:
    """Takes its time for each call, and counts the calls."""

    name, fingerprint = "slow", {}

    def __init__(self, seconds=0.0):
        self.seconds, self.calls, self.began = seconds, 0, threading.Event()

    def score(self, images, examples):
        self.calls += 1
        self.began.set()
        time.sleep(self.seconds)
        return RewardBatch.of(torch.zeros(len(images)))


def test_bodies_that_stall_take_no_place_in_the_queue():
    with serving(Brightness(), queue=2) as lent:
        stalled = [begin(lent, b"{", 999) for _ in range(8)]
        until(lambda: lent._arriving_bytes == 8)
        began = time.monotonic()
        assert [ask(lent) for _ in range(3)] == [200] * 3
        assert time.monotonic() - began < 5
        for client in stalled:
            client.close()
        until(lambda: lent._arriving_bytes == 0)


def test_what_arrives_at_once_is_bounded_by_hanging_up_on_the_slowest():
    with serving(Brightness(), queue=1, megabytes=0.5) as lent:
        length, part = 2**19, b" " * 300_000
        first = begin(lent, part, length)
        until(lambda: lent._arriving_bytes == len(part))
        second = begin(lent, part, length)
        with suppress(ConnectionResetError):
            assert first.recv(1) == b""
        until(lambda: lent._arriving_bytes == len(part))
        assert ask(lent) == 200
        first.close()
        second.close()


def test_nobody_is_waited_for_who_does_not_ask(monkeypatch):
    monkeypatch.setattr(server, "_ARRIVAL_TIME", 0.2)
    with serving(Brightness()) as lent:
        for start in (b"", b"POST /comp", HEAD):
            with socket.create_connection(lent.address, timeout=20) as client:
                client.sendall(start)
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""


def test_a_request_that_is_late_or_gone_is_not_worked_on_any_longer(monkeypatch):
    monkeypatch.setattr(wire, "_UNPACKED_PIXELS", 4)  # one picture at a time
    late, gone = Slow(0.3), Slow(0.3)
    with serving(late, timeout=0.1) as lent:
        assert ask(lent, question(6)) == 504
        until(lambda: not lent._jobs)
        assert late.calls == 1
    with serving(gone) as lent:
        body = question(6)
        client = begin(lent, body, len(body))
        assert gone.began.wait(20)
        client.close()
        until(lambda: not lent._jobs)
        assert gone.calls == 1


def test_parts_of_a_request_have_the_scores_of_the_whole(monkeypatch):
    images = torch.rand(5, 4, 6, 3)
    body = json.dumps(wire.to_question(images, ["a", "b", "c", "d", "e"])).encode()
    whole = Brightness().score((images * 255).round() / 255, ["a"] * 5).values
    for pixels, parts in ((24, 5), (50, 3), (1000, 1)):
        monkeypatch.setattr(wire, "_UNPACKED_PIXELS", pixels)
        question = parse_question(body, 5)
        scores = [Brightness().score(question.images(p), question.examples[p]).values
                  for p in question.parts()]  # fmt: skip
        assert len(scores) == parts
        assert torch.cat(scores).tolist() == whole.tolist()


@pytest.mark.parametrize("size", [(1, 1), (1024, 1024), (8192, 2048), (4096, 4096)])
def test_no_more_is_unpacked_at_once_than_the_documentation_says(size):
    question = Question([Example("a")] * 64, ["x"] * 64, size)
    numbers = [i for part in question.parts() for i in range(*part.indices(64))]
    assert numbers == list(range(64))
    most = max(len(range(*part.indices(64))) for part in question.parts())
    assert most * size[0] * size[1] * 12 <= 192 * 2**20
    text = (ROOT / "docs/reward_server.md").read_text(encoding="utf-8")
    assert "192 MiB" in text and "4096 x 4096" in text


@pytest.mark.parametrize(
    "filling", [b"{},", b"[],", b"1,", b'"a":1,', b"[[[["], ids=["{}", "[]", "1", "keys", "deep"]
)
def test_a_body_that_would_grow_is_refused_before_it_is_parsed(filling):
    body = b'{"prompt": [' + filling * (8 * 2**20 // len(filling))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 200000 values"):
            parse_question(body, 64)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_many_requests_leave_nothing_behind():
    with serving(Brightness()) as lent:
        for _ in range(5):
            ask(lent)
        before = resident()
        for _ in range(100):
            assert ask(lent) == 200
            assert ask(lent, b"{}") == 400
        assert not lent._jobs and len(lent._arriving) <= 1 and lent._arriving_bytes == 0
        assert resident() - before < 8 * 2**20


def resident():
    """Bytes of this process in memory."""
    if not sys.platform.startswith("linux"):
        return 0
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


STUCK = """
import sys, time
from chunk_grpo_core.rewards.remote.server import RewardServer, serve

class Stuck:
    name, fingerprint = "stuck", {}
    def score(self, images, examples):
        print("scoring", flush=True)
        time.sleep(600)

server = RewardServer(Stuck(), port=0)
print(server.address[1], flush=True)
serve(server)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_server_at_once_and_cleanly(number):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port, body = int(process.stdout.readline()), question()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert process.stdout.readline() == "scoring\n"
            process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)  # the running request may finish
            process.send_signal(number)
            assert process.wait(10) == 128 + number
        assert not re.search("Traceback|Fatal|abort", process.stderr.read())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.mark.parametrize("linger", [b"", b"\1\0\0\0\0\0\0\0"], ids=["closed", "reset"])
def test_who_hangs_up_in_the_middle_of_a_body_is_no_failure_of_the_reward(linger, caplog):
    caplog.set_level("INFO")
    with serving(Brightness()) as lent:
        for _ in range(30):
            client = begin(lent, b"{", 100)
            if linger:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.close()
        assert ask(lent) == 200
    assert "failed" not in caplog.text
