"""The reward server: honest clients get the scores of the reward, others a refusal in JSON."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from fakes import Brightness, Broken
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chunk_grpo_core.method.reward import RewardBatch, RewardFailed, checked_inputs
from chunk_grpo_core.prompts.example import Example
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.rewards.png import png_base64
from chunk_grpo_core.rewards.remote import server
from chunk_grpo_core.rewards.remote.server import RewardServer, ServerLimits
from chunk_grpo_core.rewards.remote.wire import parse_question

ROOT = Path(__file__).resolve().parents[2]
LOOK_UP = socket.getaddrinfo


@contextmanager
def serving(reward, token="", **limits):
    """Serve on a free port of this machine."""
    with RewardServer(reward, port=0, token=token, limits=ServerLimits(**limits)) as lent:
        yield lent


@pytest.fixture(scope="module")
def plain():
    """Lend a reward that always works; small limits."""
    with serving(Brightness(), batch=4, megabytes=0.5) as lent:
        yield lent


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("CHUNK_GRPO_TOKEN", "CHUNK_GRPO_TOKEN_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def any_address(monkeypatch):
    """Let addresses of this machine be looked up that others can reach; nothing is sent there."""
    monkeypatch.setattr(socket, "getaddrinfo", LOOK_UP)


class Stuck:
    """Scores when told to; counts how many do so at once."""

    name = "stuck"
    fingerprint = {"sha256": "abc"}

    def __init__(self):
        self.go, self.busy, self.most, self.calls = threading.Event(), 0, 0, 0
        self.began = threading.Event()

    def score(self, images, examples):
        self.busy += 1
        self.calls += 1
        self.most = max(self.most, self.busy)
        self.began.set()
        assert self.go.wait(30)
        self.busy -= 1
        return Brightness().score(images, examples)


class Raises:
    """Fails as told."""

    name = "raises"
    fingerprint = {}

    def __init__(self, error):
        self.error = error

    def score(self, images, examples):
        raise self.error


class Words:
    """Scores the metadata."""

    name = "words"
    fingerprint = {}

    def score(self, images, examples):
        images, examples = checked_inputs(images, examples)
        words = [float(example.metadata.get("words", -1)) for example in examples]
        return RewardBatch.of(torch.tensor(words))


def remote(lent, **changes):
    return load_reward("remote_http", url=lent.url, **{"backoff": 0.01, "timeout": 30.0, **changes})


def ask(lent, body=b"", path="/compute", method="POST", **headers):
    """Send one request as it is -> status, JSON, headers."""
    connection = http.client.HTTPConnection(*lent.address, timeout=20)
    known = {"Content_Type": "application/json", **headers}
    try:
        connection.request(
            method, path, body, {key.replace("_", "-"): value for key, value in known.items()}
        )
        answer = connection.getresponse()
        data = answer.read()
        assert answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(data) if data else None, answer.headers
    finally:
        connection.close()


def question(count=1, size=2, **changes):
    texts = png_base64(torch.rand(count, size, size, 3))
    return json.dumps({"prompt": ["a"] * count, "image": texts, **changes}).encode()


def saved(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def bomb(width, height, bits=8, then=None, bits_then=8):
    """A PNG header that promises a huge picture, and optionally a second header."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    headers = [(width, height, bits)] + ([(*then, bits_then)] if then else [])
    file = b"\x89PNG\r\n\x1a\n"
    for header in headers:
        file += chunk(b"IHDR", struct.pack(">IIBBBBB", *header, 2, 0, 0, 0))
    file += chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return base64.b64encode(file).decode()


GOOD = png_base64(torch.rand(1, 2, 2, 3))[0]
HEAD_AND_END = base64.b64encode(base64.b64decode(GOOD)[:33] + base64.b64decode(GOOD)[-12:]).decode()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_lent_reward_gives_the_scores_it_gives_at_home(plain, batch_size):
    images = torch.rand(5, 6, 4, 3)
    at_home = Brightness().score((images * 255).round() / 255, ["a"] * 5)
    away = remote(plain, batch_size=batch_size).score(images, ["a"] * 5)
    assert away.values.tolist() == at_home.values.tolist()
    assert away.valid.all()
    assert away.details["spread"].tolist() == at_home.details["spread"].tolist()


def test_a_score_that_is_none_stays_none():
    with serving(Broken([1])) as lent:
        batch = remote(lent).score(torch.rand(3, 2, 2, 3), ["a"] * 3)
    assert batch.valid.tolist() == [True, False, True]


def test_metadata_reaches_the_reward():
    images = torch.rand(3, 2, 2, 3)
    with serving(Words()) as lent:
        examples = [Example("a", {"words": 1}), "a", Example("a", {"words": 3})]
        assert remote(lent).score(images, examples).values.tolist() == [1.0, -1.0, 3.0]
        assert remote(lent).score(images, ["a"] * 3).values.tolist() == [-1.0, -1.0, -1.0]


def test_health_says_what_is_lent():
    with serving(Stuck()) as lent:
        status, health, _ = ask(lent, path="/health", method="GET")
        assert (status, health["status"], health["name"]) == (200, "ok", "stuck")
        assert health["fingerprint"] == {"sha256": "abc"}
        assert remote(lent).fingerprint == {"server/reward": "stuck", "server/sha256": "abc"}


def test_only_holders_of_the_token_come_in(monkeypatch):
    with serving(Brightness(), token="s3cret") as lent:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            for path, method in (("/compute", "POST"), ("/health", "GET"), ("/", "GET")):
                status, answer, headers = ask(lent, question(), path, method, **given)
                assert status == 401
                assert headers["WWW-Authenticate"] == "Bearer"
                assert "s3cret" not in json.dumps(answer)
        with pytest.raises(RewardFailed, match="401"):
            remote(lent).score(torch.rand(1, 2, 2, 3), ["a"])
        monkeypatch.setenv("CHUNK_GRPO_TOKEN", "s3cret")
        assert remote(lent).score(torch.rand(1, 2, 2, 3), ["a"]).valid.all()


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_other_machines_need_a_token(host, any_address):
    with pytest.raises((ValueError, OSError), match="set a token|not known"):
        RewardServer(Brightness(), host=host, port=0)
    with RewardServer(Brightness(), host="0.0.0.0", port=0, token="x") as lent:
        assert lent.address[1]


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (404, {"path": "/"}),
        (404, {"path": "/health"}),
        (404, {"path": "/compute/../health"}),
        (404, {"path": "/compute", "method": "GET"}),
        (501, {"method": "PUT"}),
        (415, {"Content_Type": "text/plain"}),
        (403, {"Host": "evil.test"}),
        (403, {"Host": "127.0.0.1.evil.test:8181"}),
        (403, {"Host": "[::1"}),
        (403, {"Host": ""}),
        (403, {"Host": "evil@localhost"}),
        (403, {"Host": "localhost:8181@evil.test"}),
        (403, {"Host": "localhost, evil.test"}),
        (403, {"Host": "localhost:99999999"}),
        (403, {"Origin": "http://localhost:8188"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "http://evil.test", "path": "/health", "method": "GET"}),
        (403, {"Origin": "http://evil.test", "method": "OPTIONS"}),
        (501, {"method": "OPTIONS"}),
        (413, {"Content_Length": str(10**6)}),
    ],
)
def test_what_may_not_come_in_is_refused_unread(plain, status, change):
    got, answer, _ = ask(plain, **{"body": question(), **change})
    assert got == status
    assert set(answer) == {"error"}


@pytest.mark.parametrize(
    "headers",
    [
        b"Host: localhost\r\nHost: localhost\r\nContent-Length: 2\r\n",
        b"Host: localhost\r\nHost: evil.test\r\nContent-Length: 2\r\n",
        b"Content-Length: 2\r\n",
        b"Host: localhost\r\nContent-Length: -1\r\n",
        b"Host: localhost\r\nContent-Length: 1e3\r\n",
        b"Host: localhost\r\nContent-Length: %s\r\n" % (b"9" * 5000),
        b"Host: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n",
        b"Host: localhost\r\nX: %s\r\n" % (b"x" * 20_000),
        b"".join(b"X-%d: y\r\n" % i for i in range(2000)),
        b"\0\r\n",
    ],
)
def test_what_is_not_one_clear_request_is_refused_without_a_traceback(plain, headers, caplog):
    head = b"POST /compute HTTP/1.1\r\nContent-Type: application/json\r\n" + headers
    with socket.create_connection(plain.address, timeout=20) as client:
        client.sendall(head + b"\r\n{}")
        with client.makefile("rb") as answer, suppress(ConnectionResetError):
            assert answer.read().split(b" ")[1] in (b"400", b"403")
    assert "Traceback" not in caplog.text
    assert ask(plain, question())[0] == 200


def test_a_body_of_unknown_length_is_refused(plain):
    head = b"POST /compute HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(plain.address, timeout=20) as client:
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
        with client.makefile("rb") as answer:
            assert b" 411 " in answer.readline()


def test_a_body_that_is_too_large_is_refused_so_that_the_client_hears_it(plain):
    with pytest.raises(RewardFailed, match=r"413: 'a request may have 0\.5 MiB'"):
        remote(plain, retries=0).score(torch.rand(1, 600, 600, 3), ["a"])


def test_a_refusal_is_not_undone_by_what_the_client_still_sends(plain):
    """Closing on unread bytes resets the connection, and some systems drop the answer with it."""
    start = b"POST /compute HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    start += b"Content-Length: 9999999"
    with socket.create_connection(plain.address, timeout=20) as client:
        client.sendall(start + b"\r\n\r\n")
        for _ in range(3):
            time.sleep(0.02)
            client.sendall(b" " * 1000)
        with client.makefile("rb") as answer:
            assert b" 413 " in answer.read()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b"\xff\xfe\xfa", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "object"),
        (b"{}", "prompt must be a list of strings"),
        (question(prompt="a"), "prompt must be a list of strings"),
        (question(prompt=[1]), "prompt must be a list of strings"),
        (question(image=GOOD), "image must be a list of strings"),
        (question(image=[None]), "image must be a list of strings"),
        (question(prompt=["a", "b"]), "same length"),
        (question(metadata=[]), "same length"),
        (question(metadata=["x"]), "metadata must be a list of objects"),
        (question(metadata={}), "metadata must be a list of objects"),
        (question(prompt=[], image=[]), "1 to 4"),
        (question(5), "1 to 4"),
        (question(image=["not base64!"]), "image 0 is not PNG"),
        (question(image=[""]), "image 0 is not PNG"),
        (question(image=["AAAA"]), "image 0 is not PNG"),
        (question(image=[saved(Image.new("RGB", (4, 4)), "JPEG")]), "image 0 is not PNG"),
        (question(image=[saved(Image.new("RGBA", (4, 4)))]), "mode RGBA"),
        (question(image=[saved(Image.new("L", (4, 4)))]), "mode L"),
        (question(image=[saved(Image.new("I;16", (4, 4)))]), "mode I;16"),
        (question(image=[GOOD[:-40] + "AAAA" * 10]), "image 0 is"),
        (question(2, image=[GOOD, saved(Image.new("RGB", (4, 4)))]), "one size"),
        (question(image=[bomb(100_000, 100_000)]), "a side may have 8192"),
        (question(image=[bomb(8192, 8192)]), "a picture 16777216"),
        (question(image=[bomb(2, 2, bits=16)]), "mode RGB;16"),
        (question(image=[bomb(2, 2, then=(8000, 8000))]), "two headers"),
        (question(image=[bomb(2, 2, then=(2, 2), bits_then=16)]), "two headers"),
        (b'{"a": [' + b"{}," * 100_000 + b"{}]}", "more than 200000 values"),
        (question(image=[bomb(9000, 10)]), "a side may have 8192"),
        (question(2, image=[bomb(8000, 8000)] * 2), "all pictures of a request"),
        (question(image=[bomb(500, 500)]), "image 0 is damaged"),
        (question(image=[HEAD_AND_END]), "no pixels"),
    ],
)
def test_a_body_that_makes_no_sense_is_refused_with_the_reason(plain, body, message):
    status, answer, _ = ask(plain, body)
    assert (status, set(answer)) == (400, {"error"})
    assert message in answer["error"]


@given(st.binary(max_size=60), st.integers(0, 10_000), st.integers(0, 255))
@settings(max_examples=60)
def test_no_bytes_do_more_than_be_refused(body, place, value):
    """The parser scores them or raises ValueError, whatever they are."""
    file = bytearray(base64.b64decode(GOOD))
    file[place % len(file)] = value
    damaged = json.dumps({"prompt": ["a"], "image": [base64.b64encode(file).decode()]}).encode()
    for sent in (body, damaged):
        try:
            question = parse_question(sent, 4)
            (images,) = map(question.images, question.parts())
        except ValueError:
            continue
        assert images.shape[0] == 1
        assert 0 <= images.min() <= images.max() <= 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("prompt 0 has no words"), 400, "prompt 0 has no words"),
        (RewardFailed("no engine"), 503, "no engine"),
        (KeyError("/home/me/secret"), 500, "see the log of the server"),
    ],
)
def test_a_reward_that_raises_does_not_end_the_server(error, status, message):
    with serving(Raises(error)) as lent:
        for _ in range(2):
            got, answer, _ = ask(lent, question())
            assert got == status
            assert message in answer["error"]
            assert "secret" not in answer["error"]


def test_one_request_is_scored_at_a_time_and_a_full_queue_says_so():
    reward = Stuck()
    with serving(reward, queue=3) as lent, ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(ask, lent, question()) for _ in range(3)]
        assert reward.began.wait(20)
        while len(lent._jobs) < 3:
            time.sleep(0.01)
        status, answer, headers = ask(lent, question())
        assert (status, answer["error"]) == (503, "the queue is full")
        assert int(headers["Retry-After"]) >= 1
        assert ask(lent, path="/health", method="GET")[0] == 200
        reward.go.set()
        assert [job.result()[0] for job in waiting] == [200] * 3
        assert ask(lent, question())[0] == 200
    assert reward.most == 1


def test_a_request_without_a_score_in_time_is_given_up():
    reward = Stuck()
    with serving(reward, timeout=0.3, queue=2) as lent, ThreadPoolExecutor(2) as clients:
        both = [clients.submit(ask, lent, question()) for _ in range(2)]
        assert [job.result()[0] for job in both] == [504, 504]
        reward.go.set()
        while lent._jobs:
            time.sleep(0.01)
        assert ask(lent, question())[0] == 200
    assert reward.calls == 2, "a request nobody waits for any more was scored"


@pytest.mark.slow
def test_clients_that_dawdle_are_hung_up_on(monkeypatch):
    monkeypatch.setattr(server, "_ARRIVAL_TIME", 0.2)
    start = b"POST /compute HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: 999\r\n"
    with serving(Brightness(), timeout=0.2, queue=1) as lent:
        for first in (b"", b"POST /comp", start, start + b"\r\n{"):
            with socket.create_connection(lent.address, timeout=20) as client:
                client.sendall(first)
                began = time.monotonic()
                with pytest.raises(OSError):  # noqa: PT012
                    while time.monotonic() - began < 20:
                        client.sendall(b" ")
                        time.sleep(0.05)
                assert time.monotonic() - began < 10
        assert ask(lent, question())[0] == 200


def test_too_many_connections_do_not_pile_up_and_do_not_keep_others_out(monkeypatch):
    monkeypatch.setattr(server, "_CONNECTIONS", 2)
    with serving(Brightness()) as lent:
        idle = [socket.create_connection(lent.address, timeout=20) for _ in range(5)]
        try:
            assert ask(lent, question())[0] == 200
            for client in idle[:-1]:
                with suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        finally:
            for client in idle:
                client.close()


def test_closing_finishes_the_running_request_and_refuses_the_waiting():
    reward = Stuck()
    with ThreadPoolExecutor(3) as clients:
        with serving(reward) as lent:
            running = clients.submit(ask, lent, question())
            assert reward.began.wait(20)
            waiting = clients.submit(ask, lent, question())
            while len(lent._jobs) < 2:
                time.sleep(0.01)
            clients.submit(lambda: (waiting.exception(20), reward.go.set()))
        assert running.result()[0] == 200
        assert waiting.result()[0] == 503
    assert reward.calls == 1


@pytest.mark.parametrize(
    "limits", [{"batch": 0}, {"queue": 0}, {"megabytes": 0}, {"timeout": float("inf")}]
)
def test_limits_that_cannot_work_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        ServerLimits(**limits)


@pytest.mark.slow
def test_the_command_lends_a_reward_to_another_process(tmp_path):
    command = [sys.executable, "-m", "chunk_grpo_core", "serve-reward", "target_colour"]
    command += ["--port", "0", "--setting", "colour=#ff8000", "--max-batch", "3"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        url = next(word for word in line.replace(",", " ").split() if word.startswith("http://"))
        away = load_reward("remote_http", url=url, batch_size=3)
        images = torch.rand(7, 16, 16, 3)
        at_home = load_reward("target_colour", colour="#ff8000")
        expected = at_home.score((images * 255).round() / 255, ["a"] * 7).values
        assert away.score(images, ["a"] * 7).values.tolist() == expected.tolist()
        assert away.fingerprint["server/colour"] == "#ff8000"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "set a token"),
        (["--host", "no.such.host.invalid"], "host is 'no.such.host.invalid', which has no"),
        (["--setting", "colour"], "KEY=VALUE"),
        (["--setting", "shade=1"], "shade"),
        (["--token-env", "HOME"], "CHUNK_GRPO_"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(options, message, any_address):
    from typer.testing import CliRunner

    from chunk_grpo_core.cli.app import app

    done = CliRunner().invoke(app, ["serve-reward", "target_colour", "--port", "0", *options])
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
