"""A reward server that lies: every answer is a score, no score, or one clear sentence."""

from __future__ import annotations

import json
import traceback

import pytest
import torch
from fake_server import drip, fake_server, hang, reply
from typer.testing import CliRunner

from chunk_grpo_core.cli.app import app
from chunk_grpo_core.method.reward import RewardFailed
from chunk_grpo_core.rewards import load_reward
from chunk_grpo_core.watch.pictures import save_png

GOOD = {"rewards": [1.0, 2.0]}


def raw(data):
    """Answer with these bytes and hang up."""

    def behave(handler, fake, _):
        handler.wfile.write(data)
        handler.close_connection = True

    return behave


def head(more=b"", status=b"200 OK"):
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" + more + b"\r\n"


def deep(opening, closing, count=50_000):
    return '{"rewards": ' + opening * count + closing * count + "}"


ANSWERS = {
    # not HTTP
    "nothing": raw(b""),
    "noise": raw(bytes(range(256)) * 10),
    "other protocol": raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "status that is no number": raw(b"HTTP/1.1 abc OK\r\n\r\n"),
    "status 999999": raw(b"HTTP/1.1 999999 OK\r\n\r\n"),
    "endless status line": raw(b"HTTP/1.1 200 " + b"x" * 100_000 + b"\r\n\r\n"),
    "huge header": raw(head(b"X: " + b"y" * 200_000 + b"\r\n")),
    "many headers": raw(head(b"".join(b"X-%d: y\r\n" % i for i in range(50_000)))),
    "header with control characters": raw(head(b"X\x1b[31m: \0\r\n")),
    "two lengths": raw(head(b"Content-Length: 3\r\nContent-Length: 30\r\n") + b"{}"),
    "negative length": raw(head(b"Content-Length: -5\r\n") + b"{}"),
    "huge length": raw(head(b"Content-Length: 99999999999999999999999\r\n") + b"{}"),
    "broken chunks": raw(head(b"Transfer-Encoding: chunked\r\n") + b"zz\r\n{}\r\n"),
    "only 100 Continue": raw(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "zip bomb": raw(head(b"Content-Encoding: gzip\r\nContent-Length: 3\r\n") + b"\x1f\x8b\x08"),
    # slow
    "silence": hang,
    "dripping": drip(b"HTTP/1.1 200 OK\r\n\r\n"),
    # huge
    "17 MiB": reply('{"rewards": [1, 2], "x": "' + "y" * 2 * 2**20 + '"}'),
    "a million objects": reply('{"rewards": [' + "{}," * 300_000 + "1]}"),
    # not JSON
    "empty": reply(""),
    "page": reply("<html>hello</html>"),
    "half": reply('{"rewards": [1.0'),
    "bytes": raw(head(b"Content-Length: 4\r\n") + b"\xff\xfe\xfd\xfc"),
    "deep lists": reply(deep("[", "]")),
    "deep lists below the limit of values": reply(deep("[", "]", 900)),
    "deep error": reply('{"error": ' + "[" * 900 + "]" * 900 + "}"),
    "number of 100,000 digits": reply('{"rewards": [1, ' + "9" * 100_000 + "]}"),
    # not an answer
    "list": reply([1.0, 2.0]),
    "text": reply('"1.0, 2.0"'),
    "null": reply("null"),
    "no rewards": reply({}),
    "rewards null": reply({"rewards": None}),
    "one number": reply({"rewards": 1.0}),
    "too few": reply({"rewards": [1.0]}),
    "too many": reply({"rewards": [1.0] * 50_000}),
    "texts": reply({"rewards": ["1.0", "2.0"]}),
    "lists": reply({"rewards": [[1.0], [2.0]]}),
    "truth values": reply({"rewards": [True, False]}),
    "error": reply({**GOOD, "error": "out of memory \x1b[31m\u202e"}),
    "error that is an object": reply({"error": {"a": {"b": [1] * 1000}}}),
    "extras list": reply({**GOOD, "extras": [1.0, 2.0]}),
    "extras of another length": reply({**GOOD, "extras": {"a": [1.0]}}),
    "extras of texts": reply({**GOOD, "extras": {"a": ["x", "y"]}}),
    "extras by the thousand": reply({**GOOD, "extras": {str(i): [1, 2] for i in range(5000)}}),
    "extra with a huge name": reply({**GOOD, "extras": {"x" * 100_000: [1, 2]}}),
    "extra with a line break": reply({**GOOD, "extras": {"a\n\x1b[31mb": [1, 2]}}),
    "extra without a name": reply({**GOOD, "extras": {"": [1, 2]}}),
    # other statuses
    "redirect": reply("", 302, Location="http://127.0.0.1:1/" + "x" * 1000),
    "redirect to a file": reply("", 301, Location="file:///etc/passwd"),
    "no content": reply("", 204),
    "teapot": reply("\x1b[31m" * 10_000, 418),
    "deep refusal": reply('{"error": ' + "[" * 900 + "]" * 900 + "}", 400),
    "busy for ever": reply({"error": "busy"}, 503, Retry_After="99999"),
    "busy for no time": reply({"error": "busy"}, 503, Retry_After="\u0661"),
}


def remote(url, **settings):
    known = {"timeout": 0.5, "retries": 1, "backoff": 0.01, "max_megabytes": 1.0}
    return load_reward("remote_http", url=url, **{**known, **settings})


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("CHUNK_GRPO_TOKEN", "s3cret")


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_one_clear_sentence(name, caplog):
    caplog.set_level("DEBUG")
    with fake_server(ANSWERS[name]) as server, pytest.raises(RewardFailed) as failed:
        remote(server.url).score(torch.rand(2, 2, 2, 3), ["a", "b"])
    message = str(failed.value)
    assert message.startswith(server.url)
    assert len(message) < 700
    assert message.isprintable(), message
    told = "".join(traceback.format_exception(failed.value)) + caplog.text
    assert "s3cret" not in told + repr(failed.value.__cause__) + repr(failed.value.__context__)


@pytest.mark.parametrize(
    "fingerprint",
    [
        {"a": float("nan")},
        {"a": 10**400},
        {"a": "x" * 100_000},
        {"x" * 100_000: 1},
        {f"k{i}": i for i in range(1000)},
        {"a\n\x1b": "b"},
    ],
    ids=["nan", "huge number", "huge text", "huge key", "many", "control characters"],
)
def test_a_fingerprint_that_no_record_can_hold_is_refused(fingerprint):
    with fake_server(reply({"name": "x", "fingerprint": fingerprint})) as server:
        with pytest.raises(RewardFailed, match=r"fingerprint|values") as failed:
            dict(remote(server.url).fingerprint)
    assert str(failed.value).isprintable() and len(str(failed.value)) < 700


EXTRAS = {name: [10.0, 20.0] for name in ("score", "image", "prompt", "reward", "values", "cls")}


@pytest.fixture
def pictures(tmp_path):
    return [str(save_png(torch.full((2, 2, 3), v), tmp_path / f"{v}.png")) for v in (0.0, 1.0)]


def score(url, pictures, *more):
    """Run the command -> exit code, standard output, standard error."""
    words = ["score", *pictures, "--reward", "remote_http", "--prompt", "a cat"]
    for setting in (f"url={url}", "timeout=5.0", "retries=0"):
        words += ["--setting", setting]
    done = CliRunner().invoke(app, [*words, *more])
    return done.exit_code, done.stdout, done.stderr


def test_extras_never_stand_in_for_columns(pictures):
    with fake_server(reply({**GOOD, "extras": EXTRAS})) as server:
        batch = remote(server.url).score(torch.rand(2, 2, 2, 3), ["a", "b"])
        code, output, _ = score(server.url, pictures, "--json")
    assert batch.values.tolist() == [1.0, 2.0]
    assert {name: row.tolist() for name, row in batch.details.items()} == EXTRAS
    assert code == 0
    rows = json.loads(output)["scores"]
    assert [row["score"] for row in rows] == [1.0, 2.0]
    assert [row["image"] for row in rows] == pictures
    assert {row["prompt"] for row in rows} == {"a cat"}
    assert rows[1]["extras"]["score"] == 20.0


@pytest.mark.parametrize("name", ["nothing", "deep error", "too few", "extras list", "redirect"])
def test_the_command_line_says_what_failed_without_a_traceback(name, pictures):
    with fake_server(ANSWERS[name]) as server:
        code, _, told = score(server.url, pictures)
        assert (code, server.url in told, "Traceback" in told) == (1, True, False), told
    code, _, told = score(server.url, pictures)  # it is gone
    assert (code, "connection refused" in told, "Traceback" in told) == (1, True, False), told
